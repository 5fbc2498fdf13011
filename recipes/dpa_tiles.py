"""Localisation with the anomaly map of DPA, which its authors did not evaluate: surface defects of magnetic tiles.

    python recipes/dpa_tiles.py --data-root DIR [--minutes 15]     (one thread: about 4 x 22 minutes of one core)

Data and split as in recipes/magnetic_tile.py (Huang et al. 2020): defect-free tiles sorted by name, shuffled with
random.Random(0), the first 80 % for training (761); the other 191 and all 392 defective ones for testing; all resized to 256x256,
maps compared with the masks at the size of each image. DPA is run at 128x128 and 256x256, with a latent code of one pixel and
with a spatial one, which has to keep positions; as a baseline, the same network with an L1 loss only, whose map is the pixel
error. Every row trains for the same time. Compare with recipes/lsr_tiles.py (networks trained from scratch on the same tiles)
and with PatchCore in recipes/magnetic_tile.py. Settings are those of the paper for chest X-rays; nothing is chosen on test
images. Intervals: bootstrap over images.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from budget import arguments, located, steps_in, tiles, write_rows

from normalcy import Detector
from normalcy.results.evaluate import evaluate
from normalcy.results.predict import score_into
from normalcy.results.schema import to_json

SPATIAL: dict[str, Any] = {"bottleneck": "spatial", "latent": 4, "grow": False}
RUNS: dict[str, dict[str, Any]] = {
    "dpa, one pixel, 128": {"latent": 64, "size": 128, "grow": False},
    "dpa, spatial, 128": {**SPATIAL, "size": 128},
    "dpa, spatial, 256": {**SPATIAL, "size": 256},
    "dpa with L1 alone, spatial, 128": {**SPATIAL, "size": 128, "perceptual": 0.0, "l1": 1.0},
}
RESULT = Path(__file__).parent / "results" / "dpa_tiles.json"


def main() -> None:
    options = arguments(__doc__.splitlines()[0], RUNS, 15.0, RESULT)
    train, test, split = tiles(options.data_root, options.images)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        for name in options.rows.split(";"):
            words = {**RUNS[name], "calibration": 0.0, "batch_size": 32, "smoothing": 2.0}
            words["steps"] = steps_in("dpa", words, train, 60 * options.minutes)
            started = time.process_time()
            detector = Detector("dpa", **words).fit(train)
            seconds = time.process_time() - started
            place = out / name.replace(", ", "-").replace(" ", "-")
            run = to_json(score_into(detector, test, place, split=split, spec="magnetic_tile", overwrite=True))
            found = to_json(evaluate(place, resamples=options.resamples))
            rows.append(located(name, None, found, run, seconds, words))
            write_rows("dpa_tiles", options, rows, train=len(train), test=len(test))


if __name__ == "__main__":
    main()
