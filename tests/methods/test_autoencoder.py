"""Facts of the autoencoder; what holds for every method is in test_contract.py."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from normalcy.errors import SettingsError
from normalcy.methods.autoencoder import Autoencoder, AutoencoderSettings, late_drop, reduce_map
from normalcy.nets.ssim import ssim_map
from normalcy.training.fit import fit
from normalcy.training.settings import TrainSettings

CONTRACT: dict[str, Any] = {"steps": 30, "batch_size": 8, "width": 4, "latent": 8, "lr": 0.01}
"""Settings that make the contract tests quick."""


def _waves(count: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Smooth images (count, *shape): a plane wave of random phase along the last axis, in [0.2, 0.8]."""
    generator = torch.Generator().manual_seed(seed)
    phase = 6.28 * torch.rand(count, *[1] * len(shape), generator=generator)
    return (0.5 + 0.3 * torch.sin(phase + torch.linspace(0, 9, shape[-1]))).expand(count, *shape).clone()


def _fitted(shape: tuple[int, ...], steps: int = 100, **words: Any) -> Autoencoder:
    torch.manual_seed(0)
    method = Autoencoder(AutoencoderSettings(**{"latent": 4, "lr": 5e-3, **words}), shape)
    settings = TrainSettings(steps=steps, batch_size=16, precision="32-true", device="cpu")
    fit(method, _waves(64, shape), settings)
    return method


def test_an_odd_image_does_not_ruin_the_training() -> None:
    """Without a limit of the gradients it leaves a network no better than the mean image."""
    torch.manual_seed(0)
    method = Autoencoder(AutoencoderSettings(latent=4), (1, 16, 16))
    normal = _waves(63, (1, 16, 16))
    settings = TrainSettings(steps=300, batch_size=8, precision="32-true", device="cpu")
    fit(method, torch.cat([normal, 30 * torch.rand(1, 1, 16, 16)]), settings)
    with torch.no_grad():
        error = method.eval().error(normal, method.decode(method.encode(normal))).mean()
    assert error < 0.4 * normal.var()


@pytest.mark.parametrize(
    ("loss", "shape", "steps", "words"),
    [
        ("l1", (1, 16, 20), 100, {}),
        ("l2", (3, 16, 16), 100, {"network": "dcgan", "width": 8}),
        ("ssim", (1, 16, 20), 100, {"norm": "batch"}),
        ("l2", (1, 10, 12, 16), 100, {"network": "dcgan", "width": 8}),
    ],
    ids=["l1", "l2", "ssim", "volume"],
)
def test_finds_and_shows_a_planted_defect(loss: str, shape: tuple[int, ...], steps: int, words: dict[str, Any]) -> None:
    method = _fitted(shape, steps, loss=loss, **words)
    normal = _waves(8, shape, seed=1)
    defect = torch.zeros(shape[1:], dtype=torch.bool)
    defect[..., 3:8, 3:8] = True
    abnormal = torch.where(defect, 1 - normal, normal)
    good, bad = method.score(normal), method.score(abnormal)
    assert (bad.image > good.image).float().mean() >= 0.875
    assert bad.image.mean() > 1.3 * good.image.mean()
    assert bad.map is not None
    assert bad.map[:, defect].mean() > 1.5 * bad.map[:, ~defect].mean()


@pytest.mark.parametrize("loss", ["l1", "l2", "ssim"])
def test_map_is_the_error_that_training_minimises(loss: str) -> None:
    method = _fitted((2, 12, 16), 2, loss=loss)
    x = _waves(3, (2, 12, 16), seed=1) + 0.1 * torch.rand(3, 2, 12, 16)
    scores = method.score(x)
    assert scores.map is not None
    assert scores.restored is not None
    difference = x - scores.restored
    expected = {
        "l1": difference.abs().mean(1),
        "l2": difference.square().mean(1),
        "ssim": 1 - ssim_map(x, scores.restored),
    }[loss]
    torch.testing.assert_close(scores.map, expected)
    torch.testing.assert_close(scores.image, expected.mean((1, 2)))
    with torch.no_grad():
        torch.testing.assert_close(method.reconstruction(x)["loss"], expected.mean())


def test_restored_is_the_decoded_code_and_near_a_normal_image() -> None:
    method = _fitted((1, 16, 20))
    x = _waves(6, (1, 16, 20), seed=2)
    scores = method.score(x)
    assert scores.restored is not None
    assert scores.latent is not None
    assert scores.latent.shape == (6, 4)
    with torch.no_grad():
        torch.testing.assert_close(scores.restored, method.decode(scores.latent))
    assert (scores.restored - x).square().mean() < 0.2 * x.var()


def test_reduce() -> None:
    maps = torch.arange(200.0).view(2, 10, 10)
    assert reduce_map(maps, "mean").tolist() == [49.5, 149.5]
    assert reduce_map(maps, "max").tolist() == [99, 199]
    assert reduce_map(maps, 0.5).tolist() == [50, 150]


def test_schedule_drops_once() -> None:
    assert [late_drop(f) for f in (0.0, 0.6, 0.7, 0.99)] == [1, 1, 0.1, 0.1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"latent": 0}, "autoencoder: latent must be at least 1, got 0."),
        ({"lr": 0.0}, "autoencoder: lr must be greater than 0, got 0.0."),
        ({"weight_decay": -1.0}, "autoencoder: weight_decay must be at least 0, got -1.0."),
        ({"smoothing": -1.0}, "autoencoder: smoothing must be at least 0, got -1.0."),
        ({"reduce": 1.5}, "autoencoder: reduce must be "),
    ],
    ids=str,
)
def test_impossible_settings(words: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        AutoencoderSettings(**words)
