"""Published tables, run again: one TOML file a table (:mod:`normalcy.studies.tables`), one JSON file a cell, and what
is there is not run twice. Processes and machines that write to one folder divide the fits by :mod:`normalcy.studies.claims`.

A cell is a fit, the scores of the test images and the AUROC of the raw scores; for tables of other metrics also what the maps
give, at thresholds that held-out normal images give. The scores are kept beside the cells (:mod:`normalcy.studies.kept_scores`):
a cell of the same fit, with another of its scores, fewer test images or another metric of scores, needs no fit of its own.
"""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import norm, t

from normalcy.arrays import Float32, Mask
from normalcy.calibrate import Decision, decide_on_validation
from normalcy.data.dataset import DataSet
from normalcy.data.named import NAMED
from normalcy.data.open import DEFAULT_DATA_ROOT, open_data
from normalcy.data.splits import hold_out, images_to_score, normal_training_images, with_split
from normalcy.detector import Detector
from normalcy.errors import DataError, NormalcyError
from normalcy.files import remove, remove_empty, stamp, write_bytes
from normalcy.methods import available, get
from normalcy.metrics import (
    at_threshold,
    average_precision,
    delong_interval,
    pixel_auroc,
    pixel_average_precision,
    pixel_f1_at,
    pro,
)
from normalcy.nets.pooled import kept_features
from normalcy.provenance import write_record
from normalcy.report.text import MISSING, markdown_table, metric, signed, value_with_ends
from normalcy.results.cluster import connected, each
from normalcy.results.schema import FORMAT, Count, Positive, Rate, dumps, from_json, load, read_json, to_json, was
from normalcy.results.writer import Writer
from normalcy.scoring import Result
from normalcy.studies.claims import LEASE, claimed
from normalcy.studies.kept_scores import KeptScores, read_scores
from normalcy.studies.tables import METRICS, Cell, Json, Row, Table, cells_of, classes_of
from normalcy.training.settings import FitSummary

__all__ = ["Reproduced", "reproduce"]

REMEDY = "remove it, and run its cell again"
POLL = 1.0
"""Seconds that a worker waits for a fit that another process runs, before it looks at the next."""


# -- what is written -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CellRecord:
    """The file of a cell, as far as it is read again: a failure, what was measured, or both."""

    failed: str | None = None
    """The reason; beside a number, that of a later run."""
    auroc: Rate | None = None
    low: Rate | None = None
    high: Rate | None = None
    error: Positive | None = None
    """Standard error of the AUROC (DeLong)."""
    metrics: Mapping[str, Positive | None] = field(default_factory=dict)
    """Those of METRICS that need maps or a threshold, and the average precision over images."""
    fit: FitSummary | None = None
    score_seconds: Positive = 0.0
    seed: int = 0
    hardware: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None

    @property
    def done(self) -> bool:
        return self.auroc is not None

    @property
    def seconds(self) -> float:
        """Of the fit and of scoring."""
        return self.score_seconds + (0.0 if self.fit is None else self.fit.seconds)


@dataclass(frozen=True)
class Measured:
    """A number of a table as it was measured, with its 95 % interval."""

    value: float
    low: float | None
    high: float | None
    over: str
    """What varies in the interval: "seeds", "test images"; "nothing" or "columns" (a mean of them) where there is none."""


@dataclass(frozen=True)
class CellCount:
    done: Count
    of: Count
    seconds: Positive
    """Of fits and of scoring."""


@dataclass(frozen=True)
class ClassMean:
    mean: float
    seeds: Count


@dataclass(frozen=True)
class Line:
    """A row of a table on one column: published and measured."""

    row: str
    column: str
    method: str | None
    metric: str
    published: float | None
    measured: Measured | None = field(default=None, metadata=was("ours"))
    published_same_classes: float | None = None
    """Published, over the classes that were measured."""
    difference: float | None = None
    """Measured minus published over the same classes."""
    cells: CellCount = CellCount(0, 0, 0.0)
    classes: Mapping[str, ClassMean] = field(default_factory=dict)
    """Class that was normal -> mean over seeds."""
    published_classes: Mapping[str, float] = field(default_factory=dict)
    """Class -> published number, where the classes are published one by one."""


