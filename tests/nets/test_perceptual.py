"""Perceptual features and distances: standardised channels, statistics from files, losses restated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from normalcy.errors import SettingsError
from normalcy.nets.contrastive import SelfTaught
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
