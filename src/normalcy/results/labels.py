"""Labels that reviewers gave to the images of a results folder, and where they lead back: evaluation, training, settings.

A review folder, ``RESULTS/review``, has ``labels.csv``: a row for each reviewed image with the columns of an input table and
``image``, the path of the image in ``scores.csv``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from normalcy.arrays import Array, Mask
from normalcy.data.dataset import DataSet
from normalcy.data.images import read_image, read_mask
from normalcy.data.table import LABELS
from normalcy.errors import DataError
from normalcy.files import inside, read_bytes, read_json
from normalcy.results.folder import ResultsFolder, read_results
from normalcy.results.inputs import reopen
from normalcy.results.names import NIFTI, meant, readable

__all__ = ["Label", "Labels", "open_review", "read_labels", "with_labels"]

REVIEW = "review"
"""Folder of a results folder."""
TABLE = "labels.csv"
COLUMNS = ("path", "split", "label", "type", "mask", "case", "reviewer", "time", "note", "image")
LARGEST = 2**30
"""Bytes of a table of labels."""


@dataclass(frozen=True)
class Label:
    """A row of ``labels.csv``: what is known of an image by review."""

    path: str
    """Of the file, from the folder of the table; the image's own path where it is no file."""
    image: str
    """Its path in ``scores.csv``."""
    label: int | None
    """0 normal, 1 anomalous; None: unsure, or reviewers disagree."""
    type: str = ""
    mask: Path | None = None
    """Its file."""
    case: str = ""


