"""Facts of PatchCore; what holds for every method is in test_contract.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from normalcy.errors import SettingsError
from normalcy.methods.patchcore import PatchCore, PatchCoreSettings

CONTRACT: dict[str, Any] = {}
"""Settings that make the contract tests quick."""

SHAPE = (1, 64, 64)
SMALL: dict[str, Any] = {"layers": (2, 3), "patches": 2000, "memory": 200}


def textures(n: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    stripes = 0.5 + 0.2 * torch.sin(torch.arange(64.0) / 2 + 6.3 * torch.rand(n, 1, 1, 1, generator=g))
    return (stripes + 0.05 * torch.randn(n, 1, 64, 64, generator=g)).clamp(0, 1)


def test_finds_a_scratch_and_its_place(fitted: Callable[..., PatchCore]):
    x = textures(6, 1)
    x[0, :, 20:36, 40:48] = 0.95
    scores = fitted(PatchCore, textures(24, 0), **SMALL).score(x)
    assert scores.image[0] > scores.image[1:].max() * 1.2
    assert scores.map is not None
    row, column = divmod(int(scores.map[0].argmax()), 64)
    assert 16 <= row < 40
    assert 36 <= column < 52


def test_memory_is_bounded(fitted: Callable[..., PatchCore]):
    method = fitted(PatchCore, textures(24, 0), **SMALL | {"patches": 300, "memory": 50})
    assert method.memory.shape[0] == 50
    assert fitted(PatchCore, textures(24, 0), **SMALL | {"patches": 30, "memory": 50}).memory.shape[0] == 30


def test_training_images_are_at_distance_zero_when_all_is_kept(fitted: Callable[..., PatchCore]):
    method = fitted(
        PatchCore,
        textures(24, 0),
        **SMALL | {"patches": 10_000, "memory": 10_000, "slack": 0.0, "projection": 0},
    )
    assert method.memory.shape == (24 * 64, 152)
    scores = method.score(textures(24, 0))
    assert scores.image.max() < 0.05 * method.score(textures(4, 9)).image.min()


@pytest.mark.parametrize("words", [{"scale": 0.0}, {"scale": 0.5}, {"scale": 1.0}, {"whiten": True}])
def test_scales_are_what_they_say(fitted: Callable[..., PatchCore], words: dict[str, Any]):
    method = fitted(PatchCore, textures(24, 0), **SMALL | dict(**words, projection=0, patches=5000))
    with torch.no_grad():
        patches = method._patches(textures(24, 0)).flatten(0, 2)
    centred, projected = patches - patches.mean(0), method._project(patches)
    if "scale" in words:
        expected = centred / centred.std(0) ** words["scale"]
        assert (projected - expected).norm() < 1e-2 * expected.norm()
    else:  # the strong directions get unit variance, shrinkage keeps the weak ones below
        values = torch.linalg.eigvalsh(projected.T @ projected / len(projected))
        assert values.max() < 1.2
        assert values.median() > 0.3


def test_image_scores_are_maximum_mean_and_fraction(fitted: Callable[..., PatchCore]):
    method = fitted(PatchCore, textures(24, 0), **SMALL | {"top": 0.0})
    x = textures(3, 1)
    with torch.no_grad():
        patches = method._project(method._patches(x))
    distance = torch.cdist(patches.flatten(0, 2), method.memory).amin(1).view(3, -1)
    for top, expected in (
        (0.0, distance.amax(1)),
        (0.5, distance.topk(32, dim=1).values.mean(1)),
        (1.0, distance.mean(1)),
    ):
        method.settings = replace(method.settings, top=top)
        assert torch.allclose(method.score(x).image, expected, atol=1e-3)


def test_reweighting_is_equation_7(fitted: Callable[..., PatchCore]):
    method = fitted(PatchCore, textures(24, 0), **SMALL | {"top": 0.0, "neighbours": 5, "projection": 16})
    method.memory = method.memory / 20  # distances small enough for the formula as printed
    method.transform = method.transform / 20
    x = textures(3, 1)
    with torch.no_grad():
        patches = method._project(method._patches(x)).flatten(1, 2)
    for image, score in zip(patches, method.score(x).image):
        distance = torch.cdist(image, method.memory)
        patch = int(distance.amin(1).argmax())
        star = int(distance[patch].argmin())
        around = torch.cdist(method.memory[star : star + 1], method.memory)[0].topk(5, largest=False).indices
        weight = 1 - distance[patch, star].exp() / distance[patch, around].exp().sum()
        assert float(score) == pytest.approx(float(weight * distance[patch, star]), rel=1e-3)


def test_map_is_as_fine_as_the_first_layer_and_at_the_images_size(fitted: Callable[..., PatchCore]):
    method = fitted(PatchCore, textures(24, 0), **SMALL | {"pool": 3})
    with torch.no_grad():
        assert method._patches(textures(2, 1)).shape == (2, 8, 8, 40 + 112)
    scores = method.score(textures(2, 1))
    assert scores.map is not None
    assert scores.map.shape == (2, 64, 64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool": 2}, "pool must be odd and positive, got 2."),
        ({"memory": 0}, "memory must be at least 1, got 0."),
        ({"slack": 1.0}, "slack must be at least 0 and below 1, got 1.0."),
        ({"scale": 2.0}, "scale must be between 0 and 1, got 2.0."),
        ({"top": 1.5}, "top must be between 0 and 1, got 1.5."),
        ({"neighbours": 9}, "neighbours must be 0 unless top=0, since it reweights the maximum, got 9."),
        ({"projection": -1}, "projection must be at least 0, got -1."),
    ],
    ids=str,
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=f"^patchcore: {re.escape(message)}$"):
        PatchCoreSettings(**settings)
