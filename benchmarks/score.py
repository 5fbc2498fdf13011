"""Images/s of scoring PNG files, including the results folder, against the forward pass alone: autoencoder at 256x256.

    python benchmarks/score.py

Wanted: at least 0.8 from files to arrays. A results folder adds, for each image, a raw map, a PNG of it and the restored PNG;
with two cores, which the network keeps busy, this is visible. Writes results/score.json.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from normalcy import Detector, open_data
from normalcy.data.images import write_image
from normalcy.provenance import write_record
from normalcy.results.predict import score_into

IMAGES, SIDE, ROUNDS, BATCH = 256, 256, 5, 32


def main() -> None:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for i in range(IMAGES):
            smooth = np.kron(rng.random((SIDE // 16, SIDE // 16)), np.ones((16, 16))) * 200
            write_image(folder / "images" / f"{i:04d}.png", (smooth + 20 * rng.random((SIDE, SIDE))).astype(np.uint8))
        data = open_data(folder / "images")
        detector = Detector("autoencoder", steps=10, batch_size=8).fit(data)
        method = detector.method
        assert method is not None
        x = torch.rand(BATCH, *method.shape).contiguous(memory_format=torch.channels_last)
        method.score(x)
        rates: dict[str, list[float]] = {"forward": [], "files to arrays": [], "files to results folder": []}
        for round_ in range(ROUNDS):
            started = time.perf_counter()
            for _ in range(IMAGES // BATCH):
                method.score(x)
            rates["forward"].append(IMAGES / (time.perf_counter() - started))
            started = time.perf_counter()
            for _ in detector.stream(data, batch_size=BATCH):
                pass
            rates["files to arrays"].append(IMAGES / (time.perf_counter() - started))
            started = time.perf_counter()
            score_into(detector, data, folder / f"results{round_}", batch_size=BATCH)
            rates["files to results folder"].append(IMAGES / (time.perf_counter() - started))
    medians = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    ratios = {name: round(value / medians["forward"], 3) for name, value in medians.items()}
    print(medians, ratios)
    write_record(
        Path(__file__).parent / "results" / "score.json",
        {
            "benchmark": "scoring PNG files, 256x256",
            "wanted_ratio": 0.8,
            "images_per_second": medians,
            "ratio": ratios,
            "seed": 0,
        },
    )


if __name__ == "__main__":
    main()
