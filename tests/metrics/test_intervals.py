"""Intervals of proportions."""

import pytest

from normalcy.metrics import wilson


def test_wilson_against_its_equation():
    for k, n in ((0, 7), (3, 7), (7, 7), (50, 1000)):
        low, high = wilson(k, n)
        assert 0 <= low <= k / n <= high <= 1
        for end in (low, high):  # the ends solve (p - k/n)^2 = z^2 p (1 - p) / n
            if 0 < end < 1:
                assert (end - k / n) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / n, rel=1e-6)
