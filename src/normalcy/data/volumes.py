"""Volumes: voxel files to arrays and back, and where their voxels lie in the patient.

A volume is read as ``(C, z, y, x)``: x runs to the patient's right, y to the front, z to the head ("RAS"), whatever the
order and direction of the file's own axes; those are followed exactly, by flips and swaps alone, never by resampling. What
is needed to go back, and the affine, is a :class:`Space`. Channels are the fourth axis of a file (time points, directions).
A volume with one voxel along just one axis is an image ``(C, rows, columns)``.

``scan.nii.gz[z=42]`` is one slice of a file, ``[z=20:60]`` a slab of it, ``[t=3]`` one of its channels, counted from 0 along
the patient's axes; ``[z=42,t=3]`` is both.
"""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import math
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from normalcy.arrays import Array, Float64, Mask
from normalcy.data.formats import LIMITS, Limits, is_gzip, is_mgh, is_nifti, own
from normalcy.errors import DataError, Reason
from normalcy.files import bounded_gunzip, write_bytes

WORLD = "xyz"
"""Names of the patient's axes: to the right, to the front, to the head."""
_LARGEST_HEADER = 1024


@dataclass(frozen=True, eq=False)
class Space:
    """Where the voxels of a file lie: the way from its axes to ``(z, y, x)`` and to millimetres, and back."""

    shape: tuple[int, int, int]
    """Voxels along the file's first three axes."""
    affine: Float64
    """(4, 4): index along the file's axes -> mm to the right, the front and the head."""
    rest: tuple[int, ...] = ()
    """Further axes of the file; all together they are the channels."""
    dtype: np.dtype[Any] | None = None
    """In which the file keeps its values, before slope and intercept; None: that of the array."""
    scale: tuple[float, float] | None = None
    """Slope and intercept of the file: value = slope * stored + intercept. None: stored values are meant."""
    oriented: bool = True
    """Whether the file says how it lies in the patient; a photograph or a plain X-ray does not."""
    modality: str | None = None
    """Of DICOM: CT, MR, RTDOSE and so on."""
    unit: str | None = None
    """Of the values, in the terms of DICOM: HU, GY, BQML and so on; None where the file gives none."""
    padding: tuple[float, float] | None = None
    """Values, from and to, that fill what was not imaged (:func:`imaged`); None: there are none."""
    files: tuple[str, ...] = ()
    """Of DICOM: the files that the slices come from, in their order."""
    step: float | None = None
    """Distance of neighbouring images along the fourth axis, in s where the file does not say otherwise (``nifti``)."""
    nifti: Mapping[str, Any] | None = None
    """Of NIfTI: what the header says of places and units (``_PLACES``), so that results say the same."""

    @property
    def order(self) -> tuple[tuple[int, bool], ...]:
        """For each of z, y and x: the file's axis that runs along it, and whether it runs against it.

        Of a file that does not say how it lies, the axes as they are.
        """
        if not self.oriented:
            return (2, False), (1, False), (0, False)
        orientation = require_nibabel("Space").orientations.io_orientation(self.affine)
        towards = {int(world): (axis, bool(sign < 0)) for axis, (world, sign) in enumerate(orientation)}
        return tuple(towards[world] for world in (2, 1, 0))

    @property
    def flat(self) -> int | None:
        """The position in (z, y, x) of the only axis with one voxel: such a file is read as an image without it."""
        single = [place for place, (axis, _) in enumerate(self.order) if self.shape[axis] == 1]
        return single[0] if len(single) == 1 else None

    @property
    def _directions(self) -> tuple[slice, ...]:
        against = {axis for axis, is_against in self.order if is_against}
        return tuple(slice(None, None, -1 if axis in against else 1) for axis in range(3))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along z, y and x in mm."""
        steps = np.sqrt((self.affine[:3, :3] ** 2).sum(0))
        first, second, third = (float(steps[axis]) for axis, _ in self.order)
        return first, second, third

    @property
    def size(self) -> tuple[int, ...]:
        """Spatial shape of the array that is read."""
        return tuple(self.shape[axis] for place, (axis, _) in enumerate(self.order) if place != self.flat)

    def from_file(self, stored: Array) -> Array:
        """The file's array (X, Y, Z, *rest) -> (C, *size)."""
        x: Array = stored.reshape(*self.shape, -1)
        x = x[self._directions].transpose(3, *(axis for axis, _ in self.order))
        return x if self.flat is None else x.squeeze(1 + self.flat)

    def to_file(self, x: Array) -> Array:
        """(C, *size) or (*size) -> (X, Y, Z, *rest) or (X, Y, Z): the inverse of :meth:`from_file`."""
        has_channels = x.ndim > len(self.size)
        x = x if has_channels else x[None]
        if x.shape[1:] != self.size:
            raise DataError(f"Space expects an array of {self.size}, got {x.shape[1:]}; give one of this very volume.")
        if self.flat is not None:
            x = np.expand_dims(x, 1 + self.flat)
        places = {axis: 1 + place for place, (axis, _) in enumerate(self.order)}
        x = x.transpose(places[0], places[1], places[2], 0)
        x = x[self._directions]
        kept = self.rest if x.shape[3] == math.prod(self.rest) else x.shape[3:]
        stored: Array = x.reshape(*self.shape, *(kept if has_channels else ()))
        return stored

    def world(self, index: tuple[int, ...]) -> Float64:
        """Millimetres to the right, the front and the head of the voxel at ``index`` of an array (*size)."""
        full = list(index)
        if self.flat is not None:
            full.insert(self.flat, 0)
        in_file = np.zeros(3)
        for place, (axis, against) in enumerate(self.order):
            in_file[axis] = self.shape[axis] - 1 - full[place] if against else full[place]
        return np.asarray(self.affine[:3, :3] @ in_file + self.affine[:3, 3])

    def part(self, selection: Selection) -> Space:
        """The space of what :func:`take_part` leaves."""
        if not selection:
            return self
        shape, origin = list(self.shape), np.zeros(3)
        for name, (first, stop) in selection.items():
            if name == "t":
                continue
            axis, against = self.order[2 - WORLD.index(name)]
            origin[axis] = shape[axis] - stop if against else first
            shape[axis] = stop - first
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ origin
        channels = selection.get("t")
        rest = self.rest if channels is None else (channels[1] - channels[0],)
        nifti = None if self.nifti is None else _moved(self.nifti, origin, channels[0] if channels else 0)
        return replace(self, shape=(shape[0], shape[1], shape[2]), affine=affine, rest=rest, nifti=nifti)


