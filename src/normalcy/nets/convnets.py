"""Convolutional encoders and decoders around a vector bottleneck, in 2D and 3D, for any channels and sides of at least 8 pixels.

Two families, both plain ``nn.Sequential`` with one entry per level, so that any part can be addressed by its index:

- ``lenet`` for small images: 5x5 convolution, norm, leaky ReLU, max-pooling; the decoder upsamples (nearest) and
  convolves. The networks of Deep SVDD (Ruff et al. 2018), there also called DCAE.
- ``dcgan`` for larger ones: 4x4 convolutions of stride 2, and their transposes (Radford et al. 2016), with the widths of
  the autoencoder of Bergmann et al. 2019.

Differences to the papers: the decoder starts with a linear layer onto the last grid (Ruff et al. reshape the code to 4x4
pixels, which fits sides of 28 and 32 pixels only); Bergmann et al. have 3x3 convolutions in between.
Odd sides are rounded up by ``lenet`` and down by ``dcgan``; the decoder restores the exact size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from normalcy.errors import DataError, SettingsError
from normalcy.nets.halving import DoublingConv2d, HalvingConv2d

Network = Literal["auto", "lenet", "dcgan"]
Norm = Literal["batch", "group", "none"]
Grid = tuple[int, ...]

SMALLEST = 8
"""Shortest side of an image, in pixels."""
LENET_UP_TO = 32
"""Longest side, in pixels, for which "auto" chooses the LeNet type."""
CLIP = 0.1
"""Gradients of a reconstruction error (mean over pixels) are clipped at this norm: else one outlier can spoil the training."""

_POOL: dict[int, Any] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_BATCH_NORM: dict[int, Any] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def conv(dims: int) -> Any:
    """``nn.Conv2d`` or ``nn.Conv3d``."""
    return {2: nn.Conv2d, 3: nn.Conv3d}[dims]


def transposed_conv(dims: int) -> Any:
    """``nn.ConvTranspose2d`` or ``nn.ConvTranspose3d``."""
    return {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dims]


@dataclass(frozen=True)
class ConvNet:
    """The architecture of an encoder and its decoder; :func:`choose` returns the usual ones."""

    kind: Literal["lenet", "dcgan"]
    channels: tuple[int, ...]
    """Channels after each halving."""
    norm: Norm = "none"
    affine: bool = True
    """Normalisation layers learn a scale and a shift (Deep SVDD: no)."""
    bias: bool = True
    """All layers have a bias (Deep SVDD: no)."""
    slope: float = 0.1
    """Negative slope of the leaky ReLU."""

    def grids(self, spatial: Sequence[int]) -> list[Grid]:
        """Spatial sizes from the image to the last level.

        >>> ConvNet("lenet", (8, 4)).grids((28, 25))
        [(28, 25), (14, 13), (7, 7)]
        >>> ConvNet("dcgan", (32, 32, 64, 128)).grids((10, 128, 200))  # a short axis stops at 4 or 5
        [(10, 128, 200), (5, 64, 100), (5, 32, 50), (5, 16, 25), (5, 8, 12)]
        """
        grids: list[Grid] = [tuple(spatial)]
        for _ in self.channels:
            last = grids[-1]
            grids.append(tuple((n + 1) // 2 if self.kind == "lenet" else n // 2 if n >= 8 else n for n in last))
        return grids

    def encoder(self, shape: Sequence[int], outputs: int) -> nn.Sequential:
        """(B, *shape) -> (B, outputs), where ``shape`` is (C, *spatial).

        The first len(channels) entries are the levels, followed by flattening and a linear layer. Raises DataError for images
        that are neither 2D nor 3D or have a side below 8 pixels.
        """
        grids = self.grids(_checked(shape)[1:])
        dims, widths = len(shape) - 1, (shape[0], *self.channels)
        net = nn.Sequential()
        for level, (before, after, small, large) in enumerate(zip(widths, widths[1:], grids[1:], grids)):
            if self.kind == "lenet":
                convolve = conv(dims)(before, after, 5, padding=2, bias=self.bias)
                level_net = nn.Sequential(
                    convolve, *self._norm(dims, after), self._activation(), _POOL[dims](2, ceil_mode=True)
                )
            else:
                stride = tuple(1 if s == n else 2 for s, n in zip(small, large))
                kernel = tuple(3 if s == 1 else 4 for s in stride)
                if stride == (2, 2):
                    convolve = HalvingConv2d(before, after, self.bias)
                else:
                    convolve = conv(dims)(before, after, kernel, stride, padding=1, bias=self.bias)
                # As in DCGAN, the layer next to the image has no norm: contrast is information.
                norm = self._norm(dims, after) if level else []
                level_net = nn.Sequential(convolve, *norm, self._activation())
            net.append(level_net)
        net.append(nn.Flatten())
        net.append(nn.Linear(widths[-1] * math.prod(grids[-1]), outputs, bias=self.bias))
        return initialise(net, self.slope)

    def decoder(self, shape: Sequence[int], inputs: int) -> nn.Sequential:
        """(B, inputs) -> (B, *shape), exactly the image's size, no final activation, outputs near 0 at initialisation.

        A linear layer onto the last grid, then one entry per level.
        """
        grids = self.grids(_checked(shape)[1:])[::-1]
        dims, widths = len(shape) - 1, (shape[0], *self.channels)[::-1]
        net = nn.Sequential(
            nn.Linear(inputs, widths[0] * math.prod(grids[0]), bias=self.bias),
            nn.Sequential(nn.Unflatten(1, (widths[0], *grids[0])), *self._norm(dims, widths[0]), self._activation()),
        )
        for level, (before, after, small, large) in enumerate(zip(widths, widths[1:], grids, grids[1:]), 2):
            if self.kind == "lenet":
                convolve = conv(dims)(before, after, 5, padding=2, bias=self.bias)
                level_net = nn.Sequential(nn.Upsample(large), convolve)
            else:
                stride = tuple(1 if s == n else 2 for s, n in zip(small, large))
                kernel = tuple(3 if s == 1 else 4 for s in stride)
                odd = tuple(n - s * t for n, s, t in zip(large, small, stride))
                if stride == (2, 2):
                    convolve = DoublingConv2d(before, after, self.bias, odd)
                else:
                    convolve = transposed_conv(dims)(
                        before, after, kernel, stride, padding=1, output_padding=odd, bias=self.bias
                    )
                level_net = nn.Sequential(convolve)
            if level <= len(self.channels):
                level_net.extend([*self._norm(dims, after), self._activation()])
            net.append(level_net)
        initialise(net, self.slope)
        with torch.no_grad():  # outputs near 0, which Standardise maps to the mean image
            convolve.weight.mul_(0.1)
        return net

    def _norm(self, dims: int, channels: int) -> list[nn.Module]:
        match self.norm:
            case "batch":
                return [_BATCH_NORM[dims](channels, eps=1e-4, affine=self.affine)]
            case "group":
                return [nn.GroupNorm(math.gcd(channels, 8), channels, affine=self.affine)]
            case "none":
                return []

    def _activation(self) -> nn.Module:
        return nn.LeakyReLU(self.slope, inplace=True)


def choose(network: Network, shape: Sequence[int], width: int | None = None, norm: Norm = "none") -> ConvNet:
    """The usual network for images of ``shape`` (C, *spatial).

    "auto" is the LeNet type up to a longest side of 32 pixels, beyond that the DCGAN type, halved until the longest side is
    below 16. ``width`` is the number of channels of the first level; by default 8 for a LeNet on one channel (Ruff et
    al. on MNIST: 8 and 4), else 32 (LeNet, as on CIFAR-10: 32, 64, 128; DCGAN type: 32, 32, 64, 128, 128 ...). Raises
    DataError for images that are too small, SettingsError for a width below 2.

    >>> choose("auto", (1, 28, 28)).channels, choose("auto", (3, 32, 32)).channels
    ((8, 4), (32, 64, 128))
    >>> choose("auto", (3, 256, 256))
    ConvNet(kind='dcgan', channels=(32, 32, 64, 128, 128), norm='none', affine=True, bias=True, slope=0.2)
    """
    _checked(shape)
    if width is not None and width < 2:
        raise SettingsError(f"width must be at least 2 channels, got {width}.")
    longest = max(shape[1:])
    if network == "auto":
        network = "lenet" if longest <= LENET_UP_TO else "dcgan"
    if network == "lenet":
        if shape[0] == 1:
            width = width or 8
            return ConvNet("lenet", (width, width // 2), norm)
        width = width or 32
        return ConvNet("lenet", (width, 2 * width, 4 * width), norm)
    width = width or 32
    levels = max(1, math.floor(math.log2(longest / 8)))
    return ConvNet("dcgan", tuple(width * min(4, max(1, 2 ** (i - 1))) for i in range(levels)), norm, slope=0.2)


def initialise(net: nn.Sequential, slope: float) -> nn.Sequential:
    """Normal weights that preserve the scale of activations through leaky ReLUs of this slope (He et al. 2015); biases zero.

    The fan-in is the number of inputs of one output: kernel / stride pixels along each axis of a transposed convolution.
    """
    for module in net.modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if not isinstance(weight, Tensor) or weight.ndim < 2:
            continue
        fan_in = weight[0].numel()
        if isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
            fan_in = weight[:, 0].numel() // math.prod(module.stride)
        nn.init.normal_(weight, std=math.sqrt(2 / ((1 + slope**2) * fan_in)))
        if isinstance(bias, Tensor):
            nn.init.zeros_(bias)
    return net


def _checked(shape: Sequence[int]) -> Sequence[int]:
    if len(shape) - 1 not in (2, 3) or min(shape[1:]) < SMALLEST:
        raise DataError(
            f"Convolutional networks expect images (C, *spatial), 2D or 3D with sides of at least {SMALLEST} pixels, "
            f"got {tuple(shape)}: make the images larger with resize or pad_to."
        )
    return shape
