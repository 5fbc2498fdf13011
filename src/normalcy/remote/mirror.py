"""A listing of a store as a folder of this machine, whose files are fetched when they are opened.

The folder holds an empty file of the right name and size for each file of the store, so all that reads folders reads stores,
too. :mod:`normalcy.files`, the one module that opens files, asks the mirror for what lies in its folder: small files come
whole from the cache, of archives the parts that are read. What is read in order is fetched ahead.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from normalcy.errors import DataError, NormalcyError
from normalcy.files import blank_file, mount, open_blocks, temporary_folder
from normalcy.remote.cache import Cache
from normalcy.remote.store import Entry, Store, ZipStore
from normalcy.remote.urls import Url, is_url, parse, public

BLOCK = 2**22
"""Bytes of an archive that are fetched at once."""
AHEAD = 16
"""Files that are fetched ahead, in as many threads."""
_NEAR = 8
"""Files that may be passed over where files are read in order."""
_LONGEST = 255
"""Bytes of a name of a file."""


@dataclass
class Setting:
    """Where fetched files are kept, and how many bytes of them."""

    cache: Cache


SETTING = Setting(Cache())


def use_cache(folder: Path | str | None = None, limit: int | None = None) -> None:
    """Keep fetched files in ``folder``, at most ``limit`` bytes; None: as it was (``~/.cache/normalcy/remote``, 10 GiB)."""
    known = SETTING.cache
    SETTING.cache = Cache(known.folder if folder is None else Path(folder), known.limit if limit is None else limit)


def open_store(url: Url, cache: Cache) -> Store:
    if url.protocol != "zip":
        return Store(url)
    return ZipStore(url, partial(_open_archive, url, cache))


class Mirror:
    """Files of a store below ``base``, in the folder ``root`` of this machine, which lives as long as this object.

    ``passed``: files that no folder can hold, with the reason.
    """

    def __init__(self, store: Store, base: str, name: str, entries: Iterable[Entry], cache: Cache) -> None:
        self.store, self.base, self.cache = store, base, cache
        self._temporary = temporary_folder()
        self.root = Path(os.path.realpath(self._temporary.name)) / (_plain(name) or store.url.protocol)
        self.entries: list[Entry] = []
        self.places: dict[str, int] = {}
        self.passed: dict[str, str] = {}
        self.add(entries)
        self._attach()

    def _attach(self) -> None:
        self._last = -1
        self._lock = threading.RLock()  # a future that is done at once calls back in the thread that holds it
        self._fetching: dict[int, Future[None]] = {}
        self._pool: tuple[int, ThreadPoolExecutor] | None = None
        mount(self)

    def __reduce__(self) -> tuple[Callable[..., Mirror], tuple[Any, ...]]:
        """In another process the same folder, which the first one removes."""
        return _attached, (self.store, self.base, self.root, self.entries, self.places, self.cache)

    def add(self, entries: Iterable[Entry]) -> None:
        """Further files."""
        made = set[Path]()
        for entry in entries:
            why = _unusable(entry.name)
            if not why and entry.name not in self.places:
                try:
                    blank_file(self.root / entry.name, entry.size or 0, made)
                except OSError as error:
                    why = f"a name that this machine cannot hold ({error.strerror})"
            if why:
                self.passed[entry.name] = why
            elif entry.name not in self.places:
                self.places[entry.name] = len(self.entries)
                self.entries.append(entry)
        if not self.places:
            blank_file(self.root / ".empty", 0, made)

    # -- what normalcy.files asks for

    def open(self, path: Path) -> BinaryIO | None:
        """The whole file, from the cache; None where there is none."""
        place = self._place(path)
        if place is None:
            return None
        with self._lock:
            waiting = self._fetching.get(place)
        if waiting is not None:
            with suppress(Exception):  # it is tried again here
                waiting.result()
        self._fetch_ahead(place)
        return self._open(place)

    def head(self, path: Path, count: int) -> bytes | None:
        """The first bytes of a file."""
        place = self._place(path)
        if place is None:
            return None
        entry = self.entries[place]
        if entry.size is None or self.cache.has(self._key(entry)):
            with self._open(place) as file:
                return file.read(count)
        return self.store.part(entry, 0, min(count, entry.size))

    def blocks(self, path: Path) -> BinaryIO | None:
        """A file to be read at any place, of which only what is read is fetched."""
        place = self._place(path)
        if place is None:
            return None
        entry = self.entries[place]
        if entry.size is None:
            return self._open(place)
        return buffered(self.store, entry, self.cache)

    def shown(self, path: Path | str) -> str:
        """The URL of a file of the folder, without what may be secret."""
        name = os.path.relpath(path, self.root)
        if name == ".":
            return str(self.store.shown(self.base))
        return self.store.shown(f"{self.base.rstrip('/')}/{name}" if self.base else name)

    def in_words(self, text: str) -> str:
        """A text about the folder as one about the store."""
        shown = self.shown(self.root)
        return public(text.replace(str(self.root), shown))

    # -- private

    def _place(self, path: Path) -> int | None:
        return self.places.get(os.path.relpath(path, self.root).replace(os.sep, "/"))

    def _key(self, entry: Entry) -> str:
        return key_of(self.store, entry, "whole")

    def _open(self, place: int) -> BinaryIO:
        entry = self.entries[place]
        return self.cache.open(self._key(entry), entry.size, partial(self.store.fetch, entry))

    def _fetch_ahead(self, place: int) -> None:
        """Where files are opened in order, those that follow: as many as a quarter of the cache holds."""
        with self._lock:
            in_order = 0 < place - self._last <= _NEAR or self._last - _NEAR < place <= self._last
            self._last = max(place, self._last) if in_order else place
            if not in_order:
                return
            room = self.cache.limit // 4
            for further in range(place + 1, min(place + 1 + AHEAD, len(self.entries))):
                size = self.entries[further].size
                room -= size or self.cache.limit
                if room < 0:
                    return
                if further not in self._fetching:
                    future = self._threads().submit(self._fetch, further)
                    self._fetching[further] = future
                    future.add_done_callback(partial(self._fetched, further))

    def _fetch(self, place: int) -> None:
        with suppress(NormalcyError, OSError):  # said when it is opened
            if not self.cache.has(self._key(self.entries[place])):
                self._open(place).close()

    def _fetched(self, place: int, _: Future[None]) -> None:
        with self._lock:
            self._fetching.pop(place, None)

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None or self._pool[0] != os.getpid():
            pool = ThreadPoolExecutor(AHEAD, "normalcy-ahead")
            weakref.finalize(self, pool.shutdown, wait=False, cancel_futures=True)
            self._pool = os.getpid(), pool
        return self._pool[1]


class Blocks(io.RawIOBase):
    """A file of a store, read at any place in blocks, which are kept in the cache."""

    def __init__(self, store: Store, entry: Entry, cache: Cache) -> None:
        super().__init__()
        self.store, self.entry, self.cache, self.at = store, entry, cache, 0
        self.size = entry.size or 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence])
        return self.at

    def readinto(self, buffer: Any) -> int:
        first = self.at // BLOCK * BLOCK
        end = min(first + BLOCK, self.size)
        count = min(len(buffer), end - self.at)
        if count <= 0:
            return 0
        key = key_of(self.store, self.entry, str(first))
        fill = partial(self._fill, first, end)
        with self.cache.open(key, end - first, fill) as file:
            file.seek(self.at - first)
            data = file.read(count)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)

    def _fill(self, first: int, end: int, file: BinaryIO) -> None:
        file.write(self.store.part(self.entry, first, end))
        file.flush()


def buffered(store: Store, entry: Entry, cache: Cache) -> BinaryIO:
    return cast("BinaryIO", io.BufferedReader(Blocks(store, entry, cache), 2**16))


def key_of(store: Store, entry: Entry, part: str) -> str:
    """What stands for this content of this place in the cache: a hash, from which nothing secret can be read."""
    where = (store.url.protocol, store.url.archive, entry.path, entry.version, entry.size, part)
    return hashlib.sha256(repr(where).encode("utf-8", "surrogatepass")).hexdigest()


# -- private -----------------------------------------------------------------------------------------------------------


def _attached(
    store: Store, base: str, root: Path, entries: list[Entry], places: dict[str, int], cache: Cache
) -> Mirror:
    mirror = Mirror.__new__(Mirror)
    mirror.store, mirror.base, mirror.root, mirror.cache = store, base, root, cache
    mirror.entries, mirror.places, mirror.passed = entries, places, {}
    mirror._attach()
    return mirror


def _open_archive(url: Url, cache: Cache) -> BinaryIO:
    """The zip of a URL, for reading at any place."""
    if not is_url(url.archive):
        return open_blocks(Path(url.archive).expanduser())
    target = parse(url.archive)
    store = Store(target)
    entry = store.entry(store.root)
    if entry is None:
        raise DataError(f"{target}: is not there; check the name.")
    if entry.size is not None:
        return buffered(store, entry, cache)
    return cache.open(key_of(store, entry, "whole"), None, partial(store.fetch, entry))


def _plain(name: str) -> str:
    """A name of a folder that is one: without what leads elsewhere."""
    return "" if _unusable(name) else name


def _unusable(name: str) -> str:
    """Why a name of a store cannot be one of a file below a folder; empty where it can."""
    parts = name.split("/")
    if "" in parts or "." in parts or ".." in parts:
        return "a name that leads out of its folder or has an empty part"
    if "\0" in name or (os.sep != "/" and re.search(r'[\\:*?"<>|]', name)):
        return "a name that this machine cannot hold"
    if max(len(part.encode("utf-8", "surrogatepass")) for part in parts) > _LONGEST:
        return f"a name of more than {_LONGEST} bytes"
    return ""
