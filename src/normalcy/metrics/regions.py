"""Metrics of anomaly maps by region and by patch: PRO and its area, hits and false regions, FROC, the minimum-area rule, patches.

``maps`` are 2D or 3D float arrays, one per image, each of its own size if need be; a 3D map is one volume.
``masks`` are as many bool or 0-1 arrays of the same shapes, or None for an image without an anomaly. Both are read
once, in order, and may be generators. A region is a connected component, by default with all neighbours: 8 in 2D as in
MVTec's evaluation, 26 in 3D; ``connectivity`` 1 joins faces only (4 in 2D, 6 in 3D).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from normalcy.errors import DataError, SettingsError
from normalcy.metrics.ranking import (
    Bools,
    Floats,
    Ints,
    area_after,
    as_bools,
    as_floats,
    binned_area,
    check_finite,
    flagged,
)

Maps = Iterable[ArrayLike]
Masks = Iterable[ArrayLike | None]


class ProCurve(NamedTuple):
    """From (0, 0) to FPR = limit; point i is reached with ``score > thresholds[i]``, straight lines between."""

    fpr: NDArray[np.float64]
    pro: NDArray[np.float64]
    thresholds: Floats


class Bounded(NamedTuple):
    """A number and the most by which the exact one can differ from it (beside rounding of about 1e-12)."""

    value: float
    error: float


class Region(NamedTuple):
    """A connected component of a map above its threshold; places are in pixels, axes in the order of the map."""

    area: int  # pixels or voxels
    box: tuple[slice, ...]  # map[box] is the smallest box around it
    centroid: tuple[float, ...]
    mean: float  # of the scores inside
    peak: float


@dataclass(frozen=True, eq=False)
class RegionHits:
    """Which true regions were found, and what was flagged beside them.

    ``coverage[i]`` is the flagged fraction of each true region of image i and ``hits[i]`` says which count as found,
    in the order in which `scipy.ndimage.label` meets them; ``false_regions`` (images,) counts the flagged regions that
    touch no true region.
    """

    coverage: tuple[NDArray[np.float64], ...]
    hits: tuple[Bools, ...]
    false_regions: Ints

    @property
    def regions(self) -> int:
        """True regions in all images."""
        return sum(found.size for found in self.hits)

    @property
    def found(self) -> int:
        """True regions that were found."""
        return sum(int(found.sum()) for found in self.hits)

    @property
    def rate(self) -> float:
        """Found / true regions; nan when there are none."""
        return self.found / self.regions if self.regions else float("nan")

    @property
    def false_per_image(self) -> float:
        """False regions per image."""
        return float(self.false_regions.mean())


def checked_map(who: str, number: int, values: ArrayLike) -> Floats:
    """A 2D or 3D map of finite float32 or float64; ``number`` names it in errors."""
    scores = as_floats(values)
    if scores.ndim not in (2, 3) or not scores.size:
        raise DataError(f"{who} expects maps (H, W) or (D, H, W), got shape {scores.shape} for map {number}.")
    check_finite(who, f"scores in map {number}", scores)
    return scores


def checked_pairs(who: str, maps: Maps, masks: Masks, first: int = 0) -> Iterator[tuple[Floats, Bools | None]]:
    """Map and mask of each image, None where nothing is marked; errors number the images from ``first``."""
    missing: Any = object()
    number = first - 1
    for number, (values, marked) in enumerate(zip_longest(maps, masks, fillvalue=missing), start=first):
        if values is missing or marked is missing:
            fewer = "maps" if values is missing else "masks"
            raise DataError(f"{who} expects one mask per map, got only {number} {fewer}; use None for no anomaly.")
        scores = checked_map(who, number, values)
        if marked is None:
            yield scores, None
            continue
        mask = as_bools(who, f"masks (mask {number})", marked)
        if mask.shape != scores.shape:
            raise DataError(f"{who} expects mask {number} of the map's shape {scores.shape}, got {mask.shape}.")
        yield scores, mask if mask.any() else None
    if number < first:
        raise DataError(f"{who} expects at least one map, got none.")


def label_regions(mask: Bools, connectivity: int | None = None) -> tuple[NDArray[np.int32], int]:
    """Number the connected components 1, 2, ... (0 is outside); returns the numbers and how many there are."""
    if connectivity is not None and not 1 <= connectivity <= mask.ndim:
        raise SettingsError(f"connectivity expects 1 to {mask.ndim} for {mask.ndim}D maps, got {connectivity}.")
    structure = ndimage.generate_binary_structure(mask.ndim, connectivity or mask.ndim)
    labels, count = ndimage.label(mask, structure)
    return labels, int(count)


def _region_weights(mask: Bools, connectivity: int | None) -> NDArray[np.float64]:
    """1 / area of its region for each marked pixel, in the order of ``map[mask]``; each region sums to 1."""
    inside = label_regions(mask, connectivity)[0][mask]
    return np.asarray(1.0 / np.bincount(inside)[inside])


def _check_limit(who: str, limit: float) -> None:
    if not 0 < limit <= 1:
        raise SettingsError(f"{who} expects a limit of the false-positive rate in (0, 1], got {limit}.")


def pro(maps: Maps, masks: Masks, threshold: float, connectivity: int | None = None) -> float:
    """Per-region overlap at a threshold: the mean flagged fraction of all true regions (LSR, eq. 7); nan without any.

    >>> pro([np.array([[0.9, 0.1, 0.0, 0.8]])], [np.array([[1, 1, 0, 1]])], threshold=0.5)
    0.75
    """
    covered, regions = 0.0, 0
    for scores, mask in checked_pairs("pro", maps, masks):
        if mask is not None:
            weights = _region_weights(mask, connectivity)
            covered += float(weights @ flagged(scores[mask], threshold))
            regions += round(float(weights.sum()))
    return covered / regions if regions else float("nan")


def _pooled(
    who: str, maps: Maps, masks: Masks, connectivity: int | None, limit: float
) -> tuple[Floats, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], Floats] | None:
    """Scores of the marked pixels, their weights (sum 1), their FPR(> score) and FPR(>= score), and the top of
    the normal scores, ascending, its lowest being the one at which FPR reaches the limit; None if a class is absent.
    """
    _check_limit(who, limit)
    marked: list[Floats] = []
    weights: list[NDArray[np.float64]] = []
    unmarked: list[Floats] = []
    for scores, mask in checked_pairs(who, maps, masks):
        if mask is None:
            unmarked.append(scores.ravel())
        else:
            marked.append(scores[mask])
            weights.append(_region_weights(mask, connectivity))
            unmarked.append(scores[~mask])
    if not marked:
        return None
    normal, anomalous, weight = np.concatenate(unmarked), np.concatenate(marked), np.concatenate(weights)
    unmarked.clear()
    if not normal.size:
        return None
    dtype = np.result_type(normal, anomalous)
    normal, anomalous = normal.astype(dtype, copy=False), anomalous.astype(dtype, copy=False)
    order = np.argsort(anomalous)  # sorted look-ups stay in the cache
    anomalous, weight = anomalous[order], weight[order] / weight.sum()

    # below the lowest of the `keep` highest normal scores FPR is beyond the limit: only these need an order
    keep = min(normal.size, int(limit * normal.size) + 1)
    normal.partition(normal.size - keep)
    rest, top = normal[: normal.size - keep], normal[normal.size - keep :]
    top.sort()
    above = keep - top.searchsorted(anomalous, "right")
    upto = keep - top.searchsorted(anomalous, "left")
    upto[anomalous == top[0]] += np.count_nonzero(rest == top[0])  # ties that the cut left out
    return anomalous, weight, above / normal.size, upto / normal.size, top


def aupro(maps: Maps, masks: Masks, limit: float = 0.3, connectivity: int | None = None) -> float:
    """Area under the PRO-FPR curve up to FPR = limit, divided by limit; exact (Bergmann et al. 2021, MVTec AD).

    PRO is linear in the pixels, so the area is the mean over regions of the mean over their pixels of
    1 - min(FPR(score), limit) / limit, FPR counted over the unmarked pixels of all images; pixels tied with unmarked ones
    follow the trapezoid rule. O(n) plus a sort of the ``limit`` highest fraction; memory: one copy of the maps.
    nan when no pixel or every pixel is marked.

    >>> maps = [np.array([[0.9, 0.2, 0.1, 0.3]]), np.array([[0.5, 0.0, 0.1, 0.2]])]
    >>> round(aupro(maps, [np.array([[1, 1, 0, 0]]), None], limit=0.5), 6)  # the region's pixels at FPR 0 and [2/6, 3/6]
    0.583333
    """
    pooled = _pooled("aupro", maps, masks, connectivity, limit)
    if pooled is None:
        return float("nan")
    _, weight, above, upto, _ = pooled
    return float(weight @ area_after(above, upto, limit) / limit)


def pro_curve(
    maps: Maps, masks: Masks, limit: float = 0.3, points: int | None = 500, connectivity: int | None = None
) -> ProCurve:
    """The PRO-FPR curve up to FPR = limit, to plot; `DataError` when no pixel or every pixel is marked.

    ``points``: at most this many corners are kept, evenly along the curve, so that straight lines between them stay
    within 2 / (points // 2 - 1) of it, even where it leaps; None keeps every corner.
    """
    pooled = _pooled("pro_curve", maps, masks, connectivity, limit)
    if pooled is None:
        raise DataError("pro_curve expects marked and unmarked pixels, got one kind only; add images or masks.")
    if points is not None and points < 4:
        raise SettingsError(f"pro_curve expects at least 4 points, got {points}.")
    anomalous, weight, above, upto, top = pooled
    last = np.flatnonzero(np.append(anomalous[1:] != anomalous[:-1], True))
    first = np.append(0, last[:-1] + 1)
    covered = np.cumsum(np.add.reduceat(weight, first)[::-1])  # PRO(>= score), scores descending
    # corners: before and after each distinct score, FPR(> s) and FPR(>= s)
    values = anomalous[first][::-1]
    fpr = np.stack([above[first][::-1], upto[first][::-1]], axis=1).ravel()
    height = np.stack([np.append(0, covered[:-1]), covered], axis=1).ravel()
    thresholds = np.stack([values, np.nextafter(values, values.dtype.type(-np.inf))], axis=1).ravel()

    inside = int(np.searchsorted(fpr, limit, "right"))
    end = float(np.interp(limit, fpr, height)) if inside < fpr.size else float(height[-1])
    highest = max(values[0], top[-1])
    fpr = np.concatenate([[0.0], fpr[:inside], [limit]])
    height = np.concatenate([[0.0], height[:inside], [end]])
    # top[0] is the lowest threshold that keeps FPR within the limit
    thresholds = np.concatenate([[highest], thresholds[:inside], [min(top[0], thresholds[max(inside - 1, 0)])]])
    if points is not None:
        length = np.append(0, np.cumsum(np.diff(fpr) / limit + np.diff(height)))
        marks = np.linspace(0, length[-1], points // 2)  # the corners at both sides of each: a leap keeps both ends
        kept = np.unique([np.searchsorted(length, marks, "left"), np.searchsorted(length, marks, "right") - 1])
        fpr, height, thresholds = fpr[kept], height[kept], thresholds[kept]
    return ProCurve(fpr, height, thresholds)


class _Streaming:
    """Histograms of the scores of both kinds of pixels, over bins that need no range to be known.

    The bits of a float32, read as an integer (with the order of the negative ones reversed), grow with the number; the
    highest ``bits`` of them number the bin. With 20 bits, bins are 0.05 % of the score wide, wherever the scores lie.
    """

    def __init__(self, limit: float, bits: int) -> None:
        if not 10 <= bits <= 26:
            raise SettingsError(f"{type(self).__name__} expects 10 to 26 bits, got {bits}.")
        _check_limit(type(self).__name__, limit)
        self.limit = limit
        self.bits = bits
        self.normal = np.zeros(2**bits, np.int64)
        self.anomalous = np.zeros(2**bits)
        self._images = 0

    def update(self, scores: ArrayLike, mask: ArrayLike | None = None) -> None:
        """Count one image: a map (H, W) or (D, H, W) and its mask, None when nothing is marked."""
        [(checked, marked)] = checked_pairs(type(self).__name__, [scores], [mask], first=self._images)
        unmarked, inside, weights = self.binned(checked, marked)
        np.add.at(self.normal, unmarked, 1)  # no pass over all bins, as np.bincount would need for each image
        np.add.at(self.anomalous, inside, 1.0 if weights is None else weights)
        self._images += 1

    def binned(
        self, scores: Floats, mask: Bools | None
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64] | None]:
        """Bins of the unmarked pixels, bins of the marked ones, and the weights of the latter (None: all 1)."""
        with np.errstate(over="ignore"):  # float64 beyond float32 shares the last bin
            single = scores.astype(np.float32, copy=False) + np.float32(0)  # -0.0 and 0.0 are equal
        integer = single.view(np.int32)
        bins = ((integer ^ ((integer >> 31) & 0x7FFFFFFF)) >> (32 - self.bits)) + 2 ** (self.bits - 1)
        if mask is None:
            return bins.ravel(), bins.ravel()[:0], None
        return bins[~mask], bins[mask], self._weights(mask)

    def _weights(self, mask: Bools) -> NDArray[np.float64] | None:
        return None

    def merge(self, other: _Streaming) -> None:
        """Add the images that another one of the same settings has counted, for example in another process."""
        if type(other) is not type(self) or (other.limit, other.bits) != (self.limit, self.bits):
            raise SettingsError(f"merge expects another {type(self).__name__} with the same limit and bits.")
        self.normal += other.normal
        self.anomalous += other.anomalous
        self._images += other._images

    def compute(self) -> Bounded:
        """The value so far and its error bound; nan when no pixel or every pixel is marked."""
        used = np.flatnonzero((self.normal > 0) | (self.anomalous > 0))
        if not self.normal.any() or not self.anomalous.any():
            return Bounded(float("nan"), float("nan"))
        value, low, high = binned_area(self.normal[used], self.anomalous[used], self.limit)
        return Bounded(float(value), float(max(value - low, high - value)))


class StreamingAUROC(_Streaming):
    """Pixel AUROC over any number of images in flat memory (16 MB), with a bound of its error.

    Pixels in one bin count as ties, so the error is at most half of the pairs (marked, unmarked) that share a bin.

    >>> stream = StreamingAUROC()
    >>> stream.update(np.array([[0.1, 0.9]]), np.array([[0, 1]]))
    >>> stream.compute()
    Bounded(value=1.0, error=0.0)
    """

    def __init__(self, bits: int = 20) -> None:
        super().__init__(1.0, bits)


class StreamingAUPRO(_Streaming):
    """`aupro` over any number of images in flat memory (16 MB), with a bound of its error.

    Pixels in one bin count as ties; the bound is how far the area moves if all ties were won or all lost.
    """

    def __init__(self, limit: float = 0.3, connectivity: int | None = None, bits: int = 20) -> None:
        super().__init__(limit, bits)
        self.connectivity = connectivity

    def _weights(self, mask: Bools) -> NDArray[np.float64]:
        return _region_weights(mask, self.connectivity)


def region_hits(
    maps: Maps, masks: Masks, threshold: float, overlap: float = 0.0, connectivity: int | None = None
) -> RegionHits:
    """True regions found, and flagged regions that touch none, per image.

    A true region is found when any of its pixels is flagged, or, with ``overlap`` > 0, at least that fraction of them.

    >>> hits = region_hits([np.array([[0.9, 0, 0, 0, 0.7]])], [np.array([[1, 1, 0, 0, 0]])], threshold=0.5)
    >>> hits.found, hits.regions, hits.false_regions.tolist()
    (1, 1, [1])
    """
    if not 0 <= overlap <= 1:
        raise SettingsError(f"region_hits expects an overlap in [0, 1], got {overlap}.")
    coverage, hits, false = [], [], []
    for scores, mask in checked_pairs("region_hits", maps, masks):
        marked = flagged(scores, threshold)
        predicted, count = label_regions(marked, connectivity)
        if mask is None:
            covered, touching = np.zeros(0), 0
        else:
            inside = label_regions(mask, connectivity)[0][mask]
            covered = np.bincount(inside, marked[mask])[1:] / np.bincount(inside)[1:]
            touching = int(np.count_nonzero(np.bincount(predicted[mask])[1:]))
        coverage.append(covered)
        hits.append(covered >= overlap if overlap else covered > 0)
        false.append(count - touching)
    return RegionHits(tuple(coverage), tuple(hits), np.array(false, np.int64))


@dataclass(frozen=True, eq=False)
class Froc:
    """True regions found against false regions, threshold by threshold; see `froc`."""

    thresholds: NDArray[np.float64]
    """(T,) falling."""
    found: Ints
    """(T, images): true regions of which something is above the threshold."""
    false: Ints
    """(T, images): connected components above the threshold that touch no true region."""
    regions: Ints
    """(images,): true regions."""

    @property
    def sensitivity(self) -> NDArray[np.float64]:
        """(T,) found / true regions of all images."""
        return np.asarray(self.found.sum(1) / self.regions.sum())

    @property
    def false_per_image(self) -> NDArray[np.float64]:
        """(T,) false regions per image, images with and without an anomaly alike."""
        return np.asarray(self.false.mean(1))

    def at(self, level: float) -> float:
        """Sensitivity at the lowest threshold down to which there are at most ``level`` false regions per image."""
        return float(sensitivity_at(self.sensitivity, self.false_per_image, level))


def sensitivity_at(
    sensitivity: NDArray[np.float64], false_per_image: NDArray[np.float64], level: float
) -> NDArray[np.float64]:
    """The highest sensitivity (..., T) -> (...) before false regions first exceed ``level``, thresholds falling.

    Their number is no monotone function of the threshold: at low ones all regions melt into one, which is no merit.
    """
    within = np.maximum.accumulate(false_per_image, axis=-1) <= level
    return np.asarray(np.where(within, sensitivity, 0.0).max(axis=-1))


def froc(maps: Maps, masks: Masks, points: int = 30, connectivity: int | None = None) -> Froc:
    """Free-response curve (Bunch et al. 1978; as in LUNA16, Setio et al. 2017) of maps, in 2D or 3D.

    A true region is a connected component of a mask and is found when any of its pixels is above the threshold, that is when
    its largest score is. A false region is a connected component above the threshold that touches no true region; several
    components on one true region count once, as a find. Thresholds lie just below the largest scores of true regions, where
    the sensitivity steps: all of them, or ``points`` spread evenly over their ranks. Maps and masks are read twice, so pass
    sequences. `DataError` when nothing is marked.

    >>> maps = [np.array([[0.9, 0.0, 0.7, 0.0, 0.5]])]
    >>> curve = froc(maps, [np.array([[1, 0, 0, 0, 1]])])
    >>> curve.sensitivity.tolist(), curve.false_per_image.tolist(), curve.at(0.5), curve.at(1)
    ([0.5, 1.0], [0.0, 1.0], 0.5, 1.0)
    """
    if isinstance(maps, Iterator) or isinstance(masks, Iterator):
        raise DataError("froc expects maps and masks that can be read twice, got a generator; pass lists.")
    if points < 2:
        raise SettingsError(f"froc expects at least 2 points, got {points}.")
    peaks: list[Floats] = []
    for scores, mask in checked_pairs("froc", maps, masks):
        if mask is None:
            peaks.append(np.zeros(0))
        else:
            labels, count = label_regions(mask, connectivity)
            peaks.append(np.asarray(ndimage.maximum(scores, labels, np.arange(1, count + 1)), scores.dtype))
    steps = np.unique(np.concatenate(peaks).astype(np.float64))[::-1]
    if not steps.size:
        raise DataError("froc expects at least one marked pixel, got none; add images with masks.")
    if steps.size > points:
        steps = steps[np.unique(np.linspace(0, steps.size - 1, points).round().astype(int))]
    thresholds = np.nextafter(steps, -np.inf)
    false = np.zeros((steps.size, len(peaks)), np.int64)
    for i, (scores, mask) in enumerate(checked_pairs("froc", maps, masks)):
        for k, threshold in enumerate(thresholds):
            marked = flagged(scores, threshold)
            if marked.any():
                labels, count = label_regions(marked, connectivity)
                touching = 0 if mask is None else int(np.count_nonzero(np.bincount(labels[mask], minlength=1)[1:]))
                false[k, i] = count - touching
    found = np.array([[int((own.astype(np.float64) > t).sum()) for own in peaks] for t in thresholds])
    return Froc(thresholds, found, false, np.array([own.size for own in peaks]))


class Patches(NamedTuple):
    """Patches of all images; those of which a little, but too little, is marked are not among them."""

    scores: list[Floats]
    """Of each image, (1, n)."""
    labels: list[Bools]
    """Of each image, (1, n): whether a patch is anomalous."""
    left_out: int


def patches(maps: Maps, masks: Masks, size: int, fraction: float = 0.05) -> Patches:
    """Patches of ``size`` pixels along each axis, side by side from the first pixel on; at the far edges they may be smaller.

    A patch's score is the mean of the map in it. It is anomalous when at least ``fraction`` of it is marked, normal when
    nothing is; patches between are left out. What comes back goes into any metric of pixels.

    >>> found = patches([np.array([[1.0, 3.0, 0.0, 0.0, 4.0]])], [np.array([[1, 1, 0, 0, 0]])], size=2)
    >>> found.scores[0].tolist(), found.labels[0].tolist()
    ([[2.0, 0.0, 4.0]], [[True, False, False]])
    """
    if size < 1 or not 0 < fraction <= 1:
        raise SettingsError(
            f"patches expects a size of at least 1 pixel and a fraction in (0, 1], got {size} and {fraction}."
        )
    found = Patches([], [], 0)
    left_out = 0
    for scores, mask in checked_pairs("patches", maps, masks):
        whole = _sums(np.ones(scores.shape), size)
        means = _sums(scores, size) / whole
        marked = np.zeros(whole.shape) if mask is None else _sums(mask, size) / whole
        kept = (marked == 0) | (marked >= fraction)
        found.scores.append(means[kept][None])
        found.labels.append(marked[kept][None] > 0)
        left_out += int((~kept).sum())
    return found._replace(left_out=left_out)


def _sums(values: NDArray[Any], size: int) -> NDArray[np.float64]:
    """Sums over blocks of ``size`` along each axis."""
    sums = values.astype(np.float64)
    for axis, side in enumerate(values.shape):
        sums = np.add.reduceat(sums, np.arange(0, side, size), axis=axis)
    return sums


def regions_of(scores: ArrayLike, threshold: float, connectivity: int | None = None) -> list[Region]:
    """Connected components of ``scores > threshold``, highest peak first.

    >>> [region] = regions_of([[0.0, 0.75, 1.0], [0.0, 0.0, 0.0]], threshold=0.5)
    >>> region.area, region.centroid, region.mean, region.peak
    (2, (0.0, 1.5), 0.875, 1.0)
    """
    values = checked_map("regions_of", 0, scores)
    labels, count = label_regions(flagged(values, threshold), connectivity)
    regions = []
    for number, box in enumerate(ndimage.find_objects(labels, count), start=1):
        inside = labels[box] == number
        members = values[box][inside]
        places = np.argwhere(inside).mean(axis=0) + [part.start for part in box]
        centre = tuple(float(place) for place in places)
        regions.append(Region(members.size, box, centre, float(members.mean(dtype=float)), float(members.max())))
    return sorted(regions, key=lambda region: -region.peak)


def minimum_area_threshold(normal_maps: Maps, area: int, connectivity: int | None = None) -> float:
    """The smallest threshold at which no flagged region of these normal maps is larger than ``area`` pixels.

    The rule of MVTec AD and of LSR (section 4.2): an anomaly has a known minimum area, and validation images without
    anomalies shall show none so large. Exact: the largest region shrinks as the threshold grows, so each map that
    exceeds the area at the threshold so far is bisected over its own scores. ``area`` 0 lets nothing through.

    >>> minimum_area_threshold([np.array([[0.1, 0.4, 0.3, 0.0, 0.9]])], area=1)
    0.3
    """
    if area < 0:
        raise SettingsError(f"minimum_area_threshold expects an area of at least 0 pixels, got {area}.")
    threshold = -np.inf
    number = -1
    for number, values in enumerate(normal_maps):
        scores = checked_map("minimum_area_threshold", number, values)
        if _largest_region(flagged(scores, threshold), connectivity) <= area:
            continue
        candidates = np.unique(scores[flagged(scores, threshold)])  # at the last one nothing is flagged
        low, high = 0, int(candidates.size - 1)
        while low < high:
            middle = (low + high) // 2
            if _largest_region(scores > candidates[middle], connectivity) <= area:
                high = middle
            else:
                low = middle + 1
        threshold = float(candidates[low])
    if number < 0:
        raise DataError("minimum_area_threshold expects at least one normal map, got none.")
    if threshold == -np.inf:
        raise SettingsError(f"minimum_area_threshold expects an area smaller than the largest map, got {area} pixels.")
    return threshold


def _largest_region(mask: Bools, connectivity: int | None) -> int:
    if not mask.any():
        return 0
    return int(np.bincount(label_regions(mask, connectivity)[0][mask]).max())
