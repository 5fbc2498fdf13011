"""Rates of a large set from a few reviewed images: which images to review, and unbiased estimates from their labels.

Images are drawn with replacement with known probabilities q, high where a label says most about precision and recall, and a
drawn image counts with the weight 1 / q (Hansen and Hurwitz 1943). The probabilities are those that minimise the variance of F1
(Sawade, Landwehr and Scheffer 2010, "Active Estimation of F-Measures", theorem 1), computed from a guess of how probable an
anomaly is in each image, and mixed with the uniform distribution so that no weight is larger than 1 / UNIFORM of that of a
uniform sample. A wrong guess makes the intervals wider, never the estimates biased.

Flagged and other images are estimated apart, since their numbers N_f and N_u are known: with a and b the fractions of
anomalies in them, the precision is a, the recall N_f a / (N_f a + N_u b), the false-positive rate
N_f (1 - a) / (N_f (1 - a) + N_u (1 - b)) and the fraction of anomalies (N_f a + N_u b) / N. Intervals of a and b are those of
Wilson (1927) for the effective number of images (sum w)^2 / sum w^2 (Kish 1965), those of the others follow by MOVER (Zou and
Donner 2008; Donner and Zou 2012 for ratios).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from normalcy.arrays import Float64, Indices
from normalcy.errors import DataError

UNIFORM = 0.2
"""Part of the probability that is spread evenly over all images."""
FEWEST = 10
"""Drawn images with a label before anything is estimated."""
_Z = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A rate with its 95 % interval; NaN where nothing is known."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Rates:
    """Of the whole set, by the images reviewed."""

    precision: Estimate
    """Fraction of flagged images that are anomalous."""
    recall: Estimate
    """Fraction of anomalous images that are flagged: the true-positive rate."""
    false_positive_rate: Estimate
    """Fraction of normal images that are flagged."""
    anomalous: Estimate
    """Fraction of images that are anomalous."""
    draws: int
    """Draws with a label."""
    images: int
    """Different images among them."""


def guess(scores: Float64, p_values: Float64) -> Float64:
    """(N,) a guess of the probability that each image is anomalous, in [0.001, 0.999], from its p-value or else its rank.

    With p-values: 1 minus the local false discovery rate, whose density is a decreasing step function (Grenander 1956) and
    whose fraction of normal images is that of Storey (2002) at 0.5. Without: a fraction of 5 % anomalies, highest scores first.
    """
    n = len(scores)
    if n and np.isfinite(p_values).all():
        order = np.argsort(p_values, kind="stable")
        places = np.searchsorted(np.sort(p_values), np.unique(p_values), side="right")
        steps = np.diff(np.r_[0.0, np.unique(p_values)])
        density = _decreasing(np.diff(np.r_[0, places]) / n / np.maximum(steps, 1e-12), steps)
        normal = min(1.0, 2 * float((p_values > 0.5).mean()))
        of_level = 1 - normal / np.maximum(density, 1e-12)
        found = np.empty(n)
        found[order] = np.repeat(of_level, np.diff(np.r_[0, places]))
    else:
        rank = np.empty(n)
        rank[np.argsort(-scores, kind="stable")] = (np.arange(n) + 0.5) / max(n, 1)
        found = np.exp(-rank / 0.05)
    return np.clip(found, 1e-3, 0.999)


def proposal(scores: Float64, flagged: npt.ArrayLike, p_values: Float64) -> Float64:
    """(N,) probabilities to draw each image with, that sum to 1; see the head of this module."""
    n, decided = len(scores), np.asarray(flagged, bool)
    if not n:
        raise DataError("proposal expects at least one image, got none.")
    p = guess(scores, p_values)
    both = float((p * decided).sum())
    f1 = 2 * both / max(float(decided.sum()) + float(p.sum()), 1e-12)
    flagged_part = np.sqrt(p * (1 - f1) ** 2 + (1 - p) * f1**2 / 4)
    other_part = np.sqrt(p) * max(f1, 0.1) / 2
    q = np.where(decided, flagged_part, other_part) + 1e-12
    mixed: Float64 = (1 - UNIFORM) * q / q.sum() + UNIFORM / n
    return mixed


def draw(q: Float64, count: int, seed: int = 0) -> Indices:
    """(count,) images drawn with replacement; the same for the same seed."""
    return np.random.default_rng(seed).choice(len(q), size=count, p=q).astype(np.intp)


def rates(
    drawn: npt.ArrayLike,
    q: npt.ArrayLike,
    labels: npt.ArrayLike,
    flagged: npt.ArrayLike,
    total: int,
    total_flagged: int,
) -> Rates:
    """Rates of ``total`` images, of which ``total_flagged`` are flagged, from draws in order, all of them with a label.

    ``drawn``: image of each draw; ``q``: its probability; ``labels``: 1 anomalous, 0 normal; ``flagged``: 0 or 1, all (draws,).
    Raises DataError for fewer than ``FEWEST`` draws.
    """
    images, probability = np.asarray(drawn), np.asarray(q, np.float64)
    truth, decided = np.asarray(labels) == 1, np.asarray(flagged) == 1
    if len(images) < FEWEST:
        raise DataError(f"rates expects at least {FEWEST} drawn images with a label, got {len(images)}.")
    weights = 1 / probability
    a, b = (_fraction(truth[part], weights[part]) for part in (decided, ~decided))
    n_f, n_u = total_flagged, total - total_flagged
    normal = [Estimate(1 - e.value, 1 - e.high, 1 - e.low) for e in (a, b)]
    return Rates(
        precision=a,
        recall=_part(a, b, n_f, n_u),
        false_positive_rate=_part(normal[0], normal[1], n_f, n_u),
        anomalous=_sum(a, b, n_f / total, n_u / total),
        draws=len(images),
        images=len(np.unique(images)),
    )


# -- private -----------------------------------------------------------------------------------------------------------


def _decreasing(density: Float64, width: Float64) -> Float64:
    """The decreasing step function nearest to a density: pool adjacent violators."""
    blocks: list[list[float]] = []  # mass, width, steps
    for mass, wide in zip(density * width, width):
        blocks.append([mass, wide, 1])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] < blocks[-1][0] * blocks[-2][1]:
            last = blocks.pop()
            blocks[-1] = [x + y for x, y in zip(blocks[-1], last)]
    return np.concatenate([np.full(int(steps), mass / max(wide, 1e-12)) for mass, wide, steps in blocks])


def _fraction(truth: npt.NDArray[np.bool_], weights: Float64) -> Estimate:
    """The weighted fraction of anomalies, with Wilson's interval for the effective number of images."""
    if not len(truth):
        return Estimate(math.nan, 0.0, 1.0)
    total = float(weights.sum())
    value = float(weights[truth].sum()) / total
    n = total**2 / float((weights**2).sum())
    centre = (value + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(value * (1 - value) / n + _Z**2 / (4 * n * n))
    return Estimate(value, min(value, max(0.0, centre - half)), max(value, min(1.0, centre + half)))


def _part(a: Estimate, b: Estimate, n_a: int, n_b: int) -> Estimate:
    """n_a a / (n_a a + n_b b)."""
    if not n_a:
        return Estimate(0.0, 0.0, 0.0)
    if not n_b:
        return Estimate(1.0, 1.0, 1.0)
    value = math.nan
    if math.isfinite(a.value) and math.isfinite(b.value) and n_a * a.value + n_b * b.value > 0:
        value = n_a * a.value / (n_a * a.value + n_b * b.value)
    low, high = _ratio(a, b)
    low, high = (1.0 if math.isinf(r) else n_a * r / (n_a * r + n_b) for r in (low, high))
    return Estimate(value, low, high)


def _ratio(a: Estimate, b: Estimate) -> tuple[float, float]:
    """Interval of a / b by MOVER-R."""
    if not (math.isfinite(a.value) and math.isfinite(b.value)):
        return 0.0, math.inf
    x, l1, u1 = a.value, a.low, a.high
    y, l2, u2 = b.value, b.low, b.high
    low = (x * y - math.sqrt(max(0.0, (x * y) ** 2 - l1 * u2 * (2 * x - l1) * (2 * y - u2)))) / (
        u2 * (2 * y - u2) or -1e-300
    )
    if l2 <= 0:
        return max(0.0, low), math.inf
    high = (x * y + math.sqrt(max(0.0, (x * y) ** 2 - u1 * l2 * (2 * x - u1) * (2 * y - l2)))) / (l2 * (2 * y - l2))
    return max(0.0, low), max(high, 0.0)


def _sum(a: Estimate, b: Estimate, p_a: float, p_b: float) -> Estimate:
    """p_a a + p_b b by MOVER; a part without images does not count."""
    parts = [(e, p) for e, p in ((a, p_a), (b, p_b)) if p > 0]
    value = sum(p * e.value for e, p in parts)
    if not math.isfinite(value):
        return Estimate(math.nan, sum(p * e.low for e, p in parts), sum(p * e.high for e, p in parts))
    below = math.sqrt(sum((p * (e.value - e.low)) ** 2 for e, p in parts))
    above = math.sqrt(sum((p * (e.high - e.value)) ** 2 for e, p in parts))
    return Estimate(value, max(0.0, value - below), min(1.0, value + above))