@dataclass(frozen=True)
class CellFailure:
    cells: Count
    reason: str


@dataclass(frozen=True)
class Reproduced:
    """A published table and what was measured (``<table>.json``)."""

    table: str
    paper: str
    number: int
    shows: str
    protocol: str
    reduction: str
    unit: str
    metrics: tuple[str, ...]
    lines: tuple[Line, ...]
    failed: tuple[CellFailure, ...]
    notes: tuple[str, ...]
    hardware: tuple[str, ...]
    seeds: tuple[int, ...]
    commits: tuple[str, ...]
    versions: tuple[str, ...]


class Number(NamedTuple):
    """A metric of a cell and its standard error, where it is known."""

    value: float
    error: float | None = None


# -- running ---------------------------------------------------------------------------------------------------------


def reproduce(
    table: Table,
    out: Path,
    cells: Sequence[Cell] | None = None,
    *,
    data_root: Path | None = None,
    jobs: int | None = None,
    overwrite: bool = False,
    lease: float = LEASE,
    ray: str | None = None,
    on_cell: Callable[[Cell, CellRecord], None] | None = None,
) -> Reproduced:
    """Run the cells (all unless given) that ``out`` does not hold whole and write ``out/<table>.json`` and ``.md``.

    ``jobs`` processes work side by side, each with its part of the cores and a GPU of its own as long as they last; none:
    one for each GPU, or for two cores, two where there are two. ``on_cell`` gets each cell that was run and its record. A
    cell that fails is written down with its reason, the others go on; it is tried again by the next call. ``overwrite``: the
    cells are run again even where they are whole. Returns the content of the JSON file.

    Other calls may fill ``out`` at the same time, on other machines too: no fit is run twice, and each call ends when all its
    cells are there. ``lease``: seconds after which the fits of a machine that died are run by others. ``ray``: address of a Ray
    cluster that runs the fits instead of ``jobs``, see :mod:`normalcy.results.cluster`.
    """
    root = Path(data_root or DEFAULT_DATA_ROOT).expanduser()
    tell = on_cell or (lambda cell, record: None)
    chosen = cells_of(table) if cells is None else cells
    before = {cell.file: stamp(out / cell.file) for cell in chosen}
    pending = [cell for cell in chosen if overwrite or not _is_whole(out, cell)]
    absent = {}
    for cell in {cell.column: cell for cell in reversed(pending)}.values():  # now, not once for each of many fits
        try:
            _open(cell, root)
        except Exception as error:
            absent[cell.column] = _reason(error)
    fits: dict[str, list[Cell]] = {}
    for cell in pending:
        fits.setdefault(cell.fit_key, []).append(cell)
    work = []
    for group in fits.values():
        keep = tuple(dict.fromkeys(name for cell in group for name in cell.keep))  # of all rows that share a cell
        once = {cell.file: replace(cell, keep=keep) for cell in group}
        fit = _Fit(table, out, tuple(once.values()), root, lease, before, overwrite=overwrite)
        if (reason := absent.get(group[0].column)) is None:
            work.append(fit)
            continue
        with claimed(fit.claim, lease) as owned:  # else another process, which has the data, runs it
            for cell, record in zip(fit.cells, fit.fail(reason) if owned else []):
                tell(cell, record)
    if ray is None:
        made = side_by_side(work, jobs or len(_gpus()) or max(min(2, _cores()), _cores() // 2))
    else:
        made = _on_cluster(work, ray)
    for fit, records in made:
        for cell, record in zip(fit.cells, records):
            tell(cell, record)
    for fit in work if not any((out / "running").glob("*.claim*")) else ():
        remove(_shared_stages(out, fit.cells[0]))
    remove_empty(out / "running" / "shared")
    remove_empty(out / "running")
    found = tabulate(table, out)
    writer = Writer(out)
    writer.bytes(f"{table.name}.json", dumps(found))
    writer.bytes(f"{table.name}.md", markdown(found).encode())
    return found


@dataclass(frozen=True)
class _Fit:
    """Cells that share a fit, and where to put them."""

    table: Table
    out: Path
    cells: tuple[Cell, ...]
    data_root: Path
    lease: float = LEASE
    before: Mapping[Path, tuple[int, int, int] | None] = field(default_factory=dict)
    """Stamps of the files of cells when the call began: a file with another one was written by another process."""
    wait: float = 0.0
    """Seconds to wait for another process that runs it."""
    overwrite: bool = False
    """Fit, whatever scores are kept."""

    @property
    def claim(self) -> Path:
        return self.out / "running" / f"{self.cells[0].fit_key}.claim"

    def run(self) -> list[CellRecord] | None:
        """The records of the cells, those that no process has made since ``before`` made now; None while another makes them, or
        makes a fit that has stages in common with this one."""
        first, shared = self.cells[0], _shared_stages(self.out, self.cells[0])
        claims = [self.claim]
        if first.method in available() and get(first.method).late_settings:  # else two processes train the same stage
            claims.append(shared.with_name(f"{shared.name}.claim"))
        with ExitStack() as owned:
            if not all(owned.enter_context(claimed(claim, self.lease, self.wait)) for claim in claims):
                return None
            left = self._left()
            records = replace(self, cells=tuple(left))._run() if left else []
            made = {cell.file: record for cell, record in zip(left, records)}
            return [made.get(cell.file) or _read(self.out, cell) for cell in self.cells]

    def fail(self, reason: str) -> list[CellRecord]:
        """The records of the cells, those that no process has made since ``before`` written down as failed."""
        left = {cell.file for cell in self._left()}
        return [
            _write_failure(self.table, self.out, cell, reason) if cell.file in left else _read(self.out, cell)
            for cell in self.cells
        ]

    def _left(self) -> list[Cell]:
        """The cells that no process has made since ``before``, or one has without all the scores that are to be kept."""
        return [
            cell
            for cell in self.cells
            if stamp(self.out / cell.file) == self.before.get(cell.file)
            or (_read(self.out, cell).failed is None and not _is_whole(self.out, cell))
        ]

    def _run(self) -> list[CellRecord]:
        """The records of the cells, written to their files, from the scores that are kept or from a fit; after a fit also those
        of its other cells."""
        first = self.cells[0]
        run_dir = self.out / "running" / first.fit_key
        try:
            data = with_split(_open(first, self.data_root), first.seed)
            test, _ = images_to_score(data, None, first.seed)
            labels = [-1 if item.label is None else item.label for item in test.items]
            kept = read_scores(self.out / first.scores_file) or KeptScores([])
            scored: Sequence[tuple[Cell, Json | Exception]] = [(cell, {}) for cell in self.cells]
            if self.overwrite or list(kept.labels) != labels or not all(_is_kept(cell, kept) for cell in self.cells):
                kept, scored = self._fit(data, test, labels, kept)
                if kept.scores:
                    kept.write(self.out / first.scores_file)
        except Exception as error:
            return self.fail(_reason(error))
        finally:
            if not isinstance(sys.exc_info()[1], KeyboardInterrupt):
                remove(run_dir)
        return [self._measure(cell, kept, more) for cell, more in scored]

    def _fit(
        self, data: DataSet, test: DataSet, labels: Sequence[int], earlier: KeptScores
    ) -> tuple[KeptScores, list[tuple[Cell, Json | Exception]]]:
        """The scores of a new fit: those of its cells, also of the finished ones of other rows and tables, and all that were
        kept of an ``earlier`` fit, each on the images of any of them. And for each cell what its record says beside the scores,
        or why scoring failed."""
        first, held_out = self.cells[0], None
        kept = KeptScores(labels, facts=_identity(first))
        detector = Detector(first.method, **{**first.given, "seed": first.seed})
        train = normal_training_images(data)
        if first.minimum_area is not None:
            keep, carved = hold_out(train.cases, 0.1, minimum=1, seed=first.seed)
            train, held_out = train.subset(keep), train.subset(carved)
        run_dir = self.out / "running" / first.fit_key
        detector.fit(train, run_dir=run_dir, resume=True, shared=_shared_stages(self.out, first))
        kept.facts |= {
            "train": {key: detector.facts["data"][key] for key in ("name", "count", "fingerprint")},
            "fit": detector.facts["fit"],
        }
        own = {cell.file for cell in self.cells}
        cells: list[tuple[Cell, Json]] = [(cell, {}) for cell in self.cells]
        cells += [(cell, facts) for cell, facts in _finished(self.out, first) if cell.file not in own]
        wanted = earlier.images if list(earlier.labels) == labels else set()
        images = sorted(wanted.union(*(_chosen(cell, len(labels)) for cell, _ in cells)))
        scored: list[tuple[Cell, Json | Exception]] = []
        for cell, facts in cells:
            try:
                maps = _score_maps(cell, detector, test, held_out, kept) if cell.maps else {}
                _score(cell.score, detector, test, images, kept)
                scored.append((cell, {**facts, **maps}))
            except Exception as error:
                scored.append((cell, error))
        again = [name for name in earlier.scores if name in get(first.method).scores]
        for name in (*(name for cell in self.cells for name in cell.keep), *again):
            _score(name, detector, test, images, kept)
        return kept, scored

    def _measure(self, cell: Cell, kept: KeptScores, more: Json | Exception) -> CellRecord:
        try:
            if isinstance(more, Exception):
                raise more
            images = _chosen(cell, len(kept.labels))
            labels, scores = kept.of(cell.score or "", images)
            if not 0 < sum(labels) < len(labels) or min(labels) < 0:
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
                **more,
                "test": {
                    "normal": len(labels) - sum(labels),
                    "anomalous": sum(labels),
                    "unread": len(images) - len(labels),
                },
                "train": kept.facts["train"],
                "fit": kept.facts["fit"],
                "score_seconds": kept.seconds[cell.score or ""],
            },
        )


