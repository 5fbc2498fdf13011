"""What every source of images becomes: a list of named items, and functions that read one image or mask at a time."""

import builtins
import difflib
import hashlib
import os
import re
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from .dicom import decode_series, is_dicom, series_in, series_space
from .images import (
    DICOM_SUFFIXES,
    IMAGE_SUFFIXES,
    VOLUME_SUFFIXES,
    Array,
    Mask,
    channel_first,
    decode_image,
    decode_mask,
    image_size,
    is_image,
    is_volume,
    own,
    read_bytes,
    read_mask,
)
from .volumes import Space, decode_volume, select, split_name, volume_space

DEFAULT_DATA_ROOT = Path("~/.cache/normalcy/data")
SPLITS = ("train", "test")


@dataclass(frozen=True, slots=True)
class Item:
    """One image: all that is known of it without reading it."""

    path: str  # unique in the data set; for files relative to its root with "/", for arrays as "mnist/test/00012"
    case: str  # patient, part or other group that a split must not divide; the path where each image stands alone
    label: int | None = None  # 0 normal, 1 anomalous, None unknown
    type: str | None = None  # the kind of defect or class in words, "good" or the class for normal images
    split: str | None = None  # "train", "test", None undecided


class DataSet:
    """Items in a fixed order, whose images are read when asked for.

    ``read(i)`` gives the image ``(C, *spatial)`` in its native dtype, ``mask(i)`` a bool array ``(*spatial)`` that is
    True where anomalous, or None where no mask is known. ``root`` is the folder that the items' paths start from, where
    they are files. Optional: ``size(i)``, the spatial size of an image without decoding it, for the masks of normal
    images; ``stamp(i)``, a cheap trace of the content (a file's size, a checksum) for :meth:`fingerprint`; ``ignored``,
    files that were found in a folder but are not images; ``space(i)``, where the voxels of a volume lie; ``made``, what a model
    must know to have other images made in the same way (how tiles are cut from slides). All can be called from several
    threads.
    """

    def __init__(
        self,
        name: str,
        items: Sequence[Item],
        read: Callable[[int], Array],
        mask: Callable[[int], Mask | None] | None = None,
        root: Path | None = None,
        *,
        size: Callable[[int], tuple[int, ...]] | None = None,
        stamp: Callable[[int], int] | None = None,
        ignored: Sequence[str] = (),
        space: Callable[[int], Space | None] | None = None,
        made: Mapping[str, Any] | None = None,
        positions: Sequence[int] | npt.NDArray[np.intp] | None = None,
    ) -> None:
        self.name = name
        self.items = tuple(items)
        self.root = root
        self.ignored = tuple(ignored)
        self.made = dict(made or {})
        self._read, self._mask, self._size, self._stamp, self._space = read, mask, size, stamp, space
        # a view keeps the functions of the whole and the place of each of its items in it
        self._positions = np.arange(len(self.items)) if positions is None else np.asarray(positions, dtype=np.intp)

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        return f"DataSet({self.name!r}, {len(self)} images)"

    def read(self, i: int) -> Array:
        return self._read(int(self._positions[i]))

    def mask(self, i: int) -> Mask | None:
        """In a set with masks, a normal image without one has a mask that is all False."""
        mask = None if self._mask is None else self._mask(int(self._positions[i]))
        if mask is None and self.has_masks and self.items[i].label == 0:
            return np.zeros(self.size(i), bool)
        return mask

    def size(self, i: int) -> tuple[int, ...]:
        """The spatial size of an image: ``(H, W)`` or ``(D, H, W)``."""
        return self.read(i).shape[1:] if self._size is None else self._size(int(self._positions[i]))

    def stamp(self, i: int) -> int:
        return 0 if self._stamp is None else self._stamp(int(self._positions[i]))

    def space(self, i: int) -> Space | None:
        """Where the voxels of a volume lie; None for what is no volume."""
        return None if self._space is None else self._space(int(self._positions[i]))

    @property
    def is_medical(self) -> bool:
        """Whether the first image that can be read is a volume, a DICOM image or a slide."""
        for i in range(min(len(self), 8)):
            try:
                return self.space(i) is not None
            except DataError:
                continue
        return False

    @property
    def has_masks(self) -> bool:
        """Whether the set comes with masks at all; single ones may still be missing."""
        return self._mask is not None

    def source(self, i: int) -> Path | None:
        """The file of an item, where it is one."""
        return None if self.root is None else self.root / self.items[i].path

    @property
    def labels(self) -> npt.NDArray[np.int8]:
        """0 normal, 1 anomalous, -1 unknown."""
        return np.array([-1 if item.label is None else item.label for item in self.items], dtype=np.int8)

    @property
    def cases(self) -> list[str]:
        return [item.case for item in self.items]

    def subset(self, indices: Sequence[int] | npt.NDArray[Any]) -> "DataSet":
        """The images at these positions, or where a bool array is True, in this order; nothing is copied."""
        chosen = np.arange(len(self))[np.asarray(indices, dtype=None if len(indices) else np.intp)]
        return self._view([self.items[i] for i in chosen], self._positions[chosen])

    def select(self, split: str | None = None, label: int | None = None) -> "DataSet":
        """The images of one split, of one label, or of both."""
        return self.subset(
            [
                i
                for i, item in enumerate(self.items)
                if (split is None or item.split == split) and (label is None or item.label == label)
            ]
        )

    def with_items(self, items: Sequence[Item]) -> "DataSet":
        """The same images under new items, one for one: how splits and labels are assigned."""
        if len(items) != len(self):
            raise DataError(f"{self.name}: expected {len(self)} items, one for each image, got {len(items)}.")
        return self._view(items, self._positions)

    def _view(self, items: Sequence[Item], positions: npt.NDArray[np.intp]) -> "DataSet":
        return DataSet(
            self.name,
            items,
            self._read,
            self._mask,
            self.root,
            size=self._size,
            stamp=self._stamp,
            ignored=self.ignored,
            space=self._space,
            made=self.made,
            positions=positions,
        )

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the items, with the size or checksum of any image, and with the
        pixels of any of 32 images spread over the set. Copying the data elsewhere does not change it."""
        digest = hashlib.sha256()
        for i, item in enumerate(self.items):
            digest.update(repr((item.path, item.case, item.label, item.type, item.split, self.stamp(i))).encode())
        for i in np.unique(np.linspace(0, len(self) - 1, min(32, len(self))).astype(int)):
            try:
                digest.update(self.read(i).tobytes())
            except DataError:
                digest.update(b"unreadable")
        return digest.hexdigest()[:16]


class Files:
    """Images and masks in files that ``opener`` gives as bytes; ``masks[i]`` names a file or is None.

    An image may be several files: those of a DICOM series.
    """

    def __init__(
        self,
        opener: "Folder | Zip",
        images: Sequence[str | tuple[str, ...]],
        masks: Sequence[str | None] | None = None,
    ) -> None:
        self.opener, self.images, self.masks = opener, images, masks

    def read(self, i: int) -> Array:
        return self._decode(self.images[i])[0]

    def space(self, i: int) -> Space | None:
        image = self.images[i]
        if isinstance(image, tuple):
            return series_space(*self._series(image))
        file, part = split_name(image)
        if not file.lower().endswith(VOLUME_SUFFIXES):
            return None
        return volume_space(self.opener.bytes(file), self.opener.full_name(file)).part(part)

    def mask(self, i: int) -> Mask | None:
        file = None if self.masks is None else self.masks[i]
        if file is None:
            return None
        if split_name(file)[1]:
            return np.asarray((self._decode(file)[0] != 0).any(axis=0))
        return decode_mask(self.opener.bytes(file), self.opener.full_name(file))

    def size(self, i: int) -> tuple[int, ...]:
        image = self.images[i]
        if isinstance(image, tuple):
            return series_space(*self._series(image)).size
        file, part = split_name(image)
        data, name = self.opener.bytes(file), self.opener.full_name(file)
        return volume_space(data, name).part(part).size if part else image_size(data, name)

    def _series(self, files: tuple[str, ...]) -> tuple[list[bytes], list[str], str]:
        """Bytes and names of the files of a series, and what to call it in errors."""
        names = [self.opener.full_name(file) for file in files]
        whole = names[0] if len(names) == 1 else f"{names[0].rpartition('/')[0]} ({len(names)} files)"
        return [self.opener.bytes(file) for file in files], names, whole

    def _decode(self, image: str | tuple[str, ...]) -> tuple[Array, Space | None]:
        if isinstance(image, tuple):
            return decode_series(*self._series(image))
        file, part = split_name(image)
        data, name = self.opener.bytes(file), self.opener.full_name(file)
        if not is_volume(data):
            return decode_image(data, name), None
        return select(*decode_volume(data, name), part, name)

    def stamp(self, i: int) -> int:
        image = self.images[i]
        files = image if isinstance(image, tuple) else (split_name(image)[0],)
        return sum(self.opener.stamp(file) for file in files)

    def data_set(self, name: str, items: Sequence[Item], ignored: Sequence[str] = ()) -> DataSet:
        mask = None if self.masks is None else self.mask
        root = self.opener.path if isinstance(self.opener, Folder) else None
        return DataSet(
            name, items, self.read, mask, root, size=self.size, stamp=self.stamp, ignored=ignored, space=self.space
        )


class Folder:
    """Files below a folder, by their path relative to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def full_name(self, file: str) -> str:
        return str(self.path / file)

    def bytes(self, file: str) -> bytes:
        return read_bytes(self.path / file)

    def head(self, file: str) -> "builtins.bytes":
        """The first bytes of a file, by which its format is known; empty where it cannot be read."""
        try:
            with open(self.path / file, "rb") as opened:
                return opened.read(132)
        except (OSError, ValueError):
            return b""

    def stamp(self, file: str) -> int:
        try:
            return (self.path / file).stat().st_size
        except OSError:
            return -1

    def names(self) -> list[str]:
        """All files below, sorted; hidden ones are left out, links are followed."""
        return sorted(_walk(self.path))


