"""Geometry of preprocessing: moves (resize, crop, pad), their inverses, and maps and masks taken through them."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from normalcy.arrays import Array, Float32, Mask
from normalcy.errors import DataError

Shape = tuple[int, ...]


class Move(NamedTuple):
    """A geometric step as applied to one image: spatial shapes ``before`` and ``after``.

    ``start``: index in the longer grid at which the shorter one starts, for each axis (crop and pad). ``mode``: of pad.
    """

    kind: Literal["resize", "crop", "pad"]
    before: Shape
    after: Shape
    start: Shape = ()
    mode: str = ""

    def apply(self, x: Float32) -> Float32:
        """(C, *before) -> (C, *after)."""
        if self.kind == "resize":
            return resize(x, self.after)
        if self.kind == "crop":
            return x[_box(self.start, self.after)]
        if self.mode == "zero":
            return np.pad(x, self._widths())
        return np.pad(x, self._widths(), mode="edge" if self.mode == "edge" else "reflect")

    def invert(self, x: Float32) -> Float32:
        """(C, *after) -> (C, *before); a crop is undone by repeating the edge."""
        if self.kind == "resize":
            return resize(x, self.before)
        if self.kind == "crop":
            return np.pad(x, self._widths(), mode="edge")
        return x[_box(self.start, self.before)]

    def positions_before(self, position: npt.ArrayLike, axis: int) -> npt.NDArray[np.float64]:
        """Positions along an axis after the move -> before it; pixel i covers [i, i + 1)."""
        after = np.asarray(position, np.float64)
        if self.kind == "resize":
            return after * self.before[axis] / self.after[axis]
        return after + self.start[axis] if self.kind == "crop" else after - self.start[axis]

    def _widths(self) -> list[tuple[int, int]]:
        """Pixels that the longer grid has before and after the shorter one, for each axis of (C, *spatial)."""
        sides = zip(self.start, self.before, self.after)
        return [(0, 0), *((start, abs(before - after) - start) for start, before, after in sides)]


class Affine(NamedTuple):
    """An intensity step: value before = offset + scale * value after."""

    offset: float
    scale: float

    def invert(self, values: Array) -> Array:
        inverted: Array = values * self.scale + self.offset
        return inverted


class Channels(NamedTuple):
    """Conversion between one and three channels. Its inverse is the mean, repeated."""

    before: int
    after: int

    def invert(self, values: Array) -> Array:
        """(after, *spatial) -> (before, *spatial)."""
        return np.repeat(values.mean(axis=0, keepdims=True), self.before, axis=0)


Entry = Move | Affine | Channels
"""What a step did to one image, with its inverse."""


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What was done to one image: enough to bring a map back to the size and place of its file.

    ``shape``: spatial shape of the input. ``trace``: the steps in order, with the numbers of this image.
    """

    shape: Shape
    trace: tuple[Entry, ...] = ()

    @property
    def moves(self) -> tuple[Move, ...]:
        return tuple(entry for entry in self.trace if isinstance(entry, Move))

    @property
    def size(self) -> Shape:
        """Spatial shape after preprocessing."""
        return self.moves[-1].after if self.moves else self.shape

    def positions_before(self, position: npt.ArrayLike, axis: int) -> npt.NDArray[np.float64]:
        """Positions along an axis after preprocessing -> in the input; pixel i covers [i, i + 1)."""
        before = np.asarray(position, np.float64)
        for move in reversed(self.moves):
            before = move.positions_before(before, axis)
        return before

    @property
    def examined(self) -> tuple[slice, ...]:
        """The box of the input that remains after all crops."""
        box = []
        for axis, side in enumerate(self.size):
            ends = np.array([0.0, side])
            for move in reversed(self.moves):
                ends = move.positions_before(ends, axis).clip(0, move.before[axis])  # clip: padding is not input
            # A pixel belongs to the box when its centre does; the tolerance absorbs rounding of before / after.
            low, high = (math.ceil(end - 0.5 - 1e-6) for end in ends.tolist())
            box.append(slice(low, high))
        return tuple(box)

    def invert_map(self, map: npt.ArrayLike, fill: float | Literal["min"] = "min") -> Float32:
        """Bring a map (*size) back to (*shape), float32.

        What was cropped away was not examined: it gets the minimum of the map, or ``fill``. Raises DataError for a map of
        another size.
        """
        x = np.asarray(map, dtype=np.float32)
        if x.shape != self.size:
            raise DataError(f"Geometry expects a map {self.size}, got {x.shape}; give the map of this very image.")
        return self._keep_examined(self.invert(x[None])[0], float(x.min()) if fill == "min" else fill)

    def invert(self, x: Float32) -> Float32:
        """(C, *size) -> (C, *shape): geometric steps alone; what was cropped away repeats the edge."""
        for move in reversed(self.moves):
            x = move.invert(x)
        return x

    def forward_mask(self, mask: npt.ArrayLike, fraction: float = 0.5) -> Mask:
        """Take a mask (*shape) to (*size): marked where at least ``fraction`` of a pixel's (smoothed) area is marked.

        A small ``fraction`` (0.01) keeps marks that are thinner than a pixel of the result. Raises DataError for a mask
        of another shape.
        """
        x = np.asarray(mask)
        if x.shape != self.shape:
            raise DataError(f"Geometry expects a mask {self.shape}, got {x.shape}; give the mask of this very image.")
        area: Float32 = (x != 0).astype(np.float32)[None]
        for move in self.moves:
            area = move.apply(area)
        # Slightly below the fraction: the weights of the interpolation sum to 1 only up to rounding.
        return np.asarray(area[0] >= fraction - 1e-6)

    def _keep_examined(self, x: Float32, outside: float) -> Float32:
        box = self.examined
        if all(side.start == 0 and side.stop == n for side, n in zip(box, self.shape)):
            return np.ascontiguousarray(x)
        kept = np.full_like(x, outside)
        kept[box] = x[box]
        return kept


def resize(x: Float32, size: Shape) -> Float32:
    """(C, *spatial) -> (C, *size), linear with a triangle filter as wide as the reduction; same size: unchanged.

    Pillow's filter gives what torch's antialiased bilinear interpolation gives, but in one thread and without the
    interpreter's lock, so that threads that decode images do not compete for cores. It is separable: volumes are
    resized in the planes of the last two axes, then along the first.
    """
    if x.shape[1:] == size:
        return x
    if len(size) == 2:
        return np.stack([_resize_plane(plane, *size) for plane in x])
    deep = len(x), x.shape[1], size[1] * size[2]  # (C, D, h * w)
    planes = np.stack([_resize_plane(plane, *size[1:]) for channel in x for plane in channel]).reshape(deep)
    return np.stack([_resize_plane(plane, size[0], deep[2]) for plane in planes]).reshape(len(x), *size)


# -- private ---------------------------------------------------------------------------------------------------------


def _box(start: Shape, sides: Shape) -> tuple[slice, ...]:
    return (slice(None), *(slice(first, first + side) for first, side in zip(start, sides)))


def _resize_plane(plane: Float32, height: int, width: int) -> Float32:
    return np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR))
