"""DICOM: files and series to volumes, in the values that the scanner meant and at the place in the patient that it says.

A series becomes one volume: slices sorted by their position along the normal of the first, values after rescale slope and
intercept or modality LUT (Hounsfield units in CT), dose in the unit of the dose grid, parametric maps in that of their mapping,
MONOCHROME1 inverted so that larger is brighter, colours as channels. Windows (VOI) are offered by :func:`windows`, never applied.
Slices or frames that do not belong together, are not in equal steps on a line, or of which one is missing, are refused; so is
what is no image, by its SOP class: segmentations, tiles of a whole slide, reports, waveforms, presentation states.

An image that does not say how it lies in the patient keeps its rows and columns as they are.

Nothing that names a patient leaves this module: cases are hashes of the patient's identifier, and errors are sentences of
ours, without values from the file.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from normalcy.arrays import Array, Float64, Indices
from normalcy.data import dicom_codecs
from normalcy.data.formats import MAX_VALUES, own
from normalcy.data.volumes import Space, check_affine
from normalcy.errors import DataError, Reason
from normalcy.files import read_bytes

_MAGIC = b"DICM"
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM counts to the left and the back
_SERIES = (
    "SeriesInstanceUID",
    "PatientID",
    "IssuerOfPatientID",
    "SeriesNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PerFrameFunctionalGroupsSequence",
)


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


@dataclass(frozen=True, slots=True)
class _Header:
    """Of a file, what tells series and patients apart."""

    series: str
    patient: str
    issuer: str
    has_place: bool
    words: tuple[str, ...]
    """The number and the plane of its series, as far as it tells them."""


def series_in(files: Sequence[str], read: Callable[[str], bytes], root: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """DICOM files below a folder called ``root`` as (path, case, files of the series), one for each series of each folder.

    The path is the file's where it is alone, the folder's where all its files are of one series, else the folder's with the
    number and plane of the series and a hash of its identifier (``study/series-3-axial-1f2e3d4c``). A file that cannot be read
    is a series of its own, so that it is listed as bad; and so are the files of a series of which none says where it lies:
    radiographs, ultrasound.

    Raises DataError where one series is of two patients.
    """
    headers = _headers(files, read)
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for file in files:
        header = headers.get(file)
        groups[file.rpartition("/")[0], file if header is None else header.series].append(file)
    for (folder, _), members in list(groups.items()):
        if len(members) > 1 and not any(headers[file].has_place for file in members):
            groups = defaultdict(list, {key: value for key, value in groups.items() if value is not members})
            for file in members:
                groups[folder, file] = [file]
    in_folder: dict[str, int] = defaultdict(int)
    for folder, _ in groups:
        in_folder[folder] += 1
    case_of_file = _cases(headers)
    found = []
    for (folder, series), members in groups.items():
        if len(members) == 1:
            path = members[0]
        elif in_folder[folder] == 1:
            path = folder or root
        else:
            words = ["series", *headers[members[0]].words, hashlib.sha256(series.encode()).hexdigest()[:8]]
            path = f"{folder}/" * bool(folder) + "-".join(words)
        found.append((path, case_of_file.get(members[0], path), tuple(sorted(members))))
    return sorted(found)


def cases_in(files: Sequence[str], read: Callable[[str], bytes]) -> dict[str, str]:
    """The case of each of these DICOM files that names its patient. Raises DataError where one series is of two patients."""
    return _cases(_headers(files, read))


def _headers(files: Sequence[str], read: Callable[[str], bytes]) -> dict[str, _Header]:
    """Of the files that can be read."""
    pydicom, found = require_pydicom(), {}
    for file in files:
        try:
            header = pydicom.dcmread(io.BytesIO(read(file)), stop_before_pixels=True, specific_tags=list(_SERIES))
            who, issuer = (str(header.get(tag) or "").strip() for tag in ("PatientID", "IssuerOfPatientID"))
            # frames of a file with several have their places in groups
            place = header.get("ImagePositionPatient") or header.get("PerFrameFunctionalGroupsSequence")
            found[file] = _Header(str(header.SeriesInstanceUID), who, issuer, bool(place), _series_words(header))
        except Exception:  # listed when it is read
            continue
    return found


def _series_words(header: Any) -> tuple[str, ...]:
    """Nothing but a short number and the name of a plane: what a person may look for, and no name of one."""
    number = re.fullmatch(r"[0-9]{1,4}", str(header.get("SeriesNumber") or "").strip())
    cosines = _cosines(header.get("ImageOrientationPatient"))
    words = [number[0]] if number else []
    if cosines is not None:
        normal = np.abs(np.cross(cosines[:3], cosines[3:]))
        words.append(("sagittal", "coronal", "axial")[int(normal.argmax())])
    return tuple(words)


def _cases(headers: Mapping[str, _Header]) -> dict[str, str]:
    """The issuer of identifiers counts only where there are several in the set: files of one patient may lack it."""
    several = len({header.issuer for header in headers.values() if header.patient and header.issuer}) > 1
    cases = {
        file: patient(header.patient, header.issuer if several else "")
        for file, header in headers.items()
        if header.patient
    }
    first: dict[str, str] = {}  # series -> its first file
    for file, case in cases.items():
        other = first.setdefault(headers[file].series, file)
        if cases[other] != case:
            raise DataError(
                f"{other} and {file}: are of one series (SeriesInstanceUID) but of two patients (PatientID); "
                "correct the identifiers, or leave one of them out."
            )
    return cases


def decode_series(files: Sequence[bytes], names: Sequence[str], name: str) -> tuple[Array, Space]:
    """The volume (C, *size) in the files of a series, and where it lies. Raises DataError with one sentence."""
    with _faults_without_values(name):
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
    with _faults_without_values(name):
        return _space(_sorted([_read(data, file, pixels=False) for data, file in zip(files, names)]))


def windows(data: bytes) -> list[tuple[float, float]]:
    """Centre and width of the windows that a file offers for display, for the preprocessing step ``window``."""
    with _faults_without_values("DICOM"):
        header = require_pydicom().dcmread(io.BytesIO(data), stop_before_pixels=True)
        centres, widths = (np.atleast_1d(header.get(tag) or []) for tag in ("WindowCenter", "WindowWidth"))
        return [(float(centre), float(width)) for centre, width in zip(centres, widths)]


def sources(space: Space, name: str) -> tuple[list[Any], Indices]:
    """The data sets that a volume was read from, in the order of its slices (one where it is multi-frame), and the place of
    each of its slices in them: writers refer to both."""
    files = [read_bytes(file) for file in space.files]
    with _faults_without_values(name):
        slices = _sorted([_read(data, file) for data, file in zip(files, space.files)])
        order = slices[0].order
        return [one.dataset for one in slices], np.arange(space.shape[2]) if order is None else order


# -- private -----------------------------------------------------------------------------------------------------------


@contextmanager
def _faults_without_values(name: str) -> Iterator[None]:
    """Any fault inside becomes a DataError without values of the file."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, Reason) else "the header or the pixels are damaged"
        raise DataError(f"{name}: cannot be read as DICOM ({reason}); replace or remove it.") from None


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
            raise Reason(f"claims {self.frames} x {self.rows} x {self.columns} pixels, at most {MAX_VALUES:,} are read")
        frames = [*(dataset.get("PerFrameFunctionalGroupsSequence") or [])]
        shared = [*(dataset.get("SharedFunctionalGroupsSequence") or [])]
        # nuclear medicine keeps position and orientation of the first frame with the detector
        below = [dataset, *(dataset.get("DetectorInformationSequence") or [])[:1]]

        def look(sequence: str, tag: str) -> list[Any]:
            """One for each frame that has functional groups of its own, else one for all."""
            found = []
            for frame in frames or [None]:
                groups = [*([frame] if frame is not None else []), *shared]
                inside = [group.get(sequence)[0] for group in groups if group.get(sequence)]
                found.append(next((one.get(tag) for one in (*inside, *below) if one.get(tag) is not None), None))
            return found

        orientations = [_cosines(one) for one in look("PlaneOrientationSequence", "ImageOrientationPatient")]
        scales = look("PixelMeasuresSequence", "PixelSpacing")
        spacings = [_numbers(one or dataset.get("ImagerPixelSpacing"), 2) for one in scales]
        _check_alike(orientations, spacings, "frames")
        self.orientation, self.spacing = orientations[0], spacings[0]
        self.between = _number(look("PixelMeasuresSequence", "SpacingBetweenSlices")[0])
        self.thickness = abs(self.between or _number(look("PixelMeasuresSequence", "SliceThickness")[0]) or 1.0)
        places = [_numbers(one, 3) for one in look("PlanePositionSequence", "ImagePositionPatient")]
        grouped = bool(frames) or any(group.get("PlanePositionSequence") for group in shared)
        self.positions = self._frame_places(places[0]) if self.frames > 1 and not grouped else places
        self.oriented = self.orientation is not None and all(p is not None for p in self.positions)
        if self.spacing is not None and min(self.spacing) <= 0:
            if self.oriented:
                raise Reason(f"its pixel spacing is {_spelled(self.spacing)} mm, expected positive numbers")
            self.spacing = None  # a radiograph or photograph that does not know its scale
        self.order: Indices | None = None
        if self.oriented and self.frames > 1 and len(self.positions) == 1:
            self.positions = [self.positions[0]] * self.frames
        if self.oriented and len(self.positions) != self.frames:
            raise Reason(f"has {self.frames} frames and {len(self.positions)} positions")

    @property
    def normal(self) -> Float64:
        assert self.orientation is not None
        return np.cross(self.orientation[:3], self.orientation[3:])

    def _frame_places(self, first: tuple[float, ...] | None) -> Sequence[tuple[float, ...] | None]:
        """Of the frames of a file that gives the place of the first one alone; None where nothing tells that of the others."""
        if first is None or self.orientation is None:
            return [None]
        offsets = self.dataset.get("GridFrameOffsetVector")
        if offsets is not None:  # radiotherapy dose, C.8.8.3.2: along the normal from the first, or z coordinates
            along = np.array([float(v) for v in offsets])
            if len(along) != self.frames:
                raise Reason(f"has {self.frames} frames and {len(along)} offsets")
            if along[0] == 0:
                return [tuple(np.asarray(first) + v * self.normal) for v in along]
            return [(*first[:2], float(z)) for z in along]
        if self.between is None:
            return [None]
        numbers = self.dataset.get("SliceVector") or range(1, self.frames + 1)  # of nuclear medicine
        return [tuple(np.asarray(first) + (int(k) - 1) * self.between * self.normal) for k in numbers]


