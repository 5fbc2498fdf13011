import numpy as np
import pytest
from PIL import Image

from normalcy.data.open import open_data
from normalcy.errors import DataError


def picture(path, value=9, size=(6, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path)


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
