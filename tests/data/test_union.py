"""Several data sets in one: what it holds, one model of several classes, and metrics by class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from normalcy import DataError, Detector, open_data, union
from normalcy.cli.app import app
from normalcy.data.dataset import DataSet
from normalcy.data.open import as_dataset
from normalcy.data.splits import images_to_score, normal_training_images
from normalcy.metrics import aupro, auroc, pixel_auroc
from normalcy.results.comparison import read_comparison
from normalcy.results.evaluate import evaluate
from normalcy.results.folder import read_results
from normalcy.results.metrics import read_metrics
from normalcy.results.predict import score_into
from normalcy.testing import smooth_textures

SIDE = 16
LEVELS = {"bottle": 0, "cable": 90}
"""Grey level added to the textures of each class."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes in MVTec AD's layout: 40 and 30 training images, 10 normal and 10 defective test images with masks."""
    root = tmp_path_factory.mktemp("data")
    for name, (level, count) in zip(LEVELS, ((0, 40), (90, 30))):
        images = 200 * smooth_textures(count + 20, (1, SIDE, SIDE), seed=level)[:, 0].numpy() + level
        masks = np.zeros((10, SIDE, SIDE), bool)
        masks[:, 4:8, 6:10] = True
        images[-10:][masks] += 45
        for k, image in enumerate(images):
            kind = "train/good" if k < count else "test/good" if k < count + 10 else "test/spot"
            save(root / name / kind / f"{k:03}.png", image)
        for k, mask in enumerate(masks):
            save(root / name / "ground_truth/spot" / f"{count + 10 + k:03}_mask.png", 255 * mask)
    return root


