"""OCGAN: constrains a bounded latent space so that every code decodes to a normal image; scored by the reconstruction error.

Perera, Nallapati and Xiang 2019. A denoising autoencoder has codes in (-1, 1). A latent discriminator makes the codes of normal
images uniform there; a visual discriminator makes images decoded from uniform codes look normal; and a classifier, trained with
reconstructions as positives and images of uniform codes as negatives, guides gradient steps to the codes whose images are worst
("informative-negative mining"), on which the visual discriminator then trains. Mining starts after a tenth of the training.

==================  ====================================================================================================
``reconstruction``  squared error, its mean as in the paper up to 32 pixels a side (``reduce``)
``discriminator``   -logit of the visual discriminator on the reconstruction
==================  ====================================================================================================

| | paper | authors' code | normalcy |
|---|---|---|---|
| final weights | the epoch with the lowest error on a validation set | | the last epoch |
| networks | three and four layers, 28 pixels | | DCGAN type, any size |
| images | | | scaled to [-1, 1] by the range of the training images |
| latent dimension | | 16 | 64 |
| learning rate | | 2e-4 | 1e-3 |
| weight of the reconstruction | 10 | default 500, on half the squared error; 10 in the README | 10 |
| mining | | from epoch 150 of 201, one step | from a tenth of the training, ``mining_steps`` |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.config import require
from normalcy.method import Method, Objective, Scores, Stage
from normalcy.nets.filters import Reduce, check_reduce, gaussian_smooth, reduce_map
from normalcy.nets.gan import Encoder, Generator, discriminator_loss, generator_loss
from normalcy.nets.scaling import Range

Score = Literal["reconstruction", "discriminator"]


@dataclass(frozen=True)
class OCGANSettings:
    score: Score = "reconstruction"
    """"reconstruction": mean squared error; "discriminator": -logit of the visual discriminator on the reconstruction."""
    latent: int = 64
    """Latent dimension; codes are in (-1, 1)."""
    width: int = 32
    """Channels of the layer next to the image, in all networks."""
    noise: float = 0.2
    """Standard deviation of the noise that the autoencoder removes, on images in [-1, 1]."""
    weight: float = 10.0
    """lambda, the weight of the squared error; both adversarial terms have weight 1."""
    mining_steps: int = 5
    """Gradient steps of the negative mining; 0: no mining."""
    mining_lr: float = 0.1
    """Step of the negative mining along the sign of the gradient, in units of the code."""
    lr: float = 1e-3
    """Learning rate (Adam, betas 0.5 and 0.999) of all networks."""
    smoothing: float = 0.0
    """Standard deviation of the Gaussian that smooths the map, in pixels; 0: no smoothing."""
    reduce: Reduce = "auto"
    """Image score of "reconstruction": "mean", "max" or "top" (largest 1 %) of the error, or this quantile of it, in [0, 1];
    "auto": "mean" up to 32 pixels a side, else "top"."""

    def __post_init__(self) -> None:
        non_negative = ("noise", "weight", "mining_steps", "smoothing")
        require("ocgan", self, positive=("latent", "width", "lr", "mining_lr"), non_negative=non_negative)
        check_reduce("ocgan", self.reduce)


class OCGAN(Method):
    name = "ocgan"
    Settings = OCGANSettings
    family = "adversarial"
    reference = (
        "P. Perera, R. Nallapati, B. Xiang. OCGAN: one-class novelty detection using GANs with constrained latent "
        "representations. CVPR, 2019. arXiv:1903.08550"
    )
    scores = get_args(Score)
    search: ClassVar = {"latent": (16, 32, 64, 128), "weight": (1.0, 10.0, 100.0)}
    map_scores = ("reconstruction",)
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
        networks = (
            (self.classification, [self.classifier]),
            (self.judgement, [self.visual, self.latent_judge]),
            (self.autoencoding, [self.encoder, self.decoder]),
        )
        game = [
            Objective(loss, [*chain(*(net.parameters() for net in nets))], lr=lr, betas=betas)
            for loss, nets in networks
        ]
        return [
            Stage("game", game, epochs=50, batch_size=64, prepare=self.range.measure, on_progress=self._start_mining)
        ]

    def _start_mining(self, fraction: float) -> None:
        self.mining = fraction >= 0.1

    def encode(self, y: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] -> codes (B, latent) in (-1, 1)."""
        return torch.tanh(self.encoder(y))

    def restore(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Code and reconstruction of a noisy copy of images in [-1, 1], for training."""
        code = self.encode(y + self.settings.noise * torch.randn_like(y))
        return code, self.decoder(code)

    def mine(self, code: Tensor) -> Tensor:
        """Move codes (B, latent) towards images that the classifier rates worst, within [-1, 1]."""
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
        """The classifier: reconstructions against images of uniform codes."""
        y = self.range(x)
        with torch.no_grad():
            good = self.restore(y)[1]
            bad = self.decoder(self.decoder.prior(len(x)))
        return {"loss": discriminator_loss(self.classifier, good, bad)}

    def judgement(self, x: Tensor) -> Mapping[str, Tensor]:
        """Both discriminators: uniform codes against codes of images, images against images of mined uniform codes."""
        y = self.range(x)
        uniform = self.decoder.prior(len(x))
        mined = self.mine(uniform)
        with torch.no_grad():
            code, fake = self.restore(y)[0], self.decoder(mined)
        latent = discriminator_loss(self.latent_judge, uniform, code)
        visual = discriminator_loss(self.visual, y, fake)
        return {"loss": latent + visual, "latent": latent, "visual": visual}

    def autoencoding(self, x: Tensor) -> Mapping[str, Tensor]:
        """The autoencoder: weighted squared error and both adversarial losses."""
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
        reconstruction = self.settings.score == "reconstruction"
        image = reduce_map(error, self.settings.reduce) if reconstruction else -self.visual(restored)[:, 0]
        map = gaussian_smooth(error, self.settings.smoothing)
        return Scores(image=image, map=map, restored=self.range.inverse(restored), latent=code)
