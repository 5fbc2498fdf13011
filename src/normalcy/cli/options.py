"""Arguments and options of the commands, each defined once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from typer import Argument, Option

from normalcy.cli import completion as c
from normalcy.cli.printing import tables_as_json
from normalcy.errors import SettingsError

if TYPE_CHECKING:
    from normalcy.data.dataset import DataSet

# -- of several commands

Data = Annotated[
    str,
    Argument(
        metavar="DATA",
        help="Folder, CSV/Parquet table, .npz file, annotations (.json), or a name such as mvtec:bottle or mnist:3.",
        autocompletion=c.data,
    ),
]
Model = Annotated[Path, Argument(metavar="MODEL", help="Model folder.")]
Results = Annotated[Path, Argument(metavar="RESULTS", help="Results folder.")]
Out = Annotated[Path, Option(help="Folder for the results.")]
DataRoot = Annotated[
    Path | None, Option("--data-root", help="Folder of named data sets, to which they are also downloaded.")
]
Settings = Annotated[
    list[str],
    Option(
        "--set",
        metavar="KEY=VALUE",
        help="Setting; repeatable (normalcy methods NAME lists them).",
        autocompletion=c.settings,
    ),
]
Config = Annotated[Path | None, Option("--config", help="TOML file of settings, which --set and options override.")]
Epochs = Annotated[float | None, Option(help="Total epochs, distributed over the stages in their default proportions.")]
Steps = Annotated[int | None, Option(help="Total training steps, instead of epochs.")]
Seed = Annotated[int | None, Option(help="Seed of splits, initial weights, batches and noise [0].")]
Device = Annotated[
    str | None, Option(help="auto, cpu, cuda or mps [auto].", autocompletion=c.chosen("auto", "cpu", "cuda", "mps"))
]
Precision = Annotated[
    str | None,
    Option(
        help="auto, 32-true, bf16-mixed or 16-mixed [auto].",
        autocompletion=c.chosen("auto", "32-true", "bf16-mixed", "16-mixed"),
    ),
]
FalseAlarms = Annotated[
    float | None, Option("--false-alarms", help="Guaranteed (maximum) false-positive rate of images and pixels [0.05].")
]
Engine = Annotated[
    str,
    Option(
        help="What computes the scores: auto, torch, onnxruntime or openvino.",
        autocompletion=c.chosen("auto", "torch", "onnxruntime", "openvino"),
    ),
]
BatchSize = Annotated[int, Option(help="Images or tiles per batch.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace an existing output folder.")]

AsNormal = Annotated[
    bool,
    Option("--as-normal", help="Train on all images of a folder that is refused because of names such as bad or mask."),
]

# -- of one command

Method = Annotated[str | None, Option(help="Name of the method [patchcore].", autocompletion=c.methods)]
Devices = Annotated[int | None, Option(help="Number of training processes [1].")]
Resume = Annotated[bool, Option("--resume", help="Resume interrupted training.")]
ModelOut = Annotated[Path, Option(help="Folder for the model.")]
LogTo = Annotated[
    list[str],
    Option(
        "--log-to",
        metavar="KIND[:PLACE]",
        help="Log the training to csv, tensorboard, mlflow or wandb, into the folder PLACE [OUT.logs/KIND]; repeatable.",
        autocompletion=c.chosen("csv", "tensorboard", "mlflow", "wandb"),
    ),
]
MethodName = Annotated[
    str | None, Argument(metavar="NAME", help="Show the settings of this method.", autocompletion=c.methods)
]
Family = Annotated[
    str | None, Option(help="List the methods of this family only, such as one-class.", autocompletion=c.families)
]

Inputs = Annotated[
    list[str], Argument(metavar="INPUTS", help="A data set, or images and folders.", autocompletion=c.data)
]
Split = Annotated[
    str | None,
    Option(
        help="train, test or all [test, if there is a test split].", autocompletion=c.chosen("train", "test", "all")
    ),
]
Score = Annotated[
    str | None,
    Option("--score", help="Anomaly score to use, of those the method offers.", autocompletion=c.scores),
]
Rule = Annotated[
    str,
    Option(
        help="Threshold rule: false_alarms, or with --validation max_f1, youden or minimum_area:PIXELS.",
        autocompletion=c.chosen("false_alarms", "max_f1", "youden", "minimum_area:"),
    ),
]
Validation = Annotated[
    str | None,
    Option(help="Validation images (or RESULTS/review) for the other rules.", autocompletion=c.data),
]
Tile = Annotated[bool, Option("--tile", help="Score large images in overlapping tiles instead of resizing them.")]
OneShard = Annotated[
    str | None, Option("--shard", metavar="K/N", help="Score part K of N only; normalcy merge joins the results.")
]
Ray = Annotated[
    str | None,
    Option(
        "--ray",
        metavar="ADDRESS",
        help="Work on a Ray cluster: HOST:PORT, auto (the one of this machine) or local (new).",
    ),
]
Shards = Annotated[list[Path], Argument(metavar="RESULTS...", help="Results folders of all shards.")]
Maps = Annotated[bool, Option(help="Write anomaly maps and restored images.")]

Slides = Annotated[list[Path], Argument(metavar="INPUTS", help="Whole-slide images, or folders of them.")]
SlideModel = Annotated[
    Path, Argument(metavar="MODEL", help="Model folder of a method fitted on tiles (slides:FOLDER,tile=256).")
]
SlideSettings = Annotated[
    list[str],
    Option(
        "--set",
        metavar="KEY=VALUE",
        help="tile, mpp, tissue or stain, if other than in training; repeatable.",
        autocompletion=c.chosen("tile=", "mpp=", "tissue=", "stain="),
    ),
]
Quantile = Annotated[float, Option(help="A slide's score is this quantile of the scores of its tiles.")]
Cell = Annotated[int, Option(help="Pixels of a tile per pixel of the heat map.")]

Exclude = Annotated[
    Path | None,
    Option(
        "--exclude", help="Labels of a review (labels.csv or its folder): images labelled anomalous are not trained on."
    ),
]
Labels = Annotated[
    str | None,
    Option("--labels", help='Labels instead of those of the data: "review" (of RESULTS), a review folder or a table.'),
]
Limit = Annotated[float, Option(help="Maximum false-positive rate of the area under the PRO curve (AUPRO).")]
Patch = Annotated[int | None, Option(help="Side of a patch, in pixels [an eighth of an image's shortest side].")]
PatchShare = Annotated[
    float, Option("--patch-share", help="A patch is anomalous if at least this fraction of it is marked.")
]
AnyResults = Annotated[Path, Argument(metavar="RESULTS", help="Results folder, or output folder of normalcy compare.")]
DicomOut = Annotated[Path, Option(help="Folder for the DICOM files, with a folder for each image.")]
SourceImages = Annotated[str | None, Option("--data", help="The images, if they are not found or have changed.")]
Pictures = Annotated[
    bool, Option("--pictures", help="Also write each map as a PNG beside it, for a file viewer, with one colour scale.")
]

Neurological = Annotated[
    bool, Option("--neurological", help="Show the patient's left on the left, instead of the right as radiologists do.")
]

DemoMethods = Annotated[
    list[str],
    Option("--method", metavar="NAME", help="Method to run; repeatable [five methods].", autocompletion=c.methods),
]
Full = Annotated[bool, Option("--full", help="Include methods that train longer.")]
OverwriteDemo = Annotated[bool, Option(help="Replace an earlier demo.")]
AuditMethod = Annotated[str, Option(help="Name of the method.", autocompletion=c.methods)]
Share = Annotated[float | None, Option("--share", help="Expected fraction of anomalous images, for example 0.02.")]
Weights = Annotated[
    str, Option(help="Comma-separated lambda values for rda; the one that best matches --share is used.")
]
Folds = Annotated[
    int | None, Option(help="Number of fits that each leave out a part and score it [1 for rda, else 5].")
]
Show = Annotated[int, Option("--show", help="Write maps and images for the N highest-scoring images.")]
Methods = Annotated[str, Option("--methods", help="Comma-separated names of methods.", autocompletion=c.methods)]
CompareOut = Annotated[Path, Option(help="Folder for the results, with a folder for each method.")]
SelectOut = Annotated[Path, Option(help="Folder for the study, the best settings and the report.")]
Anomalies = Annotated[
    str, Option(help='A few anomalous images (folder, table, name, or RESULTS/review), or "synthetic".')
]
Trials = Annotated[int, Option(help="Number of settings to try, including those of earlier runs into the same folder.")]
Try = Annotated[
    list[str],
    Option(
        "--try",
        metavar="KEY=A|B|C",
        help="Values to choose from, instead of the method's search space; repeatable.",
        autocompletion=c.tried,
    ),
]
Storage = Annotated[
    str | None, Option(help="Database URL, or journal:///FILE on a shared disk, for several workers [SQLite in OUT].")
]

Table = Annotated[
    str | None,
    Argument(
        metavar="NAME",
        help="A table, such as ddr_id/table-2, or a TOML file; without it, list the tables.",
        autocompletion=c.tables,
    ),
]
Quick = Annotated[bool, Option("--quick", help="The table's reduced version; every output states the reduction.")]
Rows = Annotated[str, Option(help="Only these rows, by name or method; comma-separated.")]
Columns = Annotated[str, Option(help="Only these data sets of the table.")]
Classes = Annotated[str, Option(help="Only these normal classes, by name or number.")]
Seeds = Annotated[str, Option(help="Only these seeds: 0 or 0,3 or 0-4 [the first three].")]
TablesOut = Annotated[Path, Option(help="Folder for the results of all tables.")]
Jobs = Annotated[
    int | None,
    Option(help="Number of parallel fits [one per GPU, or one per two cores; two on a machine with two cores]."),
]
Lease = Annotated[
    float, Option(help="Seconds after which other processes run the cells of a machine that died; at least 1.")
]
ListOnly = Annotated[bool, Option("--list", help="Show what the table contains, run nothing.")]
Rerun = Annotated[bool, Option("--overwrite", help="Run cells again that already have results.")]


Json = Annotated[bool, Option("--json", help="Print the tables to stdout as JSON, everything else to stderr.")]


@dataclass(frozen=True)
class Training:
    """The options of every command that trains."""

    epochs: Epochs = None
    steps: Steps = None
    set_: Settings = field(default_factory=list)
    config_file: Config = None
    data_root: DataRoot = None
    seed: Seed = None
    device: Device = None
    precision: Precision = None
    as_normal: AsNormal = False

    def settings(self, **options: Any) -> dict[str, Any]:
        """Settings of the file, overridden by those of --set, overridden by options (and ``options``, of one command)."""
        from normalcy.config import parse_settings, read_toml

        settings = read_toml(self.config_file) if self.config_file is not None else {}
        settings.update(parse_settings(self.set_))
        own = {name: getattr(self, name) for name in ("epochs", "steps", "seed", "device", "precision")}
        given = {name: value for name, value in {**own, **options}.items() if value is not None}
        if "epochs" in given or "steps" in given:  # the option replaces whichever of the two the file has
            settings.pop("epochs", None)
            settings.pop("steps", None)
        return {**settings, **given}

    def open(self, data: str) -> DataSet:
        return open_data(data, self.data_root, self.as_normal)


def with_training(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of :class:`Training` as options in place of its parameter ``training``."""
    hints, own = get_type_hints(command, include_extras=True), get_type_hints(Training, include_extras=True)
    parameters = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name == "training":
            default = Training()
            parameters += [
                parameter.replace(name=f.name, default=getattr(default, f.name), annotation=own[f.name])
                for f in fields(Training)
            ]
        else:
            parameters.append(parameter.replace(annotation=hints[name]))

    def run(**given: Any) -> None:
        training = Training(**{f.name: given.pop(f.name) for f in fields(Training)})
        command(**given, training=training)

    return _in_place_of(command, run, parameters)


