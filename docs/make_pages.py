"""Write the parts of the documentation that come from the code; run it after changing a method, a setting or an option.

    python docs/make_pages.py

A page for each method (``docs/methods``), the table of methods, the tables of settings, the command-line reference and what
recipes measured.
Whole pages are written anew; in the others only what stands between a pair of markers ``<!-- NAME -->`` and
``<!-- /NAME -->``. ``tests/test_docs.py`` fails when a part is not up to date.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

from normalcy import config
from normalcy.cli.app import app
from normalcy.methods import METHODS, get
from normalcy.settings import DecisionSettings, InputSettings
from normalcy.training.settings import TrainSettings

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SHARED = {"input": InputSettings, "training": TrainSettings, "decision": DecisionSettings}
"""Settings that every method has, by the name of their table."""


def pages() -> dict[Path, str]:
    """Every file with made parts -> its whole content as it should be."""
    made = {DOCS / "methods" / f"{name}.md": method_page(name) for name in METHODS}
    parts = {
        ROOT / "README.md": {"methods": methods_table("docs/methods")},
        DOCS / "reference" / "methods.md": {"methods": methods_table("../methods")},
        DOCS / "reference" / "settings.md": {name: settings_table(cls) for name, cls in SHARED.items()},
        DOCS / "reference" / "command-line.md": {"commands": command_line()},
        DOCS / "explanation" / "which-method.md": {"evidence": evidence()},
    }
    for path, texts in parts.items():
        content = path.read_text(encoding="utf-8")
        for name, text in texts.items():
            content = put_between(content, name, text, path)
        made[path] = content
    return made


def put_between(content: str, name: str, text: str, path: Path) -> str:
    """``content`` with ``text`` between the markers of this name."""
    before, opening, rest = content.partition(f"<!-- {name} -->\n")
    _, closing, after = rest.partition(f"<!-- /{name} -->")
    if not opening or not closing:
        raise ValueError(f"{path} needs the markers <!-- {name} --> and <!-- /{name} -->, each at the start of a line.")
    return f"{before}{opening}\n{text}\n\n{closing}{after}"


# -- methods and settings --------------------------------------------------------------------------------------------


def method_page(name: str) -> str:
    """The page of a method: its module's docstring, its scores, its settings."""
    cls = get(name)
    source = cls.__module__.replace(".", "/")
    lines = [
        f"# {name}",
        "",
        f"<!-- Made by docs/make_pages.py from src/{source}.py. -->",
        "",
        markdown(docstring(name)),
    ]
    lines += ["", f"It works on {dimensions(name)} images. Its class is `{cls.__module__}.{cls.__name__}`."]
    lines += [
        "",
        "```sh",
        f"normalcy fit DATA --method {name} --out MODEL",
        "normalcy score MODEL DATA --out RESULTS",
        "```",
    ]
    if cls.scores:
        words = ", ".join(f"`{score}`" for score in cls.scores)
        lines += ["", "## Scores", "", f"One fitted model can be scored with any of these: {words}."]
        lines += ["Choose with `--score` of `normalcy score`, or `detector.with_score(...)` in Python."]
    lines += ["", "## Settings", "", settings_table(cls.Settings)]
    lines += ["", "Beside these it knows the [settings of every method](../reference/settings.md).", ""]
    return "\n".join(lines)


def methods_table(folder: str) -> str:
    """Name, idea, dimensions; the names link to the pages in ``folder``."""
    rows = [(f"[`{name}`]({folder}/{name}.md)", idea(name), dimensions(name)) for name in METHODS]
    return table(("method", "idea", "images"), rows)


def settings_table(cls: type) -> str:
    """Word, values, default and meaning of each setting."""
    notes = config.field_docs(cls)
    hints = get_type_hints(cls)
    rows = [
        (f"`{word}`", values(hints[word]), shown(config.default_of(f)), markdown(notes.get(word, "")))
        for word, f in config.fields_of(cls).items()
    ]
    return table(("setting", "values", "default", "meaning"), rows)


def docstring(name: str) -> str:
    return inspect.getdoc(sys.modules[get(name).__module__]) or ""


def idea(name: str) -> str:
    """The first sentence of a method's docstring."""
    paragraph = " ".join(docstring(name).split("\n\n")[0].split())
    return markdown(re.split(r"(?<=[.])\s+(?=[A-Z])", paragraph)[0])


def dimensions(name: str) -> str:
    return " and ".join(f"{d}D" for d in get(name).spatial_dims)


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


# -- evidence from recipes ---------------------------------------------------------------------------------------------


