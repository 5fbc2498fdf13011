"""Image files to arrays and back, with channels, bit depth and values kept.

Everything read is channel-first ``(C, H, W)`` in the file's own dtype. Nothing is converted to RGB and nothing is
rescaled: grey stays one channel, RGBA and CMYK four, 16-bit stays 16-bit. What is undone is only how the file packs its
pixels: a palette becomes RGB, whatever its colours are and without their transparency, so that all palette images of a
set have three channels; one bit becomes uint8 0 and 255; "white is zero" TIFF is inverted; the orientation tag of JPEG,
WebP, AVIF (EXIF) and TIFF is applied, so arrays lie as viewers show them.

Formats are recognised by content, not by name. All faults, hostile files included, end as one
:class:`~normalcy.errors.DataError` with the file's name and the reason. What a file claims is compared with
:class:`~normalcy.data.formats.Limits` before it is decoded.
"""

from __future__ import annotations

import io
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from mmap import mmap
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from normalcy.arrays import Array, Mask
from normalcy.data.formats import IMAGE_SUFFIXES, LIMITS, VOLUME_SUFFIXES, Limits, is_volume, own
from normalcy.data.volumes import decode_volume, volume_space
from normalcy.errors import DataError, NormalcyWarning, Reason, without_content
from normalcy.files import npy_header, read_array, read_bytes, write_bytes

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # its remarks on damaged files end as our errors

_PILLOW_FORMATS = {
    "PNG": "Png", "JPEG": "Jpeg", "BMP": "Bmp", "PPM": "Ppm", "GIF": "Gif", "WEBP": "WebP", "JPEG2000": "Jpeg2K",
    "AVIF": "Avif",
}  # fmt: skip
"""Pillow's name -> the plug-in that reads it."""
_LOSSY = ("JPEG", "MPO", "WEBP", "JPEG2000", "AVIF")
_MAX_CLASS = 31
"""In a mask, values up to this one are numbers of classes."""
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TIFF_CHANNELS = str.maketrans("CQI", "SSS")  # tifffile's letters: channel, unknown, image sequence -> sample
_ORIENTATION = 274
_DEFLATE = 1040
"""Bytes that one byte of compressed PNG can become (1032), and a little."""


def read_image(path: Path | str, finite: bool = False, limits: Limits = LIMITS) -> Array:
    """The image in a file as ``(C, H, W)``, native dtype.

    ``.npy`` holds ``(H, W)`` or channel-last ``(H, W, C)``. In TIFF, samples and equally sized pages are channels;
    pages that the file calls depth or time are refused. Volumes are ``(C, D, H, W)``, see :mod:`normalcy.data.volumes`.
    ``finite=True`` also refuses NaN and infinite values.
    """
    return decode_image(read_bytes(path, limits.file_bytes), str(path), finite, limits)


def read_mask(path: Path | str, limits: Limits = LIMITS) -> Mask:
    """The mask in a file as ``(H, W)``: True is anomalous. An alpha channel is ignored.

    Anomalous is what is not zero: colours of a palette or of RGB, two values of any kind, or numbers of classes (up to
    31). A grey mask of more and larger values comes from lossy compression or from interpolation: anomalous is then what
    lies above half of the range of its type (of its values, where they stay below that), with a warning.
    """
    return decode_mask(read_bytes(path, limits.file_bytes), str(path), limits)


def decode_image(data: bytes, name: str, finite: bool = False, limits: Limits = LIMITS) -> Array:
    """As :func:`read_image`, from the bytes of a file called ``name``."""
    array = _decode(data, name, limits)
    if finite and array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = np.count_nonzero(~np.isfinite(array))
        raise DataError(f"{name}: expected finite values, got {bad} NaN or infinite; repair or remove the file.")
    return array


