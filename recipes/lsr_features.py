"""What the codes of LSR represent, pixels or features, of which layers and how finely: evidence from normal images alone.

    python recipes/lsr_features.py --data-root DIR [--seconds 120]      (one thread: about 35 minutes of one core)

Sets of recipes/reduction.py at 128 and 64 pixels: magnetic tiles, chest X-rays without findings, axial slices of varied brain
templates. Each variant trains on the normal training images but 100 (tiles: 150) for the same processor time. The held-out
images with one synthetic anomaly each (six kinds; 0.2, 1 and 5 % of the image) give a pixel AUROC and a pixel AP of the default
map (score "auto"), and an image AUROC against the same images without. No test image is read. One seed.

Writes results/lsr_features.json after each fit; fits that are there are not run again.
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
from reduction import AREAS, sets, with_anomaly

from normalcy import Detector
from normalcy.data.synthetic import SYNTHETIC
from normalcy.files import read_json
from normalcy.methods.lsr import MAPS
from normalcy.metrics import auroc, average_precision
from normalcy.provenance import write_record

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "pixels, 4": ("lsr", {"preset": "small"}),
    "features 1 to 3, 4": ("lsr", {"preset": "features", "halvings": 2, "layers": (1, 2, 3)}),
    "features 2 and 3, 8": ("lsr", {"preset": "features", "halvings": 3, "layers": (2, 3)}),
    "vae": ("vae", {"latent": 100}),
}
"""The number is the side of a code in pixels; ``vae`` for comparison."""
RESULT = Path(__file__).parent / "results" / "lsr_features.json"


def judged(detector: Detector, normal: np.ndarray, brain: bool) -> list[dict[str, float]]:
    """Metrics by area of images (N, 1, H, W) as the network sees them."""
    method = detector.method
    assert method is not None
    kinds, rows = list(SYNTHETIC), []

    def scored(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = [method.score(x) for x in torch.from_numpy(images).split(16)]
        maps = [one.map.numpy() for one in found if one.map is not None]
        return np.concatenate([one.image.numpy() for one in found]), np.concatenate(maps)

    clean, _ = scored(normal)
    for area in AREAS:
        rng = np.random.default_rng(1)
        made = [with_anomaly(x, kinds[i % len(kinds)], area, rng, brain) for i, x in enumerate(normal)]
        scores, maps = scored(np.stack([image for image, _ in made]))
        truth = np.stack([mask for _, mask in made]).ravel().astype(int)
        rows.append(
            {
                "area": area,
                "pixel_auroc": round(auroc(truth, maps.ravel()), 4),
                "pixel_ap": round(average_precision(truth, maps.ravel()), 4),
                "image_auroc": round(auroc(np.repeat([0, 1], len(clean)), np.concatenate([clean, scores])), 4),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = read_json(options.result)["rows"] if options.result.exists() else []
    for name, train, held_out, _, settings in sets(options.data_root):
        for variant, (method, own) in VARIANTS.items():
            if any((row["set"], row["variant"]) == (name, variant) for row in rows):
                continue
            words = {**settings, **own, "calibration": 0.1, "batch_size": 16, "seed": 0}
            words["steps"] = steps_in(method, words, train, options.seconds)
            started = time.process_time()
            detector = Detector(method, **words).fit(train)
            seconds = time.process_time() - started
            normal = np.stack([detector.preprocess.apply(image)[0] for image in held_out]).clip(0, 1)
            started = time.process_time()
            found = judged(detector, normal, name == "brain slices")
            row = {
                "set": name,
                "variant": variant,
                "map": MAPS[int(detector.method.chosen)] if method == "lsr" else "reconstruction",  # type: ignore[union-attr]
                "processor_seconds": round(seconds),
                "images_per_second": round(len(normal) * (1 + len(AREAS)) / (time.process_time() - started), 1),
                "areas": found,
            }
            rows.append({**row, "settings": words})
            print(json.dumps(row), flush=True)
            about = {"recipe": "lsr_features", "seconds": options.seconds, "seed": 0, "threads": 1}
            write_record(options.result, {**about, "summary": summary(rows), "rows": rows})


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over the areas and the sets that all variants have."""
    common = set.intersection(*({row["set"] for row in rows if row["variant"] == name} for name in VARIANTS))
    means = {}
    for name in VARIANTS:
        areas = [area for row in rows if row["variant"] == name and row["set"] in common for area in row["areas"]]
        keys = ("pixel_auroc", "pixel_ap", "image_auroc")
        means[name] = {key: round(float(np.mean([area[key] for area in areas])), 4) for key in keys} if areas else {}
    return means


if __name__ == "__main__":
    main()