# -- parts of a volume -------------------------------------------------------------------------------------------------

Selection = dict[str, tuple[int, int]]
"""Axis (x, y, z or t) -> first index and the one after the last."""
_PART = re.compile(
    r"\[(\s*[xyzt]\s*=\s*\d{1,18}\s*(:\s*\d{1,18}\s*)?(,\s*[xyzt]\s*=\s*\d{1,18}\s*(:\s*\d{1,18}\s*)?)*)\]$"
)


def split_name(name: str) -> tuple[str, Selection]:
    """A file's name and the part of it that is meant.

    >>> split_name("a/scan.nii.gz[z=42]")
    ('a/scan.nii.gz', {'z': (42, 43)})
    """
    found = _PART.search(name)
    if found is None:
        return name, {}
    selection: Selection = {}
    for term in found[1].split(","):
        axis, numbers = (part.strip() for part in term.split("="))
        first, colon, stop = numbers.partition(":")
        selection[axis] = (int(first), int(stop) if colon else int(first) + 1)
    return name[: found.start()], selection


def take_part(x: Array, space: Space, selection: Selection, name: str) -> tuple[Array, Space]:
    """The part of ``x`` (C, *size), and where it lies. Raises DataError for indices that the volume does not have."""
    if not selection:
        return x, space
    if space.flat is not None:
        x = np.expand_dims(x, 1 + space.flat)
    lengths = {"t": x.shape[0], "z": x.shape[1], "y": x.shape[2], "x": x.shape[3]}
    for axis, (first, stop) in selection.items():
        if not 0 <= first < stop <= lengths[axis]:
            raise DataError(
                f"{name}: expected {axis} from 0 to {lengths[axis] - 1}, got {first} to {stop - 1}; correct the part."
            )
    box = tuple(slice(*selection.get(axis, (0, lengths[axis]))) for axis in "tzyx")
    part = space.part(selection)
    x = x[box]
    return np.ascontiguousarray(x if part.flat is None else x.squeeze(1 + part.flat)), part


# -- files ---------------------------------------------------------------------------------------------------------------


