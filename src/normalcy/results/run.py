"""How the scores of a results folder were made (``run.json``), and a row of its tables."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from normalcy.arrays import Indices
from normalcy.calibrate import Calibration, Decision
from normalcy.data.dataset import DataSet, Failure
from normalcy.errors import SettingsError
from normalcy.provenance import commit, versions
from normalcy.remote.urls import public
from normalcy.results.names import readable
from normalcy.results.schema import ABSENT, Count, Positive, Rate, load, was
from normalcy.scoring import Result
from normalcy.training.settings import FitSummary

__all__ = ["Run", "read_run"]

if TYPE_CHECKING:
    from normalcy.detector import Detector

RUN = "run.json"
POSITIONS = "positions.npy"
"""Of a shard: place of each row of scores.csv in the whole data set."""
LISTED = 1000
"""Images at most of which ``run.json`` says why they could not be used."""
REMEDY = "score the images again with 'normalcy score'"

MapRange = tuple[float, float]


@dataclass(frozen=True)
class Model:
    """The detector."""

    method: str = "unknown method"
    """Its name."""
    description: str = ""
    """First line of the method's page."""
    settings: Mapping[str, Any] = field(default_factory=dict, metadata=was("words"))
    """All settings in use."""
    shape: tuple[Count, ...] = ()
    """(C, *spatial) of what the method sees."""
    preprocess: tuple[str, ...] = ()
    """Steps of preprocessing."""
    training_data: Mapping[str, Any] = field(default_factory=dict)
    """``data`` of the model folder."""
    fit: FitSummary | None = None
    """Seconds, steps, precision and device of the fit."""


@dataclass(frozen=True)
class Shard:
    """The part of a data set that was scored; ``positions.npy`` has the place of each row of scores.csv in the whole."""

    index: Count
    """From 1."""
    of: Count
    """Number of parts."""
    whole: str = ""
    """Fingerprint of the whole data set."""


@dataclass(frozen=True)
class Scored:
    """The data set that was scored."""

    name: str = ""
    """Of the data set."""
    spec: str | None = None
    """The data set as it was given, by which `normalcy report` opens the inputs again; null for several inputs."""
    base: str | None = None
    """The folder that a relative ``spec`` starts from."""
    split: str | None = None
    """``train``, ``test`` or ``all`` of it; null where it has no split."""
    fingerprint: str = ""
    """Of the images that were scored: inputs are opened again only where it is the same."""
    medical: bool = False
    """Volumes, DICOM images or slides: shown with the notice that results are no diagnosis."""
    has_masks: bool = False
    """Whether the data set has masks at all."""
    count: Count = 0
    """Images scored."""
    failed: tuple[Failure, ...] = ()
    """Images that could not be scored: path and reason; of more than 1,000 the first, and all in ``failed.csv``."""
    incomplete: tuple[Failure, ...] = ()
    """Images that were scored, but of which a file could not be written or the mask not be used; of more than 1,000 the first,
    and all in ``incomplete.csv``."""
    failed_count: Count = field(default=0, metadata=ABSENT)
    """Images that could not be scored, where they are more than 1,000."""
    incomplete_count: Count = field(default=0, metadata=ABSENT)
    """Images of which something is missing, where they are more than 1,000."""
    shard: Shard | None = field(default=None, metadata=ABSENT)
    """For a shard only."""
    classes: tuple[str, ...] = field(default=(), metadata=ABSENT)
    """Of several data sets in one: their names, with which the paths of their images start."""

    def with_faults(self, failed: Sequence[Failure], incomplete: Sequence[Failure]) -> Scored:
        """The same with these images, of which the first are listed."""
        return replace(
            self,
            failed=tuple(failed[:LISTED]),
            incomplete=tuple(incomplete[:LISTED]),
            failed_count=len(failed) if len(failed) > LISTED else 0,
            incomplete_count=len(incomplete) if len(incomplete) > LISTED else 0,
        )


@dataclass(frozen=True)
class Thresholds:
    """How scores became decisions."""

    count: Count | None = None
    """Held-out normal images of the calibration."""
    map_range: MapRange | None = None
    """Median and largest value of their maps."""
    rule: str | None = None
    """``false_alarms``, ``max_f1``, ``youden``, ``minimum_area``; of an audit ``robust`` or ``fraction``."""
    threshold: float | None = None
    """An image with a higher score is flagged; null: none can be flagged."""
    pixel_threshold: float | None = None
    """A pixel with a higher value of the map is flagged."""
    false_alarms: Rate | None = None
    """Guaranteed bound of the false-positive rate, for the rule of this name."""
    minimum_area: Count | None = None
    """In pixels, for the rule of this name."""