def with_json(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the option ``--json``."""
    hints = get_type_hints(command, include_extras=True)
    own = inspect.signature(command).parameters.values()
    parameters = [parameter.replace(annotation=hints[parameter.name]) for parameter in own]
    parameters.append(inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json))

    def run(**given: Any) -> None:
        with tables_as_json(given.pop("json")):
            command(**given)

    return _in_place_of(command, run, parameters)


def _in_place_of(
    command: Callable[..., None], run: Callable[..., None], parameters: Sequence[inspect.Parameter]
) -> Callable[..., None]:
    """``run`` with the name and the text of ``command``, and these parameters."""
    functools.update_wrapper(run, command)
    del run.__dict__["__wrapped__"]  # whoever inspects it is to see the options
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


# -- values of options


def open_data(data: str, data_root: Path | None, as_normal: bool = False) -> DataSet:
    """As :func:`normalcy.data.open.open_data`; a review (``RESULTS/review``) is a data set, too: the images decided.

    ``as_normal``: also a folder whose names say that images may be anomalous, as commands that do not train open it."""
    from normalcy.data import open as opening

    if Path(data).name == "review":
        from normalcy.results.labels import is_review, open_review

        if is_review(data):
            return open_review(Path(data))
    return opening.open_data(data, data_root, as_normal=as_normal)


def listed(text: str) -> list[str]:
    """``"a, b"`` -> ``["a", "b"]``."""
    return [word.strip() for word in text.split(",") if word.strip()]


def numbers(text: str, option: str) -> list[float]:
    """``"0.2,0.5"`` -> ``[0.2, 0.5]``."""
    try:
        return [float(word) for word in listed(text)]
    except ValueError:
        raise SettingsError(f"{option} expects numbers separated by commas, as 0.2,0.5,1, got {text!r}.") from None


def seeds_of(text: str) -> list[int]:
    """``"0,3-5"`` -> ``[0, 3, 4, 5]``."""
    seeds: list[int] = []
    for word in listed(text):
        first, dash, last = word.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(word) > 20:
            raise SettingsError(f"--seeds expects whole numbers, as 0 or 0,3 or 0-4, got {text!r}.")
        ends = int(first), int(last or first)
        if ends[1] - ends[0] >= MOST_SEEDS:
            raise SettingsError(f"--seeds expects at most {MOST_SEEDS} seeds, got {text!r}.")
        seeds += range(ends[0], ends[1] + 1)
    return seeds


MOST_SEEDS = 1000


def at_least_one(number: int | None, option: str) -> None:
    if number is not None and number < 1:
        raise SettingsError(f"{option} must be at least 1, got {number}.")
