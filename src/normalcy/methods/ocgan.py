"""OCGAN: every code of a bounded latent space is to be a normal image, so that no code is left for anything else.

A denoising autoencoder with codes in (-1, 1); a latent discriminator makes codes of normal images uniform there; a visual
discriminator makes images decoded from uniform codes look normal; and a classifier of good and bad images leads, by gradient
steps, to codes whose images are worst ("informative-negative mining"), which the visual discriminator then works on (Perera,
Nallapati, Xiang 2019, "OCGAN: One-class Novelty Detection Using GANs with Constrained Latent Representations").

==================  ====================================================================================================
``reconstruction``  mean squared error, the paper's
``discriminator``   -logit of the visual discriminator on the reconstruction
==================  ====================================================================================================

Paper / ours: the best epoch by error on a validation set / the last; the classifier learns with reconstructions as good and
images of uniform codes as bad / the same; networks of three and four layers, 28 pixels / of the DCGAN type for any size, images
to [-1, 1] by the range of the training images. Mining before the game is steady (the first tenth here) is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.errors import SettingsError
from normalcy.method import Method, Objective, Scores, Stage
from normalcy.nets.filters import gaussian_smooth
from normalcy.nets.gan import Encoder, Generator, discriminator_loss, generator_loss
from normalcy.nets.scaling import Range

Score = Literal["reconstruction", "discriminator"]


@dataclass(frozen=True)
class OCGANSettings:
    score: Score = "reconstruction"
    latent: int = 64
    """Numbers in a code, each in (-1, 1)."""
    width: int = 32
    """Channels of the level next to the image, in all networks."""
    noise: float = 0.2
    """Deviation of the noise on images in [-1, 1] that the autoencoder takes away."""
    weight: float = 10.0
    """lambda of the squared error beside both adversarial terms."""
    mining_steps: int = 5
    """Gradient steps towards the worst code; 0: no mining."""
    mining_lr: float = 0.1
    """Of these steps, in units of the code, on the sign of the gradient."""
    lr: float = 1e-3
    """Of Adam with betas 0.5, 0.999, for all players."""
    smoothing: float = 0.0
    """Deviation of a Gaussian over the map, in pixels."""

    def __post_init__(self) -> None:
        if min(self.latent, self.width) < 1 or min(self.lr, self.mining_lr) <= 0:
            raise SettingsError("ocgan: latent, width, lr and mining_lr must be positive.")
        if min(self.noise, self.weight, self.mining_steps, self.smoothing) < 0:
            raise SettingsError("ocgan: noise, weight, mining_steps and smoothing must not be negative.")


class OCGAN(Method):
    name = "ocgan"
    Settings = OCGANSettings
    scores = get_args(Score)
    search: ClassVar = {"latent": (16, 32, 64, 128), "weight": (1.0, 10.0, 100.0)}
    settings: OCGANSettings

    def __init__(self, settings: OCGANSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        s = settings
        self.range = Range()
        self.encoder = Encoder(self.shape, s.latent, s.width)
        self.decoder = Generator(self.shape, s.latent, s.width)
        self.visual = Encoder(self.shape, 1, s.width)
        self.latent_judge = nn.Sequential(
            nn.Linear(s.latent, 128), nn.LeakyReLU(0.2), nn.Linear(128, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1)
        )
        self.classifier = Encoder(self.shape, 1, s.width, norm="group")
        self.mining = True

    def stages(self) -> Sequence[Stage]:
        lr, betas = self.settings.lr, (0.5, 0.999)
        players = (
            (self.classification, [self.classifier]),
            (self.judgement, [self.visual, self.latent_judge]),
            (self.autoencoding, [self.encoder, self.decoder]),
        )
        game = [
            Objective(loss, [*chain(*(net.parameters() for net in nets))], lr=lr, betas=betas) for loss, nets in players
        ]
        return [
            Stage("game", game, epochs=50, batch_size=64, prepare=self.range.measure, on_progress=self._start_mining)
        ]

    def _start_mining(self, fraction: float) -> None:
        self.mining = fraction >= 0.1

    def encode(self, y: Tensor) -> Tensor:
        """Images in [-1, 1] -> codes (B, latent) in (-1, 1)."""
        return torch.tanh(self.encoder(y))

    def restore(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Code and image of a noisy copy (in training)."""
        code = self.encode(y + self.settings.noise * torch.randn_like(y))
        return code, self.decoder(code)

    def mine(self, code: Tensor) -> Tensor:
        """From codes (B, latent) towards such whose images the classifier finds worst, still in [-1, 1]."""
        if not self.mining:
            return code
        code = code.detach()
        for _ in range(self.settings.mining_steps):
            with torch.enable_grad():
                code = code.requires_grad_()
                good = self.classifier(self.decoder(code)).sum()
                (gradient,) = torch.autograd.grad(good, code)
            code = (code - self.settings.mining_lr * gradient.sign()).clamp(-1, 1).detach()
        return code

    def classification(self, x: Tensor) -> Mapping[str, Tensor]:
        y = self.range(x)
        with torch.no_grad():
            good = self.restore(y)[1]
            bad = self.decoder(self.decoder.prior(len(x)))
        return {"loss": discriminator_loss(self.classifier, good, bad)}

    def judgement(self, x: Tensor) -> Mapping[str, Tensor]:
        """Both discriminators: uniform codes from codes of images, images from images of mined uniform codes."""
        y = self.range(x)
        uniform = self.decoder.prior(len(x))
        mined = self.mine(uniform)
        with torch.no_grad():
            code, fake = self.restore(y)[0], self.decoder(mined)
        latent = discriminator_loss(self.latent_judge, uniform, code)
        visual = discriminator_loss(self.visual, y, fake)
        return {"loss": latent + visual, "latent": latent, "visual": visual}

    def autoencoding(self, x: Tensor) -> Mapping[str, Tensor]:
        y = self.range(x)
        code, restored = self.restore(y)
        error = F.mse_loss(restored, y)
        latent = generator_loss(self.latent_judge, code)
        visual = generator_loss(self.visual, self.decoder(self.mine(self.decoder.prior(len(x)))))
        loss = self.settings.weight * error + latent + visual
        return {"loss": loss, "error": error, "latent": latent, "visual": visual}

    def _score(self, x: Tensor) -> Scores:
        y = self.range(x)
        code = self.encode(y)
        restored = self.decoder(code)
        error = (y - restored).square().mean(1)
        image = error.mean((1, 2)) if self.settings.score == "reconstruction" else -self.visual(restored)[:, 0]
        map = gaussian_smooth(error, self.settings.smoothing)
        return Scores(image=image, map=map, restored=self.range.inverse(restored), latent=code)
