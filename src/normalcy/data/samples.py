"""Data sets of other libraries: ``torch.utils.data.Dataset``, MONAI's lists of dictionaries, Hugging Face ``datasets``.

A sample is an image, a tuple ``(image, label)`` or ``(image, label, mask)``, or a dictionary with the keys ``image`` and, where
there are any, ``label``, ``mask`` and ``case``:

=========  =============================================================================================================
image      array ``(H, W)``, ``(H, W, C)`` or ``(D, H, W, C)``; tensor ``(H, W)``, ``(C, H, W)`` or ``(C, D, H, W)``; Pillow
           image; path of a file
label      0 (normal) or 1 (anomalous), or any number or name where ``normal`` says which are normal; None where unknown. What
           has two or more axes is a mask, as in MONAI
mask       array ``(H, W)`` or with channels where the image has them; not 0 is anomalous. An image without a label is
           anomalous where its mask is not empty
case       group of images that a split must not divide, such as a patient
=========  =============================================================================================================

Values are scaled by the rules for all images (uint8 from 0..255, any other type by the range of the training images), so
transforms that normalise are not needed.
"""

from __future__ import annotations

import math
import sys
import threading
import weakref
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from normalcy.arrays import Array, Mask
from normalcy.data.dataset import DataSet, Item
from normalcy.data.formats import LIMITS, own
from normalcy.data.images import channel_first, read_image, read_mask
from normalcy.errors import DataError
from normalcy.files import open_regular, temporary_folder, writing


def open_samples(
    source: Any,
    *,
    normal: Any = None,
    image: str = "image",
    label: str = "label",
    mask: str = "mask",
    case: str = "case",
    channel_axis: int = -1,
    labelled: bool = True,
) -> DataSet:
    """A data set from samples: anything with a length and ``source[i]``, or an iterable, which is copied to a temporary file.

    ``normal``: the label of normal images, or several of them; by name where the source knows the names of its classes (Hugging
    Face's ``ClassLabel``, ``classes`` of torchvision). It must be given unless all labels are 0 or 1 and have no names.
    ``image``, ``label``, ``mask``, ``case``: keys of dictionaries. ``channel_axis``: of NumPy arrays, -1 for (H, W, C) or 0 for
    (C, H, W); tensors are (C, H, W). ``labelled=False``: labels are not used.

    All samples are read once for their labels; memory is that of one sample. ``source[i]`` must give the same image each time,
    and is never called by two threads at once. Samples that cannot be read are listed by ``fit`` and ``score``. Raises DataError
    for labels whose meaning is not known.

    >>> samples = [{"image": np.full((8, 8), k, np.uint8), "label": "ab"[k % 2]} for k in range(6)]
    >>> data = open_samples(samples, normal="a")
    >>> data.labels, data.read(3).shape, data.items[3].type
    (array([0, 1, 0, 1, 0, 1], dtype=int8), (1, 8, 8), 'b')
    """
    if hasattr(source, "batch_size") and hasattr(source, "dataset"):
        raise DataError("expected a data set of single images, got a DataLoader: give its data set (loader.dataset).")
    if isinstance(source, Mapping):
        raise DataError(
            f"expected a data set, got a {type(source).__name__} with the keys {', '.join(map(str, list(source)[:5]))}: give one "
            "of its values, such as data['train']."
        )
    keys = Keys(image, label, mask, case)
    name = type(source).__name__ if not isinstance(source, list | tuple) else "samples"
    reader = Reader(source, name, keys, channel_axis)
    facts = [*reader.survey()] if is_map(source) else [*reader.spool(iter(source))]
    if not any(fact.size for fact in facts):
        reason = f"none that can be read: {facts[0].fault}" if facts else "none."
        raise DataError(f"{name}: expected at least one sample, got {reason}")
    meanings = _meanings(name, facts, normal, _class_names(source, label)) if labelled else [(None, None)] * len(facts)
    items = [
        Item(f"{name}/{i:05d}", fact.case or f"{name}/{i:05d}", *meaning)
        for i, (fact, meaning) in enumerate(zip(facts, meanings))
    ]
    masks = reader.mask if any(fact.has_mask for fact in facts) else None
    return DataSet(name, items, reader.read, masks, size=lambda i: facts[i].size or reader.read(i).shape[1:],
                   stamp=lambda i: facts[i].stamp)  # fmt: skip


