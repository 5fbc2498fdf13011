"""Image formats by name and by first bytes, and what an array read from any of them must be."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from normalcy.arrays import Array
from normalcy.errors import DataError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".npy", ".pgm", ".ppm"})
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
MAX_VALUES = 2**30
"""Largest number of values (pixels times channels) that a file may claim: a guard against decompression bombs. Files
that Pillow decodes (PNG, JPEG, BMP, PNM) also meet Pillow's own limit of 179 million pixels."""


def is_image(name: str) -> bool:
    """Whether a file is one by its name: an image or a volume."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES or name.lower().endswith(VOLUME_SUFFIXES)


def stem(name: str) -> str:
    """A path without the suffix of its file.

    >>> stem("a.b/scan.nii.gz"), stem("a.b/photo.x.png")
    ('a.b/scan', 'a.b/photo.x')
    """
    suffix = next((s for s in sorted(VOLUME_SUFFIXES, key=len, reverse=True) if name.lower().endswith(s)), None)
    return name[: -len(suffix)] if suffix else name.rpartition(".")[0] or name


def is_nifti(data: bytes) -> int:
    """1 or 2 for the beginning of a NIfTI file of that version, not compressed; 0 for anything else."""
    first = data[:4]
    return {348: 1, 540: 2}.get(int.from_bytes(first, "little"), {348: 1, 540: 2}.get(int.from_bytes(first, "big"), 0))


def is_volume(data: bytes) -> bool:
    """Whether bytes begin as those of a volume do."""
    return bool(is_nifti(data)) or data.startswith((b"\x1f\x8b", b"NRRD", b"ObjectType"))


def own(array: Array, name: str) -> Array:
    """A contiguous copy in the machine's byte order, bool as 0 and 255; refuses what is not a real number."""
    if array.dtype == bool:
        return np.where(array, 255, 0).astype(np.uint8)
    if array.dtype.kind not in "uif":
        raise DataError(f"{name}: expected integers or real numbers, got {array.dtype}; convert them first.")
    copy: Array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    return copy
