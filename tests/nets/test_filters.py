"""Filters against SciPy, and image scores against NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, minimum_filter, uniform_filter

from normalcy.errors import SettingsError
from normalcy.nets.filters import (
    bilateral,
    check_reduce,
    gaussian_smooth,
    map_quantile,
    mean_filter,
    min_filter,
    reduce_map,
)


def _maps(*shape: int) -> torch.Tensor:
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(9, 14), (6, 7, 8)], ids=str)
@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.3])
def test_gaussian_smooth_equals_scipy(shape: tuple[int, ...], sigma: float) -> None:
    maps = _maps(*shape)
    radius = math.ceil(4 * sigma)  # SciPy rounds it
    expected = [gaussian_filter(m.double().numpy(), sigma, mode="nearest", radius=radius) for m in maps]
    np.testing.assert_allclose(gaussian_smooth(maps, sigma).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_no_smoothing_returns_the_map_itself() -> None:
    maps = _maps(4, 4)
    assert gaussian_smooth(maps, 0.0) is maps


@pytest.mark.parametrize("shape", [(9, 11), (5, 9, 8)], ids=str)
def test_box_filters_equal_scipy(shape: tuple[int, ...]) -> None:
    maps = _maps(*shape)
    sides = (3, 5, 5)[-len(shape) :]
    least = [minimum_filter(m.numpy(), sides, mode="nearest") for m in maps]
    np.testing.assert_array_equal(min_filter(maps, sides).numpy(), least)
    inside = (slice(None), *(slice(2, -2) for _ in shape))  # at borders SciPy counts the replicated pixels
    mean = np.stack([uniform_filter(m.double().numpy(), sides) for m in maps])
    np.testing.assert_allclose(mean_filter(maps, sides).numpy()[inside], mean[inside], rtol=1e-5)
    torch.testing.assert_close(mean_filter(torch.ones(1, *shape), sides), torch.ones(1, *shape))


def test_bilateral_by_brute_force() -> None:
    maps = _maps(6, 7)
    found = bilateral(maps, 2, 1.5, 0.3)
    for i, j in ((3, 3), (2, 4)):  # the whole disc is inside
        total = weight = torch.zeros(2)
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                if dy * dy + dx * dx <= 4 and 0 <= i + dy < 6 and 0 <= j + dx < 7:
                    other = maps[:, i + dy, j + dx]
                    w = torch.exp(-(dy * dy + dx * dx) / (2 * 1.5**2) - (other - maps[:, i, j]) ** 2 / (2 * 0.3**2))
                    total, weight = total + w * other, weight + w
        torch.testing.assert_close(found[:, i, j], total / weight)
    constant = torch.full((1, 5, 5), 3.0)
    torch.testing.assert_close(bilateral(constant, 3, 1.0, 0.1), constant)


def test_bilateral_with_a_wide_value_is_a_gaussian_over_the_disc() -> None:
    maps = _maps(9, 9)
    dy, dx = np.mgrid[-4:5, -4:5]
    kernel = np.where(dy**2 + dx**2 <= 16, np.exp(-(dy**2 + dx**2) / 8), 0)
    expected = (maps[:, :9, :9].double().numpy() * kernel).sum((1, 2)) / kernel.sum()
    np.testing.assert_allclose(bilateral(maps, 4, 2.0, 1e6)[:, 4, 4].numpy(), expected, rtol=1e-5)


def test_bilateral_keeps_an_edge() -> None:
    step = torch.zeros(1, 8, 8)
    step[:, :, 4:] = 1
    torch.testing.assert_close(bilateral(step, 3, 2.0, 0.05), step, atol=1e-6, rtol=0)


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.5, 0.999, 1.0])
def test_map_quantile_is_a_pixel_of_the_map(quantile: float) -> None:
    maps = _maps(7, 9)
    flat = np.sort(maps.flatten(1).numpy(), axis=1)
    np.testing.assert_array_equal(map_quantile(maps, quantile).numpy(), flat[:, min(62, int(quantile * 63))])


def test_reduce_map() -> None:
    maps = _maps(3, 4, 5)
    torch.testing.assert_close(reduce_map(maps, "mean"), maps.mean((1, 2, 3)))
    assert torch.equal(reduce_map(maps, "max"), maps.amax((1, 2, 3)))
    assert torch.equal(reduce_map(maps, 0.9), map_quantile(maps, 0.9))


def test_top_is_the_mean_of_the_largest_hundredth() -> None:
    maps = torch.arange(400.0).view(1, 20, 20)
    assert reduce_map(maps, "top").tolist() == [(396 + 397 + 398 + 399) / 4]
    assert reduce_map(maps[:, :2, :2], "top").tolist() == [21.0], "one pixel at least"
    small, large = torch.rand(2, 32, 20), torch.rand(2, 33, 20)
    assert torch.equal(reduce_map(small, "auto"), reduce_map(small, "mean"))
    assert torch.equal(reduce_map(large, "auto"), reduce_map(large, "top"))


def test_a_small_anomaly_changes_the_top_but_not_the_mean() -> None:
    """Among normal maps of other noise levels, as in ``recipes/reduction.py``."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.rand(50, 64, 64, generator=generator) * (1 + 0.2 * torch.rand(50, 1, 1, generator=generator))
    anomalous = normal.clone()
    anomalous[:, 20:26, 30:36] += 1

    def rank(reduce: Any) -> float:
        return float((reduce_map(anomalous, reduce)[:, None] > reduce_map(normal, reduce)).float().mean())

    assert rank("top") > 0.99
    assert rank("mean") < 0.7


@pytest.mark.parametrize("reduce", [-0.1, 1.1, float("nan")])
def test_no_other_reductions(reduce: float) -> None:
    check_reduce("vae", 0.5)
    check_reduce("vae", "max")
    with pytest.raises(
        SettingsError, match=r'vae: reduce must be "auto", "mean", "top", "max" or a quantile between 0 and 1, got '
    ):
        check_reduce("vae", reduce)
