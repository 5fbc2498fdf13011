"""Facts of the spatial uncertainty autoencoder; what holds for every method is in test_contract.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from normalcy.detector import Detector
from normalcy.errors import SettingsError
from normalcy.methods.spatial_uae import SpatialUAE, SpatialUAESettings
from normalcy.testing import smooth_textures

CONTRACT: dict[str, Any] = {"steps": 40, "batch_size": 8, "width": 4, "latent": 2, "halvings": 3, "lr": 0.01}
"""Settings that make the contract tests quick."""

SHAPE = (1, 20, 24)
TINY: dict[str, Any] = {"width": 4, "latent": 3, "halvings": 2, "lr": 0.01}
SMALL = {**TINY, "steps": 60}


def test_restored_images_are_in_the_unit_of_the_input(fitted: Callable[..., SpatialUAE]) -> None:
    method = fitted(SpatialUAE, 80 * smooth_textures(48, SHAPE, seed=0), **SMALL | {"steps": 150})
    x = 80 * smooth_textures(4, SHAPE, seed=1)
    scores = method.score(x)
    assert scores.restored is not None
    assert (scores.restored - x).square().mean() < 0.5 * x.var()


def test_window_of_a_brain_in_ct_is_a_step_of_preprocessing() -> None:
    detector = Detector("spatial_uae", preprocess="window:40:80", steps=3, calibration=0.0, **TINY)
    slices = (80 * smooth_textures(24, SHAPE, seed=0).squeeze(1)).round().numpy().astype(np.int16)
    detector.fit(slices)
    bone, metal = slices[:2].copy(), slices[:2].copy()
    bone[:, 3:6, 3:6], metal[:, 3:6, 3:6] = 500, 3000
    assert detector.score(bone).scores.tolist() == detector.score(metal).scores.tolist()


def test_code_keeps_its_place(fitted: Callable[..., SpatialUAE]) -> None:
    method = fitted(SpatialUAE, SHAPE, **SMALL | {"steps": 2})
    x = smooth_textures(1, SHAPE, seed=1)
    other = x.clone()
    other[..., :2, :2] += 0.3
    with torch.no_grad():
        moved = (method.encode(x) - method.encode(other)).abs().sum((0, 1))
    assert moved.shape == (5, 6)
    assert moved[0, 0] > 0
    assert moved[3:].max() == 0
    assert moved[:, 3:].max() == 0


def test_noise_has_standard_deviation_sigma(fitted: Callable[..., SpatialUAE], monkeypatch: pytest.MonkeyPatch) -> None:
    method = fitted(SpatialUAE, SHAPE, **SMALL | {"steps": 2, "sigma": 0.3})
    x = smooth_textures(64, SHAPE, seed=1)
    seen = []
    decode = method.decode
    monkeypatch.setattr(method, "decode", lambda code: seen.append(code) or decode(code))
    torch.manual_seed(0)
    with torch.no_grad():
        method.reconstruction(x)
        noise = seen[0] - method.encode(x)
    assert float(noise.std()) == pytest.approx(0.3, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.01)
    assert method.encode(x).abs().max() <= 1


def test_noise_limits_the_information_of_the_code(fitted: Callable[..., SpatialUAE]) -> None:
    x = smooth_textures(8, SHAPE, seed=1)
    assert (
        fitted(SpatialUAE, SHAPE, **SMALL | {"sigma": 1.5}).score(x).image.mean()
        > 1.2 * fitted(SpatialUAE, SHAPE, **SMALL | {"sigma": 0.05}).score(x).image.mean()
    )


def test_spread_is_the_standard_deviation_over_noisy_decodings(fitted: Callable[..., SpatialUAE]) -> None:
    x = smooth_textures(3, SHAPE, seed=1)
    spread = [
        fitted(SpatialUAE, SHAPE, **SMALL | {"steps": 20, "sigma": sigma}).score(x).uncertainty for sigma in (0.0, 0.5)
    ]
    assert spread[0] is not None
    assert spread[1] is not None
    assert not spread[0].any()
    assert (spread[1] > 0).float().mean() > 0.9
    assert fitted(SpatialUAE, SHAPE, **SMALL | {"steps": 2, "samples": 0}).score(x).uncertainty is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent": 0}, "latent must be at least 1, got 0."),
        ({"sigma": -1.0}, "sigma must be at least 0, got -1.0."),
    ],
    ids=str,
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=f"^spatial_uae: {re.escape(message)}$"):
        SpatialUAESettings(**settings)
