"""Three tasks, each method on the one it is made for: accuracy after two training times, speed, memory.

    python recipes/three_tasks.py --data-root DIR [--task NAME] [--methods NAMES] [--seconds 15,60 --out DIR]  (hours of a core)

One class: three digits of MNIST and three classes of CIFAR-10, each normal in turn; 300 normal and 700 other test images of
each, drawn at random, the same for all methods; a row is a mean over the three. Images are contrast-normalised (gcn), as in the
protocol of Ruff et al. 2018, but for the methods in AS_THEY_ARE. Located defects: magnetic tiles at 128x128 (Huang et al. 2020),
split as in recipes/magnetic_tile.py; 60 normal and 100 defective test images. Medical: chest X-rays at 64x64, split as in
recipes/chest_xray.py.

A method that trains by gradients trains for two processor times, in a fit each: 15 and 60 s for one class, 60 and 240 s for the
other tasks, or --seconds. Two short runs measure its speed, which determines the number of steps. Work outside the steps is
added, and "fit s" includes it. The others are fitted once. Settings are the defaults, but those in WORDS, which the pages of the
methods give for images of this kind or which make slow scoring affordable. One seed, one thread; times are processor times. Each
cell runs in a process of its own, whose peak memory is reported; one that takes more than --limit minutes is ended and listed.
No setting is chosen on test images here, but gcn, which is the protocol's, was added after a first run without it. The defaults
of patchcore were chosen on those of the magnetic tiles (recipes/magnetic_tile.py): its row there is optimistic. patchcore and
padim have the embedded EfficientNet-Lite0, not the networks of their papers. qspace_vae needs diffusion images
(recipes/qspace_diffusion.py), anomaly_dino weights that are not embedded: neither is here. deep_geo is with the X-rays alone,
as its fit passes all training images 72 times (dpa/three-classes has it on CIFAR-10).

Each cell has a file in --out; those that are there are not run again, unless they failed. --table only makes the tables and
figures, of the cells that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from budget import steps_in
from chest_xray import INPUT, open_chest

from normalcy import Detector, metrics, open_data
from normalcy.data.dataset import DataSet
from normalcy.data.splits import normal_training_images, with_split
from normalcy.errors import NormalcyError
from normalcy.methods import get
from normalcy.provenance import commit, write_record
from normalcy.scoring import Result

COLUMNS = {
    "one class of MNIST": ("mnist:0", "mnist:3", "mnist:8"),
    "one class of CIFAR-10": ("cifar10:automobile", "cifar10:frog", "cifar10:ship"),
    "located defects": ("magnetic tiles",),
    "medical": ("chest X-rays",),
}
"""Task -> data sets."""
ONE_CLASS = ("one class of MNIST", "one class of CIFAR-10")
SECONDS = {
    **dict.fromkeys(ONE_CLASS, (15.0, 60.0)),
    "located defects": (60.0, 240.0),
    "medical": (60.0, 240.0),
}
"""Task -> training times."""
BOTH = ("autoencoder", "vae", "pca", "dpa", "patchcore")
OF_ONE_CLASS = (
    "deep_svdd", "oc_nn", "ddr_id", "oc_cnn", "ocsvm", "kde", "gmm", "isolation_forest", "dagmm", "dsebm", "deep_if",
    "deep_knn", "mahalanobis", "alocc", "gpnd", "ocgan", "anogan", "f_anogan", "adgan", "ganomaly", "piad", "rda", "dpa",
    "autoencoder", "vae", "pca",
)  # fmt: skip
METHODS = {
    **dict.fromkeys(ONE_CLASS, OF_ONE_CLASS),
    "located defects": (
        *BOTH, "padim", "cnn_dictionary", "texture_gmm", "patchwise", "lsr", "vae_attention", "cavga", "spatial_uae", "ganomaly"
    ),
    "medical": (
        *BOTH, "lsr", "vq_restoration", "spatial_uae", "zscore", "piad", "deep_geo", "f_anogan", "deep_if", "deep_knn",
        "mahalanobis",
    ),
}  # fmt: skip
"""Task -> methods made for it, with some for comparison."""
WORDS: dict[str, dict[str, Any]] = {
    "adgan": {"restarts": 2, "search_steps": 3},
    "anogan": {"search_steps": 100},
    "ddr_id": {"width": 16},
    "deep_geo": {"widen": 2},
    "gpnd": {"fit_images": 500},
    "lsr": {"preset": "features", "calibration": 0.1},
    "vq_restoration": {"width": 64, "prior_width": 64, "prior_blocks": 2, "copies": 6, "codes": 64, "lr": 1e-3},
}
AS_THEY_ARE = ("deep_if", "deep_knn", "dpa", "mahalanobis", "oc_cnn", "piad")
"""Methods with networks that were pretrained on photographs; their papers do not normalise contrast."""
OF_COLUMN: dict[str, dict[str, Any]] = {
    "magnetic tiles": {"size": 128},
    "chest X-rays": INPUT,
}
CELLS = Path(__file__).parent / "results" / "three_tasks"
FIGURE = Path(__file__).parents[1] / "docs" / "images" / "three-tasks.png"


def opened(column: str, root: Path) -> tuple[DataSet, DataSet]:
    """Normal training images, and labelled test images."""
    if column == "chest X-rays":
        data = open_chest(root / "chest_xray_256.zip")
        return data.select(split="train"), data.select(split="test")
    name = "magnetic_tile" if column == "magnetic tiles" else column
    data = with_split(open_data(name, root))
    counts = (60, 100) if column == "magnetic tiles" else (300, 700)
    return normal_training_images(data), drawn(data.select(split="test"), counts, masks=column == "magnetic tiles")


def drawn(test: DataSet, counts: tuple[int, int], masks: bool) -> DataSet:
    """``counts`` normal and anomalous test images, drawn at random; ``masks``: no anomalous one with an empty mask."""
    kept: tuple[list[int], list[int]] = ([], [])
    for i in map(int, np.random.default_rng(0).permutation(len(test))):
        label = int(test.items[i].label or 0)
        if len(kept[label]) < counts[label] and (not masks or label == 0 or _marked(test, i)):
            kept[label].append(i)
    return test.subset(np.sort(kept[0] + kept[1]))


def _marked(data: DataSet, i: int) -> bool:
    mask = data.mask(i)
    return mask is not None and bool(mask.any())


def run(method: str, column: str, root: Path, seconds: float) -> dict[str, Any]:
    """Fit, score and measure one cell, in this process."""
    torch.set_num_threads(1)
    train, test = opened(column, root)
    words = {"calibration": 0.0, "seed": 0, "device": "cpu", **OF_COLUMN.get(column, {}), **WORDS.get(method, {})}
    if ":" in column and method not in AS_THEY_ARE:
        words["preprocess"] = ["gcn"]
    if trains(method):
        words["batch_size"] = 64 if ":" in column else 16
        words["steps"] = steps_in(method, words, train, seconds)
    started = time.process_time()
    detector = Detector(method, **words).fit(train)
    fitted = time.process_time()
    found = [r for r in detector.stream(test) if isinstance(r, Result)]
    scored = time.process_time() - fitted
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB, as Linux counts in KiB
    labels = np.array([r.item.label for r in found])
    place = {item.path: i for i, item in enumerate(test.items)}
    masks = [test.mask(place[r.path]) if r.item.label else None for r in found]
    maps = [r.map for r in found if r.map is not None] if any(mask is not None for mask in masks) else []
    pixels = {
        "pixel_auroc": metrics.pixel_auroc_interval,
        "aupro": metrics.aupro_interval,
        "average_precision": metrics.pixel_average_precision_interval,
    }
    return {
        "method": method,
        "column": column,
        "seconds": seconds if trains(method) else None,
        "images": [int((labels == 0).sum()), int((labels == 1).sum())],
        "train": len(train),
        "image_auroc": plain(metrics.delong_interval(labels, np.array([r.score for r in found]))),
        **{name: plain(interval(maps, masks, resamples=500)) for name, interval in pixels.items() if maps},
        "fit_processor_seconds": round(fitted - started, 1),
        "images_per_second": round(len(found) / scored, 1),
        "memory_gib": round(memory, 2),
        "settings": words,
        "commit": commit(),
    }


def trains(method: str) -> bool:
    """Whether the method has stages of gradient steps."""
    shape = (3 if method == "piad" else 1, 32, 32)
    stages = get(method)(Detector(method, **WORDS.get(method, {})).settings, shape).stages()
    return any(stage.objectives for stage in stages)


def plain(interval: metrics.Interval) -> dict[str, float]:
    return {name: round(float(getattr(interval, name)), 4) for name in ("value", "low", "high")}


def cells(options: argparse.Namespace) -> Iterator[tuple[str, str, str, float, Path]]:
    """Task, method, column, seconds and file of each cell."""
    tasks, wanted = options.task.split(","), options.methods.split(",") if options.methods else None
    for task in tasks:
        times = options.seconds or SECONDS[task]
        for method in METHODS[task]:
            if wanted is not None and method not in wanted:
                continue
            for seconds in times if trains(method) else times[-1:]:
                for column in COLUMNS[task]:
                    kind = f"-{seconds:g}" if trains(method) else ""
                    name = f"{method}-{column.replace(' ', '-').replace(':', '-')}{kind}.json"
                    yield task, method, column, seconds, options.out / name


def child(method: str, column: str, seconds: float, file: Path, options: argparse.Namespace) -> None:
    """Run a cell in its own process; record the reason if it leaves no result."""
    words = [sys.executable, __file__, "--only", f"{method},{column},{seconds}", "--file", str(file)]
    words += ["--data-root", str(options.data_root)]
    try:
        done = subprocess.run(
            words,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=60 * options.limit,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        reason = f"ended with exit code {done.returncode}: {last[0]}"
    except subprocess.TimeoutExpired:
        reason = f"ran longer than {options.limit:g} minutes in all"
    if not file.exists():
        write_record(file, failure(method, column, seconds, reason))


def failure(method: str, column: str, seconds: float, reason: str) -> dict[str, Any]:
    return {"method": method, "column": column, "seconds": seconds if trains(method) else None, "failed": reason}


def collected(options: argparse.Namespace) -> dict[str, Any]:
    """Task -> a row for each method and training time, of the cells that are in --out; and the methods without cells."""
    found: dict[str, Any] = {}
    for task in COLUMNS:
        every = argparse.Namespace(**{**vars(options), "task": task, "methods": None})
        planned = list(cells(every))
        records = [json.loads(file.read_text("utf-8")) for *_, file in planned if file.exists()]
        if records:
            rows = means(records, COLUMNS[task])
            run = {row["row"] for row in rows}
            asked = {(method, seconds) for _, method, _, seconds, _ in planned if method in run and trains(method)}
            for method, seconds in sorted(asked - {(row["row"], row["training_seconds"]) for row in rows}):
                rows.append({"row": method, "columns": [], "training_seconds": seconds, "failed": "not run"})
            found[task] = {"rows": rows, "not_run": sorted(set(METHODS[task]) - {row["row"] for row in rows})}
    return found


def means(records: list[dict[str, Any]], columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row for each method and training time: means over all columns, best image AUROC first; or why there is none."""
    rows, without = [], []
    for method, seconds in dict.fromkeys((record["method"], record["seconds"]) for record in records):
        those = [record for record in records if (record["method"], record["seconds"]) == (method, seconds)]
        row = {"row": method, "columns": [record["column"] for record in those], "training_seconds": seconds}
        reasons = [f"{record['column']}: {record['failed']}" for record in those if "failed" in record]
        reasons += [f"{column}: not run" for column in columns if column not in row["columns"]]
        if reasons:
            without.append({**row, "failed": "; ".join(reasons)})
            continue
        for key in ("image_auroc", "pixel_auroc", "aupro", "average_precision"):
            some = [record[key] for record in those if key in record]
            if len(some) == 1:
                row[key] = some[0]
            elif some:
                row[key] = mean_interval(some)
        for key in ("fit_processor_seconds", "images_per_second", "memory_gib"):
            row[key] = round(float(np.mean([record[key] for record in those])), 1)
        rows.append(row)
    return sorted(rows, key=lambda row: -row["image_auroc"]["value"]) + without


