"""Intervals and DeLong's test against brute force; coverage of the truth; speed."""

import time

import numpy as np
import pytest

from normalcy import metrics
from normalcy.errors import DataError, SettingsError
from normalcy.metrics import (
    aupro,
    aupro_interval,
    auroc,
    average_precision,
    bootstrap,
    bootstrap_interval,
    delong_interval,
    delong_test,
    pixel_auroc,
    pixel_auroc_interval,
    pixel_average_precision,
    pixel_average_precision_difference,
    pixel_average_precision_interval,
)


def example(n=80, seed=0, ties=False):
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(n) % 4 == 0)
    truth = random.normal(size=n) + labels
    a, b = truth + random.normal(size=n), truth + 2 * random.normal(size=n)
    return (labels, np.round(a), np.round(b)) if ties else (labels, a, b)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("cases", [None, np.arange(80) // 3])
def test_auroc_all_at_once_equals_one_by_one(ties, cases):
    labels, scores, _ = example(ties=ties)
    quick = bootstrap_interval(auroc, labels, scores, cases=cases, resamples=200)
    slow = bootstrap_interval(lambda x, y: auroc(x, y), labels, scores, labels=labels, cases=cases, resamples=200)
    assert quick == pytest.approx(slow, abs=1e-12)
    assert quick.low < quick.value < quick.high


def test_draws_keep_the_strata_and_take_cases_whole():
    labels = np.array([0, 0, 1, 1, 0, 1, 0])
    cases = ["a", "a", "b", "c", "c", "d", "e"]  # a and e normal, b and d anomalous, c both
    seen = []

    def statistic(x, case):
        seen.append((x.copy(), case.copy()))
        return 0.0

    bootstrap_interval(statistic, labels, np.array(cases), labels=labels, cases=cases, resamples=50)
    for drawn, names in seen[1:]:
        count = {name: np.count_nonzero(names == name) for name in "abcde"}
        assert count["a"] % 2 == 0
        assert count["c"] == 2
        assert count["a"] // 2 + count["e"] == 2
        assert count["b"] + count["d"] == 2
        assert 0 < drawn.sum() < drawn.size
    assert len({tuple(names) for _, names in seen}) > 3


def test_same_seed_same_interval_and_level_widens():
    labels, scores, _ = example()
    first = bootstrap_interval(average_precision, labels, scores, labels=labels, resamples=100, seed=3)
    assert first == bootstrap_interval(average_precision, labels, scores, labels=labels, resamples=100, seed=3)
    assert first != bootstrap_interval(average_precision, labels, scores, labels=labels, resamples=100, seed=4)
    wide = bootstrap_interval(average_precision, labels, scores, labels=labels, resamples=100, seed=3, level=0.99)
    assert wide.low < first.low < first.high < wide.high


def test_bootstrap_interval_of_a_mean_is_the_known_one():
    values = np.random.default_rng(0).normal(size=400)
    interval = bootstrap_interval(np.mean, values, resamples=2000)
    half = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_two_thousand_images_in_two_seconds():
    labels, scores, _ = example(2000)
    start = time.process_time()
    bootstrap_interval(auroc, labels, scores, resamples=1000)
    assert time.process_time() - start < 2


def test_undefined_statistics():
    assert np.isnan(bootstrap_interval(auroc, [0, 0], [0.1, 0.2])[:3]).all()
    labels, scores = [0] * 10 + [1], np.arange(11.0)
    with pytest.raises(DataError, match="give labels"):
        bootstrap_interval(average_precision, labels, scores, resamples=100)
    assert bootstrap_interval(average_precision, labels, scores, labels=labels, resamples=100).value == 1


def test_bad_arguments_are_refused():
    labels, scores, _ = example()
    with pytest.raises(DataError, match="one entry per image"):
        bootstrap_interval(np.mean, labels, scores[1:])
    with pytest.raises(DataError, match="one entry per image"):
        bootstrap_interval(np.mean)
    with pytest.raises(DataError, match="one case per image"):
        bootstrap_interval(auroc, labels, scores, cases=[1, 2])
    with pytest.raises(DataError, match="one label per image"):
        bootstrap_interval(np.mean, scores, labels=labels[1:])
    with pytest.raises(SettingsError, match="level"):
        bootstrap_interval(auroc, labels, scores, level=95)
    with pytest.raises(SettingsError, match="resample"):
        bootstrap_interval(auroc, labels, scores, resamples=0)


def maps_example(images=24, seed=0):
    random = np.random.default_rng(seed)
    maps, masks = [], []
    for number in range(images):
        shape = tuple(random.integers(10, 24, 2))
        mask = np.zeros(shape, bool)
        if number % 2:
            mask[2:6, 3:8] = True
            mask[8:, 1:3] = True
        noise = random.normal(size=shape) + 0.7 * random.normal()
        maps.append(np.exp(noise + 1.2 * mask).astype(np.float32))
        masks.append(mask)
    return maps, masks


@pytest.mark.parametrize("cases", [None, np.arange(24) // 2])
def test_map_intervals_equal_sorting_every_resample(cases):
    maps, masks = maps_example()
    for exact, interval in (
        (aupro, aupro_interval(maps, masks, cases=cases, resamples=60)),
        (pixel_auroc, pixel_auroc_interval(maps, masks, cases=cases, resamples=60)),
    ):
        statistic = lambda pick, exact=exact: exact([maps[i] for i in pick], [masks[i] for i in pick])
        labels = [mask.any() for mask in masks]
        slow = bootstrap_interval(statistic, np.arange(24), labels=labels, cases=cases, resamples=60)
        assert interval.error < 0.01
        for got, expected in zip(interval[:3], slow[:3], strict=True):
            assert abs(got - expected) <= interval.error + 1e-6  # histograms are summed in float32
        assert interval.low < interval.value < interval.high


@pytest.mark.parametrize("cases", [None, np.arange(24) // 2])
def test_pixel_ap_interval_equals_one_by_one(cases):
    maps, masks = maps_example()
    interval = pixel_average_precision_interval(maps, masks, cases=cases, resamples=60)
    statistic = lambda pick: pixel_average_precision([maps[i] for i in pick], [masks[i] for i in pick])
    slow = bootstrap_interval(
        statistic, np.arange(24), labels=[mask.any() for mask in masks], cases=cases, resamples=60
    )
    assert interval.value == slow.value
    assert interval[1:3] == pytest.approx(slow[1:3], abs=0.005)
    assert np.isnan(pixel_average_precision_interval(maps, [None] * 24).value)
    with pytest.raises(DataError, match="read twice"):
        pixel_average_precision_interval(iter(maps), masks)


@pytest.mark.parametrize("cases", [None, np.arange(24) // 2])
def test_paired_difference_of_pixel_ap_equals_one_by_one(cases):
    maps, masks = maps_example()
    random = np.random.default_rng(1)
    other = [np.exp(np.log(m) + random.normal(size=m.shape)).astype(np.float32) for m in maps]
    interval = pixel_average_precision_difference(maps, other, masks, cases=cases, resamples=60)
    statistic = lambda pick: np.subtract(
        *(pixel_average_precision([one[i] for i in pick], [masks[i] for i in pick]) for one in (maps, other))
    )
    slow = bootstrap_interval(
        statistic, np.arange(24), labels=[mask.any() for mask in masks], cases=cases, resamples=60
    )
    assert interval.value == slow.value > 0
    assert interval[1:3] == pytest.approx(slow[1:3], abs=0.005)
    single = pixel_average_precision_interval(maps, masks, cases=cases, resamples=60)
    assert pixel_average_precision_difference(maps, maps, masks, cases=cases, resamples=60)[:3] == (0, 0, 0)
    assert interval.value < single.value
    assert np.isnan(pixel_average_precision_difference(maps, other, [None] * 24).value)


def test_map_intervals_of_one_kind_and_of_generators():
    maps, masks = maps_example(4)
    assert np.isnan(aupro_interval(maps, [None] * 4).value)
    with pytest.raises(DataError, match="read twice"):
        aupro_interval(iter(maps), masks)
    with pytest.raises(SettingsError, match="level"):
        pixel_auroc_interval(maps, masks, level=2)


def delong_by_pairs(labels, a, b):
    """DeLong's estimate from the kernel over all pairs and the covariance matrices of its means."""
    kernels = [(s[labels][:, None] > s[~labels][None]) + 0.5 * (s[labels][:, None] == s[~labels][None]) for s in (a, b)]
    v10, v01 = [k.mean(axis=1) for k in kernels], [k.mean(axis=0) for k in kernels]
    covariance = np.cov(v10) / labels.sum() + np.cov(v01) / (~labels).sum()
    contrast = np.array([1, -1])
    return kernels[0].mean() - kernels[1].mean(), np.sqrt(contrast @ covariance @ contrast), np.sqrt(covariance[0, 0])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_delong_equals_all_pairs(ties, seed):
    labels, a, b = example(seed=seed, ties=ties)
    difference, error, error_a = delong_by_pairs(labels, a, b)
    got = delong_test(labels, a, b)
    assert got.difference == pytest.approx(difference, abs=1e-12)
    assert got.difference == pytest.approx(auroc(labels, a) - auroc(labels, b), abs=1e-12)
    assert got.standard_error == pytest.approx(error, abs=1e-12)
    assert got.z == pytest.approx(difference / error)
    assert got.high - got.low == pytest.approx(2 * 1.959964 * error, rel=1e-6)
    swapped = delong_test(labels, b, a)
    assert (swapped.z, swapped.p) == pytest.approx((-got.z, got.p))
    interval = delong_interval(labels, a)
    assert interval.value == pytest.approx(auroc(labels, a))
    assert interval.high == pytest.approx(min(1, interval.value + 1.959964 * error_a), abs=1e-6)


def test_delong_false_alarms_are_as_rare_as_promised():
    """Two equally good methods: p < 0.05 in 5 % of the experiments, and the bootstrap agrees on the error."""
    random = np.random.default_rng(0)
    labels = np.arange(120) % 3 == 0
    draws = random.normal(size=(600, 2, 120)) + labels
    rejected = np.mean([delong_test(labels, a, b).p < 0.05 for a, b in draws])
    assert 0.03 < rejected < 0.075


def test_delong_degenerate():
    labels = [0, 0, 1, 1]
    same = delong_test(labels, [1, 3, 2, 4], [10, 30, 20, 40])
    assert (same.difference, same.z, same.p) == (0, 0, 1)
    opposite = delong_test(labels, [1, 2, 3, 4], [4, 3, 2, 1])
    assert (opposite.difference, opposite.z, opposite.p) == (1, np.inf, 0)
    assert np.isnan(delong_test([0, 0, 1], [1, 2, 3], [1, 2, 3]).p)
    assert np.isnan(delong_test([0, 0], [1, 2], [1, 2]).difference)
    assert np.isnan(delong_interval([1, 1], [1, 2])[:3]).all()
    assert delong_interval(labels, [1, 2, 3, 4])[:3] == (1, 1, 1)
    with pytest.raises(DataError, match="NaN"):
        delong_test(labels, [1, 2, 3, np.nan], [1, 2, 3, 4])


def test_memory_of_draws_is_bounded(monkeypatch):
    labels, scores, _ = example()
    monkeypatch.setattr(bootstrap, "CHUNK", 500)
    small = bootstrap_interval(auroc, labels, scores, resamples=50)
    assert small.low < small.value < small.high
    sizes = [len(counts) for counts in bootstrap._draws(np.zeros(100, np.int64), 12, 0, width=100)]
    assert sizes == [5, 5, 2]


@pytest.mark.parametrize(("images", "cases"), [(60, None), (300, 40), (300, 299), (2000, 600)])
def test_intervals_of_a_ranking_are_those_of_each_statistic(images: int, cases: int | None):
    """With ties, cases of several images, and cases by name or by number."""
    rng = np.random.default_rng(images)
    labels = rng.random(images) < 0.3
    scores = (rng.normal(size=images) + labels).round(1)
    of = None if cases is None else rng.integers(0, cases, images)
    names = None if of is None else [f"case {k}" for k in of]
    ranked = [metrics.Ranking.auroc, metrics.Ranking.average_precision, metrics.Ranking.fpr_at_tpr]
    found = metrics.ranking_intervals(ranked, labels, scores, cases=of, resamples=200, seed=3)
    assert found == metrics.ranking_intervals(ranked, labels, scores, cases=names, resamples=200, seed=3)
    for one, statistic in zip(found, (metrics.auroc, metrics.average_precision, metrics.fpr_at_tpr)):
        expected = metrics.bootstrap_interval(
            statistic, labels, scores, labels=labels, cases=names, resamples=200, seed=3
        )
        assert one == pytest.approx(expected, abs=1e-12)
        assert one.low < one.value < one.high


def test_intervals_of_a_ranking_of_one_class_are_nan():
    [area] = metrics.ranking_intervals([metrics.Ranking.auroc], [1, 1], [0.1, 0.2])
    assert all(np.isnan([area.value, area.low, area.high]))
