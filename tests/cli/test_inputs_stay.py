"""No command writes over what it reads, whatever --out says, with --overwrite too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runner import Run

from normalcy import Detector, open_data


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rng = np.random.default_rng(0)
    for place, count in (("train/good", 42), ("test/good", 3), ("test/spot", 3)):
        (tmp_path / "data" / place).mkdir(parents=True)
        for k in range(count):
            values = 100 + 20 * rng.random((16, 16))
            values[4:9, 4:9] += 100 * ("spot" in place)
            Image.fromarray(values.astype(np.uint8)).save(tmp_path / "data" / place / f"{k:02d}.png")
    Detector("zscore").fit(open_data(tmp_path / "data")).save(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("out", ["data", "data/train", "data/train/good", "link"])
def test_data(here: Path, run: Run, out: str) -> None:
    (here / "link").symlink_to("data")
    before = files(here / "data")
    for command in (
        ("fit", "data", "--method", "zscore"),
        ("score", "model", "data"),
        ("audit", "data", "--method", "zscore"),
        ("export", "model", "--calibrate", "data"),
        ("slides", "model", "data"),
    ):
        assert run(*command, "--out", out, "--overwrite") in (1, 2), command
        assert files(here / "data") == before, command


def test_models_and_results(here: Path, run: Run) -> None:
    assert run("score", "model", "data", "--out", "results") == 0
    (here / "outer").mkdir()
    (here / "model").rename(here / "outer/model")
    (here / "results").rename(here / "outer/results")
    before = files(here / "outer")
    for out in ("outer/model", "outer"):
        assert run("score", "outer/model", "data", "--out", out, "--overwrite") == 2
        assert run("export", "outer/model", "--out", out, "--overwrite") == 2
    for out in ("outer/results", "outer"):
        assert run("dicom", "outer/results", "--out", out, "--overwrite") == 2
    assert files(here / "outer") == before
