"""The columns of a table of images without a Python object for each row: numbers as arrays, texts as blocks of bytes."""

from __future__ import annotations

import csv
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from normalcy.arrays import Array, Float64, Indices, Mask
from normalcy.errors import DataError
from normalcy.files import is_inside, reading_text
from normalcy.results.names import meant
from normalcy.results.run import COLUMNS
from normalcy.results.schema import LARGEST

ROWS = 2**14
"""Rows of a block."""
LARGEST_TABLE = 2**32
"""Bytes of ``scores.csv``; in memory its columns take no more."""
LOADED, ASKED = 8, 4096
"""Blocks, and single texts, of a column that are kept after they were loaded from a file."""


class Block(NamedTuple):
    """Some texts of a column."""

    text: bytes
    """All of them, one after the other, as UTF-8; bytes of names that are no UTF-8 as they are."""
    ends: Indices
    """(n + 1,) places in ``text``: text i is from ``ends[i]`` to ``ends[i + 1]``."""

    @classmethod
    def of(cls, texts: Sequence[str]) -> Block:
        joined = "".join(texts)
        if joined.isascii():
            text, sizes = joined.encode(), map(len, texts)
        else:
            encoded = [one.encode("utf-8", "surrogateescape") for one in texts]
            text, sizes = b"".join(encoded), map(len, encoded)
        ends = np.zeros(len(texts) + 1, np.intp)
        np.cumsum(np.fromiter(sizes, np.intp, len(texts)), out=ends[1:])
        return cls(text, ends)

    def texts(self, lower: bool = False) -> list[str]:
        """All of them; ``lower`` for comparing without case."""
        ends = self.ends.tolist()
        if self.text.isascii():
            text = (self.text.lower() if lower else self.text).decode()
            return [text[a:b] for a, b in pairwise(ends)]
        found = [self.text[a:b].decode("utf-8", "surrogateescape") for a, b in pairwise(ends)]
        return [one.lower() for one in found] if lower else found


class Texts(Sequence[str]):
    """A column of texts, in blocks that ``load`` gives when they are asked for; from any number of threads.

    >>> Texts.of(["a.png", "b.png"])[1]
    'b.png'
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, sizes: Sequence[int], load: Callable[[int], Block]) -> None:
        self._starts = np.cumsum([0, *sizes])
        self._load = load
        self._kept: OrderedDict[int, Block] = OrderedDict()
        self._asked: OrderedDict[int, str] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        return cls.held([Block.of(texts[k : k + ROWS]) for k in range(0, len(texts), ROWS)])

    @classmethod
    def held(cls, blocks: Sequence[Block]) -> Texts:
        return cls([len(block.ends) - 1 for block in blocks], blocks.__getitem__)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = int(i) + (len(self) if i < 0 else 0)
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        with self._lock:
            if (known := self._asked.get(i)) is None:
                k = int(np.searchsorted(self._starts, i, "right")) - 1
                text, ends = self._block(k)
                at = i - self._starts[k]
                known = self._asked[i] = text[ends[at] : ends[at + 1]].decode("utf-8", "surrogateescape")
                if len(self._asked) > ASKED:
                    self._asked.popitem(last=False)
        return known

    def __iter__(self) -> Iterator[str]:
        for block in self.blocks():
            yield from block.texts()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Texts) and np.array_equal(self._starts, other._starts):
            pairs = zip(self.blocks(), other.blocks())
            return all(a.text == b.text and np.array_equal(a.ends, b.ends) for a, b in pairs)
        if isinstance(other, Sequence) and not isinstance(other, str | bytes):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other))
        return NotImplemented

    def blocks(self) -> Iterator[Block]:
        """In order; those that a file holds are not kept."""
        for k in range(len(self._starts) - 1):
            yield self._kept.get(k) or self._load(k)

    def find(self, wanted: Iterable[str]) -> dict[str, int]:
        """The places of those texts that are in the column; of equal ones the last."""
        names, found = set(wanted), dict[str, int]()
        if names:
            for start, block in zip(self._starts.tolist(), self.blocks()):
                found |= {text: start + at for at, text in enumerate(block.texts()) if text in names}
        return found

    def containing(self, words: Sequence[str]) -> Mask:
        """(N,) whether a text has all these words, given in lower case."""
        found = np.zeros(len(self), bool)
        for start, block in zip(self._starts.tolist(), self.blocks()):
            if block.text.isascii():  # most blocks have none with a rare word
                whole = block.text.lower().decode()
                if not all(word in whole for word in words):
                    continue
            texts = block.texts(lower=True)
            hits = [np.fromiter((word in text for text in texts), bool, len(texts)) for word in words]
            found[start : start + len(texts)] = np.logical_and.reduce(hits) if hits else True
        return found

    def numbers(self) -> Indices:
        """(N,) a number for each different text, from 0 by its first row; compared as :meth:`hashes`."""
        return by_first(self.hashes())

    def places_in(self, other: Texts) -> Indices:
        """(N,) where each text is in ``other``, whose texts are all different; -1 where it is not. Compared as :meth:`hashes`."""
        if self is other or self == other:
            return np.arange(len(self))
        own, theirs = self.hashes(), other.hashes()
        order = np.argsort(theirs)
        at = order[np.minimum(np.searchsorted(theirs, own, sorter=order), len(order) - 1)]
        return np.where(theirs[at] == own, at, -1)

    def hashes(self) -> npt.NDArray[np.int64]:
        """(N,) 64 bits of Python's keyed hash of each text: of ten million different ones, two have the same with a probability
        of 3e-6."""
        found = np.empty(len(self), np.int64)
        for start, block in zip(self._starts.tolist(), self.blocks()):
            texts = block.texts()
            found[start : start + len(texts)] = np.fromiter(map(hash, texts), np.int64, len(texts))
        return found

    def _block(self, k: int) -> Block:
        block = self._kept.get(k)
        if block is None:
            block = self._kept[k] = self._load(k)
            if len(self._kept) > LOADED:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(k)
        return block


class Places(Mapping[str, int]):
    """Text -> its place in a column; looked for when it is asked for, and then known."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._known: dict[str, int] = {}
        """-1 for what is not there."""

    def find(self, texts: Iterable[str]) -> dict[str, int]:
        """Those that are there; the column is read once for all that were not asked for before."""
        wanted = list(texts)
        if fresh := [text for text in wanted if text not in self._known]:
            self._known |= dict.fromkeys(fresh, -1) | self._texts.find(fresh)
        return {text: at for text in wanted if (at := self._known[text]) >= 0}

    def note(self, text: str, at: int) -> None:
        """So that it need not be looked for."""
        self._known[text] = at

    def __getitem__(self, text: str) -> int:
        return self.find([text])[text]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)


