"""How an image becomes what a method sees (the image itself, tiles, slices), and how their maps are joined again.

A view is the image cut once. Most images have one view; a volume cut into slices along all three axes has three::

    whole image      tiles, overlapping          slices of a volume (z, y, x) along y
    +---------+      +------+---+------+         +---+---+---+---+
    |         |      |  0   | : |   1  |         | 0 | 1 | 2 | 3 |   y goes to the front: (y, z, x);
    |         |      +------+---+------+         |   |   |   |   |   slices that the settings leave out
    |         |      |......|...|......|         |   |   |   |   |   are holes in the joined map
    |         |      |  2   | : |   3  |         |   |   |   |   |
    +---------+      +------+---+------+         +---+---+---+---+

    map of the       maps blended, with          maps stacked and y moved back to its place; over several
    image            weights that are            views, the mean of those that examined a voxel; the least
                     largest at tile centres     value where none did

The axis goes to the front before anything else is done, so that preprocessing sees the whole volume (statistics are those
of the volume); ``size`` is the side of a slice. Inputs of the method are numbered over all views, one view after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from normalcy.arrays import Array, Float32, Indices, Mask
from normalcy.data.foreground import body_mask
from normalcy.errors import DataError
from normalcy.preprocessing.geometry import Geometry
from normalcy.preprocessing.pipeline import Preprocess
from normalcy.preprocessing.tiling import Place, Window, blend, cut

Slices = Literal["none", "z", "y", "x", "xyz"]


@dataclass(frozen=True)
class View:
    """An image cut once: whole, or into tiles."""

    geometry: Geometry
    size: tuple[int, ...]
    """Spatial shape after preprocessing."""
    count: int
    """Number of inputs of the method."""
    corners: Sequence[Place] = ()
    """Of the tiles; empty for the whole image."""


@dataclass(frozen=True)
class SliceView(View):
    """A volume cut into slices; its geometry and size are those of the volume with ``axis`` as the first axis."""

    axis: int = 0
    """Position in (z, y, x) of the axis that slices are taken along."""
    chosen: Sequence[int] | Indices = ()
    """Index of each slice along the axis, after preprocessing."""

    @property
    def in_image(self) -> Indices:
        """Index of each slice in the volume itself, where that was cropped, padded or resized (rounded)."""
        centres = self.geometry.positions_before(np.asarray(self.chosen) + 0.5, axis=0) - 0.5
        return np.clip(np.rint(centres), 0, self.geometry.shape[0] - 1).astype(np.intp)

    @property
    def examined(self) -> Float32:
        """(*spatial) of the volume, in its own order of axes: 1 where a slice was taken, 0 elsewhere."""
        if len(self.chosen) == self.size[0]:  # all slices: what was not cropped away
            seen = np.zeros(self.geometry.shape, np.float32)
            seen[self.geometry.examined] = 1
        else:
            taken = np.zeros(self.size, np.float32)
            taken[np.asarray(self.chosen)] = 1
            seen = (self.geometry.invert_map(taken, fill=0) > 0.5).astype(np.float32)
        return np.moveaxis(seen, 0, self.axis)


@dataclass(frozen=True)
class ViewSettings:
    """How to cut images; without settings the method sees the whole image."""

    tile: tuple[int, ...] | None = None
    """Sides of a tile."""
    overlap: float = 0.0
    """Of neighbouring tiles, as a fraction of their side."""
    window: Window = "hann"
    slices: Slices = "none"
    range: tuple[float, float] = (0.0, 1.0)
    """Part of the axis, from 0 to 1, that slices are taken from."""
    body: float = 0.0
    """Least fraction of a slice that must be body."""

    def cut(self, preprocess: Preprocess, image: Array, imaged: Mask | None = None) -> tuple[Float32, list[View]]:
        """Image (C, *spatial) -> inputs of the method (T, C, *shape), of all views one after the other.

        ``imaged`` (*spatial): False in padding, which is no body.

        Raises DataError for an image that cannot be cut this way.
        """
        if self.slices != "none":
            return self._cut_slices(preprocess, image, imaged)
        x, geometry = preprocess.apply(image, imaged)
        size = tuple(x.shape[1:])
        if self.tile is None:
            return x[None], [View(geometry, size, 1)]
        tiles, corners = cut(x, self.tile, self.overlap)
        return tiles, [View(geometry, size, len(tiles), corners)]

    def cut_mask(self, mask: Mask, view: View) -> Mask:
        """A mask (*spatial) of an image that is not cut into slices -> that of each input, (T, *shape): marked where at least
        half of a pixel is, or any of it where the whole mask would vanish.

        Raises DataError for a mask of which preprocessing keeps nothing.
        """
        seen = view.geometry.forward_mask(mask)
        if not seen.any():
            seen = view.geometry.forward_mask(mask, fraction=1e-3)
        if not seen.any():
            raise DataError(
                "The region of interest lies outside of what preprocessing keeps of the image; crop less, or move the region."
            )
        return (
            seen[None]
            if self.tile is None
            else cut(seen[None].astype(np.float32), self.tile, self.overlap)[0][:, 0] > 0
        )

    def join(self, values: Array, views: Sequence[View], invert: Callable[[Array, View], Array]) -> Float32:
        """Maps or images of all inputs (T, [C,] *shape) -> ([C,] *spatial), at the size and place of the image.

        ``invert`` takes one view's ([C,] *size) back through its geometry. Voxels that several views examined get the
        mean of these; those that none did the least of ``values``.
        """
        if not isinstance(views[0], SliceView):
            (view,) = views
            return invert(blend(values, view.corners, view.size, self.window) if view.corners else values[0], view)
        leading = values.ndim - 3  # axes before (z, y, x) in the result: 0 for maps, 1 for images with channels
        total: Array = np.zeros((), np.float32)
        weight: Array = np.zeros((), np.float32)
        for view, own in _by_view(views, values):
            # Slices that were left out hold the least value: resizing along the axis mixes them with their neighbours.
            stack = np.full((*own.shape[1 : 1 + leading], *view.size), own.min(), np.float32)
            stack[(slice(None),) * leading + (np.asarray(view.chosen),)] = np.moveaxis(own, 0, leading)
            volume = np.moveaxis(invert(stack, view), leading, leading + view.axis)
            total = total + volume * view.examined
            weight = weight + view.examined
        joined: Float32 = np.where(weight > 0, total / np.maximum(weight, 1), values.min()).astype(np.float32)
        return joined

    def examined(self, views: Sequence[View]) -> Mask:
        """Where any slice was taken, (*spatial)."""
        seen: Mask = np.any([view.examined for view in views if isinstance(view, SliceView)], axis=0)
        return seen

    def _cut_slices(self, preprocess: Preprocess, image: Array, imaged: Mask | None) -> tuple[Float32, list[View]]:
        if image.ndim != 4:
            raise DataError(f"slices={self.slices} expects volumes (C, z, y, x), got {image.shape}; leave slices out.")
        body = body_mask(image, imaged) if self.body > 0 else None
        inputs, views = [], list[View]()
        for axis in ("zyx".index(name) for name in sorted(self.slices, reverse=True)):
            x, geometry = preprocess.apply(
                np.moveaxis(image, 1 + axis, 1), None if imaged is None else np.moveaxis(imaged, axis, 0)
            )
            chosen = self._choose(x.shape[1], None if body is None else np.moveaxis(body, axis, 0))
            inputs.append(np.moveaxis(x, 1, 0)[chosen])  # (C, D, h, w) -> (T, C, h, w)
            views.append(SliceView(geometry, tuple(x.shape[1:]), len(chosen), axis=axis, chosen=chosen))
        if len({slices.shape[1:] for slices in inputs}) > 1:
            shapes = ", ".join(str(slices.shape[2:]) for slices in inputs)
            raise DataError(f"slices=xyz expects slices of one shape, got {shapes}; give their side with size=128.")
        return np.concatenate(inputs) if len(inputs) > 1 else np.ascontiguousarray(inputs[0]), views

    def _choose(self, count: int, body: Mask | None) -> Indices:
        """Indices of the slices to take of ``count``; at least one. ``body`` (slices, h, w) is that of the file."""
        low, high = self.range
        first = min(int(low * count), count - 1)
        chosen = np.arange(first, max(first + 1, round(high * count)))
        if body is None:
            return chosen
        fraction = body.mean((1, 2))
        # Of the file: preprocessing may have changed the length of the axis.
        places = np.minimum((chosen * len(fraction)) // count, len(fraction) - 1)
        kept = chosen[fraction[places] >= self.body]
        return kept if len(kept) else chosen[[int(fraction[places].argmax())]]


# -- private ---------------------------------------------------------------------------------------------------------


def _by_view(views: Sequence[View], values: Array) -> Iterator[tuple[SliceView, Array]]:
    """Each view with its own part of ``values`` (T, ...)."""
    start = 0
    for view in views:
        if isinstance(view, SliceView):
            yield view, values[start : start + view.count]
        start += view.count
