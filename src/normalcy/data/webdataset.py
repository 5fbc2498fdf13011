"""WebDataset: tars whose files belong together by their names up to the first dot.

``000017.jpg`` (or ``png``, ``tiff``, ``npy`` and the other image formats) is an image, ``000017.mask.png`` its mask,
``000017.cls`` its label (0 normal, 1 anomalous, or ``good`` and the like as in tables) and ``000017.json`` an object with
``label``, ``split``, ``case`` and ``type``, all optional. Other files are listed as ignored.

The tars are read once from beginning to end for an index in memory (name, place and size of each file, labels); nothing is
unpacked. Images are then read at their place: of a local tar from the disk, of one in a store from the blocks in the cache,
or fetched again where those have made room. Compressed tars have no such places, and are refused.

Tars may come from anybody: links, devices and other special files are passed over, names lead nowhere (nothing is written by
them), and sizes, counts and headers are bounded.
"""

from __future__ import annotations

import glob
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

from normalcy.data.dataset import SPLITS, DataSet, Item
from normalcy.data.formats import LIMITS, Limits, is_image
from normalcy.data.stores import Files
from normalcy.data.table import LABELS
from normalcy.errors import DataError
from normalcy.files import mounted, open_blocks, parse_json

MOST_TARS = 100_000
_LABEL_BYTES = 2**16
_HEADER_BYTES = 2**20
_AT_ONCE = 8
"""Tars that are indexed at the same time."""
_RECORD = tarfile.BLOCKSIZE
_SPECIAL = {
    tarfile.LNKTYPE: "a link",
    tarfile.SYMTYPE: "a link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


def is_tars(text: str) -> bool:
    """Whether a data set is named by tars: ``parts.tar``, ``parts-{000..012}.tar``, ``parts/*.tar``."""
    return text.lower().endswith(".tar") and "," not in re.sub(r"\{[^{}]*\}", "", text)


def expand(text: str) -> list[str]:
    """Names with braces, one for each combination; the ends of a range have the same number of digits or none is padded.

    >>> expand("a-{08..10}.tar"), expand("{train,test}/0.tar")
    (['a-08.tar', 'a-09.tar', 'a-10.tar'], ['train/0.tar', 'test/0.tar'])
    """
    choices, count = [], 1
    for part in re.split(r"(\{[^{}]*\})", text):
        found = re.fullmatch(r"\{(\d{1,12})\.\.(\d{1,12})\}", part)
        if found:
            first, last = int(found[1]), int(found[2])
            count *= max(0, last - first + 1)
            width = len(found[1]) if found[1].startswith("0") else 0
            numbers = range(first, last + 1) if count <= MOST_TARS else ()
            choices.append([str(number).zfill(width) for number in numbers])
        elif part.startswith("{") and "," in part:
            choices.append(part[1:-1].split(","))
            count *= len(choices[-1])
        else:
            choices.append([part])
        if not 0 < count <= MOST_TARS:
            raise DataError(f"{text}: names {count:,} tars, expected 1 to {MOST_TARS:,}.")
    return ["".join(parts) for parts in product(*choices)]


def local_tars(text: str) -> list[Path]:
    """The tars of this machine that a text names."""
    found: list[Path] = []
    for name in expand(text):
        path = Path(name).expanduser()
        if glob.has_magic(name) and not path.exists():
            found += sorted(map(Path, glob.iglob(str(path), recursive=False)))
        else:
            found.append(path)
    if not found:
        raise DataError(f"{text}: no such file; check the pattern.")
    return found


def open_tars(paths: Sequence[Path], limits: Limits = LIMITS) -> DataSet:
    """The images of tars, in their order. The path of an image is ``<tar>/<name>``, both without the suffix ``.tar``."""
    twice = (
        {path.stem for path in paths if sum(other.stem == path.stem for other in paths) > 1}
        if len(paths) < 1000
        else ()
    )
    for name in twice:
        raise DataError(f"{name}.tar is named more than once; tars of a data set need different names.")
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        indexes = list(pool.map(lambda path: _index(path, limits), paths))
    items, images, masks = list[Item](), list[str](), list[str | None]()
    members: dict[str, tuple[int, int, int]] = {}
    ignored: dict[str, str] = {}
    for tar, (path, index) in enumerate(zip(paths, indexes)):
        ignored |= {f"{path.stem}/{name}": why for name, why in index.ignored.items()}
        for sample in index.samples.values():
            if not sample.image:
                ignored = {f"{path.stem}/{name}": "belongs to no image" for name in sample.names} | ignored
                continue
            name = f"{path.stem}/{sample.image}"
            members[name] = (tar, *sample.places[sample.image])
            mask = f"{path.stem}/{sample.mask}" if sample.mask else None
            if mask is not None:
                members[mask] = (tar, *sample.places[sample.mask])
            words = sample.words
            items.append(
                Item(name, words.get("case") or name, words.get("label"), words.get("type"), words.get("split"))
            )
            images.append(name)
            masks.append(mask)
    where = _shown(paths[0]) if len(paths) == 1 else f"{len(paths)} tars such as {_shown(paths[0])}"
    if not items:
        first = next(iter(ignored.items()), None)
        got = f"{len(ignored)} other files, such as {first[0]} ({first[1]})" if first else "none"
        raise DataError(f"{where}: expected images, got {got}.")
    name = paths[0].stem if len(paths) == 1 else paths[0].parent.resolve().name
    files = Files(Tars(list(paths), members, limits), images, masks if any(masks) else None)
    return files.data_set(name, items, ignored)


class Tars:
    """Files in tars, by the places that an index has."""

    def __init__(self, paths: list[Path], members: dict[str, tuple[int, int, int]], limits: Limits) -> None:
        self.paths, self.members, self.limits = paths, members, limits
        self._mounts = {mounted(path) for path in paths}  # held: their folders live as long as these do

    def full_name(self, file: str) -> str:
        return f"{_shown(self.paths[self.members[file][0]])}/{file.partition('/')[2]}"

    def bytes(self, file: str) -> bytes:
        tar, start, size = self.members[file]
        name = self.full_name(file)
        if size > self.limits.file_bytes:
            raise DataError(
                f"{name}: has {size:,} bytes, at most {self.limits.file_bytes:,} are read; make it smaller."
            )
        with open_blocks(self.paths[tar]) as opened:
            opened.seek(start)
            data = opened.read(size)
        if len(data) != size:
            raise DataError(f"{name}: cannot be read (the tar is cut off); write it again.")
        return data

    def stamp(self, file: str) -> int:
        return self.members[file][2]


# -- private -----------------------------------------------------------------------------------------------------------


@dataclass
class _Sample:
    """Files with one key."""

    image: str = ""
    mask: str = ""
    words: dict[str, Any] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Name of the image and of the mask -> place in the tar, size."""


@dataclass
class _Index:
    samples: dict[str, _Sample] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)


def _index(path: Path, limits: Limits) -> _Index:
    """What a tar holds. Raises DataError for a damaged or compressed one, and for contradictions in it."""
    index, seen = _Index(), set[str]()
    where = _shown(path)
    with open_blocks(path) as file:
        for name, kind, start, size in _members(file, where, limits.entries):
            if why := _refused(name, kind, seen):
                index.ignored[name[:200]] = why
                continue
            seen.add(name)
            key, suffix = _split(name)
            if not suffix:
                index.ignored[name] = "has no suffix that tells what it is"
                continue
            sample = index.samples.setdefault(key, _Sample())
            sample.names.append(name)
            if suffix in ("json", "cls"):
                if size > _LABEL_BYTES:
                    raise DataError(f"{where}/{name}: has {size:,} bytes, at most {_LABEL_BYTES:,} are read of labels.")
                file.seek(start)
                words = _read_label(file.read(size), suffix, f"{where}/{name}")
                for word, value in words.items():
                    if sample.words.setdefault(word, value) != value:
                        raise DataError(
                            f"{where}/{name}: contradicts the {word} of another file of {key}; correct one."
                        )
            elif suffix.startswith(("mask.", "seg.")) and is_image(name):
                sample.mask, sample.places[name] = name, (start, size)
            elif is_image(name) and not sample.image:
                sample.image, sample.places[name] = name, (start, size)
            else:
                index.ignored[name] = "a second image of its sample" if is_image(name) else "no image, label or mask"
    return index


def _refused(name: str, kind: bytes, seen: set[str]) -> str:
    """Why a file of a tar is passed over."""
    if kind not in tarfile.REGULAR_TYPES or kind == tarfile.GNUTYPE_SPARSE:
        return _SPECIAL.get(kind, "no ordinary file")
    if name.startswith("/") or {"", ".", ".."} & set(name.removeprefix("./").split("/")) or "\0" in name:
        return "a name that leads out of the tar"
    return "the same name as an earlier file" if name in seen else ""


def _members(file: BinaryIO, where: str, most: int) -> Iterator[tuple[str, bytes, int, int]]:
    """Name, type, place and size of what a tar holds, but folders.

    The standard library parses each header; the loop is here, since that of :mod:`tarfile` does not end for some damaged
    tars, and takes memory as their headers say.
    """
    long_name, extended, at, count = "", dict[str, str](), 0, 0
    while len(header := _at(file, at, _RECORD)) == _RECORD and header.strip(b"\0"):
        count += 1
        try:
            one = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            if (
                one.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME)
                and one.size > _HEADER_BYTES
            ):
                raise tarfile.HeaderError(f"a header of {one.size:,} bytes")
        except (tarfile.HeaderError, ValueError, UnicodeError) as error:
            compressed = header[:2] == b"\x1f\x8b" or header[:3] == b"BZh" or header[:6] == b"\xfd7zXZ\0"
            why = (
                "it is compressed; decompress it"
                if compressed and not at
                else f"{error} at byte {at:,}; write it again"
            )
            raise DataError(f"{where}: cannot be read as a tar ({why}).") from None
        start = at + _RECORD
        if one.type == tarfile.GNUTYPE_LONGNAME:
            long_name = _at(file, start, one.size).rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif one.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            extended = _extended(_at(file, start, one.size))
        elif one.type in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
            pass
        else:
            name = extended.get("path") or long_name or one.name
            sized = extended.get("size", "")
            one.size = int(sized) if sized.isascii() and sized.isdigit() and len(sized) < 19 else one.size
            if any(word.startswith("GNU.sparse") for word in extended):
                one.type = tarfile.GNUTYPE_SPARSE
            if one.type != tarfile.DIRTYPE and not (one.type == tarfile.AREGTYPE and name.endswith("/")):
                yield name, one.type, start, one.size
            long_name, extended = "", {}
        if one.size < 0:
            raise DataError(f"{where}: cannot be read as a tar (a negative size at byte {at:,}); write it again.")
        # of links and devices the size says nothing: they have no content
        has_content = one.type not in _SPECIAL and one.type != tarfile.DIRTYPE
        at = start + (-(-one.size // _RECORD) * _RECORD if has_content else 0)
        if count > most:
            raise DataError(f"{where}: holds more than {most:,} files, the limit; divide it.")
    if len(header) not in (0, _RECORD) or (not at and not header):
        raise DataError(f"{where}: cannot be read as a tar (it is cut off); write it again.")


def _at(file: BinaryIO, place: int, size: int) -> bytes:
    file.seek(place)
    return file.read(size)


def _extended(data: bytes) -> dict[str, str]:
    """The records ``LENGTH KEY=VALUE`` of an extended header."""
    words, at = dict[str, str](), 0
    while found := re.compile(rb"(\d{1,8}) ([^=\n]{1,100})=").match(data, at):
        end = at + int(found[1])
        if end <= found.end() or end > len(data):
            break
        words[found[2].decode("utf-8", "replace")] = data[found.end() : end - 1].decode("utf-8", "surrogateescape")
        at = end
    return words


def _split(name: str) -> tuple[str, str]:
    """Key and suffixes, without regard to case: ``a.b/000017.mask.png`` -> ``a.b/000017``, ``mask.png``."""
    folder, slash, last = name.rpartition("/")
    key, _, suffix = last.partition(".")
    return folder + slash + key, suffix.lower()


def _read_label(data: bytes, suffix: str, where: str) -> Mapping[str, Any]:
    if suffix == "cls":
        return {"label": _label(data.decode("utf-8", "replace").strip(), where)}
    try:
        content = parse_json(data)
    except ValueError as error:
        raise DataError(f"{where}: is not valid JSON ({error}); correct it.") from None
    if not isinstance(content, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(content).__name__}.")
    words: dict[str, Any] = {}
    for word in ("label", "split", "case", "type"):
        value = content.get(word)
        if value is None or value == "":
            continue
        if not isinstance(value, str | int | float) or len(str(value)) > 4096:
            raise DataError(f"{where}: expected a text or number as {word}, got {type(value).__name__}.")
        words[word] = _label(str(value), where) if word == "label" else str(value)
    if words.get("split", "train") not in SPLITS:
        raise DataError(f"{where}: expected the split train or test, got {words['split'][:50]!r}.")
    return words


def _label(text: str, where: str) -> int:
    label = LABELS.get(text.lower())
    if label is None:
        raise DataError(f"{where}: expected the label 0, 1, normal, good, anomalous or anomaly, got {text[:50]!r}.")
    return label


def _shown(path: Path) -> str:
    found = mounted(path)
    return str(path) if found is None else found.shown(path)
