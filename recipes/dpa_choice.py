"""How many anomalies, of how many kinds, are needed to choose settings: figure 5 of DPA, a smaller version on CIFAR-10.

    python recipes/dpa_choice.py --data-root DIR [--normal automobile]     (about 25 minutes of one core)

Shvetsova et al. 2021, section IV-E: settings of DPA are chosen with 1 to 9 kinds of anomalies and 10 to 200 examples, seven times
each, by the mean AUROC over 3 folds; the test AUROC of the chosen setting is compared with the best and the worst of all
settings. Their result: 20 anomalies of one kind come within 2 % of the best.

Here, one class of CIFAR-10 is normal, and ``--images`` of its training images are divided into three folds; the anomalies are
training images of the other nine classes, the kinds. Every setting of a grid (bottleneck x feature layer) is fitted on each pair
of folds, and on all of them for the test. The scores of a fitted model serve every number and draw of anomalies, so each setting
needs 4 fits. ``normalcy select`` makes the same choice for one set of anomalies, with nine pairs of folds instead of the three
here and in the paper.

Differences: a class instead of a finding or a slide; a smaller grid and shorter training. Test images choose nothing: they only
evaluate the choice. (CIFAR-10 may be read from JPEG files.)
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from normalcy import Detector, open_data
from normalcy.data.dataset import DataSet
from normalcy.data.named import CLASSES
from normalcy.data.splits import folds
from normalcy.metrics import auroc
from normalcy.provenance import write_record

Scores = npt.NDArray[np.float64]
LATENTS, LAYERS = (4, 8, 32), (0, 1, 2, 3)
KINDS, EXAMPLES, DRAWS, FOLDS = (1, 2, 5, 9), (5, 10, 20, 50, 100), 7, 3
MOST = 100
"""Training images of each other class that are scored, as anomalies to draw from."""
RESULT = Path(__file__).parent / "results" / "dpa_choice.json"


def chosen_by(anomalies: list[list[Scores]], normal: list[list[Scores]], kinds: int, examples: int, seed: int) -> int:
    """The number of the best setting, by ``examples`` anomalies of ``kinds`` kinds.

    ``anomalies[s][k]`` are the scores (kinds, MOST) of setting s, fitted without part k; ``normal[s][k]`` those of part k. Part k
    of the normal images is ranked against a third of the anomalies, the k-th.
    """
    rng = np.random.default_rng(seed)
    of_kinds = rng.permutation(len(anomalies[0][0]))[:kinds]
    drawn = rng.permutation([(kind, i) for kind in of_kinds for i in range(anomalies[0][0].shape[1])])
    places = np.array([row for kind in of_kinds for row in drawn[drawn[:, 0] == kind][: -(-examples // kinds)]])
    places = rng.permutation(places)[:examples]
    quality = [
        np.mean([ranked(parts[k], others[k][tuple(places[k::FOLDS].T)]) for k in range(FOLDS)])
        for others, parts in zip(anomalies, normal)
    ]
    return int(np.argmax(quality))


def ranked(normal: Scores, anomalous: Scores) -> float:
    return auroc(np.r_[np.zeros(len(normal)), np.ones(len(anomalous))], np.r_[normal, anomalous])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--normal", default="automobile")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--images", type=int, default=1500, help="normal training images")
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--settings", type=int, default=None, help="number of settings of the grid, for a trial run")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    data = open_data(f"cifar10:{options.normal}", options.data_root)
    rng = np.random.default_rng(0)
    train = some(data.select(split="train"), options.images, rng)
    test = some(data.select(split="test"), options.test_images, rng)
    others = [name for name in CLASSES["cifar10"] if name != options.normal]
    kinds = [
        some(open_data(f"cifar10:{name}", options.data_root).select(split="train", label=0), MOST, rng)
        for name in others
    ]
    parts = folds(train.cases, FOLDS, 0)
    grid = [{"latent": latent, "layers": (layer,)} for layer, latent in itertools.product(LAYERS, LATENTS)]
    grid = grid[: options.settings]
    anomalies: list[list[Scores]] = []
    normal: list[list[Scores]] = []
    quality: list[float] = []
    for words in grid:
        anomalies.append([])
        normal.append([])
        for k in (*range(FOLDS), None):
            kept = np.concatenate([part for j, part in enumerate(parts) if j != k])
            whole: dict[str, Any] = {**words, "steps": options.steps, "batch_size": 64, "calibration": 0.0}
            detector = Detector("dpa", **whole).fit(train.subset(np.sort(kept)))
            if k is None:
                quality.append(auroc(test.labels, detector.score(test).scores))
                continue
            anomalies[-1].append(np.stack([detector.score(kind).scores for kind in kinds]))
            normal[-1].append(detector.score(train.subset(parts[k])).scores)
        print(words, f"test AUROC {quality[-1]:.3f}", flush=True)
    rows = []
    for count, examples in itertools.product(KINDS, EXAMPLES):
        reached = [quality[chosen_by(anomalies, normal, count, examples, draw)] for draw in range(DRAWS)]
        rows.append(
            {
                "kinds": count,
                "examples": examples,
                "auroc": float(np.mean(reached)),
                "deviation": float(np.std(reached, ddof=1)),
                "within_0.02_of_the_best": float(np.mean([value >= max(quality) - 0.02 for value in reached])),
            }
        )
        print(f"{count} kinds, {examples:3} anomalies: AUROC {rows[-1]['auroc']:.3f} +- {rows[-1]['deviation']:.3f}")
    print(f"of all settings: best {max(quality):.3f}, worst {min(quality):.3f}")
    write_record(
        options.result,
        {
            "recipe": "dpa_choice",
            "data": data.name,
            "normal_images": len(train),
            "test_images": len(test),
            "steps": options.steps,
            "draws": DRAWS,
            "seed": 0,
            "threads": torch.get_num_threads(),
            "best": max(quality),
            "worst": min(quality),
            "settings": [{**words, "auroc": value} for words, value in zip(grid, quality)],
            "rows": rows,
        },
    )


def some(data: DataSet, count: int, rng: np.random.Generator) -> DataSet:
    return data.subset(np.sort(rng.permutation(len(data))[:count]))


if __name__ == "__main__":
    main()
