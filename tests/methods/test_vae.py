"""Facts of the VAE: its terms against torch.distributions, closed forms and finite differences."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence

from normalcy.errors import SettingsError
from normalcy.methods.vae import VAE, VAESettings

CONTRACT: dict[str, Any] = {"steps": 20, "batch_size": 8, "width": 4, "latent": 4, "samples": 2, "lr": 0.01}
"""Settings that make the contract tests quick."""

SHAPE = (1, 12, 16)


def _patterns(count: int, seed: int = 0) -> Tensor:
    """Three waves with Gaussian weights around grey, and noise of 0.03: what a Gaussian code of dimension 3 can model."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.linspace(0, 1, SHAPE[1])[:, None], torch.linspace(0, 1, SHAPE[2])
    waves = torch.stack([torch.cos(3.14 * (rows + k * columns)) for k in range(3)])
    weights = 0.12 * torch.randn(count, 3, generator=generator)
    images = 0.5 + torch.einsum("bk,khw->bhw", weights, waves)[:, None]
    return images + 0.03 * torch.randn(count, *SHAPE, generator=generator)


def _untrained(**words: Any) -> VAE:
    """Ready to score, with parameters that are nowhere near a special point."""
    torch.manual_seed(0)
    method = VAE(VAESettings(**{"latent": 3, "norm": "group", **words}), SHAPE).eval()
    method._fitted.fill_(True)  # type: ignore[operator]
    return method


@pytest.fixture(scope="module")
def trained(fitted: Callable[..., VAE]) -> VAE:
    return fitted(VAE, _patterns(256), steps=150, latent=3, lr=5e-3, network="dcgan")


# -- the terms of the bound --


def test_kl_is_that_of_torch_distributions() -> None:
    method = _untrained()
    mean, logvar = torch.randn(5, 3), torch.randn(5, 3)
    posterior = Independent(Normal(mean, logvar.exp().sqrt()), 1)
    prior = Independent(Normal(torch.zeros(3), torch.ones(3)), 1)
    torch.testing.assert_close(method.kl(mean, logvar), kl_divergence(posterior, prior))


def test_log_likelihood_is_that_of_torch_distributions() -> None:
    method = _untrained(sigma=0.3)
    x, noise = torch.rand(4, *SHAPE), torch.randn(4, 3)
    with torch.no_grad():
        mean, logvar = method.encode(x)
        z = mean + logvar.exp().sqrt() * noise  # the standard deviation: once
        expected = Normal(method.decode(z), 0.3).log_prob(x).sum(1)
        torch.testing.assert_close(method.log_likelihood(x, mean, logvar, noise), expected)


def test_loss_is_the_negative_elbo_of_the_batch_in_nats_per_image() -> None:
    x = torch.rand(4, *SHAPE)
    for beta in (1.0, 0.25):
        method = _untrained(beta=beta)
        torch.manual_seed(3)
        terms = method.negative_elbo(x)
        torch.manual_seed(3)
        mean, logvar = method.encode(x)
        z = mean + logvar.exp().sqrt() * torch.randn_like(mean)
        sigma = terms["sigma"].item()
        nll = -Normal(method.decode(z), sigma).log_prob(x).sum() / 4
        kl = kl_divergence(Normal(mean, logvar.exp().sqrt()), Normal(0.0, 1.0)).sum() / 4
        torch.testing.assert_close(terms["nll"], nll)
        torch.testing.assert_close(terms["kl"], kl)
        torch.testing.assert_close(terms["loss"], nll + beta * kl)


def test_score_elbo_is_likelihood_plus_kl() -> None:
    method = _untrained(score="elbo")
    x = torch.rand(4, *SHAPE)
    elbo, kl, likelihood = (method.with_score(name).score(x) for name in ("elbo", "kl", "reconstruction_probability"))
    torch.testing.assert_close(elbo.image, likelihood.image + kl.image)
    assert likelihood.map is not None
    assert kl.map is None


class _Linear(nn.Module):
    """Flattens, applies a matrix, shapes."""

    def __init__(self, matrix: Tensor, offset: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.matrix, self.offset, self.shape = matrix, offset, shape

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.matrix.T + self.offset).view(-1, *self.shape)


def _linear_gaussian(**words: Any) -> tuple[VAE, Tensor, Tensor]:
    """z ~ N(0, I), x = W z + sigma e, with the exact posterior: mean (B, 3) = A x, covariance diagonal for W with
    orthogonal columns."""
    method = _untrained(sigma=0.5, **words)
    n = math.prod(SHAPE)
    w = torch.linalg.qr(torch.randn(n, 3)).Q * torch.tensor([2.0, 1.0, 0.5])
    variance = 1 / (1 + w.square().sum(0) / 0.25)  # of the posterior
    method.encoder = _Linear(  # type: ignore[assignment]
        torch.cat([variance[:, None] * w.T / 0.25, torch.zeros(3, n)]),
        torch.cat([torch.zeros(3), variance.log()]),
        (6,),
    )
    method.decoder = _Linear(w, torch.zeros(n), SHAPE)  # type: ignore[assignment]
    return method, w, variance


def test_elbo_of_a_linear_gaussian_model_is_its_log_likelihood() -> None:
    """With the exact posterior the bound is tight: log N(x; 0, W W' + sigma^2 I)."""
    method, w, _ = _linear_gaussian(score="elbo", samples=2000)
    x = torch.randn(3, *SHAPE)
    covariance = w @ w.T + 0.25 * torch.eye(len(w))
    exact = torch.distributions.MultivariateNormal(torch.zeros(len(w)), covariance).log_prob(x.flatten(1))
    torch.testing.assert_close(-method.score(x).image, exact, rtol=2e-3, atol=0.0)


