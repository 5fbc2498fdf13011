"""Images, maps and masks of a results folder, made small enough to show: pixels as data URIs, contours as SVG paths."""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image
from skimage import measure

from normalcy.arrays import Array, Float64, Indices
from normalcy.data.dataset import DataSet
from normalcy.data.images import read_image, read_mask, read_raw
from normalcy.data.volumes import Space, as_darkest, volume_space
from normalcy.errors import DataError
from normalcy.files import read_array, read_bytes
from normalcy.results.folder import MAPS, MASKS, ResultsFolder
from normalcy.results.names import NIFTI

Range = tuple[float, float]

LARGEST_SIDE = 400
"""Larger images are reduced by a whole factor, so between 200 and 400 pixels remain on the longer side."""
THUMBNAIL = 32
"""Longest side, in pixels, of restored images where they are compared."""
STRETCH = (0.5, 99.5)
"""Percentiles shown as black and white for anything but 8 bits."""
_CONTOUR_POINTS = 3000
_RESTORED = (".png", ".tiff", ".npy", NIFTI)


@dataclass
class Picture:
    """All there is to see of one image, one slice of a volume, at display size; None where it is not known."""

    size: tuple[int, int]  # (H, W) of the image itself
    input: Array | None = None  # uint8 (h, w) or (h, w, 3)
    restored: Array | None = None
    map: Array | None = None  # float32 (h, w), the largest value of each block of pixels
    uncertainty: Array | None = None
    others: dict[str, Array] = field(default_factory=dict)  # float32 (h, w) or (C, h, w), by name
    mask: Array | None = None  # bool (h, w)
    slice: tuple[int, int] | None = None  # shown, of how many
    shown_as: str = ""  # what display did to the values
    missing: str = ""  # why there is no input
    letters: tuple[str, str, str, str] | None = None  # where the left, right, upper and lower border lie in the patient


def load_picture(
    results: ResultsFolder, i: int, dataset: DataSet | None, place: int | None, radiological: bool = True
) -> Picture:
    """Reads the files of image ``i``; ``place`` is its index in ``dataset``. Of a volume, the slice with the peak.

    Of an image that says how it lies, the front or the head of the patient is above. ``radiological``: the patient's right is on
    the left, as in viewers and in the overlays of ``normalcy dicom``; else on the right.
    """
    whole: Array | None = None
    missing = "" if dataset is not None and place is not None else "not in the data set"
    if dataset is not None and place is not None:
        try:
            whole = dataset.read(place)  # (C, *spatial)
            whole = as_darkest(whole, dataset.imaged(place, whole))
        except (DataError, OSError) as error:
            missing = str(error)
    volume_map = _array(results.file("maps", i, *MAPS))
    volume_mask = _mask(results.file("masks", i, *MASKS))
    spatial = next(
        (a.shape for a in (volume_map, volume_mask) if a is not None), whole.shape[1:] if whole is not None else None
    )
    if spatial is None or not math.prod(spatial):
        return Picture((1, 1), missing=missing or "nothing to show")
    space = dataset.space(place) if dataset is not None and place is not None and not missing else None
    space = _written_space(results.file("maps", i, *MAPS)) if space is None else space
    view = None if space is None or not space.oriented else _view(space, len(spatial) == 3, radiological)
    cut: int | None = None
    if len(spatial) == 3:
        cut = _peak_slice(volume_map, volume_mask, spatial[0])

    def plane(volume: Array | None) -> Array | None:
        """The last two axes, at the slice shown."""
        if volume is None:
            return None
        deep = cut is not None and volume.ndim > 2
        shown = volume[..., min(cut or 0, volume.shape[-3] - 1), :, :] if deep else volume
        if view is None:
            return shown
        return shown[..., ::-1, ::-1] if view.mirrored else shown[..., ::-1, :]

    picture = Picture(
        (int(spatial[-2]), int(spatial[-1])),
        slice=None if cut is None else (cut, spatial[0]),
        missing=missing,
        letters=None if view is None else view.letters,
    )
    limits: Range | None = None
    if whole is not None:
        picture.input, limits, picture.shown_as = display(np.asarray(plane(whole)))
    restored = _restored(results.file("restored", i, *_RESTORED), len(spatial))
    if restored is not None:
        picture.restored, limits, shown_as = display(np.asarray(plane(restored)), limits)
        picture.shown_as = picture.shown_as or shown_as
    for name, volume in (("map", volume_map), ("uncertainty", _array(results.file("uncertainty", i, *MAPS)))):
        part = plane(volume)
        if part is not None:
            setattr(picture, name, reduce(np.nan_to_num(part.astype(np.float32)), np.max))
    for name in results.extra_maps():
        shown = plane(_array(results.file(f"extra_maps/{name}", i, *MAPS), (2, 3, 4)))
        if shown is not None:
            shown = shown[None] if name in results.run.extra_maps_with_channels and shown.ndim == 2 else shown
            picture.others[name] = reduce(np.nan_to_num(np.asarray(shown, np.float32)), np.mean)
    mask = plane(volume_mask)
    picture.mask = None if mask is None or not mask.any() else reduce(mask, np.max)
    return picture


