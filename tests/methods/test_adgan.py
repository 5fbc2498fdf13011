"""Facts of ADGAN; what holds for every method is in test_contract.py."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from normalcy.errors import SettingsError
from normalcy.methods import adgan
from normalcy.methods.adgan import ADGAN, ADGANSettings
from normalcy.testing import smooth_textures

CONTRACT: dict[str, Any] = {"steps": 20, "batch_size": 8, "latent": 8, "width": 4, "restarts": 2, "search_steps": 3}
"""Settings that make the contract tests quick."""

SHAPE = (2, 12, 16)
SMALL: dict[str, Any] = {"latent": 6, "width": 4, "restarts": 3, "search_steps": 4, "count": 64, "steps": 20}


def _one_by_one(method: ADGAN, image: Tensor, code: Tensor) -> tuple[float, Tensor]:
    """The paper's loop for one image and one beginning, on a deep copy: the lowest error and its image."""
    s, generator = method.settings, copy.deepcopy(method.gan.generator)
    z = torch.nn.Parameter(code[None].clone())
    groups = [{"params": [z], "lr": s.search_lr}, {"params": list(generator.parameters()), "lr": s.tuning_lr}]
    optimiser = torch.optim.Adam(groups)
    passed = []
    for _ in range(s.search_steps + 1):
        generated = generator(z)[0]
        loss = (method.gan.range(image) - generated).square().mean()
        passed.append((loss.item(), generated.detach()))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return min(passed, key=lambda pair: pair[0])


@pytest.mark.parametrize("tuning_lr", [0.0, 5e-5, 5e-3])
def test_scores_are_those_of_one_copy_at_a_time(fitted: Callable[..., ADGAN], tuning_lr: float) -> None:
    method = fitted(ADGAN, SHAPE, **SMALL | {"tuning_lr": tuning_lr})
    x = smooth_textures(3, SHAPE, seed=1)
    scores = method.score(x)
    assert scores.restored is not None
    assert scores.map is not None
    assert scores.uncertainty is not None
    for i, image in enumerate(x):
        found = [_one_by_one(method, image, code) for code in method.gan.generator.prior(3, seed=0)]
        errors = torch.tensor([error for error, _ in found])
        images = method.gan.range.inverse(torch.stack([image for _, image in found]))
        torch.testing.assert_close(scores.image[i], errors.mean(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(scores.restored[i], images[errors.argmin()], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(scores.map[i], (image - images).square().mean((0, 1)), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(scores.uncertainty[i], images.std(0, correction=0).mean(0), rtol=1e-2, atol=1e-5)


def test_tuning_helps_the_restoration(fitted: Callable[..., ADGAN]) -> None:
    method = fitted(ADGAN, SHAPE, **SMALL | {"search_steps": 10})
    x = smooth_textures(4, SHAPE, seed=1)
    errors = []
    for tuning_lr in (0.0, 1e-3, 1e-2):
        method.settings = ADGANSettings(latent=6, width=4, restarts=3, search_steps=10, tuning_lr=tuning_lr)
        errors.append(float(method.score(x).image.mean()))
    assert errors[0] > errors[1] > errors[2]


def test_images_in_turn_when_copies_do_not_fit(fitted: Callable[..., ADGAN], monkeypatch: pytest.MonkeyPatch) -> None:
    method = fitted(ADGAN, SHAPE, **SMALL)
    x = smooth_textures(3, SHAPE, seed=1)
    together = method.score(x)
    monkeypatch.setattr(adgan, "COPIES_BYTES", 1)
    apart = method.score(x)
    torch.testing.assert_close(apart.image, together.image, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(apart.restored, together.restored, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"restarts": 0}, "adgan: restarts must be at least 1, got 0."),
        ({"search_lr": 0.0}, "adgan: search_lr must be greater than 0, got 0.0."),
        ({"tuning_lr": -1.0}, "adgan: tuning_lr must be at least 0, got -1.0."),
    ],
    ids=str,
)
def test_impossible_settings(words: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        ADGANSettings(**words)
