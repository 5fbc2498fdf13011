"""Write the parts of the documentation that come from the code; run it after changing a method, a setting or an option.

    python docs/make_pages.py

A page for each method (``docs/methods``), the Python reference (``docs/api``), both in the navigation of the site, the tables of
methods, the list of papers, the tables of settings, the command-line reference, the trees of layouts, what recipes and
benchmarks measured, and the reproduced tables themselves (``recipes/results/<paper>``), from the committed cells. Whole pages
are written anew; in the others only what stands between a pair of markers ``<!-- NAME -->`` and ``<!-- /NAME -->``.
``tests/test_docs.py`` fails when a part is not up to date.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

from normalcy import config
from normalcy.cli.app import EXIT_CODES, app
from normalcy.methods import FAMILIES, METHODS, get
from normalcy.report.text import markdown_table
from normalcy.results.comparison import Comparison
from normalcy.results.metrics import Metrics
from normalcy.results.run import CaseRow, Run, ScoreRow
from normalcy.results.schema import describe, to_json
from normalcy.settings import COMMON

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))  # not there where this file is loaded as a module
import layout_trees  # noqa: E402
import reproduced  # noqa: E402
import scale_tables  # noqa: E402

RESULTS = ROOT / "recipes" / "results"
BENCHMARKS = ROOT / "benchmarks" / "results"
FILES = {
    "scores.csv": ScoreRow,
    "cases.csv": CaseRow,
    "run.json": Run,
    "metrics.json": Metrics,
    "compare.json": Comparison,
}
"""Files of results -> what their rows or objects hold."""


def pages() -> dict[Path, str]:
    """Every file with made parts -> its whole content as it should be."""
    made = {DOCS / "methods" / f"{name}.md": method_page(name) for name in METHODS}
    made |= {DOCS / "api" / f"{page}.md": api_page(page) for page in API}
    made |= {DOCS / "api" / "index.md": api_index(), ROOT / "zensical.toml": navigation()}
    made |= reproduced.files()
    parts = {
        ROOT / "README.md": {"families": families_table("docs/methods")},
        DOCS / "reference" / "methods.md": {"methods": methods_table("../methods")},
        DOCS / "reference" / "papers.md": {"methods": papers()},
        DOCS / "reference" / "settings.md": {name: settings_table(cls) for name, cls in COMMON.items()},
        DOCS / "reference" / "command-line.md": {"commands": command_line(), "exit-codes": exit_codes()},
        DOCS / "reference" / "files.md": {name: file_table(cls) for name, cls in FILES.items()},
        DOCS / "reference" / "recipes.md": reproduced.texts(),
        DOCS / "explanation" / "which-method.md": {"evidence": evidence()},
        DOCS / "explanation" / "scale.md": scale_tables.texts(),
        DOCS / "how-to" / "export.md": {"exportable": exportable()},
        DOCS / "how-to" / "layouts.md": {"layouts": layouts()},
    }
    for path, texts in parts.items():
        content = path.read_text(encoding="utf-8")
        for name, text in texts.items():
            content = put_between(content, name, text, path)
        made[path] = content
    return made


def layouts() -> str:
    """A section for each tree: its text, the tree, and what is read from it."""
    sections = []
    for tree in layout_trees.TREES:
        rows = []
        for path, read in tree.read.items():
            mask = "yes" if isinstance(read.mask, tuple) else {"empty": "nothing marked", "none": "none"}[read.mask]
            label = {0: "normal", 1: "anomalous", None: "unknown"}[read.label]
            rows.append((f"`{path}`", read.split or "", label, read.type or "", mask))
        opened = [f"`{tree.folder}`"] if tree.folder else []
        opened += [f"`{name}`" for name in tree.names]
        named = f"\n\nRead from {' or '.join(opened)}:" if opened else ""
        head = ("image", "split", "label", "type", "mask")
        drawn = f"```text\n{layout_trees.drawn(tree)}\n```"
        sections.append(f"### {tree.title}\n\n{tree.text}\n\n{drawn}{named}\n\n{table(head, rows)}")
    return "\n\n".join(sections) + "\n"


def put_between(content: str, name: str, text: str, path: Path) -> str:
    """``content`` with ``text`` between the markers of this name."""
    before, opening, rest = content.partition(f"<!-- {name} -->\n")
    _, closing, after = rest.partition(f"<!-- /{name} -->")
    if not opening or not closing:
        raise ValueError(f"{path} needs the markers <!-- {name} --> and <!-- /{name} -->, each at the start of a line.")
    return f"{before}{opening}\n{text}\n\n{closing}{after}"


def exportable() -> str:
    """Every method: the scores that can be exported, and why the others cannot."""
    rows = []
    for name in METHODS:
        cls = get(name)
        works = [score for score in cls.scores or ("",) if score not in cls.not_exportable]
        named = ", ".join(f"`{score}`" for score in works if score) or ("yes" if works else "none")
        reasons: dict[str, list[str]] = {}
        for score, reason in cls.not_exportable.items():
            reasons.setdefault(reason, []).append(f"`{score}`")
        why = "; ".join(reason if not works else f"{', '.join(scores)}: {reason}" for reason, scores in reasons.items())
        rows.append((f"[{name}](../methods/{name}.md)", named, why))
    return table(("method", "scores that can be exported", "why others cannot, and what to take instead"), rows)


# -- methods and settings --------------------------------------------------------------------------------------------


PICTURES = {
    "lsr": (
        "`preset=features` on crops of photographed textures (ambientCG, CC0) with synthetic anomalies, after a fit of about a "
        "minute: codes, their surprise, changed codes, restored image, fused map, and the map that the fit chose. Made by "
        "docs/make_gallery.py."
    )
}
"""Method -> caption of its picture, docs/images/methods/<method>.png, shown where it exists."""


def method_page(name: str) -> str:
    """The page of a method: its module's docstring, its source, its scores, its settings, what was measured."""
    cls = get(name)
    source = cls.__module__.replace(".", "/")
    lines = [
        f"# {name}",
        "",
        f"<!-- Made by docs/make_pages.py from src/{source}.py. -->",
        "",
        markdown(inspect.getdoc(sys.modules[cls.__module__]) or ""),
        "",
        f"Images: {dimensions(name)}. Family: {family(name)}. Class: `{cls.__module__}.{cls.__name__}`.",
        "",
        "```sh",
        f"normalcy fit DATA --method {name} --out MODEL",
        "normalcy score MODEL DATA --out RESULTS",
        "```",
    ]
    if works := references(name):
        lines += ["", "## Source", "", "\n\n".join(works)]
    if cls.scores:
        scores = ", ".join(f"`{score}`" for score in cls.scores)
        lines += ["", "## Scores", "", f"One fitted model can be scored with any of these: {scores}."]
        lines += ["Choose with `--score` of `normalcy score`, or `detector.with_score(...)` in Python."]
    if (caption := PICTURES.get(name)) and (DOCS / "images" / "methods" / f"{name}.png").exists():
        lines += ["", "## Example", "", f"![{caption}](../images/methods/{name}.png)", "", caption]
    lines += ["", "## Settings", "", settings_table(cls.Settings)]
    lines += ["", "All methods also accept the [common settings](../reference/settings.md).", ""]
    if parts := measured(name):
        lines += ["## Measured", "", "\n\n".join(parts), ""]
    return "\n".join(lines)


