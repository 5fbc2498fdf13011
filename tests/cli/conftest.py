"""A small data set and a model; tests read them and change nothing in them."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from normalcy.cli.app import main


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MVTec-style data set: smooth textures, defects are bright squares."""
    root = tmp_path_factory.mktemp("data") / "tiles"
    rng = np.random.default_rng(0)
    plan = {"train/good": 60, "test/good": 12, "test/spot": 12}
    for folder, count in plan.items():
        (root / folder).mkdir(parents=True)
        for i in range(count):
            smooth = gaussian_filter(rng.normal(size=(40, 48)), 2)
            image = np.clip(128 + 25 * smooth / smooth.std(), 0, 255).astype(np.uint8)
            if folder.endswith("spot"):
                row, column = rng.integers(5, 28, 2)
                image[row : row + 7, column : column + 7] = 255
                mask = np.zeros((40, 48), np.uint8)
                mask[row : row + 7, column : column + 7] = 255
                (root / "ground_truth/spot").mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(root / f"ground_truth/spot/{i:03d}_mask.png")
            Image.fromarray(image).save(root / folder / f"{i:03d}.png")
    return root


@pytest.fixture(scope="session")
def model(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "M"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "argv", ["normalcy", "fit", str(tiles), "--method", "pca", "--out", str(out), "--set", "size=32"]
        )
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code
    return out
