"""A results folder in memory: the table of scores, how they were made, the metrics, and where an image's files lie."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from normalcy.arrays import Float64
from normalcy.errors import DataError
from normalcy.files import is_inside, reading_text
from normalcy.results.metrics import METRICS, Metrics, read_metrics
from normalcy.results.names import LATENTS as LATENTS
from normalcy.results.names import NIFTI, meant, named
from normalcy.results.run import COLUMNS, REMEDY, RUN, Model, Run, Scored, SlidesRun, Thresholds, read_run
from normalcy.results.schema import LARGEST, load

__all__ = ["ResultsFolder", "read_results"]

MAPS = (".npy", NIFTI)
MASKS = (".png", ".npy", NIFTI)
"""Suffixes of maps and of masks."""
OLD_FOLDERS = {"uncertainty": "spread", "extra_maps": "pictures"}
"""Folders of a results folder -> their names in those of earlier versions, which are read too."""


@dataclass(frozen=True)
class ResultsFolder:
    """The rows of scores.csv as columns, in their order, with run.json and metrics.json."""

    folder: Path
    paths: list[str]
    cases: list[str]
    types: list[str]
    splits: list[str]
    """Empty where unknown."""
    scores: Float64
    p_values: Float64
    """NaN where not calibrated."""
    flagged: npt.NDArray[np.int8]
    """1, 0, or -1 unknown."""
    labels: npt.NDArray[np.int8]
    """1 anomalous, 0 normal, -1 unknown."""
    files: list[str]
    """Base names of the images' files."""
    run: Run
    metrics: Metrics | None
    masks_by_review: Mapping[int, Path] | None = field(default=None, compare=False)
    """Position of an image -> its mask by review; None: the masks of the folder itself are meant."""

    def __len__(self) -> int:
        return len(self.paths)

    def extra_maps(self) -> list[str]:
        """Names of the method's extra maps."""
        folders = [self.folder / name for name in ("extra_maps", OLD_FOLDERS["extra_maps"])]
        return sorted(
            {
                entry.name
                for folder in folders
                if folder.is_dir() and is_inside(folder, self.folder)
                for entry in folder.iterdir()
                if entry.is_dir()
            }
        )

    @property
    def has_masks(self) -> bool:
        """Whether there are masks at all; single ones may still be missing."""
        return self.run.data.has_masks if self.masks_by_review is None else bool(self.masks_by_review)

    def mask(self, i: int) -> Path | None:
        """The file of the mask of image ``i``."""
        return self.file("masks", i, *MASKS) if self.masks_by_review is None else self.masks_by_review.get(i)

    def file(self, kind: str, i: int, *suffixes: str) -> Path | None:
        """``<kind>/<base name of image i><suffix>``, of the first suffix that exists. None outside the folder: neither "../../"
        in a name, which is text from a file, nor a link must bring foreign files into a page."""
        first, _, rest = kind.partition("/")
        old = OLD_FOLDERS.get(first)
        for here in (kind, *([f"{old}/{rest}".rstrip("/")] if old else [])):
            for suffix in suffixes:
                path = self.folder / here / named(self.files[i], suffix)
                try:
                    within = os.path.normpath(path).startswith(os.path.normpath(self.folder / here) + os.sep)
                    if path.is_file() and within and is_inside(path, self.folder):
                        return path
                except (OSError, ValueError):  # a name too long, or with a null byte
                    return None
        return None


def read_results(folder: Path) -> ResultsFolder:
    """Raises DataError when scores.csv, run.json or metrics.json is missing or cannot be used."""
    run = read_run(folder)
    path = folder / "scores.csv"
    columns = _read_scores(path)
    return ResultsFolder(
        folder,
        columns["path"],
        [case or path for case, path in zip(columns["case"], columns["path"])],
        columns["type"],
        columns["split"],
        _numbers(columns["score"], "score", path),
        _numbers(columns["p_value"], "p_value", path, 0.0, 1.0),
        _yes_no(columns["flagged"]),
        _yes_no(columns["label"]),
        [file or path for file, path in zip(columns["file"], columns["path"])],
        run,
        read_metrics(folder) if (folder / METRICS).exists() else None,
    )


