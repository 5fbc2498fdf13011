"""Grad-CAM (Selvaraju et al. 2017): the positions of feature maps that a value depends on."""

from __future__ import annotations

import torch
from torch import Tensor


def grad_cam(values: Tensor, maps: Tensor, create_graph: bool = False) -> Tensor:
    """sum_k alpha_k A_k of maps A (B, K, *grid), where alpha_k is the mean gradient of ``values`` over A_k: (B, *grid).

    ``values`` (B, ...) are summed; those of an image must depend on its own maps alone. The result is signed, float32; the
    ReLU of Grad-CAM is left to the caller. ``create_graph``: the result can be differentiated, as in a loss.
    """
    (gradient,) = torch.autograd.grad(values.sum(), maps, create_graph=create_graph)
    weights = gradient.flatten(2).mean(2).view(*maps.shape[:2], *[1] * (maps.ndim - 2))
    attended: Tensor = (weights * maps).sum(1)
    return attended.float()