def mean_interval(intervals: list[dict[str, float]]) -> dict[str, float]:
    """Mean of estimates, with an interval whose half-widths add in squares: as if independent, though some of the other test
    images of one class are those of another."""
    values = np.array([[one["value"], one["low"], one["high"]] for one in intervals])
    value, (down, up) = values[:, 0].mean(), (np.sqrt(np.square(values[:, 1:] - values[:, :1]).sum(0)) / len(values))
    return {"value": round(float(value), 4), "low": round(float(value - down), 4), "high": round(float(value + up), 4)}


def figure(tasks: dict[str, Any], path: Path) -> None:
    """Accuracy against seconds of training, one panel for each task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    methods = sorted({row["row"] for part in tasks.values() for row in part["rows"]})
    colours = {method: plt.colormaps["tab20"](i % 20) for i, method in enumerate(methods)}
    down = -(-len(tasks) // 2)
    shown, axes = plt.subplots(down, 2, figsize=(11, 7 * down), squeeze=False)
    for axis in axes.flat[len(tasks) :]:
        axis.axis("off")
    last: dict[Any, dict[str, tuple[float, float]]] = {}
    for axis, (task, part) in zip(axes.flat, tasks.items()):
        key = "aupro" if any("aupro" in row for row in part["rows"]) else "image_auroc"
        by_method: dict[str, list[tuple[float, float]]] = {}
        for row in part["rows"]:
            if key in row:
                by_method.setdefault(row["row"], []).append((row["fit_processor_seconds"], row[key]["value"]))
        for method, points in by_method.items():
            axis.plot(*zip(*sorted(points)), marker="o", markersize=3, linewidth=1, color=colours[method])
        axis.margins(x=0.2)
        axis.set(xscale="log", xlabel="processor seconds of the fit", title=task)
        axis.set_ylabel("AUPRO" if key == "aupro" else "mean image AUROC" if len(COLUMNS[task]) > 1 else "image AUROC")
        last[axis] = {method: max(points) for method, points in by_method.items()}
    shown.tight_layout()
    for axis, ends in last.items():
        label(axis, ends)
    path.parent.mkdir(parents=True, exist_ok=True)
    shown.savefig(path, dpi=110, pil_kwargs={"optimize": True})


def label(axis: Any, ends: dict[str, tuple[float, float]]) -> None:
    """Names right of the points ``ends`` of a finished panel, as near as they fit without covering each other, joined by a
    line to points that they are not beside."""
    from sklearn.isotonic import isotonic_regression

    size, high = 6, 7.5  # points
    per_point = axis.figure.dpi / 72
    bottom, top = axis.get_window_extent().intervaly / per_point
    at = {method: axis.transData.transform(end) / per_point for method, end in ends.items()}
    columns: list[tuple[float, list[str]]] = []  # right end, methods whose names are above each other
    for method in sorted(ends, key=lambda method: at[method][0]):
        right = at[method][0] + 0.6 * size * len(method)
        if columns and at[method][0] < columns[-1][0]:
            columns[-1] = (max(right, columns[-1][0]), [*columns[-1][1], method])
        else:
            columns.append((right, [method]))
    joined = {"arrowstyle": "-", "linewidth": 0.4, "color": "grey", "shrinkA": 0, "shrinkB": 0}
    for _, methods in columns:
        methods.sort(key=lambda method: at[method][1])
        steps = high * np.arange(len(methods))
        heights = np.array([at[method][1] for method in methods])
        low, most = bottom + high / 2, top - high / 2 - steps[-1]
        moved = isotonic_regression(heights - steps, y_min=low, y_max=max(low, most)) + steps
        for method, up in zip(methods, moved - heights):
            arrow = joined if abs(up) > high / 2 else None
            text = {"textcoords": "offset points", "fontsize": size, "va": "center", "arrowprops": arrow}
            axis.annotate(method, ends[method], (8 if arrow else 5, up), **text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--task", default=",".join(COLUMNS), help="some of the tasks; comma-separated")
    parser.add_argument("--methods", default=None, help="some methods; comma-separated")
    parser.add_argument(
        "--seconds", default="", help="training times of a method that trains by gradients, for every task; needs --out"
    )
    parser.add_argument("--limit", type=float, default=40.0, help="minutes after which a cell is ended")
    parser.add_argument("--out", type=Path, default=CELLS, help="a file for each cell")
    parser.add_argument("--result", type=Path, help="default: OUT.json")
    parser.add_argument(
        "--figure", type=Path, help="default: OUT.png, of the committed cells docs/images/three-tasks.png"
    )
    parser.add_argument("--table", action="store_true", help="run nothing, collect what is there")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # the process of one cell
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        method, column, seconds = options.only.split(",")
        try:
            record = run(method, column, options.data_root, float(seconds))
        except (NormalcyError, MemoryError) as error:
            record = failure(method, column, float(seconds), str(error))
        write_record(options.file, record)
        return
    options.seconds = [float(number) for number in options.seconds.split(",") if number]
    if options.seconds and options.out == CELLS:
        parser.error(f"--seconds expects an --out of its own: {CELLS} has the cells of the usual training times.")
    options.out.mkdir(parents=True, exist_ok=True)
    for _, method, column, seconds, file in cells(options):
        if not options.table and (not file.exists() or "failed" in json.loads(file.read_text("utf-8"))):
            file.unlink(missing_ok=True)
            child(method, column, seconds, file, options)
            record = json.loads(file.read_text("utf-8"))
            words = record.get("failed") or f"image AUROC {record['image_auroc']['value']:.3f}"
            print(f"{method} {column} {seconds:g} s: {words}", flush=True)
    if not (tasks := collected(options)):
        raise SystemExit(f"three_tasks expects cells in {options.out}, got none: run it without --table.")
    about = {"recipe": "three_tasks", "training_seconds": options.seconds or SECONDS, "seed": 0, "threads": 1}
    about |= {"settings": WORDS, "without_gcn": AS_THEY_ARE}
    write_record(options.result or options.out.with_suffix(".json"), {**about, "parts": tasks})
    figure(tasks, options.figure or (FIGURE if options.out == CELLS else options.out.with_suffix(".png")))


if __name__ == "__main__":
    main()
