"""Facts of CAVGA; what holds for every method is in test_contract.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from normalcy.errors import DataError, SettingsError
from normalcy.methods.cavga import CAVGA, CAVGASettings
from normalcy.nets.grad_cam import grad_cam
from normalcy.testing import smooth_textures

CONTRACT: dict[str, Any] = {
    "steps": 40,
    "batch_size": 8,
    "latent": 3,
    "width": 4,
    "lr": 0.003,
}  # attention: see its docstring
"""Settings that make the contract tests quick."""

SHAPE = (1, 16, 24)
SMALL: dict[str, Any] = {"latent": 3, "width": 4, "lr": 3e-3, "smoothing": 0.0, "steps": 6}


def test_grad_cam_of_a_known_function() -> None:
    """f = sum_k w_k mean(A_k): alpha_k is w_k / pixels."""
    maps = torch.randn(2, 3, 4, 5, requires_grad=True)
    w = torch.tensor([1.0, -2.0, 0.5])
    found = grad_cam((maps.mean((2, 3)) * w).sum(1), maps)
    torch.testing.assert_close(found, (maps * w.view(1, 3, 1, 1)).sum(1) / 20)


def test_expansion_loss_reaches_the_encoder(fitted: Callable[..., CAVGA]) -> None:
    method = fitted(CAVGA, SHAPE, **SMALL)
    method.zero_grad()
    maps = method.encoder(method.standardise(smooth_textures(4, SHAPE, seed=1)))
    mean, _ = method.code(maps)
    (1 - method.attention(mean, maps, create_graph=True)).mean().backward()  # type: ignore[no-untyped-call]
    first = next(iter(method.encoder.parameters()))
    assert first.grad is not None
    assert first.grad.abs().sum() > 0


def test_training_spreads_attention_over_normal_images(fitted: Callable[..., CAVGA]) -> None:
    x = smooth_textures(8, SHAPE, seed=1)
    means = [
        fitted(CAVGA, SHAPE, **SMALL | {"steps": 30, "expansion": weight}).with_score("attention").score(x).image.mean()
        for weight in (0.0, 1.0)
    ]
    assert means[1] < means[0]


def test_scores_restated(fitted: Callable[..., CAVGA]) -> None:
    method = fitted(CAVGA, SHAPE, **SMALL)
    x = smooth_textures(2, SHAPE, seed=1)
    y = method.standardise(x)
    maps = method.encoder(y).detach().requires_grad_()
    mean, _ = method.code(maps)
    cam = grad_cam(mean, maps).detach()
    assert cam.shape == (2, 4, 6)
    found = method.with_score("attention").score(x).map
    assert found is not None
    expected = F.interpolate(1 - torch.sigmoid(cam)[:, None], size=(16, 24), mode="bilinear")[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        error = (y - method.decode(mean)).square().mean((1, 2, 3))
    torch.testing.assert_close(method.with_score("reconstruction").score(x).image, error)


def test_players_own_disjoint_parts_and_all_of_them(fitted: Callable[..., CAVGA]) -> None:
    method = fitted(CAVGA, SHAPE, **SMALL | {"steps": 1})
    owners = [{id(p) for p in o.parameters} for o in method.stages()[0].objectives]
    assert sum(map(len, owners)) == len(set().union(*owners)) == len(list(method.parameters()))


def test_sides_must_halve() -> None:
    with pytest.raises(DataError, match="multiples of 4"):
        CAVGA(CAVGASettings(halvings=2), (1, 30, 32))


@pytest.mark.parametrize(("side", "grid"), [(28, 7), (48, 6), (128, 8), (30, 15)])
def test_the_code_is_small_unless_asked_for(side: int, grid: int) -> None:
    method = CAVGA(CAVGASettings(width=2, latent=2), (1, side, side))
    mean, _ = method.code(method.encoder(torch.zeros(1, 1, side, side)))
    assert mean.shape == (1, 2, grid, grid)
    assert method.decode(mean).shape == (1, 1, side, side)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"latent": 0}, "cavga: latent must be at least 1, got 0."),
        ({"halvings": 0}, "cavga: halvings must be at least 1, got 0."),
        ({"expansion": -1.0}, "cavga: expansion must be at least 0, got -1.0."),
        ({"lr": 0.0}, "cavga: lr must be greater than 0, got 0.0."),
        ({"reduce": 2.0}, "cavga: reduce must be "),
    ],
    ids=str,
)
def test_impossible_settings(words: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        CAVGASettings(**words)