def read_slides(folder: Path) -> tuple[ResultsFolder, SlidesRun]:
    """A results folder of slides, each as an image. Raises DataError where slides.csv or run.json cannot be used."""
    found = load(SlidesRun, folder / RUN, REMEDY)
    path = folder / "slides.csv"
    columns = _read_table(path, ("slide", "score"), ("slide", "score", "tiles", "flagged_fraction"))
    count = len(columns["slide"])
    names = columns["slide"]
    folders = {one.name: one.folder for one in found.slides}
    limits = Thresholds(pixel_threshold=found.pixel_threshold, map_range=found.map_range)
    run = Run(Model(found.method), Scored(folder.name, medical=True, count=count), limits, found.map_range)
    read = ResultsFolder(
        folder,
        names,
        list(names),
        [""] * count,
        [""] * count,
        _numbers(columns["score"], "score", path),
        np.full(count, np.nan),
        np.full(count, -1, np.int8),
        np.full(count, -1, np.int8),
        [folders.get(name, name) for name in names],
        run,
        None,
    )
    return read, found


# -- private -----------------------------------------------------------------------------------------------------------


LARGEST_TABLE = 2**29
"""Bytes of ``scores.csv``."""


def _read_scores(path: Path) -> dict[str, list[str]]:
    return _read_table(path, ("path", "score"), COLUMNS)


def _read_table(path: Path, needed: Sequence[str], wanted: Sequence[str]) -> dict[str, list[str]]:
    columns: dict[str, list[str]] = {name: [] for name in wanted}
    if not path.exists():
        raise DataError(
            f"{path}: cannot be read (there is no such file); expected a folder that 'normalcy score' wrote."
        )
    if not is_inside(path, path.parent):
        raise DataError(f"{path}: is a link to another place; copy the table into the folder.")
    try:
        with reading_text(path, LARGEST_TABLE) as text:
            reader = csv.reader(text)
            head = next(reader, [])
            absent = [name for name in needed if name not in head]
            if absent:
                raise DataError(f"{path}: expected the columns {','.join(wanted)}, got no {' and no '.join(absent)}.")
            places = {name: head.index(name) if name in head else None for name in wanted}
            for row in reader:
                if len(row) != len(head):
                    raise DataError(
                        f"{path}: line {reader.line_num} has {len(row)} fields, expected {len(head)}; the file is damaged, "
                        "score the images again."
                    )
                for name, place in places.items():
                    columns[name].append("" if place is None else meant(row[place]))
    except csv.Error as error:
        raise DataError(f"{path}: is not a table of scores ({error}); score the images again.") from None
    if not columns[needed[0]]:
        raise DataError(f"{path}: expected at least one image, got none; score some images first.")
    return columns


def _numbers(texts: list[str], name: str, path: Path, low: float = -LARGEST, high: float = LARGEST) -> Float64:
    """NaN where nothing is written. Values that are not finite stay: they are counted in the report."""
    numbers = np.full(len(texts), np.nan)
    for k, text in enumerate(texts):
        if text:
            try:
                numbers[k] = float(text)
            except ValueError:
                raise DataError(
                    f"{path}: line {k + 2} has the {name} {text[:50]!r}, expected a number; score the images again."
                ) from None
    wrong = np.flatnonzero(np.isfinite(numbers) & ((numbers < low) | (numbers > high)))
    if len(wrong):
        k = int(wrong[0])
        raise DataError(
            f"{path}: line {k + 2} has the {name} {numbers[k]:g}, expected a number from {low:g} to {high:g}; score the images "
            "again."
        )
    return numbers


def _yes_no(texts: Iterable[str]) -> npt.NDArray[np.int8]:
    known = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "False": 0, "True": 1}
    return np.array([known.get(text.strip(), -1) for text in texts], np.int8)
