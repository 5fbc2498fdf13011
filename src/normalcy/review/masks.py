"""Masks of reviewers in files: PNG of the image's size, or NIfTI in the axes, shape and affine of the volume's own file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from normalcy.arrays import Mask
from normalcy.data.images import write_image
from normalcy.data.volumes import Space, write_volume
from normalcy.errors import DataError, SettingsError
from normalcy.files import inside, remove
from normalcy.results.labels import read_any_mask
from normalcy.results.names import NIFTI, named
from normalcy.review.store import folder_of

FOLDER = "masks"


def name_of(reviewer: str, file: str, volume: bool) -> str:
    """Where a mask lies below the review folder; ``file``: the base name of the image's files."""
    return f"{FOLDER}/{folder_of(reviewer)}/{named(file, NIFTI if volume else '.png')}"


def write(folder: Path, name: str, mask: Mask, space: Space | None) -> str:
    """Write a mask (*spatial), or remove its file where nothing is marked; returns ``name``, or "" for no mask."""
    path = inside(folder, name)
    if not mask.any():
        remove(path)
        return ""
    if space is not None and mask.shape == space.size:
        own = replace(space, dtype=np.dtype(np.uint8), scale=None)
        write_volume(path, mask.astype(np.uint8), own, like_file=True)
    else:
        write_image(path, np.where(mask, 255, 0).astype(np.uint8))
    return name


def read(folder: Path, name: str) -> Mask:
    """(*spatial). Raises DataError where it cannot be read."""
    try:
        path = inside(folder, name)
    except SettingsError:
        raise DataError(f"{name!r} leads out of {folder}: it is not read.") from None
    return read_any_mask(path)
