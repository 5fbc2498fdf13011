"""Several methods on the same images (``compare.json``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from normalcy.results.metrics import AUPRO, ClassMean, ClassMetrics, ImagesAtThreshold, Interval
from normalcy.results.schema import ABSENT, Bounds, Count, Positive, Rate, load, was

__all__ = ["Comparison", "read_comparison"]

COMPARISON = "compare.json"
Difference = Annotated[float, Bounds(-1, 1)]


@dataclass(frozen=True)
class Paired:
    """DeLong's test against the best method, on the images that both scored."""

    best: str
    difference: Difference | None = None
    """AUROC minus that of the best."""
    low: Difference | None = None
    high: Difference | None = None
    p: Rate | None = None
    """Two-sided."""


@dataclass(frozen=True)
class Compared:
    """A method."""

    name: str
    """Of the method."""
    settings: Mapping[str, Any] = field(default_factory=dict, metadata=was("words"))
    """Those given."""
    auroc: Interval | None = None
    pixel_auroc: Interval | None = None
    aupro: AUPRO | None = None
    at_threshold: ImagesAtThreshold | None = None
    fit_seconds: Positive | None = None
    """Of training."""
    images_per_second: Positive | None = None
    """Of scoring, including reading and writing."""
    folder: str = ""
    """Its results folder, below this one."""
    against_best: Paired | None = None
    """Null for the best."""
    classes: Mapping[str, ClassMetrics] | None = field(default=None, metadata=ABSENT)
    """By class, for several data sets in one: one model, each class for itself."""
    class_mean: ClassMean | None = field(default=None, metadata=ABSENT)
    """Over the classes."""

    @property
    def area(self) -> float | None:
        return None if self.auroc is None else self.auroc.value


@dataclass(frozen=True)
class ComparedData:
    """The data set."""

    name: str = ""
    spec: str | None = None
    fingerprint: str = ""
    test_images: Count | None = None


@dataclass(frozen=True)
class MethodFailure:
    """A method that failed, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Methods on the same images, in the order in which they were named."""

    data: ComparedData
    methods: tuple[Compared, ...]
    failed: tuple[MethodFailure, ...] = ()

    def ranked(self) -> list[Compared]:
        """The highest AUROC first, those without last."""
        return sorted(self.methods, key=lambda one: -1.0 if one.area is None else one.area, reverse=True)


def read_comparison(folder: Path) -> Comparison:
    """``compare.json`` of a comparison folder. Raises DataError where it cannot be used."""
    return load(Comparison, folder / COMPARISON, "compare again with 'normalcy compare'")
