"""A fitted detector and a folder of images for results folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from example_parts import MASK, save, texture

from normalcy import Detector


@pytest.fixture(scope="session")
def detector() -> Detector:
    return Detector("pca", components=4).fit(np.stack([texture(seed) for seed in range(60)]))


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Four normal images and four with a defect and its mask, in the folders img and msk."""
    for k in range(4):
        save(tmp_path / "img" / f"n{k}.png", texture(500 + k))
        save(tmp_path / "img" / f"d{k}.png", texture(600 + k, defect=True))
        save(tmp_path / "msk" / f"d{k}.png", MASK)
    return tmp_path
