"""Published tables, run again: one TOML file a table, one JSON file a cell, and what is there is not run twice.

A table names its data, protocol, rows and published numbers. A *cell* is one row on one data set with one class as normal
and one seed: a fit, the scores of the test images, the AUROC of the raw scores. The file of a cell carries a hash of all
that determines its number, so that another setting is another cell; tables in one folder share the cells that they have in
common, and cells that differ in the score or the test images alone share one fit.

The tables that come with normalcy are in ``recipes/<paper>/table-<number>.toml`` beside this file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import statistics
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from scipy.stats import norm, t

from normalcy import config
from normalcy.compare import words_for
from normalcy.data.dataset import DEFAULT_DATA_ROOT, DataSet, open_data
from normalcy.data.images import write_bytes
from normalcy.data.named import CLASSES, NAMED
from normalcy.detector import Detector, Result, with_split
from normalcy.errors import DataError, NormalcyError, SettingsError
from normalcy.methods import available
from normalcy.metrics import delong_interval
from normalcy.predict import images_to_score
from normalcy.provenance import write_record

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
Json = dict[str, Any]
Words = Mapping[str, Any]

PACKAGED = Path(__file__).parent / "recipes"
FORMAT = 1
IDLE = {"seed", "device", "devices", "compile", "checkpoint_seconds", "checkpoint_steps", "log_steps"}
"""Settings that are no part of a cell's settings: the seed is named beside them, the others change no number."""


# -- what a table says -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A data set of a table."""

    data: str
    """A named set without its class (mnist), or a file or folder in the data root."""
    classes: tuple[str, ...] = ()
    """Each in turn is normal. None: all classes of a named set, or the set as it is."""
    words: Words = field(default_factory=dict)
    where: str = ""
    """Where to get the data and how to lay them out, in a sentence or two."""