def decode_mask(data: bytes, name: str, limits: Limits = LIMITS) -> Mask:
    """As :func:`read_mask`, from the bytes of a file called ``name``."""
    array = decode_image(data, name, finite=True, limits=limits)
    if is_volume(data):
        return np.asarray((array != 0).any(axis=0))
    if len(array) in (2, 4):
        array = array[:-1]  # an opaque alpha channel would make every pixel anomalous
    values = array.max(axis=0)
    low, high = float(values.min()), float(values.max())
    lossy = _format(data) in _LOSSY
    coloured = len(array) > 1 and bool((array != array[:1]).any())
    classes = high <= _MAX_CLASS and bool((values == np.floor(values)).all())
    if (not lossy and (coloured or classes)) or not ((values != low) & (values != high)).any():
        return np.asarray((array != 0).any(axis=0))
    warnings.warn(
        "masks with more than two values, from lossy compression or interpolation, are thresholded at half of their range: "
        "save masks as PNG with two values",
        NormalcyWarning,
        stacklevel=2,
    )
    largest = np.iinfo(values.dtype).max if values.dtype.kind in "ui" else 0.0
    half = largest / 2 if largest and high > largest / 2 else (low + high) / 2
    return np.asarray(values > (max(half, _MAX_CLASS) if lossy else half))


def image_size(data: bytes, name: str, limits: Limits = LIMITS) -> tuple[int, ...]:
    """``(height, width)``, or ``(depth, height, width)``, as :func:`decode_image` would return it.

    From the header alone where that is enough.
    """
    if data.startswith((b"\x93NUMPY", *_TIFF_MAGIC)):
        _, height, width = _decode(data, name, limits).shape
        return height, width
    if is_volume(data):
        return volume_space(data, name, limits).size
    try:
        with _opened(data) as image:
            width, height = image.size
            sideways = _exif_orientation(image) in (5, 6, 7, 8)
    except Exception as error:
        raise _unreadable(data, name, error) from None
    return (width, height) if sideways else (height, width)


def channel_first(array: Array, name: str) -> Array:
    """``(H, W)`` or channel-last ``(H, W, C)`` to ``(C, H, W)``, ``(D, H, W, C)`` to ``(C, D, H, W)``; a new array.

    >>> channel_first(np.zeros((5, 7, 3), np.uint16), "x").shape
    (3, 5, 7)
    """
    if array.size == 0 or array.ndim not in (2, 3, 4):
        raise DataError(f"{name}: expected an array (H, W) or (H, W, C), got shape {array.shape}.")
    if array.ndim > 2 and array.shape[0] <= 4 < array.shape[-1]:
        raise DataError(
            f"{name}: expected channels last, (H, W, C), got shape {array.shape}, which looks channel-first; "
            "move the channels with numpy.moveaxis(array, 0, -1)."
        )
    return own(np.moveaxis(array, -1, 0) if array.ndim > 2 else array[None], name)


def write_image(path: Path | str, image: Array, low: float | None = None, high: float | None = None) -> None:
    """Writes ``(H, W)`` or ``(C, H, W)`` as an 8-bit PNG to look at, atomically.

    Values from ``low`` to ``high`` become 0 to 255 and those beyond are clipped. uint8 without ``low`` and ``high`` is
    written as it is; for other types they default to the smallest and largest finite value. Three channels are RGB,
    four RGBA; of any other number the mean is shown in grey.
    """
    image = image[None] if image.ndim == 2 else image
    if image.ndim != 3 or image.size == 0:
        raise DataError(f"{path}: expected an image (H, W) or (C, H, W) to write, got shape {image.shape}.")
    if len(image) not in (1, 3, 4):
        image = image.mean(axis=0, keepdims=True)
    if image.dtype != np.uint8 or low is not None or high is not None:
        values = image.astype(np.float64)
        inside = values[np.isfinite(values)] if low is None or high is None else values
        bottom = low if low is not None else float(inside.min(initial=np.inf)) if inside.size else 0.0
        top = high if high is not None else float(inside.max(initial=-np.inf)) if inside.size else 1.0
        scaled = (values - bottom) / (top - bottom if top > bottom else 1.0)
        image = np.round(255 * np.nan_to_num(np.clip(scaled, 0, 1))).astype(np.uint8)
    write_bytes(path, encode_png(np.moveaxis(image, 0, -1) if len(image) > 1 else image[0]))


