"""Names of the files of an image below a results folder: inside it, short, valid, and different for every image of a set.

For an ordinary relative path it is the path itself. A path that is absolute, goes up (``../``), is not UTF-8, is too long, or
would share a file with that of an earlier image becomes the last part of it with a checksum of the whole.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

LATENTS = "latents.npy"
REPORT = "report.html"
NIFTI = ".nii.gz"
SUFFIXES = (".npy", ".png", ".tiff", NIFTI)
"""Of all files of an image."""
LONGEST = 200
"""Bytes of a part of a name: file systems take 255, a suffix and a temporary name included."""
LONGEST_PATH = 1000
"""Bytes of a whole name."""


def named(base: str, suffix: str) -> str:
    """The file of an image below the folder of its kind; "scan.nii.gz" keeps its name for NIfTI.

    >>> named("a/01.png", ".npy"), named("a/scan.nii.gz", ".nii.gz"), named("a/scan.nii.gz[z=3]", ".nii.gz")
    ('a/01.png.npy', 'a/scan.nii.gz', 'a/scan.nii.gz[z=3].nii.gz')
    """
    return base if suffix == NIFTI and base.lower().endswith(NIFTI) else base + suffix


def readable(path: str) -> str:
    """A path as text in UTF-8: bytes of a file name that are not UTF-8 are escaped.

    >>> readable("a.png"), readable("caf\\udce9.png")
    ('a.png', 'caf\\\\udce9.png')
    """
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def harmless(text: str) -> str:
    """A cell of a table that spreadsheets take as text: what they would run as a formula starts with an apostrophe.

    >>> harmless("a.png"), harmless("=1+1"), harmless("-0.5"), meant(harmless("'=1+1"))
    ('a.png', "'=1+1", '-0.5', "'=1+1")
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def meant(cell: str) -> str:
    """The text of which :func:`harmless` made this cell."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")


def original(text: str) -> str:
    """The path of which :func:`readable` made this text.

    >>> original("caf\\\\udce9.png") == "caf\\udce9.png"
    True
    """
    return re.sub(r"\\udc([89a-f][0-9a-f])", lambda found: chr(0xDC00 + int(found[1], 16)), text)


def file_names(paths: Sequence[str]) -> list[str]:
    """A base name for each of the images with these (different) paths; see :func:`named`.

    >>> file_names(["a/1.png", "/data/scan.nii.gz", "T1", "T1.nii.gz", "A/1.PNG"])
    ['a/1.png', 'scan-f12c8869.nii.gz', 'T1', 'T1-00744da8.nii.gz', '1-fde27142.PNG']
    """
    files: set[str] = set()
    folders: set[str] = set()
    names = []
    for path in paths:
        name = path if _ordinary(path) else _short(path)
        attempt = 0
        while True:
            own = {_folded(named(name, suffix)) for suffix in SUFFIXES}
            above = {place for one in own for place in _above(one)}
            if not (own & files or own & folders or above & files):
                break
            name, attempt = _short(path, attempt), attempt + 1
        files |= own
        folders |= above
        names.append(name)
    return names


# -- private -----------------------------------------------------------------------------------------------------------


def _ordinary(path: str) -> bool:
    parts = path.split("/")
    if not path.isprintable() or "\\" in path or re.match(r"[A-Za-z]:(/|$)", path):
        return False
    try:
        sizes = [len(part.encode("utf-8")) for part in parts]
    except UnicodeEncodeError:
        return False
    return min(sizes) > 0 and max(sizes) <= LONGEST and sum(sizes) <= LONGEST_PATH and not {".", ".."} & set(parts)


def _short(path: str, attempt: int = 0) -> str:
    """The last part of the path, cut to printable text, with eight digits that stand for the whole."""
    whole = path + "#" * attempt
    digest = hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    last = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
    last = "".join(c if c.isprintable() and c not in ':*?"<>|' else "_" for c in last).strip(". ")
    found = re.fullmatch(r"(.*?)((?:\.nii)?\.[A-Za-z0-9]{1,8}(?:\[[^\]]{1,20}\])?)?", last, re.DOTALL)
    stem, suffix = (found[1], found[2] or "") if found else (last, "")
    stem = stem.encode("utf-8", "replace")[: LONGEST - 40].decode("utf-8", "ignore")
    return f"{stem or 'image'}-{digest}{suffix}"


def _folded(name: str) -> str:
    """As file systems compare that do not tell cases or compositions of letters apart."""
    return unicodedata.normalize("NFC", name).casefold()


def _above(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:k]) for k in range(1, len(parts))]
