"""Bytes that the page draws: images as .npy, thumbnails and heat maps as PNG, volumes as NIfTI along the patient's axes.

Nothing but pixels, sizes and the affine is in them: no name, no header text of a file.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from typing import Any

import numpy as np
from PIL import Image

from normalcy.arrays import Array, Float32, Float64, Mask
from normalcy.data.volumes import Space, require_nibabel
from normalcy.errors import DataError
from normalcy.files import bounded_gunzip
from normalcy.results.pictures import picture

LARGEST_SIDE = 4096
"""Pixels along a side of an image that is sent; larger ones are sent with every second (third ...) pixel."""
THUMBNAIL = 112
STRETCH = (0.5, 99.5)
"""Percentiles shown as black and white for anything but 8 bits."""


def step_of(size: tuple[int, ...]) -> int:
    """Which pixel of an image is sent: every first, second ..."""
    return max(1, math.ceil(max(size) / LARGEST_SIDE))


def plane(image: Array, channel: int | None = None) -> Array:
    """(C, H, W) or (H, W) as (H, W) or (H, W, 3), of a type that the page reads: uint8, uint16, int16 or float32.

    Three and four channels are colours; of any other number the one asked for, else the mean.
    """
    x = image if image.ndim == 3 else image[None]
    if channel is not None and channel < len(x):
        x = x[channel][None]
    if len(x) in (3, 4) and channel is None:
        x = np.moveaxis(x[:3], 0, -1)
    elif len(x) > 1:
        x = x.mean(axis=0)
    else:
        x = x[0]
    x = x[:: (k := step_of(x.shape[:2])), ::k]
    return sendable(x)


def sendable(x: Array) -> Array:
    """The same values in one of the types that the page reads."""
    if x.dtype == bool:
        return x.astype(np.uint8) * np.uint8(255)
    if (x.dtype.kind in "ui" and x.dtype.itemsize > 2) or x.dtype == np.int8:
        low, high = int(x.min()), int(x.max())
        small = np.uint16 if low >= 0 and high < 2**16 else np.int16 if low >= -(2**15) and high < 2**15 else np.float32
        return x.astype(small)
    return x if x.dtype in (np.uint8, np.uint16, np.int16, np.float32) else x.astype(np.float32)


def npy(x: Array) -> bytes:
    """In the .npy format, little-endian, C order."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(x.astype(x.dtype.newbyteorder("<"))), allow_pickle=False)
    return buffer.getvalue()


def thumbnail(image: Array) -> bytes:
    """(C, H, W), (H, W) or a volume's slice as a small PNG."""
    x = image if image.ndim == 3 else image[None]
    k = max(1, max(x.shape[-2:]) // (2 * THUMBNAIL))
    x = x[..., ::k, ::k]
    x = x[:3] if len(x) in (3, 4) else x.mean(axis=0, keepdims=True) if len(x) > 1 else x
    if x.dtype != np.uint8:
        values = np.nan_to_num(x.astype(np.float64), posinf=0, neginf=0)
        low, high = np.percentile(values, STRETCH)
        x = np.rint(255 * np.clip((values - low) / max(high - low, 1e-12), 0, 1)).astype(np.uint8)
    shown = Image.fromarray(np.ascontiguousarray(np.moveaxis(x, 0, -1)) if len(x) == 3 else np.ascontiguousarray(x[0]))
    shown.thumbnail((THUMBNAIL, THUMBNAIL))
    return png(shown)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def map_thumbnail(values: Float32, span: tuple[float, float]) -> bytes:
    k = max(1, max(values.shape) // (2 * THUMBNAIL))
    shown = Image.open(io.BytesIO(picture(values[::k, ::k], span))).convert("RGB")
    shown.thumbnail((THUMBNAIL, THUMBNAIL))
    return png(shown)


def heat_picture(heat: Float32, span: tuple[float, float], largest: int = 2048) -> bytes:
    """A heat map of a slide in colours, transparent where it is low or not known, as PNG."""
    k = max(1, math.ceil(max(heat.shape) / largest))
    values = heat[::k, ::k]
    values = np.nan_to_num(values, nan=span[0])
    colours = Image.open(io.BytesIO(picture(values, span))).convert("RGBA")
    strength = np.clip((values - span[0]) / max(span[1] - span[0], 1e-12), 0, 1)
    colours.putalpha(Image.fromarray(np.rint(255 * np.minimum(1.6 * strength, 1)).astype(np.uint8)))
    return png(colours)


def canonical_affine(space: Space) -> Float64:
    """(4, 4): index (x, y, z) of an array that is read, (z, y, x), -> mm to the right, the front and the head."""
    origin = space.world((0, 0, 0))
    affine = np.eye(4)
    affine[:3, 3] = origin
    for k, unit in enumerate(((0, 0, 1), (0, 1, 0), (1, 0, 0))):
        affine[:3, k] = space.world(unit) - origin
    return affine


def volume(x: Array, space: Space, channel: int = 0) -> bytes:
    """([C,] z, y, x) as NIfTI whose axes run to the right, the front and the head, as the array does."""
    nibabel = require_nibabel("review")
    x = x[min(channel, len(x) - 1)] if x.ndim == 4 else x
    if x.ndim != 3:
        raise DataError(f"expected a volume (z, y, x), got shape {x.shape}; it is shown as an image.")
    values = sendable(x).transpose(2, 1, 0)
    header = nibabel.Nifti1Header()
    header.set_data_dtype(values.dtype)
    header.set_data_shape(values.shape)
    header.set_sform(canonical_affine(space), "scanner")
    header.set_xyzt_units("mm")
    header["vox_offset"] = 352
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    little = values.astype(values.dtype.newbyteorder("<")).tobytes("F")
    return gzip.compress(header.binaryblock + b"\0" * 4 + little, 1, mtime=0)


def unpacked(data: bytes, shape: tuple[int, ...], limit: int) -> Mask:
    """A mask as the page sends it: a byte for each pixel, in C order, gzip-compressed. Raises DataError for others."""
    count = math.prod(shape)
    if count > limit:
        raise DataError(f"a mask may have {limit:,} pixels, this image has {count:,}.")
    try:
        raw = bounded_gunzip(data, count)
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"the mask cannot be read ({type(error).__name__}); send it again.") from None
    if len(raw) != count:
        raise DataError(f"the mask has {len(raw):,} pixels, expected {count:,}.")
    mask: Mask = np.frombuffer(raw, np.uint8).reshape(shape) != 0
    return mask


def packed(mask: Any) -> bytes:
    return gzip.compress(np.ascontiguousarray(np.asarray(mask, bool)).astype(np.uint8).tobytes(), 1, mtime=0)
