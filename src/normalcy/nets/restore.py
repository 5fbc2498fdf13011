"""Restoring a table of codes to one that a causal prior finds likely: exactly what a scan position by position gives, in a
fraction of its passes through the prior.

A scan looks at the codes in raster order and replaces those that the prior, given the codes before as they are now, finds
unlikely. After one pass through a causal prior all its conditionals hold up to and including the next code that changes; so
a table of which k codes change needs k + 1 passes, not one for each position. Every table of a batch has a cursor of its
own, and those that are finished leave the batch.

Two rules: :class:`LikelyCodes` (Wang et al. 2020, "latent space resampling", equation 5) and :class:`SampledCodes` (Naval
Marimont, Tarroni 2021). Random numbers belong to positions, not to passes, so that the number of passes changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Prior = Callable[[Tensor, Tensor], Tensor]
"""Codes (b, *grid), int64, and the numbers (b,) of their tables in the batch -> logits (b, K, *grid), where those of a
position depend on the codes before it in raster order alone. The numbers serve conditions that differ between tables."""


class Rule(Protocol):
    """Which codes are to be replaced, and by what, judged by one pass through the prior."""

    def __call__(self, logits: Tensor, codes: Tensor, rows: Tensor) -> Tensor:
        """Logits (b, K, n) of codes (b, n), tables number ``rows`` (b,) of the batch -> codes (b, n): the present code, or
        the one to replace it if all codes before it were as they are now."""
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
    """(B,): passes through the prior that each table needed."""


@torch.no_grad()
def restore(prior: Prior, codes: Tensor, rule: Rule) -> Restored:
    """Restore tables of codes (B, *grid), int64; see the head of this file. Equal to :func:`scan` in every code."""
    grid = codes.shape[1:]
    flat = codes.flatten(1).clone()
    places = torch.arange(flat.shape[1], device=codes.device)
    rows = torch.arange(len(flat), device=codes.device)  # still being restored
    cursor = torch.zeros_like(rows)  # the first position that is not settled
    passes = torch.zeros_like(rows)
    nll = torch.zeros(flat.shape, device=codes.device)
    while len(rows):
        now = flat[rows]
        logits = prior(now.view(-1, *grid), rows).flatten(2).float()
        first = passes[rows] == 0
        nll[rows[first]] = negative_log_likelihood(logits[first], now[first])
        passes[rows] += 1
        wanted = rule(logits, now, rows)
        differs = (wanted != now) & (places >= cursor[rows, None])
        going = differs.any(1)
        rows, differs, wanted = rows[going], differs[going], wanted[going]
        place = differs.float().argmax(1, keepdim=True)  # the first
        flat[rows[:, None], place] = wanted.gather(1, place)
        cursor[rows] = place.squeeze(1) + 1
        done = cursor >= flat.shape[1]
        rows = rows[~done[rows]]
    return Restored(flat.view_as(codes), flat.view_as(codes) != codes, nll.view(codes.shape), passes)


@torch.no_grad()
def scan(prior: Prior, codes: Tensor, rule: Rule) -> Tensor:
    """The same position by position, one pass for each: what :func:`restore` is measured by."""
    flat = codes.flatten(1).clone()
    rows = torch.arange(len(flat), device=codes.device)
    for place in range(flat.shape[1]):
        logits = prior(flat.view_as(codes), rows).flatten(2).float()
        flat[:, place] = rule(logits, flat, rows)[:, place]
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
        self.limit = -torch.tensor(eta).log()
        self.grid, self.local = tuple(grid), local

    def __call__(self, logits: Tensor, codes: Tensor, rows: Tensor) -> Tensor:
        nll = negative_log_likelihood(logits, codes)
        unlikely = nll > self.limit.to(nll.device)
        if self.local:
            around = later_neighbours_max(nll.view(-1, *self.grid)).flatten(1)
            unlikely &= (around > self.limit.to(nll.device)) | around.isneginf()
        return torch.where(unlikely, logits.argmax(1), codes)


class SampledCodes:
    """A code with a negative log-likelihood above ``limit`` nats is drawn anew from its conditional.

    ``uniform`` (B, n) in [0, 1) holds the random number of each position of each table of the batch.
    """

    def __init__(self, limit: float, uniform: Tensor) -> None:
        self.limit, self.uniform = limit, uniform

    def __call__(self, logits: Tensor, codes: Tensor, rows: Tensor) -> Tensor:
        unlikely = negative_log_likelihood(logits, codes) > self.limit
        wanted = codes.clone()
        row, place = unlikely.nonzero(as_tuple=True)
        if len(row):  # in double: sums of many small probabilities
            below = logits[row, :, place].double().softmax(1).cumsum(1)
            u = self.uniform[rows[row], place].to(below) * below[:, -1]
            wanted[row, place] = (below <= u[:, None]).sum(1).clamp(max=logits.shape[1] - 1)
        return wanted


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