def methods_table(folder: str) -> str:
    """Name, summary and dimensions of each method, a table for each family; the names link to the pages in ``folder``."""
    parts = []
    for group, names in families().items():
        rows = [(linked(name, folder), markdown(get(name).summary()), dimensions(name)) for name in names]
        parts.append(
            f"**{group.capitalize()}.** {FAMILIES.get(group, 'All others.')}\n\n"
            + table(("method", "summary", "images"), rows)
        )
    return "\n\n".join(parts)


def families_table(folder: str) -> str:
    """Family, what it does, its methods with links to their pages in ``folder``."""
    rows = [
        (group, FAMILIES.get(group, "All others."), ", ".join(linked(name, folder) for name in names))
        for group, names in families().items()
    ]
    return table(("family", "what it does", "methods"), rows)


def papers() -> str:
    """The references of all methods that have one."""
    return "\n".join(f"- `{name}`: {' '.join(works)}" for name in METHODS if (works := references(name)))


def references(name: str) -> list[str]:
    """Citations of a method; none where it does not name any."""
    text = get(name).reference
    return text.splitlines() if isinstance(text, str) else []


def families() -> dict[str, list[str]]:
    """Family -> names of its methods; those of no family come last."""
    groups = {group: [name for name in METHODS if family(name) == group] for group in [*FAMILIES, "other"]}
    return {group: names for group, names in groups.items() if names}


def family(name: str) -> str:
    group = get(name).family
    return group if group in FAMILIES else "other"


def linked(label: str, folder: str = "../methods") -> str:
    """A label that starts with the name of a method, which links to its page."""
    name = re.split(r"\W", label, maxsplit=1)[0]
    return f"[`{name}`]({folder}/{name}.md){label.removeprefix(name)}" if name in METHODS else label


def settings_table(cls: type) -> str:
    """Word, values, default and meaning of each setting."""
    notes = config.field_docs(cls)
    hints = get_type_hints(cls)
    rows = [
        (f"`{word}`", values(hints[word]), shown(config.default_of(f)), markdown(notes.get(word, "")))
        for word, f in config.fields_of(cls).items()
    ]
    return table(("setting", "values", "default", "meaning"), rows)


def dimensions(name: str) -> str:
    return " and ".join(f"{d}D" for d in get(name).spatial_dims)


def file_table(cls: type) -> str:
    """Meaning of the columns of a table, or values and meaning of the keys of a JSON file."""
    rows = [(f"`{key}`", hint, markdown(about)) for key, hint, about in describe(cls)]
    if cls in (ScoreRow, CaseRow):
        return table(("column", "meaning"), [(key, about) for key, _, about in rows])
    return table(("key", "values", "meaning"), rows)


def values(hint: Any) -> str:
    """What a setting may be, in words."""
    names: dict[Any, str] = {int: "whole number", float: "number", bool: "true, false", str: "text", type(None): "none"}
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin in (Union, types.UnionType):
        return " or ".join(values(a) for a in args)
    if origin is tuple:
        return f"list: {values(args[0])}"
    return names[hint]


def shown(value: Any) -> str:
    """A default as it is written on the command line."""
    texts = [f"{v:.5g}" if isinstance(v, float) else str(v) for v in (value if isinstance(value, tuple) else (value,))]
    text = ",".join(texts)
    return f"`{text.lower() if value is None or isinstance(value, bool) else text}`" if text else "empty"


# -- what recipes and benchmarks measured ----------------------------------------------------------------------------


class Recipe(NamedTuple):
    """How the result file of a recipe is shown; without a title it is on the pages of its methods alone."""

    data: str
    title: str = ""
    words: Callable[[dict[str, Any]], str] = lambda found: ""
    order: str = ""
    """Column by which rows are sorted, highest first; empty: as they stand in the file."""
    figure: str = ""
    """Of docs/images, shown below the words where it exists."""
    apart: bool = False
    """A table for each part of the result file."""
    before: str = ""
    """Change of the methods that the result file precedes."""
    remark: str = ""
    """On the pages of the methods."""


