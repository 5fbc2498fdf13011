"""How an image becomes the pieces that a method sees - itself, tiles, slices - and how their maps become one again.

Slices of a volume are taken along one of its axes, or along all three, where the maps are averaged. The axis goes to the
front before anything else is done, so that preprocessing sees the whole volume (statistics are those of the volume), and
``size`` is the side of a slice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
    """An image as it was cut once: all of it in some number of pieces."""

    geometry: Geometry
    size: tuple[int, ...]
    """Spatial shape after preprocessing."""
    count: int
    """Pieces."""
    corners: Sequence[Place] | None = None
    """Of tiles."""
    axis: int | None = None
    """Of slices: the position in (z, y, x) of the axis that they are taken along."""
    chosen: Indices | None = None
    """Of slices: the index of each along that axis."""

    @property
    def in_image(self) -> Indices:
        """The index along the axis in the image itself, where that was cropped, padded or resized (rounded)."""
        assert self.chosen is not None
        position = self.chosen.astype(np.float64)
        for move in reversed(self.geometry.moves):
            if move.kind == "resize":
                position = (position + 0.5) * move.before[0] / move.after[0] - 0.5
            else:
                position = position + move.start[0] * (1 if move.kind == "crop" else -1)
        return np.clip(np.rint(position), 0, self.geometry.shape[0] - 1).astype(np.intp)


@dataclass(frozen=True)
class ViewSettings:
    """The settings of it; the image itself where there are none."""

    tile: tuple[int, ...] | None = None
    overlap: float = 0.0
    window: Window = "hann"
    slices: Slices = "none"
    range: tuple[float, float] = (0.0, 1.0)
    """Part of the axis, from 0 to 1, that slices are taken from."""
    body: float = 0.0
    """Share of a slice that must be body."""

    def cut(self, preprocess: Preprocess, image: Array) -> tuple[Float32, list[View]]:
        """Image (C, *spatial) -> pieces (T, C, *shape), of all views one after the other. Raises DataError."""
        if self.slices == "none":
            x, geometry = preprocess.apply(image)
            size = tuple(x.shape[1:])
            if self.tile is None:
                return x[None], [View(geometry, size, 1)]
            tiles, corners = cut(x, self.tile, self.overlap)
            return tiles, [View(geometry, size, len(tiles), corners)]
        if image.ndim != 4:
            raise DataError(f"slices={self.slices} expects volumes (C, z, y, x), got {image.shape}; leave slices out.")
        body = body_mask(image) if self.body > 0 else None
        pieces, views = [], []
        for axis in ("zyx".index(name) for name in sorted(self.slices, reverse=True)):
            x, geometry = preprocess.apply(np.moveaxis(image, 1 + axis, 1))
            chosen = self._choose(x.shape[1], None if body is None else np.moveaxis(body, axis, 0))
            pieces.append(np.moveaxis(x, 1, 0)[chosen])
            views.append(View(geometry, tuple(x.shape[1:]), len(chosen), axis=axis, chosen=chosen))
        if len({piece.shape[1:] for piece in pieces}) > 1:
            shapes = ", ".join(str(piece.shape[2:]) for piece in pieces)
            raise DataError(f"slices=xyz expects slices of one shape, got {shapes}; give their side with size=128.")
        return np.concatenate(pieces) if len(pieces) > 1 else np.ascontiguousarray(pieces[0]), views

    def _choose(self, count: int, body: Mask | None) -> Indices:
        low, high = self.range
        first = min(int(low * count), count - 1)
        chosen = np.arange(first, max(first + 1, round(high * count)))
        if body is None:
            return chosen
        share = body.mean((1, 2))
        places = np.minimum((chosen * len(share)) // count, len(share) - 1)  # padding may have made the axis longer
        kept = chosen[share[places] >= self.body]
        return kept if len(kept) else chosen[[int(share[places].argmax())]]

    def join(self, pieces: Array, views: Sequence[View], invert: Callable[[Array, View], Array]) -> Float32:
        """Pieces (T, [C,] *shape) -> ([C,] *spatial), at the size and place of the image.

        ``invert`` takes one view's ([C,] *size) back through its geometry. Voxels that several views examined get the
        mean of these; those that none did the least value of the pieces.
        """
        if len(views) == 1 and views[0].chosen is None:
            (view,) = views
            return invert(blend(pieces, view.corners, view.size, self.window) if view.corners else pieces[0], view)
        total: Any = 0.0
        weight: Any = 0.0
        for part, view in zip(np.split(pieces, np.cumsum([view.count for view in views])[:-1]), views):
            assert view.axis is not None
            lead = part.shape[1 : part.ndim - 2]
            whole = np.full((*lead, *view.size), part.min(), np.float32)
            whole[(slice(None),) * len(lead) + (view.chosen,)] = np.moveaxis(part, 0, len(lead))
            seen = _examined(view)
            place = len(lead) + view.axis
            total = total + np.moveaxis(invert(whole, view), len(lead), place) * np.moveaxis(seen, 0, view.axis)
            weight = weight + np.moveaxis(seen, 0, view.axis)
        least = np.float32(pieces.min())
        joined: Float32 = np.where(weight > 0, total / np.maximum(weight, 1), least).astype(np.float32)
        return joined

    def examined(self, views: Sequence[View]) -> Array:
        """Where any of the slices was taken, (*spatial)."""
        seen = [np.moveaxis(_examined(view), 0, view.axis or 0) for view in views]
        return np.asarray(np.any(seen, axis=0))


def _examined(view: View) -> Float32:
    """1 where the slices of a view are, 0 elsewhere, (slices, ...) at the size of the image."""
    if view.chosen is not None and len(view.chosen) == view.size[0]:
        whole = np.zeros(view.geometry.shape, np.float32)
        whole[view.geometry.examined] = 1
        return whole
    whole = np.zeros(view.size, np.float32)
    whole[view.chosen] = 1
    return (view.geometry.invert_map(whole, fill=0) > 0.5).astype(np.float32)
