"""A detector of tiles over whole slides, in memory that does not grow with the slide: heat maps, regions, slide scores."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normalcy.arrays import Float32, Float64, Indices
from normalcy.config import build
from normalcy.data.dataset import Failure
from normalcy.data.polygons import outlines
from normalcy.data.slides import Slide, TileSettings, slide_files, tiles_of
from normalcy.errors import DataError, SettingsError
from normalcy.files import prepare_target, reading_text, refuse_source, remove, write_folder, writing
from normalcy.provenance import NOTICE, versions
from normalcy.results.folder import LARGEST_TABLE
from normalcy.results.names import file_names, meant, readable
from normalcy.results.run import RUN, Shard, SlideFile, SlidesRun, shard_of
from normalcy.results.schema import dumps, load
from normalcy.results.writer import Writer
from normalcy.scoring import Result

if TYPE_CHECKING:
    from normalcy.detector import Detector

SLIDES = "slides.csv"
SLIDE_COLUMNS = ("slide", "score", "tiles", "flagged_fraction")


def score_slides(
    detector: Detector,
    slides: Sequence[Slide],
    out: Path,
    *,
    quantile: float = 0.95,
    cell: int = 32,
    batch_size: int = 32,
    shard: Shard | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[list[tuple[str, float]], list[Failure]]:
    """Score slides tile by tile into the folder ``out``; returns name and score of each, the ``quantile`` of its tiles' scores,
    and the slides that could not be scored, with the reason.

    ``slides.csv``     slide, score, tiles, and the fraction of its tiles that are flagged (``flagged_fraction``)
    ``<name>/tiles.csv``     x, y (pixels of the finest level), score and p-value of each tile
    ``<name>/heatmap.tif``   a tiled pyramid of float32, one pixel for ``cell`` x ``cell`` of a tile (mean of the map); NaN
                             where there is no tissue
    ``<name>/regions.geojson``  outlines of what is above the pixel threshold, in pixels of the finest level, as QuPath reads
                             them; only for a calibrated detector

    ``shard``: only the slides of this part, for :func:`~normalcy.results.shards.merge`; it may have none.

    Raises DataError when no slide can be scored and SettingsError for a tile that ``cell`` does not divide.
    """
    names = [slide.path.stem for slide in slides]
    if len(set(names)) < len(names):
        raise DataError("slides: expected names that differ, got one twice; rename a slide.")
    if not 0 <= quantile <= 1:
        raise SettingsError(f"quantile must be in [0, 1], got {quantile}.")
    prepare_target(out, overwrite)
    refuse_source(out, detector.folder, *(slide.path for slide in slides))
    places = dict(zip(names, file_names(names)))
    part = range(len(slides)) if shard is None else shard_of(names, shard)
    scored: list[tuple[str, float]] = []
    files: list[SlideFile] = []
    failed: list[Failure] = []
    decision = detector.decide()
    pixel_threshold = None if decision is None else decision.pixel_threshold

    def fill(folder: Path) -> None:
        writer = Writer(folder)
        with writer.table(SLIDES, SLIDE_COLUMNS) as add:
            for slide, name in [(slides[i], names[i]) for i in part]:
                if slide.settings.tile % cell:
                    raise SettingsError(f"cell must divide the tile of {slide.settings.tile} pixels, got {cell}.")
                own = Writer(writer.path(places[name]))
                try:
                    heat, scores, flagged = _score(detector, slide, own, cell, batch_size, on_progress)
                except DataError as error:
                    failed.append(Failure(str(slide.path), str(error)))
                    remove(own.folder)
                    continue
                score = float(np.quantile(scores, quantile, method="higher"))
                side = cell * slide.downsample
                write_pyramid(own.path("heatmap.tif"), heat, None if slide.mpp is None else slide.mpp * side)
                if pixel_threshold is not None and np.isfinite(pixel_threshold):
                    own.bytes("regions.geojson", json.dumps(outlines(heat, pixel_threshold, side, slide.size)).encode())
                fraction = "" if decision is None else repr(flagged / len(scores))
                add([readable(name), repr(score), len(scores), fraction])
                scored.append((name, score))
                files.append(SlideFile(readable(name), readable(str(slide.path.absolute())), places[name], side))
        if not scored and shard is not None:
            writer.csv(SLIDES, SLIDE_COLUMNS, [])
        elif not scored:
            raise DataError(f"slides: none of {len(slides)} could be scored; the first says: {failed[0].reason}")
        limit = pixel_threshold if pixel_threshold is not None and np.isfinite(pixel_threshold) else None
        span = None if detector.calibration is None else detector.calibration.map_range
        record = SlidesRun(
            detector.name,
            quantile,
            cell,
            NOTICE,
            tuple(failed),
            versions(),
            tuple(sorted(files, key=lambda one: one.name)),
            limit,
            span,
            shard,
        )
        writer.bytes(RUN, dumps(record))

    write_folder(out, fill, overwrite)
    return scored, failed


def open_for_scoring(paths: Sequence[Path], detector: Detector, changed: Mapping[str, Any]) -> list[Slide]:
    """The slides that are named or lie in folders that are, cut like those of the training but for what is ``changed``."""
    as_in_training = {word: value for word, value in detector.facts["data"].get("scheme", {}).items() if word != "most"}
    settings = build(TileSettings, {**as_in_training, **changed}, "slides")
    return [Slide(file, settings) for path in paths for file in slide_files(path)]


def read_slides(folder: Path) -> tuple[list[tuple[str, float]], list[Failure]]:
    """What :func:`score_slides` returned when it wrote ``folder``."""
    with reading_text(folder / SLIDES, LARGEST_TABLE) as text:
        scored = [(meant(row["slide"]), float(row["score"])) for row in csv.DictReader(text)]
    return scored, list(load(SlidesRun, folder / RUN, "score the slides again").failed)


def write_pyramid(path: Path, heat: Float32, mpp: float | None) -> None:
    """(H, W) as a tiled TIFF with levels of half the size each (mean of what is known), down to one tile of 256 pixels."""
    import tifffile

    levels = [heat]
    while max(levels[-1].shape) > 256:
        levels.append(_halved(levels[-1]))
    with writing(path) as opened, tifffile.TiffWriter(opened, bigtiff=True) as file:
        for k, level in enumerate(levels):
            scale = None if mpp is None else 1e4 / (mpp * 2**k)
            file.write(
                level,
                tile=(256, 256),
                photometric="minisblack",
                compression="zlib",
                subifds=len(levels) - 1 if k == 0 else None,
                subfiletype=int(k > 0),
                resolution=None if scale is None else (scale, scale),
                resolutionunit=None if scale is None else "CENTIMETER",
            )


# -- private -----------------------------------------------------------------------------------------------------------


def _score(
    detector: Detector,
    slide: Slide,
    writer: Writer,
    cell: int,
    batch_size: int,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[Float32, Float64, int]:
    """The heat map, the scores of all tiles that could be read, and how many are flagged."""
    data = tiles_of([slide], [slide.path.stem], slide.path.name, cover=True)
    places = slide.tiles(cover=True)
    heat = _Heat(slide.size, cell * slide.downsample, slide.downsample)
    scores, flagged = [], 0
    with writer.table("tiles.csv", ("x", "y", "score", "p_value")) as add:
        for k, r in enumerate(detector.stream(data, batch_size=batch_size, decision=detector.decide())):
            if on_progress is not None:
                on_progress(k + 1, len(data))
            if not isinstance(r, Result):
                continue
            x, y = places[k]
            add((x, y, repr(r.score), "" if r.p_value is None else repr(r.p_value)))
            scores.append(r.score)
            flagged += bool(r.flagged)
            values = r.map if r.map is not None else np.full((slide.settings.tile,) * 2, r.score, np.float32)
            heat.add(values, x, y)
    if not scores:
        raise DataError(f"{slide.path}: no tile could be scored; see normalcy check.")
    return heat.mean(), np.array(scores), flagged


class _Heat:
    """Mean of the maps of tiles in squares of ``side`` pixels of the slide, of which a pixel of a tile has ``step``."""

    def __init__(self, size: tuple[int, int], side: float, step: float) -> None:
        self.size, self.side, self.step = size, side, step
        shape = tuple(math.ceil(length / side - 1e-9) for length in size[::-1])
        self.total, self.count = np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    def add(self, values: Float32, x: int, y: int) -> None:
        """The map (H, W) of a tile whose upper left corner is at x, y."""
        rows, columns = (
            self._squares(start, n, length) for start, n, length in zip((y, x), values.shape, self.size[::-1])
        )
        (first_rows, row_counts), (first_columns, column_counts) = (
            np.unique(places, return_index=True, return_counts=True)[1:] for places in (rows, columns)
        )
        sums = np.add.reduceat(np.add.reduceat(values.astype(np.float64), first_rows, 0), first_columns, 1)
        box = np.ix_(rows[first_rows], columns[first_columns])
        self.total[box] += sums
        self.count[box] += np.outer(row_counts, column_counts)

    def _squares(self, start: int, count: int, length: int) -> Indices:
        """In which square each of a tile's pixels lies, by its centre.

        Where the tile ends at the border of the slide, its last pixel counts in the last square, which may be narrower.
        """
        last = math.ceil(length / self.side - 1e-9) - 1
        places: Indices = np.minimum((start + (np.arange(count) + 0.5) * self.step) // self.side, last).astype(np.intp)
        if start + count * self.step > length - 2:
            places[-1] = last
        return places

    def mean(self) -> Float32:
        """NaN where no tile was."""
        return np.where(self.count > 0, self.total / np.maximum(self.count, 1), np.nan).astype(np.float32)


def _halved(level: Float32) -> Float32:
    """Means of 2 x 2 pixels, of those that are known; NaN where none is."""
    padded = np.pad(level, [(0, n % 2) for n in level.shape], constant_values=np.nan)
    blocks = padded.reshape(padded.shape[0] // 2, 2, padded.shape[1] // 2, 2)
    known = np.isfinite(blocks)
    total = np.where(known, blocks, 0).sum((1, 3))
    count = known.sum((1, 3))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
