"""Map and image score of DPA at 64 and 128 pixels: evidence for their defaults, from normal images with synthetic anomalies.

    python recipes/dpa_everyday.py --data-root DIR [--seconds 25]      (one thread: about 14 minutes of one core)

Sets of recipes/reduction.py: magnetic tiles and chest X-rays without findings, and axial slices of varied brain templates. DPA
trains on the normal training images but 100 (tiles: 150) for --seconds of processor time, with feature layer 1, 2 or 3 at full
resolution. The held-out images, as they are and with one synthetic anomaly each (six kinds; 0.2, 1, 5 and 20 % of the image),
give an image AUROC for each `top`, and a pixel AUROC and pixel AP for each `smoothing`. No test image is read. One seed.

Writes results/dpa_everyday.json after each fit; fits that are there are not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from budget import steps_in
from reduction import sets, with_anomaly

from normalcy import Detector
from normalcy.data.synthetic import SYNTHETIC
from normalcy.files import read_json
from normalcy.metrics import auroc, average_precision
from normalcy.nets.filters import gaussian_smooth, mean_of_highest
from normalcy.provenance import write_record

RESULT = Path(__file__).parent / "results" / "dpa_everyday.json"
LAYERS = {"1": (0, 1), "2": (0, 1, 2), "3": (0, 1, 3)}
AREAS = (0.002, 0.01, 0.05, 0.2)
TOPS = (1.0, 0.3, 0.1, 0.03, 0.01)
SMOOTHINGS = (0.0, 1 / 64, 1 / 32, 1 / 16)
"""Standard deviation of the Gaussian, as a fraction of the side of the image."""


def judged(detector: Detector, normal: np.ndarray, brain: bool) -> list[dict[str, Any]]:
    """Metrics by area of images (N, 1, H, W) as the network sees them."""
    method = detector.method
    assert method is not None
    rows, clean = [], maps(method, normal)
    kinds = list(SYNTHETIC)
    for area in AREAS:
        rng = np.random.default_rng(1)
        made = [with_anomaly(x, kinds[i % len(kinds)], area, rng, brain) for i, x in enumerate(normal)]
        changed = maps(method, np.stack([image for image, _ in made]))
        masks = np.stack([mask for _, mask in made])
        labels = np.repeat([0, 1], len(normal))
        image = {}
        for top in TOPS:
            scores = [mean_of_highest(m, top).numpy() for m in (clean, changed)]
            image[str(top)] = round(auroc(labels, np.concatenate(scores)), 4)
        pixel = {}
        for smoothing in SMOOTHINGS:
            found = gaussian_smooth(changed, smoothing * changed.shape[-1]).numpy().ravel()
            truth = masks.ravel().astype(int)
            pixel[f"{smoothing:.4f}"] = {
                "auroc": round(auroc(truth, found), 4), "ap": round(average_precision(truth, found), 4)
            }  # fmt: skip
        rows.append({"area": area, "image_auroc_of_top": image, "pixel_of_smoothing": pixel})
    return rows


def maps(method: Any, images: np.ndarray) -> torch.Tensor:
    """Maps (N, H, W) without smoothing."""
    return torch.cat([method.score(x).map for x in torch.from_numpy(images).split(32)]).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=25.0)
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = read_json(options.result)["rows"] if options.result.exists() else []
    for name, train, held_out, _, _ in sets(options.data_root):
        for side in (64, 128) if name != "brain slices" else (64,):
            for layer, layers in LAYERS.items():
                if any((row["set"], row["side"], row["layer"]) == (name, side, layer) for row in rows):
                    continue
                words: dict[str, Any] = {
                    "size": side, "layers": layers, "grow": False, "batch_size": 32, "calibration": 0.0, "smoothing": 0.0
                }  # fmt: skip
                words["steps"] = steps_in("dpa", words, train, options.seconds)
                started = time.process_time()
                detector = Detector("dpa", **words).fit(train)
                seconds = time.process_time() - started
                normal = np.stack([detector.preprocess.apply(image)[0] for image in held_out]).clip(0, 1)
                found = judged(detector, normal, name == "brain slices")
                row = {
                    "set": name,
                    "side": side,
                    "layer": layer,
                    "processor_seconds": round(seconds),
                    "settings": words,
                }
                rows.append({**row, "areas": found})
                print(json.dumps(rows[-1]), flush=True)
                write(options, rows)


def write(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """The rows, and the mean and the smallest over sets and areas for each choice."""
    summary: dict[str, Any] = {}
    for layer in LAYERS:
        areas = [area for row in rows if row["layer"] == layer for area in row["areas"]]
        if areas:
            tops = {str(top): [area["image_auroc_of_top"][str(top)] for area in areas] for top in TOPS}
            smoothings = {f"{s:.4f}": [area["pixel_of_smoothing"][f"{s:.4f}"] for area in areas] for s in SMOOTHINGS}
            summary[f"layer {layer}"] = {
                "image AUROC": {top: [round(float(np.mean(v)), 4), min(v)] for top, v in tops.items()},
                "pixel AUROC": {s: round(float(np.mean([x["auroc"] for x in v])), 4) for s, v in smoothings.items()},
                "pixel AP": {s: round(float(np.mean([x["ap"] for x in v])), 4) for s, v in smoothings.items()},
            }
    about = {"recipe": "dpa_everyday", "seconds": options.seconds, "seed": 0, "threads": 1}
    write_record(options.result, {**about, "summary": summary, "rows": rows})


if __name__ == "__main__":
    main()
