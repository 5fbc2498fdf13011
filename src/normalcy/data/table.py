"""Tables that name images, with what is known of each."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from normalcy.data.dataset import SPLITS, DataSet, Item, case_of
from normalcy.data.dicom import cases_in
from normalcy.data.formats import LIMITS, Limits
from normalcy.data.stores import Files, Folder, Named, SeriesPart, files_of
from normalcy.data.volumes import split_name
from normalcy.errors import DataError
from normalcy.files import open_regular, read_bytes

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".parquet"})
COLUMNS = ("path", "split", "label", "mask", "case", "type")
LABELS = {
    **dict.fromkeys(("0", "0.0", "false", "normal", "good"), 0),
    **dict.fromkeys(("1", "1.0", "true", "anomalous", "anomaly"), 1),
}

_LONGEST = 4096
"""Characters of a cell: the longest path."""

Row = dict[str, Any]


def open_table(path: Path, limits: Limits = LIMITS) -> DataSet:
    """A CSV (comma, semicolon or tab) or Parquet table with a row for each image.

    ``path``, and ``mask`` where there is one, are relative to the table's folder. Optional: ``split`` (train, test),
    ``label`` (0, normal, good; 1, anomalous, anomaly), ``case``, ``type``; an empty cell is unknown. Other columns are
    passed over. The case of a DICOM series is its patient unless the table names one.
    """
    header, rows = (_parquet if path.suffix.lower() == ".parquet" else _csv)(path, limits)
    _check_header(path, header)
    items: dict[str, Item] = {}
    masks: list[str | None] = []
    own_case: set[str] = set()
    for number, row in enumerate(rows, start=1):
        if number > limits.rows:
            raise DataError(f"{path}: has more than {limits.rows:,} rows, the limit; divide the table.")
        cell = {column: _text(row.get(column)) for column in COLUMNS}
        long = next((column for column in COLUMNS if len(cell[column]) > _LONGEST), None)
        if long is not None:
            raise DataError(
                f"{path}, image {number}: has a {long} of {len(cell[long]):,} characters, at most {_LONGEST:,} are read."
            )
        here, file = f"{path}, image {number}", Path(cell["path"]).as_posix()
        if not cell["path"]:
            raise DataError(f"{here}: expected a path, got an empty cell; fill it or remove the row.")
        if file in items:
            raise DataError(f"{here}: {file} is named by an earlier row too; name each image once.")
        label, split = cell["label"].lower(), cell["split"].lower()
        if label and label not in LABELS:
            raise DataError(
                f"{here}: expected the label 0, 1, normal, good, anomalous or anomaly, got {cell['label'][:50]!r}."
            )
        if split and split not in SPLITS:
            raise DataError(f"{here}: expected the split train, test or nothing, got {cell['split'][:50]!r}.")
        items[file] = Item(file, cell["case"] or case_of(file), LABELS.get(label), cell["type"] or None, split or None)
        masks.append(cell["mask"] or None)
        if cell["case"]:
            own_case.add(file)
    if not items:
        raise DataError(f"{path}: expected a row for each image, got none.")
    folder = Folder(path.parent, limits)
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


def files_named(path: Path, limits: Limits = LIMITS) -> list[str]:
    """The files that a table names, each once: images and masks; names that lead out of its folder are left out."""
    _, rows = (_parquet if path.suffix.lower() == ".parquet" else _csv)(path, limits)
    names = (split_name(_text(row.get(column)))[0] for row in rows for column in ("path", "mask"))
    safe = (name for name in dict.fromkeys(names) if name and len(name) <= _LONGEST)
    return [name for name in safe if ".." not in name.split("/") and not name.startswith("/") and "://" not in name]


def _first(image: Named) -> str | None:
    """The first file of a DICOM series, or of a part of one."""
    files = image.files if isinstance(image, SeriesPart) else image
    return files[0] if isinstance(files, tuple) else None


def _csv(path: Path, limits: Limits) -> tuple[list[str], Iterable[Row]]:
    try:
        text = read_bytes(path, limits.file_bytes).decode("utf-8-sig")
        first = text.split("\n", 1)[0]
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
        header = _lower(reader.fieldnames or [])
        reader.fieldnames = header
        return header, _csv_rows(path, reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise _not_csv(path, error) from None


def _csv_rows(path: Path, reader: Iterable[Row]) -> Iterable[Row]:
    try:
        yield from reader
    except csv.Error as error:  # a cell of more than 131,072 characters, for example
        raise _not_csv(path, error) from None


def _not_csv(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read as CSV in UTF-8 ({error}); save it again as CSV UTF-8.")


def _parquet(path: Path, limits: Limits) -> tuple[list[str], Iterable[Row]]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError(f'{path}: reading Parquet needs pyarrow; pip install "normalcy[parquet]".') from None
    with open_regular(path) as file:
        try:
            table = pyarrow.parquet.ParquetFile(file)
            names, rows = list(table.schema_arrow.names), table.metadata.num_rows
            header = _lower(names)
            wanted = [name for name in names if name.strip().lower() in COLUMNS]
            # not of columns: pyarrow ends the process where statistics of one are damaged
            size = sum(table.metadata.row_group(k).total_byte_size for k in range(table.metadata.num_row_groups))
            if rows > limits.rows or size > limits.decoded_bytes:
                raise DataError(
                    f"{path}: has {rows:,} rows and {size:,} bytes when decompressed, at most {limits.rows:,} and "
                    f"{limits.decoded_bytes:,} are read; divide the table."
                )
            found: list[Row] = []
            if len(set(header)) == len(header):  # else refused by what is said of the header
                for batch in table.iter_batches(1024, columns=wanted):
                    for row in batch.to_pylist():
                        found.append({name.strip().lower(): _cell(path, value) for name, value in row.items()})
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: cannot be read as Parquet (damaged or cut off); write the table again.") from None
    return header, found


def _cell(path: Path, value: Any) -> Any:
    """As in CSV, where the reader has this limit: a dictionary can repeat a long text for nothing."""
    if isinstance(value, str | bytes | list | dict) and len(value) > 2**17:
        raise DataError(f"{path}: has a cell of {len(value):,} characters, at most {2**17:,} are read.")
    return value


def _check_header(path: Path, header: list[str]) -> None:
    twice = [column for column in COLUMNS if header.count(column) > 1]
    if twice:
        raise DataError(f"{path}: the column {twice[0]!r} is there more than once; keep one.")
    unknown = [column for column in header if column not in COLUMNS and len(column) < 50]
    for column in COLUMNS:
        near = difflib.get_close_matches(column, unknown, n=1, cutoff=0.85)
        if column not in header and near:  # "labels" passed over in silence would be a bad surprise
            raise DataError(f"{path}: the column {near[0]!r} is close to {column!r}; rename it to be one or the other.")
    if "path" not in header:
        got = ", ".join(" ".join(name[:50].split()) for name in header[:20]) or "an empty table"
        raise DataError(f"{path}: expected a column 'path' and perhaps {', '.join(COLUMNS[1:])}, got {got}.")


def _lower(names: Iterable[str]) -> list[str]:
    return [name.strip().lower() for name in names]


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value).strip()  # NaN is not itself
