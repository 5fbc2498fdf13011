"""Statistics over blocks, against NumPy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from normalcy.nets import statistics
from normalcy.nets.statistics import Mapped, gather, mean_and_std, principal_components


def images(count: int, *shape: int) -> Tensor:
    """Images on a few directions of falling variance, and some noise."""
    rng = torch.Generator().manual_seed(0)
    size = int(np.prod(shape))
    factors = torch.randn(count, 12, generator=rng) * torch.linspace(2, 0.5, 12)
    x = 3 + factors @ torch.randn(12, size, generator=rng) / size**0.5 + 0.02 * torch.randn(count, size, generator=rng)
    return x.view(count, *shape)


def test_mean_and_std_equal_numpy_in_64_bits_whatever_the_blocks() -> None:
    """Values far from 0 with a small spread: sums of squares in 32 bits would lose all of it."""
    x = 1e4 + 0.01 * torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    for size in (1, 7, 50):
        mean, std = mean_and_std(x.split(size))
        np.testing.assert_allclose(mean.numpy(), x.double().numpy().mean(0), rtol=1e-7)
        np.testing.assert_allclose(std.numpy(), x.double().numpy().std(0), rtol=1e-4)


@pytest.mark.parametrize("count", [20, 300])
def test_principal_components_are_orthonormal_and_ordered(count: int) -> None:
    x = images(count, 1, 8, 8).flatten(1)
    x = x - x.mean(0)
    basis, variances = principal_components(x.split(7), count, 10)
    reference = PCA(10, svd_solver="full").fit(x.numpy())
    torch.testing.assert_close(basis @ basis.T, torch.eye(10), atol=1e-4, rtol=0)
    np.testing.assert_allclose(variances, reference.explained_variance_, rtol=1e-3)


def test_images_beyond_the_largest_matrix_are_thinned_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "LARGEST_MATRIX", 50)
    x = images(200, 1, 8, 8).flatten(1)
    x = x - x.mean(0)
    basis, _ = principal_components(x.split(7), 200, 5)
    kept, _ = principal_components([x[::4]], 50, 5)
    torch.testing.assert_close(basis, kept)


def test_identical_vectors_have_no_components() -> None:
    assert principal_components([torch.zeros(5, 9)], 5, 0.95)[0].shape == (0, 9)


def test_gather_takes_rows_from_every_part() -> None:
    rows = torch.arange(23)
    assert gather(rows.split(4), 23, 5).tolist() == [0, 4, 9, 13, 18]
    assert gather(rows.split(4), 23, 99).tolist() == rows.tolist()


def test_mapped_blocks_can_be_read_again() -> None:
    blocks = Mapped([torch.ones(2)], lambda x: x + 1)
    assert [b.tolist() for b in blocks] == [b.tolist() for b in blocks] == [[2.0, 2.0]]
