"""Confidence intervals of proportions."""

from __future__ import annotations

import math


def wilson(k: int, n: int) -> tuple[float, float]:
    """95 % interval of a share, k of n (Wilson 1927), sound for small n and for 0 and n of n too.

    >>> [round(end, 3) for end in wilson(4, 53)], wilson(0, 0)
    ([0.03, 0.179], (nan, nan))
    """
    if not n:
        return math.nan, math.nan
    z2 = 1.959964**2
    centre = (k + z2 / 2) / (n + z2)
    half = math.sqrt(z2 * (k * (n - k) / n + z2 / 4)) / (n + z2)
    return max(0.0, centre - half), min(1.0, centre + half)
