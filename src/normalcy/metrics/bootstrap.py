"""Confidence intervals: bootstrap over cases, and DeLong's test between two methods.

A case is what was sampled from the world: an image, or all images of one patient or part. Cases are drawn whole, with
replacement, since images of one case resemble each other and would make an interval too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalcy.errors import DataError, SettingsError
from normalcy.metrics.overlap import pixel_average_precision
from normalcy.metrics.ranking import (
    Floats,
    Ints,
    Ranking,
    as_bools,
    auroc,
    binned_area,
    checked_scores,
)
from normalcy.metrics.regions import Froc, StreamingAUPRO, StreamingAUROC, checked_pairs, sensitivity_at

Cases = Sequence[Hashable] | NDArray[np.generic]
CHUNK = 2**22  # numbers per temporary array
BINS = 2048  # per case and class, for the intervals of map metrics


class Interval(NamedTuple):
    """A statistic with its interval; ``error`` bounds how far binning may have moved each end (0: exact)."""

    value: float
    low: float
    high: float
    level: float
    error: float = 0.0


class DeLong(NamedTuple):
    """AUROC of a minus AUROC of b on the same images; ``p`` is two-sided, ``low`` and ``high`` at the level asked."""

    difference: float
    standard_error: float
    z: float
    p: float
    low: float
    high: float


def bootstrap_interval(
    statistic: Callable[..., float],
    *arrays: ArrayLike,
    labels: ArrayLike | None = None,
    cases: Cases | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of ``statistic(*arrays)`` over resampled cases.

    ``arrays`` have one entry per image along their first axis and are resampled together, so a difference of two
    methods is a paired one. ``cases`` names each image's case; by default each image is one. With ``labels`` (0 or 1 per
    image) cases are drawn separately among those with normal images only, with anomalous only and with both: a test
    set of chosen class sizes stays one of these sizes, and no class can go missing from a resample. For `auroc` the labels
    are its first array, and all resamples are computed at once.

    The value is nan, and so are the ends, where the statistic is nan for all images. Percentile intervals of a
    statistic at the edge of its range, such as an AUROC of 1, have no width: few images, not certainty.

    >>> labels, scores = [0, 0, 0, 0, 1, 1, 1, 1], [0.1, 0.2, 0.3, 0.6, 0.4, 0.5, 0.7, 0.9]
    >>> interval = bootstrap_interval(auroc, labels, scores)
    >>> interval.low <= interval.value <= interval.high
    True
    """
    _check_settings(level, resamples)
    data = [np.asarray(array) for array in arrays]
    if not data or any(array.ndim == 0 or len(array) != len(data[0]) for array in data) or not len(data[0]):
        shapes = ", ".join(str(array.shape) for array in data) or "none"
        raise DataError(f"bootstrap_interval expects arrays with one entry per image, got shapes {shapes}.")
    images = len(data[0])
    quick = statistic is auroc and len(data) == 2
    value = float(statistic(*data))
    if np.isnan(value):
        return Interval(value, value, value, level)
    case_of, strata = _cases(images, data[0] if quick and labels is None else labels, cases)
    found: list[Floats] = []
    for counts in _draws(strata, resamples, seed, width=images):
        if quick:
            found.append(_resampled_auroc(data[0], data[1], counts[:, case_of]))
        else:
            rows = (np.repeat(np.arange(images), count[case_of]) for count in counts)
            found.append(np.array([float(statistic(*(array[row] for array in data))) for row in rows]))
    return _percentiles(value, np.concatenate(found), level)


