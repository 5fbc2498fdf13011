"""AnoGAN: GAN inversion; scores an image by how poorly a GAN of normal images reproduces it from any latent code.

A DCGAN learns normal images. For a new image x, gradient descent searches the latent code z that minimises
L(z) = (1 - lambda) sum |x - G(z)| + lambda sum |f(x) - f(G(z))| with features f of the discriminator; the score is the lowest
loss (Schlegl et al. 2017).

| | paper | normalcy |
| --- | --- | --- |
| value range | as given | mapped to [-1, 1] by the minimum and maximum of the training images |
| search | 500 steps, no learning rate given | ``search_steps`` 50 at ``search_lr`` 0.01; stops early (``patience``) |
| loss that counts | after the last step | the lowest of the search |
| first code | random for each image | the same for all images |
| epochs | 20 | 100 |

The latent dimension is that of Ruff et al. 2018. All images of a batch are searched at once, independently of each other; on the
CPU an image gets the same bits in any batch (``Generator.alike``). A long search also reproduces anomalous images, so its length
matters: the default was chosen on training images of the digits 3 and 8 with other digits as anomalies, and other images may
need another length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from normalcy import config
from normalcy.method import Method, Scores, Stage
from normalcy.nets.gan import DCGAN
from normalcy.nets.search import Found, search


@dataclass(frozen=True)
class AnoGANSettings:
    latent: int = 256
    """Latent dimension; codes are uniform in [-1, 1] in training, the search may leave that range."""
    width: int = 32
    """Channels of the level next to the image, in generator and discriminator (Radford et al. 2016: 128)."""
    lr: float = 2e-4
    """Learning rate of generator and discriminator (Adam)."""
    discrimination: float = 0.1
    """lambda, weight of the discrimination loss, in [0, 1]; the residual loss has weight 1 - lambda."""
    search_steps: int = 50
    """Gradient steps of the latent search (the paper: 500). A long search also reproduces anomalous images."""
    search_lr: float = 0.01
    """Learning rate of the latent search (Adam)."""
    patience: int | None = 20
    """The search of an image stops when its loss has not fallen by 0.1 % for this number of steps; none: never (the paper)."""

    def __post_init__(self) -> None:
        positive = ("latent", "width", "lr", "search_steps", "search_lr", "patience")
        config.require("anogan", self, positive=positive, unit=("discrimination",))


class AnoGAN(Method):
    name = "anogan"
    Settings = AnoGANSettings
    family = "adversarial"
    reference = (
        "T. Schlegl, P. Seeböck, S. M. Waldstein, U. Schmidt-Erfurth, G. Langs. Unsupervised anomaly detection with "
        "generative adversarial networks to guide marker discovery. IPMI, 2017. arXiv:1703.05921."
    )
    not_exportable: ClassVar = {
        "": "it searches a latent code for each image; take f_anogan, whose encoder finds the code in one pass."
    }
    settings: AnoGANSettings

    def __init__(self, settings: AnoGANSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.gan = DCGAN(self.shape, settings.latent, settings.width)

    def stages(self) -> Sequence[Stage]:
        return [self.gan.stage(self.settings.lr)]

    def distance(self, x: Tensor, features: Tensor, z: Tensor) -> Tensor:
        """L(z) of images x in [-1, 1] with features f(x): (B, C, H, W), (B, n), (B, latent) -> (B,)"""
        y = self.gan.generator.alike(z)
        residual = (x - y).abs().flatten(1).sum(1)
        discrimination = (features - self.gan.discriminator.features(y)).abs().sum(1)
        weight = self.settings.discrimination  # lambda
        return (1 - weight) * residual + weight * discrimination

    def find(self, x: Tensor) -> Found:
        """The latent codes of images (B, C, H, W) at the lowest loss of the search."""
        s, y = self.settings, self.gan.range(x)
        return search(
            lambda now, targets: self.distance(targets[0], targets[1], now[0]),
            [self.gan.generator.prior(1, seed=0).repeat(len(x), 1)],
            [y, self.gan.discriminator.features(y)],
            rates=[s.search_lr],
            steps=s.search_steps,
            patience=s.patience,
        )

    def _score(self, x: Tensor) -> Scores:
        best = self.find(x)
        (z,) = best.variables
        restored = self.gan.range.inverse(self.gan.generator(z))
        return Scores(image=best.loss, map=(x - restored).abs().mean(1), restored=restored, latent=z)
