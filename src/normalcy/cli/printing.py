"""What the command line prints: results to stdout, messages and progress to stderr, everything neutralised for terminals."""

from __future__ import annotations

import io
import json
import logging
import math
import shutil
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from normalcy.errors import NormalcyWarning
from normalcy.remote.urls import public

if TYPE_CHECKING:
    from rich.console import Console

    from normalcy.results.comparison import Compared
    from normalcy.results.metrics import Metrics
    from normalcy.training.log import Record

OnProgress = Callable[[int, int], None]
"""Gets (done, total)."""
WIDTH = 160
"""Columns of a table where stdout is no terminal."""

_BIDIRECTIONAL = {*"\u061c\u200e\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}
_UNSAFE = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode categories: control characters, surrogates (bytes that are no UTF-8), line and paragraph separators."""


def printable(text: str) -> str:
    r"""``text`` with everything escaped that would act on a terminal, or reorder what it shows; lines and tabs stay.

    Names of files may hold terminal escapes, bidirectional marks and bytes that are no UTF-8.

    >>> print(printable("a\x1b[31mb\u202egnp.\udcff"))
    a\x1b[31mb\u202egnp.\xff
    """
    return "".join(_escaped(c) if c in _BIDIRECTIONAL or unicodedata.category(c) in _UNSAFE else c for c in text)


CALLED: dict[str, str] = {}
"""Folder on this machine -> the URL that it stands for, which is shown instead."""


def _named(text: str) -> str:
    """A text with URLs in place of their local copies, and without what may be secret in URLs."""
    for folder, url in CALLED.items():
        text = text.replace(folder, url)
    return public(text)


def show(text: str, address: str = "") -> None:
    """Print a result to stdout; to stderr where stdout takes JSON. ``address`` is of this program: it keeps its token."""
    print(printable(_named(text)) + address, file=sys.stdout if _records is None else sys.stderr)


def record(table: str, /, **row: Any) -> bool:
    """Keep a row of a table for ``--json``; returns whether that was asked for, and the row is not to be printed as text."""
    if _records is not None:
        _records.setdefault(table, []).append(row)
    return _records is not None


@contextmanager
def tables_as_json(asked: bool) -> Iterator[None]:
    """While it is open, :func:`record` keeps rows; at its end they go to stdout as one JSON object: table -> list of rows.

    An error prints no object; an exit (the code of ``check`` or ``reproduce``) does.
    """
    global _records
    if not asked:
        yield
        return
    _records = {}
    try:
        yield
        tables = _records
    except typer.Exit:
        tables = _records
        raise
    except BaseException:
        tables = None
        raise
    finally:
        _records = None
        if tables is not None:
            print(json.dumps(_plain(tables), indent=2, allow_nan=False))  # ASCII: other characters are escaped


def show_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None, left: int | None = None
) -> None:
    """Print a table to stdout, without a heading where all of ``head`` is empty; columns after the first ``left`` are aligned
    to the right (default: none of them). With ``--json`` nothing: :func:`record` has its rows."""
    if _records is not None:
        return
    from rich.console import Console
    from rich.table import Table

    title = None if title is None else printable(title)
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=any(head))
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if left is None or i < left else "right")
    for row in rows:
        table.add_row(*map(printable, row))
    # Rendered first: Rich ends the process by itself where stdout is closed.
    terminal = sys.stdout is not None and sys.stdout.isatty()
    text = io.StringIO()
    width = shutil.get_terminal_size().columns if terminal else WIDTH
    Console(file=text, width=width, highlight=False, markup=False, emoji=False).print(table)
    print("\n".join(line.rstrip() for line in text.getvalue().splitlines()))


def show_classes(found: Mapping[str, Metrics | Compared]) -> None:
    """Print the table by class of each named result that has several classes."""
    from normalcy.report.classes import HEAD, class_rows

    for name, one in found.items():
        for kind, own in (one.classes or {}).items():
            record("classes", method=name, **{"class": kind}, **asdict(own))
    named = len(found) > 1
    if rows := class_rows(found):
        show("")
        show_table(("method", *HEAD) if named else HEAD, rows if named else [row[1:] for row in rows], left=1 + named)


def complain(message: str) -> None:
    """Print a message to stderr, on one line."""
    print(printable(_named(message)).replace("\n", "\\n"), file=sys.stderr)


# -- progress --------------------------------------------------------------------------------------------------------


@contextmanager
def progress(what: str) -> Iterator[OnProgress]:
    """A bar on a terminal, nothing elsewhere."""
    from rich.progress import Progress

    console = _stderr()
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def status(what: str) -> Iterator[Callable[[str], None]]:
    """A line that says what is being done, on a terminal; elsewhere a line for each change."""
    from rich.text import Text

    console = _stderr()
    with console.status(what) as line:

        def update(text: str) -> None:
            if console.is_terminal:
                line.update(Text(printable(text)))
            else:
                complain(text)

        yield update


@contextmanager
def fit_progress() -> Iterator[tuple[Callable[[Record], None], OnProgress]]:
    """A bar for reading images and one for each stage of training: what takes the log, and what takes images read."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = _stderr()
    text, note = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[note]}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), note, TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        reading = bars.add_task("reading images", total=None, note="")
        stages: dict[str, Any] = {}

        def log(record: Record) -> None:
            stage = str(record.get("stage"))
            if stage not in stages:
                stages[stage] = bars.add_task(stage, total=None, note="")
            if "steps" in record:
                note = f"loss {record.get('loss', float('nan')):.4g}, {record['images_per_second']:g} images/s"
                bars.update(stages[stage], total=record["steps"], completed=record["step"], note=note)

        yield log, lambda done, total: bars.update(reading, completed=done, total=total)
        for task in stages.values():  # an early stop leaves a bar unfinished
            total = bars.tasks[task].total or 1
            bars.update(task, total=total, completed=total)


