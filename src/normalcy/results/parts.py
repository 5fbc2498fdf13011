"""Parquet parts of a large table of scores: ``scores/part-00000.parquet`` and so on, beside ``scores.csv``.

``scores.csv`` is complete whatever its size. Above ``ALONE`` rows the same rows are also written by columns, so that readers load
the numbers alone and texts only of the images that they show. Parts are made from the finished ``scores.csv``, before the results
folder gets its name: a killed run leaves none.
"""

from __future__ import annotations

import json
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from normalcy.arrays import Array
from normalcy.errors import DataError, NormalcyWarning
from normalcy.files import is_inside, open_regular, writing
from normalcy.results.columns import ROWS, Block, Columns, Kinds, Texts, read_columns
from normalcy.results.names import readable
from normalcy.results.schema import FORMAT, LARGEST
from normalcy.results.writer import Writer

ALONE = 1_000_000
"""Rows up to which there is ``scores.csv`` alone."""
BLOCKS = 64
"""Blocks (row groups) of a part: 1,048,576 rows."""
PARTS = "scores"
"""Their folder."""
TYPES = {"path": "string", "case": "string", "score": "double", "p_value": "double", "flagged": "int8", "label": "int8",
         "type": "string", "split": "string", "file": "string"}  # fmt: skip
"""Columns and their types; numbers that are not known are null."""
LARGEST_BLOCK = 2**28
"""Bytes of a row group when decompressed."""
KEY = b"normalcy"
"""Of the metadata of a part: ``format``, ``part``, ``rows`` of the whole table, ``bytes`` of its ``scores.csv``."""