def is_samples(value: Any) -> bool:
    """Whether a value is for :func:`open_samples`: a list of tuples, dictionaries or Pillow images, a map or an iterable."""
    if isinstance(value, list | tuple):
        return len(value) > 0 and all(isinstance(one, Mapping | tuple) or _is_pillow(one) for one in value)
    if isinstance(value, str | bytes | Path | set | frozenset) or hasattr(value, "dtype"):
        return False
    return is_map(value) or hasattr(value, "__iter__")


def is_map(value: Any) -> bool:
    """Whether samples can be had by number."""
    torch_data = sys.modules.get("torch.utils.data")
    if torch_data is not None and isinstance(value, torch_data.IterableDataset):
        return False
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")


def is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")  # whoever holds a tensor has imported it
    return torch is not None and isinstance(value, torch.Tensor)


def to_numpy(value: Any) -> Array:
    """Of a tensor on any device, an array, or what NumPy makes one of."""
    if is_tensor(value):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value  # unknown to NumPy
        return np.asarray(value.numpy())
    return np.asarray(value)


class Keys(NamedTuple):
    """Keys of a dictionary."""

    image: str
    label: str
    mask: str
    case: str


class Fact(NamedTuple):
    """What is kept of a sample after the first reading; all but ``fault`` is unknown where it could not be read."""

    label: Any = None
    has_mask: bool = False
    marked: bool | None = None
    """Whether its mask is not empty."""
    case: str = ""
    size: tuple[int, ...] = ()
    stamp: int = 0
    fault: str = ""