@dataclass(frozen=True)
class Labels:
    """A table of labels."""

    file: Path
    rows: tuple[Label, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def of_images(self, paths: Sequence[str]) -> list[Label | None]:
        """The row of each image, by its path in ``scores.csv``."""
        known = {row.image: row for row in self.rows}
        return [known.get(path) for path in paths]

    def in_results(self, read: ResultsFolder) -> dict[int, Label]:
        """The rows of images of a results folder, by the place of the image there."""
        known = {row.image: row for row in self.rows}
        return {i: known[path] for path, i in read.paths.find(known).items()}


def find_labels(place: Path | str, results: Path | None = None) -> Path:
    """The table that ``place`` means: a file, a review folder, a results folder with one, or the word ``review`` (of
    ``results``). Raises DataError where there is none."""
    if str(place) == REVIEW and results is not None:
        place = results / REVIEW
    path = Path(place).expanduser()
    for candidate in (path, path / TABLE, path / REVIEW / TABLE):
        if candidate.is_file():
            return candidate
    raise DataError(
        f"{path}: expected a table of labels or a folder with {TABLE}; review images with 'normalcy review'."
    )


def read_labels(place: Path | str, results: Path | None = None) -> Labels:
    """The labels of a review, or of any CSV table with the columns ``path`` and ``label``. Raises DataError for others."""
    file = find_labels(place, results)
    text = read_bytes(file, LARGEST).decode("utf-8-sig", "surrogateescape")
    rows = []
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        head = [name.strip().lower() for name in reader.fieldnames or []]
        if absent := [name for name in ("path", "label") if name not in head]:
            raise DataError(f"{file}: expected the columns path and label, got no {' and no '.join(absent)}.")
        reader.fieldnames = head
        for row in reader:
            cell = {name: meant((row.get(name) or "").strip()) for name in COLUMNS}
            word = cell["label"].lower()
            if word and word not in LABELS:
                raise DataError(
                    f"{file}: line {reader.line_num} has the label {cell['label'][:20]!r}, expected 0, 1 or none."
                )
            mask = file.parent / cell["mask"] if cell["mask"] else None
            image = cell["image"] or cell["path"]
            rows.append(Label(cell["path"], image, LABELS.get(word), cell["type"], mask, cell["case"]))
    except csv.Error as error:
        raise DataError(f"{file}: cannot be read as CSV ({error}); write it again.") from None
    if not rows:
        raise DataError(f"{file}: has no reviewed image yet; review some first.")
    return Labels(file, tuple(rows))


def with_labels(read: ResultsFolder, labels: Labels) -> ResultsFolder:
    """The results with the labels, types and masks of a review instead of their own; images without a decision are
    unlabelled. Raises DataError where no image is among the labels."""
    found = labels.in_results(read)
    if not found:
        raise DataError(
            f"{labels.file}: none of its {len(labels)} images is in {read.folder}; its paths must be those of scores.csv."
        )
    values = np.full(len(read), -1, np.int8)
    types = read.types.changed({i: row.type for i, row in found.items() if row.type})
    for i, row in found.items():
        values[i] = -1 if row.label is None else row.label
    masks = {i: row.mask for i, row in sorted(found.items()) if row.label == 1 and row.mask is not None}
    return replace(read, labels=values, types=types, masks_by_review=masks)


def relabelled(read: ResultsFolder) -> ResultsFolder:
    """The results with the labels that their metrics were computed with: of a review, where ``evaluate --labels`` used it."""
    used = None if read.metrics is None else read.metrics.labels
    if used is None or not inside(read.folder, used).is_file():  # a table elsewhere is not looked for
        return read
    return with_labels(read, read_labels(inside(read.folder, used)))


def without_labelled(data: DataSet, labels: Labels) -> tuple[DataSet, int]:
    """The images that no reviewer called anomalous, and how many were left out.

    An image is the same where its file is that of a row, or else its path is the row's. Raises DataError where none of the
    anomalous images is in ``data``.
    """
    anomalous = [row for row in labels.rows if row.label == 1]
    if not anomalous:
        raise DataError(f"{labels.file}: has no image labelled anomalous, so there is nothing to exclude.")
    same = _same_images(anomalous, labels.file.parent)
    kept = [i for i in range(len(data)) if not same(data, i)]
    if len(kept) == len(data):
        raise DataError(
            f"{labels.file}: none of its {len(anomalous)} anomalous images is in {data.name}; give the labels of these images."
        )
    return data.subset(kept), len(data) - len(kept)


def open_review(place: Path) -> DataSet:
    """The reviewed images of a results folder as a data set, with the labels, types and masks of the review.

    The images are opened as they were for scoring (:func:`~normalcy.results.inputs.reopen`); images whose reviewers are unsure
    or disagree are left out. Raises DataError where the images are not found.
    """
    labels = read_labels(place)
    results = labels.file.parent.parent
    read = read_results(results)
    data, reason = reopen(read)
    if data is None:
        raise DataError(
            f"{labels.file}: its images are not found ({reason}); give {labels.file} itself if they are files."
        )
    places = {readable(item.path): i for i, item in enumerate(data.items)}
    rows = [row for row in labels.rows if row.label is not None and row.image in places]
    if not rows:
        raise DataError(f"{labels.file}: none of its images has a label and is in {data.name}.")
    part = data.subset([places[row.image] for row in rows])
    items = [replace(item, label=row.label, type=row.type or None, split=None) for item, row in zip(part.items, rows)]
    masks = [row.mask for row in rows]

    def mask(i: int) -> Mask | None:
        return None if masks[i] is None else read_any_mask(masks[i])

    has_masks = any(one is not None for one in masks)
    return DataSet(
        f"review of {data.name}", items, part.read, mask if has_masks else None, data.root,
        size=part.size, stamp=part.stamp, space=part.space, scheme=data.scheme, roi=part.own_roi if part.has_rois else None,
    )  # fmt: skip


def is_review(place: Path | str) -> bool:
    """Whether ``open_review`` is for this: a review folder inside of a results folder."""
    path = Path(place).expanduser()
    try:
        return (path / TABLE).is_file() and (path.parent / "run.json").is_file()
    except OSError:
        return False


def read_any_mask(path: Path | None) -> Mask:
    """A mask of a review, (*spatial)."""
    if path is None:
        raise DataError("there is no mask.")
    if path.name.endswith(NIFTI):
        image: Array = read_image(path)
        return np.asarray((image != 0).any(axis=0))
    return read_mask(path)


def chosen_on(config_file: Path | None) -> list[str]:
    """Hashes of the images that chose the settings of a TOML file which ``normalcy select`` wrote; none for other files."""
    record = None if config_file is None else config_file.with_name("select.json")
    if record is None or not record.is_file():
        return []
    found = read_json(record, DataError).get("chosen_on", [])
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise DataError(f"{record}: chosen_on is damaged; select the settings again.")
    return [str(one) for one in found]


def shared(data: DataSet, other: DataSet) -> list[int]:
    """Positions of images of ``data`` that are in ``other`` too: by their file, else by their path."""
    files = {_real(source) for i in range(len(other)) if (source := other.source(i)) is not None}
    paths = {item.path for i, item in enumerate(other.items) if other.source(i) is None}
    found = []
    for i, item in enumerate(data.items):
        source = data.source(i)
        if (source is not None and _real(source) in files) or (source is None and item.path in paths):
            found.append(i)
    return found


# -- private -----------------------------------------------------------------------------------------------------------


def _same_images(rows: Sequence[Label], folder: Path) -> Callable[[DataSet, int], bool]:
    """Whether an image of a data set is that of one of the rows."""
    files = {_real(folder / row.path) for row in rows}
    paths = {row.image for row in rows} | {row.path for row in rows}

    def same(data: DataSet, i: int) -> bool:
        source = data.source(i)
        if source is not None and _real(source) in files:
            return True
        return readable(data.items[i].path) in paths

    return same


def _real(path: Path) -> str:
    try:
        return str(path.resolve())
    except (OSError, ValueError, RuntimeError):
        return str(path)
