"""A bidirectional prior over grids of codes, 2D and 3D: it predicts hidden codes from all that are not hidden.

Trained as MaskGIT (Chang et al. 2022, arXiv:2202.04200): codes of random blocks are hidden, the loss is the cross-entropy of
the hidden ones. An autoregressive prior (:mod:`normalcy.nets.pixelsnail`) sees the codes before a position alone: inside a
homogeneous anomaly each code is likely after the first. This one sees both sides, and hides the neighbours of a code with it,
so that the inside of an anomaly must be explained by its surroundings.

* :func:`conditionals`: the distribution of each code given those not hidden with it: a pseudo-likelihood (Besag 1975). Hidden
  with a code are its block and every second block from there along each axis, a quarter of the codes in 2D and an eighth in 3D,
  so that 2^d passes are enough for a whole grid. :func:`likelihoods` are means over two sides of the blocks: 2 x 2^d passes.
* :func:`refill`: hides unlikely codes with their neighbours and fills them in anew, the most certain first, in a fixed number of
  passes; codes that are not hidden never change. Random numbers belong to positions: the same seed gives the same result.

The network: residual blocks of dilated convolutions, and attention to a coarse grid of means, whose cost grows linearly with the
number of codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.nets.convnets import conv
from normalcy.nets.pixelsnail import ChannelNorm
from normalcy.nets.restore import Restored, drawn, negative_log_likelihood

DILATIONS = (1, 2, 4)
"""Of the convolutions in each block."""
COARSE = 8
"""Sides of the grid of means that attention sees, at most."""
HIDDEN = (0.1, 0.6)
"""Fraction of the codes that are hidden in training, drawn uniformly."""
BLOCKS = (1, 2, 3, 4, 6, 8)
"""Sides of the hidden blocks in training, in codes."""
SCALES = (2, 6)
"""Sides of the blocks that are hidden together for the likelihood of a code, whose mean it is: a small anomaly is unlikely given
what is near, a large one only given what is far."""


class MaskedPrior(nn.Module):
    """Codes (B, *grid), int64 in [0, codes), which of them are hidden (B, *grid), bool, and conditions (B, conditions) -> logits
    (B, codes, *grid), float32; those of hidden positions do not depend on the codes there."""

    def __init__(
        self,
        grid: Sequence[int],
        codes: int,
        width: int = 64,
        blocks: int = 3,
        heads: int = 4,
        dropout: float = 0.0,
        conditions: int = 0,
    ) -> None:
        super().__init__()
        self.grid, self.codes, dims = tuple(grid), codes, len(grid)
        self.embed = nn.Embedding(codes + 1, width)  # the last one stands for a hidden code
        self.place = nn.Parameter(0.02 * torch.randn(1, width, *self.grid))
        self.condition = nn.Linear(conditions, width) if conditions else None
        self.enter = conv(dims)(width, width, 3, padding=1)
        self.blocks = nn.ModuleList()
        for _ in range(blocks):
            self.blocks.extend(_Gated(dims, width, dilation, dropout) for dilation in DILATIONS)
            self.blocks.append(_ToMeans(dims, width, heads, dropout))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.ELU(), nn.Linear(width, codes))

    def forward(self, codes: Tensor, hidden: Tensor, conditions: Tensor | None = None) -> Tensor:
        seen = torch.where(hidden, self.codes, codes)
        state = self.enter(self.embed(seen).movedim(-1, 1) + self.place)
        if self.condition is not None:
            assert conditions is not None
            shift: Tensor = self.condition(conditions)
            state = state + shift.view(*shift.shape, *[1] * len(self.grid))
        for block in self.blocks:
            state = block(state)
        logits: Tensor = self.leave(state.movedim(1, -1)).float()
        return logits.movedim(-1, 1)


def draw_hidden(count: int, grid: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Which codes a training step hides: (count, *grid), bool. Blocks of one size for each grid, at random places."""
    masks = torch.zeros(count, *grid, dtype=torch.bool)
    sizes = [BLOCKS[k] for k in torch.randint(0, len(BLOCKS), (count,)).tolist()]
    rates = torch.empty(count).uniform_(*HIDDEN).tolist()
    for mask, size, rate in zip(masks, sizes, rates):
        cells = torch.rand([-(-n // size) + 1 for n in grid]) < rate
        for axis, n in enumerate(grid):
            start = int(torch.randint(0, size, ()))
            cells = cells.repeat_interleave(size, axis).narrow(axis, start, n)
        mask.copy_(cells)
    return masks.to(device)


def masked_nats(logits: Tensor, codes: Tensor, hidden: Tensor) -> Tensor:
    """Negative log-likelihood of a hidden code, mean over all hidden ones of (B, *grid); zero if none is hidden."""
    nats = F.cross_entropy(logits, codes, reduction="none")
    return (nats * hidden).sum() / hidden.sum().clamp(min=1)


def lattice(grid: Sequence[int], block: int, device: torch.device | str = "cpu") -> Tensor:
    """2^d masks (2^d, *grid), bool, that hide each position in exactly one of them: every second block along each axis.

    >>> lattice((1, 4), 2)[:, 0].int().tolist()
    [[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    """
    parity = torch.zeros(tuple(grid), dtype=torch.long)
    for axis, n in enumerate(grid):
        odd = torch.arange(n) // block % 2
        parity = 2 * parity + odd.view([n if k == axis else 1 for k in range(len(grid))])
    return (parity == torch.arange(2 ** len(grid)).view(-1, *[1] * len(grid))).to(device)


def conditionals(prior: MaskedPrior, codes: Tensor, conditions: Tensor | None = None, block: int = 2) -> Tensor:
    """Logits (B, K, *grid) of each code of (B, *grid) given those not hidden with it by :func:`lattice`; ``block``: its side."""
    logits = torch.zeros(len(codes), prior.codes, *prior.grid, device=codes.device)
    for mask in lattice(prior.grid, block, codes.device):
        if bool(mask.any()):
            hidden = mask.expand_as(codes)
            logits = torch.where(mask, prior(codes, hidden, conditions), logits)
    return logits


def pseudo_likelihood(logits: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of codes (B, *grid) and entropy of their distributions, from logits (B, K, *grid), in nats."""
    nll = negative_log_likelihood(logits.flatten(2), codes.flatten(1)).view(codes.shape)
    return nll, entropy(logits)


def likelihoods(
    prior: MaskedPrior, codes: Tensor, conditions: Tensor | None = None, scales: Sequence[int] = SCALES
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of codes (B, *grid) and entropy of their distributions, in nats, means over ``scales``."""
    found = [pseudo_likelihood(conditionals(prior, codes, conditions, block), codes) for block in scales]
    nll, expected = (torch.stack(part).mean(0) for part in zip(*found))
    return nll, expected


def entropy(logits: Tensor) -> Tensor:
    """Entropy of distributions with logits (B, K, *grid), in nats: (B, *grid)."""
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1)


@torch.no_grad()
def refill(
    prior: MaskedPrior,
    codes: Tensor,
    nll: Tensor,
    limit: float,
    *,
    conditions: Tensor | None = None,
    uniform: Tensor | None = None,
    rounds: int = 3,
    reach: int = 1,
) -> Restored:
    """Replace codes (B, *grid) with ``nll`` (B, *grid) above ``limit`` nats, and all within ``reach`` of them.

    In each of ``rounds`` passes those of which the prior is most certain are decided: a third, two thirds, all. A code becomes
    the likeliest one, or, with ``uniform`` (B, n) in [0, 1), one drawn from its distribution by the number of its position.
    """
    grid = codes.shape[1:]
    hidden = widened(nll > limit, reach).flatten(1)
    flat, open_ = codes.flatten(1).clone(), hidden.clone()
    total = hidden.sum(1, keepdim=True)
    going = hidden.any(1)
    for k in range(1, rounds + 1):
        if not bool(going.any()):
            break
        some = None if conditions is None else conditions[going]
        now, still = flat[going], open_[going]
        logits = prior(now.view(-1, *grid), still.view(-1, *grid), some).flatten(2)
        wanted = logits.argmax(1) if uniform is None else drawn(logits, uniform[going])
        certain = logits.softmax(1).gather(1, wanted[:, None])[:, 0].masked_fill(~still, -1)
        rank = certain.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        decided = still & (rank < (still.sum(1, keepdim=True) - (total[going] * (rounds - k)) // rounds))
        flat[going] = torch.where(decided, wanted, now)
        open_[going] = still & ~decided
    passes = torch.where(going, rounds, 0)
    restored = flat.view_as(codes)
    return Restored(restored, restored != codes, nll, passes, passes.float())


def widened(marked: Tensor, reach: int) -> Tensor:
    """Positions of (B, *grid), bool, within a box of ``reach`` around a marked one."""
    if reach == 0:
        return marked
    pool = {2: F.max_pool2d, 3: F.max_pool3d}[marked.ndim - 1]
    wide: Tensor = pool(marked[:, None].float(), 2 * reach + 1, 1, reach)
    return wide[:, 0] > 0


class _Gated(nn.Module):
    """Gated residual block: x + a sigmoid(b), with a and b from two 3x3 convolutions, the first dilated."""

    def __init__(self, dims: int, width: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ChannelNorm(width), nn.ELU(), conv(dims)(width, width, 3, padding=dilation, dilation=dilation), nn.ELU(),
            nn.Dropout(dropout), conv(dims)(width, 2 * width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.layers(x).chunk(2, 1)
        y: Tensor = x + value * gate.sigmoid()
        return y


class _ToMeans(nn.Module):
    """Attention of every position to the means of at most ``COARSE`` parts along each axis."""

    def __init__(self, dims: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dims = math.gcd(width, heads), dims
        self.norm = ChannelNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        pool: Any = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[self.dims]
        coarse = pool(h, [min(COARSE, n) for n in h.shape[2:]])
        q = self.query(h.flatten(2).transpose(1, 2))
        k, v = self.key_value(coarse.flatten(2).transpose(1, 2)).chunk(2, 2)
        if q.device.type == "cpu" and q.dtype == torch.bfloat16:  # faster in 32 bits there
            q, k, v = q.float(), k.float(), v.float()
        q, k, v = (part.reshape(*part.shape[:2], self.heads, -1).transpose(1, 2) for part in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v)
        y: Tensor = self.dropout(self.out(attended.transpose(1, 2).flatten(2).to(h.dtype)))
        return x + y.transpose(1, 2).reshape(x.shape)
