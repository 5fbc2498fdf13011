"""Densities of Gaussian mixtures as scikit-learn fits them, on tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
