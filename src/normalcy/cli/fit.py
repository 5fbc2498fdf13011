"""Commands about data and models: check, fit, info, methods."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from normalcy.cli import options as o
from normalcy.cli.printing import complain, fit_progress, progress, record, show, show_table
from normalcy.errors import SettingsError

if TYPE_CHECKING:
    from normalcy.data.dataset import DataSet
    from normalcy.data.kinds import Kind

OTHER = "other"
"""Family of methods that name none of normalcy's."""


@o.with_json
def methods(name: o.MethodName = None, family: o.Family = None) -> None:
    """List the methods by family, or the settings of one method."""
    from normalcy.methods import FAMILIES, available, get

    if name is not None:
        _show_method(name)
        return
    families = {**FAMILIES, OTHER: "Methods of other packages that name no family."}
    if family is not None and family not in families:
        raise SettingsError(f"There is no family {family!r}. Available: {', '.join(families)}.")
    members: dict[str, list[tuple[str, str]]] = {title: [] for title in families}
    for known in sorted(available()):
        cls = get(known)
        members[cls.family if cls.family in FAMILIES else OTHER].append((known, _plain(cls.summary())))
    for title, rows in members.items():
        if rows and family in (None, title):
            for known, text in rows:
                asked = record("methods", method=known, family=title, summary=text)
            if not asked:
                show(f"{title}: {families[title]}")
                show_table(("", ""), [(f"  {known}", text) for known, text in rows])
                show("")


@o.with_json
def check(data: o.Data, data_root: o.DataRoot = None) -> None:
    """Show how a data set is understood and list every problem of it; exit 1 if there are errors.

    Reads all images and masks once.
    """
    from normalcy.data.check import check_and_survey

    images = o.open_data(data, data_root, as_normal=True)
    for line in _understood(images):
        show(line)
    with progress("checking") as on_progress:
        faults, kinds, masks = check_and_survey(images, on_progress=on_progress)
    for fault in sorted(faults, key=lambda f: (f.severity != "error", f.path)):
        if not record("problems", severity=fault.severity, path=fault.path, problem=fault.problem):
            show(f"{fault.severity}: {fault.path}: {fault.problem}")
    errors = sum(f.severity == "error" for f in faults)
    normal, anomalous, unknown = (int((images.labels == label).sum()) for label in (0, 1, -1))
    if images.has_masks:
        others = [(masks.another_size, "of another size than the image"), (masks.unreadable, "not readable")]
        listed = "".join(f", {count} {what}" for count, what in others if count)
        show(f"Masks of anomalous images: {masks.there} there, {masks.missing} missing{listed}.")
    show(
        f"{images.name}: {len(images)} images ({normal} normal, {anomalous} anomalous, {unknown} unknown), "
        f"{errors} errors, {len(faults) - errors} warnings."
    )
    outlook = f"fit would refuse these images: {doubt}" if (doubt := images.origin.doubt) else _outlook(images, kinds)
    show(outlook)
    counts = {"images": len(images), "normal": normal, "anomalous": anomalous, "unknown": unknown}
    record("data", name=images.name, **counts, errors=errors, warnings=len(faults) - errors, fit=outlook)
    if errors:
        raise typer.Exit(1)


