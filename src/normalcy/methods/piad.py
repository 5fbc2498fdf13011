"""PIAD, perceptual image anomaly detection: two mappings between images and normal codes, judged by two critics and the content.

A generator G turns codes z ~ N(0, I) into images, an encoder E images into codes. One Wasserstein critic with gradient penalty
compares images x with G(z), another codes z with E(x); G(E(x)) is to agree with x by the relative perceptual L1, which is also
the score (Tuluptceva et al. 2019, "Perceptual Image Anomaly Detection"). The weight of the perceptual term is set by itself:
every ``balance_steps`` steps the deviations of the gradients of both terms are compared, layer by layer; the median
ratio, smoothed, makes them equal, for G and for E apart.

Paper / ours: VGG19, layer and statistics as in ``dpa`` / see there; residual networks / networks of the DCGAN type for any size,
with group norm in the critic (as ``f_anogan``); images to [-1, 1] by the range of the training images. The map is ours.
Found here (``normalcy reproduce dpa/three-classes``), 3,000 steps of 32 images in place of 10,000 of 64: AUROC 76.1, 84.3 and
81.7 % on car, frog and ship of CIFAR-10; published 87.1, 81.7 and 86.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor, nn

from normalcy.errors import SettingsError
from normalcy.method import Batches, Method, Objective, Scores, Stage
from normalcy.nets.filters import gaussian_smooth
from normalcy.nets.gan import Encoder, Generator, wasserstein_loss
from normalcy.nets.perceptual import PerceptualFeatures, relative_l1, relative_map
from normalcy.nets.scaling import Range
from normalcy.nets.statistics import Mapped


@dataclass(frozen=True)
class PIADSettings:
    latent: int = 64
    """Numbers in a code, standard normal."""
    width: int = 32
    """Channels of the level next to the image."""
    backbone: str = "efficientnet_lite0"
    """timm name, "name:file" or the embedded efficientnet_lite0."""
    layer: int = 2
    """Its feature layer."""
    magnify: int | None = 1
    """Images are magnified so much for the backbone; none: as its first layer reduces them."""
    statistics: str = ""
    """.npz file with <layer>_mean and <layer>_std of natural images; empty: those of the training images."""
    critic_steps: int = 2
    """Updates of the critics for one of generator and encoder."""
    penalty: float = 10.0
    """lambda of the gradient penalty."""
    balance_steps: int = 100
    """Steps between two looks at the gradients."""
    balance_memory: float = 0.9
    """Share of the old weight in the new one."""
    lr: float = 5e-4
    """Of Adam with betas 0, 0.9, for all."""
    smoothing: float = 0.0
    """Deviation of a Gaussian over the map, in pixels."""

    def __post_init__(self) -> None:
        if min(self.latent, self.width, self.critic_steps, self.balance_steps) < 1 or self.lr <= 0:
            raise SettingsError("piad: latent, width, critic_steps, balance_steps and lr must be positive.")
        if min(self.penalty, self.smoothing) < 0 or not 0 <= self.balance_memory < 1:
            raise SettingsError("piad: penalty and smoothing must not be negative, balance_memory in [0, 1).")


class PIAD(Method):
    name = "piad"
    Settings = PIADSettings
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
        self.register_buffer("weights", torch.ones(2))  # of the perceptual term, for generator and encoder
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
        self.range.measure(batches)
        self.perceptual.measure(Mapped(batches, self.range), self.settings.statistics)

    def codes(self, count: int) -> Tensor:
        return torch.randn(count, self.settings.latent, device=self.device)

    def features(self, y: Tensor) -> Tensor:
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
        """The relative perceptual L1 of x and G(E(x)), mean over the batch."""
        y = self.range(x)
        with torch.no_grad():
            wanted = self.features(y)
        return relative_l1(wanted, self.features(self.generator(self.encoder(y)))).mean()

    def balanced(
        self, player: int, adversarial: Tensor, content: Tensor, parameters: Sequence[nn.Parameter]
    ) -> Mapping[str, Tensor]:
        """Adversarial + weight * content of a player (0: G, 1: E), with the weight of the last look."""
        s = self.settings
        if torch.is_grad_enabled() and int(self.looks[player]) % s.balance_steps == 0:
            asked = gradient_ratio(adversarial, content, parameters)
            memory = s.balance_memory if self.looks[player] else 0.0
            self.weights[player] = memory * self.weights[player] + (1 - memory) * asked
        self.looks[player] += 1
        weight = self.weights[player].clone()
        return {"loss": adversarial + weight * content, "content": content, "weight": weight}

    def _score(self, x: Tensor) -> Scores:
        y = self.range(x)
        code = self.encoder(y)
        restored = self.generator(code)
        wanted, found = self.features(y), self.features(restored)
        map = gaussian_smooth(relative_map(wanted, found, self.shape[1:]), self.settings.smoothing)
        return Scores(relative_l1(wanted, found), map, self.range.inverse(restored), latent=code)


def gradient_ratio(first: Tensor, second: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Median over layers of the deviation of the gradient of ``first`` by that of ``second``, both by the weights."""
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
