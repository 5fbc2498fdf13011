"""Splits that keep the images of a case (a patient, a part) together. The same input and seed give the same split,
whatever the order of the images."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from normalcy.arrays import Indices
from normalcy.data.dataset import SPLITS, DataSet
from normalcy.errors import DataError, NormalcyWarning

__all__ = ["folds", "hold_out", "images_to_score", "normal_training_images", "train_test", "with_split"]


def hold_out(cases: Sequence[str], fraction: float = 0.1, minimum: int = 20, seed: int = 0) -> tuple[Indices, Indices]:
    """``(rest, carved)``: whole cases of about ``fraction`` of the images, at least ``minimum`` of them, taken out.

    Never more than half of the images, and where that leaves fewer than ``minimum``, a warning says so: with n
    calibration images no p-value can be smaller than 1 / (n + 1). Both results are sorted.

    >>> rest, carved = hold_out([f"patient {i // 2}" for i in range(100)], minimum=10)
    >>> len(rest), len(carved), carved[:4]
    (90, 10, array([ 2,  3, 42, 43]))
    """
    if not 0 < fraction < 1:
        raise DataError(f"expected a fraction between 0 and 1 for the images to set aside, got {fraction}.")
    count = len(cases)
    wanted = min(max(round(fraction * count), minimum), count // 2)
    carved = _draw(cases, wanted, count // 2, seed)
    if len(carved) < minimum:
        warnings.warn(
            f"only {len(carved)} of {count} normal images could be set aside for calibration, fewer than {minimum}: "
            "p-values and thresholds will be coarse; add normal images (or cases, if there are few).",
            NormalcyWarning,
            stacklevel=2,
        )
    return np.setdiff1d(np.arange(count), carved), carved


def train_test(data: DataSet, test_fraction: float = 0.2, seed: int = 0) -> DataSet:
    """The same images with a split: for labelled data that come without one.

    A case with an anomalous image goes to the test set whole; of the images of the other cases about
    ``test_fraction`` do, whole cases again.
    """
    if not 0 < test_fraction < 1:
        raise DataError(f"{data.name}: expected a test fraction between 0 and 1, got {test_fraction}.")
    if any(item.split is not None for item in data.items):
        raise DataError(f"{data.name}: expected images without a split, got some with one; use it or remove it.")
    unknown = [item.path for item in data.items if item.label is None]
    if unknown:
        raise DataError(f"{data.name}: expected a label for every image, got {len(unknown)} without, as {unknown[0]}.")
    anomalous = {item.case for item in data.items if item.label == 1}
    normal = np.array([i for i, item in enumerate(data.items) if item.case not in anomalous], dtype=np.intp)
    cases = [data.items[i].case for i in normal]
    if len(set(cases)) < 2:
        raise DataError(
            f"{data.name}: expected at least two cases without an anomalous image, one to train on and one to test, "
            f"got {len(set(cases))}; add normal images."
        )
    wanted = max(round(test_fraction * len(normal)), 1)
    test = set(normal[_draw(cases, wanted, len(normal) - 1, seed)].tolist())
    return data.with_items(
        [
            replace(item, split="test" if item.case in anomalous or i in test else "train")
            for i, item in enumerate(data.items)
        ]
    )


def folds(cases: Sequence[str], count: int, seed: int = 0) -> list[Indices]:
    """Whole cases assigned in random order to ``count`` parts of about equal numbers of images, each sorted.

    >>> [part.tolist() for part in folds(["a", "a", "b", "c", "c", "d"], 3)]
    [[3, 4], [0, 1], [2, 5]]
    """
    sizes = Counter(cases)
    if len(sizes) < count:
        raise DataError(f"expected at least {count} images (or cases, where they have several), got {len(sizes)}.")
    names = sorted(sizes)
    random.Random(seed).shuffle(names)
    part_of: dict[str, int] = {}
    filled = [0] * count
    for name in names:
        part_of[name] = filled.index(min(filled))
        filled[part_of[name]] += sizes[name]
    return [np.array([i for i, case in enumerate(cases) if part_of[case] == k], dtype=np.intp) for k in range(count)]


def _draw(cases: Sequence[str], wanted: int, most: int, seed: int) -> Indices:
    """Sorted indices of whole cases in random order until there are ``wanted``, passing over any that would make them
    more than ``most``."""
    sizes = Counter(cases)
    names = sorted(sizes)
    random.Random(seed).shuffle(names)
    chosen: set[str] = set()
    count = 0
    for name in names:
        if count >= wanted:
            break
        if count + sizes[name] <= most:
            chosen.add(name)
            count += sizes[name]
    return np.array([i for i, case in enumerate(cases) if case in chosen], dtype=np.intp)


def with_split(data: DataSet, seed: int = 0) -> DataSet:
    """The data set as it is, or with a train and a test split where it has anomalous images but no split."""
    if any(item.label == 1 for item in data.items) and not any(item.split for item in data.items):
        return train_test(data, seed=seed)
    return data


def normal_training_images(data: DataSet) -> DataSet:
    """What a method may learn from: images that are not labelled anomalous, of the training split where there is one."""
    split = "train" if any(item.split for item in data.items) else None
    chosen = [i for i, item in enumerate(data.items) if item.label != 1 and item.split == split]
    if not chosen:
        raise DataError(f"{data.name} has no normal training images: a method learns from normal images alone.")
    return data.subset(chosen)


def images_to_score(data: DataSet, split: str | None, seed: int = 0) -> tuple[DataSet, str | None]:
    """The images of one split; without a choice the test split where there is one, else all. ``split`` "all" is all.

    ``split`` "train" or "test" of labelled data that come without splits are those that a fit with this ``seed`` makes.
    """
    if split in SPLITS:
        data = with_split(data, seed)
    has_splits = any(item.split for item in data.items)
    if split == "all" or (split is None and not has_splits):
        return data, None
    chosen = split or "test"
    part = data.select(split=chosen)
    if len(part) == 0:
        known = sorted({item.split for item in data.items if item.split}) or ["none"]
        raise DataError(
            f"{data.name} has no images of split {chosen!r}. Available: {', '.join(known)}; or use --split all."
        )
    return part, chosen