def decode_volume(data: bytes, name: str, limits: Limits = LIMITS) -> tuple[Array, Space]:
    """The volume in the bytes of a file, (C, *size) in the file's own type (float32 where it has a slope), and its space."""
    try:
        raw = bounded_gunzip(data, _LARGEST_HEADER, whole=False)
        if is_mgh(raw):
            return _mgh(data, limits)
        if is_nifti(raw) or is_gzip(data):
            return _nifti(data, limits)
        x, space = (_nrrd if data.startswith(b"NRRD") else _meta_image)(data, limits)
        return own(space.from_file(x), name), space
    except DataError:
        raise
    except Exception as error:  # damaged bytes meet errors of every type
        raise _unreadable(data, name, error) from None


def volume_space(data: bytes, name: str, limits: Limits = LIMITS) -> Space:
    """The space of :func:`decode_volume` from the header alone."""
    try:
        raw = bounded_gunzip(data, _LARGEST_HEADER, whole=False)
        if is_mgh(raw):
            return _mgh_header(data, limits)[1]
        if is_nifti(raw) or is_gzip(data):
            return _nifti_space(_nifti_header(raw), limits)
        return (_nrrd if data.startswith(b"NRRD") else _meta_image)(data, limits)[1]
    except DataError:
        raise
    except Exception as error:
        raise _unreadable(data, name, error) from None


def write_volume(path: Path | str, x: Array, space: Space, like_file: bool = False) -> None:
    """Writes (*size) or (C, *size) as NIfTI (.nii.gz) with the axes, shape and affine of the file that ``space`` is of.

    Values are float32; with ``like_file`` of the file's own type, slope and intercept. Atomically.
    """
    nibabel = require_nibabel(str(path))
    stored = space.to_file(x)
    slope, intercept = space.scale or (1.0, 0.0)
    if not like_file:
        stored = stored.astype(np.float32)
    elif (kept := space.dtype or x.dtype).kind in "iu":
        limits = np.iinfo(kept)
        stored = np.rint((stored.astype(np.float64) - intercept) / slope) if space.scale else stored
        stored = np.clip(stored, limits.min, limits.max).astype(kept)
    else:
        stored = ((stored - intercept) / slope if space.scale else stored).astype(kept)
    second = max(stored.shape) >= 2**15 or (space.nifti is not None and space.nifti["sizeof_hdr"] == 540)
    header = nibabel.Nifti2Header() if second else nibabel.Nifti1Header()
    header.set_data_dtype(stored.dtype.newbyteorder("="))
    header.set_data_shape(stored.shape)
    if space.nifti is not None:
        for field in _PLACES:
            header[field] = space.nifti[field]
    else:
        header.set_sform(space.affine, "scanner")
        header.set_qform(space.affine, "scanner" if _is_orthogonal(space.affine) else "unknown")  # it has no shears
        header["pixdim"][4] = space.step or 1.0
        header.set_xyzt_units("mm", None if space.step is None else "sec")
    if not space.oriented:
        header["descrip"] = _UNORIENTED
    header["vox_offset"] = 544 if second else 352
    header["scl_slope"], header["scl_inter"] = (slope, intercept) if like_file else (1.0, 0.0)
    values = stored.astype(stored.dtype.newbyteorder("<")).tobytes("F")
    write_bytes(path, gzip.compress(header.binaryblock + b"\0" * 4 + values, 1, mtime=0))  # four bytes: no extensions


def imaged(x: Array, space: Space | None) -> Mask:
    """(*size): where a volume (C, *size) holds what was imaged; False where all channels are padding.

    Padding is what the file declares, or else a usual fill of CT below all other values.
    """
    padding = None if space is None else space.padding or _usual_fill(x)
    if padding is None:
        return np.ones(x.shape[1:], bool)
    return np.asarray(((x < padding[0]) | (x > padding[1])).any(axis=0))


def as_darkest(x: Array, inside: Mask | None) -> Array:
    """(C, *size) to look at: padding, which is not ``inside`` (*size), gets the least value of the rest."""
    return x if inside is None else np.where(inside, x, x[:, inside].min())


def _usual_fill(x: Array) -> tuple[float, float] | None:
    least = float(x.min()) if x.dtype.kind in "if" else 0.0
    if least not in _FILLS:
        return None
    above = x[x > least]
    return (least, least) if above.size and float(above.min()) >= _LEAST_HU else None


