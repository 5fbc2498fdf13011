"""DDR-ID: how far finetuning draws R_C to its template, and what it costs, by epochs, sigma and form of the encoder's loss.

    python recipes/ddr_id_collapse.py --data-root DIR [--rows 1]      (one thread, 10 minutes; a minute for the first row)

Digit 5 is normal, networks of a quarter of the width of table 1 (Lin et al. 2020), batches of 64, rate 3e-4, one seed, 3,000
test images at random. Prints for each row the AUROC of ``latent`` and ``image`` in percent and the means of AS_l and AS_r over
held-out normal images: a small AS_r says that R_C shows its template whatever the image. An observation on test images, by
which no default may be chosen. The method's page has the numbers found.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normalcy import Detector, open_data
from normalcy.methods.ddr_id import DDRID
from normalcy.metrics import auroc

ROWS: tuple[dict[str, Any], ...] = (
    {"epochs": 6},
    {"epochs": 24},
    {"epochs": 24, "sigma": 0.5},
    {"epochs": 18, "non_saturating": True},
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=len(ROWS), help="only the first so many")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = open_data("mnist:5", given.data_root)
    test = data.select(split="test")
    drawn = np.random.RandomState(0).permutation(len(test))  # the images of the numbers on the page
    test = test.subset(drawn[:3000])
    words = {"width": 16, "batch_size": 64, "lr": 3e-4, "preprocess": ["gcn"], "device": "cpu", "seed": 0}
    for row in ROWS[: given.rows]:
        detector = Detector("ddr_id", **words, calibration=0.1, **row).fit(data.select(split="train"))
        found = {
            name: 100 * auroc(test.labels, detector.with_score(name).score(test).scores) for name in ("latent", "image")
        }
        assert isinstance(detector.method, DDRID)
        latent, image = detector.method.validation_means.tolist()
        print(
            row,
            {name: round(value, 1) for name, value in found.items()},
            f"AS_l {latent:.2f}, AS_r {image:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
