"""Replacing unlikely codes of a grid under an autoregressive prior: the exact result of a position-by-position scan, in a
fraction of its passes through the prior.

A scan visits the codes in raster order and replaces those that are unlikely given the earlier codes as they are by then. One
pass through an autoregressive prior gives all conditionals up to and including the next code that changes; so a grid in which
k codes change needs k + 1 passes, not one for each position. Every grid of a batch has its own cursor, and finished ones leave
the batch. A prior with a cache (:class:`normalcy.nets.pixelsnail.Memory`) recomputes only a few rows from the last change on.

Two rules: :class:`LikelyCodes` (Wang et al. 2020, "latent space resampling", equation 5) and :class:`SampledCodes` (Naval
Marimont, Tarroni 2021). Random numbers belong to positions, not to passes, so the result does not depend on the number of passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Prior(Protocol):
    """An autoregressive prior, which may cache what it computed for the same grids before."""

    def __call__(self, codes: Tensor, rows: Tensor, since: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (b, *grid), int64, of the grids ``rows`` (b,) of the batch, a subset of the last call's -> logits (b, K, m) of
        m positions in raster order, and the first of these (b,).

        The logits of a position depend on the codes before it alone. Codes before ``since`` (b,) are as they were in the
        last call. The first call must return all positions; later calls may return a part around ``since`` that ends with a
        whole row of the grid.
        """
        ...


class Rule(Protocol):
    """Which codes are replaced, and by what."""

    ahead: int
    """The farthest later position, relative to a code's own, whose likelihood affects the decision on it."""

    def unlikely(self, nll: Tensor) -> Tensor:
        """Whether codes with negative log-likelihoods (b, n), in nats, are replaced: (b, n), bool."""
        ...

    def instead(self, logits: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        """The new codes (m,) of positions ``places`` of grids ``rows``, from their logits (m, K)."""
        ...


@dataclass(frozen=True)
class Restored:
    codes: Tensor
    """(B, *grid), int64"""
    changed: Tensor
    """(B, *grid), bool"""
    nll: Tensor
    """(B, *grid): negative log-likelihood of the original codes, in nats, from the first pass."""
    passes: Tensor
    """(B,): passes of each grid through the prior: one, and one more after each change."""
    work: Tensor
    """(B,): positions computed in these passes, as a multiple of the grid's size."""


def whole(function: Callable[[Tensor, Tensor], Tensor]) -> Prior:
    """A prior without a cache, from a function of codes (b, *grid) and rows (b,) that returns logits (b, K, *grid)."""

    def prior(codes: Tensor, rows: Tensor, since: Tensor) -> tuple[Tensor, Tensor]:
        return function(codes, rows).flatten(2), torch.zeros_like(rows)

    return prior


@torch.no_grad()
def restore(prior: Prior, codes: Tensor, rule: Rule) -> Restored:
    """Restore code grids (B, *grid), int64; see the module's docstring. Equal to :func:`scan` in every code."""
    grid, flat = codes.shape[1:], codes.flatten(1).clone()
    size = flat.shape[1]
    rows = torch.arange(len(flat), device=codes.device)  # still being restored
    cursor, since = (
        torch.zeros_like(rows),
        torch.zeros_like(rows),
    )  # the first undecided position; the first changed one
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
        end = torch.where(
            end == size, size, end - rule.ahead
        )  # beyond, likelihoods that affect the decision are unknown
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
    """The same position by position, one pass each: the reference for :func:`restore`."""
    flat = codes.flatten(1).clone()
    rows = torch.arange(len(flat), device=codes.device)
    for place in range(flat.shape[1]):
        logits, _ = prior(flat.view_as(codes), rows, torch.zeros_like(rows))
        nll = negative_log_likelihood(logits.float(), flat)
        wanted = rule.instead(logits[:, :, place], rows, torch.full_like(rows, place))
        flat[:, place] = torch.where(rule.unlikely(nll)[:, place], wanted, flat[:, place])
    return flat.view_as(codes)


def negative_log_likelihood(logits: Tensor, codes: Tensor) -> Tensor:
    """Negative log-likelihood of codes (b, n) under logits (b, K, n), in nats: (b, n)."""
    return -logits.log_softmax(1).gather(1, codes[:, None]).squeeze(1)


def limit_of(nll: Tensor, fraction: float) -> Tensor:
    """A limit in nats that ``fraction`` of the values exceed, half-way between two of them, so that codes of equal likelihood in
    every image (such as the first) are not decided by rounding errors."""
    values = nll.flatten()
    values = values[:: max(1, len(values) // 2**23)]  # torch.quantile accepts at most 2**24
    below = torch.quantile(values, 1 - fraction, interpolation="higher")
    above = values[values > below + 1e-3]
    return (below + above.min()) / 2 if len(above) else below + 1e-3


class LikelyCodes:
    """A code less likely than ``eta`` becomes the likeliest one, if (``local``) one of its later neighbours in raster order
    (right, lower left, lower, lower right; in 3D all 13) is less likely than ``eta`` too.

    Neighbours outside the grid do not count; the last position, which has none inside, is decided by its own likelihood.
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
    """A code with a negative log-likelihood above ``limit`` nats is resampled from its conditional distribution.

    ``uniform`` (B, n) in [0, 1) holds the random number of each position of each grid of the batch.
    """

    ahead = 0

    def __init__(self, limit: float, uniform: Tensor) -> None:
        self.limit, self.uniform = limit, uniform

    def unlikely(self, nll: Tensor) -> Tensor:
        return nll > self.limit

    def instead(self, logits: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        return drawn(logits, self.uniform[rows, places])


def drawn(logits: Tensor, uniform: Tensor) -> Tensor:
    """Codes (m, ...) drawn from distributions with logits (m, K, ...) by numbers (m, ...) in [0, 1)."""
    below = logits.double().softmax(1).cumsum(1)  # double precision for sums of many small probabilities
    u = uniform.to(below) * below[:, -1]
    return (below <= u[:, None]).sum(1).clamp(max=logits.shape[1] - 1)


def later_neighbours_max(values: Tensor) -> Tensor:
    """The largest value among the later neighbours, in raster order, within the 3^d block around each position.

    (b, *grid) -> (b, *grid); -inf where there are none.

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
