"""Number of trees and images per tree of Deep IF: evidence for its defaults, from training images of CIFAR-10 alone.

    python recipes/deep_if_trees.py --data-root DIR [--classes automobile,frog,ship]     (one thread: about 8 minutes)

For each class, the forest is fitted on features of 2,000 of its training images; 500 others are ranked against 200 training
images of each other class. Features are computed once for all. Three seeds of the forest each. No test image is read.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normalcy import open_data
from normalcy.data.named import CLASSES
from normalcy.methods.deep_if import DeepIFSettings
from normalcy.metrics import auroc
from normalcy.nets.forest import IsolationTrees
from normalcy.nets.pooled import PooledFeatures
from normalcy.provenance import write_record

TRAIN, NORMAL, OTHERS = 2000, 500, 200
FORESTS = ((100, 256), (500, 256), (100, 1024), (500, 1024))
SEEDS = 3
RESULT = Path(__file__).parent / "results" / "deep_if_trees.json"


def features(network: PooledFeatures, root: Path, name: str, count: int) -> Tensor:
    data = open_data(f"cifar10:{name}", root).select(split="train", label=0)
    images = torch.from_numpy(np.stack([data.read(i) for i in range(count)])).float() / 255
    return torch.cat([network(x) for x in images.split(125)])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--classes", default="automobile,frog,ship")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    s = DeepIFSettings()
    network = PooledFeatures(s.backbone, s.layers, (3, 32, 32), s.side, bf16=True)
    network.backbone.load_pretrained()
    normal = options.classes.split(",")
    known = {
        name: features(network, options.data_root, name, TRAIN + NORMAL if name in normal else OTHERS)
        for name in CLASSES["cifar10"]
    }
    rows: list[dict[str, Any]] = []
    for trees, per_tree in FORESTS:
        for name in normal:
            train, held_out = known[name].split([TRAIN, NORMAL])
            others = torch.cat([vectors[:OTHERS] for other, vectors in known.items() if other != name])
            labels, found = np.repeat([0, 1], [len(held_out), len(others)]), []
            for seed in range(SEEDS):
                torch.manual_seed(seed)
                forest = IsolationTrees(trees, per_tree)
                forest.learn(train)
                found.append(auroc(labels, forest(torch.cat([held_out, others])).numpy()))
            rows.append({"data": name, "trees": trees, "images_per_tree": per_tree, "auroc": float(np.mean(found))})
            print(rows[-1], flush=True)
    about = {"recipe": "deep_if_trees", "train": TRAIN, "seeds": SEEDS, "threads": 1}
    write_record(options.result, {**about, "rows": rows})


if __name__ == "__main__":
    main()
