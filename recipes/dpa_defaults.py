"""Defaults of DPA against their alternatives, on training images alone.

    python recipes/dpa_defaults.py --data-root DIR     (one thread: about 12 minutes of one core)

CIFAR-10 (car, frog, ship, 32 pixels): 4,000 training images of the class train; 500 others are ranked against 200 training
images of each other class. Chest X-rays and magnetic tiles (64 pixels): three quarters of the normal training images train; the
others are ranked against themselves with one synthetic anomaly each. Each variant differs from the defaults in one setting; every
one has the same number of steps, so the seconds differ. For 64 pixels, each fit is also scored by the mean over the highest tenth
of the errors. No test image is read. One seed: differences below about 1 point (CIFAR-10) and 3 points (64 pixels) mean nothing.

Writes results/dpa_defaults.json after each fit; fits that are there are not run again. Sets and variants that are missing there
have not been run.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from budget import tiles
from chest_xray import INPUT, open_chest

from normalcy import Detector, open_data
from normalcy.data.dataset import DataSet
from normalcy.data.named import CLASSES
from normalcy.data.splits import hold_out
from normalcy.files import read_json
from normalcy.metrics import auroc
from normalcy.provenance import write_record
from normalcy.studies.select import synthetic_anomalies

RESULT = Path(__file__).parent / "results" / "dpa_defaults.json"
SMALL: dict[str, Any] = {"latent": 8, "layers": [2], "steps": 400, "batch_size": 64}
EVERYDAY: dict[str, Any] = {"grow": False, "steps": 200, "batch_size": 32, "size": 64}
CHANGES: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "statistics of the training images": {"statistics": "training"},
    "initial weights of the authors": {"start": "authors"},
    "autoencoder at full size": {"shrink": 1},
    "learning rate that falls to 0": {"anneal": True},
}
LAYERS: dict[str, dict[str, Any]] = {"layer 1": {"layers": [0, 1]}, "layer 3": {"layers": [0, 1, 3]}}


class Judged:
    """Normal images to train on, others to rank, and anomalies by kind."""

    def __init__(self, train: DataSet, normal: DataSet, anomalies: dict[str, DataSet]) -> None:
        self.train, self.normal, self.anomalies = train, normal, anomalies

    def auroc(self, detector: Detector) -> float:
        """Mean over the kinds."""
        normal = detector.score(self.normal).scores
        found = []
        for data in self.anomalies.values():
            scores = detector.score(data).scores
            found.append(auroc(np.r_[np.zeros(len(normal)), np.ones(len(scores))], np.r_[normal, scores]))
        return float(np.mean(found))


def cifar(root: Path, name: str) -> Judged:
    train = {kind: open_data(f"cifar10:{kind}", root).select(split="train", label=0) for kind in CLASSES["cifar10"]}
    own = train.pop(name)
    others = {kind: data.subset(range(200)) for kind, data in train.items()}
    return Judged(own.subset(range(4000)), own.subset(range(4000, 4500)), others)


def everyday(normal: DataSet) -> Judged:
    kept, others = hold_out(normal.cases, 0.25, minimum=1, seed=0)
    left_out = normal.subset(others)
    return Judged(normal.subset(kept), left_out, {"synthetic": synthetic_anomalies(left_out)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--sets", default="automobile,frog,ship,chest,tiles")
    parser.add_argument("--steps", type=int, default=None, help="for a trial run")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = read_json(options.result)["rows"] if options.result.exists() else []
    for name in options.sets.split(","):
        small = name in CLASSES["cifar10"]
        changes = CHANGES if small else {**CHANGES, **LAYERS}
        done = {row["variant"] for row in rows if row["data"] == name}
        if done >= set(changes):
            continue
        if small:
            judged = cifar(options.data_root, name)
        elif name == "chest":
            judged = everyday(open_chest(options.data_root / "chest_xray_256.zip").select(split="train"))
        else:
            judged = everyday(tiles(options.data_root, None)[0])
        for variant, change in changes.items():
            if variant in done:
                continue
            words = {
                **(SMALL if small else EVERYDAY),
                **(INPUT if name == "chest" else {}),
                **change,
                "calibration": 0.0,
            }
            words["steps"] = options.steps or words["steps"]
            started = time.process_time()
            detector = Detector("dpa", **words).fit(judged.train)
            seconds = time.process_time() - started
            row = {
                "data": name,
                "variant": variant,
                "auroc": judged.auroc(detector),
                "processor_seconds": round(seconds, 1),
            }
            if not small:
                assert detector.method is not None
                detector.method.settings = replace(detector.method.settings, top=0.1)
                row["auroc_of_the_highest_tenth"] = judged.auroc(detector)
            rows.append({**row, "settings": words})
            print(json.dumps(row), flush=True)
            write_record(options.result, {"recipe": "dpa_defaults", "seed": 0, "threads": 1, "rows": rows})


if __name__ == "__main__":
    main()
