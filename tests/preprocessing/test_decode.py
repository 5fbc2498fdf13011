"""Decoding once: in memory, on disk, with bad images and tiles."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from normalcy import DataError, DataSet, Item
from normalcy.preprocessing.decode import DiskImages, decode
from normalcy.preprocessing.pipeline import Preprocess
from normalcy.preprocessing.views import ViewSettings


def make(count: int, bad: tuple[int, ...] = (), sides: tuple[int, ...] = (20,)) -> DataSet:
    def read(i: int) -> np.ndarray:
        if i in bad:
            raise DataError(f"{i} is truncated")
        side = sides[i % len(sides)]
        return np.full((1, side, side), i, np.uint8)

    return DataSet("made", [Item(f"{i}", f"{i}") for i in range(count)], read)


def fitted(data: DataSet, size: int | None = None) -> Preprocess:
    return Preprocess((), size).fit(data.read, 1)


def test_memory_and_disk_hold_the_same(tmp_path: Path) -> None:
    data = make(50, bad=(7, 30))
    x, origin, failed = decode(data, fitted(data), tmp_path / "a")
    y, origin_too, _ = decode(data, fitted(data), tmp_path / "b", memory=5000)
    assert isinstance(x, np.ndarray)
    assert isinstance(y, DiskImages)
    assert not (tmp_path / "a").exists()
    assert (x == y[np.arange(len(y))]).all()
    assert (origin == origin_too).all()
    assert [one.path for one in failed] == ["7", "30"]
    assert len(x) == 48
    assert (x[:, 0, 0, 0] * 255).round().astype(int).tolist() == [i for i in range(50) if i not in (7, 30)]
    again = pickle.loads(pickle.dumps(y))
    assert (again[[3, 1]] == x[[3, 1]]).all()


def test_tiles_remember_where_they_come_from(tmp_path: Path) -> None:
    data = make(6, sides=(40, 32))
    x, origin, _ = decode(data, fitted(data), tmp_path / "a", views=ViewSettings(tile=(32, 32)))
    assert x.shape == (3 * 4 + 3, 1, 32, 32)
    assert origin.tolist() == [0] * 4 + [1] + [2] * 4 + [3] + [4] * 4 + [5]


def test_sizes_that_differ_say_what_to_do(tmp_path: Path) -> None:
    data = make(6, sides=(40, 32))
    with pytest.raises(DataError, match="size=256"):
        decode(data, fitted(data), tmp_path / "a")
    assert decode(data, fitted(data, 16), tmp_path / "a")[0].shape == (6, 1, 16, 16)


def test_all_bad_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="None of the 3 images"):
        decode(make(3, bad=(0, 1, 2)), fitted(make(3)), tmp_path / "a")
