import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch
from PIL import Image

from normalcy.data.dataset import DataSet, Item
from normalcy.data.open import as_dataset, open_data
from normalcy.data.stores import Files, Folder, Zip
from normalcy.errors import DataError


def picture(path, value=None, size=(6, 8), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = (
        np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8) if value is None else np.full(size, value)
    )
    Image.fromarray(array.astype(np.uint8)).save(path)
    return array


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(["b.png", "a.png", "deep/c.PNG", "deep/.hidden.png", ".git/x.png"]):
        picture(tmp_path / name, seed=i)
    return tmp_path


@pytest.mark.parametrize(
    ("shape", "read"),
    [((3, 6, 8), (1, 6, 8)), ((3, 6, 8, 4), (4, 6, 8)), ((3, 5, 6, 8, 2), (2, 5, 6, 8)), ((9, 6, 8), (1, 6, 8))],
)
def test_arrays_are_channel_last(shape, read):
    array = np.random.default_rng(0).integers(0, 60000, shape).astype(np.uint16)
    data = as_dataset(array)
    assert len(data) == shape[0]
    assert data.read(1).shape == read
    assert data.read(1).dtype == np.uint16
    expected = array[1][None] if len(shape) == 3 else np.moveaxis(array[1], -1, 0)
    np.testing.assert_array_equal(data.read(1), expected)
    assert data.size(1) == read[1:]
    data.read(1)[:] = 0  # the caller's array is not touched
    np.testing.assert_array_equal(data.read(1), expected)


@pytest.mark.parametrize("shape", [(3, 2, 6, 8), (3, 1, 5, 6, 8)])
def test_tensors_are_channel_first(shape):
    tensor = torch.rand(shape, requires_grad=True)
    data = as_dataset(tensor)
    np.testing.assert_array_equal(data.read(2), tensor[2].detach().numpy())
    assert data.size(2) == shape[2:]
    assert as_dataset(tensor.bfloat16()).read(0).dtype == np.float32
    assert as_dataset(list(tensor)).read(1).shape == shape[1:]


def test_lists_of_arrays_may_differ_in_size():
    data = as_dataset([np.zeros((5, 7)), np.zeros((9, 4, 3)), np.zeros((4, 4))])
    assert [data.read(i).shape for i in range(3)] == [(1, 5, 7), (3, 9, 4), (1, 4, 4)]
    assert [data.size(i) for i in range(3)] == [(5, 7), (9, 4), (4, 4)]


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((64, 64)), r"\(64, 64\).*add an axis"),
        (np.zeros((64, 64, 3)), "looks like a single image"),
        (np.zeros((4, 3, 64, 64)), "looks channel-first"),
        (np.zeros((0, 8, 8)), r"\(0, 8, 8\)"),
        (np.zeros((3, 8, 8), complex), "complex128"),
        (torch.zeros(3, 8, 8), "add the missing axis"),
        ([np.zeros((8, 8)), np.zeros(3)], r"\(3,\)"),
        ([np.zeros((8, 8)), "a.png"], "ndarray, str"),
        ([], "an empty list"),
        (None, "NoneType"),
        ({"a": 1}, "dict"),
        (["/nowhere/a.png", "/nowhere/b.png"], "no such file"),
    ],
)
def test_anything_else_is_refused(images, words):
    with pytest.raises(DataError, match=words):
        as_dataset(images)


def test_labels_and_masks():
    images = np.zeros((4, 6, 8), np.uint8)
    masks = [None, None, np.eye(6, 8, dtype=np.uint8), None]
    data = as_dataset(images, labels=np.array([[0], [0], [1], [1]]), masks=masks)
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert data.has_masks
    assert data.mask(0).shape == (6, 8)  # normal: nothing is anomalous
    assert not data.mask(0).any()
    np.testing.assert_array_equal(data.mask(2), np.eye(6, 8, dtype=bool))
    assert data.mask(3) is None
    np.testing.assert_array_equal(data.subset([3, 2]).mask(1), np.eye(6, 8, dtype=bool))
    view = as_dataset(data.subset([3, 0]), masks=np.ones((2, 6, 8)))
    assert view.mask(0).all()
    assert as_dataset(images, labels=[0, None, True, 1.0]).labels.tolist() == [0, -1, 1, 1]
    assert as_dataset(images).mask(0) is None
    for labels in ([0, 1], [0, 1, 2, 0], ["good"] * 4):
        with pytest.raises(DataError, match="labels: expected 4 of 0"):
            as_dataset(images, labels=labels)
    with pytest.raises(DataError, match="masks: expected 4"):
        as_dataset(images, masks=[None])


