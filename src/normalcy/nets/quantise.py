"""Vector quantisation (van den Oord et al. 2017): each vector of a grid is replaced by the nearest of K learned codes.

The codebook learns from the gradient of |sg[z_e] - e|^2, or as the moving average of the vectors assigned to a code (``ema``).
It is initialised from encoded images, so that no code starts far from the data, and a code that has not been chosen for
``AGE`` batches is reset to a recent vector.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

AGE = 32
"""Training batches after which a code that was never chosen is reset."""


@dataclass(frozen=True)
class Quantised:
    vectors: Tensor
    """(B, D, *grid): the codes' vectors; gradients pass straight through to z_e."""
    codes: Tensor
    """(B, *grid), int64"""
    codebook: Tensor
    """|sg[z_e] - e|^2, mean over vectors and coordinates; zero with ``ema``."""
    commitment: Tensor
    """|z_e - sg[e]|^2, likewise."""
    perplexity: Tensor
    """exp of the entropy of the codes in this batch: the effective number in use."""

    def losses(self, error: Tensor, beta: float) -> dict[str, Tensor]:
        """The terms of a VQ-VAE's loss, with a reconstruction error () and the weight ``beta`` of the commitment; "loss" is their
        weighted sum."""
        loss = error + self.codebook + beta * self.commitment
        return {"loss": loss, "error": error, "commitment": self.commitment, "perplexity": self.perplexity}


class Quantiser(nn.Module):
    """A codebook of ``codes`` vectors of ``dimension``; ``ema``: the decay of moving averages, None: learned by gradients."""

    age: Tensor
    count: Tensor
    total: Tensor

    def __init__(self, codes: int, dimension: int, ema: float | None = None) -> None:
        super().__init__()
        self.ema = ema
        book = torch.randn(codes, dimension)
        if ema is None:
            self.book = nn.Parameter(book)
        else:
            self.register_buffer("book", book)
        self.register_buffer("count", torch.ones(codes))
        self.register_buffer("total", book.clone())
        self.register_buffer("age", torch.zeros(codes, dtype=torch.long))  # batches since it was last chosen

    @torch.no_grad()
    def seed(self, vectors: Iterable[Tensor]) -> None:
        """Initialise the codes with vectors drawn at random, without replacement, from z_e (B, D, *grid) of several batches."""
        rows = torch.cat([_rows(z)[torch.randperm(_rows(z).shape[0])[:1024]] for z in vectors])
        chosen = rows[torch.randperm(len(rows))[: len(self.book)]]
        chosen = chosen.repeat(-(-len(self.book) // len(chosen)), 1)[: len(self.book)]
        spread = rows.std(0, correction=0).mean()
        self._place(torch.ones(len(self.book), dtype=torch.bool), chosen + 1e-3 * spread * torch.randn_like(chosen))

    def nearest(self, z: Tensor) -> Tensor:
        """Codes (B, *grid), int64, of z_e (B, D, *grid); distances in float32."""
        rows, book = _rows(z), self.book.float()
        distance = book.square().sum(1) - 2 * rows @ book.T  # without |z|^2, which is equal for all codes
        return distance.argmin(1).view(z.shape[0], *z.shape[2:])

    def look_up(self, codes: Tensor) -> Tensor:
        """(B, *grid) -> (B, D, *grid)"""
        return self.book[codes].movedim(-1, 1)

    def forward(self, z: Tensor) -> Quantised:
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            codes = self.nearest(z.detach())
            vectors = self.look_up(codes)
            commitment = (z - vectors.detach()).square().mean()
            codebook = (z.detach() - vectors).square().mean() if self.ema is None else torch.zeros_like(commitment)
            rate = torch.bincount(codes.flatten(), minlength=len(self.book)).float() / codes.numel()
            perplexity = (-(rate * rate.clamp(min=1e-12).log()).sum()).exp()
            vectors = z + (vectors - z).detach()
            if self.training:
                self._learn(z.detach(), codes)
        return Quantised(vectors, codes, codebook, commitment, perplexity)

    @torch.no_grad()
    def _learn(self, z: Tensor, codes: Tensor) -> None:
        """Update the moving averages where there are some, and reset codes out of use."""
        rows, flat = _rows(z), codes.flatten()
        used = torch.bincount(flat, minlength=len(self.book))
        if self.ema is not None:
            sums = torch.zeros_like(self.total).index_add_(0, flat, rows)
            self.count.lerp_(used.float(), 1 - self.ema)
            self.total.lerp_(sums, 1 - self.ema)
            self.book.copy_(self.total / self.count.clamp(min=1e-5)[:, None])
        self.age.add_(1).masked_fill_(used > 0, 0)
        dead = self.age >= AGE
        if bool(dead.any()):
            drawn = torch.randint(len(rows), (int(dead.sum()),), device=rows.device)
            self._place(dead, rows[drawn])

    def _place(self, which: Tensor, vectors: Tensor) -> None:
        which = which.to(self.book.device)
        self.book.data[which] = vectors.to(self.book)
        self.total[which] = vectors.to(self.total)
        self.count[which] = 1.0
        self.age[which] = 0


def _rows(z: Tensor) -> Tensor:
    """(B, D, *grid) -> (vectors, D), float32"""
    return z.movedim(1, -1).flatten(0, -2).float()
