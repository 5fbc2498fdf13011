"""Region metrics against brute force: ties, 3D, images of different sizes, no region, no normal pixel."""

import numpy as np
import pytest
from scipy import ndimage

from normalcy.errors import DataError, SettingsError
from normalcy.metrics import (
    StreamingAUPRO,
    StreamingAUROC,
    aupro,
    froc,
    froc_interval,
    label_regions,
    minimum_area_threshold,
    patches,
    pixel_auroc,
    pro,
    pro_curve,
    region_hits,
    regions_of,
)

KINDS = ["distinct", "ties", "signed", "3d", "float64", "constant", "perfect"]


def example(kind="distinct", seed=0, images=6):
    """Maps of different sizes and masks of blobs; every third image has no anomaly."""
    random = np.random.default_rng(seed)
    maps, masks = [], []
    for number in range(images):
        shape = tuple(random.integers(3, 6, 3)) if kind == "3d" else tuple(random.integers(6, 12, 2))
        mask = ndimage.gaussian_filter(random.normal(size=shape), 1) > 0.25
        scores = np.exp(random.normal(size=shape) + 1.0 * mask)
        if number % 3 == 2:
            mask[:] = False
        if kind == "ties":
            scores = np.round(scores)
        elif kind == "signed":
            scores = np.round(random.normal(size=shape) + mask, 1) * random.choice([-1.0, 0.0, 1.0], size=shape)
        elif kind == "constant":
            scores = np.ones(shape)
        elif kind == "perfect":
            scores = scores + 1000 * mask
        maps.append(scores.astype(np.float64 if kind == "float64" else np.float32))
        masks.append(mask)
    return maps, masks


def curve_by_sweep(maps, masks):
    """FPR and PRO at every distinct score, from the definition."""
    structure = [np.ones((3,) * mask.ndim) for mask in masks]
    labelled = [ndimage.label(mask, s)[0] for mask, s in zip(masks, structure, strict=True)]
    normal = sum((~mask).sum() for mask in masks)
    fpr, overlap = [0.0], [0.0]
    for threshold in np.unique(np.concatenate([scores.ravel() for scores in maps]))[::-1]:
        flags = [scores >= threshold for scores in maps]
        fpr.append(sum((flag & ~mask).sum() for flag, mask in zip(flags, masks, strict=True)) / normal)
        parts = [
            flag[labels == number].mean()
            for flag, labels in zip(flags, labelled, strict=True)
            for number in range(1, labels.max() + 1)
        ]
        overlap.append(np.mean(parts))
    return np.array(fpr), np.array(overlap)


def area_by_trapezoids(fpr, overlap, limit):
    inside = fpr <= limit
    x = np.append(fpr[inside], limit)
    after = np.argmin(inside) if not inside.all() else len(fpr) - 1
    before = max(after - 1, 0)
    step = fpr[after] - fpr[before]
    height = overlap[before] + (overlap[after] - overlap[before]) * ((limit - fpr[before]) / step if step else 1)
    y = np.append(overlap[inside], height)
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / limit)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [0.01, 0.05, 0.3, 1.0])
def test_aupro_equals_integrating_the_curve(kind, limit):
    for seed in range(2):
        maps, masks = example(kind, seed, images=4)
        expected = area_by_trapezoids(*curve_by_sweep(maps, masks), limit)
        assert aupro(maps, masks, limit) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [0.01, 0.3, 1.0])
def test_pro_curve_is_the_curve_and_its_area_is_aupro(kind, limit):
    maps, masks = example(kind)
    curve = pro_curve(maps, masks, limit, points=None)
    assert curve.fpr[0] == 0
    assert curve.fpr[-1] == limit
    assert (np.diff(curve.fpr) >= 0).all()
    assert (np.diff(curve.pro) >= -1e-12).all()
    assert (np.diff(curve.thresholds) <= 0).all()
    area = np.sum(np.diff(curve.fpr) * (curve.pro[1:] + curve.pro[:-1]) / 2) / limit
    assert area == pytest.approx(aupro(maps, masks, limit), abs=1e-9)
    normal = np.concatenate([scores[~mask] for scores, mask in zip(maps, masks, strict=True)])
    for at in range(len(curve.fpr) - 1):  # the last point lies on a straight line, where no threshold leads
        assert np.mean(normal > curve.thresholds[at]) == pytest.approx(curve.fpr[at], abs=1e-12)
        assert pro(maps, masks, curve.thresholds[at]) == pytest.approx(curve.pro[at], abs=1e-9)
    assert np.mean(normal > curve.thresholds[-1]) <= limit


