"""Published sets of several categories by name, ``mvtec:bottle``, looked for in the data root and never fetched."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from normalcy.data.dataset import DataSet
from normalcy.data.folder import open_folder
from normalcy.data.formats import LIMITS, Limits
from normalcy.errors import DataError

_MOST = 10_000
"""Folders of a data root that are looked at."""


@dataclass(frozen=True)
class Published:
    """A set of several categories, each a folder in one of the layouts."""

    folders: tuple[str, ...]
    """Names that its folder has, in lower case without anything but letters and digits."""
    layouts: tuple[str, ...]
    """Names of layouts that a category may have."""
    categories: tuple[str, ...]
    source: str
    below: tuple[str, ...] = ("",)
    """Folders of the set in which the categories lie."""


PUBLISHED = {
    "mvtec": Published(
        ("mvtec", "mvtecad", "mvtecanomalydetection"),
        ("MVTec AD",),
        (
            *(
                "bottle",
                "cable",
                "capsule",
                "carpet",
                "grid",
                "hazelnut",
                "leather",
                "metal_nut",
                "pill",
                "screw",
                "tile",
            ),
            *("toothbrush", "transistor", "wood", "zipper"),
        ),
        "https://www.mvtec.com/company/research/datasets/mvtec-ad",
    ),
    "mvtec_ad2": Published(
        ("mvtecad2", "mvtec2"),
        ("MVTec AD 2",),
        ("can", "fabric", "fruit_jelly", "rice", "sheet_metal", "vial", "wallplugs", "walnuts"),
        "https://www.mvtec.com/company/research/datasets/mvtec-ad-2",
    ),
    "loco": Published(
        ("loco", "mvtecloco", "mvteclocoad", "mvteclocoanomalydetection"),
        ("MVTec LOCO AD",),
        ("breakfast_box", "juice_bottle", "pushpins", "screw_bag", "splicing_connectors"),
        "https://www.mvtec.com/company/research/datasets/mvtec-loco",
    ),
    "visa": Published(
        ("visa", "visa20220922", "visapytorch"),
        ("VisA", "MVTec AD"),
        (
            *(
                "candle",
                "capsules",
                "cashew",
                "chewinggum",
                "fryum",
                "macaroni1",
                "macaroni2",
                "pcb1",
                "pcb2",
                "pcb3",
                "pcb4",
            ),
            "pipe_fryum",
        ),
        "https://github.com/amazon-science/spot-diff",
        ("", "1cls"),
    ),
    "btad": Published(
        ("btad", "btech", "btechdatasettransformed"),
        ("MVTec AD",),
        ("01", "02", "03"),
        "https://github.com/pankajmishra000/VT-ADL",
    ),
    "mpdd": Published(
        ("mpdd",),
        ("MVTec AD",),
        ("bracket_black", "bracket_brown", "bracket_white", "connector", "metal_plate", "tubes"),
        "https://github.com/stepanje/MPDD",
    ),
    "bmad": Published(
        ("bmad",),
        ("BMAD",),
        ("brain", "chest", "histopathology", "liver", "retina_oct2017", "retina_resc"),
        "https://github.com/DorisBao/BMAD",
    ),
    "real_iad": Published(
        ("realiad",),
        ("Real-IAD",),
        (
            *("audiojack", "bottle_cap", "button_battery", "end_cap", "eraser", "fire_hood", "mint", "mounts", "pcb"),
            *("phone_battery", "plastic_nut", "plastic_plug", "porcelain_doll", "regulator", "rolled_strip_base"),
            *(
                "sim_card_set",
                "switch",
                "tape",
                "terminalblock",
                "toothbrush",
                "toy",
                "toy_brick",
                "transistor1",
                "u_block",
            ),
            *("usb", "usb_adaptor", "vcpill", "wooden_beads", "woodstick", "zipper"),
        ),
        "https://realiad4ad.github.io/Real-IAD",
        ("realiad_256", "realiad_512", "realiad_1024", "realiad_raw"),
    ),
    "medianomaly": Published(
        ("medianomaly", "medianomalydata"),
        ("MedIAnomaly", "MedIAnomaly (BraTS2021)", "MedIAnomaly (ISIC2018_Task3)", "BMAD"),
        ("rsna", "vincxr", "braintumor", "lag", "isic2018_task3", "camelyon16", "brats2021"),
        "https://github.com/caiyu6666/MedIAnomaly",
    ),
}
"""Name -> what it means. Categories in lower case; upper case, hyphens and underscores do not matter."""


def open_published(name: str, choice: str, data_root: Path, limits: Limits = LIMITS) -> DataSet:
    """``choice``: a category, then options of the layout after commas: ``audiojack,size=512,view=C1``.

    Raises DataError where the category is unknown, its folder is missing or lies there more than once, or has another layout.
    """
    known = PUBLISHED[name]
    category, *words = choice.split(",")
    wanted = _same(category)
    if wanted not in map(_same, known.categories):
        near = difflib.get_close_matches(category.lower(), known.categories, n=1)
        hint = f" Did you mean {name}:{near[0]}?" if near else ""
        got = f"got {category!r}" if category else "got none"
        raise DataError(f"{name}: expected a category, {got}. Available: {', '.join(known.categories)}.{hint}")
    options = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key or not value:
            raise DataError(f"{name}:{choice}: expected options as size=512 after commas, got {word!r}.")
        options[key] = value
    below = known.below
    if size := options.pop("size", "") if len(known.below) > 2 else "":
        below = tuple(folder for folder in known.below if folder.endswith(f"_{size}"))
        if not below:
            sizes = ", ".join(folder.rpartition("_")[2] for folder in known.below)
            raise DataError(f"{name}:{choice}: expected one of the sizes {sizes}, got {size!r}.")
    sets = [folder for folder in _folders(data_root) if _same(folder.name) in known.folders] or [data_root]
    found = [
        folder
        for one in sets
        for part in below
        for folder in _folders(one / part if part else one)
        if wanted in (_same(folder.name), _same(folder.name).removesuffix("ad"))
    ]
    places = data_root / name / known.below[0] / category
    if not found:
        raise DataError(
            f"{name}:{category}: expected its folder in {data_root}, such as {places}, found none; get the set from "
            f"{known.source}, or name the folder that holds it with --data-root."
        )
    if len(found) > 1:
        which = "say which with size=, or give its path" if len(known.below) > 2 else "give the path of one"
        raise DataError(f"{name}:{category}: found {' and '.join(map(str, found[:4]))}; {which}.")
    data = open_folder(found[0], limits, options)
    if data.origin.layout not in known.layouts:
        raise DataError(
            f"{name}:{category}: expected {found[0]} in the layout {' or '.join(known.layouts)}, got "
            f"{data.origin.layout}; unpack the set again, or give the path itself."
        )
    data.name = f"{name}:{category}"
    return data


def _same(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _folders(path: Path) -> Sequence[Path]:
    try:
        entries = sorted(path.iterdir())
    except OSError:
        return ()
    return [entry for entry in entries[:_MOST] if entry.is_dir()]