@dataclass(frozen=True)
class Row:
    """A method of a table, with its published numbers in percent."""

    name: str
    method: str | None = None
    """Name in the registry; none: only the published number is shown."""
    words: Words = field(default_factory=dict)
    words_on: Mapping[str, Words] = field(default_factory=dict)
    """Column -> further settings on it."""
    score: str | None = None
    """One of the method's scores, where not its default."""
    seeds: int | None = None
    """Where not the table's: 1 for what does not depend on the seed."""
    published: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Quick:
    """A reduction of a table: these rows, columns, classes and seeds alone, with further settings."""

    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    seeds: int = 1
    words: Words = field(default_factory=dict)
    words_of: Mapping[str, Words] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A published table and how we run it."""

    name: str
    paper: str
    number: int
    shows: str
    protocol: str
    columns: Mapping[str, Column]
    rows: tuple[Row, ...]
    metric: str = "image_auroc"
    seeds: int = 10
    test_images: int | None = None
    """So many test images at random, others for each seed; none: all."""
    words: Words = field(default_factory=dict)
    """Settings of all rows; those of a column, a row, and a row on a column win over them, in this order."""
    notes: tuple[str, ...] = ()
    """What differs from the paper."""
    quick: Quick | None = None
    reduction: str = ""
    """What was reduced or changed, in a sentence that goes into every output. Empty for the table as published."""

    def reduced(self) -> Table:
        """The quick version, which says what it leaves out."""
        quick = self.quick
        if quick is None:
            raise SettingsError(
                f"{self.name} has no quick version: choose with --rows, --columns, --classes and --seeds."
            )
        columns = {
            name: replace(column, classes=tuple(quick.classes.get(name, ())) or classes_of(column))
            for name, column in self.columns.items()
            if name in (quick.columns or self.columns)
        }
        rows = tuple(
            replace(
                _over(row, {**quick.words, **quick.words_of.get(row.name, {})}),
                seeds=min(row.seeds or quick.seeds, quick.seeds),
            )
            for row in self.rows
            if row.name in (quick.rows or [row.name])
        )
        told: dict[str, list[str]] = {}
        for who, words in [("all", quick.words), *quick.words_of.items()]:
            told.setdefault(_spelled(words), []).append(who)
        reduced = [
            (len(rows) < len(self.rows), f"{len(rows)} of {len(self.rows)} rows"),
            (len(columns) < len(self.columns), f"{_and(columns)} of {_and(self.columns)}"),
            *(
                (column.classes != classes_of(self.columns[name]), f"{_and(column.classes)} of the classes of {name}")
                for name, column in columns.items()
            ),
            (quick.seeds < self.seeds, f"{quick.seeds} of {self.seeds} seeds"),
            *((bool(words), f"{words} for {_and(who)}") for words, who in told.items()),
        ]
        parts = [text for less, text in reduced if less]
        sentence = f"Quick run, a reduction of the protocol; its numbers are not the paper's: {'; '.join(parts)}."
        return replace(self, columns=columns, rows=rows, seeds=quick.seeds, reduction=sentence)

    def changed(self, words: Words) -> Table:
        """With other settings: a word goes to every method that knows it, ``vae.latent`` to one."""
        if not words:
            return self
        if "seed" in words:
            raise SettingsError(f"{self.name}: seeds are no setting here, choose them with --seeds.")
        methods = [row.method for row in self.rows if row.method in available()]
        rows = tuple(
            _over(row, words_for(row.method, words, methods)) if row.method in methods else row for row in self.rows
        )
        sentence = f"{self.reduction} Settings changed by the user: {_spelled(words)}.".lstrip()
        return replace(self, rows=rows, reduction=sentence)


def tables() -> list[str]:
    """Names of the tables that come with normalcy.

    >>> "ddr_id/table-2" in tables()
    True
    """
    return sorted(path.relative_to(PACKAGED).with_suffix("").as_posix() for path in PACKAGED.glob("*/*.toml"))


def read_table(name: str) -> Table:
    """A table by its name or the path of its TOML file. Raises SettingsError with the place of a fault."""
    path = Path(name) if name.endswith(".toml") else PACKAGED / f"{name}.toml"
    if path != Path(name) and name not in tables():
        raise SettingsError(
            f"There is no table {name!r}: known are {', '.join(tables())}, or give a TOML file of your own."
        )
    try:
        words = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}.") from error
    columns = {
        key: _build(Column, value, f"{name}: {key}") for key, value in _tables(words, "columns", dict, name).items()
    }
    rows = tuple(_build(Row, row, f"{name}: row {k}") for k, row in enumerate(_tables(words, "rows", list, name), 1))
    parts: Json = {"name": path.stem if path == Path(name) else name, "columns": columns, "rows": rows}
    if "quick" in words:
        parts["quick"] = _build(Quick, words["quick"], f"{name}: quick")
    return _checked(_build(Table, {**words, **parts}, name))


def classes_of(column: Column) -> tuple[str, ...]:
    """The classes of a column that are normal in turn; one empty word for a set without classes."""
    return column.classes or CLASSES.get(column.data) or ("",)


# -- cells -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One number: a row on a data set with one class as normal and one seed."""

    row: str
    column: str
    normal: str
    """The class; empty for a set without classes."""
    seed: int
    data: str
    where: str
    method: str
    given: Words
    """Settings as the table gives them, to fit with."""
    settings: Words
    """All settings that determine the fit, defaults included; what was given, where the method does not take it."""
    score: str | None
    test_images: int | None

    @property
    def spec(self) -> str:
        return f"{self.data}:{self.normal}" if self.normal else self.data

    @property
    def fit_key(self) -> str:
        return _hash(self.method, self.settings, self.spec, self.seed)

    @property
    def file(self) -> Path:
        """Relative to the folder of results."""
        key = _hash(self.fit_key, self.score, self.test_images)
        return Path("cells", self.method, f"{_slug(self.spec)}-seed-{self.seed}-{key}.json")


