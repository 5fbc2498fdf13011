"""Overlapping tiles of an image or volume, for images larger than what a method sees, and the blending of their maps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Literal

import numpy as np

from normalcy.arrays import Float32

Place = tuple[int, ...]
Window = Literal["hann", "gaussian"]


def places(shape: Sequence[int], tile: Sequence[int], overlap: float) -> list[Place]:
    """Corners of tiles that cover ``shape``; neighbours overlap by the fraction ``overlap`` of a side, the last is flush.

    >>> places((100, 64), (64, 64), 0.25)
    [(0, 0), (36, 0)]
    """
    corners = []
    for length, side in zip(shape, tile):
        step = max(1, round(side * (1 - overlap)))
        last = max(0, length - side)
        corners.append([*range(0, last, step), last])
    return list(product(*corners))


def cut(image: Float32, tile: Sequence[int], overlap: float) -> tuple[Float32, list[Place]]:
    """Image (C, *spatial) -> tiles (T, C, *tile) and their corners. A shorter side is mirrored up to the tile's."""
    lacking = [max(0, side - length) for length, side in zip(image.shape[1:], tile)]
    if any(lacking):
        image = np.pad(image, [(0, 0), *((0, n) for n in lacking)], mode="symmetric")
    corners = places(image.shape[1:], tile, overlap)
    boxes = [(slice(None), *_box(corner, tile)) for corner in corners]
    return np.stack([image[box] for box in boxes]), corners


def blend(tiles: Float32, corners: Sequence[Place], shape: Sequence[int], window: Window = "hann") -> Float32:
    """Maps (T, *tile) or images (T, C, *tile) -> (*shape) or (C, *shape): the mean, weighted towards tile centres.

    Weights are a Hann window, or a Gaussian with a standard deviation of an eighth of the side, as in nnU-Net; both stay
    above zero, so that every pixel is covered. Tiles from :func:`cut` that are put back unchanged give the image back.
    """
    side = tiles.shape[tiles.ndim - len(shape) :]
    lead = tiles.shape[1 : tiles.ndim - len(shape)]
    weights: Float32 = np.ones((), np.float32)
    for n in side:
        bell = (
            np.hanning(n + 2)[1:-1] if window == "hann" else np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) * 8 / n) ** 2)
        )
        weights = weights[..., None] * (bell + 1e-3).astype(np.float32)
    padded = tuple(max(length, n) for length, n in zip(shape, side))
    total, weight = np.zeros((*lead, *padded), np.float32), np.zeros(padded, np.float32)
    for values, corner in zip(tiles, corners):
        box = _box(corner, side)
        total[(slice(None),) * len(lead) + box] += values * weights
        weight[box] += weights
    kept = (slice(None),) * len(lead) + tuple(slice(0, length) for length in shape)
    return np.asarray((total / weight)[kept], np.float32)


def _box(corner: Place, side: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(start, start + n) for start, n in zip(corner, side))
