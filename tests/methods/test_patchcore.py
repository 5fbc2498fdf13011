"""Facts of PatchCore; what holds for every method is in test_contract.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from normalcy.config import fields_of
from normalcy.engines.cached import graph_of
from normalcy.engines.method import graph_method
from normalcy.engines.probe import largest_differences
from normalcy.errors import SettingsError
from normalcy.methods.patchcore import PRESETS, PatchCore, PatchCoreSettings

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
        ({"coreset": 0.0}, "coreset must be above 0, at most 1, got 0.0."),
        (
            {"preset": "wide_resnet50", "top": 0.1, "neighbours": 9},
            "neighbours must be 0 unless top=0, since it reweights the maximum, got 9.",
        ),
    ],
    ids=str,
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=f"^patchcore: {re.escape(message)}$"):
        PatchCoreSettings(**settings)


PAPER: dict[str, Any] = {"preset": "wide_resnet50", "backbone": "efficientnet_lite0", "layers": (2, 3)}
"""The preset with the layers of the network whose weights are at hand."""


def authors_features(maps: list[Tensor], dimension: int) -> Tensor:
    """(B h w, dimension) by the steps of the authors' code: patches, resizing of each of their values, two adaptive poolings."""
    patches = []
    for layer in maps:
        unfolded = F.unfold(layer, 3, padding=1).unflatten(1, (-1, 9)).unflatten(3, layer.shape[2:])  # (B, C, 9, h, w)
        larger = F.interpolate(unfolded.flatten(1, 2), size=maps[0].shape[2:], mode="bilinear")
        values = larger.permute(0, 2, 3, 1).flatten(0, 2)  # (B h w, C 9)
        patches.append(F.adaptive_avg_pool1d(values[:, None], dimension)[:, 0])
    return F.adaptive_avg_pool1d(torch.stack(patches, 1).flatten(1)[:, None], dimension)[:, 0]


@pytest.mark.parametrize("dimension", [64, 100, 1024])
def test_preset_averages_features_as_the_authors_do(fitted: Callable[..., PatchCore], dimension: int):
    method = fitted(PatchCore, textures(4, 0), **PAPER | {"dimension": dimension, "coreset": 0.05})
    x = textures(2, 1)
    with torch.no_grad():
        ours, maps = method._patches(x), method.backbone(x)
    assert ours.shape == (2, 8, 8, dimension)
    torch.testing.assert_close(ours.flatten(0, 2), authors_features(maps, dimension), rtol=1e-4, atol=1e-4)


def test_preset_is_the_papers(fitted: Callable[..., PatchCore]):
    """A tenth of all patches, chosen in 128 dimensions and searched in all; the maximum, reweighted by equation 7."""
    images = textures(24, 0)
    method = fitted(PatchCore, images, **PAPER | {"dimension": 200})
    assert method.memory.shape == (24 * 64 // 10, 200)
    with torch.no_grad():
        features = method._patches(images).flatten(0, 2)
        queries = method._patches(textures(3, 1)).flatten(1, 2)
    centre = features.mean(0)
    kept = torch.cdist(method.memory + centre, features, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    assert kept.max() < 1e-3 * features.std()  # patches as they are, not projected
    scores = method.score(textures(3, 1))
    for score, image in zip(scores.image, queries):
        distance = torch.cdist(image - centre, method.memory)
        patch = int(distance.amin(1).argmax())
        around = torch.cdist(method.memory[[int(distance[patch].argmin())]], method.memory)[0]
        nearby = distance[patch, around.topk(9, largest=False).indices]
        nearest = distance[patch].min()
        assert float(score) == pytest.approx(float(nearest * (1 - torch.exp(nearest - nearby.logsumexp(0)))), rel=1e-2)
    fewer = fitted(PatchCore, images, **PAPER | {"dimension": 200, "coreset": 0.01, "top": 0.5})
    assert len(fewer.memory) == 15
    assert fewer.settings.value("neighbours") == 0


def test_preset_names_the_papers_network():
    settings = PatchCoreSettings(preset="wide_resnet50")
    method = PatchCore(settings, (3, 64, 64))
    backbone = method.backbone
    assert backbone.name == "wide_resnet50_2.tv_in1k"
    assert backbone.names == ("2", "3")
    assert [stage["module"] for stage in backbone.network.feature_info][2:4] == ["layer2", "layer3"]
    assert (backbone.widths, backbone.reductions) == ((512, 1024), (8, 16))
    values = {name: settings.value(name) for name in ("dimension", "pool", "coreset", "coreset_projection", "top")}
    assert values == {"dimension": 1024, "pool": 3, "coreset": 0.1, "coreset_projection": 128, "top": 0.0}


def test_weights_in_torchvisions_names_are_read(tmp_path: Path):
    network = timm.create_model(
        "wide_resnet50_2", num_classes=1000
    )  # timm names the tensors of a ResNet as torchvision does
    assert {"conv1.weight", "layer3.0.downsample.1.running_var", "fc.bias"} <= set(network.state_dict())
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    settings = PatchCoreSettings(preset="wide_resnet50", backbone=f"wide_resnet50_2:{tmp_path / 'weights.pth'}")
    method = PatchCore(settings, (3, 64, 64))
    method.load_pretrained()
    own = network.state_dict()["layer2.0.conv1.weight"]
    assert torch.equal(method.backbone.network.state_dict()["layer2.0.conv1.weight"], own)


def test_preset_is_exported(fitted: Callable[..., PatchCore]):
    method = fitted(PatchCore, textures(8, 0), **PAPER | {"dimension": 100})
    twin = graph_method(PatchCore, method.settings, SHAPE, graph_of(method, "onnxruntime"))
    for part, difference in largest_differences(method.score(textures(3, 1)), twin.score(textures(3, 1))).items():
        assert difference["relative"] < 1e-4, part


def test_each_setting_of_a_preset_can_be_none_or_given():
    names = {name for name, f in fields_of(PatchCoreSettings).items() if f.default is None}
    assert all(set(values) == names for values in PRESETS.values())
    assert PatchCoreSettings(pool=5).value("pool") == 5
    assert PatchCoreSettings().value("scale") == pytest.approx(1 / 3)
