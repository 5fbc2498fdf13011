"""Image files to arrays and back, with channels, bit depth and values kept.

Everything read is channel-first ``(C, H, W)`` in the file's own dtype. Nothing is converted to RGB and nothing is
rescaled: grey stays one channel, RGBA and CMYK four, 16-bit stays 16-bit. What is undone is only how the file packs its
pixels: a palette becomes its colours (one channel if they are all grey), one bit becomes uint8 0 and 255, "white is
zero" TIFF is inverted, the orientation tag of JPEG (EXIF) and TIFF is applied, so arrays lie as viewers show them.

Formats are recognised by content, not by name. All faults, hostile files included, end as one
:class:`~normalcy.errors.DataError` with the file's name and the reason.
"""

import io
import logging
import math
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from normalcy.arrays import Array, Mask
from normalcy.data.formats import IMAGE_SUFFIXES, MAX_VALUES, VOLUME_SUFFIXES, is_volume, own
from normalcy.data.volumes import decode_volume, volume_space
from normalcy.errors import DataError
from normalcy.files import read_bytes, write_bytes

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # its remarks on damaged files end as our errors

_PILLOW_FORMATS = ("PNG", "JPEG", "BMP", "PPM")
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TIFF_CHANNELS = str.maketrans("CQI", "SSS")  # tifffile's letters: channel, unknown, image sequence -> sample
_ORIENTATION = 274


def read_image(path: Path | str, finite: bool = False) -> Array:
    """The image in a file as ``(C, H, W)``, native dtype.

    ``.npy`` holds ``(H, W)`` or channel-last ``(H, W, C)``. In TIFF, samples and equally sized pages are channels;
    pages that the file calls depth or time are refused. Volumes are ``(C, D, H, W)``, see :mod:`normalcy.data.volumes`.
    ``finite=True`` also refuses NaN and infinite values.
    """
    return decode_image(read_bytes(path), str(path), finite)


def read_mask(path: Path | str) -> Mask:
    """The mask in a file as ``(H, W)``: True, where the file is not zero, is anomalous. An alpha channel is ignored."""
    return decode_mask(read_bytes(path), str(path))


def decode_image(data: bytes, name: str, finite: bool = False) -> Array:
    """As :func:`read_image`, from the bytes of a file called ``name``."""
    array = _decode(data, name)
    if finite and array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = np.count_nonzero(~np.isfinite(array))
        raise DataError(f"{name}: expected finite values, got {bad} NaN or infinite; repair or remove the file.")
    return array


def decode_mask(data: bytes, name: str) -> Mask:
    """As :func:`read_mask`, from the bytes of a file called ``name``."""
    array = decode_image(data, name, finite=True)
    if len(array) in (2, 4) and not is_volume(data):
        array = array[:-1]  # an opaque alpha channel would make every pixel anomalous
    return np.asarray((array != 0).any(axis=0))


def image_size(data: bytes, name: str) -> tuple[int, ...]:
    """``(height, width)``, or ``(depth, height, width)``, as :func:`decode_image` would return it.

    From the header alone where that is enough.
    """
    if data.startswith((b"\x93NUMPY", *_TIFF_MAGIC)):
        _, height, width = _decode(data, name).shape
        return height, width
    if is_volume(data):
        return volume_space(data, name).size
    try:
        with Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS) as image:
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
    pixels = np.ascontiguousarray(np.moveaxis(image, 0, -1) if len(image) > 1 else image[0])
    try:
        import imagecodecs
    except ImportError:  # the runtime may be without it
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
        write_bytes(path, buffer.getvalue())
        return
    # Run lengths of horizontal differences: 8 times faster than Pillow's default, and smaller for photographs.
    write_bytes(path, bytes(imagecodecs.png_encode(pixels, level=1, strategy=3, filter=16)))


def read_raw(path: Path) -> Array:
    """A map as it was written, ``(*spatial)``, or ``(C, *spatial)``. Of .npy only what is used is read."""
    if path.suffix == ".npy":
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
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
        np.save(buffer, array.astype(np.float32), allow_pickle=False)
    elif suffix in (".tif", ".tiff") and array.ndim == 2:
        import tifffile

        tifffile.imwrite(buffer, array.astype(np.float32), photometric="minisblack", compression="zlib")
    else:
        raise DataError(f"{path}: expected .npy, or .tiff for (H, W), to write an array of shape {array.shape}.")
    write_bytes(path, buffer.getvalue())


def _decode(data: bytes, name: str) -> Array:
    try:
        if data.startswith(b"\x93NUMPY"):
            return channel_first(_npy(data), name)
        if is_volume(data):
            return decode_volume(data, name)[0]
        if data.startswith(_TIFF_MAGIC):
            array, orientation = _tiff(data)
        else:
            array, orientation = _pillow(data)
        return own(_upright(array, orientation), name)
    except DataError:
        raise
    except Exception as error:  # decoders meet damaged bytes with errors of every type, MemoryError included
        raise _unreadable(data, name, error) from None


