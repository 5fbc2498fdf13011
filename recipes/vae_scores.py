"""Which score of a VAE finds anomalies: evidence for its default, from normal images with synthetic anomalies.

    python recipes/vae_scores.py --data-root DIR [--seconds 100]      (one thread: about 10 minutes of one core)

Sets of recipes/reduction.py at 128 and 64 pixels: magnetic tiles, chest X-rays without findings, axial slices of varied brain
templates. One fit for each set, on the normal training images but 100 (tiles: 150); all scores with a map evaluate the same
held-out images as in recipes/lsr_features.py: with one synthetic anomaly each (six kinds; 0.2, 1 and 5 % of the image) against
the same images without. No test image is read. One seed.

Writes results/vae_scores.json after each set; sets that are there are not run again.
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
from lsr_features import judged
from reduction import sets

from normalcy import Detector
from normalcy.files import read_json
from normalcy.provenance import write_record

SCORES = (
    "reconstruction",
    "reconstruction_probability",
    "gradient_elbo",
    "gradient_kl",
    "gradient_reconstruction",
    "combined",
)
RESULT = Path(__file__).parent / "results" / "vae_scores.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = read_json(options.result)["rows"] if options.result.exists() else []
    for name, train, held_out, _, settings in sets(options.data_root):
        if any(row["set"] == name for row in rows):
            continue
        words = {**settings, "latent": 100, "calibration": 0.0, "batch_size": 16, "seed": 0}
        words["steps"] = steps_in("vae", words, train, options.seconds)
        started = time.process_time()
        detector = Detector("vae", **words).fit(train)
        seconds = round(time.process_time() - started)
        normal = np.stack([detector.preprocess.apply(image)[0] for image in held_out]).clip(0, 1)
        for score in SCORES:
            found = judged(detector.with_score(score), normal, name == "brain slices")
            row = {"set": name, "score": score, "processor_seconds": seconds, "areas": found}
            rows.append({**row, "settings": words})
            print(json.dumps(row), flush=True)
        means = {
            score: {
                key: round(float(np.mean([a[key] for row in rows if row["score"] == score for a in row["areas"]])), 4)
                for key in ("pixel_auroc", "pixel_ap", "image_auroc")
            }
            for score in SCORES
        }
        about = {"recipe": "vae_scores", "seconds": options.seconds, "seed": 0, "threads": 1}
        write_record(options.result, {**about, "summary": means, "rows": rows})


if __name__ == "__main__":
    main()
