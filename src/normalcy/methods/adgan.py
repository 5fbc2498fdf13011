"""ADGAN: an image is strange when a generator of normal images cannot show it, although it may bend a little.

A GAN learns normal images. For a new image, gradient descent begins at several random codes; with each step both the code
and a copy of the generator's own parameters move, the latter a little. The score is the mean over the beginnings of the
squared error that is left (Deecke et al. 2018).

The generator itself stays as it is: each image and beginning has its own copy of the parameters, all computed at once
(torch.func). Differences: the GAN is the DCGAN of ``anogan``; images are mapped to [-1, 1] by the range of the training
images; the lowest error of each search counts, not the last one; all images begin at the same codes. ``restored`` is the
best of the generated images, ``spread`` the deviation between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from normalcy.errors import SettingsError
from normalcy.method import Method, Scores, Stage
from normalcy.nets.gan import DCGAN
from normalcy.nets.search import search

COPIES_BYTES = 2**30
"""Memory for copies of parameters, their gradients and moments; more images than fit are searched in turn."""


@dataclass(frozen=True)
class ADGANSettings:
    latent: int = 256
    """Numbers in a code, uniform in [-1, 1] in training; the search may leave that range."""
    width: int = 32
    """Channels of the level next to the image, in generator and discriminator (Radford et al. 2016: 128)."""
    lr: float = 2e-4
    """Of both networks in training."""
    restarts: int = 8
    """Codes at which the search begins."""
    search_steps: int = 5
    """Steps from each of them."""
    search_lr: float = 0.25
    """Of the code (Adam)."""
    tuning_lr: float = 5e-5
    """Of the generator's parameters while searching (Adam); 0 leaves them as they are."""

    def __post_init__(self) -> None:
        if min(self.latent, self.width, self.restarts, self.search_steps) < 1 or min(self.lr, self.search_lr) <= 0:
            raise SettingsError("adgan: latent, width, restarts, search_steps, lr and search_lr must be positive.")
        if self.tuning_lr < 0:
            raise SettingsError(f"adgan: tuning_lr must not be negative, got {self.tuning_lr}.")


class ADGAN(Method):
    name = "adgan"
    Settings = ADGANSettings
    settings: ADGANSettings

    def __init__(self, settings: ADGANSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.gan = DCGAN(self.shape, settings.latent, settings.width)

    def stages(self) -> Sequence[Stage]:
        return [self.gan.stage(self.settings.lr)]

    def generate(self, z: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Images (b, C, H, W) in [-1, 1] of codes (b, latent), each by the generator with weights (b, ...) of its own."""
        generator = self.gan.generator
        names = [name for name, _ in generator.named_parameters()]

        def one(code: Tensor, *own: Tensor) -> Tensor:
            image: Tensor = functional_call(generator, dict(zip(names, own)), (code[None],))
            return image[0]

        images: Tensor = vmap(one)(z, *weights)
        return images

    def fit_generator(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Search from codes (b, latent) for images (b, C, H, W) in [-1, 1]: errors left (b,) and images found."""
        s = self.settings
        weights = [p.detach() for p in self.gan.generator.parameters()] if s.tuning_lr else []
        copies = [p.expand(len(x), *p.shape) for p in weights]

        def generate(variables: Sequence[Tensor]) -> Tensor:
            images: Tensor = self.generate(variables[0], variables[1:]) if weights else self.gan.generator(variables[0])
            return images

        found = search(
            lambda now, targets: (targets[0] - generate(now)).square().flatten(1).mean(1),
            [z, *copies],
            [x],
            rates=[s.search_lr, *[s.tuning_lr] * len(copies)],
            steps=s.search_steps,
        )
        return found.loss, generate(found.variables)

    def _score(self, x: Tensor) -> Scores:
        count, restarts = len(x), self.settings.restarts
        y = self.gan.range(x).repeat_interleave(restarts, 0)
        z = self.gan.generator.prior(restarts, seed=0).repeat(count, 1)
        copy = 8 * sum(
            4 * p.numel() for p in self.gan.generator.parameters()
        )  # value, best, gradient, moments, workspace
        chunk = max(1, COPIES_BYTES // copy)
        parts = [self.fit_generator(a, b) for a, b in zip(torch.split(y, chunk), torch.split(z, chunk))]
        loss = torch.cat([part[0] for part in parts]).view(count, restarts)
        found = self.gan.range.inverse(torch.cat([part[1] for part in parts])).view(count, restarts, *self.shape)
        return Scores(
            image=loss.mean(1),
            map=(x[:, None] - found).square().mean((1, 2)),
            restored=found[torch.arange(count, device=x.device), loss.argmin(1)],
            uncertainty=found.std(1, correction=0).mean(1),
        )
