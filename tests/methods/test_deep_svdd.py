"""Facts of Deep SVDD; what holds for every method is in test_contract.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normalcy.errors import SettingsError
from normalcy.methods.deep_svdd import RETIRED, WARM_UP, DeepSVDD, DeepSVDDSettings, patch_dictionary
from normalcy.training.fit import fit
from normalcy.training.settings import TrainSettings

CONTRACT: dict[str, Any] = {"steps": 40, "batch_size": 8, "width": 8, "lr": 0.003}
"""Settings that make the contract tests quick."""

SHAPE = (1, 16, 16)


def _images(count: int = 64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *SHAPE, generator=generator)


def _method(**words: Any) -> DeepSVDD:
    torch.manual_seed(0)
    return DeepSVDD(DeepSVDDSettings(**words), SHAPE)


def _fitted(**words: Any) -> DeepSVDD:
    method = _method(**words)
    fit(method, _images(), TrainSettings(steps=60, batch_size=16, precision="32-true", device="cpu"))
    return method


def test_centre_is_the_mean_code_moved_out_of_zero() -> None:
    method = _method(latent=6, nudge=0.1).eval()
    codes = torch.tensor([[0.5, -0.5, 0.05, -0.05, 0.0, 0.1], [0.7, -0.7, 0.05, -0.01, 0.0, 0.1]])
    method.encode = lambda x: codes  # type: ignore[method-assign]
    method.place_centre([torch.zeros(2, *SHAPE)])  # type: ignore[arg-type]
    torch.testing.assert_close(method.centre, torch.tensor([0.6, -0.6, 0.1, -0.1, 0.1, 0.1]))


def test_nothing_in_the_encoder_could_be_constant() -> None:
    """Proposition 2 of the paper: a bias would let the network map every image onto the centre."""
    method = _method()
    assert method.encode(torch.zeros(2, *SHAPE)).abs().max() == 0
    norms = [m for m in method.encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert not any(m.affine for m in norms)


def _stripes(count: int = 64) -> Tensor:
    """Columns of one value each."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, 1, 16, generator=generator).expand(count, *SHAPE).contiguous()


