"""The metrics of a results folder (``metrics.json``). Formulas: :mod:`normalcy.metrics`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from normalcy import metrics
from normalcy.metrics import AtThreshold
from normalcy.results.schema import ABSENT, Count, Positive, Rate, load, was

__all__ = ["Metrics", "read_metrics"]

METRICS = "metrics.json"
REMEDY = "evaluate again with 'normalcy evaluate'"
IntervalT = TypeVar("IntervalT", bound="Interval")


@dataclass(frozen=True)
class Interval:
    """A metric with its 95 % interval over cases."""

    value: Rate | None = None
    low: Rate | None = None
    high: Rate | None = None
    error: Positive = field(default=0.0, metadata=ABSENT)
    """How far binning may have moved value and ends, where it may."""

    @classmethod
    def of(cls: type[IntervalT], found: metrics.Interval, value: float | None = None, **more: float) -> IntervalT:
        """From the interval of a metric; ``value`` is the exact one where it is known."""
        return cls(found.value if value is None else value, found.low, found.high, error=found.error, **more)


@dataclass(frozen=True)
class AUPRO(Interval):
    """Area under the per-region overlap, with its interval."""

    limit: Rate = 0.3
    """Of the false-positive rate."""


@dataclass(frozen=True)
class Sensitivity(Interval):
    """Fraction of true regions detected, with its interval."""

    false_per_image: Positive = 0.0
    """False regions per image at which it is read."""


@dataclass(frozen=True)
class Best:
    """The best value that any threshold reaches on these labels: an upper bound, not a result."""

    value: Rate | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class ImagesAtThreshold:
    """Decisions against labels."""

    threshold: float | None = None
    """Of the score."""
    false_positives: Count | None = field(default=None, metadata=was("false_alarms"))
    """Normal images flagged."""
    true_positives: Count | None = field(default=None, metadata=was("found"))
    """Anomalous images flagged."""
    false_positive_rate: Rate | None = field(default=None, metadata=was("false_alarm_rate"))
    """Of normal images."""
    true_positive_rate: Rate | None = field(default=None, metadata=was("detection_rate"))
    """Of anomalous images."""
    accuracy_normal: Rate | None = None
    """1 - false-positive rate."""
    accuracy_anomalous: Rate | None = None
    """The true-positive rate."""
    mean_accuracy: Rate | None = None
    """Of these two."""
    f1: Rate | None = None
    """2 TP / (2 TP + FP + FN)."""

    @classmethod
    def of(cls, threshold: float | None, found: AtThreshold) -> ImagesAtThreshold:
        return cls(
            threshold,
            found.false_positives,
            found.true_positives,
            found.false_positive_rate,
            found.true_positive_rate,
            found.true_negative_rate,
            found.true_positive_rate,
            found.mean_accuracy,
            found.f1,
        )


@dataclass(frozen=True)
class ImageMetrics:
    """How well scores separate normal from anomalous images."""

    normal: Count
    """Images."""
    anomalous: Count
    """Images."""
    auroc: Interval = field(default_factory=Interval)
    average_precision: Interval = field(default_factory=Interval)
    fpr_at_95_tpr: Interval = field(default_factory=Interval)
    f1_max: Best = field(default_factory=Best)
    at_threshold: ImagesAtThreshold | None = None
    """Null without a threshold."""


@dataclass(frozen=True)
class CaseMetrics:
    """The same for cases of several images: the score of a case is the highest of its images, and it is anomalous if one is."""

    normal: Count
    """Cases."""
    anomalous: Count
    """Cases."""
    auroc: Interval | None = None


@dataclass(frozen=True)
class PixelsAtThreshold:
    """Maps above the pixel threshold against masks."""

    threshold: float | None = None
    dice: Rate | None = None
    f1: Rate | None = None
    pro: Rate | None = None
    false_positive_rate: Rate | None = None
    """Mean fraction of pixels flagged in normal images."""


@dataclass(frozen=True)
class RegionsAtThreshold:
    """Regions above the pixel threshold against true ones."""

    total: Count = 0
    """True regions."""
    hit: Count = 0
    """True regions that are touched."""
    false_regions: Count = 0
    """Flagged regions that touch no true one."""
    false_per_image: Positive | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.hit > self.total:
            raise ValueError(f"at most {self.total} regions hit")


@dataclass(frozen=True)
class PixelMetrics:
    """How well maps localise, over the pixels of normal images and of anomalous ones with a mask."""

    images: Count = 0
    """Whose maps are evaluated."""
    auroc: Interval = field(default_factory=Interval)
    aupro: AUPRO = field(default_factory=AUPRO)
    average_precision: Interval | None = None
    f1_max: Best | None = None
    mood_ap: Rate | None = None
    """Only for maps in [0, 1]."""
    at_threshold: PixelsAtThreshold | None = None
    regions: RegionsAtThreshold | None = None


@dataclass(frozen=True)
class PatchMetrics:
    """How well the largest value of the map in a patch separates patches."""

    size: Count
    """Side in pixels."""
    fraction: Rate = field(metadata=was("share"))
    """A patch is anomalous when at least this fraction of it is marked."""
    normal: Count = 0
    """Patches with nothing marked."""
    anomalous: Count = 0
    """Patches with at least this fraction marked."""
    left_out: Count = 0
    """Patches with less marked."""
    auroc: Interval = field(default_factory=Interval)
    average_precision: Interval = field(default_factory=Interval)


@dataclass(frozen=True)
class RegionMetrics:
    """Free response: true regions detected against false ones per image."""

    total: Count = 0
    """True regions."""
    images: Count = 0
    """With and without an anomaly."""
    sensitivity: tuple[Sensitivity, ...] = ()
    mean_sensitivity: Interval = field(default_factory=Interval)


@dataclass(frozen=True)
class TypeMetrics:
    """A type of anomaly against all normal images."""

    count: Count
    """Images of the type."""
    auroc: Interval = field(default_factory=Interval)
    true_positive_rate: Rate | None = field(default=None, metadata=was("detection_rate"))
    """Null without a threshold."""
    pixel_auroc: Rate | None = None
    """Null without masks."""
    aupro: Rate | None = None
    """Null without masks."""


@dataclass(frozen=True)
class ClassMetrics:
    """The images of one class against each other, where one model has several classes of normal images."""

    normal: Count
    """Images."""
    anomalous: Count
    """Images."""
    auroc: Interval = field(default_factory=Interval)
    false_positive_rate: Rate | None = None
    """Of its normal images; null without a threshold."""
    true_positive_rate: Rate | None = None
    """Of its anomalous images; null without a threshold."""
    pixel_auroc: Rate | None = None
    """Null without masks."""
    aupro: Rate | None = None
    """Null without masks."""


@dataclass(frozen=True)
class ClassMean:
    """Unweighted means over the classes; null where a class has no value."""

    auroc: Rate | None = None
    pixel_auroc: Rate | None = None
    aupro: Rate | None = None

    @classmethod
    def of(cls, classes: Iterable[ClassMetrics]) -> ClassMean:
        own = list(classes)

        def mean(values: list[float | None]) -> float | None:
            known = [value for value in values if value is not None and math.isfinite(value)]
            return sum(known) / len(known) if known and len(known) == len(values) else None

        return cls(
            mean([one.auroc.value for one in own]),
            mean([one.pixel_auroc for one in own]),
            mean([one.aupro for one in own]),
        )


@dataclass(frozen=True)
class Roc:
    """ROC curve: false-positive and true-positive rate."""

    fpr: tuple[Rate, ...]
    tpr: tuple[Rate, ...]

    def __post_init__(self) -> None:
        _same_length(self.fpr, self.tpr)


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision-recall curve."""

    recall: tuple[Rate, ...]
    precision: tuple[Rate, ...]

    def __post_init__(self) -> None:
        _same_length(self.recall, self.precision)