@dataclass(frozen=True)
class _ScoredImage:
    place: int
    """Index in the data set."""
    label: int | None
    score: float
    map: Float32 | None
    mask: Mask | None


def _score(
    name: str | None, detector: Detector, test: DataSet, images: Sequence[int], kept: KeptScores, maps: bool = False
) -> list[_ScoredImage]:
    """Keep the scores of these images; nothing is done where they are kept already, unless maps are wanted."""
    if not maps and kept.covers(name or "", images):
        return []
    started = time.perf_counter()
    found = _scored(name, detector, test.subset(images), maps)
    read = [images[f.place] for f in found]
    kept.unread = sorted({*kept.unread, *set(images).difference(read)})
    kept.add(name or "", read, [f.score for f in found], time.perf_counter() - started)
    return found


def _score_maps(cell: Cell, detector: Detector, test: DataSet, held_out: DataSet | None, kept: KeptScores) -> Json:
    """Keep the scores of the images of the cell; the metrics that their maps give."""
    found = _score(cell.score, detector, test, _chosen(cell, len(test)), kept, maps=True)
    decision = None
    if cell.minimum_area is not None and held_out is not None:
        normal_maps = [f.map for f in _scored(cell.score, detector, held_out, True) if f.map is not None]
        area = max(1, round(cell.minimum_area * normal_maps[0].size)) if normal_maps else 1
        decision = decide_on_validation(f"minimum_area:{area}", [], None, normal_maps, None)
    return {"metrics": _of_maps(found, decision)}


