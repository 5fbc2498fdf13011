"""Facts of GPND; what holds for every method is in test_contract.py."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import gaussian_kde, gennorm
from torch import Tensor, nn

from normalcy.errors import DataError, SettingsError
from normalcy.methods import gpnd
from normalcy.methods.gpnd import GPND, GPNDSettings
from normalcy.training.fit import fit
from normalcy.training.settings import TrainSettings

CONTRACT: dict[str, Any] = {"steps": 6, "batch_size": 8, "width": 2, "latent": 4, "lr": 0.01}
"""Settings that make the contract tests quick."""

SHAPE = (1, 8, 10)


def _method(latent: int = 3, **words: Any) -> GPND:
    torch.manual_seed(0)
    return GPND(GPNDSettings(latent=latent, width=4, **words), SHAPE).eval()


def _linear(matrix: Tensor) -> GPND:
    """GPND whose decoder is z -> matrix z, matrix (80, n)."""
    method = _method(matrix.shape[1])
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
    layer.weight.data = matrix
    method.decoder = nn.Sequential(layer, nn.Unflatten(1, SHAPE))
    return method


@torch.no_grad()
def test_parts_of_a_linear_decoder() -> None:
    """log|det| of the tangent map and the distance from its image, against NumPy."""
    matrix = torch.randn(80, 3) * torch.tensor([0.1, 1.0, 10.0])
    method = _linear(matrix)
    x, z = torch.randn(5, *SHAPE), torch.randn(5, 3)
    log_det, norm = method.parts(x, z, method.decode(z))
    singular = np.linalg.svd(matrix.numpy(), compute_uv=False)
    np.testing.assert_allclose(log_det, np.full(5, np.log(singular).sum()), rtol=1e-5)
    residual = x.flatten(1).T.numpy()  # what lies along the tangent space does not count, so z does not either
    fitted = matrix.numpy() @ np.linalg.lstsq(matrix.numpy(), residual, rcond=None)[0]
    np.testing.assert_allclose(norm, np.linalg.norm(residual - fitted, axis=0), rtol=1e-4)


@torch.no_grad()
def test_a_number_of_the_code_that_moves_nothing() -> None:
    matrix = torch.randn(80, 3)
    matrix[:, 1] = 0
    method = _linear(matrix)
    basis, singular = method.tangent(torch.randn(2, 3))
    torch.testing.assert_close(singular.min(1).values, torch.full((2,), gpnd.FLOOR))
    torch.testing.assert_close(torch.linalg.matrix_rank(basis), torch.tensor([2, 2]))
    along, still = basis[0], matrix[:, [0, 2]]
    torch.testing.assert_close(along @ (along.T @ still), still)


@torch.no_grad()
def test_tangent_against_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    method = _method(3, network="lenet").double()
    z, step = torch.randn(2, 3).double(), 1e-6
    monkeypatch.setattr(GPND, "decode", lambda self, z: self.decoder(z.double()))
    columns = [(method.decode(z + step * e) - method.decode(z - step * e)) / (2 * step) for e in torch.eye(3).double()]
    jacobian = torch.stack(columns, -1).flatten(1, -2)
    basis, singular = method.tangent(z)
    torch.testing.assert_close(singular, torch.linalg.svdvals(jacobian), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(3).double().expand(2, 3, 3))
    torch.testing.assert_close(basis @ (basis.mT @ jacobian), jacobian, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(gpnd, "LARGEST_JACOBIAN", 1)  # one image, one direction at a time
    torch.testing.assert_close(method.tangent(z)[1], singular)


def test_generalised_normal_against_scipy() -> None:
    x = torch.linspace(-40, 40, 90, dtype=torch.float64).view(30, 3)
    location, scale, exponent = torch.tensor([[0.5, -1.0, 0.0], [0.3, 2.0, 1.0], [0.7, 2.0, 9.0]], dtype=torch.float64)
    expected = gennorm.logpdf(x.numpy(), exponent.numpy(), location.numpy(), scale.numpy())
    np.testing.assert_allclose(gpnd.generalised_normal(x, location, scale, exponent), expected, rtol=1e-12)


@pytest.mark.parametrize("exponent", [0.8, 2.0, 6.0])
def test_fit_recovers_a_generalised_normal(exponent: float) -> None:
    x = gennorm.rvs(exponent, loc=1.5, scale=0.4, size=4000, random_state=np.random.default_rng(0))
    found = gpnd.fit_generalised_normal(torch.from_numpy(x))
    np.testing.assert_allclose(found, (1.5, 0.4, exponent), rtol=0.15)


def test_fit_stays_within_its_bounds() -> None:
    assert gpnd.fit_generalised_normal(torch.full((50,), 0.7)) == (pytest.approx(0.7), gpnd.FLOOR, 2.0)
    for values in (torch.linspace(-1, 1, 200), torch.tensor([0.0, 1.0]), torch.tensor([0.0] * 99 + [50.0])):
        location, scale, exponent = gpnd.fit_generalised_normal(values)
        assert gpnd.SHAPES[0] <= exponent <= gpnd.SHAPES[1]
        assert scale >= gpnd.FLOOR
        assert math.isfinite(location + scale)


def test_kernel_density_against_scipy() -> None:
    norms = torch.rand(200, dtype=torch.float64) + 3
    x = torch.linspace(2, 5, 40, dtype=torch.float64)
    factor = 1.06 * len(norms) ** -0.2 * math.sqrt(1 - 1 / len(norms))  # scipy divides by N - 1
    expected = gaussian_kde(norms.numpy(), bw_method=factor).logpdf(x.numpy())
    np.testing.assert_allclose(gpnd.kernel_density(x, norms), expected, rtol=1e-9)


def test_direction_makes_a_density_of_vectors() -> None:
    """A standard normal vector: the density of its norm (chi) turned into that of the vector."""
    dims = 7
    w = torch.randn(20, dims, dtype=torch.float64)
    r = w.norm(dim=1)
    chi = (dims - 1) * r.log() - r**2 / 2 - (dims / 2 - 1) * math.log(2) - math.lgamma(dims / 2)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(w).sum(1)
    torch.testing.assert_close(chi + gpnd.direction(r, dims), normal)


@torch.no_grad()
def test_log_density_is_the_sum_of_its_parts() -> None:
    """A linear decoder, N(0, I) codes: the density of the codes' image is Gaussian, that of the rest is measured."""
    method = _linear(torch.randn(80, 3))
    method.location, method.scale, method.exponent = (
        torch.zeros(3),
        torch.full((3,), math.sqrt(2)),
        torch.full((3,), 2.0),
    )
    method.norms = torch.rand(50) + 8
    x, z = torch.randn(4, *SHAPE), torch.randn(4, 3)
    log_det, norm = method.parts(x, z, method.decode(z))
    codes = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    expected = codes - log_det + gpnd.kernel_density(norm, method.norms) + gpnd.direction(norm, 77)
    torch.testing.assert_close(method.log_density(x, z, method.decode(z)), expected)


