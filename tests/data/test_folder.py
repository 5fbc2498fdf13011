import os
import time

import numpy as np
import pytest
from PIL import Image

from normalcy.data.check import check
from normalcy.data.formats import Limits
from normalcy.data.open import open_data, open_files
from normalcy.errors import DataError


def picture(path, value=9, size=(6, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path)
    return path


@pytest.fixture
def mvtec(tmp_path):
    root = tmp_path / "bottle"
    for name in (
        "train/good/000.png",
        "train/good/001.png",
        "validation/good/000.png",
        "test/good/000.png",
        "test/crack/000.png",
        "test/crack/001.png",
        "test/dent/000.png",
    ):
        picture(root / name)
    picture(root / "ground_truth/crack/000_mask.png", 255)
    picture(root / "ground_truth/crack/001.png", 255)
    (root / "readme.txt").write_text("x")
    return root


def test_mvtec_layout(mvtec):
    data = open_data(mvtec)
    assert data.name == "bottle"
    assert {item.path: (item.split, item.label, item.type) for item in data.items} == {
        "train/good/000.png": ("train", 0, "good"),
        "train/good/001.png": ("train", 0, "good"),
        "validation/good/000.png": ("train", 0, "good"),
        "test/good/000.png": ("test", 0, "good"),
        "test/crack/000.png": ("test", 1, "crack"),
        "test/crack/001.png": ("test", 1, "crack"),
        "test/dent/000.png": ("test", 1, "dent"),
    }
    cracked = data.select(split="test", label=1)
    assert cracked.mask(0).all()
    assert cracked.mask(1).all()
    assert cracked.mask(2) is None
    assert not data.select(split="test", label=0).mask(0).any()
    assert data.ignored == ("readme.txt",)


def test_mvtec_without_masks(mvtec):
    for file in (mvtec / "ground_truth" / "crack").iterdir():
        file.unlink()
    data = open_data(mvtec)
    assert not data.has_masks
    assert data.mask(0) is None


def test_a_folder_of_several_sets_is_refused(mvtec):
    picture(mvtec.parent / "cable" / "train" / "good" / "0.png")
    with pytest.raises(DataError, match=r"got 2 in its folders bottle, cable; name one of them, for example .*/bottle"):
        open_data(mvtec.parent)


def test_plain_folder(tmp_path):
    for name in ("b/1.png", "a.bmp", "train/x.png"):
        picture(tmp_path / name)
    data = open_data(tmp_path)
    assert [(i.path, i.case, i.label, i.split, i.type) for i in data.items] == [
        (name, name, None, None, None) for name in ("a.bmp", "b/1.png", "train/x.png")
    ]
    assert not data.has_masks


def test_a_folder_without_images(tmp_path):
    (tmp_path / "scan.doc").write_text("x")
    with pytest.raises(DataError, match=r"got 1 other files, such as scan\.doc"):
        open_data(tmp_path)


@pytest.mark.parametrize(
    "words", [("train", "OK", "test"), ("Train", "Good", "Test"), ("training", "normal", "testing")]
)
def test_the_layout_in_other_words(tmp_path, words):
    train, good, test = words
    for name in (f"{train}/{good}/0.png", f"{test}/{good}/1.png", f"{test}/NG/2.png", "Ground_Truth/ng/2_mask.PNG"):
        picture(tmp_path / name, 255)
    data = open_data(tmp_path)
    assert [(item.path, item.split, item.label, item.type) for item in data.items] == [
        (name, split, label, kind)
        for name, split, label, kind in sorted(
            [
                (f"{train}/{good}/0.png", "train", 0, "good"),
                (f"{test}/{good}/1.png", "test", 0, "good"),
                (f"{test}/NG/2.png", "test", 1, "NG"),
            ]
        )
    ]
    assert data.select(label=1).mask(0).all()
    assert data.ignored == ()


@pytest.mark.parametrize(
    "names",
    [
        ("images/0.png", "bad/0.png"),
        ("photos/0.png", "NG/1.png"),
        ("a/ko/0.png",),
        ("images/0.png", "masks/0.png"),
        ("images/0.png", "Ground Truth/0.png"),
        ("0.png", "0_mask.png"),
        ("train/0.png", "test/0.png"),
        ("train/0.png", "train_defects/0.png"),
        ("normal/0.png", "abnormal_parts/0.png"),
        ("0.png", "labels/0.png"),
    ],
)
def test_folders_that_name_defects_or_masks_are_refused(tmp_path, names):
    for name in names:
        picture(tmp_path / name)
    with pytest.raises(
        DataError, match=r"may be anomalous or a mask, but no layout says .* train/good, .* table with labels"
    ):
        open_data(tmp_path)


def test_names_that_only_look_like_it_are_not(tmp_path):
    (tmp_path / "bad").mkdir()
    names = ("badger/0.png", "okay/1.png", "a/bad.png", "masked_ball/2.png", "label.png", "kodak/3.png", "train/x.png")
    for name in names:
        picture(tmp_path / "bad" / name)
    assert len(open_data(tmp_path / "bad")) == len(names)


def test_what_lies_elsewhere_in_the_layout_has_its_reason(mvtec):
    picture(mvtec / "test/9.png")
    picture(mvtec / "other/9.png")
    picture(mvtec / "ground_truth/crack/7_mask.png")
    picture(mvtec / "ground_truth/8.png")
    said = {fault.path: fault.problem for fault in check(open_data(mvtec))}
    assert said["test/9.png"].startswith(
        "directly in test: put it in test/good, or in test/ and the type of its defect"
    )
    assert said["other/9.png"] == "outside of the folders train, validation, test and ground_truth; passed over"
    for mask in ("ground_truth/crack/7_mask.png", "ground_truth/8.png"):
        assert said[mask] == "a mask that matches no test image; passed over"
    assert said["readme.txt"] == "not an image that can be read; passed over"


def test_folders_that_normalcy_wrote_are_passed_over(tmp_path):
    picture(tmp_path / "a.png")
    for name in (
        "R/restored/a.png",
        "R/run.json",
        "R/scores.csv",
        "M/detector.json",
        "M/weights.safetensors",
        "M/b.png",
    ):
        picture((tmp_path / name).with_suffix(".png")).rename(tmp_path / name)
    data = open_data(tmp_path)
    assert [item.path for item in data.items] == ["a.png"]
    assert data.reasons == {"M": "a model folder of normalcy", "R": "a results folder of normalcy"}
    with pytest.raises(DataError, match="is a results folder of normalcy; name a folder of images"):
        open_data(tmp_path / "R")
    assert len(open_data(tmp_path / "R" / "restored")) == 1


def test_deep_folders_and_circles_end(tmp_path):
    deep = tmp_path
    for _ in range(1200):
        deep = deep / "d"
        deep.mkdir()
    (deep / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"folders nested more than 100 deep"):
        open_data(tmp_path)
    picture(tmp_path / "b.png")
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    data = open_data(tmp_path)
    assert [item.path for item in data.items] == ["b.png"]
    (deep / "a.png").unlink()
    while deep != tmp_path:  # deeper than what removes temporary folders can
        deep.rmdir()
        deep = deep.parent


def test_special_files_are_listed(tmp_path):
    for i in range(3):
        picture(tmp_path / f"{i}.png", i)
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    said = {fault.path: fault.problem for fault in check(open_data(tmp_path))}
    assert "is not a regular file (a pipe)" in said["pipe.png"]
    assert "is not a regular file (a device)" in said["zero.png"]
    assert said["pipe"] == "not an image that can be read; passed over"


def test_20_000_paths_in_a_list_are_opened_soon(tmp_path):
    picture(tmp_path / "a.png")
    paths = [tmp_path / f"{i}.png" for i in range(20_000)]
    for path in paths:
        os.link(tmp_path / "a.png", path)
    started = time.process_time()
    data = open_files(paths)
    assert [item.path for item in data.items] == [path.name for path in paths]
    assert time.process_time() - started < 2.5  # 40,000 took 9 s when every path was looked for among all
    with pytest.raises(DataError, match=r"7\.png: given more than once"):
        open_files([*paths, paths[7]])


def test_masks_marked_the_wrong_way_round(mvtec):
    picture(mvtec / "ground_truth/dent/000_mask.png", 255)
    said = [fault.problem for fault in check(open_data(mvtec)) if fault.path == "bottle"]
    assert said[0] == "the masks of 3 of 3 anomalous images mark more than half of the pixels: are they inverted?"


def test_limits_reach_the_files(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("path\na.png\n")
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((50, 40, 40), np.float64))
    for spec in (tmp_path, tmp_path / "a.png", tmp_path / "t.csv"):
        assert open_data(spec).read(0).shape == (1, 6, 8)
        with pytest.raises(DataError, match="48 values, more than the limit of 47"):
            open_data(spec, limits=Limits(values=47)).read(0)
    with pytest.raises(DataError, match="more than 0 rows"):
        open_data(tmp_path / "t.csv", limits=Limits(rows=0))
    assert len(open_data(tmp_path / "a.npz")) == 50
    with pytest.raises(DataError, match=r"640,128 bytes when decompressed, at most 640,000"):
        open_data(tmp_path / "a.npz", limits=Limits(decoded_bytes=640_000))