LAST_BATCH = reproduced.LAST_BATCH
HELD_OUT = "Held-out training images; width 16, batches of 64, learning rate 3e-4 unless stated."
PATCHCORE = (
    "The defaults of PatchCore were chosen on test images of the magnetic tiles and of the solar cells, so its numbers on them "
    "are optimistic."
)
RECIPES = {
    "three_tasks": Recipe(
        "three tasks",
        "Three tasks, each method on the one it is made for",
        lambda found: (
            "A method that trains by gradients has a fit for each of two training times; one class: means over three classes, of "
            "contrast-normalised images (`gcn`) but for "
            + ", ".join(f"`{name}`" for name in found["without_gcn"])
            + ", which have pretrained networks. Processor seconds of training: "
            + "; ".join(
                f"{task} {' and '.join(f'{s:g}' for s in two)}"
                for task, two in found["training_seconds"].items()
                if task in found["parts"]
            )
            + f". Threads: {found['threads']}; seed {found['seed']}. Settings are the defaults, but "
            + "; ".join(
                f"`{name}`: " + ", ".join(f"{key} {value}" for key, value in words.items())
                for name, words in found["settings"].items()
            )
            + ". Short trainings: not each method's best performance. PatchCore and PaDiM have the embedded EfficientNet-Lite0, "
            f"not the networks of their papers. {PATCHCORE}"
        ),
        figure="three-tasks.png",
        apart=True,
    ),
    "magnetic_tile": Recipe(
        "magnetic tiles", "Magnetic tiles at 256x256: detection and localisation", lambda found: PATCHCORE
    ),
    "lsr_tiles": Recipe(
        "magnetic tiles",
        "The same tiles, networks trained for the same time",
        lambda found: (
            f"{found['minutes']:g} minutes of one core for LSR and a quarter more for the others; of several seeds means, with "
            "intervals over test images."
        ),
        "pixel_auroc",
    ),
    "dpa_tiles": Recipe(
        "magnetic tiles",
        "The same tiles, by the map of DPA",
        lambda found: (
            f"{found['minutes']:g} minutes of one core for each method. Measured on {found['date']}, with statistics of the "
            "training images and an autoencoder of full size."
        ),
        "pixel_auroc",
    ),
    "solar_cells": Recipe("solar cells (`elpv`)", "Solar cells: detection", lambda found: PATCHCORE),
    "model_zoo": Recipe("solar cells (`elpv`)", "The same cells, small models to share"),
    "chest_xray": Recipe(
        "chest X-rays",
        "Pneumonia in chest X-rays: detection",
        lambda found: (
            f"{found['train']} images without findings to train; {found['test']['normal']} of other patients and "
            f"{found['test']['pneumonia']} with pneumonia to test; the first seed. Networks train for about {found['minutes']:g} "
            "minutes of processor time on one core; p: DeLong's test against the best."
        ),
        "auroc",
    ),
    "toy_mood": Recipe(
        "brain volumes with synthetic anomalies",
        "Anomalies in brain volumes: localisation",
        lambda found: (
            f"Two brain templates deformed into {found['volumes']['train']} training volumes; "
            f"{found['volumes']['test_normal']} normal test volumes and {found['volumes']['test_anomalous']} with one synthetic "
            f"anomaly. By chance the voxel AP is {found['voxel_ap_by_chance']:.3f} and the sample AP "
            f"{found['volumes']['test_anomalous'] / (found['volumes']['test_normal'] + found['volumes']['test_anomalous']):.2f}."
        ),
    ),
    "brain_lesions": Recipe(
        "brain MR and CT volumes",
        "Lesions in brain MR and CT volumes: detection of each lesion",
        lambda found: (
            f"{found['volumes']['test_with_lesions']} test volumes with lesions; thresholds from held-out normal volumes at 1 "
            "and 5 false regions per volume, and the false regions per volume of other normal volumes at these thresholds."
        ),
    ),
    "rda_contamination": Recipe(
        "MNIST with foreign digits in training",
        "Foreign digits among the training images",
        lambda found: (
            f"{found['images']} images of the digit {found['digit']}, "
            f"{max(row['seeds'] for row in found['summary'])} seed(s). Published F1 at {100 * found['published']['share']:g} %: "
            f"RDA {found['published']['rda_f1']}, isolation forest {found['published']['isolation_forest_f1']}; they cannot be "
            "compared with F1 max, the largest of any threshold."
        ),
        before=LAST_BATCH,
    ),
    "ganomaly_tiles": Recipe("magnetic tiles, 64x64"),
    "qspace_diffusion": Recipe("diffusion MRI with synthetic lesions"),
    "ddr_id_finetuning": Recipe("MNIST, digit 5", before=LAST_BATCH, remark=HELD_OUT),
    "ddr_id_first_weights": Recipe("", remark=HELD_OUT),
    "dpa_choice": Recipe("CIFAR-10, automobile"),
}


def spelled(value: Any, digits: int = 3) -> str:
    """A number or an interval: its value and, where it has one, its 95 % interval."""
    interval = value if isinstance(value, dict) else {"value": value}
    if interval.get("value") is None:
        return "-"
    low, high = interval.get("low"), interval.get("high")
    ends = f" [{low:.{digits}f}, {high:.{digits}f}]" if low is not None else ""
    return f"{interval['value']:.{digits}f}{ends}"


def value_of(interval: Any) -> float:
    return float(interval["value"] if isinstance(interval, dict) else interval)


def seconds(value: Any) -> str:
    return f"{fmean(value) if isinstance(value, list) else value:.0f}"


COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "data": ("images", str),
    "part": ("images", lambda part: part.upper() if part.isalpha() and len(part) <= 2 else part),
    "share": ("foreign", lambda fraction: f"{100 * fraction:g} %"),
    "score": ("score", lambda score: f"`{score}`"),
    "epochs": ("epochs", str),
    "image_auroc": ("image AUROC", spelled),
    "auroc": ("image AUROC", spelled),
    "mean_auroc": ("mean image AUROC", spelled),
    "auroc_deviation": ("± between seeds", spelled),
    "auroc_latent": ("image AUROC of `latent`", lambda percent: spelled(percent / 100)),
    "auroc_image": ("image AUROC of `image`", lambda percent: spelled(percent / 100)),
    "pixel_auroc": ("pixel AUROC", spelled),
    "aupro": ("AUPRO", spelled),
    "pro": ("per-region overlap at the threshold", spelled),
    "mean_accuracy": ("mean accuracy at the threshold", spelled),
    "voxel_ap": ("voxel AP", spelled),
    "voxel_auroc": ("voxel AUROC", spelled),
    "sample_ap": ("sample AP", spelled),
    "sample_auroc": ("sample AUROC", spelled),
    "average_precision": ("AP", spelled),
    "f1_max": ("F1 max", spelled),
    "published": ("published", spelled),
    "p_against_best": ("p", spelled),
    "training_seconds": ("training s", seconds),
    "fit_seconds": ("fit s", seconds),
    "fit_processor_seconds": ("fit s", seconds),
    "images_per_second": ("images/s", lambda rate: f"{rate:.1f}"),
    "memory_gib": ("memory GiB", lambda gib: f"{gib:.1f}"),
}
"""Key of a row in a result file -> heading and format, in the order of the columns."""


@cache
def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def rows_of(recipe: str) -> list[dict[str, Any]]:
    """Rows of the result file of a recipe. ``row`` is the label of each, which starts with the name of its method."""
    found = read(RESULTS / f"{recipe}.json")
    rows: Iterable[dict[str, Any]]
    if parts := found.get("parts") or found.get("sets"):
        rows = [{"part": part, **flat(row)} for part, those in parts.items() for row in those["rows"]]
    elif isinstance(methods := found.get("methods"), dict):
        rows = [{"row": name, **row} for name, row in methods.items()]
    elif isinstance(settings := found.get("settings"), list):
        rows = settings
    else:
        rows = found.get("summary") or methods or found.get("rows", [])
    owner = next((name for name in METHODS if recipe.startswith(name)), "")
    above = {key: found[key] for key in ("fit_seconds", "seeds") if key in found}
    return [{**above, **row, "row": label(row, owner)} for row in over_seeds(list(rows))]


