import io
import random
import sys
import types
from collections import Counter
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

from normalcy.data.open import open_data
from normalcy.errors import DataError

REAL = Path(__file__).parents[2].parent / "shared" / "data"


def real(name):
    return pytest.mark.skipif(not (REAL / name).is_file(), reason=f"needs ../shared/data/{name}")


def counts(data):
    return Counter((item.split, item.label) for item in data.items)


def ten_classes(count=30):
    """Images whose pixels are 10 * class + 100 * (in the test set)."""
    y = np.arange(count) % 10
    x = (10 * y)[:, None, None] * np.ones((1, 6, 6), np.uint8)
    return {"x_train": x.astype(np.uint8), "y_train": y, "x_test": (x + 100).astype(np.uint8), "y_test": y}


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "svhn", "gtsrb"])
def test_arrays_of_a_named_set_in_the_data_root(tmp_path, name):
    np.savez(tmp_path / f"{name}.npz", **ten_classes())
    data = open_data(f"{name}:7", tmp_path)
    assert data.name == f"{name}:7"
    assert counts(data) == {("train", 0): 3, ("test", 0): 3, ("test", 1): 27}
    assert data.items[0].path == f"{name}/train/00007"  # the place in the whole set, whatever class is normal
    for i, item in enumerate(data.items):
        k = int(item.path[-2:]) % 10
        assert data.read(i)[0, 0, 0] == 10 * k + 100 * (item.split == "test")
        assert item.label == int(k != 7)


@pytest.mark.parametrize("where", ["cifar10.zip", "cifar10_jpg.zip", "cifar10"])
def test_class_folders_in_the_data_root(tmp_path, where):
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    names = [f"{split}/{word}/{i}.png" for split in ("train", "test") for word in ("cat", "dog") for i in range(3)]
    if where.endswith(".zip"):
        with ZipFile(tmp_path / where, "w") as file:
            for name in names:
                file.writestr(name, picture.getvalue())
    else:
        for name in names:
            (tmp_path / where / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / where / name).write_bytes(picture.getvalue())
    for spec in ("cifar10:cat", "cifar10:3", "cifar10:CAT"):
        data = open_data(spec, tmp_path)
        assert counts(data) == {("train", 0): 3, ("test", 0): 3, ("test", 1): 3}
        assert {(item.type, item.label) for item in data.items} == {("cat", 0), ("dog", 1)}
    assert data.read(0).shape == (3, 4, 4)


def test_torchvision_is_asked_last(tmp_path, monkeypatch):
    arrays = ten_classes()

    def fake(root, train, download):
        assert (Path(root), download) == (tmp_path, True)
        half = "train" if train else "test"
        return types.SimpleNamespace(data=arrays[f"x_{half}"], targets=arrays[f"y_{half}"].tolist())

    datasets = types.SimpleNamespace(MNIST=fake)
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(datasets=datasets))
    assert counts(open_data("mnist:3", tmp_path)) == {("train", 0): 3, ("test", 0): 3, ("test", 1): 27}

    def offline(root, train, download):
        print("Downloading ...")
        raise OSError("Name or service not known")

    datasets.MNIST = offline
    with pytest.raises(DataError, match=r"download failed \(Name or service.*put mnist\.npz with x_train.*--data-root"):
        open_data("mnist:3", tmp_path)


