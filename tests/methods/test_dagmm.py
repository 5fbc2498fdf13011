"""Facts of DAGMM; what holds for every method is in test_contract.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from normalcy.errors import SettingsError
from normalcy.methods.dagmm import DAGMM, DAGMMSettings, mixture_energy, moments
from normalcy.methods.patchwise import Patchwise, PatchwiseSettings
from normalcy.testing import smooth_textures
from normalcy.training.fit import fit
from normalcy.training.settings import TrainSettings

CONTRACT: dict[str, Any] = {"steps": 60, "batch_size": 16, "width": 4, "latent": 2, "components": 2, "lr": 0.005}
"""Settings that make the contract tests quick."""

SHAPE = (1, 16, 16)
SMALL: dict[str, Any] = {"width": 4, "latent": 2, "components": 2, "lr": 0.005, "count": 64, "steps": 60}


def test_energy_is_the_density_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(200, 3)), rng.normal(3, 0.2, size=(100, 3))])
    mixture = GaussianMixture(3, random_state=0).fit(points)
    factors = np.linalg.cholesky(mixture.covariances_)
    parts = [torch.from_numpy(a) for a in (mixture.weights_, mixture.means_, factors)]
    far = np.concatenate([points, [[1e3, -1e3, 0]]])
    energy = mixture_energy(torch.from_numpy(far), *parts)
    np.testing.assert_allclose(energy.numpy(), -mixture.score_samples(far), rtol=1e-9)


def test_moments_are_the_m_step_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    points, gamma = rng.normal(size=(50, 3)), rng.dirichlet([1, 1], size=50)
    mixture = GaussianMixture(2, reg_covar=0.0)
    mixture._initialize(points, gamma)
    weights, means, covariances = moments(torch.from_numpy(points), torch.from_numpy(gamma), floor=1e-9)
    np.testing.assert_allclose(weights, mixture.weights_, rtol=1e-6)
    np.testing.assert_allclose(means, mixture.means_, rtol=1e-6)
    np.testing.assert_allclose(covariances, mixture.covariances_, rtol=1e-5, atol=1e-8)


def test_loss_restated(fitted: Callable[..., DAGMM]) -> None:
    method = fitted(DAGMM, SHAPE, **SMALL | {"energy": 0.3, "penalty": 0.02}).eval()
    x = smooth_textures(16, SHAPE, seed=1)
    with torch.no_grad():
        z, y, restored = method.describe(x)
        gamma = method.memberships(z).double()
        weights, means, covariances = moments(z.double(), gamma, 1e-3)
        distributions = [torch.distributions.MultivariateNormal(m, c) for m, c in zip(means, covariances)]
        logs = torch.stack([d.log_prob(z.double()) for d in distributions], 1) + weights.log()
        expected = (y - restored).square().sum() / len(x) - 0.3 * logs.logsumexp(1).mean()
        expected = expected + 0.02 * sum((z.double().var(0, correction=0) / c.diagonal()).sum() for c in covariances)
        found = method.loss(x)["loss"]
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_z_holds_code_relative_distance_and_cosine(fitted: Callable[..., DAGMM]) -> None:
    method = fitted(DAGMM, SHAPE, **SMALL)
    x = smooth_textures(4, SHAPE, seed=1)
    with torch.no_grad():
        z, _, restored = method.describe(x)
    for row, a, b in zip(z, x, method.standardise.inverse(restored)):
        assert float(row[2]) == pytest.approx(float((a - b).norm() / a.norm()), rel=1e-5)
        assert float(row[3]) == pytest.approx(float((a * b).sum() / a.norm() / b.norm()), rel=1e-4)


def test_score_is_the_energy_under_all_training_images(fitted: Callable[..., DAGMM]) -> None:
    method = fitted(DAGMM, SHAPE, **SMALL)
    x = smooth_textures(64, SHAPE, seed=0)
    with torch.no_grad():
        z = method.describe(x)[0].double()
        weights, means, covariances = moments(z, method.memberships(z.float()).double(), 1e-3)
    mixture = (weights, means, torch.linalg.cholesky(covariances))
    kept = [part.float().double() for part in mixture]  # in 32 bits, as the method keeps it
    expected = mixture_energy(z, *kept).float()
    torch.testing.assert_close(method.score(x).image, expected, rtol=1e-4, atol=1e-4)


def test_reconstruction_is_learned_beside_energy_and_penalty(fitted: Callable[..., DAGMM]) -> None:
    """With the error as a mean over pixels the penalty outweighs it: images are then said worse than by their mean."""
    x = smooth_textures(64, SHAPE, seed=0)
    method = fitted(DAGMM, SHAPE, **SMALL | {"steps": 200})
    with torch.no_grad():
        _, y, restored = method.describe(x)
    assert (y - restored).square().mean() < 0.8 * y.square().mean()


def test_map_of_energies_by_patches() -> None:
    torch.manual_seed(0)
    inner = ("width=4", "latent=2", "components=2", "lr=0.005")
    method = Patchwise(PatchwiseSettings(inner="dagmm", inner_settings=inner, patch=8, inner_map=False), (1, 24, 24))
    fit(method, smooth_textures(32, (1, 24, 24), seed=0), TrainSettings(steps=100, precision="32-true", device="cpu"))
    x = smooth_textures(4, (1, 24, 24), seed=1)
    x[:, :, 8:16, 8:16] = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    map = method.score(x).map
    assert map is not None
    assert (map[:, 8:16, 8:16].mean((1, 2)) > map.flatten(1).quantile(0.8, dim=1)).all()


def test_the_floor_is_relative_to_each_coordinate() -> None:
    """A coordinate in other units changes the energies by a constant only; a common floor would hide one of small variance."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    gamma = torch.softmax(torch.randn(200, 2, generator=generator, dtype=torch.float64), 1)
    units = torch.tensor([100.0, 1.0, 0.01], dtype=torch.float64)

    def energies(points: torch.Tensor) -> torch.Tensor:
        weights, means, covariances = moments(points, gamma, 1e-2)
        return mixture_energy(points, weights, means, torch.linalg.cholesky(covariances))

    torch.testing.assert_close(energies(z * units), energies(z) + units.log().sum(), rtol=1e-3, atol=1e-3)
    variances = moments(z * units, gamma, 1e-2)[2].diagonal(dim1=1, dim2=2)
    plain = moments(z * units, gamma, 0.0)[2].diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(
        variances - plain, (1e-2 * (z * units).var(0, correction=0)).expand(2, 3), rtol=1e-3, atol=0
    )


def test_a_batch_all_alike_has_a_density() -> None:
    z = torch.full((8, 3), 0.7, dtype=torch.float64)
    weights, means, covariances = moments(z, torch.full((8, 2), 0.5, dtype=torch.float64), 1e-3)
    assert mixture_energy(z, weights, means, torch.linalg.cholesky(covariances)).isfinite().all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"latent": 0}, "dagmm: latent must be at least 1, got 0."),
        ({"floor": 0.0}, "dagmm: floor must be greater than 0, got 0.0."),
        ({"dropout": 1.0}, "dagmm: dropout must be at least 0 and below 1, got 1.0."),
        ({"penalty": -1.0}, "dagmm: penalty must be at least 0, got -1.0."),
    ],
    ids=str,
)
def test_impossible_settings(words: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        DAGMMSettings(**words)
