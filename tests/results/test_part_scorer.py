"""Shards that one worker scores one after the other: the results of separate runs, and no work on all images for each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from normalcy.data.dataset import DataSet
from normalcy.data.images import write_image
from normalcy.data.open import open_data
from normalcy.detector import Detector
from normalcy.results import writer
from normalcy.results.predict import part_scorer, score_into
from normalcy.results.run import Shard, read_run
from normalcy.results.shards import merge

SHARDS = 3


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for k in range(12):
        write_image(tmp_path / "images" / f"{k:02}.png", rng.integers(0, 255, (1, 8, 8), np.uint8))
    return tmp_path / "images"


def test_shards_of_one_worker_are_those_of_separate_runs(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = open_data(images)
    detector = Detector("zscore", calibration=0.0).fit(data)
    whole = score_into(detector, data, tmp_path / "whole")
    separate = [score_into(detector, data, tmp_path / f"a{k}", shard=Shard(k, SHARDS)) for k in range(1, SHARDS + 1)]
    calls: list[str] = []
    fingerprint, names = DataSet.fingerprint, writer.file_names
    monkeypatch.setattr(DataSet, "fingerprint", lambda self: calls.append("fingerprint") or fingerprint(self))
    monkeypatch.setattr(writer, "file_names", lambda paths: calls.append("names") or names(paths))
    score = part_scorer(detector, data)
    runs = [score(tmp_path / f"b{k}", shard=Shard(k, SHARDS), whole_fingerprint=True) for k in range(1, SHARDS + 1)]
    assert sorted(calls) == ["fingerprint", "names"]
    for k, (run, other) in enumerate(zip(runs, separate), 1):
        assert (tmp_path / f"a{k}/scores.csv").read_text() == (tmp_path / f"b{k}/scores.csv").read_text()
        assert run.data.shard == other.data.shard == Shard(k, SHARDS, whole.data.fingerprint)
        assert run.data.fingerprint == whole.data.fingerprint
        assert run.data.count == other.data.count
    merge([tmp_path / f"b{k}" for k in range(1, SHARDS + 1)], tmp_path / "merged")
    assert (tmp_path / "merged/scores.csv").read_text() == (tmp_path / "whole/scores.csv").read_text()
    assert read_run(tmp_path / "merged").data.fingerprint == whole.data.fingerprint
    maps = [{path.name: path.read_bytes() for path in (tmp_path / at / "maps").iterdir()} for at in ("whole", "merged")]
    assert maps[0] == maps[1]


def test_merge_passes_links_over_and_refuses_files_of_two_shards(images: Path, tmp_path: Path):
    data = open_data(images)
    detector = Detector("zscore", calibration=0.0).fit(data)
    folders = [tmp_path / f"s{k}" for k in (1, 2)]
    for k, folder in enumerate(folders, 1):
        score_into(detector, data, folder, shard=Shard(k, 2))
    (folders[0] / "maps/link.npy").symlink_to(tmp_path / "elsewhere")
    merge(folders, tmp_path / "merged")
    assert not (tmp_path / "merged/maps/link.npy").exists()
    assert len(list((tmp_path / "merged/maps").glob("*.npy"))) == 12


LOADED = "import sys; print(*{{'torch', 'lightning_fabric', 'sympy'}} & sys.modules.keys())"


def loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{LOADED.format()}"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_merging_starts_without_torch():
    assert not loaded_by("import normalcy.results.shards")


def test_loading_a_model_starts_without_training_libraries(images: Path, tmp_path: Path):
    """Nor with torch's compiler, which comes with sympy: each takes as long to import as torch."""
    Detector("autoencoder", size=16, steps=1, latent=4, device="cpu").fit(open_data(images)).save(tmp_path / "model")
    code = f"from normalcy.detector import load; load({str(tmp_path / 'model')!r})"
    assert loaded_by(code) == {"torch"}
