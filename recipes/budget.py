"""Shared by the recipes with equal training time: steps that fit into a time, the magnetic tiles and their types of defect."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normalcy import Detector, open_data
from normalcy.data.dataset import DataSet
from normalcy.data.splits import images_to_score
from normalcy.detector import normal_training_images, with_split
from normalcy.provenance import commit, write_record


def steps_in(method: str, words: dict[str, Any], data: DataSet, seconds: float) -> int:
    """Steps that fit into ``seconds`` of processor time, from the difference of two short runs (stages share both alike); of
    longer ones where steps are quick. Ends the recipe if the difference is within noise."""
    words = {word: value for word, value in words.items() if word != "eta"}  # no search with an untrained prior
    few = data.subset(range(min(96, len(data))))
    Detector(method, **words, steps=2).fit(few)  # one-time costs of the process, not to be measured below
    for first, second in ((8, 24), (20, 120)):
        spent: list[float] = []
        for steps in (first, second):
            started = time.process_time()
            Detector(method, **words, steps=steps).fit(few)
            spent.append(time.process_time() - started)
        each = (spent[1] - spent[0]) / (second - first)
        if each > 0.1:
            break
    if spent[1] < 1.05 * spent[0]:
        raise SystemExit(f"{method}: {first} and {second} steps took {spent[0]:.1f} and {spent[1]:.1f} s: try again.")
    return max(8, round(seconds / each))


def arguments(
    description: str, rows: Iterable[str], minutes: float, result: Path, sizes: bool = False
) -> argparse.Namespace:
    """The command line of a recipe on tiles; ``sizes``: of several sizes and seeds."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--minutes", type=float, default=minutes, help="training of each row")
    parser.add_argument("--images", type=int, default=None, help="maximum number of images, for a trial run")
    parser.add_argument("--rows", default=";".join(rows), help="some of them, separated by ;")
    if sizes:
        parser.add_argument("--size", type=int, default=128, help="side of the images, in pixels")
        parser.add_argument("--seeds", default="0", help="seeds of the fits, separated by commas")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=None, help="keep models and results here")
    parser.add_argument("--result", type=Path, default=result)
    return parser.parse_args()


def tiles(data_root: Path | None, images: int | None) -> tuple[DataSet, DataSet, str | None]:
    """Training and test images of magnetic tiles, at most ``images`` of each, and the name of the test split."""
    data = with_split(open_data("magnetic_tile", data_root))
    train, (test, split) = normal_training_images(data), images_to_score(data, None)
    if images is not None:
        train = train.subset(range(images))
        order = np.random.default_rng(0).permutation(len(test))
        test = test.subset(np.sort(order[:images]))
    return train, test, split


def located(
    name: str, score: str | None, found: dict[str, Any], run: dict[str, Any], seconds: float, words: dict[str, Any]
) -> dict[str, Any]:
    """A row of a table, from the results of ``evaluate`` and ``score_into`` as JSON values; its metrics are printed."""
    measures = {
        "image_auroc": found["image"]["auroc"],
        "pixel_auroc": found["pixel"]["auroc"],
        "aupro": found["pixel"]["aupro"],
    }
    rounded = {key: round(measure["value"], 3) for key, measure in measures.items()}
    print(name, score or "", rounded, f"{run['images_per_second']:.2f} images/s", flush=True)
    return {
        "row": name,
        "score": score,
        **measures,
        "types": {
            kind: {key: entry[key] for key in ("count", "pixel_auroc", "aupro")}
            for kind, entry in found["types"].items()
        },
        "fit_processor_seconds": round(seconds),
        "images_per_second": run["images_per_second"],
        "settings": words,
        "commit": commit(),  # rows may come from several runs
    }


def write_rows(recipe: str, options: argparse.Namespace, rows: list[dict[str, Any]], **more: Any) -> None:
    """The result file of a recipe on tiles."""
    about = {"recipe": recipe, "minutes": options.minutes, "images": options.images, **more}
    write_record(options.result, {**about, "seed": 0, "threads": torch.get_num_threads(), "rows": rows})
