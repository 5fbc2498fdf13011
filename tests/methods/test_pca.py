"""PCA reconstruction against scikit-learn."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import decomposition
from torch import Tensor

from normalcy.config import build
from normalcy.errors import SettingsError
from normalcy.methods.pca import PCA, PCASettings

CONTRACT: dict[str, Any] = {}
"""Settings that make the contract tests quick."""


def images(count: int, seed: int, *shape: int) -> Tensor:
    """Images on four patterns, with some noise."""
    patterns = torch.rand(4, *shape, generator=torch.Generator().manual_seed(9))
    rng = torch.Generator().manual_seed(seed)
    weights = torch.rand(count, 4, generator=rng)
    return torch.einsum("nk,k...->n...", weights, patterns) / 2 + 0.01 * torch.randn(count, *shape, generator=rng)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 6), (1, 4, 4, 6)])
@pytest.mark.parametrize("count", [30, 200])
@pytest.mark.parametrize("components", [4, 0.9])
def test_restored_equals_scikit_learn(
    fitted: Callable[..., PCA], components: int | float, count: int, shape: tuple[int, ...]
) -> None:
    train, test = images(count, 0, *shape), torch.rand(5, *shape, generator=torch.Generator().manual_seed(1))
    scores = fitted(PCA, train, components=components).score(test)
    reference = decomposition.PCA(components, svd_solver="full").fit(train.flatten(1).double().numpy())
    flat = test.flatten(1).double().numpy()
    restored = torch.from_numpy(reference.inverse_transform(reference.transform(flat))).view(test.shape)
    torch.testing.assert_close(scores.restored.double(), restored, atol=1e-4, rtol=1e-4)
    error = (test - restored).square().mean(1)
    torch.testing.assert_close(scores.map.double(), error, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(scores.image.double(), error.flatten(1).mean(1), atol=1e-5, rtol=1e-3)


def test_a_planted_defect_is_detected_and_removed(fitted: Callable[..., PCA]) -> None:
    method = fitted(PCA, images(100, 0, 1, 16, 16), components=4)
    good = images(1, 1, 1, 16, 16)
    bad = good.clone()
    bad[..., 4:7, 4:7] += 0.8
    before, after = method.score(good), method.score(bad)
    assert after.image > 3 * before.image
    row, column = divmod(int(after.map.argmax()), 16)
    assert 4 <= row < 7
    assert 4 <= column < 7
    assert (after.restored - good).abs().mean() < 0.5 * (bad - good).abs().mean() + 0.05


def test_image_score_may_be_the_maximum_of_the_map(fitted: Callable[..., PCA]) -> None:
    x = images(50, 0, 1, 8, 8)
    scores = fitted(PCA, x, components=2, reduce="max", smoothing=1.0).score(x[:3])
    assert torch.equal(scores.image, scores.map.flatten(1).amax(1))


def test_equal_images_and_one_image_are_reconstructed_as_themselves(fitted: Callable[..., PCA]) -> None:
    for count in (1, 4):
        x = torch.full((count, 1, 8, 8), 0.5)
        scores = fitted(PCA, x).score(x)
        assert scores.image.max() < 1e-6
        assert np.isclose(scores.restored.mean(), 0.5)


def test_saved_weights_load_into_a_new_method(fitted: Callable[..., PCA]) -> None:
    x = images(50, 0, 1, 8, 8)
    method, other = fitted(PCA, x), PCA(PCASettings(), (1, 8, 8))
    other.load_state_dict(method.state_dict())
    assert torch.equal(method.score(x).map, other.score(x).map)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"components": 0}, "components must be a number of them or a fraction between 0 and 1, got 0."),
        ({"components": 2.5}, "components must be a number of them or a fraction between 0 and 1, got 2.5."),
        ({"components": float("nan")}, "components must be a number of them or a fraction between 0 and 1, got nan."),
        ({"reduce": 2.0}, 'reduce must be "auto", "mean", "top", "max" or a quantile between 0 and 1, got 2.0.'),
        ({"smoothing": -1.0}, "smoothing must be at least 0, got -1.0."),
    ],
    ids=str,
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=f"^pca: {re.escape(message)}$"):
        PCASettings(**settings)


def test_text_gives_a_number_or_a_fraction() -> None:
    assert build(PCASettings, {"components": "16"}, "pca").components == 16
    assert build(PCASettings, {"components": "0.8"}, "pca").components == 0.8
