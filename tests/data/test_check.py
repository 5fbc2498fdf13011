import threading

import numpy as np
import pytest
from PIL import Image

from normalcy.data.check import Fault, check
from normalcy.data.dataset import DataSet, Item
from normalcy.data.open import as_dataset, open_data
from normalcy.errors import DataError


def noise(seed, size=(8, 9)):
    return np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def mvtec(tmp_path):
    """45 training images and 4 test images without a fault."""
    for i in range(45):
        save(tmp_path / f"train/good/{i:02d}.png", noise(i))
    for i, kind in enumerate(("good", "good", "crack", "crack")):
        save(tmp_path / f"test/{kind}/{i}.png", noise(100 + i))
    for i in (2, 3):
        save(tmp_path / f"ground_truth/crack/{i}_mask.png", (noise(i) > 200).astype(np.uint8) * 255)
    return tmp_path


def faults(folder):
    return {(fault.path, fault.severity): fault.problem for fault in check(open_data(folder))}


def test_a_sound_set_has_no_fault(mvtec):
    seen = []
    assert check(open_data(mvtec), on_progress=lambda done, total: seen.append((done, total))) == []
    assert seen[0] == (1, 49)
    assert seen[-1] == (49, 49)


def test_every_fault_of_files_is_named(mvtec):
    truncated = (mvtec / "train/good/00.png").read_bytes()[:60]
    (mvtec / "train/good/00.png").write_bytes(truncated)
    (mvtec / "train/good/01.png").write_bytes(b"")
    (mvtec / "train/good/02.png").write_text("not an image")
    save(mvtec / "train/good/03.png", noise(3, (8, 9, 3)))
    save(mvtec / "train/good/04.png", noise(4).astype(np.uint16))
    save(mvtec / "train/good/05.png", np.full((8, 9), 7, np.uint8))
    save(mvtec / "train/good/06.png", noise(7))  # the same as 07
    save(mvtec / "test/good/0.png", noise(8))  # the same as training image 08
    save(mvtec / "ground_truth/crack/2_mask.png", noise(2, (4, 9)))
    (mvtec / "ground_truth/crack/3_mask.png").unlink()
    save(mvtec / "test/crack/4.png", noise(200))
    save(mvtec / "ground_truth/crack/4_mask.png", np.zeros((8, 9), np.uint8))
    save(mvtec / "test/crack/5.png", noise(201))
    (mvtec / "ground_truth/crack/5_mask.png").write_bytes(b"broken")
    save(mvtec / "train/bad/0.png", noise(202))
    (mvtec / "notes.txt").write_text("x")
    found = faults(mvtec)
    for key, words in {
        ("train/good/00.png", "error"): "truncated",
        ("train/good/01.png", "error"): "zero bytes",
        ("train/good/02.png", "error"): "known format",
        ("train/good/03.png", "error"): "3 channels, while",
        ("train/good/04.png", "error"): "type uint16, while",
        ("train/good/05.png", "warning"): "constant: every value is 7",
        ("train/good/07.png", "warning"): "the same pixels as train/good/06.png",
        ("test/good/0.png", "error"): "the same pixels as the training image train/good/08.png",
        ("test/crack/2.png", "error"): "mask is 4 x 9, the image 8 x 9",
        ("test/crack/3.png", "warning"): "mask is missing",
        ("test/crack/4.png", "warning"): "mask is empty",
        ("test/crack/5.png", "error"): "5_mask.png: cannot be read",
        ("train/bad/0.png", "error"): "anomalous, but in the training split",
        ("notes.txt", "warning"): "not an image",
    }.items():
        assert words in found.pop(key)
    assert found.keys() == {("train/bad/0.png", "warning")}  # it has no mask either
    without = {fault.path for fault in check(open_data(mvtec), masks=False)}
    assert not {f"test/crack/{i}.png" for i in (2, 3, 4, 5)} & without


def test_values_axes_and_normal_images_with_a_mask():
    images = [np.random.default_rng(i).normal(size=(8, 9)) for i in range(50)]
    images[1][2, 2] = np.nan
    images[2][0, 0] = np.inf
    images[3] = np.random.default_rng(3).normal(size=(4, 8, 9, 1))
    masks = [np.zeros((8, 9), bool) for _ in range(50)]
    masks[3] = np.zeros((4, 8, 9), bool)
    masks[5][1, 1] = True
    found = check(as_dataset(images, labels=[0] * 50, masks=masks))
    assert [(fault.path, fault.severity) for fault in found] == [(f"images/{i:05d}", "error") for i in (1, 2, 5, 3)]
    for fault, words in zip(found, ("1 values are NaN", "1 values are NaN", "normal, but its mask", "3 spatial axes")):
        assert words in fault.problem


def test_cases_across_splits():
    data = as_dataset([noise(i) for i in range(60)])
    items = [Item(str(i), f"p{i // 3}", 0, None, "train" if i < 46 else "test") for i in range(60)]
    assert check(data.with_items(items)) == [Fault("46", "its case p15 is in the training split too", "error")]


def test_too_few_for_calibration():
    (fault,) = check(as_dataset([noise(i) for i in range(39)]))
    assert (fault.path, fault.severity) == ("images", "warning")
    assert "39 normal training images are too few" in fault.problem


def test_all_unreadable():
    def read(i):
        raise DataError(f"x/{i}: gone")

    found = check(DataSet("x", [Item(f"x/{i}", f"x/{i}") for i in range(50)], read))
    assert found == [Fault(f"x/{i}", "gone", "error") for i in range(50)]


def test_memory_does_not_grow_with_the_images():
    alive, most, lock = set(), [0], threading.Lock()

    class Counted(np.ndarray):
        def __del__(self):
            alive.discard(id(self))

    def read(i):
        image = np.random.default_rng(i).integers(0, 256, (1, 64, 64)).astype(np.uint8).view(Counted)
        with lock:
            alive.add(id(image))
            most[0] = max(most[0], len(alive))
        return image

    assert check(DataSet("x", [Item(str(i), str(i), 0) for i in range(1000)], read)) == []
    assert most[0] < 100  # a few for each thread