class Reader:
    """Samples of a source by number, one at a time."""

    def __init__(self, source: Any, name: str, keys: Keys, channel_axis: int) -> None:
        if channel_axis not in (-1, 0):
            raise DataError(f"channel_axis must be -1 (channels last) or 0 (first), got {channel_axis!r}.")
        self.source, self.name, self.keys, self.channel_axis = source, name, keys, channel_axis
        self._lock = threading.Lock()
        self._spool: _Spool | None = None

    def read(self, i: int) -> Array:
        if self._spool is not None:
            return self._spool.read(i)
        return self._image(self._parts(self._sample(i), i)[0], i)

    def mask(self, i: int) -> Mask | None:
        if self._spool is not None:
            return self._spool.mask(i)
        parts = self._parts(self._sample(i), i)
        return self._mask(parts, self._image(parts[0], i).shape, i)

    def survey(self) -> Iterable[Fact]:
        """Of each sample, in order."""
        for i in range(len(self.source)):
            try:
                yield self._look(self._sample(i), i)[0]
            except DataError as error:  # said again when it is read
                yield Fact(fault=str(error))

    def spool(self, samples: Iterable[Any]) -> Iterable[Fact]:
        """As :meth:`survey`, of what can be read only once: images and masks go to a temporary file."""
        self._spool = _Spool()
        with writing(self._spool.path) as file:
            for i, sample in enumerate(samples):
                if i >= LIMITS.entries:
                    raise DataError(f"{self.name}: gives more than {LIMITS.entries:,} samples; take a part of it.")
                try:
                    fact, image, mask = self._look(sample, i)
                    self._spool.add(file, image, mask)
                    yield fact
                except DataError as error:
                    self._spool.faults[i] = str(error)
                    self._spool.add(file, np.empty(0), None)
                    yield Fact(fault=str(error))

    def _look(self, sample: Any, i: int) -> tuple[Fact, Array, Mask | None]:
        parts = self._parts(sample, i)
        image = self._image(parts[0], i)
        mask = self._mask(parts, image.shape, i)
        label = None if _is_image(parts[1]) else _scalar(parts[1], f"{self.name}: sample {i}")
        case = "" if parts[3] is None else str(_scalar(parts[3], f"{self.name}: sample {i}"))
        marked = None if mask is None else bool(mask.any())
        return Fact(label, mask is not None, marked, case, image.shape[1:], zlib.crc32(image.tobytes())), image, mask

    def _sample(self, i: int) -> Any:
        try:
            with self._lock:
                return self.source[i]
        except Exception as error:  # the user's own code
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise DataError(f"{self.name}: sample {i} cannot be read ({reason}).") from error

    def _parts(self, sample: Any, i: int) -> tuple[Any, Any, Any, Any]:
        """Image, label, mask and case of a sample; None for what it lacks."""
        if isinstance(sample, Mapping):
            if self.keys.image not in sample:
                got = ", ".join(map(str, list(sample)[:9]))
                raise DataError(
                    f"{self.name}: sample {i}: expected the key {self.keys.image!r}, got {got}: "
                    "say which one holds the image, open_samples(data, image=KEY)."
                )
            image, label, mask, case = (sample.get(key) for key in self.keys)
            return image, label, mask, case
        if isinstance(sample, tuple | list):
            if not 1 <= len(sample) <= 3:
                raise DataError(f"{self.name}: sample {i}: expected (image, label[, mask]), got {len(sample)} values.")
            image, label, mask = (*sample, None, None)[:3]
            return image, label, mask, None
        return sample, None, None, None

    def _image(self, value: Any, i: int) -> Array:
        name = f"{self.name}: sample {i}"
        if isinstance(value, str | Path):
            return read_image(value)
        if _is_pillow(value):
            return channel_first(_pixels(value), name)
        array = to_numpy(value)
        if array.dtype.kind not in "uifb" or array.ndim not in (2, 3, 4) or array.size == 0:
            raise DataError(
                f"{name}: expected an image (H, W), (H, W, C) or a tensor (C, H, W), got a {type(value).__name__} "
                f"{array.dtype} of shape {array.shape}."
            )
        if array.ndim == 2:
            return own(array[None], name)
        if is_tensor(value) or self.channel_axis == 0:
            if array.shape[-1] in (1, 3, 4) and array.shape[0] not in (1, 3, 4) and min(array.shape[:2]) > 4:
                raise DataError(
                    f"{name}: expected channels first, (C, H, W), got shape {array.shape}; permute the axes."
                )
            return own(array, name)
        return channel_first(array, name)

    def _mask(self, parts: tuple[Any, Any, Any, Any], shape: tuple[int, ...], i: int) -> Mask | None:
        """Of an image (C, *spatial) of this shape."""
        value = parts[2] if parts[2] is not None else parts[1] if _is_image(parts[1]) else None
        if value is None:
            return None
        if isinstance(value, str | Path):
            return read_mask(value)
        first = is_tensor(value) or self.channel_axis == 0
        array = np.asarray((_pixels(value) if _is_pillow(value) else to_numpy(value)) != 0)
        if array.ndim == len(shape):
            array = np.asarray(array.any(axis=0 if first else -1))
        if array.shape != shape[1:]:
            raise DataError(
                f"{self.name}: sample {i}: expected a mask of the image's size {shape[1:]}, got {array.shape}."
            )
        return array


# -- private ---------------------------------------------------------------------------------------------------------


