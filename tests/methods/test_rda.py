"""Facts of RDA; what holds for every method is in test_contract.py."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from normalcy.errors import SettingsError
from normalcy.methods.rda import RDA, RDASettings
from normalcy.testing import smooth_textures, with_defect

CONTRACT: dict[str, Any] = {"steps": 60, "batch_size": 8, "width": 4, "latent": 4, "rounds": 2, "lr": 0.01}
"""Settings that make the contract tests quick."""

SHAPE = (1, 16, 16)
TINY: dict[str, Any] = {"width": 4, "latent": 4, "rounds": 3, "lr": 0.01}
SMALL = {**TINY, "count": 64, "steps": 150}


def _method(**words: Any) -> RDA:
    torch.manual_seed(0)
    return RDA(RDASettings(**{**TINY, **words}), SHAPE)


@pytest.mark.parametrize("penalty", ["l1", "images"])
def test_threshold_minimises_its_objective(penalty: str) -> None:
    """The proximal operator against a general optimiser: 1/2 |S - e|^2 + lambda |S|, block norms as root mean squares."""
    method = _method(penalty=penalty, weight=0.4)
    error = torch.tensor([0.1, -0.9, 0.5, 0.3]).view(1, 1, 2, 2)
    found = method.threshold(error).flatten().double().numpy()
    e = error.flatten().double().numpy()

    def objective(s: Any) -> float:
        size = np.abs(s).sum() if penalty == "l1" else 2 * np.sqrt((s**2).sum())  # lambda |s|_2 sqrt(4 values)
        return float(0.5 * ((s - e) ** 2).sum() + 0.4 * size)

    best = min(
        (minimize(objective, start, method="Nelder-Mead", tol=1e-10) for start in (e, e / 2)), key=lambda r: r.fun
    )
    assert objective(found) <= best.fun + 1e-6
    np.testing.assert_allclose(found, best.x, atol=1e-3)


def test_fractions_of_pixels_are_the_block_threshold_over_the_training_images(fitted: Callable[..., RDA]) -> None:
    x = smooth_textures(64, SHAPE, seed=0)
    x[:, :, 3, 5] = torch.rand(64, 1, generator=torch.Generator().manual_seed(4))  # a broken pixel
    method = fitted(RDA, x, **SMALL | {"penalty": "pixels", "weight": 1.0})
    assert float(method.share[0, 3, 5]) > 0.2
    assert int(method.share.argmax()) == 3 * 16 + 5
    assert int((method.share > 0).sum()) <= 12  # of 256
    error = torch.randn(2, *SHAPE)
    torch.testing.assert_close(method.threshold(error), error * method.share)


@pytest.mark.parametrize("penalty", ["l1", "images"])
def test_parts_add_up_and_lower_the_objective(fitted: Callable[..., RDA], penalty: str) -> None:
    method = fitted(RDA, SHAPE, **SMALL | {"iterations": 200, "tolerance": 1e-5, "penalty": penalty})
    y = method.standardise(with_defect(smooth_textures(5, SHAPE, seed=1), seed=2)[0])

    def objective(sparse: Tensor) -> Tensor:
        low = y - sparse
        sizes = sparse.abs().mean((1, 2, 3)) if penalty == "l1" else sparse.square().mean((1, 2, 3)).sqrt()
        return 0.5 * (low - method.reconstruct(low)).square().mean((1, 2, 3)) + 0.5 * sizes

    with torch.no_grad():
        low, sparse, restored = method.split(y)
        one_step = method.threshold(y - method.reconstruct(y))
        torch.testing.assert_close(low + sparse, y)
        torch.testing.assert_close(restored, method.reconstruct(low))
        none = objective(torch.zeros_like(y))
        assert (objective(sparse) <= none + 1e-6).all()
        assert (objective(sparse) < 0.9 * none).any()
        assert (objective(sparse) <= objective(one_step) + 1e-6).all()
        normal = method.split(method.standardise(smooth_textures(5, SHAPE, seed=1)))[1]
    assert normal.abs().mean() < 0.5 * sparse.abs().mean()


def test_no_weight_leaves_nothing_to_learn_and_a_large_one_is_an_autoencoder(fitted: Callable[..., RDA]) -> None:
    x = smooth_textures(5, SHAPE, seed=1)
    method = fitted(RDA, SHAPE, **SMALL | {"weight": 1e6})
    scores = method.with_score("noise").score(x)
    assert not scores.image.any()
    y = method.standardise(x)
    with torch.no_grad():
        plain = (y - method.network(y)).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(method.with_score("error").score(x).image, plain)
    method = _method(weight=0.0)
    with torch.no_grad():
        torch.testing.assert_close(method.threshold(y), y)


def test_finds_foreign_images_among_its_training_images(fitted: Callable[..., RDA]) -> None:
    """5 % of the training images are of another kind; the paper's use: which of them are they?"""
    x = smooth_textures(80, SHAPE, seed=0)
    stripes = 0.45 + 0.15 * torch.sin(torch.arange(16.0) * 1.5).expand(4, 1, 16, 16)
    x[:4] = stripes + 0.01 * torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    method = fitted(RDA, x, **SMALL | {"penalty": "images", "weight": 0.5, "steps": 200, "latent": 2})
    noise = method.with_score("noise").score(x).image
    assert set(noise.argsort(descending=True)[:4].tolist()) == {0, 1, 2, 3}


