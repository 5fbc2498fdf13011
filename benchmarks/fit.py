"""Training images/s of `fit` against a bare loop over tensors in memory: same network, loss, optimiser, precision.

    python benchmarks/fit.py

Wanted: a ratio of at least 0.9. The two alternate in one process, five rounds; the ratio is of medians. Writes results/fit.json.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from normalcy.methods import get
from normalcy.provenance import write_record
from normalcy.training.fit import fit
from normalcy.training.settings import TrainSettings, best_precision

ROUNDS = 5
CASES = {"autoencoder 1x28x28": ((1, 28, 28), 128, 200), "autoencoder 1x128x128": ((1, 128, 128), 32, 25)}


def method(shape: tuple[int, ...]) -> Any:
    cls = get("autoencoder")
    torch.manual_seed(0)
    return cls(cls.Settings(), shape)


def bare(shape: tuple[int, ...], images: torch.Tensor, batch: int, steps: int, bf16: bool) -> float:
    net = method(shape).to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=1e-6)
    order = torch.randperm(len(images))
    started = time.perf_counter()
    for step in range(steps):
        first = step * batch % (len(images) - batch + 1)
        x = images[order[first : first + batch]].contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = net.reconstruction(x)["loss"]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return steps * batch / (time.perf_counter() - started)


def ours(shape: tuple[int, ...], images: torch.Tensor, batch: int, steps: int, precision: str) -> float:
    settings = TrainSettings(steps=steps, batch_size=batch, device="cpu", precision=precision)  # type: ignore[arg-type]
    started = time.perf_counter()
    fit(method(shape), images, settings, log=lambda record: None)
    return steps * batch / (time.perf_counter() - started)


def main() -> None:
    found = {}
    precision = best_precision("cpu")
    for name, (shape, batch, steps) in CASES.items():
        images = torch.rand(max(512, 4 * batch), *shape)
        bare(shape, images, batch, 5, precision == "bf16-mixed")
        pairs = [
            (ours(shape, images, batch, steps, precision), bare(shape, images, batch, steps, precision == "bf16-mixed"))
            for _ in range(ROUNDS)
        ]
        fitted, loop = (statistics.median(column) for column in zip(*pairs))
        found[name] = {
            "fit_images_per_second": round(fitted, 1),
            "bare_images_per_second": round(loop, 1),
            "ratio": round(fitted / loop, 3),
        }
        print(name, found[name])
    write_record(
        Path(__file__).parent / "results" / "fit.json",
        {
            "benchmark": "fit against a bare loop",
            "wanted_ratio": 0.9,
            "precision": precision,
            "seed": 0,
            "rounds": ROUNDS,
            "found": found,
        },
    )


if __name__ == "__main__":
    main()
