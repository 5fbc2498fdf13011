"""Results of a data set -> a results folder (its files are described in docs/reference/files.md)."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from normalcy.arrays import Array
from normalcy.calibrate import Decision
from normalcy.data.dataset import DataSet, Failure
from normalcy.errors import DataError
from normalcy.files import new_array, prepare_target, refuse_existing, write_folder
from normalcy.results.names import LATENTS
from normalcy.results.run import CASE_COLUMNS, COLUMNS, RUN, SLICE_COLUMNS, CaseRow, InCase, Run, ScoreRow, describe
from normalcy.results.schema import as_read, dumps
from normalcy.results.writer import ImageWriter, Writer, refuse_inputs
from normalcy.scoring import Result
from normalcy.training.log import TRAIN_LOG, Record

if TYPE_CHECKING:
    from normalcy.detector import Detector

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
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Run:
    """Score ``data`` with a detector into the results folder ``out``; see :func:`predict`.

    ``decision`` defaults to the detector's own false-alarm rate. ``spec`` and ``split`` are noted, so that the report can open
    the images again. ``chosen_on``: see :func:`~normalcy.results.run.describe`.
    """
    decision = decision or detector.decide()
    if tile and not detector.tiled:  # thresholds of whole images do not hold for tiles
        decision = None
    prepare_target(out, overwrite)
    run = describe(detector, data, decision, tile=tile, spec=spec, split=split, chosen_on=chosen_on)
    results = detector.stream(data, batch_size=batch_size, tile=tile, decision=decision)
    return predict(
        results, run, data, out, maps=maps, records=detector.records, overwrite=overwrite, on_progress=on_progress
    )


def predict(
    results: Iterable[Result | Failure],
    run: Run,
    data: DataSet,
    out: Path,
    *,
    maps: Maps = True,
    records: Sequence[Record] = (),
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Run:
    """Write the results of images of ``data`` as they come into the results folder ``out``, whole or not at all.

    ``run`` says how they are made (:func:`~normalcy.results.run.describe`); returned and written is this with counts, failures
    and times. ``maps=False`` writes the tables alone; a function tells for each image whether its maps and images are written.
    ``records`` is the training log. Files are written in threads while the next images are scored; memory does not grow with
    the number of images.

    Images that cannot be used are listed in ``run.json``; raises DataError when all are bad.
    """
    refuse_existing(out, overwrite)
    refuse_inputs(out, data)
    whole = run

    def fill(folder: Path) -> None:
        nonlocal whole
        writer = Writer(folder)
        started = time.monotonic()
        with ImageWriter(writer, data, maps, run.map_range) as images:
            tables = _Tables(writer, data, images.names)
            failed = tables.fill(results, images.add, on_progress)
            if not tables.count:
                first = f": {failed[0].path}: {failed[0].reason}" if failed else ""
                raise DataError(f"None of the {len(data)} images of {data.name} can be scored{first}")
            images.finish()
        seconds = time.monotonic() - started
        if records:
            writer.bytes(TRAIN_LOG, "".join(json.dumps(record) + "\n" for record in records).encode())
        incomplete = tuple(images.incomplete)
        whole = as_read(
            replace(
                run,
                data=replace(run.data, count=tables.count, failed=tuple(failed), incomplete=incomplete),
                map_range=images.span,
                extra_maps_with_channels=tuple(sorted(tables.with_channels)),
                seconds=round(seconds, 3),
                images_per_second=round(tables.count / max(seconds, 1e-9), 2),
            )
        )
        writer.bytes(RUN, dumps(whole))

    write_folder(out, fill, overwrite)
    return whole


# -- private ---------------------------------------------------------------------------------------------------------


class _Tables:
    """``scores.csv``, ``cases.csv``, ``slices.csv`` and ``latents.npy``, row by row."""

    def __init__(self, writer: Writer, data: DataSet, names: Mapping[str, str]) -> None:
        self.writer, self.data, self.names = writer, data, names
        self.count = 0
        self.with_channels: set[str] = set()
        """Of volumes: extra maps with channels (in a file one channel cannot be told from none)."""
        self._cases: dict[str, list[InCase]] = {}
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
                    on_progress(self.count + len(failed) + 1, len(self.data))
                if isinstance(r, Failure):
                    failed.append(r)
                    continue
                row = ScoreRow.of(r, self.names[r.path])
                add_score(row.cells())
                for axis, index, score in r.slices:
                    add_slice((row.path, axis, index, repr(score)))
                self._remember(r)
                add(r)
        if len(self._cases) < self.count:
            rows = [CaseRow.of(case, images).cells() for case, images in self._cases.items()]
            self.writer.csv("cases.csv", CASE_COLUMNS, rows)
        if self._latents is not None and failed:
            buffer = io.BytesIO()
            np.save(buffer, np.array(self._latents[: self.count]), allow_pickle=False)
            self._latents = None
            self.writer.bytes(LATENTS, buffer.getvalue())
        return failed

    def _remember(self, r: Result) -> None:
        item = r.item
        self._cases.setdefault(item.case, []).append(InCase(r.score, r.p_value, r.flagged, item.label))
        if r.space is not None:
            self.with_channels |= {name for name, x in r.extra_maps.items() if x.ndim > len(r.space.size)}
        if r.latent is not None:
            if self._latents is None:  # on disk: memory does not grow with the number of images
                shape = (len(self.data), len(r.latent))
                self._latents = new_array(self.writer.path(LATENTS), shape)
            self._latents[self.count] = r.latent
        self.count += 1
