"""Facts of zscore: its statistics, its map, and the robust form."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from normalcy import Detector
from normalcy.methods.zscore import ZScore, ZScoreSettings
from normalcy.training.fit import fit
from normalcy.training.settings import TrainSettings

CONTRACT: dict[str, Any] = {}
"""Settings that make the contract tests quick."""


def fitted(images: torch.Tensor, **words: object) -> ZScore:
    method = ZScore(ZScoreSettings(**words), images.shape[1:])  # type: ignore[arg-type]
    fit(method, images, TrainSettings(device="cpu", batch_size=7))
    return method


@pytest.mark.parametrize("shape", [(1, 8, 9), (3, 8, 8), (1, 4, 5, 6)])
def test_map_counts_deviations_from_the_mean(shape: tuple[int, ...]) -> None:
    x = torch.rand(40, *shape, generator=torch.Generator().manual_seed(0))
    z = ((x - x.mean(0)) / x.std(0, correction=0)).abs().amax(1)
    scores = fitted(x, quantile=1.0).score(x)
    assert scores.map is not None
    assert_close(scores.map, z, rtol=1e-4, atol=1e-5)
    assert_close(scores.image, z.flatten(1).amax(1), rtol=1e-4, atol=1e-5)


def test_robust_form_is_not_moved_by_strange_training_images() -> None:
    x = 0.5 + 0.05 * torch.randn(41, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    spoilt = x.clone()
    spoilt[:4] += 10
    plain, robust = fitted(spoilt), fitted(spoilt, robust=True)
    assert_close(robust.centre, spoilt.median(0).values)
    assert float((robust.centre - 0.5).abs().max()) < 0.1
    assert float((plain.centre - 0.5).abs().min()) > 0.5


def test_flat_background_does_not_give_infinite_scores() -> None:
    method = fitted(torch.zeros(10, 1, 8, 8), floor=0.02)
    assert_close(method.score(torch.full((1, 1, 8, 8), 0.1)).image, torch.tensor([5.0]))


@pytest.mark.parametrize("shape", [(24, 24), (10, 12, 12)])
def test_thresholded_map_by_the_ordinary_decision(shape: tuple[int, ...]) -> None:
    """Calibrated as every method: a new normal image has at most the promised share above, a lesion lies above."""
    rng = np.random.default_rng(0)
    form = np.linspace(80, 160, int(np.prod(shape))).reshape(shape)

    def scans(count: int) -> np.ndarray:
        noise = rng.normal(0, 6, (count, *shape))
        return (form + noise).astype(np.uint8)[..., None]

    detector = Detector("zscore", false_alarms=0.05, calibration=0.4, size=None).fit(scans(100))
    decision = detector.decide()
    assert decision is not None
    assert decision.pixel_threshold is not None
    assert 1.5 < decision.pixel_threshold < 3.5  # in deviations; 1.96 for Gaussian values and endless data
    normal = detector.score(scans(40))
    assert np.mean([m > decision.pixel_threshold for m in normal.maps]) < 0.06
    lesion = scans(1)
    place = tuple(slice(3, 7) for _ in shape)
    lesion[(0, *place)] += 60
    found = detector.score(lesion)[0]
    assert found.map is not None
    assert (found.map[place] > decision.pixel_threshold).mean() > 0.95
    assert found.flagged
