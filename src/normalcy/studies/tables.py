"""Published tables as TOML files: what they hold, and the cells that they consist of
(:mod:`normalcy.studies.reproduce` runs them).

A table names its data, protocol, rows and published numbers. A *cell* is one row on one data set with one class as normal
and one seed. Its file carries a hash of all that determines its number, so that another setting is another cell; tables in
one folder share the cells that they have in common, and cells that differ in the score or the test images alone share one
fit.

The tables that come with normalcy are in ``recipes/<paper>/table-<number>.toml`` beside this file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from normalcy import config
from normalcy.data.named import CLASSES
from normalcy.detector import Detector
from normalcy.errors import SettingsError
from normalcy.files import read_toml
from normalcy.methods import available
from normalcy.settings import settings_for_method

T = TypeVar("T")
Json = dict[str, Any]
Settings = Mapping[str, Any]

USUAL_SEEDS = 3
"""Seeds that the command line runs unless others are asked for; Student's interval needs two, and the published ten take long."""
PACKAGED = Path(__file__).parent / "tables"
IDLE = {"seed", "device", "devices", "compile", "checkpoint_seconds", "checkpoint_steps", "log_steps"}
"""Settings that are no part of a cell's settings: the seed is named beside them, the others change no number."""
ADDED = {"max_skipped": 0.1, "early_stop": True, "roi": None, "engine": "auto"}
"""Settings that came after the first cells -> default; left out of a cell's settings there, so that its file keeps its name."""
METRICS: Mapping[str, str] = {
    "image_auroc": "Image AUROC",
    "image_ap": "Average precision over images",
    "pixel_auroc": "AUROC over all pixels",
    "pixel_ap": "Average precision over all pixels or voxels pooled",
    "mean_accuracy": "Mean of the accuracies on normal and on anomalous images",
    "image_f1": "F1 over images",
    "pixel_f1": "F1 over all pixels",
    "pro": "Per-region overlap",
    "fit_minutes": "Minutes of training",
}
"""What a table may show, in percent but the last. WITHOUT_MAPS need no maps; AT_THRESHOLD need a threshold, by the rule of the
smallest area."""
WITHOUT_MAPS = ("image_auroc", "image_ap", "fit_minutes")
AT_THRESHOLD = ("mean_accuracy", "image_f1", "pixel_f1", "pro")


# -- what a table says -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A data set of a table."""

    data: str
    """A named set without its class (mnist), or a file or folder in the data root."""
    classes: tuple[str, ...] = ()
    """Each in turn is normal. None: all classes of a named set, or the set as it is."""
    settings: Settings = field(default_factory=dict)
    where: str = ""
    """Where to get the data and how to lay them out, in a sentence or two."""
    unreduced: tuple[str, ...] = ()
    """Of a quick version: the classes of the table as published, which the published means are over."""


