"""Score a folder of volumes: an anomaly map for each volume, its score in ``<name>.txt``, and all scores in ``scores.csv``.

    python entrypoint.py IN OUT [--model /model] [--device auto]

Maps are NIfTI with the axes, shape and affine of the input, scaled to [0, 1] by the range on held-out normal volumes if the
detector was calibrated. Scores are then 1 - p-value, else the detector's own. A volume that cannot be read gets the highest score
and no map, and is listed in ``failed.csv``, because a challenge expects a result for every file.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

from normalcy import load
from normalcy.data.open import open_data
from normalcy.data.volumes import write_volume
from normalcy.errors import NormalcyError
from normalcy.files import write_bytes
from normalcy.provenance import NOTICE
from normalcy.results.folder import NIFTI, named
from normalcy.scoring import Result


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", type=Path, default=Path("/model"))
    parser.add_argument("--device", default="auto")
    given = parser.parse_args(arguments)
    try:
        score_folder(given.input, given.output, given.model, given.device)
    except NormalcyError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    print(NOTICE, file=sys.stderr)
    return 0


def score_folder(source: Path, out: Path, model: Path, device: str = "auto") -> None:
    """Raises a NormalcyError when there is no model or no volume that can be used."""
    import torch

    detector = load(model)
    if device != "auto" or torch.cuda.is_available():
        detector.to("cuda" if device == "auto" else device)
    data = open_data(source)
    calibration = detector.calibration
    low, high = calibration.map_range if calibration is not None else (0.0, 1.0)

    rows: list[tuple[str, float]] = []
    failed: list[tuple[str, str]] = []
    for result in detector.stream(data):
        if not isinstance(result, Result):
            failed.append((result.path, result.reason))
            continue
        if result.map is not None and result.space is not None:
            scaled = np.clip((result.map - low) / max(high - low, 1e-12), 0, 1) if calibration else result.map
            write_volume(out / named(result.path, NIFTI), scaled, result.space)
        rows.append((result.path, result.score if result.p_value is None else 1 - result.p_value))
    highest = max((score for _, score in rows), default=1.0)
    rows += [(path, highest) for path, _ in failed]
    for path, score in rows:
        write_bytes(out / f"{path}.txt", f"{score!r}\n".encode())
    for name, head, table in (
        ("scores.csv", ("file", "score"), sorted(rows)),
        ("failed.csv", ("file", "reason"), failed),
    ):
        with open(out / name, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(head)
            writer.writerows(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
