"""Results of a data set -> a results folder (its files are described in docs/reference/files.md)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from normalcy.arrays import Array
from normalcy.calibrate import Decision
from normalcy.data.dataset import DataSet, Failure
from normalcy.errors import DataError
from normalcy.files import new_array, prepare_target, refuse_existing, refuse_source, write_folder
from normalcy.results.cases import write_cases
from normalcy.results.names import LATENTS, readable
from normalcy.results.parts import read_rows_of, write_parts
from normalcy.results.run import (
    COLUMNS,
    LISTED,
    POSITIONS,
    RUN,
    SLICE_COLUMNS,
    Run,
    ScoreRow,
    Shard,
    case_numbers,
    describe,
)
from normalcy.results.schema import as_read, dumps
from normalcy.results.writer import ImageNames, ImageWriter, Writer, refuse_inputs
from normalcy.scoring import Result
from normalcy.training.log import TRAIN_LOG, Record

__all__ = ["score_into"]

if TYPE_CHECKING:
    from normalcy.detector import Detector

FAULT_COLUMNS = ("path", "reason")
Maps = bool | Callable[[Result], bool]


def score_into(
    detector: Detector,
    data: DataSet,
    out: Path,
    *,
    decision: Decision | None = None,
    spec: str | None = None,
    split: str | None = None,
    chosen_on: Sequence[str] = (),
    tile: bool = False,
    batch_size: int = 32,
    maps: Maps = True,
    shard: Shard | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Run:
    """Score ``data`` with a detector into the results folder ``out``; see :func:`predict`.

    ``decision`` defaults to the detector's own false-alarm rate. ``spec`` and ``split`` are noted, so that the report can open
    the images again. ``chosen_on``: see :func:`~normalcy.results.run.describe`. ``shard``: only the images of this part, for
    :func:`~normalcy.results.shards.merge`.
    """
    prepare_target(out, overwrite)
    refuse_source(out, detector.folder)
    score = part_scorer(
        detector,
        data,
        decision=decision,
        spec=spec,
        split=split,
        chosen_on=chosen_on,
        tile=tile,
        batch_size=batch_size,
        maps=maps,
    )
    return score(out, shard=shard, overwrite=overwrite, on_progress=on_progress)


def part_scorer(
    detector: Detector,
    data: DataSet,
    *,
    decision: Decision | None = None,
    spec: str | None = None,
    split: str | None = None,
    chosen_on: Sequence[str] = (),
    tile: bool = False,
    batch_size: int = 32,
    maps: Maps = True,
) -> Callable[..., Run]:
    """What scores ``data``, or one shard of it after the other, into results folders: a function of the folder and of
    ``shard``, ``overwrite`` and ``on_progress``, as for :func:`score_into`.

    What depends on all images (their fingerprint, names of files, shards) is computed once: for each shard again, it would take
    longer than scoring where shards are small. With ``whole_fingerprint=True`` a shard that will be merged gets the
    fingerprint of the whole data set, for which none of its images are read a second time.
    """
    decision = decision or detector.decide()
    if tile and not detector.tiled:  # thresholds of whole images do not hold for tiles
        decision = None
    run = describe(detector, data, decision, tile=tile, spec=spec, split=split, chosen_on=chosen_on)
    names = ImageNames(data)
    numbers = cache(lambda: case_numbers(data.cases))

    def score(
        out: Path,
        *,
        shard: Shard | None = None,
        overwrite: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
        whole_fingerprint: bool = False,
    ) -> Run:
        part, own = data, run
        if shard is not None:
            part = data.subset(np.flatnonzero(numbers() % shard.of == shard.index - 1))
            own = replace(run, data=replace(run.data, shard=replace(shard, whole=run.data.fingerprint)))
        return predict(
            detector.stream(part, batch_size=batch_size, tile=tile, decision=decision),
            own,
            data,
            out,
            maps=maps,
            count=len(part),
            records=detector.records,
            overwrite=overwrite,
            on_progress=on_progress,
            names=names,
            whole_fingerprint=whole_fingerprint,
        )

    return score


def predict(
    results: Iterable[Result | Failure],
    run: Run,
    data: DataSet,
    out: Path,
    *,
    maps: Maps = True,
    count: int | None = None,
    records: Sequence[Record] = (),
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    finish: Callable[[Path], None] | None = None,
    names: ImageNames | None = None,
    whole_fingerprint: bool = False,
) -> Run:
    """Write the results of images of ``data`` as they come into the results folder ``out``, whole or not at all.

    ``run`` says how they are made (:func:`~normalcy.results.run.describe`); returned and written is this with counts, failures
    and times. ``maps=False`` writes the tables alone; a function tells for each image whether its maps and images are written.
    ``records`` is the training log, ``count`` the number of results, if it is not that of ``data``: of a shard, ``data`` is the
    whole data set. ``finish`` adds files to the folder before it gets its name. ``names``: of the files of ``data``, where they
    are known. ``whole_fingerprint``: see :func:`part_scorer`. Files are written in threads while the next images are scored;
    memory does not grow with the number of images.

    Images that cannot be used are listed in ``run.json``; raises DataError when all are bad, but for a shard, which may have
    no image at all.
    """
    refuse_existing(out, overwrite)
    refuse_inputs(out, data)
    whole = run

    def fill(folder: Path) -> None:
        nonlocal whole
        writer = Writer(folder)
        started = time.monotonic()
        with ImageWriter(writer, data, maps, run.map_range, names) as images:
            tables = _Tables(writer, data, len(data) if count is None else count, images.names)
            failed = tables.fill(results, images.add, on_progress)
            if run.data.shard is not None:
                tables.write_positions()
            elif not tables.count:
                first = f": {failed[0].path}: {failed[0].reason}" if failed else ""
                raise DataError(f"None of the {len(data)} images of {data.name} can be scored{first}")
            images.finish()
        seconds = time.monotonic() - started
        if records:
            writer.bytes(TRAIN_LOG, "".join(json.dumps(record) + "\n" for record in records).encode())
        write_faults(writer, failed, images.incomplete)
        whole = as_read(
            replace(
                run,
                data=replace(
                    run.data.with_faults(failed, images.incomplete),
                    count=tables.count,
                    fingerprint=(not whole_fingerprint and tables.fingerprint()) or run.data.fingerprint,
                ),
                map_range=images.span,
                extra_maps_with_channels=tuple(sorted(tables.with_channels)),
                seconds=round(seconds, 3),
                images_per_second=round(tables.count / max(seconds, 1e-9), 2),
            )
        )
        writer.bytes(RUN, dumps(whole))
        if finish is not None:
            finish(folder)

    write_folder(out, fill, overwrite)
    return whole


def write_faults(writer: Writer, failed: Sequence[Failure], incomplete: Sequence[Failure]) -> None:
    """``failed.csv`` and ``incomplete.csv``, where there are more images than ``run.json`` lists."""
    for name, faults in (("failed.csv", failed), ("incomplete.csv", incomplete)):
        if len(faults) > LISTED:
            writer.csv(name, FAULT_COLUMNS, [(readable(one.path), one.reason) for one in faults])


def finish_scores(writer: Writer, rows: int) -> None:
    """What is made of a finished ``scores.csv`` of ``rows`` rows: Parquet parts for a large one, and ``cases.csv``."""
    write_parts(writer, rows)
    write_cases(writer, read_rows_of(writer.folder))


# -- private ---------------------------------------------------------------------------------------------------------


class _Tables:
    """``scores.csv`` and what is made of it, ``slices.csv`` and ``latents.npy``, row by row."""

    def __init__(self, writer: Writer, data: DataSet, most: int, names: ImageNames) -> None:
        self.writer, self.data, self.most, self.names = writer, data, most, names
        self.count = 0
        self.positions: list[int] = []
        """Of the scored images in the data set."""
        self.with_channels: set[str] = set()
        """Of volumes: extra maps with channels (in a file one channel cannot be told from none)."""
        self._latents: Array | None = None

    def fill(
        self,
        results: Iterable[Result | Failure],
        add: Callable[[Result], None],
        on_progress: Callable[[int, int], None] | None,
    ) -> list[Failure]:
        """A row for each result, which is then given to ``add``; returns the failures."""
        failed: list[Failure] = []
        scores = self.writer.table("scores.csv", COLUMNS)
        slices = self.writer.table("slices.csv", SLICE_COLUMNS)
        with scores as add_score, slices as add_slice:
            for r in results:
                if on_progress is not None:
                    on_progress(self.count + len(failed) + 1, self.most)
                if isinstance(r, Failure):
                    failed.append(r)
                    continue
                row = ScoreRow.of(r, self.names.files[r.path])
                add_score(row.cells())
                for axis, index, score in r.slices:
                    add_slice((row.path, axis, index, repr(score)))
                self._remember(r)
                add(r)
        if self.count:
            finish_scores(self.writer, self.count)
        if self._latents is not None and failed:
            kept, self._latents = np.array(self._latents[: self.count]), None
            self.writer.array(LATENTS, kept)
        return failed

    def write_positions(self) -> None:
        """For a shard: ``positions.npy``, and a table where no image was scored."""
        self.writer.array(POSITIONS, np.array(self.positions, np.int64))
        if not self.count:
            self.writer.csv("scores.csv", COLUMNS, [])

    def fingerprint(self) -> str | None:
        """Of the images of the table in its order; None where they are all of the data set in its own."""
        if len(self.positions) == len(self.data) and self.positions == list(range(len(self.data))):
            return None
        return self.data.subset(self.positions).fingerprint()

    def _remember(self, r: Result) -> None:
        self.positions.append(self.names.places[r.path])
        if r.space is not None:
            self.with_channels |= {name for name, x in r.extra_maps.items() if x.ndim > len(r.space.size)}
        if r.latent is not None:
            if self._latents is None:  # on disk: memory does not grow with the number of images
                shape = (self.most, len(r.latent))
                self._latents = new_array(self.writer.path(LATENTS), shape)
            self._latents[self.count] = r.latent
        self.count += 1