@dataclass(frozen=True)
class Row:
    """A method of a table, with its published numbers in percent."""

    name: str
    method: str | None = None
    """Name in the registry; none: only the published number is shown."""
    settings: Settings = field(default_factory=dict)
    settings_on: Mapping[str, Settings] = field(default_factory=dict)
    """Column -> further settings on it."""
    score: str | None = None
    """One of the method's scores, where not its default."""
    seeds: int | None = None
    """Where not the table's: 1 for what does not depend on the seed."""
    metric: str = ""
    """One of METRICS, where not the table's."""
    keep: tuple[str, ...] = ()
    """Further scores of the method that are kept with each fit, for other tables."""
    published: Mapping[str, float] = field(default_factory=dict)
    """Column -> number; "mean" of the columns where the table has it."""
    published_classes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Column -> class -> number, where the classes are published one by one."""
    note: str = ""


@dataclass(frozen=True)
class Quick:
    """A reduction of a table: these rows, columns, classes and seeds alone, with further settings."""

    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    seeds: int = 1
    settings: Settings = field(default_factory=dict)
    settings_of: Mapping[str, Settings] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A published table and how we run it."""

    name: str
    paper: str
    number: int
    shows: str
    protocol: str
    columns: Mapping[str, Column]
    rows: tuple[Row, ...]
    metric: str = "image_auroc"
    """One of METRICS."""
    minimum_area: float | None = None
    """Threshold of maps: the smallest at which no region on held-out normal images (a tenth) is larger than this fraction of an
    image (Wang et al. 2020, section 4.2; Bergmann et al. 2019)."""
    mean: bool = False
    """Show the mean over columns, too."""
    seeds: int = 10
    test_images: int | None = None
    """Number of test images drawn at random, others for each seed; none: all."""
    settings: Settings = field(default_factory=dict)
    """Settings of all rows; those of a column, a row, and a row on a column win over them, in this order."""
    notes: tuple[str, ...] = ()
    """What differs from the paper."""
    quick: Quick | None = None
    reduction: str = ""
    """What was reduced or changed, in a sentence that goes into every output. Empty for the table as published."""

    def metric_of(self, row: Row) -> str:
        return row.metric or self.metric

    @property
    def needs_maps(self) -> bool:
        return self.minimum_area is not None or any(self.metric_of(row) not in WITHOUT_MAPS for row in self.rows)

    def reduced(self) -> Table:
        """The quick version, which says what it leaves out."""
        quick = self.quick
        if quick is None:
            raise SettingsError(
                f"{self.name} has no quick version: choose with --rows, --columns, --classes and --seeds."
            )
        columns = {
            name: replace(
                column,
                classes=tuple(quick.classes.get(name, ())) or classes_of(column),
                unreduced=classes_of(column),
            )
            for name, column in self.columns.items()
            if name in (quick.columns or self.columns)
        }
        rows = tuple(
            replace(
                _over(row, {**quick.settings, **quick.settings_of.get(row.name, {})}),
                seeds=min(row.seeds or quick.seeds, quick.seeds),
            )
            for row in self.rows
            if row.name in (quick.rows or [row.name])
        )
        told: dict[str, list[str]] = {}
        for who, settings in [("all", quick.settings), *quick.settings_of.items()]:
            told.setdefault(_spelled(settings), []).append(who)
        reduced = [
            (len(rows) < len(self.rows), f"{len(rows)} of {len(self.rows)} rows"),
            (len(columns) < len(self.columns), f"{_and(columns)} of {_and(self.columns)}"),
            *(
                (column.classes != classes_of(self.columns[name]), f"{_and(column.classes)} of the classes of {name}")
                for name, column in columns.items()
            ),
            (quick.seeds < self.seeds, f"{quick.seeds} of {self.seeds} seeds"),
            *((bool(text), f"{text} for {_and(who)}") for text, who in told.items()),
        ]
        parts = [text for less, text in reduced if less]
        sentence = f"Quick run, a reduction of the protocol; its numbers are not the paper's: {'; '.join(parts)}."
        return replace(self, columns=columns, rows=rows, seeds=quick.seeds, reduction=sentence)

    def changed(self, settings: Settings) -> Table:
        """With other settings: each goes to every method that has it, ``vae.latent`` to one."""
        if not settings:
            return self
        if "seed" in settings:
            raise SettingsError(f"{self.name}: seeds are no setting here, choose them with --seeds.")
        methods = [row.method for row in self.rows if row.method in available()]
        rows = tuple(
            _over(row, settings_for_method(row.method, settings, methods)) if row.method in methods else row
            for row in self.rows
        )
        sentence = f"{self.reduction} Settings changed by the user: {_spelled(settings)}.".lstrip()
        return replace(self, rows=rows, reduction=sentence)


def tables() -> list[str]:
    """Names of the tables that come with normalcy.

    >>> "ddr_id/table-2" in tables()
    True
    """
    return sorted(path.relative_to(PACKAGED).with_suffix("").as_posix() for path in PACKAGED.glob("*/*.toml"))