class Kinds(Sequence[str]):
    """A column of texts of which few are different: their names, and the place of each row's name among them."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, names: Sequence[str], codes: npt.NDArray[np.int32]) -> None:
        self.names, self.codes = tuple(names), codes

    @classmethod
    def of(cls, texts: Iterable[str]) -> Kinds:
        places: dict[str, int] = {}
        codes = np.fromiter((places.setdefault(text, len(places)) for text in texts), np.int32)
        return cls(list(places), codes)

    @classmethod
    def joined(cls, parts: Iterable[Kinds]) -> Kinds:
        places: dict[str, int] = {}
        codes = [np.zeros(0, np.int32)]
        for part in parts:
            own = [places.setdefault(name, len(places)) for name in part.names]
            codes.append(np.array(own, np.int32)[part.codes])
        return cls(list(places), np.concatenate(codes))

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self.names[code] for code in self.codes[i].tolist()]
        return self.names[self.codes[i]]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Sequence) and not isinstance(other, str | bytes):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other))
        return NotImplemented

    def changed(self, texts: Mapping[int, str]) -> Kinds:
        """The same with other texts in some rows."""
        names, codes = list(dict.fromkeys((*self.names, *texts.values()))), self.codes.copy()
        for i, text in texts.items():
            codes[i] = names.index(text)
        return Kinds(names, codes)

    def among(self, rows: Array) -> list[str]:
        """The different texts of some rows (a mask, or places), sorted."""
        return sorted(self.names[code] for code in np.unique(self.codes[rows]).tolist())

    def are(self, name: str) -> Mask:
        """(N,) which rows have this text."""
        return np.asarray(self.codes == (self.names.index(name) if name in self.names else -1))


@dataclass(frozen=True)
class Columns:
    """Rows of ``scores.csv``, or some of them; fields as those of :class:`~normalcy.results.folder.ResultsFolder`."""

    paths: Texts
    cases: Texts
    types: Kinds
    splits: Kinds
    scores: Float64
    p_values: Float64
    flagged: npt.NDArray[np.int8]
    labels: npt.NDArray[np.int8]
    files: Texts

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def joined(cls, parts: Sequence[Columns]) -> Columns:
        def texts(name: str) -> Texts:
            return Texts.held([block for part in parts for block in getattr(part, name).blocks()])

        def kinds(name: str) -> Kinds:
            return Kinds.joined(getattr(part, name) for part in parts)

        def numbers(name: str) -> Any:
            return np.concatenate([getattr(part, name) for part in parts])

        return cls(
            texts("paths"), texts("cases"), kinds("types"), kinds("splits"), numbers("scores"), numbers("p_values"),
            numbers("flagged"), numbers("labels"), texts("files"),
        )  # fmt: skip


def read_columns(path: Path) -> Iterator[Columns]:
    """The rows of ``scores.csv``, at most ``ROWS`` at a time. Raises DataError where it is missing or cannot be used."""
    start = 0
    for rows in read_rows(path, ("path", "score"), COLUMNS):
        paths = Block.of(rows["path"])

        def texts(name: str, rows: dict[str, list[str]] = rows, paths: Block = paths) -> Texts:
            own = [text or path for text, path in zip(rows[name], rows["path"])]
            return Texts.held([paths if own == rows["path"] else Block.of(own)])

        yield Columns(
            Texts.held([paths]),
            texts("case"),
            Kinds.of(rows["type"]),
            Kinds.of(rows["split"]),
            as_numbers(rows["score"], "score", path, start),
            as_numbers(rows["p_value"], "p_value", path, start, 0.0, 1.0),
            _yes_no(rows["flagged"]),
            _yes_no(rows["label"]),
            texts("file"),
        )
        start += len(rows["path"])


def read_rows(
    path: Path, needed: Sequence[str], wanted: Sequence[str], rows: int = ROWS
) -> Iterator[dict[str, list[str]]]:
    """Columns of a table by name, at most ``rows`` rows at a time; empty texts for a column that is not there."""
    if not path.exists():
        raise DataError(
            f"{path}: cannot be read (there is no such file); expected a folder that 'normalcy score' wrote."
        )
    if not is_inside(path, path.parent):
        raise DataError(f"{path}: is a link to another place; copy the table into the folder.")
    some = False
    try:
        with reading_text(path, LARGEST_TABLE) as text:
            reader = csv.reader(text)
            head = next(reader, [])
            absent = [name for name in needed if name not in head]
            if absent:
                raise DataError(f"{path}: expected the columns {','.join(wanted)}, got no {' and no '.join(absent)}.")
            while found := list(islice(_whole(reader, len(head), path), rows)):
                some = True
                cells = list(zip(*found))
                yield {
                    name: [meant(cell) if cell[:1] == "'" else cell for cell in cells[head.index(name)]]
                    if name in head
                    else [""] * len(found)
                    for name in wanted
                }
    except csv.Error as error:
        raise DataError(f"{path}: is not a table of scores ({error}); score the images again.") from None
    if not some:
        raise DataError(f"{path}: expected at least one image, got none; score some images first.")


def as_numbers(
    texts: list[str], name: str, path: Path, start: int = 0, low: float = -LARGEST, high: float = LARGEST
) -> Float64:
    """NaN where nothing is written. Values that are not finite stay: they are counted in the report."""
    try:
        numbers = np.array([float(text) if text else np.nan for text in texts])
    except ValueError:
        k = next(k for k, text in enumerate(texts) if text and not _is_number(text))
        raise DataError(
            f"{path}: line {start + k + 2} has the {name} {texts[k][:50]!r}, expected a number; score the images again."
        ) from None
    wrong = np.flatnonzero(np.isfinite(numbers) & ((numbers < low) | (numbers > high)))
    if len(wrong):
        k = int(wrong[0])
        raise DataError(
            f"{path}: line {start + k + 2} has the {name} {numbers[k]:g}, expected a number from {low:g} to {high:g}; score the "
            "images again."
        )
    return numbers


def by_first(values: Array) -> Indices:
    """(N,) a number for each different value, from 0 by its first place.

    >>> by_first(np.array([7, 5, 7, 9])).tolist()
    [0, 1, 0, 2]
    """
    _, first, place = np.unique(values, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.intp)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[place]


# -- private -----------------------------------------------------------------------------------------------------------


def _whole(reader: Any, fields: int, path: Path) -> Iterator[list[str]]:
    for row in reader:
        if len(row) != fields:
            raise DataError(
                f"{path}: line {reader.line_num} has {len(row)} fields, expected {fields}; the file is damaged, "
                "score the images again."
            )
        yield row


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _yes_no(texts: Iterable[str]) -> npt.NDArray[np.int8]:
    known = {"": -1, "0": 0, "1": 1, "0.0": 0, "1.0": 1, "False": 0, "True": 1}
    return np.array([known[text] if text in known else known.get(text.strip(), -1) for text in texts], np.int8)
