"""The reconstruction networks of DDR-ID (Lin et al. 2020, table 1): encoder and decoder of the DCGAN type with batch norm.

For 32x32 images: four halvings (64, 128, 256 and 512 channels) and a linear layer to the code; a linear layer back to a 4x4 grid
and three doublings. Other sides have more levels of 512 channels, or fewer levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.nets.convnets import initialise
from normalcy.nets.halving import DoublingConv2d, HalvingConv2d

FirstWeights = Literal["he", "torch", "dcgan"]
SLOPE = 0.2
"""Negative slope of the leaky ReLUs."""


class ReconstructionNetwork(nn.Module):
    """Encoder (B, C, H, W) -> (B, latent) and decoder back to [-1, 1].

    ``width`` is the number of channels of the encoder's first level; they double with each halving, to 8 times ``width`` at most.
    ``bias``: the encoder has biases and affine norms. Images whose sides do not halve evenly are resized inside (bilinear).
    """

    def __init__(
        self, shape: Sequence[int], latent: int, width: int, bias: bool = True, first_weights: FirstWeights = "he"
    ) -> None:
        super().__init__()
        channels, *self.sides = shape
        levels = max(1, math.ceil(math.log2(max(self.sides) / 4)))  # of the decoder, above its first grid: 3 for 32x32
        self.grid = tuple(max(2, math.ceil(side / 2**levels)) for side in self.sides)
        self.inside = [n * 2**levels for n in self.grid]  # sides that halve evenly
        widths = [width * min(8, 2**i) for i in range(levels + 1)]
        encoder = nn.Sequential()
        for level, (before, after) in enumerate(zip([channels, *widths], widths)):
            # The norm cancels a bias of the layer before it.
            convolve = HalvingConv2d(before, after, bias=bias and level == 0)
            encoder.append(nn.Sequential(convolve, *self._norm(after, bias)[0 if level else 1 :]))
        last = [n // 2 for n in self.grid]
        encoder.extend([nn.Flatten(), nn.Linear(widths[-1] * math.prod(last), latent, bias=bias)])
        decoder = nn.Sequential(
            # What a transposed convolution from one pixel onto the grid computes.
            nn.Linear(latent, widths[-1] * math.prod(self.grid), bias=False),
            nn.Sequential(nn.Unflatten(1, (widths[-1], *self.grid)), *self._norm(widths[-1])),
        )
        for before, after in zip(widths[:0:-1], widths[-2:0:-1]):
            decoder.append(nn.Sequential(DoublingConv2d(before, after, bias=False), *self._norm(after)))
        decoder.append(nn.Sequential(DoublingConv2d(widths[1], channels), nn.Tanh()))
        self.encoder, self.decoder = encoder, decoder
        if first_weights == "he":
            initialise(encoder, SLOPE)
            initialise(decoder, SLOPE)
        elif first_weights == "dcgan":
            self.apply(_dcgan_weights)

    @staticmethod
    def _norm(channels: int, affine: bool = True) -> list[nn.Module]:
        return [nn.BatchNorm2d(channels, affine=affine), nn.LeakyReLU(SLOPE, inplace=True)]

    def encode(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, latent), float32"""
        code: Tensor = self.encoder(_resized(x, self.inside))
        return code.float()

    def decode(self, code: Tensor) -> Tensor:
        """(B, latent) -> (B, C, H, W) in [-1, 1], float32."""
        image: Tensor = self.decoder(code).float()
        return _resized(image, self.sides)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def _dcgan_weights(module: nn.Module) -> None:
    """Normal first weights as in Radford et al. 2016: standard deviation 0.02, around 1 in batch norms; biases 0."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if isinstance(weight, Tensor):
        nn.init.normal_(weight, 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0, 0.02)
    if isinstance(bias, Tensor):
        nn.init.zeros_(bias)


def _resized(x: Tensor, sides: Sequence[int]) -> Tensor:
    """(B, C, H, W) -> (B, C, *sides), bilinear in 32 bits where the sides differ"""
    if list(x.shape[2:]) == list(sides):
        return x
    with torch.autocast(x.device.type, enabled=False):
        return F.interpolate(x.float(), tuple(sides), mode="bilinear", antialias=True)