def read_table(name: str) -> Table:
    """A table by its name or the path of its TOML file. Raises SettingsError with the place of a fault."""
    path = Path(name) if name.endswith(".toml") else PACKAGED / f"{name}.toml"
    if path != Path(name) and name not in tables():
        raise SettingsError(
            f"There is no table {name!r}. Available: {', '.join(tables())}, or give a TOML file of your own."
        )
    content = read_toml(path)
    columns = {
        key: _build(Column, value, f"{name}: {key}") for key, value in _tables(content, "columns", dict, name).items()
    }
    rows = tuple(_build(Row, row, f"{name}: row {k}") for k, row in enumerate(_tables(content, "rows", list, name), 1))
    parts: Json = {"name": path.stem if path == Path(name) else name, "columns": columns, "rows": rows}
    if "quick" in content:
        parts["quick"] = _build(Quick, content["quick"], f"{name}: quick")
    return _checked(_build(Table, {**content, **parts}, name))


def classes_of(column: Column) -> tuple[str, ...]:
    """The classes of a column that are normal in turn; one empty word for a set without classes."""
    return column.classes or CLASSES.get(column.data) or ("",)


# -- cells -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One number: a row on a data set with one class as normal and one seed."""

    row: str
    column: str
    normal: str
    """The class; empty for a set without classes."""
    seed: int
    data: str
    where: str
    method: str
    given: Settings
    """Settings as the table gives them, to fit with."""
    settings: Settings
    """All settings that determine the fit, defaults included; what was given, where the method does not take it."""
    score: str | None
    test_images: int | None
    maps: bool
    """Metrics of maps are wanted, by this row or another of the table: they share the cell."""
    minimum_area: float | None
    keep: tuple[str, ...]
    """Further scores of the method that are kept with the fit."""
    metric: str
    """One of METRICS: what the row shows."""

    @property
    def spec(self) -> str:
        return f"{self.data}:{self.normal}" if self.normal else self.data

    @property
    def fit_key(self) -> str:
        held_out = [] if self.minimum_area is None else ["a tenth held out"]
        return _hash(self.method, self.settings, self.spec, self.seed, *held_out)

    @property
    def file(self) -> Path:
        """Relative to the folder of results."""
        maps = [f"maps, smallest area {self.minimum_area}"] if self.maps else []
        key = _hash(self.fit_key, self.score, self.test_images, *maps)
        return Path("cells", self.method, f"{_slug(self.spec)}-seed-{self.seed}-{key}.json")

    @property
    def scores_file(self) -> Path:
        """Where the scores of the fit are kept, relative to the folder of results."""
        return Path("scores", self.method, f"{_slug(self.spec)}-seed-{self.seed}-{self.fit_key}.json")


def cells_of(table: Table) -> list[Cell]:
    """All cells of a table, in the order in which they are run: seed by seed, so that a part is a smaller whole."""
    settings: dict[tuple[str, str], tuple[Json, Json, str | None]] = {}
    for row in table.rows:
        for name, column in table.columns.items():
            if row.method is not None:
                given = _merged(table.settings, column.settings, row.settings, row.settings_on.get(name, {}))
                whole = _resolved(row.method, given)
                score = whole.pop("score", None)
                given.pop("score", None)
                settings[row.name, name] = given, whole, row.score or score
    return [
        Cell(
            row.name,
            name,
            normal,
            seed,
            column.data,
            column.where,
            row.method,
            given,
            whole,
            score,
            table.test_images,
            table.needs_maps,
            table.minimum_area,
            row.keep,
            table.metric_of(row),
        )
        for seed in range(max(row.seeds or table.seeds for row in table.rows))
        for name, column in table.columns.items()
        for normal in classes_of(column)
        for row in table.rows
        if row.method is not None and seed < (row.seeds or table.seeds)
        for given, whole, score in [settings[row.name, name]]
    ]


