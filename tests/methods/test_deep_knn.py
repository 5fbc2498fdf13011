"""Facts of deep nearest neighbours; what holds for every method is in test_contract.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from normalcy.errors import SettingsError
from normalcy.methods.deep_knn import DeepKNN, DeepKNNSettings
from normalcy.testing import smooth_textures, with_defect

CONTRACT: dict[str, Any] = {"side": 64, "layers": (1, 2)}
"""Settings that make the contract tests quick."""

SHAPE = (3, 32, 32)
SMALL: dict[str, Any] = {"side": 64, "layers": (2,)}


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_score_is_the_mean_distance_to_the_nearest_training_images(
    distance: str, fitted: Callable[..., DeepKNN]
) -> None:
    method = fitted(DeepKNN, SHAPE, **SMALL, neighbours=3, distance=distance)
    train, x = smooth_textures(48, SHAPE, seed=0), smooth_textures(4, SHAPE, seed=1)
    with torch.no_grad():
        memory, queries = method.features(train), method.features(x)
    if distance == "cosine":
        between = 1 - torch.cosine_similarity(queries[:, None], memory[None], dim=2)
    else:
        between = torch.cdist(queries[None].double(), memory[None].double())[0].float()
    expected = between.sort(1).values[:, :3].mean(1)
    torch.testing.assert_close(method.score(x).image, expected, rtol=1e-3, atol=1e-6)


def test_a_training_image_is_its_own_neighbour(fitted: Callable[..., DeepKNN]) -> None:
    method = fitted(DeepKNN, SHAPE, **SMALL, neighbours=1)
    scores = method.score(smooth_textures(48, SHAPE, seed=0)).image
    assert scores.max() < 1e-6
    assert method.score(smooth_textures(8, SHAPE, seed=1)).image.min() > 10 * scores.max()


def test_memory_is_bounded_and_more_neighbours_than_images_are_all(fitted: Callable[..., DeepKNN]) -> None:
    method = fitted(DeepKNN, SHAPE, **SMALL, memory=10, neighbours=20)
    assert method.memory.shape == (10, 40)
    assert method.score(smooth_textures(2, SHAPE, seed=1)).image.isfinite().all()


def test_finds_a_plain_defect(fitted: Callable[..., DeepKNN]) -> None:
    method = fitted(DeepKNN, SHAPE, **SMALL)
    normal = method.score(smooth_textures(10, SHAPE, seed=1)).image
    anomalous = method.score(with_defect(smooth_textures(10, SHAPE, seed=2), seed=3)[0]).image
    assert (anomalous[:, None] > normal).float().mean() > 0.9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"neighbours": 0}, "deep_knn: neighbours must be at least 1, got 0."),
        ({"side": 0}, "deep_knn: side must be at least 1, got 0."),
        ({"memory": 0}, "deep_knn: memory must be at least 1, got 0."),
    ],
    ids=str,
)
def test_impossible_settings(words: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        DeepKNNSettings(**words)