@pytest.mark.parametrize("points", [4, 20, 101])
@pytest.mark.parametrize("kind", KINDS)
def test_thinned_pro_curve_stays_close(kind, points):
    maps, masks = example(kind, images=20)
    full, thin = pro_curve(maps, masks, points=None), pro_curve(maps, masks, points=points)
    assert len(thin.fpr) <= points
    assert (thin.fpr[0], thin.fpr[-1], thin.pro[-1]) == (0, 0.3, full.pro[-1])
    within = 2 / (points // 2 - 1) + 1e-12
    for x, y in zip(full.fpr, full.pro, strict=True):  # at a leap the straight lines pass every height between
        lowest = np.interp(x - 1e-9, thin.fpr, thin.pro)
        highest = np.interp(x + 1e-9, thin.fpr, thin.pro)
        assert lowest - within <= y <= highest + within
    with pytest.raises(SettingsError, match="points"):
        pro_curve(maps, masks, points=3)


@pytest.mark.parametrize("kind", KINDS)
def test_pro_at_a_threshold(kind):
    maps, masks = example(kind)
    threshold = float(np.median(maps[0]))
    parts = []
    for scores, mask in zip(maps, masks, strict=True):
        labels, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
        parts += [(scores > threshold)[labels == number].mean() for number in range(1, count + 1)]
    assert pro(maps, masks, threshold) == pytest.approx(np.mean(parts))


def test_one_kind_of_pixel_only():
    maps = [np.ones((4, 4), np.float32)]
    for mask in (np.zeros((4, 4), bool), np.ones((4, 4), bool), None):
        assert np.isnan(aupro(maps, [mask]))
        with pytest.raises(DataError, match="one kind only"):
            pro_curve(maps, [mask])
        stream = StreamingAUPRO()
        stream.update(maps[0], mask)
        assert np.isnan(stream.compute()).all()
    assert np.isnan(pro(maps, [None], 0.5))
    assert pro(maps, [np.ones((4, 4), bool)], 0.5) == 1.0


def test_none_is_an_empty_mask_and_generators_do():
    maps, masks = example()
    with_none = [mask if mask.any() else None for mask in masks]
    assert aupro(maps, with_none) == aupro(iter(maps), (mask.astype(np.uint8) for mask in masks))


@pytest.mark.parametrize(
    "function",
    [aupro, pro_curve, pixel_auroc, lambda a, b: pro(a, b, 0.5), lambda a, b: region_hits(a, b, 0.5)],
)
def test_bad_maps_are_refused(function):
    good = np.zeros((4, 5))
    broken = good.copy()
    broken[1, 2] = np.nan
    with pytest.raises(DataError, match=r"map 1, got 1 of 20 NaN or infinite \(at \(1, 2\)\)"):
        function([good, broken], [good, good])
    with pytest.raises(DataError, match=r"mask 0 of the map's shape \(4, 5\), got \(5, 4\)"):
        function([good], [good.T])
    with pytest.raises(DataError, match="only 1 masks"):
        function([good, good], [good])
    with pytest.raises(DataError, match="only 1 maps"):
        function([good], [good, good])
    with pytest.raises(DataError, match=r"got 255.* mask > 0"):
        function([good], [good + 255])
    with pytest.raises(DataError, match=r"\(H, W\) or \(D, H, W\)"):
        function(good, good)
    with pytest.raises(DataError, match="at least one map"):
        function([], [])


@pytest.mark.parametrize("limit", [0, -1, 1.5, float("nan")])
def test_impossible_limit_is_refused(limit):
    with pytest.raises(SettingsError, match="limit"):
        aupro(*example(), limit=limit)
    with pytest.raises(SettingsError, match="limit"):
        StreamingAUPRO(limit)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [12, 20])
def test_streaming_lies_within_its_bound(kind, bits):
    for seed in range(2):
        maps, masks = example(kind, seed)
        for limit in (0.05, 1.0):
            stream = StreamingAUPRO(limit, bits=bits)
            for scores, mask in zip(maps, masks, strict=True):
                stream.update(scores, mask)
            value, error = stream.compute()
            assert abs(value - aupro(maps, masks, limit)) <= error + 1e-12
            assert error < (0.02 if bits == 20 and kind in ("distinct", "3d") else 1)
        stream = StreamingAUROC(bits)
        for scores, mask in zip(maps, masks, strict=True):
            stream.update(scores, mask)
        value, error = stream.compute()
        assert abs(value - pixel_auroc(maps, masks)) <= error + 1e-12


