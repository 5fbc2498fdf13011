"""The command line: parse, call, print. A user's mistake is one sentence; usage errors exit 2, bad data 1."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normalcy.errors import NormalcyError, SettingsError

if TYPE_CHECKING:
    from normalcy.calibrate import Decision
    from normalcy.data.dataset import DataSet
    from normalcy.detector import Detector
    from normalcy.studies.tables import Cell
    from normalcy.studies.tables import Table as PublishedTable

app = typer.Typer(
    name="normalcy",
    help="Learn what normal images look like; find, show and explain what is not normal.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DATA = typer.Argument(help="A folder, an MVTec-style folder, a CSV/Parquet table, an .npz, or a name such as mnist:3.")
DataRoot = Annotated[Path | None, typer.Option("--data-root", help="Where named data sets are kept or downloaded to.")]
Set = Annotated[
    list[str], typer.Option("--set", help="A setting, key=value; repeat for more (see: normalcy methods NAME).")
]
Config = Annotated[
    Path | None, typer.Option("--config", help="A TOML file of settings; --set and options win over it.")
]
Epochs = Annotated[float | None, typer.Option(help="Passes over the images in total; stages share it as by default.")]
Steps = Annotated[int | None, typer.Option(help="Training steps in total, instead of epochs.")]
Seed = Annotated[int | None, typer.Option(help="Seed of splits, initial weights, batches and noise [0].")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps [auto].")]
Devices = Annotated[int | None, typer.Option(help="Processes to train with [1].")]
Precision = Annotated[str | None, typer.Option(help="auto, 32-true, bf16-mixed or 16-mixed [auto].")]
FalseAlarms = Annotated[float | None, typer.Option("--false-alarms", help="Promised rate of false alarms [0.05].")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


def main() -> None:
    """Entry point: runs the app and turns errors into one sentence and an exit code."""
    warnings.showwarning = lambda message, *_, **__: _complain(f"Note: {message}")
    try:
        app()
    except NormalcyError as error:
        _complain(f"Error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _complain("Stopped. A fit goes on with --resume.")
        sys.exit(130)
    except BrokenPipeError:
        os._exit(0)
    except OSError as error:
        _complain(f"Error: {error.strerror or error}{f': {error.filename}' if error.filename else ''}.")
        sys.exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("demo-results"),
    method: Annotated[list[str], typer.Option(help="Methods to show; repeat for more.")] = [],  # noqa: B006
    full: Annotated[bool, typer.Option("--full", help="Methods that train longer, too.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier demo.")] = True,
) -> None:
    """Find defective solar cells: train on functional ones, show what is wrong with the others (about 7 minutes)."""
    from normalcy.studies.demo import LONGER, METHODS, SPEC, settings_for

    chosen = method or [*METHODS, *(LONGER if full else ())]
    _compare(SPEC, chosen, out, settings_for(chosen), None, overwrite)


@app.command()
def methods(name: Annotated[str | None, typer.Argument(help="Show one method's settings.")] = None) -> None:
    """List the methods, or the settings of one."""
    from rich.table import Table

    from normalcy import config
    from normalcy.methods import available, get
    from normalcy.settings import DecisionSettings, InputSettings
    from normalcy.training.settings import TrainSettings

    if name is None:
        table = Table("method", "what it does", "scores", box=None, pad_edge=False)
        for known in sorted(available()):
            cls = get(known)
            table.add_row(known, cls.summary(), ", ".join(cls.scores))
        _print(table)
        return
    cls = get(name)
    _print(f"{name}: {cls.summary()}")
    for title, part in (
        (name, cls.Settings),
        ("input", InputSettings),
        ("training", TrainSettings),
        ("decision", DecisionSettings),
    ):
        table = Table(f"{title} setting", "default", "meaning", box=None, pad_edge=False)
        notes = config.field_docs(part)
        for word, f in config.fields_of(part).items():
            table.add_row(word, str(config.default_of(f)), notes.get(word, ""))
        _print("")
        _print(table)


@app.command()
def check(data: Annotated[str, DATA], data_root: DataRoot = None) -> None:
    """Read everything and list every fault; exits 1 when there is an error."""
    from normalcy.data.check import check as check_data

    found = _open(data, data_root)
    with _progress("checking") as step:
        faults = check_data(found, on_progress=step)
    errors = [f for f in faults if f.severity == "error"]
    for fault in sorted(faults, key=lambda f: (f.severity != "error", f.path)):
        _print(f"{fault.severity}: {fault.path}: {fault.problem}")
    labels = found.labels
    _print(
        f"{found.name}: {len(found)} images ({int((labels == 0).sum())} normal, {int((labels == 1).sum())} anomalous, "
        f"{int((labels == -1).sum())} unknown), {len(errors)} errors, {len(faults) - len(errors)} warnings."
    )
    if errors:
        raise typer.Exit(1)


@app.command()
def audit(
    data: Annotated[str, DATA],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    method: Annotated[str, typer.Option(help="Name of the method.")] = "rda",
    share: Annotated[float | None, typer.Option(help="Expected share of anomalous images, as 0.02.")] = None,
    weights: Annotated[
        str,
        typer.Option(help="Values of lambda for rda, separated by commas: that is taken which suits --share best."),
    ] = "",
    folds: Annotated[
        int | None, typer.Option(help="Fits that each leave out a part and score it [1 for rda, else 5].")
    ] = None,
    show: Annotated[int, typer.Option(help="So many images, the strangest, get maps and pictures.")] = 100,
    epochs: Epochs = None,
    steps: Steps = None,
    set_: Set = [],  # noqa: B006
    config_file: Config = None,
    data_root: DataRoot = None,
    seed: Seed = None,
    device: Device = None,
    precision: Precision = None,
    overwrite: Overwrite = False,
) -> None:
    """Train on images that may not all be normal, and list those that look anomalous."""
    from rich.console import Console

    from normalcy.scoring import NOTICE
    from normalcy.studies.audit import SUSPICIOUS
    from normalcy.studies.audit import audit as audit_images

    options = {"epochs": epochs, "steps": steps, "seed": seed, "device": device, "precision": precision}
    try:
        lambdas = [float(word) for word in _listed(weights)]
    except ValueError:
        raise SettingsError(f"--weights expects numbers separated by commas, as 0.2,0.5,1, got {weights!r}.") from None
    with Console(stderr=True).status("reading") as line:
        images = _open(data, data_root)
        found = audit_images(
            images,
            out,
            method,
            words=_words(config_file, set_, options),
            share=share,
            weights=lambdas,
            folds=folds,
            show=show,
            spec=data,
            data_root=data_root,
            overwrite=overwrite,
            on_step=line.update,
        )
    for path, reason in found.failed:
        _complain(f"Skipped {path}: {reason}")
    if images.is_medical:
        _complain(NOTICE)
    for suspect in found.suspects[:20]:
        _print(f"{suspect.score:8.2f}  {suspect.path}")
    if len(found.suspects) > 20:
        _print(f"     ...  and {len(found.suspects) - 20} more")
    how = f"the share that was given, {share:g}" if share else f"the rule {found.rule}, above {found.threshold:g}"
    _print(f"{len(found.suspects)} of {found.images} training images are suspicious by {how} -> {out / SUSPICIOUS}")
    _print(f"Report: {out / 'report.html'}")


@app.command()
def fit(
    data: Annotated[str, DATA],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    method: Annotated[str | None, typer.Option(help="Name of the method [patchcore].")] = None,
    epochs: Epochs = None,
    steps: Steps = None,
    set_: Set = [],  # noqa: B006
    config_file: Config = None,
    data_root: DataRoot = None,
    seed: Seed = None,
    device: Device = None,
    devices: Devices = None,
    precision: Precision = None,
    false_alarms: FalseAlarms = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a fit that was stopped.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a method on the normal images of DATA and write a model folder."""
    import shutil

    from normalcy.detector import Detector
    from normalcy.files import refuse_existing

    options = {
        "epochs": epochs,
        "steps": steps,
        "seed": seed,
        "device": device,
        "devices": devices,
        "precision": precision,
        "false_alarms": false_alarms,
    }
    words = _words(config_file, set_, options)
    name = method or str(words.pop("method", "patchcore"))
    words.pop("method", None)
    detector = Detector(name, **words)
    refuse_existing(out, overwrite)
    run = out.with_name(f"{out.name}.run")
    if run.exists() and not resume:
        if not overwrite:
            raise SettingsError(
                f"{run} holds an unfinished fit: go on with --resume, or pass --overwrite to start again."
            )
        shutil.rmtree(run)
    found = _open(data, data_root)
    _fit(detector, found, run, resume)
    detector.save(out, overwrite)
    shutil.rmtree(run, ignore_errors=True)
    _print(_model_line(detector, out))


