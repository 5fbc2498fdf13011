"""Decisions on disk: an SQLite database to which each decision is added, so that none is lost and none overwritten.

The decision of a reviewer about an image is the last one that he or she made; two reviewers never share a row.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from normalcy.errors import DataError
from normalcy.files import open_database, read_database

DATABASE = "review.sqlite"
VERDICTS = ("normal", "anomalous", "unsure", "")
"""What can be decided; an empty one withdraws the decision."""
LONGEST = {"image": 4096, "reviewer": 60, "type": 60, "note": 2000, "mask": 4096}
"""Characters of each text."""
_TABLE = """
CREATE TABLE IF NOT EXISTS decisions (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    image TEXT NOT NULL,
    reviewer TEXT NOT NULL,
    verdict TEXT NOT NULL CHECK (verdict IN ('normal', 'anomalous', 'unsure', '')),
    type TEXT NOT NULL,
    note TEXT NOT NULL,
    mask TEXT NOT NULL,
    blind INTEGER NOT NULL,
    time TEXT NOT NULL
)"""
_INDEX = "CREATE INDEX IF NOT EXISTS by_image ON decisions (image, reviewer, seq)"


@dataclass(frozen=True)
class Decision:
    """What a reviewer said of an image."""

    image: str
    """Its path in ``scores.csv``."""
    reviewer: str
    verdict: str
    """``normal``, ``anomalous``, ``unsure``, or empty where it is withdrawn."""
    type: str = ""
    """Kind of anomaly."""
    note: str = ""
    mask: str = ""
    """File below the review folder, with "/"; empty: nothing marked."""
    blind: bool = False
    """Whether scores and maps were hidden."""
    time: str = ""
    """UTC, ISO 8601."""
    seq: int = 0
    """Number in the database, from 1."""

    @property
    def label(self) -> int | None:
        """0 normal, 1 anomalous, None unsure."""
        return {"normal": 0, "anomalous": 1}.get(self.verdict)

    def checked(self) -> Decision:
        """The same with clean texts. Raises DataError for what is no decision."""
        if self.verdict not in VERDICTS:
            raise DataError(f"a decision must be normal, anomalous, unsure or empty, got {self.verdict[:20]!r}.")
        reviewer = " ".join(self.reviewer.split())
        if not reviewer or not reviewer.isprintable():
            raise DataError("a decision needs the name of its reviewer, in printable characters.")
        for name, most in LONGEST.items():
            if len(getattr(self, name)) > most:
                raise DataError(f"the {name} of a decision may have {most} characters, got {len(getattr(self, name))}.")
        kind = " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", self.type).split())
        note = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", " ", self.note).strip()
        return replace(self, reviewer=reviewer, type=kind, note=note)


_COLUMNS = ", ".join(f.name for f in fields(Decision))


class Store:
    """The decisions of a review folder. Used from any number of threads; other processes may use the same folder."""

    def __init__(self, folder: Path, read_only: bool = False) -> None:
        self.folder, self.read_only = folder, read_only
        self._lock = threading.Lock()
        path = folder / DATABASE
        if read_only and not path.exists():
            self._database = None
            return
        self._database = read_database(path) if read_only else open_database(path)
        if not read_only:
            with self._lock:
                self._database.execute(_TABLE)
                self._database.execute(_INDEX)

    def close(self) -> None:
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None

    def add(self, decision: Decision) -> Decision:
        """Write a decision; it is on disk when this returns. Returns it with its number and time."""
        return self.add_all([decision])[0]

    def add_all(self, decisions: Iterable[Decision]) -> list[Decision]:
        """Write several in one step, all or none. Raises DataError for what is no decision."""
        if self.read_only or self._database is None:
            raise DataError("this review is read-only: no decision is written.")
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        clean = [replace(one.checked(), time=one.time or now) for one in decisions]
        written = []
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                for one in clean:
                    cursor = self._database.execute(
                        f"INSERT INTO decisions ({_COLUMNS.rpartition(',')[0]}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                        astuple(one)[:-1],
                    )
                    written.append(replace(one, seq=int(cursor.lastrowid or 0)))
                self._database.execute("COMMIT")
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
        return written

    def after(self, seq: int = 0) -> list[Decision]:
        """Everything written after a number, in order."""
        return self._rows(f"SELECT {_COLUMNS} FROM decisions WHERE seq > ? ORDER BY seq", (seq,))

    def current(self) -> list[Decision]:
        """The last decision of each reviewer about each image, without those withdrawn, in order of time."""
        text = (
            f"SELECT {_COLUMNS} FROM decisions WHERE seq IN "
            "(SELECT MAX(seq) FROM decisions GROUP BY image, reviewer) AND verdict != '' ORDER BY seq"
        )
        return self._rows(text, ())

    def of(self, image: str, reviewer: str) -> Decision | None:
        """The last decision of a reviewer about an image, withdrawn ones included."""
        text = f"SELECT {_COLUMNS} FROM decisions WHERE image = ? AND reviewer = ? ORDER BY seq DESC LIMIT 1"
        return next(iter(self._rows(text, (image, reviewer))), None)

    def _rows(self, text: str, values: tuple[object, ...]) -> list[Decision]:
        with self._lock:
            if self._database is None:
                return []
            rows = self._database.execute(text, values).fetchall()
        names = [f.name for f in fields(Decision)]
        return [Decision(**{**dict(zip(names, row)), "blind": bool(row[names.index("blind")])}) for row in rows]


def folder_of(reviewer: str) -> str:
    """The name of a reviewer's folder of masks: different for names that differ, also where case does not count.

    >>> folder_of("anna"), folder_of("Dr. Ben/../x")
    ('anna', 'Dr._Ben_.._x-45febdb4')
    """
    plain = re.sub(r"[^\w.-]", "_", reviewer, flags=re.ASCII)
    if plain == reviewer and reviewer == reviewer.lower() and reviewer.strip(".") == reviewer:
        return plain
    return f"{plain.strip('.') or 'reviewer'}-{hashlib.sha256(reviewer.encode()).hexdigest()[:8]}"
