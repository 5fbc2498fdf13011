"""Folders of images: one of the layouts of :mod:`normalcy.data.layouts`, or any other, where only pixels are known."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from normalcy.data.annotations import find_annotations
from normalcy.data.dataset import DataSet, Item, Origin, Region
from normalcy.data.formats import DICOM_SUFFIXES, IMAGE_SUFFIXES, LIMITS, VOLUME_SUFFIXES, Limits, stem
from normalcy.data.indexed import OPTIONS, Source, open_indexed
from normalcy.data.layouts import LAYOUTS, SPLITS, Layout, fits, is_mask_name, is_suspect, layout_of, regex
from normalcy.data.stores import Files, Folder, Found, find_images
from normalcy.errors import DataError
from normalcy.files import parse_json, read_bytes

PLAIN = "plain folder"
_CONFIG = "defects_config.json"
_HINT = re.compile(r"(?:^|/)(?:good|ok|normal|ng)/", re.IGNORECASE)
"""What the path of some image holds in every layout of a data set in a folder below."""


def open_folder(path: Path, limits: Limits = LIMITS, options: Mapping[str, str] | None = None) -> DataSet:
    """The images of a folder with what its layout says of them; with none, images of unknown label and split.

    Layouts are looked for in the order of :data:`~normalcy.data.layouts.LAYOUTS`, then annotations of other tools
    (:mod:`normalcy.data.annotations`). Hidden files are passed over. Where no layout explains names of folders and files that
    say that some images are anomalous, or masks, ``origin.doubt`` tells so. ``options`` are those of the layout.

    Raises DataError where there are no images, where the images are several data sets, and for an index that is damaged.
    """
    folder = Folder(path, limits)
    images, ignored = find_images(folder)
    if not images:
        known = " ".join(sorted((*IMAGE_SUFFIXES, *VOLUME_SUFFIXES, *DICOM_SUFFIXES)))
        first = next(iter(ignored.items()), None)
        found = f"{len(ignored)} other files, such as {first[0]} ({first[1]})" if first else "an empty folder"
        raise DataError(f"{path}: expected images ({known}), got {found}.")
    paths = [_plain(one) for one in images]
    given = dict(options or {})
    for layout in (one for one in LAYOUTS if fits(one, paths, ignored)):
        unknown = [word for word in given if word not in OPTIONS.get(layout.name, ())]
        if unknown:
            known = ", ".join(OPTIONS.get(layout.name, ())) or "none"
            raise DataError(f"{path}: {layout.name} has no option {unknown[0]!r}. Available: {known}.")
        source = Source(folder, tuple(file for file, _, image in images if image == file), ignored, given)
        data = open_indexed(layout, source)
        if data is None and layout.images:
            data = _by_table(layout, folder, images, paths, ignored)
        if data is not None:
            return data
    _refuse_several(path, paths)
    annotated = find_annotations(path, limits)
    if annotated is not None:
        return annotated
    files = [image for _, _, image in images]
    origin = Origin(PLAIN, doubt=_doubt(path, images, ignored))
    name = path.resolve().name
    return Files(folder, files).data_set(name, [Item(file, case) for file, case, _ in images], ignored, origin)


# -- private -----------------------------------------------------------------------------------------------------------


def _plain(found: Found) -> str:
    """The path of an image without the suffix of its file; that of a DICOM series of several files has none."""
    file, _, image = found
    place, _, last = file.rpartition("/")
    return f"{place}/{stem(last)}".lstrip("/") if image in (file, (file,)) else file


def _by_table(
    layout: Layout, folder: Folder, found: Sequence[Found], paths: Sequence[str], ignored: Mapping[str, str]
) -> DataSet:
    masks: dict[tuple[str, Any], list[str]] = {}  # pattern and what it stands for -> files
    are_masks = set()
    for (file, _, image), path in zip(found, paths):
        for pattern in layout.masks if image == file else ():
            if match := regex(pattern).fullmatch(path):
                masks.setdefault((pattern, _key(match.groupdict())), []).append(file)
                are_masks.add(file)
    passed = dict(ignored)
    images, items, of_image = [], [], []
    for (file, case, image), path in zip(found, paths):
        if file in are_masks:
            continue
        row, match = next(
            ((row, match) for row in layout.images if (match := regex(row.pattern).fullmatch(path))), (None, None)
        )
        if row is None or match is None:
            passed[file] = _misplaced(layout, path)
            continue
        groups = match.groupdict()
        kind = row.type or ("good" if row.label == 0 else groups.get("type") or groups.get("bad"))
        images.append(image)
        items.append(Item(file, case, row.label, kind, row.split))
        files, others = _mask_of(layout, groups, masks) if row.masked else ((), ())
        for other in others:
            passed[other] = f"another mask of {file}, of which {files[0]} is used"
        of_image.append(files[0] if len(files) == 1 else files or None)
    uses = Counter(mask for mask in of_image if mask)
    used = {file for mask in uses for file in ((mask,) if isinstance(mask, str) else mask)}
    what = "test image" if any(row.split == "test" for row in layout.images if row.masked) else "anomalous image"
    passed |= {file: f"a mask that matches no {what}" for file in sorted(are_masks - used) if file not in passed}
    notes = []
    if shared := sum(count for count in uses.values() if count > 1):
        twice = next(item.path for item, mask in zip(items, of_image) if mask and uses[mask] > 1)
        notes.append(f"{shared} images share their masks with others of the same name, as {twice}")
    if layout.index:
        notes.append(f"{layout.index} was not found: the published split is not known")
    store = Files(folder, images, of_image if are_masks else None)
    regions: Callable[[int], list[Region]] | None = None
    if layout.name == "MVTec LOCO AD":
        regions, note = _saturation(folder, store)
        passed.pop(_CONFIG, None)
        notes.append(note)
    name = folder.path.resolve().name
    return store.data_set(name, items, dict(sorted(passed.items())), Origin(layout.name, tuple(notes)), regions)


def _key(groups: Mapping[str, str | None]) -> frozenset[tuple[str, str]]:
    """Folders without regard to case, the last part of a name with it; parts of a mask have one key."""

    def same(word: str, value: str) -> str:
        place, slash, last = value.rpartition("/")
        return place.casefold() + slash + last if word in ("name", "a", "b") else value.casefold()

    return frozenset(
        (word, same(word, value)) for word, value in groups.items() if word != "part" and value is not None
    )


def _mask_of(
    layout: Layout, groups: Mapping[str, str | None], masks: Mapping[tuple[str, Any], list[str]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The files of the mask of an image, and further ones that could be it."""
    for pattern in layout.masks:
        words = set(regex(pattern).groupindex)
        own = {word: groups.get(word) for word in words - {"part"}}
        if None in own.values():
            continue
        if files := masks.get((pattern, _key(own))):
            return (tuple(files), ()) if "part" in words else ((files[0],), tuple(files[1:]))
    return (), ()


