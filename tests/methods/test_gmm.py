"""Gaussian mixture against scikit-learn's log likelihood."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from normalcy.errors import SettingsError
from normalcy.methods import gmm
from normalcy.methods.gmm import GMM, GMMSettings

CONTRACT: dict[str, Any] = {}
"""Settings that make the contract tests quick."""


def images(count: int, seed: int, clusters: int = 1, shift: float = 0.0) -> Tensor:
    centres = torch.randn(clusters, 1, 6, 6, generator=torch.Generator().manual_seed(99))
    rng = torch.Generator().manual_seed(seed)
    which = torch.randint(clusters, (count,), generator=rng)
    return centres[which] + shift + 0.1 * torch.randn(count, 1, 6, 6, generator=rng)


@pytest.mark.parametrize("components", [1, 3])
def test_score_equals_scikit_learn(
    fitted: Callable[..., GMM], components: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gmm, "random_state", lambda: 5)
    train, test = images(200, 0, clusters=3), images(40, 1, clusters=3, shift=0.1)
    method = fitted(GMM, train, components=(components,))
    z = method.features(train).double().numpy()
    reference = GaussianMixture(components, reg_covar=1e-3 * z.var(0).mean(), random_state=5).fit(z)
    expected = -reference.score_samples(method.features(test).double().numpy())
    np.testing.assert_allclose(method.score(test).image.numpy(), expected, rtol=1e-4, atol=1e-3)


def test_number_of_gaussians_is_found(fitted: Callable[..., GMM]) -> None:
    assert len(fitted(GMM, images(300, 0, clusters=4), components=(1, 4)).means) == 4
    assert len(fitted(GMM, images(300, 0, clusters=1), components=(1, 8)).means) == 1


def test_fewer_images_than_gaussians(fitted: Callable[..., GMM]) -> None:
    assert fitted(GMM, images(3, 0)).score(images(2, 1)).image.isfinite().all()


def test_anomalous_images_score_higher(fitted: Callable[..., GMM]) -> None:
    method = fitted(GMM, images(200, 0))
    assert method.score(images(20, 1, shift=0.5)).image.min() > method.score(images(20, 2)).image.max()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"components": ()}, "gmm: components must be a list of at least one number, got ()."),
        ({"components": (0,)}, "gmm: components must be at least 1, got (0,)."),
        ({"held_out": 0.0}, "gmm: held_out must be between 0 and 1, both excluded, got 0.0."),
        ({"floor": 0.0}, "gmm: floor must be greater than 0, got 0.0."),
    ],
    ids=str,
)
def test_impossible_settings(words: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        GMMSettings(**words)
