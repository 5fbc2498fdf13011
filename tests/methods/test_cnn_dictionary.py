"""Facts of the CNN feature dictionary; what holds for every method is in test_contract.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.decomposition import PCA
from torch.nn import functional as F

from normalcy.errors import SettingsError
from normalcy.methods.cnn_dictionary import CNNDictionary, CNNDictionarySettings
from normalcy.testing import smooth_textures

CONTRACT: dict[str, Any] = {"words": 20, "patches": 1000, "layer": 1}
"""Settings that make the contract tests quick."""

SHAPE = (1, 48, 64)
SMALL: dict[str, Any] = {"words": 12, "patches": 2000, "smoothing": 0.0, "count": 24}


def test_patches_are_local_means_of_a_layer(fitted: Callable[..., CNNDictionary]) -> None:
    method = fitted(CNNDictionary, SHAPE, **SMALL | {"pool": 3})
    x = smooth_textures(2, SHAPE, seed=1)
    with torch.no_grad():
        (maps,) = method.backbone(x)
        patches = method.patches(x)
    assert patches.shape == (2, 6, 8, 40)
    torch.testing.assert_close(patches[0, 2, 3], maps[0, :, 1:4, 2:5].mean((1, 2)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(patches[1, 0, 0], maps[1, :, :2, :2].mean((1, 2)), rtol=1e-4, atol=1e-5)


def test_components_are_those_of_scikit_learn(fitted: Callable[..., CNNDictionary]) -> None:
    method = fitted(CNNDictionary, SHAPE, **SMALL)
    with torch.no_grad():
        rows = method.patches(smooth_textures(24, SHAPE, seed=0)).flatten(0, 2)
    pca = PCA(0.95, svd_solver="full").fit(rows.numpy())
    assert len(method.basis) == pca.n_components_
    similar = (method.basis @ torch.from_numpy(pca.components_).float().T).abs()
    torch.testing.assert_close(similar.diagonal()[:5], torch.ones(5), rtol=1e-2, atol=1e-2)


def test_words_are_training_patches(fitted: Callable[..., CNNDictionary]) -> None:
    method = fitted(CNNDictionary, SHAPE, **SMALL)
    with torch.no_grad():
        rows = (method.patches(smooth_textures(24, SHAPE, seed=0)).flatten(0, 2) - method.centre) @ method.basis.T
    assert len(method.dictionary) <= 12
    assert torch.cdist(method.dictionary, rows).amin(1).max() < 1e-2


@pytest.mark.parametrize("nearest", [1, 4, 99])
def test_score_is_the_mean_distance_to_the_nearest_words(fitted: Callable[..., CNNDictionary], nearest: int) -> None:
    method = fitted(CNNDictionary, SHAPE, **SMALL | {"nearest": nearest, "top": 0.25})
    x = smooth_textures(3, SHAPE, seed=1)
    with torch.no_grad():
        rows = (method.patches(x) - method.centre) @ method.basis.T
    distance = torch.cdist(rows.flatten(0, 2), method.dictionary).sort(1).values[:, :nearest].mean(1).view(3, 6, 8)
    scores = method.score(x)
    torch.testing.assert_close(scores.image, distance.flatten(1).topk(12).values.mean(1), rtol=1e-3, atol=1e-3)
    full = F.interpolate(distance[:, None], size=SHAPE[1:], mode="bilinear")[:, 0]
    torch.testing.assert_close(scores.map, full, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"words": 0}, "cnn_dictionary: words must be at least 1, got 0."),
        ({"pool": 2}, "cnn_dictionary: pool must be an odd number of at least 1, got 2."),
        ({"variance": 1.0}, "cnn_dictionary: variance must be between 0 and 1, both excluded, got 1.0."),
        ({"top": 2.0}, "cnn_dictionary: top must be between 0 and 1, got 2.0."),
    ],
    ids=str,
)
def test_impossible_settings(words: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        CNNDictionarySettings(**words)
