"""What the tests of preprocessing share."""

from collections.abc import Sequence

import numpy as np

from normalcy.preprocessing.pipeline import Preprocess


def fitted(steps: Sequence[str], *images: np.ndarray, size: int | None = None) -> Preprocess:
    """The pipeline, fitted to these training images (C, *spatial)."""
    return Preprocess(tuple(steps), size).fit(lambda i: images[i], len(images))


def noise(shape: tuple[int, ...], dtype: object = np.uint8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(100, 40, shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