def write_parts(writer: Writer, rows: int) -> None:
    """Write the parts of a finished ``scores.csv`` of ``rows`` rows, if these are more than ``ALONE``. Without pyarrow a warning
    says what is missing."""
    if rows <= ALONE:
        return
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        warnings.warn(
            f"scores.csv has {rows:,} rows and no Parquet parts, which need pyarrow: evaluate, report and review will need more "
            'time and memory. pip install "normalcy[parquet]", and score or merge again.',
            NormalcyWarning,
            stacklevel=2,
        )
        return
    path = writer.path("scores.csv")
    schema = pyarrow.schema(list(TYPES.items()))
    blocks = read_columns(path)
    for part in range(-(-rows // (ROWS * BLOCKS))):
        about = {"format": FORMAT, "part": part, "rows": rows, "bytes": path.stat().st_size}
        described = schema.with_metadata({KEY: json.dumps(about).encode()})
        with (
            writing(writer.path(PARTS, _name(part))) as file,
            pyarrow.parquet.ParquetWriter(
                file, described, compression="zstd", use_dictionary=["type", "split"], write_statistics=False
            ) as table,
        ):
            for _, block in zip(range(BLOCKS), blocks):
                table.write_table(pyarrow.Table.from_arrays(_arrays(block), schema=described), row_group_size=ROWS)


def open_parts(folder: Path) -> Columns | None:
    """The columns of a results folder by its parts: numbers in memory, texts read when they are asked for. None where there are
    no parts, or pyarrow is missing. Raises DataError for parts that are damaged or not those of ``scores.csv``."""
    if not (folder / PARTS / _name(0)).exists():
        return None
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        return None
    return _Parts(folder).columns()


def read_rows_of(folder: Path) -> Columns:
    """The rows of scores.csv, from its Parquet parts where there are some and pyarrow is installed."""
    path = folder / "scores.csv"
    parts = open_parts(folder) if path.is_file() and is_inside(path, folder) else None
    return parts or Columns.joined(list(read_columns(path)))


# -- private -----------------------------------------------------------------------------------------------------------


def _name(part: int) -> str:
    return f"part-{part:05d}.parquet"


def _arrays(block: Columns) -> list[Any]:
    import pyarrow

    def texts(column: Texts) -> Any:
        text, ends = next(column.blocks())
        buffers = [None, pyarrow.py_buffer(ends.astype(np.int32)), pyarrow.py_buffer(text)]
        found = pyarrow.Array.from_buffers(pyarrow.string(), len(column), buffers)
        try:
            found.validate(full=True)
        except pyarrow.ArrowInvalid:  # bytes that are no UTF-8
            found = pyarrow.array([readable(one) for one in column], "string")
        return found

    def kinds(column: Kinds) -> Any:
        names = pyarrow.array([readable(name) for name in column.names], "string")
        return pyarrow.DictionaryArray.from_arrays(column.codes, names).cast("string")

    def known(values: Array, unknown: Array) -> Any:
        return pyarrow.array(values, mask=unknown)

    return [
        texts(block.paths),
        texts(block.cases),
        pyarrow.array(block.scores),
        known(block.p_values, np.isnan(block.p_values)),
        known(block.flagged, block.flagged < 0),
        known(block.labels, block.labels < 0),
        kinds(block.types),
        kinds(block.splits),
        texts(block.files),
    ]


class _Parts:
    """The parts of a folder, opened once; read from any number of threads, one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / PARTS
        self.csv = folder / "scores.csv"
        self._lock = threading.Lock()
        self._files: list[Any] = []
        self._groups: list[tuple[int, int]] = []
        """Of each block: its part, and its row group there."""
        self.sizes: list[int] = []
        self._rows = self._open(0)
        while sum(self.sizes) < self._rows and self.sizes[-1]:
            self._open(len(self._files))
        if sum(self.sizes) != self._rows:
            raise self._fault(len(self._files) - 1, f"the parts have {sum(self.sizes):,} rows, not {self._rows:,}")

    def columns(self) -> Columns:
        numbers = {
            name: np.full(self._rows, -1 if kind == "i1" else np.nan, kind)
            for name, kind in (("score", "f8"), ("p_value", "f8"), ("flagged", "i1"), ("label", "i1"))
        }
        kinds: dict[str, list[Kinds]] = {"type": [], "split": []}
        start = 0
        for k, size in enumerate(self.sizes):
            table = self._read(k, [*numbers, *kinds])
            for name, whole in numbers.items():
                values, known = _values(table.column(name).combine_chunks(), whole.dtype)
                whole[start : start + size][known] = values[known]
            for name, parts in kinds.items():
                parts.append(_kinds(table.column(name)))
            start += size
        self._check(numbers)
        return Columns(
            self._texts("path"), self._texts("case"), Kinds.joined(kinds["type"]), Kinds.joined(kinds["split"]),
            numbers["score"], numbers["p_value"], numbers["flagged"], numbers["label"], self._texts("file"),
        )  # fmt: skip

    def _texts(self, name: str) -> Texts:
        def load(k: int) -> Block:
            import pyarrow

            array = self._read(k, [name]).column(name).combine_chunks().cast(pyarrow.large_string())
            ends = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
            text = array.buffers()[2]
            return Block(b"" if text is None else text[int(ends[0]) : int(ends[-1])].to_pybytes(), ends - ends[0])

        return Texts(self.sizes, load)

    def _open(self, part: int) -> int:
        """Add a part; returns the rows of all."""
        import pyarrow.parquet

        path = self.folder / _name(part)
        if not path.exists():
            raise self._fault(part, "is missing")
        if not is_inside(path, self.folder.parent):
            raise self._fault(part, "is a link to another place")
        try:
            file = pyarrow.parquet.ParquetFile(open_regular(path))
            about = json.loads(file.schema_arrow.metadata[KEY])
            known = {name: int(about[name]) for name in ("format", "part", "rows", "bytes")}
            groups = [file.metadata.row_group(k) for k in range(file.metadata.num_row_groups)]
            sizes = [(group.num_rows, group.total_byte_size) for group in groups]
        except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
            if isinstance(error, DataError):
                raise
            raise self._fault(part, "is damaged or cut off") from None
        if known["format"] != FORMAT or known["part"] != part or known["bytes"] != self.csv.stat().st_size:
            raise self._fault(part, f"does not belong to this {self.csv.name}")
        if any(not 0 < rows <= ROWS or size > LARGEST_BLOCK for rows, size in sizes):
            raise self._fault(part, f"has row groups of more than {ROWS:,} rows or {LARGEST_BLOCK:,} bytes")
        self._files.append(file)
        self._groups += [(part, k) for k in range(len(sizes))]
        self.sizes += [rows for rows, _ in sizes] or [0]
        return known["rows"]

    def _read(self, k: int, names: list[str]) -> Any:
        import pyarrow

        part, group = self._groups[k]
        try:
            with self._lock:
                table = self._files[part].read_row_group(group, columns=names, use_threads=False)
            if table.num_rows != self.sizes[k] or any(
                table.schema.field(name).type != pyarrow.type_for_alias(TYPES[name])
                or (TYPES[name] == "string" and table.column(name).null_count)
                for name in names
            ):
                raise ValueError
        except (OSError, ValueError, KeyError, pyarrow.ArrowException):
            raise self._fault(part, "is damaged or cut off") from None
        return table

    def _check(self, numbers: dict[str, Array]) -> None:
        for name, low, high in (("score", -LARGEST, LARGEST), ("p_value", 0.0, 1.0)):
            values = numbers[name]
            wrong = np.flatnonzero(np.isfinite(values) & ((values < low) | (values > high)))
            if len(wrong):
                k = int(np.searchsorted(np.cumsum(self.sizes), wrong[0], "right"))
                raise self._fault(self._groups[k][0], f"has a {name} outside {low:g} to {high:g}")

    def _fault(self, part: int, reason: str) -> DataError:
        return DataError(
            f"{self.folder / _name(part)}: {reason}; remove the folder {self.folder} to read the same rows from "
            f"{self.csv.name}."
        )


def _values(array: Any, dtype: Any) -> tuple[Array, Array]:
    """The values of an Arrow array, and which are not null. (Its own ``to_numpy`` imports pandas, which takes seconds.)"""
    valid, values = array.buffers()
    rows = slice(array.offset, array.offset + len(array))
    bits = (
        np.ones(len(array), bool)
        if valid is None
        else np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")[rows]
    )
    return np.frombuffer(values, dtype)[rows], bits.astype(bool)


def _kinds(column: Any) -> Kinds:
    found = column.combine_chunks().dictionary_encode()
    return Kinds(found.dictionary.to_pylist(), _values(found.indices, np.int32)[0])
