"""RDA on a contaminated training set: foreign digits detected by a fit to all images, as a function of lambda.

    python recipes/rda_contamination.py --data-root DIR      (DIR holds mnist.npz; about 70 minutes on one core)

Zhou, Paffenroth 2017, section 4.3: the 4s of MNIST's training set with 5 % foreign digits, l2,1 penalty over images; there, RDA
reaches an F1 of 0.64 with its best lambda, an isolation forest 0.37. Here, 1,000 training images for each fraction of foreign
digits from 1 to 10 % and each seed, which determines both and the initial weights; the fit uses all of them, and all are scored.
For each lambda: AUROC and average precision of the score "error" (the norm of X - D(E(L)) of each image) with 95 % intervals,
AUROC of "noise" (mean |S|, with ties at 0), F1 of the paper's rule (an anomaly has S not 0), and the maximum F1 over all
thresholds on "error", which uses the labels as the paper's choice of lambda does. The published F1 is not that maximum and cannot
be compared with it: an isolation forest has 0.65 here by the maximum and 0.37 there. lambda = 1000 leaves S at 0: a plain
autoencoder of the same training length. An isolation forest is the baseline.

Finished cells are written to files and not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from normalcy import Detector, metrics, open_data
from normalcy.methods.rda import RDA
from normalcy.provenance import write_record

DIGIT = "4"
SHARES = (0.01, 0.05, 0.1)
WEIGHTS = (0.2, 0.3, 0.4, 0.55, 0.7, 1000.0)
PUBLISHED = {"share": 0.05, "rda_f1": 0.64, "isolation_forest_f1": 0.37}
RESULT = Path(__file__).parent / "results" / "rda_contamination.json"


def contaminated(data_root: Path | None, images: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training images (N, 28, 28), a fraction ``share`` of which are other digits, shuffled, and labels (N,)."""
    random = np.random.default_rng(seed)
    foreign = round(share * images)
    fours = open_data(f"mnist:{DIGIT}", data_root).select(split="train")
    others = [open_data(f"mnist:{digit}", data_root).select(split="train") for digit in "0123456789" if digit != DIGIT]
    chosen = [(fours, int(i)) for i in random.choice(len(fours), images - foreign, replace=False)]
    for kind in random.integers(len(others), size=foreign):
        chosen.append((others[kind], int(random.integers(len(others[kind])))))
    labels = np.repeat([0, 1], [images - foreign, foreign])
    order = random.permutation(images)
    return np.stack([data.read(i)[0] for data, i in chosen])[order], labels[order]


def measured(labels: np.ndarray, scores: np.ndarray, resamples: int) -> dict[str, Any]:
    auroc = metrics.delong_interval(labels, scores)
    ap = metrics.bootstrap_interval(metrics.average_precision, labels, scores, labels=labels, resamples=resamples)
    return {
        "auroc": {"value": auroc.value, "low": auroc.low, "high": auroc.high},
        "average_precision": {"value": ap.value, "low": ap.low, "high": ap.high},
        "f1_max": metrics.f1_max(labels, scores).value,
    }


def rda(x: np.ndarray, labels: np.ndarray, weight: float, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    words: dict[str, Any] = {"penalty": "images", "weight": weight, "calibration": 0, "seed": seed}
    words |= {"epochs": options.epochs, "batch_size": 32}
    detector = Detector("rda", **words).fit(x)
    assert isinstance(detector.method, RDA)
    error = detector.with_score("error").score(x, batch_size=256).scores
    noise = detector.with_score("noise").score(x, batch_size=256).scores
    held, moved = detector.method.residuals.T
    return {
        **measured(labels, error, options.resamples),
        "noise_auroc": metrics.auroc(labels, noise),
        "f1_of_s": metrics.at_threshold(labels, noise > 0).f1,
        "with_sparse_part": float((noise > 0).mean()),
        "constraint": float(held[held.isfinite()][-1]),
        "change": moved[moved.isfinite()].tolist()[-1:],
        "rounds": int(held.isfinite().sum()),
        "fit_seconds": detector.facts["fit"]["seconds"],
    }


def isolation_forest(x: np.ndarray, labels: np.ndarray, seed: int, resamples: int) -> dict[str, Any]:
    detector = Detector("isolation_forest", calibration=0, seed=seed).fit(x)
    return {
        **measured(labels, detector.score(x, batch_size=256).scores, resamples),
        "fit_seconds": detector.facts["fit"]["seconds"],
    }


def summary(cells: dict[str, Any]) -> list[dict[str, Any]]:
    """Means over seeds, with their standard deviation if there are several."""
    groups: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for cell in cells.values():
        groups.setdefault((cell["share"], cell["row"]), []).append(cell)
    rows = []
    for (share, row), group in sorted(groups.items()):
        aurocs, aps = ([c[key]["value"] for c in group] for key in ("auroc", "average_precision"))
        rows.append(
            {
                "share": share,
                "row": row,
                "seeds": len(group),
                "auroc": statistics.mean(aurocs),
                "auroc_deviation": statistics.stdev(aurocs) if len(group) > 1 else None,
                "average_precision": statistics.mean(aps),
                "f1_max": statistics.mean(c["f1_max"] for c in group),
                "f1_of_s": statistics.mean(c["f1_of_s"] for c in group) if "f1_of_s" in group[0] else None,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--shares", default=",".join(map(str, SHARES)))
    parser.add_argument("--weights", default=",".join(map(str, WEIGHTS)), help="values of lambda")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=40, help="of RDA, all rounds together")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    facts = {"images": options.images, "epochs": options.epochs}
    before = json.loads(options.result.read_text()) if options.result.exists() else {"cells": {}, **facts}
    if any(before[key] != value for key, value in facts.items()):
        parser.error(f"{options.result} has other --images or --epochs: give another --result.")
    cells: dict[str, Any] = before["cells"]
    for seed in range(options.seeds):
        for share in map(float, options.shares.split(",")):
            x, labels = contaminated(options.data_root, options.images, share, seed)
            for row in ("isolation_forest", *(f"rda, lambda {float(w):g}" for w in options.weights.split(","))):
                name = f"{row}, {share:g} foreign, seed {seed}"
                if name in cells:
                    continue
                if row == "isolation_forest":
                    found = isolation_forest(x, labels, seed, options.resamples)
                else:
                    found = rda(x, labels, float(row.rpartition(" ")[2]), seed, options)
                cells[name] = {"row": row, "share": share, "seed": seed, **found}
                print(
                    f"{name}: AUROC {found['auroc']['value']:.3f}, AP {found['average_precision']['value']:.3f}",
                    flush=True,
                )
                record = {"recipe": "rda_contamination", "digit": DIGIT, **facts, "published": PUBLISHED}
                write_record(options.result, {**record, "summary": summary(cells), "cells": cells})


if __name__ == "__main__":
    main()
