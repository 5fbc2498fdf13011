"""Convolutions that halve or double an image (kernel 4, stride 2, padding 1), each as one matrix product.

CPUs with bfloat16 matrix units multiply matrices several times faster than they convolve: the libraries' strided and
transposed convolutions gain little from bfloat16 in training (measured by ``benchmarks/one_class.py``). Here all 4x4 patches
are laid out as rows, or added back in place; each operation is the adjoint of the other, so the backward pass of each layer
is the forward pass of the other. The layers are subclasses of torch's with the same weights, and fall back to torch's
implementation wherever this gains nothing: on other devices, in 32 bits, for few channels, for odd sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HALVING_CHANNELS, CHANNELS = 128, 64
"""Layers that halve, or double, with fewer input channels use torch's own convolutions (64 channels halved, 16x16 pixels, forward
and backward: 31 ms of torch and 102 ms as a product on an Intel Xeon with AMX, 45 and 101 ms on an AMD EPYC)."""
AT_ONCE = 64
"""Images that are doubled at once: overlapping patches of more no longer fit the cache (256 images of 256 channels, 8x8 pixels:
162 instead of 203 ms on the Xeon, 172 instead of 223 ms on the EPYC)."""


def _patches(x: Tensor) -> Tensor:
    """(B, C, 2h, 2w) -> (B h w, 16 C): rows, columns, channels of each 4x4 patch."""
    count, channels, height, width = x.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()  # (B, 2h + 2, 2w + 2, C)
    image, row, column, _ = padded.stride()
    size = (count, height // 2, width // 2, 4, 4 * channels)
    return padded.as_strided(size, (image, 2 * row, 2 * column, row, 1)).reshape(-1, 16 * channels)


def _overlapped(patches: Tensor, count: int, height: int, width: int) -> Tensor:
    """The adjoint of :func:`_patches`: (B h w, 16 C) added up to (B, C, 2h, 2w)."""
    channels = patches.shape[1] // 16
    patches = patches.view(count, height, width, 2, 2, 2, 2, channels)
    total = patches.new_zeros(count, height + 1, 2, width + 1, 2, channels)
    for down in (0, 1):
        for right in (0, 1):
            quarter = patches[:, :, :, down, :, right].permute(0, 1, 3, 2, 4, 5)
            total[:, down : down + height, :, right : right + width] += quarter
    whole = total.view(count, 2 * height + 2, 2 * width + 2, channels)
    return whole[:, 1:-1, 1:-1].contiguous().permute(0, 3, 1, 2)  # batch norms are slow on views


class _Halve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """(B, C, 2h, 2w), (C', C, 4, 4) -> (B, C', h, w)"""
        ctx.save_for_backward(x, weight)
        return _halved(_patches(x), weight, x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (gradient,) = gradients
        back = double(gradient, weight) if ctx.needs_input_grad[0] else None
        return back, _weight_gradient(gradient, _patches(x)) if ctx.needs_input_grad[1] else None


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """(B, C, h, w), (C, C', 4, 4) -> (B, C', 2h, 2w)"""
        ctx.save_for_backward(x, weight)
        count, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(-1, channels) @ weight.permute(0, 2, 3, 1).reshape(channels, -1)
        return _overlapped(rows, count, height, width)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (gradient,) = gradients
        patches = _patches(gradient)
        back = _halved(patches, weight, gradient.shape) if ctx.needs_input_grad[0] else None
        return back, _weight_gradient(x, patches) if ctx.needs_input_grad[1] else None


def _halved(patches: Tensor, weight: Tensor, shape: Sequence[int]) -> Tensor:
    """(B h w, 16 C), (C', C, 4, 4), shape (B, C, 2h, 2w) -> (B, C', h, w)"""
    rows = patches @ weight.permute(2, 3, 1, 0).reshape(patches.shape[1], -1)
    return rows.view(shape[0], shape[2] // 2, shape[3] // 2, -1).permute(0, 3, 1, 2)


def _weight_gradient(small: Tensor, patches: Tensor) -> Tensor:
    """(B, C', h, w), (B h w, 16 C) -> (C', C, 4, 4)"""
    channels = small.shape[1]
    product = small.permute(0, 2, 3, 1).reshape(-1, channels).t() @ patches
    return product.view(channels, 4, 4, -1).permute(0, 3, 1, 2)


def halve(x: Tensor, weight: Tensor) -> Tensor:
    """As ``F.conv2d(x, weight, stride=2, padding=1)`` for even sides; both of one dtype."""
    y: Tensor = _Halve.apply(x, weight)
    return y


def double(x: Tensor, weight: Tensor) -> Tensor:
    """As ``F.conv_transpose2d(x, weight, stride=2, padding=1)``; both of one dtype."""
    y: Tensor = _Double.apply(x, weight)
    return y


class HalvingConv2d(nn.Conv2d):
    """(B, C, H, W) -> (B, C', H // 2, W // 2): ``nn.Conv2d`` with kernel 4, stride 2, padding 1."""

    def __init__(self, before: int, after: int, bias: bool = True) -> None:
        super().__init__(before, after, 4, 2, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] % 2 or x.shape[3] % 2 or self.in_channels < HALVING_CHANNELS or not _wins(x):
            return super().forward(x)
        return _with_bias(halve(x.bfloat16(), self.weight.bfloat16()), self.bias)


class DoublingConv2d(nn.ConvTranspose2d):
    """(B, C, H, W) -> (B, C', 2 H, 2 W): ``nn.ConvTranspose2d`` with kernel 4, stride 2, padding 1.

    ``odd`` is its ``output_padding``: rows and columns added at the end.
    """

    def __init__(self, before: int, after: int, bias: bool = True, odd: tuple[int, ...] = (0, 0)) -> None:
        super().__init__(before, after, 4, 2, 1, odd, bias=bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if any(self.output_padding) or output_size or self.in_channels < CHANNELS or not _wins(x):
            return super().forward(x, output_size)
        weight = self.weight.bfloat16()
        parts = [double(part, weight) for part in torch.split(x.bfloat16(), AT_ONCE)]
        return _with_bias(torch.cat(parts) if len(parts) > 1 else parts[0], self.bias)


def _wins(x: Tensor) -> bool:
    """Whether the matrix product is faster: in bfloat16 on the CPU, and not while ``torch.compile`` traces the layer."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or not torch.is_autocast_enabled("cpu"):
        return False
    return torch.get_autocast_dtype("cpu") is torch.bfloat16


def _with_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias.to(y.dtype).view(1, -1, 1, 1)