_OTHER_MEANING = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.81.1": "an ophthalmic thickness map",
    "1.2.840.10008.5.1.4.1.1.82.1": "a corneal topography map",
    "1.2.840.10008.5.1.4.1.1.77.1.6": "a whole slide as tiles",
    "1.2.840.10008.5.1.4.1.1.77.1.9": "a tiled microscopy image",
}
"""SOP classes whose pixels are no image of a scanner or camera, or no whole one."""
_PARAMETRIC_MAP, _DOSE = "1.2.840.10008.5.1.4.1.1.30", "1.2.840.10008.5.1.4.1.1.481.2"
_FRAME_VECTORS = {
    "EnergyWindowVector": "energy windows",
    "DetectorVector": "detectors",
    "PhaseVector": "phases",
    "RotationVector": "rotations",
    "RRIntervalVector": "heartbeats",
    "TimeSlotVector": "time slots",
    "AngularViewVector": "views",
    "TimeSliceVector": "time slices",
}
"""Of nuclear medicine: what frames may differ in besides their place."""


def _check_meaning(dataset: Any) -> None:
    """Refuses what has pixels, or none, but is no image to read as one."""
    kind = str(dataset.get("SOPClassUID") or "")
    if "Rows" not in dataset or "Columns" not in dataset:
        name = require_pydicom().uid.UID(kind).name
        raise Reason("holds no image" + f" but is of the class {name}" * (name != kind))
    if kind in _OTHER_MEANING:
        raise Reason(f"holds {_OTHER_MEANING[kind]}, expected an image")
    if "TotalPixelMatrixColumns" in dataset:
        raise Reason("holds an image as tiles; convert it to a tiled TIFF and read it as a slide")
    if "MOSAIC" in (dataset.get("ImageType") or []):
        raise Reason("holds the slices of a volume side by side in one image (MOSAIC); convert it to NIfTI")
    for vector, what in _FRAME_VECTORS.items():
        count = len({int(k) for k in np.atleast_1d(dataset.get(vector) or [])})
        if count > 1:
            raise Reason(f"holds frames of {count} {what}; expected frames that differ in their place alone")


