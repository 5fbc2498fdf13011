"""Published tables, run again: one TOML file a table (:mod:`normalcy.studies.tables`), one JSON file a cell, and what
is there is not run twice.

A cell is a fit, the scores of the test images and the AUROC of the raw scores; for tables of other metrics also what the maps
give, at thresholds that held-out normal images give. The scores are kept beside the cells (:mod:`normalcy.studies.kept_scores`):
a cell of the same fit, with another of its scores or fewer test images, needs no fit of its own.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

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
from normalcy.files import write_bytes
from normalcy.metrics import average_precision, delong_interval, pixel_auroc, pixel_average_precision, pixel_f1_at, pro
from normalcy.provenance import write_record
from normalcy.scoring import Result
from normalcy.studies.kept_scores import KeptScores, read_scores
from normalcy.studies.tables import METRICS, Cell, Json, Row, Table, cells_of, classes_of

FORMAT = 1


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
    for cell in pending if overwrite else ():
        (out / cell.scores_file).unlink(missing_ok=True)
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
    shutil.rmtree(out / "running" / "shared", ignore_errors=True)
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
        """The records of the cells, written to their files, from the scores that are kept or from a fit."""
        first, detector, held_out = self.cells[0], None, None
        run_dir = self.out / "running" / first.fit_key
        try:
            data = with_split(_open(first, self.data_root), first.seed)
            test, _ = images_to_score(data, None, first.seed)
            labels = [-1 if item.label is None else item.label for item in test.items]
            kept = read_scores(self.out / first.scores_file) or KeptScores([])
            if list(kept.labels) != labels or not all(_is_kept(cell, kept, test) for cell in self.cells):
                kept = KeptScores(labels, facts=_identity(first))
                detector = Detector(first.method, **{**first.given, "seed": first.seed})
                train = normal_training_images(data)
                if first.minimum_area is not None:
                    keep, carved = hold_out(train.cases, 0.1, minimum=1, seed=first.seed)
                    train, held_out = train.subset(keep), train.subset(carved)
                shared = self.out / "running" / "shared" / f"{first.column}-{first.normal}-{first.seed}"
                detector.fit(train, run_dir=run_dir, resume=True, shared=shared)
                kept.facts |= {
                    "train": {key: detector.facts["data"][key] for key in ("name", "count", "fingerprint")},
                    "fit": detector.facts["fit"],
                }
        except Exception as error:
            return [_write_failure(self.table, self.out, cell, _reason(error)) for cell in self.cells]
        finally:
            if not isinstance(sys.exc_info()[1], KeyboardInterrupt):
                shutil.rmtree(run_dir, ignore_errors=True)
        return [self._measure(cell, detector, test, held_out, kept) for cell in self.cells]

    def _measure(
        self, cell: Cell, detector: Detector | None, test: DataSet, held_out: DataSet | None, kept: KeptScores
    ) -> Json:
        try:
            images = _chosen(cell, test)
            more: Json = {}
            if detector is not None:
                for name in dict.fromkeys([cell.score, *cell.keep]):
                    more |= self._score(cell, name, detector, test.subset(images), images, held_out, kept)
                kept.write(self.out / cell.scores_file)
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

    def _score(
        self,
        cell: Cell,
        name: str | None,
        detector: Detector,
        test: DataSet,
        images: Sequence[int],
        held_out: DataSet | None,
        kept: KeptScores,
    ) -> Json:
        """Score the images, unless their scores are kept; of the cell's own score also what the maps give."""
        maps = cell.maps and name == cell.score
        if not maps and kept.covers(name or "", images):
            return {}
        started = time.perf_counter()
        scored = detector.with_score(name) if name is not None else detector
        found = _scored(scored, test, maps)
        metrics: Json = {}
        if maps:
            decision = None
            if cell.minimum_area is not None and held_out is not None:
                normal_maps = [f.map for f in _scored(scored, held_out, True) if f.map is not None]
                area = max(1, round(cell.minimum_area * normal_maps[0].size)) if normal_maps else 1
                decision = decide_on_validation(f"minimum_area:{area}", [], None, normal_maps, None)
            metrics = {"metrics": _of_maps(found, decision)}
        read = [images[f.place] for f in found]
        kept.unread = sorted({*kept.unread, *set(images).difference(read)})
        kept.add(name or "", read, [f.score for f in found], time.perf_counter() - started)
        return metrics


@dataclass(frozen=True)
class _Found:
    place: int
    """Index in the data set."""
    label: int | None
    score: float
    map: Float32 | None
    mask: Mask | None


def _scored(detector: Detector, data: DataSet, maps: bool) -> list[_Found]:
    """Of each image that can be read."""
    found = []
    for i, r in enumerate(detector.stream(data, batch_size=256)):
        if isinstance(r, Result):
            found.append(_Found(i, r.item.label, r.score, r.map if maps else None, data.mask(i) if maps else None))
    return found


def _chosen(cell: Cell, test: DataSet) -> list[int]:
    """Indices of the test images that the cell is about."""
    count = len(test)
    if cell.test_images is None or cell.test_images >= count:
        return list(range(count))
    return sorted(np.random.default_rng(cell.seed).permutation(count)[: cell.test_images].tolist())


