"""From images to results: read, preprocess, score, and bring maps back to the place of the input."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, overload

import numpy as np

from normalcy.arrays import EXTRA_MAP, Array, Float32, Float64, Indices, Mask, Reduce, reduce_within
from normalcy.calibrate import Calibration, Decision
from normalcy.data.dataset import DataSet, Failure, Item
from normalcy.data.roi import filled
from normalcy.data.volumes import Space
from normalcy.errors import DataError, NormalcyError
from normalcy.preprocessing.pipeline import Preprocess
from normalcy.preprocessing.views import SliceView, View, ViewSettings

AT_ONCE = 2**19
"""Pixels that a CPU scores at once, 8 images of 256x256: activations of larger batches are new memory in each layer."""

IN_GROUP = 2**22
"""Pixels of images, for each core, that are read as a group: a few photographs, or many small images."""


@dataclass(frozen=True)
class Result:
    """The output of a detector for one image."""

    item: Item
    score: float
    """Higher is more anomalous."""
    p_value: float | None
    """Probability of a score at least this high for a normal image; None without calibration."""
    flagged: bool | None
    map: Float32 | None
    """(*spatial), at the size and place of the input."""
    restored: Array | None
    """(C, *spatial), in the input's own type and value range."""
    uncertainty: Float32 | None
    latent: Float32 | None
    extra_maps: Mapping[str, Float32]
    """Further maps or images of the method by name: ([C,] *spatial), at the size and place of the input."""
    space: Space | None = None
    """Of a volume: where its voxels, and so those of the map, lie."""
    slices: Sequence[tuple[str, int, float]] = ()
    """Of a volume seen as slices: axis (z, y or x), index from 0 and score of each."""
    roi: Mask | None = None
    """(*spatial) of the input: the region of interest, outside of which the maps are zero. None: the whole image."""

    @property
    def path(self) -> str:
        return self.item.path


class Results(Sequence[Result]):
    """Results of several images in order, with their columns as arrays; ``failed`` lists what could not be read."""

    def __init__(self, results: Sequence[Result], failed: Sequence[Failure] = ()) -> None:
        self._results, self.failed = list(results), list(failed)

    def __len__(self) -> int:
        return len(self._results)

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> Results: ...
    def __getitem__(self, index: int | slice) -> Result | Results:
        return Results(self._results[index]) if isinstance(index, slice) else self._results[index]

    @property
    def scores(self) -> Float64:
        return np.array([r.score for r in self._results])

    @property
    def p_values(self) -> Float64:
        return np.array([np.nan if r.p_value is None else r.p_value for r in self._results])

    @property
    def flagged(self) -> Mask:
        return np.array([bool(r.flagged) for r in self._results])

    @property
    def maps(self) -> list[Float32 | None]:
        return [r.map for r in self._results]

    @property
    def restored(self) -> list[Array | None]:
        return [r.restored for r in self._results]