def ranking_intervals(
    statistics: Sequence[Callable[[Ranking], float]],
    labels: ArrayLike,
    scores: ArrayLike,
    *,
    cases: Cases | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Interval]:
    """`bootstrap_interval` of several statistics of a ranking over the same resampled cases.

    The scores are sorted once, and a resample is a sum over images whatever the number of statistics. For statistics of hits and
    alarms, not of thresholds. Memory: about 100 bytes per image.

    >>> from normalcy.metrics import Ranking, average_precision
    >>> labels, scores = [0, 0, 0, 0, 1, 1, 1, 1], [0.1, 0.2, 0.3, 0.6, 0.4, 0.5, 0.7, 0.9]
    >>> area, precision = ranking_intervals([Ranking.auroc, Ranking.average_precision], labels, scores)
    >>> precision == bootstrap_interval(average_precision, labels, scores, labels=labels)
    True
    """
    _check_settings(level, resamples)
    truth, values = checked_scores("ranking_intervals", labels, scores)
    whole = Ranking.of(truth, values)
    found = [statistic(whole) for statistic in statistics]
    if not (whole.anomalous and whole.normal):
        return [Interval(value, value, value, level) for value in found]
    case_of, strata = _cases(len(values), truth, cases)
    order = np.argsort(values, kind="stable")
    anomalous, normal = order[truth[order]], order[~truth[order]]
    cases_of = case_of[anomalous], case_of[normal]
    own = values[anomalous]
    first = np.flatnonzero(np.append(True, own[1:] != own[:-1]))
    distinct = own[first]
    lower, upper = (np.searchsorted(values[normal], distinct, side) for side in ("left", "right"))
    resampled: list[list[float]] = [[] for _ in statistics]
    for count in (row for rows in _draws(strata, resamples, seed, width=len(values)) for row in rows):
        below, normal_below = (np.append(0, np.cumsum(count[own])) for own in cases_of)
        start = below[first]
        kept = np.diff(start, append=below[-1]) > 0  # scores that were drawn
        ranking = Ranking(
            scores=distinct[kept][::-1],
            hits=(below[-1] - start[kept])[::-1],
            alarms=(normal_below[-1] - normal_below[lower[kept]])[::-1],
            alarms_above=(normal_below[-1] - normal_below[upper[kept]])[::-1],
            below=np.full(int(kept.sum()), np.nan),
            anomalous=int(below[-1]),
            normal=int(normal_below[-1]),
        )
        for statistic, numbers in zip(statistics, resampled):
            numbers.append(statistic(ranking))
    return [_percentiles(value, np.array(numbers), level) for value, numbers in zip(found, resampled)]


def aupro_interval(
    maps: Sequence[ArrayLike],
    masks: Sequence[ArrayLike | None],
    limit: float = 0.3,
    *,
    cases: Cases | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    connectivity: int | None = None,
) -> Interval:
    """Interval of `aupro` over resampled cases, those with and without an anomaly drawn separately.

    No resample sorts anything: the maps are read twice, once for bins of equal mass (2,048 over twice the limit) and once
    for each case's histograms, and a resample is a weighted sum of those (16 KB per case). The value comes from finer bins;
    ``error`` bounds the effect of all binning.
    """
    stream = StreamingAUPRO(limit, connectivity)
    return _map_interval("aupro_interval", stream, maps, masks, cases, level, resamples, seed)


