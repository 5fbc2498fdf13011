"""Facts of q-space novelty detection; what holds for every method is in test_contract.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from normalcy.errors import SettingsError
from normalcy.methods.qspace_vae import QSpaceVAE, QSpaceVAESettings

CONTRACT: dict[str, Any] = {"steps": 40, "batch_size": 8, "hidden": (16,), "latent": 2, "memory": 500, "lr": 0.01}
"""Settings that make the contract tests quick."""

CHANNELS, SIDE = 9, 10
SHAPE = (CHANNELS, SIDE, SIDE)
SMALL: dict[str, Any] = {
    "b0": (0,), "mask": 0.2, "hidden": (24,), "latent": 2, "lr": 0.01, "memory": 500, "steps": 400, "batch_size": 8,
}  # fmt: skip


def _slices(count: int, seed: int) -> Tensor:
    """Signals of 8 directions that depend on one fibre angle and on a b=0 image (channel 0) of any brightness; air around."""
    generator = torch.Generator().manual_seed(seed)
    angle = 3.14 * torch.rand(count, 1, SIDE, SIDE, generator=generator)
    base = 500 + 500 * torch.rand(count, 1, SIDE, SIDE, generator=generator)
    directions = torch.linspace(0, 3.14, CHANNELS).view(1, -1, 1, 1)[:, :-1]
    signal = base * torch.exp(-1.2 * torch.cos(angle - directions).square())
    x = torch.cat([base, signal], 1) + 3 * torch.randn(count, CHANNELS, SIDE, SIDE, generator=generator)
    x[..., :2, :] = 5 * torch.rand(count, CHANNELS, 2, SIDE, generator=generator)
    return x


@pytest.fixture(scope="module")
def method(fitted: Callable[..., QSpaceVAE]) -> QSpaceVAE:
    return fitted(QSpaceVAE, _slices(16, seed=0), **SMALL)


def test_signals_are_divided_by_the_b0_image(method: QSpaceVAE) -> None:
    x = _slices(3, seed=1)
    torch.testing.assert_close(method.attenuation(x)[:, :, 2:], x[:, 1:, 2:] / x[:, :1, 2:])
    brighter = method.score(1.2 * x).map
    here = method.score(x).map
    assert here is not None
    torch.testing.assert_close(brighter[:, 2:], here[:, 2:], rtol=1e-3, atol=1e-4)  # type: ignore[index]


def test_without_b0_signal_a_voxel_is_outside(fitted: Callable[..., QSpaceVAE]) -> None:
    method = fitted(QSpaceVAE, _slices(16, seed=0), **SMALL | {"steps": 3, "mask": 0.0})
    x = _slices(2, seed=1)
    x[:, :, 5:] = 0.0
    map = method.score(x).map
    assert map is not None
    assert not map[:, 5:].any()
    assert map[:, :5].all()


def test_air_is_not_scored(method: QSpaceVAE) -> None:
    x = _slices(3, seed=1)
    map = method.score(x).map
    assert map is not None
    assert not map[:, :2].any()
    assert (map[:, 2:] > 0).all()
    other = x.clone()
    other[:, 1:, :2] = 0.0
    torch.testing.assert_close(method.score(other).image, method.score(x).image)
    torch.testing.assert_close(method.score(x).image, map[:, 2:].mean((1, 2)))


def test_voxels_do_not_see_each_other(method: QSpaceVAE) -> None:
    x = _slices(1, seed=1)
    other = x.clone()
    other[:, 3, 5, 6] *= 2
    for name in method.scores:
        twin = method.with_score(name)
        changed = (twin.score(other).map != twin.score(x).map).squeeze(0)  # type: ignore[union-attr]
        assert set(map(tuple, changed.nonzero().tolist())) <= {(5, 6)}


@pytest.mark.parametrize(
    "score", ["reconstruction", "stochastic_mean", "stochastic_min", "nearest", "bhattacharyya", "density"]
)
def test_changed_signals_are_found(method: QSpaceVAE, score: str) -> None:
    """A lesion: the signal is the same in all directions. Its code is an ordinary one, so the KL does not see it."""
    x = _slices(4, seed=1)
    x[:, 1:, 4:7, 4:7] = 0.95 * x[:, :1, 4:7, 4:7]
    map = method.with_score(score).score(x).map
    assert map is not None
    lesion = map[:, 4:7, 4:7].flatten()
    rest = torch.cat([map[:, 2:4].flatten(), map[:, 7:].flatten()])
    assert (lesion[:, None] > rest).float().mean() > 0.9


def test_scores_restated_voxel_by_voxel(method: QSpaceVAE) -> None:
    x = _slices(1, seed=1)
    signals = ((x[0, 1:, 6, 7] / x[0, 0, 6, 7]) - method.mean.flatten()) / method.std.flatten()
    with torch.no_grad():
        mean, logvar = method.encoder(signals.view(1, -1, 1, 1)).flatten().chunk(2)
        noise = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
        errors = []
        for z in [mean, *(mean + (0.5 * logvar).exp() * e for e in noise)]:
            errors.append(float((method.decoder(z.view(1, -1, 1, 1)).flatten() - signals).square().mean()))
    posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(torch.zeros(2), torch.ones(2))).sum()
    known = [torch.distributions.Normal(m, (0.5 * v).exp()) for m, v in zip(method.codes, method.logvars)]
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)[:, None]

    def bhattacharyya(other: torch.distributions.Normal) -> float:
        """-log of the integral of sqrt(p q), axis by axis, by the rectangle rule."""
        overlap = (0.5 * (posterior.log_prob(grid) + other.log_prob(grid))).exp().sum(0) * (grid[1] - grid[0])
        return -float(overlap.log().sum())

    likely = torch.stack([other.log_prob(mean).sum() for other in known])
    closest = torch.cdist(mean[None], method.codes)[0].topk(40, largest=False).indices.tolist()
    expected = {
        "reconstruction": errors[0],
        "stochastic_mean": sum(errors[1:]) / 10,
        "stochastic_min": min(errors[1:]),
        "kl": float(kl),
        "nearest": float((method.codes - mean).norm(dim=1).min()),
        "bhattacharyya": min(bhattacharyya(known[i]) for i in closest),
        "density": -float(likely.exp().mean().log()),
    }
    for name, value in expected.items():
        found = method.with_score(name).score(x).map
        assert found is not None
        assert float(found[0, 6, 7]) == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_codes_are_those_of_training_voxels_in_the_brain(method: QSpaceVAE) -> None:
    assert method.codes.shape == method.logvars.shape == (500, 2)
    x = _slices(16, seed=0)
    with torch.no_grad():
        known = method.encode(method.standardised(x))[0].movedim(1, -1)[:, 2:].flatten(0, 2)
    assert torch.cdist(method.codes, known).amin(1).max() < 1e-3


def test_restored_signals_are_in_the_unit_of_the_input(method: QSpaceVAE) -> None:
    x = _slices(2, seed=1)
    restored = method.score(x).restored
    assert restored is not None
    torch.testing.assert_close(restored[:, 0], x[:, 0])
    error = (restored - x)[:, 1:, 2:].square().mean()
    assert error < 0.1 * x[:, 1:, 2:].var()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent": 0}, "latent must be at least 1, got 0."),
        ({"mask": 1.0}, "mask must be at least 0 and below 1, got 1.0."),
        ({"hidden": (0,)}, "hidden must be at least 1, got (0,)."),
        ({"samples": 0}, "samples must be at least 1, got 0."),
    ],
    ids=str,
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=f"^qspace_vae: {re.escape(message)}$"):
        QSpaceVAESettings(**settings)


@pytest.mark.parametrize("b0", [(3,), (0, 1, 2)])
def test_b0_must_be_some_of_the_channels(b0: tuple[int, ...]) -> None:
    with pytest.raises(SettingsError, match=r"^qspace_vae: b0 must be some of the channels 0 to 2, not all, got "):
        QSpaceVAE(QSpaceVAESettings(b0=b0), (3, 8, 8))
