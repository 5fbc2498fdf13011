"""Vectors for the classical estimators: PCA against scikit-learn on both routes, kernel sums against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from normalcy.errors import DataError, SettingsError
from normalcy.nets import features
from normalcy.nets.features import Features, FeatureSettings, Mapped, gather, log_kernel_sum, principal_components


class Blocks:
    """Images in blocks of 7."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.count = x, len(x)

    def __iter__(self):
        return iter(self.x.split(7))

    def __len__(self) -> int:
        return len(self.x.split(7))


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


@pytest.mark.parametrize("count", [20, 300])
def test_principal_components_are_orthonormal_and_ordered(count: int) -> None:
    x = images(count, 1, 8, 8).flatten(1)
    x = x - x.mean(0)
    basis, variances = principal_components(x.split(7), count, 10)
    reference = PCA(10, svd_solver="full").fit(x.numpy())
    torch.testing.assert_close(basis @ basis.T, torch.eye(10), atol=1e-4, rtol=0)
    np.testing.assert_allclose(variances, reference.explained_variance_, rtol=1e-3)


def test_images_beyond_the_largest_matrix_are_thinned_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "LARGEST_MATRIX", 50)
    x = images(200, 1, 8, 8).flatten(1)
    x = x - x.mean(0)
    basis, _ = principal_components(x.split(7), 200, 5)
    kept, _ = principal_components([x[::4]], 50, 5)
    torch.testing.assert_close(basis, kept)


def test_identical_vectors_have_no_components() -> None:
    assert principal_components([torch.zeros(5, 9)], 5, 0.95)[0].shape == (0, 9)


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


def test_gather_takes_rows_from_every_part() -> None:
    rows = torch.arange(23)
    assert gather(rows.split(4), 23, 5).tolist() == [0, 4, 9, 13, 18]
    assert gather(rows.split(4), 23, 99).tolist() == rows.tolist()


def test_mapped_blocks_can_be_read_again() -> None:
    blocks = Mapped([torch.ones(2)], lambda x: x + 1)
    assert [b.tolist() for b in blocks] == [b.tolist() for b in blocks] == [[2.0, 2.0]]


def test_kernel_sum_equals_brute_force_and_does_not_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    x, points = torch.randn(9, 4, generator=rng), torch.randn(50, 4, generator=rng)
    weights = torch.rand(50, generator=rng)
    squared = (x[:, None] - points).double().square().sum(2)
    expected = (weights * (-0.3 * squared).exp()).sum(1).log()
    torch.testing.assert_close(log_kernel_sum(x, points, 0.3, weights.log()).double(), expected, rtol=1e-5, atol=1e-5)
    far = log_kernel_sum(torch.tensor([[100.0] * 4, [101.0] * 4]), points, 0.3)
    assert far[0] > far[1] > -torch.inf


def test_refusals() -> None:
    with pytest.raises(SettingsError, match="variance"):
        FeatureSettings(variance=1.5)
    with pytest.raises(SettingsError, match="layers"):
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
