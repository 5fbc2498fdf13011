"""Surface defects of magnetic tiles by networks trained for the same time: LSR, autoencoders, a VAE.

    python recipes/lsr_tiles.py --data-root DIR [--minutes 25] [--size 128] [--seeds 0,1,2] [--rows NAMES]   (one thread)

Data and split as in recipes/magnetic_tile.py (Huang et al. 2020): defect-free tiles sorted by name, shuffled with
random.Random(0), the first 80 % for training (761); the other 191 and all 392 defective ones for testing; resized to squares.
Every network trains for at least the processor time of LSR: a short run measures its speed, which determines the number of steps;
as features and the choice of the map take LSR time beside its steps, the others have a quarter more of them. LSR with
``preset="features"``, whose codes represent features of a network that was pretrained on ImageNet; and with ``preset="small"``,
whose codes represent pixels, once with the bidirectional and once with the paper's autoregressive prior, whose eta comes from a
search on held-out normal images with synthetic rectangles (section 4.3.3 of Wang et al. 2020). The other networks know no other
images. Score "auto" is the map that finds synthetic anomalies in held-out normal images best. Autoencoders and VAE have the
settings of Bergmann et al. 2019 for textures, latent dimension 100. Thresholds of maps: the smallest at which no region of the
held-out normal maps is larger than 0.1 % of an image. Nothing is chosen on test images. Uneven tiles have 70 % of all marked
pixels, so results are also given for each type of defect against the normal images.

Rows "images as they are" train without augmentation, the others with rotations by multiples of 90 degrees and flips, as the
papers of LSR and of the autoencoders do with textures. The number of steps indicates the load of the machine.

Wanted: the default map of LSR above the best VAE and autoencoder of equal training time in AUPRO by 0.04, not below in pixel
AUROC; image AUROC above 0.65. (The paper, on MVTec AD: pixel AUROC 0.94 against 0.82 for the autoencoder with L2; an independent
replication: 0.74.)
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
from normalcy.results.predict import score_into
from normalcy.results.schema import to_json

AREA = 0.001
LONGER = 1.25
"""Training time of the other networks, as a multiple of that of LSR's steps."""
HELD_OUT = 0.1
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "lsr": ("lsr", {"preset": "features"}),
    "lsr, pixels": ("lsr", {"preset": "small"}),
    "lsr, pixels, causal prior": ("lsr", {"preset": "small", "prior": "causal", "eta": "search"}),
    "autoencoder, l2": ("autoencoder", {"loss": "l2", "latent": 100}),
    "autoencoder, ssim": ("autoencoder", {"loss": "ssim", "latent": 100}),
    "vae": ("vae", {"latent": 100}),
}
SCORES = {"lsr": ("auto", "input", "residual", "surprise", "fused"), "vae": ("reconstruction", "combined")}
RUNS = {
    **{name: (method, {**words, "augment": ["rotate90", "flip"]}) for name, (method, words) in NETWORKS.items()},
    **{f"{name}, images as they are": run for name, run in NETWORKS.items()},
}
RESULT = Path(__file__).parent / "results" / "lsr_tiles.json"


def pro_interval(folder: Path, threshold: float, resamples: int) -> metrics.Interval:
    """Per-region overlap at a threshold, with a bootstrap interval over images."""
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
    """Rows of an earlier run with the same training time and images."""
    if not options.result.is_file():
        return []
    known = json.loads(options.result.read_text(encoding="utf-8"))
    same = (known["minutes"], known["images"]) == (options.minutes, options.images) and "size" in known["rows"][0]
    return list(known["rows"]) if same else []


def main() -> None:
    options = arguments(__doc__.splitlines()[0], RUNS, 25.0, RESULT, sizes=True)
    train, test, split = tiles(options.data_root, options.images)
    wanted = [(name, seed) for seed in map(int, options.seeds.split(",")) for name in options.rows.split(";")]
    rows = made_before(options)
    done = {(row["row"], row["seed"], row["size"]) for row in rows}
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        for name, seed in wanted:
            if (name, seed, options.size) in done:
                continue
            method, words = RUNS[name]
            words = {**words, "size": options.size, "calibration": HELD_OUT, "batch_size": 16, "seed": seed}
            held_out = train.subset(hold_out(train.cases, HELD_OUT, seed=seed)[1])  # as the detector does
            words["steps"] = steps_in(method, words, train, 60 * options.minutes * (1.0 if method == "lsr" else LONGER))
            print(name, words, flush=True)
            started = time.process_time()
            detector = Detector(method, **words).fit(train)
            seconds = time.process_time() - started
            folder = out / f"{name.replace(', ', '-').replace(' ', '-')}-{options.size}-{seed}"
            detector.save(folder / "model", overwrite=True)
            for score in SCORES.get(method, (None,)):
                scored = detector if score is None else detector.with_score(score)
                maps = [r.map for r in scored.score(held_out) if r.map is not None]
                area = max(1, round(AREA * float(np.median([m.size for m in maps]))))
                decision = decide_on_validation(f"minimum_area:{area}", [], None, maps, None)
                place = folder / (score or "results")
                run = score_into(
                    scored, test, place, decision=decision, split=split, spec="magnetic_tile", overwrite=True
                )
                found = to_json(evaluate(place, resamples=options.resamples))
                threshold = float(decision.pixel_threshold or 0)
                rows.append(
                    {
                        **located(name, score, found, to_json(run), seconds, words),
                        "seed": seed,
                        "size": options.size,
                        "pro": vars_of(pro_interval(place, threshold, options.resamples)),
                        "mean_accuracy": found["image"]["at_threshold"]["mean_accuracy"],
                    }
                )
            counts = {"train": len(train) - len(held_out), "held_out": len(held_out), "test": len(test)}
            write_rows("lsr_tiles", options, rows, **counts, smallest_area=AREA)


def vars_of(interval: metrics.Interval) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


if __name__ == "__main__":
    main()