def encode_png(pixels: Array, palette: bytes = b"", compress: bool = True) -> bytes:
    """A PNG of uint8 (H, W), grey or indices of a ``palette`` (red, green, blue of each colour), or (H, W, 3 or 4).

    Differences from the pixel to the left, compressed lightly: as small as libpng's for photographs, in half its time. Without
    ``compress`` it takes a tenth of the time and, of photographs, two to three times the space.
    """
    height, width = pixels.shape[:2]
    step = 1 if pixels.ndim == 2 else pixels.shape[2]
    flat = pixels.reshape(height, width * step)
    rows = np.empty((height, 1 + flat.shape[1]), np.uint8)
    rows[:, 0] = 1  # the filter "Sub"
    rows[:, 1 : 1 + step] = flat[:, :step]
    np.subtract(flat[:, step:], flat[:, :-step], out=rows[:, 1 + step :])
    kind = 3 if palette else {1: 0, 3: 2, 4: 6}[step]
    head = struct.pack(">2I5B", width, height, 8, kind, 0, 0, 0)
    chunks = [
        (b"IHDR", head),
        *([(b"PLTE", palette)] if palette else []),
        (b"IDAT", _deflate(rows, int(compress))),
        (b"IEND", b""),
    ]
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, data in chunks:
        parts += [struct.pack(">I", len(data)), name, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))]
    return b"".join(parts)


def read_raw(path: Path) -> Array:
    """A map as it was written, ``(*spatial)``, or ``(C, *spatial)``. Of .npy only what is used is read."""
    if path.suffix == ".npy":
        array: Array = read_array(path)
        return array
    image = read_image(path)
    return image[0] if len(image) == 1 else image


def raw_size(path: Path) -> tuple[int, ...]:
    """The shape that :func:`read_raw` gives, from the header alone."""
    return read_raw(path).shape if path.suffix == ".npy" else image_size(read_bytes(path), str(path))


def write_raw(path: Path | str, array: Array) -> None:
    """Writes float32 values as they are, atomically: ``.npy`` in the array's own axes, ``.tiff`` for ``(H, W)``."""
    suffix = Path(path).suffix.lower()
    buffer = io.BytesIO()
    if suffix == ".npy":
        write_bytes(path, b"".join(encode_npy(array)))
        return
    if suffix in (".tif", ".tiff") and array.ndim == 2:
        import tifffile

        tifffile.imwrite(buffer, array.astype(np.float32), photometric="minisblack", compression="zlib")
    else:
        raise DataError(f"{path}: expected .npy, or .tiff for (H, W), to write an array of shape {array.shape}.")
    write_bytes(path, buffer.getvalue())


def encode_npy(array: Array) -> tuple[bytes, memoryview]:
    """Float32 values as a .npy file: its head and its values."""
    values = np.ascontiguousarray(array, np.dtype("<f4"))
    return _npy_head(values.shape), values.reshape(-1).view(np.uint8).data


@cache
def _npy_head(shape: tuple[int, ...]) -> bytes:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return head.getvalue()


def _deflate(rows: Any, level: int) -> bytes:
    try:
        import imagecodecs
    except ImportError:  # the runtime may be without it
        packer = zlib.compressobj(level, strategy=zlib.Z_RLE)
        return packer.compress(rows) + packer.flush()
    return bytes(imagecodecs.deflate_encode(rows, level=level))


def _decode(data: bytes, name: str, limits: Limits) -> Array:
    try:
        if data.startswith(b"\x93NUMPY"):
            return channel_first(_npy(data, limits), name)
        if is_volume(data):
            return decode_volume(data, name, limits)[0]
        if data.startswith(_TIFF_MAGIC):
            array, orientation = _tiff(data, limits)
        else:
            array, orientation = _pillow(data, limits)
        return own(_upright(array, orientation), name)
    except DataError:
        raise
    except Exception as error:  # decoders meet damaged bytes with errors of every type, MemoryError included
        raise _unreadable(data, name, error) from None


def _unreadable(data: bytes, name: str, error: Exception) -> DataError:
    if not data:
        reason = "the file has zero bytes"
    elif data[128:132] == b"DICM":
        reason = "a DICOM file by its content; give it the suffix .dcm"
    elif isinstance(error, UnidentifiedImageError):
        known = ", ".join(sorted(suffix[1:] for suffix in (*IMAGE_SUFFIXES, *VOLUME_SUFFIXES)))
        reason = f"not in a known format: {known}"
    else:
        reason = (
            str(error)
            if isinstance(error, Reason)
            else without_content(error, data) or "its header or pixels are damaged"
        )
    return DataError(f"{name}: cannot be read as an image ({reason}); replace or remove the file.")


