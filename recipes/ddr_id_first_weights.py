"""DDR-ID: effect of the first weights, which the paper leaves open, on the scores and on the choice of Algorithm 2.

    python recipes/ddr_id_first_weights.py --data-root DIR [--digit 5] [--epochs 12]      (one thread, about 5 minutes)

Networks with a quarter of the width of table 1 (Lin et al. 2020), batches of 64, learning rate 3e-4, one seed; digits resized to
32 pixels. Training images of MNIST only: all of a digit except 900 are for training. These 900 are compared with 2,100 training
images of other digits, and with synthetic anomalies made of themselves (six kinds, 5 % of the image), which need no other digit:
a criterion for the first weights that uses normal images alone. Recorded: AUROC of `latent` and `image` in percent, the means of
AS_l and AS_r over the held-out normal images, of which Algorithm 2 takes the smaller one, and the standard deviation of a
coordinate of the latent code.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from ddr_id_finetuning import WORDS, measured, rounded, seen

from normalcy import Detector, open_data
from normalcy.data.synthetic import SYNTHETIC, make_set
from normalcy.methods.ddr_id import DDRID
from normalcy.nets.reconstruction import FirstWeights
from normalcy.provenance import write_record

RESULT = Path(__file__).parent / "results" / "ddr_id_first_weights.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--digit", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = [open_data(f"mnist:{digit}", options.data_root).select(split="train") for digit in range(10)]
    own = known[options.digit]
    train = own.subset(range(len(own) - 900))
    held = [own.read(i) for i in range(len(own) - 900, len(own))]
    others = [(d, i) for d, digits in enumerate(known) if d != options.digit for i in range(len(digits))]
    drawn = [others[k] for k in np.random.default_rng(0).permutation(len(others))[:2100]]
    rows: list[dict[str, Any]] = []
    for first_weights in get_args(FirstWeights):
        words = {**WORDS, "first_weights": first_weights, "epochs": options.epochs}
        detector = Detector("ddr_id", **words).fit(train)
        assert isinstance(detector.method, DDRID)
        normal = seen(detector, held)
        foreign = seen(detector, [known[d].read(i) for d, i in drawn])
        made, _, _ = make_set(normal.numpy().clip(0, 1), list(SYNTHETIC), np.random.default_rng(1), area=0.05)
        labels = np.repeat([0, 1], [len(normal), len(foreign)])
        found = measured(detector.method, torch.cat([normal, foreign]), labels)
        synthetic = measured(
            detector.method, torch.cat([normal, torch.from_numpy(made)]), np.repeat([0, 1], [len(normal), len(made)])
        )
        row = {
            "first_weights": first_weights,
            **found,
            "auroc_latent_synthetic": synthetic["auroc_latent"],
            "auroc_image_synthetic": synthetic["auroc_image"],
            "algorithm_2": "latent" if found["as_l"] < found["as_r"] else "image",
        }
        rows.append(row)
        print(
            first_weights,
            rounded({k: v for k, v in row.items() if isinstance(v, float)}),
            row["algorithm_2"],
            flush=True,
        )
    words = {**WORDS, "epochs": options.epochs}
    write_record(
        options.result, {"recipe": "ddr_id_first_weights", "digit": options.digit, "words": words, "rows": rows}
    )


if __name__ == "__main__":
    main()
