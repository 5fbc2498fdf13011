"""AnoGAN: what no code of a generator of normal images can show is strange.

A DCGAN learns normal images. The code of a new image is searched by gradient: L(z) = (1 - lambda) sum |x - G(z)| +
lambda sum |f(x) - f(G(z))| with features f of the discriminator; the score is the loss found (Schlegl et al. 2017).

Not in the paper: images are first mapped to [-1, 1] by the range of the training images; the search is short; the lowest loss
met counts, not the last one; an image that no longer gets better stops (``patience``). All images of a batch are searched at
once, each by itself and from the same first code; on the CPU an image gets the same bits in any batch (``Generator.alike``).
Latent size as Ruff et al. 2018.

Found here (``ddr_id/gans``: digits resized to 32 pixels, the paper's 20 epochs, one seed, 2,000 test images): AUROC 92.6 % on the
mean of ten digits, where Ruff et al. published 91.3; below theirs on 5 (81.3, theirs 88.3) and 6. The length of the search
decides: the paper makes 500 steps and gives no rate, and 500 steps at 0.02 find a code for almost any digit, by which digit 3
falls from 91.5 to 77.2 (``recipes/results/ddr_id/gans-long-search``). The 50 steps at 0.01 and the resizing were chosen on
training images of digits 3 and 8 with other digits as anomalies; on other images the best length may be another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from normalcy.errors import SettingsError
from normalcy.method import Method, Scores, Stage
from normalcy.nets.gan import DCGAN
from normalcy.nets.search import Found, search


@dataclass(frozen=True)
class AnoGANSettings:
    latent: int = 256
    """Numbers in a code, uniform in [-1, 1] in training; the search may leave that range."""
    width: int = 32
    """Channels of the level next to the image, in generator and discriminator (Radford et al. 2016: 128)."""
    lr: float = 2e-4
    """Of both networks."""
    discrimination: float = 0.1
    """lambda, the share of the discrimination loss, in [0, 1]."""
    search_steps: int = 50
    """The paper: 500. A long search finds codes for strange images, too."""
    search_lr: float = 0.01
    """Of the search's Adam."""
    patience: int | None = 20
    """An image stops when its loss has not fallen by 0.1 % for so many steps; none: all make all steps (the paper)."""

    def __post_init__(self) -> None:
        if min(self.latent, self.width, self.search_steps) < 1 or min(self.lr, self.search_lr) <= 0:
            raise SettingsError("anogan: latent, width, search_steps, lr and search_lr must be positive.")
        if not 0 <= self.discrimination <= 1:
            raise SettingsError(f"anogan: discrimination must be in [0, 1], got {self.discrimination}.")
        if self.patience is not None and self.patience < 1:
            raise SettingsError(f"anogan: patience must be positive or none, got {self.patience}.")


class AnoGAN(Method):
    name = "anogan"
    Settings = AnoGANSettings
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
        share = self.settings.discrimination
        return (1 - share) * residual + share * discrimination

    def find(self, x: Tensor) -> Found:
        """The codes of images (B, C, H, W)."""
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
        found = self.find(x)
        (z,) = found.variables
        restored = self.gan.range.inverse(self.gan.generator(z))
        return Scores(image=found.loss, map=(x - restored).abs().mean(1), restored=restored, latent=z)
