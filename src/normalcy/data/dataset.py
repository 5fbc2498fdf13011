"""What every source of images becomes: a list of named items, and functions that read one image or mask at a time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from normalcy.arrays import Array, Indices, Mask
from normalcy.data.formats import VOLUME_SUFFIXES
from normalcy.data.volumes import Space, imaged, split_name
from normalcy.errors import DataError

SPLITS = ("train", "test")


@dataclass(frozen=True, slots=True)
class Item:
    """One image: all that is known of it without reading it."""

    path: str  # unique in the data set; for files relative to its root with "/", for arrays as "mnist/test/00012"
    case: str  # patient, part or other group that a split must not divide; the path where each image stands alone
    label: int | None = None  # 0 normal, 1 anomalous, None unknown
    type: str | None = None  # the kind of defect or class in words, "good" or the class for normal images
    split: str | None = None  # "train", "test", None undecided


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that could not be used, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Origin:
    """How a source of images was understood."""

    layout: str = ""
    """Name of the layout, format or kind of source."""
    notes: tuple[str, ...] = ()
    """What a user should know about how it was read."""
    doubt: str = ""
    """Why images may be anomalous although no layout says which; nothing is trained on them unless asked for."""


@dataclass(frozen=True, slots=True)
class Region:
    """A part of an anomaly that counts as localised once ``saturation`` of its pixels are found (MVTec LOCO AD, section 4)."""

    mask: Mask
    """(H, W)"""
    saturation: float
    """Pixels, at most the area of the region."""


class DataSet:
    """Items in a fixed order, whose images are read when asked for.

    ``read(i)`` gives the image ``(C, *spatial)`` in its native dtype, ``mask(i)`` a bool array ``(*spatial)`` that is
    True where anomalous, or None where no mask is known. ``root`` is the folder that the items' paths start from, where
    they are files. Optional: ``size(i)``, the spatial size of an image without decoding it, for the masks of normal
    images; ``stamp(i)``, a cheap trace of the content (a file's size, a checksum) for :meth:`fingerprint`; ``ignored``,
    files of a folder that were passed over, perhaps with the reason of each (``reasons``); ``space(i)``, where the voxels
    of a volume lie; ``scheme``, what a model must know to have other images made in the same way (how tiles are cut from
    slides); ``origin``, how the source was understood;
    ``regions(i)``, the parts of a mask with saturation thresholds. All can be called from several threads.
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
        ignored: Sequence[str] | Mapping[str, str] = (),
        space: Callable[[int], Space | None] | None = None,
        scheme: Mapping[str, Any] | None = None,
        origin: Origin | None = None,
        regions: Callable[[int], list[Region]] | None = None,
        classes: Sequence[str] = (),
        positions: Sequence[int] | Indices | None = None,
    ) -> None:
        self.name = name
        self.items = tuple(items)
        self.root = root
        self.ignored = tuple(ignored)
        self.reasons = dict(ignored) if isinstance(ignored, Mapping) else {}
        self.scheme = dict(scheme or {})
        self.origin = origin or Origin()
        self._regions = regions
        self.classes = tuple(classes)
        """Of a union (:mod:`normalcy.data.union`): its data sets, with which the paths of their images start."""
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

    def regions(self, i: int) -> list[Region]:
        """The parts of a mask with saturation thresholds; empty where the source gives none."""
        return [] if self._regions is None else self._regions(int(self._positions[i]))

    def size(self, i: int) -> tuple[int, ...]:
        """The spatial size of an image: ``(H, W)`` or ``(D, H, W)``."""
        return self.read(i).shape[1:] if self._size is None else self._size(int(self._positions[i]))

    @property
    def size_is_cheap(self) -> bool:
        """Whether :meth:`size` needs no decoding of the image, as far as the source could help it."""
        return self._size is not None

    def stamp(self, i: int) -> int:
        return 0 if self._stamp is None else self._stamp(int(self._positions[i]))

    def space(self, i: int) -> Space | None:
        """Where the voxels of a volume lie; None for what is no volume."""
        return None if self._space is None else self._space(int(self._positions[i]))

    def imaged(self, i: int, image: Array) -> Mask | None:
        """Where ``image``, which is that of ``i``, is no padding, (*spatial); None where there is none, or nothing else."""
        space = self.space(i)
        inside = None if space is None else imaged(image, space)
        return None if inside is None or inside.all() or not inside.any() else inside

    @property
    def is_medical(self) -> bool:
        """Whether the first image that can be read is a volume, a DICOM image or a slide."""
        for i in range(len(self)):
            try:
                return self.space(i) is not None
            except DataError:
                continue
        return False

    @property
    def has_masks(self) -> bool:
        """Whether the set has masks at all; single ones may still be missing."""
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

    def subset(self, indices: Sequence[int] | Array) -> DataSet:
        """The images at these positions, or where a bool array is True, in this order; nothing is copied."""
        chosen = np.arange(len(self))[np.asarray(indices, dtype=None if len(indices) else np.intp)]
        return self._view([self.items[i] for i in chosen], self._positions[chosen])

    def remembering(self, images: Mapping[int, Array]) -> DataSet:
        """The same images, of which those at these positions are in memory."""
        known = {int(self._positions[i]): image for i, image in images.items()}
        other = self._view(self.items, self._positions)
        other._read = lambda place: known[place] if place in known else self._read(place)
        return other

    def select(self, split: str | None = None, label: int | None = None) -> DataSet:
        """The images of one split, of one label, or of both."""
        return self.subset(
            [
                i
                for i, item in enumerate(self.items)
                if (split is None or item.split == split) and (label is None or item.label == label)
            ]
        )

    def with_items(self, items: Sequence[Item]) -> DataSet:
        """The same images under new items, one for one: how splits and labels are assigned."""
        if len(items) != len(self):
            raise DataError(f"{self.name}: expected {len(self)} items, one for each image, got {len(items)}.")
        return self._view(items, self._positions)

    def _view(self, items: Sequence[Item], positions: Indices) -> DataSet:
        return DataSet(
            self.name,
            items,
            self._read,
            self._mask,
            self.root,
            size=self._size,
            stamp=self._stamp,
            ignored=self.reasons or self.ignored,
            space=self._space,
            scheme=self.scheme,
            origin=self.origin,
            regions=self._regions,
            classes=self.classes,
            positions=positions,
        )

    def trace(self, i: int) -> str:
        """What stands for an image by its content, whatever it is called: its stamp and 16 digits of a hash of its values."""
        return f"{self.stamp(i) & 0xFFFFFFFF:08x}-{hashlib.sha256(self.read(i).tobytes()).hexdigest()[:16]}"

    def recognised(self, traces: Collection[str]) -> list[int]:
        """Positions of the images that these traces are of. Only images with one of their stamps are read."""
        known = set(traces)
        stamps = {trace.partition("-")[0] for trace in known}
        found = []
        for i in range(len(self)) if known else ():
            try:
                if f"{self.stamp(i) & 0xFFFFFFFF:08x}" in stamps and self.trace(i) in known:
                    found.append(i)
            except DataError:  # not readable: no result of it, either
                continue
        return found

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