_FILLS = (-2000.0, -2048.0, -3024.0, -32768.0)
"""What scanners and converters write outside of the circle of a CT slice, in Hounsfield units."""
_LEAST_HU = -1200.0
"""Air is -1000; with the noise of its values."""


def distance(a: Space, b: Space) -> float | None:
    """Largest distance in mm of the corners of two volumes of one size; None where the sizes differ, or where one of them does
    not say where it lies."""
    if a.size != b.size or not all(one.oriented and _says_place(one) for one in (a, b)):
        return None
    corners = itertools.product(*((0, n - 1) for n in a.size))
    return max(float(np.linalg.norm(a.world(corner) - b.world(corner))) for corner in corners)


def _says_place(space: Space) -> bool:
    codes = space.nifti
    return codes is None or bool(int(codes["qform_code"]) or int(codes["sform_code"]))


def require_nibabel(who: str) -> Any:
    try:
        import nibabel
    except ImportError:
        raise DataError(f'{who}: volumes need nibabel; pip install "normalcy[medical]".') from None
    return nibabel


def _nifti(data: bytes, limits: Limits) -> tuple[Array, Space]:
    header = _nifti_header(bounded_gunzip(data, _LARGEST_HEADER, whole=False))
    space = _nifti_space(header, limits)
    stored_type, start = header.get_data_dtype(), int(header["vox_offset"])
    if stored_type.kind not in "uif":
        kind = "colours" if stored_type.names else f"{stored_type}"
        raise Reason(f"voxels are {kind}, expected integers or real numbers")
    count = math.prod(header.get_data_shape())
    limits.check((count,), np.float64 if space.scale is not None and stored_type.itemsize > 2 else stored_type)
    if not 0 <= start <= 2**24:
        raise Reason(f"damaged: its voxels start at byte {start:,}")
    raw = bounded_gunzip(data, start + count * stored_type.itemsize + 1, whole=False)  # + 1: verifies the checksum
    if start < header.sizeof_hdr or start + count * stored_type.itemsize > len(raw):
        raise Reason(f"truncated: {count:,} voxels of {stored_type} need more bytes than the file has")
    flat = np.frombuffer(raw, stored_type, count, start)
    x = space.from_file(flat.reshape(header.get_data_shape(), order="F"))
    if stored_type.itemsize > 8:
        x = x.astype(np.float64)
    if space.scale is not None:
        slope, intercept = space.scale
        x = x.astype(np.float64 if stored_type.itemsize > 2 else np.float32)
        x = (x * x.dtype.type(slope) + x.dtype.type(intercept)).astype(np.float32)
    return own(x, "volume"), space


def _nifti_header(raw: bytes) -> Any:
    nibabel = require_nibabel("NIfTI")
    if not is_nifti(raw):
        raise Reason(
            "compressed twice; decompress it once" if is_gzip(raw) else "what is compressed is no NIfTI or MGH volume"
        )
    kind = nibabel.Nifti1Header if is_nifti(raw) == 1 else nibabel.Nifti2Header
    if bytes(raw[344:348] if kind is nibabel.Nifti1Header else raw[4:8])[:3] not in (b"n+1", b"n+2"):
        raise Reason("a NIfTI header whose voxels are in another file; convert the pair to one .nii file")
    logger = nibabel.imageglobals.logger
    logger.disabled = True  # its remarks on damaged headers end as our errors
    return kind(raw[: kind.sizeof_hdr])  # without extensions, which may be long


def _nifti_space(header: Any, limits: Limits) -> Space:
    stored = np.dtype(header.get_data_dtype()).newbyteorder("=")
    slope, intercept = header.get_slope_inter()
    scale = None if slope is None or (slope, intercept) == (1.0, 0.0) else (float(slope), float(intercept or 0.0))
    affine = np.asarray(header.get_best_affine(), np.float64)
    affine[:3] *= _MM.get(int(header["xyzt_units"]) & 7, 1.0)
    shape = tuple(int(n) for n in header.get_data_shape())
    limits.check(shape)
    space = _make_space(shape, affine, stored, scale)
    places = {field: header[field].copy() for field in _PLACES}
    oriented = bytes(header["descrip"].item()) != _UNORIENTED
    return replace(space, oriented=oriented, nifti={**places, "sizeof_hdr": int(header["sizeof_hdr"])})


