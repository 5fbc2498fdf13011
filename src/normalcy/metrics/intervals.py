"""Intervals of proportions."""

from __future__ import annotations

import math


def wilson(k: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion, k of n (Wilson 1927), valid for small n and for 0 and n of n too.

    >>> [round(end, 3) for end in wilson(4, 53)], wilson(0, 0)
    ([0.03, 0.179], (nan, nan))
    """
    from scipy.stats import binomtest

    if not n:
        return math.nan, math.nan
    interval = binomtest(k, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)