@torch.no_grad()
def test_the_power_of_the_residual() -> None:
    """The authors' power correction: a fifth of the last term; nothing else changes."""
    whole, fifth = _method(), _method(power=0.2)
    x, z = torch.randn(4, *SHAPE), torch.randn(4, 3)
    for method in (whole, fifth):
        method.norms = torch.linspace(5, 12, 20)
    restored = whole.decode(z)
    norm = whole.parts(x, z, restored)[1]
    difference = whole.log_density(x, z, restored) - fifth.log_density(x, z, restored)
    torch.testing.assert_close(difference, 0.8 * gpnd.direction(norm, 77))


@torch.no_grad()
def test_without_the_jacobian_the_whole_residual_counts() -> None:
    method = _method(jacobian=False)
    x, z = torch.randn(4, *SHAPE), torch.randn(4, 3)
    restored = method.decode(z)
    log_det, norm = method.parts(x, z, restored)
    assert not log_det.any()
    torch.testing.assert_close(norm, (x - restored).flatten(1).norm(dim=1), check_dtype=False)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
def test_densities_are_fitted_to_evenly_spaced_images_whatever_the_batches(batch_size: int) -> None:
    class Batches(list[Tensor]):
        count = 64

    method, x = _method(fit_images=10, jacobian=False), _waves(64)
    with torch.no_grad():
        method._fit_densities(Batches(x.split(batch_size)))
        chosen = method.standardise(x[::7])
        z = method.encode(chosen)
        norms = method.parts(chosen, z, method.decode(z))[1]
    assert len(norms) == 10
    torch.testing.assert_close(method.norms, norms.float())


@pytest.fixture(scope="module")
def fitted() -> GPND:
    method = _method(lr=1e-2)
    fit(method, _waves(64), TrainSettings(steps=40, batch_size=16, precision="32-true", device="cpu"))
    return method


def _waves(count: int, seed: int = 0) -> Tensor:
    """Smooth images: a plane wave of random phase, in [0.2, 0.8]."""
    phase = 6.28 * torch.rand(count, 1, 1, 1, generator=torch.Generator().manual_seed(seed))
    return (0.5 + 0.3 * torch.sin(phase + torch.linspace(0, 9, SHAPE[-1]))).expand(count, *SHAPE).clone()


def test_scores_are_finite_and_rise_far_away(fitted: GPND) -> None:
    x = _waves(3, seed=1)
    direction = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    scores = torch.stack([fitted.score(x + far * direction).image for far in (0, 1, 10, 1e3, 1e6)])
    assert scores.isfinite().all()
    assert (scores[1:] > scores[:-1]).all()


def test_restores_and_maps(fitted: GPND) -> None:
    x = _waves(6, seed=2)
    scores = fitted.score(x)
    assert scores.restored is not None
    assert scores.map is not None
    assert (scores.restored - x).square().mean() < 0.3 * x.var()
    torch.testing.assert_close(scores.map, (x - scores.restored).square().mean(1))


def test_losses_move_their_own_side_only() -> None:
    """The discriminators' loss has no gradient for encoder and decoder; codes and images fool in the right direction."""
    method, x = _method(), _waves(4)
    method.discriminate(x)["loss"].backward()
    assert all(p.grad is None for p in [*method.encoder.parameters(), *method.decoder.parameters()])
    assert all(p.grad is not None for p in [*method.image_critic.parameters(), *method.code_critic.parameters()])
    with torch.no_grad():
        bias = method.code_critic[-1].bias
        method.code_critic[-1].weight.zero_()
        bias.fill_(3.0)  # takes codes for noise: good for the encoder, for the discriminator half of the time
        good = method.generate(x)["codes"]
        bias.fill_(-3.0)
        assert method.generate(x)["codes"] > good
        torch.testing.assert_close(good, torch.tensor(math.log1p(math.exp(-3.0))))


def test_refuses() -> None:
    with pytest.raises(DataError, match="latent"):
        _method(79)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"latent": 0}, "gpnd: latent must be at least 1, got 0."),
        ({"weight": 0.0}, "gpnd: weight must be greater than 0, got 0.0."),
        ({"fit_images": 0}, "gpnd: fit_images must be at least 1, got 0."),
        ({"lr": -1.0}, "gpnd: lr must be greater than 0, got -1.0."),
        ({"critic_lr": 0.0}, "gpnd: critic_lr must be greater than 0, got 0.0."),
    ],
    ids=str,
)
def test_impossible_settings(words: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        GPNDSettings(**words)