_MM = {1: 1e3, 2: 1.0, 3: 1e-3}
"""Codes of NIfTI's units of length (metre, millimetre, micron) -> mm."""
_PLACES = (
    "pixdim", "xyzt_units", "toffset", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip
"""Fields of a NIfTI header that place and scale voxels."""
_UNORIENTED = b"normalcy: not oriented"
"""Description of a NIfTI file of what does not say how it lies, so that it is not turned when it is read again."""


def _moved(nifti: Mapping[str, Any], origin: Float64, first: int) -> dict[str, Any]:
    """The fields for a part that begins at the voxel ``origin`` and the image ``first`` of the fourth axis."""
    nibabel = require_nibabel("NIfTI")
    header = nibabel.Nifti2Header()
    for field in _PLACES:
        header[field] = nifti[field]
    moved = dict(nifti)
    try:
        qform = header.get_qform()
    except ValueError:  # no rotation, in a file that is placed by the other form
        qform, moved["qform_code"] = np.eye(4), np.zeros_like(nifti["qform_code"])
    for axis, (by_q, by_s) in enumerate(zip(qform[:3, :3] @ origin, header.get_sform()[:3, :3] @ origin)):
        name = WORLD[axis]
        moved[f"qoffset_{name}"] = nifti[f"qoffset_{name}"] + by_q
        moved[f"srow_{name}"] = nifti[f"srow_{name}"] + np.array([0, 0, 0, by_s])
    moved["toffset"] = nifti["toffset"] + first * nifti["pixdim"][4]
    return moved


def _is_orthogonal(affine: Float64) -> bool:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() < 1e-4)


def _mgh(data: bytes, limits: Limits) -> tuple[Array, Space]:
    """FreeSurfer's volumes, compressed or not."""
    header, space = _mgh_header(data, limits)
    kind, count, start = header.get_data_dtype(), math.prod(header.get_data_shape()), header.get_data_offset()
    limits.check((count,), kind)
    raw = bounded_gunzip(data, start + count * kind.itemsize + _MGH_END + 1, whole=False)  # + 1: verifies the checksum
    if len(raw) < start + count * kind.itemsize:
        raise Reason(f"truncated: {count:,} voxels of {kind} need more bytes than the file has")
    flat = np.frombuffer(raw, kind, count, start)
    return own(space.from_file(flat.reshape(header.get_data_shape(), order="F")), "volume"), space


def _mgh_header(data: bytes, limits: Limits) -> tuple[Any, Space]:
    begin = bounded_gunzip(data, _MGH_BEGIN, whole=False)
    header = require_nibabel("MGH").freesurfer.mghformat.MGHHeader(
        begin[:_MGH_BEGIN].ljust(_MGH_BEGIN + _MGH_END, b"\0")
    )
    shape, kind = tuple(int(n) for n in header.get_data_shape()), header.get_data_dtype()
    limits.check(shape, kind)
    space = _make_space(shape, np.asarray(header.get_affine(), np.float64), kind.newbyteorder("="), None)
    if space.rest:  # the repetition time in ms is behind the voxels
        end = header.get_data_offset() + math.prod(shape) * kind.itemsize
        time = bounded_gunzip(data, end + 4, whole=False)[end : end + 4]
        step = float(np.frombuffer(time, ">f4")[0]) / 1e3 if len(time) == 4 else 0.0
        space = replace(space, step=step if 0 < step < math.inf else None)
    return header, space


_MGH_BEGIN, _MGH_END = 90, 20
"""Bytes of the header before the voxels, and of the five numbers that files have after them."""


def _nrrd(data: bytes, limits: Limits) -> tuple[Array, Space]:
    """The file's array (X, Y, Z, *rest) and its space; header and values in one file."""
    try:
        import nrrd
    except ImportError:
        raise DataError('NRRD files need pynrrd; pip install "normalcy[medical]".') from None
    file = io.BytesIO(data)
    header = nrrd.read_header(file)
    if "data file" in header or "datafile" in header:
        raise Reason("a NRRD header whose values are in another file; save it as one .nrrd file")
    sizes = [int(n) for n in header["sizes"]]
    if min(sizes) < 1:
        raise Reason(f"claims the shape {tuple(sizes)}")
    limits.check(tuple(sizes), "f8")
    _check_nrrd(header, data[file.tell() :], limits)
    x = nrrd.read_data(header, file, index_order="F")
    in_space, directions, steps = _nrrd_axes(header, len(sizes))
    signs = _signs(str(header.get("space", "left-posterior-superior")))
    affine = np.eye(4)
    affine[:3, : len(in_space)] = directions.T
    if len(in_space) == 2:
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        affine[:3, 2] = normal / max(float(np.linalg.norm(normal)), 1e-12)
    origin = np.asarray(header.get("space origin", np.zeros(3)), np.float64)[:3]
    affine[: len(origin), 3] = origin
    x = np.moveaxis(x, in_space, range(len(in_space)))
    x = x[:, :, None] if len(in_space) == 2 else x
    space = _make_space(x.shape, np.diag([*signs, 1.0]) @ affine, x.dtype, None)
    return x, replace(space, step=steps[0] if len(steps) == 1 else None)


