"""A results folder in memory: the table of scores, what was written about the run, and where an image's files lie."""

import csv
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from normalcy.arrays import Float64
from normalcy.errors import DataError

FORMAT = 1
LATENTS = "latents.npy"
NIFTI = ".nii.gz"
MAPS = (".npy", NIFTI)
MASKS = (".png", ".npy", NIFTI)
"""Suffixes of maps and of masks."""
OLD_FOLDERS = {"uncertainty": "spread", "extra_maps": "pictures"}
"""Folders of a results folder -> their names in those of earlier versions, which are read too."""
COLUMNS = ("path", "case", "score", "p_value", "flagged", "label", "type", "split")
Json = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """The rows of scores.csv as columns, in their order, with run.json and metrics.json."""

    folder: Path
    paths: list[str]
    cases: list[str]
    types: list[str]  # "" where unknown
    scores: Float64
    p_values: Float64  # nan where not calibrated
    flagged: npt.NDArray[np.int8]  # 1, 0, -1 unknown
    labels: npt.NDArray[np.int8]  # 1 anomalous, 0 normal, -1 unknown
    run: Json
    metrics: Json | None

    def __len__(self) -> int:
        return len(self.paths)

    def extra_maps(self) -> list[str]:
        """Names of the method's extra maps."""
        folders = [self.folder / name for name in ("extra_maps", OLD_FOLDERS["extra_maps"])]
        return sorted(
            {entry.name for folder in folders if folder.is_dir() for entry in folder.iterdir() if entry.is_dir()}
        )

    def file(self, kind: str, i: int, *suffixes: str) -> Path | None:
        """``<kind>/<path of image i><suffix>``, of the first suffix that exists. None outside the folder: a path is text
        from a file, and "../../" in it must not bring foreign files into a page."""
        first, _, rest = kind.partition("/")
        old = OLD_FOLDERS.get(first)
        for here in (kind, *([f"{old}/{rest}".rstrip("/")] if old else [])):
            for suffix in suffixes:
                path = self.folder / here / named(self.paths[i], suffix)
                try:
                    if path.is_file() and path.resolve().is_relative_to((self.folder / here).resolve()):
                        return path
                except (OSError, ValueError):  # a name too long, or with a null byte
                    return None
        return None


def named(path: str, suffix: str) -> str:
    """The file that belongs to an image, below the folder of its kind; "scan.nii.gz" keeps its name for NIfTI.

    >>> named("a/01.png", ".npy"), named("a/scan.nii.gz", ".nii.gz"), named("a/scan.nii.gz[z=3]", ".nii.gz")
    ('a/01.png.npy', 'a/scan.nii.gz', 'a/scan.nii.gz[z=3].nii.gz')
    """
    return path if suffix == NIFTI and path.lower().endswith(NIFTI) else path + suffix


def read_results(folder: Path) -> Results:
    """Raises DataError when scores.csv or run.json is missing or cannot be understood."""
    run = read_json(folder / "run.json", "score the images again with 'normalcy score'")
    metrics = folder / "metrics.json"
    columns = _read_scores(folder / "scores.csv")
    return Results(
        folder,
        columns["path"],
        [case or path for case, path in zip(columns["case"], columns["path"])],
        columns["type"],
        _numbers(columns["score"], "score", folder),
        _numbers(columns["p_value"], "p_value", folder),
        _yes_no(columns["flagged"]),
        _yes_no(columns["label"]),
        run,
        read_json(metrics, "evaluate again with 'normalcy evaluate'") if metrics.exists() else None,
    )


def read_json(path: Path, remedy: str) -> Json:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); {remedy}.") from None
    except ValueError as error:
        raise DataError(f"{path}: is not valid JSON ({error}); {remedy}.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        got = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path}: expected format {FORMAT}, got {got}; {remedy} with this version of normalcy.")
    return content


def look(tree: object, *keys: str) -> Any:
    """The value under these keys of nested objects; None as soon as one is missing.

    >>> look({"a": {"b": 3}}, "a", "b"), look({"a": None}, "a", "b")
    (3, None)
    """
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def finite(value: object) -> float | None:
    """The value if it is a finite number."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good and isinstance(value, int | float) else None


def _read_scores(path: Path) -> dict[str, list[str]]:
    columns: dict[str, list[str]] = {name: [] for name in COLUMNS}
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.reader(file)
            head = next(reader, [])
            absent = [name for name in ("path", "score") if name not in head]
            if absent:
                raise DataError(f"{path}: expected the columns {','.join(COLUMNS)}, got no {' and no '.join(absent)}.")
            places = {name: head.index(name) if name in head else None for name in COLUMNS}
            for row in reader:
                if len(row) != len(head):
                    raise DataError(
                        f"{path}: line {reader.line_num} has {len(row)} fields, expected {len(head)}; the file is damaged, "
                        "score the images again."
                    )
                for name, place in places.items():
                    columns[name].append("" if place is None else row[place])
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); expected a results folder, as 'normalcy score' writes it."
        ) from None
    except csv.Error as error:
        raise DataError(f"{path}: is not a table of scores ({error}); score the images again.") from None
    if not columns["path"]:
        raise DataError(f"{path}: expected at least one image, got none; score some images first.")
    return columns


def _numbers(texts: list[str], name: str, folder: Path) -> Float64:
    """nan where nothing is written."""
    numbers = np.full(len(texts), np.nan)
    for k, text in enumerate(texts):
        if text:
            try:
                numbers[k] = float(text)
            except ValueError:
                raise DataError(
                    f"{folder / 'scores.csv'}: line {k + 2} has the {name} {text!r}, expected a number; score the images again."
                ) from None
    return numbers


def _yes_no(texts: Iterable[str]) -> npt.NDArray[np.int8]:
    known = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "False": 0, "True": 1}
    return np.array([known.get(text.strip(), -1) for text in texts], np.int8)
