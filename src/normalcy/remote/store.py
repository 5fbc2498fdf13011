"""Stores that fsspec reaches, and zips in them: listed, read and written with retries, without what is secret in messages.

Each operation is tried up to ``TRIES`` times with growing pauses. A file that is shorter than the store says is a fault, too.
Where ``PATIENCE`` operations in a row were given up, the store is taken for gone: from then on each is tried once.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, TypeVar

from normalcy.errors import DataError, NormalcyError, SettingsError, WriteError
from normalcy.remote.urls import PROTOCOLS, WEB, Url, public

TRIES = 6
FIRST_PAUSE = 0.5
"""Seconds after the first fault; each further pause is twice as long, up to LONGEST_PAUSE, with a random part."""
LONGEST_PAUSE = 8.0
PATIENCE = 10
STALLED = 60.0
"""Seconds without a byte after which a connection is given up."""

FILE_SYSTEMS: dict[tuple[int, str], Any] = {}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a store."""

    name: str
    """Relative to the place that was listed."""
    path: str
    """As the store calls it."""
    size: int | None
    """In bytes; None where the store does not say."""
    version: str = ""
    """What changes with the content (ETag, time of change); empty where the store does not say."""


class Store:
    """The store of a URL; used from any number of threads and processes."""

    def __init__(self, url: Url) -> None:
        self.url = url
        self._given_up = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Store], tuple[Any, ...]]:
        return Store, (self.url,)

    @property
    def root(self) -> str:
        """The path of the URL in the store."""
        return self.path_of(self.url.text)

    def path_of(self, text: str) -> str:
        """What the store calls the place of a URL of its own."""
        return str(self._fs()._strip_protocol(text))

    def entry(self, path: str, name: str = "") -> Entry | None:
        """The file of this path; None where there is none."""
        return self._tried(path, lambda fs: _entry(fs.info(path), name or path.rpartition("/")[2]), missing=None)

    def under(self, path: str, most: int, deep: bool = True) -> list[Entry]:
        """The files below a folder, or directly in it; empty where there are none. Raises DataError for more than ``most``."""
        base = path.rstrip("/") + "/" if path.strip("/") else path
        if self.url.protocol in WEB:
            return self._linked(base, most)
        found: Mapping[str, Any] = self._tried(
            path, lambda fs: fs.find(path, maxdepth=None if deep else 1, detail=True), missing={}
        )
        return self._entries(found, base, most)

    def matching(self, pattern: str, base: str, most: int) -> list[Entry]:
        """The files that match a pattern with ``*``, ``?`` and ``[]``, relative to ``base``."""
        found: Mapping[str, Any] = self._tried(pattern, lambda fs: fs.glob(pattern, detail=True), missing={})
        return self._entries(found, base.rstrip("/") + "/" if base.strip("/") else base, most)

    def fetch(self, entry: Entry, file: BinaryIO) -> None:
        """The whole content into an empty file."""

        def get(fs: Any) -> None:
            fs.get_file(entry.path, file.name)
            got = os.fstat(file.fileno()).st_size
            if entry.size is not None and got != entry.size:
                raise _Cut(f"got {got:,} of {entry.size:,} bytes")

        self._tried(entry.path, get)

    def part(self, entry: Entry, start: int, end: int) -> bytes:
        """Bytes from ``start`` to before ``end``, which is not beyond the end of the file."""

        def get(fs: Any) -> bytes:
            data = bytes(fs.cat_file(entry.path, start=start, end=end))
            if len(data) == entry.size:  # all of it, from a server that does not know ranges
                data = data[start:end]
            if len(data) != end - start:
                raise _Cut(f"got {len(data):,} of {end - start:,} bytes")
            return data

        return self._tried(entry.path, get)

    def send(self, file: str, path: str) -> None:
        """The content of a local file, as the file ``path`` of the store."""

        def put(fs: Any) -> None:
            fs.put_file(file, path)
            size, there = os.stat(file).st_size, fs.info(path).get("size")
            if there != size:
                raise _Cut(f"stored {there} of {size:,} bytes")

        self._tried(path, put, WriteError)

    def send_bytes(self, data: bytes, path: str) -> None:
        self._tried(path, lambda fs: fs.pipe_file(path, data), WriteError)

    def read_small(self, path: str) -> bytes | None:
        """A small file, None where there is none."""
        return self._tried(path, lambda fs: bytes(fs.cat_file(path)), missing=None)

    def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            self._tried(path, partial(_delete, path), WriteError, missing=None)

    def shown(self, path: str) -> str:
        """The URL of a path of the store, without what may be secret."""
        return public(str(path if "://" in path else f"{self.url.protocol}://{path.lstrip('/')}"))

    # -- private

    def _linked(self, base: str, most: int) -> list[Entry]:
        """Files that the index page of a web server names, and those of the folders below."""
        found, waiting, seen = list[Entry](), [base], {base}
        while waiting:
            below = waiting.pop()
            links: list[Mapping[str, Any]] = self._tried(below, partial(_links, below), missing=[])
            for link in links:
                path = str(link["name"])
                if not path.startswith(below) or path == below or "?" in path or "#" in path:
                    continue  # leads out, or sorts the page
                if path.endswith("/"):
                    waiting += {path} - seen
                    seen.add(path)
                elif (entry := self.entry(path, path[len(base) :])) is not None:
                    found.append(entry)
                if len(found) + len(seen) > most:
                    raise DataError(f"{self.url}: holds more files than are read; name a smaller folder.")
        return sorted(found, key=lambda entry: entry.name)

    def _entries(self, found: Mapping[str, Any], base: str, most: int) -> list[Entry]:
        if len(found) > most:
            raise DataError(f"{self.url}: holds more files than are read; name a smaller folder.")
        entries = (
            _entry(info, path[len(base) :])
            for path, info in sorted(found.items())
            if path.startswith(base) and not path.endswith("/")
        )
        return [entry for entry in entries if entry is not None]

    def _fs(self) -> Any:
        """fsspec's file system, one per process and protocol: those of s3 take seconds to make."""
        key = os.getpid(), self.url.protocol
        if key not in FILE_SYSTEMS:
            FILE_SYSTEMS[key] = _file_system(self.url)
        return FILE_SYSTEMS[key]

    def _tried(self, path: str, work: Callable[[Any], T], error: type[NormalcyError] = DataError, **missing: T) -> T:
        tries = TRIES if self._given_up < PATIENCE else 1
        for k in range(tries):
            try:
                done = work(self._fs())
                self._given_up = 0
                return done
            except NormalcyError:
                raise
            except FileNotFoundError:
                if "missing" in missing:
                    return missing["missing"]
                raise error(f"{self.shown(path)}: is not there; check the name.") from None
            except Exception as fault:  # of the libraries of all stores
                reason, again = _explain(fault)
                if not again or k == tries - 1:
                    with self._lock:
                        self._given_up += again
                    often = f" after {tries} tries" if again and tries > 1 else ""
                    raise error(f"{self.shown(path)}: cannot be reached{often} ({reason}).") from None
            time.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2**k) * random.uniform(0.5, 1))
        raise AssertionError("the last try returns or raises")


