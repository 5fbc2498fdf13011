"""Isolation forest against scikit-learn's score_samples."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import IsolationForest as Forest
from sklearn.ensemble._iforest import _average_path_length
from torch import Tensor

from normalcy import Detector, load
from normalcy.errors import SettingsError
from normalcy.methods.isolation_forest import IsolationForest, IsolationForestSettings
from normalcy.nets import forest as forest_trees
from normalcy.nets.forest import _rounded_down, mean_search_length

CONTRACT: dict[str, Any] = {}
"""Settings that make the contract tests quick."""


def images(count: int, seed: int, shift: float = 0.0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 0.5 + shift + 0.2 * torch.randn(count, 1, 6, 6, generator=rng)


@pytest.mark.parametrize(("count", "per_tree"), [(100, 256), (400, 64)])
def test_score_equals_scikit_learn(
    fitted: Callable[..., IsolationForest], count: int, per_tree: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forest_trees, "random_state", lambda: 5)
    train, test = images(count, 0), torch.cat([images(30, 1), images(30, 2, shift=0.4)])
    method = fitted(IsolationForest, train, trees=20, images_per_tree=per_tree)
    reference = Forest(n_estimators=20, max_samples=min(per_tree, count), random_state=5)
    reference.fit(method.features(train).numpy())
    expected = -reference.score_samples(method.features(test).numpy())
    np.testing.assert_allclose(method.score(test).image.numpy(), expected, rtol=1e-4)


def test_mean_search_length_equals_scikit_learn() -> None:
    n = np.array([1, 2, 3, 10, 256, 10_000])
    np.testing.assert_allclose(mean_search_length(torch.from_numpy(n)), _average_path_length(n), rtol=1e-6)


def test_a_cut_rounded_to_float32_cuts_the_same() -> None:
    cuts = np.random.default_rng(0).normal(size=1000)
    rounded = _rounded_down(cuts)
    for x in (rounded, np.nextafter(rounded, np.float32(np.inf)), np.nextafter(rounded, np.float32(-np.inf))):
        assert ((x <= rounded) == (x.astype(np.float64) <= cuts)).all()


def test_anomalous_images_score_higher(fitted: Callable[..., IsolationForest]) -> None:
    method = fitted(IsolationForest, images(200, 0))
    assert method.score(images(20, 1, shift=0.5)).image.min() > method.score(images(20, 2)).image.max()


def test_one_image_is_scored_as_in_a_batch_and_changes_nothing(fitted: Callable[..., IsolationForest]) -> None:
    method, test = fitted(IsolationForest, images(50, 0), trees=10), images(5, 1)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    together = method.score(test).image
    alone = torch.cat([method.score(x[None]).image for x in test])
    torch.testing.assert_close(together, alone)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"trees": 0}, "isolation_forest: trees must be at least 1, got 0."),
        ({"images_per_tree": 1}, "isolation_forest: images_per_tree must be at least 2, got 1."),
    ],
    ids=str,
)
def test_impossible_settings(words: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        IsolationForestSettings(**words)


def test_on_backbone_features_it_is_deep_if(fitted: Callable[..., IsolationForest]) -> None:
    rng = torch.Generator().manual_seed(0)
    smooth = torch.rand(24, 1, 1, 1, generator=rng) * torch.ones(24, 1, 32, 32)
    method = fitted(IsolationForest, smooth, features="backbone", layers=(1, 2), variance=None, trees=20)
    rough = smooth[:6] * torch.rand(6, 1, 32, 32, generator=rng).round()
    assert method.score(rough).image.min() > method.score(smooth).image.median()
    other = IsolationForest(method.settings, method.shape)
    other.load_state_dict(method.state_dict())  # brings the backbone's weights too
    assert torch.equal(other.score(rough).image, method.score(rough).image)


def test_a_model_folder_is_read_back(tmp_path: Path):
    """Its trees are whole numbers, which a folder must hold in the type that the method declares."""
    images = np.random.default_rng(0).integers(0, 255, (40, 16, 16), np.uint8)
    detector = Detector("isolation_forest", trees=10, device="cpu").fit(images)
    again = load(detector.save(tmp_path / "model"))
    assert np.array_equal(again.score(images[:5]).scores, detector.score(images[:5]).scores)
