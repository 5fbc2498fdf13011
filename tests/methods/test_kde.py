"""KDE against scikit-learn's KernelDensity and its cross-validation."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from torch import Tensor

from normalcy.errors import SettingsError
from normalcy.methods.kde import KDE, KDESettings

CONTRACT: dict[str, Any] = {}
"""Settings that make the contract tests quick."""


def images(count: int, seed: int, shift: float = 0.0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 0.5 + shift + 0.2 * torch.randn(count, 1, 6, 6, generator=rng)


@pytest.mark.parametrize("bandwidth", [0.1, 1.0])
def test_score_equals_scikit_learn(fitted: Callable[..., KDE], bandwidth: float) -> None:
    train, test = images(80, 0), images(20, 1, shift=0.2)
    method = fitted(KDE, train, bandwidths=(bandwidth,))
    reference = KernelDensity(bandwidth=bandwidth, rtol=1e-8).fit(method.features(train).numpy())
    expected = -reference.score_samples(method.features(test).numpy())
    np.testing.assert_allclose(method.score(test).image.numpy(), expected, rtol=1e-4)


def test_bandwidth_is_that_of_scikit_learns_cross_validation(fitted: Callable[..., KDE]) -> None:
    train = images(90, 0)
    method = fitted(KDE, train)
    grid = {"bandwidth": method.settings.bandwidths}
    search = GridSearchCV(KernelDensity(rtol=1e-8), grid, cv=5).fit(method.features(train).numpy())
    assert float(method.bandwidth) == pytest.approx(search.best_params_["bandwidth"])
    assert min(grid["bandwidth"]) < float(method.bandwidth) < max(grid["bandwidth"])


def test_anomalous_images_score_higher_and_points_are_bounded(fitted: Callable[..., KDE]) -> None:
    method = fitted(KDE, images(80, 0), max_points=30)
    assert len(method.points) == 30
    assert method.score(images(20, 1, shift=0.5)).image.min() > method.score(images(20, 2)).image.max()


def test_volumes(fitted: Callable[..., KDE]) -> None:
    method = fitted(KDE, images(40, 0).view(40, 1, 4, 3, 3))
    assert method.score(torch.rand(2, 1, 4, 3, 3)).image.isfinite().all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"bandwidths": ()}, "kde: bandwidths must be a list of at least one number, got ()."),
        ({"bandwidths": (0.0,)}, "kde: bandwidths must be greater than 0, got (0.0,)."),
        ({"folds": 1}, "kde: folds must be at least 2, got 1."),
        ({"max_points": 1}, "kde: max_points must be at least 2, got 1."),
    ],
    ids=str,
)
def test_impossible_settings(words: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        KDESettings(**words)
