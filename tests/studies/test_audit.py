"""The audit of a training set: foreign images are listed, whatever the labels say; the files; one sentence for each mistake."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normalcy import Detector
from normalcy.cli.app import main
from normalcy.data.open import as_dataset
from normalcy.errors import SettingsError
from normalcy.results.folder import read_results
from normalcy.studies.audit import audit, robust_deviations
from normalcy.testing import smooth_textures

FOREIGN = {"images/00003", "images/00017", "images/00030"}
TINY: dict[str, Any] = {
    "latent": 2,
    "width": 4,
    "rounds": 2,
    "steps": 80,
    "batch_size": 16,
    "lr": 0.01,
    "precision": "32-true",
}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Smooth textures and three images of stripes, each of its own kind."""
    x = smooth_textures(60, (1, 16, 16), seed=0)[:, 0].numpy()
    for k, name in enumerate(sorted(FOREIGN)):
        x[int(name[-5:])] = 0.45 + 0.2 * np.roll(np.sin((1.0 + 0.5 * k) * np.arange(16)), k)
    return (255 * x).astype(np.uint8)


def test_foreign_images_head_the_list(images: np.ndarray, tmp_path: Path) -> None:
    found = audit(images, tmp_path / "A", settings=TINY, fraction=0.05, show=5)
    assert found.images == 60
    assert {s.path for s in found.suspects} == FOREIGN
    with open(tmp_path / "A" / "suspicious.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [s.path for s in found.suspects]
    read = read_results(tmp_path / "A")
    assert int((read.flagged == 1).sum()) == 3
    assert (read.labels == -1).all()
    np.testing.assert_allclose(np.median(read.scores), 0, atol=0.2)
    shown = [p.relative_to(tmp_path / "A/extra_maps/sparse") for p in (tmp_path / "A/extra_maps/sparse").rglob("*.npy")]
    assert len(shown) == 5  # S of the strangest alone
    assert {f"{name}.npy" for name in FOREIGN} <= {str(p) for p in shown}
    run = json.loads((tmp_path / "A/run.json").read_text())
    facts = run["audit"]
    assert (facts["folds"], run["calibration"]["rule"], facts["fraction"]) == (1, "fraction", 0.05)
    page = (tmp_path / "A/report.html").read_text()
    assert "3 images of 60 suspicious" in page
    assert "sparse of images/00017" in page


def test_lambda_is_chosen_by_the_share_of_images_with_a_sparse_part(images: np.ndarray, tmp_path: Path) -> None:
    found = audit(images, tmp_path / "A", settings=TINY, fraction=0.05, weights=(1e6, 0.0, 0.9), show=0)
    shares = [entry.with_sparse_part for entry in found.path]
    assert shares[:2] == [0.0, 1.0]
    facts = json.loads((tmp_path / "A/run.json").read_text())["audit"]
    assert facts["weight"] == min(found.path, key=lambda e: abs(e.with_sparse_part - 0.05)).weight
    assert not (tmp_path / "A/maps").exists()
    assert "Values of lambda" in (tmp_path / "A/report.html").read_text()


def test_other_methods_score_only_what_they_have_not_seen(
    images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []
    number: dict[int, int] = {}  # of a detector's own fit
    fit, stream = Detector.fit, Detector.stream

    def spied_fit(self: Detector, data: Any, **words: Any) -> Detector:
        seen.append({item.path for item in data.items})
        number[id(self)] = len(seen) - 1
        return fit(self, data, **words)

    def spied_stream(self: Detector, data: Any, **words: Any) -> Any:
        assert not seen[number[id(self)]] & {item.path for item in data.items}
        return stream(self, data, **words)

    monkeypatch.setattr(Detector, "fit", spied_fit)
    monkeypatch.setattr(Detector, "stream", spied_stream)
    found = audit(images, tmp_path / "A", "pca", settings={"components": 4}, folds=3)
    assert len(seen) == 3
    assert found.rule == "robust"
    assert {s.path for s in found.suspects} >= FOREIGN
    assert found.images == 60
    assert "one that had not seen it" in (tmp_path / "A/report.html").read_text()


def test_labels_play_no_part_but_known_anomalies_are_left_out(images: np.ndarray, tmp_path: Path) -> None:
    labels = np.zeros(60, int)
    labels[3] = 1
    found = audit(as_dataset(images, labels), tmp_path / "A", "pca", settings={"components": 4}, fraction=0.04)
    assert found.images == 59
    assert {s.path for s in found.suspects} == FOREIGN - {"images/00003"}


def test_an_audit_is_there_whole_or_not_at_all(
    images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        assert len(list(tmp_path.glob(".A.partial-*/suspicious.csv"))) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr("normalcy.studies.audit.write_report", broken)
    with pytest.raises(KeyboardInterrupt):
        audit(images, tmp_path / "A", "zscore", folds=2)
    assert list(tmp_path.iterdir()) == []


def test_robust_deviations_of_a_normal_sample_are_those_of_its_deviation() -> None:
    x = np.random.default_rng(0).normal(5, 2, 20_000)
    np.testing.assert_allclose(robust_deviations(x), (x - 5) / 2, atol=0.12)
    contaminated = np.r_[x, np.full(1000, 1e6)]
    np.testing.assert_allclose(robust_deviations(contaminated)[: len(x)], (x - 5) / 2, atol=0.5)
    few = robust_deviations(np.r_[np.zeros(99), 1.0])  # as many 0 as the score "noise" of RDA gives
    assert (few[:99] == 0).all()
    assert few[99] > 3.5
    assert not robust_deviations(np.ones(7)).any()


def test_command(images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    np.savez(tmp_path / "parts.npz", images=images)
    words = ["audit", tmp_path / "parts.npz", "--method", "pca", "--set", "components=4", "--share", "0.05"]
    words += ["--out", tmp_path / "A"]
    monkeypatch.setattr(sys, "argv", ["normalcy", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    out = capsys.readouterr().out
    assert "3 of 60 training images are suspicious" in out
    assert out.count("parts/000") == 3
    with pytest.raises(SystemExit):
        main()  # what is there stays
    assert "exists and is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"fraction": 0.7}, "fraction"),
        ({"folds": 0}, "fold"),
        ({"weights": (0.5,)}, "fraction of anomalous"),
        ({"weights": (0.5,), "method": "pca", "fraction": 0.1}, "lambda of rda"),
        ({"settings": {"calibration": "0.1"}}, "calibrate"),
    ],
    ids=str,
)
def test_impossible_choices(words: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=sentence):
        audit(np.zeros((8, 16, 16), np.uint8), tmp_path / "A", **words)
    assert not (tmp_path / "A").exists()
