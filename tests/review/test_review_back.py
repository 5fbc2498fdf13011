"""Judgements come back: into evaluation, report, training, settings, thresholds and calibration; and never into a test set that
they chose."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from runner import Run

from normalcy import load
from normalcy.data.images import read_mask
from normalcy.data.open import open_data
from normalcy.errors import DataError
from normalcy.metrics import auroc
from normalcy.report import write_report
from normalcy.results.evaluate import evaluate
from normalcy.results.folder import read_results
from normalcy.results.labels import open_review
from normalcy.review import masks
from normalcy.review.labels import write_labels
from normalcy.review.session import Review
from normalcy.review.store import Decision

TRUTH = [int(k % 3 == 0) for k in range(30)]


def judge(results: Path, images: range | list[int], truth: Path | None = None) -> Path:
    """Review images by the truth, with the true masks where they are given; returns the review folder."""
    review = Review([results])
    for k in images:
        image, mask = f"{k:02d}.png", ""
        if TRUTH[k] and truth is not None:
            place = masks.name_of("anna", image, False)
            mask = masks.write(review.folder, place, read_mask(truth / image), None)
        kind = "spot" if TRUTH[k] else ""
        review.store.add(Decision(image, "anna", "anomalous" if TRUTH[k] else "normal", kind, mask=mask))
    write_labels(review.store, review.known)
    review.store.close()
    return review.folder


@pytest.fixture
def judged(results: Path, made: Path) -> Path:
    judge(results, range(24), made / "truth")
    return results


def test_evaluate_with_a_review(judged: Path, made: Path, run: Run):
    """The numbers are those of the reviewed images, masks included."""
    with pytest.raises(DataError, match="evaluate with --labels review"):
        evaluate(judged)
    said = run.good("evaluate", judged, "--labels", "review")
    assert "16 normal and 8 anomalous images" in said
    found = evaluate(judged, labels="review")
    read = read_results(judged)
    assert found.image.auroc.value == pytest.approx(auroc(TRUTH[:24], read.scores[:24]))
    assert found.labels == "review/labels.csv"
    assert found.types["spot"].count == 8
    assert found.pixel is not None
    assert found.pixel.images == 24
    assert found.pixel.auroc.value is not None
    assert found.pixel.auroc.value > 0.8
    assert found.drawn is None
    assert any("need not be typical" in note for note in found.notes)


def test_the_report_uses_them(judged: Path, run: Run):
    run.good("evaluate", judged, "--labels", "review")
    run.good("report", judged)
    page = (judged / "report.html").read_text()
    assert "16 normal, 8 anomalous, 6 unlabelled" in page


def test_other_places_of_labels(judged: Path, tmp_path: Path):
    places = ("review", judged, judged / "review", judged / "review/labels.csv")
    numbers = {evaluate(judged, labels=place).image.auroc.value for place in places}
    assert len(numbers) == 1
    table = tmp_path / "own.csv"
    table.write_text(
        "path,label\n" + "".join(f"{k:02d}.png,{'anomalous' if TRUTH[k] else 'good'}\n" for k in range(24))
    )
    assert {evaluate(judged, labels=table).image.auroc.value} == numbers
    assert write_report(judged).exists()  # the labels of a table elsewhere are not looked for
    table.write_text("path,label\nelsewhere.png,1\n")
    with pytest.raises(DataError, match="none of its 1 images is in"):
        evaluate(judged, labels=table)
    table.write_text("path,label\n00.png,perhaps\n")
    with pytest.raises(DataError, match="line 2 has the label 'perhaps'"):
        evaluate(judged, labels=table)


def test_reviewers_who_disagree_leave_an_image_unlabelled(judged: Path):
    before = evaluate(judged, labels="review").image
    review = Review([judged])
    review.store.add(Decision("00.png", "ben", "normal"))
    review.store.add(Decision("01.png", "ben", "unsure"))
    write_labels(review.store, review.known)
    review.store.close()
    after = evaluate(judged, labels="review").image
    assert (after.normal, after.anomalous) == (before.normal, before.anomalous - 1)


def test_rates_of_all_images_from_a_few(results: Path, run: Run):
    """Reviewed in the informative order, so that evaluate estimates the rates of the whole folder."""
    review = Review([results])
    plan = review.sampling
    assert plan is not None
    first = list(dict.fromkeys(plan.images))[:14]
    review.store.close()
    judge(results, [int(image[:2]) for image in first])
    said = run.good("evaluate", results, "--labels", "review")
    assert "of all images, estimated from 14 reviewed in the informative order" in said
    drawn = evaluate(results, labels="review").drawn
    assert drawn is not None
    read = read_results(results)
    truth, flagged = np.array(TRUTH), read.flagged == 1
    assert drawn.precision.low is not None
    assert drawn.precision.low <= truth[flagged].mean() <= drawn.precision.high
    assert drawn.anomalous.low <= truth.mean() <= drawn.anomalous.high


# -- as data


def test_a_review_is_data(judged: Path, made: Path):
    data = open_review(judged / "review")
    assert [item.path for item in data.items] == [f"{k:02d}.png" for k in range(24)]
    assert data.labels.tolist() == TRUTH[:24]
    np.testing.assert_array_equal(data.mask(3), read_mask(made / "truth/03.png"))
    mask = data.mask(1)
    assert mask is not None
    assert not mask.any()
    assert data.items[0].type == "spot"


def test_labels_csv_is_a_table(judged: Path):
    """Also without its results folder: it names the files."""
    data = open_data(judged / "review/labels.csv")
    assert data.labels.tolist() == TRUTH[:24]
    assert data.read(0).shape == (1, 48, 64)
    mask = data.mask(3)
    assert mask is not None
    assert mask.sum() == 99


# -- training


def test_fit_without_confirmed_anomalies(made: Path, copy_of: Callable[[Path], Path], tmp_path: Path, run: Run):
    """Of a training set with 10 anomalies, after a review those are not trained on."""
    data = Path(shutil.copytree(made / "data", tmp_path / "mixed"))
    for k in range(0, 30, 3):
        shutil.copy(made / f"line/{k:02d}.png", data / f"extra-{k:02d}.png")
    run.good("audit", data, "--method", "pca", "--set", "size=32", "--out", tmp_path / "audited", "--folds", "2")
    review = Review([tmp_path / "audited"])
    for k in range(0, 30, 3):
        review.store.add(Decision(f"extra-{k:02d}.png", "anna", "anomalous"))
    review.store.add(Decision("00.png", "anna", "normal"))
    write_labels(review.store, review.known)
    review.store.close()
    words = ["fit", data, "--method", "pca", "--set", "size=32", "--set", "calibration=0"]
    run.good(*words, "--out", tmp_path / "all")
    said = run.good(*words, "--out", tmp_path / "clean", "--exclude", tmp_path / "audited/review/labels.csv")
    assert "10 excluded by labels" in said
    assert "on 80 images" in said
    run.good("fit", made / "data", *words[2:], "--out", tmp_path / "same")
    a, b = (json.loads((tmp_path / name / "detector.json").read_text()) for name in ("clean", "same"))
    assert a["weights_sha256"] == b["weights_sha256"]
    assert a["data"]["excluded"] == 10
    assert json.loads((tmp_path / "all/detector.json").read_text())["weights_sha256"] != a["weights_sha256"]
    assert "none of its 10 anomalous images is in" in run.said(
        "fit", made / "line", *words[2:], "--out", tmp_path / "x", "--exclude", tmp_path / "audited"
    )


# -- what chose something is no test set


def test_settings_chosen_by_a_review(judged: Path, made: Path, tmp_path: Path, run: Run):
    """select -> fit --config -> score -> evaluate: the images that chose the settings are not counted."""
    select = ["select", made / "data", "--anomalies", judged / "review", "--method", "pca", "--set", "size=32"]
    run.good(*select, "--trials", "2", "--try", "components=4|16", "--out", tmp_path / "choice")
    chosen = json.loads((tmp_path / "choice/select.json").read_text())["chosen_on"]
    line = open_data(str(made / "line"))
    assert chosen == sorted(line.trace(k) for k in range(24) if TRUTH[k])
    run.good("fit", made / "data", "--config", tmp_path / "choice/best.toml", "--out", tmp_path / "model")
    run.good("score", tmp_path / "model", made / "line", "--out", tmp_path / "again")
    wanted = [f"{k:02d}.png" for k in range(24) if TRUTH[k]]
    assert json.loads((tmp_path / "again/run.json").read_text())["chosen_on"] == wanted
    assert load(tmp_path / "model").facts["data"]["chosen_on"] == chosen
    with pytest.raises(DataError, match="has no labels"):
        evaluate(tmp_path / "again")
    found = evaluate(tmp_path / "again", labels=judged / "review")
    assert found.image.anomalous == 0
    assert any("8 images whose labels chose" in note for note in found.notes)
    only = tmp_path / "only.csv"
    only.write_text("path,label\n" + "".join(f"{k:02d}.png,1\n" for k in range(24) if TRUTH[k]))
    with pytest.raises(DataError, match="all 8 images with a label chose the settings or the threshold"):
        evaluate(tmp_path / "again", labels=only)
    assert "chose the settings or the threshold" in run.said("evaluate", tmp_path / "again", "--labels", only)
    # under other names, too; other images under the same names are test images
    (tmp_path / "renamed").mkdir()
    for k in range(0, 30, 3):
        shutil.copy(made / f"line/{k:02d}.png", tmp_path / f"renamed/x{k:02d}.png")
        shutil.copy(made / f"data/{k:02d}.png", tmp_path / f"renamed/{k:02d}.png")
    run.good("score", tmp_path / "model", tmp_path / "renamed", "--out", tmp_path / "third")
    assert json.loads((tmp_path / "third/run.json").read_text())["chosen_on"] == [f"x{name}" for name in wanted]


def test_a_threshold_chosen_by_a_review(judged: Path, made: Path, tmp_path: Path, run: Run):
    words = ["score", made / "model", "--rule", "max_f1", "--validation", judged / "review"]
    said = run.said(*words, made / "line", "--out", tmp_path / "again")
    assert "24 of the images scored choose the threshold" in said
    with pytest.raises(DataError, match="all 24 images with a label chose"):
        evaluate(tmp_path / "again", labels=judged / "review")
    judge(tmp_path / "again", range(20, 30))
    found = evaluate(tmp_path / "again", labels="review")
    assert (found.image.normal, found.image.anomalous) == (4, 2)
    read = read_results(tmp_path / "again")
    assert read.run.calibration is not None
    assert read.run.calibration.rule == "max_f1"
    rows = list(csv.DictReader((judged / "review/labels.csv").open(newline="")))
    for row in rows[:20]:
        (tmp_path / "few").mkdir(exist_ok=True)
        shutil.copy(made / "line" / row["image"], tmp_path / "few" / row["image"])
    files = [made / "line" / f"{k:02d}.png" for k in range(20)]
    assert "all 20 images to score are in --validation" in run.said(*words, *files, "--out", tmp_path / "few-results")


def test_calibrated_by_a_review(judged: Path, made: Path, tmp_path: Path, run: Run):
    """p-values of confirmed normal images of the new line; they are no test images afterwards."""
    said = run.good(
        "calibrate", made / "model", judged / "review", "--false-alarms", "0.2", "--out", tmp_path / "model2"
    )
    assert "on 16 normal images" in said
    before, after = load(made / "model"), load(tmp_path / "model2")
    assert after.calibration is not None
    assert after.calibration.count == 16
    read = read_results(judged)
    normal = [k for k in range(24) if not TRUTH[k]]
    np.testing.assert_allclose(after.calibration.scores, np.sort(read.scores[normal]), rtol=1e-4)
    assert after.decision.false_alarms == 0.2
    assert after.facts["data"]["held_out"] == 16
    assert after.facts["data"]["calibrated_on"]["count"] == 16
    assert before.calibration is not None
    assert before.calibration.count != 16
    a, b = (json.loads((folder / "detector.json").read_text()) for folder in (made / "model", tmp_path / "model2"))
    assert a["weights_sha256"] == b["weights_sha256"]
    run.good("score", tmp_path / "model2", made / "line", "--out", tmp_path / "again")
    only = tmp_path / "normal.csv"
    only.write_text("path,label\n" + "".join(f"{k:02d}.png,0\n" for k in normal))
    with pytest.raises(DataError, match="all 16 images with a label chose"):
        evaluate(tmp_path / "again", labels=only)


def test_what_cannot_be_calibrated(judged: Path, made: Path, tmp_path: Path, run: Run):
    table = tmp_path / "anomalous.csv"
    table.write_text(f"path,label\n{made / 'line/00.png'},1\n")
    assert "no image labelled normal" in run.said("calibrate", made / "model", table, "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_anomalies_of_the_test_split_choose_nothing(tmp_path: Path, made: Path, run: Run):
    """Also through a review of its results."""
    data = tmp_path / "parts"
    for k in range(30):
        folder = data / ("test/spot" if TRUTH[k] else "test/good")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(made / f"line/{k:02d}.png", folder / f"{k:02d}.png")
    shutil.copytree(made / "data", data / "train/good")
    run.good("score", made / "model", data, "--out", tmp_path / "results")
    review = Review([tmp_path / "results"])
    for path in review.read.paths:
        review.store.add(Decision(path, "anna", "anomalous" if "spot" in path else "normal"))
    write_labels(review.store, review.known)
    review.store.close()
    words = ["select", data, "--anomalies", tmp_path / "results/review", "--method", "pca", "--set", "size=32"]
    assert "are test images of" in run.said(
        *words, "--trials", "1", "--try", "components=4|16", "--out", tmp_path / "choice"
    )


# -- the command


def test_review_command_refuses(results: Path, tmp_path: Path, run: Run):
    assert "--order must be one of" in run.said("review", results, "--order", "best", "--no-browser")
    assert "cannot be read" in run.said("review", tmp_path / "nowhere", "--no-browser")
    assert "cannot be used" in run.said("review", results, "--port", "99999", "--no-browser")
    assert "--export must be one of coco, labelme" in run.said("review", results, "--export", "yolo")


def test_review_command_exports(judged: Path, run: Run, tmp_path: Path):
    said = run.good("review", judged, "--export", "coco", "--out", tmp_path / "coco")
    assert "Wrote 24 reviewed images as coco" in said
    run.good("review", judged, "--export", "labelme")
    assert (judged / "review/labelme/images/00.png.json").exists()
    run.good("review", judged, "--export", "labelme")  # its own folder is written again
    assert "is not empty" in run.said("review", judged, "--export", "coco", "--out", tmp_path / "coco")