@dataclass(frozen=True)
class _View:
    mirrored: bool  # columns from the last to the first; rows always are, since axes run to the front and the head
    letters: tuple[str, str, str, str]


def _view(space: Space, volume: bool, radiological: bool) -> _View:
    """How to show the last two axes of a volume or image, which run to the head, the front or the right of the patient."""
    rows, columns = [axis for axis in range(3) if axis != (0 if volume else space.flat)][-2:]
    ends = (("I", "S"), ("P", "A"), ("L", "R"))  # of z, y and x
    low, high = ends[columns]
    mirrored = radiological or columns != 2  # of a sagittal image the front is on the left in both conventions
    sides = (high, low) if mirrored else (low, high)
    return _View(mirrored, (*sides, ends[rows][1], ends[rows][0]))


def _written_space(path: Path | None) -> Space | None:
    """Of a map as NIfTI: where the image lies, if that itself is not there."""
    if path is None or not path.name.endswith(NIFTI):
        return None
    try:
        return volume_space(read_bytes(path), path.name)
    except (DataError, OSError):
        return None


def restored_thumbnails(results: ResultsFolder, rows: Indices) -> Float64:
    """Restored versions of some images, made small: (N, at most C THUMBNAIL^2), a row of NaN where there is none.

    Of a volume, the slice in the middle. Of images of several sizes, those of the commonest.
    """
    found: list[Array | None] = []
    for i in rows:
        path = results.file("restored", int(i), *_RESTORED)
        image = next((image for axes in (2, 3) if (image := _restored(path, axes)) is not None), None)
        if image is not None and image.ndim == 4:
            image = image[:, image.shape[1] // 2]
        found.append(None if image is None else reduce(np.asarray(image, np.float64), np.mean, THUMBNAIL).ravel())
    sizes = Counter(len(image) for image in found if image is not None)
    size = max(sizes, key=lambda n: sizes[n], default=0)
    empty = np.full(size, np.nan)
    return np.stack([empty if image is None or len(image) != size else image for image in found])


def reduce(plane: Array, block: Any, largest: int = LARGEST_SIDE) -> Array:
    """``(..., H, W)`` in blocks of a whole number of pixels; `numpy.max` keeps a hot spot of a single pixel visible.

    >>> reduce(np.arange(801 * 4).reshape(801, 4), np.max).shape
    (267, 2)
    """
    k = math.ceil(max(plane.shape[-2:]) / largest)
    if k <= 1:
        return plane
    edges = [(0, 0)] * (plane.ndim - 2) + [(0, -side % k) for side in plane.shape[-2:]]
    padded = np.pad(plane, edges, mode="edge")
    height, width = (side // k for side in padded.shape[-2:])
    blocks: Array = block(padded.reshape(*padded.shape[:-2], height, k, width, k), axis=(-3, -1))
    return blocks


def display(image: Array, limits: Range | None = None) -> tuple[Array, Range | None, str]:
    """``(C, H, W)`` of any type as uint8 ``(h, w)`` or ``(h, w, 3)``, the values shown as black and white, and in words
    what was done. One channel is grey, three or four are the first three as colours, the mean of any other number.

    >>> shown, limits, words = display(np.linspace(0, 4000, 64, dtype=np.uint16).reshape(1, 8, 8))
    >>> shown.shape, words
    ((8, 8), 'uint16, 19.84 to 3980 shown as black to white')
    """
    words = []
    kind, channels = image.dtype, len(image)
    small = reduce(image, np.mean).astype(np.float64)
    if channels in (3, 4):
        small = small[:3]
        words += ["first 3 of 4 channels"] if channels == 4 else []
    elif channels > 1:
        small = small.mean(axis=0, keepdims=True)
        words += [f"mean of {channels} channels"]
    if kind != np.uint8:
        if limits is None:
            known = small[np.isfinite(small)]
            low, high = np.percentile(known, STRETCH) if known.size else (0.0, 1.0)
            limits = (float(low), float(high))
        words += [f"{kind}, {limits[0]:.4g} to {limits[1]:.4g} shown as black to white"]
        small = 255 * scaled(small, limits)
    pixels = np.clip(np.round(np.nan_to_num(small)), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(pixels, 0, -1) if len(pixels) > 1 else pixels[0]), limits, "; ".join(words)


def scaled(values: Array, limits: Range) -> Array:
    """Values from low to high as 0 to 1, clipped; of a range without extent, what is above it is 1."""
    low, high = limits
    if not high > low:
        return np.asarray(values > high, np.float64)
    return np.clip((np.asarray(values, np.float64) - low) / (high - low), 0, 1)


def coloured(values: Array, limits: Range, colours: str) -> Array:
    """``(h, w)`` in the colours of a Matplotlib map as uint8 ``(h, w, 3)``."""
    index = np.round(255 * scaled(values, limits)).astype(np.uint8)
    pixels: Array = palette(colours)[index]
    return pixels


def palette(colours: str) -> Array:
    """256 colours, uint8 (256, 3)."""
    rgb: Array = np.round(255 * matplotlib.colormaps[colours](np.arange(256))[:, :3]).astype(np.uint8)
    return rgb


def data_uri(pixels: Array) -> str:
    """uint8 ``(h, w)`` or ``(h, w, 3)`` inside the page: WebP, without loss where images are small."""
    buffer = io.BytesIO()
    tiny = max(pixels.shape[:2]) <= 96
    Image.fromarray(pixels).save(buffer, format="WEBP", lossless=tiny, quality=80, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def contour(plane: Array, level: float, size: tuple[int, int]) -> str:
    """The SVG path around ``plane > level`` in the pixels of an image of this size; longest lines first, up to a limit.

    >>> contour(np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]]), 0.5, (6, 6))
    'M3 4L2 3L3 2L4 3Z'
    """
    if not math.isfinite(level) or plane.max() <= level:
        return ""
    outside = min(float(plane.min()), level - 1e-6 * max(1.0, abs(level)))
    trace: Any = measure  # its functions have no types
    lines = trace.find_contours(np.pad(plane.astype(np.float64), 1, constant_values=outside), level)
    scale = np.array(size) / plane.shape
    parts: list[str] = []
    points = 0
    for line in sorted(lines, key=len, reverse=True):
        corners = trace.approximate_polygon(line, 0.35)
        if len(corners) < 3:
            corners = line
        points += len(corners)
        if points > _CONTOUR_POINTS and parts:
            break
        places = np.clip((corners[:-1] - 0.5) * scale, 0, size)  # -1 for the padding, + 0.5 to the middle of the pixel
        parts.append("M" + "L".join(f"{x:.5g} {y:.5g}" for y, x in places) + "Z")
    return "".join(parts)


def _peak_slice(volume: Array | None, mask: Array | None, depth: int) -> int:
    for known in (volume, mask):
        if known is not None and known.ndim == 3:
            return int(np.nan_to_num(known.max(axis=(1, 2))).argmax())
    return depth // 2


def _array(path: Path | None, axes: tuple[int, ...] = (2, 3)) -> Array | None:
    """An array in a file, of one of these numbers of axes; None where there is none that can be read."""
    if path is None:
        return None
    try:
        array = read_raw(path)
    except (DataError, OSError, ValueError, EOFError):
        return None
    return array if isinstance(array, np.ndarray) and array.ndim in axes and array.dtype.kind in "biuf" else None


def _mask(path: Path | None) -> Array | None:
    if path is None or path.suffix != ".png":
        array = _array(path)
        return None if array is None else np.asarray(array != 0)
    try:
        return read_mask(path)
    except DataError:
        return None


def _restored(path: Path | None, axes: int) -> Array | None:
    """``(C, *spatial)``, of images as PNG or TIFF, of volumes as .npy."""
    if path is None:
        return None
    try:
        if path.suffix != ".npy":
            return read_image(path)
        array: Array = read_array(path)
    except DataError:
        return None
    return array if array.ndim == axes + 1 else None
