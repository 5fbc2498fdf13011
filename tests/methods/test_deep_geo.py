"""Facts of Deep GEO; what holds for every method is in test_contract.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import digamma
from torch import nn
from torch.nn import functional as F

from normalcy.errors import DataError, SettingsError
from normalcy.methods.deep_geo import TRANSFORMS, DeepGEO, DeepGEOSettings, fit_dirichlet, inverse_digamma
from normalcy.testing import smooth_textures

CONTRACT: dict[str, Any] = {"steps": 100, "batch_size": 48, "widen": 1, "lr": 0.003}
"""Settings that make the contract tests quick. Textures have hardly an orientation, so whether a planted defect is found depends
on the seed: it is with the default one."""

SHAPE = (2, 12, 12)
SMALL: dict[str, Any] = {"widen": 1, "count": 24, "steps": 3}


def test_72_transforms_all_different_the_first_changes_nothing() -> None:
    method = DeepGEO(DeepGEOSettings(widen=1), SHAPE)
    x = torch.rand(1, *SHAPE)
    every = method.transformed(x.expand(72, -1, -1, -1), torch.arange(72))
    assert torch.equal(every[:1], x)
    assert torch.cdist(every.flatten(1), every.flatten(1)).fill_diagonal_(1.0).min() > 0.1


@pytest.mark.parametrize("k", [1, 5, 13, 40, 71])
def test_transforms_are_flip_shift_turn(k: int) -> None:
    method = DeepGEO(DeepGEOSettings(widen=1), SHAPE)
    x = torch.rand(1, *SHAPE)
    mirrored, right, down, turns = TRANSFORMS[k]
    expected = x.flip(-1) if mirrored else x
    padded = np.pad(
        expected.numpy(), [(0, 0), (0, 0), (3, 3), (3, 3)], mode="symmetric"
    )  # as Keras and scipy mean "reflect"
    moved = np.roll(padded, (3 * down, 3 * right), (2, 3))[:, :, 3:-3, 3:-3]
    turned = np.rot90(moved, turns, (2, 3))
    np.testing.assert_array_equal(method.transformed(x, torch.tensor([k])).numpy(), turned)


def test_dirichlet_is_the_maximum_likelihood() -> None:
    rng = np.random.default_rng(0)
    alphas = np.array([[2.0, 5.0, 1.0], [0.3, 0.4, 9.0]])
    mean_log = np.stack([np.log(rng.dirichlet(a, 20_000)).mean(0) for a in alphas])
    found = fit_dirichlet(torch.from_numpy(mean_log)).numpy()
    np.testing.assert_allclose(found, alphas, rtol=0.1)
    gradient = digamma(found.sum(1, keepdims=True)) - digamma(found) + mean_log  # of the mean log likelihood
    np.testing.assert_allclose(gradient, 0, atol=1e-4)


def test_inverse_digamma() -> None:
    x = torch.tensor([1e-3, 0.1, 1.0, 7.0, 1e4], dtype=torch.float64)
    torch.testing.assert_close(inverse_digamma(torch.digamma(x)), x)


def test_score_is_the_normality_of_the_paper_restated(fitted: Callable[..., DeepGEO]) -> None:
    method = fitted(DeepGEO, SHAPE, **SMALL)
    x = smooth_textures(2, SHAPE, seed=1)
    scores = method.score(x).image
    method.eval()
    for image, score in zip(x, scores):
        total = 0.0
        for k in range(72):
            with torch.no_grad():
                moved = method.transformed(method.range(image[None]), torch.tensor([k]))
                answer = F.softmax(method.classifier(moved), 1)[0].double()
            total += float(((method.alpha[k].double() - 1) * answer.log()).sum())
        assert float(score) == pytest.approx(-total / 72, rel=1e-3)


def test_wide_resnet_10_4() -> None:
    method = DeepGEO(DeepGEOSettings(), (3, 32, 32))
    convolutions = [m for m in method.classifier.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert [m.out_channels for m in convolutions] == [16, 64, 64, 128, 128, 256, 256]
    assert method.stages()[0].epochs == 216
    assert method.stages()[0].objectives[0].weight_decay == 2 * 2.5e-4  # the gradient of the authors' l2(2.5e-4)


def test_classifier_sees_minus_1_to_1(fitted: Callable[..., DeepGEO]) -> None:
    """So that the zeros around an image are its middle grey; brightness and contrast of all images change nothing."""
    x = smooth_textures(24, SHAPE, seed=0)
    plain = fitted(DeepGEO, x, **SMALL | {"count": 24}).score(x[:4]).image
    scaled = fitted(DeepGEO, 3 * x + 5, **SMALL | {"count": 24}).score(3 * x[:4] + 5).image
    torch.testing.assert_close(plain, scaled, rtol=1e-2, atol=1e-2)


def test_oblong_images_are_refused() -> None:
    with pytest.raises(DataError, match="squares"):
        DeepGEO(DeepGEOSettings(), (1, 32, 48))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"widen": 0}, "deep_geo: widen must be at least 1, got 0."),
        ({"weight_decay": -1.0}, "deep_geo: weight_decay must be at least 0, got -1.0."),
        ({"lr": 0.0}, "deep_geo: lr must be greater than 0, got 0.0."),
        ({"epochs_of_all": 0.0}, "deep_geo: epochs_of_all must be greater than 0, got 0.0."),
    ],
    ids=str,
)
def test_impossible_settings(words: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        DeepGEOSettings(**words)