def _read(data: bytes, name: str, pixels: bool = True) -> _Slice:
    pydicom = require_pydicom()
    if not data:
        raise Reason("zero bytes")
    if not is_dicom(data):
        if data[:2] in (b"\x02\0", b"\x08\0") and data[3] == 0:
            raise Reason(
                "the mark DICM is missing, and the preamble of 128 bytes before it; write it again, for example with dcmconv"
            )
        raise Reason("not a DICOM file: the mark DICM is missing")
    dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=not pixels)
    _check_meaning(dataset)
    if pixels and not any(tag in dataset for tag in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise Reason("holds no pixels, or is cut off before them")
    return _Slice(dataset, name)


def _sorted(slices: list[_Slice]) -> list[_Slice]:
    """In the order of their positions; refuses what is no single, complete stack."""
    first = slices[0]
    if len({str(one.dataset.get("SeriesInstanceUID")) for one in slices}) > 1:
        raise Reason("mixed series: give a folder for each")
    if len({str(one.dataset.get("PatientID") or "") for one in slices}) > 1:
        raise Reason("slices of two patients (PatientID) in one series")
    for one in slices[1:]:
        if (one.rows, one.columns, one.colour) != (first.rows, first.columns, first.colour):
            raise Reason(
                f"mixed slices: {one.rows} x {one.columns} and {first.rows} x {first.columns} pixels in one series"
            )
        if one.frames > 1 or first.frames > 1:
            raise Reason("several files with several frames in one series")
    _check_alike([one.orientation for one in slices], [one.spacing for one in slices], "slices")
    if len(slices) > 1 and not all(one.oriented for one in slices):
        raise Reason(
            "the files do not say where they lie (ImagePositionPatient, ImageOrientationPatient), so they are no slices of a "
            "volume; name each of them as an image of its own"
        )
    if first.oriented and max(len(slices), first.frames) > 1:
        places = np.array([one.positions[0] for one in slices] if len(slices) > 1 else first.positions, float)
        order = np.argsort(places @ first.normal, kind="stable")
        _check_line(places[order], first.normal, min(first.spacing or (1.0,)))
        if len(slices) > 1:
            slices = [slices[i] for i in order]
        else:
            first.order = order
    return slices


def _check_alike(
    orientations: Sequence[tuple[float, ...] | None], spacings: Sequence[tuple[float, ...] | None], what: str
) -> None:
    """Frames or slices of one stack have one orientation and one pixel spacing."""
    for orientation, spacing in zip(orientations, spacings):
        if not _same(orientation, orientations[0], 1e-3):
            raise Reason(
                f"mixed {what}: they differ in orientation, as a localiser among them does: "
                f"{_spelled(orientations[0])} and {_spelled(orientation)}"
            )
        if not _same(spacing, spacings[0], 1e-3):
            raise Reason(
                f"mixed {what}: they differ in pixel spacing: {_spelled(spacings[0])} and {_spelled(spacing)} mm"
            )


def _check_line(places: Float64, normal: Float64, pixel: float) -> None:
    """Sorted positions (N, 3) in equal steps on a line, so that one affine says where all voxels lie.

    Steps may differ by 2 % from their mean and a slice may lie a tenth of a pixel off its place, and 0.01 mm more for numbers
    that were rounded. The line need not run along the normal: a tilted gantry is in the affine.
    """
    steps = np.diff(places @ normal)
    usual = float(np.median(steps))
    if steps.min() < 1e-3:
        raise Reason("two slices at the same place: time points, echoes or copies in one series")
    if np.abs(steps - steps.mean()).max() > 0.02 * steps.mean() + 0.01:
        widest = int(steps.argmax())
        if steps[widest] > 1.5 * usual:
            raise Reason(f"a slice is missing: {steps[widest]:.3g} mm after slice {widest}, elsewhere {usual:.3g} mm")
        raise Reason(f"slices are unevenly spaced, from {steps.min():.3g} to {steps.max():.3g} mm")
    off = np.linalg.norm(places - np.linspace(places[0], places[-1], len(places)), axis=1)
    most = 0.1 * min(pixel, float(steps.mean())) + 0.01
    if off.max() > most:
        raise Reason(
            f"slices do not lie in equal steps on a line: slice {int(off.argmax())} is {off.max():.3g} mm off it, "
            f"at most {most:.2g} mm are allowed"
        )


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
    affine = _LPS @ affine  # readers give what has no orientation the axes of DICOM, too
    check_affine(affine)
    files = tuple(one.name for one in slices) if last.frames == 1 else (first.name,)
    padding = [values for one in slices for values in (_padding(one) or ())]
    return Space(
        (first.columns, first.rows, count),
        affine,
        dtype=np.dtype(np.float32),
        oriented=first.oriented,
        modality=_token(first.dataset.get("Modality")),
        unit=_unit(first.dataset),
        padding=(min(padding), max(padding)) if padding else None,
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
            raise Reason(
                f"pixels compressed as {syntax.name if syntax.name != syntax else 'an unknown syntax'} cannot be decoded: "
                "damaged, or of a kind that no codec here knows"
            ) from None
        raise Reason("its pixels do not fit its header") from None
    colours = dataset.PhotometricInterpretation
    if colours == "PALETTE COLOR":
        stored = pydicom.pixels.apply_color_lut(stored, dataset)
    if stored.size != one.frames * one.rows * one.columns * (stored.shape[-1] if one.colour else 1):
        raise Reason("its pixels do not fit its header")
    if one.colour:
        return stored
    stored = stored.reshape(one.frames, one.rows, one.columns)
    values = _scaled(one, stored)
    if colours == "MONOCHROME1":  # least is white: turned round within all that the file can say, after its scaling
        ends = _scaled(one, _every_value(one))
        least, most = (np.asarray(end(ends, axis=(-2, -1), keepdims=True)) for end in (np.min, np.max))
        values = (least + most - values.astype(least.dtype)).astype(values.dtype)
        if (filled := _stored_padding(one)) is not None:  # else padding would be the brightest of all
            inside = (stored >= filled[0]) & (stored <= filled[1])
            values = np.where(inside, least.astype(values.dtype), values)
    return values


def _scaled(one: _Slice, stored: Array) -> Array:
    """Stored numbers (frames or 1, rows, columns) in the units of the scanner: modality LUT, or slopes and intercepts."""
    if "ModalityLUTSequence" in one.dataset:
        return np.asarray(require_pydicom().pixels.apply_modality_lut(stored, one.dataset))
    scales = _rescale(one.dataset)
    if len(scales) > 1:
        if len(scales) != one.frames:
            raise Reason(f"has {one.frames} frames and {len(scales)} rescale slopes")
        slopes, intercepts = (np.reshape(column, (-1, 1, 1)) for column in zip(*scales))
        return (stored.astype(np.float64) * slopes + intercepts).astype(np.float32)
    ((slope, intercept),) = scales or [(1.0, 0.0)]
    if (slope, intercept) == (1.0, 0.0):
        return stored
    low, high = _limits(one) if stored.dtype.kind in "ui" else (-math.inf, math.inf)
    if slope == int(slope) and intercept == int(intercept) and max(abs(slope * low), abs(slope * high)) < 2**30:
        ends = sorted((slope * low + intercept, slope * high + intercept))
        wide = np.int16 if ends[0] >= -(2**15) and ends[1] < 2**15 else np.int32
        return (stored.astype(np.int64) * int(slope) + int(intercept)).astype(wide)
    return (stored.astype(np.float64) * slope + intercept).astype(np.float32)


def _limits(one: _Slice) -> tuple[int, int]:
    """The least and the largest number that can be stored."""
    bits, signed = int(one.dataset.BitsStored), bool(one.dataset.get("PixelRepresentation"))
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def _every_value(one: _Slice) -> npt.NDArray[np.int64]:
    """(1, 1, N): numbers that can be stored, enough of them to meet the ends of what they mean."""
    low, high = _limits(one)
    if "ModalityLUTSequence" not in one.dataset:
        return np.array([[[low, high]]], np.int64)
    count, first, _ = (int(v) for v in one.dataset.ModalityLUTSequence[0].LUTDescriptor)
    first = first - 2**16 if low < 0 and first >= 2**15 else first
    return np.arange(first, first + (count or 2**16), dtype=np.int64)[None, None]


def _stored_padding(one: _Slice) -> tuple[float, float] | None:
    """Stored numbers, from and to, that fill what was not imaged."""
    for value, limit in (
        ("PixelPaddingValue", "PixelPaddingRangeLimit"),
        ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
        ("DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
    ):
        first = one.dataset.get(value)
        if first is not None and not isinstance(first, bytes) and np.ndim(first) == 0:
            ends = [float(first), float(first if one.dataset.get(limit) is None else one.dataset.get(limit))]
            if value == "PixelPaddingValue" and one.dataset.get("PixelRepresentation"):
                ends = [end - 2**16 if end >= 2**15 else end for end in ends]  # written as unsigned
            return min(ends), max(ends)
    return None


def _padding(one: _Slice) -> tuple[float, float] | None:
    """The same in the values that are read."""
    filled = None if one.colour else _stored_padding(one)
    if filled is None:
        return None
    if one.dataset.PhotometricInterpretation == "MONOCHROME1":
        least = float(_scaled(one, _every_value(one)).min())
        return least, least
    ends = _scaled(one, np.array([[filled]], np.int64 if "PixelPaddingValue" in one.dataset else np.float64))
    return float(ends.min()), float(ends.max())


def _rescale(dataset: Any) -> list[tuple[float, float]]:
    """Slope and intercept: none, one pair, or one for each frame of an enhanced data set whose frames differ."""
    slope_tag, intercept_tag, groups = "RescaleSlope", "RescaleIntercept", [dataset]
    if dataset.get("SOPClassUID") == _DOSE:
        slope_tag, intercept_tag = "DoseGridScaling", ""
        if dataset.get(slope_tag) is None:
            raise Reason("holds dose without its scale (DoseGridScaling)")
    elif dataset.get("SOPClassUID") == _PARAMETRIC_MAP:
        slope_tag, intercept_tag = "RealWorldValueSlope", "RealWorldValueIntercept"
        groups = _of_frames(dataset, "RealWorldValueMappingSequence")
        if any(group.get(slope_tag) is None for group in groups):
            raise Reason("holds a parametric map whose values are looked up in a table, expected slope and intercept")
    elif dataset.get(slope_tag) is None:
        groups = _of_frames(dataset, "PixelValueTransformationSequence")
    found = []
    for group in groups:
        if group.get(slope_tag) is not None:
            slope, intercept = float(group.get(slope_tag)), float(group.get(intercept_tag or "", 0.0) or 0.0)
            if not (math.isfinite(slope) and math.isfinite(intercept)) or slope == 0:
                raise Reason("rescale slope or intercept is no usable number")
            found.append((slope, intercept))
    return found[:1] if len(set(found)) == 1 else found


def _of_frames(dataset: Any, sequence: str) -> list[Any]:
    """What a sequence holds in the functional groups of all frames, or in those of each."""
    for tag in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        inside = [one for group in dataset.get(tag) or [] for one in group.get(sequence) or []]
        if inside:
            return inside
    return []


def _unit(dataset: Any) -> str | None:
    """Of the values, in the standard's terms: HU, GY, BQML ...; None where the file gives none."""
    kind, modality = dataset.get("SOPClassUID"), dataset.get("Modality")
    if kind == _DOSE:
        return _token(dataset.get("DoseUnits"))
    if kind == _PARAMETRIC_MAP:
        codes = [
            code.get("CodeValue")
            for mapping in _of_frames(dataset, "RealWorldValueMappingSequence")
            for code in mapping.get("MeasurementUnitsCodeSequence") or []
        ]
        return _token(codes[0]) if codes else None
    if modality == "PT":
        return _token(dataset.get("Units"))
    groups = [
        dataset,
        *_of_frames(dataset, "PixelValueTransformationSequence"),
        *(dataset.get("ModalityLUTSequence") or []),
    ]
    named = [group.get("RescaleType") or group.get("ModalityLUTType") for group in groups]
    unit = next((_token(one) for one in named if one), "HU" if modality == "CT" else None)
    return None if unit == "US" else unit  # "unspecified"


def _number(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(float(value)) and float(value) != 0 else None


def _token(value: Any) -> str | None:
    """A defined term of the standard; nothing longer, in which a name could be."""
    text = str(value or "")
    return text if re.fullmatch(r"[\w/%.*^{}\[\]-]{1,16}", text) else None


def _spelled(numbers: Sequence[float] | None) -> str:
    return "none" if numbers is None else " ".join(f"{v:.4g}" for v in numbers)


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    if value is None or len(value) != count:
        return None
    numbers = tuple(float(v) for v in value)
    return numbers if all(math.isfinite(v) for v in numbers) else None


def _cosines(value: Any) -> tuple[float, ...] | None:
    """Directions of rows and columns, of length 1 where their digits were cut."""
    numbers = _numbers(value, 6)
    if numbers is None:
        return None
    directions = np.reshape(numbers, (2, 3))
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    if abs(float(directions[0] @ directions[1])) > 0.01 * float(lengths.prod()) > 0:
        raise Reason(f"its rows and columns are not at right angles: {_spelled(numbers)}")
    return tuple((directions / np.where(lengths > 0, lengths, 1)).ravel().tolist())


def _same(a: Sequence[float] | None, b: Sequence[float] | None, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    return max(abs(x - y) for x, y in zip(a, b)) <= tolerance
