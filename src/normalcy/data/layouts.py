"""Layouts of folders, as a table: which paths are images of which split, label and type, and where their masks lie.

A pattern is a path without its suffix. Names in angle brackets stand for one of :data:`WORDS`; what they match is compared
between an image and its mask, so that ``test/<type>/<name>`` has the mask ``ground_truth/<type>/<name>_mask``. Upper case does
not matter but in the last part of a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

SPLITS = {
    **dict.fromkeys(("train", "training", "validation", "valid", "val"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
}
GOOD = ("good", "ok", "normal")
BAD = (
    *("bad", "defect", "defects", "defective", "abnormal", "abnormals", "anomaly", "anomalies", "anomalous", "anomal"),
    *("ko", "ng", "nok", "ungood", "not_good", "not_ok", "not good", "not ok", "no_good", "faulty"),
)
MASKS = ("ground_truth", "ground-truth", "ground truth", "groundtruth", "gt", "mask", "masks")
"""Names of folders, without regard to case."""


def _one_of(words: Iterable[str]) -> str:
    return "|".join(re.escape(word) for word in words)


_KNOWN = _one_of((*SPLITS, *GOOD, *BAD, *MASKS))
WORDS = {
    "train": f"(?:{_one_of(('train', 'training'))})",
    "validation": f"(?:{_one_of(('validation', 'valid', 'val'))})",
    "test": f"(?:{_one_of(('test', 'testing'))})",
    "split": f"(?P<split>{_one_of(SPLITS)})",
    "good": f"(?:{_one_of(GOOD)})",
    "goodtype": f"(?P<type>{_one_of(GOOD)})",
    "normal_test": r"(?:(?:normal|good|ok)[_-]test|test[_-](?:normal|good|ok))",
    "bad": f"(?P<bad>{_one_of(BAD)})",
    "masks": f"(?:{_one_of(MASKS)})",
    "type": r"(?P<type>[^/]+)",
    "other": f"(?P<type>(?!(?:{_KNOWN})/)[^/]+)",
    "loco": r"(?P<type>(?:logical|structural)_anomalies)",
    "tested": r"(?P<split>test|testing)",
    "validated": r"(?P<split>validation|valid|val)",
    "quality": r"(?P<quality>good|ungood)",
    "isgood": r"(?P<quality>good)",
    "ungood": r"(?P<quality>ungood)",
    "private": r"(?P<type>private(?:_mixed)?)",
    "sample": r"s\d+",
    "part": r"(?P<part>[^/]+)",
    "name": r"(?P<name>.+)",
    "file": r"(?P<name>[^/]+)",
    "a": r"(?P<a>[^/]*?)",
    "b": r"(?P<b>[^/]*)",
}
"""Name in a pattern -> regular expression; what stands in ``(?P<...>)`` must be the same in an image and its mask."""


@dataclass(frozen=True)
class Images:
    """Images of one split, label and type."""

    pattern: str
    split: str | None
    label: int | None
    type: str | None = None
    """None: "good" for normal images, else the part of the path that ``<type>``, ``<bad>`` or ``<private>`` stands for."""
    masked: bool = False
    """Whether there may be masks of them."""


@dataclass(frozen=True)
class Layout:
    """Where what lies. The first pattern that fits a file says what it is."""

    name: str
    shown: str
    """In a few words, for messages."""
    requires: tuple[tuple[str, ...], ...]
    """Of each of these groups one pattern must fit some file."""
    images: tuple[Images, ...] = ()
    masks: tuple[str, ...] = ()
    """Patterns of masks, the first that is there; with ``<part>`` several are one mask."""
    files: tuple[str, ...] = ()
    """Files that are no images and must be there, by their path in lower case."""
    misplaced: tuple[tuple[str, str], ...] = ()
    """Pattern -> why its files are passed over."""
    elsewhere: str = "no place that the layout names"
    """Why other images are passed over."""
    index: str = ""
    """The index file that says what is what, for messages; its reader is in :mod:`normalcy.data.indexed`."""


_FOLDER_MASKS = tuple(
    f"<masks>/{where}<name>{mask}" for where in ("<bad>/<type>/", "<type>/", "<bad>/", "") for mask in ("_mask", "")
)

LAYOUTS = (
    Layout(
        "MVTec LOCO AD",
        "test/logical_anomalies, ground_truth/logical_anomalies/<name>/*.png",
        (("<train>/<good>/<name>", "<test>/<good>/<name>"), ("<test>/<loco>/<name>",)),
        (
            Images("<train>/<good>/<name>", "train", 0),
            Images("<validation>/<good>/<name>", "train", 0),
            Images("<test>/<good>/<name>", "test", 0),
            Images("<test>/<type>/<name>", "test", 1, masked=True),
        ),
        ("<masks>/<type>/<name>/<part>", "<masks>/<type>/<name>_mask", "<masks>/<type>/<name>"),
    ),
    Layout(
        "MVTec AD 2",
        "train/good, validation/good, test_public, test_private",
        (("<train>/<good>/<name>",), ("test_public/<good>/<name>", "test_public/<bad>/<name>", "test_private/<name>")),
        (
            Images("<train>/<good>/<name>", "train", 0),
            Images("<validation>/<good>/<name>", "train", 0),
            Images("test_public/<good>/<name>", "test", 0),
            Images("test_<private>/<name>", "test", None),
            Images("test_public/<bad>/<name>", "test", 1, masked=True),
        ),
        ("test_public/<masks>/<bad>/<name>_mask", "test_public/<masks>/<bad>/<name>"),
    ),
    Layout(
        "BMAD",
        "train/good, valid/Ungood, test/Ungood, with img and label where there are masks",
        (
            ("<train>/<good>/<name>", "<test>/<good>/<name>"),
            ("<tested>/<ungood>/<name>", "<validated>/<ungood>/<name>"),
        ),
        (
            Images("<train>/<good>/img/<name>", "train", 0),
            Images("<train>/<good>/<name>", "train", 0),
            *(
                Images(f"<{split}>/<{quality}>/{img}<name>", of_split, label, kind, masked=bool(img))
                for split, of_split in (("tested", "test"), ("validated", None))
                for quality, label, kind in (("isgood", 0, "good"), ("ungood", 1, "Ungood"))
                for img in ("img/", "")
            ),
        ),
        ("<split>/<quality>/label/<name>",),
    ),
    Layout(
        "MedIAnomaly (BraTS2021)",
        "train/*, test/normal, test/tumor, test/annotation",
        (("<test>/normal/<file>",), ("<test>/tumor/<file>",)),
        (
            Images("<train>/<file>", "train", 0),
            Images("<test>/normal/<file>", "test", 0),
            Images("<test>/tumor/<a>flair<b>", "test", 1, "tumor", masked=True),
            Images("<test>/tumor/<file>", "test", 1, "tumor", masked=True),
        ),
        ("<test>/annotation/<a>seg<b>", "<test>/annotation/<file>"),
    ),
    Layout(
        "MedIAnomaly (ISIC2018_Task3)",
        "ISIC2018_Task3_Training_Input and so on",
        (("isic2018_task3_training_input/<file>",), ("isic2018_task3_test_input/<file>",)),
        index="ISIC2018_Task3_Test_GroundTruth/ISIC2018_Task3_Test_GroundTruth.csv",
    ),
    Layout(
        "MedIAnomaly",
        "images and data.json",
        (("images/<name>",),),
        files=("data.json",),
        index="data.json",
    ),
    Layout(
        "VisA",
        "Data/Images/Normal, Data/Images/Anomaly, Data/Masks/Anomaly",
        (("data/images/normal/<name>",),),
        (
            Images("data/images/normal/<name>", None, 0),
            Images("data/images/anomaly/<name>", None, 1, "anomaly", masked=True),
        ),
        ("data/masks/anomaly/<name>",),
        index="split_csv/1cls.csv",
    ),
    Layout(
        "Real-IAD",
        "OK/S0001, NG/<type>/S0001 and realiad_jsons",
        (("ok/<sample>/<file>", "ng/<type>/<sample>/<file>"),),
        index="realiad_jsons/realiad_jsons/<category>.json",
    ),
    Layout(
        "MVTec AD",
        "train/good, test/good, test/<type>, ground_truth/<type>, with ok or normal for good: also MPDD and BTAD",
        (("<train>/<good>/<name>", "<validation>/<good>/<name>", "<test>/<good>/<name>"),),
        (
            Images("<train>/<good>/<name>", "train", 0),
            Images("<validation>/<good>/<name>", "train", 0),
            Images("<test>/<goodtype>/<name>", "test", 0, "good", masked=True),
            Images("<test>/<type>/<name>", "test", 1, masked=True),
            Images("<train>/<type>/<name>", "train", 1),
            Images("<validation>/<type>/<name>", "train", 1),
        ),
        ("<masks>/<type>/<name>_mask", "<masks>/<type>/<name>"),
        misplaced=(
            ("<split>/<file>", "directly in {0}: put it in {0}/good, or in test/ and the type of its defect"),
            ("<masks>/<name>", "a mask that matches no test image"),
        ),
        elsewhere="outside of the folders train, validation, test and ground_truth",
    ),
    Layout(
        "Folder (normal_test)",
        "normal, normal_test, abnormal, mask, as anomalib's Folder",
        (("<good>/<name>",), ("<normal_test>/<name>",)),
        (
            Images("<normal_test>/<name>", "test", 0),
            Images("<good>/<name>", "train", 0),
            Images("<bad>/<type>/<name>", "test", 1, masked=True),
            Images("<bad>/<name>", "test", 1, masked=True),
        ),
        (*_FOLDER_MASKS,),
    ),
    Layout(
        "Folder",
        "normal, abnormal, mask, as anomalib's Folder",
        (("<good>/<name>",), ("<bad>/<name>",)),
        (
            Images("<good>/<name>", None, 0),
            Images("<bad>/<type>/<name>", None, 1, masked=True),
            Images("<bad>/<name>", None, 1, masked=True),
        ),
        (*_FOLDER_MASKS,),
    ),
    Layout(
        "Folder (types)",
        "good, a folder for each type, mask/<type>, as anomalib's Folder",
        (("<good>/<name>",), ("<masks>/<other>/<name>",), ("<other>/<name>",)),
        (Images("<good>/<name>", None, 0), Images("<other>/<name>", None, 1, masked=True)),
        ("<masks>/<type>/<name>_mask", "<masks>/<type>/<name>"),
    ),
)


@cache
def regex(pattern: str) -> re.Pattern[str]:
    """A pattern as a regular expression for a whole path."""
    parts = re.split(r"<(\w+)>", pattern)
    return re.compile(
        "".join(re.escape(part) if k % 2 == 0 else WORDS[part] for k, part in enumerate(parts)), re.IGNORECASE
    )


def fits(layout: Layout, paths: Sequence[str], files: Iterable[str] = ()) -> bool:
    """Whether images with these paths, without their suffixes, and other files are in this layout."""
    there = {file.casefold() for file in files}
    return all(file in there for file in layout.files) and all(
        any(regex(pattern).fullmatch(path) for pattern in group for path in paths) for group in layout.requires
    )


def layout_of(paths: Sequence[str], files: Iterable[str] = ()) -> Layout | None:
    """The first layout that these files are in."""
    listed = list(files)
    return next((layout for layout in LAYOUTS if fits(layout, paths, listed)), None)


_ADJECTIVES = frozenset(
    {
        "bad",
        "defect",
        "defects",
        "defective",
        "abnormal",
        "anomaly",
        "anomalies",
        "anomalous",
        "ko",
        "ng",
        "nok",
        "ungood",
    }
)
_NOUNS = frozenset({"mask", "masks", "label", "labels", "groundtruth", "gt", "annotation", "annotations"})
_NOT = frozenset({"no", "non", "not", "without", "free"})
_GENERAL = frozenset({"image", "images", "img", "imgs", "file", "files", "data", "png", "all", *SPLITS, ""})


def is_suspect(folder: str) -> bool:
    """Whether the name of a folder says that what is in it is anomalous, or a mask.

    Words stand between anything but letters. A word for masks counts where it is the last one, or where the others say
    nothing; a negated word means its opposite.

    >>> [is_suspect(name) for name in ("NG_2", "abnormal_parts", "train labels", "mask_01", "not_ok")]
    [True, True, True, True, True]
    >>> [is_suspect(name) for name in ("tango", "label_printer_good", "maskless", "badger", "defect_free", "no defects")]
    [False, False, False, False, False, False]
    """
    words = re.sub(r"ground[^a-z]?truth", "groundtruth", folder.casefold())
    parts = [word for word in re.split(r"[^a-z]+", words) if word not in _GENERAL]
    if _NOT & set(parts):
        return bool(set(GOOD) & set(parts))
    return bool(_ADJECTIVES & set(parts)) or bool(parts and parts[-1] in _NOUNS) or bool(parts and set(parts) <= _NOUNS)


def is_mask_name(name: str) -> bool:
    """Whether the name of an image, without its suffix, ends as that of a mask: ``0_mask``.

    >>> is_mask_name("0_mask"), is_mask_name("unmask"), is_mask_name("mask")
    (True, False, True)
    """
    return bool(re.search(r"(?:^|[^a-z])masks?$", name.casefold()))
