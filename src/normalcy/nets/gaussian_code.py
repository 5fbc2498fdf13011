"""Formulas of a Gaussian posterior N(mean, exp(logvar)) over a code, for autoencoders that have one."""

from __future__ import annotations

import torch
from torch import Tensor


def draw(mean: Tensor, logvar: Tensor) -> Tensor:
    """One draw, from the global generator."""
    return mean + (0.5 * logvar).exp() * torch.randn_like(mean)


def kl_to_standard(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, I)) in nats, the sum over all but the first axis: (B,)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)
