"""Facts of zscore: its statistics, its map, and the robust form."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from normalcy import Detector
from normalcy.errors import SettingsError
from normalcy.methods.zscore import ZScore, ZScoreSettings

CONTRACT: dict[str, Any] = {}
"""Settings that make the contract tests quick."""


@pytest.mark.parametrize("shape", [(1, 8, 9), (3, 8, 8), (1, 4, 5, 6)])
def test_map_is_in_standard_deviations_from_the_mean(fitted: Callable[..., ZScore], shape: tuple[int, ...]) -> None:
    x = torch.rand(40, *shape, generator=torch.Generator().manual_seed(0))
    z = ((x - x.mean(0)) / x.std(0, correction=0)).abs().amax(1)
    scores = fitted(ZScore, x, batch_size=7, quantile=1.0).score(x)
    assert scores.map is not None
    assert_close(scores.map, z, rtol=1e-4, atol=1e-5)
    assert_close(scores.image, z.flatten(1).amax(1), rtol=1e-4, atol=1e-5)


def test_robust_form_is_not_moved_by_anomalous_training_images(fitted: Callable[..., ZScore]) -> None:
    x = 0.5 + 0.05 * torch.randn(41, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    contaminated = x.clone()
    contaminated[:4] += 10
    plain, robust = (
        fitted(ZScore, contaminated, batch_size=7),
        fitted(ZScore, contaminated, batch_size=7, robust=True),
    )
    assert_close(robust.centre, contaminated.median(0).values)
    assert float((robust.centre - 0.5).abs().max()) < 0.1
    assert float((plain.centre - 0.5).abs().min()) > 0.5


def test_flat_background_does_not_give_infinite_scores(fitted: Callable[..., ZScore]) -> None:
    method = fitted(ZScore, torch.zeros(10, 1, 8, 8), floor=0.02)
    assert_close(method.score(torch.full((1, 1, 8, 8), 0.1)).image, torch.tensor([5.0]))


@pytest.mark.parametrize("shape", [(24, 24), (10, 12, 12)])
def test_thresholded_map_by_the_ordinary_decision(shape: tuple[int, ...]) -> None:
    """Calibrated as every method: the controlled fraction of normal pixels lies above the threshold, and a lesion too."""
    rng = np.random.default_rng(0)
    form = np.linspace(80, 160, int(np.prod(shape))).reshape(shape)

    def scans(count: int) -> np.ndarray:
        noise = rng.normal(0, 6, (count, *shape))
        return (form + noise).astype(np.uint8)[..., None]

    detector = Detector("zscore", false_alarms=0.05, calibration=0.4, size=None).fit(scans(100))
    decision = detector.decide()
    assert decision is not None
    assert decision.pixel_threshold is not None
    assert 1.5 < decision.pixel_threshold < 3.5  # in standard deviations; 1.96 for Gaussian values and unlimited data
    normal = detector.score(scans(40))
    assert np.mean([m > decision.pixel_threshold for m in normal.maps]) < 0.06
    lesion = scans(1)
    place = tuple(slice(3, 7) for _ in shape)
    lesion[(0, *place)] += 60
    found = detector.score(lesion)[0]
    assert found.map is not None
    assert (found.map[place] > decision.pixel_threshold).mean() > 0.95
    assert found.flagged


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"floor": 0.0}, "floor must be greater than 0, got 0.0."),
        ({"quantile": 1.5}, "quantile must be between 0 and 1, got 1.5."),
        ({"smoothing": float("nan")}, "smoothing must be at least 0, got nan."),
    ],
    ids=str,
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=f"^zscore: {re.escape(message)}$"):
        ZScoreSettings(**settings)
