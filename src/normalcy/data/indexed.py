"""Layouts whose splits or labels stand in an index file: VisA, Real-IAD and the sets of MedIAnomaly."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from normalcy.data.dataset import DataSet, Item, Origin
from normalcy.data.formats import stem
from normalcy.data.layouts import Layout
from normalcy.data.stores import Files, Folder
from normalcy.errors import DataError
from normalcy.files import parse_json, read_bytes

LARGEST = 2**28
"""Bytes of an index file."""
OPTIONS: dict[str, tuple[str, ...]] = {"Real-IAD": ("json", "view")}
"""Layout -> options of its reader."""


@dataclass(frozen=True)
class Source:
    """A folder, and what was seen in it."""

    folder: Folder
    images: tuple[str, ...]
    """Images and masks below it."""
    ignored: Mapping[str, str]
    options: Mapping[str, str]

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def name(self) -> str:
        return self.path.resolve().name


@dataclass(frozen=True)
class Row:
    """An image in an index."""

    file: str
    split: str | None
    label: int
    type: str
    mask: str | None = None
    case: str = ""


def open_indexed(layout: Layout, source: Source) -> DataSet | None:
    """None where the index is not there, or is something else, and the layout can be read without it."""
    return _READERS[layout.name](layout, source) if layout.name in _READERS else None


# -- private -----------------------------------------------------------------------------------------------------------


def _data_set(layout: Layout, source: Source, index: Path, rows: Sequence[Row], notes: Sequence[str] = ()) -> DataSet:
    items: dict[str, Item] = {}
    for row in rows:
        for file in filter(None, (row.file, row.mask)):
            if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts or "\\" in file or "\0" in file:
                raise DataError(f"{index}: {file} leads out of {source.path}; correct the index.")
        if row.file in items:
            raise DataError(f"{index}: {row.file} is named more than once; name each image once.")
        items[row.file] = Item(row.file, row.case or row.file, row.label, row.type, row.split)
    if not any(item.split == "train" for item in items.values()):
        raise DataError(f"{index}: expected training images of {source.name}, got none.")
    masks = [row.mask for row in rows]
    used = {*items, *filter(None, masks)}
    ignored = dict(source.ignored)
    ignored.pop(index.name, None)
    ignored |= {file: f"not named by {index.name}" for file in source.images if file not in used}
    files = Files(source.folder, list(items), masks if any(masks) else None)
    return files.data_set(source.name, list(items.values()), ignored, Origin(layout.name, tuple(notes)))


def _json(path: Path) -> Any:
    try:
        return parse_json(read_bytes(path, LARGEST))
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: is not valid JSON ({error}); fetch it again.") from None


def _csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file with these columns."""
    try:
        reader = csv.DictReader(io.StringIO(read_bytes(path, LARGEST).decode("utf-8-sig"), newline=""))
        rows = [{key: value or "" for key, value in row.items() if key is not None} for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV in UTF-8 ({error}); fetch it again.") from None
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        got = ", ".join(reader.fieldnames or ())[:200] or "an empty file"
        raise DataError(f"{path}: expected the columns {', '.join(columns)}, got {got}; fetch it again.")
    return rows


def _visa(layout: Layout, source: Source) -> DataSet | None:
    """``split_csv/1cls.csv`` beside the folder of an object, from where its paths start. Types come from ``image_anno.csv``."""
    name = source.name
    index = source.path.resolve().parent / "split_csv" / "1cls.csv"
    if not index.is_file():
        return None
    table = _csv(index, ("object", "split", "label", "image", "mask"))
    types: dict[str, str] = {}
    if source.folder.has("image_anno.csv"):
        types = {row["image"]: row["label"] for row in _csv(source.path / "image_anno.csv", ("image", "label"))}
    rows = []
    for row in table:
        if row["object"] != name:
            continue
        if row["split"] not in ("train", "test") or row["label"] not in ("normal", "anomaly"):
            raise DataError(
                f"{index}: expected the split train or test and the label normal or anomaly, got {row['split'][:30]!r} and "
                f"{row['label'][:30]!r}; fetch it again."
            )
        label = int(row["label"] == "anomaly")
        image, mask = (_below(index, name, row[column]) for column in ("image", "mask"))
        kind = types.get(row["image"], "") or "anomaly"
        rows.append(Row(image, row["split"], label, kind if label else "good", mask or None))
    if not rows:
        objects = sorted({row["object"] for row in table})
        raise DataError(f"{index}: has no images of {name}; its objects are {', '.join(objects)[:300]}.")
    return _data_set(layout, source, index, rows)


def _below(index: Path, name: str, file: str) -> str:
    if file and not file.startswith(f"{name}/"):
        raise DataError(f"{index}: {file[:100]} leads out of {name}; correct the index.")
    return file[len(name) + 1 :]


def _real_iad(layout: Layout, source: Source) -> DataSet:
    """``realiad_jsons/<json>/<category>.json`` beside the folder of a resolution. The views of a sample are a case."""
    name, jsons = source.name, source.options.get("json", "realiad_jsons")
    above = source.path.resolve().parent.parent / "realiad_jsons"
    places = [above / jsons / f"{name}.json", above / f"{name}.json"]
    index = next((place for place in places if place.is_file()), None)
    if index is None:
        raise DataError(
            f"{source.path}: looks like Real-IAD, whose splits and labels stand in {places[0]}, which is missing; get "
            "realiad_jsons, too. Other folders OK and NG without folders S0001 are read as they are."
        )
    content = _json(index)
    view = source.options.get("view", "")
    rows: list[Row] = []
    try:
        normal = content.get("meta", {}).get("normal_class", "OK")
        for split in ("train", "test"):
            for one in content[split]:
                file, kind = str(one["image_path"]), str(one["anomaly_class"])
                if view and f"_{view}_" not in Path(file).name:
                    continue
                label = int(kind != normal)
                mask = str(one["mask_path"]) if one.get("mask_path") and label else None
                case = file.rpartition("/")[0]
                # with label noise (realiad_jsons_fuiad_*) some training images are anomalous
                rows.append(Row(file, split, label, kind if label else "good", mask, case))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{index}: expected train and test with image_path, anomaly_class and mask_path ({type(error).__name__}: {error}); "
            "fetch it again."
        ) from None
    if view and not rows:
        raise DataError(f"{index}: has no images of the view {view!r}; views are C1 to C5.")
    return _data_set(layout, source, index, rows, [f"splits and labels of {jsons}"])


