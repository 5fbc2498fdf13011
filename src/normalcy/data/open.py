"""From what a user gives (a path, a name, a list, arrays) to a data set."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from normalcy.data import diffusion, elsewhere, folder, named, slides, table, webdataset
from normalcy.data.annotations import open_annotations, open_labelme
from normalcy.data.companions import NO_IMAGE, reason
from normalcy.data.dataset import DataSet, Item, case_of, unnamed
from normalcy.data.dicom import is_dicom, series_in
from normalcy.data.formats import IMAGE_SUFFIXES, LIMITS, VOLUME_SUFFIXES, Limits, is_image
from normalcy.data.samples import is_samples, is_tensor, open_samples, to_numpy
from normalcy.data.stores import Arrays, Files, Folder, Found, check_stack, files_of, find_images, recorded
from normalcy.data.union import union
from normalcy.data.volumes import split_name
from normalcy.errors import DataError
from normalcy.remote.urls import is_url, public

__all__ = ["as_dataset", "open_data", "open_files"]

DEFAULT_DATA_ROOT = Path("~/.cache/normalcy/data")


def open_data(
    spec: Any, data_root: Path | str | None = None, *, limits: Limits = LIMITS, as_normal: bool = False
) -> DataSet:
    """The data set that a path or a name stands for; of any other object what :func:`as_dataset` makes of it.

    =============================  ====================================================================================
    a folder                       one of the layouts of :mod:`normalcy.data.layouts` (MVTec AD, Folder, VisA ...), or
                                   images beside annotations; any other is searched for images of unknown label
    an image                       a set of one
    ``.csv``, ``.parquet``         a table, see :func:`~normalcy.data.table.open_table`
    ``.json``                      annotations of COCO, LabelMe or Datumaro; ``labelme:FOLDER`` for one file per image,
                                   see :mod:`normalcy.data.annotations`
    ``.npz``, ``.npz:3``           arrays, see :func:`~normalcy.data.named.open_npz`; with a class taken as normal
    ``mnist:3``, ``cifar10:cat``   a named set with a class taken as normal, see :mod:`normalcy.data.named`
    ``elpv``, ``magnetic_tile``    a named set of defects
    ``mvtec:bottle``, ``bmad:..``  a category of a published set, see :mod:`normalcy.data.published`
    ``slides:FOLDER,tile=256``     tiles of whole-slide images, see :mod:`normalcy.data.slides`
    ``diffusion:DATA``             4D volumes with b-values as attenuations, see :mod:`normalcy.data.diffusion`
    ``a,b``                        several of these, each a class of normal images, see :mod:`normalcy.data.union`
    ``a-{00..12}.tar``             tars as of WebDataset, with braces and patterns, see :mod:`normalcy.data.webdataset`
    ``s3://bucket/parts``          any of these in a store, see :mod:`normalcy.data.elsewhere`
    =============================  ====================================================================================

    Named sets are looked for in ``data_root`` (default ``~/.cache/normalcy/data``) and downloaded into it if missing.
    ``limits`` holds for images, tables and arrays in files; a larger one reads larger files. A folder that no layout explains
    although names in it say that some images are anomalous, or masks, is refused, unless ``as_normal``: its images are then of
    unknown label, which a fit takes as normal. What was understood is in ``DataSet.origin``.
    """
    if not isinstance(spec, str | Path):
        return as_dataset(spec)
    data = _open(spec, data_root, limits, as_normal)
    if data.origin.doubt and not as_normal:
        raise DataError(data.origin.doubt)
    return data


def _open(spec: str | Path, data_root: Path | str | None, limits: Limits, as_normal: bool) -> DataSet:
    text, root = str(spec), Path(data_root or DEFAULT_DATA_ROOT).expanduser()
    if text.startswith("slides:"):
        if is_url(text.removeprefix("slides:")):
            raise DataError(
                f"{public(text)}: slides are read in parts by a library of their own; copy them to this machine."
            )
        return slides.open_slides(text.removeprefix("slides:"))
    if text.startswith("labelme:"):
        if is_url(inner := text.removeprefix("labelme:")):
            return elsewhere.open_url(
                inner, limits, lambda local: _open(f"labelme:{local}", data_root, limits, as_normal)
            )
        return open_labelme(Path(text.removeprefix("labelme:")).expanduser(), limits)
    if text.startswith("diffusion:"):
        source, *options = text.removeprefix("diffusion:").split(",")
        return diffusion.open_diffusion(open_data(source, data_root, limits=limits, as_normal=as_normal), options)
    if is_url(text):
        return elsewhere.open_url(text, limits, lambda local: _open(local, data_root, limits, as_normal))
    if webdataset.is_tars(text):
        return webdataset.open_tars(webdataset.local_tars(text), limits)
    path = Path(text).expanduser()
    if text and not _exists(path) and _exists(Path(split_name(str(path))[0])):
        return open_files([path], limits)  # a part of a volume
    if text and _exists(path):
        if path.is_dir():
            return folder.open_folder(path, limits)
        suffix = path.suffix.lower()
        if suffix in table.TABLE_SUFFIXES:
            return table.open_table(path, limits)
        if suffix == ".npz":
            return named.open_npz(path, limits=limits)
        if suffix == ".json":
            return open_annotations(path, limits)
        if is_image(path.name) or is_dicom(Folder(path.parent).head(path.name)):
            return open_files([path], limits)
        below = Folder(path.parent)
        if (why := reason(path.name, below.head, below.has)) != NO_IMAGE:
            raise DataError(f"{path}: is {why}.")
        raise DataError(
            f"{path}: expected a folder, an image ({' '.join(sorted((*IMAGE_SUFFIXES, *VOLUME_SUFFIXES)))}), a table "
            f"({' '.join(sorted(table.TABLE_SUFFIXES))}) or .npz, got a file of another kind."
        )
    if len(several := _several(text)) > 1:
        parts = [open_data(one, data_root, limits=limits, as_normal=as_normal) for one in several]
        return union(parts)
    name, colon, choice = text.rpartition(":") if ":" in text else (text, "", "")
    if colon and name.lower().endswith(".npz") and _exists(Path(name)):
        return named.open_npz(Path(name), choice, limits)
    if isinstance(spec, str) and named.is_named(name):
        return named.open_named(name, choice, root, limits)
    known = {**{key: key for key in named.NAMED}, **{str(p): str(p) for p in _siblings(path)}}
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.75)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise DataError(
        f"{public(text)!r} is neither a file or folder nor a named data set; named sets are {', '.join(named.USAGE)}.{hint}"
    )


def _several(text: str) -> list[str]:
    """The sources in ``text``, separated by commas; options (``size=512``) belong to the source before them.

    >>> _several("mvtec:bottle, real_iad:phone,size=512,view=C1,other")
    ['mvtec:bottle', 'real_iad:phone,size=512,view=C1', 'other']
    """
    sources: list[str] = []
    for part in map(str.strip, text.split(",")):
        if "=" in part and sources:
            sources[-1] += f",{part}"
        else:
            sources.append(part)
    return sources


def open_recorded(spec: str, items: Sequence[Item], base: Path) -> DataSet | None:
    """The images of these items at the place that ``spec`` names, relative to ``base``; None where there are none of them.

    For names that a file gives, which may come from elsewhere: nothing is fetched, no folder is walked, and nothing is opened
    but the images themselves (of a DICOM series also what lies beside it), once all of them are there as regular files.
    Masks are not looked for.
    """
    kind, _, rest = spec.partition(":")
    if is_url(spec) or webdataset.is_tars(spec):
        return None
    if kind == "diffusion":
        source, *options = rest.split(",")
        found = open_recorded(source, items, base)
        return None if found is None else _the_same(diffusion.open_diffusion(found, options), items)
    if kind == "slides":
        source, *options = rest.split(",")
        place = base / Path(source).expanduser()
        root = place.parent if place.is_file() else place
        names = list(dict.fromkeys(item.path.rpartition("/")[0] for item in items))
        if not all(_is(root / name, Path.is_file) for name in names):
            return None
        return _the_same(slides.open_files([root / name for name in names], names, options), items)
    if len(_several(spec)) > 1 and not _exists(base / spec):
        return None  # a union: its parts may lie anywhere
    if kind in named.LOCAL and not _exists(base / spec):
        return _the_same(named.open_named(kind, rest, DEFAULT_DATA_ROOT.expanduser()), items)
    place = base / Path(spec).expanduser()
    arrays, _, choice = spec.rpartition(":") if spec.rpartition(":")[0].endswith(".npz") else (spec, "", "")
    if arrays.endswith(".npz"):
        place = base / Path(arrays).expanduser()
        return _the_same(named.open_npz(place, choice), items) if _is(place, Path.is_file) else None
    if not (_is(place, Path.is_dir) or _is(place, Path.is_file)):
        return None
    folder = Folder(place if place.is_dir() else place.parent, Limits(entries=_MOST_BESIDE))
    files = recorded(folder, [item.path for item in items])
    return None if files is None else Files(folder, files).data_set(place.stem, items)


def open_files(paths: Sequence[str | Path], limits: Limits = LIMITS) -> DataSet:
    """Image files, in the order given; folders among them are searched. All are of unknown label."""
    files: list[Path] = []
    for given in paths:
        if is_url(str(given)):
            raise DataError(f"{public(str(given))}: a URL is given alone; name one folder, table or pattern.")
        path = Path(os.path.abspath(Path(given).expanduser()))
        if path.is_dir():
            below = Folder(path, limits)
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
    place = {name: k for k, name in enumerate(names)}
    if len(place) < len(names):
        twice = next(name for k, name in enumerate(names) if place[name] != k)
        raise DataError(f"{root / twice}: given more than once; name each image once.")
    folder = Folder(root, limits)
    parts = {
        name: files_of(folder, name) for name in names if split_name(name)[1] and not is_image(split_name(name)[0])
    }
    series = [name for name in names if not is_image(split_name(name)[0]) and name not in parts]
    found: list[Found] = [
        (name, case_of(name), name) for name in names if name in parts or is_image(split_name(name)[0])
    ]
    found += series_in(series, folder.bytes, root.name) if series else []
    found.sort(key=lambda one: place[one[2] if isinstance(one[2], str) else one[2][0]])
    images = [parts.get(name, image) if isinstance(image, str) else image for name, _, image in found]
    return Files(folder, images).data_set(root.name, [Item(*one[:2]) for one in found])


def as_dataset(images: Any, labels: Any = None, masks: Any = None) -> DataSet:
    """Whatever holds images, as a data set.

    A data set itself; a list of data sets (:func:`~normalcy.data.union.union`); a path or name (:func:`open_data`); a list of
    paths; NumPy arrays with channels last, ``(N, H, W)``, ``(N, H, W, C)`` or volumes ``(N, D, H, W, C)``; Torch tensors with
    channels first, ``(N, C, H, W)`` or ``(N, C, D, H, W)``; a list of arrays ``(H, W)`` or ``(H, W, C)``, or of tensors ``(C, H,
    W)``, of any sizes; samples of ``torch.utils.data``, MONAI or Hugging Face ``datasets``, see
    :func:`~normalcy.data.samples.open_samples`.
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
    elif isinstance(images, np.ndarray) or is_tensor(images):
        data = _from_stack(images)
    elif is_samples(images):
        data = open_samples(images, labelled=labels is None)
    elif isinstance(images, list | tuple) and images:
        data = _from_list(images)
    else:
        raise DataError(
            "expected images as a data set, a path or name, a list of paths, a NumPy array (N, H, W) or (N, H, W, C), "
            f"a Torch tensor (N, C, H, W), a list of arrays or a data set of samples, got {_describe(images)}."
        )
    if labels is not None:
        values = [int(v) if v in (0, 1) else v for v in to_numpy(labels).ravel().tolist()]
        if len(values) != len(data) or not set(values) <= {0, 1, None}:
            raise DataError(
                f"labels: expected {len(data)} of 0 (normal), 1 (anomalous) or None, one for each image, "
                f"got {len(values)} with the values {', '.join(sorted(set(map(str, values)))[:5])}."
            )
        data = data.with_items([replace(item, label=value) for item, value in zip(data.items, values)])
    if masks is not None:
        if len(masks) != len(data):
            raise DataError(f"masks: expected {len(data)}, one for each image, got {len(masks)}.")
        given = Arrays((), to_numpy(masks) if is_tensor(masks) else masks)
        # masks are in the order of this view, so what reads them must count in its positions
        data = DataSet(
            data.name, data.items, data.read, given.mask, data.root, size=data.size, stamp=data.stamp, space=data.space
        )
    return data