@contextmanager
def lines_over_progress(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar of ``total`` parts on a terminal; each finished part prints its line to stderr."""
    from rich.progress import Progress

    console = _stderr()
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total)

        def finished(line: str) -> None:
            console.print(printable(line))
            bar.advance(task)

        yield finished


# -- notes -----------------------------------------------------------------------------------------------------------


class Notes(logging.Handler):
    """Warnings and log records while a command runs.

    Those of other libraries may quote what a file holds, such as a patient's name: only warnings of normalcy itself are
    printed, the others are counted. With ``debug`` all are printed.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.debug = False
        self.withheld = 0

    def __enter__(self) -> Notes:
        self._before = warnings.showwarning, logging.lastResort
        warnings.showwarning, logging.lastResort = self.warn, self  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        warnings.showwarning, logging.lastResort = self._before
        if self.withheld:
            some = (
                "1 note of another library was"
                if self.withheld == 1
                else f"{self.withheld} notes of other libraries were"
            )
            complain(f"{some} withheld (--debug shows them).")

    def show_all(self) -> None:
        self.debug = True
        warnings.simplefilter("default")

    def warn(self, message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
        """In place of ``warnings.showwarning``."""
        if issubclass(category, NormalcyWarning):
            complain(f"Note: {message}")
        else:
            self._foreign(f"{category.__name__} at {filename}:{lineno}: {message}")

    def emit(self, record: logging.LogRecord) -> None:
        """Records of loggers that have no handler of their own."""
        self._foreign(f"{record.name}: {record.getMessage()}")

    def _foreign(self, text: str) -> None:
        if self.debug:
            complain(f"Note: {text}")
        else:
            self.withheld += 1


# -- private ---------------------------------------------------------------------------------------------------------

_records: dict[str, list[Mapping[str, Any]]] | None = None
"""Rows for ``--json`` by table; None where text is printed."""


def _plain(value: Any) -> Any:
    """For JSON: numbers that are not finite are null, paths are text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return _named(value)
    return value if value is None or isinstance(value, int | float) else _named(str(value))


def _escaped(character: str) -> str:
    if character in "\n\t":
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that is no UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