def _medianomaly(layout: Layout, source: Source) -> DataSet | None:
    """``data.json``: ``{"train": {"0": [...]}, "test": {"0": [...], "1": [...]}}``, names of files in ``images``."""
    index = source.path / "data.json"
    content = _json(index)
    if not (isinstance(content, dict) and all(isinstance(content.get(split), dict) for split in ("train", "test"))):
        return None
    rows, notes = [], []
    for split in ("train", "test"):
        for word, label in (("0", 0), ("1", 1)):
            for file in content[split].get(word, []):
                rows.append(Row(f"images/{file}", split, label, "anomaly" if label else "good"))
    unlabelled = content["train"].get("unlabeled", {})
    if isinstance(unlabelled, dict) and (count := sum(len(files) for files in unlabelled.values())):
        notes.append(f"{count} images of the unlabelled training set are left out")
    return _data_set(layout, source, index, rows, notes)


def _isic(layout: Layout, source: Source) -> DataSet:
    """Nevi (column NV) are normal; other training images belong to no split."""
    rows = []
    for split, word in (("train", "Training"), ("test", "Test")):
        index = source.path / f"ISIC2018_Task3_{word}_GroundTruth" / f"ISIC2018_Task3_{word}_GroundTruth.csv"
        if not index.is_file():
            raise DataError(
                f"{source.path}: looks like ISIC2018_Task3, but {index} with the labels is missing; add it."
            )
        for row in _csv(index, ("image", "NV")):
            kind = next((name for name, value in row.items() if name != "image" and value in ("1", "1.0")), "anomaly")
            label = int(kind != "NV")
            of_split = None if label and split == "train" else split
            rows.append(
                Row(f"ISIC2018_Task3_{word}_Input/{row['image']}.jpg", of_split, label, kind if label else "good")
            )
    # names in the index have no suffix
    there = {stem(file): file for file in source.images}
    rows = [Row(there.get(stem(row.file), row.file), row.split, row.label, row.type) for row in rows]
    return _data_set(layout, source, index, rows)


_READERS: dict[str, Callable[[Layout, Source], DataSet | None]] = {
    "VisA": _visa,
    "Real-IAD": _real_iad,
    "MedIAnomaly": _medianomaly,
    "MedIAnomaly (ISIC2018_Task3)": _isic,
}