def _check_nrrd(header: Mapping[str, Any], values: bytes, limits: Limits) -> None:
    """Refuses values that are more than the limit when decompressed: pynrrd has none."""
    encoding = str(header.get("encoding"))
    if encoding in ("raw", "ascii", "txt", "text"):
        return
    if any(int(header.get(key, 0)) > 0 for key in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise Reason("compressed values after a skip are not read; save it without one")
    if encoding in ("gzip", "gz"):
        bounded_gunzip(values, limits.decoded_bytes)
    elif len(bz2.BZ2Decompressor().decompress(values, limits.decoded_bytes + 1)) > limits.decoded_bytes:
        raise Reason(f"decompressed it has more than {limits.decoded_bytes:,} bytes, the limit")


def _nrrd_axes(header: Mapping[str, Any], count: int) -> tuple[list[int], Float64, list[float]]:
    """Which axes run through space, their directions (N, 3), and the steps along those others that have one.

    Space directions go before kinds, kinds before spacings; without any of them the first three axes are those of space.
    """
    kinds = [str(kind).lower() for kind in header.get("kinds", [])]
    spacings = np.asarray(header.get("spacings", np.full(count, np.nan)), np.float64)
    if "space directions" in header:
        given = np.asarray(header["space directions"], np.float64)
        finite = np.isfinite(given).all(1)
        in_time = finite & (given[:, 3:] != 0).any(1)  # of a space with time, such as right-anterior-superior-time
        axes = np.flatnonzero(finite & ~in_time).tolist()
        directions = np.pad(given[axes, :3], [(0, 0), (0, max(0, 3 - given.shape[1]))])
        others = [float(given[axis, 3]) for axis in np.flatnonzero(in_time)]
    else:
        if "space" in header or "axis mins" in header or "axis maxs" in header:
            raise Reason("places its axes by a space, minima or maxima alone, expected space directions or spacings")
        axes = [axis for axis in range(count) if not kinds or kinds[axis] in ("domain", "space")][:3]
        directions = np.diag(np.where(np.isfinite(spacings), spacings, 1.0)[axes])
        directions = np.pad(directions, [(0, 0), (0, max(0, 3 - len(axes)))])
        others = [float(spacings[axis]) for axis in range(count) if axis not in axes and np.isfinite(spacings[axis])]
    if not 2 <= len(axes) <= 3:
        raise Reason(f"has {len(axes)} axes in space, expected 2 or 3 axes")
    units = [
        *header.get("space units", []),
        *(unit for axis, unit in enumerate(header.get("units", [])) if axis in axes),
    ]
    _check_millimetres(units)
    return axes, directions, others


def _check_millimetres(units: Iterable[str]) -> None:
    for unit in units:
        if not re.fullmatch(r'"?(mm|millimet(er|re)s?|none|\?*|)"?', str(unit).strip(), flags=re.IGNORECASE):
            raise Reason(f"gives lengths in {str(unit)[:20]}, expected mm; write it again in mm")


def _signs(space: str) -> tuple[float, float, float]:
    """Of NRRD's spaces, towards right, front and head."""
    words = space.lower().replace("-time", "").split("-")
    if len(words) == 1:
        names = {"r": "right", "l": "left", "a": "anterior", "p": "posterior", "s": "superior", "i": "inferior"}
        words = [names.get(letter, letter) for letter in words[0]]
    known = [{"right": 1.0, "left": -1.0}, {"anterior": 1.0, "posterior": -1.0}, {"superior": 1.0, "inferior": -1.0}]
    if len(words) < 3 or any(word not in meaning for word, meaning in zip(words, known)):
        raise Reason(f"is in the space {space[:40]!r}, expected one such as left-posterior-superior")
    first, second, third = (meaning[word] for word, meaning in zip(words, known))
    return first, second, third


_ELEMENTS = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip


def _meta_image(data: bytes, limits: Limits) -> tuple[Array, Space]:
    """MetaImage (.mha): lines of ``key = value``, the last of which is ElementDataFile, then the values, perhaps zipped."""
    fields: dict[str, str] = {}
    position = 0
    while "ElementDataFile" not in fields:
        end = data.find(b"\n", position, position + 4096)
        if end < 0:
            raise Reason("the header of a MetaImage file does not end")
        key, _, value = data[position:end].decode("ascii").partition("=")
        fields[key.strip()] = value.strip()
        position = end + 1
    if fields["ElementDataFile"] != "LOCAL" or fields.get("BinaryData", "True").lower() != "true":
        raise Reason("a MetaImage header whose values are in another file, or as text; save it as one binary .mha file")
    count = int(fields["NDims"])
    sizes = [int(n) for n in fields["DimSize"].split()]
    channels = int(fields.get("ElementNumberOfChannels", 1))
    if not 2 <= count <= 4 or len(sizes) != count or min(*sizes, channels) < 1:
        raise Reason(f"claims the shape {tuple(sizes)}, expected 2 to 4 axes")
    msb = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")).lower() == "true"
    kind = np.dtype(_ELEMENTS[fields["ElementType"]]).newbyteorder(">" if msb else "<")
    limits.check((*sizes, channels), kind)
    wanted = math.prod(sizes) * channels * kind.itemsize
    raw = data[position:]
    if fields.get("CompressedData", "False").lower() == "true":
        raw = zlib.decompressobj().decompress(raw, wanted)
    if len(raw) < wanted:
        raise Reason("truncated: the values need more bytes than the file has")
    x = np.frombuffer(raw, kind, wanted // kind.itemsize).reshape(channels, *sizes, order="F")
    x = np.moveaxis(x, 0, -1) if channels > 1 else x[0]
    _check_millimetres([fields.get("DistanceUnits", "mm")])
    if int(fields.get("HeaderSize", 0)):
        raise Reason("has a second header (HeaderSize) before its values; save it without one")

    def numbers(names: str, default: str) -> Float64:
        """Of the first of these synonyms that is there."""
        return np.array(next((fields[key] for key in names.split() if key in fields), default).split(), float)

    matrix = numbers("TransformMatrix Rotation Orientation", " ".join(map(str, np.eye(count).ravel())))
    spacing = numbers("ElementSpacing ElementSize", "1 " * count)
    origin = numbers("Offset Position Origin", "0 " * count)
    used = min(count, 3)
    affine = np.eye(4)
    affine[:used, :used] = (matrix.reshape(count, count) * spacing[:, None])[:used, :used].T
    affine[:used, 3] = origin[:used]
    x = x[:, :, None] if count == 2 else x
    space = _make_space(x.shape, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, kind.newbyteorder("="), None)
    return x, replace(space, step=float(spacing[3]) if count == 4 else None)


def _make_space(
    shape: tuple[int, ...], affine: Float64, stored: np.dtype[Any], scale: tuple[float, float] | None
) -> Space:
    if len(shape) < 2 or min(shape) < 1:
        raise Reason(f"claims the shape {shape}, expected 2 to 4 axes of at least 1")
    spatial, rest = (*shape[:3], 1)[:3], shape[3:]
    if sum(n > 1 for n in rest) > 1:
        raise Reason(f"has the shape {shape}, expected at most one axis of more than 1 beyond the three of space")
    check_affine(affine)
    return Space((spatial[0], spatial[1], spatial[2]), affine, rest, stored, scale)


def check_affine(affine: Float64) -> None:
    """Three axes that span space: else there is no way to millimetres and back."""
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    usable = np.isfinite(affine).all() and 1e-6 < steps.min() <= steps.max() < 1e6
    if not usable or abs(np.linalg.det(affine[:3, :3] / steps)) < 1e-3:
        raise Reason("the affine does not say where the voxels lie (axes of length 0, not finite, or in one plane)")


def _unreadable(data: bytes, name: str, error: Exception) -> DataError:
    if not data:
        reason = "the file has zero bytes"
    elif isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
        reason = "the compressed data are damaged or cut off"
    else:
        reason = str(error) if isinstance(error, Reason) else "the header or the voxels are damaged"
    return DataError(f"{name}: cannot be read as a volume ({reason}); replace or remove the file.")
