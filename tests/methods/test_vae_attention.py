"""Facts of VAE attention; what holds for every method is in test_contract.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from normalcy.errors import SettingsError
from normalcy.methods.vae_attention import VAEAttention, VAEAttentionSettings
from normalcy.testing import smooth_textures

CONTRACT: dict[str, Any] = {
    "steps": 40,
    "batch_size": 8,
    "width": 4,
    "latent": 4,
    "lr": 0.005,
    "score": "reconstruction",  # attention passes on images; on volumes it needs a longer training
}
"""Settings that make the contract tests quick."""

SHAPE = (1, 32, 32)
SMALL: dict[str, Any] = {"latent": 4, "width": 4, "lr": 5e-3}


@pytest.mark.parametrize(("level", "sign"), [(0, "relu"), (1, "relu"), (None, "absolute")])
def test_attention_is_grad_cam_image_by_image(
    fitted: Callable[..., VAEAttention], level: int | None, sign: str
) -> None:
    method = fitted(VAEAttention, SHAPE, **SMALL | {"level": level, "sign": sign})
    level = method.level
    y = method.standardise(smooth_textures(3, SHAPE, seed=1))
    found = method.attention(y)
    assert found.shape == (3, 16 >> level, 16 >> level)
    for image, attention in zip(y, found):
        maps = image[None]
        for part in method.encoder[: level + 1]:
            maps = part(maps)
        maps = maps.detach().requires_grad_()
        h = maps
        for part in method.encoder[level + 1 :]:
            h = part(h)
        code = h[0, :4]
        total = 0.5 * ((code - method.code_mean) / method.code_std).square().sum()
        (gradient,) = torch.autograd.grad(total, maps)
        expected = sum(gradient[0, k].mean() * maps[0, k] for k in range(maps.shape[1]))
        expected = expected.abs() if sign == "absolute" else expected.clamp(min=0)
        torch.testing.assert_close(attention, expected.detach(), rtol=1e-3, atol=1e-6)


def test_attention_explains_the_image_score(fitted: Callable[..., VAEAttention]) -> None:
    method = fitted(VAEAttention, SHAPE, **SMALL)
    x = smooth_textures(3, SHAPE, seed=1)
    with torch.no_grad():
        code = method.posterior(method.standardise(x))[0]
    normal = torch.distributions.Normal(method.code_mean, method.code_std)
    expected = (normal.log_prob(method.code_mean) - normal.log_prob(code)).sum(1)
    torch.testing.assert_close(method.score(x).image, expected, rtol=1e-4, atol=1e-5)


def test_codes_are_standardised_over_the_training_images(fitted: Callable[..., VAEAttention]) -> None:
    method = fitted(VAEAttention, SHAPE, **SMALL)
    with torch.no_grad():
        codes = method.posterior(method.standardise(smooth_textures(48, SHAPE, seed=0)))[0]
    torch.testing.assert_close(method.code_mean, codes.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(method.code_std, codes.std(0, correction=0), rtol=1e-3, atol=1e-5)


def test_reconstruction_score_is_the_squared_error(fitted: Callable[..., VAEAttention]) -> None:
    method = fitted(VAEAttention, SHAPE, **SMALL | {"smoothing": 0.0})
    x = smooth_textures(3, SHAPE, seed=1)
    scores = method.with_score("reconstruction").score(x)
    assert scores.restored is not None
    error = ((x - scores.restored) / method.standardise.scale).square()
    torch.testing.assert_close(scores.image, error.mean((1, 2, 3)), rtol=1e-4, atol=1e-6)


def test_training_lowers_the_negative_elbo(fitted: Callable[..., VAEAttention]) -> None:
    x = smooth_textures(32, SHAPE, seed=1)
    losses = []
    for steps in (1, 80):
        method = fitted(VAEAttention, SHAPE, **SMALL | {"steps": steps})
        losses.append(float(method.negative_elbo(x)["loss"].detach()))
    assert losses[1] < 0.8 * losses[0]


def test_levels_are_those_of_the_encoder() -> None:
    with pytest.raises(
        SettingsError,
        match=r"^vae_attention: level must be one of the levels 0 to 1 of the encoder of images \(1, 32, 32\), got 2\.$",
    ):
        VAEAttention(VAEAttentionSettings(level=2), SHAPE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent": 0}, "latent must be at least 1, got 0."),
        ({"beta": -1.0}, "beta must be at least 0, got -1.0."),
        ({"lr": 0.0}, "lr must be greater than 0, got 0.0."),
        ({"reduce": 2.0}, 'reduce must be "auto", "mean", "top", "max" or a quantile between 0 and 1, got 2.0.'),
    ],
    ids=str,
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=f"^vae_attention: {re.escape(message)}$"):
        VAEAttentionSettings(**settings)
