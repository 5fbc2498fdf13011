"""Facts of OC-NN; what holds for every method is in test_contract.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normalcy.errors import SettingsError
from normalcy.methods.oc_nn import OCNN, OCNNSettings
from normalcy.testing import smooth_textures

CONTRACT: dict[str, Any] = {
    "steps": 80,
    "batch_size": 8,
    "width": 4,
    "latent": 8,
    "hidden": 8,
    "pretraining_lr": 0.01,
    "lr": 0.01,
}
"""Settings that make the contract tests quick."""

SHAPE = (1, 8, 10)
TINY: dict[str, Any] = {"latent": 4, "hidden": 5, "width": 4}


def _method(**words: Any) -> OCNN:
    torch.manual_seed(0)
    return OCNN(OCNNSettings(**{**TINY, **words}), SHAPE)


def _linear_encoder(method: OCNN, codes: Tensor) -> Tensor:
    """Images (B, 1, 8, 10) whose codes are ``codes`` (B, 4), exactly: the encoder now reads the first pixels."""
    read = nn.Linear(80, codes.shape[1], bias=False)
    with torch.no_grad():
        read.weight.copy_(torch.eye(80)[: codes.shape[1]])
    method.encoder = nn.Sequential(nn.Flatten(), read)
    return torch.cat([codes, torch.zeros(len(codes), 76)], 1).view(-1, *SHAPE)


@pytest.mark.parametrize("activation", ["sigmoid", "linear"])
def test_loss_against_equation_4(activation: str) -> None:
    method = _method(objective="hyperplane", activation=activation, nu=0.2).eval()
    codes = torch.randn(7, 4)
    x = _linear_encoder(method, codes)
    method.r.fill_(0.3)
    V, w = method.V.weight.detach().numpy(), method.w.weight.detach().numpy()[0]
    hidden = codes.numpy() @ V.T
    y = (1 / (1 + np.exp(-hidden)) if activation == "sigmoid" else hidden) @ w
    expected = 0.5 * (w**2).sum() + 0.5 * (V**2).sum() + np.maximum(0, 0.3 - y).mean() / 0.2 - 0.3
    assert float(method.hyperplane(x)["loss"].detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("count", "nu"), [(1, 0.5), (10, 0.05), (100, 0.1), (101, 0.37)])
def test_r_minimises_the_objective(count: int, nu: float) -> None:
    """Theorem 1: no other r gives a smaller hinge / nu - r than the nu-quantile."""
    y = torch.randn(count)
    r = _method(nu=nu)._quantile(y)

    def objective(r: Tensor) -> float:
        return float((r - y).relu().mean() / nu - r)

    assert objective(r) <= min(objective(other) for other in y) + 1e-6
    assert (y < r).float().mean() <= nu + 1e-6
    assert (y <= r).float().mean() >= nu - 1e-6


def test_r_moves_once_per_epoch() -> None:
    """To the quantile of what the training saw; the batches need not divide the epoch."""
    method = _method(nu=0.5).train()
    method.recent = torch.zeros(5)
    method._remember(torch.tensor([1.0, 2.0, 3.0]))
    assert float(method.r) == 0
    method._remember(torch.tensor([4.0, 5.0]))
    assert float(method.r) == 3
    assert int(method.seen) == 0
    method._remember(torch.tensor([6.0, 7.0, 8.0]))
    assert float(method.r) == 3
    method._remember(torch.tensor([9.0, 10.0, 11.0]))  # the sixth image of the epoch takes the place of the first
    assert sorted(method.recent.tolist()) == [7, 8, 9, 10, 11]
    assert float(method.r) == 9


def test_evaluating_the_loss_does_not_move_r() -> None:
    method = _method().eval()
    method.recent = torch.full((3,), 7.0)
    method.hyperplane(torch.rand(4, *SHAPE))
    assert float(method.r) == 0
    assert method.recent.tolist() == [7, 7, 7]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return smooth_textures(40, SHAPE, seed=0)


@pytest.mark.parametrize("fine_tune", [True, False])
def test_hyperplane_after_fit(fitted: Callable[..., OCNN], images: Tensor, fine_tune: bool) -> None:
    settings = {**TINY, "objective": "hyperplane", "nu": 0.25, "fine_tune": fine_tune, "lr": 1e-2}
    method = fitted(OCNN, images, steps=30, batch_size=10, **settings)
    scores = method.score(images).image
    assert int((scores > 0).sum()) == 10, "a fraction nu of the training images lies beyond the hyperplane"
    assert method.recent.numel() == 0, "the scores of the training images need not be kept"
    trained = {id(p) for p in method.stages()[1].objectives[0].parameters}
    assert all((id(p) in trained) == fine_tune for p in method.encoder.parameters())


def test_loss_of_the_hypersphere_has_a_dead_zone() -> None:
    """Coordinates within the radius of the centre cost r^2 and have no gradient."""
    method = _method(radius=0.5, hidden=4).eval()
    codes = torch.tensor([[0.1, -0.4, 0.0, 0.0], [1.0, 0.0, -2.0, 0.3]])
    x = _linear_encoder(method, codes)
    with torch.no_grad():
        method.V.weight.copy_(torch.eye(4))
    method.centre = torch.zeros(4)
    codes.requires_grad_()
    method.encode = lambda x: codes  # type: ignore[method-assign]
    loss = method.hypersphere(x)["loss"]
    assert float(loss.detach()) == pytest.approx(0.25 + (0.75 + 3.75) / 2)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(codes.grad, torch.tensor([[0.0, 0, 0, 0], [1.0, 0, -2.0, 0]]))
    method._fitted.fill_(True)  # type: ignore[operator]
    torch.testing.assert_close(method.score(x).image, codes.detach().square().sum(1))


def test_centre_is_the_mean_moved_out_of_zero() -> None:
    method = _method(hidden=4, nudge=0.1).eval()
    x = _linear_encoder(method, torch.tensor([[0.5, -0.5, 0.05, -0.05], [0.7, -0.7, 0.05, -0.01]]))
    with torch.no_grad():
        method.V.weight.copy_(torch.eye(4))
        method.place_centre(x.split(1))  # type: ignore[arg-type]
    torch.testing.assert_close(method.centre, torch.tensor([0.6, -0.6, 0.1, -0.1]))


def test_no_image_is_mapped_onto_the_centre_by_biases() -> None:
    """As in Deep SVDD: an image of zeros has a code of zeros, whatever the weights."""
    method = _method().eval()
    assert float(method.features(torch.zeros(2, *SHAPE)).detach().abs().max()) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nu": 0.0}, "nu must be between 0 and 1, both excluded, got 0.0."),
        ({"nu": 1.0}, "nu must be between 0 and 1, both excluded, got 1.0."),
        ({"hidden": 0}, "hidden must be at least 1, got 0."),
        ({"latent": 0}, "latent must be at least 1, got 0."),
        ({"radius": -0.1}, "radius must be at least 0, got -0.1."),
        ({"lr": 0.0}, "lr must be greater than 0, got 0.0."),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, got -1.0."),
    ],
    ids=str,
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=f"^oc_nn: {re.escape(message)}$"):
        OCNNSettings(**settings)
