"""What a method shows beside its scores reaches the results folder and the report."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from example_parts import save, texture

from normalcy import Detector
from normalcy.data.open import as_dataset, open_data
from normalcy.report import write_report
from normalcy.results.evaluate import evaluate
from normalcy.results.folder import read_results
from normalcy.results.predict import score_into
from normalcy.results.run import Shard, read_run
from normalcy.results.shards import merge


def test_pictures_at_the_size_of_the_input(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (30, 20, 28), dtype=np.uint8)
    words = {"width": 4, "latent": 4, "steps": 2, "batch_size": 8, "size": 16}
    detector = Detector("ddr_id", **words).fit(images)
    data = as_dataset(images[:3])
    score_into(detector, data, tmp_path / "results")
    results = read_results(tmp_path / "results")
    assert results.extra_maps() == ["residual"]
    for i in range(3):
        file = results.file("extra_maps/residual", i, ".npy")
        assert file is not None
        picture = np.load(file)
        assert picture.shape == (1, 20, 28)
        expected = detector.score(images[i : i + 1])[0].extra_maps["residual"]
        np.testing.assert_allclose(picture, expected, atol=1e-5)
    page = write_report(tmp_path / "results", dataset=data).read_text(encoding="utf-8")
    assert page.count('<span class="name">residual</span>') == 2 * 3, "in the most normal and the most anomalous images"


def test_cases_of_several_images(tmp_path: Path) -> None:
    """A case is as strange as its strangest image, and its p-value counts how often one looked."""
    rng = np.random.default_rng(0)
    detector = Detector("pca", components=3, calibration=0.5).fit(rng.normal(size=(60, 8, 8)).astype(np.float32))
    images = rng.normal(size=(12, 8, 8)).astype(np.float32)
    images[[1, 7]] *= 3
    plain = as_dataset(images, labels=[int(i in (1, 7)) for i in range(12)])
    data = plain.with_items([replace(item, case=f"patient {i // 3}") for i, item in enumerate(plain.items)])
    score_into(detector, data, tmp_path / "results")
    results = read_results(tmp_path / "results")
    with open(tmp_path / "results/cases.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == [f"patient {i}" for i in range(4)]
    for row, three in zip(rows, np.arange(12).reshape(4, 3)):
        assert float(row["score"]) == results.scores[three].max()
        assert float(row["p_value"]) == min(1.0, 3 * results.p_values[three].min())
        assert int(row["flagged"]) == results.flagged[three].max()
    assert [row["label"] for row in rows] == ["1", "0", "1", "0"]
    cases = evaluate(tmp_path / "results", resamples=20).case
    assert cases is not None
    assert cases.auroc is not None
    assert (cases.normal, cases.anomalous, cases.auroc.value) == (2, 2, 1.0)
    score_into(detector, plain, tmp_path / "single")
    assert not (tmp_path / "single/cases.csv").exists()
    assert evaluate(tmp_path / "single", resamples=20).case is None


def test_a_thousand_failures_are_listed_and_all_are_in_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normalcy.results.run.LISTED", 3)
    monkeypatch.setattr("normalcy.results.predict.LISTED", 3)
    for k in range(6):
        (tmp_path / f"bad{k}.png").write_bytes(b"no image")
    save(tmp_path / "good.png", texture(1))
    detector = Detector("zscore", calibration=0).fit(np.stack([texture(seed) for seed in range(20)]))
    data = open_data(tmp_path)
    run = score_into(detector, data, tmp_path / "out")
    assert [one.path for one in run.data.failed] == ["bad0.png", "bad1.png", "bad2.png"]
    assert (run.data.failed_count, run.data.incomplete_count) == (6, 0)
    assert read_run(tmp_path / "out").data == run.data
    with (tmp_path / "out" / "failed.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "reason"]
    assert [path for path, _ in rows[1:]] == [f"bad{k}.png" for k in range(6)]
    made = []
    for k in (1, 2, 3):
        made.append(tmp_path / f"shard{k}")
        score_into(detector, data, made[-1], shard=Shard(k, 3))
    merge(made, tmp_path / "all")
    assert read_run(tmp_path / "all").data.failed == run.data.failed
    assert (tmp_path / "all" / "failed.csv").read_bytes() == (tmp_path / "out" / "failed.csv").read_bytes()
