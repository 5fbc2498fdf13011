"""What an installed normalcy must do, run by the interpreter of its environment.

    python tests/packaging/installed.py [--without-fit] [EXTRA ...]

Prints one JSON object: versions, and for each extra the modules that were imported. Any failure ends it with a traceback.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import subprocess
import sys
import tempfile
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

MODULES = {
    "demo": ["elpv_dataset"],
    "parquet": ["pyarrow.parquet"],
    "postgresql": ["pg8000"],
    "ray": ["ray"],
    "runtime": ["onnxruntime"],
    "openvino": ["openvino"],
    "export": ["onnx", "onnxscript", "onnxruntime", "normalcy.export.write"],
    "remote": ["fsspec", "s3fs", "normalcy.remote.urls"],
    "review": ["starlette", "uvicorn", "normalcy.review.server"],
    "medical": ["nibabel", "pydicom", "highdicom", "nrrd", "tiffslide", "normalcy.results.dicom"],
    "tensorboard": ["tensorboard"],
    "mlflow": ["mlflow"],
    "wandb": ["wandb"],
    "docs": ["zensical"],
}
"""Extra -> what it is installed for."""


def command(*words: object) -> str:
    """Run normalcy; returns what it printed to stdout. It is started from another folder than that of the sources."""
    done = subprocess.run(
        [sys.executable, "-m", "normalcy", *map(str, words)], capture_output=True, text=True, cwd=tempfile.gettempdir()
    )
    if done.returncode != 0:
        raise SystemExit(f"normalcy {' '.join(map(str, words))} failed:\n{done.stderr}")
    return done.stdout


def fit_and_score(folder: Path) -> None:
    """A method fitted on a tiny folder finds the image that is unlike the others."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for name, images in (("train", 30), ("test", 4)):
        (folder / name).mkdir()
        for i in range(images):
            pixels = rng.integers(100, 110, (16, 16), dtype=np.uint8)
            if (name, i) == ("test", 2):
                pixels[4:8, 4:8] = 255
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    command("fit", folder / "train", "--method", "zscore", "--device", "cpu", "--out", folder / "model")
    command("score", folder / "model", folder / "test", "--out", folder / "results")
    with open(folder / "results" / "scores.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert max(rows, key=lambda row: float(row["score"]))["path"] == "2.png", rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help=", ".join(MODULES))
    parser.add_argument("--without-fit", action="store_true")
    asked = parser.parse_args()

    import normalcy

    sources = Path(__file__).resolve().parents[2] / "src"
    assert sources not in Path(normalcy.__file__).resolve().parents, "normalcy is imported from the sources"
    assert "torch" not in sys.modules
    assert normalcy.__version__ == version("normalcy")
    assert "fit" in command("--help")
    if not asked.without_fit:
        assert len(json.loads(command("methods", "--json"))["methods"]) >= len(normalcy.METHODS)
        with tempfile.TemporaryDirectory() as folder:
            fit_and_score(Path(folder))
    for extra in asked.extras:
        for module in MODULES[extra]:
            import_module(module)
    print(
        json.dumps({"python": platform.python_version(), "system": platform.system(), "normalcy": version("normalcy")})
    )


if __name__ == "__main__":
    main()