class Scored(Protocol):
    """What scoring asks of a method: :class:`~normalcy.method.Method`, or a graph without torch."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def on_processor(self) -> bool: ...
    @property
    def reduction(self) -> Reduce | None: ...
    def score_arrays(self, x: Float32) -> Mapping[str, Array]: ...


@dataclass(frozen=True)
class Pipeline:
    """What scoring needs of a fitted detector: its parts, none of which scoring changes."""

    method: Scored
    preprocess: Preprocess
    views: ViewSettings
    """How an image is cut into what the method sees."""
    view_score: str | float = "max"
    """The score of an image from those of its views: "max", "mean" or a quantile in [0, 1]."""
    calibration: Calibration | None = None
    decision: Decision | None = None


def stream(pipeline: Pipeline, data: DataSet, batch_size: int = 32) -> Iterator[Result | Failure]:
    """One :class:`Result` per image in order, or a :class:`Failure` for one that cannot be used.

    Reading (threads), the method (this thread) and the way back to the size of the input (threads) overlap: two groups of
    images are read ahead, one is finished behind. Memory does not grow with the number of images.

    Raises NormalcyError for a score that is not finite.
    """
    workers = os.cpu_count() or 1
    large = pipeline.views.tile is not None or pipeline.preprocess.constants.spatial_dims == 3
    most = max(1, batch_size // 16) if large else batch_size
    groups = _Groups(data, most, math.inf if large else IN_GROUP * max(2, workers))
    positions = iter(groups)

    def read(i: int) -> _Ready | Failure:
        return _read(pipeline, data, i)

    def finish(ready: _Ready, part: _Part) -> Result:
        return _result(pipeline, data, ready, part)

    with ThreadPoolExecutor(workers) as readers, ThreadPoolExecutor(workers) as finishers:
        ahead = [[readers.submit(read, i) for i in group] for group in islice(positions, 2)]
        behind: list[Future[Result] | Failure] = []
        while ahead:
            group = [future.result() for future in ahead.pop(0)]
            groups.measure(group)
            ahead += [[readers.submit(read, i) for i in further] for further in islice(positions, 1)]
            parts = iter(_forward(pipeline.method, [r for r in group if isinstance(r, _Ready)], batch_size))
            done, behind = (
                behind,
                [finishers.submit(finish, r, next(parts)) if isinstance(r, _Ready) else r for r in group],
            )
            yield from (r.result() if isinstance(r, Future) else r for r in done)
        yield from (r.result() if isinstance(r, Future) else r for r in behind)


def within_region(data: DataSet, roi: Mask | None, trained: Mapping[str, Any]) -> DataSet:
    """The images with the region of interest of a model, for those without one of their own; ``trained``: facts of its training
    data.

    Raises DataError for a model that was trained with a region for each image, where the images have none.
    """
    if trained.get("rois") and roi is None and not data.has_rois:
        raise DataError(
            f"{data.name}: the model was trained with a region of interest for each image, got images without one; give a table "
            "with a column roi."
        )
    return data.within(roi)


# -- private -----------------------------------------------------------------------------------------------------------


class _Groups:
    """Positions of images in order, up to ``most`` at a time and about ``pixels`` of them together, by the largest image of the
    group that was read last: sizes are never asked of a set for which that costs a second reading."""

    def __init__(self, data: DataSet, most: int, pixels: float) -> None:
        self.count, self.most, self.pixels, self.first = len(data), most, pixels, 0
        self.largest = pixels  # until one is known, one image
        if pixels == math.inf:
            self.largest = 1
        elif data.size_is_cheap and len(data):
            with suppress(DataError):  # listed when it is read
                self.largest = math.prod(data.size(0))

    def __iter__(self) -> Iterator[range]:
        while self.first < self.count:
            many = self.most if self.pixels == math.inf else min(self.most, int(self.pixels // max(1, self.largest)))
            group = range(self.first, min(self.first + max(1, many), self.count))
            self.first = group.stop
            yield group

    def measure(self, group: Sequence[_Ready | Failure]) -> None:
        sizes = [math.prod(ready.original.shape[1:]) for ready in group if isinstance(ready, _Ready)]
        if self.pixels != math.inf and sizes:
            self.largest = max(sizes)


@dataclass(frozen=True)
class _Ready:
    """An image read and preprocessed: ``tiles`` (T, C, *shape), one where it is not cut."""

    index: int
    original: Array
    tiles: Float32
    views: list[View]
    roi: Mask | None
    """(*spatial) of the original."""
    inside: Mask | None
    """The region of interest in each tile, (T, *shape)."""


_OPTIONAL = ("map", "restored", "uncertainty", "latent")


@dataclass(frozen=True)
class _Part:
    """Scores of one image's tiles as arrays."""

    image: Array
    map: Array | None
    restored: Array | None
    uncertainty: Array | None
    latent: Array | None
    extra_maps: Mapping[str, Array]


def _read(pipeline: Pipeline, data: DataSet, i: int) -> _Ready | Failure:
    method = pipeline.method
    try:
        original = data.read(i)
        roi = data.roi(i, original.shape[1:])
        image = original if roi is None else filled(original, roi)
        tiles, views = pipeline.views.cut(pipeline.preprocess, image, data.imaged(i, image))
        if tiles.shape[1:] != method.shape:
            raise DataError(
                f"{method.name} expects images {method.shape} (C, *spatial) after preprocessing, got {tiles.shape[1:]} "
                f"from {original.shape}: give images of the training images' size, or fit with size=N or tile=N."
            )
        inside = None if roi is None else pipeline.views.cut_mask(roi, views[0])
        return _Ready(i, original, tiles, views, roi, inside)
    except DataError as error:
        return Failure(data.items[i].path, str(error))


