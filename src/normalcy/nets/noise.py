"""Gaussian noise that is the same at every call, for scores that average over draws."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


@cache
def fixed_noise(*shape: int) -> Tensor:
    """Draws of N(0, I) with seed 0, of this shape, float32, on the CPU.

    The tensor is kept, so that it is a constant of an exported graph: do not change it in place.

    >>> torch.equal(fixed_noise(2, 3), torch.randn(2, 3, generator=torch.Generator().manual_seed(0)))
    True
    """
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
