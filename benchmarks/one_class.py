"""Training images/s of one-class networks against a plain loop, on a CPU.

    python benchmarks/one_class.py

DDR-ID's two networks of table 1 on digits, 28x28, batch size 256: a plain loop (a loader over tensors, 32 bits); all images in
one tensor and channels last; bfloat16 with torch's own convolutions; and `fit`, which also computes the strided convolutions as
matrix products (`normalcy.nets.halving`); for comparison those of 64 channels too, and all images doubled at once. Deep SVDD's
LeNet: ten classes sequentially, and together under `torch.func.vmap`. Wanted: `fit` at 1.8 times the speed of 32 bits. One
thread, processor time, medians of rounds. Writes results/one_class.json, which keeps what was measured on other processors: the
Xeon's numbers were measured before `fit` left halvings of 64 channels to torch and limited the images that are doubled at once.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.data import DataLoader, TensorDataset

from normalcy.methods import get
from normalcy.nets import halving
from normalcy.nets.convnets import choose
from normalcy.provenance import commit, hardware, write_record
from normalcy.training.fit import fit
from normalcy.training.settings import TrainSettings, best_precision

RESULT = Path(__file__).parent / "results" / "one_class.json"
ROUNDS = 2
BATCH = 256
STEPS = 4
CLASSES = 10


def ddr_id() -> Any:
    cls = get("ddr_id")
    torch.manual_seed(0)
    return cls(cls.Settings(), (1, 28, 28))


def loop(images: Tensor, channels_last: bool, bf16: bool, loader: bool) -> float:
    """Images/s of a bare loop over the pretraining, with torch's own convolutions."""
    method, products = ddr_id().train(), (halving.HALVING_CHANNELS, halving.CHANNELS)
    halving.HALVING_CHANNELS = halving.CHANNELS = (
        1 << 30
    )  # above any number of channels: no convolution is computed as a product
    layout = torch.channels_last if channels_last else torch.contiguous_format
    method.to(memory_format=layout)
    optimiser = torch.optim.Adam(method.parameters(), lr=1e-4, weight_decay=1e-6)
    batches = iter(DataLoader(TensorDataset(images), BATCH, shuffle=True)) if loader else None
    order = torch.randperm(len(images))

    def step(i: int) -> None:
        x = next(batches)[0] if batches is not None else images[order[i * BATCH : (i + 1) * BATCH]]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = method.pretraining(x.contiguous(memory_format=layout))["loss"]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    step(0)
    started = time.process_time()
    for i in range(1, STEPS + 1):
        step(i)
    halving.HALVING_CHANNELS, halving.CHANNELS = products
    return STEPS * BATCH / (time.process_time() - started)


def ours(images: Tensor, halvings: int = halving.HALVING_CHANNELS, at_once: int = halving.AT_ONCE) -> float:
    """Images/s of `fit` in the same stage, its first step left out as above. ``halvings``: channels from which the halving
    convolutions are matrix products; ``at_once``: images that are doubled at once."""
    usual = halving.HALVING_CHANNELS, halving.AT_ONCE
    halving.HALVING_CHANNELS, halving.AT_ONCE = halvings, at_once
    method, times = ddr_id(), []
    stage = replace(method.stages()[0], on_progress=lambda fraction: times.append(time.process_time()))
    method.stages = lambda: [stage]
    settings = TrainSettings(steps=STEPS + 2, batch_size=BATCH, device="cpu")
    try:
        fit(method, images, settings, log=lambda record: None)
    finally:
        halving.HALVING_CHANNELS, halving.AT_ONCE = usual
    return STEPS * BATCH / (times[-1] - times[1])


def lenets(images: Tensor, together: bool) -> float:
    """Images/s of ten of Deep SVDD's encoders, of plain gradient descent to a centre."""
    torch.manual_seed(0)
    net = choose("lenet", (1, 28, 28), norm="group")
    nets = [net.encoder((1, 28, 28), 32) for _ in range(CLASSES)]

    def distance(parameters: Any, buffers: Any, x: Tensor) -> Tensor:
        return functional_call(nets[0], (parameters, buffers), (x,)).square().sum(1).mean()

    descend = grad(distance)
    if together:
        parameters, buffers = stack_module_state(nets)
        x = images[:BATCH].expand(CLASSES, -1, -1, -1, -1)
        run: Callable[[], Any] = lambda: vmap(descend)(parameters, buffers, x)  # noqa: E731
    else:
        run = lambda: [descend(dict(n.named_parameters()), {}, images[:BATCH]) for n in nets]  # noqa: E731
    run()
    started = time.process_time()
    run()
    return CLASSES * BATCH / (time.process_time() - started)


def main() -> None:
    torch.set_num_threads(1)
    images = torch.rand((STEPS + 2) * BATCH, 1, 28, 28)
    ways: dict[str, Callable[[], float]] = {
        "plain loop, loader, 32 bits": lambda: loop(images, channels_last=False, bf16=False, loader=True),
        "tensors, channels last, 32 bits": lambda: loop(images, channels_last=True, bf16=False, loader=False),
        "tensors, channels last, bfloat16": lambda: loop(images, channels_last=True, bf16=True, loader=False),
        "fit": lambda: ours(images),
        "fit, halvings of 64 channels as products": lambda: ours(images, halvings=64),
        "fit, all images doubled at once": lambda: ours(images, at_once=BATCH),
    }
    small: dict[str, Callable[[], float]] = {
        "one after another": lambda: lenets(images, together=False),
        "together, vmap": lambda: lenets(images, together=True),
    }
    rounds = [{name: way() for name, way in {**ways, **small}.items()} for _ in range(ROUNDS)]
    speed = {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}
    for name, value in speed.items():
        print(f"{name:34} {value:8.1f} images/s")
    plain, processor = speed["plain loop, loader, 32 bits"], str(hardware()["processor"])
    found = {
        f"ddr_id 1x28x28 on {processor}, images per second": {name: round(speed[name], 1) for name in ways},
        f"ddr_id 1x28x28 on {processor}, times the plain loop": {name: round(speed[name] / plain, 2) for name in ways},
        f"ten lenets on {processor}, images per second": {name: round(speed[name], 1) for name in small},
    }
    earlier = json.loads(RESULT.read_text("utf-8")) if RESULT.exists() else {"found": {}, "commits": {}}
    write_record(
        RESULT,
        {
            "benchmark": "training of one-class networks",
            "wanted_ratio": 1.8,
            "precision_of_fit": best_precision("cpu"),
            "threads": 1,
            "time": "processor time",
            "seed": 0,
            "rounds": ROUNDS,
            "found": {**earlier["found"], **found},
            "commits": {**earlier["commits"], processor: commit()},
        },
    )


if __name__ == "__main__":
    main()