@torch.no_grad()
def test_a_round_goes_on_or_starts_anew() -> None:
    """With ``restart`` the network is new after S is computed, and S is that of the trained one."""
    x = smooth_textures(16, SHAPE, seed=0)
    for restart in (False, True):
        method = _method(restart=restart, constraint=0.0)
        trained = {name: value.clone() for name, value in method.network.state_dict().items()}
        method.standardise.measure(x.split(8))
        method.begin_round(_Batches(x))
        same = [torch.equal(value, trained[name]) for name, value in method.network.state_dict().items()]
        assert all(same) != restart
        assert all(torch.equal(value, trained[name]) for name, value in method.before.state_dict().items())


class _Batches:
    """Training images in batches, as the training gives them."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.count = x, len(x)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.x.split(8))

    def __len__(self) -> int:
        return math.ceil(self.count / 8)


def test_rounds_are_stages() -> None:
    assert [s.name for s in _method(rounds=3).stages()] == ["round 1", "round 2", "round 3", "sparse part"]


@torch.no_grad()
@pytest.mark.parametrize("side", [32, 48])
def test_large_images_are_scored_by_the_largest_pixels(side: int) -> None:
    x = smooth_textures(3, (1, side, side), seed=1)
    torch.manual_seed(0)
    method = RDA(RDASettings(**{**TINY, "network": "lenet", "weight": 0.1}), (1, side, side))
    method.standardise.measure(x.split(3))
    count = side * side if side == 32 else round(0.01 * side * side)
    for score, power in (("noise", 1.0), ("error", 0.5)):
        found = method.eval().with_score(score)._score(x)
        largest = found.map.flatten(1).sort(descending=True).values[:, :count].mean(1)
        assert (largest > 0).all()
        torch.testing.assert_close(found.image, largest**power)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, "rounds must be at least 1, got 0."),
        ({"weight": -1.0}, "weight must be at least 0, got -1.0."),
        ({"tolerance": 0.0}, "tolerance must be greater than 0, got 0.0."),
        ({"latent": 0}, "latent must be at least 1, got 0."),
        ({"constraint": float("nan")}, "constraint must be at least 0, got nan."),
        ({"reduce": 2.0}, 'reduce must be "auto", "mean", "top", "max" or a quantile between 0 and 1, got 2.0.'),
    ],
    ids=str,
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=f"^rda: {re.escape(message)}$"):
        RDASettings(**settings)


def test_rounds_end_when_the_constraint_holds(fitted: Callable[..., RDA]) -> None:
    """With a threshold of 0, S takes the whole error of the network: X = D(E(L)) + S from the first round on."""
    method = fitted(RDA, SHAPE, **SMALL | {"weight": 0.0, "steps": 30})
    assert method.residuals[:, 0].isfinite().tolist() == [True, False, False]
    assert float(method.residuals[0, 0]) < 1e-3  # S moves by less than `tolerance`
    for name, value in method.network.state_dict().items():  # the last one trained is the one scored with
        torch.testing.assert_close(value, method.before.state_dict()[name])
    assert (
        fitted(RDA, SHAPE, **SMALL | {"weight": 0.0, "steps": 30, "constraint": 0.0}).residuals.isfinite().sum() == 5
    )  # c2 has no first


def test_residuals_restated(fitted: Callable[..., RDA]) -> None:
    x = smooth_textures(64, SHAPE, seed=0)
    method = fitted(RDA, x, **SMALL | {"rounds": 2, "steps": 60, "constraint": 0.0})
    y = method.standardise(x)
    with torch.no_grad():
        _, sparse, restored = method.split(y)
        c1 = (y - restored - sparse).norm() / y.norm()
    torch.testing.assert_close(method.residuals[1, 0], c1, rtol=1e-3, atol=1e-5)
    assert method.residuals[0, 1].isinf()
    assert 0 < float(method.residuals[1, 1]) < 1


def test_images_that_have_stopped_leave_the_iterations(fitted: Callable[..., RDA]) -> None:
    """Each has the parts that it has alone, and the network does not see all of them in each iteration."""
    method = fitted(RDA, SHAPE, **SMALL)
    y = method.standardise(smooth_textures(8, SHAPE, seed=1))
    y[0] += 3.0
    seen: list[int] = []
    handle = method.before.register_forward_hook(lambda *call: seen.append(len(call[1][0])))
    with torch.no_grad():
        together, calls = method.split(y), seen.copy()
        alone = [torch.cat(parts) for parts in zip(*(method.split(image[None]) for image in y))]
    handle.remove()
    for found, expected in zip(together, alone):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert sum(calls) < len(y) * len(calls)
