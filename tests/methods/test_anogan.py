"""Facts of AnoGAN; what holds for every method is in test_contract.py."""

from __future__ import annotations

import copy
import re
from functools import lru_cache
from typing import Any

import pytest
import torch

from normalcy.errors import SettingsError
from normalcy.methods.anogan import AnoGAN, AnoGANSettings
from normalcy.testing import smooth_textures, with_defect
from normalcy.training.fit import fit
from normalcy.training.settings import TrainSettings

CONTRACT: dict[str, Any] = {
    "steps": 20,
    "batch_size": 8,
    "latent": 8,
    "width": 4,
    "search_steps": 20,
    "search_lr": 0.05,
}
"""Settings that make the contract tests quick."""

SHAPE = (1, 16, 20)


@lru_cache
def _trained() -> AnoGAN:
    torch.manual_seed(0)
    method = AnoGAN(AnoGANSettings(latent=8, width=8), SHAPE)
    settings = TrainSettings(steps=30, batch_size=16, precision="32-true", device="cpu")
    fit(method, smooth_textures(64, SHAPE, seed=0), settings)
    return method


def _fitted(**words: Any) -> AnoGAN:
    """Trained once; ``words`` are of the search."""
    method = copy.deepcopy(_trained())
    method.settings = AnoGANSettings(**{"latent": 8, "width": 8, "search_steps": 60, **words})
    return method


def test_the_score_is_the_loss_of_the_paper_at_the_code_found() -> None:
    method = _fitted(discrimination=0.3)
    x = smooth_textures(4, SHAPE, seed=1)
    scores = method.score(x)
    assert scores.latent is not None
    assert scores.restored is not None
    assert scores.map is not None
    low, high = method.gan.range.low, method.gan.range.high
    with torch.no_grad():
        y, generated = 2 * (x - low) / (high - low) - 1, method.gan.generator(scores.latent)
        trunk = method.gan.discriminator.trunk
        for i in range(4):
            residual = (y[i] - generated[i]).abs().sum()
            discrimination = (trunk(y[i : i + 1]) - trunk(generated[i : i + 1])).abs().sum()
            torch.testing.assert_close(scores.image[i], 0.7 * residual + 0.3 * discrimination, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores.map, (x - scores.restored).abs()[:, 0])
    torch.testing.assert_close(scores.restored, low + (high - low) * (generated + 1) / 2)


def test_longer_searches_find_better_codes() -> None:
    x = smooth_textures(6, SHAPE, seed=1)
    means = [float(_fitted(search_steps=steps).score(x).image.mean()) for steps in (1, 10, 60)]
    assert means[0] > means[1] > means[2]


def test_a_generated_image_at_the_first_code_is_found_at_once() -> None:
    method = _fitted(patience=3)
    with torch.no_grad():
        z = method.gan.generator.prior(1, seed=0)
        x = method.gan.range.inverse(method.gan.generator(z))
        found = method.find(torch.cat([x, smooth_textures(1, SHAPE, seed=1)]))
    assert found.loss[0] < 1e-3 * found.loss[1]
    assert found.steps[0] <= 4
    torch.testing.assert_close(found.variables[0][:1], z)


def test_a_batch_is_searched_as_its_images_alone() -> None:
    """Long searches with early stops: equal to 1e-4 of the score."""
    method = _fitted(search_steps=150, patience=10, search_lr=0.05)
    normal = smooth_textures(3, SHAPE, seed=1)
    x = torch.cat([normal, with_defect(normal, seed=2)[0]])
    together = method.score(x)
    alone = [method.score(image[None]) for image in x]
    torch.testing.assert_close(together.image, torch.cat([s.image for s in alone]), rtol=1e-4, atol=0)
    with torch.no_grad():
        assert method.find(x).steps.unique().numel() > 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"latent": 0}, "anogan: latent must be at least 1, got 0."),
        ({"lr": 0.0}, "anogan: lr must be greater than 0, got 0.0."),
        ({"discrimination": 1.5}, "anogan: discrimination must be between 0 and 1, got 1.5."),
        ({"patience": 0}, "anogan: patience must be at least 1, got 0."),
        ({"search_steps": 0}, "anogan: search_steps must be at least 1, got 0."),
    ],
    ids=str,
)
def test_impossible_settings(words: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        AnoGANSettings(**words)
