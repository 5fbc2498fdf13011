"""One-class SVM against scikit-learn's decision function."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.svm import OneClassSVM
from torch import Tensor

from normalcy.errors import SettingsError
from normalcy.methods.ocsvm import OCSVM, OCSVMSettings

CONTRACT: dict[str, Any] = {}
"""Settings that make the contract tests quick."""


def images(count: int, seed: int, shift: float = 0.0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 0.5 + shift + 0.2 * torch.randn(count, 1, 6, 6, generator=rng)


@pytest.mark.parametrize("gamma", [0.05, 0.5])
@pytest.mark.parametrize("nu", [0.1, 0.5])
def test_score_equals_scikit_learn(fitted: Callable[..., OCSVM], gamma: float, nu: float) -> None:
    train, test = images(80, 0), images(20, 1, shift=0.1)
    method = fitted(OCSVM, train, gammas=(gamma,), nu=nu)
    reference = OneClassSVM(gamma=gamma, nu=nu).fit(method.features(train).numpy())
    sums = reference.score_samples(
        method.features(test).numpy()
    )  # sum_i a_i K(x_i, x); rho is its value on the boundary
    scores = method.score(test).image.double().numpy()
    np.testing.assert_allclose(float(reference.offset_[0]) * np.exp(-scores), sums, rtol=1e-4)
    decision = reference.decision_function(method.features(test).numpy())
    assert (np.argsort(scores) == np.argsort(-decision)).all()
    assert ((scores > 0) == (decision < 0)).all()


def test_order_holds_far_away_where_the_decision_function_is_flat(fitted: Callable[..., OCSVM]) -> None:
    method = fitted(OCSVM, images(80, 0), gammas=(8.0,))
    far = torch.stack([torch.full((1, 6, 6), value) for value in (5.0, 6.0, 7.0)])
    scores = method.score(far).image
    assert scores.isfinite().all()
    assert (scores.diff() > 0).all()


def test_gamma_separates_normal_images_from_mixed_ones(fitted: Callable[..., OCSVM]) -> None:
    """Two clusters of images: mixing their features leaves both, which only a narrow kernel sees."""
    rng = torch.Generator().manual_seed(0)
    side = torch.randint(0, 2, (200, 1, 1, 1), generator=rng).float()
    pattern = torch.rand(1, 1, 6, 6, generator=rng)
    x = side * pattern + (1 - side) * pattern.flip(2) + 0.1 * torch.randn(200, 1, 6, 6, generator=rng)
    method = fitted(OCSVM, x)
    widest = min(method.settings.gammas)
    assert float(method.gamma) > 10 * widest
    again = fitted(OCSVM, x)
    assert torch.equal(method.score(x).image, again.score(x).image)


def test_anomalous_images_score_higher_and_support_is_bounded(fitted: Callable[..., OCSVM]) -> None:
    method = fitted(OCSVM, images(80, 0), max_points=30)
    assert len(method.support) <= 30
    assert method.score(images(20, 1, shift=0.5)).image.min() > method.score(images(20, 2)).image.max()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gammas": ()}, "gammas must be at least one number, got ()."),
        ({"gammas": (-1.0,)}, "gammas must be greater than 0, got (-1.0,)."),
        ({"nu": 0.0}, "nu must be greater than 0, got 0.0."),
        ({"nu": 1.5}, "nu must be between 0 and 1, got 1.5."),
        ({"held_out": 1.0}, "held_out must be between 0 and 1, both excluded, got 1.0."),
        ({"max_points": 1}, "max_points must be at least 2, got 1."),
    ],
    ids=str,
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=f"^ocsvm: {re.escape(message)}$"):
        OCSVMSettings(**settings)