def _scored(name: str | None, detector: Detector, data: DataSet, maps: bool) -> list[_ScoredImage]:
    """Of each image that can be read."""
    scored, found = detector if name is None else detector.with_score(name), []
    for i, r in enumerate(scored.stream(data, batch_size=256)):
        if isinstance(r, Result):
            map, mask = (r.map, data.mask(i)) if maps else (None, None)
            found.append(_ScoredImage(i, r.item.label, r.score, map, mask))
    return found


def _chosen(cell: Cell, count: int) -> list[int]:
    """Indices of the test images that the cell is about, of ``count``."""
    if cell.test_images is None or cell.test_images >= count:
        return list(range(count))
    return sorted(np.random.default_rng(cell.seed).permutation(count)[: cell.test_images].tolist())


def _is_kept(cell: Cell, kept: KeptScores) -> bool:
    images = _chosen(cell, len(kept.labels))
    return not cell.maps and all(kept.covers(name, images) for name in (cell.score or "", *cell.keep))


def _is_whole(out: Path, cell: Cell) -> bool:
    """Whether there is nothing to run: it is done, and where scores of its fit are kept, all are that its row names."""
    record = _read(out, cell)
    if not record.done or record.failed is not None:
        return False
    kept = read_scores(out / cell.scores_file) if cell.keep else None
    return kept is None or all(kept.covers(name, _chosen(cell, len(kept.labels))) for name in cell.keep)


