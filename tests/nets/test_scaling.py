"""Scaling by what was measured on images, and back."""

from __future__ import annotations

import pytest
import torch

from normalcy.nets.scaling import Range, Standardise


def test_standardise_and_its_inverse() -> None:
    x = 5 + 3 * torch.rand(1, 2, 6, 7) + 0.5 * torch.randn(40, 2, 6, 7)
    standardise = Standardise(x.shape[1:])
    standardise.measure(x.split(7))
    torch.testing.assert_close(standardise.mean, x.mean(0))
    torch.testing.assert_close(standardise.scale, (x - x.mean(0)).square().mean().sqrt())
    y = standardise(x)
    assert y.mean().abs() < 1e-5
    assert float(y.std()) == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(standardise.inverse(y), x)
    standardise.measure([torch.ones(4, 2, 6, 7)])
    assert standardise(x).isfinite().all()


def test_range_of_the_training_images() -> None:
    images = torch.rand(20, 2, 8, 9) * 5 - 3
    values = Range()
    values.measure(images.split(7))
    mapped = values(images)
    assert mapped.min().item() == pytest.approx(-1)
    assert mapped.max().item() == pytest.approx(1)
    torch.testing.assert_close(values.inverse(mapped), images)
    assert values(images.max() + 1) > 1, "what training images did not have lies outside"


@pytest.mark.parametrize("value", [0.5, 40_000.0, -3e5])
def test_range_of_images_all_alike(value: float) -> None:
    values = Range()
    values.measure([torch.full((2, 1, 8, 8), value)])
    x = torch.tensor([value, 1.001 * value])
    assert values(x).isfinite().all()
    torch.testing.assert_close(values.inverse(values(x)), x)
