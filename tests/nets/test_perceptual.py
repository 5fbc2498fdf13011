"""Perceptual features and distances: standardised channels, statistics from files, losses restated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from normalcy.errors import SettingsError
from normalcy.nets.contrastive import SelfTaught
from normalcy.nets.natural import crops, photographs
from normalcy.nets.perceptual import PerceptualFeatures, relative_l1, relative_map


def _images(count: int = 6, channels: int = 1) -> torch.Tensor:
    return 2 * torch.rand(count, channels, 16, 16, generator=torch.Generator().manual_seed(0)) - 1


def test_measured_features_have_mean_0_and_standard_deviation_1_in_each_channel() -> None:
    """Channels that hardly vary are divided by a floor, a hundredth of the mean standard deviation."""
    torch.manual_seed(0)
    features, y = PerceptualFeatures("self", [2, 0], 1).eval(), _images()
    with torch.no_grad():
        raw = [m.std((0, 2, 3), correction=0) for m in features.maps(y)]
        floor = 0.01 * torch.cat(raw).mean() + 1e-6
        features.measure(y.split(4))
        for layer, std in zip((0, 2), raw):
            f = features(y, layer)
            assert f.shape == (6, len(std), 16 >> layer, 16 >> layer)
            torch.testing.assert_close(f.mean((0, 2, 3)), torch.zeros(len(std)), atol=1e-3, rtol=0)
            torch.testing.assert_close(f.std((0, 2, 3), correction=0), (std / floor).clamp(max=1), atol=1e-3, rtol=0)
            assert (std > floor).float().mean() > 0.8


def test_images_from_minus_1_to_1_reach_the_backbone_as_0_to_1_and_magnified() -> None:
    torch.manual_seed(0)
    features, y = PerceptualFeatures("self", [1], 1, magnify=2).eval(), _images(2)
    assert isinstance(features.backbone, SelfTaught)
    with torch.no_grad():
        expected = features.backbone(F.interpolate((y + 1) / 2, scale_factor=2, mode="bilinear"))[0]
        torch.testing.assert_close(features.maps(y)[0], expected)


def test_statistics_from_a_file(tmp_path: Path) -> None:
    features, path = PerceptualFeatures("self", [0], 1), tmp_path / "statistics.npz"
    mean, std = np.arange(32.0), np.arange(1.0, 33.0)
    np.savez(path, **{"0_mean": mean, "0_std": std})
    features.measure([], str(path))
    np.testing.assert_array_equal(features.mean.numpy(), mean)
    np.testing.assert_array_equal(features.std.numpy(), std)
    np.savez(path, **{"0_mean": mean[:5], "0_std": std[:5]})
    with pytest.raises(SettingsError, match=r"of 5 channels, expected 32"):
        features.measure([], str(path))
    with pytest.raises(SettingsError, match="<layer>_mean and <layer>_std"):
        features.measure([], str(tmp_path / "missing.npz"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [32, 64])
def test_shipped_statistics_are_those_of_natural_images(channels: int, side: int) -> None:
    """The file against the photographs at hand, which are 6 of the 26 images that it was made from."""
    shipped = PerceptualFeatures("efficientnet_lite0", [0, 2], channels, magnify=1).eval()
    shipped.backbone.load_pretrained()
    with torch.no_grad():
        shipped.measure([torch.zeros(2, channels, side, side)], "natural")
        mean, std = shipped.mean.clone(), shipped.std.clone()
        shipped.measure(crops(photographs(), side, channels), "training")
        photographed = ((mean - shipped.mean) / std).abs().mean()
        shipped.measure(_images(64, channels), "training")
        noise = ((mean - shipped.mean) / std).abs().mean()
    assert mean.shape == (16 + 40,)
    assert photographed < 0.3
    assert noise > 1.5 * photographed
    assert (std / shipped.std).log().abs().median() < 1


def test_other_backbones_measure_the_photographs() -> None:
    torch.manual_seed(0)
    features = PerceptualFeatures("resnet18", [0], 3).eval()
    features.backbone.has_weights.fill_(True)  # random ones
    with torch.no_grad():
        features.measure([torch.zeros(2, 3, 32, 32)], "natural")
        mean = features.mean.clone()
        features.measure(crops(photographs(), 32, 3), "training")
    torch.testing.assert_close(mean, features.mean)


def test_natural_statistics_go_by_the_size_that_the_backbone_sees() -> None:
    with torch.no_grad():
        means = []
        for side, magnify in ((32, 2), (64, 1), (75, 1), (32, 1)):
            features = PerceptualFeatures("efficientnet_lite0", [3], 3, magnify=magnify)
            features.measure([torch.zeros(2, 3, side, side)], "natural")
            means.append(features.mean)
    assert torch.equal(means[0], means[1])
    assert torch.equal(means[1], means[2])  # the nearest of 32, 64, 128 and 224
    assert not torch.allclose(means[0], means[3], atol=0.05)


def test_a_network_of_the_training_images_has_their_statistics() -> None:
    features, y = PerceptualFeatures("self", [0], 1).eval(), _images()
    with torch.no_grad():
        features.measure([y], "natural")
        natural = features.mean.clone()
        features.measure([y], "training")
    torch.testing.assert_close(natural, features.mean)


def test_crops_are_images_in_minus_1_to_1_of_every_photograph() -> None:
    images = torch.cat(crops(photographs(), 48, 1, count=24, seed=1))
    assert images.shape == (24, 1, 48, 48)
    assert images.min() >= -1.001
    assert images.max() <= 1.001
    assert len({round(float(image.std()), 5) for image in images}) == 24
    assert len(photographs()) == 6
    assert torch.equal(images, torch.cat(crops(photographs(), 48, 1, count=24, seed=1)))
    colour = torch.cat(crops(photographs(), 48, 3, count=24, seed=1))
    red, green, blue = colour.unbind(1)
    torch.testing.assert_close(images[:, 0], 0.299 * red + 0.587 * green + 0.114 * blue)


def test_relative_l1_restated_and_without_gradient_through_the_divisor() -> None:
    """Equation 1 of DPA."""
    a, b = torch.randn(3, 4, 5, 5, requires_grad=True), torch.randn(3, 4, 5, 5)
    loss = relative_l1(a, b)
    expected = torch.stack([(x - y).abs().sum() / x.abs().sum() for x, y in zip(a, b)])
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss.sum(), a)
    torch.testing.assert_close(gradient, (a - b).sign() / a.detach().abs().sum((1, 2, 3), keepdim=True))


def test_the_mean_of_the_relative_map_is_the_relative_l1() -> None:
    a, b = torch.randn(2, 6, 8, 8), torch.randn(2, 6, 8, 8)
    torch.testing.assert_close(relative_map(a, b, (8, 8)).mean((1, 2)), relative_l1(a, b))
    assert relative_map(a, b, (20, 30)).shape == (2, 20, 30)