def _finished(out: Path, cell: Cell) -> list[tuple[Cell, Json]]:
    """The cells of the same fit that ``out`` holds a number of, also those of other tables, with what names their table."""
    found: list[tuple[Cell, Json]] = []
    for path in sorted((out / cell.file).parent.glob(f"{cell.file.stem.rpartition('-')[0]}-*.json")):
        record = _with_number(path) or {}
        for maps in (False, True):
            one = replace(cell, score=record.get("score"), test_images=record.get("test_images"), maps=maps, keep=())
            if record and one.file.name == path.name:  # its hash says that it is of this fit
                found.append((one, {key: record[key] for key in ("made_for", "reduction") if key in record}))
    return found


def _shared_stages(out: Path, cell: Cell) -> Path:
    """Folder of the stages that fits of one method on one training set have in common."""
    return out / "running" / "shared" / f"{cell.method}-{cell.column}-{cell.normal}-{cell.seed}"


def _identity(cell: Cell) -> Json:
    return {"data": cell.spec, "seed": cell.seed, "method": cell.method, "settings": cell.settings}


def _of_maps(found: Sequence[_ScoredImage], decision: Decision | None) -> dict[str, float | None]:
    """METRICS but the AUROC of images; none where they cannot be had. Anomalous images in which nothing is marked are left
    out over pixels."""
    labels = np.array([f.label for f in found])
    metrics: dict[str, float | None] = {"image_ap": average_precision(labels, np.array([f.score for f in found]))}
    seen = [
        (f.map, None if f.label == 0 else f.mask)
        for f in found
        if f.map is not None and (f.label == 0 or (f.mask is not None and f.mask.any()))
    ]
    maps, masks = [map for map, _ in seen], [mask for _, mask in seen]
    located = any(mask is not None for mask in masks)
    if located:
        metrics |= {"pixel_auroc": pixel_auroc(maps, masks), "pixel_ap": pixel_average_precision(maps, masks)}
    if decision is not None and decision.pixel_threshold is not None:
        flags = np.array([decision.flags(f.score, f.map) for f in found])
        at = at_threshold(labels, flags)
        metrics |= {"mean_accuracy": at.mean_accuracy, "image_f1": at.f1}
        if located:
            threshold = decision.pixel_threshold
            metrics |= {"pixel_f1": pixel_f1_at(maps, masks, threshold), "pro": pro(maps, masks, threshold)}
    return metrics


def side_by_side(work: Sequence[_Fit], jobs: int) -> Iterator[tuple[_Fit, list[CellRecord]]]:
    """Each fit with its records, as they come. One job runs in this process."""
    jobs = min(jobs, len(work))
    waiting, gpus = deque(work), _gpus()
    if jobs <= 1:
        with kept_features():
            while waiting:
                fit = waiting.popleft()
                if (records := fit.run()) is None:
                    waiting.append(replace(fit, wait=POLL))
                else:
                    yield fit, records
        return
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
                    records = fit.fail(reason)
                    if waiting:
                        worker = _Worker(worker.threads, worker.gpu)
                if records is None:
                    waiting.append(replace(fit, wait=POLL))
                if waiting:
                    give(worker)
                else:
                    worker.connection.close()  # its process ends
                if records is not None:
                    yield fit, records
    finally:
        for worker, _ in busy.values():
            worker.process.terminate()
        for worker, _ in busy.values():  # it gives up its claim
            worker.process.join(10)
            worker.process.kill()


