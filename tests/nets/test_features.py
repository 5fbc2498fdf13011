"""Feature vectors for the classical estimators, against scikit-learn's PCA."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from normalcy.errors import DataError, SettingsError
from normalcy.nets.features import Features, FeatureSettings


class Blocks:
    """Images in blocks of 7."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.count = x, len(x)

    def __iter__(self):
        return iter(self.x.split(7))

    def __len__(self) -> int:
        return len(self.x.split(7))

    def map(self, function):
        return map(function, self)


def images(count: int, *shape: int) -> Tensor:
    """Images on a few directions of falling variance, and some noise."""
    rng = torch.Generator().manual_seed(0)
    size = int(np.prod(shape))
    factors = torch.randn(count, 12, generator=rng) * torch.linspace(2, 0.5, 12)
    x = 3 + factors @ torch.randn(12, size, generator=rng) / size**0.5 + 0.02 * torch.randn(count, size, generator=rng)
    return x.view(count, *shape)


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 8, 8), (1, 4, 4, 4)])
@pytest.mark.parametrize("count", [20, 300])  # by scalar products, by covariance
def test_pixels_equal_scikit_learn_pca(count: int, shape: tuple[int, ...]) -> None:
    x = images(count, *shape)
    front = Features(FeatureSettings(variance=0.95), shape)
    z = front.learn(Blocks(x))
    reference = PCA(0.95, svd_solver="full").fit(x.flatten(1).numpy())
    expected = reference.transform(x.flatten(1).numpy())
    assert z.shape == expected.shape
    signs = np.sign((z.numpy() * expected).sum(0))
    np.testing.assert_allclose(z.numpy() * signs, expected, atol=2e-3)
    torch.testing.assert_close(front(x), z)


def test_without_pca_pixels_are_only_centred() -> None:
    x = images(30, 2, 4, 4)
    z = Features(FeatureSettings(variance=None), (2, 4, 4)).learn(Blocks(x))
    torch.testing.assert_close(z, (x - x.mean(0)).flatten(1), atol=1e-5, rtol=0)


def test_learned_features_go_through_a_state_dict() -> None:
    x = images(30, 1, 4, 4)
    front, empty = (Features(FeatureSettings(), (1, 4, 4)) for _ in range(2))
    front.learn(Blocks(x))
    empty.basis = torch.empty_like(front.basis)
    empty.load_state_dict(front.state_dict())
    assert torch.equal(front(x), empty(x))


def test_only_as_many_features_come_back_as_asked_for() -> None:
    x = images(30, 1, 4, 4)
    front = Features(FeatureSettings(), (1, 4, 4))
    some = front.learn(Blocks(x), most=10)
    torch.testing.assert_close(some, front(x[::3]))


def test_refusals() -> None:
    with pytest.raises(SettingsError, match=r"^features: variance must be between 0 and 1, both excluded, got 1\.5\.$"):
        FeatureSettings(variance=1.5)
    with pytest.raises(
        SettingsError, match=r"^features: layers must be at least one layer of the backbone, got \(\)\.$"
    ):
        FeatureSettings(layers=())
    with pytest.raises(DataError, match="all equal"):
        Features(FeatureSettings(), (1, 4, 4)).learn(Blocks(torch.ones(5, 1, 4, 4)))
    with pytest.raises(DataError, match="2D"):
        Features(FeatureSettings(features="backbone"), (1, 4, 4, 4))


@pytest.mark.parametrize("channels", [1, 3])
def test_backbone_features_are_channel_means_on_one_scale(channels: int) -> None:
    x = torch.rand(12, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    front = Features(FeatureSettings(features="backbone", layers=(1, 2), variance=None), (channels, 32, 32))
    front.backbone.load_pretrained()
    z = front.learn(Blocks(x))
    maps = front.backbone(x)
    expected = torch.cat([m.mean((2, 3)) for m in maps], 1)
    expected = (expected - expected.mean(0)) / expected.std(0, correction=0)
    torch.testing.assert_close(z, expected, atol=1e-3, rtol=1e-3)
    reduced = Features(FeatureSettings(features="backbone", layers=(1, 2)), (channels, 32, 32))
    reduced.backbone.load_pretrained()
    assert reduced.learn(Blocks(x)).shape[1] < z.shape[1]
