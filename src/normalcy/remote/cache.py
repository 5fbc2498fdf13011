"""What was fetched, in a folder of bounded size: the entries that were used least recently make room for new ones.

Several threads and processes may use one folder. An SQLite database (``index.db``) holds the size, the checksum and the time of
use of each entry; bytes are reserved in it before they are fetched, so the bound holds at any moment.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from sqlite3 import Connection, OperationalError
from typing import BinaryIO

from normalcy.errors import DataError
from normalcy.files import anonymous_file, open_database, open_regular, private_folder, remove, writing

FOLDER = Path("~/.cache/normalcy/remote")
BYTES = 10 * 2**30
CHECKED = 2**26
"""Largest entry whose checksum is compared whenever it is used; of larger ones only the size is."""

_STALE = 3600.0
"""Seconds after which a reservation is one of a process that was killed."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries
    (key TEXT PRIMARY KEY, size INTEGER NOT NULL, crc INTEGER, used REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_use ON entries (used);
CREATE TABLE IF NOT EXISTS total (bytes INTEGER NOT NULL);
INSERT INTO total SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM total);
CREATE TRIGGER IF NOT EXISTS more AFTER INSERT ON entries BEGIN UPDATE total SET bytes = bytes + NEW.size; END;
CREATE TRIGGER IF NOT EXISTS less AFTER DELETE ON entries BEGIN UPDATE total SET bytes = bytes - OLD.size; END;
"""

Fill = Callable[[BinaryIO], None]
"""Writes the content of an entry to an empty file."""


class Cache:
    """Entries of at most ``limit`` bytes together in ``folder``."""

    def __init__(self, folder: Path = FOLDER, limit: int = BYTES) -> None:
        self.folder, self.limit = folder.expanduser().absolute(), limit
        self._opened: tuple[int, Connection] | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Cache], tuple[Path, int]]:
        return Cache, (self.folder, self.limit)

    def open(self, key: str, size: int | None, fill: Fill) -> BinaryIO:
        """The entry ``key`` (a hexadecimal hash of the place and the version), fetched by ``fill`` where it is missing or
        damaged.

        What is of unknown size (None), or larger than half of the cache, is fetched into a file without a name, each time.
        """
        if size is None or size > self.limit // 2:
            return _filled(anonymous_file(), fill)
        if (kept := self._kept(key, size)) is not None:
            return kept
        if not self._reserve(key, size):
            return _filled(anonymous_file(), fill)
        place = self._place(key)
        try:
            with writing(place) as file:
                fill(file)
            opened = open_regular(place)
            crc = _crc(opened) if size <= CHECKED else None
            self._change("UPDATE entries SET crc = ?, used = ? WHERE key = ?", (crc or 0, time.time(), key))
            return opened
        except BaseException:
            self._forget(key)
            raise

    def has(self, key: str) -> bool:
        """Whether an entry is complete; it may be gone when it is opened."""
        with self._lock:
            row = self._database().execute("SELECT crc FROM entries WHERE key = ?", (key,)).fetchone()
        return row is not None and row[0] is not None

    @property
    def bytes(self) -> int:
        """Of all entries, with those being fetched."""
        with self._lock:
            return int(self._database().execute("SELECT bytes FROM total").fetchone()[0])

    # -- private

    def _place(self, key: str) -> Path:
        return self.folder / key[:2] / key[2:]

    def _kept(self, key: str, size: int) -> BinaryIO | None:
        """The complete entry, if it is what was written."""
        with self._lock:
            row = self._database().execute("SELECT crc, used FROM entries WHERE key = ?", (key,)).fetchone()
        if row is None or row[0] is None:
            return None
        try:
            file = open_regular(self._place(key))
        except DataError:  # another process has made room
            self._forget(key)
            return None
        if os.fstat(file.fileno()).st_size != size or (size <= CHECKED and _crc(file) != row[0]):
            file.close()
            self._forget(key)
            return None
        if time.time() - row[1] > 1:
            self._change("UPDATE entries SET used = ? WHERE key = ?", (time.time(), key))
        return file

    def _reserve(self, key: str, size: int) -> bool:
        """Whether there is room now; entries make some, those used least recently first."""
        now = time.time()
        gone = list[str]()
        with self._lock:
            database = self._database()
            database.execute("BEGIN IMMEDIATE")
            try:
                database.execute("DELETE FROM entries WHERE crc IS NULL AND used < ?", (now - _STALE,))
                taken = int(database.execute("SELECT bytes FROM total").fetchone()[0])
                there = database.execute("SELECT size, crc FROM entries WHERE key = ?", (key,)).fetchone()
                if there is not None:  # another fetches it, or has just done so
                    database.execute("COMMIT")
                    return False
                rows = database.execute("SELECT key, size FROM entries WHERE crc IS NOT NULL ORDER BY used")
                while taken + size > self.limit and (row := rows.fetchone()) is not None:
                    gone.append(row[0])
                    taken -= row[1]
                if taken + size > self.limit:
                    database.execute("ROLLBACK")
                    return False
                rows.close()
                for old in gone:  # in the transaction: their bytes are free when others see that they are
                    remove(self._place(old))
                database.executemany("DELETE FROM entries WHERE key = ?", [(old,) for old in gone])
                database.execute("INSERT INTO entries VALUES (?, ?, NULL, ?)", (key, size, now))
                database.execute("COMMIT")
                return True
            except BaseException:
                with suppress(OperationalError):
                    database.execute("ROLLBACK")
                raise

    def _forget(self, key: str) -> None:
        remove(self._place(key))
        self._change("DELETE FROM entries WHERE key = ?", (key,))

    def _change(self, statement: str, values: tuple[object, ...]) -> None:
        with self._lock:
            self._database().execute(statement, values)

    def _database(self) -> Connection:
        """One per process: a connection must not go through a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            private_folder(self.folder)
            database = open_database(self.folder / "index.db")
            database.execute("PRAGMA synchronous=NORMAL")  # what a loss of power takes is fetched again
            database.executescript(_SCHEMA)
            self._opened = os.getpid(), database
        return self._opened[1]


def _filled(file: BinaryIO, fill: Fill) -> BinaryIO:
    try:
        fill(file)
        file.seek(0)
        return file
    except BaseException:
        file.close()
        raise


def _crc(file: BinaryIO) -> int:
    """Of a whole file, which is then at its beginning again."""
    crc = 0
    while part := file.read(2**20):
        crc = zlib.crc32(part, crc)
    file.seek(0)
    return crc


def copy(source: BinaryIO, target: BinaryIO) -> None:
    shutil.copyfileobj(source, target, 2**20)