def _from_stack(images: Any) -> DataSet:
    if not is_tensor(images):
        return check_stack(images, "images").data_set("images", unnamed("images", len(images)))
    if images.ndim not in (4, 5) or not len(images):
        shape = tuple(images.shape)
        raise DataError(f"expected a tensor (N, C, H, W) or (N, C, D, H, W), got shape {shape}; add the missing axis.")
    if images.shape[-1] in (1, 3, 4) and images.shape[1] not in (1, 3, 4):
        order = "0, 3, 1, 2" if images.ndim == 4 else "0, 4, 1, 2, 3"
        raise DataError(
            f"expected a tensor with channels first, (N, C, H, W) or (N, C, D, H, W), got shape {tuple(images.shape)}, which "
            f"looks like channels last; give images.permute({order}), or a NumPy array."
        )
    return Arrays(to_numpy(images), first=True).data_set("images", unnamed("images", len(images)))


def _from_list(images: Sequence[Any]) -> DataSet:
    if all(isinstance(image, str | Path) for image in images):
        if len(images) == 1 and (is_url(str(images[0])) or not _exists(Path(images[0]))):
            return open_data(images[0])  # a name such as mnist:3
        return open_files(images)
    if all(isinstance(image, DataSet) for image in images):
        return union(images)
    if all(isinstance(image, np.ndarray) for image in images) or all(is_tensor(image) for image in images):
        tensor = is_tensor(images[0])
        axes = ("(C, H, W)", (3, 4)) if tensor else ("(H, W) or (H, W, C)", (2, 3, 4))
        wrong = next((image for image in images if image.ndim not in axes[1]), None)
        if wrong is not None:
            raise DataError(f"expected a list of images {axes[0]}, got one of shape {tuple(wrong.shape)} in it.")
        arrays = Arrays([to_numpy(image) for image in images], first=tensor)
        return arrays.data_set("images", unnamed("images", len(images)))
    kinds = ", ".join(sorted({type(image).__name__ for image in images}))
    raise DataError(f"expected a list of paths or a list of arrays, got a list of {kinds}.")


def _describe(value: Any) -> str:
    return f"an empty {type(value).__name__}" if isinstance(value, list | tuple) else f"a {type(value).__name__}"


_MOST_BESIDE = 100_000
"""Files of a folder with DICOM series, for :func:`open_recorded`."""


def _the_same(data: DataSet, items: Sequence[Item]) -> DataSet | None:
    """The images with the paths of these items, as these items; None where one is missing."""
    places = {item.path: i for i, item in enumerate(data.items)}
    chosen = [places[item.path] for item in items if item.path in places]
    return data.subset(chosen).with_items(items) if len(chosen) == len(items) else None


def _is(path: Path, kind: Callable[[Path], bool]) -> bool:
    try:
        return kind(path)
    except (OSError, ValueError):  # a name too long or with a null byte
        return False


def _exists(path: Path) -> bool:
    return _is(path, Path.exists)


def _siblings(path: Path) -> list[Path]:
    try:
        return list(path.parent.iterdir())
    except (OSError, ValueError):
        return []
