"""Pixel-level metrics of anomaly maps, all pixels of all images pooled, and Dice per image.

``maps`` and ``masks`` as in `normalcy.metrics.regions`. Exact, with one copy of all scores and one sort of it; where
that is too much, use `StreamingAUROC`. For several metrics of the same maps sort once: ``pixel_ranking(maps, masks)``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from normalcy.errors import DataError
from normalcy.metrics.ranking import Floats, Ranking, Threshold, flagged
from normalcy.metrics.regions import Maps, Masks, checked_pairs


def pixel_ranking(maps: Maps, masks: Masks) -> Ranking:
    """All pixels of all images ranked once, for AUROC, AP, F1, Youden and FPR at a TPR together.

    >>> ranking = pixel_ranking([np.array([[0.1, 0.9]]), np.array([[0.2], [0.3]])], [np.array([[0, 1]]), None])
    >>> ranking.auroc(), ranking.average_precision()
    (1.0, 1.0)
    """
    return _ranking("pixel_ranking", maps, masks)


def _ranking(who: str, maps: Maps, masks: Masks) -> Ranking:
    marked: list[Floats] = []
    unmarked: list[Floats] = []
    for scores, mask in checked_pairs(who, maps, masks):
        if mask is None:
            unmarked.append(scores.ravel())
        else:
            marked.append(scores[mask])
            unmarked.append(scores[~mask])
    dtype = np.result_type(*{scores.dtype for scores in marked + unmarked})
    anomalous = np.concatenate(marked, dtype=dtype) if marked else np.zeros(0, dtype)
    normal = np.concatenate(unmarked, dtype=dtype)
    del marked, unmarked
    return Ranking.of_classes(anomalous, normal)


def pixel_auroc(maps: Maps, masks: Masks) -> float:
    """Area under the ROC curve over all pixels; nan when no pixel or every pixel is marked."""
    return _ranking("pixel_auroc", maps, masks).auroc()


def pixel_average_precision(maps: Maps, masks: Masks) -> float:
    """Average precision over all pixels; nan when no pixel or every pixel is marked."""
    return _ranking("pixel_average_precision", maps, masks).average_precision()


def pixel_f1_max(maps: Maps, masks: Masks) -> Threshold:
    """Largest F1 over all pixels and all thresholds (the best pooled Dice), and its threshold."""
    return _ranking("pixel_f1_max", maps, masks).f1_max()


def pixel_f1_at(maps: Maps, masks: Masks, threshold: float) -> float:
    """F1 over all pixels at a threshold, which is also the pooled Dice; nan when no pixel or every pixel is marked."""
    both = marked = total = pixels = 0
    for scores, mask in checked_pairs("pixel_f1_at", maps, masks):
        found = flagged(scores, threshold)
        pixels += found.size
        total += int(np.count_nonzero(found))
        if mask is not None:
            both += int(np.count_nonzero(found & mask))
            marked += int(np.count_nonzero(mask))
    return 2 * both / (total + marked) if 0 < marked < pixels else float("nan")


def dice_per_image(maps: Maps, masks: Masks, threshold: float) -> NDArray[np.float64]:
    """(images,) 2 |flagged and marked| / (|flagged| + |marked|); nan for images in which nothing is marked.

    >>> dice_per_image([np.array([[0.9, 0.8, 0.1]]), np.array([[0.7]])], [np.array([[1, 0, 0]]), None], 0.5).round(3)
    array([0.667,   nan])
    """
    values = []
    for scores, mask in checked_pairs("dice", maps, masks):
        found = flagged(scores, threshold)
        if mask is None:
            values.append(float("nan"))
        else:
            overlap = np.count_nonzero(found & mask)
            values.append(2 * overlap / (np.count_nonzero(found) + np.count_nonzero(mask)))
    return np.array(values)


def dice(maps: Maps, masks: Masks, threshold: float) -> float:
    """Mean of Dice over the images with an anomaly; nan without any. The Dice of all pixels together is `pixel_f1_at`."""
    values = dice_per_image(maps, masks, threshold)
    measured = values[~np.isnan(values)]
    return float(measured.mean()) if measured.size else float("nan")


def mood_ap(maps: Maps, masks: Masks) -> float:
    """Pixel score of the MOOD challenge: average precision over the voxels of all volumes pooled.

    As in the organisers' evaluation, scores are rounded to float16 first, which makes ties. They clip to [0, 1]; here
    scores outside are a `DataError`, since clipping would make all strong anomalies equal: scale the maps first.
    """

    def rounded() -> Maps:
        for number, scores in enumerate(maps):
            values = np.asarray(scores)
            if values.size and (values.min() < 0 or values.max() > 1):
                raise DataError(
                    f"mood_ap expects scores in [0, 1], got {values.min():.4g} to {values.max():.4g} in map {number}; "
                    "scale all maps by one constant."
                )
            yield values.astype(np.float16)

    return _ranking("mood_ap", rounded(), masks).average_precision()