@dataclass(frozen=True)
class SparseFit:
    """A fit of a method that separates a sparse part from each image."""

    weight: float
    """Weight of the penalty on the sparse part (lambda)."""
    with_sparse_part: Rate
    """Fraction of the images whose sparse part is not 0."""
    rounds: Count | None = None
    constraint: Positive | None = None
    """Relative residual of X = L + S after the last round."""


@dataclass(frozen=True)
class AuditRun:
    """How training images were audited."""

    folds: Count = 1
    """Fits that each left out a part and scored it; 1: one fit to all images."""
    fraction: Rate | None = field(default=None, metadata=was("share"))
    """Expected fraction of anomalous images, if given."""
    weight: float | None = None
    """For a method that separates a sparse part from each image: the weight of its penalty (lambda) in the fits that scored."""
    with_sparse_part: Rate | None = None
    """Fraction of the images whose sparse part is not 0."""
    rounds: Count | None = None
    """Of the fit."""
    constraint: Positive | None = None
    """Relative residual of X = L + S after the last round."""
    path: tuple[SparseFit, ...] = ()
    """These four for all weights that were tried."""


@dataclass(frozen=True)
class Run:
    """How the scores of a results folder were made."""

    model: Model
    data: Scored
    calibration: Thresholds | None = None
    """Null without a threshold."""
    map_range: MapRange | None = None
    """Values of black and of the brightest colour in the pictures of maps: that of the calibration, else of the maps here."""
    extra_maps_with_channels: tuple[str, ...] = field(default=(), metadata=was("images_among_pictures"))
    """For volumes: the names under ``extra_maps`` that are images with channels; the others are maps."""
    score: str | None = None
    """The score in use, if the method has several."""
    seed: int | None = None
    """Of the fit, and of the split of a data set that has none."""
    normalcy: str = ""
    """Version."""
    created: str = ""
    """Date and time (UTC)."""
    commit: str | None = None
    """Of the repository of normalcy, if it runs from one; "+" with changes."""
    device: str = ""
    """Of the method (``cpu``, ``cuda:0``), and in brackets the engine: torch, onnxruntime or openvino."""
    seconds: Positive | None = None
    """Of scoring, including reading and writing."""
    images_per_second: Positive | None = None
    """Images scored, by these seconds."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of Python and of libraries."""
    audit: AuditRun | None = field(default=None, metadata=ABSENT)
    """For an audit only."""
    chosen_on: tuple[str, ...] = field(default=(), metadata=ABSENT)
    """Paths of images whose labels chose the settings, the calibration or the threshold: no test images."""


@dataclass(frozen=True)
class SlideFile:
    """A slide that was scored."""

    name: str
    """In ``slides.csv``."""
    path: str
    """Its file; absolute."""
    folder: str
    """Below the results folder: where its heat map and tiles are."""
    side: Positive
    """Pixels of the slide's finest level along a side of a pixel of the heat map."""


@dataclass(frozen=True)
class SlidesRun:
    """How slides were scored: ``run.json``."""

    method: str
    quantile: Rate
    cell: Count
    notice: str
    failed: tuple[Failure, ...]
    versions: Mapping[str, str]
    slides: tuple[SlideFile, ...] = ()
    """Empty in folders of earlier versions."""
    pixel_threshold: float | None = None
    map_range: MapRange | None = None
    shard: Shard | None = field(default=None, metadata=ABSENT)


def read_run(folder: Path) -> Run:
    """``run.json`` of a results folder. Raises DataError where it cannot be used."""
    return load(Run, folder / RUN, REMEDY)


def describe(
    detector: Detector,
    data: DataSet,
    decision: Decision | None = None,
    *,
    tile: bool = False,
    spec: str | None = None,
    split: str | None = None,
    chosen_on: Sequence[str] = (),
) -> Run:
    """The run of scoring ``data``, before any image is scored. ``tile`` and ``decision`` as for the scores; ``chosen_on``:
    paths of images that chose the decision, to which those that chose the model's settings or calibration are added."""
    method = detector.method
    if method is None:
        raise SettingsError(f"The {detector.name} detector is not fitted yet: call fit() or load one.")
    calibration = None if tile and not detector.tiled else detector.calibration  # that of whole images
    settings = detector.all_settings()
    by_model = [data.items[i].path for i in data.recognised(detector.facts["data"].get("chosen_on", ()))]
    return Run(
        model=Model(
            method=detector.name,
            description=type(method).summary(),
            settings=settings,
            shape=method.shape,
            preprocess=tuple(str(step) for step in detector.preprocess.plan),
            training_data={
                key: value for key, value in detector.facts["data"].items() if key not in ("failed", "chosen_on")
            },
            fit=FitSummary(**detector.facts["fit"]),
        ),
        data=Scored(
            name=data.name,
            spec=None if spec is None else public(spec),
            base=None if spec is None else str(Path.cwd()),
            split=split,
            fingerprint=data.fingerprint(),
            medical=data.is_medical,
            has_masks=data.has_masks,
            classes=data.classes,
        ),
        calibration=thresholds(calibration, decision),
        map_range=None if calibration is None else calibration.map_range,
        score=settings.get("score"),
        seed=detector.train.seed,
        normalcy=versions()["normalcy"],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit(),
        device=f"{method.device} ({detector.engine})",
        versions=versions(),
        chosen_on=tuple(sorted({readable(path) for path in (*chosen_on, *by_model)})),
    )


