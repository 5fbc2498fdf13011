"""Facts of f-AnoGAN; what holds for every method is in test_contract.py."""

from __future__ import annotations

import re
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from normalcy.errors import SettingsError
from normalcy.methods.f_anogan import FAnoGAN, FAnoGANSettings
from normalcy.nets.gan import gradient_penalty
from normalcy.testing import smooth_textures
from normalcy.training.fit import fit
from normalcy.training.settings import TrainSettings

CONTRACT: dict[str, Any] = {"steps": 20, "batch_size": 8, "latent": 8, "width": 4, "critic_steps": 2}
"""Settings that make the contract tests quick."""

SHAPE = (2, 8, 10)


def _method(**words: Any) -> FAnoGAN:
    torch.manual_seed(0)
    return FAnoGAN(FAnoGANSettings(**{"latent": 4, "width": 8, **words}), SHAPE)


class _Linear(nn.Module):
    """D(x) = w . x, (B, 1)"""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.w).flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize("length", [0.0, 0.5, 1.0, 3.0])
def test_gradient_penalty_of_a_linear_critic(length: float) -> None:
    """The gradient is w everywhere: the penalty is (|w| - 1)^2, its gradient 2 (|w| - 1) w / |w|."""
    torch.manual_seed(0)
    w = torch.randn(SHAPE)
    w = length * w / w.norm()
    critic = _Linear(w)
    penalty = gradient_penalty(critic, torch.rand(5, *SHAPE), torch.rand(5, *SHAPE))
    assert penalty.item() == pytest.approx((length - 1) ** 2, abs=1e-5)
    penalty.backward()  # type: ignore[no-untyped-call]
    gradient = cast("Tensor", critic.w.grad)
    expected = 2 * (length - 1) * w / length if length else torch.zeros_like(w)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_critic_loss_against_finite_differences() -> None:
    """The derivative of the whole loss, penalty included, along a random direction of the critic's weights.

    With a smooth activation: the penalty jumps where a leaky ReLU turns on.
    """
    method = _method()
    for level in method.critic.trunk[:-1]:
        level[-1] = nn.Softplus()
    x = torch.rand(4, *SHAPE)
    parameters = list(method.critic.parameters())
    direction = [torch.randn_like(p) / 30 for p in parameters]

    def loss(step: float) -> Tensor:
        with torch.no_grad():
            for p, d in zip(parameters, direction):
                p.add_(step * d)
        torch.manual_seed(1)
        return method.critic_loss(x)["loss"]

    gradients = torch.autograd.grad(loss(0.0), parameters)
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction))
    h = 1e-2
    ahead = float(loss(h).detach())
    behind = float(loss(-2 * h).detach())
    assert (ahead - behind) / (2 * h) == pytest.approx(slope, rel=0.02)


def test_signs_of_the_game() -> None:
    method = _method(penalty=0.0)
    x = smooth_textures(8, SHAPE, seed=0)
    terms = method.critic_loss(x)
    torch.testing.assert_close(terms["loss"], -terms["wasserstein"])
    method.critic = cast("Any", _Linear(torch.ones(SHAPE)))  # likes bright images
    bright, dark = x + 10, x - 10
    assert method.critic_loss(bright)["loss"] < method.critic_loss(dark)["loss"]
    torch.manual_seed(3)
    loss = method.generator_loss(x)["loss"]
    torch.manual_seed(3)
    torch.testing.assert_close(loss, -method.sample(8).flatten(1).sum(1).mean())


def test_score_and_loss_of_the_encoder() -> None:
    method = _method(kappa=0.7).eval()
    x = torch.rand(3, *SHAPE)
    method._fitted.fill_(True)  # type: ignore[operator]
    scores = method.score(x)
    assert scores.restored is not None
    y, generated = method.range(x), method.range(scores.restored)
    features = method.critic.trunk(y) - method.critic.trunk(generated)
    expected = ((y - generated) ** 2).mean((1, 2, 3)) + 0.7 * (features**2).mean(1)
    torch.testing.assert_close(scores.image, expected.detach())
    torch.testing.assert_close(method.izi_f(x)["loss"].detach(), expected.mean().detach())


def test_the_encoder_learns_with_the_rest_frozen() -> None:
    method = _method(critic_steps=2, encoder_lr=1e-3)
    images = smooth_textures(64, SHAPE, seed=0)
    game, mapping = method.stages()
    settings = TrainSettings(steps=20, batch_size=16, precision="32-true", device="cpu")
    method.stages = lambda: [game]  # type: ignore[method-assign]
    fit(method, images, settings)
    frozen = {k: v.clone() for k, v in method.state_dict().items() if not k.startswith(("encoder", "_fitted"))}
    before = method.score(images).image.mean()
    method.stages = lambda: [mapping]  # type: ignore[method-assign]
    fit(method, images, TrainSettings(steps=40, batch_size=16, precision="32-true", device="cpu"))
    after = method.state_dict()
    assert all(torch.equal(after[k], v) for k, v in frozen.items()), "running statistics included"
    assert method.score(images).image.mean() < before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"critic_steps": 0}, "f_anogan: critic_steps must be at least 1, got 0."),
        ({"encoder_lr": 0.0}, "f_anogan: encoder_lr must be greater than 0, got 0.0."),
        ({"kappa": -1.0}, "f_anogan: kappa must be at least 0, got -1.0."),
    ],
    ids=str,
)
def test_impossible_settings(words: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        FAnoGANSettings(**words)