def _unreadable(data: bytes, name: str, error: Exception) -> DataError:
    if not data:
        reason = "the file has zero bytes"
    elif isinstance(error, UnidentifiedImageError):
        known = ", ".join(sorted(suffix[1:] for suffix in (*IMAGE_SUFFIXES, *VOLUME_SUFFIXES)))
        reason = f"not in a known format: {known}"
    else:
        reason = " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__
    return DataError(f"{name}: cannot be read as an image ({reason}); replace or remove the file.")


def _npy(data: bytes) -> Array:
    """An array in the .npy format. Never unpickles, and allocates no more than the bytes at hand."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:  # 3.0 exists for field names of structured arrays
        raise ValueError(f"a .npy file of version {version}, which does not hold images")
    if dtype.hasobject:
        raise ValueError("holds Python objects, not numbers")
    count, start = math.prod(shape), file.tell()
    if min(shape, default=1) < 0 or count * dtype.itemsize > len(data) - start:
        raise ValueError(f"truncated: shape {shape} of {dtype} needs more bytes than the file has")
    flat = np.frombuffer(data, dtype, count, start)
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


def _pillow(data: bytes) -> tuple[Array, int]:
    """PNG, JPEG, BMP and PNM: the stored samples ``(C, H, W)`` and the EXIF orientation."""
    with Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS) as image:
        orientation = _exif_orientation(image)
        if image.format == "PNG" and data[24] == 16 and data[25] in (2, 4, 6):
            # Pillow cuts 16-bit colour down to 8 bits
            import imagecodecs

            _refuse_bomb((*image.size, 4))
            array = np.asarray(imagecodecs.png_decode(data))
        elif image.mode in ("P", "PA"):
            clear = "A" if image.mode == "PA" or "transparency" in image.info else ""
            colours = np.reshape(image.getpalette() or [], (-1, 3))
            grey = bool((colours == colours[:, :1]).all())
            array = np.asarray(image.convert(("L" if grey else "RGB") + clear))
        elif image.mode == "I":  # 16-bit grey, which Pillow widens in PNM (and, before 10.2, in PNG)
            array = np.asarray(image).astype(np.uint16)
        elif image.mode in ("1", "L", "LA", "RGB", "RGBA", "CMYK", "F") or image.mode.startswith("I;16"):
            array = np.asarray(image)
        else:
            raise ValueError(f"the pixel type {image.mode} is not supported")
    return (np.moveaxis(array, -1, 0) if array.ndim == 3 else array[None]), orientation


def _exif_orientation(image: Image.Image) -> int:
    # JPEG alone: in PNG the tag is rare and may come after the pixels, so that the size would cost a whole decoding
    return int(image.getexif().get(_ORIENTATION, 1)) if image.format in ("JPEG", "MPO") else 1


def _tiff(data: bytes) -> tuple[Array, int]:
    """TIFF: the samples ``(C, H, W)``, palette and "white is zero" resolved, and the orientation tag."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        first, *others = file.series
        if any(not series.keyframe.is_reduced for series in others):  # reduced: a thumbnail
            raise ValueError(f"expected one image, got {len(file.series)} of different sizes or kinds")
        page, axes = first.keyframe, first.axes
        if sorted(axes.translate(_TIFF_CHANNELS)) not in (["X", "Y"], ["S", "X", "Y"]):
            raise ValueError(f"expected one 2D image with channels, got a stack with the axes {axes}")
        _refuse_bomb(first.shape)
        for offset, count in zip(page.dataoffsets, page.databytecounts):
            if offset + count > len(data):
                raise ValueError("truncated: some pixels lie beyond the end of the file")
        array = np.asarray(first.asarray())
        if array.shape != tuple(first.shape) or array.size == 0:
            raise ValueError(f"damaged: the header says {tuple(first.shape)}, the pixels are {array.shape}")
        orientation = page.tags.valueof(_ORIENTATION, 1)
        array = np.moveaxis(array, (axes.index("Y"), axes.index("X")), (-2, -1))
        array = array if array.ndim == 3 else array[None]
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None and len(array) == 1:
            colours = (np.asarray(page.colormap) >> 8).astype(np.uint8)  # (3, 2 ** bits)
            grey = bool((colours == colours[:1]).all())
            array = (colours[:1] if grey else colours)[:, array[0]]
        elif page.bitspersample == 1:
            array = array.astype(bool)
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and array.dtype.kind in "bu":
            array = ~array if array.dtype == bool else array.dtype.type(2**page.bitspersample - 1) - array
    return array, int(orientation)


def _refuse_bomb(shape: tuple[int, ...]) -> None:
    if math.prod(shape) > MAX_VALUES:
        raise ValueError(f"claims {math.prod(shape):,} values, more than the limit of {MAX_VALUES:,}")


def _upright(array: Array, orientation: int) -> Array:
    """Applies the orientation tag (TIFF 6.0, section 8) to ``(C, H, W)``: 5 to 8 swap rows and columns."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(1, 2)
    if orientation in (2, 3, 6, 7):
        array = array[:, :, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[:, ::-1]
    return array
