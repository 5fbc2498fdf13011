"""What was done to the geometry of one image, and its inverse for maps, masks and images."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from normalcy.arrays import Float32, Mask
from normalcy.errors import DataError
from normalcy.preprocessing.steps import Step

Shape = tuple[int, ...]


class Move(NamedTuple):
    """One geometric step. ``start``: where the shorter grid begins in the longer one (crop and pad)."""

    kind: Literal["resize", "crop", "pad"]
    before: Shape
    after: Shape
    start: Shape = ()
    mode: str = ""


class Affine(NamedTuple):
    """One intensity step: value before = offset + scale * value after."""

    offset: float
    scale: float


class Channels(NamedTuple):
    """Conversion between one and three channels."""

    before: int
    after: int


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What was done to one image: enough to bring a map back to the size and place of its file.

    ``shape``: spatial shape of the input. ``trace``: the steps in order, with the numbers this image gave them.
    """

    shape: Shape
    trace: tuple[Move | Affine | Channels, ...] = ()

    @property
    def moves(self) -> tuple[Move, ...]:
        return tuple(entry for entry in self.trace if isinstance(entry, Move))

    @property
    def size(self) -> Shape:
        """Spatial shape of what the method sees."""
        return self.moves[-1].after if self.moves else self.shape

    @property
    def examined(self) -> tuple[slice, ...]:
        """The box of the input that the method saw; the rest was cropped away."""
        low, high = [0.0] * len(self.shape), [float(side) for side in self.size]
        for move in reversed(self.moves):
            for axis, (before, after) in enumerate(zip(move.before, move.after)):
                factor = before / after if move.kind == "resize" else 1.0
                shift = 0 if move.kind == "resize" else move.start[axis] * (1 if move.kind == "crop" else -1)
                low[axis] = min(max(low[axis] * factor + shift, 0.0), before)
                high[axis] = min(max(high[axis] * factor + shift, 0.0), before)
        # A pixel belongs to the box when its centre does; the tolerance absorbs rounding of before / after.
        return tuple(slice(math.ceil(a - 0.5 - 1e-6), math.ceil(b - 0.5 - 1e-6)) for a, b in zip(low, high))

    def invert_map(self, map: npt.ArrayLike, fill: float | Literal["min"] = "min") -> Float32:
        """Bring a map (*size) back to (*shape), float32.

        What was cropped away was not examined: it gets the minimum of the map, or ``fill``.
        """
        x = np.asarray(map, dtype=np.float32)
        if x.shape != self.size:
            raise DataError(f"Geometry expects a map {self.size}, got {x.shape}; give the map of this very image.")
        return self._keep_examined(self.invert(x[None])[0], float(x.min()) if fill == "min" else fill)

    def invert(self, x: Float32) -> Float32:
        """(C, *size) -> (C, *shape): geometric steps alone; what was cropped away repeats the edge."""
        for move in reversed(self.moves):
            x = _undo(x, move)
        return x

    def forward_mask(self, mask: npt.ArrayLike, share: float = 0.5) -> Mask:
        """Take a mask (*shape) to (*size): marked where at least ``share`` of a pixel's (smoothed) area is marked.

        A small ``share`` (0.01) keeps marks that are thinner than a pixel of the result.
        """
        x = np.asarray(mask)
        if x.shape != self.shape:
            raise DataError(f"Geometry expects a mask {self.shape}, got {x.shape}; give the mask of this very image.")
        area: Float32 = (x != 0).astype(np.float32)[None]
        for move in self.moves:
            area = _do(area, move)
        # A hair below the share: the weights of the interpolation sum to 1 only up to rounding.
        return np.asarray(area[0] >= share - 1e-6)

    def _keep_examined(self, x: Float32, outside: float) -> Float32:
        box = self.examined
        if all(side.start == 0 and side.stop == n for side, n in zip(box, self.shape)):
            return np.ascontiguousarray(x)
        kept = np.full_like(x, outside)
        kept[box] = x[box]
        return kept


def _do(x: Float32, move: Move) -> Float32:
    """(C, *before) -> (C, *after)."""
    if move.kind == "resize":
        return _resize(x, move.after)
    if move.kind == "crop":
        return x[_box(move.start, move.after)]
    widths = [(0, 0), *((s, a - b - s) for s, b, a in zip(move.start, move.before, move.after))]
    if move.mode == "zero":
        return np.pad(x, widths)
    return np.pad(x, widths, mode="edge" if move.mode == "edge" else "reflect")


def _undo(x: Float32, move: Move) -> Float32:
    """(C, *after) -> (C, *before); a crop is undone by repeating the edge."""
    if move.kind == "resize":
        return _resize(x, move.before)
    if move.kind == "crop":
        widths = [(0, 0), *((s, b - a - s) for s, b, a in zip(move.start, move.before, move.after))]
        return np.pad(x, widths, mode="edge")
    return x[_box(move.start, move.before)]


def _box(start: Shape, sides: Shape) -> tuple[slice, ...]:
    return (slice(None), *(slice(first, first + side) for first, side in zip(start, sides)))


def _resize(x: Float32, size: Shape) -> Float32:
    """(C, *spatial) -> (C, *size), linear with a triangle filter as wide as the reduction; same size: unchanged.

    Pillow's filter gives what torch's antialiased bilinear interpolation gives, but in one thread and without the
    interpreter's lock, so that threads that decode images do not fight over the cores. It is separable: volumes are
    resized in the planes of the last two axes, then along the first.
    """
    if x.shape[1:] == size:
        return x
    if len(size) == 2:
        return np.stack([_resize_plane(plane, *size) for plane in x])
    deep = len(x), x.shape[1], size[1] * size[2]  # (C, D, h * w)
    planes = np.stack([_resize_plane(plane, *size[1:]) for channel in x for plane in channel]).reshape(deep)
    return np.stack([_resize_plane(plane, size[0], deep[2]) for plane in planes]).reshape(len(x), *size)


def _resize_plane(plane: Float32, height: int, width: int) -> Float32:
    return np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR))


def _move(step: Step, shape: Shape) -> Move:
    """What a geometric step does to an image of this spatial shape."""
    number = step.numbers[0]
    if step.name == "resize_plane":
        return Move("resize", shape, (*shape[:-2], int(number), int(number)))
    if step.name == "resize":
        return Move("resize", shape, (int(number),) * len(shape))
    if step.name == "centre_crop":
        after = tuple(max(1, round(side * number)) for side in shape)
        return Move("crop", shape, after, tuple((b - a) // 2 for b, a in zip(shape, after)))
    n = int(number)
    after = tuple(-(-side // n) * n if step.name == "pad" else max(side, n) for side in shape)
    return Move("pad", shape, after, tuple((a - b) // 2 for b, a in zip(shape, after)), step.mode)
