"""From images to results: read, preprocess, score, and bring maps back to the place of the input."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast, overload

import numpy as np
import torch

from normalcy.arrays import Array, Float32, Float64, Mask
from normalcy.data.dataset import Item
from normalcy.data.volumes import Space
from normalcy.method import Method, Scores
from normalcy.preprocessing.decode import Failure
from normalcy.preprocessing.views import SliceView, View

NOTICE = "This is research output: it is no diagnosis, and must not be used to make one."
"""Said wherever results of medical images are shown."""
AT_ONCE = 2**19
"""Pixels that a CPU scores at once, 8 images of 256x256: activations of larger batches are new memory in each layer."""


@dataclass(frozen=True)
class Result:
    """What a detector says of one image."""

    item: Item
    score: float
    """Larger is stranger."""
    p_value: float | None
    """Chance of a score this large for a normal image; None without calibration."""
    flagged: bool | None
    map: Float32 | None
    """(*spatial), at the size and place of the input."""
    restored: Array | None
    """(C, *spatial), in the input's own type and value range."""
    uncertainty: Float32 | None
    latent: Float32 | None
    extra_maps: Mapping[str, Float32]
    """What else the method shows, by name: ([C,] *spatial), at the size and place of the input."""
    space: Space | None = None
    """Of a volume: where its voxels, and so those of the map, lie."""
    slices: Sequence[tuple[str, int, float]] = ()
    """Of a volume seen as slices: axis (z, y or x), index from 0 and score of each."""

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


@dataclass(frozen=True)
class _Ready:
    """An image read and preprocessed: ``tiles`` (T, C, *shape), its pieces, one where it is not cut."""

    index: int
    original: Array
    tiles: Float32
    views: list[View]


_PARTS = ("image", "map", "restored", "uncertainty", "latent")


@dataclass(frozen=True)
class _Part:
    """Scores of one image's tiles as arrays."""

    image: Array
    map: Array | None
    restored: Array | None
    uncertainty: Array | None
    latent: Array | None
    extra_maps: Mapping[str, Array]


def _forward(method: Method, group: Sequence[_Ready], batch_size: int) -> Iterator[_Part]:
    """Scores of each image, whose tiles share batches with its neighbours'."""
    if not group:
        return
    tiles = np.concatenate([r.tiles for r in group]) if len(group) > 1 else group[0].tiles
    pieces: list[Scores] = []
    if method.device.type == "cpu":
        batch_size = min(batch_size, max(1, AT_ONCE // math.prod(method.shape[1:])))
    for first in range(0, len(tiles), batch_size):
        x = torch.from_numpy(tiles[first : first + batch_size]).to(method.device)
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        pieces.append(method.score(x))

    def joined(values: Sequence[torch.Tensor | None]) -> Array | None:
        return None if values[0] is None else torch.cat(cast(list[torch.Tensor], values)).float().cpu().numpy()

    columns = {name: joined([getattr(p, name) for p in pieces]) for name in _PARTS}
    extra_maps = {name: joined([p.extra_maps[name] for p in pieces]) for name in pieces[0].extra_maps}
    start = 0
    for ready in group:
        rows = slice(start, start + len(ready.tiles))
        start = rows.stop
        here = {name: None if c is None else c[rows] for name, c in columns.items()}
        yield _Part(**here, extra_maps={name: c[rows] for name, c in extra_maps.items() if c is not None})  # type: ignore[arg-type]


def _slices(views: Sequence[View], scores: Array) -> list[tuple[str, int, float]]:
    """Axis, index and score of each slice."""
    found, start = [], 0
    for view in views:
        if isinstance(view, SliceView):
            places = zip(view.in_image, scores[start : start + view.count])
            found += [("zyx"[view.axis], int(index), float(score)) for index, score in places]
        start += view.count
    return found