def _on_cluster(work: Sequence[_Fit], address: str) -> Iterator[tuple[_Fit, list[CellRecord]]]:
    """As :func:`side_by_side`, on a Ray cluster."""
    waiting = deque(work)
    if not waiting:
        return
    with connected(address) as ray:
        for fit, records in each(ray, _Running, waiting):
            if records is None:
                waiting.append(replace(fit, wait=POLL))
            elif isinstance(records, NormalcyError):
                yield fit, fit.fail(_reason(records))
            else:
                yield fit, records


class _Running:
    """Runs fits in an actor."""

    def __call__(self, fit: _Fit, on_done: object) -> list[CellRecord] | None:
        return fit.run()


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

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        with kept_features():
            while True:
                connection.send(connection.recv().run())
    except (EOFError, OSError, KeyboardInterrupt):  # the other side is gone, or stops
        return


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


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


def _write_failure(table: Table, out: Path, cell: Cell, reason: str) -> CellRecord:
    """The failure, written down beside the number of an earlier run where there is one."""
    path = out / cell.file
    if (earlier := _with_number(path)) is None:
        return _write(table, out, cell, {"failed": reason})
    write_bytes(path, (json.dumps({**earlier, "failed": reason}, indent=1) + "\n").encode())
    return CellRecord(failed=reason)


def _with_number(path: Path) -> Json | None:
    """All that the file of a cell says; none where it holds no number."""
    with suppress(DataError):
        if load(CellRecord, path, REMEDY).done:
            return dict(read_json(path, REMEDY))
    return None


def _write(table: Table, out: Path, cell: Cell, facts: Json) -> CellRecord:
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
    write_record(out / cell.file, to_json(record))
    return from_json(CellRecord, to_json(record), str(cell.file), REMEDY)


def _read(out: Path, cell: Cell) -> CellRecord:
    """The record of a cell, with the average precision of the kept scores where its row shows that; an empty one where there is
    none that can be used."""
    try:
        record = load(CellRecord, out / cell.file, REMEDY)
    except DataError:
        return CellRecord()
    if not record.done or cell.maps or cell.metric != "image_ap":
        return record
    kept, score = read_scores(out / cell.scores_file), cell.score or ""
    if kept is None or not kept.covers(score, images := _chosen(cell, len(kept.labels))):
        return CellRecord(failed=record.failed)
    return replace(record, metrics={"image_ap": average_precision(*kept.of(score, images))})


# -- the table -------------------------------------------------------------------------------------------------------


def tabulate(table: Table, out: Path) -> Reproduced:
    """Published and measured numbers, of what ``out`` holds. A number is the mean over classes of the mean over
    seeds; its 95 % interval see :func:`interval`."""
    records: dict[tuple[str, str], list[tuple[Cell, CellRecord]]] = {}
    for cell in cells_of(table):
        records.setdefault((cell.row, cell.column), []).append((cell, _read(out, cell)))
    lines: list[Line] = []
    for row in table.rows:
        own = [_line(table, row, column, records.get((row.name, column), [])) for column in table.columns]
        lines += [*own, _mean_line(table, row, own)] if table.mean else own
    everything = [pair for pairs in records.values() for pair in pairs]
    failed = Counter(
        f"{cell.row} on {cell.column}: {record.failed}{' The number shown is of an earlier run.' * record.done}"
        for cell, record in everything
        if record.failed is not None
    )
    made = [record for _, record in everything if record.done]
    return Reproduced(
        table=table.name,
        paper=table.paper,
        number=table.number,
        shows=table.shows,
        protocol=table.protocol,
        reduction=table.reduction,
        unit="minutes" if table.metric == "fit_minutes" else "percent",
        metrics=tuple(dict.fromkeys(METRICS[table.metric_of(row)] for row in table.rows)),
        lines=tuple(lines),
        failed=tuple(CellFailure(count, reason) for reason, count in failed.items()),
        notes=(*table.notes, *(f"{row.name}: {row.note}" for row in table.rows if row.note)),
        hardware=_distinct(record.hardware.get("gpu") or record.hardware.get("processor") for record in made),
        seeds=tuple(sorted({record.seed for record in made})),
        commits=_distinct(record.commit for record in made),
        versions=_distinct(
            f"normalcy {record.versions.get('normalcy')}, torch {record.versions.get('torch')}" for record in made
        ),
    )