def test_reconstruction_probability_converges_to_its_closed_form() -> None:
    """E |x - W z|^2 = |x - W mean|^2 + tr(W diag(variance) W')."""
    x = torch.randn(3, *SHAPE)
    errors = []
    for samples in (4, 2000):
        method, w, variance = _linear_gaussian(score="reconstruction_probability", samples=samples)
        mean, _ = method.encode(x)
        squares = (x.flatten(1) - mean @ w.T).square().sum(1) + (variance * w.square().sum(0)).sum()
        exact = squares / (2 * 0.25) + len(w) * math.log(0.5 * math.sqrt(2 * math.pi))
        errors.append(float((method.score(x).image - exact).abs().max()))
    assert errors[1] < 0.1
    assert errors[1] < errors[0]


# -- gradient scores --


@pytest.mark.parametrize("score", ["gradient_elbo", "gradient_kl", "gradient_reconstruction"])
def test_gradient_against_finite_differences(score: str) -> None:
    method = _untrained(samples=3, smoothing=0.0, score=score, sigma=0.2).double()
    x = torch.rand(2, *SHAPE, dtype=torch.float64)

    def value(x: Tensor) -> Tensor:
        mean, logvar = (t.double() for t in method.encode(x))
        nll = -method.log_likelihood(x, mean, logvar, torch.zeros_like(mean)).sum((1, 2))
        kl = method.kl(mean, logvar)
        return {"gradient_elbo": nll + kl, "gradient_kl": kl, "gradient_reconstruction": nll}[score]

    method.encode = lambda x: tuple(method.encoder(x).chunk(2, dim=1))  # type: ignore[method-assign,assignment,return-value]
    method.decode = lambda z: method.decoder(z)  # type: ignore[method-assign]
    map = method._score(x).map
    assert map is not None
    with torch.no_grad():
        for place in [(0, 0), (5, 7), (11, 15)]:
            bump = torch.zeros_like(x)
            bump[:, 0, place[0], place[1]] = 1e-5
            difference = (value(x + bump) - value(x - bump)) / 2e-5
            torch.testing.assert_close(map[:, place[0], place[1]].double(), difference.abs(), rtol=1e-3, atol=1e-4)


def test_combined_is_the_product() -> None:
    method = _untrained(score="combined", smoothing=1.0)
    x = torch.rand(4, *SHAPE)
    combined, gradient, error = (
        method.with_score(name).score(x).map for name in ("combined", "gradient_kl", "reconstruction")
    )
    assert combined is not None
    assert gradient is not None
    assert error is not None
    torch.testing.assert_close(combined, gradient * error)
    torch.testing.assert_close(method.score(x).image, combined.mean((1, 2)))


# -- all scores --


@pytest.mark.parametrize("score", VAE.scores)
def test_score_of_an_image_depends_on_nothing_else(trained: VAE, score: str) -> None:
    """Not on its batch, not on the global generator, which it leaves alone too; gradients leave no trace."""
    method = trained.with_score(score)
    x = _patterns(5, seed=1)
    for p in method.parameters():
        p.grad = None
    alone = method.score(x[3:4])
    state = torch.get_rng_state()
    together = method.score(x)
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(together.image[3:4], alone.image, rtol=1e-4, atol=1e-5)
    assert (together.map is None) == (score == "kl")
    if together.map is not None:
        assert alone.map is not None
        assert not together.map.requires_grad
        torch.testing.assert_close(together.map[3:4], alone.map, rtol=1e-3, atol=1e-4)
    assert all(p.grad is None for p in method.parameters())


@pytest.mark.parametrize("score", VAE.scores)
def test_higher_scores_are_more_anomalous(trained: VAE, score: str) -> None:
    method = trained.with_score(score)
    normal = _patterns(16, seed=1)
    defect = torch.zeros(SHAPE[1:], dtype=torch.bool)
    defect[2:9, 3:11] = True
    abnormal = torch.where(defect, normal + 1, normal)
    good, bad = method.score(normal), method.score(abnormal)
    assert bad.image.mean() > good.image.mean()
    assert bad.image.median() > good.image.quantile(0.8)
    if bad.map is not None and "gradient" not in score:
        assert bad.map[:, defect].mean() > bad.map[:, ~defect].mean()


def test_sigma_is_learned_from_the_noise_of_the_images(trained: VAE) -> None:
    """The images have noise of 0.03, of which a code of 3 numbers can explain little."""
    assert 0.025 < trained.log_sigma.exp().item() < 0.06


def test_sigma_stays_where_it_is_given(fitted: Callable[..., VAE]) -> None:
    method = fitted(VAE, _patterns(32), steps=3, latent=2, sigma=0.25)
    assert method.log_sigma.exp().item() == pytest.approx(0.25)


def test_volumes(fitted: Callable[..., VAE]) -> None:
    settings = {"latent": 2, "score": "gradient_elbo", "samples": 2, "width": 2}
    method = fitted(VAE, torch.rand(4, 1, 8, 10, 12), steps=1, batch_size=4, **settings)
    scores = method.score(torch.rand(2, 1, 8, 10, 12))
    assert scores.map is not None
    assert scores.map.shape == (2, 8, 10, 12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent": 0}, "latent must be at least 1, got 0."),
        ({"samples": 0}, "samples must be at least 1, got 0."),
        ({"sigma": 0.0}, "sigma must be greater than 0, got 0.0."),
        ({"beta": -1.0}, "beta must be at least 0, got -1.0."),
        ({"smoothing": -1.0}, "smoothing must be at least 0, got -1.0."),
        ({"reduce": 2.0}, 'reduce must be "auto", "mean", "top", "max" or a quantile between 0 and 1, got 2.0.'),
    ],
    ids=str,
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=f"^vae: {re.escape(message)}$"):
        VAESettings(**settings)
