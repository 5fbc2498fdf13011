"""Tables of "What a billion images cost" (docs/explanation/scale.md), from result files of benchmarks."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from normalcy.report.text import markdown_table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import cost_model as model

BILLION = 10**9
WORKERS = 1000
PARTS = {
    "one": "one process, one core",
    "shards": "2 shards, one after the other, and `merge`, on that core",
    "ray": "`--ray local`: driver, Ray and one worker, on that core",
    "2 shards": "2 shards side by side on two cores, and `merge`",
    "ray, 2 workers": "Ray, two nodes of one core (their start not counted)",
    "one, 16 images": "one process, 16 images: start-up",
    "ray, 16 images": "`--ray local`, 16 images: start-up",
}


def texts() -> dict[str, str]:
    """Marker -> text."""
    return {
        "overhead": overhead(),
        "costs": costs(),
        "billion": billion(),
        "simulation": simulation(),
        "assumptions": assumptions(),
    }


def overhead() -> str:
    found = model.read("scaling")
    medians, ratios = found["medians"], found["ratio_to_one"]
    rows = []
    for part, title in PARTS.items():
        if part not in medians:
            continue
        ratio = ratios.get(part, {})
        rows.append(
            (
                title,
                f"{medians[part]['seconds']:.1f}",
                f"{medians[part]['processor_seconds']:.1f}",
                *(f"{ratio[unit]:.2f}" if unit in ratio else "" for unit in ("seconds", "processor_seconds")),
            )
        )
    head = ("command", "seconds", "processor seconds", "seconds, to one process", "processor, to one process")
    lines = [
        f"{found['images']:,} PNG of 256x256, autoencoder at 64x64, with maps, written to {found['written_to']} "
        f"({machine(found)}):",
        "",
        table(head, rows),
    ]
    if {"one", "shards", "ray"} <= set(medians) and "start_seconds" in found:
        own = {part: medians[part]["processor_seconds"] for part in medians}
        start = own["ray, 16 images"] - own["one, 16 images"]
        extra = {part: own[part] - own["one"] for part in ("shards", "ray")}
        percent = {part: f"{100 * extra[part] / own['one']:.0f} %" for part in extra}
        minutes = {part: f"{20 * extra[part] / 60:.1f}" for part in extra}
        lines += [
            "",
            f"Wanted was an overhead of at most 5 %, start-up included. It is {percent['shards']} for two shards and "
            f"{percent['ray']} for Ray, since this model takes only {own['one']:.0f} s for all images: a second start of "
            f"normalcy and `merge` are {extra['shards']:.1f} s of processor time, and Ray {extra['ray']:.1f} s, of which "
            f"{start:.1f} s are its start with a second process of normalcy. They stay below 5 % where one process works "
            f"for longer than {minutes['shards']} and {minutes['ray']} minutes. After its start, Ray takes "
            f"{100 * (found['ray_ratio_after_start'] - 1):.0f} % more seconds for each image.",
        ]
    return "\n".join(lines)


def costs() -> str:
    found = model.read("costs")
    names, store, written, merged = found["names"], found["store"], found["write"], found["merge"]
    general = [
        (
            "a name of a folder: open, describe, name files",
            f"{names['total_us']:.0f} µs",
            f"{names['bytes']:,} of memory",
        ),
        ("a name of a store: list", f"{store['objects']['open_us']:.0f} µs", ""),
        ("an image of a tar in a store: index", f"{store['tar']['open_us']:.0f} µs", ""),
        ("an image of a store: fetch and decode", ms(store["objects"]["read_ms"]), ""),
        ("an image of a tar in a store: fetch and decode", ms(store["tar"]["read_ms"]), ""),
        (
            "a row of the tables and of latent codes",
            ms(written["tables_ms"]),
            f"{written['bytes']['scores.csv']:,} in `scores.csv`",
        ),
        (
            "map and restored image, 256x256",
            ms(written["maps_ms"]),
            ", ".join(f"{size:,} in `{name}`" for name, size in written["bytes"].items() if name != "scores.csv"),
        ),
        ("`merge`, tables alone", ms(merged["tables_ms"]), ""),
        ("`merge`, with maps (linked)", ms(merged["maps_ms"]), ""),
    ]
    images = [(name, ms(row["ms"]), f"{row['bytes']:,}") for name, row in found["read"].items()]
    networks = [
        (
            f"[{name}](../methods/{name}.md)",
            f"{row['size']}x{row['size']}",
            ms(row["preprocess_ms"]),
            *(ms(row[f"{engine}_ms"]) for engine in ("torch", "onnxruntime", "openvino")),
        )
        for name, row in found["network"].items()
    ]
    return "\n\n".join(
        [
            f"Processor time of one thread ({machine(found)}). The S3 server is a simulator on the same machine: the time of "
            "normalcy is counted, not the server's.",
            table(("each", "processor time", "bytes"), general),
            "Opening and decoding a file, one channel of 8 bits:",
            table(("file", "processor time", "bytes"), images),
            "Preprocessing an X-ray of 256x256, and the method by engine:",
            table(("method", "size", "preprocessing", "torch", "onnxruntime", "OpenVINO"), networks),
        ]
    )


def billion() -> str:
    """Computed for methods and ways of dividing."""
    store, workers = model.Store(), model.Cluster(WORKERS)
    million = model.Work(1000, 10**6)
    cases: list[tuple[str, model.Costs, model.Cluster, model.Work]] = [
        ("autoencoder, 1,000 folders", model.measured(), workers, million),
        ("the same, each folder in 10 shards", model.measured(), workers, replace(million, shards=10)),
        ("the same, each folder in 100 shards", model.measured(), workers, replace(million, shards=100)),
        ("autoencoder, 10,000 tars", model.measured(tars=True), workers, model.Work(10_000, 10**5)),
        ("the same folders, with maps", model.measured(maps=True), workers, million),
        ("vae, 1,000 folders", model.measured("vae"), workers, million),
        ("patchcore, 1,000 folders", model.measured("patchcore"), workers, million),
        (
            "patchcore, network 100 times as fast",
            model.measured("patchcore"),
            replace(workers, network_speed=100.0),
            million,
        ),
    ]
    rows = []
    for title, own, cluster, work in cases:
        used = model.of_tars(own, store) if "tars" in title else store
        found = model.predict(own, used, cluster, work)
        total = sum(found.stages.values())
        rows.append(
            (
                title,
                f"{found.hours:,.1f}",
                f"{found.machine_hours:,.0f}",
                f"{100 * found.efficiency:.0f} %",
                f"{found.bottleneck} ({100 * found.stages[found.bottleneck] / total:.0f} %)",
                size(found.bytes_read),
                size(found.bytes_written),
            )
        )
    own = model.measured("patchcore")
    gpu = model.predict(own, store, replace(workers, network_speed=1e9), million)
    memory = model.predict(model.measured(), store, workers, million).memory
    head = ("case", "hours", "core hours", "scoring", "next after scoring", "read", "written")
    return "\n\n".join(
        [
            f"{BILLION:,} PNG of 256x256 in a store, {WORKERS:,} workers of one core each, no failures. Computed:",
            table(head, rows),
            f"The names of a data set of a million images take {size(memory)} of memory in each worker.",
            "A GPU changes the time of the network alone. Its factor over one core is for you to measure: `normalcy score` prints"
            ' images/s, with `--device cuda` and with `--device cpu`. "100 times as fast" is a parameter of the model and no '
            f"measurement. However fast it is, {WORKERS:,} workers of one core each take {gpu.hours:.1f} hours here: fetching, "
            "decoding and preprocessing remain, so that a GPU needs several cores beside it.",
        ]
    )


def simulation() -> str:
    found = model.read("simulation")
    rows = [
        (
            row["scenario"],
            f"{row['simulated']['hours']:.3g}",
            f"{row['predicted']['hours']:.3g}",
            f"{100 * (row['hours_predicted_by_simulated'] - 1):+.1f} %",
            f"{100 * row['predicted']['efficiency']:.0f} %",
            row["predicted"]["bottleneck"],
            f"{sum(row['simulated']['requests'].values()):,}",
        )
        for row in found["scenarios"]
    ]
    worst, machine_worst = (
        max(abs(row[f"{key}_predicted_by_simulated"] - 1) for row in found["scenarios"])
        for key in ("hours", "machine_hours")
    )
    head = ("scenario", "hours, simulated", "hours, model", "difference", "scoring", "next after scoring", "requests")
    differences = f"hours {100 * worst:.1f} %, of core hours {100 * machine_worst:.1f} %; a test allows 10 % and 12 %"
    return (
        f"{table(head, rows)}\n\nThe largest difference of {differences}. Where core hours differ most, 1,000 workers wait "
        "for one prefix at different times."
    )


def assumptions() -> str:
    rows = []
    for kind in (model.Store, model.Cluster):
        documented = attribute_texts(kind)
        for one in fields(kind):
            if one.default is not MISSING:
                rows.append(
                    (
                        kind.__name__,
                        f"`{one.name}`",
                        f"{one.default:g}",
                        documented.get(one.name, "").replace("``", "`"),
                    )
                )
    source = (
        "Latency, pages and requests per prefix are those of Amazon's documentation of S3 (*Best practices design patterns: "
        "optimizing Amazon S3 performance*: about 100 to 200 ms for small objects, at least 5,500 reads and 3,500 writes per "
        "second and partitioned prefix; *ListObjectsV2*: 1,000 keys). The others are assumed, without a source."
    )
    return f"{source}\n\n{table(('of', 'name', 'value', 'meaning'), rows)}"


def attribute_texts(kind: type) -> dict[str, str]:
    """Texts below the fields of a class."""
    body = ast.parse(inspect.getsource(kind)).body[0].body  # type: ignore[attr-defined]
    found = {}
    for one, after in pairwise(body):
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and isinstance(after, ast.Expr):
            found[one.target.id] = " ".join(str(after.value.value).split())  # type: ignore[attr-defined]
    return found


# -- words -------------------------------------------------------------------------------------------------------------


def ms(value: float) -> str:
    return f"{value:.2f} ms"


def size(count: float) -> str:
    """Bytes in words.

    >>> size(1_500_000), size(2.62e14)
    ('1.5 MB', '262 TB')
    """
    for unit, of in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= of:
            return f"{count / of:.3g} {unit}"
    return f"{count:.0f} bytes"


def machine(found: dict[str, Any]) -> str:
    hardware = found["hardware"]
    return f"{hardware['processor']}, {hardware['cores']} cores, {found['date']}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(markdown_table(head, rows))
