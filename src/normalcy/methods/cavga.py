"""CAVGA: convolutional VAE trained so that Grad-CAM attention covers normal images; scored by error or by missing attention.

The latent code is spatial (a small image), so that Grad-CAM computed from it localises. The VAE is trained on normal images with
reconstruction + KL, an adversarial term and the attention expansion loss, the mean of 1 - A for the attention A; on a new image
1 - A is the map (Venkataramanan et al. 2020, the unsupervised CAVGA_u, weights 1, 1, 0.01). CAVGA_w, which learns from some
anomalous images, is not implemented: all methods of normalcy train on normal images alone.

=================  =====================================================================================================
``attention``      1 - A and its mean
``reconstruction`` the squared error and its mean, by which the paper detects
=================  =====================================================================================================

| | paper | normalcy |
| --- | --- | --- |
| encoder | pretrained ResNet-18 or DCGAN discriminator | strided convolutions with group norm, from scratch |
| learning rate | 1e-4 | 1e-3, as nothing is pretrained |
| attention A | sigmoid of Grad-CAM cut at 0 | sigmoid of Grad-CAM, not cut, so that A can fall below 0.5 |
| value range | as given | differences from the mean training image |
| decoder output | tanh | linear; with a tanh the decoder can remain at the background of digits |
| size of the code | not given | at most 8 pixels a side, unless ``halvings`` is given |

Grad-CAM follows activations, so A can be high on bright anomalies: compare both maps before relying on 1 - A.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy import config
from normalcy.errors import DataError
from normalcy.method import Method, Objective, Scores, Stage
from normalcy.nets.convnets import initialise
from normalcy.nets.densities import draw, kl_to_standard
from normalcy.nets.filters import Reduce, check_reduce, gaussian_smooth, reduce_map
from normalcy.nets.gan import Encoder, discriminator_loss, generator_loss
from normalcy.nets.grad_cam import grad_cam
from normalcy.nets.scaling import Standardise

Score = Literal["reconstruction", "attention"]


@dataclass(frozen=True)
class CAVGASettings:
    score: Score = "reconstruction"
    """"reconstruction": the squared error; "attention": 1 - A."""
    latent: int = 32
    """Channels of the spatial latent code."""
    halvings: int | None = None
    """The code has 1 / 2^halvings of the image's sides; none: halved until the longest side is at most 8, or a side is odd. A
    finer code has more values than the image and also reconstructs anomalies."""
    width: int = 32
    """Channels next to the image, doubled with each halving up to 8 times as many."""
    adversarial: float = 1.0
    """Weight of the adversarial term (paper: 1)."""
    expansion: float = 0.01
    """Weight of the attention expansion loss (paper: 0.01), times the number of pixels, since the other terms are sums."""
    lr: float = 1e-3
    """Learning rate of autoencoder and discriminator (Adam; paper: 1e-4, with pretrained encoders)."""
    smoothing: float = 1.0
    """Standard deviation of the Gaussian that smooths the map, in pixels."""
    reduce: Reduce = "auto"
    """Image score: "mean", "max" or "top" (mean of the largest 1 %) of the map, or this quantile of it, in [0, 1]; "auto": "mean"
    up to 32 pixels a side, else "top"."""

    def __post_init__(self) -> None:
        positive, non_negative = ("latent", "halvings", "width", "lr"), ("adversarial", "expansion", "smoothing")
        config.require("cavga", self, positive=positive, non_negative=non_negative)
        check_reduce("cavga", self.reduce)


def _halvings(sides: Sequence[int]) -> int:
    """Number of halvings until the longest side is at most 8 or a side is odd; at least one.

    >>> _halvings((28, 28)), _halvings((128, 128)), _halvings((12, 200))
    (2, 4, 2)
    """
    count = 1
    while max(sides) > 8 * 2**count and not any(side % 2 ** (count + 1) for side in sides):
        count += 1
    return count


class CAVGA(Method):
    name = "cavga"
    Settings = CAVGASettings
    family = "reconstruction"
    reference = (
        "S. Venkataramanan, K.-C. Peng, R. V. Singh, A. Mahalanobis. Attention guided anomaly localization in images. "
        "ECCV, 2020. arXiv:1911.08616."
    )
    scores = get_args(Score)
    search: ClassVar = {"score": get_args(Score), "latent": (8, 16, 32, 64), "halvings": (None, 2, 3)}
    not_exportable: ClassVar = {"attention": "it is a gradient of the latent code; take score=reconstruction."}
    map_scores = get_args(Score)
    settings: CAVGASettings

    def __init__(self, settings: CAVGASettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        s = settings
        halvings = s.halvings or _halvings(self.shape[1:])
        multiple = 2**halvings
        if min(self.shape[1:]) < 8 or any(n % multiple for n in self.shape[1:]):
            raise DataError(
                f"cavga expects sides of at least 8 that are multiples of {multiple}, got {self.shape}: use pad."
            )
        self.standardise = Standardise(self.shape)
        widths = [self.shape[0], *(s.width * min(8, 2**i) for i in range(halvings))]
        encoder, decoder = nn.Sequential(), nn.Sequential(nn.Conv2d(s.latent, widths[-1], 3, padding=1))
        for i, after in enumerate(widths[1:]):
            encoder.append(nn.Conv2d(widths[i], after, 4, stride=2, padding=1))
            encoder.extend([nn.GroupNorm(math.gcd(after, 8), after)] * bool(i) + [nn.LeakyReLU(0.2)])
        for i in reversed(range(halvings)):
            after = widths[i] if i else s.width
            decoder.extend([nn.LeakyReLU(0.2), nn.ConvTranspose2d(widths[i + 1], after, 4, stride=2, padding=1)])
        last = nn.Conv2d(s.width, self.shape[0], 3, padding=1)
        self.encoder = initialise(encoder, slope=0.2)
        self.decoder = initialise(decoder.extend([nn.LeakyReLU(0.2), last]), slope=0.2)
        with torch.no_grad():  # the first reconstructions are near the mean image
            last.weight.mul_(0.1)
        self.posterior = nn.Sequential(nn.Conv2d(widths[-1], widths[-1], 3, padding=1), nn.LeakyReLU(0.2))
        self.posterior.append(nn.Conv2d(widths[-1], 2 * s.latent, 1))
        self.discriminator = Encoder(self.shape, 1, s.width)

    def stages(self) -> Sequence[Stage]:
        lr = self.settings.lr
        own = [*chain(*(net.parameters() for net in (self.encoder, self.posterior, self.decoder)))]
        game = [
            Objective(self.discriminator_loss, self.discriminator.parameters(), lr=lr, betas=(0.5, 0.999)),
            Objective(self.autoencoder_loss, own, lr=lr),
        ]
        return [Stage("game", game, epochs=50, batch_size=32, prepare=self.standardise.measure)]

    def code(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (B, latent, h, w) from the last feature maps."""
        mean, logvar = self.posterior(maps).float().chunk(2, dim=1)
        return mean, logvar.clamp(-30, 30)

    def decode(self, z: Tensor) -> Tensor:
        restored: Tensor = self.decoder(z)
        return restored.float()

    def attention(self, mean: Tensor, maps: Tensor, create_graph: bool = False) -> Tensor:
        """A in (0, 1), (B, h, w)."""
        return torch.sigmoid(grad_cam(mean, maps, create_graph))

    def discriminator_loss(self, x: Tensor) -> Mapping[str, Tensor]:
        y = self.standardise(x)
        with torch.no_grad():
            fake = self.decode(draw(*self.code(self.encoder(y))))
        return {"loss": discriminator_loss(self.discriminator, y, fake)}

    def autoencoder_loss(self, x: Tensor) -> Mapping[str, Tensor]:
        s, y = self.settings, self.standardise(x)
        pixels = y[0].numel()
        maps = self.encoder(y)
        mean, logvar = self.code(maps)
        restored = self.decode(draw(mean, logvar))
        error = 0.5 * (y - restored).square().flatten(1).sum(1).mean()
        kl = kl_to_standard(mean, logvar).mean()
        adversarial = generator_loss(self.discriminator, restored)
        expansion = (1 - self.attention(mean, maps, create_graph=True)).mean()
        loss = (error + kl) + s.adversarial * adversarial + s.expansion * pixels * expansion
        terms = {"error": error, "kl": kl, "adversarial": adversarial, "expansion": expansion}
        return {"loss": loss / pixels, **terms}

    def _score(self, x: Tensor) -> Scores:
        s, y = self.settings, self.standardise(x)
        maps = self.encoder(y)
        mean, _ = self.code(maps)
        restored = self.decode(mean)
        if s.score == "attention":
            with torch.enable_grad():
                maps = maps.detach().requires_grad_()
                attention = self.attention(self.code(maps)[0], maps).detach()
            map = F.interpolate(1 - attention[:, None], size=self.shape[1:], mode="bilinear")[:, 0]
        else:
            map = (y - restored).square().mean(1)
        map = gaussian_smooth(map, s.smoothing)
        return Scores(reduce_map(map, s.reduce), map, self.standardise.inverse(restored))
