"""Facts of GANomaly; what holds for every method is in test_contract.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from normalcy.errors import SettingsError
from normalcy.methods.ganomaly import GANomaly, GANomalySettings
from normalcy.testing import smooth_textures

CONTRACT: dict[str, Any] = {"steps": 40, "batch_size": 8, "latent": 8, "width": 4, "lr": 2e-3}
"""Settings that make the contract tests quick."""

SHAPE = (2, 12, 16)
SMALL: dict[str, Any] = {"latent": 6, "width": 4, "lr": 2e-3, "count": 64}


def test_loss_is_the_weighted_sum_of_its_parts_restated(fitted: Callable[..., GANomaly]) -> None:
    method = fitted(GANomaly, SHAPE, **SMALL | {"adversarial": 2.0, "context": 30.0, "encoder": 3.0})
    x = smooth_textures(5, SHAPE, seed=1)
    with torch.no_grad():
        y = method.range(x)
        z = method.encoder(y)
        fake = method.decoder(z)
        z2 = method.second_encoder(fake)
        features = [method.discriminator.trunk(t).flatten(1) for t in (y, fake)]
        adversarial = nn.MSELoss()(features[0], features[1])
        expected = 2 * adversarial + 30 * nn.L1Loss()(y, fake) + 3 * nn.MSELoss()(z, z2)
        found = method.generator_loss(x)
    torch.testing.assert_close(found["loss"], expected)
    assert set(found) == {"loss", "adversarial", "context", "encoder"}


def test_scores_are_equation_5_and_the_context(fitted: Callable[..., GANomaly]) -> None:
    method = fitted(GANomaly, SHAPE, **SMALL)
    x = smooth_textures(5, SHAPE, seed=1)
    with torch.no_grad():
        y = method.range(x)
        z = method.encoder(y)
        fake = method.decoder(z)
        latent = torch.stack([(a - b).abs().sum() / 6 for a, b in zip(z, method.second_encoder(fake))])
    torch.testing.assert_close(method.with_score("latent").score(x).image, latent)
    context = method.with_score("context").score(x)
    torch.testing.assert_close(context.image, (y - fake).abs().mean((1, 2, 3)))
    assert context.map is not None
    torch.testing.assert_close(context.map.mean((1, 2)), context.image)


def test_discriminator_does_not_train_the_generator(fitted: Callable[..., GANomaly]) -> None:
    method = fitted(GANomaly, SHAPE, **SMALL)
    method.zero_grad()
    loss = method.discriminator_loss(smooth_textures(4, SHAPE, seed=1))["loss"]
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None or not p.grad.any() for p in method.encoder.parameters())
    assert any(p.grad is not None and p.grad.any() for p in method.discriminator.parameters())


def test_players_own_disjoint_parts(fitted: Callable[..., GANomaly]) -> None:
    owners = [
        {id(p) for p in o.parameters} for o in fitted(GANomaly, SHAPE, **SMALL | {"steps": 1}).stages()[0].objectives
    ]
    assert not owners[0] & owners[1]


def test_training_brings_codes_together(fitted: Callable[..., GANomaly]) -> None:
    x = smooth_textures(16, SHAPE, seed=1)
    context = [
        fitted(GANomaly, SHAPE, **SMALL | {"steps": steps}).with_score("context").score(x).image.mean()
        for steps in (1, 150)
    ]
    assert context[1] < 0.95 * context[0]


def test_models_saved_under_the_former_name_of_the_second_encoder_load(fitted: Callable[..., GANomaly]) -> None:
    method = fitted(GANomaly, SHAPE, **SMALL)
    fresh = GANomaly(method.settings, SHAPE)
    former = {key.replace("second_encoder.", "again."): value for key, value in method.state_dict().items()}
    assert any(key.startswith("again.") for key in former)
    fresh.load_state_dict(former)
    for key, value in fresh.state_dict().items():
        torch.testing.assert_close(value, method.state_dict()[key], rtol=0, atol=0)
    # As a part of another method, where the names have a prefix.
    nn.ModuleDict({"inner": fresh}).load_state_dict({f"inner.{key}": value for key, value in former.items()})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"latent": 0}, "ganomaly: latent must be at least 1, got 0."),
        ({"lr": 0.0}, "ganomaly: lr must be greater than 0, got 0.0."),
        ({"context": -1.0}, "ganomaly: context must be at least 0, got -1.0."),
        ({"smoothing": -1.0}, "ganomaly: smoothing must be at least 0, got -1.0."),
    ],
    ids=str,
)
def test_impossible_settings(words: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        GANomalySettings(**words)
