"""Names of the array types that the package passes around."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
"""Any values."""
Mask = npt.NDArray[np.bool_]
"""True where anomalous, or where a region of interest is."""
Float32 = npt.NDArray[np.float32]
"""Images and maps, as methods see and give them."""
Float64 = npt.NDArray[np.float64]
"""Scores, statistics, voxel geometry."""
Indices = npt.NDArray[np.intp]
"""Positions of images in a data set."""

Reduce = float | Literal["auto", "mean", "top", "max"]
"""The image score as a function of the map: its mean, its maximum, the mean of its largest pixels ("top": 1 % of them, at least
one), or a quantile in [0, 1]; "auto" is "mean" for maps of at most 32 pixels a side, else "top"."""
SMALL = 32
"""Longest side of a map, in pixels, up to which "auto" is its mean."""
TOP = 0.01
"""Fraction of the pixels whose mean is "top"."""

EXTRA_MAP = "extra_maps."
"""Before the name of an extra map where the outputs of a method are arrays by name."""


def reduce_within(map: Float32, inside: Mask, reduce: Reduce) -> float:
    """The image score from the pixels of a map (*spatial) that are ``inside``, at least one.

    >>> reduce_within(np.arange(4, dtype=np.float32).reshape(2, 2), np.array([[True, True], [True, False]]), "max")
    2.0
    """
    values = np.sort(map[inside])
    if reduce == "auto":
        reduce = "mean" if max(map.shape) <= SMALL else "top"
    if reduce == "mean":
        return float(values.mean(dtype=np.float64))
    if reduce == "top":
        return float(values[-max(1, round(TOP * len(values))) :].mean(dtype=np.float64))
    quantile = 1.0 if reduce == "max" else reduce
    return float(values[min(len(values), int(quantile * len(values)) + 1) - 1])