def select(
    table: Table,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    classes: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> list[Cell]:
    """Some cells of a table; nothing named is all. A row is named as in the table or by its method, a class also by number."""

    def number(cell: Cell) -> str:
        known = CLASSES.get(cell.data, ())
        return str(known.index(cell.normal)) if cell.normal in known else cell.normal

    cells = cells_of(table)
    choices: list[tuple[str, Sequence[object], Callable[[Cell], set[str]]]] = [
        ("row", rows, lambda cell: {cell.row.lower(), cell.method}),
        ("column", columns, lambda cell: {cell.column.lower()}),
        ("class", classes, lambda cell: {cell.normal, number(cell)}),
        ("seed", seeds, lambda cell: {str(cell.seed)}),
    ]
    for kind, wanted, spellings in choices:
        if wanted:
            names = {str(name).lower() for name in wanted}
            _known(table.name, kind, names, set().union(*map(spellings, cells)))
            cells = [cell for cell in cells if spellings(cell) & names]
    return cells


# -- private ---------------------------------------------------------------------------------------------------------


OLD_KEYS = {"words": "settings", "words_on": "settings_on", "words_of": "settings_of"}
"""Keys of tables for earlier versions -> those of today."""


def _build(cls: type[T], content: Mapping[str, Any], who: str) -> T:
    """An instance from the keys of a TOML table. Raises SettingsError for an unknown or a missing key."""
    known = config.fields_of(cls)
    content = {OLD_KEYS.get(key, key): value for key, value in content.items()}
    for key in content:
        if key not in known:
            raise config.unknown_setting(key, known, who)
    needed = [key for key, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [key for key in needed if key not in content]:
        raise SettingsError(f"{who} needs the keys {_and(missing)}.")
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in content.items()})


def _checked(table: Table) -> Table:
    """The table, if the names in it go together."""
    who, rows, quick = table.name, {row.name for row in table.rows}, table.quick or Quick()
    _known(who, "metric", {table.metric_of(row) for row in table.rows} | {table.metric}, METRICS)
    if table.minimum_area is None and {table.metric_of(row) for row in table.rows} & set(AT_THRESHOLD):
        raise SettingsError(f"{who}: {', '.join(AT_THRESHOLD)} need minimum_area, a fraction of an image.")
    if len(rows) < len(table.rows):
        raise SettingsError(f"{who}: every row needs a name of its own.")
    named = [name for row in table.rows for name in (*row.published, *row.published_classes, *row.settings_on)]
    named = [name for name in named if not (table.mean and name == "mean")]
    _known(who, "column", [*named, *quick.columns, *quick.classes], table.columns)
    _known(who, "row", [*quick.rows, *quick.settings_of], rows)
    for name, column in table.columns.items():
        if column.data in CLASSES:
            _known(f"{who}: {name}", "class", column.classes, CLASSES[column.data])
        for row in table.rows:
            _known(f"{who}: {row.name}", "class", row.published_classes.get(name, ()), classes_of(column))
        _known(f"{who}: {name}", "class", tuple(quick.classes.get(name, ())), classes_of(column))
    return table


def _tables(content: Mapping[str, Any], key: str, kind: type[T], who: str) -> T:
    value = content.get(key)
    if not value or not isinstance(value, kind):
        raise SettingsError(f"{who} needs {'tables [columns.NAME]' if kind is dict else 'tables [[rows]]'}.")
    return value


def _known(who: str, kind: str, names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise SettingsError(f"{who}: there is no {kind} {name!r}; available: {', '.join(sorted(known))}.")


def _resolved(method: str, given: Settings) -> Json:
    """All settings that determine a fit; what was given where the method does not take it, which running will tell."""
    try:
        settings = Detector(method, **given).all_settings()
    except SettingsError:
        settings = dict(given)
    return {
        name: value
        for name, value in settings.items()
        if name not in IDLE and not (name in ADDED and value == ADDED[name])
    }


def _merged(*parts: Settings) -> Json:
    """Later settings win; epochs and steps replace one another."""
    whole: Json = {}
    for part in parts:
        if {"epochs", "steps"} & set(part):
            whole = {name: value for name, value in whole.items() if name not in ("epochs", "steps")}
        whole.update(part)
    return whole


def _over(row: Row, settings: Settings) -> Row:
    """The row with settings that win over all of the table."""
    on = {column: _merged(theirs, settings) for column, theirs in row.settings_on.items()}
    return replace(row, settings=_merged(row.settings, settings), settings_on=on)


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text)


def _and(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(names)


def _spelled(settings: Settings) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())
