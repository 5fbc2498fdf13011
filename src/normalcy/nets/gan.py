"""Generators, discriminators and the DCGAN (Radford et al. 2016), for 2D images of any channels and sides of at least 8 pixels.

The networks are the ``dcgan`` type of :mod:`normalcy.nets.convnets`: 4x4 convolutions of stride 2, widths that double with
each halving, down to a grid of 4 to 7 pixels; no norm next to the image. Images are in [-1, 1].

Differences to Radford et al.: the code enters through a linear layer (equal to their transposed convolution from one pixel,
for any grid). Their initial weights, of standard deviation 0.02 whatever the width, are used in :class:`DCGAN` alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.method import Objective, Stage
from normalcy.nets.convnets import ConvNet, Norm
from normalcy.nets.scaling import Range

TILE = 16
"""Rows of a matrix product in :meth:`Generator.alike`."""
INITIAL_STD = 0.02
"""Standard deviation of the initial weights in :class:`DCGAN`."""


class Generator(nn.Module):
    """(B, latent) -> (B, C, H, W) in [-1, 1], float32; ``linear``: without tanh, unbounded."""

    def __init__(
        self, shape: Sequence[int], latent: int, width: int, norm: Norm = "batch", linear: bool = False
    ) -> None:
        super().__init__()
        self.latent, self.linear = latent, linear
        layers = ConvNet("dcgan", _widths(shape, width), norm, slope=0.0).decoder(shape, latent)
        self.entry, self.rest = layers[0], layers[1:]

    def forward(self, z: Tensor) -> Tensor:
        image: Tensor = self.rest(self.entry(z)).float()
        return image if self.linear else torch.tanh(image)

    def alike(self, z: Tensor) -> Tensor:
        """As ``forward`` (in evaluation mode), but bitwise independent of the number of images in the batch.

        A long search makes differences in the last bit grow to percents. Of the layers here only matrix products sum in an
        order that depends on the number of rows, so they get ``TILE`` rows at a time, the last ones padded. This holds on the
        CPU; libraries on GPUs may choose other convolutions for other batches.
        """
        tiles = F.pad(z, (0, 0, 0, -len(z) % TILE)).split(TILE)  # type: ignore[no-untyped-call]
        return torch.tanh(self.rest(torch.cat([self.entry(tile) for tile in tiles])[: len(z)]).float())

    def prior(self, count: int, seed: int | None = None) -> Tensor:
        """Codes (count, latent), uniform in [-1, 1]; with a seed always the same, and the global generator is left alone."""
        device = next(self.parameters()).device
        if seed is None:
            return 2 * torch.rand(count, self.latent, device=device) - 1
        return (2 * torch.rand(count, self.latent, generator=torch.Generator().manual_seed(seed)) - 1).to(device)


class Encoder(nn.Module):
    """(B, C, H, W) in [-1, 1] -> (B, outputs), float32; a discriminator with one output, whose features f(x) are ``features``."""

    def __init__(self, shape: Sequence[int], outputs: int, width: int, norm: Norm = "batch") -> None:
        super().__init__()
        layers = ConvNet("dcgan", _widths(shape, width), norm, slope=0.2).encoder(shape, outputs)
        self.trunk, self.head = layers[:-1], layers[-1]

    def features(self, x: Tensor) -> Tensor:
        """The last convolutional layer, flattened: (B, n), float32."""
        features: Tensor = self.trunk(x)
        return features.float()

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.trunk(x))
        return outputs.float()


def discriminator_loss(discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """-log D(real) - log(1 - D(fake)), mean over the batch, in nats (Goodfellow et al. 2014); D is the sigmoid of the logits."""
    return F.softplus(-discriminator(real).float()).mean() + F.softplus(discriminator(fake).float()).mean()


def generator_loss(discriminator: Callable[[Tensor], Tensor], fake: Tensor) -> Tensor:
    """-log D(fake), mean over the batch, in nats: the non-saturating loss (Goodfellow et al. 2014)."""
    return F.softplus(-discriminator(fake).float()).mean()


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """(|grad D| - 1)^2 at a random point between each pair (B, ...), mean over the batch (Gulrajani et al. 2017)."""
    fraction = torch.rand(len(real), *[1] * (real.ndim - 1), device=real.device)
    between = (real + fraction * (fake - real)).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    norm = (gradient.float().flatten(1).square().sum(1) + 1e-12).sqrt()  # a root at 0 has no second derivative
    return (norm - 1).square().mean()


def wasserstein_loss(
    critic: nn.Module, real: Tensor, fake: Tensor, penalty: float, drift: float = 0.0
) -> Mapping[str, Tensor]:
    """The critic's loss of a WGAN-GP: mean D(fake) - mean D(real) + ``penalty`` times the gradient penalty + ``drift`` times mean
    D(real)^2, which keeps the outputs near 0 (Karras et al. 2018)."""
    of_real = critic(real)
    distance = of_real.mean() - critic(fake).mean()
    gradient = gradient_penalty(critic, real, fake)
    loss = penalty * gradient - distance + drift * of_real.square().mean()
    return {"loss": loss, "wasserstein": distance, "penalty": gradient}


class DCGAN(nn.Module):
    """Generator and discriminator, for methods that search the generator's latent space afterwards."""

    def __init__(self, shape: Sequence[int], latent: int, width: int) -> None:
        super().__init__()
        self.range = Range()
        self.generator = Generator(shape, latent, width)
        self.discriminator = Encoder(shape, 1, width)
        for parameter in self.parameters():
            if parameter.ndim > 1:  # not biases and norms
                nn.init.normal_(parameter, std=INITIAL_STD)

    def discriminator_loss(self, x: Tensor) -> Mapping[str, Tensor]:
        with torch.no_grad():
            fake = self.generator(self.generator.prior(len(x)))
        return {"loss": discriminator_loss(self.discriminator, self.range(x), fake)}

    def generator_loss(self, x: Tensor) -> Mapping[str, Tensor]:
        return {"loss": generator_loss(self.discriminator, self.generator(self.generator.prior(len(x))))}

    def stage(self, lr: float) -> Stage:
        """Alternating steps of Adam(lr, 0.5, 0.999) for both networks (Radford et al. 2016)."""
        game = [
            Objective(self.discriminator_loss, self.discriminator.parameters(), lr=lr, betas=(0.5, 0.999)),
            Objective(self.generator_loss, self.generator.parameters(), lr=lr, betas=(0.5, 0.999)),
        ]
        return Stage("gan", game, epochs=100, batch_size=64, prepare=self.range.measure)


def _widths(shape: Sequence[int], width: int) -> tuple[int, ...]:
    """Channels after each halving, until the longest side is below 8 pixels: doubled each time, at most 8 times ``width``.

    >>> _widths((1, 28, 28), 64), _widths((3, 128, 100), 64)
    ((64, 128), (64, 128, 256, 512, 512))
    """
    levels = max(1, math.floor(math.log2(max(shape[1:]) / 4)))
    return tuple(width * min(8, 2**i) for i in range(levels))
