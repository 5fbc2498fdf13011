"""How well scores rank anomalous above normal images: AUROC, average precision, F1, and partial areas under these curves.

One convention everywhere in normalcy: **higher scores are more anomalous, and a score is flagged when it exceeds the
threshold** (`flagged`). Everything is exact with ties: the order of equal scores never matters.

When one of the two classes is missing, a number is ``nan``, which means "cannot be measured here", and a curve is a
`DataError`. Scores that are not finite are always a `DataError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normalcy.errors import DataError, SettingsError

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]


class Threshold(NamedTuple):
    """The best value of a criterion and the threshold that reaches it (halfway to the next lower score)."""

    value: float
    threshold: float


class AtThreshold(NamedTuple):
    """Decisions against labels. Rates of a class without images, and what needs them, are nan."""

    false_positives: int
    """Normal, but flagged."""
    true_positives: int
    """Anomalous and flagged."""
    false_positive_rate: float
    true_positive_rate: float
    true_negative_rate: float
    mean_accuracy: float
    """Mean of the accuracy on normal and on anomalous images, whatever the class sizes (LSR, section 4.2)."""
    f1: float
    """2 TP / (2 TP + FP + FN)."""


class RocCurve(NamedTuple):
    """From (0, 0), where nothing is flagged, to (1, 1); point i is reached with ``score > thresholds[i]``."""

    fpr: NDArray[np.float64]
    tpr: NDArray[np.float64]
    thresholds: Floats


class PrecisionRecallCurve(NamedTuple):
    """From recall 0 (nothing flagged, precision 1 by convention) to recall 1; flagged is ``score > thresholds[i]``."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    thresholds: Floats


def flagged(scores: ArrayLike, threshold: float) -> Bools:
    """``scores > threshold``, compared as real numbers: NumPy alone would round the threshold to float32 first.

    >>> flagged(np.float32([0.1, 0.2]), 0.1).tolist()  # float32(0.1) is 0.100000001...
    [True, True]
    """
    values = as_floats(scores)
    if np.isnan(threshold):
        raise SettingsError("flagged expects a threshold that is a number, got nan; set one or calibrate.")
    with np.errstate(over="ignore"):
        limit = values.dtype.type(threshold)
    if float(limit) > float(threshold):  # round down: s > limit then holds exactly when s > threshold does
        limit = np.nextafter(limit, values.dtype.type(-np.inf))
    return np.asarray(values > limit)


def as_floats(values: ArrayLike) -> Floats:
    """As an array of float32 or float64 without copying where it is one already; float16 becomes float32."""
    array = np.asarray(values)
    if array.dtype in (np.float32, np.float64):
        return array
    return array.astype(np.float32 if array.dtype == np.float16 else np.float64)


def check_finite(who: str, what: str, values: Floats) -> None:
    """Raise `DataError` with the number and the first places of NaN and infinite values."""
    finite = np.isfinite(values)
    if not finite.all():
        bad = np.argwhere(~finite)
        places = ", ".join(str(tuple(at.tolist()) if values.ndim > 1 else int(at[0])) for at in bad[:3])
        more = ", ..." if len(bad) > 3 else ""
        raise DataError(
            f"{who} expects finite {what}, got {len(bad)} of {values.size} NaN or infinite (at {places}{more}); "
            "look at the images that gave them."
        )


def as_bools(who: str, what: str, values: ArrayLike) -> Bools:
    """Labels or masks of bool or 0 and 1 as bool; anything else is a `DataError`."""
    array = np.asarray(values)
    if array.dtype != np.bool_:
        wrong = array[(array != 0) & (array != 1)]
        if wrong.size:
            raise DataError(
                f"{who} expects {what} of 0 (normal) and 1 (anomalous), got {wrong.flat[0]}; "
                "convert them first, for example with mask > 0."
            )
    return array.astype(np.bool_, copy=False)


def checked_scores(who: str, labels: ArrayLike, scores: ArrayLike) -> tuple[Bools, Floats]:
    """Labels as bool and scores as finite floats, both flat; `DataError` unless they match and there are any."""
    values = as_floats(scores)
    truth = as_bools(who, "labels", labels)
    if truth.shape != values.shape:
        raise DataError(f"{who} expects one label per score, got labels {truth.shape} and scores {values.shape}.")
    if not values.size:
        raise DataError(f"{who} expects at least one score, got none.")
    check_finite(who, "scores", values)
    return truth.ravel(), values.ravel()


def area_after(above: Floats, upto: Floats, limit: float) -> Floats:
    """Area under a curve over FPR 0..limit to which an anomalous score ``s`` adds one, per score.

    ``above`` = FPR(> s) and ``upto`` = FPR(>= s): the curve is 0 up to ``above``, 1 from ``upto`` on, and climbs
    straight between them, where ``s`` is tied with normal scores (the trapezoid rule). Without ties this is
    ``limit - min(FPR(s), limit)``. The mean over anomalous scores is an area under ROC (limit 1) or PRO.
    """
    start, end = np.minimum(above, limit), np.minimum(upto, limit)
    climb = np.divide(end - start, upto - above, out=np.zeros_like(start), where=upto > above)  # height at `end`
    return np.asarray(limit - end + (end - start) * climb / 2)