@app.command()
def score(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    inputs: Annotated[list[str], typer.Argument(help="A data set, or images and folders.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    data_root: DataRoot = None,
    split: Annotated[str | None, typer.Option(help="train, test or all [test where there is one].")] = None,
    score: Annotated[str | None, typer.Option(help="Another of the method's scores.")] = None,
    false_alarms: FalseAlarms = None,
    rule: Annotated[
        str, typer.Option(help="false_alarms, or on --validation images: max_f1, youden, minimum_area:PIXELS.")
    ] = "false_alarms",
    validation: Annotated[
        str | None, typer.Option(help="Images that choose the threshold for the other rules.")
    ] = None,
    tile: Annotated[
        bool, typer.Option("--tile", help="Cover large images by overlapping tiles, do not resize.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 32,
    device: Device = None,
    maps: Annotated[bool, typer.Option(help="Write maps and restored images.")] = True,
    overwrite: Overwrite = False,
) -> None:
    """Score images: scores.csv, maps at each image's own size, restored images."""
    from normalcy.data.splits import images_to_score
    from normalcy.detector import load
    from normalcy.results.predict import predict
    from normalcy.scoring import NOTICE

    if batch_size < 1:
        raise SettingsError(f"--batch-size must be at least 1, got {batch_size}.")
    detector = load(model)
    if score is not None:
        detector = detector.with_score(score)
    if device not in (None, "auto"):
        detector.to(str(device))
    data, chosen = images_to_score(_open_all(inputs, data_root), split, detector.train.seed)
    decision = _decide(detector, rule, validation, inputs, data_root, false_alarms)
    with _progress("scoring") as step:
        run = predict(
            detector,
            data,
            out,
            decision=decision,
            spec=inputs[0] if len(inputs) == 1 else None,
            data_root=data_root,
            split=chosen,
            tile=tile,
            batch_size=batch_size,
            maps=maps,
            overwrite=overwrite,
            on_progress=step,
        )
    for path, reason in run["data"]["failed"]:
        _complain(f"Skipped {path}: {reason}")
    if run["data"]["medical"]:
        _complain(NOTICE)
    _print(f"Scored {run['data']['count']} images at {run['images_per_second']:g} images/s -> {out}")


@app.command()
def evaluate(
    results: Annotated[Path, typer.Argument(help="A results folder of labelled images.")],
    limit: Annotated[float, typer.Option(help="Limit of the false-positive rate in AUPRO.")] = 0.3,
    patch: Annotated[
        int | None, typer.Option(help="Side of a patch in pixels [an eighth of the shortest side of an image].")
    ] = None,
    patch_share: Annotated[
        float, typer.Option(help="A patch is anomalous when at least this share of it is marked.")
    ] = 0.05,
) -> None:
    """Metrics by image, patch, region and pixel with 95 % intervals, written to metrics.json."""
    from normalcy.results.evaluate import evaluate as evaluate_results

    found = evaluate_results(results, limit=limit, patch=patch, patch_share=patch_share)
    _print_metrics(found)


@app.command()
def report(results: Annotated[Path, typer.Argument(help="A results folder, or one that compare wrote.")]) -> None:
    """One self-contained HTML page."""
    from normalcy.report import write_comparison, write_report

    page = write_comparison(results) if (results / "compare.json").exists() else write_report(results)
    _print(f"{page}")


@app.command()
def dicom(
    results: Annotated[Path, typer.Argument(help="A results folder of DICOM images.")],
    out: Annotated[Path, typer.Option(help="Folder for the DICOM files; a folder for each image.")],
    data: Annotated[str | None, typer.Option(help="The images, where run.json does not name them.")] = None,
) -> None:
    """Maps as DICOM: parametric map, segmentation and overlays that refer to their source images (they name the patient)."""
    from normalcy.results.dicom import write_dicom

    with _progress("writing") as step:
        count, failed = write_dicom(results, out, None if data is None else _open(data, None), step)
    for _, reason in failed:
        _complain(f"Skipped {reason}")
    _print(f"Wrote DICOM results of {count} images -> {out}")


@app.command()
def slides(
    model: Annotated[Path, typer.Argument(help="A model folder, fitted on tiles (slides:FOLDER,tile=256).")],
    inputs: Annotated[list[Path], typer.Argument(help="Whole-slide images, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    set_: Annotated[
        list[str], typer.Option("--set", help="tile, mpp, tissue or stain, where not as in the fit; key=value.")
    ] = [],  # noqa: B006
    quantile: Annotated[float, typer.Option(help="A slide's score is this quantile of its tiles' scores.")] = 0.95,
    cell: Annotated[int, typer.Option(help="Pixels of a tile in one of the heat map.")] = 32,
    batch_size: Annotated[int, typer.Option(help="Tiles at a time.")] = 32,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Score whole slides: a heat map (pyramid TIFF), regions (GeoJSON), a score for each slide."""
    from normalcy.config import parse_settings
    from normalcy.detector import load
    from normalcy.results.slides import open_for_scoring, score_slides
    from normalcy.scoring import NOTICE

    detector = load(model)
    if device not in (None, "auto"):
        detector.to(str(device))
    with _progress("scoring tiles") as step:
        files = open_for_scoring(inputs, detector, parse_settings(set_))
        found, failed = score_slides(
            detector, files, out, quantile=quantile, cell=cell, batch_size=batch_size, overwrite=overwrite,
            on_progress=step,
        )  # fmt: skip
    _complain(NOTICE)
    for _, reason in failed:
        _complain(f"Skipped {reason}")
    for name, score in found:
        _print(f"{name}: {score:.6g}")


@app.command()
def compare(
    data: Annotated[str, DATA],
    methods: Annotated[str, typer.Option(help="Names, separated by commas.")],
    out: Annotated[Path, typer.Option(help="Folder for the results, one folder a method.")],
    epochs: Epochs = None,
    steps: Steps = None,
    set_: Set = [],  # noqa: B006
    config_file: Config = None,
    data_root: DataRoot = None,
    seed: Seed = None,
    device: Device = None,
    precision: Precision = None,
    overwrite: Overwrite = False,
) -> None:
    """Fit and tabulate several methods on one data set, with paired tests."""
    options = {"epochs": epochs, "steps": steps, "seed": seed, "device": device, "precision": precision}
    words = _words(config_file, set_, options)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    _compare(data, names, out, words, data_root, overwrite)


@app.command()
def select(
    data: Annotated[str, DATA],
    out: Annotated[Path, typer.Option(help="Folder for the study, the best settings and the report.")],
    anomalies: Annotated[
        str, typer.Option(help='A folder (or table, or name) with a few anomalous images, or "synthetic".')
    ] = "synthetic",
    method: Annotated[str, typer.Option(help="Name of the method.")] = "dpa",
    trials: Annotated[
        int, typer.Option(help="Settings to try, those of an earlier run into the same folder included.")
    ] = 20,
    try_: Annotated[
        list[str],
        typer.Option("--try", help="Values of a setting to choose from, key=a|b|c, instead of the method's own."),
    ] = [],  # noqa: B006
    storage: Annotated[str | None, typer.Option(help="Database URL that many workers share [SQLite in OUT].")] = None,
    epochs: Epochs = None,
    steps: Steps = None,
    set_: Set = [],  # noqa: B006
    config_file: Config = None,
    data_root: DataRoot = None,
    seed: Seed = None,
    device: Device = None,
    precision: Precision = None,
) -> None:
    """Choose settings by how well they find a few anomalies that a fit never sees, and write them as TOML."""
    from normalcy.config import parse_settings
    from normalcy.studies.select import select as choose

    options = {"epochs": epochs, "steps": steps, "seed": seed, "device": device, "precision": precision}
    space = {word: values.split("|") for word, values in parse_settings(try_).items()}
    found = choose(
        _open(data, data_root),
        method,
        "synthetic" if anomalies == "synthetic" else _open(anomalies, data_root),
        out,
        trials=trials,
        space=space or None,
        words=_words(config_file, set_, options),
        storage=storage,
        on_trial=lambda trial: _print(f"trial {trial.number}: {trial.summary()}"),
    )
    _print(f"{found.sentence()}\nBest settings: {out / 'best.toml'}; report: {out / 'report.html'}")


@app.command()
def reproduce(
    name: Annotated[
        str | None, typer.Argument(help="A table, as ddr_id/table-2, or a TOML file; none: list them.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The table's reduced version; every output says so.")] = False,
    rows: Annotated[str, typer.Option(help="Only these rows, by name or method, separated by commas.")] = "",
    columns: Annotated[str, typer.Option(help="Only these data sets of the table.")] = "",
    classes: Annotated[str, typer.Option(help="Only these normal classes, by name or number.")] = "",
    seeds: Annotated[str, typer.Option(help="Only these seeds, as 0 or 0,3 or 0-4.")] = "",
    set_: Set = [],  # noqa: B006
    out: Annotated[Path, typer.Option(help="Folder for the results of all tables.")] = Path("recipes-results"),
    data_root: DataRoot = None,
    jobs: Annotated[
        int | None,
        typer.Option(help="Fits side by side [one for each GPU, or for two cores; two where there are two]."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Say what the table holds, run nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Run again what is there.")] = False,
) -> None:
    """Run a published table: what is missing of it; print published numbers, ours and the difference."""
    from normalcy.config import parse_settings
    from normalcy.studies import tables
    from normalcy.studies.reproduce import tabulate

    if name is None:
        _list_tables()
        return
    if jobs is not None and jobs < 1:
        raise SettingsError(f"--jobs must be at least 1, got {jobs}.")
    words = parse_settings(set_)
    table = tables.read_table(name)
    table = (table.reduced() if quick else table).changed(words)
    folder = out / "-".join(["quick"] * quick + ["changed"] * bool(words))  # so that they never mix
    cells = tables.select(table, _listed(rows), _listed(columns), _listed(classes), _numbers(seeds))
    if list_:
        _print_plan(table)
    else:
        _run_cells(table, folder, cells, data_root, jobs, overwrite)
    found = tabulate(table, folder)
    _print_reproduced(found)
    if not list_:
        _print(f"Table: {folder / table.name}.md")
        if found["failed"]:
            raise typer.Exit(1)


@app.command()
def info(model: Annotated[Path, typer.Argument(help="A model folder.")]) -> None:
    """What a model folder holds: method, training data, calibration, settings."""
    from normalcy.detector import load

    _print(load(model).card())


# -- private ---------------------------------------------------------------------------------------------------------


def _open(spec: str, data_root: Path | None) -> DataSet:
    from normalcy.data.open import open_data

    return open_data(spec, data_root)


def _open_all(inputs: list[str], data_root: Path | None) -> DataSet:
    from normalcy.data.open import open_files

    return _open(inputs[0], data_root) if len(inputs) == 1 else open_files(inputs)


def _words(config_file: Path | None, pairs: list[str], options: dict[str, Any]) -> dict[str, Any]:
    from normalcy.config import parse_settings, read_toml

    words = read_toml(config_file) if config_file is not None else {}
    words.update(parse_settings(pairs))
    given = {word: value for word, value in options.items() if value is not None}
    if "epochs" in given or "steps" in given:  # the option replaces the other one of a file
        words.pop("epochs", None)
        words.pop("steps", None)
    return {**words, **given}


def _fit(detector: Detector, data: DataSet, run: Path, resume: bool) -> None:
    """Train with a progress line for reading and one for each stage."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        reading = progress.add_task("reading images", total=None, note="")
        tasks: dict[str, Any] = {}

        def log(record: dict[str, Any]) -> None:
            stage = str(record.get("stage"))
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=None, note="")
            if "steps" in record:
                note = f"loss {record.get('loss', float('nan')):.4g}, {record['images_per_second']:g} images/s"
                progress.update(tasks[stage], total=record["steps"], completed=record["step"], note=note)

        def on_decode(done: int, total: int) -> None:
            progress.update(reading, completed=done, total=total)

        detector.fit(data, run_dir=run, resume=resume, log=log, on_decode=on_decode)
        for task in tasks.values():
            progress.update(task, total=progress.tasks[task].total or 1)
            progress.update(task, completed=progress.tasks[task].total)


def _decide(
    detector: Detector,
    rule: str,
    validation: str | None,
    inputs: list[str],
    data_root: Path | None,
    false_alarms: float | None,
) -> Decision | None:
    from normalcy.calibrate import decide_on_validation
    from normalcy.scoring import Result

    if rule == "false_alarms":
        return detector.decide(false_alarms)
    if validation is None:
        raise SettingsError(f"--rule {rule} chooses its threshold on images of its own: give them with --validation.")
    if validation in inputs:
        raise SettingsError(
            "--validation must be other images than those scored: a threshold chosen on them proves nothing."
        )
    data = _open(validation, data_root)
    if rule.startswith("minimum_area"):
        data = data.subset([i for i, item in enumerate(data.items) if item.label != 1])
    results = [(i, r) for i, r in enumerate(detector.stream(data)) if isinstance(r, Result)]
    known = [r.item.label for _, r in results]
    labels = [int(label) for label in known if label is not None] if None not in known else None
    maps = [r.map for _, r in results if r.map is not None] or None
    masks = [data.mask(i) for i, _ in results] if data.has_masks else []
    complete = [mask for mask in masks if mask is not None]
    usable = complete if maps is not None and len(complete) == len(maps) else None
    return decide_on_validation(rule, [r.score for _, r in results], labels, maps, usable)


def _compare(
    spec: str, names: list[str], out: Path, words: dict[str, Any], data_root: Path | None, overwrite: bool
) -> None:
    from rich.console import Console
    from rich.table import Table

    from normalcy.studies.compare import compare as compare_methods

    status = Console(stderr=True)
    verbs = {"fit": "fitting", "score": "scoring", "evaluate": "evaluating"}
    with status.status("reading") as line:

        def on_method(name: str, step: str) -> None:
            line.update(f"{verbs[step]} {name}")
            if not status.is_terminal:
                _complain(f"{verbs[step]} {name}")

        found = compare_methods(
            _open(spec, data_root),
            names,
            out,
            words,
            spec=spec,
            data_root=data_root,
            overwrite=overwrite,
            on_method=on_method,
        )
    table = Table(
        title=f"{found['data']['name']}: {found['data']['test_images']} test images", title_justify="left", box=None
    )
    for title in (
        "method",
        "AUROC [95 %]",
        "pixel AUROC",
        "AUPRO",
        "false alarms",
        "found",
        "fit s",
        "images/s",
        "p vs best",
    ):
        table.add_column(title, justify="left" if title == "method" else "right")
    for row in sorted(found["methods"], key=lambda row: -(row["auroc"]["value"] or 0)):
        decided, paired = row["at_threshold"], row["against_best"]
        table.add_row(
            row["name"],
            _interval(row["auroc"]),
            _interval(row["pixel_auroc"]),
            _interval(row["aupro"]),
            _percent(decided and decided["false_alarm_rate"]),
            _percent(decided and decided["detection_rate"]),
            f"{row['fit_seconds']:.0f}",
            f"{row['images_per_second']:.0f}",
            f"{paired['p']:.2g}" if paired else "best",
        )
    _print(table)
    for failure in found["failed"]:
        _complain(f"{failure['name']} failed: {failure['reason']}")
    _print(f"Report: {out / 'report.html'}")


def _interval(value: dict[str, Any] | None) -> str:
    if not value or value["value"] is None:
        return "-"
    ends = f" [{value['low']:.3f}, {value['high']:.3f}]" if value.get("low") is not None else ""
    return f"{value['value']:.3f}{ends}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _listed(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[int]:
    """ "0,3-5" -> [0, 3, 4, 5]"""
    numbers: list[int] = []
    for word in _listed(text):
        first, dash, last = word.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise SettingsError(f"--seeds expects whole numbers, as 0 or 0,3 or 0-4, got {text!r}.")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def _list_tables() -> None:
    from rich.table import Table

    from normalcy.studies.tables import read_table, tables

    grid = Table("table", "what it shows", "data", "paper", box=None, pad_edge=False)
    for known in tables():
        table = read_table(known)
        grid.add_row(known, table.shows, ", ".join(table.columns), table.paper)
    _print(grid)


def _print_plan(table: PublishedTable) -> None:
    from normalcy.studies.tables import classes_of

    _print(f"{table.shows}\n{table.protocol}\n")
    for name, column in table.columns.items():
        classes = ", ".join(filter(None, classes_of(column)))
        _print(
            f"data {name}: {column.data}{f' with {classes} normal in turn' if classes else ''}. {column.where}".rstrip()
        )
    _print("")
    for row in table.rows:
        places = [
            ("", {**table.words, **row.words}),
            *((f" on {column}", words) for column, words in row.words_on.items()),
        ]
        words = "; ".join(" ".join(f"{word}={value}" for word, value in given.items()) + on for on, given in places)
        score = f", score {row.score}" if row.score else ""
        _print(f"row {row.name}: {row.method or 'published only'}{score}; seeds: {row.seeds or table.seeds}; {words}")
    _print("")
    for note in table.notes:
        _print(f"Note: {note}")


def _run_cells(
    table: PublishedTable, out: Path, cells: list[Cell], data_root: Path | None, jobs: int | None, overwrite: bool
) -> None:
    """Run what is missing, with a line on each cell that ends."""
    from rich.console import Console
    from rich.progress import Progress

    from normalcy.studies.reproduce import reproduce as run

    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("cells", total=len(cells))

        def tell(cell: Cell, record: dict[str, Any]) -> None:
            if "auroc" in record:
                outcome = f"{100 * record['auroc']:.1f} in {record['fit']['seconds'] + record['score_seconds']:.0f} s"
            else:
                outcome = f"failed: {record['failed']}"
            console.print(f"{cell.row}, {cell.column} {cell.normal}, seed {cell.seed}: {outcome}")
            progress.advance(task)

        run(table, out, cells, data_root=data_root, jobs=jobs, overwrite=overwrite, on_cell=tell)


def _print_reproduced(found: dict[str, Any]) -> None:
    from rich.table import Table

    from normalcy.studies.reproduce import explained, spelled

    grid = Table(title=f"{found['table']}: {found['paper']}", title_justify="left", box=None)
    for title in ("method", "data", "published", "same classes", "ours [95 %]", "difference", "cells"):
        grid.add_column(title, justify="left" if title in ("method", "data") else "right")
    for line in found["lines"]:
        grid.add_row(line["row"], line["column"], *spelled(line))
    _print(grid)
    _print(explained(found))
    if found["reduction"]:
        _print(found["reduction"])
    for failure in found["failed"]:
        _complain(f"Failed: {failure['reason']} Cells: {failure['cells']}.")


def _print_metrics(found: dict[str, Any]) -> None:
    image, case, pixel = found["image"], found["case"], found["pixel"]
    _print(f"{image['normal']} normal and {image['anomalous']} anomalous images")
    if case is not None:
        _print(f"of {case['normal']} normal and {case['anomalous']} anomalous cases")
    if case is not None and case["auroc"] is not None:
        _print(f"case AUROC               {_interval(case['auroc'])}")
    _print(f"image AUROC              {_interval(image['auroc'])}")
    _print(f"image average precision  {_interval(image['average_precision'])}")
    _print(f"FPR at 95 % TPR          {_interval(image['fpr_at_95_tpr'])}")
    decided = image["at_threshold"]
    if decided is not None:
        _print(f"false alarms             {decided['false_alarms']} of {image['normal']}")
        _print(f"anomalous images found   {decided['found']} of {image['anomalous']}")
    if pixel is not None:
        _print(f"pixel AUROC              {_interval(pixel['auroc'])}")
        _print(f"AUPRO ({pixel['aupro']['limit']:g})              {_interval(pixel['aupro'])}")
        if pixel["regions"]:
            _print(f"regions found            {pixel['regions']['hit']} of {pixel['regions']['total']}")
    if (patch := found["patch"]) is not None:
        _print(f"patch AUROC (side {patch['size']})    {_interval(patch['auroc'])}")
    if (region := found["region"]) is not None:
        _print(f"mean region sensitivity  {_interval(region['mean_sensitivity'])} (1/8 to 8 false regions per image)")


def _model_line(detector: Detector, out: Path) -> str:
    fit_facts, data = detector.facts["fit"], detector.facts["data"]
    skipped = f", {len(data['failed'])} skipped" if data["failed"] else ""
    for path, reason in data["failed"]:
        _complain(f"Skipped {path}: {reason}")
    held_out = f"{data['held_out']} held out for calibration" if data["held_out"] else "no calibration"
    return f"Fitted {detector.name} on {data['count']} images ({held_out}{skipped}) in {fit_facts['seconds']:.1f} s -> {out}"


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _print(what: Any) -> None:
    from rich.console import Console

    console = Console(
        width=None if sys.stdout.isatty() else 160, highlight=False, markup=False, soft_wrap=isinstance(what, str)
    )
    console.print(what)


def _complain(sentence: str) -> None:
    print(sentence, file=sys.stderr)
