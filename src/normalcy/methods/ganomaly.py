"""GANomaly: an image is strange when the code of its reconstruction is not the code of the image.

An autoencoder G_E, G_D and a second encoder E learn from normal images: 1 times the adversarial loss (distance of the mean
features of a discriminator), 50 times the mean |x - G(x)| ("context") and the mean squared G_E(x) - E(G(x)) ("encoder"),
Akcay et al. 2018, "GANomaly: Semi-Supervised Anomaly Detection via Adversarial Training".

===========  ===========================================================================================================
``latent``   mean |G_E(x) - E(G(x))| over the code (equation 5)
``context``  mean |x - G(x)|
===========  ===========================================================================================================

Paper / authors' code / ours:

- Score: absolute / squared difference of codes / absolute.
- Features of the discriminator: squared L2 distance of their means over the batch / of each image's features / the latter.
- Testing: the code scales scores by the smallest and largest of the test set, picks the epoch by the AUROC on test images
  and has tested with batch norms in training mode / ours does none of that: an image's score is its own.
- G_E, G_D and E: DCGAN with the code as 1x1 pixels / the same / the code enters and leaves by linear layers; images go to
  [-1, 1] by the range of the training images. The discriminator is restarted where its loss falls below 1e-5 / not here.
- Measured: on magnetic tiles of 64x64, with ``width=16`` and 15 epochs, the image AUROC of ``latent`` is 0.60 (0.55 to 0.65),
  that of ``context`` 0.51 (0.46 to 0.56): ``recipes/ganomaly_tiles.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, Literal, get_args

from torch import Tensor

from normalcy.errors import SettingsError
from normalcy.method import Method, Objective, Scores, Stage
from normalcy.nets.filters import gaussian_smooth
from normalcy.nets.gan import Encoder, Generator, discriminator_loss
from normalcy.nets.scaling import Range

Score = Literal["latent", "context"]


@dataclass(frozen=True)
class GANomalySettings:
    score: Score = "latent"
    latent: int = 100
    """Numbers in a code."""
    width: int = 64
    """Channels of the level next to the image, in all networks."""
    adversarial: float = 1.0
    context: float = 50.0
    encoder: float = 1.0
    """Weights of the three losses."""
    lr: float = 2e-4
    """Of Adam with betas 0.5, 0.999, for both players."""
    smoothing: float = 0.0
    """Deviation of a Gaussian over the map, in pixels."""

    def __post_init__(self) -> None:
        if min(self.latent, self.width) < 1 or self.lr <= 0:
            raise SettingsError("ganomaly: latent, width and lr must be positive.")
        if min(self.adversarial, self.context, self.encoder, self.smoothing) < 0:
            raise SettingsError("ganomaly: adversarial, context, encoder and smoothing must not be negative.")


class GANomaly(Method):
    name = "ganomaly"
    Settings = GANomalySettings
    scores = get_args(Score)
    search: ClassVar = {"latent": (16, 32, 64, 100, 256), "score": get_args(Score)}
    settings: GANomalySettings

    def __init__(self, settings: GANomalySettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        s = settings
        self.range = Range()
        self.encoder = Encoder(self.shape, s.latent, s.width)
        self.decoder = Generator(self.shape, s.latent, s.width)
        self.again = Encoder(self.shape, s.latent, s.width)
        self.discriminator = Encoder(self.shape, 1, s.width)

    def stages(self) -> Sequence[Stage]:
        betas, lr = (0.5, 0.999), self.settings.lr
        generator = [*chain(*(net.parameters() for net in (self.encoder, self.decoder, self.again)))]
        game = [
            Objective(self.generator_loss, generator, lr=lr, betas=betas),
            Objective(self.discriminator_loss, self.discriminator.parameters(), lr=lr, betas=betas),
        ]
        return [Stage("game", game, epochs=15, batch_size=64, prepare=self.range.measure)]

    def codes(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """G_E(x), G(x) and E(G(x)) of images (B, C, H, W) in [-1, 1]."""
        code = self.encoder(y)
        restored = self.decoder(code)
        return code, restored, self.again(restored)

    def generator_loss(self, x: Tensor) -> Mapping[str, Tensor]:
        s, y = self.settings, self.range(x)
        code, restored, code_again = self.codes(y)
        adversarial = (self.discriminator.features(y) - self.discriminator.features(restored)).square().mean()
        context = (y - restored).abs().mean()
        encoder = (code - code_again).square().mean()
        loss = s.adversarial * adversarial + s.context * context + s.encoder * encoder
        return {"loss": loss, "adversarial": adversarial, "context": context, "encoder": encoder}

    def discriminator_loss(self, x: Tensor) -> Mapping[str, Tensor]:
        y = self.range(x)
        return {"loss": discriminator_loss(self.discriminator, y, self.decoder(self.encoder(y)).detach())}

    def _score(self, x: Tensor) -> Scores:
        y = self.range(x)
        code, restored, code_again = self.codes(y)
        error = (y - restored).abs().mean(1)
        image = (code - code_again).abs().mean(1) if self.settings.score == "latent" else error.mean((1, 2))
        map = gaussian_smooth(error, self.settings.smoothing)
        return Scores(image=image, map=map, restored=self.range.inverse(restored), latent=code)