def binned_area(normal: Floats | Ints, anomalous: Floats | Ints, limit: float) -> tuple[Floats, Floats, Floats]:
    """Area under the curve over FPR 0..limit, divided by limit, from histograms: value, lowest and highest possible.

    ``normal`` and ``anomalous`` (..., bins) hold the mass of each class per bin, bins ascending in score. Scores in
    one bin count as ties; their true order could only move the area between the second and the third number.
    """
    upto = np.cumsum(normal[..., ::-1], axis=-1, dtype=np.float64)[..., ::-1]
    with np.errstate(invalid="ignore", divide="ignore"):  # an absent class gives nan, as documented
        above = (upto - normal) / upto[..., :1]
        upto = upto / upto[..., :1]
        share = anomalous / (anomalous.sum(axis=-1, dtype=np.float64, keepdims=True) * limit)
        value = (share * area_after(above, upto, limit)).sum(axis=-1)
        low = (share * np.maximum(limit - upto, 0)).sum(axis=-1)
        high = (share * np.maximum(limit - above, 0)).sum(axis=-1)
    return value, low, high


@dataclass(frozen=True, eq=False)
class Ranking:
    """What every metric here is computed from: the counts at each distinct anomalous score, from the highest down.

    Between two anomalous scores only false alarms can be added, so the best F1, the best Youden index and all
    corners of the ROC curve are at these scores. Memory: five numbers per distinct anomalous score.
    """

    scores: Floats  # (k,) distinct anomalous scores, descending
    hits: Ints  # (k,) anomalous >= score
    alarms: Ints  # (k,) normal >= score
    alarms_above: Ints  # (k,) normal > score
    below: Floats  # (k,) the next lower score of either class, -inf where there is none
    anomalous: int
    normal: int

    @classmethod
    def of(cls, labels: ArrayLike, scores: ArrayLike) -> Ranking:
        """Of labels and scores of one shape; labels bool or 0 and 1."""
        truth, values = checked_scores("Ranking", labels, scores)
        return cls.of_classes(values[truth], values[~truth])

    @classmethod
    def of_classes(cls, anomalous: Floats, normal: Floats) -> Ranking:
        """Of two 1D arrays of finite scores of one dtype, both of which are **sorted in place**."""
        anomalous.sort()
        normal.sort()
        last = np.flatnonzero(np.append(anomalous[1:] != anomalous[:-1], True)) if anomalous.size else np.arange(0)
        first = np.append(0, last[:-1] + 1) if anomalous.size else last
        values = anomalous[first]
        lower, upper = normal.searchsorted(values, "left"), normal.searchsorted(values, "right")
        below = np.append(values.dtype.type(-np.inf), values[:-1])[: values.size]
        if normal.size:
            below = np.maximum(below, np.where(lower > 0, normal[lower - 1], values.dtype.type(-np.inf)))
        return cls(
            scores=values[::-1],
            hits=(anomalous.size - first)[::-1],
            alarms=(normal.size - lower)[::-1],
            alarms_above=(normal.size - upper)[::-1],
            below=below[::-1],
            anomalous=anomalous.size,
            normal=normal.size,
        )

    def auroc(self) -> float:
        """Probability that an anomalous score exceeds a normal one, ties counting half."""
        if not self._both:
            return float("nan")
        new_hits = np.diff(self.hits, prepend=0)
        false_alarms = (self.alarms / 2 + self.alarms_above / 2) / self.normal
        return float(new_hits @ (1 - false_alarms) / self.anomalous)

    def average_precision(self) -> float:
        """Sum over thresholds of (growth of recall) x precision, without interpolation."""
        if not self._both:
            return float("nan")
        return float(np.diff(self.hits, prepend=0) @ (self.hits / (self.hits + self.alarms)) / self.anomalous)

    def f1_max(self) -> Threshold:
        """Largest F1 over all thresholds, and the threshold."""
        return self._best(2 * self.hits / (self.hits + self.alarms + self.anomalous))

    def youden(self) -> Threshold:
        """Largest TPR - FPR over all thresholds, and the threshold."""
        if not self._both:
            return Threshold(float("nan"), float("nan"))
        return self._best(self.hits / self.anomalous - self.alarms / self.normal)

    def fpr_at_tpr(self, tpr: float = 0.95) -> float:
        """Smallest FPR at which at least the fraction ``tpr`` of the anomalous is flagged."""
        if not 0 < tpr <= 1:
            raise SettingsError(f"fpr_at_tpr expects tpr in (0, 1], got {tpr}.")
        if not self._both:
            return float("nan")
        return float(self.alarms[np.argmax(self.hits / self.anomalous >= tpr)] / self.normal)

    @property
    def _both(self) -> bool:
        return self.anomalous > 0 and self.normal > 0

    def _best(self, criterion: Floats) -> Threshold:
        if not self._both:
            return Threshold(float("nan"), float("nan"))
        best = int(np.argmax(criterion))  # of equals the highest score: the fewest alarms
        score, below = self.scores[best], self.below[best]
        if below == -np.inf:
            threshold = np.nextafter(score, below)
        else:  # halfway, rounded as the scores are, so that comparing with them is exact
            with np.errstate(over="ignore"):
                threshold = self.scores.dtype.type(float(below) + (float(score) - float(below)) / 2)
            threshold = threshold if below <= threshold < score else below
        return Threshold(float(criterion[best]), float(threshold))


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve.

    >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
    0.875
    """
    return Ranking.of(labels, scores).auroc()


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Average precision, the step-wise area under the precision-recall curve.

    >>> average_precision([0, 0, 1, 1], [0.1, 0.4, 0.3, 0.8])
    0.8333333333333333
    """
    return Ranking.of(labels, scores).average_precision()


