"""Polygons and run lengths as masks, and outlines of masks as polygons.

Coordinates are x to the right and y down in pixels, (0, 0) being the outer corner of the first pixel. A pixel belongs to a
polygon that its centre lies in (even-odd rule), so a polygon along the sides of pixels gives back exactly these pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from normalcy.arrays import Array, Float32, Float64, Mask
from normalcy.errors import DataError


def rasterise(polygons: Sequence[Float64], size: tuple[int, int]) -> Mask:
    """(H, W): the pixels whose centre lies in an odd number of the polygons [(N, 2)] of x and y.

    >>> rasterise([np.array([[1, 0], [3, 0], [3, 2], [1, 2]], float)], (3, 4)).astype(int)
    array([[0, 1, 1, 0],
           [0, 1, 1, 0],
           [0, 0, 0, 0]])
    """
    height, width = size
    turns = np.zeros((height, width + 1), np.int32)
    for polygon in polygons:
        points = np.asarray(polygon, np.float64)
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
            raise DataError(f"a polygon needs at least three finite points (x, y), got shape {points.shape}.")
        ends = np.roll(points, -1, axis=0)
        for (x0, y0), (x1, y1) in zip(points, ends):
            first, last = (math.ceil(min(max(y, -1), height + 1) - 0.5) for y in sorted((y0, y1)))
            rows = np.arange(max(first, 0), min(last, height))
            if len(rows):
                x = x0 + (rows + 0.5 - y0) / (y1 - y0) * (x1 - x0)
                columns = np.clip(np.ceil(x - 0.5), 0, width).astype(int)
                np.add.at(turns, (rows, columns), 1)
    return np.asarray((np.cumsum(turns, axis=1)[:, :width] % 2).astype(bool))


def decode_rle(counts: Sequence[int] | str, size: tuple[int, int]) -> Mask:
    """(H, W) from COCO's run lengths, down the columns, as numbers or in their compressed text."""
    lengths = _from_text(counts) if isinstance(counts, str) else [int(n) for n in counts]
    if min(lengths, default=0) < 0 or sum(lengths) != size[0] * size[1]:
        raise DataError(f"run lengths of {sum(lengths)} pixels, expected {size[0] * size[1]}.")
    values = np.arange(len(lengths)) % 2 == 1
    mask: Mask = np.repeat(values, lengths).reshape(size[::-1]).T
    return mask


def encode_rle(mask: Mask) -> list[int]:
    """COCO's run lengths of (H, W), the first of unmarked pixels.

    >>> encode_rle(np.array([[False, True], [True, True]]))
    [1, 3]
    """
    flat = np.asarray(mask, bool).T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff(np.r_[0, edges, flat.size]).tolist()
    return [0, *lengths] if flat.size and flat[0] else lengths


def polygons_of(mask: Mask) -> list[list[Float64]]:
    """For each region of (H, W) that hangs together by sides: its outer ring and those of its holes, without the repeated end."""
    labels, boxes = _labelled(mask)
    found = []
    for k, box in enumerate(boxes, start=1):
        corner = (box[1].start, box[0].start)
        found.append([ring[:-1] + corner for ring in rings_of(labels[box] == k)])
    return found


def outlines(heat: Float32, threshold: float, side: float, size: tuple[float, float] | None = None) -> dict[str, Any]:
    """GeoJSON of the regions above ``threshold``, with holes; ``side``: pixels of the slide in one of ``heat``.

    A region hangs together by sides of pixels, and its polygon runs along them: it is valid, and its area is that of its pixels.
    ``size``, width and height of the slide, cuts off what the last pixels of ``heat`` cover beyond it.
    """
    labels, boxes = _labelled(np.asarray(np.nan_to_num(heat, nan=-np.inf) > threshold))
    features = []
    for k, box in enumerate(boxes, start=1):
        inside = labels[box] == k
        corner = (box[1].start, box[0].start)
        rings = [np.minimum((ring + corner) * side, size or np.inf).round(6).tolist() for ring in rings_of(inside)]
        values = heat[box][inside]
        features.append(
            {
                "type": "Feature",
                "id": f"region-{k}",
                "geometry": {"type": "Polygon", "coordinates": rings},
                "properties": {
                    "objectType": "annotation",
                    "classification": {"name": "anomaly", "color": [200, 0, 0]},
                    "measurements": {"largest": float(values.max()), "mean": float(values.mean())},
                },
            }
        )
    return {"type": "FeatureCollection", "features": features}


def rings_of(inside: Mask) -> list[Float64]:
    """Closed rings (N + 1, 2) of x and y along the sides of the pixels of one region (H, W) that hangs together by sides.

    The outer one first, anticlockwise where y counts upwards, then those of its holes, clockwise.

    >>> [ring.tolist() for ring in rings_of(np.array([[True, True]]))]
    [[[0.0, 0.0], [2.0, 0.0], [2.0, 1.0], [0.0, 1.0], [0.0, 0.0]]]
    """
    padded = np.pad(inside, 1)
    ahead: dict[tuple[int, int], list[tuple[int, int]]] = {}  # corner -> directions of the sides that begin there
    for (dx, dy), (x, y), beyond in (
        ((1, 0), (0, 0), padded[:-2, 1:-1]),  # the upper side, from left to right, where nothing is above
        ((0, 1), (1, 0), padded[1:-1, 2:]),
        ((-1, 0), (1, 1), padded[2:, 1:-1]),
        ((0, -1), (0, 1), padded[1:-1, :-2]),
    ):
        for row, column in np.argwhere(inside & ~beyond).tolist():
            ahead.setdefault((column + x, row + y), []).append((dx, dy))
    rings = []
    while ahead:
        start = place = next(iter(ahead))
        corners: list[tuple[int, int]] = []
        before = (0, 0)
        while place in ahead:
            choices = ahead[place]
            turn = (
                before[1],
                -before[0],
            )  # where pixels meet at a corner alone, keep to the one outside: rings touch, none crosses
            step = turn if turn in choices else choices[0]
            choices.remove(step)
            if not choices:
                del ahead[place]
            if step != before:
                corners.append(place)
            before, place = step, (place[0] + step[0], place[1] + step[1])
            if place == start:
                break
        rings.append(np.array([*corners, corners[0]], np.float64))
    areas = [float((ring[:-1, 0] * ring[1:, 1] - ring[1:, 0] * ring[:-1, 1]).sum()) for ring in rings]
    return [rings[i] for i in np.argsort(areas)[::-1]]


# -- private -----------------------------------------------------------------------------------------------------------


def _labelled(mask: Mask) -> tuple[Array, list[tuple[slice, slice]]]:
    """Numbers of the regions of (H, W) that hang together by sides, and the box of each."""
    from scipy import ndimage  # takes longer to import than most files to read

    labels, _ = ndimage.label(mask)
    return labels, ndimage.find_objects(labels)


def _from_text(text: str) -> list[int]:
    """COCO's compressed run lengths: six bits a letter, differences to the length before the last one."""
    lengths: list[int] = []
    at = 0
    while at < len(text):
        value, shift, more = 0, 0, True
        while more:
            letter = ord(text[at]) - 48
            value |= (letter & 0x1F) << shift
            more = bool(letter & 0x20)
            at, shift = at + 1, shift + 5
            if not more and letter & 0x10:
                value |= -1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
    return lengths
