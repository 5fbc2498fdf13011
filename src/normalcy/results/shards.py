"""Parts of a data set scored by separate processes or machines, and their merge into one results folder."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from normalcy.arrays import Indices
from normalcy.data.dataset import Failure
from normalcy.errors import DataError, SettingsError
from normalcy.files import (
    anonymous_file,
    link_or_copy_all,
    new_array,
    prepare_target,
    read_array,
    read_bytes,
    reading_text,
    refuse_source,
    write_folder,
)
from normalcy.results.folder import LARGEST_TABLE
from normalcy.results.names import LATENTS, meant
from normalcy.results.parts import read_rows_of
from normalcy.results.pictures import picture_map
from normalcy.results.predict import FAULT_COLUMNS, finish_scores, write_faults
from normalcy.results.run import (
    COLUMNS,
    POSITIONS,
    RUN,
    SLICE_COLUMNS,
    Run,
    Shard,
    SlidesRun,
    read_run,
)
from normalcy.results.schema import dumps, load
from normalcy.results.slides import SLIDE_COLUMNS, SLIDES
from normalcy.results.writer import Writer
from normalcy.training.log import TRAIN_LOG

KINDS = ("maps", "restored", "uncertainty", "extra_maps", "masks")
"""Folders of a results folder with files of images."""
REMEDY = "score this shard again"
RANGE, MOST_RANGES = 2**17, 500
"""Rows that merge sorts in memory at a time, at least; the largest number of files that it has open."""


def merge(folders: Sequence[Path], out: Path, overwrite: bool = False) -> int:
    """Write the results of all shards of a data set into ``out``, as one run would have; returns the number of images (slides).

    The folders keep their files, which are linked into ``out`` where the file system can, else copied. Raises DataError for
    shards that are missing, occur twice, or belong to another data set or model.
    """
    if not folders:
        raise SettingsError("merge expects the results folders of all shards, got none.")
    prepare_target(out, overwrite)
    refuse_source(out, *folders)
    if any((folder / SLIDES).exists() for folder in folders):
        return _merge_slides(folders, out, overwrite)
    runs = [read_run(folder) for folder in folders]
    _check(folders, [run.data.shard for run in runs], [_what(run) for run in runs])
    parts = [_Part(folder, run) for folder, run in zip(folders, runs)]
    order = _order(parts)
    if not len(order):
        raise DataError(
            f"None of the images of {runs[0].data.name} could be scored; see the lists in {RUN} of the shards."
        )

    def fill(folder: Path) -> None:
        writer = Writer(folder)
        _write_scores(writer, parts, order)
        finish_scores(writer, len(order))
        _write_slices(writer, parts)
        _write_latents(writer, parts, order)
        for part in parts:
            _link(part.folder, KINDS, writer)
        log = next((part.folder / TRAIN_LOG for part in parts if (part.folder / TRAIN_LOG).exists()), None)
        if log is not None:
            writer.bytes(TRAIN_LOG, read_bytes(log))
        failed, incomplete = _faults(parts, "failed"), _faults(parts, "incomplete")
        write_faults(writer, failed, incomplete)
        run = _merged(runs, len(order), failed, incomplete)
        if run.map_range is not None:
            for part in parts:
                if part.run.map_range != run.map_range:
                    for base in part.pictured():
                        picture_map(writer, base, run.map_range)
        writer.bytes(RUN, dumps(run))

    write_folder(out, fill, overwrite)
    return len(order)


# -- private -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """What a shard has scored."""

    folder: Path
    run: Run

    def rows(self) -> Iterator[list[str]]:
        """Of scores.csv: as many as it has positions."""
        path, count, expected = self.folder / "scores.csv", 0, self.run.data.count
        for count, row in enumerate(_rows(path, COLUMNS), start=1):
            if count > expected:
                break
            yield row
        if count != expected:
            raise DataError(f"{path}: expected {expected} rows, got {'more' if count > expected else count}; {REMEDY}.")

    def positions(self) -> Indices:
        """Of each row of scores.csv in the whole data set."""
        path = self.folder / POSITIONS
        found = np.asarray(read_array(path))
        if found.ndim != 1 or found.dtype != np.int64 or len(found) != self.run.data.count or (found < 0).any():
            raise DataError(
                f"{path}: expected {self.run.data.count} positions, one for each row of scores.csv; {REMEDY}."
            )
        return found.astype(np.intp)

    def pictured(self) -> Iterator[str]:
        """Base names of the images whose map has a picture."""
        file = COLUMNS.index("file")
        for row in self.rows():
            if (self.folder / "maps" / f"{row[file]}.png").is_file():
                yield row[file]


def _what(run: Run) -> dict[str, Any]:
    """What must be the same in all shards: words of an error -> value."""
    return {
        "model": (run.model, run.score, run.calibration),
        "data set": (run.data.name, run.data.shard and run.data.shard.whole, run.data.split),
        "version of normalcy": run.normalcy,
    }


def _check(folders: Sequence[Path], shards: Sequence[Shard | None], what: Sequence[dict[str, Any]]) -> None:
    """Raises DataError unless the folders are all shards of one data set, scored by one model."""
    first = shards[0]
    seen: dict[int, Path] = {}
    for folder, shard, facts in zip(folders, shards, what):
        if shard is None or first is None:
            alone = folder if shard is None else folders[0]
            raise DataError(f"{alone}: was not scored with --shard; merge expects the results folders of all shards.")
        if shard.of != first.of:
            raise DataError(f"{folder}: is one of {shard.of} shards, {folders[0]} one of {first.of}; merge them apart.")
        for word, value in facts.items():
            if value != what[0][word]:
                raise DataError(f"{folder}: has another {word} than {folders[0]}; merge expects shards of one run.")
        if shard.index in seen:
            raise DataError(f"{folder} and {seen[shard.index]} are both shard {shard.index} of {shard.of}; name one.")
        seen[shard.index] = folder
    assert first is not None
    missing = [str(k) for k in range(1, first.of + 1) if k not in seen]
    if missing:
        listed = ", ".join(missing[:20]) + (", ..." if len(missing) > 20 else "")
        raise DataError(f"merge expects all {first.of} shards, got {len(seen)}; missing: {listed}. Score them first.")


def _order(parts: Sequence[_Part]) -> Indices:
    """Places of the rows, shard after shard, in the order of the data set."""
    positions = np.concatenate([part.positions() for part in parts])
    order = np.argsort(positions, kind="stable")
    if len(np.unique(positions)) < len(positions):
        raise DataError(f"merge: two shards scored the same image, as {POSITIONS} says; {REMEDY}.")
    return order


def _write_scores(writer: Writer, parts: Sequence[_Part], order: Indices) -> None:
    """scores.csv of all shards in the order of the data set, by way of files that hold a range of places each, of which one
    at a time is in memory."""
    rank = np.empty(len(order), np.intp)
    rank[order] = np.arange(len(order))
    size = max(RANGE, -(-len(order) // MOST_RANGES))
    with ExitStack() as stack:
        ranges = [
            io.TextIOWrapper(stack.enter_context(anonymous_file(writer.folder)), "utf-8", "surrogateescape", newline="")
            for _ in range(0, len(order), size)
        ]
        tables = [csv.writer(file) for file in ranges]
        for place, row in zip(map(int, rank), chain.from_iterable(part.rows() for part in parts), strict=True):
            tables[place // size].writerow([place % size, *row])
        add = stack.enter_context(writer.table("scores.csv", COLUMNS))
        for file in ranges:
            file.seek(0)
            for _, *row in sorted(csv.reader(file), key=lambda row: int(row[0])):
                add(row)
            file.close()


def _table(path: Path, head: Sequence[str]) -> list[list[str]]:
    return list(_rows(path, head))


def _rows(path: Path, head: Sequence[str]) -> Iterator[list[str]]:
    """Rows of a table with exactly these columns."""
    if not path.exists():
        raise DataError(f"{path}: there is no such file; {REMEDY}.")
    try:
        with reading_text(path, LARGEST_TABLE) as text:
            reader = csv.reader(text)
            fits = next(reader, []) == list(head)
            for row in reader if fits else ():
                if not (fits := len(row) == len(head)):
                    break
                yield [meant(cell) for cell in row]
    except csv.Error as error:
        raise DataError(f"{path}: is not a table ({error}); {REMEDY}.") from None
    if not fits:
        raise DataError(f"{path}: expected a table with the columns {','.join(head)}; {REMEDY}.")


def _write_slices(writer: Writer, parts: Sequence[_Part]) -> None:
    of_path: dict[str, list[list[str]]] = {}
    for part in parts:
        if (part.folder / "slices.csv").exists():
            for row in _rows(part.folder / "slices.csv", SLICE_COLUMNS):
                of_path.setdefault(row[0], []).append(row)
    if of_path:
        with writer.table("slices.csv", SLICE_COLUMNS) as add:
            for path in read_rows_of(writer.folder).paths:
                for row in of_path.get(path, []):
                    add(row)


def _write_latents(writer: Writer, parts: Sequence[_Part], order: Indices) -> None:
    with_rows = [part for part in parts if part.run.data.count]
    if all((part.folder / LATENTS).exists() for part in with_rows):
        latents = [np.asarray(read_array(part.folder / LATENTS)) for part in with_rows]
        whole = new_array(writer.path(LATENTS), (len(order), *latents[0].shape[1:]))
        rank = np.empty(len(order), np.intp)
        rank[order] = np.arange(len(order))
        start = 0
        for some in latents:
            whole[rank[start : start + len(some)]] = some
            start += len(some)


def _link(folder: Path, kinds: Sequence[str], writer: Writer) -> None:
    """All regular files below these folders, at the same places; links are passed over."""
    for kind in kinds:
        for above, _, names in os.walk(folder / kind):
            target = writer.path(*Path(above).relative_to(folder).parts)  # checked once for all files of a folder
            link_or_copy_all(Path(above), names, target)


def _faults(parts: Sequence[_Part], name: str) -> list[Failure]:
    """Images that could not be used, sorted: "failed" or "incomplete"."""
    found: list[Failure] = []
    for part in parts:
        table = part.folder / f"{name}.csv"
        if getattr(part.run.data, f"{name}_count"):
            found += [Failure(path, reason) for path, reason in _table(table, FAULT_COLUMNS)]
        else:
            found += getattr(part.run.data, name)
    return sorted(found, key=lambda one: one.path)


def _merged(runs: Sequence[Run], count: int, failed: Sequence[Failure], incomplete: Sequence[Failure]) -> Run:
    ranges = [run.map_range for run in runs if run.map_range is not None]
    seconds = sum(run.seconds or 0 for run in runs)
    first = runs[0]

    return replace(
        first,
        data=replace(
            first.data.with_faults(failed, incomplete),
            fingerprint=first.data.shard.whole if first.data.shard else "",
            shard=None,
            count=count,
        ),
        map_range=(min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None,
        extra_maps_with_channels=tuple(sorted({name for run in runs for name in run.extra_maps_with_channels})),
        created=max(run.created for run in runs),
        device=", ".join(dict.fromkeys(run.device for run in runs)),
        seconds=round(seconds, 3),
        images_per_second=round(count / max(seconds, 1e-9), 2),
    )


def _merge_slides(folders: Sequence[Path], out: Path, overwrite: bool) -> int:
    runs = [load(SlidesRun, folder / RUN, REMEDY) for folder in folders]
    _check(
        folders,
        [run.shard for run in runs],
        [{"method": run.method, "settings": (run.quantile, run.cell)} for run in runs],
    )
    tables = [_table(folder / SLIDES, SLIDE_COLUMNS) for folder in folders]
    if not any(tables):
        raise DataError(f"None of the slides could be scored; see the lists in {RUN} of the shards.")

    def fill(folder: Path) -> None:
        writer = Writer(folder)
        writer.csv(SLIDES, SLIDE_COLUMNS, sorted(row for rows in tables for row in rows))
        for source in folders:
            _link(source, sorted(entry.name for entry in source.iterdir() if entry.is_dir()), writer)
        failed = tuple(sorted((one for run in runs for one in run.failed), key=lambda one: one.path))
        slides = tuple(sorted((one for run in runs for one in run.slides), key=lambda one: one.name))
        writer.bytes(RUN, dumps(replace(runs[0], shard=None, failed=failed, slides=slides)))

    write_folder(out, fill, overwrite)
    return sum(map(len, tables))
