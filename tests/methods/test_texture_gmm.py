"""Facts of texture inspection; what holds for every method is in test_contract.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from normalcy.errors import DataError, SettingsError
from normalcy.methods.texture_gmm import TextureGMM, TextureGMMSettings
from normalcy.testing import smooth_textures

CONTRACT: dict[str, Any] = {"components": 3, "patches": 1000, "projections": 8, "levels": 2}
"""Settings that make the contract tests quick."""

SHAPE = (2, 32, 40)
SMALL: dict[str, Any] = {
    "components": 3, "patches": 1500, "projections": 6, "levels": 3, "patch": 5, "smoothing": 0.0, "count": 24,
}  # fmt: skip


def test_projections_are_scalar_products_with_each_patch(fitted: Callable[..., TextureGMM]) -> None:
    method = fitted(TextureGMM, SHAPE, **SMALL)
    x = smooth_textures(2, SHAPE, seed=1)
    for level in (0, 1):
        small = F.avg_pool2d(x, 2) if level else x
        expected = torch.einsum("cij,dcij->d", small[1, :, 4:9, 7:12], method.filters)  # around pixel (6, 9)
        torch.testing.assert_close(method.project(x, level)[1, 6, 9], expected, rtol=1e-4, atol=1e-5)


def test_negative_log_likelihood_is_that_of_torch_distributions(fitted: Callable[..., TextureGMM]) -> None:
    method = fitted(TextureGMM, SHAPE, **SMALL)
    x = smooth_textures(2, SHAPE, seed=1)
    rows = method.project(x, 1).flatten(0, 2)
    factors = method.precision_factors[1]
    precision = factors @ factors.transpose(1, 2)
    parts = torch.distributions.MultivariateNormal(method.means[1].double(), precision_matrix=precision.double())
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=method.log_weights[1].double()), parts
    )
    expected = -mixture.log_prob(rows.double()).view(2, 16, 20).float()
    torch.testing.assert_close(method.negative_log_likelihood(x, 1), expected, rtol=1e-3, atol=1e-2)


def test_map_combines_neighbouring_levels(fitted: Callable[..., TextureGMM]) -> None:
    method = fitted(TextureGMM, SHAPE, **SMALL)
    x = smooth_textures(3, SHAPE, seed=1)
    maps = []
    for level in range(3):
        z = (method.negative_log_likelihood(x, level) - method.level_mean[level]) / method.level_std[level]
        maps.append(F.interpolate(z[:, None], size=SHAPE[1:], mode="bilinear")[:, 0])
    expected = torch.maximum(torch.minimum(maps[0], maps[1]), torch.minimum(maps[1], maps[2]))
    torch.testing.assert_close(method.score(x).map, expected)


def test_levels_are_standardised_on_the_training_images(fitted: Callable[..., TextureGMM]) -> None:
    method = fitted(TextureGMM, SHAPE, **SMALL)
    x = smooth_textures(24, SHAPE, seed=0)
    for level in range(3):
        values = method.negative_log_likelihood(x, level)
        torch.testing.assert_close(method.level_mean[level], values.mean(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(method.level_std[level], values.std(correction=0), rtol=1e-3, atol=1e-3)


def test_levels_end_where_the_image_is_smaller_than_a_patch(fitted: Callable[..., TextureGMM]) -> None:
    assert fitted(TextureGMM, SHAPE, **SMALL | {"levels": 9}).levels == 3
    assert fitted(TextureGMM, SHAPE, **SMALL | {"levels": 1}).levels == 1
    with pytest.raises(DataError, match="sides of at least 7 pixels"):
        TextureGMM(TextureGMMSettings(), (1, 6, 9))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch": 4}, "patch must be odd and positive, got 4."),
        ({"levels": 0}, "levels must be at least 1, got 0."),
        ({"floor": 0.0}, "floor must be greater than 0, got 0.0."),
        ({"patches": 1}, "patches must be at least 2, got 1."),
        ({"reduce": 2.0}, 'reduce must be "auto", "mean", "top", "max" or a quantile between 0 and 1, got 2.0.'),
    ],
    ids=str,
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=f"^texture_gmm: {re.escape(message)}$"):
        TextureGMMSettings(**settings)
