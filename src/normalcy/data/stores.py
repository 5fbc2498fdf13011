"""Where the bytes of images lie: files in a folder or a zip, arrays in memory; and the images below a folder."""

from __future__ import annotations

import builtins
import contextlib
import os
import threading
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from normalcy.arrays import Array, Mask
from normalcy.data.companions import reasons
from normalcy.data.dataset import DataSet, Item, Origin, Region, case_of
from normalcy.data.dicom import decode_series, is_dicom, series_in, series_space
from normalcy.data.formats import DICOM_SUFFIXES, LIMITS, VOLUME_SUFFIXES, Limits, is_image, is_volume, own
from normalcy.data.images import channel_first, decode_image, decode_mask, image_size, read_mask
from normalcy.data.volumes import Selection, Space, decode_volume, distance, split_name, take_part, volume_space
from normalcy.errors import DataError, SettingsError
from normalcy.files import inside, mounted, open_regular, read_bytes, read_head, read_member

_ASIDE = 0.1
"""Largest distance of a mask's corner from that of its image, in voxels: headers are rounded."""


@dataclass(frozen=True)
class SeriesPart:
    """A part of a DICOM series: ``folder[z=42]``."""

    files: tuple[str, ...]
    part: Selection


Named = str | tuple[str, ...] | SeriesPart
"""The file of an image, or the files of a series."""


class Opener(Protocol):
    """What gives files as bytes, by their names."""

    @property
    def limits(self) -> Limits: ...

    def full_name(self, file: str) -> str:
        """For messages."""

    def bytes(self, file: str) -> bytes: ...

    def stamp(self, file: str) -> int:
        """A cheap trace of the content."""