def evidence() -> str:
    """What the recipes measured, from their result files; of one that was not run yet, how to run it."""
    parts = [
        ("all_methods", "Every 2D method on magnetic tiles, one small budget each", all_methods),
        ("magnetic_tile", "Magnetic tiles at 256x256, found and located", compared),
        ("lsr_tiles", "The same tiles, networks trained from scratch for the same time", from_scratch),
        ("dpa_tiles", "The same tiles, by the map of DPA", from_scratch),
        ("solar_cells", "Solar cells, found", compared),
        ("chest_xray", "Pneumonia in chest X-rays, found", findings),
        ("mnist_one_class", "One digit normal, nine anomalous", one_class),
        ("toy_mood", "Anomalies in brain volumes, located", volumes),
        ("brain_lesions", "Lesions in brain volumes and CT, found one by one", lesions),
        ("rda_contamination", "Foreign digits among the training images", contamination),
    ]
    texts = []
    for name, title, show in parts:
        path = ROOT / "recipes" / "results" / f"{name}.json"
        text = (
            show(json.loads(path.read_text(encoding="utf-8")))
            if path.exists()
            else f"Not run yet: `python recipes/{name}.py --data-root DIR`, then `python docs/make_pages.py`."
        )
        texts.append(f"### {title}\n\n{text}")
    return "\n\n".join(texts)


def spelled(interval: dict[str, float] | None) -> str:
    """A value and, where it has one, its 95 % interval."""
    if not interval or interval.get("value") is None:
        return "-"
    ends = f" [{interval['low']:.3f}, {interval['high']:.3f}]" if interval.get("low") is not None else ""
    return f"{interval['value']:.3f}{ends}"


def linked(row: str) -> str:
    """The name of a row, which begins with that of a method, with a link to its page."""
    name = re.split(r"\W", row, maxsplit=1)[0]
    return f"[`{name}`](../methods/{name}.md){row.removeprefix(name)}"


def all_methods(found: dict[str, Any]) -> str:
    good = [row for row in found["rows"] if "failed" not in row]
    rows = [
        (
            linked(row["method"]),
            spelled(row["image_auroc"]),
            *(spelled({"value": row[key]["value"]}) if row[key] else "-" for key in ("pixel_auroc", "aupro")),
            f"{row['fit_seconds']:.0f}",
            f"{row['images_per_second']:.1f}",
            f"{row['memory_gib']:.1f}",
        )
        for row in sorted(good, key=lambda row: -row["image_auroc"]["value"])
    ]
    head = ("method", "image AUROC [95 %]", "pixel AUROC", "AUPRO", "fit s", "images/s", "memory GiB")
    failed = [f"- `{row['method']}` failed: {row['failed']}" for row in found["rows"] if "failed" in row]
    words = (
        f"{found['size']}x{found['size']} pixels, about {found['minutes']:g} minutes of training where steps can be counted, "
        f"{found['images']} test images, one thread, one seed; seconds of the processor. What a method gives for little, not "
        "what it can do."
    )
    return "\n".join([words, "", table(head, rows), *([""] * bool(failed)), *failed])


def compared(found: dict[str, Any]) -> str:
    rows = [
        (
            linked(row["name"]),
            *(spelled(row[key]) for key in ("auroc", "pixel_auroc", "aupro")),
            f"{row['fit_seconds']:.0f}",
            f"{row['images_per_second']:.1f}",
        )
        for row in found["methods"]
    ]
    return table(("method", "image AUROC [95 %]", "pixel AUROC [95 %]", "AUPRO [95 %]", "fit s", "images/s"), rows)


def one_class(found: dict[str, Any]) -> str:
    rows = [
        (linked(name), f"{row['mean_auroc']:.3f}", str(row["published"] or "-"))
        for name, row in sorted(found["methods"].items(), key=lambda one: -one[1]["mean_auroc"])
    ]
    return table(("method", "mean image AUROC over ten digits", "published"), rows)


def findings(found: dict[str, Any]) -> str:
    rows = [
        (
            linked(row["row"]),
            spelled(row["auroc"]),
            f"{row['p_against_best']:.3f}" if "p_against_best" in row else "-",
            f"{sum(row['fit_seconds']) / len(row['fit_seconds']):.0f}",
        )
        for row in sorted(found["rows"], key=lambda row: -row["auroc"]["value"])
    ]
    words = (
        f"{found['train']} images without findings to train; {found['test']['normal']} of other patients and "
        f"{found['test']['pneumonia']} with pneumonia to test; the first seed. Networks train for about {found['minutes']:g} "
        "minutes of one core each (seconds are of the clock, beside other work); p: DeLong's test against the best."
    )
    return f"{words}\n\n" + table(("method", "image AUROC [95 %]", "p", "fit s"), rows)


