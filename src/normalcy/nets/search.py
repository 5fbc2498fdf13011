"""Gradient-based search for a whole batch at once, where each image has its own variables and loss.

Adam (Kingma, Ba 2015) is written out, so that its moments, its step size and the end of the search are separate for each image:
a result does not depend on which other images are in the batch. All images share the cost of a step, which for small networks
is mostly overhead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Loss = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""Variables (b, ...) and targets (b, ...) of the b images still being optimised -> their losses (b,), not negative."""


@dataclass(frozen=True)
class Found:
    """The lowest loss of each image, and the variables that gave it."""

    variables: tuple[Tensor, ...]
    """(B, ...) each, shaped as ``start``."""
    loss: Tensor
    """(B,)"""
    steps: Tensor
    """(B,): updates made before the image stopped."""


def search(
    loss: Loss,
    start: Sequence[Tensor],
    targets: Sequence[Tensor] = (),
    *,
    rates: Sequence[float],
    steps: int,
    patience: int | None = None,
    tolerance: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
) -> Found:
    """Minimise ``loss`` over variables that start at ``start``, tensors (B, ...), with a learning rate for each tensor.

    ``targets`` (B, ...) are passed to the loss. ``patience``: an image whose loss has not fallen by the fraction ``tolerance``
    for this number of steps is finished and leaves the batch. Gradients are enabled inside.
    """
    found = [v.detach().clone() for v in start]
    lowest = torch.full_like(start[0].flatten(1)[:, 0], math.inf)
    taken = torch.full_like(lowest, steps, dtype=torch.long)
    # Of the images still being optimised; a finished one is removed from each of these.
    who = torch.arange(len(lowest), device=lowest.device)
    now = [v.detach() for v in start]
    targets = list(targets)
    first, second = [torch.zeros_like(v) for v in now], [torch.zeros_like(v) for v in now]
    reference, waited = lowest.clone(), torch.zeros_like(taken)
    for step in range(steps + 1):
        with torch.enable_grad():
            now = [v.detach().requires_grad_() for v in now]
            value = loss(now, targets)
            gradients = list(torch.autograd.grad(value.sum(), now)) if step < steps else []
        value, now = value.detach(), [v.detach() for v in now]
        better = value < lowest[who]
        for best, v in zip(found, now):
            best[who[better]] = v[better]
        lowest[who[better]] = value[better]
        if step == steps:
            break
        if patience is not None:
            fell = value < (1 - tolerance) * reference
            reference, waited = torch.where(fell, value, reference), torch.where(fell, 0, waited + 1)
            going = waited < patience
            if not bool(going.all()):
                taken[who[~going]] = step
                if not bool(going.any()):
                    break
                now, first, second, targets, gradients = (
                    [v[going] for v in group] for group in (now, first, second, targets, gradients)
                )
                who, reference, waited = who[going], reference[going], waited[going]
        now = [
            _adam(v, g, m, s, rate, betas, step + 1)
            for v, g, m, s, rate in zip(now, gradients, first, second, rates, strict=True)
        ]
    return Found(tuple(found), lowest, taken)


def _adam(
    v: Tensor, g: Tensor, first: Tensor, second: Tensor, rate: float, betas: tuple[float, float], t: int
) -> Tensor:
    """The ``t``-th update, counted from 1; the moments are changed in place."""
    first.lerp_(g, 1 - betas[0])
    second.mul_(betas[1]).addcmul_(g, g, value=1 - betas[1])
    scale = (second / (1 - betas[1] ** t)).sqrt_().add_(1e-8)
    return v - rate / (1 - betas[0] ** t) * first / scale