def _line(table: Table, row: Row, column: str, pairs: Sequence[tuple[Cell, CellRecord]]) -> Line:
    metric = table.metric_of(row)
    done = [(cell, record) for cell, record in pairs if record.done]
    by_class: dict[str, dict[int, Number]] = {}
    for cell, record in done:
        number = _number(record, metric)
        if number is not None:
            by_class.setdefault(cell.normal, {})[cell.seed] = number
    unit, most = (1.0, math.inf) if metric == "fit_minutes" else (100.0, 1.0)
    classes = {
        normal: ClassMean(round(unit * _mean_of(seeds.values()), 3), len(seeds)) for normal, seeds in by_class.items()
    }
    cells = CellCount(len(done), len(pairs), round(sum(record.seconds for _, record in done), 1))
    measured = interval(list(by_class.values()), unit, most)
    same = None if measured is None else comparable(table, row, column, list(classes))
    line = Line(row.name, column, row.method, metric, row.published.get(column), measured, same, cells=cells)
    return replace(
        _with_difference(line), classes=classes, published_classes=dict(row.published_classes.get(column, {}))
    )


def comparable(table: Table, row: Row, column: str, classes: Sequence[str]) -> float | None:
    """The published number for these classes: the mean over all where no class is missing, the mean over them where they are
    published one by one; none where there is no number over the same classes."""
    by_class, given = row.published_classes.get(column, {}), table.columns[column]
    if set(classes) == set(given.unreduced or classes_of(given)) and column in row.published:
        return row.published[column]
    if classes and all(normal in by_class for normal in classes):
        return round(statistics.fmean(by_class[normal] for normal in classes), 3)
    return None


def _mean_line(table: Table, row: Row, own: Sequence[Line]) -> Line:
    """The mean over columns, where all of them have a number."""
    values = [line.measured.value for line in own if line.measured is not None]
    whole = Measured(round(statistics.fmean(values), 3), None, None, "columns") if len(values) == len(own) else None
    done, of, seconds = (sum(getattr(line.cells, name) for line in own) for name in ("done", "of", "seconds"))
    published, cells = row.published.get("mean"), CellCount(done, of, seconds)
    same = None if whole is None else published
    return _with_difference(
        Line(row.name, "mean", row.method, table.metric_of(row), published, whole, same, cells=cells)
    )


def _with_difference(line: Line) -> Line:
    if line.measured is None or line.published_same_classes is None:
        return line
    return replace(line, difference=round(line.measured.value - line.published_same_classes, 3))


def _number(record: CellRecord, metric: str) -> Number | None:
    """A metric of a cell; of metrics but the AUROC of images no error is known."""
    if metric == "image_auroc":
        return None if record.auroc is None else Number(record.auroc, record.error)
    if metric == "fit_minutes":
        return None if record.fit is None else Number(record.fit.seconds / 60)
    value = record.metrics.get(metric)
    return None if value is None else Number(value)


def interval(classes: Sequence[Mapping[int, Number]], unit: float = 100.0, most: float = 1.0) -> Measured | None:
    """Mean over classes of the mean over seeds, in percent, with a 95 % interval. ``classes``: seed -> number.
    ``unit`` and ``most``: a factor on the numbers, and the largest that there can be, where they are no fractions.

    With at least two seeds that every class has: Student's t over the seeds, each the mean over classes. Else DeLong's
    errors, that of a class the mean over its seeds, which see the same test images, and classes taken as independent; no
    interval where there are none.

    >>> interval([{0: Number(0.9, 0.03)}, {0: Number(0.8, 0.04)}])
    Measured(value=85.0, low=80.1, high=89.9, over='test images')
    >>> interval([{0: Number(0.89, 0.03), 1: Number(0.91, 0.03)}])
    Measured(value=90.0, low=77.294, high=100.0, over='seeds')
    """
    if not classes:
        return None
    value = statistics.fmean(_mean_of(seeds.values()) for seeds in classes)
    common = set.intersection(*(set(seeds) for seeds in classes))
    errors = [[number.error for number in seeds.values() if number.error is not None] for seeds in classes]
    if len(common) > 1:
        means = [statistics.fmean(seeds[k].value for seeds in classes) for k in sorted(common)]
        half = float(t.ppf(0.975, len(means) - 1)) * statistics.stdev(means) / math.sqrt(len(means))
    elif any(len(known) < len(seeds) for known, seeds in zip(errors, classes)):
        return Measured(round(unit * value, 3), None, None, "nothing")
    else:
        half = float(norm.ppf(0.975)) * math.hypot(*map(statistics.fmean, errors)) / len(errors)
    low, high = max(value - half, 0.0), min(value + half, most)
    over = "seeds" if len(common) > 1 else "test images"
    return Measured(round(unit * value, 3), round(unit * low, 3), round(unit * high, 3), over)


