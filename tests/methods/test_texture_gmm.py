"""Facts of texture inspection; what holds for every method is in test_contract.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from normalcy.errors import DataError, SettingsError
from normalcy.methods.texture_gmm import TextureGMM, TextureGMMSettings
from normalcy.testing import smooth_textures
from normalcy.training.fit import fit
from normalcy.training.settings import TrainSettings

CONTRACT: dict[str, Any] = {"components": 3, "patches": 1000, "projections": 8, "levels": 2}
"""Settings that make the contract tests quick."""

SHAPE = (2, 32, 40)


def _fitted(shape: tuple[int, ...] = SHAPE, **words: Any) -> TextureGMM:
    torch.manual_seed(0)
    small = {"components": 3, "patches": 1500, "projections": 6, "levels": 3, "patch": 5, "smoothing": 0.0}
    method = TextureGMM(TextureGMMSettings(**{**small, **words}), shape)
    fit(method, smooth_textures(24, shape, seed=0), TrainSettings(device="cpu"))
    return method


def test_projections_are_scalar_products_with_each_patch() -> None:
    method = _fitted()
    x = smooth_textures(2, SHAPE, seed=1)
    for level in (0, 1):
        small = F.avg_pool2d(x, 2) if level else x
        expected = torch.einsum("cij,dcij->d", small[1, :, 4:9, 7:12], method.filters)  # around pixel (6, 9)
        torch.testing.assert_close(method.project(x, level)[1, 6, 9], expected, rtol=1e-4, atol=1e-5)


def test_surprise_is_the_density_of_torch_distributions() -> None:
    method = _fitted()
    x = smooth_textures(2, SHAPE, seed=1)
    rows = method.project(x, 1).flatten(0, 2)
    factors = method.precision_factors[1]
    precision = factors @ factors.transpose(1, 2)
    parts = torch.distributions.MultivariateNormal(method.means[1].double(), precision_matrix=precision.double())
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=method.log_weights[1].double()), parts
    )
    expected = -mixture.log_prob(rows.double()).view(2, 16, 20).float()
    torch.testing.assert_close(method.surprise(x, 1), expected, rtol=1e-3, atol=1e-2)


def test_map_wants_two_neighbouring_levels() -> None:
    method = _fitted()
    x = smooth_textures(3, SHAPE, seed=1)
    maps = []
    for level in range(3):
        z = (method.surprise(x, level) - method.level_mean[level]) / method.level_std[level]
        maps.append(F.interpolate(z[:, None], size=SHAPE[1:], mode="bilinear")[:, 0])
    expected = torch.maximum(torch.minimum(maps[0], maps[1]), torch.minimum(maps[1], maps[2]))
    torch.testing.assert_close(method.score(x).map, expected)


def test_levels_are_standardised_on_the_training_images() -> None:
    method = _fitted()
    x = smooth_textures(24, SHAPE, seed=0)
    for level in range(3):
        values = method.surprise(x, level)
        torch.testing.assert_close(method.level_mean[level], values.mean(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(method.level_std[level], values.std(correction=0), rtol=1e-3, atol=1e-3)


def test_levels_end_where_the_image_is_smaller_than_a_patch() -> None:
    assert _fitted(levels=9).levels == 3
    assert _fitted(levels=1).levels == 1
    with pytest.raises(DataError, match="at least 7 pixels"):
        TextureGMM(TextureGMMSettings(), (1, 6, 9))


@pytest.mark.parametrize("words", [{"patch": 4}, {"levels": 0}, {"floor": 0.0}, {"reduce": 2.0}], ids=str)
def test_impossible_settings(words: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="texture_gmm"):
        TextureGMMSettings(**words)