def _forward(method: Scored, group: Sequence[_Ready], batch_size: int) -> Iterator[_Part]:
    """Scores of each image, whose tiles share batches with its neighbours'."""
    if not group:
        return
    tiles = np.concatenate([r.tiles for r in group]) if len(group) > 1 else group[0].tiles
    if method.on_processor:
        batch_size = min(batch_size, max(1, AT_ONCE // math.prod(method.shape[1:])))
    parts = [_scored(method, tiles[first : first + batch_size]) for first in range(0, len(tiles), batch_size)]
    columns = {
        name: np.concatenate([p[name] for p in parts]) if len(parts) > 1 else parts[0][name] for name in parts[0]
    }
    start = 0
    for ready in group:
        rows = slice(start, start + len(ready.tiles))
        start = rows.stop
        here = {name: values[rows] for name, values in columns.items()}
        extra_maps = {name.removeprefix(EXTRA_MAP): v for name, v in here.items() if name.startswith(EXTRA_MAP)}
        optional = {name: here.get(name) for name in _OPTIONAL}
        yield _Part(here["score"], **optional, extra_maps=extra_maps)


def _scored(method: Scored, tiles: Float32) -> Mapping[str, Array]:
    """The arrays of a method. Weights of a damaged model may have shapes that do not fit together: that is one error."""
    try:
        found = method.score_arrays(tiles)
    except (NormalcyError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, on a GPU
            raise
        fault = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise NormalcyError(
            f"{method.name} cannot score ({fault}): its model is damaged, or the method has a fault; fit it again."
        ) from error
    if found["score"].shape != (len(tiles),):
        raise NormalcyError(
            f"{method.name} gave scores of shape {found['score'].shape} for {len(tiles)} images: its model is damaged; fit it "
            "again."
        )
    return found


def _result(pipeline: Pipeline, data: DataSet, ready: _Ready, part: _Part) -> Result:
    """Scores of an image's views -> the result at the size and place of the input."""
    item, views = data.items[ready.index], pipeline.views

    def plane(values: Array, view: View) -> Array:
        flat = values.reshape(-1, *view.size)
        back = np.stack([view.geometry.invert_map(one) for one in flat])
        return back.reshape(*values.shape[: values.ndim - len(view.size)], *back.shape[1:])

    def image(values: Array, view: View) -> Array:
        original = ready.original
        if isinstance(view, SliceView):
            original = np.moveaxis(original, 1 + view.axis, 1)
        return pipeline.preprocess.invert_image(values, original, view.geometry)

    def whole(tiles: Array | None, invert: Callable[[Array, View], Array] = plane) -> Array | None:
        return None if tiles is None else views.join(tiles, ready.views, invert)

    seen, scores = _within(pipeline.method, ready, part)
    score = _image_score(scores, pipeline.view_score)
    values = whole(part.map)
    if not np.isfinite(score) or (values is not None and not np.isfinite(values).all()):
        what = "map" if np.isfinite(score) else "score"
        raise NormalcyError(
            f"{pipeline.method.name} gave a {what} that is not finite for {item.path}: fit again with other settings."
        )
    restored = whole(part.restored, image)
    if restored is not None and restored.dtype != ready.original.dtype:  # a mean of several views
        examined = views.examined(ready.views)
        whole_number = ready.original.dtype.kind in "iu"
        restored = np.where(examined, np.rint(restored) if whole_number else restored, ready.original)
        restored = restored.astype(ready.original.dtype)
    values, uncertainty = (_outside(maps, ready.roi) for maps in (values, whole(part.uncertainty)))
    if restored is not None and ready.roi is not None:
        restored = np.where(ready.roi, restored, ready.original)
    calibration, decision = pipeline.calibration, pipeline.decision
    return Result(
        item=item,
        score=score,
        p_value=None if calibration is None else float(calibration.p_values([score])[0]),
        flagged=None if decision is None else decision.flags(score, values),
        map=values,
        restored=restored,
        uncertainty=uncertainty,
        latent=None if part.latent is None else part.latent[int(seen[scores.argmax()])].copy(),
        extra_maps={
            name: joined for name, p in part.extra_maps.items() if (joined := _outside(whole(p), ready.roi)) is not None
        },
        space=data.space(ready.index),
        slices=_slices(ready.views, part.image),
        roi=ready.roi,
    )


def _within(method: Scored, ready: _Ready, part: _Part) -> tuple[Indices, Array]:
    """The views that see some of the region of interest, and their scores: where these are a reduction of the map, that of the
    region's pixels alone."""
    if ready.inside is None:
        return np.arange(len(part.image)), part.image
    seen = np.flatnonzero(ready.inside.any((1, 2)))
    reduction = method.reduction
    if reduction is None or part.map is None:
        return seen, part.image[seen]
    scores = [reduce_within(part.map[k], ready.inside[k], reduction) for k in seen]
    return seen, np.array(scores, np.float32)


def _outside(maps: Float32 | None, roi: Mask | None) -> Float32 | None:
    """Maps ([C,] *spatial) with zero outside of the region of interest, or their least value there where that is below zero:
    no threshold that some pixel of the region stays below flags what is outside."""
    if maps is None or roi is None:
        return maps
    least = min(0.0, float(maps[..., roi].min()))
    return np.where(roi, maps, np.float32(least))


def _image_score(scores: Array, how: str | float) -> float:
    """The score of an image from those of its views."""
    if isinstance(how, str):
        return float(scores.max() if how == "max" else scores.mean(dtype=np.float64))
    return float(np.quantile(scores, how, method="higher"))


def _slices(views: Sequence[View], scores: Array) -> list[tuple[str, int, float]]:
    """Axis, index and score of each slice."""
    slices, start = [], 0
    for view in views:
        if isinstance(view, SliceView):
            places = zip(view.in_image, scores[start : start + view.count])
            slices += [("zyx"[view.axis], int(index), float(score)) for index, score in places]
        start += view.count
    return slices
