"""Restoring a table of codes to one that a causal prior finds likely: exactly what a scan position by position gives, in a
fraction of its passes through the prior.

A scan looks at the codes in raster order and replaces those that the prior, given the codes before as they are now, finds
unlikely. After one pass through a causal prior all its conditionals hold up to and including the next code that changes; so
a table of which k codes change needs k + 1 passes, not one for each position. Every table of a batch has a cursor of its
own, and those that are finished leave the batch. A prior that remembers (:class:`normalcy.nets.pixelsnail.Memory`) need not
even compute whole passes, but a few rows of the grid from the last change on.

Two rules: :class:`LikelyCodes` (Wang et al. 2020, "latent space resampling", equation 5) and :class:`SampledCodes` (Naval
Marimont, Tarroni 2021). Random numbers belong to positions, not to passes, so that the number of passes changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Prior(Protocol):
    """A causal prior that may remember what it computed for the same tables before."""

    def __call__(self, codes: Tensor, rows: Tensor, since: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (b, *grid), int64, of tables number ``rows`` (b,) of the batch, which only ever become fewer -> logits
        (b, K, m) of m positions in raster order, and the first of them (b,).

        The logits of a position depend on the codes before it alone. Codes before ``since`` (b,) are as they were in the
        last call. In the first call all positions are wanted, later a prior may give a part around ``since``, which ends
        with a whole row of the grid.
        """
        ...