def test_svhn_and_gtsrb_as_torchvision_stores_them(tmp_path, monkeypatch):
    class SVHN:
        def __init__(self, root, split, download):
            self.data, self.labels = np.zeros((20, 3, 8, 6), np.uint8), np.arange(20) % 10

    class GTSRB:
        def __init__(self, root, split, download):
            pass

    datasets = types.SimpleNamespace(SVHN=SVHN, GTSRB=GTSRB)
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(datasets=datasets))
    data = open_data("svhn:7", tmp_path)
    assert data.read(0).shape == (3, 8, 6)

    root = tmp_path / "gtsrb"
    for file in ("Training/00014/00000_00000", "Training/00014/00000_00001", "Training/00002/00000_00000"):
        (root / "GTSRB" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7)).save(root / "GTSRB" / f"{file}.ppm")
    (root / "GTSRB" / "Final_Test" / "Images").mkdir(parents=True)
    for file in ("00000", "00001"):
        Image.new("RGB", (5, 4)).save(root / "GTSRB" / "Final_Test" / "Images" / f"{file}.ppm")
    (root / "GT-final_test.csv").write_text("Filename;Width;ClassId\n00000.ppm;5;14\n00001.ppm;5;3\n")
    data = open_data("gtsrb:14", tmp_path)
    assert counts(data) == {("train", 0): 2, ("test", 0): 1, ("test", 1): 1}
    assert len(set(data.select(split="train").cases)) == 1  # one track
    assert data.read(0).shape == (3, 7, 9)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("mnist", "mnist: expected the normal class, as in mnist:3, got none"),
        ("mnist:12", "got '12'; classes: 0, 1"),
        ("cifar10:kat", r"3 cat.*Did you mean cifar10:cat\?"),
        ("elpv:some", "expected elpv, or elpv:all"),
        ("magnetic_tile:1", "magnetic_tile alone"),
        ("magnetic_tile", r"magnetic_tile\.zip.*github"),
    ],
)
def test_faults_of_a_name(tmp_path, spec, words):
    with pytest.raises(DataError, match=words):
        open_data(spec, tmp_path)


def test_npz_with_a_class_as_normal(tmp_path):
    np.savez(tmp_path / "a.npz", **ten_classes())
    data = open_data(f"{tmp_path}/a.npz:4")
    assert counts(data) == {("train", 0): 3, ("test", 0): 3, ("test", 1): 27}
    assert data.select(label=0).items[0].type == "4"
    for spec, words in (
        (":11", "no training image is of class 11"),
        ("", "10 classes"),
        (":cat", "number of the normal"),
    ):
        with pytest.raises(DataError, match=words):
            open_data(f"{tmp_path}/a.npz{spec}")


def test_npz_images_with_all_there_is(tmp_path):
    masks = np.zeros((4, 6, 8), bool)
    masks[3, 2:4] = True
    np.savez(
        tmp_path / "a.npz",
        images=np.arange(4 * 6 * 8 * 3, dtype=np.uint16).reshape(4, 6, 8, 3),
        labels=[0, 0, 0, 1],
        masks=masks,
        cases=["p", "p", "q", "r"],
        types=["good", "good", "good", "crack"],
        splits=["train", "train", "test", "test"],
    )
    data = open_data(tmp_path / "a.npz")
    assert data.read(0).shape == (3, 6, 8)
    assert data.cases == ["p", "p", "q", "r"]
    assert data.items[3].label == 1
    assert data.items[3].type == "crack"
    np.testing.assert_array_equal(data.select(label=1).mask(0), masks[3])


def test_npz_with_training_images_without_labels_and_medmnist(tmp_path):
    x = np.zeros((4, 6, 8), np.uint8)
    np.savez(tmp_path / "a.npz", x_train=x, x_test=x, y_test=[0, 0, 1, 1], masks_test=np.ones((4, 6, 8), bool))
    data = open_data(tmp_path / "a.npz")
    assert counts(data) == {("train", 0): 4, ("test", 0): 2, ("test", 1): 2}
    assert data.select(label=1).mask(0).all()
    assert not data.select(split="train").mask(0).any()
    parts = {
        f"{s}_{kind}": x if kind == "images" else np.array([[0], [0], [1], [1]])
        for s in ("train", "val", "test")
        for kind in ("images", "labels")
    }
    np.savez(tmp_path / "b.npz", **parts)
    assert counts(open_data(f"{tmp_path}/b.npz:0")) == {("train", 0): 4, ("test", 0): 2, ("test", 1): 2}


