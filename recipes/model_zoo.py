"""Three small models to share, made on any machine from images that a package installs: their hashes are kept, not their weights.

    python recipes/model_zoo.py --out DIR [--models NAMES]                  (one thread: about 3 minutes)

Solar cells (package elpv-dataset, Deitsch et al. 2019, CC BY-NC-SA 4.0), 1,206 functional cells for training, at 64x64 and
128x128: `padim` (embedded backbone), `autoencoder` (300 steps) and `pca`. Each is saved as a model folder with its card and
calibration. The result file has the SHA-256 of the weights and the size of each, its image AUROC on the test cells, and the
versions and processor: on another processor weights differ in their last digits, and so do hashes; AUROC agree.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from normalcy import Detector, open_data
from normalcy.data.splits import images_to_score, with_split
from normalcy.files import read_json
from normalcy.metrics import delong_interval
from normalcy.provenance import write_record
from normalcy.studies.demo import SPEC

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "solar-cells-padim": ("padim", {"size": 128}),
    "solar-cells-autoencoder": ("autoencoder", {"size": 64, "steps": 300, "batch_size": 64}),
    "solar-cells-pca": ("pca", {"size": 64}),
}
RESULT = Path(__file__).parent / "results" / "model_zoo.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the model folders")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = with_split(open_data(SPEC))
    test, _ = images_to_score(data, None)
    rows = []
    for name in options.models.split(","):
        method, words = MODELS[name]
        started = time.process_time()
        detector = Detector(method, **words, device="cpu").fit(data)
        seconds = time.process_time() - started
        folder = detector.save(options.out / name, overwrite=True)
        found = delong_interval(test.labels, detector.score(test).scores)
        rows.append(
            {
                "row": name,
                "method": method,
                "settings": words,
                "weights_sha256": read_json(folder / "detector.json")["weights_sha256"],
                "bytes": sum(file.stat().st_size for file in folder.iterdir()),
                "fit_processor_seconds": round(seconds, 1),
                "auroc": {"value": found.value, "low": found.low, "high": found.high},
            }
        )
        print(f"{name:26} AUROC {found.value:.3f} [{found.low:.3f}, {found.high:.3f}], {seconds:.0f} s", flush=True)
    write_record(options.result, {"recipe": "model_zoo", "data": SPEC, "seed": 0, "threads": 1, "rows": rows})


if __name__ == "__main__":
    main()
