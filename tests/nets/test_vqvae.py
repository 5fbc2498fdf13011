"""Encoder and decoder of the VQ-VAEs: sizes, resolution, residual blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from normalcy.errors import DataError
from normalcy.nets.vqvae import GatedResidual, Normalise, Residual, code_grid, decoder, encoder


@pytest.mark.parametrize("spatial", [(16, 24), (8, 8, 16)], ids=str)
@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("gated", [False, True])
def test_sizes(spatial: tuple[int, ...], levels: int, gated: bool) -> None:
    dims, grid = len(spatial), code_grid("lsr", spatial, levels)
    assert grid == tuple(side // 2**levels for side in spatial)
    z = encoder(dims, 3, 8, levels, 1, 5, gated=gated)(torch.rand(2, 3, *spatial))
    assert z.shape == (2, 5, *grid)
    assert decoder(dims, 3, 8, levels, 1, 5, gated=gated)(z).shape == (2, 3, *spatial)


def test_a_code_depends_on_the_image_around_it_alone() -> None:
    """Two halvings, a 3x3 convolution and one residual block: a receptive field of 26 pixels around a cell of 4."""
    x = torch.rand(1, 1, 64, 64, requires_grad=True)
    z = encoder(2, 1, 8, 2, 1, 4)(x)
    (gradient,) = torch.autograd.grad(z[..., 8, 8].sum(), x)
    rows = gradient[0, 0].abs().sum(1).nonzero().flatten()
    first, last = 4 * 8 - 11, 4 * 8 + 3 + 11
    assert first <= int(rows.min()) <= 4 * 8
    assert 4 * 8 + 3 <= int(rows.max()) <= last


@pytest.mark.parametrize("dims", [2, 3])
def test_residual_blocks_restated(dims: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, *[5] * dims)
    plain, gated = Residual(dims, 4), GatedResidual(dims, 4)
    assert [type(m) for m in plain.layers[::2]] == [nn.ReLU, nn.ReLU]
    torch.testing.assert_close(plain(x), x + plain.layers(x))
    a, b = gated.layers(x)[:, :4], gated.layers(x)[:, 4:]
    torch.testing.assert_close(gated(x), x + a / (1 + (-b).exp()))


def test_normalised_vectors_have_mean_0_and_standard_deviation_1() -> None:
    z = encoder(2, 1, 8, 1, 1, 16, normalise=True)(torch.rand(3, 1, 8, 8))
    torch.testing.assert_close(z.mean(1), torch.zeros(3, 4, 4), atol=1e-5, rtol=0)
    x = 5 + 3 * torch.randn(2, 6, 4, 4)
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(Normalise()(x), expected)


def test_sides_that_do_not_halve_are_refused() -> None:
    with pytest.raises(DataError, match=r"lsr halves images 3 times: expected sides divisible by 8, got \(100, 96\)"):
        code_grid("lsr", (100, 96), 3)
    with pytest.raises(DataError, match="size=8"):
        code_grid("lsr", (4, 4), 3)
