"""Facts of ALOCC; what holds for every method is in test_contract.py."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from normalcy.errors import SettingsError
from normalcy.methods.alocc import ALOCC, ALOCCSettings
from normalcy.testing import smooth_textures
from normalcy.training.fit import fit
from normalcy.training.settings import TrainSettings

CONTRACT: dict[str, Any] = {"steps": 20, "batch_size": 8, "latent": 8, "width": 4, "lr": 1e-3}
"""Settings that make the contract tests quick."""

SHAPE = (1, 12, 16)


def _method(**words: Any) -> ALOCC:
    torch.manual_seed(0)
    return ALOCC(ALOCCSettings(**{"latent": 4, "width": 8, **words}), SHAPE)


@pytest.mark.parametrize("noisy_target", [False, True])
def test_loss_of_the_refiner(noisy_target: bool) -> None:
    method = _method(noisy_target=noisy_target, weight=0.7, noise=0.5).eval()
    x = torch.rand(5, *SHAPE)
    torch.manual_seed(1)
    terms = method.refiner_loss(x)
    torch.manual_seed(1)
    y = 2 * x - 1  # the range is [0, 1] before it is measured
    noisy = y + 0.5 * torch.randn_like(y)
    refined = method.refiner(noisy)
    error = ((noisy if noisy_target else y) - refined).pow(2).sum((1, 2, 3)).mean()
    probability = torch.sigmoid(method.discriminator(refined))
    torch.testing.assert_close(terms["loss"], 0.7 * error - probability.log().mean())


def test_loss_of_the_discriminator_spares_the_refiner() -> None:
    method = _method(noise=0.0).eval()
    x = torch.rand(5, *SHAPE)
    loss = method.discriminator_loss(x)["loss"]
    real, fake = method.discriminator(2 * x - 1), method.discriminator(method.refiner(2 * x - 1))
    ones = torch.ones_like(real)
    expected = F.binary_cross_entropy_with_logits(real, ones) + F.binary_cross_entropy_with_logits(fake, 0 * ones)
    torch.testing.assert_close(loss, expected)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in method.refiner.parameters())


def test_networks_of_the_refiner() -> None:
    """Two levels of DCGAN type for digits, four of DDR-ID's table 1 (whose networks DDR-ID's ALOCC resembles)."""
    digits = (1, 28, 28)
    plain, paper = (ALOCC(ALOCCSettings(refiner=refiner), digits) for refiner in ("dcgan", "ddr_id"))  # type: ignore[arg-type]
    widths = [
        [m.out_channels for m in a.refiner.modules() if type(m).__name__ == "HalvingConv2d"] for a in (plain, paper)
    ]
    assert widths == [[64, 128], [64, 128, 256, 512]]
    refined = paper.refiner(torch.rand(2, *digits))
    assert refined.shape == (2, *digits)
    assert refined.abs().max() <= 1


def test_scores() -> None:
    method = _method(noise=0.3).eval()
    method._fitted.fill_(True)  # type: ignore[operator]
    x = torch.rand(4, *SHAPE)
    with torch.no_grad():
        y = 2 * x - 1
        refined = method.refiner(y)  # clean images in evaluation
        expected = {
            "reconstruction": (x - (refined + 1) / 2).pow(2).mean((1, 2, 3)),
            "discriminator": -torch.logit(torch.sigmoid(method.discriminator(y)))[:, 0],
            "refined": -torch.logit(torch.sigmoid(method.discriminator(refined)))[:, 0],
        }
    for name, value in expected.items():
        scores = method.with_score(name).score(x)
        torch.testing.assert_close(scores.image, value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(scores.restored, (refined + 1) / 2)
        assert scores.map is not None
        torch.testing.assert_close(scores.map.mean((1, 2)), expected["reconstruction"])


def test_refiner_takes_noise_away() -> None:
    method = _method(noise=0.5, lr=5e-3)
    images = smooth_textures(64, SHAPE, seed=0)
    fit(method, images, TrainSettings(steps=50, batch_size=16, precision="32-true", device="cpu"))
    x = smooth_textures(16, SHAPE, seed=1)
    y = method.range(x)
    with torch.no_grad():
        noisy = method.noisy(y)
        refined = method.refiner(noisy)
    assert (refined - y).square().mean() < 0.5 * (noisy - y).square().mean()


def test_the_refiner_may_move_more_often() -> None:
    repeats = {o.loss.__name__: o.repeats for o in _method(refiner_steps=2).stages()[0].objectives}  # type: ignore[attr-defined]
    assert repeats == {"discriminator_loss": 1, "refiner_loss": 2}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"latent": 0}, "alocc: latent must be at least 1, got 0."),
        ({"noise": -0.1}, "alocc: noise must be at least 0, got -0.1."),
        ({"refiner_steps": 0}, "alocc: refiner_steps must be at least 1, got 0."),
        ({"lr": 0.0}, "alocc: lr must be greater than 0, got 0.0."),
    ],
    ids=str,
)
def test_impossible_settings(words: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        ALOCCSettings(**words)
