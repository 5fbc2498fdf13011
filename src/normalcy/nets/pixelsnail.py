"""PixelSNAIL (Chen et al. 2018): a causal network over a grid of codes, in 2D and 3D, by masked convolutions and attention.

The logits of a position depend on the codes before it in raster order alone. The first convolution does not see its own
position, so what later layers compute at a position depends on codes before it; they may see it. Convolutions with such a
mask have a blind spot to the upper right (van den Oord et al. 2016), which the attention, over all positions before, closes.

Differences: one stream of masked convolutions instead of a vertical and a horizontal one; layer norm over channels before each
block, for training in bf16.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}


class PixelSNAIL(nn.Module):
    """Codes (B, *grid), int64 in [0, codes), and conditions (B, conditions) -> logits (B, codes, *grid), float32."""

    def __init__(
        self,
        grid: Sequence[int],
        codes: int,
        width: int = 64,
        blocks: int = 3,
        residuals: int = 1,
        heads: int = 4,
        kernel: int = 5,
        dropout: float = 0.0,
        conditions: int = 0,
    ) -> None:
        super().__init__()
        self.grid, dims = tuple(grid), len(grid)
        self.embed = nn.Embedding(codes, width)
        self.place = nn.Parameter(0.02 * torch.randn(1, width, *self.grid))
        self.condition = nn.Linear(conditions, width) if conditions else None
        self.enter = _masked(dims, width, width, kernel, centre=False)
        self.blocks = nn.ModuleList()
        for _ in range(blocks):
            self.blocks.append(nn.ModuleList([_Gated(dims, width, dropout) for _ in range(residuals)]))
            self.blocks.append(_Attention(width, heads, dropout))
        self.leave = nn.Sequential(_Norm(width), nn.ELU(), _CONV[dims](width, codes, 1))

    def forward(self, codes: Tensor, conditions: Tensor | None = None) -> Tensor:
        seen = self.embed(codes).movedim(-1, 1) + self.place  # (B, width, *grid)
        state = self.enter(seen) + self.place
        if self.condition is not None:
            assert conditions is not None
            shift: Tensor = self.condition(conditions)
            state = state + shift.view(*shift.shape, *[1] * len(self.grid))
        for block in self.blocks:
            if isinstance(block, nn.ModuleList):
                for gated in block:
                    state = gated(state)
            else:
                state = block(state, seen)
        logits: Tensor = self.leave(state).float()
        return logits


class _Norm(nn.Module):
    """Layer norm over the channels of (B, C, *grid)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.movedim(1, -1))
        return y.movedim(-1, 1)


class _Gated(nn.Module):
    """Gated residual block: x + a sigmoid(b), with a and b from two masked 3x3 convolutions."""

    def __init__(self, dims: int, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _Norm(width), nn.ELU(), _masked(dims, width, width, 3), nn.ELU(), nn.Dropout(dropout),
            _masked(dims, width, 2 * width, 3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.layers(x).chunk(2, 1)
        y: Tensor = x + value * gate.sigmoid()
        return y


class _Attention(nn.Module):
    """What the codes before say, weighed by what this position asks: keys and values see codes, so only those before count.

    A first key that is always there lets the first position ask, too.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = math.gcd(width, heads)
        self.norm = _Norm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(2 * width, 2 * width)
        self.none = nn.Parameter(torch.zeros(1, 1, 2 * width))
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        self.dropout = nn.Dropout(dropout)

    def forward(self, state: Tensor, seen: Tensor) -> Tensor:
        """(B, width, *grid) twice: the causal state, and the embedded codes themselves."""
        h = self.norm(state).flatten(2).transpose(1, 2)  # (B, n, width)
        both = torch.cat([h, seen.flatten(2).transpose(1, 2).to(h.dtype)], 2)
        known = self.key_value(both[:, :-1])  # the last position comes before none
        known = torch.cat([self.none.expand(len(h), -1, -1).to(known.dtype), known], 1)
        q = self._split(self.query(h))
        k, v = (self._split(part) for part in known.chunk(2, 2))
        # Key 0 is the one that is always there, key j the code j - 1: query i may see keys 0 ... i.
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y: Tensor = self.dropout(self.out(found.transpose(1, 2).flatten(2)))
        return state + y.transpose(1, 2).reshape(state.shape)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


def _masked(dims: int, before: int, after: int, kernel: int, centre: bool = True) -> nn.Module:
    return _Masked(_CONV[dims](before, after, kernel, padding=kernel // 2), centre)


class _Masked(nn.Module):
    """A convolution that sees positions before its own in raster order, and with ``centre`` its own."""

    mask: Tensor

    def __init__(self, convolve: nn.Conv2d | nn.Conv3d, centre: bool) -> None:
        super().__init__()
        self.convolve = convolve
        taps = math.prod(convolve.kernel_size)
        seen = torch.arange(taps) < taps // 2 + centre
        self.register_buffer("mask", seen.float().view(1, 1, *convolve.kernel_size), persistent=False)
        with torch.no_grad():  # keep the scale of what comes out
            convolve.weight.mul_(math.sqrt(taps / int(seen.sum())))

    def forward(self, x: Tensor) -> Tensor:
        c = self.convolve
        y: Tensor = c._conv_forward(x, c.weight * self.mask, c.bias)
        return y
