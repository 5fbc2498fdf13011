"""Decisions as tables that other commands and programs read: ``labels.csv`` (an image in a row) and ``decisions.csv`` (a
decision in a row)."""

from __future__ import annotations

import csv
import io
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from normalcy.files import write_bytes
from normalcy.results.labels import COLUMNS, TABLE
from normalcy.results.names import harmless
from normalcy.review.store import Decision, Store

DECISIONS = "decisions.csv"
DECISION_COLUMNS = ("image", "reviewer", "verdict", "type", "note", "mask", "blind", "time")


@dataclass(frozen=True)
class Known:
    """What a table says of an image beside its decisions."""

    path: str
    """Of its file, absolute; or its own path in the data set where it is no file."""
    is_file: bool
    split: str = ""
    case: str = ""


@dataclass(frozen=True)
class Consensus:
    """What the reviewers of an image say together."""

    label: int | None
    """None: all are unsure, or they disagree."""
    type: str
    mask: str
    """That of the last of those whose label it is."""
    reviewer: str
    time: str
    note: str


def consensus(decisions: Sequence[Decision]) -> Consensus:
    """Of the current decisions about one image, in order of time. An unsure reviewer does not count against a sure one.

    >>> agreed = consensus([Decision("a.png", "anna", "anomalous", "crack"), Decision("a.png", "ben", "unsure")])
    >>> agreed.label, agreed.type, agreed.reviewer
    (1, 'crack', 'anna; ben')
    >>> consensus([Decision("a.png", "anna", "anomalous"), Decision("a.png", "ben", "normal")]).label is None
    True
    """
    sure = [one for one in decisions if one.label is not None]
    labels = {one.label for one in sure}
    label = labels.pop() if len(labels) == 1 else None
    own = [one for one in sure if one.label == label]
    types = [one.type for one in own if one.type]
    masks = [one.mask for one in own if one.mask and one.label == 1]
    notes = [one.note for one in decisions if one.note]
    if len({one.label for one in sure}) > 1:
        notes.insert(0, "reviewers disagree: " + ", ".join(f"{one.reviewer} {one.verdict}" for one in decisions))
    return Consensus(
        label=label,
        type=types[-1] if types else "",
        mask=masks[-1] if masks else "",
        reviewer="; ".join(dict.fromkeys(one.reviewer for one in decisions)),
        time=max((one.time for one in decisions), default=""),
        note=" | ".join(notes),
    )


def by_image(decisions: Sequence[Decision]) -> dict[str, list[Decision]]:
    found: dict[str, list[Decision]] = {}
    for one in decisions:
        found.setdefault(one.image, []).append(one)
    return found


def write_labels(store: Store, known: Callable[[str], Known]) -> Path:
    """Write ``labels.csv`` and ``decisions.csv`` anew; returns the place of the first."""
    file = store.folder / TABLE
    decisions = store.current()
    rows: list[list[object]] = []
    for image, own in by_image(decisions).items():
        agreed, facts = consensus(own), known(image)
        mask = agreed.mask and _relative(str(store.folder / agreed.mask), file.parent)
        path = _relative(facts.path, file.parent) if facts.is_file else facts.path
        label = "" if agreed.label is None else agreed.label
        rows.append(
            [path, facts.split, label, agreed.type, mask, facts.case, agreed.reviewer, agreed.time, agreed.note, image]
        )
    write_bytes(file, _csv(COLUMNS, rows))
    each = [
        [getattr(one, name) if name != "blind" else int(one.blind) for name in DECISION_COLUMNS] for one in decisions
    ]
    write_bytes(store.folder / DECISIONS, _csv(DECISION_COLUMNS, each))
    return file


class Writer:
    """Writes the tables beside the server: after a decision at once, after many as soon as the last writing ended."""

    def __init__(self, store: Store, known: Callable[[str], Known]) -> None:
        self._store, self._known = store, known
        self._wanted, self._stopped = threading.Event(), False
        self.fault = ""
        """Why the tables could not be written."""
        self._thread = threading.Thread(target=self._run, name="labels", daemon=True)
        self._thread.start()

    def changed(self) -> None:
        self._wanted.set()

    def close(self) -> None:
        self._stopped = True
        self._wanted.set()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while not self._stopped:
            self._wanted.wait()
            self._wanted.clear()
            try:
                write_labels(self._store, self._known)
                self.fault = ""
            except OSError as error:  # a full disk: the decisions themselves are in the database
                self.fault = str(error)


# -- private -----------------------------------------------------------------------------------------------------------


def _relative(path: str, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return path


def _csv(head: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([head, *([harmless(str(cell)) for cell in row] for row in rows)])
    return text.getvalue().encode("utf-8", "surrogateescape")