class ZipStore(Store):
    """What is in a zip, which is a local file or one of another store."""

    def __init__(self, url: Url, archive: Callable[[], BinaryIO]) -> None:
        super().__init__(url)
        self.archive = archive
        """Opens the zip itself, for reading at any place."""
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        self._reading = threading.Lock()

    def __reduce__(self) -> tuple[type[Store], tuple[Any, ...]]:
        return ZipStore, (self.url, self.archive)

    @property
    def root(self) -> str:
        return self.url.text

    def entry(self, path: str, name: str = "") -> Entry | None:
        with self._reading:
            one = self._zip().NameToInfo.get(path)
        return None if one is None else _member(one, name or path.rpartition("/")[2])

    def under(self, path: str, most: int, deep: bool = True) -> list[Entry]:
        base = path.rstrip("/") + "/" if path else ""
        with self._reading:
            members = self._zip().infolist()
        if len(members) > most:
            raise DataError(f"{self.url}: holds more files than are read; name a smaller zip.")
        found = [one for one in members if one.filename.startswith(base) and not one.is_dir()]
        found = [one for one in found if deep or "/" not in one.filename[len(base) :]]
        return sorted((_member(one, one.filename[len(base) :]) for one in found), key=lambda entry: entry.name)

    def matching(self, pattern: str, base: str, most: int) -> list[Entry]:
        raise DataError(f"{self.url}: no patterns inside a zip; name a folder of it.")

    def fetch(self, entry: Entry, file: BinaryIO) -> None:
        with self._reading:
            file.write(self._read(entry, entry.size or 0))
        file.flush()

    def part(self, entry: Entry, start: int, end: int) -> bytes:
        if start:
            raise DataError(f"{self.shown(entry.path)}: an archive in a zip cannot be read; unpack it.")
        with self._reading:
            return self._read(entry, end)

    def send(self, file: str, path: str) -> None:
        raise SettingsError(f"{self.url}: nothing is written into a zip.")

    def shown(self, path: str) -> str:
        return public(f"zip://{path}::{self.url.archive}")

    def _read(self, entry: Entry, count: int) -> bytes:
        try:
            with self._zip().open(entry.path) as member:
                return member.read(count)
        except (OSError, KeyError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            if isinstance(error, NormalcyError):
                raise
            raise DataError(f"{self.shown(entry.path)}: cannot be read ({error}); fetch the zip again.") from None

    def _zip(self) -> zipfile.ZipFile:
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                self._opened = os.getpid(), zipfile.ZipFile(self.archive())
            except (OSError, ValueError, zipfile.BadZipFile) as error:
                if isinstance(error, NormalcyError):
                    raise
                raise DataError(f"{self.url}: cannot be opened as a zip ({error}).") from None
        return self._opened[1]


# -- private -----------------------------------------------------------------------------------------------------------


class _Cut(OSError):
    """A connection that ended in the middle."""


def _file_system(url: Url) -> Any:
    try:
        import fsspec
        from fsspec.config import conf
    except ImportError:
        raise DataError(f'{url}: reading URLs needs fsspec; pip install "normalcy[remote]".') from None
    own: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    known = conf.get(url.protocol, {})  # of the user's configuration: what is set here is added to it
    try:
        if url.protocol in WEB:
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALLED / 4, sock_read=STALLED)
            own["client_kwargs"] = {"timeout": timeout, **known.get("client_kwargs", {})}
        elif url.protocol in ("s3", "s3a"):
            wait = {"connect_timeout": STALLED / 4, "read_timeout": STALLED, "retries": {"max_attempts": 0}}
            own["config_kwargs"] = {**wait, **known.get("config_kwargs", {})}
        fs = fsspec.filesystem(url.protocol, **own)
    except ImportError:
        package = PROTOCOLS[url.protocol]
        raise DataError(f"{url}: reading {url.protocol}:// needs {package}; pip install {package}.") from None
    except Exception as fault:
        raise DataError(f"{url}: cannot be opened ({_explain(fault)[0]}).") from None
    if hasattr(fs, "retries"):
        fs.retries = 1  # once: the store counts its own tries
    return fs


