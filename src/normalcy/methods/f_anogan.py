"""f-AnoGAN: Wasserstein GAN inversion by an encoder in one pass; scored by pixel and critic-feature residuals.

A Wasserstein GAN with gradient penalty (Gulrajani et al. 2017) learns normal images. Then, with generator G and critic frozen, an
encoder E is trained with izi_f: mean (x - G(E(x)))^2 + kappa mean (f(x) - f(G(E(x))))^2 for features f of the critic, which is
also the score (Schlegl et al. 2019). As in the authors' code, the codes of the encoder are unbounded.

| | paper and authors' code | normalcy |
| --- | --- | --- |
| networks | residual | DCGAN type, for any image size |
| normalisation in the critic | layer norm | group norm; both keep images independent, as the gradient penalty needs |
| value range | | mapped to [-1, 1] by the minimum and maximum of the training images |
| optimiser of the encoder | RMSprop of TensorFlow, decay 0.9 | RMSprop of PyTorch, alpha 0.99 |
| length | authors' code: GAN 7 passes over its images, encoder 50,000 steps | 10,000 and 5,000 steps |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normalcy import config
from normalcy.method import Method, Objective, Scores, Stage
from normalcy.nets.gan import Encoder, Generator, wasserstein_loss
from normalcy.nets.scaling import Range


@dataclass(frozen=True)
class FAnoGANSettings:
    latent: int = 128
    """Latent dimension; codes are standard normal in training."""
    width: int = 64
    """Channels of the level next to the image, in all three networks."""
    penalty: float = 10.0
    """lambda, weight of the gradient penalty."""
    critic_steps: int = 5
    """Updates of the critic for each update of the generator."""
    kappa: float = 1.0
    """kappa, weight of the feature residual in loss and score."""
    lr: float = 1e-4
    """Learning rate of generator and critic (Adam)."""
    encoder_lr: float = 5e-5
    """Learning rate of the encoder (RMSprop)."""

    def __post_init__(self) -> None:
        positive = ("latent", "width", "critic_steps", "lr", "encoder_lr")
        config.require("f_anogan", self, positive=positive, non_negative=("penalty", "kappa"))


class FAnoGAN(Method):
    name = "f_anogan"
    Settings = FAnoGANSettings
    family = "adversarial"
    reference = (
        "T. Schlegl, P. Seeböck, S. M. Waldstein, G. Langs, U. Schmidt-Erfurth. f-AnoGAN: fast unsupervised anomaly "
        "detection with generative adversarial networks. Medical Image Analysis 54, 2019. doi:10.1016/j.media.2019.01.010."
    )
    settings: FAnoGANSettings

    def __init__(self, settings: FAnoGANSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.range = Range()
        self.generator = Generator(self.shape, settings.latent, settings.width)
        self.critic = Encoder(self.shape, 1, settings.width, norm="group")
        self.encoder = Encoder(self.shape, settings.latent, settings.width)

    def stages(self) -> Sequence[Stage]:
        s = self.settings
        game = [
            Objective(self.critic_loss, self.critic.parameters(), lr=s.lr, betas=(0.0, 0.9), repeats=s.critic_steps),
            Objective(self.generator_loss, self.generator.parameters(), lr=s.lr, betas=(0.0, 0.9)),
        ]
        mapping = Objective(self.izi_f, self.encoder.parameters(), lr=s.encoder_lr, optimiser="rmsprop")
        return [
            Stage("gan", game, steps=10_000, batch_size=64, prepare=self.range.measure),
            Stage("encoder", [mapping], steps=5_000, batch_size=64),
        ]

    def sample(self, count: int) -> Tensor:
        """Generated images (count, C, H, W) in [-1, 1]."""
        image: Tensor = self.generator(torch.randn(count, self.settings.latent, device=self.device))
        return image

    def critic_loss(self, x: Tensor) -> Mapping[str, Tensor]:
        real = self.range(x)
        with torch.no_grad():
            fake = self.sample(len(x))
        return wasserstein_loss(self.critic, real, fake, self.settings.penalty)

    def generator_loss(self, x: Tensor) -> Mapping[str, Tensor]:
        return {"loss": -self.critic(self.sample(len(x))).mean()}

    def distance(self, x: Tensor, restored: Tensor) -> Tensor:
        """Residual and feature distance of images in [-1, 1]: (B, C, H, W) twice -> (B,)"""
        residual = (x - restored).square().flatten(1).mean(1)
        features = (self.critic.features(x) - self.critic.features(restored)).square().mean(1)
        return residual + self.settings.kappa * features

    def izi_f(self, x: Tensor) -> Mapping[str, Tensor]:
        y = self.range(x)
        return {"loss": self.distance(y, self.generator(self.encoder(y))).mean()}

    def _score(self, x: Tensor) -> Scores:
        y = self.range(x)
        z = self.encoder(y)
        generated = self.generator(z)
        restored = self.range.inverse(generated)
        return Scores(image=self.distance(y, generated), map=(x - restored).abs().mean(1), restored=restored, latent=z)
