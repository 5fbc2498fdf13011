"""Image formats by name and by first bytes, and what an array read from any of them must be."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from os.path import splitext

import numpy as np
import numpy.typing as npt

from normalcy.arrays import Array
from normalcy.errors import DataError, Reason
from normalcy.files import MAX_BYTES

IMAGE_SUFFIXES = frozenset(
    {
        ".png",
        ".jpg",
        ".jpeg",
        ".jfif",
        ".bmp",
        ".tif",
        ".tiff",
        ".npy",
        ".pgm",
        ".ppm",
        ".webp",
        ".gif",
        ".jp2",
        ".avif",
    }
)
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mgh", ".mgz")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


@dataclass(frozen=True)
class Limits:
    """What one file may ask for. Checked before it is decoded: a guard against decompression bombs.

    An image takes up to three times ``decoded_bytes`` of memory while it is decoded. Larger limits are given to
    :func:`~normalcy.data.open.open_data`.
    """

    file_bytes: int = MAX_BYTES
    """Size of a file, or of a file in a zip when decompressed, in bytes (4 GiB and a header)."""
    values: int = 2**30
    """Values of an image: pixels or voxels times channels."""
    decoded_bytes: int = 2**32
    """Bytes of the values of an image, and of all arrays of an ``.npz`` together (4 GiB)."""
    pages: int = 1024
    """Pages of a TIFF, which are its channels."""
    rows: int = 2**22
    """Rows of a table (4 million)."""
    entries: int = 2**22
    """Files and folders below a folder."""

    def check(self, shape: tuple[int, ...], dtype: npt.DTypeLike = "u1") -> None:
        """Raises Reason for an image of this shape and type that is too large.

        >>> Limits(values=100).check((3, 10, 10))
        Traceback (most recent call last):
        ...
        normalcy.errors.Reason: claims the shape (3, 10, 10), 300 values, more than the limit of 100
        """
        values = math.prod(shape)
        if values > self.values:
            raise Reason(f"claims the shape {shape}, {values:,} values, more than the limit of {self.values:,}")
        if values * np.dtype(dtype).itemsize > self.decoded_bytes:
            size = values * np.dtype(dtype).itemsize
            raise Reason(
                f"claims the shape {shape}, {size:,} bytes when decoded, more than the limit of {self.decoded_bytes:,}"
            )


LIMITS = Limits()
MAX_VALUES = LIMITS.values


def is_image(name: str) -> bool:
    """Whether a file is one by its name: an image or a volume."""
    return splitext(name)[1].lower() in IMAGE_SUFFIXES or name.lower().endswith(VOLUME_SUFFIXES)


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


def is_mgh(data: bytes) -> bool:
    """Whether bytes begin as those of a FreeSurfer volume, not compressed: version 1, four sizes and a type."""
    if len(data) < 24 or data[:4] != b"\0\0\0\1":
        return False
    *sizes, kind = struct.unpack(">5i", data[4:24])
    return bool(min(sizes) > 0 and 0 <= kind < 16)


def is_gzip(data: bytes) -> bool:
    return data.startswith(b"\x1f\x8b")


def is_volume(data: bytes) -> bool:
    """Whether bytes begin as those of a volume do."""
    return bool(is_nifti(data)) or is_mgh(data) or is_gzip(data) or data.startswith((b"NRRD", b"ObjectType"))


def own(array: Array, name: str) -> Array:
    """A contiguous copy in the machine's byte order, bool as 0 and 255; refuses what is not a real number."""
    if array.dtype == bool:
        return np.where(array, 255, 0).astype(np.uint8)
    if array.dtype.kind not in "uif":
        raise DataError(f"{name}: expected integers or real numbers, got {array.dtype}; convert them first.")
    copy: Array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    return copy