def from_scratch(found: dict[str, Any]) -> str:
    rows = [
        (
            linked(row["row"]),
            f"`{row['score']}`" if row["score"] else "-",
            *(spelled(row[key]) for key in ("image_auroc", "pixel_auroc", "aupro")),
            f"{row['images_per_second']:.1f}",
        )
        for row in sorted(found["rows"], key=lambda row: -row["pixel_auroc"]["value"])
    ]
    head = ("method", "score", "image AUROC [95 %]", "pixel AUROC [95 %]", "AUPRO [95 %]", "images/s")
    text = f"{found['minutes']:g} minutes of one core for each method.\n\n" + table(head, rows)
    kinds = found["rows"][0]["types"]
    parts = [
        (
            linked(row["row"]) + (f", `{row['score']}`" if row["score"] else ""),
            *(f"{row['types'][kind]['pixel_auroc']:.3f}" for kind in kinds),
        )
        for row in found["rows"]
    ]
    counts = [f"{kind} ({entry['count']})" for kind, entry in kinds.items()]
    return f"{text}\n\nPixel AUROC of each type of defect (so many images) against the normal images:\n\n" + table(
        ("method", *counts), parts
    )


def volumes(found: dict[str, Any]) -> str:
    rows = [
        (
            linked(row["row"]),
            f"`{row['score']}`",
            *(spelled(row[key]) for key in ("voxel_ap", "voxel_auroc", "sample_ap")),
        )
        for row in found["rows"]
    ]
    count, share = found["volumes"], found["voxel_ap_by_chance"]
    words = (
        f"Two brain templates bent into {count['train']} training volumes; {count['test_normal']} normal test volumes and "
        f"{count['test_anomalous']} with one synthetic anomaly. By chance the voxel AP is {share:.3f} and the sample AP "
        f"{count['test_anomalous'] / (count['test_normal'] + count['test_anomalous']):.2f}."
    )
    return f"{words}\n\n" + table(
        ("method", "score", "voxel AP [95 %]", "voxel AUROC [95 %]", "sample AP [95 %]"), rows
    )


def lesions(found: dict[str, Any]) -> str:
    rows = [
        (
            part.upper(),
            linked(row["row"]),
            spelled(row["voxel_ap"]),
            *(spelled(at["sensitivity"]) for at in row["at_false_regions_per_volume"].values()),
            " and ".join(
                f"{at['false_regions_per_test_volume']['value']:.1f}"
                for at in row["at_false_regions_per_volume"].values()
            ),
        )
        for part, those in found["parts"].items()
        for row in those["rows"]
    ]
    rates = list(found["parts"]["mr"]["rows"][0]["at_false_regions_per_volume"])
    words = (
        f"{found['volumes']['test_with_lesions']} test volumes with lesions; thresholds from held-out normal volumes at so many "
        "false regions for each, and what they gave on other normal volumes."
    )
    head = (
        "images",
        "method",
        "voxel AP [95 %]",
        *(f"lesions found at {rate} [95 %]" for rate in rates),
        "false regions in the test",
    )
    return f"{words}\n\n" + table(head, rows)


def contamination(found: dict[str, Any]) -> str:
    rows = [
        (
            f"{100 * row['share']:g} %",
            linked(row["row"]),
            f"{row['auroc']:.3f}" + (f" ± {row['auroc_deviation']:.3f}" if row["auroc_deviation"] is not None else ""),
            f"{row['average_precision']:.3f}",
            f"{row['f1_max']:.2f}",
        )
        for row in found["summary"]
    ]
    seeds = max(row["seeds"] for row in found["summary"])
    published = found["published"]
    words = (
        f"{found['images']} images of the digit {found['digit']}, "
        + (f"means over {seeds} seeds; ± is the deviation between them. " if seeds > 1 else "one seed. ")
        + f"Published F1 at {100 * published['share']:g} %: RDA {published['rda_f1']}, isolation forest "
        f"{published['isolation_forest_f1']}."
    )
    return f"{words}\n\n" + table(("foreign", "method", "AUROC", "average precision", "F1 max"), rows)


# -- command line ----------------------------------------------------------------------------------------------------


def command_line() -> str:
    """A section for each command, from the functions behind them."""
    return "\n\n".join(command_section(info.callback) for info in app.registered_commands if info.callback)


def command_section(command: Callable[..., Any]) -> str:
    usage, rows = ["normalcy", command.__name__], []
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
        f"## normalcy {command.__name__}",
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
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def markdown(text: str) -> str:
    """A docstring as Markdown: literals, roles, and tables between rows of ``===``."""
    lines = text.splitlines()
    borders = [i for i, line in enumerate(lines) if re.fullmatch(r"=+ +=+", line)]
    for first, last in reversed(list(zip(borders[::2], borders[1::2]))):
        second = lines[first].index(" =") + 1  # where the second column starts
        rows = [(line[:second].strip(), line[second:].strip()) for line in lines[first + 1 : last]]
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
