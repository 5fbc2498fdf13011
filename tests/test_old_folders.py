"""Model and results folders that the version before the new layout wrote (commit 5159fdb) are read as before."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from normalcy import load, open_data
from normalcy.report import write_report
from normalcy.results.evaluate import evaluate
from normalcy.results.folder import read_results

OLD = Path(__file__).parent / "fixtures" / "version_0"


def test_old_model_scores_as_it_did() -> None:
    detector = load(OLD / "vq-model")
    assert detector.input.view_score == "max", "piece_score of old folders"
    with open(OLD / "vq-results" / "scores.csv", newline="", encoding="utf-8") as file:
        rows = {row["path"]: float(row["score"]) for row in csv.DictReader(file)}
    results = detector.score(open_data(OLD / "parts"))
    assert {r.path for r in results} == set(rows)
    # drawn samples and another processor: close, not equal
    np.testing.assert_allclose([r.score for r in results], [rows[r.path] for r in results], rtol=1e-3)


def test_old_pca_reduces_its_map_as_it_did(tmp_path: Path) -> None:
    detector = load(OLD / "pca-model")
    assert detector.settings.reduce == "mean", "quantile: null of old folders"
    shutil.copytree(OLD / "pca-model", tmp_path / "model")
    file = tmp_path / "model" / "detector.json"
    description = json.loads(file.read_text(encoding="utf-8"))
    description["settings"]["quantile"] = 0.9
    file.write_text(json.dumps(description), encoding="utf-8")
    assert load(tmp_path / "model").settings.reduce == 0.9


@pytest.mark.parametrize("name", ["pca-model", "vq-model"])
def test_old_model_is_saved_in_the_new_words(name: str, tmp_path: Path) -> None:
    load(OLD / name).save(tmp_path / "model")
    saved = json.loads((tmp_path / "model" / "detector.json").read_text(encoding="utf-8"))
    assert "view_score" in saved["input"]
    assert "piece_score" not in saved["input"]
    assert "scheme" in saved["data"]


def test_old_results_are_read_evaluated_and_reported(tmp_path: Path) -> None:
    shutil.copytree(OLD / "vq-results", tmp_path / "R")
    results = read_results(tmp_path / "R")
    assert results.extra_maps() == ["changed_codes", "code_nll", "reconstruction"]
    for i in range(len(results)):
        assert results.file("uncertainty", i, ".npy") == tmp_path / "R" / "spread" / f"{results.paths[i]}.npy"
        assert results.file("extra_maps/code_nll", i, ".npy") is not None
    before = json.loads((OLD / "vq-results" / "metrics.json").read_text(encoding="utf-8"))
    evaluate(tmp_path / "R")
    after = json.loads((tmp_path / "R" / "metrics.json").read_text(encoding="utf-8"))
    assert after["image"]["auroc"] == before["image"]["auroc"]
    assert after["pixel"]["auroc"] == before["pixel"]["auroc"]
    page = write_report(tmp_path / "R", open_data(OLD / "parts").select(split="test")).read_text(encoding="utf-8")
    assert "code nll" in page
    assert "uncertainty" in page
