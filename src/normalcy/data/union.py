"""Several data sets as one, each a class of normal images: for one model of several classes (UniAD, You et al. 2022)."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from normalcy.data.dataset import DataSet, Item, Origin
from normalcy.errors import DataError


def union(parts: Sequence[DataSet]) -> DataSet:
    """The images of all ``parts``, in their order, as one data set whose ``classes`` are the parts.

    Paths and cases start with the class: the folder of the part below the folder of all (``bottle``), or the name of a set that
    is no folder. Labels, types, splits and masks stay. Where some parts have splits, the images of a part without splits and
    without anomalies are training images.

    Raises DataError for fewer than two parts, for two of the same name, for one inside another, and where a part has anomalous
    images without splits while others have splits.
    """
    if len(parts) < 2:
        raise DataError(f"union expects at least two data sets, got {len(parts)}.")
    folders = [Path(os.path.abspath(part.root)) for part in parts if part.root is not None]
    beside = len(folders) == len(parts) and len(set(folders)) > 1 and len({folder.drive for folder in folders}) == 1
    root = Path(os.path.commonpath(folders)) if beside else None
    names = [
        re.sub(r"[^\w.-]+", "-", part.name) if root is None else folder.relative_to(root).as_posix()
        for part, folder in zip(parts, folders if root else [Path()] * len(parts))
    ]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"union: two data sets are called {name}; give each class a folder or name of its own.")
        if name == "." or any(other.startswith(f"{name}/") for other in names):
            raise DataError(
                f"union: the folder {name} holds another one of the data sets; name folders beside each other."
            )
    if any(part.scheme != parts[0].scheme for part in parts):
        raise DataError("union: the data sets are cut or computed in different ways; give all the same options.")
    ends = list(accumulate(map(len, parts)))
    splits = any(item.split for part in parts for item in part.items)
    items: list[Item] = []
    for name, part in zip(names, parts):
        one = _as_training(part) if splits else part
        items += [replace(item, path=f"{name}/{item.path}", case=f"{name}/{item.case}") for item in one.items]

    def of_part(read: Callable[[DataSet, int], Any]) -> Callable[[int], Any]:
        def whole(i: int) -> Any:
            k = bisect_right(ends, i)
            return read(parts[k], i - (ends[k - 1] if k else 0))

        return whole

    layouts = [(name, part.origin.layout) for name, part in zip(names, parts)]
    notes = tuple(f"{name}: {note}" for name, part in zip(names, parts) for note in part.origin.notes)
    ignored = {
        f"{name}/{file}": part.reasons.get(file, "") for name, part in zip(names, parts) for file in part.ignored
    }
    return DataSet(
        " + ".join(names),
        items,
        of_part(DataSet.read),
        of_part(DataSet.mask) if any(part.has_masks for part in parts) else None,
        root,
        size=of_part(DataSet.size) if all(part.size_is_cheap for part in parts) else None,
        stamp=of_part(DataSet.stamp),
        ignored=ignored if any(ignored.values()) else list(ignored),
        space=of_part(DataSet.space),
        scheme=parts[0].scheme,
        classes=names,
        origin=Origin("; ".join(f"{name}: {layout}" for name, layout in layouts if layout), notes),
        regions=of_part(DataSet.regions),
    )


def class_of(path: str, classes: Sequence[str]) -> str:
    """The class that a path of a union belongs to; "" for none.

    >>> class_of("bottle/test/good/000.png", ["bottle", "cable"])
    'bottle'
    """
    return next((name for name in classes if path.startswith(f"{name}/")), "")


def _as_training(part: DataSet) -> DataSet:
    """A part beside others with splits: as it is where it has splits, else training images."""
    if any(item.split for item in part.items):
        return part
    if any(item.label == 1 for item in part.items):
        raise DataError(
            f"union: {part.name} has anomalous images but no split, and other data sets have one; give it train and test images."
        )
    return part.with_items([replace(item, split="train") for item in part.items])
