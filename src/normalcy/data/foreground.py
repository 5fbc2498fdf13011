"""The body or tissue in an image, by Otsu's threshold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from normalcy.arrays import Array, Mask


def otsu(x: Array) -> float:
    """Otsu's threshold between the dark and the bright values of an array that is not constant."""
    from skimage.filters import threshold_otsu  # slow to import, and most images need no threshold

    threshold: Callable[[Array], Any] = threshold_otsu  # it has no types
    return float(threshold(x))


def body_mask(image: Array, imaged: Mask | None = None) -> Mask:
    """Where an image (C, *spatial) shows something rather than dark background: above Otsu's threshold of the mean over its
    channels; (*spatial), all True where the image is constant. Air in CT, and what MRI does not see, is dark.

    ``imaged`` (*spatial): what lies outside is padding, which has no part in the threshold and is no body."""
    x = image[0] if len(image) == 1 else image.mean(axis=0)
    inside = np.ones(x.shape, bool) if imaged is None or not imaged.any() else imaged
    values = x[inside]
    if values.min() == values.max():
        return inside
    return np.asarray((x > otsu(values)) & inside)