def save(file: Path, values: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(file)


@pytest.fixture(scope="module")
def both(root: Path) -> DataSet:
    return open_data(f"{root / 'bottle'},{root / 'cable'}")


def test_a_union_holds_the_images_of_its_parts(root: Path, both: DataSet) -> None:
    parts = [open_data(root / name) for name in LEVELS]
    assert both.classes == ("bottle", "cable")
    assert both.name == "bottle + cable"
    assert len(both) == 60 + 50
    assert both.root == root
    place = 0
    for name, part in zip(LEVELS, parts):
        for i, item in enumerate(part.items):
            ours = both.items[place]
            assert (ours.path, ours.case) == (f"{name}/{item.path}", f"{name}/{item.case}")
            assert (ours.label, ours.type, ours.split) == (item.label, item.type, item.split)
            assert np.array_equal(both.read(place), part.read(i))
            assert both.stamp(place) == part.stamp(i)
            assert both.size(place) == part.size(i)
            assert both.source(place) == part.source(i)
            if item.label == 1:
                assert np.array_equal(both.mask(place), part.mask(i))
            place += 1
    again = as_dataset(parts)
    assert again.fingerprint() == both.fingerprint() == union(parts).fingerprint()
    assert len(normal_training_images(both)) == 70
    test = images_to_score(both, None)[0]
    assert (len(test), test.classes) == (40, both.classes)


def test_named_sets_and_arrays_are_told_apart_by_name(tmp_path: Path) -> None:
    images = np.zeros((6, 8, 8), np.uint8)
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", images=images)
    both = open_data(f"{tmp_path / 'a.npz'},{tmp_path / 'b.npz'}")
    assert both.classes == ("a", "b")
    assert {item.path.partition("/")[0] for item in both.items} == {"a", "b"}
    assert len({item.path for item in both.items}) == 12


def test_a_folder_with_a_comma_in_its_name_is_one_set(tmp_path: Path) -> None:
    save(tmp_path / "a,b/0.png", np.zeros((8, 8)))
    assert open_data(tmp_path / "a,b").classes == ()


def test_normal_images_without_a_split_beside_others_are_for_training(root: Path, tmp_path: Path) -> None:
    save(tmp_path / "more/0.png", np.zeros((SIDE, SIDE)))
    both = union([open_data(root / "bottle"), open_data(tmp_path / "more")])
    assert both.items[-1].split == "train"
    assert both.items[-1].path.endswith("more/0.png")
    assert len(normal_training_images(both)) == 41


def test_refusals(root: Path, tmp_path: Path) -> None:
    bottle = open_data(root / "bottle")
    with pytest.raises(DataError, match="at least two data sets, got 1"):
        union([bottle])
    with pytest.raises(DataError, match="two data sets are called bottle"):
        union([bottle, bottle])
    for file in ("x/0.png", "x/y/0.png"):
        save(tmp_path / file, np.zeros((8, 8)))
    inside = [open_data(tmp_path / "x"), open_data(tmp_path / "x/y")]
    with pytest.raises(DataError, match="holds another one of the data sets"):
        union(inside)
    labelled = as_dataset(np.zeros((4, SIDE, SIDE), np.uint8), labels=[0, 0, 1, 1])
    with pytest.raises(DataError, match="images has anomalous images but no split"):
        union([bottle, labelled])
    with pytest.raises(DataError, match="neither a file or folder"):
        open_data(f"{root / 'bottle'},{root / 'bottel'}")


def test_metrics_by_class_are_those_of_each_class_alone(both: DataSet, tmp_path: Path) -> None:
    """Of scores by one model: against the metrics of the part of the table."""
    detector = Detector("pca", components=4, device="cpu", calibration=0.3).fit(both)
    test, split = images_to_score(both, None)
    score_into(detector, test, tmp_path / "R", split=split)
    found = evaluate(tmp_path / "R", resamples=50)
    assert found.classes is not None
    assert list(found.classes) == ["bottle", "cable"]
    read = read_results(tmp_path / "R")
    assert read.run.data.classes == ("bottle", "cable")
    for name, own in found.classes.items():
        rows = np.flatnonzero([path.startswith(f"{name}/") for path in read.paths])
        labels, scores, flagged = read.labels[rows], read.scores[rows], read.flagged[rows]
        assert (own.normal, own.anomalous) == (10, 10)
        assert own.auroc.value == pytest.approx(auroc(labels, scores))
        assert own.false_positive_rate == pytest.approx((flagged[labels == 0] == 1).mean())
        assert own.true_positive_rate == pytest.approx((flagged[labels == 1] == 1).mean())
        maps = [np.load(tmp_path / "R/maps" / f"{read.files[i]}.npy") for i in rows]
        masks = [test.mask([item.path for item in test.items].index(read.paths[i])) for i in rows]
        assert own.pixel_auroc == pytest.approx(pixel_auroc(maps, masks))
        assert own.aupro == pytest.approx(aupro(maps, masks, 0.3))
    assert found.class_mean is not None
    assert found.class_mean.auroc == pytest.approx(np.mean([own.auroc.value for own in found.classes.values()]))
    assert read_metrics(tmp_path / "R") == found


def test_one_set_has_no_classes(root: Path, tmp_path: Path) -> None:
    data = open_data(root / "bottle")
    detector = Detector("zscore", device="cpu").fit(data)
    score_into(detector, data.select("test"), tmp_path / "R")
    found = evaluate(tmp_path / "R", resamples=50)
    assert found.classes is None
    assert found.class_mean is None
    assert "class" not in (tmp_path / "R/metrics.json").read_text()


def test_compare_prints_a_line_for_each_class_and_their_mean(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = f"{root / 'bottle'},{root / 'cable'}"
    words = ["compare", spec, "--methods", "zscore,pca", "--out", str(tmp_path / "C"), "--device", "cpu"]
    assert app(words, standalone_mode=False) in (None, 0)
    printed = capsys.readouterr().out
    found = read_comparison(tmp_path / "C")
    for row in found.methods:
        assert row.classes is not None
        assert list(row.classes) == ["bottle", "cable"]
        for kind in ("bottle", "cable", "mean"):
            lines = [line.split() for line in printed.splitlines()]
            assert sum(line[:2] == [row.name, kind] for line in lines) == 1
        assert row.class_mean is not None
        assert f"{row.class_mean.auroc:.3f}" in printed
        assert f"{row.class_mean.auroc:.3f}" in (tmp_path / "C/report.html").read_text()
    for page in (tmp_path / "C/report.html", tmp_path / "C/pca/report.html"):
        assert "its anomalous images against its own normal ones" in page.read_text()
