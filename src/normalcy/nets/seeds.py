"""Seeds for libraries outside torch."""

from __future__ import annotations

import torch


def random_state() -> int:
    """A seed for scikit-learn, drawn from torch's generator, which the training loop has seeded."""
    return int(torch.randint(2**31 - 1, ()))
