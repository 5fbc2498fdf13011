"""Learning rates over a stage: fraction done -> factor, so that they keep their shape whatever the length."""

from collections.abc import Callable

LATE = 2 / 3


def late_drop(fraction: float) -> float:
    """Factor on the learning rate: a tenth in the last third."""
    return 1.0 if fraction < LATE else 0.1


def drop_after(part: float, factor: float = 0.1) -> Callable[[float], float]:
    """Factor on the learning rate: 1 until this part of the stage is done, then ``factor``."""
    return lambda fraction: 1.0 if fraction < part else factor
