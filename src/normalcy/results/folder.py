"""A results folder in memory: the table of scores, how they were made, the metrics, and where an image's files lie."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from normalcy.arrays import Float64
from normalcy.files import is_inside
from normalcy.results.columns import LARGEST_TABLE as LARGEST_TABLE
from normalcy.results.columns import Kinds, Texts, as_numbers, read_rows
from normalcy.results.metrics import METRICS, Metrics, read_metrics
from normalcy.results.names import LATENTS as LATENTS
from normalcy.results.names import NIFTI, named
from normalcy.results.parts import read_rows_of
from normalcy.results.run import REMEDY, RUN, Model, Run, Scored, SlidesRun, Thresholds, read_run
from normalcy.results.schema import load

__all__ = ["ResultsFolder", "read_results"]

MAPS = (".npy", NIFTI)
MASKS = (".png", ".npy", NIFTI)
"""Suffixes of maps and of masks."""
OLD_FOLDERS = {"uncertainty": "spread", "extra_maps": "pictures"}
"""Folders of a results folder -> their names in those of earlier versions, which are read too."""


@dataclass(frozen=True)
class ResultsFolder:
    """The rows of scores.csv as columns, in their order, with run.json and metrics.json.

    Texts are sequences of ``str`` that hold no object for each row; see :mod:`normalcy.results.columns`.
    """

    folder: Path
    paths: Texts
    cases: Texts
    types: Kinds
    splits: Kinds
    """Empty where unknown."""
    scores: Float64
    p_values: Float64
    """NaN where not calibrated."""
    flagged: npt.NDArray[np.int8]
    """1, 0, or -1 unknown."""
    labels: npt.NDArray[np.int8]
    """1 anomalous, 0 normal, -1 unknown."""
    files: Texts
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
    """Raises DataError when scores.csv, its Parquet parts, run.json or metrics.json is missing or cannot be used."""
    run = read_run(folder)
    rows = read_rows_of(folder)
    metrics = read_metrics(folder) if (folder / METRICS).exists() else None
    return ResultsFolder(folder, **vars(rows), run=run, metrics=metrics)


def read_slides(folder: Path) -> tuple[ResultsFolder, SlidesRun]:
    """A results folder of slides, each as an image. Raises DataError where slides.csv or run.json cannot be used."""
    found = load(SlidesRun, folder / RUN, REMEDY)
    path = folder / "slides.csv"
    columns = ("slide", "score", "tiles", "flagged_fraction")
    [rows] = read_rows(path, ("slide", "score"), columns, rows=2**24)
    names, count = rows["slide"], len(rows["slide"])
    folders = {one.name: one.folder for one in found.slides}
    limits = Thresholds(pixel_threshold=found.pixel_threshold, map_range=found.map_range)
    run = Run(Model(found.method), Scored(folder.name, medical=True, count=count), limits, found.map_range)
    unknown = np.full(count, -1, np.int8)
    read = ResultsFolder(
        folder,
        paths=Texts.of(names),
        cases=Texts.of(names),
        types=Kinds.of([""] * count),
        splits=Kinds.of([""] * count),
        scores=as_numbers(rows["score"], "score", path),
        p_values=np.full(count, np.nan),
        flagged=unknown,
        labels=unknown,
        files=Texts.of([folders.get(name, name) for name in names]),
        run=run,
        metrics=None,
    )
    return read, found
