"""Densities against torch.distributions, scikit-learn and brute force."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.mixture import GaussianMixture

from normalcy.nets.densities import draw, kl_to_standard, log_kernel_sum, log_likelihood, squared_distances


def test_kl_and_draws_are_those_of_torch_distributions() -> None:
    torch.manual_seed(0)
    mean, logvar = torch.randn(5, 3), torch.randn(5, 3)
    posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    prior = torch.distributions.Normal(torch.zeros(3), torch.ones(3))
    expected = torch.distributions.kl_divergence(posterior, prior).sum(1)
    torch.testing.assert_close(kl_to_standard(mean, logvar), expected)
    many = draw(mean[:1].expand(20_000, -1), logvar[:1].expand(20_000, -1))
    torch.testing.assert_close(many.mean(0), mean[0], atol=0.05, rtol=0)
    torch.testing.assert_close(many.std(0), posterior.stddev[0], rtol=0.05, atol=0)


def test_kl_sums_over_all_axes_but_the_first() -> None:
    mean, logvar = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(kl_to_standard(mean, logvar), kl_to_standard(mean.flatten(1), logvar.flatten(1)))


def test_log_likelihood_of_a_mixture_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(60, 4)), rng.normal(3, 0.3, size=(40, 4))])
    mixture = GaussianMixture(2, random_state=0).fit(points)
    parts = [torch.from_numpy(a) for a in (np.log(mixture.weights_), mixture.means_, mixture.precisions_cholesky_)]
    far = np.concatenate([points, [[1e3, -1e3, 0, 0]]])  # where every density rounds to 0
    found = log_likelihood(torch.from_numpy(far), *parts)
    np.testing.assert_allclose(found.numpy(), mixture.score_samples(far), rtol=1e-9)


def test_kernel_sum_equals_brute_force_and_does_not_saturate() -> None:
    rng = torch.Generator().manual_seed(0)
    x, points = torch.randn(9, 4, generator=rng), torch.randn(50, 4, generator=rng)
    weights = torch.rand(50, generator=rng)
    squared = (x[:, None] - points).double().square().sum(2)
    expected = (weights * (-0.3 * squared).exp()).sum(1).log()
    torch.testing.assert_close(log_kernel_sum(x, points, 0.3, weights.log()).double(), expected, rtol=1e-5, atol=1e-5)
    far = log_kernel_sum(torch.tensor([[100.0] * 4, [101.0] * 4]), points, 0.3)
    assert far[0] > far[1] > -torch.inf


def test_squared_distances_equal_cdist_and_are_never_negative() -> None:
    x = torch.randn(6, 5)
    points = torch.cat([x[:2], torch.randn(3, 5)])
    torch.testing.assert_close(squared_distances(x, points), torch.cdist(x, points).square(), atol=1e-5, rtol=1e-5)
    assert squared_distances(1e3 * x, 1e3 * x).min() >= 0