class Zip:
    """Files in a zip, read without extraction, from any number of threads and processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: tuple[int, zipfile.ZipFile, threading.Lock] | None = None

    def __reduce__(self) -> tuple[type["Zip"], tuple[Path]]:
        return Zip, (self.path,)

    def _zip(self) -> tuple[zipfile.ZipFile, threading.Lock]:
        opened = self._opened
        # one handle per process: a forked one would share the position in the file, and perhaps a held lock
        if opened is None or opened[0] != os.getpid():
            try:
                opened = self._opened = os.getpid(), zipfile.ZipFile(self.path), threading.Lock()
            except (OSError, zipfile.BadZipFile) as error:
                raise DataError(f"{self.path}: cannot be opened as a zip ({error}); fetch it again.") from None
        return opened[1:]

    def full_name(self, file: str) -> str:
        return f"{self.path}/{file}"

    def bytes(self, file: str) -> bytes:
        archive, lock = self._zip()
        try:
            with lock:  # ZipFile counts its readers without one
                return archive.read(file)
        except (
            OSError,
            KeyError,
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


def open_data(spec: str | Path, data_root: Path | str | None = None) -> DataSet:
    """The data set that a path or a name stands for.

    =============================  ====================================================================================
    a folder                       ``train/good``, ``test/<type>``, ``ground_truth/<type>`` as in MVTec AD; any other
                                   folder is searched for images of unknown label
    an image                       a set of one
    ``.csv``, ``.parquet``         a table, see :func:`~normalcy.data.table.open_table`
    ``.npz``, ``.npz:3``           arrays, see :func:`~normalcy.data.named.open_npz`; with a class taken as normal
    ``mnist:3``, ``cifar10:cat``   a named set with a class taken as normal, see :mod:`normalcy.data.named`
    ``elpv``, ``magnetic_tile``    a named set of defects
    ``slides:FOLDER,tile=256``     tiles of whole-slide images, see :mod:`normalcy.data.slides`
    ``diffusion:DATA``             4D volumes with b-values as attenuations, see :mod:`normalcy.data.diffusion`
    =============================  ====================================================================================

    Named sets are looked for in ``data_root`` (default ``~/.cache/normalcy/data``) and downloaded into it if missing.
    """
    from . import folder, named, table  # they build on this module

    text, root = str(spec), Path(data_root or DEFAULT_DATA_ROOT).expanduser()
    if text.startswith("slides:"):
        from . import slides

        return slides.open_slides(text.removeprefix("slides:"))
    if text.startswith("diffusion:"):
        from . import diffusion

        return diffusion.open_diffusion(text.removeprefix("diffusion:"), data_root)
    path = Path(text).expanduser()
    if text and not _exists(path) and _exists(Path(split_name(str(path))[0])):
        return open_files([path])  # a part of a volume
    if text and _exists(path):
        if path.is_dir():
            return folder.open_folder(path)
        suffix = path.suffix.lower()
        if suffix in table.TABLE_SUFFIXES:
            return table.open_table(path)
        if suffix == ".npz":
            return named.open_npz(path)
        if is_image(path.name) or is_dicom(Folder(path.parent).head(path.name)):
            return open_files([path])
        raise DataError(
            f"{path}: expected a folder, an image ({' '.join(sorted((*IMAGE_SUFFIXES, *VOLUME_SUFFIXES)))}), a table "
            f"({' '.join(sorted(table.TABLE_SUFFIXES))}) or .npz, got a file of another kind."
        )
    name, colon, choice = text.rpartition(":") if ":" in text else (text, "", "")
    if colon and name.lower().endswith(".npz") and _exists(Path(name)):
        return named.open_npz(Path(name), choice)
    if isinstance(spec, str) and name in named.NAMED:
        return named.open_named(name, choice, root)
    known = {**{key: key for key in named.NAMED}, **{str(p): str(p) for p in _siblings(path)}}
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.75)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise DataError(
        f"{text!r} is neither a file or folder nor a named data set; named sets are {', '.join(named.USAGE)}.{hint}"
    )


def open_files(paths: Sequence[str | Path]) -> DataSet:
    """Image files, in the order given; folders among them are searched. All are of unknown label."""
    files: list[Path] = []
    for given in paths:
        path = Path(os.path.abspath(Path(given).expanduser()))
        if path.is_dir():
            below = Folder(path)
            files += [
                path / file
                for _, _, image in find_images(below)[0]
                for file in ([image] if isinstance(image, str) else image)
            ]
        elif _exists(Path(split_name(str(path))[0])):
            files.append(path)
        else:
            raise DataError(f"{given}: no such file or folder; check the name.")
    if not files:
        raise DataError(f"expected at least one image, got none in {', '.join(map(str, paths)) or 'an empty list'}.")
    root = Path(os.path.commonpath([file.parent for file in files]))
    names = [file.relative_to(root).as_posix() for file in files]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise DataError(f"{root / twice}: given more than once; name each image once.")
    folder = Folder(root)
    series = [name for name in names if not is_image(split_name(name)[0])]
    found: list[Found] = [(name, case_of(name), name) for name in names if is_image(split_name(name)[0])]
    found += series_in(series, folder.bytes, root.name) if series else []
    found.sort(key=lambda one: names.index(one[2] if isinstance(one[2], str) else one[2][0]))
    return Files(folder, [image for _, _, image in found]).data_set(root.name, [Item(*one[:2]) for one in found])


Found = tuple[str, str, str | tuple[str, ...]]
"""Path, case, and the file or the files of a series."""


def find_images(folder: Folder) -> tuple[list[Found], list[str]]:
    """Images below a folder, sorted, with the files of a DICOM series as one; and the files that are none."""
    names = folder.names()
    others = [name for name in names if not is_image(name)]
    dicom = [name for name in others if name.lower().endswith(DICOM_SUFFIXES) or is_dicom(folder.head(name))]
    dicom = [name for name in dicom if not name.endswith("DICOMDIR")]
    found: list[Found] = [(name, case_of(name), name) for name in names if is_image(name)]
    if dicom:
        found += series_in(dicom, folder.bytes, folder.path.resolve().name)
    return sorted(found, key=lambda one: one[0]), sorted(set(others) - set(dicom))


def files_of(folder: Folder, name: str) -> str | tuple[str, ...]:
    """What a row of a table names: a file, or a folder with (or one file of) a DICOM series."""
    if is_image(split_name(name)[0]):
        return name
    if (folder.path / name).is_dir():
        inside = [f"{name}/{file}" for file in Folder(folder.path / name).names()]
        return tuple(file for file in inside if is_dicom(folder.head(file))) or name
    return (name,) if is_dicom(folder.head(name)) else name


def as_dataset(images: Any, labels: Any = None, masks: Any = None) -> DataSet:
    """Whatever holds images, as a data set.

    A data set itself; a path or name (:func:`open_data`); a list of paths; NumPy arrays with channels last, ``(N, H,
    W)``, ``(N, H, W, C)`` or volumes ``(N, D, H, W, C)``; Torch tensors with channels first, ``(N, C, H, W)`` or ``(N,
    C, D, H, W)``; a list of arrays ``(H, W)`` or ``(H, W, C)``, or of tensors ``(C, H, W)``, of any sizes.
    ``labels`` are N times 0 (normal) or 1 (anomalous); ``masks`` are N masks of the images' spatial size, or None for
    images that have none (a list of them may also name files).

    >>> data = as_dataset(np.zeros((5, 32, 48), np.uint16), labels=[0, 0, 0, 1, 1])
    >>> data.read(0).shape, data.read(0).dtype, len(data.select(label=1))
    ((1, 32, 48), dtype('uint16'), 2)
    """
    if isinstance(images, DataSet):
        data = images
    elif isinstance(images, str | Path):
        data = open_data(images)
    elif isinstance(images, np.ndarray) or _is_tensor(images):
        data = _from_stack(images)
    elif isinstance(images, list | tuple) and images:
        data = _from_list(images)
    else:
        raise DataError(
            "expected images as a data set, a path or name, a list of paths, a NumPy array (N, H, W) or (N, H, W, C), "
            f"a Torch tensor (N, C, H, W) or a list of arrays, got {_describe(images)}."
        )
    if labels is not None:
        values = [int(v) if v in (0, 1) else v for v in _numpy(labels).ravel().tolist()]
        if len(values) != len(data) or not set(values) <= {0, 1, None}:
            raise DataError(
                f"labels: expected {len(data)} of 0 (normal), 1 (anomalous) or None, one for each image, "
                f"got {len(values)} with the values {', '.join(sorted(set(map(str, values)))[:5])}."
            )
        data = data.with_items([replace(item, label=value) for item, value in zip(data.items, values)])
    if masks is not None:
        if len(masks) != len(data):
            raise DataError(f"masks: expected {len(data)}, one for each image, got {len(masks)}.")
        given = Arrays((), _numpy(masks) if _is_tensor(masks) else masks)
        # masks are in the order of this view, so what reads them must count in its positions
        data = DataSet(
            data.name, data.items, data.read, given.mask, data.root, size=data.size, stamp=data.stamp, space=data.space
        )
    return data


def _from_stack(images: Any) -> DataSet:
    if not _is_tensor(images):
        return check_stack(images, "images").data_set("images", unnamed("images", len(images)))
    if images.ndim not in (4, 5) or not len(images):
        shape = tuple(images.shape)
        raise DataError(f"expected a tensor (N, C, H, W) or (N, C, D, H, W), got shape {shape}; add the missing axis.")
    return Arrays(_numpy(images), first=True).data_set("images", unnamed("images", len(images)))


def check_stack(array: Array, name: str, masks: Any = None) -> Arrays:
    """A batch with channels last, refused where it looks like something else."""
    shape = array.shape
    if array.ndim == 2 or (array.ndim == 3 and shape[-1] in (3, 4) and min(shape[:2]) > 4):
        raise DataError(
            f"{name}: expected a batch (N, H, W) or (N, H, W, C), got shape {shape}, which looks like a single image; "
            "pass [image] or add an axis, image[None]."
        )
    if array.ndim not in (3, 4, 5) or array.size == 0:
        raise DataError(f"{name}: expected an array (N, H, W), (N, H, W, C) or (N, D, H, W, C), got shape {shape}.")
    return Arrays(array, masks)


def _from_list(images: Sequence[Any]) -> DataSet:
    if all(isinstance(image, str | Path) for image in images):
        if len(images) == 1 and not _exists(Path(images[0])):
            return open_data(images[0])  # a name such as mnist:3
        return open_files(images)
    if all(isinstance(image, np.ndarray) for image in images) or all(_is_tensor(image) for image in images):
        tensor = _is_tensor(images[0])
        axes = ("(C, H, W)", (3, 4)) if tensor else ("(H, W) or (H, W, C)", (2, 3, 4))
        wrong = next((image for image in images if image.ndim not in axes[1]), None)
        if wrong is not None:
            raise DataError(f"expected a list of images {axes[0]}, got one of shape {tuple(wrong.shape)} in it.")
        arrays = Arrays([_numpy(image) for image in images], first=tensor)
        return arrays.data_set("images", unnamed("images", len(images)))
    kinds = ", ".join(sorted({type(image).__name__ for image in images}))
    raise DataError(f"expected a list of paths or a list of arrays, got a list of {kinds}.")


def case_of(path: str) -> str:
    """The group of an image by its path alone: the subject in BIDS names, the volume of a slice, else the image itself.

    >>> case_of("a/sub-07/ses-2/sub-07_T1w.nii.gz"), case_of("scan.nii.gz[z=3]"), case_of("a/b.png")
    ('sub-07', 'scan.nii.gz', 'a/b.png')
    """
    file = split_name(path)[0]
    subject = re.search(r"(?:^|/)(sub-[A-Za-z0-9]+)(?=[_/])", file) if file.lower().endswith(VOLUME_SUFFIXES) else None
    return subject[1] if subject else file


def unnamed(name: str, count: int) -> list[Item]:
    """Items for images that have no names of their own.

    >>> [item.path for item in unnamed("images", 2)]
    ['images/00000', 'images/00001']
    """
    return [Item(path, path) for path in (f"{name}/{i:05d}" for i in range(count))]


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")  # whoever holds a tensor has imported it
    return torch is not None and isinstance(value, torch.Tensor)


def _numpy(value: Any) -> Array:
    if _is_tensor(value):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value  # unknown to NumPy
        return np.asarray(value.numpy())
    return np.asarray(value)


def _describe(value: Any) -> str:
    return f"an empty {type(value).__name__}" if isinstance(value, list | tuple) else f"a {type(value).__name__}"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long or with a null byte
        return False


def _siblings(path: Path) -> list[Path]:
    try:
        return list(path.parent.iterdir())
    except (OSError, ValueError):
        return []


def _walk(root: Path) -> Iterator[str]:
    seen = set()
    for folder, below, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above
            below.clear()
            continue
        seen.add(real)
        below[:] = [name for name in below if not name.startswith(".")]
        relative = Path(folder).relative_to(root)
        yield from ((relative / file).as_posix() for file in files if not file.startswith("."))
