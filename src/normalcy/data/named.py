"""Arrays in ``.npz`` files, and data sets by name: ``mnist:3`` takes the threes of MNIST as normal.

A set with classes becomes a one-class problem: the training images of the normal class are the training set, the whole
test set is the test set, where every other class is anomalous. It is looked for in a data root, in this order:

- arrays ``NAME.npz`` with ``x_train, y_train, x_test, y_test``,
- files ``train|test/<class>/*`` in ``NAME.zip``, ``NAME_jpg.zip`` or folders of those names,
- torchvision's own files, which torchvision downloads where they are missing.

``gtsrb:14`` (stop signs) is also satisfied by ``gtsrb_stop.npz``, whose test images are all normal.

``elpv`` (solar cells, from the package elpv-dataset) and ``magnetic_tile`` are sets of defects without a published
split: the normal images sorted by name and shuffled with ``random.Random(0)`` give their first 80 % for training;
the rest and all defective ones are the test set.

Sets of several categories (``mvtec:bottle``) are those of :mod:`normalcy.data.published`; sets of MedMNIST
(``pneumoniamnist:0``, ``organmnist3d_64:0``) are ``NAME.npz`` in the data root, as their authors give them.
"""

from __future__ import annotations

import csv
import difflib
import importlib.util
import random
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from normalcy.arrays import Array
from normalcy.data.dataset import DataSet, Item
from normalcy.data.formats import IMAGE_SUFFIXES, LIMITS, Limits
from normalcy.data.published import PUBLISHED, open_published
from normalcy.data.stores import Files, Folder, Zip, check_stack
from normalcy.errors import DataError
from normalcy.files import read_arrays, read_text

