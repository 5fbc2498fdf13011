"""DICOM: files and series to volumes, in the values that the scanner meant and at the place in the patient that it says.

A series becomes one volume: slices sorted by their position along the normal of the first, values after rescale slope and
intercept (Hounsfield units in CT), MONOCHROME1 inverted so that larger is brighter, colours as channels. Windows (VOI) are
offered by :func:`windows`, never applied. Slices that do not belong together, or of which one is missing, are refused.

Nothing that names a patient leaves this module: cases are hashes of the patient's identifier, and errors are sentences of
ours, without values from the file.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from normalcy.arrays import Array, Float64, Indices
from normalcy.data import dicom_codecs
from normalcy.data.formats import MAX_VALUES, own
from normalcy.data.volumes import Space, check_affine
from normalcy.errors import DataError
from normalcy.files import read_bytes

_MAGIC = b"DICM"
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM counts to the left and the back
_SERIES = ("SeriesInstanceUID", "PatientID", "IssuerOfPatientID")


def is_dicom(data: bytes) -> bool:
    """Whether a file begins as a DICOM file does."""
    return data[128:132] == _MAGIC


@cache
def require_pydicom() -> Any:
    """pydicom, told to be silent: its remarks quote values of the file."""
    try:
        import pydicom
    except ImportError:
        raise DataError('DICOM files need pydicom; pip install "normalcy[medical]".') from None
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logger = logging.getLogger("pydicom")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    dicom_codecs.register(pydicom)
    return pydicom


def patient(identifier: str, issuer: str = "") -> str:
    """A case name that does not show the patient's identifier: its SHA-256, shortened.

    Whoever can list all identifiers can find out which one it is; where that matters, de-identify the files first.
    """
    return "patient-" + hashlib.sha256(f"{issuer}\0{identifier}".encode()).hexdigest()[:12]


def series_in(files: Sequence[str], read: Callable[[str], bytes], root: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """DICOM files below a folder called ``root`` as (path, case, files of the series), one for each series of each folder.

    The path is the file's where it is alone, the folder's where all its files are of one series, else the folder's with a hash
    of the series. A file that cannot be read is a series of its own, so that it is listed as bad.
    """
    pydicom = require_pydicom()
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    cases: dict[tuple[str, str], str] = {}
    for file in files:
        folder = file.rpartition("/")[0]
        try:
            header = pydicom.dcmread(io.BytesIO(read(file)), stop_before_pixels=True, specific_tags=list(_SERIES))
            key = folder, str(header.SeriesInstanceUID)
            if header.get("PatientID"):
                cases[key] = patient(str(header.PatientID), str(header.get("IssuerOfPatientID", "")))
        except Exception:
            key = folder, file
        groups[key].append(file)
    in_folder: dict[str, int] = defaultdict(int)
    for folder, _ in groups:
        in_folder[folder] += 1
    found = []
    for (folder, series), members in groups.items():
        if len(members) == 1:
            path = members[0]
        elif in_folder[folder] == 1:
            path = folder or root
        else:
            path = f"{folder}/" * bool(folder) + "series-" + hashlib.sha256(series.encode()).hexdigest()[:8]
        found.append((path, cases.get((folder, series), path), tuple(sorted(members))))
    return sorted(found)


def decode_series(files: Sequence[bytes], names: Sequence[str], name: str) -> tuple[Array, Space]:
    """The volume (C, *size) in the files of a series, and where it lies. Raises DataError with one sentence."""
    with _sentence(name):
        slices = _sorted([_read(data, file) for data, file in zip(files, names)])
        space = _space(slices)
        first = slices[0]
        stored = np.stack([_values(one) for one in slices])
        frames = stored.reshape(space.shape[2], first.rows, first.columns, *stored.shape[stored.ndim - first.colour :])
        frames = frames if first.order is None else frames[first.order]
        # (frames, rows, columns[, colours]) -> (columns, rows, frames[, colours])
        x = space.from_file(frames.transpose(2, 1, 0, *range(3, frames.ndim)))
        return own(x, name), space


def series_space(files: Sequence[bytes], names: Sequence[str], name: str) -> Space:
    """The space of :func:`decode_series` from the headers alone."""
    with _sentence(name):
        return _space(_sorted([_read(data, file, pixels=False) for data, file in zip(files, names)]))


def windows(data: bytes) -> list[tuple[float, float]]:
    """Centre and width of the windows that a file offers for display, for the preprocessing step ``window``."""
    with _sentence("DICOM"):
        header = require_pydicom().dcmread(io.BytesIO(data), stop_before_pixels=True)
        centres, widths = (np.atleast_1d(header.get(tag) or []) for tag in ("WindowCenter", "WindowWidth"))
        return [(float(centre), float(width)) for centre, width in zip(centres, widths)]


def sources(space: Space, name: str) -> tuple[list[Any], Indices]:
    """The data sets that a volume was read from, in the order of its slices (one where it is multi-frame), and the place of
    each of its slices in them: writers refer to both."""
    files = [read_bytes(file) for file in space.files]
    with _sentence(name):
        slices = _sorted([_read(data, file) for data, file in zip(files, space.files)])
        order = slices[0].order
        return [one.dataset for one in slices], np.arange(space.shape[2]) if order is None else order


# -- private -----------------------------------------------------------------------------------------------------------


class _Fault(ValueError):
    """A reason in words of ours."""


class _sentence:
    """Any fault inside becomes a DataError without values of the file."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None or isinstance(error, DataError) or not isinstance(error, Exception):
            return
        reason = str(error) if isinstance(error, _Fault) else f"damaged: {type(error).__name__}"
        raise DataError(f"{self.name}: cannot be read as DICOM ({reason}); replace or remove it.") from None


