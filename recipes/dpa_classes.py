"""Channels and feature layer of DPA for each class of CIFAR-10, chosen on training images alone.

    python recipes/dpa_classes.py --data-root DIR [--classes bird,cat]     (one thread: about 25 minutes)

4,000 training images of a class train each setting for 400 steps of 64; 500 others are ranked against 200 training images of each
other class, as in recipes/dpa_defaults.py. The authors chose bottleneck, layer, length and preprocessing of each class by
anomalies of one other class. No test image is read. One seed: settings within a point of the best are as good.

The best setting of each class is that of table dpa/ten-classes. Writes results/dpa_classes.json after each fit; fits that are
there are not run again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from dpa_defaults import SMALL, cifar

from normalcy import Detector
from normalcy.data.named import CLASSES
from normalcy.files import read_json
from normalcy.provenance import write_record

GRID = [(8, 2), (32, 2), (128, 2), (8, 3), (32, 3), (32, 1)]
"""Channels of the bottleneck, feature layer."""
RESULT = Path(__file__).parent / "results" / "dpa_classes.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--classes", default=",".join(CLASSES["cifar10"]))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = read_json(options.result)["rows"] if options.result.exists() else []
    for name in options.classes.split(","):
        judged = None
        for latent, layer in GRID:
            if any((row["data"], row["latent"], row["layer"]) == (name, latent, layer) for row in rows):
                continue
            judged = judged or cifar(options.data_root, name)
            words = {**SMALL, "latent": latent, "layers": [layer], "steps": options.steps, "calibration": 0.0}
            detector = Detector("dpa", **words).fit(judged.train)
            rows.append({"data": name, "latent": latent, "layer": layer, "auroc": round(judged.auroc(detector), 4)})
            print(rows[-1], flush=True)
            best = {}
            for row in sorted(rows, key=lambda row: row["auroc"]):
                best[row["data"]] = [row["latent"], row["layer"]]
            about = {"recipe": "dpa_classes", "steps": options.steps, "seed": 0, "threads": 1}
            write_record(options.result, {**about, "best": best, "rows": rows})


if __name__ == "__main__":
    main()
