"""Stain normalisation of histology: colours of every slide as if it had been stained like a reference.

Light is absorbed: optical density ``-log(I / 240)`` is linear in the amounts of the stains, OD = C S, with S two unit vectors
(haematoxylin, eosin) and C their amounts. Both ways estimate S of an image; its amounts, scaled so that their 99th
percentile is the reference's, are painted in the reference's colours.

- ``macenko``: the two extreme directions (1st and 99th percentile of the angle) in the plane of the two largest principal
  components of OD (Macenko et al. 2009); the reference is theirs.
- ``vahadane``: S by sparse non-negative factorisation of OD (Vahadane et al. 2016; sparsity 0.1).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from normalcy.arrays import Float64

Stain = Literal["none", "macenko", "vahadane"]
WHITE = 240.0
"""Intensity of light that met no tissue."""
FAINT = 0.15
"""Optical density below which a pixel counts as background."""
REFERENCE: Float64 = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
"""Haematoxylin and eosin as (R, G, B) optical densities."""
AMOUNTS: Float64 = np.array([1.9705, 1.0308])
"""99th percentiles of their amounts in the reference."""
BLACK = 8
"""Largest value of a channel in what was not scanned: 0, and what JPEG makes of it."""
_PIXELS = 20_000  # enough to estimate from
_FEWEST = 50


def normalise(image: npt.NDArray[np.uint8], way: Stain) -> npt.NDArray[np.uint8]:
    """uint8 (3, H, W) -> the same in the colours of the reference; unchanged where too little is stained to estimate from."""
    if way == "none":
        return image
    density = optical_density(image)
    scanned = image.reshape(3, -1).max(0) > BLACK
    stained = (density > FAINT).any(1) & scanned
    tissue = density[stained]
    if len(tissue) < _FEWEST:
        return image
    stains = stain_vectors(tissue, way)
    amounts = np.clip(np.linalg.lstsq(stains.T, density.T, rcond=None)[0], 0, None)  # (2, pixels)
    largest = np.maximum(np.percentile(amounts[:, stained], 99, axis=1), 1e-6)
    painted = WHITE * np.exp(-REFERENCE.T @ (amounts * (AMOUNTS / largest)[:, None]))
    painted = np.where(scanned, painted, image.reshape(3, -1))
    return np.asarray(np.rint(np.clip(painted, 0, 255)), np.uint8).reshape(image.shape)


def optical_density(image: npt.NDArray[np.uint8]) -> Float64:
    """uint8 (3, H, W) -> (pixels, 3)"""
    light = image.reshape(3, -1).T.astype(np.float64) + 1
    return np.asarray(-np.log(light / WHITE))


def stain_vectors(density: Float64, way: Stain) -> Float64:
    """Unit vectors (2, 3) of haematoxylin and eosin from optical densities (pixels, 3) of tissue."""
    if len(density) > _PIXELS:
        density = density[np.linspace(0, len(density) - 1, _PIXELS).astype(int)]
    vectors = _macenko(density) if way == "macenko" else _vahadane(density)
    vectors = np.abs(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors[np.argsort(-vectors[:, 0])])  # haematoxylin absorbs more red


def _macenko(density: Float64) -> Float64:
    _, directions = np.linalg.eigh(np.cov(density.T))
    plane = directions[:, [2, 1]]  # (3, 2), the largest first
    plane = plane * np.where(plane.sum(0) < 0, -1.0, 1.0)
    on_plane = density @ plane
    low, high = np.percentile(np.arctan2(on_plane[:, 1], on_plane[:, 0]), (1, 99))
    ends = np.array([[np.cos(low), np.sin(low)], [np.cos(high), np.sin(high)]])
    return np.asarray(ends @ plane.T)


def _vahadane(density: Float64) -> Float64:
    from sklearn.decomposition import MiniBatchDictionaryLearning

    learner: Any = MiniBatchDictionaryLearning(
        2,
        alpha=0.1,
        max_iter=50,
        batch_size=1024,
        fit_algorithm="cd",
        positive_dict=True,
        positive_code=True,
        transform_algorithm="lasso_cd",
        dict_init=REFERENCE.copy(),
        random_state=0,
    )
    found = np.asarray(learner.fit(density).components_, np.float64)
    return found if (np.linalg.norm(found, axis=1) > 1e-6).all() else _macenko(density)
