"""ADGAN: reconstruction error of an image after optimising the latent code and, slightly, the weights of a GAN's generator.

A GAN learns normal images. For each test image, gradient descent starts from several random latent codes; each step updates the
code and, with a small learning rate, a copy of the generator's weights. The score is the mean over the starting codes of the
remaining squared error (Deecke et al. 2018). ``restored`` is the best of the generated images, ``spread`` their standard
deviation.

The trained generator stays unchanged: each image and starting code has its own copy of the weights, all evaluated at once
(torch.func).

| | paper | normalcy |
| --- | --- | --- |
| GAN |  | the DCGAN of ``anogan`` |
| value range | as given | mapped to [-1, 1] by the minimum and maximum of the training images |
| error that counts | after the last step | the lowest of the search |
| starting codes | drawn for each image | the same for all images |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from normalcy import config
from normalcy.method import Method, Scores, Stage, evaluation_copy
from normalcy.nets.gan import DCGAN
from normalcy.nets.search import search

COPIES_BYTES = 2**30
"""Memory for copies of parameters, their gradients and moments; images beyond it are searched in turn."""


@dataclass(frozen=True)
class ADGANSettings:
    latent: int = 256
    """Latent dimension; codes are uniform in [-1, 1] in training, the search may leave that range."""
    width: int = 32
    """Channels of the level next to the image, in generator and discriminator (Radford et al. 2016: 128)."""
    lr: float = 2e-4
    """Learning rate of generator and discriminator in training (Adam)."""
    restarts: int = 8
    """Number of random latent codes from which the search starts."""
    search_steps: int = 5
    """Gradient steps from each starting code."""
    search_lr: float = 0.25
    """Learning rate of the latent code in the search (Adam)."""
    tuning_lr: float = 5e-5
    """Learning rate of the generator's weights in the search (Adam); 0 keeps them fixed."""

    def __post_init__(self) -> None:
        positive = ("latent", "width", "lr", "restarts", "search_steps", "search_lr")
        config.require("adgan", self, positive=positive, non_negative=("tuning_lr",))


class ADGAN(Method):
    name = "adgan"
    Settings = ADGANSettings
    family = "adversarial"
    reference = (
        "L. Deecke, R. Vandermeulen, L. Ruff, S. Mandt, M. Kloft. Image anomaly detection with generative adversarial "
        "networks. ECML PKDD, 2018."
    )
    not_exportable: ClassVar = {
        "": "it optimises a latent code and the generator for each image; take f_anogan, which has an encoder."
    }
    settings: ADGANSettings

    def __init__(self, settings: ADGANSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.gan = DCGAN(self.shape, settings.latent, settings.width)

    def stages(self) -> Sequence[Stage]:
        return [self.gan.stage(self.settings.lr)]

    def generate(self, z: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Images (b, C, H, W) in [-1, 1] of codes (b, latent), each from its own copy (b, ...) of the generator's weights."""
        # A copy, as functional_call puts the weights into the module, with which other threads may be scoring.
        generator = evaluation_copy(self.gan.generator)
        names = [name for name, _ in generator.named_parameters()]

        def one(code: Tensor, *own: Tensor) -> Tensor:
            image: Tensor = functional_call(generator, dict(zip(names, own)), (code[None],))
            return image[0]

        images: Tensor = vmap(one)(z, *weights)
        return images

    def fit_generator(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Search from codes (b, latent) for images (b, C, H, W) in [-1, 1]: lowest errors (b,) and generated images."""
        s = self.settings
        weights = [p.detach() for p in self.gan.generator.parameters()] if s.tuning_lr else []
        copies = [p.expand(len(x), *p.shape) for p in weights]

        def generate(variables: Sequence[Tensor]) -> Tensor:
            images: Tensor = self.generate(variables[0], variables[1:]) if weights else self.gan.generator(variables[0])
            return images

        best = search(
            lambda now, targets: (targets[0] - generate(now)).square().flatten(1).mean(1),
            [z, *copies],
            [x],
            rates=[s.search_lr, *[s.tuning_lr] * len(copies)],
            steps=s.search_steps,
        )
        return best.loss, generate(best.variables)

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
        restored = self.gan.range.inverse(torch.cat([part[1] for part in parts])).view(count, restarts, *self.shape)
        return Scores(
            image=loss.mean(1),
            map=(x[:, None] - restored).square().mean((1, 2)),
            restored=restored[torch.arange(count, device=x.device), loss.argmin(1)],
            uncertainty=restored.std(1, correction=0).mean(1),
        )