class Files:
    """Images and masks in files that ``opener`` gives as bytes; ``masks[i]`` names a file, or several that are one mask, or is
    None.

    An image may be several files: those of a DICOM series.
    """

    def __init__(
        self,
        opener: Opener,
        images: Sequence[Named],
        masks: Sequence[str | tuple[str, ...] | None] | None = None,
    ) -> None:
        self.opener, self.images, self.masks = opener, images, masks
        self._spaces: dict[int, Space] = {}  # of images that were read: their headers need not be read again

    def read(self, i: int) -> Array:
        x, space = self._decode(self.images[i])
        if space is not None:
            self._spaces[i] = space
        return x

    def space(self, i: int) -> Space | None:
        if i in self._spaces:
            return self._spaces[i]
        image = self.images[i]
        if isinstance(image, tuple):
            return series_space(*self._series(image))
        if isinstance(image, SeriesPart):
            return series_space(*self._series(image.files)).part(image.part)
        file, part = split_name(image)
        if not file.lower().endswith(VOLUME_SUFFIXES):
            return None
        return volume_space(self.opener.bytes(file), self.opener.full_name(file), self.opener.limits).part(part)

    def mask(self, i: int) -> Mask | None:
        parts = [self._mask(i, file) for file in self.mask_files(i)]
        if not parts:
            return None
        whole = parts[0]
        for part, file in zip(parts[1:], self.mask_files(i)[1:]):
            if part.shape != whole.shape:
                raise DataError(
                    f"{self.opener.full_name(file)}: expected the size {whole.shape} of the other parts of the mask, "
                    f"got {part.shape}; replace it."
                )
            whole = whole | part
        return whole

    def mask_files(self, i: int) -> tuple[str, ...]:
        """The files of a mask; empty where there is none."""
        files = None if self.masks is None else self.masks[i]
        return () if files is None else (files,) if isinstance(files, str) else files

    def _mask(self, i: int, file: str) -> Mask:
        self._check_grid(i, file)
        if split_name(file)[1]:
            return np.asarray((self._decode(file)[0] != 0).any(axis=0))
        return decode_mask(self.opener.bytes(file), self.opener.full_name(file), self.opener.limits)

    def values(self, file: str) -> Array:
        """(*spatial): the largest value of each pixel of a mask's file, as it is written."""
        values: Array = decode_image(
            self.opener.bytes(file), self.opener.full_name(file), limits=self.opener.limits
        ).max(axis=0)
        return values

    def _check_grid(self, i: int, mask: str) -> None:
        """Refuses a mask of the image's shape that lies elsewhere in the patient."""
        file, part = split_name(mask)
        if not file.lower().endswith(VOLUME_SUFFIXES):
            return
        place = volume_space(self.opener.bytes(file), self.opener.full_name(file)).part(part)
        try:
            space = self.space(i)
        except DataError:  # the image's own fault
            return
        apart = None if space is None else distance(space, place)
        if space is not None and apart is not None and apart > _ASIDE * min(space.spacing):
            raise DataError(
                f"{self.opener.full_name(mask)}: expected the grid of its image, got one of the same shape that lies up to "
                f"{apart:.3g} mm away; resample the mask to the image."
            )

    def size(self, i: int) -> tuple[int, ...]:
        image = self.images[i]
        if isinstance(image, tuple):
            return series_space(*self._series(image)).size
        if isinstance(image, SeriesPart):
            return series_space(*self._series(image.files)).part(image.part).size
        file, part = split_name(image)
        data, name = self.opener.bytes(file), self.opener.full_name(file)
        limits = self.opener.limits
        return volume_space(data, name, limits).part(part).size if part else image_size(data, name, limits)

    def _series(self, files: tuple[str, ...]) -> tuple[list[bytes], list[str], str]:
        """Bytes and names of the files of a series, and what to call it in errors."""
        names = [self.opener.full_name(file) for file in files]
        where, _, first = names[0].rpartition("/")
        whole = names[0] if len(names) == 1 else f"{where} ({len(names)} files, {first} the first)"
        return [self.opener.bytes(file) for file in files], names, whole

    def _decode(self, image: Named) -> tuple[Array, Space | None]:
        if isinstance(image, tuple):
            return decode_series(*self._series(image))
        if isinstance(image, SeriesPart):
            files, names, whole = self._series(image.files)
            return take_part(*decode_series(files, names, whole), image.part, whole)
        file, part = split_name(image)
        data, name = self.opener.bytes(file), self.opener.full_name(file)
        if not is_volume(data):
            return decode_image(data, name, limits=self.opener.limits), None
        return take_part(*decode_volume(data, name, self.opener.limits), part, name)

    def stamp(self, i: int) -> int:
        image = self.images[i]
        if isinstance(image, SeriesPart):
            image = image.files
        files = (split_name(image)[0],) if isinstance(image, str) else image
        return sum(self.opener.stamp(file) for file in files)

    def data_set(
        self,
        name: str,
        items: Sequence[Item],
        ignored: Sequence[str] | Mapping[str, str] = (),
        origin: Origin | None = None,
        regions: Callable[[int], list[Region]] | None = None,
    ) -> DataSet:
        mask = None if self.masks is None else self.mask
        root = self.opener.path if isinstance(self.opener, Folder) else None
        return DataSet(
            name,
            items,
            self.read,
            mask,
            root,
            size=self.size,
            stamp=self.stamp,
            ignored=ignored,
            space=self.space,
            origin=origin,
            regions=regions,
        )


