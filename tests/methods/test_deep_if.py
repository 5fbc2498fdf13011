"""Facts of Deep IF; what holds for every method is in test_contract.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import IsolationForest
from torch.nn import functional as F

from normalcy.errors import SettingsError
from normalcy.methods.deep_if import DeepIF, DeepIFSettings
from normalcy.nets.backbones import Backbone
from normalcy.nets.forest import IsolationTrees
from normalcy.testing import smooth_textures, with_defect

CONTRACT: dict[str, Any] = {"trees": 30, "side": 64}
"""Settings that make the contract tests quick."""

SHAPE = (3, 32, 32)
SMALL: dict[str, Any] = {"trees": 30, "side": 64}


def test_features_are_the_channels_means_of_all_layers(fitted: Callable[..., DeepIF]) -> None:
    method = fitted(DeepIF, SHAPE, **SMALL)
    x = smooth_textures(3, SHAPE, seed=1)
    backbone = Backbone("efficientnet_lite0", (0, 1, 2, 3, 4, 5), 3)
    backbone.load_pretrained()
    with torch.no_grad():
        maps = backbone(F.interpolate(x, size=(64, 64), mode="bilinear"))
        expected = torch.cat([m.flatten(2).mean(2) for m in maps], 1)
        found = method.features(x)
    assert expected.shape == (3, 16 + 24 + 40 + 112 + 320 + 1280)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_trees_say_what_scikit_learn_says() -> None:
    torch.manual_seed(3)
    x = torch.randn(200, 6)
    trees = IsolationTrees(20, 64)
    trees.learn(x)
    torch.manual_seed(3)
    torch.randn(200, 6)
    seed = int(torch.randint(2**31 - 1, ()))
    forest = IsolationForest(n_estimators=20, max_samples=64, random_state=seed).fit(x.numpy())
    queries = torch.cat([x[:50], 5 * torch.randn(50, 6)])
    np.testing.assert_allclose(trees(queries).numpy(), -forest.score_samples(queries.numpy()), rtol=1e-5)


def test_small_images_are_enlarged_by_default() -> None:
    assert DeepIF(DeepIFSettings(), SHAPE).features.sides == [224, 224]
    assert DeepIF(DeepIFSettings(), (1, 64, 128)).features.sides == [112, 224]
    assert DeepIF(DeepIFSettings(), (1, 256, 200)).features.sides == [256, 200]


def test_one_layer_is_enough_for_a_plain_defect(fitted: Callable[..., DeepIF]) -> None:
    method = fitted(DeepIF, SHAPE, **SMALL | {"layers": (1,)})
    normal = method.score(smooth_textures(10, SHAPE, seed=1)).image
    anomalous = method.score(with_defect(smooth_textures(10, SHAPE, seed=2), seed=3)[0]).image
    assert (anomalous[:, None] > normal).float().mean() > 0.9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"trees": 0}, "deep_if: trees must be at least 1, got 0."),
        ({"images_per_tree": 1}, "deep_if: images_per_tree must be at least 2, got 1."),
        ({"side": 0}, "deep_if: side must be at least 1, got 0."),
    ],
    ids=str,
)
def test_impossible_settings(words: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        DeepIFSettings(**words)
