"""Problems of a data set, before any training: ``normalcy check DATA``."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from normalcy.data.dataset import DataSet, Item
from normalcy.data.kinds import Kind, in_threads, kind_of, refuse_mixed_kinds, same_values, values_of
from normalcy.errors import DataError

__all__ = ["Fault", "check"]

CALIBRATION_MINIMUM = 20


@dataclass(frozen=True, slots=True)
class Fault:
    path: str  # of the image, as in the data set, or the data set's name
    problem: str
    severity: Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is kept of an image after reading it."""

    faults: tuple[Fault, ...]
    kind: Kind | str  # or why it cannot be used
    channels: int = 0
    dimensions: int = 0
    dtype: str = ""
    values: str = ""
    modality: str | None = None
    unit: str | None = None
    digest: bytes = b""  # empty: unreadable
    marked: float | None = None  # fraction of the pixels of an anomalous image that its mask marks
    mask: Literal["there", "missing", "another size", "unreadable", ""] = ""  # of an anomalous image


@dataclass(frozen=True, slots=True)
class Masks:
    """Masks of the anomalous images of a data set."""

    there: int
    missing: int
    another_size: int
    unreadable: int


class Survey(NamedTuple):
    """What reading all images of a data set says."""

    faults: list[Fault]
    kinds: list[Kind | str]
    """Of each image its kind, or why it cannot be used."""
    masks: Masks


def counts(data: DataSet) -> dict[str, dict[str, int]]:
    """Split ("train", "test", "" for none) -> "normal", type of anomaly or "unlabelled" -> number of images.

    >>> from normalcy.data.dataset import Item
    >>> counts(DataSet("x", [Item("a", "a", 0, "good", "train"), Item("b", "b", 1, "dent", "test")], lambda i: None))
    {'train': {'normal': 1}, 'test': {'dent': 1}}
    """
    found: dict[str, dict[str, int]] = {}
    for split in ("train", "test", None):
        items = [item for item in data.items if item.split == split]
        words = Counter(_kind_in_words(item) for item in items)
        if words:
            found[split or ""] = dict(sorted(words.items(), key=lambda one: (one[0] != "normal", one[0])))
    return found


def check(data: DataSet, masks: bool = True, on_progress: Callable[[int, int], None] | None = None) -> list[Fault]:
    """Reads every image, and mask unless told otherwise, once, in threads. ``on_progress`` gets (done, total).

    Errors: cannot be read; NaN or infinite values; another number of channels, kind of values (see
    :func:`~normalcy.data.kinds.same_values`), number of axes, modality or unit of values than most images; anomalous in
    the training split; one case, or the same pixels, in both splits; a mask that cannot be read, is not of its image's
    size, or marks something in a normal image.
    Warnings: constant; the same pixels as another image of its split; an anomalous image whose mask is missing or
    empty; masks that mark most of most anomalous images; a file that is passed over, with the reason; too few normal
    images to set 20 aside for calibration.
    """
    return check_and_survey(data, masks, on_progress)[0]


def check_and_survey(
    data: DataSet, masks: bool = True, on_progress: Callable[[int, int], None] | None = None
) -> Survey:
    """The faults of :func:`check`, the kinds of images, by which a fit chooses its images, and the numbers of masks."""
    masks = masks and data.has_masks
    facts: list[_Facts] = []
    for one in in_threads(lambda i: _facts(data, i, masks), len(data)):
        facts.append(one)
        if on_progress is not None:
            on_progress(len(facts), len(data))
    faults = [fault for one in facts for fault in one.faults]
    faults += _unlike_most(data, facts)
    faults += _duplicates(data, facts)
    faults += _across_splits(data)
    unreadable = "not an image that can be read"
    faults += [Fault(file, f"{data.reasons.get(file, unreadable)}; passed over", "warning") for file in data.ignored]
    faults += _inverted(data, facts)
    normal = sum(item.split != "test" and item.label != 1 for item in data.items)
    if normal < 2 * CALIBRATION_MINIMUM:
        problem = f"{normal} normal training images are too few to set {CALIBRATION_MINIMUM} aside for calibration"
        faults.append(Fault(data.name, problem, "warning"))
    seen = Counter(one.mask for one in facts)
    of_masks = Masks(seen["there"], seen["missing"], seen["another size"], seen["unreadable"])
    return Survey(faults, [one.kind for one in facts], of_masks)


def refuse_mixed(data: DataSet) -> None:
    """Raises DataError, with a list, where images are of several modalities or units of values, which no method may compare.

    From the headers alone. Images of formats that say neither fit all; those that cannot be read are passed over.
    """

    def kind(i: int) -> tuple[str, str | None, str | None]:
        try:
            space = data.space(i)
        except DataError:
            space = None
        return data.items[i].path, None if space is None else space.modality, None if space is None else space.unit

    refuse_mixed_kinds(data.name, in_threads(kind, len(data)))


