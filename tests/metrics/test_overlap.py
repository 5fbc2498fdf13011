"""Pixel metrics against scikit-learn on the pooled pixels."""

import numpy as np
import pytest
from sklearn import metrics as reference

from normalcy.errors import DataError
from normalcy.metrics import (
    dice,
    dice_per_image,
    flagged,
    mood_ap,
    pixel_auroc,
    pixel_average_precision,
    pixel_f1_at,
    pixel_f1_max,
    pixel_ranking,
)


def example(ties=False, dimensions=2, seed=0):
    random = np.random.default_rng(seed)
    maps, masks = [], []
    for number in range(5):
        shape = tuple(random.integers(3, 12, dimensions))
        mask = random.random(shape) < 0.2 if number else np.zeros(shape, bool)
        scores = random.random(shape, dtype=np.float32) * 0.6 + np.float32(0.3) * mask
        maps.append(np.round(scores, 1) if ties else scores)
        masks.append(mask)
    return maps, masks


def pooled(maps, masks):
    return np.concatenate([mask.ravel() for mask in masks]), np.concatenate([scores.ravel() for scores in maps])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_pixel_metrics_equal_scikit_learn(ties, dimensions):
    maps, masks = example(ties, dimensions)
    labels, scores = pooled(maps, masks)
    assert pixel_auroc(maps, masks) == pytest.approx(reference.roc_auc_score(labels, scores), abs=1e-12)
    expected = reference.average_precision_score(labels, scores)
    assert pixel_average_precision(maps, masks) == pytest.approx(expected, abs=1e-12)
    best = pixel_f1_max(maps, masks)
    every = []
    for threshold in np.unique(scores):
        flags = scores >= threshold
        every.append(2 * (flags & labels).sum() / (flags.sum() + labels.sum()))
    assert best.value == pytest.approx(max(every))
    assert pixel_f1_at(maps, masks, best.threshold) == pytest.approx(best.value)
    assert pixel_f1_at(maps, masks, 0.5) == pytest.approx(reference.f1_score(labels, flagged(scores, 0.5)))
    assert pixel_ranking(maps, masks).fpr_at_tpr(0.9) <= 1


def test_maps_of_mixed_precision():
    maps, masks = example()
    mixed = [scores.astype(np.float64) if number % 2 else scores for number, scores in enumerate(maps)]
    assert pixel_auroc(mixed, masks) == pixel_auroc(maps, masks)


def test_one_kind_of_pixel_only():
    maps = [np.zeros((2, 2))]
    for mask in (None, np.zeros((2, 2), bool), np.ones((2, 2), bool)):
        assert np.isnan(pixel_auroc(maps, [mask]))
        assert np.isnan(pixel_average_precision(maps, [mask]))
        assert np.isnan(pixel_f1_max(maps, [mask])).all()
        assert np.isnan(pixel_f1_at(maps, [mask], 0.5))
    assert np.isnan(dice(maps, [None], 0.5))


def test_maps_are_not_changed():
    maps, masks = example()
    before = [scores.copy() for scores in maps]
    pixel_auroc(maps, masks)
    pixel_auroc(maps[:1], [None])
    for scores, old in zip(maps, before, strict=True):
        np.testing.assert_array_equal(scores, old)


def test_dice_by_image():
    maps, masks = example()
    values = dice_per_image(maps, masks, 0.5)
    assert np.isnan(values[0])
    expected = [
        reference.f1_score(m.ravel(), flagged(s, 0.5).ravel()) for s, m in zip(maps[1:], masks[1:], strict=True)
    ]
    np.testing.assert_allclose(values[1:], expected)
    assert dice(maps, masks, 0.5) == pytest.approx(np.mean(expected))


def test_mood_ap_rounds_as_the_challenge_does():
    maps, masks = example()
    labels, scores = pooled(maps, masks)
    expected = reference.average_precision_score(labels, scores.astype(np.float16))
    assert mood_ap(maps, masks) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(DataError, match=r"in \[0, 1\], got .* in map 0"):
        mood_ap([scores + 1 for scores in maps], masks)
