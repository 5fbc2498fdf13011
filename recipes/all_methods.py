"""All 2D methods of normalcy on magnetic tiles of 128x128 pixels, with equal, small compute budgets: accuracy, speed, memory.

    python recipes/all_methods.py --data-root DIR [--minutes 1.5] [--images 160]     (about 2 hours on one core)

Data and split as in recipes/magnetic_tile.py (Huang et al. 2020): defect-free tiles sorted by name, shuffled with
random.Random(0), the first 80 % for training (761). From the other 191 defect-free tiles and the 388 defective ones with
non-empty masks, the test images are drawn with NumPy's default_rng(0), three normal for five defective (60 and 100 of 160), the
same for all methods; maps are compared with the masks at the size of each image. Methods that train by gradients train for the
same time: two short runs measure their speed, which determines the number of steps (batches of 16). Work outside the steps, such
as the rounds of RDA, is added, and "fit s" includes it. Other methods run unchanged. Settings are the defaults except those in
WORDS, which make slow scoring affordable. Times are processor times, so other load affects little except --limit. Each method
runs in one thread and its own process, whose peak memory is reported; a method that exceeds --limit minutes is stopped and
listed. Nothing is chosen on test images. With so little training, the table does not show each method's best performance.

Each method has a file in --out; finished methods are not run again, so an interrupted run can be repeated. --table only makes the
table.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from budget import steps_in

from normalcy import Detector, metrics, open_data
from normalcy.data.dataset import DataSet
from normalcy.data.splits import normal_training_images, with_split
from normalcy.errors import NormalcyError
from normalcy.methods import METHODS, get
from normalcy.provenance import write_record
from normalcy.scoring import Result

SIZE = 128
WORDS: dict[str, dict[str, Any]] = {
    "adgan": {"restarts": 2, "search_steps": 3},
    "deep_geo": {"widen": 1},
    "gpnd": {"fit_images": 200},
    "lsr": {"preset": "small", "eta": "quantile"},
    "vq_restoration": {"width": 64, "prior_width": 64, "prior_blocks": 2, "copies": 3},
}
RESULTS = Path(__file__).parent / "results"


def chosen(data: DataSet, images: int) -> DataSet:
    """Test images: three normal for five defective, at random; defective images with empty masks are excluded."""
    test = data.select(split="test")
    order = np.random.default_rng(0).permutation(len(test))
    kinds: dict[int, list[int]] = {0: [], 1: []}
    wanted = {0: round(images * 3 / 8), 1: images - round(images * 3 / 8)}
    for i in order:
        label = test.items[i].label or 0
        if len(kinds[label]) < wanted[label] and (label == 0 or _marked(test, int(i))):
            kinds[label].append(int(i))
    return test.subset(np.sort(kinds[0] + kinds[1]))


def _marked(data: DataSet, i: int) -> bool:
    mask = data.mask(i)
    return mask is not None and bool(mask.any())


def run(method: str, data_root: Path | None, minutes: float, images: int) -> dict[str, Any]:
    """Fit, score and measure one method, in this process."""
    torch.set_num_threads(1)
    data = with_split(open_data("magnetic_tile", data_root))
    train, test = normal_training_images(data), chosen(data, images)
    words = {"size": SIZE, "calibration": 0.0, "seed": 0, "device": "cpu", **WORDS.get(method, {})}
    shape = (train.read(0).shape[0], SIZE, SIZE)
    trained = any(stage.objectives for stage in get(method)(Detector(method, **words).settings, shape).stages())
    if trained:
        words["batch_size"] = 16
        words["steps"] = steps_in(method, words, train, 60 * minutes)
    started = time.process_time()
    detector = Detector(method, **words).fit(train)
    fitted = time.process_time()
    found = [r for r in detector.stream(test) if isinstance(r, Result)]
    seconds = time.process_time() - fitted
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB, as Linux counts in KiB
    labels = np.array([r.item.label for r in found])
    scores = np.array([r.score for r in found])
    place = {item.path: i for i, item in enumerate(test.items)}
    masks = [test.mask(place[r.path]) if r.item.label else None for r in found]
    maps = [r.map for r in found if r.map is not None]
    pixel = metrics.pixel_auroc_interval(maps, masks) if maps else None
    aupro = metrics.aupro_interval(maps, masks) if maps else None
    return {
        "method": method,
        "trained": trained,
        "minutes": minutes if trained else None,
        "images": [int((labels == 0).sum()), int((labels == 1).sum())],
        "train": len(train),
        "image_auroc": _plain(metrics.delong_interval(labels, scores)),
        "pixel_auroc": _plain(pixel),
        "aupro": _plain(aupro),
        "fit_seconds": fitted - started,
        "images_per_second": len(found) / seconds,
        "memory_gib": memory,
        "words": words,
    }


def _plain(interval: metrics.Interval | None) -> dict[str, float] | None:
    return None if interval is None else {name: float(getattr(interval, name)) for name in ("value", "low", "high")}


def table(rows: list[dict[str, Any]], minutes: float, images: int) -> str:
    """The rows as Markdown, best image AUROC first, and the failures."""
    good = sorted((r for r in rows if "failed" not in r), key=lambda r: -r["image_auroc"]["value"])
    lines = [
        f"All 2D methods on magnetic tiles of {SIZE}x{SIZE}, {minutes:g} minutes of training each where a method trains by "
        f"gradients, {images} test images, one thread, one seed; seconds of the processor. Made by `recipes/all_methods.py`.",
        "",
        "| method | image AUROC [95 %] | pixel AUROC | AUPRO | fit s | images/s | memory GiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in good:
        image = r["image_auroc"]
        cells = [
            f"`{r['method']}`" + ("" if r["trained"] else " (no gradients)"),
            f"{image['value']:.3f} [{image['low']:.3f}, {image['high']:.3f}]",
            *("-" if r[key] is None else f"{r[key]['value']:.3f}" for key in ("pixel_auroc", "aupro")),
            f"{r['fit_seconds']:.0f}",
            f"{r['images_per_second']:.1f}",
            f"{r['memory_gib']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [""] * bool(good) + [f"- `{r['method']}` failed: {r['failed']}" for r in rows if "failed" in r]
    changed = [f"`{name}` {', '.join(f'{k}={v}' for k, v in words.items())}" for name, words in WORDS.items()]
    return "\n".join([*lines, "", f"Settings other than the defaults: {'; '.join(changed)}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--methods", default=",".join(n for n in METHODS if 2 in get(n).spatial_dims))
    parser.add_argument("--minutes", type=float, default=1.5, help="training of each method")
    parser.add_argument("--limit", type=float, default=40.0, help="minutes after which a method is ended")
    parser.add_argument("--images", type=int, default=160, help="test images, 3 normal for 5 defective")
    parser.add_argument("--out", type=Path, default=RESULTS / "all_methods", help="a file for each method")
    parser.add_argument("--result", type=Path, default=RESULTS / "all_methods.json", help="and .md beside it")
    parser.add_argument("--table", action="store_true", help="run nothing, make the table of what is there")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # the process of one method
    options = parser.parse_args()
    if options.only:
        try:
            record = run(options.only, options.data_root, options.minutes, options.images)
        except (NormalcyError, MemoryError) as error:
            record = {"method": options.only, "failed": str(error)}
        write_record(options.out / f"{options.only}.json", record)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    names = options.methods.split(",")
    for number, name in enumerate(names, start=1):
        file = options.out / f"{name}.json"
        if not options.table and not file.exists():
            child(name, file, options)
        record = json.loads(file.read_text()) if file.exists() else {"failed": "not run"}
        words = record.get("failed") or f"image AUROC {record['image_auroc']['value']:.3f}"
        print(f"{number} of {len(names)} {name}: {words}", flush=True)
    rows = [json.loads((options.out / f"{name}.json").read_text()) for name in names if _there(options.out, name)]
    own = ("commit", "date", "hardware", "versions")
    rows = [{key: value for key, value in row.items() if key not in own} for row in rows]
    fixed = {"minutes": options.minutes, "images": options.images, "size": SIZE, "seed": 0, "threads": 1}
    write_record(options.result, {"recipe": "all_methods", **fixed, "rows": rows})
    options.result.with_suffix(".md").write_text(table(rows, options.minutes, options.images), encoding="utf-8")


def _there(folder: Path, name: str) -> bool:
    return (folder / f"{name}.json").exists()


def child(name: str, file: Path, options: argparse.Namespace) -> None:
    """Run a method in its own process; record the reason if it leaves no result."""
    words = [sys.executable, __file__, "--only", name, "--out", str(options.out)]
    words += ["--minutes", str(options.minutes), "--images", str(options.images)]
    words += ["--data-root", str(options.data_root)] * (options.data_root is not None)
    try:
        done = subprocess.run(
            words,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=60 * options.limit,
            stderr=subprocess.PIPE,
            text=True,
        )
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        reason = f"ended with exit code {done.returncode}: {last[0]}"
    except subprocess.TimeoutExpired:
        reason = f"ran longer than {options.limit:g} minutes in all"
    if not file.exists():
        write_record(file, {"method": name, "failed": reason})


if __name__ == "__main__":
    main()
