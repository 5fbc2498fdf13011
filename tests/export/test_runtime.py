"""normalcy-runtime alone, in an environment without torch: the numbers of the model."""

import json
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement

from normalcy import Detector, open_data
from normalcy.data.images import write_image
from normalcy.export import export
from normalcy.export.scorer import Scorer, load
from normalcy.results.folder import read_results

ROOT = Path(__file__).parents[2]
SHORT: dict[str, dict[str, Any]] = {
    "patchcore": {"memory": 500, "patches": 2000, "size": 64},
    "autoencoder": {"steps": 30, "width": 8, "latent": 16},
    "vae": {"steps": 30, "width": 8, "latent": 16, "score": "elbo"},
    "deep_svdd": {"steps": 30, "width": 8},
    "ddr_id": {"steps": 20, "width": 8},
    "dpa": {"steps": 10, "width": 8, "latent": 8},
    "zscore": {},
    "isolation_forest": {"trees": 50},
    "ocsvm": {},
    "gmm": {},
}
"""The methods that a line or a hospital would take, fitted for a moment."""


def needed(name: str, found: set[str]) -> set[str]:
    """A distribution and those that it requires."""
    if name not in found:
        found.add(name)
        for text in distribution(name).requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needed(requirement.name, found)
    return found


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment that holds the wheel and what the wheel requires, no more."""
    folder = tmp_path_factory.mktemp("runtime")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT / "runtime", check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    site = next((folder / "venv" / "lib").glob("python3*")) / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        metadata = next(name for name in archive.namelist() if name.endswith("METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    required = [Requirement(line.partition(": ")[2]) for line in lines if line.startswith("Requires-Dist")]
    found: set[str] = set()
    for requirement in required:
        if requirement.marker is None:
            needed(requirement.name, found)
    for name in found:
        files = distribution(name)
        for top in {file.parts[0] for file in files.files or () if file.parts[0] not in ("..", "__pycache__")}:
            link = site / top
            if not link.exists():
                link.symlink_to(Path(str(files.locate_file(top))))
    return folder / "venv" / "bin" / "python"


@pytest.fixture(scope="module")
def cells() -> tuple[Any, Any]:
    """Solar cells: normal ones to learn from, others with defects among them, 64x64, 8 bit."""
    data = open_data("elpv")
    normal = [i for i, item in enumerate(data.items) if item.label == 0][:80]
    defective = [i for i, item in enumerate(data.items) if item.label == 1][:10]
    read = [data.read(i)[0, ::4, ::4][:64, :64] for i in (*normal, *defective)]
    images = np.stack([np.pad(x, [(0, 64 - x.shape[0]), (0, 64 - x.shape[1])], mode="edge") for x in read])
    return images[:70], images[70:]


def run(python: Path, code: str, *arguments: object) -> Any:
    done = subprocess.run([str(python), "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


SCORE = """
import json, sys
import numpy as np
from normalcy_runtime import load
results = load(sys.argv[1]).score(np.load(sys.argv[2]))
heavy = [name for name in ("torch", "scipy", "sklearn", "skimage", "matplotlib") if name in sys.modules]
try:
    import torch
except ImportError:
    torch = None
print(json.dumps({
    "scores": results.scores.tolist(), "p_values": results.p_values.tolist(), "flagged": results.flagged.tolist(),
    "maps": None if results.maps[0] is None else [[float(m.min()), float(m.max())] for m in results.maps],
    "heavy": heavy, "torch": torch is not None,
}))
"""


@pytest.mark.parametrize("name", SHORT)
def test_scores_of_the_model_without_torch(name: str, python: Path, cells: tuple[Any, Any], tmp_path: Path):
    normal, unseen = cells
    detector = Detector(name, device="cpu", false_alarms=0.1, **SHORT[name]).fit(normal)
    export(detector, tmp_path / "out")
    np.save(tmp_path / "unseen.npy", unseen)
    got = run(python, SCORE, tmp_path / "out", tmp_path / "unseen.npy")
    assert not got["torch"]
    assert got["heavy"] == []
    expected = detector.score(unseen)
    assert np.allclose(got["scores"], expected.scores, rtol=1e-4, atol=1e-4 * np.abs(expected.scores).max())
    assert np.array_equal(got["flagged"], expected.flagged)
    assert np.allclose(got["p_values"], expected.p_values)
    if expected.maps[0] is not None:
        ranges = np.array([[m.min(), m.max()] for m in expected.maps if m is not None])
        assert np.allclose(got["maps"], ranges, atol=1e-4 * np.abs(ranges).max())


def test_first_score_comes_soon(python: Path, tmp_path: Path):
    """Import, load and the first score of a 256x256 model: 1.5 s of one core."""
    images = np.random.default_rng(0).integers(0, 255, (30, 256, 256), np.uint8)
    export(Detector("autoencoder", device="cpu", steps=1, width=8, calibration=0).fit(images), tmp_path / "out")
    code = """
import time, json, sys
from normalcy_runtime import load
import numpy as np
load(sys.argv[1], threads=1).score(np.zeros((1, 256, 256), np.uint8))
print(json.dumps(time.process_time()))
"""
    assert run(python, code, tmp_path / "out") < 1.5


def test_command_writes_a_results_folder(python: Path, cells: tuple[Any, Any], tmp_path: Path):
    normal, unseen = cells
    detector = Detector("pca", device="cpu", false_alarms=0.1).fit(normal)
    export(detector, tmp_path / "out")
    for k, image in enumerate(unseen):
        write_image(tmp_path / "images" / f"{k:02d}.png", image[None])
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    words = ["-m", "normalcy_runtime.export.command", "score", "out", "images", "--out", "results"]
    done = subprocess.run([str(python), *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Skipped broken.png" in done.stderr
    results = read_results(tmp_path / "results")
    expected = detector.score(unseen)
    assert np.allclose(results.scores, expected.scores, rtol=1e-4)
    assert np.array_equal(results.flagged, expected.flagged.astype(int))
    assert np.load(tmp_path / "results" / "maps" / "00.png.npy").shape == unseen[0].shape
    assert results.run.device == "cpu (onnxruntime)"
    again = subprocess.run([str(python), *words], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 2
    assert again.stderr.startswith("results exists and is not empty")


@pytest.fixture(scope="module")
def scorer(cells: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    folder = tmp_path_factory.mktemp("scorer") / "out"
    export(Detector("pca", device="cpu").fit(cells[0]), folder)
    return load(folder, threads=1)


def test_threads_give_the_results_of_one(scorer: Scorer, cells: tuple[Any, Any]):
    images = cells[1]
    alone = [scorer.score(image[None])[0] for image in images]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda image: scorer.score(image[None])[0], np.concatenate([images] * 4)))
    for k, result in enumerate(together):
        expected = alone[k % len(images)]
        assert (result.score, result.p_value, result.flagged) == (expected.score, expected.p_value, expected.flagged)
        assert np.array_equal(result.map, expected.map)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"graph": None}, "is no exported model"),
        ({"shape": [1, 0, 64]}, "is damaged or does not fit"),
        ({"views": {"tile": "x"}}, "is damaged or does not fit"),
        ({"graph": {"engine": "torch"}}, "graph: "),
    ],
)
def test_a_damaged_folder_is_refused(cells: tuple[Any, Any], tmp_path: Path, change: dict[str, Any], message: str):
    from normalcy import ModelFileError

    export(Detector("pca", device="cpu", calibration=0).fit(cells[0]), tmp_path / "out")
    path = tmp_path / "out" / "detector.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelFileError, match=message):
        load(tmp_path / "out")