def _facts(data: DataSet, i: int, masks: bool) -> _Facts:
    item = data.items[i]
    faults: list[Fault] = []

    def error(problem: str) -> None:
        faults.append(Fault(item.path, problem, "error"))

    def warning(problem: str) -> None:
        faults.append(Fault(item.path, problem, "warning"))

    if item.label == 1 and item.split == "train":
        error("anomalous, but in the training split")
    image, marked, unreadable = None, None, ""
    state: Literal["there", "missing", "another size", "unreadable", ""] = ""
    try:
        image = data.read(i)
    except DataError as fault:
        unreadable = str(fault)
        error(str(fault).rpartition(f"{item.path}: ")[2])  # the path is said already
    if image is not None:
        bad = np.count_nonzero(~np.isfinite(image)) if image.dtype.kind == "f" else 0
        if bad:
            error(f"{bad} values are NaN or infinite")
        elif (image == image.flat[0]).all():
            warning(f"constant: every value is {image.flat[0]}")
    if masks:
        try:
            mask = data.mask(i)
        except DataError as fault:
            mask = None
            state = "unreadable" if item.label == 1 else ""
            if image is not None or item.label != 0:  # else the image's own fault again
                error(f"mask: {fault}")
        else:
            marked = float(mask.mean()) if mask is not None and item.label == 1 else None
            if item.label == 1:
                fitting = mask is None or image is None or mask.shape == image.shape[1:]
                state = "missing" if mask is None else "there" if fitting else "another size"
            if mask is None and item.label == 1:
                warning("anomalous, but its mask is missing")
            elif mask is not None and image is not None and mask.shape != image.shape[1:]:
                error(f"mask is {_size(mask.shape)}, the image {_size(image.shape[1:])} (rows x columns)")
            elif mask is not None and item.label == 1 and not mask.any():
                warning("anomalous, but its mask is empty")
            elif mask is not None and item.label == 0 and mask.any():
                error("normal, but its mask marks something")
    if image is None:
        return _Facts(tuple(faults), unreadable, mask=state)
    digest = hashlib.blake2b(repr((image.shape, image.dtype.str)).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    space = data.space(i)
    modality, unit = (None, None) if space is None else (space.modality, space.unit)
    kind: Kind | str
    try:
        kind = kind_of(image, space)
    except DataError as fault:
        kind = str(fault)
    return _Facts(
        tuple(faults),
        kind,
        len(image),
        image.ndim - 1,
        image.dtype.name,
        values_of(image),
        modality,
        unit,
        digest.digest(),
        marked,
        state,
    )


def _unlike_most(data: DataSet, facts: list[_Facts]) -> Iterator[Fault]:
    yield from _other_values(data, facts)
    kinds: list[tuple[str, Callable[[_Facts], Hashable]]] = [
        ("{} channels", lambda one: one.channels),
        ("{} spatial axes", lambda one: one.dimensions),
        ("modality {}", lambda one: f"{one.modality} in {one.unit}" if one.unit else one.modality),
    ]
    for words, kind in kinds:
        counts = Counter(kind(one) for one in facts if one.digest)
        if len(counts) > 1:
            (most, count), *_ = counts.most_common(1)
            for item, one in zip(data.items, facts):
                if one.digest and kind(one) != most:
                    most_have = f"{count} of {counts.total()} images have {words.format(most)}"
                    yield Fault(item.path, f"{words.format(kind(one))}, while {most_have}", "error")


def _inverted(data: DataSet, facts: list[_Facts]) -> Iterator[Fault]:
    marked = [one.marked for one in facts if one.marked]
    most = sum(fraction > 0.5 for fraction in marked)
    if len(marked) >= 3 and 2 * most > len(marked):
        problem = f"the masks of {most} of {len(marked)} anomalous images mark more than half of the pixels: are they inverted?"
        yield Fault(data.name, problem, "warning")


def _other_values(data: DataSet, facts: list[_Facts]) -> Iterator[Fault]:
    counts = Counter(one.values for one in facts if one.digest)
    if len(counts) < 2:
        return
    (most, count), *_ = counts.most_common(1)
    alike = [one.kind for one in facts if one.values == most and isinstance(one.kind, Kind)]
    low, high = min((kind.low for kind in alike), default=0.0), max((kind.high for kind in alike), default=0.0)
    (usual, _), *_ = Counter(one.dtype for one in facts if one.values == most).most_common(1)
    for item, one in zip(data.items, facts):
        whole = isinstance(one.kind, Kind) and one.kind.whole
        if one.digest and not same_values(most, low, high, one.values, whole):
            most_have = (
                f"{count} of {counts.total()} images have {usual if most == '8-bit' else f'{most} values ({usual})'}"
            )
            yield Fault(item.path, f"type {one.dtype}, while {most_have}", "error")


def _duplicates(data: DataSet, facts: list[_Facts]) -> Iterator[Fault]:
    first: dict[bytes, dict[str | None, str]] = {}  # content -> the first image of it in each split
    for item, one in zip(data.items, facts):
        if one.digest:
            first.setdefault(one.digest, {}).setdefault(item.split, item.path)
    for item, one in zip(data.items, facts):
        if not one.digest:
            continue
        same = first[one.digest]
        if item.split == "test" and "train" in same:
            yield Fault(item.path, f"the same pixels as the training image {same['train']}", "error")
        elif same[item.split] != item.path:
            yield Fault(item.path, f"the same pixels as {same[item.split]}", "warning")


def _across_splits(data: DataSet) -> Iterator[Fault]:
    train = {item.case for item in data.items if item.split == "train"}
    reported = set()
    for item in data.items:
        if item.split == "test" and item.case in train and item.case not in reported:
            reported.add(item.case)
            yield Fault(item.path, f"its case {item.case} is in the training split too", "error")


def _kind_in_words(item: Item) -> str:
    if item.label == 0:
        return "normal"
    word = "unlabelled" if item.label is None else "anomalous"
    return item.type or word if item.label == 1 else f"{word} ({item.type})" if item.type else word


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
