"""Facts of DSEBM; what holds for every method is in test_contract.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from normalcy.errors import SettingsError
from normalcy.methods.dsebm import DSEBM, DSEBMSettings
from normalcy.testing import smooth_textures

CONTRACT: dict[str, Any] = {"steps": 40, "batch_size": 8, "width": 4, "features": 16, "lr": 5e-3}
"""Settings that make the contract tests quick."""

SHAPE = (1, 12, 16)
SMALL: dict[str, Any] = {"width": 4, "features": 16, "lr": 3e-3, "count": 64}


def test_gradient_is_that_of_the_energy_by_finite_differences(fitted: Callable[..., DSEBM]) -> None:
    method = fitted(DSEBM, SHAPE, **SMALL).double()
    y = torch.randn(2, *SHAPE, dtype=torch.float64)
    size = y[0].numel()
    direction = torch.randn_like(y)
    with torch.no_grad():
        h = 1e-4

        def energy(at: torch.Tensor) -> torch.Tensor:
            features = method.network(at).sum(1)
            return 0.5 * (at - method.bias).square().flatten(1).sum(1) - features

        difference = (energy(y + h * direction) - energy(y - h * direction)) / (2 * h)
        torch.testing.assert_close(method.energy(y), energy(y) / size, rtol=1e-5, atol=1e-6)
    along = (method.step(y) * direction).flatten(1).sum(1)
    torch.testing.assert_close(along, difference, rtol=1e-4, atol=1e-4)


def test_a_linear_network_restores_by_its_bias(fitted: Callable[..., DSEBM]) -> None:
    """Without features E = 1/2 |y - b|^2, so that one step down leads to b."""
    method = fitted(DSEBM, SHAPE, **SMALL)
    with torch.no_grad():
        for p in method.network.parameters():
            p.zero_()
        method.bias.normal_()
        restored = method.score(smooth_textures(2, SHAPE, seed=1)).restored
    torch.testing.assert_close(restored, method.standardise.inverse(method.bias.detach()).expand(2, -1, -1, -1))


def test_loss_is_denoising_and_its_gradient_reaches_the_weights(fitted: Callable[..., DSEBM]) -> None:
    method = fitted(DSEBM, SHAPE, **SMALL)
    x = smooth_textures(4, SHAPE, seed=1)
    method.zero_grad()
    torch.manual_seed(3)
    loss = method.denoising(x)["loss"]
    loss.backward()  # type: ignore[no-untyped-call]
    torch.manual_seed(3)
    y = method.standardise(x)
    noisy = y + 0.5 * torch.randn_like(y)
    assert float(loss.detach()) == pytest.approx(float((noisy - method.step(noisy) - y).square().mean()), rel=1e-5)
    assert all(p.grad is not None for name, p in method.named_parameters() if "weight" in name)


def test_training_denoises(fitted: Callable[..., DSEBM]) -> None:
    x = smooth_textures(32, SHAPE, seed=1)
    method = fitted(DSEBM, SHAPE, **SMALL | {"steps": 300})
    torch.manual_seed(0)
    assert float(method.denoising(x)["loss"]) < 0.8 * 0.5**2  # the variance of the noise


def test_scores_are_energy_and_squared_step(fitted: Callable[..., DSEBM]) -> None:
    method = fitted(DSEBM, SHAPE, **SMALL)
    x = smooth_textures(3, SHAPE, seed=1)
    y = method.standardise(x)
    step = method.step(y)
    torch.testing.assert_close(method.with_score("energy").score(x).image, method.energy(y).detach())
    torch.testing.assert_close(method.with_score("reconstruction").score(x).image, step.square().mean((1, 2, 3)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"width": 0}, "dsebm: width must be at least 1, got 0."),
        ({"noise": 0.0}, "dsebm: noise must be greater than 0, got 0.0."),
        ({"lr": 0.0}, "dsebm: lr must be greater than 0, got 0.0."),
        ({"smoothing": -1.0}, "dsebm: smoothing must be at least 0, got -1.0."),
    ],
    ids=str,
)
def test_impossible_settings(words: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        DSEBMSettings(**words)