class Folder:
    """Files below a folder, by their path relative to it.

    Of a folder that stands for a store elsewhere (:class:`~normalcy.files.Mount`), names that lead out of it are refused: a table
    of that store must not name files of this machine.
    """

    def __init__(self, path: Path, limits: Limits = LIMITS) -> None:
        self.path, self.limits = path, limits
        self.mount = mounted(path)  # held: its files are there as long as it lives

    def full_name(self, file: str) -> str:
        return str(self.path / file) if self.mount is None else self.mount.shown(self.path / file)

    def bytes(self, file: str) -> bytes:
        if self.mount is None:
            return read_bytes(self.path / file, self.limits.file_bytes)
        try:
            return read_bytes(inside(self.path, file), self.limits.file_bytes)
        except SettingsError:
            raise DataError(f"{file!r} leads out of {self.mount.shown(self.path)}: it is not read.") from None
        except DataError as error:
            raise DataError(self.mount.in_words(str(error))) from None

    def head(self, file: str, count: int = 132) -> builtins.bytes:
        """The first bytes of a file, by which its format is known; empty where it cannot be read."""
        return read_head(self.path / file, count)

    def has(self, file: str) -> bool:
        return (self.path / file).is_file()

    def stamp(self, file: str) -> int:
        try:
            return (self.path / file).stat().st_size
        except OSError:
            return -1

    def names(self, most: int | None = None) -> list[str]:
        """All files below, sorted; hidden ones are left out, links are followed. Raises DataError for more than ``most``."""
        return _walk(self.path, self.limits.entries if most is None else min(most, self.limits.entries))[0]

    def names_in(self, below: str) -> list[str]:
        """Files directly in a folder below, sorted, without hidden ones. Raises DataError for more than the limit."""
        if os.stat(self.path / below).st_dev in _system_devices():
            raise DataError(f"{self.path / below}: is a folder of the operating system, not of files; name another.")
        entries = _entries(self.path / below, self.limits.entries)
        names = [entry.name for entry in entries if not entry.name.startswith(".") and not _is_folder(entry)]
        return [f"{below}/{name}" if below else name for name in names]