def pixel_auroc_interval(
    maps: Sequence[ArrayLike],
    masks: Sequence[ArrayLike | None],
    *,
    cases: Cases | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Interval of the pixel AUROC over resampled cases, computed as `aupro_interval` is."""
    return _map_interval("pixel_auroc_interval", StreamingAUROC(), maps, masks, cases, level, resamples, seed)


def froc_interval(
    curve: Froc,
    levels: Sequence[float],
    *,
    cases: Cases | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Interval of the mean sensitivity at these numbers of false regions per image, over resampled cases.

    Thresholds stay those of the curve. Cases with and without an anomaly are drawn separately.

    >>> from normalcy.metrics import froc
    >>> curve = froc([np.eye(4)] * 3 + [np.zeros((4, 4))], [np.eye(4)] * 3 + [None])
    >>> froc_interval(curve, [0.5, 1])
    Interval(value=1.0, low=1.0, high=1.0, level=0.95, error=0.0)
    """
    _check_settings(level, resamples)
    case_of, strata = _cases(len(curve.regions), curve.regions > 0, cases)
    value = float(np.mean([curve.at(number) for number in levels]))
    found = []
    for counts in _draws(strata, resamples, seed, width=len(curve.regions) + len(curve.thresholds)):
        drawn = counts[:, case_of]  # (some resamples, images)
        sensitivity = drawn @ curve.found.T / (drawn @ curve.regions)[:, None]
        false = drawn @ curve.false.T / drawn.sum(1, keepdims=True)
        found.append(np.mean([sensitivity_at(sensitivity, false, number) for number in levels], axis=0))
    return _percentiles(value, np.concatenate(found), level)


def pixel_average_precision_interval(
    maps: Sequence[ArrayLike],
    masks: Sequence[ArrayLike | None],
    *,
    cases: Cases | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Interval of `pixel_average_precision` over resampled cases, those with and without an anomaly drawn separately.

    The value is exact. In resamples precision is taken at up to 2,048 thresholds, evenly spaced among the marked scores; the
    maps are read twice and a resample is a weighted sum of each case's counts above them.
    """
    who = "pixel_average_precision_interval"
    value, values = _resampled_precision(who, maps, masks, cases, level, resamples, seed)
    return Interval(value, value, value, level) if np.isnan(value) else _percentiles(value, values, level)


def pixel_average_precision_difference(
    maps: Sequence[ArrayLike],
    other: Sequence[ArrayLike],
    masks: Sequence[ArrayLike | None],
    *,
    cases: Cases | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Interval of the `pixel_average_precision` of ``maps`` minus that of ``other``, maps of the same images by another method.

    Both are computed on the same resampled cases, as in `pixel_average_precision_interval`: the paired interval is narrower
    than those of the two values suggest.
    """
    who = "pixel_average_precision_difference"
    (first, a), (second, b) = (
        _resampled_precision(who, one, masks, cases, level, resamples, seed) for one in (maps, other)
    )
    value = first - second
    return Interval(value, value, value, level) if np.isnan(value) else _percentiles(value, a - b, level)


def _resampled_precision(
    who: str,
    maps: Sequence[ArrayLike],
    masks: Sequence[ArrayLike | None],
    cases: Cases | None,
    level: float,
    resamples: int,
    seed: int,
) -> tuple[float, Floats]:
    """Pixel average precision, exact and of each resample; both not a number where nothing is marked."""
    if isinstance(maps, Iterator) or isinstance(masks, Iterator):
        raise DataError(f"{who} expects maps and masks that can be read twice, got a generator; pass lists.")
    _check_settings(level, resamples)
    inside = [None if mask is None else scores[mask] for scores, mask in checked_pairs(who, maps, masks)]
    value = pixel_average_precision(maps, masks)
    if np.isnan(value):
        return value, np.array([value])
    marked = np.concatenate([scores for scores in inside if scores is not None])
    edges = np.unique(np.quantile(marked, np.linspace(0, 1, BINS), method="lower"))
    case_of, strata = _cases(len(inside), [scores is not None for scores in inside], cases)
    above = np.zeros((2, strata.size, edges.size), np.float32)  # hits and alarms of each case from each edge on
    for case, (scores, mask) in zip(case_of, checked_pairs(who, maps, masks), strict=True):
        unmarked = scores.ravel() if mask is None else scores[~mask]
        for kind, values in enumerate((scores[mask] if mask is not None else scores.ravel()[:0], unmarked)):
            bins = np.bincount(edges.searchsorted(values, "right"), minlength=edges.size + 1)[1:]
            above[kind, case] += bins[::-1].cumsum()[::-1]
    found = []
    for counts in _draws(strata, resamples, seed, width=4 * BINS):
        hits, alarms = counts.astype(np.float32) @ above
        grown = hits - np.append(hits[:, 1:], np.zeros_like(hits[:, :1]), 1)
        found.append((grown * hits / np.maximum(hits + alarms, 1)).sum(1) / hits[:, 0])
    return value, np.concatenate(found)


def _map_interval(
    who: str,
    stream: StreamingAUPRO | StreamingAUROC,
    maps: Sequence[ArrayLike],
    masks: Sequence[ArrayLike | None],
    cases: Cases | None,
    level: float,
    resamples: int,
    seed: int,
) -> Interval:
    if isinstance(maps, Iterator) or isinstance(masks, Iterator):
        raise DataError(f"{who} expects maps and masks that can be read twice, got a generator; pass lists.")
    _check_settings(level, resamples)
    anomalous = []
    for scores, mask in checked_pairs(who, maps, masks):
        stream.update(scores, mask)
        anomalous.append(mask is not None)
    value, error = stream.compute()
    if np.isnan(value):
        return Interval(value, value, value, level, error)

    upto = np.cumsum(stream.normal[::-1], dtype=np.float64)[::-1]
    above = (upto - stream.normal) / upto[0]  # FPR(> bin), on which the bins are made equally heavy
    span = min(1.0, 2 * stream.limit)  # a resample's limit may lie beyond the limit of all images
    coarse = BINS - (np.minimum(above / span, 1) * BINS).astype(np.intp)

    case_of, strata = _cases(len(anomalous), anomalous, cases)
    histograms = np.zeros((2, strata.size, BINS + 1), np.float32)
    for case, (scores, mask) in zip(case_of, checked_pairs(who, maps, masks), strict=True):
        unmarked, inside, weights = stream.binned(scores, mask)
        histograms[0, case] += np.bincount(coarse[unmarked], minlength=BINS + 1)
        histograms[1, case] += np.bincount(coarse[inside], weights, minlength=BINS + 1)
    found = []
    for counts in _draws(strata, resamples, seed, width=4 * BINS):
        normal, marked = counts.astype(np.float32) @ histograms
        resampled, low, high = binned_area(normal, marked, stream.limit)
        found.append(resampled)
        error = max(error, float(np.max(np.maximum(resampled - low, high - resampled))))
    return _percentiles(value, np.concatenate(found), level, error)


def _check_settings(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise SettingsError(f"An interval expects a level in (0, 1), got {level}.")
    if resamples < 1:
        raise SettingsError(f"The bootstrap expects at least one resample, got {resamples}.")


def _cases(images: int, labels: ArrayLike | None, cases: Cases | None) -> tuple[Ints, Ints]:
    """Case number of each image, and stratum of each case: which of the two labels occur in it."""
    if cases is None:
        case_of = np.arange(images)
    elif (
        isinstance(cases, np.ndarray) and cases.dtype.kind in "iu" and cases.ndim == 1
    ):  # numbered by their first image
        _, first, place = np.unique(cases, return_index=True, return_inverse=True)
        case_of = np.argsort(np.argsort(first))[place]
    else:
        numbers: dict[Hashable, int] = {}
        case_of = np.array([numbers.setdefault(case, len(numbers)) for case in cases], np.int64)
    if case_of.size != images:
        raise DataError(f"The bootstrap expects one case per image, got {case_of.size} for {images} images.")
    strata = np.zeros(case_of.max() + 1, np.int64)
    if labels is not None:
        truth = as_bools("The bootstrap", "labels", labels)
        if truth.shape != (images,):
            raise DataError(f"The bootstrap expects one label per image, got {truth.shape} for {images} images.")
        np.bitwise_or.at(strata, case_of, np.where(truth, 2, 1))
    return case_of, strata


def _draws(strata: Ints, resamples: int, seed: int, width: int) -> Iterator[Ints]:
    """How often each case is drawn, (some resamples, cases) at a time so that (resamples, width) fits in memory."""
    random = np.random.default_rng(seed)
    groups = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    rows = max(1, CHUNK // max(width, strata.size))
    for start in range(0, resamples, rows):
        shape = (min(rows, resamples - start), strata.size)
        row_start = np.arange(shape[0])[:, None] * strata.size
        drawn = [
            (row_start + group[random.integers(group.size, size=(shape[0], group.size))]).ravel() for group in groups
        ]
        yield np.bincount(np.concatenate(drawn), minlength=shape[0] * shape[1]).reshape(shape)


def _resampled_auroc(labels: NDArray[np.generic], scores: NDArray[np.generic], counts: Ints) -> Floats:
    """(resamples,) AUROC when image i occurs counts[:, i] times: each distinct score is a bin, so this is exact."""
    truth, values = checked_scores("auroc", labels, scores)
    order = np.argsort(values)
    starts = np.flatnonzero(np.append(True, np.diff(values[order]) != 0))
    normal, anomalous = (np.add.reduceat((counts * one)[:, order], starts, axis=1) for one in (~truth, truth))
    return binned_area(normal, anomalous, limit=1.0)[0]


def _percentiles(value: float, values: Floats, level: float, error: float = 0.0) -> Interval:
    undefined = np.count_nonzero(np.isnan(values))
    if undefined:
        raise DataError(
            f"The bootstrap expects a statistic that exists for every resample, got nan for {undefined} of "
            f"{values.size}; give labels to keep both classes, or leave the interval out."
        )
    low, high = np.percentile(values, [50 * (1 - level), 50 * (1 + level)])
    return Interval(value, float(low), float(high), level, error)


def delong_test(labels: ArrayLike, scores_a: ArrayLike, scores_b: ArrayLike, level: float = 0.95) -> DeLong:
    """DeLong's test that two methods have the same AUROC on the same images (DeLong et al. 1988), O(n log n).

    Midranks instead of all pairs: Sun and Xu (2014). All nan with fewer than two images of a class. Where the difference
    does not vary at all, z is 0 (p 1) for no difference and infinite (p 0) otherwise. For one image per case only.

    >>> test = delong_test([0, 0, 0, 1, 1, 1], [1, 2, 4, 3, 5, 6], [1, 5, 4, 3, 2, 6])
    >>> round(test.difference, 3), round(test.p, 3)
    (0.333, 0.221)
    """
    _check_settings(level, 1)
    wins_a, losses_a = _placements("delong_test", labels, scores_a)
    wins_b, losses_b = _placements("delong_test", labels, scores_b)
    difference, error = _mean_and_error(wins_a - wins_b, losses_a - losses_b)
    if np.isnan(error):
        return DeLong(difference, *[float("nan")] * 5)
    z = difference / error if error > 0 else float(np.sign(difference) * np.inf) if difference else 0.0
    half = NormalDist().inv_cdf((1 + level) / 2) * error
    return DeLong(difference, error, z, math.erfc(abs(z) / math.sqrt(2)), difference - half, difference + half)


def delong_interval(labels: ArrayLike, scores: ArrayLike, level: float = 0.95) -> Interval:
    """AUROC with DeLong's normal interval, cut to [0, 1]; ends nan with fewer than two images of a class."""
    _check_settings(level, 1)
    value, error = _mean_and_error(*_placements("delong_interval", labels, scores))
    half = NormalDist().inv_cdf((1 + level) / 2) * error
    low, high = np.clip([value - half, value + half], 0, 1)
    return Interval(value, float(low), float(high), level)


def _placements(who: str, labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """Per anomalous image the fraction of normal ones below it, per normal image that of anomalous ones above it."""
    from scipy.stats import rankdata  # slow to import, and not needed to read a results folder

    truth, values = checked_scores(who, labels, scores)
    ranks = rankdata(values)
    normal, anomalous = max(int(np.sum(~truth)), 1), max(int(np.sum(truth)), 1)  # 1: nothing is divided by it
    wins = (ranks[truth] - rankdata(values[truth])) / normal
    losses = 1 - (ranks[~truth] - rankdata(values[~truth])) / anomalous
    return wins, losses


def _mean_and_error(wins: Floats, losses: Floats) -> tuple[float, float]:
    if not wins.size or not losses.size:
        return float("nan"), float("nan")
    if wins.size == 1 or losses.size == 1:
        return float(wins.mean()), float("nan")
    return float(wins.mean()), float(np.sqrt(wins.var(ddof=1) / wins.size + losses.var(ddof=1) / losses.size))
