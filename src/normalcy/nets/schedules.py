"""Learning rates over a stage: fraction done -> factor, so that they keep their shape whatever the length."""


def late_drop(fraction: float) -> float:
    """Factor on the learning rate: a tenth in the last third."""
    return 1.0 if fraction < 2 / 3 else 0.1