class _Spool:
    """Images (C, *spatial) and masks in a temporary file, which lives as long as this."""

    def __init__(self) -> None:
        folder = temporary_folder()
        self.path = Path(folder.name) / "samples.raw"
        weakref.finalize(self, folder.cleanup)
        self._places: list[tuple[_Place, _Place | None]] = []
        self._end = 0
        self.faults: dict[int, str] = {}

    def add(self, file: Any, image: Array, mask: Mask | None) -> None:
        self._places.append((self._write(file, image), None if mask is None else self._write(file, mask)))

    def read(self, i: int) -> Array:
        if i in self.faults:
            raise DataError(self.faults[i])
        return self._read(self._places[i][0])

    def mask(self, i: int) -> Mask | None:
        place = self._places[i][1]
        return None if place is None else self._read(place)

    def _write(self, file: Any, array: Array) -> _Place:
        place = _Place(self._end, array.shape, array.dtype)
        file.write(np.ascontiguousarray(array).data)
        self._end += array.nbytes
        return place

    def _read(self, place: _Place) -> Array:
        with open_regular(self.path) as file:
            file.seek(place.start)
            data = file.read(math.prod(place.shape) * place.dtype.itemsize)
        return np.frombuffer(data, place.dtype).reshape(place.shape).copy()


class _Place(NamedTuple):
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def _meanings(
    name: str, facts: list[Fact], normal: Any, names: list[str] | None
) -> list[tuple[int | None, str | None]]:
    """Label (0 normal, 1 anomalous, None unknown) and type of each sample."""
    values = {fact.label for fact in facts} - {None}
    shown = ", ".join(names or sorted(map(str, values)))[:200]
    if normal is None and names is not None and values:
        raise DataError(
            f"{name}: its classes are {shown}, and which of them is normal is not known: open_samples(data, normal={names[0]!r})."
        )
    if normal is None and not values <= {0, 1}:
        raise DataError(
            f"{name}: expected labels 0 (normal) and 1 (anomalous), got {shown}: say which are normal, "
            "open_samples(data, normal=LABEL)."
        )
    wanted = {0} if normal is None else set(normal) if _is_several(normal) else {normal}
    title: Callable[[Any], str | None] = lambda value: None if normal is None else str(value)  # noqa: E731
    if names is not None:
        known = dict(enumerate(names))
        title = lambda value: known.get(value, str(value))  # noqa: E731
        wanted = {names.index(one) if one in names else one for one in wanted}
        values = set(known)
    if values and not wanted <= values and normal is not None:
        raise DataError(f"{name}: normal={normal!r} is not among its labels: {shown}.")
    result: list[tuple[int | None, str | None]] = []
    for fact in facts:
        if fact.label is not None:
            result.append((0 if fact.label in wanted else 1, title(fact.label)))
        else:
            result.append((None if fact.marked is None else int(fact.marked), None))
    return result


def _class_names(source: Any, label: str) -> list[str] | None:
    """Names of the classes by number, where a source knows them."""
    features = getattr(source, "features", None)
    column = features.get(label) if isinstance(features, Mapping) else None
    names = getattr(column, "names", None) if features is not None else getattr(source, "classes", None)
    return [str(one) for one in names] if isinstance(names, list | tuple) and names else None


def _scalar(value: Any, name: str) -> Any:
    """A label as a number or a text; whole numbers as int."""
    if value is None or isinstance(value, str):
        return value
    array = to_numpy(value)
    if array.size != 1 or array.dtype.kind not in "uifbU":
        raise DataError(f"{name}: expected a label or case that is one number or name, got {value!r:.100}.")
    number = array.reshape(-1)[0].item()
    return int(number) if not isinstance(number, str) and number == int(number) else number


def _is_several(value: Any) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str)


def _is_image(value: Any) -> bool:
    """Whether a label is a mask: two axes or more."""
    return _is_pillow(value) or getattr(value, "ndim", 0) >= 2


def _is_pillow(value: Any) -> bool:
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def _pixels(image: Any) -> Array:
    """Of a Pillow image: a palette as RGB, one bit as 0 and 255, all else as it is."""
    if image.mode in ("P", "PA"):
        image = image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    return np.asarray(image)
