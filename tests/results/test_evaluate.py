"""The metrics of a results folder: those of normalcy.metrics and scikit-learn on what the folder holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from example_parts import MASK, write_table
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from normalcy import DataError, Detector, open_data
from normalcy.results.evaluate import evaluate
from normalcy.results.folder import ResultsFolder, read_results
from normalcy.results.metrics import read_metrics
from normalcy.results.predict import score_into


@pytest.fixture
def folder(detector: Detector, parts: Path) -> Path:
    score_into(
        detector, open_data(write_table(parts / "t.csv", "img/", "msk/")), parts / "R", decision=detector.decide(0.2)
    )
    return parts / "R"


def pixels(read: ResultsFolder) -> tuple[np.ndarray, np.ndarray]:
    """All values of maps, and whether they are marked."""
    maps = [np.load(read.folder / "maps" / f"{file}.npy") for file in read.files]
    truth = [np.broadcast_to(MASK > 0, m.shape) & (label == 1) for m, label in zip(maps, read.labels)]
    return np.concatenate([m.ravel() for m in maps]), np.concatenate([t.ravel() for t in truth])


def test_by_image_and_by_pixel(folder: Path) -> None:
    found, read = evaluate(folder, resamples=100), read_results(folder)
    assert found.image.auroc.value == pytest.approx(roc_auc_score(read.labels, read.scores))
    assert found.image.average_precision.value == pytest.approx(average_precision_score(read.labels, read.scores))
    at, flagged = found.image.at_threshold, read.flagged == 1
    assert at is not None
    assert at.false_positives == (flagged & (read.labels == 0)).sum()
    assert at.true_positives == (flagged & (read.labels == 1)).sum()
    assert at.f1 == pytest.approx(f1_score(read.labels, flagged))
    assert read.run.calibration is not None
    assert at.threshold == read.run.calibration.threshold
    values, truth = pixels(read)
    pixel = found.pixel
    assert pixel is not None
    assert pixel.at_threshold is not None
    assert pixel.average_precision is not None
    assert pixel.auroc.value == pytest.approx(roc_auc_score(truth, values))
    assert pixel.average_precision.value == pytest.approx(average_precision_score(truth, values))
    threshold = read.run.calibration.pixel_threshold
    assert threshold is not None
    assert pixel.at_threshold.f1 == pytest.approx(f1_score(truth, values > threshold))
    assert pixel.at_threshold.false_positive_rate == pytest.approx((values[: 4 * MASK.size] > threshold).mean())
    assert found.region is not None
    assert found.region.total == 4
    assert found.patch is not None
    assert found.patch.size == 4
    assert read_results(folder).metrics == read_metrics(folder) == found


def test_intervals_are_ordered_and_repeat(folder: Path) -> None:
    found = evaluate(folder, resamples=100, seed=3)
    for interval in (found.image.auroc, found.image.average_precision, found.image.fpr_at_95_tpr):
        assert interval.low is not None
        assert interval.value is not None
        assert interval.high is not None
        assert interval.low <= interval.value <= interval.high
    assert evaluate(folder, resamples=100, seed=3) == found


def test_without_a_threshold_nothing_is_said_of_one(detector: Detector, parts: Path) -> None:
    score_into(detector, open_data(write_table(parts / "t.csv", "img/", "msk/")), parts / "R", tile=True)
    found = evaluate(parts / "R", resamples=50)
    assert found.image.at_threshold is None
    assert found.pixel is not None
    assert found.pixel.at_threshold is None
    assert found.pixel.regions is None


def test_without_masks_there_are_no_metrics_of_maps(detector: Detector, parts: Path) -> None:
    table = parts / "t.csv"
    table.write_text(
        "path,label\n" + "".join(f"img/{kind}{k}.png,{int(kind == 'd')}\n" for k in range(4) for kind in "nd")
    )
    score_into(detector, open_data(table), parts / "R")
    found = evaluate(parts / "R", resamples=50)
    assert (found.pixel, found.patch, found.region) == (None, None, None)
    assert found.curves.roc is not None
    assert found.curves.pro is None


def test_one_class_alone_has_no_areas(detector: Detector, parts: Path) -> None:
    data = open_data(write_table(parts / "t.csv", "img/", "msk/")).select(label=1)
    score_into(detector, data, parts / "R")
    found = evaluate(parts / "R", resamples=50)
    assert found.image.auroc.value is None
    assert found.image.at_threshold is not None
    assert found.image.at_threshold.false_positive_rate is None
    assert found.curves.roc is None


def test_cases_have_the_highest_score_of_their_images(detector: Detector, parts: Path) -> None:
    data = open_data(write_table(parts / "t.csv", "img/", "msk/"))
    data = data.with_items([replace(item, case=f"part {i % 4}") for i, item in enumerate(data.items)])
    score_into(detector, data, parts / "R")
    found = evaluate(parts / "R", resamples=50)
    assert found.case is not None
    assert (found.case.normal, found.case.anomalous, found.case.auroc) == (0, 4, None)


def test_labels_are_needed(detector: Detector, parts: Path) -> None:
    score_into(detector, open_data(parts / "img"), parts / "R")
    with pytest.raises(DataError, match="has no labels"):
        evaluate(parts / "R")
    assert not (parts / "R/metrics.json").exists()


def test_images_without_a_label_are_left_out(detector: Detector, parts: Path) -> None:
    data = open_data(write_table(parts / "t.csv", "img/", "msk/"))
    data = data.with_items([replace(item, label=None if i < 2 else item.label) for i, item in enumerate(data.items)])
    score_into(detector, data, parts / "R")
    found = evaluate(parts / "R", resamples=50)
    assert (found.image.normal, found.image.anomalous) == (2, 4)
    assert "2 images without a label are left out." in found.notes