def test_filters_of_a_dictionary_look_like_the_patches() -> None:
    torch.manual_seed(0)
    filters = patch_dictionary(_stripes().split(16), (4, 1, 5, 5))  # type: ignore[arg-type]
    norms = filters.flatten(1).norm(dim=1)
    assert (norms <= 1 + 1e-5).all()
    assert (norms > 0.5).all()
    torch.testing.assert_close(filters, filters.mean(2, keepdim=True).expand_as(filters), rtol=0, atol=0.02)
    torch.manual_seed(0)
    torch.testing.assert_close(patch_dictionary(_stripes().split(16), (4, 1, 5, 5)), filters)  # type: ignore[arg-type]
    assert patch_dictionary([torch.ones(2, *SHAPE)], (4, 1, 5, 5)).isfinite().all()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "shape", "stripes"),
    [
        ({}, SHAPE, True),
        ({"first_filters": "random"}, SHAPE, False),
        ({}, (3, 16, 16), False),
        ({"first_filters": "dictionary"}, (3, 16, 16), True),
        ({"network": "dcgan", "first_filters": "dictionary"}, (1, 40, 40), True),
        ({}, (1, 40, 40), False),
    ],
    ids=str,
)
def test_first_layer_begins_as_a_dictionary(words: dict[str, Any], shape: tuple[int, ...], stripes: bool) -> None:
    """By default for what the authors' scripts use it for: small images of one channel."""
    method = DeepSVDD(DeepSVDDSettings(**words), shape)
    columns = torch.rand(40, shape[0], 1, shape[2], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        method.begin(columns.expand(40, *shape).contiguous().split(10))  # type: ignore[arg-type]
    weight = next(m for m in method.encoder.modules() if isinstance(m, nn.Conv2d)).weight.detach()
    across = (weight - weight.mean(2, keepdim=True)).square().mean() / weight.square().mean()
    assert (float(across) < 0.01) == stripes


def test_no_dictionary_of_volumes() -> None:
    with pytest.raises(SettingsError, match='deep_svdd: first_filters must be "auto" or "random" for volumes, got'):
        DeepSVDD(DeepSVDDSettings(first_filters="dictionary"), (1, 16, 16, 16))


def test_score_is_the_squared_distance() -> None:
    method = _fitted()
    x = _images(5, seed=1)
    scores = method.score(x)
    assert scores.latent is not None
    torch.testing.assert_close(scores.image, (scores.latent - method.centre).square().sum(1))
    soft = _fitted(objective="soft_boundary", nu=0.2)
    with torch.no_grad():
        torch.testing.assert_close(soft.score(x).image, soft.distance(x) - soft.squared_radius)


def test_soft_boundary_leaves_the_fraction_nu_outside() -> None:
    method = _fitted(objective="soft_boundary", nu=0.25)
    outside = (method.score(_images()).image > 0).float().mean().item()
    assert outside == pytest.approx(0.25, abs=1 / 64)


def test_the_quantile_minimises_the_soft_boundary_loss() -> None:
    """Which is what the paper's line search over R looks for."""
    method = _method(objective="soft_boundary", nu=0.1).eval()
    x = _images(50)
    with torch.no_grad():
        distances = method.distance(x)

        tried = torch.linspace(float(distances.min()), float(distances.max()), 2001)
        losses = tried + (distances - tried[:, None]).clamp(min=0).mean(1) / 0.1
        method.squared_radius.copy_(torch.quantile(distances, 0.9))
        assert float(method.soft_boundary(x)["loss"]) <= float(losses.min()) * (1 + 1e-4)


def test_radius_is_that_of_the_batch_before() -> None:
    """As in the authors' PyTorch code: the loss sees the radius of the step before; in the warm-up it is 0."""
    method = _method(objective="soft_boundary", nu=0.25).train()
    first, second = _images(9, seed=0), _images(9, seed=1)
    method.follow_radius(WARM_UP / 2)
    with torch.no_grad():
        distances = method.distance(first)
        torch.testing.assert_close(method.soft_boundary(first)["loss"], distances.mean() / 0.25)
        assert method.squared_radius == 0, "not in the warm-up"
        method.follow_radius(WARM_UP)
        torch.testing.assert_close(method.soft_boundary(first)["loss"], distances.mean() / 0.25)
        radius = distances.sort().values[6]  # the 0.75-quantile of nine numbers
        torch.testing.assert_close(method.squared_radius, radius)
        outside = (method.distance(second) - radius).clamp(min=0)
        terms = method.soft_boundary(second)
        torch.testing.assert_close(terms["loss"], radius + outside.mean() / 0.25)
        torch.testing.assert_close(terms["outside"], (outside > 0).float().mean())
        before = method.squared_radius.clone()
        method.eval().soft_boundary(first)
        assert method.squared_radius == before, "looking at the loss does not change it"


def test_training_never_stands_still() -> None:
    """A radius of earlier, larger distances would leave no image outside and no gradient (seen with 4,096 recent distances)."""
    method = _method(objective="soft_boundary", nu=0.1)
    fractions: list[float] = []
    loss = method.soft_boundary

    def watched(x: Tensor) -> Any:
        terms = loss(x)
        fractions.append(float(terms["outside"]))
        return terms

    method.soft_boundary = watched  # type: ignore[method-assign]
    fit(method, _images(320), TrainSettings(steps=100, batch_size=32, precision="32-true", device="cpu"))
    late = torch.tensor(fractions[len(fractions) // 2 :])
    assert 0.05 < late.mean() < 0.3
    assert (late == 0).float().mean() < 0.2


def test_both_objectives_share_the_autoencoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit that finds the autoencoder of the other objective gives the same weights, bit by bit, as one that trains its own."""
    settings = TrainSettings(steps=40, batch_size=16, precision="32-true", device="cpu")
    trained: list[str] = []
    reconstruction = DeepSVDD.reconstruction
    monkeypatch.setattr(DeepSVDD, "reconstruction", lambda self, x: (trained.append("x"), reconstruction(self, x))[1])

    def weights(shared: Path | None, **words: Any) -> dict[str, Tensor]:
        method = _method(**words)
        fit(method, _images(), settings, shared=shared)
        return dict(method.state_dict())

    soft = {"objective": "soft_boundary", "nu": 0.2}
    alone = weights(None, **soft)
    steps = len(trained)
    weights(tmp_path, objective="one_class")
    assert len(trained) == 2 * steps
    after = weights(tmp_path, **soft)
    assert len(trained) == 2 * steps, "not trained again"
    assert after.keys() == alone.keys()
    assert all(torch.equal(after[name], alone[name]) for name in alone)
    weights(tmp_path, **soft, latent=5)
    assert len(trained) == 3 * steps, "another network"


def test_models_saved_with_recent_distances_are_read() -> None:
    method, other = _fitted(objective="soft_boundary"), _method(objective="soft_boundary")
    old = {**method.state_dict(), **{name: torch.zeros(3) for name in RETIRED}}
    other.load_state_dict(old)
    torch.testing.assert_close(other.squared_radius, method.squared_radius)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"latent": 0}, "deep_svdd: latent must be at least 1, got 0."),
        ({"lr": 0.0}, "deep_svdd: lr must be greater than 0, got 0.0."),
        ({"nu": 0.0}, "deep_svdd: nu must be between 0 and 1, both excluded, got 0.0."),
        ({"nu": 1.0}, "deep_svdd: nu must be between 0 and 1, both excluded, got 1.0."),
        ({"nudge": -1.0}, "deep_svdd: nudge must be at least 0, got -1.0."),
    ],
    ids=str,
)
def test_impossible_settings(words: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        DeepSVDDSettings(**words)
