"""Training images/s of DPA with and without each of its optimisations; images/s scored at 64x64.

    python benchmarks/dpa.py

Training, 32x32 and 64x64, one thread: `fit` with an autoencoder at half size, cached features of the images, the frozen backbone
in bfloat16 and channels last; with each of these switched off; and a plain loop: an autoencoder at full size, features of both
sides at every step, 32 bits, channels first. Wanted: 200 images/s at 64x64 (with a processor that computes in bfloat16), and 1.5
times the plain loop. Ratios are of pairs measured one after the other in this run, in processor time, medians over rounds.
Scoring: `Detector.score` on arrays, one thread, in processor time; wanted: 100 images/s at 64x64 on two cores. Writes
results/dpa.json.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from normalcy import Detector
from normalcy.methods.dpa import DPA, DPASettings
from normalcy.nets.perceptual import relative_l1
from normalcy.provenance import write_record
from normalcy.testing import smooth_textures
from normalcy.training.fit import fit
from normalcy.training.settings import TrainSettings, best_precision

ROUNDS, STEPS, BATCH = 3, 6, 64
SHAPES: dict[str, tuple[int, ...]] = {"3x32x32": (3, 32, 32), "1x64x64": (1, 64, 64)}
WAYS: dict[str, dict[str, int]] = {
    "fit": {},
    "fit with the autoencoder at full size": {"shrink": 1},
    "fit without kept features": {"cache": False},
    "fit with the backbone in 32 bits": {"bf16": False},
    "fit with the autoencoder channels first": {"channels_last": False},
}
PLAIN = "plain loop"


def training(
    shape: Sequence[int], shrink: int = 2, cache: bool = True, bf16: bool = True, channels_last: bool = True
) -> float:
    """Images per second of processor time in the last stage, the first step left out; preparing is not counted."""
    torch.manual_seed(0)
    method, times = DPA(DPASettings(latent=16, grow=False, shrink=shrink, cache=cache, bf16=bf16), shape), []
    method.load_pretrained()
    hook = register_optimizer_step_post_hook(lambda *_: times.append(time.process_time()))
    try:
        settings = TrainSettings(steps=STEPS + 1, batch_size=BATCH, device="cpu", channels_last=channels_last)
        fit(method, smooth_textures(BATCH, shape, seed=0), settings)
    finally:
        hook.remove()
    return STEPS * BATCH / (times[-1] - times[0])


def plain(shape: Sequence[int]) -> float:
    """Images per second of a bare loop in 32 bits and channels first, features of both sides at every step."""
    torch.manual_seed(0)
    method = DPA(DPASettings(latent=16, grow=False, shrink=1, bf16=False), shape)
    method.load_pretrained()
    backbone = method.perceptual.backbone
    backbone.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    images = smooth_textures(BATCH, shape, seed=0)
    optimiser = torch.optim.Adam(method.autoencoder.parameters(), lr=1e-3)

    def features(y: Tensor) -> Tensor:
        y = (((y + 1) / 2).expand(-1, 3, -1, -1) - backbone.mean) / backbone.std
        network, layers = backbone.network, list(backbone.layers)
        maps = network.forward_intermediates(y, indices=layers, norm=False, stop_early=True, intermediates_only=True)
        return maps[0]

    def step() -> None:
        y = 2 * images - 1
        loss = relative_l1(features(y), features(method.restore(y))).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    step()
    started = time.process_time()
    for _ in range(STEPS):
        step()
    return STEPS * BATCH / (time.process_time() - started)


def scoring(shape: Sequence[int]) -> float:
    """Images per second of processor time, in one thread."""
    channels, *sides = shape
    images = (np.random.default_rng(0).random((256, *sides, channels)) * 255).astype(np.uint8)
    detector = Detector("dpa", latent=16, grow=False, steps=1, batch_size=16, calibration=0.0).fit(images[:32])
    detector.score(images[:64])
    rates = []
    for _ in range(ROUNDS):
        started = time.process_time()
        detector.score(images)
        rates.append(len(images) / (time.process_time() - started))
    return round(statistics.median(rates), 1)


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, shape in SHAPES.items():
        rounds = [
            {PLAIN: plain(shape), **{way: training(shape, **words) for way, words in WAYS.items()}}
            for _ in range(ROUNDS)
        ]
        speed = {way: statistics.median(r[way] for r in rounds) for way in rounds[0]}
        ratios = {way: statistics.median(r["fit"] / r[way] for r in rounds) for way in rounds[0] if way != "fit"}
        found[name] = {
            "images_per_second": {way: round(value, 1) for way, value in speed.items()},
            "fit_against": {way: round(value, 2) for way, value in ratios.items()},
        }
        print(name, found[name], flush=True)
    found["scoring_1x64x64_images_per_second"] = scoring((1, 64, 64))
    print("scoring", found["scoring_1x64x64_images_per_second"])
    write_record(
        Path(__file__).parent / "results" / "dpa.json",
        {
            "benchmark": "training and scoring of dpa",
            "wanted_ratio": 1.5,
            "wanted_images_per_second_1x64x64": 200,
            "wanted_scored_per_second": 100,
            "precision_of_fit": best_precision("cpu"),
            "threads": 1,
            "seed": 0,
            "rounds": ROUNDS,
            "found": found,
        },
    )


if __name__ == "__main__":
    main()