def _is_kept(cell: Cell, kept: KeptScores, test: DataSet) -> bool:
    return not cell.maps and kept.covers(cell.score or "", _chosen(cell, test))


def _identity(cell: Cell) -> Json:
    return {"data": cell.spec, "seed": cell.seed, "method": cell.method, "settings": cell.settings}


def _of_maps(found: Sequence[_Found], decision: Decision | None) -> dict[str, float | None]:
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
        true, both = labels == 1, float(2 * (flags & (labels == 1)).sum())
        metrics["mean_accuracy"] = float(flags[true].mean() + (~flags[~true]).mean()) / 2
        metrics["image_f1"] = both / float(flags.sum() + true.sum())
        if located:
            threshold = decision.pixel_threshold
            metrics |= {"pixel_f1": pixel_f1_at(maps, masks, threshold), "pro": pro(maps, masks, threshold)}
    return metrics


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
    write_record(out / cell.file, record)
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
    """Published and measured numbers, of what ``out`` holds. A number is the mean over classes of the mean over
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
                number = _number(record, table.metric_of(row))
                if number is not None:
                    by_class.setdefault(cell.normal, {})[cell.seed] = number
            unit, most = (1.0, math.inf) if table.metric_of(row) == "fit_minutes" else (100.0, 1.0)
            classes = {
                normal: {"mean": round(unit * _mean_of(seeds.values()), 3), "seeds": len(seeds)}
                for normal, seeds in by_class.items()
            }
            ours = interval(list(by_class.values()), unit, most)
            seconds = sum(record["fit"]["seconds"] + record["score_seconds"] for _, record in found)
            cells = {"done": len(found), "of": len(here), "seconds": round(seconds, 1)}
            lines.append(_line(table, row, column, ours, cells, classes))
        if table.mean:
            own = lines[-len(table.columns) :]
            values = [line["ours"]["value"] for line in own if line["ours"] is not None]
            whole = None
            if len(values) == len(own):
                whole = {"value": round(statistics.fmean(values), 3), "low": None, "high": None, "over": "columns"}
            cells = {key: sum(line["cells"][key] for line in own) for key in ("done", "of", "seconds")}
            lines.append(_line(table, row, "mean", whole, cells, {}))
    return {
        "format": FORMAT,
        "table": table.name,
        "paper": table.paper,
        "number": table.number,
        "shows": table.shows,
        "protocol": table.protocol,
        "reduction": table.reduction,
        "unit": "minutes" if table.metric == "fit_minutes" else "percent",
        "metrics": list(dict.fromkeys(METRICS[table.metric_of(row)] for row in table.rows)),
        "lines": lines,
        "failed": [{"cells": count, "reason": reason} for reason, count in failed.items()],
        "notes": [*table.notes, *(f"{row.name}: {row.note}" for row in table.rows if row.note)],
        "hardware": _distinct(record["hardware"].get("gpu") or record["hardware"]["processor"] for record in made),
        "seeds": sorted({record["seed"] for record in made}),
        "commits": _distinct(record["commit"] for record in made),
        "versions": _distinct(f"normalcy {r['versions']['normalcy']}, torch {r['versions']['torch']}" for r in made),
    }


def _line(
    table: Table, row: Row, column: str, ours: Json | None, cells: Mapping[str, int], classes: Mapping[str, Json]
) -> Json:
    published = row.published.get(column)
    same = comparable(table, row, column, list(classes)) if ours is not None else None
    by_class = row.published_classes.get(column, {})
    return {
        "row": row.name,
        "column": column,
        "method": row.method,
        "metric": table.metric_of(row),
        "published": published,
        "published_same_classes": same,
        "ours": ours,
        "difference": None if ours is None or same is None else round(ours["value"] - same, 3),
        "cells": cells,
        "classes": classes,
        "published_classes": dict(by_class),
    }


def comparable(table: Table, row: Row, column: str, classes: Sequence[str]) -> float | None:
    """The published number for these classes: the mean over them where they are published one by one, the mean over all where
    no class is missing; none where there is no number over the same classes."""
    by_class = row.published_classes.get(column, {})
    if column == "mean":
        return row.published.get(column)
    given = table.columns[column]
    whole = set(classes) == set(given.unreduced or classes_of(given))
    if whole and column in row.published:
        return row.published[column]
    if classes and all(normal in by_class for normal in classes):
        return round(statistics.fmean(by_class[normal] for normal in classes), 3)
    return None


def _number(record: Json, metric: str) -> Json | None:
    """A metric of a cell, "value" and its "error"; of metrics but the AUROC of images no error is known."""
    if metric == "image_auroc":
        return {"value": record["auroc"], "error": record["error"]}
    if metric == "fit_minutes":
        return {"value": record["fit"]["seconds"] / 60, "error": None}
    value = record.get("metrics", {}).get(metric)
    return None if value is None or not math.isfinite(value) else {"value": value, "error": None}


def interval(classes: Sequence[Mapping[int, Json]], unit: float = 100.0, most: float = 1.0) -> Json | None:
    """Mean over classes of the mean over seeds, in percent, with a 95 % interval. ``classes``: seed -> value and error.
    ``unit`` and ``most``: a factor on the numbers, and the largest that there can be, where they are no shares.

    With at least two seeds that every class has: Student's t over the seeds, each the mean over classes. Else DeLong's
    errors, that of a class the mean over its seeds, which see the same test images, and classes taken as independent; no
    interval where there are none.

    >>> one = {0: {"value": 0.9, "error": 0.03}}, {0: {"value": 0.8, "error": 0.04}}
    >>> interval(one)
    {'value': 85.0, 'low': 80.1, 'high': 89.9, 'over': 'test images'}
    >>> two = {0: {"value": 0.89, "error": 0.03}, 1: {"value": 0.91, "error": 0.03}}
    >>> interval([two])
    {'value': 90.0, 'low': 77.294, 'high': 100.0, 'over': 'seeds'}
    """
    if not classes:
        return None
    value = statistics.fmean(_mean_of(seeds.values()) for seeds in classes)
    common = set.intersection(*(set(seeds) for seeds in classes))
    if len(common) > 1:
        means = [statistics.fmean(seeds[k]["value"] for seeds in classes) for k in sorted(common)]
        half = float(t.ppf(0.975, len(means) - 1)) * statistics.stdev(means) / math.sqrt(len(means))
    elif any(number["error"] is None for seeds in classes for number in seeds.values()):
        return {"value": round(unit * value, 3), "low": None, "high": None, "over": "nothing"}
    else:
        errors = [statistics.fmean(record["error"] for record in seeds.values()) for seeds in classes]
        half = float(norm.ppf(0.975)) * math.hypot(*errors) / len(errors)
    over = "seeds" if len(common) > 1 else "test images"
    return {
        "value": round(unit * value, 3),
        "low": round(unit * max(value - half, 0.0), 3),
        "high": round(unit * min(value + half, most), 3),
        "over": over,
    }


def markdown(found: Json) -> str:
    """The table as a page."""
    lines = [f"# {found['paper']}: table {found['number']}", "", found["shows"], "", found["protocol"], ""]
    if found["reduction"]:
        lines += [f"**{found['reduction']}**", ""]
    lines += _grid(
        ["method", "data", "published", "published, same classes", "ours [95 %]", "difference", "cells"],
        [[line["row"], line["column"], *spelled(line)] for line in found["lines"]],
    )
    lines += ["", explained(found)]
    for column in dict.fromkeys(line["column"] for line in found["lines"]):
        here = [line for line in found["lines"] if line["column"] == column and line["classes"]]
        classes = list(dict.fromkeys(normal for line in here for normal in line["classes"]))
        if classes and classes != [""]:
            lines += ["", f"## {column}, class by class", ""]
            lines += _grid(["normal", *classes], [row for line in here for row in _by_class(line, classes)])
    for title, points in (
        ("Failed", [f"{f['reason']} Cells: {f['cells']}." for f in found["failed"]]),
        ("Notes", found["notes"]),
        ("Made with", [*found["versions"], *found["hardware"]]),
    ):
        if points:
            lines += ["", f"## {title}", "", *(f"- {point}" for point in points)]
    return "\n".join(lines) + "\n"


def spelled(line: Json) -> list[str]:
    """Published over all classes and over the classes of ours, ours, difference and cells of a line, as they are printed."""
    ours, difference, cells = line["ours"], line["difference"], line["cells"]
    return [
        *("-" if line[key] is None else f"{line[key]:.1f}" for key in ("published", "published_same_classes")),
        "-"
        if ours is None
        else f"{ours['value']:.1f}" + ("" if ours["low"] is None else f" [{ours['low']:.1f}, {ours['high']:.1f}]"),
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
    intervals = " or ".join(how[kind] for kind in sorted(kinds) if kind in how) or ("none" if kinds else "none yet")
    part = any(0 < line["cells"]["done"] < line["cells"]["of"] for line in found["lines"])
    rest = " Where cells are missing, ours is the mean of those that are there; the difference is to the published mean over the "
    rest = rest + "same classes, and is not given where that is not known." if part else ""
    what = f"{'; '.join(found['metrics'])} in {found['unit']}, mean over classes of the mean over seeds"
    return f"{what}; intervals: {intervals}.{rest}"


# -- private ---------------------------------------------------------------------------------------------------------


def _by_class(line: Json, classes: Sequence[str]) -> list[list[str]]:
    """Our numbers, and the published ones below them where there are any."""
    ours = {normal: number["mean"] for normal, number in line["classes"].items()}
    rows = [(line["row"], ours), (f"{line['row']}, published", line["published_classes"])]
    spelled = [[name, *("" if n not in numbers else f"{numbers[n]:.1f}" for n in classes)] for name, numbers in rows]
    return spelled if any(n in line["published_classes"] for n in classes) else spelled[:1]


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _mean_of(numbers: Iterable[Json]) -> float:
    return statistics.fmean(number["value"] for number in numbers)


def _distinct(words: Any) -> list[str]:
    return sorted(set(words))