def f1_max(labels: ArrayLike, scores: ArrayLike) -> Threshold:
    """Largest F1 and its threshold; it looks at the labels, so it flatters: never choose it on test data.

    >>> f1_max([0, 0, 1, 1], [0.0, 0.25, 0.75, 1.0])
    Threshold(value=1.0, threshold=0.5)
    """
    return Ranking.of(labels, scores).f1_max()


def youden(labels: ArrayLike, scores: ArrayLike) -> Threshold:
    """Largest TPR - FPR and its threshold (Youden 1950)."""
    return Ranking.of(labels, scores).youden()


def fpr_at_tpr(labels: ArrayLike, scores: ArrayLike, tpr: float = 0.95) -> float:
    """Smallest false-alarm rate that still flags the fraction ``tpr`` of the anomalous."""
    return Ranking.of(labels, scores).fpr_at_tpr(tpr)


def at_threshold(labels: ArrayLike, flagged: ArrayLike) -> AtThreshold:
    """Counts and rates of decisions ``flagged`` (0 or 1 per image) against labels (0 normal, 1 anomalous).

    >>> at_threshold([0, 0, 1, 1], [0, 1, 1, 1]).f1
    0.8
    """
    truth, marked = as_bools("at_threshold", "labels", labels), as_bools("at_threshold", "decisions", flagged)
    if truth.shape != marked.shape:
        raise DataError(f"at_threshold expects one decision per label, got {marked.shape} and {truth.shape}.")
    fp, tp = int(np.count_nonzero(marked & ~truth)), int(np.count_nonzero(marked & truth))
    anomalous = int(np.count_nonzero(truth))
    normal = truth.size - anomalous
    denominator = tp + fp + anomalous  # 2 TP + FP + FN
    fpr, tnr = (k / normal if normal else float("nan") for k in (fp, normal - fp))
    tpr, f1 = tp / anomalous if anomalous else float("nan"), 2 * tp / denominator if denominator else float("nan")
    return AtThreshold(fp, tp, fpr, tpr, tnr, (tnr + tpr) / 2, f1)


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> RocCurve:
    """One point per distinct score, and (0, 0).

    >>> roc_curve([0, 1, 1], [1.0, 2.0, 3.0]).tpr.tolist()
    [0.0, 0.5, 1.0, 1.0]
    """
    hits, alarms, thresholds = _counts("roc_curve", labels, scores)
    return RocCurve(alarms / alarms[-1], hits / hits[-1], thresholds)


def precision_recall_curve(labels: ArrayLike, scores: ArrayLike) -> PrecisionRecallCurve:
    """One point per distinct score, and precision 1 at recall 0."""
    hits, alarms, thresholds = _counts("precision_recall_curve", labels, scores)
    precision = np.append(1.0, hits[1:] / (hits[1:] + alarms[1:]))
    return PrecisionRecallCurve(precision, hits / hits[-1], thresholds)


def _counts(who: str, labels: ArrayLike, scores: ArrayLike) -> tuple[Ints, Ints, Floats]:
    """Anomalous and normal above each threshold, thresholds descending: each distinct score, then one below all."""
    truth, values = checked_scores(who, labels, scores)
    if truth.all() or not truth.any():
        there, missing = ("anomalous", "normal") if truth.any() else ("normal", "anomalous")
        raise DataError(f"{who} expects normal and anomalous scores, got {there} ones only; add {missing} ones.")
    distinct, place = np.unique(values, return_inverse=True)
    per_score = np.stack([np.bincount(place[one], minlength=distinct.size) for one in (truth, ~truth)])
    hits, alarms = np.cumsum(np.pad(per_score[:, ::-1], ((0, 0), (1, 0))), axis=1)
    lowest = np.nextafter(distinct[:1], distinct.dtype.type(-np.inf))
    return hits, alarms, np.append(distinct[::-1], lowest)