def _delete(path: str, fs: Any) -> None:
    fs.rm_file(path)


def _links(path: str, fs: Any) -> list[Mapping[str, Any]]:
    return list(fs.ls(path, detail=True))


def _entry(info: Mapping[str, Any], name: str) -> Entry | None:
    if info.get("type") == "directory":
        return None
    size = info.get("size")
    marks = ("ETag", "etag", "md5Hash", "generation", "LastModified", "mtime", "last_modified", "created")
    version = next((str(info[mark]) for mark in marks if info.get(mark)), "")
    return Entry(name, str(info["name"]), None if size is None else int(size), version)


def _member(one: zipfile.ZipInfo, name: str) -> Entry:
    return Entry(name, one.filename, one.file_size, f"{one.CRC:08x}")


_GONE = (403, 401, 400, 404, 405, 410, 416, 501)
"""HTTP statuses that another try does not change."""


def _explain(fault: Exception) -> tuple[str, bool]:
    """Why an operation failed, without what may be secret, and whether it may work another time."""
    status = getattr(fault, "status", None)
    if isinstance(status, int):
        return f"HTTP status {status}", status not in _GONE
    kind = type(fault).__name__
    if kind in ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "GoogleAuthError"):
        return "no credentials; give them as fsspec's package for this store expects them", False
    if isinstance(fault, PermissionError):
        return "access is denied; check the credentials", False
    if isinstance(fault, TimeoutError) or "Timeout" in kind:
        return "no answer in time", True
    text = " ".join(public(str(fault)).split())
    text = re.sub(r"[A-Za-z0-9+/=_-]{32,}", "...", text)[:160].rstrip(".")
    again = isinstance(fault, OSError) or type(fault).__module__.split(".")[0] in ("aiohttp", "botocore", "aiobotocore")
    return f"{kind}: {text}" if text else kind, again
