"""Natural images of any size, and the statistics of deep features on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from normalcy.files import read_arrays

STATISTICS = Path(__file__).with_name("natural_statistics.npz")
"""Of the layers of efficientnet_lite0, by ``recipes/natural_statistics.py``: ``<layer>_mean`` and ``<layer>_std``, (grey or
colour, sides, channels of the layer), for images of :data:`SIDES` pixels."""
SIDES = (32, 64, 128, 224)
CROPS = 300
"""Images from which statistics are computed."""
BATCH = 50


@cache
def photographs() -> tuple[Tensor, ...]:
    """Six colour photographs that install with scikit-image and scikit-learn: (3, H, W) each, in [-1, 1]."""
    import skimage.data
    from sklearn.datasets import load_sample_images

    shipped: Any = skimage.data
    names = ("astronaut", "chelsea", "coffee", "rocket")
    arrays = [*load_sample_images().images, *(getattr(shipped, name)() for name in names)]
    return tuple(torch.from_numpy(array.copy()).movedim(-1, 0).float() / 127.5 - 1 for array in arrays)


def crops(images: Sequence[Tensor], side: int, channels: int, count: int = CROPS, seed: int = 0) -> list[Tensor]:
    """Batches (B, channels, side, side) in [-1, 1] of random squares of colour images, reduced with anti-aliasing.

    Squares have 0.7 to 1 times the shorter side of the image, so that they show whole objects, and half of them are mirrored.
    One channel: the luma of ITU-R BT.601.
    """
    rng = np.random.default_rng(seed)
    found = []
    for k in range(count):
        image = images[k % len(images)]
        length = round(min(image.shape[1:]) * rng.uniform(0.7, 1))
        top, left = (int(rng.integers(n - length + 1)) for n in image.shape[1:])
        part = image[None, :, top : top + length, left : left + length]
        part = F.interpolate(part, (side, side), mode="bilinear", antialias=True)[0]
        found.append(part.flip(-1) if rng.random() < 0.5 else part)
    batches = [torch.stack(found[first : first + BATCH]) for first in range(0, count, BATCH)]
    if channels == 1:
        luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        return [(batch * luma).sum(1, keepdim=True) for batch in batches]
    return batches


def shipped_statistics(side: int, channels: int) -> Mapping[str, np.ndarray]:
    """``<layer>_mean`` and ``<layer>_std`` of efficientnet_lite0 on natural images of the nearest of :data:`SIDES`."""
    nearest = min(range(len(SIDES)), key=lambda i: abs(math.log2(SIDES[i] / side)))
    arrays = read_arrays(STATISTICS)
    return {name: array[int(channels == 3), nearest] for name, array in arrays.items()}
