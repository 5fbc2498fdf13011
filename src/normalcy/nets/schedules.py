"""Learning-rate schedules: fraction of the stage done -> factor, independent of the length of the training."""

from __future__ import annotations

from collections.abc import Callable

LATE = 2 / 3
"""Fraction of the stage after which :func:`late_drop` lowers the rate."""


def late_drop(fraction: float) -> float:
    """Factor on the learning rate: 0.1 in the last third of the stage."""
    return 1.0 if fraction < LATE else 0.1


def drop_after(part: float, factor: float = 0.1) -> Callable[[float], float]:
    """Factor on the learning rate: 1 until the fraction ``part`` of the stage is done, then ``factor``."""
    return lambda fraction: 1.0 if fraction < part else factor
