"""Commands that train several times: demo, audit, compare, select, reproduce."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from normalcy.cli import options as o
from normalcy.cli.printing import complain, lines_over_progress, record, show, show_classes, show_table, status
from normalcy.errors import SettingsError

if TYPE_CHECKING:
    from normalcy.data.dataset import DataSet
    from normalcy.results.comparison import Comparison
    from normalcy.studies.reproduce import CellRecord, Reproduced
    from normalcy.studies.select import Trial
    from normalcy.studies.tables import Cell, Table

SHOWN = 20
"""Suspicious images that audit prints; all are in its table."""


@o.with_json
def demo(
    out: o.Out = Path("demo-results"),
    method: o.DemoMethods = [],  # noqa: B006
    full: o.Full = False,
    overwrite: o.OverwriteDemo = True,
) -> None:
    """Detect defective solar cells with several methods.

    They are trained on functional cells; about 7 minutes.
    """
    from normalcy.studies.demo import LONGER, METHODS, SPEC, settings_for

    chosen = method or [*METHODS, *(LONGER if full else ())]
    _compare(SPEC, chosen, out, settings_for(chosen), None, overwrite)


@o.with_json
@o.with_training
def audit(
    data: o.Data,
    out: o.Out,
    method: o.AuditMethod = "rda",
    share: o.Share = None,
    weights: o.Weights = "",
    folds: o.Folds = None,
    shown: o.Show = 100,
    *,
    training: o.Training,
    overwrite: o.Overwrite = False,
) -> None:
    """Find likely anomalies in a training set.

    Trains on all its images, which need not all be normal, and lists those that look anomalous.
    """
    from normalcy.provenance import NOTICE
    from normalcy.studies.audit import SUSPICIOUS
    from normalcy.studies.audit import audit as audit_images

    lambdas = o.numbers(weights, "--weights")
    with status("reading") as on_step:
        images = training.open(data)
        found = audit_images(
            images,
            out,
            method,
            settings=training.settings(),
            fraction=share,
            weights=lambdas,
            folds=folds,
            show=shown,
            spec=data,
            overwrite=overwrite,
            on_step=on_step,
        )
    for failure in found.failed:
        complain(f"Skipped {failure.path}: {failure.reason}")
    if images.is_medical:
        complain(NOTICE)
    for suspect in found.suspects:
        record("suspects", path=suspect.path, score=suspect.score)
    for suspect in found.suspects[:SHOWN]:
        show(f"{suspect.score:8.2f}  {suspect.path}")
    if len(found.suspects) > SHOWN:
        show(f"     ...  and {len(found.suspects) - SHOWN} more")
    how = f"the rule {found.rule}, above {found.threshold:g}" if share is None else f"the expected fraction, {share:g}"
    show(f"{len(found.suspects)} of {found.images} training images are suspicious by {how} -> {out / SUSPICIOUS}")
    show(f"Report: {out / 'report.html'}")


@o.with_json
@o.with_training
def compare(
    data: o.Data,
    methods: o.Methods,
    out: o.CompareOut,
    ray: o.Ray = None,
    *,
    training: o.Training,
    overwrite: o.Overwrite = False,
) -> None:
    """Train and evaluate several methods, with paired tests."""
    _compare(data, o.listed(methods), out, training.settings(), training.data_root, overwrite, ray)


@o.with_json
@o.with_training
def select(
    data: o.Data,
    out: o.SelectOut,
    anomalies: o.Anomalies = "synthetic",
    method: o.AuditMethod = "dpa",
    trials: o.Trials = 20,
    try_: o.Try = [],  # noqa: B006
    storage: o.Storage = None,
    ray: o.Ray = None,
    *,
    training: o.Training,
) -> None:
    """Choose settings by how well they detect a few anomalies.

    Training never uses the anomalies. The best settings are written as TOML.
    """
    from normalcy.config import parse_settings
    from normalcy.studies.select import select as choose

    space = {name: values.split("|") for name, values in parse_settings(try_).items()}
    images, known = _open_both(training, data, anomalies)
    found = choose(
        images,
        method,
        known,
        out,
        trials=trials,
        space=space or None,
        settings=training.settings(),
        storage=storage,
        ray=ray,
        opening=partial(_open_both, training, data, anomalies),
        on_trial=_show_trial,
    )
    show(f"{found.summary()}\nBest settings: {out / 'best.toml'}; report: {out / 'report.html'}")


@o.with_json
def reproduce(
    name: o.Table = None,
    quick: o.Quick = False,
    rows: o.Rows = "",
    columns: o.Columns = "",
    classes: o.Classes = "",
    seeds: o.Seeds = "",
    set_: o.Settings = [],  # noqa: B006
    out: o.TablesOut = Path("recipes-results"),
    data_root: o.DataRoot = None,
    jobs: o.Jobs = None,
    lease: o.Lease = 180.0,
    ray: o.Ray = None,
    list_: o.ListOnly = False,
    overwrite: o.Rerun = False,
) -> None:
    """Reproduce a published table and compare with its numbers.

    Computes only cells that have no result yet; prints published, measured and difference.
    """
    from normalcy.config import parse_settings
    from normalcy.studies import tables
    from normalcy.studies.reproduce import tabulate

    if name is None:
        _list_tables()
        return
    o.at_least_one(jobs, "--jobs")
    if jobs is not None and ray is not None:
        raise SettingsError("--jobs and --ray exclude each other: on a cluster, each worker runs a fit.")
    if not 1 <= lease < float("inf"):
        raise SettingsError(f"--lease must be at least 1 second, got {lease:g}.")
    settings = parse_settings(set_)
    table = tables.read_table(name)
    table = (table.reduced() if quick else table).changed(settings)
    folder = out / "-".join(["quick"] * quick + ["changed"] * bool(settings))  # so that they never mix
    chosen = o.seeds_of(seeds) or range(min(tables.USUAL_SEEDS, table.seeds))
    cells = tables.select(table, o.listed(rows), o.listed(columns), o.listed(classes), chosen)
    if list_:
        _show_plan(table)
    else:
        _run_cells(table, folder, cells, data_root, jobs, overwrite, lease, ray)
    found = tabulate(table, folder)
    _show_reproduced(found)
    if not list_:
        show(f"Table: {folder / table.name}.md")
        if found.failed:
            raise typer.Exit(1)


# -- private ---------------------------------------------------------------------------------------------------------


def _open_both(training: o.Training, data: str, anomalies: str) -> tuple[DataSet, DataSet | Literal["synthetic"]]:
    return training.open(data), "synthetic" if anomalies == "synthetic" else training.open(anomalies)


def _compare(
    data: str,
    names: list[str],
    out: Path,
    settings: dict[str, Any],
    data_root: Path | None,
    overwrite: bool,
    ray: str | None = None,
) -> None:
    from normalcy.results.run import read_run
    from normalcy.studies.compare import compare as compare_methods

    verbs = {"fit": "fitting", "score": "scoring", "evaluate": "evaluating"}
    with status("reading") as update:
        found = compare_methods(
            o.open_data(data, data_root),
            names,
            out,
            settings,
            spec=data,
            overwrite=overwrite,
            ray=ray,
            opening=partial(o.open_data, data, data_root),
            on_method=lambda name, step: update(f"{verbs[step]} {name}"),
        )
    _show_comparison(found)
    show(f"Scored on {', '.join(sorted({read_run(out / row.folder).device for row in found.methods}))}")
    show(f"Report: {out / 'report.html'}")


def _show_comparison(found: Comparison) -> None:
    from normalcy.report.text import number, percent, with_interval

    rows = []
    for row in found.ranked():
        record("methods", **asdict(row))
        decided, paired = row.at_threshold, row.against_best
        rows.append(
            (
                row.name,
                *map(with_interval, (row.auroc, row.pixel_auroc, row.aupro)),
                percent(decided.false_positive_rate if decided else None),
                percent(decided.true_positive_rate if decided else None),
                number(row.fit_seconds, 3),
                number(row.images_per_second, 3),
                number(paired.p, 2) if paired else "best",
            )
        )
    head = (
        "method",
        "AUROC [95 %]",
        "pixel AUROC",
        "AUPRO",
        "false alarms",
        "detected",
        "fit s",
        "images/s",
        "p vs best",
    )
    show_table(head, rows, f"{found.data.name}: {found.data.test_images} test images", left=1)
    show_classes({row.name: row for row in found.ranked()})
    for failure in found.failed:
        complain(f"{failure.name} failed: {failure.reason}")


def _show_trial(trial: Trial) -> None:
    tried = {"settings": trial.settings, "state": trial.state, "reason": trial.reason}
    if not record(
        "trials", number=trial.number, **tried, auroc=trial.mean, standard_deviation=trial.standard_deviation
    ):
        show(f"trial {trial.number}: {trial.summary()}")


def _list_tables() -> None:
    from normalcy.studies.tables import read_table, tables

    named = [(name, read_table(name)) for name in tables()]
    for name, table in named:
        record("tables", table=name, shows=table.shows, data=list(table.columns), paper=table.paper)
    rows = [(name, table.shows, ", ".join(table.columns), table.paper) for name, table in named]
    show_table(("table", "what it shows", "data", "paper"), rows)


def _show_plan(table: Table) -> None:
    from normalcy.studies.tables import classes_of

    show(f"{table.shows}\n{table.protocol}\n")
    for name, column in table.columns.items():
        classes = ", ".join(filter(None, classes_of(column)))
        normal = f" with {classes} normal in turn" if classes else ""
        show(f"data {name}: {column.data}{normal}. {column.where}".rstrip())
    show("")
    for row in table.rows:
        places = [
            ("", {**table.settings, **row.settings}),
            *((f" on {column}", settings) for column, settings in row.settings_on.items()),
        ]
        texts = (" ".join(f"{key}={value}" for key, value in given.items()) + on for on, given in places)
        score = f", score {row.score}" if row.score else ""
        method = row.method or "published only"
        show(f"row {row.name}: {method}{score}; seeds: {row.seeds or table.seeds}; {'; '.join(texts)}")
    show("")
    for note in table.notes:
        show(f"Note: {note}")


def _run_cells(
    table: Table,
    out: Path,
    cells: list[Cell],
    data_root: Path | None,
    jobs: int | None,
    overwrite: bool,
    lease: float,
    ray: str | None,
) -> None:
    """Run the missing cells, with a line for each that ends."""
    from normalcy.studies.reproduce import reproduce as run

    with lines_over_progress("cells", len(cells)) as finished:

        def tell(cell: Cell, record: CellRecord) -> None:
            if record.failed is not None or record.auroc is None:
                outcome = f"failed: {record.failed}"
            else:
                outcome = f"{100 * record.auroc:.1f} in {record.seconds:.0f} s"
            finished(f"{cell.row}, {cell.column} {cell.normal}, seed {cell.seed}: {outcome}")

        run(
            table,
            out,
            cells,
            data_root=data_root,
            jobs=jobs,
            overwrite=overwrite,
            lease=lease,
            ray=ray,
            on_cell=tell,
        )


def _show_reproduced(found: Reproduced) -> None:
    from normalcy.studies.reproduce import HEAD, cells_as_text, explained

    for line in found.lines:
        record("lines", **asdict(line))
    show_table(HEAD, [cells_as_text(line) for line in found.lines], f"{found.table}: {found.paper}", left=2)
    show(explained(found))
    if found.reduction:
        show(found.reduction)
    for failure in found.failed:
        complain(f"Failed: {failure.reason} Cells: {failure.cells}.")
