"""Small images with defects and masks, and tables that name them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 24
MASK = np.zeros((SIDE, SIDE), np.uint8)
MASK[6:12, 6:12] = 255


def texture(seed: int, defect: bool = False) -> np.ndarray:
    """A smooth pattern with noise; the defect is a bright square where MASK is."""
    y, x = np.mgrid[:SIDE, :SIDE]
    noise = np.random.default_rng(seed).normal(0, 5, (SIDE, SIDE))
    image = 120 + 30 * np.sin(x / 4) + 20 * np.cos(y / 5) + noise
    image[(MASK > 0) & defect] = 250
    return image.clip(0, 255).astype(np.uint8)


def save(path: Path | bytes, image: np.ndarray) -> None:
    """As PNG, by a name that may be bytes."""
    place = Path(path.decode("utf-8", "surrogateescape")) if isinstance(path, bytes) else path
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(place, format="PNG")


def write_table(path: Path, images: str, masks: str, **other_masks: str) -> Path:
    """A table of these images, their names behind a prefix each."""
    rows = [f"{images}n{k}.png,0,test," for k in range(4)]
    rows += [f"{images}d{k}.png,1,test,{masks}{other_masks.get(f'd{k}', f'd{k}.png')}" for k in range(4)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("path,label,split,mask\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path
