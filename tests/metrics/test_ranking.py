"""Ranking metrics against scikit-learn and brute force, with ties, one class only, and scores that are not finite."""

import numpy as np
import pytest
from sklearn import metrics as reference

from normalcy.errors import DataError, SettingsError
from normalcy.metrics import ranking

KINDS = ["distinct", "ties", "float32", "negative", "perfect", "reversed", "constant"]


def example(kind, seed=0, n=45):
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(n) % 3 == 0)
    scores = random.normal(size=n) + labels
    if kind == "ties":
        scores = np.round(scores)
    elif kind == "float32":
        scores = scores.astype(np.float32)
    elif kind == "negative":
        scores = scores - 10
    elif kind == "perfect":
        scores = scores + 20 * labels
    elif kind == "reversed":
        scores = scores - 20 * labels
    elif kind == "constant":
        scores = np.full(n, 0.5)
    return labels, scores


def best_by_trying(labels, scores, criterion):
    """Largest criterion(flagged) over every threshold that makes a difference."""
    thresholds = np.append(np.unique(scores), np.min(scores) - 1)
    return max(criterion(scores > threshold) for threshold in thresholds)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_areas_equal_scikit_learn(kind, seed):
    labels, scores = example(kind, seed)
    assert ranking.auroc(labels, scores) == pytest.approx(reference.roc_auc_score(labels, scores), abs=1e-12)
    expected = reference.average_precision_score(labels, scores)
    assert ranking.average_precision(labels, scores) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_best_thresholds_equal_trying_all(kind, seed):
    labels, scores = example(kind, seed)
    f1 = ranking.f1_max(labels, scores)
    formula = lambda flags: 2 * (flags & labels).sum() / (flags.sum() + labels.sum())
    assert f1.value == pytest.approx(best_by_trying(labels, scores, formula))
    at_best = ranking.at_threshold(labels, ranking.flagged(scores, f1.threshold))
    assert at_best.f1 == pytest.approx(f1.value, abs=1e-12)

    index = lambda flags: flags[labels].mean() - flags[~labels].mean()
    youden = ranking.youden(labels, scores)
    assert youden.value == pytest.approx(best_by_trying(labels, scores, index))
    assert index(ranking.flagged(scores, youden.threshold)) == pytest.approx(youden.value, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tpr", [0.05, 0.5, 0.95, 1.0])
def test_fpr_at_tpr_equals_trying_all(kind, tpr):
    labels, scores = example(kind)
    thresholds = np.append(np.unique(scores), scores.min() - 1)
    reached = [(scores > t)[~labels].mean() for t in thresholds if (scores > t)[labels].mean() >= tpr]
    assert ranking.fpr_at_tpr(labels, scores, tpr) == min(reached)


@pytest.mark.parametrize("kind", KINDS)
def test_curves_equal_scikit_learn_and_their_thresholds_reach_them(kind):
    labels, scores = example(kind)
    fpr, tpr, thresholds = ranking.roc_curve(labels, scores)
    expected = reference.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(fpr, expected[0])
    np.testing.assert_allclose(tpr, expected[1])
    for x, y, threshold in zip(fpr, tpr, thresholds, strict=True):
        assert (scores > threshold)[~labels].mean() == x
        assert (scores > threshold)[labels].mean() == y

    precision, recall, thresholds = ranking.precision_recall_curve(labels, scores)
    expected = reference.precision_recall_curve(labels, scores)
    np.testing.assert_allclose(precision, expected[0][::-1])
    np.testing.assert_allclose(recall, expected[1][::-1])
    assert thresholds.size == recall.size
    assert not (scores > thresholds[0]).any()
    assert (scores > thresholds[-1]).all()


def test_counts_and_rates_at_a_threshold():
    labels, scores = example("ties")
    got = ranking.at_threshold(labels, ranking.flagged(scores, 1.0))
    assert got.false_positives == ((scores > 1) & ~labels).sum()
    assert got.true_positives == ((scores > 1) & labels).sum()
    assert got.true_negative_rate == np.mean(scores[~labels] <= 1)
    assert got.false_positive_rate == np.mean(scores[~labels] > 1)
    assert got.true_positive_rate == np.mean(scores[labels] > 1)
    assert got.mean_accuracy == reference.balanced_accuracy_score(labels, scores > 1)
    assert got.f1 == pytest.approx(reference.f1_score(labels, scores > 1))
    with pytest.raises(DataError, match="one decision per label"):
        ranking.at_threshold([0, 1], [True])
    with pytest.raises(DataError, match="got 2"):
        ranking.at_threshold([0, 1], [2, 0])


def test_a_score_equal_to_the_threshold_is_not_flagged():
    assert ranking.flagged([1, 2, 3], 2).tolist() == [False, False, True]
    # compared as real numbers in every precision: float32(0.1) > 0.1 > float16(0.1)
    assert ranking.flagged(np.array([0.1], np.float32), 0.1).all() == (float(np.float32(0.1)) > 0.1)
    assert ranking.flagged(np.array([0.3], np.float32), 0.3).all() == (float(np.float32(0.3)) > 0.3)
    assert not ranking.flagged(np.array([3e38], np.float32), 1e300).any()
    assert ranking.flagged(np.array([-3e38], np.float32), -1e300).all()
    assert not ranking.flagged([1.0], np.inf).any()
    with pytest.raises(SettingsError, match="nan"):
        ranking.flagged([1.0], float("nan"))


def test_threshold_lies_halfway_and_between_neighbouring_floats_too():
    assert ranking.f1_max([0, 1], [2.0, 4.0]) == (1.0, 3.0)
    for dtype in (np.float32, np.float64):
        low = dtype(1)
        scores = np.array([low, np.nextafter(low, dtype(2))])
        best = ranking.f1_max([0, 1], scores)
        assert ranking.flagged(scores, best.threshold).tolist() == [False, True]
    largest = np.finfo(np.float64).max
    best = ranking.f1_max([0, 1], [-largest, largest])
    assert ranking.flagged([-largest, largest], best.threshold).tolist() == [False, True]


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_only(label):
    labels, scores = [label] * 3, [0.1, 0.2, 0.3]
    for function in (ranking.auroc, ranking.average_precision, ranking.fpr_at_tpr):
        assert np.isnan(function(labels, scores))
    assert np.isnan(ranking.f1_max(labels, scores)).all()
    assert np.isnan(ranking.youden(labels, scores)).all()
    there = ranking.at_threshold(labels, ranking.flagged(scores, 0.2))
    rates = there.true_negative_rate, there.true_positive_rate
    assert rates[label] == pytest.approx([2 / 3, 1 / 3][label])
    assert np.isnan(rates[1 - label])
    assert np.isnan(there.mean_accuracy)
    for curve in (ranking.roc_curve, ranking.precision_recall_curve):
        with pytest.raises(DataError, match=r"add (normal|anomalous) ones"):
            curve(labels, scores)


@pytest.mark.parametrize(
    "function",
    [
        ranking.auroc,
        ranking.average_precision,
        ranking.f1_max,
        ranking.youden,
        ranking.fpr_at_tpr,
        ranking.roc_curve,
        ranking.precision_recall_curve,
    ],
)
def test_bad_input_is_refused(function):
    with pytest.raises(DataError, match=r"2 of 4 NaN or infinite \(at 1, 3\)"):
        function([0, 1, 0, 1], [0.0, np.nan, 1.0, np.inf])
    with pytest.raises(DataError, match=r"labels \(2,\) and scores \(3,\)"):
        function([0, 1], [1.0, 2.0, 3.0])
    with pytest.raises(DataError, match="got -1"):
        function([-1, 1], [1.0, 2.0])
    with pytest.raises(DataError, match="at least one"):
        function([], [])


def test_labels_and_scores_of_any_kind_agree():
    labels, scores = example("ties")
    expected = ranking.auroc(labels, scores)
    assert ranking.auroc(labels.astype(int), scores.astype(int)) == expected
    assert ranking.auroc(labels.astype(float).tolist(), scores.astype(np.float16)) == expected
    assert ranking.auroc(labels.reshape(5, 9), scores.reshape(5, 9)) == expected


def test_scores_are_not_changed():
    labels, scores = example("distinct")
    before = scores.copy()
    ranking.Ranking.of(labels, scores)
    np.testing.assert_array_equal(scores, before)


def test_impossible_tpr_is_refused():
    with pytest.raises(SettingsError, match="tpr"):
        ranking.fpr_at_tpr([0, 1], [0, 1], tpr=0)


@pytest.mark.parametrize("limit", [0.2, 1.0])
def test_binned_area_is_bounded_by_ties_all_lost_and_all_won(limit):
    random = np.random.default_rng(0)
    normal, anomalous = random.integers(0, 5, (2, 3, 12))
    value, low, high = ranking.binned_area(normal, anomalous, limit)
    nothing = np.zeros_like(normal)
    first, second = np.stack([anomalous, nothing], -1), np.stack([nothing, normal], -1)  # each bin cut in two
    lost = ranking.binned_area(second.reshape(3, -1), first.reshape(3, -1), limit)
    won = ranking.binned_area(second[..., ::-1].reshape(3, -1), first[..., ::-1].reshape(3, -1), limit)
    np.testing.assert_allclose(low, lost[0])
    np.testing.assert_allclose(high, won[0])
    np.testing.assert_allclose(lost[1], lost[2])
    assert ((low < value) & (value < high)).all()
