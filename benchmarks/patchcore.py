"""`patchcore`: seconds to fit 761 images of 256x256, features included, images/s scored, and the speed of its coreset.

    python benchmarks/patchcore.py [--data-root DIR]

Wanted: fit in under 120 s, 15 images/s or more, on 2 cores (a common library: 694 s with a 0.1 % coreset, 17 images/s). Uses the
magnetic tiles of --data-root if they are there, else random textures: speed does not depend on the content. Coreset: one centre
at a time against the batched selection, with the same candidates, in one run. Processor seconds are given beside wall-clock
seconds, and the load at the start, because other work on the machine affects only the clock. Writes results/patchcore.json.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from normalcy.config import to_dict
from normalcy.methods.patchcore import PatchCore, PatchCoreSettings
from normalcy.nets.neighbours import covering_radius, k_centre
from normalcy.provenance import write_record
from normalcy.training.fit import fit
from normalcy.training.settings import TrainSettings

IMAGES, SIDE, SCORED, BATCH, CENTRES, SEED = 761, 256, 256, 16, 1000, 0
RESULT = Path(__file__).parent / "results" / "patchcore.json"


def textures(count: int) -> Tensor:
    """Smooth noise at three scales, (count, 1, SIDE, SIDE) in [0, 1]."""
    generator = torch.Generator().manual_seed(SEED)
    images = torch.full((count, 1, SIDE, SIDE), 0.5)
    for cells, height in ((8, 0.15), (64, 0.1), (SIDE, 0.03)):
        noise = height * torch.randn(count, 1, cells, cells, generator=generator)
        images += F.interpolate(noise, size=(SIDE, SIDE), mode="bilinear")
    return images.clamp_(0, 1)


def tiles(path: Path, count: int) -> Tensor:
    """The first ``count`` defect-free tiles of the shuffled list."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if n.startswith("MT_Free") and n.endswith(".jpg"))
        random.Random(0).shuffle(names)
        pictures = [Image.open(io.BytesIO(archive.read(n))).convert("L").resize((SIDE, SIDE)) for n in names[:count]]
    return torch.from_numpy(np.stack([np.asarray(p, np.float32) / 255 for p in pictures])).unsqueeze(1)


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, seconds on the clock, seconds of all processors."""
    clock, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - clock, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-root", type=Path)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    archive = options.data_root / "magnetic_tile.zip" if options.data_root else None
    real = archive is not None and archive.exists()
    images = tiles(archive, IMAGES) if archive is not None and real else textures(IMAGES)

    settings = PatchCoreSettings()
    method = PatchCore(settings, tuple(images.shape[1:]))
    _, fit_seconds, fit_processor = timed(lambda: fit(method, images, TrainSettings(device="cpu", seed=SEED)))
    method.score(images[:BATCH])
    _, score_seconds, score_processor = timed(lambda: [method.score(x) for x in images[:SCORED].chunk(SCORED // BATCH)])

    with torch.no_grad():
        patches = torch.cat(
            [method._project(method._patches(x)).flatten(0, 2) for x in images[:384].chunk(384 // BATCH)]
        )
    torch.manual_seed(SEED)
    patches = patches[torch.randperm(len(patches))[: settings.patches]]
    plain, plain_seconds, _ = timed(lambda: k_centre(patches, CENTRES, pool=1))
    same, same_seconds, _ = timed(lambda: k_centre(patches, CENTRES))
    ours, our_seconds, _ = timed(lambda: k_centre(patches, CENTRES, settings.slack))
    radii = [covering_radius(patches, patches[chosen]) for chosen in (plain, same, ours)]

    found = {
        "images": "magnetic tiles" if real else "random textures",
        "fit": {"images": IMAGES, "seconds": round(fit_seconds, 1), "processor_seconds": round(fit_processor, 1)},
        "score": {
            "images": SCORED,
            "images_per_second": round(SCORED / score_seconds, 1),
            "processor_seconds_per_image": round(score_processor / SCORED, 4),
        },
        "coreset": {
            "candidates": len(patches),
            "centres": CENTRES,
            "one_at_a_time": {"seconds": round(plain_seconds, 2), "covering_radius": radii[0]},
            "batched_exact": {"seconds": round(same_seconds, 2), "covering_radius": radii[1]},
            "batched_with_slack": {"seconds": round(our_seconds, 2), "covering_radius": radii[2]},
            "times_faster": round(plain_seconds / our_seconds, 1),
            "radius_ratio": round(radii[2] / radii[0], 3),
        },
        "load_at_start": round(load, 2),
    }
    print(found)
    write_record(
        RESULT,
        {
            "benchmark": "patchcore on 256x256",
            "wanted": {"fit_seconds": 120, "images_per_second": 15},
            "settings": to_dict(settings),
            "seed": SEED,
            "threads": torch.get_num_threads(),
            "found": found,
        },
    )


if __name__ == "__main__":
    main()