def cells_of(table: Table) -> list[Cell]:
    """All cells of a table, in the order in which they are run: seed by seed, so that a part is a smaller whole."""
    settings: dict[tuple[str, str], tuple[Json, Json, str | None]] = {}
    for row in table.rows:
        for name, column in table.columns.items():
            if row.method is not None:
                given = _merged(table.words, column.words, row.words, row.words_on.get(name, {}))
                whole = _resolved(row.method, given)
                score = whole.pop("score", None)
                given.pop("score", None)
                settings[row.name, name] = given, whole, row.score or score
    return [
        Cell(
            row.name, name, normal, seed, column.data, column.where, row.method, given, whole, score, table.test_images
        )
        for seed in range(max(row.seeds or table.seeds for row in table.rows))
        for name, column in table.columns.items()
        for normal in classes_of(column)
        for row in table.rows
        if row.method is not None and seed < (row.seeds or table.seeds)
        for given, whole, score in [settings[row.name, name]]
    ]


def select(
    table: Table,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    classes: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> list[Cell]:
    """Some cells of a table; nothing named is all. A row is named as in the table or by its method, a class also by number."""

    def number(cell: Cell) -> str:
        known = CLASSES.get(cell.data, ())
        return str(known.index(cell.normal)) if cell.normal in known else cell.normal

    cells = cells_of(table)
    choices: list[tuple[str, Sequence[object], Callable[[Cell], set[str]]]] = [
        ("row", rows, lambda cell: {cell.row.lower(), cell.method}),
        ("column", columns, lambda cell: {cell.column.lower()}),
        ("class", classes, lambda cell: {cell.normal, number(cell)}),
        ("seed", seeds, lambda cell: {str(cell.seed)}),
    ]
    for kind, wanted, spellings in choices:
        if wanted:
            words = {str(word).lower() for word in wanted}
            _known(table.name, kind, words, set().union(*map(spellings, cells)))
            cells = [cell for cell in cells if spellings(cell) & words]
    return cells


# -- running ---------------------------------------------------------------------------------------------------------


def reproduce(
    table: Table,
    out: Path,
    cells: Sequence[Cell] | None = None,
    *,
    data_root: Path | None = None,
    jobs: int | None = None,
    overwrite: bool = False,
    on_cell: Callable[[Cell, Json], None] | None = None,
) -> Json:
    """Run the cells (all unless given) that ``out`` does not hold and write ``out/<table>.json`` and ``.md``.

    ``jobs`` processes work side by side, each with its share of the cores and a GPU of its own as long as they last; none:
    one for each GPU, or for two cores, two where there are two. ``on_cell`` gets each cell that was run and its record. A
    cell that fails is written down with its reason, the others go on; it is tried again by the next call. Returns what
    the JSON file says.
    """
    root = Path(data_root or DEFAULT_DATA_ROOT).expanduser()
    tell = on_cell or (lambda cell, record: None)
    chosen = cells_of(table) if cells is None else cells
    pending = [cell for cell in chosen if overwrite or not _done(_read(out, cell))]
    absent = {}
    for cell in {cell.column: cell for cell in reversed(pending)}.values():  # now, not once for each of many fits
        try:
            _open(cell, root)
        except Exception as error:
            absent[cell.column] = _reason(error)
    fits: dict[str, list[Cell]] = {}
    for cell in pending:
        if cell.column in absent:
            tell(cell, _write_failure(table, out, cell, absent[cell.column]))
        else:
            fits.setdefault(cell.fit_key, []).append(cell)
    work = [_Fit(table, out, tuple({cell.file: cell for cell in group}.values()), root) for group in fits.values()]
    for fit, records in side_by_side(work, jobs or len(_gpus()) or max(min(2, _cores()), _cores() // 2)):
        for cell, record in zip(fit.cells, records):
            tell(cell, record)
    with suppress(OSError):
        (out / "running").rmdir()
    found = tabulate(table, out)
    write_bytes(out / f"{table.name}.json", (json.dumps(found, indent=1) + "\n").encode())
    write_bytes(out / f"{table.name}.md", markdown(found).encode())
    return found


@dataclass(frozen=True)
class _Fit:
    """Cells that share a fit, and where to put them."""

    table: Table
    out: Path
    cells: tuple[Cell, ...]
    data_root: Path

    def run(self) -> list[Json]:
        """The records of the cells, written to their files."""
        first = self.cells[0]
        run_dir = self.out / "running" / first.fit_key
        try:
            detector = Detector(first.method, **{**first.given, "seed": first.seed})
            data = with_split(_open(first, self.data_root), first.seed)
            detector.fit(data, run_dir=run_dir, resume=True)
        except Exception as error:
            return [_write_failure(self.table, self.out, cell, _reason(error)) for cell in self.cells]
        finally:
            if not isinstance(sys.exc_info()[1], KeyboardInterrupt):
                shutil.rmtree(run_dir, ignore_errors=True)
        return [self._measure(cell, detector, data) for cell in self.cells]

    def _measure(self, cell: Cell, detector: Detector, data: DataSet) -> Json:
        started = time.perf_counter()
        try:
            scored = detector.with_score(cell.score) if cell.score is not None else detector
            test, _ = images_to_score(data, None, cell.seed)
            if cell.test_images is not None and cell.test_images < len(test):
                test = test.subset(np.sort(np.random.default_rng(cell.seed).permutation(len(test))[: cell.test_images]))
            pairs = [(r.item.label, r.score) for r in scored.stream(test, batch_size=256) if isinstance(r, Result)]
            labels, scores = [label for label, _ in pairs if label is not None], [score for _, score in pairs]
            if not 0 < sum(labels) < len(labels) or len(labels) < len(scores):
                raise DataError(f"{cell.spec}: expected labelled test images, normal and anomalous ones.")
            auroc = delong_interval(labels, scores)
        except Exception as error:
            return _write_failure(self.table, self.out, cell, _reason(error))
        half = max(auroc.value - auroc.low, auroc.high - auroc.value)  # an end may be cut off at 0 or 1
        return _write(
            self.table,
            self.out,
            cell,
            {
                "auroc": auroc.value,
                "low": auroc.low,
                "high": auroc.high,
                "error": half / float(norm.ppf(0.975)),
                "test": {
                    "normal": len(labels) - sum(labels),
                    "anomalous": sum(labels),
                    "unread": len(test) - len(pairs),
                },
                "train": {key: detector.facts["data"][key] for key in ("name", "count", "fingerprint")},
                "fit": detector.facts["fit"],
                "score_seconds": round(time.perf_counter() - started, 2),
            },
        )


def side_by_side(work: Sequence[_Fit], jobs: int) -> Iterator[tuple[_Fit, list[Json]]]:
    """Each fit with its records, as they come. One job runs in this process."""
    jobs = min(jobs, len(work))
    if jobs <= 1:
        for fit in work:
            yield fit, fit.run()
        return
    waiting, gpus = deque(work), _gpus()
    busy: dict[object, tuple[_Worker, _Fit]] = {}

    def give(worker: _Worker) -> None:
        busy[worker.connection] = worker, waiting[0]
        worker.connection.send(waiting.popleft())

    try:
        for k in range(jobs):
            give(_Worker(max(1, _cores() // jobs), gpus[k % len(gpus)] if gpus else None))
        while busy:
            for connection in wait([worker.connection for worker, _ in busy.values()]):
                worker, fit = busy.pop(connection)
                try:
                    records = worker.connection.recv()
                except EOFError:
                    reason = "Its process was killed; perhaps memory ran out: try fewer --jobs."
                    records = [_write_failure(fit.table, fit.out, cell, reason) for cell in fit.cells]
                    if waiting:
                        worker = _Worker(worker.threads, worker.gpu)
                if waiting:
                    give(worker)
                else:
                    worker.connection.close()  # its process ends
                yield fit, records
    finally:
        for worker, _ in busy.values():
            worker.process.terminate()


class _Worker:
    """A process that runs the fits that it is sent, one after the other."""

    def __init__(self, threads: int, gpu: str | None) -> None:
        self.threads, self.gpu = threads, gpu
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, threads, gpu), daemon=True)
        with _environment({"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}):
            self.process.start()
        theirs.close()


def _serve(connection: Connection, threads: int, gpu: str | None) -> None:
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    torch.set_num_threads(threads)
    try:
        while True:
            connection.send(connection.recv().run())
    except (EOFError, KeyboardInterrupt):  # the other side is gone, or stops
        return


@contextmanager
def _environment(words: Mapping[str, str]) -> Iterator[None]:
    before = {word: os.environ.get(word) for word in words}
    os.environ.update(words)
    try:
        yield
    finally:
        for word, value in before.items():
            if value is None:
                del os.environ[word]
            else:
                os.environ[word] = value


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = map(str, range(torch.cuda.device_count())) if visible is None else visible.split(",")
    return [name for name in found if name.strip()]


def _open(cell: Cell, root: Path) -> DataSet:
    if cell.data in NAMED:
        return open_data(cell.spec, root)
    path = root / cell.data
    if not path.exists():
        raise DataError(f"{cell.column}: expected {path}, found nothing there. {cell.where}".rstrip())
    return open_data(f"{path}:{cell.normal}" if cell.normal else path, root)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, NormalcyError) else f"{type(error).__name__}: {text}"


def _write_failure(table: Table, out: Path, cell: Cell, reason: str) -> Json:
    return _write(table, out, cell, {"failed": reason})


def _write(table: Table, out: Path, cell: Cell, facts: Json) -> Json:
    path = out / cell.file
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    record = {
        "format": FORMAT,
        "made_for": f"{table.name}: {cell.row}",
        **({"reduction": table.reduction} if table.reduction else {}),
        "data": cell.spec,
        "seed": cell.seed,
        "method": cell.method,
        "score": cell.score,
        "test_images": cell.test_images,
        **facts,
        "settings": cell.settings,
    }
    write_record(partial, record)
    os.replace(partial, path)
    return record


def _read(out: Path, cell: Cell) -> Json:
    """The record of a cell; empty where there is none."""
    try:
        record = json.loads((out / cell.file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and record.get("format") == FORMAT else {}


def _done(record: Json) -> bool:
    return "auroc" in record


# -- the table -------------------------------------------------------------------------------------------------------


def tabulate(table: Table, out: Path) -> Json:
    """Published and measured numbers in percent, of what ``out`` holds. A number is the mean over classes of the mean over
    seeds; its 95 % interval see :func:`interval`."""
    records: dict[tuple[str, str], list[tuple[Cell, Json]]] = {}
    for cell in cells_of(table):
        records.setdefault((cell.row, cell.column), []).append((cell, _read(out, cell)))
    lines, failed, made = [], Counter[str](), []
    for row in table.rows:
        for column in table.columns:
            here = records.get((row.name, column), [])
            found = [(cell, record) for cell, record in here if _done(record)]
            made += [record for _, record in found]
            failed.update(f"{row.name} on {column}: {record['failed']}" for _, record in here if "failed" in record)
            by_class: dict[str, dict[int, Json]] = {}
            for cell, record in found:
                by_class.setdefault(cell.normal, {})[cell.seed] = record
            ours = interval(list(by_class.values()))
            published = row.published.get(column)
            lines.append(
                {
                    "row": row.name,
                    "column": column,
                    "method": row.method,
                    "published": published,
                    "ours": ours,
                    "difference": None if ours is None or published is None else round(ours["value"] - published, 3),
                    "cells": {"done": len(found), "of": len(here)},
                    "seconds": round(sum(r["fit"]["seconds"] + r["score_seconds"] for _, r in found), 1),
                    "classes": {
                        normal: {"mean": _percent(_mean_auroc(seeds.values())), "seeds": len(seeds)}
                        for normal, seeds in by_class.items()
                    },
                }
            )
    return {
        "format": FORMAT,
        "table": table.name,
        "paper": table.paper,
        "number": table.number,
        "shows": table.shows,
        "protocol": table.protocol,
        "reduction": table.reduction,
        "unit": "percent",
        "lines": lines,
        "failed": [{"cells": count, "reason": reason} for reason, count in failed.items()],
        "notes": [*table.notes, *(f"{row.name}: {row.note}" for row in table.rows if row.note)],
        "hardware": _distinct(record["hardware"].get("gpu") or record["hardware"]["processor"] for record in made),
        "seeds": sorted({record["seed"] for record in made}),
        "commits": _distinct(record["commit"] for record in made),
        "versions": _distinct(f"normalcy {r['versions']['normalcy']}, torch {r['versions']['torch']}" for r in made),
    }


def interval(classes: Sequence[Mapping[int, Json]]) -> Json | None:
    """Mean over classes of the mean over seeds, in percent, with a 95 % interval. ``classes``: seed -> record, for each.

    With at least two seeds that every class has: Student's t over the seeds, each the mean over classes. Else DeLong's
    errors, that of a class the mean over its seeds, which see the same test images, and classes taken as independent.

    >>> one = {0: {"auroc": 0.9, "error": 0.03}}, {0: {"auroc": 0.8, "error": 0.04}}
    >>> interval(one)
    {'value': 85.0, 'low': 80.1, 'high': 89.9, 'over': 'test images'}
    >>> two = {0: {"auroc": 0.89, "error": 0.03}, 1: {"auroc": 0.91, "error": 0.03}}
    >>> interval([two])
    {'value': 90.0, 'low': 77.294, 'high': 100.0, 'over': 'seeds'}
    """
    if not classes:
        return None
    value = statistics.fmean(_mean_auroc(seeds.values()) for seeds in classes)
    common = set.intersection(*(set(seeds) for seeds in classes))
    if len(common) > 1:
        means = [statistics.fmean(seeds[k]["auroc"] for seeds in classes) for k in sorted(common)]
        half = float(t.ppf(0.975, len(means) - 1)) * statistics.stdev(means) / math.sqrt(len(means))
    else:
        errors = [statistics.fmean(record["error"] for record in seeds.values()) for seeds in classes]
        half = float(norm.ppf(0.975)) * math.hypot(*errors) / len(errors)
    over = "seeds" if len(common) > 1 else "test images"
    return {
        "value": _percent(value),
        "low": _percent(max(value - half, 0.0)),
        "high": _percent(min(value + half, 1.0)),
        "over": over,
    }


def markdown(found: Json) -> str:
    """The table as a page."""
    lines = [f"# {found['paper']}: table {found['number']}", "", found["shows"], "", found["protocol"], ""]
    if found["reduction"]:
        lines += [f"**{found['reduction']}**", ""]
    lines += _grid(
        ["method", "data", "published", "ours [95 %]", "difference", "cells"],
        [[line["row"], line["column"], *spelled(line)] for line in found["lines"]],
    )
    lines += ["", explained(found)]
    for column in dict.fromkeys(line["column"] for line in found["lines"]):
        here = [line for line in found["lines"] if line["column"] == column and line["classes"]]
        classes = list(dict.fromkeys(normal for line in here for normal in line["classes"]))
        if classes and classes != [""]:
            means = [[line["classes"].get(normal, {}).get("mean") for normal in classes] for line in here]
            cells = [["" if mean is None else f"{mean:.1f}" for mean in row] for row in means]
            lines += ["", f"## {column}, class by class", ""]
            lines += _grid(["normal", *classes], [[line["row"], *row] for line, row in zip(here, cells)])
    for title, points in (
        ("Failed", [f"{f['reason']} Cells: {f['cells']}." for f in found["failed"]]),
        ("Notes", found["notes"]),
        ("Made with", [*found["versions"], *found["hardware"]]),
    ):
        if points:
            lines += ["", f"## {title}", "", *(f"- {point}" for point in points)]
    return "\n".join(lines) + "\n"


def spelled(line: Json) -> list[str]:
    """Published, ours, difference and cells of a line, as they are printed."""
    ours, published, difference, cells = line["ours"], line["published"], line["difference"], line["cells"]
    return [
        "-" if published is None else f"{published:.1f}",
        "-" if ours is None else f"{ours['value']:.1f} [{ours['low']:.1f}, {ours['high']:.1f}]",
        "-" if difference is None else f"{difference:+.1f}",
        f"{cells['done']}/{cells['of']}" if cells["of"] else "-",
    ]


def explained(found: Json) -> str:
    """What the numbers are, in a sentence or two."""
    kinds = {line["ours"]["over"] for line in found["lines"] if line["ours"] is not None}
    how = {
        "seeds": "over seeds",
        "test images": "over test images for a single seed (DeLong; classes taken as independent)",
    }
    intervals = " or ".join(how[kind] for kind in sorted(kinds)) or "none yet"
    part = any(0 < line["cells"]["done"] < line["cells"]["of"] for line in found["lines"])
    rest = " Where cells are missing, ours is the mean of those that are there." if part else ""
    return f"Image AUROC in percent, mean over classes of the mean over seeds; intervals: {intervals}.{rest}"


# -- private ---------------------------------------------------------------------------------------------------------


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _build(cls: type[T], words: Words, who: str) -> T:
    """An instance from the words of a TOML table. Raises SettingsError for an unknown or a missing word."""
    known = config.known_words(cls)
    for word in words:
        if word not in known:
            raise config.unknown_word(word, known, who)
    needed = [word for word, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [word for word in needed if word not in words]:
        raise SettingsError(f"{who} needs the words {_and(missing)}.")
    return cls(**{word: tuple(value) if isinstance(value, list) else value for word, value in words.items()})


def _checked(table: Table) -> Table:
    """The table, if the names in it go together."""
    who, rows, quick = table.name, {row.name for row in table.rows}, table.quick or Quick()
    if table.metric != "image_auroc":
        raise SettingsError(f"{who}: metric must be image_auroc, got {table.metric!r}.")
    if len(rows) < len(table.rows):
        raise SettingsError(f"{who}: every row needs a name of its own.")
    named = [name for row in table.rows for name in (*row.published, *row.words_on)]
    _known(who, "column", [*named, *quick.columns, *quick.classes], table.columns)
    _known(who, "row", [*quick.rows, *quick.words_of], rows)
    for name, column in table.columns.items():
        if column.data in CLASSES:
            _known(f"{who}: {name}", "class", column.classes, CLASSES[column.data])
        _known(f"{who}: {name}", "class", tuple(quick.classes.get(name, ())), classes_of(column))
    return table


def _tables(words: Words, key: str, kind: type[T], who: str) -> T:
    value = words.get(key)
    if not value or not isinstance(value, kind):
        raise SettingsError(f"{who} needs {'tables [columns.NAME]' if kind is dict else 'tables [[rows]]'}.")
    return value


def _known(who: str, kind: str, words: Iterable[str], known: Collection[str]) -> None:
    for word in words:
        if word not in known:
            raise SettingsError(f"{who}: there is no {kind} {word!r}; known are {', '.join(sorted(known))}.")


def _resolved(method: str, given: Words) -> Json:
    """All settings that determine a fit; what was given where the method does not know it, which running will tell."""
    try:
        words = Detector(method, **given).words()
    except SettingsError:
        words = dict(given)
    return {word: value for word, value in words.items() if word not in IDLE}


def _merged(*parts: Words) -> Json:
    """Later words win; epochs and steps replace one another."""
    whole: Json = {}
    for part in parts:
        if {"epochs", "steps"} & set(part):
            whole = {word: value for word, value in whole.items() if word not in ("epochs", "steps")}
        whole.update(part)
    return whole


def _over(row: Row, words: Words) -> Row:
    """The row with words that win over all of the table."""
    on = {column: _merged(theirs, words) for column, theirs in row.words_on.items()}
    return replace(row, words=_merged(row.words, words), words_on=on)


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text)


def _and(words: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(words)


def _spelled(words: Words) -> str:
    return ", ".join(f"{word}={value}" for word, value in words.items())


def _mean_auroc(records: Any) -> float:
    return statistics.fmean(record["auroc"] for record in records)


def _percent(share: float) -> float:
    return round(100 * share, 3)


def _distinct(words: Any) -> list[str]:
    return sorted(set(words))