class Zip:
    """Files in a zip, read without extraction, from any number of threads and processes."""

    def __init__(self, path: Path, limits: Limits = LIMITS) -> None:
        self.path, self.limits = path, limits
        self._opened: tuple[int, zipfile.ZipFile, threading.Lock] | None = None

    def __reduce__(self) -> tuple[type[Zip], tuple[Path, Limits]]:
        return Zip, (self.path, self.limits)

    def _zip(self) -> tuple[zipfile.ZipFile, threading.Lock]:
        opened = self._opened
        # one handle per process: a forked one would share the position in the file, and perhaps a held lock
        if opened is None or opened[0] != os.getpid():
            try:
                opened = self._opened = os.getpid(), zipfile.ZipFile(open_regular(self.path)), threading.Lock()
            except (OSError, zipfile.BadZipFile) as error:
                raise DataError(f"{self.path}: cannot be opened as a zip ({error}); fetch it again.") from None
        return opened[1:]

    def full_name(self, file: str) -> str:
        return f"{self.path}/{file}"

    def bytes(self, file: str) -> bytes:
        archive, lock = self._zip()
        try:
            with lock:  # ZipFile counts its readers without one
                return read_member(archive, file, self.limits.file_bytes)
        except (
            OSError,
            KeyError,
            ValueError,
            RuntimeError,
            NotImplementedError,
            EOFError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise DataError(f"{self.full_name(file)}: cannot be read ({error}); fetch the zip again.") from None

    def stamp(self, file: str) -> int:
        return self._zip()[0].getinfo(file).CRC

    def names(self) -> list[str]:
        return sorted(name for name in self._zip()[0].namelist() if not name.endswith("/"))


class Arrays:
    """Images in memory, channels last (or ``first``), and masks: arrays, names of files or None."""

    def __init__(
        self, images: Sequence[Array] | Array, masks: Sequence[Any] | Array | None = None, first: bool = False
    ) -> None:
        self.images, self.masks, self.first = images, masks, first

    def read(self, i: int) -> Array:
        image, name = np.asarray(self.images[i]), f"image {i}"
        return own(image, name) if self.first else channel_first(image, name)

    def mask(self, i: int) -> Mask | None:
        mask = None if self.masks is None else self.masks[i]
        if mask is None:
            return None
        return read_mask(mask) if isinstance(mask, str | Path) else np.asarray(np.asarray(mask) != 0)

    def size(self, i: int) -> tuple[int, ...]:
        shape = self.images[i].shape
        return shape[1:] if self.first else shape if len(shape) == 2 else shape[:-1]

    def stamp(self, i: int) -> int:
        return zlib.crc32(np.ascontiguousarray(self.images[i]).tobytes())

    def data_set(self, name: str, items: Sequence[Item]) -> DataSet:
        """Refuses a wrong type or order of axes now rather than in the middle of a fit."""
        for i in range(len(self.images)) if isinstance(self.images, list) else (0,):
            self.read(i)
        mask = None if self.masks is None else self.mask
        return DataSet(name, items, self.read, mask, size=self.size, stamp=self.stamp)


def check_stack(array: Array, name: str, masks: Any = None) -> Arrays:
    """A batch with channels last, refused where it looks like something else."""
    shape = array.shape
    if array.ndim == 2 or (array.ndim == 3 and shape[-1] in (1, 3, 4) and min(shape[:2]) > 4):
        raise DataError(
            f"{name}: expected a batch (N, H, W) or (N, H, W, C), got shape {shape}, which looks like a single image; "
            "pass [image] or add an axis, image[None]."
        )
    if array.ndim not in (3, 4, 5) or array.size == 0:
        raise DataError(f"{name}: expected an array (N, H, W), (N, H, W, C) or (N, D, H, W, C), got shape {shape}.")
    return Arrays(array, masks)


Found = tuple[str, str, str | tuple[str, ...]]
"""Path, case, and the file or the files of a series."""


def find_images(folder: Folder) -> tuple[list[Found], dict[str, str]]:
    """Images below a folder, sorted, with the files of a DICOM series as one; and what was passed over, with the reason.

    Raises DataError for a folder that normalcy wrote; below others, those are passed over.
    """
    names, passed = _walk(folder.path, folder.limits.entries)
    if "" in passed:
        raise DataError(f"{folder.path}: is {passed['']}; name a folder of images.")
    others = [name for name in names if not is_image(name)]
    dicom = [name for name in others if name.lower().endswith(DICOM_SUFFIXES) or is_dicom(folder.head(name))]
    dicom = [name for name in dicom if not name.endswith("DICOMDIR")]
    found: list[Found] = [(name, case_of(name), name) for name in names if is_image(name)]
    if dicom:
        found += series_in(dicom, folder.bytes, folder.path.resolve().name)
    passed |= reasons(set(others) - set(dicom), [name for name, _, _ in found], folder.head, folder.has)
    return sorted(found, key=lambda one: one[0]), dict(sorted(passed.items()))


def files_of(folder: Folder, name: str) -> Named:
    """What a row of a table names: a file, or a folder with (or one file of) a DICOM series, or a part of one."""
    whole, part = split_name(name)
    if is_image(whole):
        return name
    if part and not os.path.exists(folder.path / name):
        series = files_of(folder, whole)
        return SeriesPart(series, part) if isinstance(series, tuple) else name
    if os.path.isdir(folder.path / name):  # of a name too long or with a null byte, too
        inside = [f"{name}/{file}" for file in Folder(folder.path / name, folder.limits).names(_SERIES_FILES)]
        return tuple(file for file in inside if is_dicom(folder.head(file))) or name
    return (name,) if is_dicom(folder.head(name)) else name


def recorded(folder: Folder, paths: Sequence[str]) -> list[Named] | None:
    """The file or the series of each of these paths, which some file gives; None where one of them is no regular file.

    Looks for nothing but these, and in the folders of DICOM series; opens nothing else, and no file before all are there.
    """
    files: list[Named] = []
    in_folder: dict[str, dict[str, tuple[str, ...]]] = {}  # folder -> path of a series -> its files
    of_series: dict[str, str] = {}
    for path in paths:
        name, _ = split_name(path)
        last = name.rpartition("/")
        try:
            place = folder.path / name
            if place.exists() and place.stat().st_dev in _system_devices():
                return None
            if place.is_file():
                continue
            if place.is_dir() and not is_image(name):
                of_series[path] = name
            elif last[2].startswith("series-") and (folder.path / last[0]).is_dir():
                of_series[path] = last[0]
            elif name == folder.path.resolve().name:
                of_series[path] = ""
            else:
                return None
        except (OSError, ValueError):  # a name too long or with a null byte
            return None
    for path in paths:
        name, part = split_name(path)
        if path in of_series:
            below = of_series[path]
            if below not in in_folder:
                dicom = [file for file in folder.names_in(below) if not is_image(file) and is_dicom(folder.head(file))]
                found = series_in(dicom, folder.bytes, folder.path.resolve().name)
                in_folder[below] = {one: members for one, _, members in found}
            series = in_folder[below].get(name)
            if series is None:
                return None
            files.append(SeriesPart(series, part) if part else series)
        elif is_image(name):
            files.append(path)
        elif is_dicom(folder.head(name)):
            files.append(SeriesPart((name,), part) if part else (name,))
        else:
            return None
    return files


_DEEPEST = 100
_SERIES_FILES = 10_000
_OURS = {
    ("run.json", "scores.csv"): "a results folder of normalcy",
    ("run.json", "slides.csv"): "a results folder of normalcy",
    ("detector.json", "weights.safetensors"): "a model folder of normalcy",
}
"""Files that are together in folders that normalcy writes -> what those are."""


def _walk(root: Path, limit: int) -> tuple[list[str], dict[str, str]]:
    """Files below a folder, by their paths relative to it, sorted; and folders that were not entered, with the reason.

    Raises DataError where there are more than ``limit`` files and folders.
    """
    names: list[str] = []
    passed: dict[str, str] = {}
    seen: set[tuple[int, int]] = set()
    waiting = [("", 0)]
    above = {(status.st_dev, status.st_ino) for parent in root.resolve().parents if (status := parent.stat())}
    system = _system_devices()
    while waiting:
        below, depth = waiting.pop()
        try:
            status = os.stat(root / below)
            if status.st_dev in system:
                passed[below.rstrip("/")] = "a folder of the operating system, not of files"
                continue
            if (status.st_dev, status.st_ino) in above:
                passed[below.rstrip("/")] = "a link to a folder above the one that was named"
                continue
            if (status.st_dev, status.st_ino) in seen:  # a link to a folder in between
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = _entries(root / below, limit, root)
        except OSError as error:
            passed[below] = f"a folder that cannot be opened ({error.strerror})"
            continue
        limit -= len(entries)
        here = {entry.name for entry in entries}
        ours = next((kind for files, kind in _OURS.items() if here.issuperset(files)), None)
        if ours is not None:
            passed[below.rstrip("/")] = ours
            continue
        folders = [entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry)]
        names += [below + name for name in here.difference(folders) if not name.startswith(".")]
        if depth == _DEEPEST and folders:
            passed[below] = f"folders nested more than {_DEEPEST} deep"
            continue
        waiting += [(f"{below}{name}/", depth + 1) for name in reversed(folders)]
    return sorted(names), passed


def _entries(folder: Path, limit: int, whole: Path | None = None) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted. Raises DataError for more than ``limit`` entries."""
    with os.scandir(folder) as listing:
        entries = sorted(islice(listing, max(limit, 0) + 1), key=lambda entry: entry.name)
    if len(entries) > limit:
        raise DataError(f"{whole or folder}: holds more files and folders than are read; name a smaller folder.")
    return entries


@cache
def _system_devices() -> set[int]:
    """Of what looks like files and is none; opening some of these acts on the machine."""
    devices = set()
    for place in ("/proc", "/sys", "/dev"):
        with contextlib.suppress(OSError):
            devices.add(os.stat(place).st_dev)
    return devices - {os.stat(os.sep).st_dev}


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circle of links
        return False
