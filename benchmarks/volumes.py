"""Seconds and peak memory: a volume of 256x256x160 as slices, along three axes and in patches; a slide of 20,000x20,000.

    python benchmarks/volumes.py            # all, each in its own process
    python benchmarks/volumes.py slices     # one: slices, three_axes, patches or slide

Volumes are scored by an autoencoder (default settings, one training step: speed does not depend on the weights), from a .nii.gz
file to a written map and restored volume. The slide, over a third of it tissue, is scored by zscore, so that reading, tiling and
writing are measured. Writes results/volumes.json with the load of the machine.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from normalcy import Detector
from normalcy.data.open import open_data
from normalcy.data.slides import Slide, TileSettings
from normalcy.data.volumes import Space, write_volume
from normalcy.provenance import write_record
from normalcy.results.predict import score_into
from normalcy.results.slides import score_slides

SHAPE = (256, 256, 160)
SLIDE, TILE = 20_000, 256
WAYS: dict[str, dict[str, Any]] = {
    "slices": {"slices": "z"},
    "three_axes": {"slices": "xyz", "size": 256},
    "patches": {"tile": 64, "tile_overlap": 0.25, "tile_window": "gaussian"},
}


def measure(way: str, folder: Path) -> dict[str, float]:
    """Seconds of scoring; memory before scoring and peak memory of this process, in GiB."""
    if way == "slide":
        path = write_slide(folder / "slide.tif")
        normal = np.stack([tile for _, tile in zip(range(40), tiles(0))])
        detector = Detector("zscore", calibration=0.5).fit(normal)
        slide = Slide(path, TileSettings(tile=TILE))
        before, started = peak(), time.perf_counter()
        score_slides(detector, [slide], folder / "results")
        return {"seconds": time.perf_counter() - started, "tiles": len(slide.tiles()), "before": before, "peak": peak()}
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.integers(0, 900, (20, 32, 32)), np.ones((8, 8, 8), int))
    volume = (smooth + rng.integers(0, 30, smooth.shape)).astype(np.int16)
    write_volume(folder / "volumes" / "a.nii.gz", volume, Space(SHAPE, np.eye(4)), like_file=True)
    data = open_data(folder / "volumes")
    detector = Detector("autoencoder", steps=1, batch_size=8, calibration=0, **WAYS[way]).fit(data)
    before, started = peak(), time.perf_counter()
    score_into(detector, data, folder / "results")
    return {"seconds": time.perf_counter() - started, "before": before, "peak": peak()}


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def tiles(level: int) -> Iterator[np.ndarray]:
    """The tiles of a level of the slide, row by row: an ellipse of tissue on white, blocky on the coarse levels."""
    rng = np.random.default_rng(level)
    tissue = [
        np.clip(rng.normal(0, 6, (TILE, TILE, 1)) + np.array([200, 130, 170]), 0, 255).astype(np.uint8)
        for _ in range(8)
    ]
    white = np.full((TILE, TILE, 3), 245, np.uint8)
    count = -(-SLIDE // 4**level // TILE)
    for row in range(count):
        for column in range(count):
            y, x = (np.array([row, column]) + 0.5) / count * 2 - 1
            yield tissue[(row * 7 + column) % 8] if x * x + y * y < 0.64 else white


def write_slide(path: Path) -> Path:
    import tifffile

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level in range(3):
            side = SLIDE // 4**level
            file.write(
                tiles(level), shape=(side, side, 3), dtype=np.uint8, tile=(TILE, TILE), photometric="rgb",
                compression="jpeg", subfiletype=int(level > 0), metadata=None,
            )  # fmt: skip
    return path


def main() -> None:
    ways = sys.argv[1:]
    if len(ways) == 1:
        with tempfile.TemporaryDirectory() as temporary:
            print(json.dumps(measure(ways[0], Path(temporary))))
        return
    found = {}
    for way in (*WAYS, "slide"):
        done = subprocess.run([sys.executable, __file__, way], capture_output=True, text=True, check=True)
        found[way] = {key: round(value, 2) for key, value in json.loads(done.stdout.splitlines()[-1]).items()}
        print(way, found[way], flush=True)
    write_record(
        Path(__file__).parent / "results" / "volumes.json",
        {
            "benchmark": "volume 256x256x160 and slide 20,000x20,000: seconds, memory in GiB",
            "settings": WAYS,
            "load": os.getloadavg()[0],
            **found,
        },
    )


if __name__ == "__main__":
    main()