def test_hostile_npz(tmp_path):
    x = np.zeros((4, 6, 8), np.uint8)
    for arrays, words in (
        ({"pictures": x}, "expected the array images, or x_train and x_test, got pictures"),
        ({"images": x, "labels": [0, 1]}, "all 4 images"),
        ({"images": np.array([{}], dtype=object)}, "cannot be read as .npz"),
        ({"x_train": x, "x_test": x[:, :5]}, "one image size"),
        ({"images": x, "splits": ["train", "val", "test", "test"]}, "the splits train and test, got val"),
        ({"images": x[0]}, r"expected images \(N, H, W\).*got an array of shape \(6, 8\)"),
    ):
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(DataError, match=words):
            open_data(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        open_data(tmp_path / "a.npz")


def test_magnetic_tile_split(tmp_path):
    with ZipFile(tmp_path / "magnetic_tile.zip", "w") as file:
        for kind, count in (("Free", 10), ("Crack", 3)):
            for i in range(count):
                for suffix, value in ((".jpg", 100), (".png", 255 * (kind == "Crack" and i > 0))):
                    picture = io.BytesIO()
                    Image.new("L", (8, 6), value).save(picture, "JPEG" if suffix == ".jpg" else "PNG")
                    file.writestr(f"MT_{kind}/Imgs/{i}{suffix}", picture.getvalue())
    data = open_data("magnetic_tile", tmp_path)
    names = [f"MT_Free/Imgs/{i}.jpg" for i in range(10)]
    random.Random(0).shuffle(names)
    assert {item.path for item in data.select(split="train").items} == set(names[:8])
    assert counts(data) == {("train", 0): 8, ("test", 0): 2, ("test", 1): 3}
    assert [data.select(label=1).mask(i).any() for i in range(3)] == [False, True, True]


@real("magnetic_tile.zip")
def test_real_magnetic_tiles():
    data = open_data("magnetic_tile", REAL)
    assert len(data) == 1344
    assert counts(data) == {("train", 0): 761, ("test", 0): 191, ("test", 1): 392}
    assert Counter(item.type for item in data.items) == {
        "good": 952, "blowhole": 115, "uneven": 103, "break": 85, "crack": 57, "fray": 32,
    }  # fmt: skip
    anomalous = data.select(label=1)
    for i in range(0, len(anomalous), 20):
        image, mask = anomalous.read(i), anomalous.mask(i)
        assert image.shape == (1, *mask.shape)
        assert image.dtype == np.uint8


@real("mnist.npz")
def test_real_mnist():
    data = open_data("mnist:3", REAL)
    assert counts(data) == {("train", 0): 6131, ("test", 0): 1010, ("test", 1): 8990}
    assert data.read(0).shape == (1, 28, 28)


@real("cifar10_jpg.zip")
def test_real_cifar10_from_the_zip():
    data = open_data("cifar10:cat", REAL)
    assert counts(data) == {("train", 0): 5000, ("test", 0): 1000, ("test", 1): 9000}
    assert data.items[-1].path == "train/cat/4999.jpg"
    assert data.read(len(data) - 1).shape == (3, 32, 32)


@real("gtsrb_stop.npz")
def test_real_stop_signs():
    data = open_data("gtsrb:14", REAL)
    assert counts(data) == {("train", 0): 780, ("test", 0): 270}
    assert data.read(0).shape == (3, 32, 32)


def test_solar_cells():
    pytest.importorskip("elpv_dataset", reason="needs the package elpv-dataset")
    data = open_data("elpv")
    assert counts(data) == {("train", 0): 1206, ("test", 0): 302, ("test", 1): 715}
    assert data.read(0).shape == (1, 300, 300)
    everything = open_data("elpv:all")
    assert Counter(item.type for item in everything.items) == {
        "good": 1508, "defective": 715, "probably good": 295, "probably defective": 106,
    }  # fmt: skip
    assert everything.select(split="train").items == data.select(split="train").items
