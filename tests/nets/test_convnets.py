"""Encoders and decoders: sizes, ranges of use, scale of activations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from normalcy.errors import DataError, SettingsError
from normalcy.nets.convnets import ConvNet, choose

SHAPES = [
    (1, 8, 8),
    (3, 9, 11),
    (1, 28, 28),
    (2, 33, 17),
    (5, 40, 8),
    (3, 65, 98),
    (1, 8, 9, 10),
    (2, 33, 12, 40),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["lenet", "dcgan"])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_output_has_exactly_the_size_of_the_input(shape: tuple[int, ...], kind: str, norm: str) -> None:
    net = choose(kind, shape, 8, norm)  # type: ignore[arg-type]
    encoder, decoder = net.encoder(shape, 5), net.decoder(shape, 5)
    code = encoder(torch.rand(2, *shape))
    assert code.shape == (2, 5)
    assert decoder(code).shape == (2, *shape)


@pytest.mark.parametrize("kind", ["lenet", "dcgan"])
@pytest.mark.parametrize("shape", [(1, 29, 37), (1, 9, 13, 10)], ids=str)
def test_every_pixel_is_seen_and_drawn(kind: str, shape: tuple[int, ...]) -> None:
    """Odd sides lose no row: each input pixel moves the code, each output pixel depends on the code."""
    torch.manual_seed(0)  # slope 1: linear, so that no unit is dead
    net = replace(choose(kind, shape, 8, "none"), slope=1.0)  # type: ignore[arg-type]
    encoder = nn.Sequential(*[_without_pooling(m) for m in net.encoder(shape, 4)])
    x = torch.rand(1, *shape, requires_grad=True)
    (seen,) = torch.autograd.grad(encoder(x).sum(), x)
    assert (seen != 0).all()
    drawn = net.decoder(shape, 4)
    assert (drawn(torch.ones(1, 4)) != drawn(torch.zeros(1, 4))).all()


def _without_pooling(module: nn.Module) -> nn.Module:
    """Max-pooling passes the gradient of one pixel in four; means pass all."""
    if not isinstance(module, nn.Sequential):
        return module
    means = {nn.MaxPool2d: nn.AvgPool2d, nn.MaxPool3d: nn.AvgPool3d}
    return nn.Sequential(*[means[type(m)](2, ceil_mode=True) if type(m) in means else m for m in module])


def test_auto_goes_by_the_longest_side() -> None:
    assert choose("auto", (1, 20, 32)).kind == "lenet"
    assert choose("auto", (1, 20, 33)).kind == "dcgan"
    net = choose("auto", (3, 128, 128))
    assert net.channels == (32, 32, 64, 128)  # Bergmann et al. 2019
    assert net.grids((128, 128))[-1] == (8, 8)


def test_without_biases_and_affine_norms_zero_stays_zero() -> None:
    """Deep SVDD forbids both, for with them a constant network is a trivial optimum."""
    net = ConvNet("lenet", (8, 4), bias=False, affine=False)
    encoder = net.encoder((1, 28, 28), 32).eval()
    assert not encoder(torch.zeros(1, 1, 28, 28)).any()
    assert [p.shape for p in encoder.parameters()] == [(8, 1, 5, 5), (4, 8, 5, 5), (32, 4 * 7 * 7)]


@pytest.mark.parametrize(
    ("kind", "shape"), [("lenet", (3, 32, 32)), ("dcgan", (1, 128, 128)), ("dcgan", (1, 32, 32, 32))]
)
def test_initial_weights_keep_the_scale(kind: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = choose(kind, shape, 32, "none")  # type: ignore[arg-type]
    with torch.no_grad():
        code = net.encoder(shape, 64)(torch.randn(4, *shape))
        image = net.decoder(shape, 64)(torch.randn(4, 64))
    assert 0.3 < code.std() < 6  # max-pooling raises it
    assert 0.03 < image.std() < 0.3  # a tenth: the decoder begins near 0


def test_refusals() -> None:
    with pytest.raises(DataError, match="at least 8 pixels"):
        choose("auto", (1, 7, 28))
    with pytest.raises(DataError, match="2D or 3D"):
        ConvNet("lenet", (8, 4)).encoder((1, 28), 3)
    with pytest.raises(SettingsError, match="width"):
        choose("auto", (1, 28, 28), 1)
