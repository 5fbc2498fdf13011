"""Tables that name images, with what is known of each."""

import csv
import difflib
import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from normalcy.data.dataset import SPLITS, DataSet, Item, case_of
from normalcy.data.dicom import cases_in
from normalcy.data.stores import Files, Folder, Named, SeriesPart, files_of
from normalcy.errors import DataError
from normalcy.files import read_bytes

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".parquet"})
COLUMNS = ("path", "split", "label", "mask", "case", "type")
LABELS = {
    **dict.fromkeys(("0", "0.0", "false", "normal", "good"), 0),
    **dict.fromkeys(("1", "1.0", "true", "anomalous", "anomaly"), 1),
}

Row = dict[str, Any]


def open_table(path: Path) -> DataSet:
    """A CSV (comma, semicolon or tab) or Parquet table with a row for each image.

    ``path``, and ``mask`` where there is one, are relative to the table's folder. Optional: ``split`` (train, test),
    ``label`` (0, normal, good; 1, anomalous, anomaly), ``case``, ``type``; an empty cell is unknown. Other columns are
    passed over. The case of a DICOM series is its patient unless the table names one.
    """
    header, rows = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    _check_header(path, header)
    items: dict[str, Item] = {}
    masks: list[str | None] = []
    own_case: set[str] = set()
    for number, row in enumerate(rows, start=1):
        cell = {column: _text(row.get(column)) for column in COLUMNS}
        here, file = f"{path}, image {number}", Path(cell["path"]).as_posix()
        if not cell["path"]:
            raise DataError(f"{here}: expected a path, got an empty cell; fill it or remove the row.")
        if file in items:
            raise DataError(f"{here}: {file} is named by an earlier row too; name each image once.")
        label, split = cell["label"].lower(), cell["split"].lower()
        if label and label not in LABELS:
            raise DataError(
                f"{here}: expected the label 0, 1, normal, good, anomalous or anomaly, got {cell['label']!r}."
            )
        if split and split not in SPLITS:
            raise DataError(f"{here}: expected the split train, test or nothing, got {cell['split']!r}.")
        items[file] = Item(file, cell["case"] or case_of(file), LABELS.get(label), cell["type"] or None, split or None)
        masks.append(cell["mask"] or None)
        if cell["case"]:
            own_case.add(file)
    if not items:
        raise DataError(f"{path}: expected a row for each image, got none.")
    folder = Folder(path.parent)
    images = [files_of(folder, file) for file in items]
    files = Files(folder, images, masks if "mask" in header else None)
    # a series is one patient's: its first file tells whose
    first = {file: one for file, image in zip(items, images) if (one := _first(image)) is not None}
    patients = cases_in(sorted(set(first.values())), folder.bytes) if first else {}
    named = [
        item if file in own_case else replace(item, case=patients.get(first.get(file, ""), item.case))
        for file, item in items.items()
    ]
    return files.data_set(path.stem, named)


def _first(image: Named) -> str | None:
    """The first file of a DICOM series, or of a part of one."""
    files = image.files if isinstance(image, SeriesPart) else image
    return files[0] if isinstance(files, tuple) else None


def _csv(path: Path) -> tuple[list[str], Iterable[Row]]:
    try:
        text = read_bytes(path).decode("utf-8-sig")
        first = text.split("\n", 1)[0]
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
        header = _lower(reader.fieldnames or [])
        reader.fieldnames = header
        return header, list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV in UTF-8 ({error}); save it again as CSV UTF-8.") from None


def _parquet(path: Path) -> tuple[list[str], Iterable[Row]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f'{path}: reading Parquet needs pyarrow; pip install "normalcy[parquet]".') from None
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).split("\n")[0]
        raise DataError(f"{path}: cannot be read as Parquet ({reason}); write the table again.") from None
    table = table.rename_columns(_lower(table.column_names))
    header = list(table.column_names)
    if len(set(header)) == len(header):
        table = table.select([column for column in header if column in COLUMNS])
    return header, table.to_pylist()


def _check_header(path: Path, header: list[str]) -> None:
    twice = [column for column in COLUMNS if header.count(column) > 1]
    if twice:
        raise DataError(f"{path}: the column {twice[0]!r} is there more than once; keep one.")
    unknown = [column for column in header if column not in COLUMNS]
    for column in COLUMNS:
        near = difflib.get_close_matches(column, unknown, n=1, cutoff=0.85)
        if column not in header and near:  # "labels" passed over in silence would be a bad surprise
            raise DataError(f"{path}: the column {near[0]!r} is close to {column!r}; rename it to be one or the other.")
    if "path" not in header:
        got = ", ".join(header) or "an empty table"
        raise DataError(f"{path}: expected a column 'path' and perhaps {', '.join(COLUMNS[1:])}, got {got}.")


def _lower(names: Iterable[str]) -> list[str]:
    return [name.strip().lower() for name in names]


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value).strip()  # NaN is not itself