def over_seeds(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows that differ in their seed alone as one: means, also of the ends of intervals, which are over test images."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for place, row in enumerate(rows):
        same = tuple(row.get(key) for key in ("row", "score", "size", "part"))
        groups.setdefault(same if "seed" in row else (place,), []).append(row)
    return [{**mean_of(group), "seeds": len(group)} if "seed" in group[0] else group[0] for group in groups.values()]


def mean_of(values: Sequence[Any]) -> Any:
    """Mean of numbers, by key in mappings; of anything else the first."""
    first = values[0]
    if isinstance(first, Mapping):
        return {key: mean_of([value[key] for value in values if key in value]) for key in first}
    numbers = all(type(value) in (int, float) for value in values)
    return fmean(values) if numbers and any(value != first for value in values) else first


def label(row: Mapping[str, Any], owner: str) -> str:
    """The label of a row; of one without, that of its recipe's method and the settings that differ."""
    if given := row.get("row") or row.get("name") or row.get("method"):
        return str(given)
    known = {*config.fields_of(get(owner).Settings), "batch_size"}
    own = row.get("settings") or {key: value for key, value in row.items() if key in known and key != "score"}
    return ", ".join([owner, *(f"{key}={value}" for key, value in own.items())])


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose results at several operating points or of several kinds of anomalies stand beside each other."""
    short = {"auroc": "AUROC", "ap": "AP"}
    found: dict[str, Any] = {}
    for key, value in row.items():
        if key == "at_false_regions_per_volume":
            for rate, at in value.items():
                found[f"sensitivity at {rate}"] = at["sensitivity"]
                found[f"false regions at {rate}"] = at["false_regions_per_test_volume"]
        elif isinstance(value, dict) and value.keys() <= short.keys():
            found |= {f"{key} {short[metric]}": result for metric, result in value.items()}
        else:
            found[key] = value
    return found


def cells(row: Mapping[str, Any]) -> dict[str, str]:
    """Heading -> text of what a row holds, in the order of COLUMNS; results with names of their own come last."""
    known = {COLUMNS[key][0]: COLUMNS[key][1](row[key]) for key in COLUMNS if row.get(key) is not None}
    return known | {key: spelled(value) for key, value in row.items() if " " in key}


def evidence() -> str:
    """What the recipes measured, from their result files; of one that was not run yet, how to run it."""
    texts = ["Intervals in brackets are at 95 %."]
    for name, recipe in RECIPES.items():
        if not recipe.title:
            continue
        if (RESULTS / f"{name}.json").exists():
            rows = rows_of(name)
            if recipe.order:
                rows.sort(key=lambda row: -value_of(row[recipe.order]) if "failed" not in row else 0.0)
            parts = [
                " ".join(text for text in (recipe.words(read(RESULTS / f"{name}.json")), older(name)) if text),
                figure(recipe),
                *(apart(name, rows) if recipe.apart else [results_table(rows)]),
                types_table(rows),
            ]
            text = "\n\n".join(part for part in parts if part)
        else:
            text = f"Not run yet: `python recipes/{name}.py --data-root DIR`, then `python docs/make_pages.py`."
        texts.append(f"### {recipe.title}\n\n{text}")
    return "\n\n".join(texts)


def older(name: str) -> str:
    """Of results that precede a change of the methods: when they were measured."""
    before = RECIPES[name].before
    return f"Measured on {read(RESULTS / f'{name}.json')['date']}, before {before}." if before else ""


def figure(recipe: Recipe) -> str:
    shown = recipe.figure and (DOCS / "images" / recipe.figure).exists()
    return f"![{recipe.title}](../images/{recipe.figure})" if shown else ""


def apart(name: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Heading and table of each part, and the methods that it lacks."""
    for part, those in read(RESULTS / f"{name}.json")["parts"].items():
        title = COLUMNS["part"][1](part)
        yield f"#### {title[0].upper()}{title[1:]}"
        yield results_table([{**row, "part": None} for row in rows if row["part"] == part])
        if those["not_run"]:
            yield f"Not run yet: {', '.join(map(linked, those['not_run']))}."


def results_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each row, a column for each result that any of them has, and the rows without results; intervals are at 95 %."""
    failed = [
        f"- `{row['row']}`{f', {seconds(s)} s of training' if (s := row.get('training_seconds')) else ''}: no result "
        f"({row['failed']})"
        for row in rows
        if "failed" in row
    ]
    rows = [row for row in rows if "failed" not in row]
    shown = [cells(row) for row in rows]
    used = {heading for line in shown for heading in line}
    known = list(dict.fromkeys(heading for heading, _ in COLUMNS.values()))
    head = [heading for heading in known if heading in used]
    head += dict.fromkeys(heading for line in shown for heading in line if heading not in known)
    lines = [(linked(row["row"]), *(line.get(heading, "-") for heading in head)) for row, line in zip(rows, shown)]
    return "\n\n".join(text for text in (table(("method", *head), lines) if lines else "", "\n".join(failed)) if text)


def types_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Pixel AUROC of each type of defect, where rows have them."""
    rows = [row for row in rows if "types" in row and all("pixel_auroc" in one for one in typed(row).values())]
    if not rows:
        return ""
    kinds = typed(rows[0])
    lines = [
        (
            linked(row["row"]) + (f", `{row['score']}`" if row["score"] else ""),
            *(spelled(typed(row)[kind]["pixel_auroc"]) for kind in kinds),
        )
        for row in rows
    ]
    head = ("method", *(f"{kind} ({entry['count']})" for kind, entry in kinds.items()))
    return f"Pixel AUROC of each type of defect (number of images) against the normal images:\n\n{table(head, lines)}"


def typed(row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Type of defect -> its results; a type with a single number has no results here."""
    return {kind: one if isinstance(one, dict) else {} for kind, one in row["types"].items()}


def measured(name: str) -> list[str]:
    """What was measured of a method, a table for recipes, for reproduced tables and for benchmarks."""
    parts = [
        (("recipe", "data", "settings", "result [95 % interval]", "fit s", "seeds"), in_recipes(name)),
        (("published table", "data", "row", "image AUROC, %", "published", "classes", "seeds", "s"), in_tables(name)),
        (("benchmark", "of", "result"), in_benchmarks(name)),
    ]
    texts = [table(head, rows) for head, found in parts if (rows := list(found))]
    texts += [
        f"`{recipe}`: {text[0].lower()}{text[1:]}"
        for recipe, shown in RECIPES.items()
        if f"[{recipe}]" in "".join(texts) and (text := " ".join(filter(None, (shown.remark, older(recipe)))))
    ]
    if texts:
        texts.append("Generated from the committed result files of recipes and benchmarks: short trainings on CPUs.")
    return texts


def in_recipes(name: str) -> Iterator[Sequence[str]]:
    for recipe, shown in RECIPES.items():
        if not (path := RESULTS / f"{recipe}.json").exists():
            continue
        for row in rows_of(recipe):
            if re.split(r"\W", row["row"], maxsplit=1)[0] != name or "failed" in row:
                continue
            found = cells(row)
            place = ", ".join(found.pop(heading) for heading in ("images", "foreign") if heading in found)
            setting = [row["row"].removeprefix(name).strip(", "), found.pop("score", "")]
            time = found.pop("fit s", "-")
            yield (
                result_link(path, recipe),
                ", ".join(part for part in (shown.data, place) if part),
                ", ".join(part for part in setting if part) or "-",
                "; ".join(f"{heading} {text}" for heading, text in found.items()),
                time,
                str(row.get("seeds", 1)),
            )


def in_tables(name: str) -> Iterator[Sequence[str]]:
    """Rows of reproduced tables: mean over the classes that were run, their number and that of seeds beside it."""
    shown = []  # tables share cells: first those at the paper's settings
    for path in sorted(reproduced.paths(), key=lambda path: bool(reproduced.found(path).reduction)):
        found = to_json(reproduced.found(path))
        lines = [line for line in found["lines"] if line["method"] == name]
        for row in dict.fromkeys(line["row"] for line in lines):
            own = [line for line in lines if line["row"] == row]
            means = [line for line in own if line["column"] == "mean"]
            done = [line for line in own if line["measured"] and line["column"] != "mean"]
            # With a column for each class, one line for all of them; else one for each data set.
            for those in ([done] if means else [[line] for line in done]) if done else []:
                classes = {(line["column"], c): entry for line in those for c, entry in line["classes"].items()}
                if (row, classes) in shown:
                    continue
                shown.append((row, classes))
                measured = (
                    {"value": fmean(line["measured"]["value"] for line in those)} if means else those[0]["measured"]
                )
                number = published(own, means, those)
                columns = ", ".join(line["column"] for line in those) if len(those) < 5 else f"{len(those)} columns"
                yield (
                    result_link(path.with_suffix(".md"), str(path.relative_to(RESULTS).with_suffix(""))),
                    columns,
                    row + (f" ({remark})" if (remark := changed(path, found["reduction"])) else ""),
                    spelled(measured, 1),
                    spelled(number, 1),
                    f"{len(classes)} of {len(own) - 1}" if means else str(len(classes)),
                    str(max(entry["seeds"] for entry in classes.values())),
                    f"{sum(line['cells']['seconds'] for line in those):.0f}",
                )


def changed(path: Path, reduction: str) -> str:
    """What a reproduced table differs in, in a few words."""
    before = reproduced.BEFORE.get(str(path.relative_to(RESULTS).with_suffix("")))
    return "; ".join(part for part in (reduction and "settings changed", before and f"before {before}") if part)


def published(own: Sequence[Any], means: Sequence[Any], those: Sequence[Any]) -> float | None:
    """The published number over the classes that were run; none where there is none over the same classes."""
    if not means:
        return those[0]["published_same_classes"]
    if len(those) == len(own) - len(means):
        return means[0]["published"]
    numbers = [line["published_same_classes"] for line in those]
    return None if None in numbers else fmean(numbers)


def in_benchmarks(name: str) -> Iterator[Sequence[str]]:
    for path in sorted(BENCHMARKS.glob("*.json")):
        record = read(path)
        found = record.get("found", {})
        if isinstance(found, list):
            labelled = [("", one) for one in found] + [("masked prior, ", one) for one in record.get("masked", ())]
            found = {f"{label}{next(iter(one))} {next(iter(one.values()))}": one for label, one in labelled}
        owner = {"restoration": "vq_restoration"}.get(path.stem, path.stem)
        for key, entry in found.items():
            if (name == owner or key.split()[0] == name) and (numbers := list(leaves(entry))):
                yield result_link(path, path.stem), key.removeprefix(name).strip().replace("_", " "), "; ".join(numbers)


def leaves(entry: Any, name: str = "") -> Iterator[str]:
    """Each number of nested results, with its name."""
    if isinstance(entry, dict):
        for key, value in entry.items():
            yield from leaves(value, f"{name}, {key}".strip(", "))
    elif isinstance(entry, int | float):
        yield f"{name.replace('_', ' ')} {entry:.5g}".strip()


def result_link(path: Path, name: str) -> str:
    return f"[{name}](../../{path.relative_to(ROOT).as_posix()})"


# -- Python ----------------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A page of the Python reference: its title, what it is for, and where its public names are (all of ``__all__``)."""

    title: str
    about: str
    modules: tuple[str, ...]
    names: tuple[str, ...] = ()
    """Of the names of ``normalcy`` itself, those that stand here."""


API = {
    "detector": Part(
        "Detector",
        "Fit, score, save and load. Every name can be imported from `normalcy`.",
        (),
        ("Detector", "load", "Result", "Results"),
    ),
    "data": Part(
        "Data",
        "Open images as data sets, check and split them, add synthetic anomalies. `open_data`, `open_samples`, `union`, "
        "`DataSet`, `Item` and `Failure` can be imported from `normalcy`. How-to: [bring your own data](../how-to/data.md).",
        ("data.open", "data.splits", "data.check", "data.synthetic"),
        ("DataSet", "Item", "Failure", "open_samples", "union"),
    ),
    "settings": Part(
        "Settings and training",
        "Settings that every method accepts, as keywords of `Detector`, and the training of a method by itself. The settings of "
        "each method are on its [page](../reference/methods.md).",
        ("settings",),
        ("TrainSettings", "fit"),
    ),
    "calibration": Part(
        "Calibration",
        "From scores of held-out normal images to p-values and thresholds. Background: "
        "[calibration](../explanation/calibration.md).",
        ("calibrate",),
    ),
    "metrics": Part(
        "Metrics",
        "Functions over arrays of labels, scores, maps and masks, independent of methods and files. Formulas and conventions: "
        "[metrics](../reference/metrics.md).",
        ("metrics",),
    ),
    "results": Part(
        "Results",
        "Write, evaluate and read results folders. Their files: [files](../reference/files.md).",
        (
            "results.predict",
            "results.evaluate",
            "results.folder",
            "results.run",
            "results.metrics",
            "results.labels",
            "results.comparison",
            "report",
        ),
    ),
    "studies": Part(
        "Studies",
        "What the commands `compare`, `select`, `audit` and `reproduce` do, in Python.",
        ("studies.compare", "studies.select", "studies.audit", "studies.reproduce"),
    ),
    "method": Part(
        "Methods",
        "The base class of all methods and what belongs to it. How-to: [add a method](../how-to/add-a-method.md); rules: "
        "[the contract of a method](../explanation/contract.md).",
        ("config", "testing"),
        ("Method", "Scores", "Stage", "Objective", "EarlyStop", "METHODS"),
    ),
    "sklearn": Part(
        "scikit-learn",
        "Every method as an estimator of scikit-learn. How-to: [use a detector in scikit-learn](../how-to/scikit-learn.md).",
        ("sklearn",),
    ),
    "export": Part(
        "Export",
        "Write a fitted method as a graph and score with it without torch. How-to: [export a model](../how-to/export.md).",
        ("export", "export.scorer"),
    ),
    "errors": Part("Errors", "Every error that normalcy raises on purpose is a `NormalcyError`.", ("errors",)),
}
"""File in docs/api -> what its page holds. What is not listed there is not public and may change without notice."""


class Public(NamedTuple):
    """A public name: where it is imported from, the object, and the page that describes it."""

    module: str
    name: str
    object: Any
    page: str

    @property
    def kind(self) -> str:
        return "class" if inspect.isclass(self.object) else "function" if callable(self.object) else "data"

    @property
    def anchor(self) -> str:
        return f"{self.kind}-{self.name.lower()}"


@cache
def public() -> tuple[Public, ...]:
    """Every public name, in the order of its page."""
    found = []
    for page, part in API.items():
        names = [("normalcy", name) for name in part.names]
        for module in (f"normalcy.{name}" for name in part.modules):
            names += [(module, name) for name in import_module(module).__all__]
        found += [Public(module, name, getattr(import_module(module), name), page) for module, name in names]
    return tuple(found)


def api_index() -> str:
    """The pages of the Python reference and the names on each."""
    rows = [
        (
            f"[{part.title}]({page}.md)",
            ", ".join(f"[`{p.name}`]({page}.md#{p.anchor})" for p in public() if p.page == page),
        )
        for page, part in API.items()
    ]
    return "\n".join(
        [
            "# Python",
            "",
            "<!-- Made by docs/make_pages.py from the docstrings. -->",
            "",
            "These names are public: those of `normalcy.__all__` and of `__all__` of the modules named on the pages. Anything "
            "else may change in any version. Arrays that you hand in have channels last, tensors have channels first. Higher "
            "scores are more anomalous.",
            "",
            table(("page", "names"), rows),
            "",
        ]
    )


def api_page(page: str) -> str:
    """A page of the Python reference."""
    part = API[page]
    lines = [f"# {part.title}", "", "<!-- Made by docs/make_pages.py from the docstrings. -->", "", part.about, ""]
    module = "normalcy"
    for entry in (p for p in public() if p.page == page):
        if entry.module != module:
            module = entry.module
            lines += [f"## {module}", "", prose_of(import_module(module), page), ""]
        lines += [f"### {entry.kind} {entry.name}", "", *described(entry), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def described(entry: Public) -> Iterator[str]:
    """Signature, docstring, and of a class its fields, properties and methods."""
    if entry.kind == "data":
        yield f"```python\nfrom {entry.module} import {entry.name}\n```\n"
        yield f"Keys: {', '.join(f'`{key}`' for key in entry.object)}."
        return
    where = f"from {entry.module} import {entry.name}"
    named = inspect.isclass(entry.object) and issubclass(
        entry.object, tuple
    )  # made by functions; its fields are in the table
    yield f"```python\n{where}\n```\n" if named else signature(entry.object, entry.name, f"{where}\n\n") + "\n"
    yield prose_of(entry.object, entry.page) + "\n"
    if not inspect.isclass(entry.object):
        return
    if entry.object in COMMON.values():
        yield settings_table(entry.object) + "\n"
    elif rows := fields_of_class(entry.object, entry.page):
        yield table(("attribute", "type", "meaning"), rows) + "\n"
    for name, member in vars(entry.object).items():
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if not name.startswith("_") and inspect.isfunction(function) and function.__doc__:
            yield f"#### {entry.name}.{name}\n"
            yield signature(getattr(entry.object, name), name) + "\n"
            yield prose_of(function, entry.page) + "\n"


def fields_of_class(cls: type, page: str) -> list[tuple[str, str, str]]:
    """Name, type and meaning of fields with a type, of attributes that ``__init__`` explains, and of properties."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    statements = list(body.body) if isinstance(body, ast.ClassDef) else []
    for made in [one for one in statements if isinstance(one, ast.FunctionDef) and one.name == "__init__"]:
        statements += made.body
    found = []
    for statement, after in zip(statements, [*statements[1:], None]):
        if not isinstance(statement, ast.AnnAssign):
            continue
        explained = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        text = " ".join(str(after.value.value).split()) if explained else ""
        name, hint = ast.unparse(statement.target), ast.unparse(statement.annotation)
        if ((name.startswith("self.") and text) or "." not in name) and not name.removeprefix("self.").startswith("_"):
            hint = re.sub(r"^ClassVar\[(.*)\]$", r"\1", hint)
            found.append((f"`{name.removeprefix('self.')}`", f"`{hint}`", linked_prose(text, page)))
    for name, member in vars(cls).items():
        if isinstance(member, property) and not name.startswith("_"):
            text = " ".join((inspect.getdoc(member) or "").split())
            found.append(
                (f"`{name}`", f"`{inspect.signature(member.fget).return_annotation}`", linked_prose(text, page))
            )
    return found


def signature(function: Any, name: str, before: str = "") -> str:
    """As a block of Python; one parameter a line where it is long."""
    try:
        given = inspect.signature(function)
    except ValueError:
        return f"```py\n{before}{name}\n```"
    hint = (
        ""
        if given.return_annotation is inspect.Signature.empty or inspect.isclass(function)
        else given.return_annotation
    )
    end = f" -> {hint if isinstance(hint, str) else getattr(hint, '__name__', hint)}" if hint != "" else ""
    parameters = [p for p in given.parameters.values() if p.name not in ("self", "cls")]
    texts, only_by_name = [], False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not only_by_name:
            only_by_name = True
            texts += ["*"] if not any(p.kind is p.VAR_POSITIONAL for p in parameters) else []
        texts.append(spelled_parameter(parameter))
    line = f"{name}({', '.join(texts)}){end}"
    if len(line) > 100:
        line = "\n".join([f"{name}(", *(f"    {text}," for text in texts), f"){end}"])
    return f"```py\n{before}{line}\n```"


def spelled_parameter(parameter: inspect.Parameter) -> str:
    """As in the source, where annotations are text."""
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    hint = parameter.annotation
    text = "" if hint is parameter.empty else f": {hint if isinstance(hint, str) else getattr(hint, '__name__', hint)}"
    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}".replace("<factory>", "...")
    return f"{stars}{parameter.name}{text}{default}"


def prose_of(described: Any, page: str) -> str:
    """The docstring as Markdown: examples and literal blocks fenced, names of public objects linked."""
    parts = []
    for block in re.split(r"\n\s*\n", literal_blocks(inspect.getdoc(described) or "")):
        if block.startswith(">>> "):
            parts.append(f"```pycon\n{re.sub(r'  # doctest:.*', '', block)}\n```")
        elif block.startswith("\x00"):
            parts.append(f"```text\n{inspect.cleandoc(block[1:]).replace(chr(1), chr(10))}\n```")
        else:
            parts.append(linked_prose(block, page))
    return "\n\n".join(parts)


def literal_blocks(text: str) -> str:
    """Indented blocks after ``::`` as one paragraph each, which begins with a null character."""

    def one(match: re.Match[str]) -> str:
        return ":\n\n\x00" + inspect.cleandoc("\n" + match[1]).replace("\n", "\x01") + "\n\n"

    return re.sub(r"::\n\n((?:    .*(?:\n|$)|\s*\n)+)", one, text)


def linked_prose(text: str, page: str) -> str:
    """Markdown of a docstring in which roles such as ``:class:`` link to what they name, where that is public."""
    known: dict[str, Public] = {}
    for entry in reversed(public()):
        if entry.kind != "data":
            known |= dict.fromkeys((f"{place}{entry.name}" for place in ("", *origins(entry))), entry)

    def link(match: re.Match[str]) -> str:
        name = match[1].lstrip("~")
        entry = known.get(name)
        if entry is None:
            return f"`{name.rpartition('.')[2] if match[1].startswith('~') else name}`"
        return f"[`{entry.name}`]({'' if entry.page == page else f'{entry.page}.md'}#{entry.anchor})"

    return markdown(re.sub(r":\w+:`([^`]+)`", link, text))


def origins(entry: Public) -> tuple[str, str]:
    """Where docstrings may say that a public name is from."""
    return f"{entry.module}.", f"{entry.object.__module__}."


# -- navigation of the site ------------------------------------------------------------------------------------------


def method_entries() -> str:
    """Of zensical.toml: the pages of the methods, by family."""
    lines = []
    for group, names in families().items():
        lines.append(f'    {{ "{group.capitalize()}" = [')
        lines += [f'      {{ "{name}" = "methods/{name}.md" }},' for name in names]
        lines.append("    ] },")
    return "\n".join(lines)


def api_entries() -> str:
    """Of zensical.toml: the pages of the Python reference."""
    pages = {"index": "Overview", **{page: part.title for page, part in API.items()}}
    return "\n".join(f'      {{ "{title}" = "api/{page}.md" }},' for page, title in pages.items())


def navigation() -> str:
    """zensical.toml with the pages that are made here."""
    content = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    for name, text in {"methods": method_entries(), "api": api_entries()}.items():
        content = re.sub(
            rf"( *# <{name}>\n).*?( *# </{name}>\n)", lambda m, t=text: f"{m[1]}{t}\n{m[2]}", content, flags=re.DOTALL
        )
    return content


# -- command line ----------------------------------------------------------------------------------------------------


def exit_codes() -> str:
    return table(("code", "meaning"), [(str(code), meaning) for code, meaning in EXIT_CODES.items()])


def command_line() -> str:
    """A section for each command, from the functions behind them."""
    return "\n\n".join(command_section(info.callback) for info in app.registered_commands if info.callback)


def command_section(command: Callable[..., Any]) -> str:
    words = command.__name__.replace("_", "-")  # as Typer does
    usage, rows = ["normalcy", words], []
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        hint, info = get_args(hints[name])[:2]
        required, word = parameter.default is inspect.Parameter.empty, name.upper()
        if isinstance(info, ArgumentInfo):
            several = "..." if get_origin(hint) is list else ""
            usage.append(f"{word}{several}" if required else f"[{word}]")
            rows.append((f"`{word}`", info.help or "", ""))
            continue
        names, value = option_names(name, info, hint), option_value(hint)
        default = "required" if required else option_default(parameter.default, names)
        usage += [f"{names[0]} {value}"] * required
        rows.append((f"`{', '.join(names)}{' ' * bool(value)}{value}`", info.help or "", default))
    head = [
        f"## normalcy {words}",
        "",
        inspect.getdoc(command) or "",
        "",
        f"    {' '.join(usage)} [OPTIONS]",
        "",
    ]
    return "\n".join([*head, table(("argument or option", "meaning", "default"), rows)])


def option_names(name: str, info: OptionInfo, hint: Any) -> list[str]:
    """As Typer makes them: those given, else from the parameter, with a negative one where it is true or false."""
    given = [declared for declared in (info.default, *(info.param_decls or ())) if isinstance(declared, str)]
    word = name.replace("_", "-")
    return given or ([f"--{word}", f"--no-{word}"] if hint is bool else [f"--{word}"])


def option_value(hint: Any) -> str:
    """A placeholder for the value; none for an option without."""
    kinds = {bool: "", int: "N", float: "NUMBER", Path: "PATH", str: "TEXT"}
    return next(kinds[kind] for kind in (hint, *get_args(hint)) if kind in kinds)


def option_default(default: Any, names: Sequence[str]) -> str:
    if isinstance(default, bool):
        return f"`{names[0 if default else 1]}`" if len(names) > 1 else ""
    return f"`{default}`" if isinstance(default, str | int | float | Path) else ""


# -- Markdown --------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(markdown_table(head, rows))


def markdown(text: str) -> str:
    """A docstring as Markdown: literals, roles, and tables between rows of ``===``; tables with pipes stay as they are."""
    lines = text.splitlines()
    borders = [i for i, line in enumerate(lines) if re.fullmatch(r"=+ +=+", line)]
    for first, last in reversed(list(zip(borders[::2], borders[1::2]))):
        second = lines[first].index(" =") + 1  # where the second column starts
        rows: list[tuple[str, str]] = []
        for line in lines[first + 1 : last]:
            name, meaning = line[:second].strip(), line[second:].strip()
            if name or not rows:
                rows.append((name, meaning))
            else:  # a second line of the cell above
                rows[-1] = (rows[-1][0], f"{rows[-1][1]} {meaning}")
        lines[first : last + 1] = table(("", ""), rows).splitlines()
    text = "\n".join(lines)
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return re.sub(r"``(.+?)``", r"`\1`", text)


def main() -> None:
    for path, content in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