def _npy(data: bytes, limits: Limits) -> Array:
    """An array in the .npy format. Never unpickles, and allocates no more than the bytes at hand."""
    file = io.BytesIO(data)
    shape, dtype, fortran = npy_header(file)
    count, start = math.prod(shape), file.tell()
    if count * dtype.itemsize > len(data) - start:
        raise Reason(f"truncated: shape {shape} of {dtype} needs more bytes than the file has")
    limits.check(shape, dtype)
    flat = np.frombuffer(data, dtype, count, start)
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


@cache
def _plugins() -> dict[str, Callable[[bytes], Any]]:
    """Pillow's name of a format -> whether a file is of it, by its first bytes."""
    found = {}
    for name, plugin in _PILLOW_FORMATS.items():
        if find_spec(f"PIL.{plugin}ImagePlugin") is not None:  # AVIF since Pillow 11.3
            import_module(f"PIL.{plugin}ImagePlugin")
            found[name] = cast("Callable[[bytes], Any]", Image.OPEN[name][1])
    return found


def _format(data: bytes) -> str | None:
    """Pillow's name of the format; None for one that is not read by Pillow."""
    for name, accept in _plugins().items():
        if answer := accept(data[:16]):
            if isinstance(answer, str):  # the reason why this Pillow cannot read it
                raise Reason(answer)
            return name
    return None


def _opened(data: bytes) -> Image.Image:
    """By the plug-in itself: Image.open() has a limit of 179 million pixels, which is a setting of the whole process."""
    name = _format(data)
    if name is None:
        raise UnidentifiedImageError("unknown")
    image: Image.Image = Image.OPEN[name][0](io.BytesIO(_plain_png(data) if name == "PNG" else data), "")
    return image


def _plain_png(data: bytes) -> bytes:
    """Without the chunks that say nothing of the pixels: text and colour profiles may be large, odd or damaged."""
    kept, start = [data[:8]], 8
    for _ in range(10**6):
        if len(data) - start < 12:
            break
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        kind = data[start + 4 : start + 8]
        if kind[:1].isupper() or kind == b"tRNS":
            kept.append(data[start:end])
        start = end
    return b"".join(kept) + data[start:]


def _pillow(data: bytes, limits: Limits) -> tuple[Array, int]:
    """PNG, JPEG, BMP, PNM, GIF, WebP, JPEG 2000, AVIF: the stored samples ``(C, H, W)`` and the EXIF orientation."""
    with _opened(data) as image:
        limits.check((*image.size, len(image.getbands())), "f4" if image.mode in ("I", "F") else "u1")
        if image.format == "PNG" and math.prod(image.size) * data[24] // 8 > _DEFLATE * len(data):
            raise Reason(f"truncated: it claims {image.size[0]} x {image.size[1]} pixels, more than its bytes can hold")
        orientation = _exif_orientation(image)
        if image.format != "MPO" and getattr(image, "is_animated", False):
            raise Reason("expected one image, got an animation; save the frame that is meant")
        if image.format == "JPEG2000":
            _check_jpeg2000(data, image.size)
        if image.format == "AVIF" and data.find(b"av1C", 0, 4096) > 0 and data[data.find(b"av1C") + 6] & 0x40:
            raise Reason("has more than 8 bits, which are read of PNG, TIFF and .npy only; convert it")
        if image.format == "PNG" and data[24] == 16 and data[25] in (2, 4, 6):
            # Pillow cuts 16-bit colour down to 8 bits
            import imagecodecs

            channels = {2: 3, 4: 2, 6: 4}[data[25]]
            limits.check((*image.size, channels), "u2")
            array = np.asarray(imagecodecs.png_decode(_plain_png(data)))
        elif image.mode in ("P", "PA") or image.format == "GIF":
            image.info.pop("transparency", None)
            array = np.asarray(image.convert("RGB"))
        elif image.mode == "I":  # 16-bit grey, which Pillow widens in PNM (and, before 10.2, in PNG)
            array = np.asarray(image).astype(np.uint16)
        elif image.mode in ("1", "L", "LA", "RGB", "RGBA", "CMYK", "F") or image.mode.startswith("I;16"):
            array = np.asarray(image)
        else:
            raise Reason(f"the pixel type {image.mode} is not supported")
    return (np.moveaxis(array, -1, 0) if array.ndim == 3 else array[None]), orientation