DIGITS = tuple("0123456789")
CLASSES: dict[str, tuple[str, ...]] = {
    "mnist": DIGITS,
    "fashion_mnist": (
        "t-shirt",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "svhn": DIGITS,
    "gtsrb": tuple(str(k) for k in range(43)),
}
MEDMNIST = (
    *(
        "pathmnist",
        "chestmnist",
        "dermamnist",
        "octmnist",
        "pneumoniamnist",
        "retinamnist",
        "breastmnist",
        "bloodmnist",
    ),
    *("tissuemnist", "organamnist", "organcmnist", "organsmnist", "organmnist3d", "nodulemnist3d", "adrenalmnist3d"),
    *("fracturemnist3d", "vesselmnist3d", "synapsemnist3d"),
)
"""Sets of MedMNIST v2; files of larger images end in ``_64``, ``_128`` and ``_224``."""
NAMED = (*CLASSES, "elpv", "magnetic_tile", *PUBLISHED, *MEDMNIST)
USAGE = (
    *("mnist:3", "fashion_mnist:0", "cifar10:cat", "svhn:7", "gtsrb:14", "elpv", "elpv:all", "magnetic_tile"),
    *(f"{name}:{known.categories[0]}" for name, known in PUBLISHED.items()),
    *("pneumoniamnist:0", "organmnist3d:0 and the other sets of MedMNIST"),
)
"""How each named set is written."""

_TRAIN_FRACTION = 0.8


LOCAL = ("elpv", "magnetic_tile", *PUBLISHED, *MEDMNIST)
"""Named sets that are never fetched."""


def is_named(name: str) -> bool:
    """Whether this is the name of a set, without what follows the colon."""
    return name in NAMED or re.sub(r"_(?:64|128|224)$", "", name) in MEDMNIST


def open_named(name: str, choice: str, data_root: Path, limits: Limits = LIMITS) -> DataSet:
    """A named set; ``choice`` is what follows the colon, empty if there is none."""
    if name in PUBLISHED:
        return open_published(name, choice, data_root, limits)
    if name not in CLASSES and name not in ("elpv", "magnetic_tile"):
        return _medmnist(name, choice, data_root, limits)
    if name == "elpv":
        return _elpv(choice)
    if name == "magnetic_tile":
        return _magnetic_tile(choice, data_root)
    normal, spec = _choose(name, choice), f"{name}:{choice}"
    classes = CLASSES[name]
    if (data_root / f"{name}.npz").is_file():
        return _from_parts(spec, _npz_parts(data_root / f"{name}.npz", name), normal, classes)
    for folder in (name, f"{name}_jpg"):
        if (data_root / f"{folder}.zip").is_file():
            return _from_classes(spec, Zip(data_root / f"{folder}.zip"), normal, classes)
        if (data_root / folder / "train").is_dir():
            return _from_classes(spec, Folder(data_root / folder), normal, classes)
    stop = data_root / "gtsrb_stop.npz"
    if spec == "gtsrb:14" and stop.is_file() and not (data_root / "gtsrb").exists():
        parts = [part.all_of(14) for part in _npz_parts(stop, "gtsrb_stop")]
        return _from_parts(spec, parts, normal, classes)
    return _torchvision(name, spec, normal, data_root)


def open_npz(path: Path, choice: str = "", limits: Limits = LIMITS) -> DataSet:
    """Arrays with channels last, of any numeric type, held in memory.

    Either ``images`` with, optionally, ``labels``, ``masks``, ``cases``, ``types`` and ``splits``; or ``x_train`` and
    ``x_test`` with, optionally, ``y_train, y_test, masks_train, masks_test``; or MedMNIST's ``train_images``,
    ``train_labels``, ``val_images`` (which join the training images) and so on, where ``(N, D, H, W)`` are volumes and
    several columns of labels are findings: an image without any is of class 0, others of class 1. Labels are 0 normal and
    1 anomalous; training images without labels are normal. With a ``choice`` the labels are classes, of which that one is normal
    and the only one trained on.
    """
    if choice and not choice.isdecimal():
        raise DataError(f"{path}:{choice}: expected the number of the normal class after the colon, as in {path}:3.")
    return _from_parts(path.stem, _npz_parts(path, path.stem, limits), int(choice) if choice else None, None)


@dataclass(frozen=True)
class _Part:
    """Arrays of one split, before anything is taken as normal."""

    prefix: str
    split: str | None
    images: Array
    classes: Array | None
    masks: Array | None = None
    cases: Array | None = None
    types: Array | None = None
    splits: Array | None = None

    def all_of(self, k: int) -> _Part:
        return _Part(self.prefix, self.split, self.images, np.full(len(self.images), k))


def _npz_parts(path: Path, name: str, limits: Limits = LIMITS) -> list[_Part]:
    try:
        arrays: dict[str, Array] = read_arrays(path, limits.file_bytes, limits.decoded_bytes)
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read as .npz arrays ({error}); write or fetch it again.") from None

    get = arrays.get
    if "images" in arrays:
        extra = [get(key) for key in ("labels", "masks", "cases", "types", "splits")]
        parts = [_Part(name, None, arrays["images"], *extra)]
    else:
        names = [(f"x_{s}", f"y_{s}", f"masks_{s}", s) for s in ("train", "test")]
        names += [(f"{s}_images", f"{s}_labels", f"{s}_masks", s) for s in ("train", "val", "test")]
        parts = [
            _Part(
                f"{name}/{s}",
                "test" if s == "test" else "train",
                _volumes(arrays[x]) if x.endswith("_images") else arrays[x],
                _findings(get(y)) if y.endswith("_labels") else get(y),
                get(m),
            )
            for x, y, m, s in names
            if x in arrays
        ]
    if not parts:
        raise DataError(f"{path}: expected the array images, or x_train and x_test, got {', '.join(arrays) or 'none'}.")
    for part in parts:
        if part.images.ndim < 3:
            raise DataError(
                f"{path}: expected images (N, H, W) or (N, H, W, C), got an array of shape {part.images.shape}."
            )
        for array in (part.classes, part.masks, part.cases, part.types, part.splits):
            if array is not None and (array.shape[:1] != part.images.shape[:1]):
                raise DataError(
                    f"{path}: expected labels, masks and the like for all {len(part.images)} images of "
                    f"{part.prefix}, got an array of shape {array.shape}."
                )
    return parts


def _volumes(images: Array) -> Array:
    """Images of MedMNIST: (N, H, W), (N, H, W, 3) or, of its 3D sets, (N, D, H, W), which get the axis of channels."""
    return images[..., None] if images.ndim == 4 and images.shape[-1] not in (1, 3) else images


def _findings(labels: Array | None) -> Array | None:
    """(N,) or (N, 1) as they are; (N, findings) to 1 where there is any."""
    return (
        labels if labels is None or labels.ndim < 2 or labels.shape[1] == 1 else (labels != 0).any(axis=1).astype(int)
    )


def _medmnist(name: str, choice: str, data_root: Path, limits: Limits) -> DataSet:
    path = data_root / f"{name}.npz"
    if not path.is_file():
        raise DataError(
            f"{name}: expected {path}, which is missing; get it from https://medmnist.com, or name its folder with --data-root."
        )
    if not choice.isdecimal():
        got = f"got {choice!r}" if choice else "got none"
        raise DataError(f"{name}: expected the number of the normal class, as in {name}:0, {got}.")
    data = open_npz(path, choice, limits)
    data.name = f"{name}:{choice}"
    return data


def _from_parts(name: str, parts: Sequence[_Part], normal: int | None, classes: Sequence[str] | None) -> DataSet:
    """Joins the parts, dropping the training images of other classes if one is ``normal``."""
    shapes = {part.images.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise DataError(f"{name}: expected one image size, got {' and '.join(map(str, sorted(shapes)))}.")
    items: list[Item] = []
    images, masks = [], []
    with_masks = any(part.masks is not None for part in parts)
    for part in parts:
        keep = np.arange(len(part.images))
        known = None if part.classes is None else part.classes.reshape(len(keep), -1)[:, 0]
        if known is None and normal is not None:
            raise DataError(f"{name}: expected classes to choose {normal} from, got images of {part.prefix} without.")
        if known is not None:
            present = set(np.unique(known).tolist())
            if normal is None and not present <= {0, 1}:
                raise DataError(
                    f"{name}: expected the labels 0 (normal) and 1 (anomalous), got {len(present)} classes; "
                    "name the normal one after a colon, as in arrays.npz:3."
                )
            if normal is not None and classes is not None and not present <= set(range(len(classes))):
                raise DataError(f"{name}: expected classes 0 to {len(classes) - 1} in {part.prefix}, got others too.")
        if normal is not None and known is not None and part.split == "train":
            keep = np.flatnonzero(known == normal)
            if not len(keep):
                raise DataError(f"{name}: no training image is of class {normal}; choose another.")
        for i in keep.tolist():
            path = f"{part.prefix}/{i:05d}"
            if known is None:
                label, kind = (0 if part.split == "train" else None), None
            elif normal is None:
                label, kind = int(known[i]), None
            else:
                label, kind = int(known[i] != normal), str(known[i]) if classes is None else classes[int(known[i])]
            kind = kind if part.types is None else str(part.types[i])
            split = part.split if part.splits is None else str(part.splits[i]) or None
            items.append(Item(path, path if part.cases is None else str(part.cases[i]), label, kind, split))
        images.append(part.images if len(keep) == len(part.images) else part.images[keep])
        masks += [None] * len(keep) if part.masks is None else [part.masks[i] for i in keep]
    wrong = {item.split for item in items} - {"train", "test", None}
    if wrong:
        raise DataError(f"{name}: expected the splits train and test, got {', '.join(sorted(map(str, wrong)))}.")
    stack = images[0] if len(images) == 1 else np.concatenate(images)
    return check_stack(stack, name, masks if with_masks else None).data_set(name, items)


def _choose(name: str, choice: str) -> int:
    classes = CLASSES[name]
    known = ", ".join(f"{k} {word}" if word != str(k) else word for k, word in enumerate(classes))
    if choice.lower() in classes:
        return classes.index(choice.lower())
    if choice.isdecimal() and int(choice) < len(classes):
        return int(choice)
    near = difflib.get_close_matches(choice.lower(), classes, n=1) if choice.isalpha() else []
    hint = f" Did you mean {name}:{near[0]}?" if near else ""
    got = f"got {choice!r}" if choice else "got none"
    raise DataError(f"{name}: expected the normal class, as in {name}:{classes[3]}, {got}; classes: {known}.{hint}")


def _one_class_files(
    name: str, opener: Folder | Zip, found: Iterable[tuple[str, str, int, str]], normal: int, classes: Sequence[str]
) -> DataSet:
    """``found``: file, split, class and case of each image."""
    items = [
        Item(file, case, int(k != normal), classes[k], split)
        for file, split, k, case in found
        if split == "test" or k == normal
    ]
    if {item.split for item in items} != {"train", "test"}:
        raise DataError(f"{opener.path}: expected training and test images of {name}, got only one of them.")
    return Files(opener, [item.path for item in items]).data_set(name, items)


def _from_classes(name: str, opener: Folder | Zip, normal: int, classes: Sequence[str]) -> DataSet:
    number = {word: k for k, word in enumerate(classes)}
    found = []
    for file in opener.names():
        split, _, rest = file.partition("/")
        word, _, image = rest.partition("/")
        if split in ("train", "test") and word in number and Path(image).suffix.lower() in IMAGE_SUFFIXES:
            found.append((file, split, number[word], file))
    return _one_class_files(name, opener, found, normal, classes)


def _torchvision(name: str, spec: str, normal: int, root: Path) -> DataSet:
    from torchvision import datasets  # the one place that needs it, as it imports Torch

    load: dict[str, Callable[[str], tuple[Any, Any]]] = {
        "mnist": lambda s: _fields(datasets.MNIST(root, train=s == "train", download=True)),
        "fashion_mnist": lambda s: _fields(datasets.FashionMNIST(root, train=s == "train", download=True)),
        "cifar10": lambda s: _fields(datasets.CIFAR10(root, train=s == "train", download=True)),
        "svhn": lambda s: _fields(datasets.SVHN(root, split=s, download=True)),
        "gtsrb": lambda s: (datasets.GTSRB(root, split=s, download=True), None),
    }
    files = {
        "mnist": ("MNIST/raw", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
        "fashion_mnist": ("FashionMNIST/raw", "https://github.com/zalandoresearch/fashion-mnist"),
        "cifar10": ("cifar-10-batches-py", "https://www.cs.toronto.edu/~kriz/cifar.html"),
        "svhn": ("train_32x32.mat and test_32x32.mat", "http://ufldl.stanford.edu/housenumbers/"),
        "gtsrb": ("gtsrb/GTSRB", "https://benchmark.ini.rub.de/gtsrb_dataset.html"),
    }
    try:
        with redirect_stdout(StringIO()):
            halves = [(split, *load[name](split)) for split in ("train", "test")]
    except Exception as error:  # no network, no right to write, a damaged file: torchvision has no error of its own
        where, address = files[name]
        reason = " ".join(str(error).split())[:160].rstrip(".")
        raise DataError(
            f"{spec}: not in {root}, and the download failed ({reason}); put {name}.npz with x_train, y_train, x_test "
            f"and y_test, or torchvision's {where}, from {address}, into that folder or name another with --data-root."
        ) from None
    if name == "gtsrb":
        return _gtsrb(spec, root / "gtsrb", normal)
    parts = [_Part(f"{name}/{split}", split, images, classes) for split, images, classes in halves]
    return _from_parts(spec, parts, normal, CLASSES[name])


def _fields(data: Any) -> tuple[Array, Array]:
    """Images with channels last, and classes, of a torchvision set."""
    images = np.asarray(data.data)
    images = np.moveaxis(images, 1, -1) if type(data).__name__ == "SVHN" else images
    return images, np.asarray(data.labels if hasattr(data, "labels") else data.targets)


def _gtsrb(spec: str, root: Path, normal: int) -> DataSet:
    """The layout that torchvision unpacks. A track of one sign, ``<track>_<frame>.ppm``, is a case."""
    folder = Folder(root)
    found = [
        (file, "train", int(file.split("/")[2]), file.rpartition("_")[0])
        for file in folder.names()
        if re.fullmatch(r"GTSRB/Training/\d+/[^/]+\.ppm", file)
    ]
    for row in csv.DictReader(read_text(root / "GT-final_test.csv").splitlines(), delimiter=";"):
        file = f"GTSRB/Final_Test/Images/{row['Filename']}"
        found.append((file, "test", int(row["ClassId"]), file))
    return _one_class_files(spec, folder, found, normal, CLASSES["gtsrb"])


def _training_names(normal: Iterable[str]) -> set[str]:
    names = sorted(normal)
    random.Random(0).shuffle(names)
    return set(names[: int(_TRAIN_FRACTION * len(names))])


def _elpv(choice: str) -> DataSet:
    if choice not in ("", "all"):
        raise DataError(f"elpv:{choice}: expected elpv, or elpv:all for the doubtful cells too.")
    package = importlib.util.find_spec("elpv_dataset")
    if package is None or package.origin is None:
        raise DataError('elpv: expected the package elpv-dataset, which is missing; pip install "normalcy[demo]".')
    root = Path(package.origin).parent / "data"
    # a line: images/cell0001.png  1.0  mono
    rows = [line.split() for line in read_text(root / "labels.csv").splitlines()]
    kinds = {"0": "good", "1": "defective"}
    if choice == "all":
        kinds |= {"0.33": "probably good", "0.67": "probably defective"}
    kind_of = {file: kinds.get(f"{float(probability):.2g}") for file, probability, _ in rows}
    train = _training_names(file for file, kind in kind_of.items() if kind == "good")
    items = [
        Item(file, file, int(kind != "good"), kind, "train" if file in train else "test")
        for file, kind in sorted(kind_of.items())
        if kind is not None
    ]
    return Files(Folder(root), [item.path for item in items]).data_set("elpv" + (choice and ":all"), items)


def _magnetic_tile(choice: str, data_root: Path) -> DataSet:
    if choice:
        raise DataError(f"magnetic_tile:{choice}: expected magnetic_tile alone; it has no classes to choose from.")
    archive, folder = data_root / "magnetic_tile.zip", data_root / "magnetic_tile"
    if not archive.is_file() and not folder.is_dir():
        raise DataError(
            f"magnetic_tile: expected {archive} or the folder {folder} with MT_Free/Imgs and so on, found neither; get "
            "it from https://github.com/abin24/Magnetic-tile-defect-datasets. or name its folder with --data-root."
        )
    opener = Zip(archive) if archive.is_file() else Folder(folder)
    names = opener.names()
    kind_of = {
        file: found[1].lower() for file in names if (found := re.search(r"(?:^|/)MT_(\w+)/Imgs/[^/]+\.jpg$", file))
    }
    if "free" not in kind_of.values():
        raise DataError(f"{opener.path}: expected images MT_Free/Imgs/*.jpg, got none; fetch the set again.")
    train = _training_names(file for file, kind in kind_of.items() if kind == "free")
    items = [
        Item(file, file, int(kind != "free"), "good" if kind == "free" else kind, "train" if file in train else "test")
        for file, kind in sorted(kind_of.items())
    ]
    there = set(names)
    masks = [mask if (mask := item.path[:-4] + ".png") in there else None for item in items]
    return Files(opener, [item.path for item in items], masks).data_set("magnetic_tile", items)
