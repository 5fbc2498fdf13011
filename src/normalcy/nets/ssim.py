"""Structural similarity (Wang, Bovik, Sheikh, Simoncelli 2004), per pixel, differentiable, in 2D and 3D."""

from __future__ import annotations

import torch
from torch import Tensor

RADIUS = 5
"""The window is 11 pixels wide."""
SIGMA = 1.5
"""Standard deviation of the window's Gaussian, in pixels."""


def ssim_map(a: Tensor, b: Tensor, data_range: float = 1.0) -> Tensor:
    """SSIM (B, *spatial), in [-1, 1], of images (B, C, *spatial); 1 where they are equal; the mean over channels.

    Equation 13 of the paper with K1 = 0.01, K2 = 0.03 and population (co)variances under the Gaussian window; borders are
    replicated. Always in 32 bits, since variances are differences of nearly equal numbers.

    >>> ssim_map(torch.ones(1, 3, 16, 20), torch.ones(1, 3, 16, 20)).shape
    torch.Size([1, 16, 20])
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = a.float(), b.float()
        mean_a, mean_b, square_a, square_b, product = _windowed(torch.stack([a, b, a * a, b * b, a * b]))
        c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
        means = mean_a * mean_b
        squares = mean_a * mean_a + mean_b * mean_b
        structure = (2 * (product - means) + c2) / (square_a + square_b - squares + c2)
        similarity: Tensor = (2 * means + c1) / (squares + c1) * structure
        return similarity.mean(1)


def _windowed(images: Tensor) -> Tensor:
    """Gaussian mean around each pixel of images (..., B, C, *spatial), one axis after the other.

    Each axis is one product with a banded matrix, on CPUs several times as fast as a convolution of one channel, forward and
    backward.
    """
    for axis in range(3, images.ndim):
        band = _band(images.shape[axis], images)
        images = (images.movedim(axis, -1) @ band).movedim(-1, axis)
    return images


def _band(n: int, like: Tensor) -> Tensor:
    """(n, n): column i holds the weights of the window around pixel i, those beyond the border on the last pixel."""
    offsets = torch.arange(-RADIUS, RADIUS + 1, device=like.device)
    kernel = torch.exp(-0.5 * (offsets.to(like.dtype) / SIGMA) ** 2)
    centre = torch.arange(n, device=like.device).expand(len(offsets), n)
    source = (centre + offsets[:, None]).clamp(0, n - 1)
    weights = (kernel / kernel.sum())[:, None].expand_as(centre)
    return torch.zeros(n, n, device=like.device, dtype=like.dtype).index_put((source, centre), weights, accumulate=True)