def read_shard(text: str) -> Shard:
    """``K/N``: part K of N, from 1.

    >>> read_shard("2/7")
    Shard(index=2, of=7, whole='')
    """
    index, slash, of = text.partition("/")
    if not (slash and index.isascii() and of.isascii() and index.isdigit() and of.isdigit() and len(of) < 10):
        raise SettingsError(f"--shard expects K/N, such as 2/7 for the second of seven parts, got {text!r}.")
    if not 1 <= int(index) <= int(of):
        raise SettingsError(f"--shard expects K/N with K from 1 to N, got {text!r}.")
    return Shard(int(index), int(of))


def case_numbers(cases: Sequence[str]) -> npt.NDArray[np.int64]:
    """A number of 60 bits for each image, (N,): a checksum of its case. Modulo the number of shards it is the image's shard,
    from 0, so a case is never divided."""
    known = {case: int(hashlib.sha256(readable(case).encode()).hexdigest()[:15], 16) for case in set(cases)}
    return np.array([known[case] for case in cases], np.int64)


def shard_of(cases: Sequence[str], shard: Shard) -> Indices:
    """Positions of the images that a shard scores."""
    return np.flatnonzero(case_numbers(cases) % shard.of == shard.index - 1)


def thresholds(calibration: Calibration | None, decision: Decision | None) -> Thresholds | None:
    """What ``run.json`` says of a decision; None without one."""
    if calibration is None and decision is None:
        return None
    found = Thresholds() if calibration is None else Thresholds(calibration.count, calibration.map_range)
    if decision is None:
        return found
    return replace(
        found,
        rule=decision.rule,
        threshold=_finite(decision.threshold),
        pixel_threshold=_finite(decision.pixel_threshold),
        false_alarms=decision.false_alarms,
        minimum_area=decision.minimum_area,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


# -- rows of the tables --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A row of ``scores.csv``: an image."""

    path: str
    """Unique in the data set; bytes of a name that are not UTF-8 are escaped (``\\udce9``)."""
    case: str
    """The case of the image; its path if it is a case of its own."""
    score: float
    """Higher is more anomalous; full precision."""
    p_value: float | None
    """In [1 / (n + 1), 1]; empty without calibration."""
    flagged: bool | None
    """0 or 1; empty without a threshold."""
    label: int | None
    """0 normal, 1 anomalous; empty: unknown."""
    type: str | None
    """Text, or empty."""
    split: str | None
    """``train``, ``test`` or empty."""
    file: str
    """Base name of the image's files below ``maps``, ``restored`` and so on: the path, unless that is absolute, leaves its
    folder, is not UTF-8, is too long or would share a file with another image."""

    @classmethod
    def of(cls, result: Result, file: str) -> ScoreRow:
        item = result.item
        path, case = readable(item.path), readable(item.case)
        return cls(path, case, result.score, result.p_value, result.flagged, item.label, item.type, item.split, file)

    def cells(self) -> list[str]:
        return [_cell(getattr(self, name)) for name in COLUMNS]


COLUMNS = tuple(f.name for f in fields(ScoreRow))


@dataclass(frozen=True)
class CaseRow:
    """A row of ``cases.csv``: a case (patient) of several images."""

    case: str
    """Name of the case."""
    images: int
    """Their number."""
    score: float
    """The highest of its images."""
    p_value: float | None
    """The least of its images times their number (Bonferroni), at most 1."""
    flagged: bool | None
    """Whether one of its images is."""
    label: int | None
    """1 if one of its images is anomalous."""

    def cells(self) -> list[str]:
        return [_cell(getattr(self, f.name)) for f in fields(self)]


CASE_COLUMNS = tuple(f.name for f in fields(CaseRow))
SLICE_COLUMNS = ("path", "axis", "slice", "score")


def _cell(value: object) -> str:
    """Text of a cell: numbers in full precision, nothing for None."""
    if value is None:
        return ""
    return repr(value) if isinstance(value, float) else str(int(value) if isinstance(value, bool) else value)
