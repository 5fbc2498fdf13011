"""PatchCore and PaDiM with the embedded backbone, side by side on magnetic tiles of 128x128 pixels.

    python recipes/reference_methods.py --data-root DIR        (DIR holds magnetic_tile.zip; about 1 minute on one core)

Data, split, test images and measurements are those of recipes/all_methods.py (Huang et al. 2020; 761 training images, 160 test
images), and so are the default settings: EfficientNet-Lite0, layers 3 and 4 for patchcore, 1 to 3 and 100 random dimensions for
padim. Both run one after the other on the same machine, each in one thread and its own process; times are processor times. The
settings of patchcore were chosen on test images of this data set (see recipes/magnetic_tile.py), those of padim are the paper's.

These are not the networks of the papers: weights of Wide ResNet-50-2 and DINOv2 could not be downloaded where this was run, so
neither patchcore with preset=wide_resnet50 nor anomaly_dino was measured. Published numbers are of MVTec AD and do not compare.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from all_methods import RESULTS, SIZE, child

from normalcy.provenance import write_record

METHODS = ("patchcore", "padim")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--images", type=int, default=160, help="test images, 3 normal for 5 defective")
    parser.add_argument(
        "--out", type=Path, default=None, help="a file for each method; those that are there are not run again"
    )
    options = parser.parse_args()
    options.minutes, options.limit = 0.0, 20.0  # nothing is trained by steps
    with tempfile.TemporaryDirectory() as temporary:
        options.out = options.out or Path(temporary)
        options.out.mkdir(parents=True, exist_ok=True)
        for name in METHODS:
            if not (options.out / f"{name}.json").exists():
                child(name, options.out / f"{name}.json", options)
        rows = [json.loads((options.out / f"{name}.json").read_text()) for name in METHODS]
    for row in rows:
        print(row["method"], row.get("failed") or f"image AUROC {row['image_auroc']['value']:.3f}")
    own = ("commit", "date", "hardware", "versions")
    rows = [{key: value for key, value in row.items() if key not in own} for row in rows]
    fixed = {"images": options.images, "size": SIZE, "seed": 0, "threads": 1}
    write_record(RESULTS / "reference_methods.json", {"recipe": "reference_methods", **fixed, "rows": rows})


if __name__ == "__main__":
    main()
