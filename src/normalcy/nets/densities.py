"""Gaussian posteriors of VAEs, Gaussian mixtures as scikit-learn fits them, and sums of Gaussian kernels, on tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def draw(mean: Tensor, logvar: Tensor) -> Tensor:
    """One sample of N(mean, exp(logvar)), shaped as ``mean``, from the global generator."""
    return mean + (0.5 * logvar).exp() * torch.randn_like(mean)


def kl_to_standard(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, I)) in nats, the sum over all but the first axis: (B,)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def log_likelihood(x: Tensor, log_weights: Tensor, means: Tensor, precision_factors: Tensor) -> Tensor:
    """log p(x) of a mixture of k Gaussians, in nats: vectors (B, d) -> (B,).

    ``log_weights`` (k,), ``means`` (k, d), ``precision_factors`` (k, d, d): upper triangular L with L L^T = inverse covariance
    (scikit-learn's ``precisions_cholesky_``).
    """
    terms = []
    for log_weight, mean, factor in zip(log_weights, means, precision_factors):
        distance = ((x - mean) @ factor).square().sum(1)
        log_density = factor.diagonal().log().sum() - 0.5 * (distance + x.shape[1] * math.log(2 * math.pi))
        terms.append(log_weight + log_density)
    return torch.logsumexp(torch.stack(terms), 0)


def log_kernel_sum(x: Tensor, points: Tensor, gamma: Tensor | float, log_weights: Tensor | float = 0.0) -> Tensor:
    """log sum_i w_i exp(-gamma |x - p_i|^2) for x (B, k), points (n, k), log weights (n,) -> (B,).

    The logarithm does not saturate far from the points, where the sum itself is 0. Memory: 64 MB of distances at once.
    """
    # Traced for export: one block, as the number of blocks would fix the size of a batch.
    blocks = [x] if torch.compiler.is_compiling() else torch.split(x, max(1, 2**24 // len(points)))
    return torch.cat([torch.logsumexp(log_weights - gamma * squared_distances(b, points), 1) for b in blocks])


def squared_distances(x: Tensor, points: Tensor) -> Tensor:
    """Squared Euclidean distances of x (B, k) to points (n, k): (B, n)."""
    return (x.square().sum(1, keepdim=True) + points.square().sum(1) - 2 * x @ points.T).clamp(min=0)
