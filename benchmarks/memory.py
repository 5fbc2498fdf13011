"""Peak memory of scoring 1,000 and 100,000 images of 64x64 into a results table.

    python benchmarks/memory.py

Wanted: the larger at most 1.5 times the smaller. Each size runs in its own process. Writes results/memory.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from normalcy.provenance import write_record

SIZES = (1_000, 100_000)


def one(count: int) -> None:
    """Score ``count`` images, generated when read, and print peak memory (MiB) and images/s."""
    import resource

    from normalcy import DataSet, Detector, Item
    from normalcy.results.predict import score_into

    def read(i: int) -> np.ndarray[Any, Any]:
        return np.random.default_rng(i % 997).integers(0, 255, (1, 64, 64), dtype=np.uint8)

    data = DataSet("made", [Item(f"{i:06d}.png", str(i)) for i in range(count)], read)
    detector = Detector("autoencoder", steps=10, batch_size=8).fit(data.subset(range(200)))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        score_into(detector, data, Path(folder) / "results", maps=False, batch_size=64)
        rate = count / (time.perf_counter() - started)
    print(
        json.dumps({"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "images_per_second": rate})
    )


def main() -> None:
    found = {}
    for count in SIZES:
        done = subprocess.run([sys.executable, __file__, str(count)], capture_output=True, text=True, check=True)
        found[count] = {key: round(value, 1) for key, value in json.loads(done.stdout.splitlines()[-1]).items()}
        print(count, found[count])
    ratio = round(found[SIZES[1]]["peak_mib"] / found[SIZES[0]]["peak_mib"], 3)
    print("ratio", ratio)
    write_record(
        Path(__file__).parent / "results" / "memory.json",
        {"benchmark": "memory of scoring 64x64 images", "wanted_ratio_at_most": 1.5, "found": found, "ratio": ratio},
    )


if __name__ == "__main__":
    one(int(sys.argv[1])) if len(sys.argv) > 1 else main()