class _Slice:
    """A data set and its geometry. ``order``: of the frames of a multi-frame file along the normal."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset, self.name = dataset, name
        self.frames = int(dataset.get("NumberOfFrames") or 1)
        self.rows, self.columns = int(dataset.Rows), int(dataset.Columns)
        self.colour = (
            int(dataset.get("SamplesPerPixel") or 1) > 1 or dataset.PhotometricInterpretation == "PALETTE COLOR"
        )
        if min(self.rows, self.columns, self.frames) < 1 or self.rows * self.columns * self.frames > MAX_VALUES:
            raise _Fault(f"claims {self.frames} x {self.rows} x {self.columns} pixels, at most {MAX_VALUES:,} are read")
        frames = [*(dataset.get("PerFrameFunctionalGroupsSequence") or [])]
        shared = [*(dataset.get("SharedFunctionalGroupsSequence") or [])]

        def look(sequence: str, tag: str, frame: Any | None = None) -> Any:
            for group in (*([frame] if frame is not None else frames[:1]), *shared):
                inside = group.get(sequence)
                if inside and inside[0].get(tag) is not None:
                    return inside[0].get(tag)
            return dataset.get(tag)

        self.orientation = _numbers(look("PlaneOrientationSequence", "ImageOrientationPatient"), 6)
        spacing = look("PixelMeasuresSequence", "PixelSpacing") or dataset.get("ImagerPixelSpacing")
        self.spacing = _numbers(spacing, 2)
        thickness = look("PixelMeasuresSequence", "SpacingBetweenSlices") or look(
            "PixelMeasuresSequence", "SliceThickness"
        )
        self.thickness = float(thickness or 1.0)
        positions = [_numbers(look("PlanePositionSequence", "ImagePositionPatient", frame), 3) for frame in frames]
        self.positions = positions or [_numbers(dataset.get("ImagePositionPatient"), 3)]
        self.oriented = self.orientation is not None and all(p is not None for p in self.positions)
        self.order: Indices | None = None
        if self.oriented and len(self.positions) not in (1, self.frames):
            raise _Fault(f"has {self.frames} frames and {len(self.positions)} positions")

    @property
    def normal(self) -> Float64:
        assert self.orientation is not None
        return np.cross(self.orientation[:3], self.orientation[3:])


def _read(data: bytes, name: str, pixels: bool = True) -> _Slice:
    pydicom = require_pydicom()
    if not data:
        raise _Fault("zero bytes")
    if not is_dicom(data):
        raise _Fault("not a DICOM file: the mark DICM is missing")
    dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=not pixels)
    if "Rows" not in dataset or "Columns" not in dataset:
        raise _Fault("holds no image")
    if pixels and not any(tag in dataset for tag in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise _Fault("holds no pixels, or is cut off before them")
    return _Slice(dataset, name)


def _sorted(slices: list[_Slice]) -> list[_Slice]:
    """In the order of their positions; refuses what is no single, complete stack."""
    first = slices[0]
    if len({str(one.dataset.get("SeriesInstanceUID")) for one in slices}) > 1:
        raise _Fault("mixed series: give a folder for each")
    for one in slices[1:]:
        if (one.rows, one.columns, one.colour) != (first.rows, first.columns, first.colour):
            raise _Fault(
                f"mixed slices: {one.rows} x {one.columns} and {first.rows} x {first.columns} pixels in one series"
            )
        if one.frames > 1 or first.frames > 1:
            raise _Fault("several files with several frames in one series")
        if not _same(one.orientation, first.orientation, 1e-3) or not _same(one.spacing, first.spacing, 1e-3):
            raise _Fault("mixed slices: they differ in orientation or pixel spacing, as a localiser among them does")
    if len(slices) > 1 and not all(one.oriented for one in slices):
        raise _Fault("slices do not say where they lie (ImagePositionPatient, ImageOrientationPatient)")
    if len(slices) > 1:
        heights = [float(one.normal @ np.asarray(one.positions[0])) for one in slices]
        slices = [slices[i] for i in np.argsort(heights, kind="stable")]
        _check_steps(np.sort(heights))
    elif first.oriented and first.frames > 1 and len(first.positions) == first.frames:
        along = np.array([float(first.normal @ np.asarray(p)) for p in first.positions])
        first.order = np.argsort(along, kind="stable")
        _check_steps(np.sort(along))
    return slices


def _check_steps(heights: Float64) -> None:
    steps = np.diff(heights)
    usual = float(np.median(steps))
    if steps.min() < 1e-3:
        raise _Fault("two slices at the same place: time points, echoes or copies in one series")
    if np.abs(steps - usual).max() > 0.1 * usual + 0.01:
        widest = int(steps.argmax())
        if steps[widest] > 1.5 * usual:
            raise _Fault(f"a slice is missing: {steps[widest]:.3g} mm after slice {widest}, elsewhere {usual:.3g} mm")
        raise _Fault(f"slices are unevenly spaced, from {steps.min():.3g} to {steps.max():.3g} mm")


def _space(slices: list[_Slice]) -> Space:
    first, last = slices[0], slices[-1]
    count = max(len(slices), first.frames)
    rows_apart, columns_apart = first.spacing if first.spacing is not None else (1.0, 1.0)
    affine = np.diag([columns_apart, rows_apart, first.thickness, 1.0])
    if first.oriented and first.orientation is not None:
        ordered = [one.positions[0] for one in slices] if len(slices) > 1 else first.positions
        if first.order is not None:
            ordered = [first.positions[i] for i in first.order]
        start, end = np.asarray(ordered[0]), np.asarray(ordered[-1])
        affine[:3, 0] = np.asarray(first.orientation[:3]) * columns_apart
        affine[:3, 1] = np.asarray(first.orientation[3:]) * rows_apart
        affine[:3, 2] = (end - start) / (len(ordered) - 1) if len(ordered) > 1 else first.normal * first.thickness
        affine[:3, 3] = start
        affine = _LPS @ affine
    try:
        check_affine(affine)
    except ValueError as error:
        raise _Fault(str(error)) from None
    files = tuple(one.name for one in slices) if last.frames == 1 else (first.name,)
    return Space(
        (first.columns, first.rows, count),
        affine,
        dtype=np.dtype(np.float32),
        oriented=first.oriented,
        modality=str(first.dataset.get("Modality") or "") or None,
        files=files,
    )


def _values(one: _Slice) -> Array:
    """([frames,] rows, columns[, colours]) in the units of the scanner."""
    pydicom, dataset = require_pydicom(), one.dataset
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        plugin = dicom_codecs.NAME if dicom_codecs.is_available(syntax) else ""  # whatever others are installed
        dataset.pixel_array_options(decoding_plugin=plugin)
        stored = np.asarray(dataset.pixel_array)
    except (AttributeError, NotImplementedError, RuntimeError, ImportError):
        if syntax.is_encapsulated:
            raise _Fault(
                f"pixels compressed as {syntax.name if syntax.name != syntax else 'an unknown syntax'} cannot be decoded: "
                "damaged, or of a kind that no codec here knows"
            ) from None
        raise _Fault("its pixels do not fit its header") from None
    colours = dataset.PhotometricInterpretation
    if colours == "PALETTE COLOR":
        stored = pydicom.pixels.apply_color_lut(stored, dataset)
    if stored.size != one.frames * one.rows * one.columns * (stored.shape[-1] if one.colour else 1):
        raise _Fault("its pixels do not fit its header")
    if one.colour or stored.dtype.kind == "f":
        return stored
    bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if colours == "MONOCHROME1":
        stored = (high + low - stored.astype(np.int64)).astype(stored.dtype)
    if "ModalityLUTSequence" in dataset:
        return np.asarray(pydicom.pixels.apply_modality_lut(stored, dataset))
    scales = _rescale(dataset)
    if len(scales) > 1:
        if len(scales) != one.frames:
            raise _Fault(f"has {one.frames} frames and {len(scales)} rescale slopes")
        slopes, intercepts = (np.reshape(column, (-1, 1, 1)) for column in zip(*scales))
        return (stored.astype(np.float64) * slopes + intercepts).astype(np.float32)
    ((slope, intercept),) = scales or [(1.0, 0.0)]
    if (slope, intercept) == (1.0, 0.0):
        return stored
    if slope == int(slope) and intercept == int(intercept) and max(abs(slope * low), abs(slope * high)) < 2**30:
        ends = sorted((slope * low + intercept, slope * high + intercept))
        wide = np.int16 if ends[0] >= -(2**15) and ends[1] < 2**15 else np.int32
        return (stored.astype(np.int64) * int(slope) + int(intercept)).astype(wide)
    return (stored.astype(np.float64) * slope + intercept).astype(np.float32)


def _rescale(dataset: Any) -> list[tuple[float, float]]:
    """Slope and intercept: none, one pair, or one for each frame of an enhanced data set whose frames differ."""
    found = []
    for group in [dataset] if dataset.get("RescaleSlope") is not None else _transformations(dataset):
        if group.get("RescaleSlope") is not None:
            slope, intercept = float(group.RescaleSlope), float(group.get("RescaleIntercept") or 0.0)
            if not (math.isfinite(slope) and math.isfinite(intercept)) or slope == 0:
                raise _Fault("rescale slope or intercept is no usable number")
            found.append((slope, intercept))
    return found[:1] if len(set(found)) == 1 else found


def _transformations(dataset: Any) -> list[Any]:
    """Those of the data set, or of its frames."""
    for tag in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        inside = [
            one for group in dataset.get(tag) or [] for one in group.get("PixelValueTransformationSequence") or []
        ]
        if inside:
            return inside
    return []


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    if value is None or len(value) != count:
        return None
    numbers = tuple(float(v) for v in value)
    return numbers if all(math.isfinite(v) for v in numbers) else None


def _same(a: Sequence[float] | None, b: Sequence[float] | None, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    return max(abs(x - y) for x, y in zip(a, b)) <= tolerance