class Rule(Protocol):
    """Which codes are to be replaced, and by what."""

    ahead: int
    """Positions after its own whose likelihood decides on a code, as far as this."""

    def unlikely(self, nll: Tensor) -> Tensor:
        """Whether codes with negative log-likelihoods (b, n), in nats, are to be replaced: (b, n), bool."""
        ...

    def instead(self, logits: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        """The codes (m,) for positions ``places`` of tables ``rows``, by their logits (m, K)."""
        ...


@dataclass(frozen=True)
class Restored:
    codes: Tensor
    """(B, *grid), int64"""
    changed: Tensor
    """(B, *grid), bool"""
    nll: Tensor
    """(B, *grid): negative log-likelihood of the codes as they came, in nats, from the first pass."""
    passes: Tensor
    """(B,): how often the prior looked at each table: once, and anew after each change."""
    work: Tensor
    """(B,): the positions that it computed in them, as a multiple of the whole table."""


def whole(function: Callable[[Tensor, Tensor], Tensor]) -> Prior:
    """A prior without memory, from a function of codes (b, *grid) and rows (b,) that gives logits (b, K, *grid)."""

    def prior(codes: Tensor, rows: Tensor, since: Tensor) -> tuple[Tensor, Tensor]:
        return function(codes, rows).flatten(2), torch.zeros_like(rows)

    return prior


@torch.no_grad()
def restore(prior: Prior, codes: Tensor, rule: Rule) -> Restored:
    """Restore tables of codes (B, *grid), int64; see the head of this file. Equal to :func:`scan` in every code."""
    grid, flat = codes.shape[1:], codes.flatten(1).clone()
    size = flat.shape[1]
    rows = torch.arange(len(flat), device=codes.device)  # still being restored
    cursor, since = torch.zeros_like(rows), torch.zeros_like(rows)  # the first position not settled; not looked at
    passes, work = torch.ones_like(rows), torch.zeros(len(rows), device=codes.device)
    nll = original = torch.zeros(flat.shape, device=codes.device)
    while len(rows):
        now = flat[rows]
        logits, start = prior(now.view(-1, *grid), rows, since[rows])
        logits = logits.float()
        places = start[:, None] + torch.arange(logits.shape[2], device=codes.device)  # (b, m)
        here = now.gather(1, places)
        nll[rows[:, None], places] = negative_log_likelihood(logits, here)
        if original is nll:
            original = nll.clone()
        work[rows] += logits.shape[2] / size
        end = places[:, -1] + 1
        end = torch.where(end == size, size, end - rule.ahead)  # beyond, what decides is not known yet
        assert bool((end > since[rows]).all()), "the prior must give more positions than the rule looks ahead"
        doubtful = rule.unlikely(nll[rows]).gather(1, places)
        doubtful &= (places >= cursor[rows, None]) & (places < end[:, None])
        row, k = doubtful.nonzero(as_tuple=True)
        wanted = here.clone()
        wanted[row, k] = rule.instead(logits[row, :, k], rows[row], places[row, k])
        differs = wanted != here
        going = differs.any(1)
        first = differs.float().argmax(1, keepdim=True)
        place = places.gather(1, first).squeeze(1)
        changed = rows[going]
        flat[changed, place[going]] = wanted.gather(1, first).squeeze(1)[going]
        cursor[rows] = torch.where(going, place + 1, end)
        since[rows] = torch.where(going, place, end)
        passes[changed] += (cursor[changed] < size).long()
        rows = rows[cursor[rows] < size]
    restored = flat.view_as(codes)
    return Restored(restored, restored != codes, original.view(codes.shape), passes, work)


@torch.no_grad()
def scan(prior: Prior, codes: Tensor, rule: Rule) -> Tensor:
    """The same position by position, one pass for each: what :func:`restore` is measured by."""
    flat = codes.flatten(1).clone()
    rows = torch.arange(len(flat), device=codes.device)
    for place in range(flat.shape[1]):
        logits, _ = prior(flat.view_as(codes), rows, torch.zeros_like(rows))
        nll = negative_log_likelihood(logits.float(), flat)
        wanted = rule.instead(logits[:, :, place], rows, torch.full_like(rows, place))
        flat[:, place] = torch.where(rule.unlikely(nll)[:, place], wanted, flat[:, place])
    return flat.view_as(codes)


def negative_log_likelihood(logits: Tensor, codes: Tensor) -> Tensor:
    """Of codes (b, n) by logits (b, K, n), in nats: (b, n)."""
    return -logits.log_softmax(1).gather(1, codes[:, None]).squeeze(1)


def limit_of(nll: Tensor, share: float) -> Tensor:
    """A limit in nats that ``share`` of these likelihoods exceed, half-way between two of them: codes of which the prior says
    the same in every image (the first) must not be judged by rounding."""
    values = nll.flatten()
    values = values[:: max(1, len(values) // 2**23)]  # torch.quantile takes 2**24
    below = torch.quantile(values, 1 - share, interpolation="higher")
    above = values[values > below + 1e-3]
    return (below + above.min()) / 2 if len(above) else below + 1e-3


class LikelyCodes:
    """A code less likely than ``eta`` becomes the likeliest one, if (``local``) one of the neighbours that come after it
    (right, lower left, lower, lower right; in 3D all of the 13) is less likely than ``eta`` too.

    Neighbours outside the grid do not count; the last position, which has none inside, changes by its own likelihood.
    """

    def __init__(self, eta: float, grid: Sequence[int], local: bool = True) -> None:
        self.limit = float(-torch.tensor(eta).log())
        self.grid, self.local = tuple(grid), local
        self.ahead = sum(math.prod(self.grid[k:]) for k in range(1, len(self.grid))) if local else 0

    def unlikely(self, nll: Tensor) -> Tensor:
        unlikely = nll > self.limit
        if self.local:
            around = later_neighbours_max(nll.view(-1, *self.grid)).flatten(1)
            unlikely &= (around > self.limit) | around.isneginf()
        return unlikely

    def instead(self, logits: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        return logits.argmax(1)


class SampledCodes:
    """A code with a negative log-likelihood above ``limit`` nats is drawn anew from its conditional.

    ``uniform`` (B, n) in [0, 1) holds the random number of each position of each table of the batch.
    """

    ahead = 0

    def __init__(self, limit: float, uniform: Tensor) -> None:
        self.limit, self.uniform = limit, uniform

    def unlikely(self, nll: Tensor) -> Tensor:
        return nll > self.limit

    def instead(self, logits: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        below = logits.double().softmax(1).cumsum(1)  # in double: sums of many small probabilities
        u = self.uniform[rows, places].to(below) * below[:, -1]
        return (below <= u[:, None]).sum(1).clamp(max=logits.shape[1] - 1)


def later_neighbours_max(values: Tensor) -> Tensor:
    """The largest value among the neighbours of each position, of its 3^d block, that come after it in raster order.

    (b, *grid) -> the same; -inf where there is none.

    >>> later_neighbours_max(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
    tensor([[[4., 4.],
             [4., -inf]]])
    """
    dims = values.ndim - 1
    padded = torch.nn.functional.pad(values, (1, 1) * dims, value=-torch.inf)
    offsets = torch.cartesian_prod(*[torch.arange(3)] * dims).tolist()
    later = offsets[len(offsets) // 2 + 1 :]
    parts = []
    for offset in later:
        part = padded
        for axis, start in enumerate(offset, start=1):
            part = part.narrow(axis, start, values.shape[axis])
        parts.append(part)
    return torch.stack(parts).amax(0)
