"""Grad-CAM of functions whose weights are known."""

from __future__ import annotations

import pytest
import torch

from normalcy.nets.grad_cam import grad_cam


@pytest.mark.parametrize("grid", [(4, 5), (2, 3, 4)])
def test_weights_are_mean_gradients(grid: tuple[int, ...]) -> None:
    """f = sum_k w_k mean(A_k): alpha_k is w_k / positions."""
    maps = torch.randn(2, 3, *grid, requires_grad=True)
    w = torch.tensor([1.0, -2.0, 0.5])
    found = grad_cam((maps.flatten(2).mean(2) * w).sum(1), maps)
    expected = torch.einsum("k,bk...->b...", w, maps) / maps[0, 0].numel()
    torch.testing.assert_close(found, expected)


def test_it_can_be_differentiated_again() -> None:
    """f = mean(A^2) of one map: alpha is 2 mean(A) / positions, so d(sum of alpha A)/dA follows from the product rule."""
    maps = torch.randn(1, 1, 3, 4, requires_grad=True)
    attention = grad_cam(maps.square().mean((1, 2, 3)), maps, create_graph=True)
    (gradient,) = torch.autograd.grad(attention.sum(), maps)
    n, total = 12, maps.detach().sum()
    torch.testing.assert_close(gradient, torch.full_like(gradient, float(4 * total / n**2)))
