"""Folders that lead to the machine's own, and folders without end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from normalcy import DataError, open_data
from normalcy.data.formats import Limits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    below = tmp_path / "outer" / "images"
    below.mkdir(parents=True)
    for k in range(3):
        Image.fromarray(np.full((8, 8), k, np.uint8)).save(below / f"{k}.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "outer" / "private.png")
    return below


def test_links_to_the_machine_are_not_followed(folder: Path) -> None:
    (folder / "up").symlink_to("..")
    (folder / "all").symlink_to("/")
    (folder / "processes").symlink_to("/proc")
    (folder / "devices").symlink_to("/dev")
    data = open_data(folder)
    assert [item.path for item in data.items] == ["0.png", "1.png", "2.png"]
    assert data.reasons["up"] == data.reasons["all"] == "a link to a folder above the one that was named"
    assert "operating system" in data.reasons["processes"]
    assert "operating system" in data.reasons["devices"]


def test_folders_of_the_system_are_refused() -> None:
    with pytest.raises(DataError, match="operating system"):
        open_data("/proc")


def test_entries_are_bounded(folder: Path) -> None:
    assert len(open_data(folder, limits=Limits(entries=3))) == 3
    with pytest.raises(DataError, match="more files and folders than are read"):
        open_data(folder, limits=Limits(entries=2))
    table = folder / "t.csv"
    table.write_text("path\nsub\n")
    (folder / "sub").mkdir()
    for k in range(5):
        (folder / "sub" / f"{k}.dcm").write_bytes(b"x")
    with pytest.raises(DataError, match="more files and folders than are read"):
        open_data(table, limits=Limits(entries=4))
