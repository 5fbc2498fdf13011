"""Whole folders to and from stores.

A folder is written on this machine first and uploaded when it is complete. ``.normalcy-uploading`` is there from before the
work until all files are; the file that says what a folder is (``run.json``, ``detector.json``) is uploaded last, and where a
folder is replaced removed first. So what is only partly there does not look complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from normalcy.errors import DataError, SettingsError
from normalcy.files import MARKS, is_inside, make_folder, writing
from normalcy.remote.store import Entry, Store
from normalcy.remote.urls import WEB, Url, is_url, parse, public

UPLOADING = ".normalcy-uploading"
_AT_ONCE = 16
_MOST = 2**22


class Upload:
    """A folder of a store that will be written: decided before any work, sent at the end.

    Raises SettingsError where the folder is not empty, unless ``overwrite``; where it is read (``sources``); where another
    process uploads it; and where it holds files but none that say that normalcy wrote them. Raises WriteError where it cannot
    be written.
    """

    def __init__(self, text: str, overwrite: bool = False, sources: Iterable[str] = ()) -> None:
        self.url = parse(text)
        _refuse(self.url)
        self.store = Store(self.url)
        self.base = self.store.root.rstrip("/")
        if not self.base.strip("/").count("/") and self.url.protocol != "memory":
            raise SettingsError(f"{self.url}: expected a folder of a bucket, got a whole bucket; add a name.")
        for source in filter(is_url, sources):
            if f"{public(source).rstrip('/')}/".startswith(f"{str(self.url).rstrip('/')}/"):
                raise SettingsError(f"{self.url} holds {public(source)}, which is read: choose another folder.")
        there = {entry.name for entry in self._listed()}
        if there and not overwrite:
            left = " (an upload that is going on, or did not end)" if UPLOADING in there else ""
            raise SettingsError(f"{self.url} is not empty{left}: choose another folder or pass --overwrite.")
        if there and not there & {*MARKS, UPLOADING}:
            raise SettingsError(
                f"{self.url} holds files that normalcy did not write, such as {min(there)}: choose another."
            )
        self._token = os.urandom(16).hex().encode()
        self.store.send_bytes(self._token, self._path(UPLOADING))

    def send(self, folder: Path) -> None:
        """All files of ``folder``, then the one that says what it is; files of before are removed."""
        if self.store.read_small(self._path(UPLOADING)) != self._token:
            raise SettingsError(f"{self.url} is being written by another process: nothing is uploaded.")
        new = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        marks = [name for name in MARKS if name in new]
        before = {entry.name: entry.path for entry in self._listed()}
        self.store.delete(before[name] for name in MARKS if name in before)
        rest = [name for name in new if name not in marks]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda name: self.store.send(str(new[name]), self._path(name)), rest))
        self.store.delete(path for name, path in before.items() if name not in {*new, *MARKS, UPLOADING})
        for name in marks:
            self.store.send(str(new[name]), self._path(name))
        self.store.delete([self._path(UPLOADING)])

    def give_up(self) -> None:
        """Where the work failed before anything was sent: leave no trace."""
        if self.store.read_small(self._path(UPLOADING)) == self._token:
            self.store.delete([self._path(UPLOADING)])

    def _listed(self) -> list[Entry]:
        return self.store.under(self.base, _MOST)

    def _path(self, name: str) -> str:
        return f"{self.base}/{name}"


def download(text: str, folder: Path) -> None:
    """All files below a URL into an existing folder. Raises DataError where there are none, or where an upload has not
    ended.
    """
    url = parse(text)
    if url.protocol == "zip":
        raise SettingsError(f"{url}: expected a folder of a store; unpack the zip.")
    store = Store(url)
    base = store.root.rstrip("/")
    entries = store.under(base, _MOST)
    if not entries:
        raise DataError(f"{url}: no such folder; check the name.")
    if any(entry.name == UPLOADING for entry in entries):
        raise DataError(f"{url}: is not complete: its upload is going on, or did not end.")

    def get(entry: Entry) -> None:
        target = folder / entry.name
        if ".." in entry.name.split("/") or not is_inside(target, folder):
            raise DataError(f"{url}: {entry.name!r} leads out of the folder.")
        make_folder(target.parent)
        with writing(target) as file:
            store.fetch(entry, file)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(get, entries))


def send_changed(folder: Path, text: str, before: dict[str, tuple[int, int]]) -> None:
    """Files of a downloaded folder that are new or have changed, back to where it came from."""
    url = parse(text)
    _refuse(url)
    store = Store(url)
    base = store.root.rstrip("/")
    for name, stamp in stamps(folder).items():
        if before.get(name) != stamp:
            store.send(str(folder / name), f"{base}/{name}")


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of each file."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def _refuse(url: Url) -> None:
    if url.protocol in (*WEB, "zip"):
        raise SettingsError(
            f"{url}: nothing is written to {url.protocol}://; name a local folder or one of a store as s3://."
        )