def test_views():
    images = np.arange(6, dtype=np.uint8)[:, None, None] * np.ones((1, 6, 8), np.uint8)
    items = [Item(f"x/{i}", f"case {i // 2}", i % 2, None, "train" if i < 3 else "test") for i in range(6)]
    data = as_dataset(images).with_items(items)
    assert [item.path for item in data.select(split="test", label=1).items] == ["x/3", "x/5"]
    again = data.select(split="test").subset([2, 0])
    assert again.read(0)[0, 0, 0] == 5
    assert again.read(1)[0, 0, 0] == 3
    assert again.cases == ["case 2", "case 1"]
    assert len(data.subset([])) == 0
    assert [item.path for item in data.subset(np.array([True] + [False] * 5)).items] == ["x/0"]
    with pytest.raises(DataError, match="expected 6 items"):
        data.with_items(items[:2])


def test_paths(folder, monkeypatch):
    data = open_data(folder)
    assert [item.path for item in data.items] == ["a.png", "b.png", "deep/c.PNG"]
    assert data.labels.tolist() == [-1, -1, -1]
    assert data.source(2) == folder / "deep" / "c.PNG"
    monkeypatch.chdir(folder)
    picked = as_dataset(["deep/c.PNG", Path("a.png")])
    assert [item.path for item in picked.items] == ["deep/c.PNG", "a.png"]
    np.testing.assert_array_equal(picked.read(0), data.read(2))
    assert picked.source(0).is_absolute()
    assert len(as_dataset("a.png")) == 1
    assert len(as_dataset(["a.png", "deep"])) == 2
    with pytest.raises(DataError, match="more than once"):
        as_dataset(["a.png", "./a.png"])
    (folder / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="a file of another kind"):
        open_data("notes.txt")


def test_unknown_names(tmp_path):
    for spec, words in (
        ("mnst:3", "named sets are mnist:3.*Did you mean mnist"),
        (str(tmp_path / "none"), "neither a file or folder"),
        ("", "neither a file"),
        ("a\0b", "neither a file"),
        ("x" * 5000, "neither a file"),
    ):
        with pytest.raises(DataError, match=words):
            open_data(spec, tmp_path)
    (tmp_path / "screws").mkdir()
    with pytest.raises(DataError, match=r"Did you mean .*/screws"):
        open_data(tmp_path / "screw")
    with pytest.raises(DataError, match="an empty folder"):
        open_data(tmp_path / "screws")


def test_fingerprint(folder):
    data = open_data(folder)
    print_ = data.fingerprint()
    assert len(print_) == 16
    assert open_data(folder).fingerprint() == print_
    assert data.subset([0, 1]).fingerprint() != print_
    assert as_dataset(data, labels=[0, 0, 0]).fingerprint() != print_
    picture(folder / "a.png", seed=99)
    assert open_data(folder).fingerprint() != print_
    (folder / "a.png").write_bytes(b"")
    assert len(open_data(folder).fingerprint()) == 16
    array = np.zeros((100, 4, 4))
    before = as_dataset(array).fingerprint()
    array[1, 2, 2] = 1e-9
    assert as_dataset(array).fingerprint() != before


@pytest.fixture
def archive(tmp_path):
    arrays = {}
    with ZipFile(tmp_path / "a.zip", "w", ZIP_DEFLATED) as file:
        for i in range(40):
            arrays[f"in/{i:02d}.png"] = picture(tmp_path / "one.png", seed=i)
            file.write(tmp_path / "one.png", f"in/{i:02d}.png")
    return tmp_path / "a.zip", arrays


def test_zip_is_read_by_threads_and_after_pickling(archive):
    path, arrays = archive
    names = Zip(path).names()
    assert names == sorted(arrays)
    data = Files(Zip(path), names).data_set("zipped", [Item(name, name) for name in names])
    assert data.source(0) is None
    data.read(0)
    for copy in (data, pickle.loads(pickle.dumps(data))):
        with ThreadPoolExecutor(8) as pool:
            for i, image in zip(list(range(40)) * 5, pool.map(copy.read, list(range(40)) * 5)):
                np.testing.assert_array_equal(image[0], arrays[names[i]])
    assert len(data.fingerprint()) == 16


def test_damaged_zip(archive):
    path, _ = archive
    whole = path.read_bytes()
    path.write_bytes(whole[:60] + b"\xff" * 40 + whole[100:])
    with pytest.raises(DataError, match=r"a\.zip/in/00\.png"):
        Files(Zip(path), ["in/00.png"]).read(0)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be opened as a zip"):
        Zip(path).names()


def test_links_that_lead_back_do_not_loop(folder):
    (folder / "deep" / "up").symlink_to(folder, target_is_directory=True)
    assert Folder(folder).names() == ["a.png", "b.png", "deep/c.PNG"]


def test_own_functions_make_a_data_set():
    data = DataSet("made", [Item("0", "0", 0)], lambda i: np.zeros((1, 3, 4)), lambda i: None)
    assert data.mask(0).shape == (3, 4)  # no size given: from the image


def test_data_modules_do_not_import_torch():
    import subprocess

    code = (
        "import sys; from normalcy.data import images, dataset, folder, table, named, splits, check; "
        "assert not {'torch', 'torchvision', 'tifffile', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