def _misplaced(layout: Layout, path: str) -> str:
    reason = next((reason for pattern, reason in layout.misplaced if regex(pattern).fullmatch(path)), layout.elsewhere)
    return reason.format(path.partition("/")[0])


def _saturation(folder: Folder, files: Files) -> tuple[Callable[[int], list[Region]] | None, str]:
    """Regions of the masks of MVTec LOCO AD: a file is one, its value says which defect it is of, and that when it saturates."""
    if not folder.has(_CONFIG):
        return None, f"{_CONFIG} is missing: the saturation thresholds of the masks are not known"
    path = folder.path / _CONFIG
    try:
        rows = parse_json(read_bytes(path, 2**24))
        of_value = {
            int(row["pixel_value"]): (float(row["saturation_threshold"]), bool(row["relative_saturation"]))
            for row in rows
        }
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: expected a list with pixel_value, saturation_threshold and relative_saturation "
            f"({type(error).__name__}: {error}); fetch it again."
        ) from None

    def regions(i: int) -> list[Region]:
        found = []
        for file in files.mask_files(i):
            values = files.values(file)
            for value in np.unique(values[values > 0]).tolist():
                if value not in of_value:
                    raise DataError(f"{folder.full_name(file)}: has the value {value}, which {_CONFIG} does not name.")
                threshold, relative = of_value[value]
                area = int((values == value).sum())
                found.append(Region(values == value, min(threshold * area if relative else threshold, float(area))))
        return found

    return regions, (
        f"saturation thresholds of {_CONFIG}: {len(of_value)} kinds of defects, as DataSet.regions in Python; pixel metrics "
        "use whole masks"
    )


def _refuse_several(path: Path, paths: Sequence[str]) -> None:
    """A folder of data sets is none."""
    for depth in (1, 2):
        below: dict[str, list[str]] = {}
        for one in paths:
            parts = one.split("/", depth)
            if len(parts) > depth:
                below.setdefault("/".join(parts[:depth]), []).append(parts[depth])
        hinted = [name for name, inside in below.items() if any(_HINT.search(one) for one in inside)]
        sets = sorted(name for name in hinted if layout_of(below[name]) is not None)
        if sets:
            listed = ", ".join(sets[:10]) + ", ..." * (len(sets) > 10)
            raise DataError(
                f"{path}: expected one data set, got {len(sets)} in its folders {listed}; "
                f"name one of them, for example {path / sets[0]}."
            )


def _doubt(path: Path, images: Sequence[Found], ignored: Mapping[str, str]) -> str:
    """Why some of the images may be no normal ones, by their paths; empty where nothing says so."""
    splits = {SPLITS.get(file.casefold().partition("/")[0]) for file, _, _ in images if "/" in file}

    def suspect(file: str) -> bool:
        tested = {"train", "test"} <= splits and SPLITS.get(file.casefold().partition("/")[0]) == "test"
        place, _, last = file.rpartition("/")
        return tested or any(is_suspect(part) for part in place.split("/")) or is_mask_name(stem(last))

    texts = [file for file in ignored if file.lower().endswith((".txt", ".xml", ".json"))]
    marked = [file for file in texts if any(is_suspect(part) for part in file.split("/")[:-1])]
    first = next((file for file, _, _ in images if suspect(file)), marked[0] if marked else None)
    if first is None:
        return ""
    what = "may be an annotation" if first in marked and first in ignored else "may be anomalous or a mask"
    return (
        f"{path}: {first} {what}, but no layout says which images are normal. Expected train/good, test/good, test/<type> and "
        "ground_truth/<type> (MVTec AD), normal, abnormal and mask (Folder), another published layout, annotations of COCO, "
        "LabelMe, YOLO or Datumaro, or a CSV table with labels; 'normalcy check' says what was understood. If all images are "
        "normal all the same, train with --as-normal (in Python: open_data(..., as_normal=True))."
    )
