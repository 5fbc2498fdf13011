"""Formulas of a Gaussian posterior N(mean, exp(logvar)) over a code, for autoencoders that have one."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def draw(mean: Tensor, logvar: Tensor) -> Tensor:
    """One draw, from the global generator."""
    return mean + (0.5 * logvar).exp() * torch.randn_like(mean)


def kl_to_standard(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, I)) in nats, the sum over all but the first axis: (B,)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def log_likelihood(x: Tensor, log_weights: Tensor, means: Tensor, precision_factors: Tensor) -> Tensor:
    """log p(x) in nats, of vectors (B, d) -> (B,).

    Of k Gaussians: log weights (k,), means (k, d), and upper triangular L (k, d, d) with L L^T = inverse covariance.
    """
    terms = []
    for log_weight, mean, factor in zip(log_weights, means, precision_factors):
        distance = ((x - mean) @ factor).square().sum(1)
        log_density = factor.diagonal().log().sum() - 0.5 * (distance + x.shape[1] * math.log(2 * math.pi))
        terms.append(log_weight + log_density)
    return torch.logsumexp(torch.stack(terms), 0)


def log_kernel_sum(x: Tensor, points: Tensor, gamma: Tensor | float, log_weights: Tensor | float = 0.0) -> Tensor:
    """log sum_i w_i exp(-gamma |x - p_i|^2) for x (B, k), points (n, k), log weights (n,) -> (B,).

    Does not saturate far from the points, as the sum itself does. Memory: at most 64 MB of distances at once.
    """
    rows = max(1, 2**24 // len(points))
    parts = [torch.logsumexp(log_weights - gamma * squared_distances(part, points), 1) for part in torch.split(x, rows)]
    return torch.cat(parts)


def squared_distances(x: Tensor, points: Tensor) -> Tensor:
    """(B, k), (n, k) -> (B, n)."""
    return (x.square().sum(1, keepdim=True) + points.square().sum(1) - 2 * x @ points.T).clamp(min=0)
