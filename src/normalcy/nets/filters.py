"""Filters of anomaly maps, and image scores from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from normalcy.arrays import SMALL, TOP
from normalcy.arrays import Reduce as Reduce
from normalcy.config import require_that


def gaussian_smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian filter over the spatial axes of maps (B, *spatial), 2D or 3D; ``sigma`` is its standard deviation in
    pixels; 0 returns the maps as they are.

    Borders are replicated; the kernel is cut at 4 sigma.
    """
    if sigma == 0:
        return maps
    radius = math.ceil(4 * sigma)
    offsets = torch.arange(-radius, radius + 1, device=maps.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    dims = maps.ndim - 1
    convolve = {2: F.conv2d, 3: F.conv3d}[dims]
    out = maps.unsqueeze(1).float()
    for axis in range(dims):
        shape = [1] * dims
        shape[axis] = len(kernel)
        pad = [0] * (2 * dims)
        pad[2 * (dims - 1 - axis)] = pad[2 * (dims - 1 - axis) + 1] = radius
        out = convolve(F.pad(out, pad, mode="replicate"), kernel.view(1, 1, *shape))
    return out.squeeze(1)


def bilateral(maps: Tensor, radius: int, space: float, value: float) -> Tensor:
    """Bilateral filter (Tomasi, Manduchi 1998) of maps (B, H, W): a mean over a disc of ``radius`` pixels, weighted by
    Gaussians of the distance (standard deviation ``space`` pixels) and of the difference in value (standard deviation
    ``value``). Borders are replicated.
    """
    height, width = maps.shape[1:]
    padded = F.pad(maps[:, None].float(), (radius,) * 4, mode="replicate")[:, 0]
    total, weight = torch.zeros_like(maps, dtype=torch.float32), torch.zeros_like(maps, dtype=torch.float32)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if dy * dy + dx * dx <= radius * radius:
                other = padded[:, radius + dy : radius + dy + height, radius + dx : radius + dx + width]
                near = -0.5 * (dy * dy + dx * dx) / space**2
                w = torch.exp(near - 0.5 * ((other - maps) / value).square())
                total.addcmul_(w, other)
                weight.add_(w)
    return total / weight


def min_filter(maps: Tensor, sides: Sequence[int]) -> Tensor:
    """The smallest value in a box around each pixel of maps (B, *spatial), 2D or 3D; ``sides`` of the box are odd.
    Pixels outside the map do not count."""
    pool = {2: F.max_pool2d, 3: F.max_pool3d}[maps.ndim - 1]
    y: Tensor = -pool(-maps[:, None], tuple(sides), 1, tuple(s // 2 for s in sides))
    return y[:, 0]


def mean_filter(maps: Tensor, sides: Sequence[int]) -> Tensor:
    """The mean of a box around each pixel, otherwise as :func:`min_filter`."""
    pool: Any = {2: F.avg_pool2d, 3: F.avg_pool3d}[maps.ndim - 1]
    y: Tensor = pool(maps[:, None], tuple(sides), 1, tuple(s // 2 for s in sides), count_include_pad=False)
    return y[:, 0]


def map_quantile(maps: Tensor, quantile: float) -> Tensor:
    """The value at ``quantile`` of each map (B, *spatial) -> (B,), always that of a pixel, not interpolated; 1 is the maximum.

    >>> map_quantile(torch.arange(100.0).view(1, 10, 10), 0.99)
    tensor([99.])
    """
    flat = maps.flatten(1)
    rank = min(flat.shape[1], int(quantile * flat.shape[1]) + 1)
    above = flat.shape[1] - rank + 1
    if above <= rank:
        return flat.topk(above, dim=1).values[:, -1]
    return flat.topk(rank, dim=1, largest=False).values[:, -1]


def check_reduce(who: str, reduce: Reduce) -> None:
    """Raises SettingsError for a number outside [0, 1]."""
    valid = isinstance(reduce, str) or 0 <= reduce <= 1
    require_that(valid, who, "reduce", '"auto", "mean", "top", "max" or a quantile between 0 and 1', reduce)


def reduce_map(maps: Tensor, reduce: Reduce) -> Tensor:
    """Image scores (B,) from maps (B, *spatial): their mean, maximum, a quantile, or the mean of their largest pixels.

    "top" is the mean of the largest 1 % of the pixels, at least one. "auto" is "mean" for maps of at most 32 pixels a side, which
    show one object, and "top" for larger ones, whose mean a small anomaly does not change (measured by
    ``recipes/reduction.py`` on normal images with synthetic anomalies).
    """
    flat = maps.flatten(1)
    if reduce == "auto":
        reduce = "mean" if max(maps.shape[1:]) <= SMALL else "top"
    if reduce == "mean":
        return flat.mean(1)
    if reduce == "top":
        return flat.topk(max(1, round(TOP * flat.shape[1])), dim=1).values.mean(1)
    return map_quantile(maps, 1.0 if reduce == "max" else reduce)


def mean_of_highest(maps: Tensor, fraction: float) -> Tensor:
    """Mean of the highest ``fraction`` of the values of each map (B, ...), at least one: (B,).

    >>> mean_of_highest(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), 0.5)
    tensor([3.5000])
    """
    flat = maps.flatten(1)
    count = max(1, round(fraction * flat.shape[1]))
    return flat.mean(1) if count == flat.shape[1] else flat.topk(count, dim=1).values.mean(1)
