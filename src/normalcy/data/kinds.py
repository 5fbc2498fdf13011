"""What images must have in common to be learnt from together: kind of values, channels, axes, modality and unit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from normalcy.arrays import Array, Mask
from normalcy.data.volumes import Space, imaged
from normalcy.errors import DataError

T = TypeVar("T")
_CHUNK = 256  # images handed to the threads at a time: memory does not grow with the set


@dataclass(frozen=True, slots=True)
class Kind:
    """What is kept of an image (C, *spatial) after reading it."""

    channels: int
    size: tuple[int, ...]
    """Spatial shape."""
    values: str
    """As :func:`values_of` says."""
    low: float
    high: float
    """Least and greatest value, padding left out; those of the type for "8-bit"."""
    whole: bool
    """Whether all values are whole numbers."""
    modality: str | None = None
    unit: str | None = None


def values_of(image: Array) -> str:
    """ "8-bit" (uint8), "integer" (any other), "float" or "bool". Raises DataError for what is no number."""
    if image.dtype == np.uint8:
        return "8-bit"
    kinds = {"u": "integer", "i": "integer", "f": "float", "b": "bool"}
    if image.dtype.kind not in kinds:
        raise DataError(f"preprocess expects images of numbers, got {image.dtype}; convert them to integers or floats.")
    return kinds[image.dtype.kind]


def kind_of(image: Array, space: Space | None = None, inside: Mask | None = None) -> Kind:
    """``inside`` (*spatial): the pixels whose values count; those that were imaged where it is not given.

    Raises DataError for an image that has no values, or some that are no numbers or not finite."""
    values = values_of(image)
    if image.ndim not in (3, 4) or image.size == 0:
        raise DataError(
            f"preprocess expects images (C, H, W) or (C, D, H, W), got {image.shape}; add the axis of channels."
        )
    low, high = float(image.min()), float(image.max())
    if not np.isfinite(low) or not np.isfinite(high):
        raise DataError("preprocess expects finite values, got NaN or infinity; repair or leave out the image.")
    if values == "8-bit":
        low, high = 0.0, 255.0
    else:
        low, high = range_of(image, imaged(image, space) if inside is None and space is not None else inside)
    modality, unit = (None, None) if space is None else (space.modality, space.unit)
    return Kind(len(image), image.shape[1:], values, low, high, is_whole(image), modality, unit)


def range_of(image: Array, inside: Mask | None) -> tuple[float, float]:
    """Least and greatest value of an image (C, *spatial), of the pixels that are ``inside`` (*spatial) where it is given."""
    values = image if inside is None or not inside.any() else image[:, inside]
    return float(values.min()), float(values.max())


def is_whole(image: Array) -> bool:
    """Whether all values are whole numbers."""
    return image.dtype.kind != "f" or bool((image.ravel()[:1000] % 1 == 0).all() and (image % 1 == 0).all())


def same_values(values: str, low: float, high: float, other: str, whole: bool) -> bool:
    """Whether an image goes with others of the kind ``values`` that range from ``low`` to ``high``.

    Integers of all types but uint8 go together, and so do integers and floats that hold whole numbers: the same CT is
    written as int16, int32 or float32. Not so where the others span 2 or less: 0..1 and -1..1 are scaled.

    >>> same_values("integer", -1000, 3000, "float", whole=True), same_values("float", 0, 1, "integer", whole=True)
    (True, False)
    """
    return values == other or ({values, other} == {"integer", "float"} and whole and high - low > 2)


def refuse_mixed_kinds(name: str, found: Iterable[tuple[str, str | None, str | None]]) -> None:
    """(path, modality, unit) of images of a set -> DataError, with a list, where they are not all of one modality and unit.

    Images of formats that say neither fit all.
    """
    paths: dict[tuple[str, str], list[str]] = {}
    for path, modality, unit in found:
        if modality is not None:
            paths.setdefault((modality, unit or "no unit"), []).append(path)
    if len(paths) > 1:
        listed = "; ".join(
            f"{len(of_kind)} of {modality} in {unit} ({', '.join(of_kind[:3])}{', ...' * (len(of_kind) > 3)})"
            for (modality, unit), of_kind in sorted(paths.items(), key=lambda one: -len(one[1]))
        )
        raise DataError(
            f"{name}: expected images of one modality in one unit, got {listed}; choose some with a table of paths."
        )


def in_threads(work: Callable[[int], T], count: int) -> Iterator[T]:
    """``work(0) .. work(count - 1)`` in order, in threads."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, count, _CHUNK):
            yield from pool.map(work, range(start, min(start + _CHUNK, count)))
