"""PIAD (perceptual image anomaly detection): a GAN with an encoder, scored by the perceptual error of the reconstruction.

Tuluptceva et al. 2019. A generator G maps codes z ~ N(0, I) to images, an encoder E images to codes. One Wasserstein critic with
gradient penalty compares images x with G(z), another codes z with E(x); the relative perceptual L1 between x and G(E(x)) is a
loss and the score. Its weight is set automatically: every ``balance_steps`` steps the standard deviations of the gradients of
both terms are compared layer by layer; the median ratio, smoothed, makes them equal, separately for G and E.

| | paper | normalcy |
|---|---|---|
| perceptual features | VGG19; layer and statistics as in DPA | see ``dpa`` |
| networks | residual | DCGAN type for any size, group norm in the critic, as in ``f_anogan`` |
| images | | scaled to [-1, 1] by the range of the training images |
| map | | perceptual error of each pixel |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor, nn

from normalcy.config import require, require_that
from normalcy.method import Batches, Method, Objective, Scores, Stage
from normalcy.nets.filters import gaussian_smooth
from normalcy.nets.gan import Encoder, Generator, wasserstein_loss
from normalcy.nets.perceptual import PerceptualFeatures, relative_l1, relative_map
from normalcy.nets.scaling import Range
from normalcy.nets.statistics import Mapped


@dataclass(frozen=True)
class PIADSettings:
    latent: int = 64
    """Latent dimension; codes are standard normal."""
    width: int = 32
    """Channels of the layer next to the image, in generator, encoder and image critic."""
    backbone: str = "efficientnet_lite0"
    """Pretrained network: the embedded "efficientnet_lite0", a timm model, or "timm model:weights file" (nets/backbones.py)."""
    layer: int = 2
    """Feature layer of the backbone."""
    magnify: int | None = 1
    """Factor by which images are enlarged for the backbone; none: the reduction of its first layer."""
    statistics: str = ""
    """.npz file with <layer>_mean and <layer>_std of natural images; empty: those of the training images."""
    critic_steps: int = 2
    """Updates of the critics for each update of generator and encoder."""
    penalty: float = 10.0
    """lambda, the weight of the gradient penalty."""
    balance_steps: int = 100
    """Steps between two updates of the weight of the perceptual term."""
    balance_memory: float = 0.9
    """Smoothing of that weight: fraction of the old value in the new one, in [0, 1)."""
    lr: float = 5e-4
    """Learning rate (Adam, betas 0 and 0.9) of all networks."""
    smoothing: float = 0.0
    """Standard deviation of the Gaussian that smooths the map, in pixels; 0: no smoothing."""

    def __post_init__(self) -> None:
        positive = ("latent", "width", "critic_steps", "balance_steps", "lr")
        require("piad", self, positive=positive, non_negative=("penalty", "smoothing"))
        valid = 0 <= self.balance_memory < 1
        require_that(valid, "piad", "balance_memory", "at least 0 and below 1", self.balance_memory)


class PIAD(Method):
    name = "piad"
    Settings = PIADSettings
    family = "adversarial"
    reference = (
        "N. Tuluptceva, B. Bakker, I. Fedulova, A. Konushin. Perceptual image anomaly detection. ACPR, 2019. "
        "arXiv:1909.05904"
    )
    search: ClassVar = {
        "latent": (16, 32, 64, 128, 256),
        "layer": (0, 1, 2, 3),
        "preprocess": ((), ("histogram_equalisation",)),
    }
    settings: PIADSettings
    weights: Tensor
    looks: Tensor

    def __init__(self, settings: PIADSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        s = settings
        self.range = Range()
        self.perceptual = PerceptualFeatures(s.backbone, [s.layer], self.shape[0], s.magnify)
        self.generator = Generator(self.shape, s.latent, s.width)
        self.encoder = Encoder(self.shape, s.latent, s.width)
        self.image_critic = Encoder(self.shape, 1, s.width, norm="group")
        self.code_critic = nn.Sequential(
            nn.Linear(s.latent, 128), nn.LeakyReLU(0.2), nn.Linear(128, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1)
        )
        self.register_buffer("weights", torch.ones(2))  # weights of the perceptual term, for generator and encoder
        self.register_buffer("looks", torch.zeros(2, dtype=torch.long))  # losses computed so far

    def stages(self) -> Sequence[Stage]:
        lr, betas = self.settings.lr, (0.0, 0.9)
        critics = [*chain(self.image_critic.parameters(), self.code_critic.parameters())]
        game = [
            Objective(self.critic_loss, critics, lr=lr, betas=betas, repeats=self.settings.critic_steps),
            Objective(self.generator_loss, self.generator.parameters(), lr=lr, betas=betas),
            Objective(self.encoder_loss, self.encoder.parameters(), lr=lr, betas=betas),
        ]
        return [Stage("game", game, steps=10_000, batch_size=64, prepare=self.measure)]

    def measure(self, batches: Batches) -> None:
        """Measure the range of the images and the statistics of the perceptual features."""
        self.range.measure(batches)
        self.perceptual.measure(Mapped(batches, self.range), self.settings.statistics)

    def codes(self, count: int) -> Tensor:
        """Codes (count, latent), standard normal."""
        return torch.randn(count, self.settings.latent, device=self.device)

    def features(self, y: Tensor) -> Tensor:
        """Perceptual features (B, D, h, w) of images in [-1, 1]."""
        features: Tensor = self.perceptual(y, self.settings.layer)
        return features

    def critic_loss(self, x: Tensor) -> Mapping[str, Tensor]:
        y, z = self.range(x), self.codes(len(x))
        with torch.no_grad():
            image, code = self.generator(z), self.encoder(y)
        of_images = wasserstein_loss(self.image_critic, y, image, self.settings.penalty)
        of_codes = wasserstein_loss(self.code_critic, z, code, self.settings.penalty)
        return {
            "loss": of_images["loss"] + of_codes["loss"],
            "images": of_images["wasserstein"],
            "codes": of_codes["wasserstein"],
        }

    def generator_loss(self, x: Tensor) -> Mapping[str, Tensor]:
        adversarial = -self.image_critic(self.generator(self.codes(len(x)))).mean()
        return self.balanced(0, adversarial, self.content(x), list(self.generator.parameters()))

    def encoder_loss(self, x: Tensor) -> Mapping[str, Tensor]:
        adversarial = -self.code_critic(self.encoder(self.range(x))).mean()
        return self.balanced(1, adversarial, self.content(x), list(self.encoder.parameters()))

    def content(self, x: Tensor) -> Tensor:
        """Relative perceptual L1 between x and G(E(x)), mean over the batch."""
        y = self.range(x)
        with torch.no_grad():
            target = self.features(y)
        return relative_l1(target, self.features(self.generator(self.encoder(y)))).mean()

    def balanced(
        self, player: int, adversarial: Tensor, content: Tensor, parameters: Sequence[nn.Parameter]
    ) -> Mapping[str, Tensor]:
        """Adversarial + weight * content of network ``player`` (0: G, 1: E), with the latest weight."""
        s = self.settings
        if torch.is_grad_enabled() and int(self.looks[player]) % s.balance_steps == 0:
            ratio = gradient_ratio(adversarial, content, parameters)
            memory = s.balance_memory if self.looks[player] else 0.0
            self.weights[player] = memory * self.weights[player] + (1 - memory) * ratio
        self.looks[player] += 1
        weight = self.weights[player].clone()
        return {"loss": adversarial + weight * content, "content": content, "weight": weight}

    def _score(self, x: Tensor) -> Scores:
        y = self.range(x)
        code = self.encoder(y)
        restored = self.generator(code)
        target, output = self.features(y), self.features(restored)
        map = gaussian_smooth(relative_map(target, output, self.shape[1:]), self.settings.smoothing)
        return Scores(relative_l1(target, output), map, self.range.inverse(restored), latent=code)


def gradient_ratio(first: Tensor, second: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Median over layers of std(d first / d weights) / std(d second / d weights), clamped to [1e-3, 1e3]."""
    layers = [p for p in parameters if p.ndim > 1]
    pairs = zip(
        torch.autograd.grad(first, layers, retain_graph=True, allow_unused=True),
        torch.autograd.grad(second, layers, retain_graph=True, allow_unused=True),
        strict=True,
    )
    ratios = [
        (a.float().std() + 1e-12) / (b.float().std() + 1e-12) for a, b in pairs if a is not None and b is not None
    ]
    return torch.stack(ratios).median().clamp(1e-3, 1e3)
