"""DDR-ID: effect of the first weights, which the paper leaves open, and of the length, on the scores and their choice.

    python recipes/ddr_id_first_weights.py --data-root DIR [--digit 5] [--epochs 12]      (one thread, about 5 minutes)
    python recipes/ddr_id_first_weights.py --data-root DIR --data cifar10:frog
    python recipes/ddr_id_first_weights.py --data-root DIR --first-weights he --width 32 --batch-size 256 --lr 1e-4 --epochs 40

Networks with a quarter of the width of table 1 (Lin et al. 2020), batches of 64, learning rate 3e-4, one seed; digits resized to
32 pixels. Training images only: all of a class except 900 are for training. These 900 are compared with 2,100 training images of
other classes, and with synthetic anomalies made of themselves (six kinds, 5 % of the image), which need no other class: a
criterion for the first weights that uses normal images alone. Recorded: AUROC of `latent` and `image` in percent, the means of
AS_l and AS_r over the held-out normal images, of which Algorithm 2 takes the smaller one, and the standard deviation of a
coordinate of the latent code.

--width, --batch-size and --lr change these settings; such rows name them. The rows of ddr_id/table-2-short got their length so.

The result file holds the rows of several data sets, lengths and settings; those that are there are not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from ddr_id_finetuning import WORDS, measured, rounded, seen

from normalcy import Detector, open_data
from normalcy.data.named import CLASSES
from normalcy.data.synthetic import SYNTHETIC, make_set
from normalcy.methods.ddr_id import DDRID
from normalcy.nets.reconstruction import FirstWeights
from normalcy.provenance import write_record

RESULT = Path(__file__).parent / "results" / "ddr_id_first_weights.json"


def rows_there(file: Path) -> list[dict[str, Any]]:
    """Rows of the result file; those of its first form, of a single digit, get the data set and the epochs."""
    if not file.exists():
        return []
    found = json.loads(file.read_text("utf-8"))
    words = found["words"]
    above = {"data": f"mnist:{found['digit']}", "epochs": words["epochs"]} if "digit" in found else {}
    same = {name: value for name, value in words.items() if name != "epochs"} == WORDS
    return [{**above, **row} for row in found["rows"]] if same else []


def measure(
    spec: str, root: Path, epochs: int, wanted: Sequence[str], changed: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """A row for each of the first weights. ``spec``: the normal class, as "mnist:5"; ``changed``: settings beside WORDS."""
    name, _, normal = spec.partition(":")
    known = {c: open_data(f"{name}:{c}", root).select(split="train") for c in CLASSES[name]}
    own = known[normal]
    train = own.subset(range(len(own) - 900))
    held = [own.read(i) for i in range(len(own) - 900, len(own))]
    others = [(c, i) for c, images in known.items() if c != normal for i in range(len(images))]
    drawn = [others[k] for k in np.random.default_rng(0).permutation(len(others))[:2100]]
    for first_weights in wanted:
        words = {**WORDS, **changed, "first_weights": first_weights, "epochs": epochs}
        detector = Detector("ddr_id", **words).fit(train)
        assert isinstance(detector.method, DDRID)
        images = seen(detector, held)
        foreign = seen(detector, [known[c].read(i) for c, i in drawn])
        made, _, _ = make_set(images.numpy().clip(0, 1), list(SYNTHETIC), np.random.default_rng(1), area=0.05)
        found = measured(detector.method, torch.cat([images, foreign]), np.repeat([0, 1], [len(images), len(foreign)]))
        synthetic = measured(
            detector.method, torch.cat([images, torch.from_numpy(made)]), np.repeat([0, 1], [len(images), len(made)])
        )
        yield {
            "data": spec,
            "epochs": epochs,
            **changed,
            "first_weights": first_weights,
            **found,
            "auroc_latent_synthetic": synthetic["auroc_latent"],
            "auroc_image_synthetic": synthetic["auroc_image"],
            "algorithm_2": "latent" if found["as_l"] < found["as_r"] else "image",
        }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--digit", type=int, default=5)
    parser.add_argument("--data", help="a class of a named data set in the place of a digit: cifar10:frog")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--first-weights", default=",".join(get_args(FirstWeights)), help="comma-separated")
    parser.add_argument("--width", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    spec = options.data or f"mnist:{options.digit}"
    name, _, normal = spec.partition(":")
    if normal not in CLASSES.get(name, ()):
        parser.error(f"--data expects a class of a named data set, as cifar10:frog, got {spec}")
    chosen = {key: getattr(options, key) for key in ("width", "batch_size", "lr")}
    changed = {key: value for key, value in chosen.items() if value is not None}
    rows = rows_there(options.result)
    asked = {"data": spec, "epochs": options.epochs, **changed}
    own = ("data", "epochs", *chosen)
    done = {row["first_weights"] for row in rows if {key: row[key] for key in own if key in row} == asked}
    wanted = [name for name in options.first_weights.split(",") if name not in done]
    for row in measure(spec, options.data_root, options.epochs, wanted, changed) if wanted else ():
        rows.append(row)
        write_record(options.result, {"recipe": "ddr_id_first_weights", "words": WORDS, "rows": rows})
        numbers = rounded({key: value for key, value in row.items() if isinstance(value, float)})
        print(spec, options.epochs, row["first_weights"], numbers, row["algorithm_2"], flush=True)


if __name__ == "__main__":
    main()