def test_streaming_bins_keep_the_order_of_all_floats():
    values = np.array([[-np.finfo(np.float32).max, -1.5, -1e-30, -0.0, 0.0, 1e-45, 1e-30, 1.5, 3e38]], np.float32)
    unmarked, _, _ = StreamingAUROC(26).binned(values, None)
    assert (np.diff(unmarked) >= 0).all()
    assert unmarked[3] == unmarked[4]  # the two zeros are equal
    assert unmarked.min() >= 0
    assert unmarked.max() < 2**26
    stream = StreamingAUROC()
    stream.update(np.array([[-0.0, 0.0]]), np.array([[1, 0]]))
    assert stream.compute() == (0.5, 0.5)
    stream = StreamingAUROC()  # float64 that float32 cannot tell apart, and beyond its range
    stream.update(np.array([[1e300, 1e301, 1.0]]), np.array([[0, 1, 0]]))
    value, error = stream.compute()
    assert abs(value - 1) <= error


def test_streaming_merges_and_takes_fortran_order():
    maps, masks = example(images=6)
    whole, half, rest = StreamingAUPRO(), StreamingAUPRO(), StreamingAUPRO()
    for number, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        whole.update(scores, mask)
        (half if number < 3 else rest).update(np.asfortranarray(scores), np.asfortranarray(mask))
    half.merge(rest)
    assert half.compute() == pytest.approx(whole.compute(), abs=1e-12)
    with pytest.raises(SettingsError, match="merge"):
        half.merge(StreamingAUPRO(limit=0.1))
    with pytest.raises(DataError, match="mask 6"):
        whole.update(maps[0], masks[0].T)


def test_region_hits():
    mask = np.zeros((6, 12), bool)
    mask[1:3, 1:5] = True  # 8 pixels, 2 flagged
    mask[4, 8:10] = True  # 2 pixels, none flagged
    scores = np.zeros((6, 12))
    scores[1, 1:3] = 1
    scores[0, 11] = 1  # a false region
    scores[5, 0:2] = 1  # another
    hits = region_hits([scores, scores], [mask, None], threshold=0.5)
    assert hits.coverage[0].tolist() == [0.25, 0.0]
    assert hits.hits[0].tolist() == [True, False]
    assert (hits.regions, hits.found, hits.rate) == (2, 1, 0.5)
    assert hits.false_regions.tolist() == [2, 3]
    assert hits.false_per_image == 2.5
    assert region_hits([scores], [mask], 0.5, overlap=0.25).found == 1
    assert region_hits([scores], [mask], 0.5, overlap=0.3).found == 0
    assert np.isnan(region_hits([scores], [None], 0.5).rate)
    with pytest.raises(SettingsError, match="overlap"):
        region_hits([scores], [mask], 0.5, overlap=1.1)


def test_regions_of_a_volume_and_of_a_map():
    volume = np.zeros((3, 4, 5), np.float32)
    volume[0, 0, 0], volume[1, 1, 1] = 2, 4  # joined by a corner
    volume[2, 3, 4] = 3
    first, second = regions_of(volume, 1)
    assert (first.area, first.mean, first.peak) == (2, 3.0, 4.0)
    assert first.centroid == (0.5, 0.5, 0.5)
    assert volume[first.box].shape == (2, 2, 2)
    assert (second.area, second.peak, second.centroid) == (1, 3.0, (2.0, 3.0, 4.0))
    assert len(regions_of(volume, 1, connectivity=1)) == 3
    assert regions_of(volume, 4) == []
    assert label_regions(np.eye(3, dtype=bool))[1] == 1
    assert label_regions(np.eye(3, dtype=bool), connectivity=1)[1] == 3
    with pytest.raises(SettingsError, match="connectivity"):
        regions_of(volume[0], 1, connectivity=3)


def largest(maps, threshold):
    sizes = [0]
    for scores in maps:
        labels, _ = ndimage.label(scores > threshold, np.ones((3,) * scores.ndim))
        sizes.append(np.bincount(labels.ravel())[1:].max(initial=0))
    return max(sizes)


@pytest.mark.parametrize("kind", ["distinct", "ties", "signed", "3d", "constant"])
@pytest.mark.parametrize("area", [0, 1, 5, 20])
def test_minimum_area_threshold_is_the_smallest(kind, area):
    maps, _ = example(kind)
    threshold = minimum_area_threshold(maps, area)
    candidates = np.unique(np.concatenate([scores.ravel() for scores in maps]))
    assert threshold == min(t for t in candidates if largest(maps, t) <= area)


