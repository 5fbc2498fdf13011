"""Names of the array types that the package passes around."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
"""Any values."""
Mask = npt.NDArray[np.bool_]
"""True where anomalous."""
Float32 = npt.NDArray[np.float32]
"""Images and maps, as methods see and give them."""
Float64 = npt.NDArray[np.float64]
"""Scores, statistics, voxel geometry."""
Indices = npt.NDArray[np.intp]
"""Positions of images in a data set."""

EXTRA_MAP = "extra_maps."
"""Before the name of an extra map where the outputs of a method are arrays by name."""
