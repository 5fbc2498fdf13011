"""Facts of PIAD; what holds for every method is in test_contract.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from normalcy.errors import SettingsError
from normalcy.methods.piad import PIAD, PIADSettings, gradient_ratio
from normalcy.nets.gan import gradient_penalty
from normalcy.testing import smooth_textures

CONTRACT: dict[str, Any] = {"steps": 80, "batch_size": 8, "latent": 4, "width": 8, "layer": 0, "lr": 2e-3}
"""Settings that make the contract tests quick."""

SHAPE = (1, 16, 16)
SMALL: dict[str, Any] = {"latent": 6, "width": 4, "layer": 0, "lr": 2e-3, "steps": 4}


def test_gradient_ratio_makes_standard_deviations_equal() -> None:
    layer = nn.Linear(5, 3)
    x = torch.randn(7, 5)
    first, second = 8.0 * layer(x).sin().mean(), layer(x).sin().mean()
    assert float(gradient_ratio(first, second, list(layer.parameters()))) == pytest.approx(8.0, rel=1e-5)


def test_weight_is_updated_every_few_steps_and_smoothed(fitted: Callable[..., PIAD]) -> None:
    method = fitted(PIAD, SHAPE, **SMALL | {"steps": 1, "balance_steps": 3, "balance_memory": 0.5})
    method.looks.zero_()
    method.weights.fill_(1.0)
    parameters = list(method.generator.parameters())
    adversarial = sum(((k + 1.0) * p.square().sum() for k, p in enumerate(parameters)), torch.zeros(()))
    for step, expected in enumerate([1 / 2, 1 / 2, 1 / 2, 0.5 * 1 / 2 + 0.5 * 1 / 4]):
        content = (2.0 if step < 3 else 4.0) * adversarial
        terms = method.balanced(0, adversarial, content, parameters)
        assert float(terms["weight"]) == pytest.approx(expected, rel=1e-4)
        assert float(terms["loss"]) == pytest.approx(float(adversarial + expected * content), rel=1e-4)
    assert float(method.weights[1]) == 1.0


def test_critic_loss_is_two_wgan_gp(fitted: Callable[..., PIAD]) -> None:
    method = fitted(PIAD, SHAPE, **SMALL)
    x = smooth_textures(8, SHAPE, seed=1)
    torch.manual_seed(5)
    found = method.critic_loss(x)["loss"]
    torch.manual_seed(5)
    y, z = method.range(x), torch.randn(8, 6)
    image, code = method.generator(z).detach(), method.encoder(y).detach()
    expected = method.image_critic(image).mean() - method.image_critic(y).mean()
    expected = expected + 10 * gradient_penalty(method.image_critic, y, image)
    expected = expected + method.code_critic(code).mean() - method.code_critic(z).mean()
    expected = expected + 10 * gradient_penalty(method.code_critic, z, code)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_score_is_the_relative_perceptual_l1(fitted: Callable[..., PIAD]) -> None:
    method = fitted(PIAD, SHAPE, **SMALL)
    x = smooth_textures(3, SHAPE, seed=1)
    scores = method.score(x)
    with torch.no_grad():
        y = method.range(x)
        a, b = method.features(y), method.features(method.generator(method.encoder(y)))
    torch.testing.assert_close(scores.image, (a - b).abs().sum((1, 2, 3)) / a.abs().sum((1, 2, 3)))
    assert float(method.content(x)) == pytest.approx(float(scores.image.mean()), rel=1e-5)


def test_training_lowers_the_perceptual_error(fitted: Callable[..., PIAD]) -> None:
    x = smooth_textures(16, SHAPE, seed=1)
    short, long = (fitted(PIAD, SHAPE, **SMALL | {"steps": steps}).score(x).image.mean() for steps in (1, 80))
    assert long < 0.95 * short


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent": 0}, "latent must be at least 1, got 0."),
        ({"balance_memory": 1.0}, "balance_memory must be at least 0 and below 1, got 1.0."),
        ({"lr": 0.0}, "lr must be greater than 0, got 0.0."),
        ({"penalty": -1.0}, "penalty must be at least 0, got -1.0."),
    ],
    ids=str,
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=f"^piad: {re.escape(message)}$"):
        PIADSettings(**settings)
