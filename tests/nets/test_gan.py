from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from normalcy.errors import DataError
from normalcy.nets.gan import DCGAN, Encoder, Generator, discriminator_loss, generator_loss

SHAPES = [(1, 8, 8), (3, 28, 28), (2, 9, 31), (1, 64, 40)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_shapes_and_range(shape: tuple[int, ...], norm: str) -> None:
    torch.manual_seed(0)
    generator = Generator(shape, 5, 4, norm)  # type: ignore[arg-type]
    image = generator(30 * torch.randn(3, 5))
    assert image.shape == (3, *shape)
    assert image.abs().max() <= 1
    encoder = Encoder(shape, 7, 4, norm)  # type: ignore[arg-type]
    features = encoder.features(image)
    assert features.ndim == 2
    assert len(features) == 3
    torch.testing.assert_close(encoder.head(features), encoder(image))
    assert encoder(image).shape == (3, 7)


@pytest.mark.parametrize("shape", [(1, 16, 20), (3, 32, 32)], ids=str)
def test_an_image_and_its_gradient_do_not_depend_on_the_others(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    generator = Generator(shape, 100, 8).eval()
    codes, cotangent = torch.rand(40, 100), torch.randn(40, *shape)

    def image_and_gradient(count: int) -> tuple[Tensor, Tensor]:
        z = codes[:count].clone().requires_grad_()
        image = generator.alike(z)
        return image.detach(), torch.autograd.grad(image, z, cotangent[:count])[0]

    image, gradient = image_and_gradient(40)
    with torch.no_grad():
        torch.testing.assert_close(generator(codes), image)
    for count in (1, 2, 7, 17, 33):
        part = image_and_gradient(count)
        torch.testing.assert_close(part[0], image[:count], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(part[1], gradient[:count], rtol=1e-5, atol=1e-6)


def test_networks_end_at_a_small_grid() -> None:
    for side, grid in ((8, 4), (28, 7), (32, 4), (64, 4), (100, 6)):
        last = Encoder((1, side, side), 1, 2).trunk[:-1](torch.zeros(2, 1, side, side))
        assert last.shape[2:] == (grid, grid)


def test_too_small() -> None:
    with pytest.raises(DataError, match="8 pixels"):
        Generator((1, 7, 30), 5, 4)


def test_losses_are_cross_entropies() -> None:
    torch.manual_seed(0)
    discriminator = Encoder((1, 8, 8), 1, 4).eval()
    real, fake = torch.rand(5, 1, 8, 8), torch.rand(5, 1, 8, 8)
    ones = torch.ones(5, 1)
    p_real, p_fake = torch.sigmoid(discriminator(real)), torch.sigmoid(discriminator(fake))
    expected = F.binary_cross_entropy(p_real, ones) + F.binary_cross_entropy(p_fake, 0 * ones)
    torch.testing.assert_close(discriminator_loss(discriminator, real, fake), expected)
    torch.testing.assert_close(generator_loss(discriminator, fake), F.binary_cross_entropy(p_fake, ones))


def test_each_loss_moves_its_own_network() -> None:
    torch.manual_seed(0)
    gan = DCGAN((1, 16, 16), 4, 4)
    gan.discriminator_loss(torch.rand(6, 1, 16, 16))["loss"].backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in gan.generator.parameters())
    assert all(p.grad is not None for p in gan.discriminator.parameters())
    before = generator_loss(gan.discriminator, gan.generator(gan.generator.prior(6, seed=1)))
    gradients = torch.autograd.grad(before, list(gan.generator.parameters()))
    with torch.no_grad():
        for p, g in zip(gan.generator.parameters(), gradients):
            p.sub_(0.1 * g)
        assert generator_loss(gan.discriminator, gan.generator(gan.generator.prior(6, seed=1))) < before


def test_a_dcgan_begins_with_the_weights_of_radford() -> None:
    torch.manual_seed(0)
    gan = DCGAN((1, 16, 16), 50, 8)
    weights = [p for p in gan.parameters() if p.ndim > 1]
    assert len(weights) == 6
    for weight in weights:
        assert abs(float(weight.detach().std()) - 0.02) < 0.02 * 3 / (2 * weight.numel()) ** 0.5
    assert all(bool((p == 0).all() or (p == 1).all()) for p in gan.parameters() if p.ndim == 1)


def test_seeded_codes_leave_the_global_state() -> None:
    generator = Generator((1, 8, 8), 50, 2)
    state = torch.get_rng_state()
    codes = generator.prior(40, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(codes, generator.prior(40, seed=0))
    assert codes.shape == (40, 50)
    assert codes.min() < -0.9 < 0.9 < codes.max()
    assert codes.abs().max() <= 1
    assert not torch.equal(generator.prior(2), generator.prior(2))