def _check_jpeg2000(data: bytes, size: tuple[int, int]) -> None:
    """Compares the header of the codestream (ISO/IEC 15444-1, A.5.1) with the size that Pillow takes from the box around
    it, and refuses the depths that Pillow changes."""
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0 or len(data) < start + 44:
        raise Reason("truncated: its codestream has no header")
    right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
    depths = {data[start + 42 + 3 * k] for k in range(int.from_bytes(data[start + 40 : start + 42], "big"))}
    if (right - left, bottom - top) != size:
        raise Reason("damaged: two sizes in one file")
    if not depths <= {7}:
        raise Reason("has other than 8 bits without sign, which are read of PNG, TIFF and .npy only; convert it")


def _exif_orientation(image: Image.Image) -> int:
    # not PNG: there the tag is rare and may come after the pixels, so that the size would cost a whole decoding
    return int(image.getexif().get(_ORIENTATION, 1)) if image.format in ("JPEG", "MPO", "WEBP", "AVIF") else 1


def _tiff(data: bytes, limits: Limits) -> tuple[Array, int]:
    """TIFF: the samples ``(C, H, W)``, palette and "white is zero" resolved, and the orientation tag."""
    import tifffile

    check_pages(data, limits.pages)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        first, *others = file.series
        if any(not series.keyframe.is_reduced for series in others):  # reduced: a thumbnail
            raise Reason(f"expected one image, got {len(file.series)} of different sizes or kinds")
        page, axes = first.keyframe, first.axes
        if sorted(axes.translate(_TIFF_CHANNELS)) not in (["X", "Y"], ["S", "X", "Y"]):
            raise Reason(f"expected one 2D image with channels, got a stack with the axes {axes}")
        limits.check(tuple(first.shape), first.dtype)
        if math.prod(page.chunked) > len(page.dataoffsets):  # else each missing one is looked for
            raise Reason("damaged: it claims more tiles or strips than it has")
        for offset, count in zip(page.dataoffsets, page.databytecounts):
            if offset + count > len(data):
                raise Reason("truncated: some pixels lie beyond the end of the file")
        array = np.asarray(first.asarray())
        if array.shape != tuple(first.shape) or array.size == 0:
            raise Reason(f"damaged: the header says {tuple(first.shape)}, the pixels are {array.shape}")
        orientation = page.tags.valueof(_ORIENTATION, 1)
        array = np.moveaxis(array, (axes.index("Y"), axes.index("X")), (-2, -1))
        array = array if array.ndim == 3 else array[None]
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None and len(array) == 1:
            colours = (np.asarray(page.colormap) >> 8).astype(np.uint8)  # (3, 2 ** bits)
            limits.check((3, *array.shape))
            array = colours[:, array[0]]
        elif page.bitspersample == 1:
            array = array.astype(bool)
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and array.dtype.kind in "bu":
            array = ~array if array.dtype == bool else array.dtype.type(2**page.bitspersample - 1) - array
    return array, int(orientation)


def check_pages(data: bytes | mmap, most: int) -> None:
    """Follows the chain of directories (TIFF 6.0, section 2; BigTIFF), which reading them would take seconds for."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    counted, width, entry, at = ("Q", 8, 20, 8) if big else ("H", 2, 12, 4)
    offset = f"{order}{'Q' if big else 'I'}"
    try:
        (place,) = struct.unpack_from(offset, data, at)
        for _ in range(most):
            if not place:
                return
            (tags,) = struct.unpack_from(f"{order}{counted}", data, place)
            (place,) = struct.unpack_from(offset, data, place + width + entry * tags)
    except (struct.error, OverflowError):  # cut off: tifffile says what is missing
        return
    if place:
        raise Reason(f"has more than {most:,} pages, the limit")


def _upright(array: Array, orientation: int) -> Array:
    """Applies the orientation tag (TIFF 6.0, section 8) to ``(C, H, W)``: 5 to 8 swap rows and columns."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(1, 2)
    if orientation in (2, 3, 6, 7):
        array = array[:, :, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[:, ::-1]
    return array
