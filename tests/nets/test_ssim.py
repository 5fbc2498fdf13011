"""SSIM against scikit-image, and what makes it fit for a loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from normalcy.nets.ssim import RADIUS, ssim_map


def _pair(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(shape, generator=generator)
    return a, (a + 0.3 * torch.randn(shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("spatial", [(24, 31), (16, 17, 18)])
@pytest.mark.parametrize("data_range", [1.0, 2.5])
def test_agrees_with_scikit_image(spatial: tuple[int, ...], data_range: float) -> None:
    a, b = _pair((2, 3, *spatial))
    ours = ssim_map(a, b, data_range)
    assert ours.shape == (2, *spatial)
    inside = (slice(RADIUS, -RADIUS),) * len(spatial)
    for i in range(2):
        theirs = structural_similarity(
            a[i].double().numpy(),
            b[i].double().numpy(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=data_range,
            channel_axis=0,
            full=True,
        )[1].mean(0)
        np.testing.assert_allclose(ours[i][inside].numpy(), theirs[inside], atol=2e-5)


def test_border_is_continued_by_the_last_pixel() -> None:
    a, b = _pair((1, 1, 12, 14))
    padded = [torch.nn.functional.pad(t, [RADIUS] * 4, mode="replicate") for t in (a, b)]
    inner = ssim_map(*padded)[:, RADIUS:-RADIUS, RADIUS:-RADIUS]
    torch.testing.assert_close(ssim_map(a, b), inner, atol=1e-5, rtol=1e-5)


def test_equal_images_and_symmetry() -> None:
    a, b = _pair((2, 1, 16, 16))
    torch.testing.assert_close(ssim_map(a, a), torch.ones(2, 16, 16))
    torch.testing.assert_close(ssim_map(a, b), ssim_map(b, a))
    assert (ssim_map(a, b) < 1).all()


def test_gradient() -> None:
    a, b = _pair((1, 2, 13, 12))
    b.requires_grad_()
    direction = torch.randn(b.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(ssim_map(a, b).sum(), b)
    with torch.no_grad():
        step = 1e-2
        difference = (ssim_map(a, b + step * direction).sum() - ssim_map(a, b - step * direction).sum()) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(difference), rel=1e-2)


def test_autocast_does_not_reach_it() -> None:
    a, b = _pair((1, 1, 16, 16))
    expected = ssim_map(a, b), ssim_map(a.bfloat16().float(), b.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        inside = ssim_map(a, b), ssim_map(a.bfloat16(), b.bfloat16())
    assert inside[0].dtype == inside[1].dtype == torch.float32
    torch.testing.assert_close(inside, expected, atol=0, rtol=0)
