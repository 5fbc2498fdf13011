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

CONTRACT: dict[str, Any] = {
    "preset": "short", "steps": 80, "batch_size": 8, "latent": 4, "width": 8, "layer": 0, "lr": 2e-3, "lr_generator": 2e-3
}  # fmt: skip
"""Settings that make the contract tests quick."""

SHAPE = (1, 16, 16)
SMALL: dict[str, Any] = {
    "preset": "short", "latent": 6, "width": 4, "hidden": 16, "layer": 0, "lr": 2e-3, "lr_generator": 2e-3, "steps": 4
}  # fmt: skip


def test_gradient_ratio_makes_norms_equal() -> None:
    layer = nn.Linear(5, 3)
    x = torch.randn(7, 5)
    first, second = 8.0 * layer(x).sin().mean(), layer(x).sin().mean()
    assert float(gradient_ratio(first, second, list(layer.parameters()))) == pytest.approx(8.0, rel=1e-5)


def test_weights_are_updated_every_few_steps_and_smoothed(fitted: Callable[..., PIAD]) -> None:
    method = fitted(PIAD, SHAPE, **SMALL | {"steps": 1, "balance_steps": 3, "balance_memory": 0.5})
    method.looks.zero_()
    method.weights.fill_(1.0)
    everything = sum((p.square().sum() for p in method.parameters()), torch.zeros(()))
    for step, expected in enumerate([1 / 2, 1 / 2, 1 / 2, 0.5 * 1 / 2 + 0.5 * 1 / 4]):
        content = (2.0 if step < 3 else 4.0) * everything
        method.balance([(everything, method.generator), (3.0 * everything, method.encoder)], content)
        torch.testing.assert_close(method.weights, torch.tensor([expected, 3 * expected]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("cached", [False, True])
def test_one_pass_gives_generator_and_encoder_the_gradients_of_their_own_losses(
    cached: bool, fitted: Callable[..., PIAD]
) -> None:
    """G: adversarial + w_G content; E: adversarial + w_E content, each computed apart here."""
    method = fitted(PIAD, SHAPE, **SMALL | {"preset": "paper"})
    method.looks.fill_(1)  # no update of the weights now
    method.weights.copy_(torch.tensor([0.7, 0.2]))
    x = smooth_textures(8, SHAPE, seed=1)
    method.zero_grad()
    with torch.no_grad():
        given = method._with_features(x) if cached else x
    torch.manual_seed(5)
    method.autoencoder_loss(given)["loss"].backward()  # type: ignore[no-untyped-call]
    found = [[p.grad.clone() for p in net.parameters()] for net in (method.generator, method.encoder)]
    torch.manual_seed(5)
    y, z = method.range(x), method.codes(8)
    code = method.encoder(y)
    content = method.content(y, method.generator(code))
    losses = (
        -method.image_critic(method.generator(z)).mean() + 0.7 * content,
        -method.code_critic(code).mean() + 0.2 * content,
    )
    for loss, net, gradients in zip(losses, (method.generator, method.encoder), found):
        expected = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
        for a, b in zip(gradients, expected):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_papers_settings_are_the_default() -> None:
    method = PIAD(PIADSettings(), (3, 32, 32))
    (stage,) = method.stages()
    assert (stage.steps, stage.batch_size) == (100_000, 32)
    critics, both = stage.objectives
    assert (critics.lr, both.lr, both.weight_decay) == (5e-4, 1e-4, 1e-8)
    assert critics.betas == both.betas == (0.5, 0.99)
    assert critics.repeats == 2
    assert method.latent == 256
    assert [layer.out_features for layer in method.code_critic if isinstance(layer, nn.Linear)] == [1024, 1024, 1]
    nets = (*method.generator.modules(), *method.encoder.modules())
    assert not any(isinstance(net, nn.BatchNorm2d | nn.GroupNorm) for net in nets)
    assert 64 in {net.out_channels for net in nets if isinstance(net, nn.Conv2d)}
    with torch.no_grad():
        method.generator.rest[-1][0].weight.mul_(100)
    assert method.generator(torch.randn(4, 256)).abs().max() > 1  # linear output
    (short,) = PIAD(PIADSettings(preset="short"), (3, 32, 32)).stages()
    assert (short.steps, short.batch_size) == (10_000, 64)


@pytest.mark.parametrize("drift", [0.0, 1e-3])
def test_critic_loss_is_two_wgan_gp(drift: float, fitted: Callable[..., PIAD]) -> None:
    method = fitted(PIAD, SHAPE, **SMALL, drift=drift)
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
    expected = expected + drift * (method.image_critic(y).square().mean() + method.code_critic(z).square().mean())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_score_is_the_relative_perceptual_l1(fitted: Callable[..., PIAD]) -> None:
    method = fitted(PIAD, SHAPE, **SMALL)
    x = smooth_textures(3, SHAPE, seed=1)
    scores = method.score(x)
    with torch.no_grad():
        y = method.range(x)
        a, b = method.features(y), method.features(method.generator(method.encoder(y)))
    torch.testing.assert_close(scores.image, (a - b).abs().sum((1, 2, 3)) / a.abs().sum((1, 2, 3)))
    with torch.no_grad():
        content = method.content(y, method.generator(method.encoder(y)))
    assert float(content) == pytest.approx(float(scores.image.mean()), rel=1e-5)


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
