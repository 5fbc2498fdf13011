"""Layouts on the command line: what ``check`` prints, and what ``fit`` refuses."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runner import Run

from normalcy import load, open_data
from normalcy.errors import DataError


def pictures(root: Path, *places: str, count: int = 3, size: int = 16) -> Path:
    rng = np.random.default_rng(len(places))
    for place in places:
        for k in range(count):
            path = root / place / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(80, 120, (size, size), np.uint8)).save(path)
    return root


def mask(path: Path, size: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((size, size), np.uint8)
    values[2:5, 2:5] = 255
    Image.fromarray(values).save(path)


def test_check_prints_what_it_understood(run: Run, tmp_path: Path):
    parts = pictures(tmp_path / "parts", "train/good", "test/good", "test/dent", "test/scratch")
    mask(parts / "ground_truth/dent/0_mask.png")
    mask(parts / "ground_truth/dent/1_mask.png", 8)
    assert run("check", parts) == 1  # the mask of another size
    lines = run.out.splitlines()
    assert lines[:3] == ["Layout: MVTec AD.", "Training: 3 normal.", "Test: 3 normal, 3 dent, 3 scratch."]
    assert "Masks of anomalous images: 1 there, 4 missing, 1 of another size than the image." in lines
    assert "error: test/dent/1.png: mask is 8 x 8, the image 16 x 16 (rows x columns)" in lines


def test_check_says_that_images_without_annotation_are_normal(run: Run, tmp_path: Path):
    folder = pictures(tmp_path / "yolo", "images")
    (folder / "labels").mkdir()
    (folder / "labels/0.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    out = run.good("check", folder)
    assert "Layout: YOLO annotations.\nWithout split: 2 normal, 1 class 0.\n" in out
    assert "Note: images without annotation, which are taken as normal: 2.\n" in out
    assert "Masks of anomalous images: 1 there, 0 missing." in out


def test_fit_refuses_what_check_announces_and_trains_when_told_to(run: Run, tmp_path: Path):
    folder = pictures(tmp_path / "mixed", "photos", "bad", count=8)
    out = run.good("check", folder)
    assert "Layout: plain folder.\nWithout split: 16 unlabelled.\n" in out
    assert f"fit would refuse these images: {folder}: bad/0.png may be anomalous or a mask" in out
    fit = ("fit", folder, "--method", "zscore", "--set", "calibration=0", "--out", tmp_path / "model")
    assert run(*fit) == 1
    assert "bad/0.png may be anomalous or a mask, but no layout says which images are normal." in run.err
    assert "(MVTec AD)" in run.err
    assert "--as-normal" in run.err
    assert not (tmp_path / "model").exists()
    assert "Fitted zscore on 16 images" in run.good(*fit, "--as-normal")
    assert load(tmp_path / "model").facts["data"]["count"] == 16
    with pytest.raises(DataError, match="as_normal=True"):
        open_data(folder)


def test_fit_and_evaluate_a_folder_of_normal_abnormal_and_mask(run: Run, tmp_path: Path):
    """The anomalous images are not trained on; masks are no images."""
    folder = pictures(tmp_path / "parts", "normal", count=30)
    pictures(folder, "abnormal", count=4)
    for k in range(4):
        mask(folder / f"mask/{k}.png")
    fitted = run.good("fit", folder, "--method", "zscore", "--set", "calibration=0", "--out", tmp_path / "model")
    assert "Fitted zscore on 24 images" in fitted  # a fifth of the normal ones are test images
    run.good("score", tmp_path / "model", folder, "--split", "test", "--out", tmp_path / "results")
    assert "6 normal and 4 anomalous images" in run.good("evaluate", tmp_path / "results")


def test_score_needs_no_labels(run: Run, tmp_path: Path):
    """A folder that fit refuses can be scored."""
    pictures(tmp_path / "good", "a", count=8)
    run.good("fit", tmp_path / "good", "--method", "zscore", "--set", "calibration=0", "--out", tmp_path / "model")
    mixed = pictures(tmp_path / "mixed", "photos", "bad")
    run.good("score", tmp_path / "model", mixed, "--out", tmp_path / "results")
    assert len((tmp_path / "results" / "scores.csv").read_text().splitlines()) == 7


def test_a_named_set_on_the_command_line(run: Run, tmp_path: Path):
    pictures(tmp_path / "MVTec_AD" / "bottle", "train/good", "test/good", "test/broken_large", count=6)
    out = run.good("check", "mvtec:bottle", "--data-root", tmp_path)
    assert "mvtec:bottle: 18 images (12 normal, 6 anomalous, 0 unknown)" in out
    fit = ("fit", "mvtec:bottle", "--data-root", tmp_path, "--method", "zscore", "--set", "calibration=0")
    assert "Fitted zscore on 6 images" in run.good(*fit, "--out", tmp_path / "model")
    assert "Did you mean mvtec:bottle?" in run.said("check", "mvtec:bottl", "--data-root", tmp_path)
