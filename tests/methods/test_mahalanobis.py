"""Facts of the Mahalanobis distance; what holds for every method is in test_contract.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from normalcy.errors import DataError, SettingsError
from normalcy.methods.mahalanobis import Mahalanobis, MahalanobisSettings
from normalcy.testing import smooth_textures, with_defect

CONTRACT: dict[str, Any] = {"side": 64, "layers": (1, 2)}
"""Settings that make the contract tests quick."""

SHAPE = (3, 32, 32)
SMALL: dict[str, Any] = {"side": 64, "layers": (2,)}


def test_score_is_the_mahalanobis_distance_after_pca(fitted: Callable[..., Mahalanobis]) -> None:
    """Against scikit-learn's PCA with whitening, which divides the variance by N - 1."""
    method = fitted(Mahalanobis, SHAPE, **SMALL, count=200)
    train, x = smooth_textures(200, SHAPE, seed=0), smooth_textures(5, SHAPE, seed=1)
    with torch.no_grad():
        normal, queries = method.features(train).double().numpy(), method.features(x).double().numpy()
    mean, std = normal.mean(0), normal.std(0)
    pca = PCA(0.95, svd_solver="full", whiten=True).fit((normal - mean) / std)
    expected = np.linalg.norm(pca.transform((queries - mean) / std), axis=1) * np.sqrt(200 / 199)
    assert method.whitening.shape == (40, pca.n_components_)
    np.testing.assert_allclose(method.score(x).image.numpy(), expected, rtol=1e-2)


def test_training_features_have_unit_variance(fitted: Callable[..., Mahalanobis]) -> None:
    method = fitted(Mahalanobis, SHAPE, **SMALL, count=100)
    latent = method.score(smooth_textures(100, SHAPE, seed=0)).latent
    assert latent is not None
    torch.testing.assert_close(torch.cov(latent.T, correction=0), torch.eye(latent.shape[1]), atol=2e-2, rtol=0)


def test_finds_a_plain_defect(fitted: Callable[..., Mahalanobis]) -> None:
    method = fitted(Mahalanobis, SHAPE, **SMALL, count=200)
    normal = method.score(smooth_textures(10, SHAPE, seed=1)).image
    anomalous = method.score(with_defect(smooth_textures(10, SHAPE, seed=2), seed=3)[0]).image
    assert (anomalous[:, None] > normal).float().mean() > 0.9


def test_equal_training_images_are_refused(fitted: Callable[..., Mahalanobis]) -> None:
    with pytest.raises(DataError, match="equal features; provide more"):
        fitted(Mahalanobis, torch.zeros(8, *SHAPE), **SMALL)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"variance": 1.0}, "mahalanobis: variance must be between 0 and 1, both excluded, got 1.0."),
        ({"side": 0}, "mahalanobis: side must be at least 1, got 0."),
    ],
    ids=str,
)
def test_impossible_settings(words: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        MahalanobisSettings(**words)
