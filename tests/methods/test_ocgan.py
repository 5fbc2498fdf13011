"""Facts of OCGAN; what holds for every method is in test_contract.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from normalcy.errors import SettingsError
from normalcy.methods.ocgan import OCGAN, OCGANSettings
from normalcy.testing import smooth_textures

CONTRACT: dict[str, Any] = {"steps": 40, "batch_size": 8, "latent": 6, "width": 4, "mining_steps": 2}
"""Settings that make the contract tests quick."""

SHAPE = (1, 12, 16)
SMALL: dict[str, Any] = {"latent": 5, "width": 4, "steps": 6}


def test_mining_leads_to_worse_images_inside_the_cube(fitted: Callable[..., OCGAN]) -> None:
    method = fitted(OCGAN, SHAPE, **SMALL)
    start = method.decoder.prior(32, seed=1)
    mined = method.mine(start)
    assert mined.abs().max() <= 1
    assert not mined.requires_grad
    with torch.no_grad():
        before, after = (method.classifier(method.decoder(z)).mean() for z in (start, mined))
    assert after < before
    method._start_mining(0.05)
    assert torch.equal(method.mine(start), start)


def test_losses_restated_by_binary_cross_entropy(fitted: Callable[..., OCGAN]) -> None:
    method = fitted(OCGAN, SHAPE, **SMALL | {"noise": 0.0, "mining_steps": 0})
    x = smooth_textures(8, SHAPE, seed=1)
    bce = F.binary_cross_entropy_with_logits
    torch.manual_seed(2)
    with torch.no_grad():
        found = method.judgement(x)["loss"]
    torch.manual_seed(2)
    with torch.no_grad():
        y, uniform = method.range(x), method.decoder.prior(8)
        code, fake = torch.tanh(method.encoder(y)), method.decoder(uniform)
        one, zero = torch.ones(8, 1), torch.zeros(8, 1)
        expected = bce(method.latent_judge(uniform), one) + bce(method.latent_judge(code), zero)
        expected = expected + bce(method.visual(y), one) + bce(method.visual(fake), zero)
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.manual_seed(2)
        terms = method.autoencoding(x)
        error = (method.decoder(method.encode(y)) - y).square().mean()
        latent, visual = bce(method.latent_judge(code), one), terms["visual"]
    torch.testing.assert_close(terms["loss"], 10 * error + latent + visual)


def test_players_own_disjoint_parts_and_all_of_them(fitted: Callable[..., OCGAN]) -> None:
    method = fitted(OCGAN, SHAPE, **SMALL | {"steps": 1})
    owners = [{id(p) for p in o.parameters} for o in method.stages()[0].objectives]
    assert sum(map(len, owners)) == len(set().union(*owners)) == len(list(method.parameters()))


def test_scores(fitted: Callable[..., OCGAN]) -> None:
    method = fitted(OCGAN, SHAPE, **SMALL)
    x = smooth_textures(4, SHAPE, seed=1)
    with torch.no_grad():
        y = method.range(x)
        restored = method.decoder(torch.tanh(method.encoder(y)))
    expected = (y - restored).square().mean((1, 2, 3))
    torch.testing.assert_close(method.with_score("reconstruction").score(x).image, expected)
    torch.testing.assert_close(
        method.with_score("discriminator").score(x).image, -method.visual(restored)[:, 0].detach()
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent": 0}, "latent must be at least 1, got 0."),
        ({"mining_lr": 0.0}, "mining_lr must be greater than 0, got 0.0."),
        ({"weight": -1.0}, "weight must be at least 0, got -1.0."),
        ({"noise": float("nan")}, "noise must be at least 0, got nan."),
    ],
    ids=str,
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=f"^ocgan: {re.escape(message)}$"):
        OCGANSettings(**settings)
