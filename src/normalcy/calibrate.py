"""Scores of held-out normal images -> p-values, and thresholds with a guaranteed false-positive rate.

Images: split conformal prediction (Vovk et al. 2005; for anomaly detection Bates et al. 2023). With n held-out normal
images, p = (1 + #{held-out scores >= s}) / (n + 1), and flagging p <= alpha gives a new normal image a false alarm with
probability at most alpha, whatever the method and the distribution of scores.

Pixels: conformal risk control (Angelopoulos et al. 2024) on the fraction of flagged pixels in a normal image, which
falls as the threshold rises: the smallest threshold with (sum of the held-out fractions + 1) / (n + 1) <= alpha bounds the
expected fraction of a new normal image by alpha. Neighbouring pixels may depend on each other in any way.

Both hold when new normal images come from where the held-out ones do. A map's values are binned by their 18 leading bits
(steps of 0.2 %), which rounds the pixel threshold up, never down.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from normalcy.arrays import Array, Float64
from normalcy.errors import ModelFileError, SettingsError

__all__ = ["Calibration", "Decision", "calibrate", "decide", "decide_on_validation", "needed_images"]

_BITS = 18
_LEVELS = 2000


@dataclass(frozen=True)
class Calibration:
    """Scores of held-out normal images, (n,) ascending, and ``rates``: mean fraction of their pixels above ``levels``."""

    scores: Float64
    levels: Float64 | None = None
    rates: Float64 | None = None
    map_range: tuple[float, float] | None = None
    """Median and largest value over the normal maps: the range of display."""

    @property
    def count(self) -> int:
        return len(self.scores)

    def p_values(self, scores: npt.ArrayLike) -> Float64:
        """Conformal p-values (N,) in [1 / (n + 1), 1].

        >>> Calibration(np.array([1.0, 2.0, 3.0])).p_values([2.5, 9.0])
        array([0.5 , 0.25])
        """
        at_least = self.count - np.searchsorted(self.scores, np.asarray(scores, np.float64), side="left")
        p: Float64 = (1 + at_least) / (self.count + 1)
        return p

    def threshold(self, false_alarms: float) -> float:
        """Flag an image when its score is larger: a normal one is flagged with probability <= ``false_alarms``.

        Infinite (nothing is flagged) when there are fewer held-out images than :func:`needed_images`.

        >>> Calibration(np.arange(1.0, 20.0)).threshold(0.05), Calibration(np.arange(1.0, 19.0)).threshold(0.05)
        (19.0, inf)
        """
        allowed = math.floor(_rate(false_alarms) * (self.count + 1) + 1e-9) - 1
        return math.inf if allowed < 0 else float(self.scores[self.count - 1 - min(allowed, self.count - 1)])

    def pixel_threshold(self, false_alarms: float) -> float | None:
        """Flag a pixel when its map is larger: the expected fraction of a normal image flagged is <= ``false_alarms``."""
        if self.levels is None or self.rates is None:
            return None
        risk = (self.count * self.rates + 1) / (self.count + 1)
        good = np.flatnonzero(risk <= _rate(false_alarms) + 1e-12)
        return float(self.levels[good[0]]) if len(good) else math.inf

    def to_json(self) -> dict[str, Any]:
        return {
            "scores": self.scores.tolist(),
            "levels": None if self.levels is None else self.levels.tolist(),
            "rates": None if self.rates is None else self.rates.tolist(),
            "map_range": self.map_range,
        }

    @classmethod
    def from_json(cls, words: Mapping[str, Any]) -> Calibration:
        try:
            arrays = [
                None if words[key] is None else np.array(words[key], np.float64)
                for key in ("scores", "levels", "rates")
            ]
            scores, levels, rates = arrays
            sound = scores is not None and scores.ndim == 1 and len(scores) > 0 and np.isfinite(scores).all()
            if scores is None or not sound or (np.diff(scores) < 0).any():
                raise ValueError("scores are not ascending numbers")
            if (levels is None) != (rates is None) or (
                levels is not None and rates is not None and (levels.shape != rates.shape or levels.ndim != 1)
            ):
                raise ValueError("levels and rates do not match")
            span = words["map_range"]
            return cls(scores, levels, rates, None if span is None else (float(span[0]), float(span[1])))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelFileError(f"calibration.json is damaged ({reason}); fit the detector again.") from error


def needed_images(false_alarms: float) -> int:
    """Held-out images without which nothing can be flagged at this rate: 1 / false_alarms - 1, rounded up.

    >>> needed_images(0.05), needed_images(0.01)
    (19, 99)
    """
    return math.ceil(1 / _rate(false_alarms) - 1e-9) - 1


def calibrate(held_out: Iterable[tuple[float, Array | None]]) -> Calibration:
    """From (score, map or None) of held-out normal images, seen once; memory does not grow with their number."""
    scores: list[float] = []
    with_map = 0
    mass = np.zeros(2**_BITS)
    for score, values in held_out:
        scores.append(float(score))
        if values is not None:
            with_map += 1
            mass += np.bincount(_bins(values), minlength=2**_BITS) / values.size
    if not scores:
        raise SettingsError("Calibration needs held-out normal images, got none.")
    if not with_map:
        return Calibration(np.sort(scores))
    edges, fraction = _upper_edges(), mass / with_map
    rates = 1 - np.cumsum(fraction)
    used = np.flatnonzero(fraction)
    median = used[np.searchsorted(np.cumsum(fraction[used]), 0.5)]
    # The upper tail is where thresholds lie: keep all its levels up to a number, and thin the rest.
    kept = (
        used
        if len(used) <= _LEVELS
        else np.unique(np.r_[used[:: math.ceil(2 * len(used) / _LEVELS)], used[-_LEVELS // 2 :]])
    )
    return Calibration(
        np.sort(scores),
        edges[kept],
        np.clip(rates[kept], 0, 1),
        (float(edges[median]), float(edges[used[-1]])),
    )


@dataclass(frozen=True)
class Decision:
    """Thresholds for images and pixels, and where they come from. Flagged is ``score > threshold``."""

    rule: str
    threshold: float | None
    pixel_threshold: float | None = None
    false_alarms: float | None = None
    """The guaranteed false-positive rate, for the rule "false_alarms"."""
    minimum_area: int | None = None
    """For the rule "minimum_area": an image is flagged when a region of its map is larger, in pixels."""

    def flags(self, score: float, values: Array | None) -> bool:
        """Whether an image with this score and map is flagged."""
        if self.minimum_area is not None and values is not None and self.pixel_threshold is not None:
            from normalcy.metrics import label_regions  # metrics import SciPy, which p-values do not need

            labels, count = label_regions(values > self.pixel_threshold)
            return bool(count and np.bincount(labels.ravel())[1:].max() > self.minimum_area)
        return self.threshold is not None and score > self.threshold

    def to_json(self) -> dict[str, Any]:
        return {k: (v if not isinstance(v, float) or math.isfinite(v) else None) for k, v in vars(self).items()}


def decide(calibration: Calibration, false_alarms: float) -> Decision:
    """Thresholds that keep false alarms at ``false_alarms``, for images and for pixels."""
    return Decision(
        "false_alarms", calibration.threshold(false_alarms), calibration.pixel_threshold(false_alarms), false_alarms
    )


def decide_on_validation(
    rule: str,
    scores: Sequence[float],
    labels: Sequence[int] | None,
    maps: Sequence[Array] | None,
    masks: Sequence[Array] | None,
) -> Decision:
    """Thresholds chosen on validation images, never on the test set.

    ``rule`` "max_f1" or "youden" needs labels of both kinds (and masks for the pixel threshold); "minimum_area:A" needs
    normal maps alone: the smallest threshold at which no region on them is larger than A pixels (LSR paper, section 4.2;
    Bergmann et al. 2021), an image being flagged when it has a larger region.
    """
    from normalcy.metrics import f1_max, minimum_area_threshold, pixel_ranking, youden

    name, _, number = rule.partition(":")
    if name == "minimum_area":
        if not number.isdigit() or int(number) < 1:
            raise SettingsError(
                f"The rule minimum_area expects an area in pixels, as in minimum_area:100, got {rule!r}."
            )
        if not maps:
            raise SettingsError("The rule minimum_area needs a method that gives maps.")
        threshold = float(minimum_area_threshold(maps, int(number)))
        return Decision(name, None, threshold, minimum_area=int(number))
    if name not in ("max_f1", "youden"):
        raise SettingsError(f"rule must be false_alarms, max_f1, youden or minimum_area:A, got {rule!r}.")
    if labels is None or len(set(labels)) < 2:
        raise SettingsError(f"The rule {name} needs validation images of both kinds, normal and anomalous.")
    best = f1_max(labels, scores) if name == "max_f1" else youden(labels, scores)
    pixel = None
    if maps and masks:
        ranking = pixel_ranking(maps, masks)
        pixel = float((ranking.f1_max() if name == "max_f1" else ranking.youden()).threshold)
    return Decision(name, float(best.threshold), pixel)


def _rate(false_alarms: float) -> float:
    if not 0 < false_alarms < 1:
        raise SettingsError(f"false_alarms must be between 0 and 1, got {false_alarms}.")
    return false_alarms


def _bins(values: Array) -> npt.NDArray[np.int64]:
    """Order-preserving bins of float32: the leading bits of the number that sorts like it."""
    bits = np.ascontiguousarray(values, np.float32).ravel().view(np.int32).astype(np.int64)
    ordered = np.where(bits >= 0, bits + 2**31, ~bits)  # negative numbers sort the other way round
    return ordered >> (32 - _BITS)


def _upper_edges() -> Float64:
    """The largest value of each bin."""
    ordered = (np.arange(2**_BITS, dtype=np.int64) + 1 << (32 - _BITS)) - 1
    bits = np.where(ordered >= 2**31, ordered - 2**31, ~ordered).astype(np.int64)
    with np.errstate(invalid="ignore"):  # the bit patterns beyond infinity are NaN and never used
        edges: Float64 = (bits & 0xFFFFFFFF).astype(np.uint32).view(np.float32).astype(np.float64)
    return edges
