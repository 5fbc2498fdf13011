"""Facts of OC-CNN; what holds for every method is in test_contract.py."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import nn

from normalcy.errors import DataError, SettingsError
from normalcy.methods.oc_cnn import OCCNN, OCCNNSettings
from normalcy.testing import smooth_textures
from normalcy.training.fit import fit
from normalcy.training.settings import TrainSettings

CONTRACT: dict[str, Any] = {"steps": 30, "batch_size": 16, "hidden": 16, "lr": 0.003}
"""Settings that make the contract tests quick."""

SHAPE = (1, 32, 32)


def _method(**words: Any) -> OCCNN:
    torch.manual_seed(0)
    method = OCCNN(OCCNNSettings(**words), SHAPE)
    method.load_pretrained()
    return method


def test_features_are_normalised_for_each_image_and_layer() -> None:
    method = _method(layers=(3, 4))
    features = method.features(smooth_textures(4, SHAPE, seed=0))
    for layer in features.split(list(method.backbone.widths), dim=1):
        torch.testing.assert_close(layer.mean(1), torch.zeros(4), atol=1e-5, rtol=0)
        torch.testing.assert_close(layer.std(1, correction=0), torch.ones(4), atol=1e-2, rtol=0)


def test_cross_entropy_against_its_definition() -> None:
    """-1/(2K) sum of log p of the right class, over K features and K draws of noise of standard deviation sigma."""
    method = _method(sigma=0.5, hidden=8)
    features = torch.randn(6, sum(method.backbone.widths))
    torch.manual_seed(1)
    loss = method.cross_entropy(features)["loss"]
    torch.manual_seed(1)
    noise = 0.5 * torch.randn_like(features)
    with torch.no_grad():
        p = method.logit(torch.cat([features, noise])).sigmoid().tolist()
    expected = -sum(math.log(1 - q) for q in p[:6]) / 12 - sum(math.log(q) for q in p[6:]) / 12
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_noise_scores_higher_than_normal_images_and_the_backbone_stays() -> None:
    method = _method(lr=1e-3, layers=(4,), hidden=32)
    before = {name: value.clone() for name, value in method.backbone.state_dict().items()}
    fit(method, smooth_textures(32, SHAPE, seed=0), TrainSettings(steps=60, batch_size=16, device="cpu"))
    for name, value in method.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    with torch.no_grad():
        noise = method.logit(0.01 * torch.randn(50, 320))
    normal = method.score(smooth_textures(8, SHAPE, seed=1)).image
    assert noise.min() > 0 > normal.max()


def test_without_hidden_layer_it_is_logistic_regression() -> None:
    assert [type(part) for part in _method(hidden=0).classifier] == [nn.Linear]
    assert [type(part) for part in _method(hidden=4).classifier] == [nn.Linear, nn.ReLU, nn.Linear]


def test_two_channels_are_refused() -> None:
    with pytest.raises(DataError, match="expects images of 1 or 3 channels, got 2"):
        OCCNN(OCCNNSettings(), (2, 32, 32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": 0.0}, "sigma must be greater than 0, got 0.0."),
        ({"lr": 0.0}, "lr must be greater than 0, got 0.0."),
        ({"hidden": -1}, "hidden must be at least 0, got -1."),
    ],
    ids=str,
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=f"^oc_cnn: {re.escape(message)}$"):
        OCCNNSettings(**settings)