def test_minimum_area_that_says_nothing_is_refused():
    with pytest.raises(SettingsError, match="smaller than the largest map"):
        minimum_area_threshold([np.ones((3, 3))], 9)
    with pytest.raises(SettingsError, match="at least 0"):
        minimum_area_threshold([np.ones((3, 3))], -1)
    with pytest.raises(DataError, match="at least one"):
        minimum_area_threshold([], 3)


def count_regions(scores, mask, threshold):
    """True regions found and false regions, one by one."""
    truth, regions = ndimage.label(np.zeros_like(scores) if mask is None else mask, np.ones((3,) * scores.ndim))
    marked, components = ndimage.label(scores > threshold, np.ones((3,) * scores.ndim))
    found = sum(bool((scores[truth == k] > threshold).any()) for k in range(1, regions + 1))
    false = sum(not (truth[marked == k] > 0).any() for k in range(1, components + 1))
    return found, false, regions


@pytest.mark.parametrize("kind", ["distinct", "ties", "3d", "constant"])
def test_froc_counts_regions(kind):
    maps, masks = example(kind)
    curve = froc(maps, masks)
    assert (np.diff(curve.thresholds) < 0).all()
    for k, threshold in enumerate(curve.thresholds):
        counted = np.array([count_regions(s, m, threshold) for s, m in zip(maps, masks)]).T
        np.testing.assert_array_equal(curve.found[k], counted[0])
        np.testing.assert_array_equal(curve.false[k], counted[1])
        np.testing.assert_array_equal(curve.regions, counted[2])
    assert curve.sensitivity[-1] == 1  # the lowest threshold is below every region's largest score
    levels = np.unique(curve.false_per_image)
    for level in [*levels, levels.max() + 1]:
        allowed = 0
        for number, sensitivity in zip(curve.false_per_image, curve.sensitivity):
            if number > level:
                break
            allowed = max(allowed, sensitivity)
        assert curve.at(level) == allowed
    few = froc(maps, masks, points=3)
    assert len(few.thresholds) <= 3
    assert set(few.thresholds) <= set(curve.thresholds)


def test_froc_interval_resamples_cases():
    """Against resampled images, concatenated and counted again."""
    maps, masks = example(images=9)
    curve = froc(maps, masks)
    levels = (0.5, 2)
    found = froc_interval(curve, levels, resamples=400, seed=3)
    assert found.low <= found.value <= found.high
    random = np.random.default_rng(8)
    kinds = [np.flatnonzero(curve.regions > 0), np.flatnonzero(curve.regions == 0)]
    values = []
    for _ in range(400):
        drawn = np.concatenate([random.choice(kind, kind.size) for kind in kinds])
        again = type(curve)(curve.thresholds, curve.found[:, drawn], curve.false[:, drawn], curve.regions[drawn])
        values.append(np.mean([again.at(level) for level in levels]))
    np.testing.assert_allclose([found.low, found.high], np.percentile(values, [2.5, 97.5]), atol=0.08)


def test_froc_needs_marks():
    with pytest.raises(DataError, match="marked"):
        froc([np.zeros((3, 3))], [None])
    with pytest.raises(DataError, match="twice"):
        froc((m for m in [np.zeros((3, 3))]), [None])


@pytest.mark.parametrize("kind", ["distinct", "3d"])
@pytest.mark.parametrize(("size", "share"), [(3, 0.05), (4, 0.5), (100, 0.01)])
def test_patches_one_by_one(kind, size, share):
    maps, masks = example(kind)
    found = patches(maps, masks, size, share)
    left_out = 0
    for scores, mask, means, labels in zip(maps, masks, found.scores, found.labels):
        expected = []
        for corner in np.ndindex(*[-(-side // size) for side in scores.shape]):
            box = tuple(slice(c * size, (c + 1) * size) for c in corner)
            marked = 0 if mask is None else mask[box].mean()
            if 0 < marked < share:
                left_out += 1
            else:
                expected.append((scores[box].mean(dtype=float), marked > 0))
        np.testing.assert_allclose(means[0], [value for value, _ in expected], rtol=1e-6)
        assert labels[0].tolist() == [bool(mark) for _, mark in expected]
    assert found.left_out == left_out
    with pytest.raises(SettingsError, match="patches"):
        patches(maps, masks, 0)
    with pytest.raises(SettingsError, match="patches"):
        patches(maps, masks, 3, 0.0)
