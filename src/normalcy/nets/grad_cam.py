"""Grad-CAM (Selvaraju et al. 2017): which places of feature maps a number depends on."""

from __future__ import annotations

import torch
from torch import Tensor


def grad_cam(numbers: Tensor, maps: Tensor, create_graph: bool = False) -> Tensor:
    """sum_k alpha_k A_k of maps A (B, K, *grid), where alpha_k is the mean gradient of ``numbers`` over A_k: (B, *grid).

    ``numbers`` (B, ...) are summed, and those of an image may depend on its maps alone. Grad-CAM cuts the result at 0.
    """
    (gradient,) = torch.autograd.grad(numbers.sum(), maps, create_graph=create_graph)
    weights = gradient.flatten(2).mean(2).view(*maps.shape[:2], *[1] * (maps.ndim - 2))
    attended: Tensor = (weights * maps).sum(1)
    return attended.float()