HEAD = ("method", "data", "published", "same classes", "measured [95 %]", "difference", "cells")


def markdown(found: Reproduced) -> str:
    """The table as a page."""
    lines = [f"# {found.paper}: table {found.number}", "", found.shows, "", found.protocol, ""]
    if found.reduction:
        lines += [f"**{found.reduction}**", ""]
    lines += markdown_table(HEAD, [cells_as_text(line) for line in found.lines])
    lines += ["", explained(found)]
    for column in dict.fromkeys(line.column for line in found.lines):
        here = [line for line in found.lines if line.column == column and line.classes]
        fullest = sorted(here, key=lambda line: -len(line.classes))  # its order is the table's
        classes = list(dict.fromkeys(normal for line in fullest for normal in line.classes))
        if classes and classes != [""]:
            lines += ["", f"## {column}, class by class", ""]
            lines += markdown_table(["normal", *classes], [row for line in here for row in _by_class(line, classes)])
    for title, points in (
        ("Failed", [f"{one.reason} Cells: {one.cells}." for one in found.failed]),
        ("Notes", found.notes),
        ("Made with", [*found.versions, *found.hardware]),
    ):
        if points:
            lines += ["", f"## {title}", "", *(f"- {point}" for point in points)]
    return "\n".join(lines) + "\n"


def cells_as_text(line: Line) -> list[str]:
    """A line under :data:`HEAD`."""
    found, cells = line.measured, line.cells
    return [
        line.row,
        line.column,
        metric(line.published, 1),
        metric(line.published_same_classes, 1),
        MISSING if found is None else value_with_ends(found.value, found.low, found.high, 1),
        signed(line.difference, 1),
        f"{cells.done}/{cells.of}" if cells.of else MISSING,
    ]


def explained(found: Reproduced) -> str:
    """What the numbers are, in a sentence or two."""
    kinds = {line.measured.over for line in found.lines if line.measured is not None}
    how = {
        "seeds": "over seeds",
        "test images": "over test images for a single seed (DeLong; classes taken as independent)",
    }
    intervals = " or ".join(how[kind] for kind in sorted(kinds) if kind in how) or ("none" if kinds else "none yet")
    part = any(0 < line.cells.done < line.cells.of for line in found.lines)
    rest = (
        " Where cells are missing, the number is the mean of those that are there; the difference is to the published mean over "
        "the same classes, and is not given where that is not known."
        if part
        else ""
    )
    what = f"{'; '.join(found.metrics)} in {found.unit}, mean over classes of the mean over seeds"
    return f"{what}; intervals: {intervals}.{rest}"


# -- private ---------------------------------------------------------------------------------------------------------


def _by_class(line: Line, classes: Sequence[str]) -> list[list[str]]:
    """The measured numbers, and the published ones below them where there are any."""
    measured = {normal: one.mean for normal, one in line.classes.items()}
    rows = [(line.row, measured), (f"{line.row}, published", line.published_classes)]
    spelled = [[name, *("" if n not in numbers else metric(numbers[n], 1) for n in classes)] for name, numbers in rows]
    return spelled if any(n in line.published_classes for n in classes) else spelled[:1]


def _mean_of(numbers: Iterable[Number]) -> float:
    return statistics.fmean(number.value for number in numbers)


def _distinct(texts: Iterable[object]) -> tuple[str, ...]:
    return tuple(sorted({str(text) for text in texts}))