@o.with_training
def fit(
    data: o.Data,
    out: o.ModelOut,
    method: o.Method = None,
    *,
    training: o.Training,
    devices: o.Devices = None,
    false_alarms: o.FalseAlarms = None,
    exclude: o.Exclude = None,
    log_to: o.LogTo = [],  # noqa: B006 (Typer copies it)
    resume: o.Resume = False,
    overwrite: o.Overwrite = False,
) -> None:
    """Train a method on the normal images of DATA, write a model."""
    from normalcy.data.splits import with_split
    from normalcy.detector import Detector
    from normalcy.files import prepare_target, remove
    from normalcy.results.labels import chosen_on, read_labels, without_labelled
    from normalcy.results.writer import refuse_inputs
    from normalcy.training.log import TRAIN_LOG, Record, read_log
    from normalcy.training.processes import joined
    from normalcy.training.tracking import destinations, tracking

    settings = training.settings(devices=devices, false_alarms=false_alarms)
    named = str(settings.pop("method", "patchcore"))
    detector = Detector(method or named, **settings)
    tracked = destinations(log_to, out.absolute().with_name(f"{out.absolute().name}.logs"))

    def opened() -> tuple[DataSet, int]:
        """The images to fit to, and the number of those that --exclude leaves out."""
        images = training.open(data)
        if exclude is None:
            return images, 0
        # the split is drawn first, so that it is that of a fit to all images
        return without_labelled(with_split(images, detector.train.seed), read_labels(exclude))

    with joined() as processes:
        if not processes.first:
            detector.fit(opened()[0], resume=resume)
            return
        with prepare_target(out, overwrite):
            run = _run_folder(out, resume, overwrite)
            images, excluded = opened()
            refuse_inputs(out, images)
            facts_given = {"method": detector.name, "data": images.name, **detector.all_settings()}
            with (
                tracking(tracked, facts_given, name=out.absolute().name) as tracker,
                fit_progress() as (show_progress, on_decode),
            ):
                for record in read_log(run / TRAIN_LOG) if resume else []:
                    tracker(record)

                def log(record: Record) -> None:
                    show_progress(record)
                    tracker(record)

                detector.fit(images, run_dir=run, resume=resume, log=log, on_decode=on_decode)
                tracker.results(detector.outcome())
            if excluded:
                detector.facts["data"]["excluded"] = excluded
            if chosen := chosen_on(training.config_file):
                detector.facts["data"]["chosen_on"] = chosen
            detector.save(out, overwrite)
            remove(run)
    facts, count = detector.facts["fit"], detector.facts["data"]
    for path, reason in count["failed"]:
        complain(f"Skipped {path}: {reason}")
    held_out = f"{count['held_out']} held out for calibration" if count["held_out"] else "no calibration"
    skipped = f", {len(count['failed'])} skipped" if count["failed"] else ""
    skipped += f", {excluded} excluded by labels" if excluded else ""
    show(
        f"Fitted {detector.name} on {count['count']} images ({held_out}{skipped}) in {facts['seconds']:.1f} s -> {out}"
    )
    for one in tracked:
        show(f"Logged to {one}")


def info(model: o.Model) -> None:
    """Show training data, calibration and settings of a model."""
    from normalcy.detector import load

    show(load(model).card())


# -- private ---------------------------------------------------------------------------------------------------------


def _understood(images: DataSet) -> list[str]:
    """Layout, and the number of images of each split and kind."""
    from normalcy.data.check import counts

    titles = {"train": "Training", "test": "Test", "": "In no split"}
    parts = counts(images)
    if set(parts) == {""}:
        titles[""] = "Without split"
    lines = [f"Layout: {images.origin.layout}."] if images.origin.layout else []
    for split, kinds in parts.items():
        lines.append(f"{titles[split]}: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}.")
    return lines + [f"Note: {note}." for note in images.origin.notes]


def _outlook(images: DataSet, kinds: list[Kind | str]) -> str:
    """What ``fit`` would do with these images, by default settings."""
    from normalcy.detector import outlook
    from normalcy.errors import DataError

    try:
        found = outlook(images, kinds)
    except DataError as error:
        return f"fit would refuse these images: {error}"
    shape = " x ".join(map(str, found.shape)) if found.shape else "their own sizes"
    skipped = f"; {len(found.skipped)} would be skipped" if found.skipped else ""
    used = f"{found.train} images as {shape} (channels x size), {found.held_out} held out for calibration"
    return "\n".join(
        [f"fit would train on {used}{skipped}.", *(f"Would skip {one.path}: {one.reason}" for one in found.skipped)]
    )


def _show_method(name: str) -> None:
    from normalcy import config
    from normalcy.methods import get
    from normalcy.settings import COMMON

    cls = get(name)
    scores = f" Scores: {', '.join(cls.scores)}." if cls.scores else ""
    if not record("methods", method=name, family=cls.family, summary=_plain(cls.summary()), scores=cls.scores):
        show(f"{name}: {_plain(cls.summary())}\nFamily: {cls.family}.{scores}")
    for title, part in {name: cls.Settings, **COMMON}.items():
        notes = config.field_docs(part)
        rows = [
            (setting, config.shown_default(f), _plain(notes.get(setting, "")))
            for setting, f in config.fields_of(part).items()
        ]
        for setting, default, meaning in rows:
            record("settings", part=title, setting=setting, default=default, meaning=meaning)
        show("")
        show_table((f"{title} setting", "default", "meaning"), rows)


def _plain(text: str) -> str:
    """Text of a docstring without its literal marks."""
    return text.replace("``", "")


def _run_folder(out: Path, resume: bool, overwrite: bool) -> Path:
    """Folder of checkpoints beside ``out``; that of an unfinished fit is kept, refused or removed."""
    from normalcy.files import remove

    out = out.absolute()  # "." has no name
    run = out.with_name(f"{out.name}.run")
    if run.exists() and not resume:
        if not overwrite:
            raise SettingsError(
                f"{run} holds an unfinished fit: resume it with --resume, or pass --overwrite to start again."
            )
        remove(run)
    return run
