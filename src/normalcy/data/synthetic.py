"""Synthetic anomalies with masks, in images and volumes: for validation sets without real anomalies, and for tests.

``rectangle``  a black or grey rectangle (box) of random proportions, as in section 4.3.3 of the paper of ``lsr``
``blob``       an ellipse (ellipsoid) with a soft edge: a shift of intensity and noise
``intensity``  a shift of intensity in an ellipse: sharp, or slow, falling off from the centre to the edge
``displace``   a patch copied from elsewhere in the image
``mirror``     a patch mirrored in place
``scratch``    a thin, bent line, darker or brighter, forty times as long as wide

>>> rng = np.random.default_rng(0)
>>> image = rng.random((1, 64, 64), dtype=np.float32)
>>> changed, mask = make(image, "rectangle", rng, area=0.02)
>>> bool(((changed != image).any(axis=0) == mask).all()), float(mask.mean().round(2))
(True, 0.02)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from normalcy.arrays import Float32, Float64, Mask
from normalcy.errors import DataError, SettingsError

__all__ = ["SYNTHETIC", "make", "make_set"]

Box = tuple[slice, ...]

VISIBLE = 0.02  # the least change at a soft edge, about 5 of 255 grey levels
TOLERANCE = 0.25  # of the asked area; attempts nearer to it than this are taken at once
ATTEMPTS = 50
ASPECT = 40  # length of a scratch in widths


class Ask(NamedTuple):
    """``pixels``: how many to change; ``strength``: typical change of intensity, images being in [0, 1]."""

    pixels: int
    strength: float


def make(
    image: Float32, kind: str, rng: np.random.Generator, *, area: float = 0.01, strength: float = 0.3
) -> tuple[Float32, Mask]:
    """One anomaly of ``area`` (fraction of the image) in a copy of ``image`` (C, *spatial), values in [0, 1].

    Returns the image and a mask (*spatial) of exactly the pixels that changed: never empty, its area within 25 %
    of the asked (or one pixel). Where the image does not allow that (a displaced patch in a mostly constant image
    changes little), the nearest of 50 attempts is taken. Raises SettingsError for an unknown kind, DataError where
    nothing can change.
    """
    if kind not in SYNTHETIC:
        raise SettingsError(f"synthetic expects a kind of anomaly among {', '.join(SYNTHETIC)}, got {kind!r}; use one.")
    if not 0 < area < 1 or not 0 < strength <= 1:
        raise SettingsError(
            f"synthetic expects an area between 0 and 1 and a strength from 0 to 1, got {area} and {strength}; "
            "give the area as a fraction of the image."
        )
    if image.ndim not in (3, 4) or not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
        raise DataError(
            f"synthetic expects an image (C, *spatial) with values in [0, 1], got {image.shape}, "
            f"{image.min():g} to {image.max():g}; scale it first."
        )
    pixels = max(1, round(area * image[0].size))
    best: tuple[Float32, Mask] | None = None
    least = np.inf
    for _ in range(ATTEMPTS):
        box, patch = SYNTHETIC[kind](image, rng, Ask(pixels, strength))
        changed = (patch != image[box]).any(axis=0)
        miss = abs(int(changed.sum()) - pixels)
        if changed.any() and miss < least:
            result, mask = image.astype(np.float32), np.zeros(image.shape[1:], dtype=bool)
            result[box], mask[box[1:]] = patch, changed
            best, least = (result, mask), miss
        if least <= max(1, TOLERANCE * pixels):
            break
    if best is None:
        raise DataError(
            f"synthetic expects an image that {kind} can change, got nearly constant values from "
            f"{image.min():g} to {image.max():g}; use rectangle, blob or intensity."
        )
    return best


def make_set(
    images: Float32,
    kinds: Sequence[str],
    rng: np.random.Generator,
    *,
    area: float = 0.01,
    strength: float = 0.3,
) -> tuple[Float32, Mask, list[str]]:
    """One anomaly in each of (N, C, *spatial), the kinds in turn: images, masks (N, *spatial) and the N kinds."""
    if len(images) == 0 or len(kinds) == 0:
        raise DataError(
            f"synthetic expects images and kinds, got {len(images)} images and {len(kinds)} kinds; give some of each."
        )
    types = [kinds[i % len(kinds)] for i in range(len(images))]
    made = [make(image, kind, rng, area=area, strength=strength) for image, kind in zip(images, types)]
    return np.stack([image for image, _ in made]), np.stack([mask for _, mask in made]), types


# Each kind: (image, rng, ask) -> the box that it fills, (slice(None), *spatial), and its new content.


def _rectangle(image: Float32, rng: np.random.Generator, ask: Ask) -> tuple[Box, Float32]:
    box = _place(image.shape[1:], _sides(image.shape[1:], rng, ask.pixels), rng)
    return box, np.full_like(image[box], rng.choice((0.0, 0.5)))


def _displace(image: Float32, rng: np.random.Generator, ask: Ask) -> tuple[Box, Float32]:
    sides = _sides(image.shape[1:], rng, ask.pixels)
    return _place(image.shape[1:], sides, rng), image[_place(image.shape[1:], sides, rng)]


def _mirror(image: Float32, rng: np.random.Generator, ask: Ask) -> tuple[Box, Float32]:
    box = _place(image.shape[1:], _sides(image.shape[1:], rng, ask.pixels), rng)
    return box, np.flip(image[box], axis=int(rng.integers(1, image.ndim)))


def _blob(image: Float32, rng: np.random.Generator, ask: Ask) -> tuple[Box, Float32]:
    return _shifted(image, rng, ask, softness=rng.uniform(0.2, 0.6), noise=0.3)


def _intensity(image: Float32, rng: np.random.Generator, ask: Ask) -> tuple[Box, Float32]:
    return _shifted(image, rng, ask, softness=rng.choice((0.0, 1.0)), noise=0.0)


def _scratch(image: Float32, rng: np.random.Generator, ask: Ask) -> tuple[Box, Float32]:
    shape, dims = image.shape[1:], image.ndim - 1
    length = min(ASPECT ** ((dims - 1) / dims) * ask.pixels ** (1 / dims), 0.9 * max(shape))
    steps = np.linspace(-0.5, 0.5, max(2, math.ceil(2 * length)))[:, None]
    across = np.linalg.qr(rng.standard_normal((dims, dims)))[0]
    line = length * (steps * across[0] + rng.uniform(-0.3, 0.3) * (4 * steps**2 - 0.5) * across[1])
    room = np.array(shape) - 1 - np.ptp(line, axis=0)
    points = line - line.min(axis=0) + rng.uniform(np.minimum(room, 0), np.maximum(room, 0))
    missed = np.ones(shape, bool)
    inside = points[((points >= -0.5) & (points <= np.array(shape) - 0.5)).all(axis=1)]
    missed[tuple(np.rint(inside if len(inside) else points.clip(0, np.array(shape) - 1)).astype(int).T)] = False
    distance = ndimage.distance_transform_edt(missed)
    marked = np.zeros(shape, bool)
    marked.ravel()[np.argpartition(distance, min(ask.pixels, distance.size) - 1, axis=None)[: ask.pixels]] = True
    content = image.copy()
    mean = float(image[:, marked].mean())
    amount = max(VISIBLE, ask.strength * rng.uniform(0.7, 1.3))
    up = mean < amount or (mean < 1 - amount and rng.random() < 0.5)
    content[:, marked] = np.clip(content[:, marked] + (amount if up else -amount), 0, 1)
    return (slice(None), *(slice(0, n) for n in shape)), content


SYNTHETIC: Mapping[str, Callable[[Float32, np.random.Generator, Ask], tuple[Box, Float32]]] = {
    "rectangle": _rectangle,
    "blob": _blob,
    "intensity": _intensity,
    "displace": _displace,
    "mirror": _mirror,
    "scratch": _scratch,
}


def _shifted(image: Float32, rng: np.random.Generator, ask: Ask, softness: float, noise: float) -> tuple[Box, Float32]:
    """Shift the intensities in an ellipsoid by about ``ask.strength``, with noise of this fraction of the shift.

    ``softness``: the part of the radius over which the shift fades; even at the rim it is VISIBLE.
    """
    box, distance = _ellipsoid(image.shape[1:], rng, ask.pixels)
    inside = distance <= 1
    content = image[box]
    amount = ask.strength * rng.uniform(0.7, 1.3)
    room = 1 - float(content[:, inside].mean()), float(content[:, inside].mean())  # up, down
    up = room[0] > room[1] if min(room) < amount else rng.random() < 0.5
    fade = np.clip((1 - distance) / softness, 0, 1) if softness else np.ones_like(distance)
    fade = fade * fade * (3 - 2 * fade)  # smoothstep
    change = amount * fade * np.clip(1 + noise * rng.standard_normal(content.shape), 0.3, 1.7)
    change = np.where(inside, np.maximum(change, VISIBLE), 0)
    return box, np.clip(content + (change if up else -change), 0, 1).astype(np.float32)


def _ellipsoid(shape: tuple[int, ...], rng: np.random.Generator, pixels: int) -> tuple[Box, Float64]:
    """A box and, in it, the distance from the centre of a turned ellipsoid: at most 1 in ``pixels`` pixels."""
    dims = len(shape)
    axes = np.exp(rng.uniform(-0.5, 0.5, dims))
    axes *= (pixels / (np.pi if dims == 2 else 4 / 3 * np.pi) / axes.prod()) ** (1 / dims)
    turn = np.linalg.qr(rng.standard_normal((dims, dims)))[0]
    reach = np.sqrt(((turn * axes) ** 2).sum(axis=1)) + 1  # half extents of the turned ellipsoid
    centre = [rng.uniform(min(r, n / 2), max(n - r, n / 2)) - 0.5 for r, n in zip(reach, shape)]
    # A tight box holds it; where the image is too narrow for it, the rest is looked for everywhere.
    wide = reach + 1 if (2 * reach <= shape).all() else np.full(dims, max(shape))
    box = tuple(slice(max(0, int(c - w)), min(n, int(c + w) + 1)) for c, w, n in zip(centre, wide, shape))
    grid = np.stack(np.meshgrid(*(np.arange(b.start, b.stop) - c for b, c in zip(box, centre)), indexing="ij"))
    distance = np.sqrt(((np.tensordot(turn.T, grid, 1) / axes.reshape(-1, *[1] * dims)) ** 2).sum(axis=0))
    # The radius that holds exactly the asked number of pixels.
    radius = np.partition(distance, min(pixels, distance.size) - 1, axis=None)[min(pixels, distance.size) - 1]
    return (slice(None), *box), distance / max(float(radius), 1e-6)


def _sides(shape: tuple[int, ...], rng: np.random.Generator, pixels: int) -> tuple[int, ...]:
    """Sides of a box of about ``pixels`` pixels, proportions log-uniform up to 3 to 1, that fits into ``shape``."""
    ratios = np.exp(rng.uniform(-0.55, 0.55, len(shape)))
    left = float(pixels)
    sides = []
    for axis, side in enumerate(shape):
        # What is left, shared among this axis and the following in their proportions.
        rest = ratios[axis:]
        ideal = rest[0] * (left / rest.prod()) ** (1 / len(rest))
        sides.append(int(np.clip(round(ideal), 1, side)))
        left = max(left / sides[-1], 1.0)
    return tuple(sides)


def _place(shape: tuple[int, ...], sides: tuple[int, ...], rng: np.random.Generator) -> Box:
    starts = [int(rng.integers(0, have - side + 1)) for have, side in zip(shape, sides)]
    return (slice(None), *(slice(start, start + side) for start, side in zip(starts, sides)))
