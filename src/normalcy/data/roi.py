"""Regions of interest: masks outside of which nothing of an image counts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from normalcy.arrays import Array, Mask
from normalcy.data.images import decode_mask, read_mask
from normalcy.errors import DataError, ModelFileError
from normalcy.files import read_bytes

ROI = "roi.png"
"""In a model folder: the region of interest that all images have in common."""


def read_roi(path: Path | str) -> Mask:
    """The region in a file, (H, W): where it is not zero. Raises DataError for a file that is no image, or is zero everywhere."""
    return _checked(read_mask(path), str(path))


def decode_roi(data: bytes, name: str) -> Mask:
    """As :func:`read_roi`, from the bytes of a file called ``name``."""
    return _checked(decode_mask(data, name), name)


def saved_roi(folder: Path, description: Mapping[str, Any]) -> Mask | None:
    """The region of interest of a model folder with this ``detector.json``; None where it has none.

    Raises ModelFileError for a file that is missing or not the one that was saved.
    """
    digest = description.get("roi_sha256")
    if digest is None and description["input"].get("roi") is None:
        return None
    content = read_bytes(folder / ROI, error=ModelFileError)
    if hashlib.sha256(content).hexdigest() != digest:
        raise ModelFileError(
            f"{folder / ROI} is damaged or was exchanged (its checksum is another): copy the model again."
        )
    try:
        return decode_roi(content, str(folder / ROI))
    except DataError as error:
        raise ModelFileError(str(error)) from error


def encode_roi(mask: Mask) -> bytes:
    """A PNG of 0 and 255."""
    file = BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, "PNG", optimize=True)
    return file.getvalue()


def scaled_roi(mask: Mask, size: tuple[int, ...], name: str) -> Mask:
    """A region (h, w) at the size (H, W) of the image ``name``, by the nearest neighbour.

    Raises DataError for a region that is empty, or of another aspect ratio by more than half a pixel; and for a volume.

    >>> scaled_roi(np.array([[False, True]]), (2, 4), "a.png").astype(int).tolist()
    [[0, 0, 1, 1], [0, 0, 1, 1]]
    """
    if len(size) != 2 or mask.ndim != 2:
        raise DataError(
            f"{name}: a region of interest expects images and masks (H, W), got an image {size} and a mask {mask.shape}; score "
            "single slices (scan.nii.gz[z=40]), or leave roi out."
        )
    if mask.shape != size:
        (h, w), (height, width) = mask.shape, size
        if 2 * abs(h * width - w * height) > max(w, width, h, height):
            raise DataError(
                f"{name}: expected a region of interest of the image's size {height} x {width} or of its aspect ratio, got "
                f"{h} x {w}; give a mask that was drawn on these images."
            )
        mask = mask[np.ix_(*(((np.arange(n) + 0.5) * m / n).astype(np.intp) for n, m in zip(size, mask.shape)))]
    return _checked(mask, f"{name}: its region of interest")


def filled(image: Array, roi: Mask) -> Array:
    """A copy of an image (C, *spatial) that is 0 outside of the region (*spatial)."""
    return np.where(roi, image, np.zeros((), image.dtype))


def _checked(mask: Mask, name: str) -> Mask:
    if not mask.any():
        raise DataError(
            f"{name}: expected a region of interest that is not zero somewhere, got zeros alone; draw it again."
        )
    return mask
