"""Pneumonia in chest X-rays after training on X-rays without findings: DPA with and without progressive growing, and others.

    python recipes/chest_xray.py --data-root DIR [--minutes 10]     (about 5 x 10 minutes, and 2 for the rest, on one core)

Data: chest_xray_256.zip with No_findings/*.png and Pneumonia/*.png, 500 each, 256x256, named <patient>_<number>.png as in
ChestX-ray14 of the NIH (Wang et al. 2017); images of other folders have another origin and are excluded. Patients are kept
together: all patients with pneumonia are test, with a fifth of the images of the others; the rest (about 400) is for training.
Preprocessing of the paper (Shvetsova et al. 2021, section IV-A1): the central 224 of 300 pixels, resized to 64x64. PatchCore gets
the same crop at 224x224, because its patches need resolution, and at 64x64.

Each network trains for the same processor time: short runs measure its speed, which determines the number of steps. PatchCore,
Deep IF and the distances of features are fitted once. DPA has the channels of the authors for their NIH subset (16 channels of
one pixel) and the image score of equation 1, in batches of 64; "highest errors" is our default score for this size, which was
chosen by synthetic anomalies in normal images (recipes/dpa_everyday.py). LSR and VAE get 128 pixels; LSR chooses its map on a
tenth of the training images with synthetic anomalies. Nothing is chosen on test images. Rows are kept as they come; those that
are there are not run again.

Expected: dpa first. The paper, on other images of the NIH (clear cases, 4,261 for training): DPA 0.926, without growing 0.920,
PIAD 0.880, Deep GEO 0.858, Deep IF 0.766, L1 0.708. Intervals are DeLong's, over test images.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from budget import steps_in

from normalcy import Detector
from normalcy.data.dataset import DataSet, Item
from normalcy.data.splits import train_test
from normalcy.data.stores import Files, Zip
from normalcy.files import read_json
from normalcy.metrics import delong_interval, delong_test
from normalcy.provenance import commit, write_record

INPUT: dict[str, Any] = {"preprocess": ("centre_crop:0.7467",), "size": 64, "calibration": 0.0}
DPA: dict[str, Any] = {"latent": 16, "batch_size": 64, "top": 1.0}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpa": ("dpa", {**DPA, "grow": True}),
    "dpa without growing": ("dpa", {**DPA, "grow": False}),
    "dpa, highest errors": ("dpa", {**DPA, "grow": True, "top": None}),
    "autoencoder": ("autoencoder", {"loss": "l1", "latent": 64, "batch_size": 64}),
    "vae, 128 pixels": ("vae", {"size": 128, "latent": 100, "batch_size": 16}),
    "lsr, 128 pixels": ("lsr", {"preset": "features", "size": 128, "batch_size": 16, "calibration": 0.1}),
    "patchcore": ("patchcore", {}),
    "patchcore, 224 pixels": ("patchcore", {"size": 224}),
    "deep_if": ("deep_if", {}),
    "deep_knn": ("deep_knn", {}),
    "mahalanobis": ("mahalanobis", {}),
}
TRAINED = ("dpa", "autoencoder", "vae", "lsr")
"""Methods that train for the budget."""
RESULT = Path(__file__).parent / "results" / "chest_xray.json"


def open_chest(archive: Path, seed: int = 0) -> DataSet:
    """No findings against pneumonia, with a split that keeps patients together."""
    opener = Zip(archive)
    kinds = {"No_findings": 0, "Pneumonia": 1}
    names = [name for name in opener.names() if name.partition("/")[0] in kinds]
    items = [
        Item(name, Path(name).stem.partition("_")[0], kinds[name.partition("/")[0]], name.partition("/")[0])
        for name in names
    ]
    return train_test(Files(opener, names).data_set("chest_xray", items), seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0, help="training of each network, for each seed")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rows", default=";".join(ROWS), help="some of them, separated by ;")
    parser.add_argument("--images", type=int, default=None, help="maximum number of images, for a trial run")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    data = open_chest(options.data_root / "chest_xray_256.zip")
    train, test = data.select(split="train"), data.select(split="test")
    if options.images is not None:
        train = train.subset(range(options.images))
        test = test.subset(np.random.default_rng(0).permutation(len(test))[: options.images])
    rows = made_before(options)
    for name in options.rows.split(";"):
        if any(row["row"] == name for row in rows):
            continue
        method, words = ROWS[name]
        words = {**INPUT, **words}
        if method in TRAINED:
            words["steps"] = steps_in(method, words, train, 60 * options.minutes)
        found, seconds, scores = [], [], []
        for seed in range(options.seeds):
            started = time.process_time()
            detector = Detector(method, **words, seed=seed).fit(train)
            seconds.append(round(time.process_time() - started, 1))
            scores.append(detector.score(test).scores)
            found.append(delong_interval(test.labels, scores[-1]))
        first = found[0]
        rows.append(
            {
                "row": name,
                "auroc": {"value": first.value, "low": first.low, "high": first.high},
                "auroc_of_seeds": [interval.value for interval in found],
                "fit_processor_seconds": seconds,
                "method": method,
                "settings": words,
                "commit": commit(),  # rows may come from several runs
                "scores": " ".join(
                    f"{score:.7g}" for score in scores[0]
                ),  # of the first seed, in the order of the images
            }
        )
        print(f"{name:24} AUROC {first.value:.3f} [{first.low:.3f}, {first.high:.3f}]", seconds, flush=True)
        write(options, rows, train, test)


def made_before(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of an earlier run with the same training time, images and seeds."""
    if not options.result.is_file():
        return []
    known = read_json(options.result)
    same = all(known[word] == getattr(options, word) for word in ("minutes", "images", "seeds"))
    return [row for row in known["rows"] if same and "scores" in row]


def write(options: argparse.Namespace, rows: list[dict[str, Any]], train: DataSet, test: DataSet) -> None:
    """The rows, each with DeLong's test against the best one, on the scores of the first seed."""
    rows = sorted(rows, key=lambda row: list(ROWS).index(row["row"]))
    best = max(rows, key=lambda row: row["auroc"]["value"])
    for row in rows:
        row.pop("p_against_best", None)
        if row is not best:
            row["p_against_best"] = delong_test(test.labels, *(scores_of(one) for one in (best, row))).p
    write_record(
        options.result,
        {
            "recipe": "chest_xray",
            "minutes": options.minutes,
            "images": options.images,
            "train": len(train),
            "test": {"normal": int((test.labels == 0).sum()), "pneumonia": int((test.labels == 1).sum())},
            "best": best["row"],
            "seeds": options.seeds,
            "threads": torch.get_num_threads(),
            "rows": rows,
        },
    )


def scores_of(row: dict[str, Any]) -> np.ndarray:
    return np.array(row["scores"].split(), np.float64)


if __name__ == "__main__":
    main()
