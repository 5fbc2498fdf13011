"""Which images a fit can use, and at which size: decided by the majority of all of them, before any training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from normalcy.arrays import Array, Indices
from normalcy.data.dataset import DataSet, Failure
from normalcy.data.kinds import Kind, in_threads, kind_of, refuse_mixed_kinds, same_values
from normalcy.errors import DataError
from normalcy.preprocessing.augment import Augment
from normalcy.preprocessing.decode import free_memory
from normalcy.preprocessing.pipeline import Fitted, Preprocess
from normalcy.preprocessing.views import Slices

LARGEST = {2: 256, 3: 64}
"""Spatial axes -> the largest side at which a method sees images as they are, unless told otherwise."""
_LISTED = 10


@dataclass(frozen=True)
class Plan:
    """What a fit will do with the images of a set."""

    kinds: tuple[Kind | None, ...]
    """Of each image; None where it cannot be read."""
    failed: tuple[Failure, ...]
    """Images that cannot be used, in the order of the set."""
    kept: Indices
    """Positions of the others."""
    preprocess: Preprocess
    """With the size at which images are seen, not yet fitted."""
    values: str
    channels: int
    spatial_dims: int

    def constants(self, positions: Sequence[int] | Indices) -> Fitted:
        """Constants of the images at these positions: the ones that a method is trained on."""
        chosen = [kind for i in positions if (kind := self.kinds[i]) is not None]
        limits = self.preprocess.window_limits
        low, high = limits or (min(kind.low for kind in chosen), max(kind.high for kind in chosen))
        return Fitted(self.values, self.channels, self.spatial_dims, low, high)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """(C, *spatial) after preprocessing; None where images differ in it."""
        sizes = {self.preprocess.size_of(kind.size) for i in self.kept if (kind := self.kinds[i]) is not None}
        return (self.channels, *sizes.pop()) if len(sizes) == 1 else None


def survey(
    data: DataSet, on_progress: Callable[[int, int], None] | None = None
) -> tuple[list[Kind | str], dict[int, Array]]:
    """The kind of each image, or why it cannot be read; and the images themselves, as far as an eighth of the free memory
    goes, so that they need not be read again."""
    kept: dict[int, Array] = {}
    room = [free_memory() // 8]

    def look(i: int) -> Kind | str:
        try:
            image = data.read(i)
            kind = kind_of(image, data.space(i), data.imaged(i, image))
        except DataError as error:
            return str(error)
        if image.nbytes <= room[0]:
            room[0] -= image.nbytes
            kept[i] = image
        return kind

    found = []
    for one in in_threads(look, len(data)):
        found.append(one)
        if on_progress is not None:
            on_progress(len(found), len(data))
    return found, kept


def plan(
    data: DataSet,
    kinds: Sequence[Kind | str],
    preprocess: Preprocess,
    augment: Augment,
    *,
    tiled: bool = False,
    slices: Slices = "none",
    max_skipped: float = 0.1,
) -> Plan:
    """What a fit on ``data`` does, from what :func:`survey` says of its images.

    The kind of values, channels and axes of most images decides; the others are skipped. The size: as given, else the
    images' own where at least 1 - ``max_skipped`` of them (and more than half) share one of at most 256 (64 for
    volumes), and the others are skipped; else 256 (64).

    Raises DataError, with a list, where images are of several modalities or units, where none is usable, and where more
    than ``max_skipped`` of them would be skipped.
    """
    reasons: dict[int, str] = {i: one for i, one in enumerate(kinds) if isinstance(one, str)}
    known: list[Kind | None] = [None if isinstance(one, str) else one for one in kinds]
    refuse_mixed_kinds(
        data.name, ((data.items[i].path, one.modality, one.unit) for i, one in enumerate(known) if one is not None)
    )
    groups: dict[tuple[str, int, int], list[int]] = {}
    for i, kind in enumerate(known):
        if kind is None:
            continue
        try:
            preprocess.size_of(kind.size)
            key = kind.values, preprocess.channels_after(kind.channels), len(kind.size)
        except DataError as error:
            reasons[i] = str(error)
        else:
            groups.setdefault(key, []).append(i)
    if not groups:
        first = min(reasons, default=0)
        reason = f": {data.items[first].path}: {reasons[first]}" if reasons else ""
        raise DataError(f"None of the {len(data)} training images of {data.name} can be used{reason}")
    most = max(groups, key=lambda key: len(groups[key]))
    usable = groups[most]
    low, high = (f(getattr(known[i], end) for i in usable) for f, end in ((min, "low"), (max, "high")))
    for key, members in groups.items():
        for i in members if key != most else ():
            kind = known[i]
            assert kind is not None
            if key[1:] == most[1:] and same_values(most[0], low, high, key[0], kind.whole):
                usable.append(i)
            else:
                reasons[i] = (
                    f"{_described(*key)}, while {len(groups[most])} of {len(data)} training images are "
                    f"{_described(*most)}; convert it (steps grey, rgb and drop_alpha convert channels) or leave it out"
                )
    usable.sort()
    shapes = {i: _seen(preprocess, augment, kind.size, slices) for i in usable if (kind := known[i]) is not None}
    if (
        preprocess.size is None
        and not tiled
        and not {"resize", "crop"} & {s.name for s in (*preprocess.plan, *augment.plan)}
    ):
        (common, count), *others = Counter(shapes.values()).most_common()
        side = 256 if slices != "none" else LARGEST[most[2]]
        alike = len(common) == 1 and max(max(size) for size in common) <= side
        if alike and 2 * count > len(usable) and count >= (1 - max_skipped) * len(usable) - 1e-9:
            for i in usable if others else ():
                if shapes[i] != common:
                    reasons[i] = (
                        f"{_sizes(shapes[i])}, while {count} of {len(usable)} images are {_sizes(common)}; "
                        "size=N resizes all images"
                    )
        else:
            preprocess = replace(preprocess, size=side)
    kept = np.array([i for i in usable if i not in reasons], dtype=np.intp)
    failed = tuple(Failure(data.items[i].path, reasons[i]) for i in sorted(reasons))
    if len(failed) > max_skipped * len(data) + 1e-9:
        listed = "; ".join(f"{one.path}: {one.reason}" for one in failed[:_LISTED]) + "; ..." * (len(failed) > _LISTED)
        raise DataError(
            f"{data.name}: {len(failed)} of {len(data)} training images cannot be used, more than the fraction "
            f"max_skipped={max_skipped:g}: {listed}. Repair or leave them out, or allow it with max_skipped="
            f"{np.ceil(100 * len(failed) / len(data)) / 100:g}."
        )
    return Plan(tuple(known), failed, kept, preprocess, *most)


# -- private ---------------------------------------------------------------------------------------------------------


def _seen(
    preprocess: Preprocess, augment: Augment, size: tuple[int, ...], slices: Slices
) -> frozenset[tuple[int, ...]]:
    """Sizes of what a method would see of an image without further resizing: several of slices along several axes."""
    after = preprocess.size_of(size)
    if slices == "none":
        return frozenset([after])
    axes = {"zyx".index(name) for name in slices}
    return frozenset(tuple(n for k, n in enumerate(after) if k != axis) for axis in axes)


def _described(values: str, channels: int, spatial_dims: int) -> str:
    return f"{values} images ({channels}, {'H, W' if spatial_dims == 2 else 'D, H, W'})"


def _sizes(sizes: frozenset[tuple[int, ...]]) -> str:
    return " and ".join(" x ".join(map(str, size)) for size in sorted(sizes))