@dataclass(frozen=True)
class Pro:
    """Per-region overlap over the false-positive rate of pixels."""

    fpr: tuple[Rate, ...]
    pro: tuple[Rate, ...]

    def __post_init__(self) -> None:
        _same_length(self.fpr, self.pro)


@dataclass(frozen=True)
class Froc:
    """Sensitivity by region over false regions per image."""

    false_per_image: tuple[Positive, ...]
    sensitivity: tuple[Rate, ...]

    def __post_init__(self) -> None:
        _same_length(self.false_per_image, self.sensitivity)


@dataclass(frozen=True)
class Curves:
    """Points for plotting."""

    roc: Roc | None = None
    pr: PrecisionRecall | None = None
    pro: Pro | None = None
    froc: Froc | None = None


@dataclass(frozen=True)
class DrawnRates:
    """Rates of all images, estimated without bias from reviewed ones that were drawn with known probabilities."""

    precision: Interval
    """Fraction of flagged images that are anomalous."""
    recall: Interval
    """Fraction of anomalous images that are flagged."""
    false_positive_rate: Interval
    """Fraction of normal images that are flagged."""
    anomalous: Interval
    """Fraction of images that are anomalous."""
    draws: Count
    """Draws with a label."""
    images: Count
    """Different images among them."""

    @classmethod
    def of(cls, found: metrics.Rates) -> DrawnRates:
        def interval(one: metrics.Estimate) -> Interval:
            return Interval(one.value, one.low, one.high)

        return cls(
            interval(found.precision),
            interval(found.recall),
            interval(found.false_positive_rate),
            interval(found.anomalous),
            found.draws,
            found.images,
        )


@dataclass(frozen=True)
class Metrics:
    """What `normalcy evaluate` measured."""

    image: ImageMetrics
    case: CaseMetrics | None = None
    """Null if every image is a case of its own."""
    pixel: PixelMetrics | None = None
    """Null without masks."""
    patch: PatchMetrics | None = None
    """Null without masks."""
    region: RegionMetrics | None = None
    """Null without masks or for very large sets."""
    types: Mapping[str, TypeMetrics] = field(default_factory=dict)
    """By type of anomaly."""
    classes: Mapping[str, ClassMetrics] | None = field(default=None, metadata=ABSENT)
    """By class, for several data sets in one."""
    class_mean: ClassMean | None = field(default=None, metadata=ABSENT)
    """Over the classes."""
    curves: Curves = field(default_factory=Curves)
    notes: tuple[str, ...] = ()
    """What was excluded or approximated."""
    resamples: Count = 0
    """Of the bootstrap."""
    seed: int = 0
    """Of the bootstrap."""
    labels: str | None = field(default=None, metadata=ABSENT)
    """Table of labels that was used instead of those of the data, from the results folder."""
    drawn: DrawnRates | None = field(default=None, metadata=ABSENT)
    """For reviews in the informative order."""


def read_metrics(folder: Path) -> Metrics:
    """``metrics.json`` of a results folder. Raises DataError where it cannot be used."""
    return load(Metrics, folder / METRICS, REMEDY)


def _same_length(x: tuple[float, ...], y: tuple[float, ...]) -> None:
    if len(x) != len(y):
        raise ValueError("two lists of the same length")
