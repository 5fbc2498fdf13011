"""Facts of PIAD; what holds for every method is in test_contract.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from normalcy.errors import SettingsError
from normalcy.methods.piad import PIAD, PIADSettings, gradient_ratio
from normalcy.nets.gan import gradient_penalty
from normalcy.testing import smooth_textures
from normalcy.training.fit import fit
from normalcy.training.settings import TrainSettings

CONTRACT: dict[str, Any] = {"steps": 80, "batch_size": 8, "latent": 4, "width": 8, "layer": 0, "lr": 2e-3}
"""Settings that make the contract tests quick."""

SHAPE = (1, 16, 16)


def _fitted(steps: int = 4, **words: Any) -> PIAD:
    torch.manual_seed(0)
    method = PIAD(PIADSettings(**{"latent": 6, "width": 4, "layer": 0, "lr": 2e-3, **words}), SHAPE)
    settings = TrainSettings(steps=steps, batch_size=16, precision="32-true", device="cpu")
    fit(method, smooth_textures(48, SHAPE, seed=0), settings)
    return method


def test_gradient_ratio_makes_deviations_equal() -> None:
    layer = nn.Linear(5, 3)
    x = torch.randn(7, 5)
    first, second = 8.0 * layer(x).sin().mean(), layer(x).sin().mean()
    assert float(gradient_ratio(first, second, list(layer.parameters()))) == pytest.approx(8.0, rel=1e-5)


def test_weight_is_looked_at_now_and_then_and_smoothed() -> None:
    method = _fitted(steps=1, balance_steps=3, balance_memory=0.5)
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


def test_critic_loss_is_two_wgan_gp() -> None:
    method = _fitted()
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


def test_score_is_the_relative_perceptual_l1() -> None:
    method = _fitted()
    x = smooth_textures(3, SHAPE, seed=1)
    scores = method.score(x)
    with torch.no_grad():
        y = method.range(x)
        a, b = method.features(y), method.features(method.generator(method.encoder(y)))
    torch.testing.assert_close(scores.image, (a - b).abs().sum((1, 2, 3)) / a.abs().sum((1, 2, 3)))
    assert float(method.content(x)) == pytest.approx(float(scores.image.mean()), rel=1e-5)


def test_training_brings_the_content_near() -> None:
    x = smooth_textures(16, SHAPE, seed=1)
    assert _fitted(steps=80).score(x).image.mean() < 0.95 * _fitted(steps=1).score(x).image.mean()


@pytest.mark.parametrize("words", [{"latent": 0}, {"balance_memory": 1.0}, {"lr": 0.0}, {"penalty": -1.0}], ids=str)
def test_impossible_settings(words: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="piad"):
        PIADSettings(**words)
