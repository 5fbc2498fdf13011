"""Scaling of images for networks, measured on the training images, and its inverse."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """(x - mean image) / scale, and back, so that a network starts at the mean image whatever the contrast.

    ``mean`` is the mean training image (C, *spatial); ``scale`` is one number, the root mean square difference from it.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(tuple(shape)))
        self.register_buffer("scale", torch.ones(()))

    def measure(self, batches: Iterable[Tensor]) -> None:
        """Measure mean and scale over batches of images (B, C, *spatial), in one pass, in double precision on the CPU."""
        count, total, squares = 0, torch.zeros(self.mean.shape).double(), torch.zeros(()).double()
        for x in batches:
            x64 = x.cpu().double()  # not every device has 64 bits
            count += len(x)
            total += x64.sum(0)
            squares += x64.square().sum()
        mean = total / count
        variance = (squares / (count * mean.numel()) - mean.square().mean()).clamp(min=0)
        self.mean.copy_(mean)
        self.scale.copy_(variance.sqrt().clamp(min=1e-4))  # images that are all the same

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.scale

    def inverse(self, y: Tensor) -> Tensor:
        return self.mean + self.scale * y


class Range(nn.Module):
    """Images to [-1, 1] and back, by the smallest and the largest value of the training images.

    A generator that ends in tanh then covers exactly the values of the training images; other values lie outside [-1, 1].
    """

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.ones(()))

    def measure(self, batches: Iterable[Tensor]) -> None:
        ends = torch.stack([torch.stack([x.min(), x.max()]) for x in batches])
        self.low.copy_(ends[:, 0].min())
        step = 1e-3 * self.low.abs().clamp(min=1)  # for images that are all the same
        self.high.copy_(torch.maximum(ends[:, 1].max(), self.low + step))

    def forward(self, x: Tensor) -> Tensor:
        return 2 * (x - self.low) / (self.high - self.low) - 1

    def inverse(self, y: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * (y + 1) / 2
