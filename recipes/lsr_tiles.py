"""Surface defects of magnetic tiles by networks trained from scratch under one budget: LSR, autoencoders, a VAE.

    python recipes/lsr_tiles.py --data-root DIR [--minutes 25] [--rows NAMES]     (one thread: about 8 x 35 minutes of one core)

Data and split as in recipes/magnetic_tile.py (Huang et al. 2020): free tiles sorted by name, shuffled with random.Random(0), the
first 80 % train (761); the other 191 and all 392 defective ones test; all resized to 256x256. Every network trains for the same
minutes of processor time: a short run before measures its speed, from which follows its number of steps. LSR with
``preset="small"`` and eta from a grid search on held-out normal images with synthetic rectangles (section 4.3.3 of Wang et al.
2020); the others with the settings of Bergmann et al. 2019 for textures, a code of 100 numbers. Thresholds of maps: the smallest
at which no region of the held-out normal maps is larger than 0.1 % of an image. Nothing is chosen on test images. Uneven tiles
have 70 % of all marked pixels, so each type of defect has its own numbers, too, against the normal images.

Rows "images as they are" train on the tiles as they are, the others on tiles turned by 0, 90, 180 or 270 degrees and mirrored
at random, as the papers of LSR and of the autoencoders do with textures. The number of steps tells how busy the machine was.

Wanted: LSR above every other network trained from scratch in pixel AUROC and AUPRO (the paper, on MVTec AD: 0.94 against 0.82
for the autoencoder with L2).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from budget import arguments, located, steps_in, tiles, write_rows

from normalcy import Detector, metrics
from normalcy.calibrate import decide_on_validation
from normalcy.data.images import read_mask
from normalcy.data.splits import hold_out
from normalcy.results.evaluate import evaluate
from normalcy.results.folder import read_results
from normalcy.results.predict import predict

AREA = 0.001
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "lsr": ("lsr", {"preset": "small", "eta": "search"}),
    "autoencoder, l2": ("autoencoder", {"loss": "l2", "latent": 100}),
    "autoencoder, ssim": ("autoencoder", {"loss": "ssim", "latent": 100}),
    "vae": ("vae", {"latent": 100, "score": "reconstruction"}),
}
RUNS = {
    **{name: (method, {**words, "augment": ["rotate90", "flip"]}) for name, (method, words) in NETWORKS.items()},
    **{f"{name}, images as they are": run for name, run in NETWORKS.items()},
}
RESULT = Path(__file__).parent / "results" / "lsr_tiles.json"


def pro_interval(folder: Path, threshold: float, resamples: int) -> metrics.Interval:
    """Per-region overlap at a threshold, images drawn again."""
    read = read_results(folder)
    covered, regions = [], []
    for i in range(len(read)):
        values, mask = read.file("maps", i, ".npy"), read.file("masks", i, ".png")
        if values is not None and mask is not None and read.labels[i] == 1:
            marked = read_mask(mask)
            count = metrics.label_regions(marked)[1]
            if count:
                covered.append(count * metrics.pro([np.load(values)], [marked], threshold))
                regions.append(count)
    return metrics.bootstrap_interval(
        lambda c, n: float(c.sum() / n.sum()), np.array(covered), np.array(regions, float), resamples=resamples, seed=0
    )


def made_before(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of an earlier run of the same length and images."""
    if not options.result.is_file():
        return []
    known = json.loads(options.result.read_text(encoding="utf-8"))
    same = (known["minutes"], known["images"]) == (options.minutes, options.images)
    return list(known["rows"]) if same else []


def main() -> None:
    options = arguments(__doc__.splitlines()[0], RUNS, 25.0, RESULT)
    train, test, split = tiles(options.data_root, options.images)
    kept, carved = hold_out(train.cases, 0.1, minimum=1)
    train, held_out = train.subset(kept), train.subset(carved)
    names = options.rows.split(";")
    rows = [row for row in made_before(options) if row["row"] not in names]
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        for name in names:
            method, words = RUNS[name]
            words = {**words, "size": 256, "calibration": 0.0, "batch_size": 16}
            words["steps"] = steps_in(method, words, train, 60 * options.minutes)
            print(name, words, flush=True)
            started = time.process_time()
            detector = Detector(method, **words).fit(train)
            seconds = time.process_time() - started
            folder = out / name.replace(", ", "-")
            detector.save(folder / "model", overwrite=True)
            for score in ("restored", "input", "likelihood") if method == "lsr" else (None,):
                scored = detector if score is None else detector.with_score(score)
                maps = [r.map for r in scored.score(held_out) if r.map is not None]
                area = max(1, round(AREA * float(np.median([m.size for m in maps]))))
                decision = decide_on_validation(f"minimum_area:{area}", [], None, maps, None)
                place = folder / (score or "results")
                run = predict(scored, test, place, decision=decision, split=split, spec="magnetic_tile", overwrite=True)
                found = evaluate(place, resamples=options.resamples)
                threshold = float(decision.pixel_threshold or 0)
                rows.append(
                    {
                        **located(name, score, found, run, seconds, words),
                        "pro": vars_of(pro_interval(place, threshold, options.resamples)),
                        "mean_accuracy": found["image"]["at_threshold"]["mean_accuracy"],
                    }
                )
            counts = {"train": len(train), "held_out": len(held_out), "test": len(test)}
            write_rows("lsr_tiles", options, rows, **counts, smallest_area=AREA)


def vars_of(interval: metrics.Interval) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


if __name__ == "__main__":
    main()
