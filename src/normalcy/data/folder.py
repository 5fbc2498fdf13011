"""Folders of images: the layout of MVTec AD, or any other, where nothing is known of the images but their pixels."""

from __future__ import annotations

import re
from pathlib import Path

from normalcy.data.dataset import DataSet, Item
from normalcy.data.formats import DICOM_SUFFIXES, IMAGE_SUFFIXES, LIMITS, VOLUME_SUFFIXES, Limits, stem
from normalcy.data.stores import Files, Folder, Found, find_images
from normalcy.errors import DataError

SPLITS = {
    **dict.fromkeys(("train", "training", "validation", "valid", "val"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
}
GOOD = frozenset({"good", "ok", "normal"})
MASKS = frozenset({"ground_truth", "ground-truth", "groundtruth", "gt", "mask", "masks"})
"""Names of folders of the layout, without regard to case."""
_ANOMALOUS = frozenset(
    {"bad", "defect", "defects", "defective", "abnormal", "anomaly", "anomalies", "anomalous", "ko", "ng", "nok"}
    | {"mask", "masks", "label", "labels", "groundtruth", "gt"}
)
"""Words in names of folders that say that not all images are normal."""


def open_folder(path: Path, limits: Limits = LIMITS) -> DataSet:
    """A folder with ``train/good`` or ``test/good`` is read as MVTec AD's layout, any other searched for images.

    MVTec AD: ``train/good`` and ``validation/good`` are normal training images; ``test/good`` is normal and every
    other ``test/<type>`` anomalous; the mask of ``test/<type>/<name>.png`` is ``ground_truth/<type>/<name>_mask.png``
    or ``<name>.png``, of any image type. ``ok`` and ``normal`` mean the same as ``good``, ``masks`` as ``ground_truth``;
    upper case does not matter. Elsewhere labels and splits are unknown. Hidden files are passed over.

    Raises DataError where there are no images, where the images are several data sets, or where names of folders say
    that some images are anomalous or masks while the layout is another.
    """
    folder = Folder(path, limits)
    images, ignored = find_images(folder)
    if not images:
        known = " ".join(sorted((*IMAGE_SUFFIXES, *VOLUME_SUFFIXES, *DICOM_SUFFIXES)))
        first = next(iter(ignored.items()), None)
        found = f"{len(ignored)} other files, such as {first[0]} ({first[1]})" if first else "an empty folder"
        raise DataError(f"{path}: expected images ({known}), got {found}.")
    name = path.resolve().name
    parts = [file.casefold().split("/") for file, _, _ in images]
    if any(len(one) > 2 and one[0] in SPLITS and one[1] in GOOD for one in parts):
        return _mvtec(name, folder, images, ignored)
    nested = [len(one) > 3 and one[1] in SPLITS and one[2] in GOOD for one in parts]
    inside = sorted({file.split("/")[0] for (file, _, _), yes in zip(images, nested) if yes})
    if inside:
        raise DataError(
            f"{path}: expected one data set, got {len(inside)} in its folders {', '.join(inside)}; "
            f"name one of them, for example {path / inside[0]}."
        )
    _refuse_anomalous(path, images)
    files = [image for _, _, image in images]
    return Files(folder, files).data_set(name, [Item(file, case) for file, case, _ in images], ignored)


def _mvtec(name: str, folder: Folder, found: list[Found], ignored: dict[str, str]) -> DataSet:
    truth: dict[str, str] = {}  # type and name of an image -> its mask
    for file, _, image in found:
        part, _, rest = file.partition("/")
        if part.casefold() in MASKS and image == file:
            kind, _, rest = stem(rest).rpartition("/") if "/" in rest else ("", "", stem(rest))
            truth[f"{kind.casefold()}/{rest}"] = file
    images, items, masks = [], [], []
    for file, case, image in found:
        part, *between, last = file.split("/")
        split = SPLITS.get(part.casefold())
        if split is None or not between:
            if split is not None:
                ignored[file] = f"directly in {part}: put it in {part}/good, or in test/ and the type of its defect"
            elif part.casefold() not in MASKS or image != file:
                ignored[file] = "outside of the folders train, validation, test and ground_truth"
            continue
        kind = "good" if between[0].casefold() in GOOD else between[0]
        name_of = "/".join((*between[1:], stem(last) if image in (file, (file,)) else last))
        place, _, base = f"{between[0].casefold()}/{name_of}".rpartition("/")
        marked = f"{place.casefold()}/{base}"
        images.append(image)
        items.append(Item(file, case, int(kind != "good"), kind, split))
        masks.append(truth.get(f"{marked}_mask", truth.get(marked)) if split == "test" else None)
    used = set(masks)
    ignored |= {file: "a mask that matches no test image" for file in truth.values() if file not in used}
    return Files(folder, images, masks if truth else None).data_set(name, items, ignored)


def _refuse_anomalous(path: Path, images: list[Found]) -> None:
    """Nothing is learnt as normal that its folder calls something else."""
    splits = {SPLITS.get(file.casefold().partition("/")[0]) for file, _, _ in images if "/" in file}
    for file, _, _ in images:
        words = {word for part in file.casefold().split("/")[:-1] for word in re.split(r"[^a-z]+", part)}
        phrase = re.search(r"ground.?truth/", file.casefold())
        masked = re.search(r"(?:^|[^a-z])masks?$", stem(file.casefold().rpartition("/")[2]))
        tested = {"train", "test"} <= splits and SPLITS.get(file.casefold().partition("/")[0]) == "test"
        if words & _ANOMALOUS or phrase or masked or tested:
            raise DataError(
                f"{path}: {file} may be anomalous or a mask, but no layout says which images are normal. Expected train/good, "
                "test/good, test/<type> and ground_truth/<type> (or ok, normal for good), or a CSV table with labels; if all "
                "of a folder's images are normal, name that folder alone."
            )
