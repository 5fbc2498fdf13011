"""Committed tables of ``normalcy reproduce`` (``recipes/results/<paper>/``), and what docs/reference/recipes.md shows of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from normalcy.report.text import MISSING, markdown_table, metric, value_with_ends
from normalcy.results.schema import dumps, load
from normalcy.studies.reproduce import ClassMean, Line, Reproduced, markdown, tabulate
from normalcy.studies.tables import read_table, tables

RESULTS = Path(__file__).resolve().parents[1] / "recipes" / "results"
LAST_BATCH = "the last batch of an epoch was filled up instead of dropped"
BEFORE = {"ddr_id/gans": LAST_BATCH, "ddr_id/gans-long-search": LAST_BATCH}
"""Table -> change of the methods that it precedes."""
DIGITS = {
    "ddr_id/table-2-short": "",
    "ddr_id/table-2": "the lengths of DDR-ID",
    "ddr_id/gans": "2,000 test images; 20 epochs",
}
"""Tables with digits -> remark on their rows. A row has a line for each table with all digits, or one for the most digits."""
CHANGED = "Settings changed by the user: "


def files() -> dict[Path, str]:
    """Every committed table -> its content: JSON and Markdown."""
    made = {}
    for path in paths():
        made |= {path: dumps(found(path)).decode(), path.with_suffix(".md"): markdown(found(path))}
    return made


def paths() -> list[Path]:
    papers = sorted({name.split("/")[0] for name in tables()})
    return [path for paper in papers for path in sorted((RESULTS / paper).glob("*.json"))]


@cache
def found(path: Path) -> Reproduced:
    """The table as the committed cells give it; as it was written where it holds numbers whose cells are not committed."""
    written = load(Reproduced, path, "make it again")
    if path.relative_to(RESULTS).with_suffix("").as_posix() != written.table:  # with changed settings
        return written
    made = tabulate(read_table(written.table), RESULTS)
    done = {(line.row, line.column): line.cells.done for line in made.lines}
    kept = all(line.cells.done <= done.get((line.row, line.column), 0) for line in written.lines)
    return made if kept else written


def texts() -> dict[str, str]:
    """Marker -> text, of docs/reference/recipes.md."""
    return {"digits": digits(), "cifar": cifar()}


class Digits(NamedTuple):
    """Mean over digits of a row of a table."""

    row: str
    classes: tuple[str, ...]
    seeds: int
    measured: str
    value: float
    published: float | None
    table: str
    remark: str
    cells: tuple[Mapping[str, ClassMean], ...]
    """Of each data set, by class."""


def digits() -> str:
    """Mean image AUROC of each method over the digits that were run: all ten digits first, the highest first."""
    best: dict[str, list[Digits]] = {}
    for name in DIGITS:
        for one in _digits(name):
            most = len(best[one.row][0].classes) if one.row in best else 0
            if len(one.classes) > most:
                best[one.row] = [one]
            elif len(one.classes) == most == 10 and all(one.cells != other.cells for other in best[one.row]):
                best[one.row].append(one)
    rows = [
        (
            one.row,
            one.measured,
            metric(one.published, 1),
            "all" if len(one.classes) == 10 else ", ".join(one.classes),
            str(one.seeds),
            f"[{one.table}](../../recipes/results/{one.table}.md)",
            one.remark,
        )
        for one in sorted(chain.from_iterable(best.values()), key=lambda one: (len(one.classes) < 10, -one.value))
    ]
    head = ("method", "measured [95 %]", "published", "digits", "seeds", "table", "remarks")
    return "\n".join(markdown_table(head, rows))


def _digits(name: str) -> Iterator[Digits]:
    table = found(RESULTS / f"{name}.json")
    notes = dict(note.split(": ", 1) for note in table.notes if ": " in note)
    changed = table.reduction.removeprefix(CHANGED).removesuffix(".").split(", ") if CHANGED in table.reduction else []
    for row in dict.fromkeys(line.row for line in table.lines):
        own = [line for line in table.lines if line.row == row and _of_digits(line)]
        if not own:
            continue
        means = [line for line in table.lines if line.row == row and line.column == "mean" and line.measured]
        whole = means[0] if means else own[0]
        if whole.measured is None or (len(own) > 1 and not means):
            continue
        settings = [word.partition(".")[2] for word in changed if word.startswith(f"{own[0].method}.")]
        before = f"before {BEFORE[name]}" if name in BEFORE else ""
        remark = [
            DIGITS[name],
            before,
            ", ".join(f"`{word}`" for word in settings),
            notes.get(row, "").removesuffix("."),
        ]
        yield Digits(
            row,
            tuple(sorted(digit for line in own for digit in line.classes)),
            max(entry.seeds for line in own for entry in line.classes.values()),
            value_with_ends(whole.measured.value, whole.measured.low, whole.measured.high, 1),
            whole.measured.value,
            whole.published_same_classes,
            name,
            "; ".join(part for part in remark if part),
            tuple(line.classes for line in own),
        )


def _of_digits(line: Line) -> bool:
    return line.measured is not None and (line.column == "MNIST" or line.column.startswith("digit_"))


def cifar() -> str:
    """Mean image AUROC over three and over ten classes of CIFAR-10, from the tables of DPA."""
    sides = [_means(f"dpa/{name}") for name in ("three-classes", "ten-classes")]
    rows = []
    for row in dict.fromkeys(row for side in sides for row in side):
        lines = [side.get(row) for side in sides]
        rows.append((row, *(text for line in lines for text in _spelled(line))))
    head = ("method", "car, frog, ship", "published", "ten classes", "published")
    return "\n".join(markdown_table(head, rows))


def _means(name: str) -> dict[str, Line]:
    """Row -> its mean over all columns, where it was measured, the highest first."""
    lines = [line for line in found(RESULTS / f"{name}.json").lines if line.column == "mean" and line.measured]
    return {line.row: line for line in sorted(lines, key=lambda line: -line.measured.value if line.measured else 0)}


def _spelled(line: Line | None) -> Sequence[str]:
    if line is None or line.measured is None:
        return MISSING, MISSING
    return metric(line.measured.value, 1), metric(line.published_same_classes, 1)
