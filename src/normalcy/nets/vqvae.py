"""Encoder and decoder of VQ-VAEs, in 2D and 3D (van den Oord et al. 2017; Wang et al. 2020, section 4.3.2).

The encoder has levels of 4x4 convolutions of stride 2, a 3x3 convolution and residual blocks (ReLU, 3x3, ReLU, 1x1, optionally
gated); the decoder mirrors it with transposed convolutions.

With ``normalise`` the vector of each position leaves the encoder with mean 0 and standard deviation 1. Otherwise its scale can
outgrow a codebook that learns by gradients in the first steps of training, and most positions collapse to a few codes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.errors import DataError
from normalcy.nets.convnets import conv, transposed_conv


class Residual(nn.Module):
    """x + W(x): ReLU, 3x3 convolution, ReLU, 1x1 convolution."""

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(), conv(dims)(width, width, 3, padding=1), nn.ReLU(), conv(dims)(width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.layers(x)
        return y


class GatedResidual(nn.Module):
    """x + a sigmoid(b), with a and b from ReLU, 3x3 convolution, ReLU, 1x1 convolution."""

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(), conv(dims)(width, width, 3, padding=1), nn.ReLU(), conv(dims)(width, 2 * width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.layers(x).chunk(2, 1)
        y: Tensor = x + value * gate.sigmoid()
        return y


class Normalise(nn.Module):
    """Mean 0 and standard deviation 1 over the channels of each position of (B, C, *grid)."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.movedim(1, -1).float(), (x.shape[1],))
        return y.movedim(-1, 1)


def code_grid(who: str, spatial: Sequence[int], levels: int) -> tuple[int, ...]:
    """Sides of the grid of codes. Raises DataError where 2^levels does not divide the sides of the images."""
    step = 2**levels
    if any(side % step or side < step for side in spatial):
        raise DataError(
            f"{who} halves images {levels} times: expected sides divisible by {step}, got {tuple(spatial)}; resize them "
            f"(--set size={max(step, round(max(spatial) / step) * step)}) or pad them (pad_to)."
        )
    return tuple(side // step for side in spatial)


def encoder(
    dims: int,
    channels: int,
    width: int,
    levels: int,
    residuals: int,
    dimension: int,
    gated: bool = False,
    normalise: bool = False,
    everywhere: bool = False,
) -> nn.Sequential:
    """(B, channels, *spatial) -> z_e (B, dimension, *grid). ``everywhere``: residual blocks at all grids, not one alone."""
    block = GatedResidual if gated else Residual
    net = nn.Sequential()
    for level in range(levels):
        before, after = (channels if level == 0 else width // 2 ** (level < 2), width // 2 ** (level < 1))
        net.extend([conv(dims)(before, after, 4, 2, 1), nn.ReLU()])
        if everywhere and level < levels - 1:
            net.extend(block(dims, after) for _ in range(residuals))
    net.append(conv(dims)(width if levels > 1 else width // 2, width, 3, padding=1))
    net.extend([*(block(dims, width) for _ in range(residuals)), nn.ReLU(), conv(dims)(width, dimension, 1)])
    if normalise:
        net.append(Normalise())
    return net


def decoder(
    dims: int,
    channels: int,
    width: int,
    levels: int,
    residuals: int,
    dimension: int,
    gated: bool = False,
    everywhere: bool = False,
) -> nn.Sequential:
    """(B, dimension, *grid) -> (B, channels, *spatial), no final activation. ``everywhere`` as for :func:`encoder`."""
    block = GatedResidual if gated else Residual
    net = nn.Sequential(conv(dims)(dimension, width, 3, padding=1))
    net.extend([*(block(dims, width) for _ in range(residuals)), nn.ReLU()])
    for level in reversed(range(levels)):
        before = width if level == levels - 1 else width // 2 ** (level < 1)
        after = channels if level == 0 else width // 2 ** (level < 2)
        net.append(transposed_conv(dims)(before, after, 4, 2, 1))
        if level and everywhere:
            net.extend(block(dims, after) for _ in range(residuals))
        if level:
            net.append(nn.ReLU())
    return net


def grid_encoder(dims: int, channels: int, width: int, residuals: int, dimension: int) -> nn.Sequential:
    """z_e (B, dimension, *grid), normalised, of features (B, channels, *grid) that lie on the grid of codes already."""
    return nn.Sequential(
        conv(dims)(channels, width, 1),
        *(Residual(dims, width) for _ in range(residuals)),
        nn.ReLU(),
        conv(dims)(width, dimension, 1),
        Normalise(),
    )


def grid_decoder(dims: int, channels: int, width: int, residuals: int, dimension: int) -> nn.Sequential:
    """(B, dimension, *grid) -> (B, channels, *grid)"""
    return nn.Sequential(
        conv(dims)(dimension, width, 3, padding=1),
        *(Residual(dims, width) for _ in range(residuals)),
        nn.ReLU(),
        conv(dims)(width, channels, 1),
    )
