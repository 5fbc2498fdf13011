"""VAE attention: which parts of an image make its code what it is, by Grad-CAM from the code of a VAE.

The gradient of each code coordinate with respect to the feature maps A_k of an encoder level, averaged over the map, gives
weights alpha_k; M = ReLU(sum_k alpha_k A_k) is the attention of that coordinate. On images unlike the training ones attention
goes to what is unlike (Liu et al. 2020, "Towards Visually Explaining Variational Autoencoders", section 3).

==================  ====================================================================================================
``attention``       the image's score is how unlikely its code is among those of the training images, half the squared
                    deviations of the posterior mean in units of theirs, summed; the map is the attention of that number
``reconstruction``  the map is the squared error, the image's score its mean
==================  ====================================================================================================

Paper / authors' code / ours: for one-class images the attention of codes drawn from the difference of the posteriors of normal
images and this one / of the sum of a drawn code / of the squared deviation from the mean training code, so that attention grows
with what draws the code away: the sum of a code is as often small as large where images are strange, and no score. Images are
not scored in the paper. Maps are brought to the image's size by bilinear interpolation. Grad-CAM follows activations, so
where an image is bright attention is high in part for that alone: look at both maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.errors import SettingsError
from normalcy.method import Batches, Method, Objective, Scores, Stage
from normalcy.nets.convnets import CLIP, ConvNet, choose
from normalcy.nets.densities import draw, kl_to_standard
from normalcy.nets.filters import Reduce, check_reduce, gaussian_smooth, reduce_map
from normalcy.nets.grad_cam import grad_cam
from normalcy.nets.scaling import Standardise
from normalcy.nets.schedules import late_drop
from normalcy.nets.statistics import Mapped, mean_and_std

Score = Literal["attention", "reconstruction"]


@dataclass(frozen=True)
class VAEAttentionSettings:
    score: Score = "attention"
    latent: int = 32
    level: int = 0
    """Encoder level whose feature maps are looked at: 0 has half the image's side, 1 a quarter ..."""
    width: int | None = None
    """Channels of the first level; none: 32."""
    beta: float = 1.0
    """Weight of the KL in training."""
    lr: float = 1e-3
    """Of Adam; a tenth of it in the last third of the training."""
    smoothing: float = 1.0
    """Deviation of a Gaussian over the map, in pixels."""
    reduce: Reduce = "mean"
    """The image score of ``reconstruction``: "mean" or "max" of the map, or this quantile of it, in [0, 1]."""

    def __post_init__(self) -> None:
        if self.latent < 1 or self.lr <= 0 or min(self.level, self.beta, self.smoothing) < 0:
            raise SettingsError(
                "vae_attention: latent and lr must be positive, level, beta and smoothing not negative."
            )
        check_reduce("vae_attention", self.reduce)


class VAEAttention(Method):
    name = "vae_attention"
    Settings = VAEAttentionSettings
    scores = get_args(Score)
    spatial_dims = (2, 3)
    search: ClassVar = {"score": get_args(Score), "latent": (8, 16, 32, 64, 128), "level": (0, 1)}
    settings: VAEAttentionSettings
    code_mean: Tensor
    code_std: Tensor

    def __init__(self, settings: VAEAttentionSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        net: ConvNet = choose("dcgan", self.shape, settings.width)
        if settings.level >= len(net.channels):
            raise SettingsError(
                f"vae_attention: the encoder of images {self.shape} has the levels 0 to {len(net.channels) - 1}, got "
                f"{settings.level}."
            )
        self.standardise = Standardise(self.shape)
        self.encoder = net.encoder(self.shape, 2 * settings.latent)
        self.decoder = net.decoder(self.shape, settings.latent)
        with torch.no_grad():  # the posterior begins near the prior
            last = self.encoder[-1]
            assert isinstance(last, nn.Linear)
            last.weight.mul_(0.1)
        self.register_buffer("code_mean", torch.zeros(settings.latent))
        self.register_buffer("code_std", torch.ones(settings.latent))

    def posterior(self, h: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (B, latent) from what enters level ``first`` of the encoder."""
        mean, logvar = self.encoder[first:](h).float().chunk(2, dim=1)
        return mean, logvar.clamp(-30, 30)

    def decode(self, z: Tensor) -> Tensor:
        """As deviations from the mean image."""
        restored: Tensor = self.decoder(z)
        return restored.float()

    def negative_elbo(self, x: Tensor) -> Mapping[str, Tensor]:
        """Up to a constant, in nats per image, for observations with the deviation of the training images."""
        y = self.standardise(x)
        mean, logvar = self.posterior(y)
        nll = 0.5 * (y - self.decode(draw(mean, logvar))).square().flatten(1).sum(1).mean()
        kl = kl_to_standard(mean, logvar).mean()
        return {"loss": nll + self.settings.beta * kl, "nll": nll, "kl": kl}

    def measure(self, batches: Batches) -> None:
        """Mean and deviation of the codes of the training images."""
        mean, std = mean_and_std(Mapped(batches, lambda x: self.posterior(self.standardise(x))[0]))
        self.code_mean.copy_(mean)
        self.code_std.copy_(std.clamp(min=1e-3 * float(std.mean()) + 1e-6))

    def stages(self) -> Sequence[Stage]:
        s = self.settings
        clip = CLIP * self.standardise.mean.numel()  # the loss grows with the number of pixels
        objective = Objective(self.negative_elbo, self.parameters(), lr=s.lr, schedule=late_drop, clip_norm=clip)
        return [
            Stage("elbo", [objective], epochs=30, batch_size=64, prepare=self.standardise.measure),
            Stage("codes", prepare=self.measure),
        ]

    def unlikely(self, mean: Tensor) -> Tensor:
        """Half the squared deviations of posterior means (B, latent) from those of the training images, in nats, (B,)."""
        return 0.5 * ((mean - self.code_mean) / self.code_std).square().sum(1)

    def attention(self, y: Tensor) -> Tensor:
        """ReLU(sum_k alpha_k A_k) of ``unlikely``, (B, *grid of the level)."""
        after = self.settings.level + 1
        with torch.enable_grad():
            maps = self.encoder[:after](y).detach().requires_grad_()
            return grad_cam(self.unlikely(self.posterior(maps, after)[0]), maps).detach().clamp(min=0)

    def _score(self, x: Tensor) -> Scores:
        s, y = self.settings, self.standardise(x)
        mean, _ = self.posterior(y)
        restored = self.decode(mean)
        if s.score == "attention":
            mode = "bilinear" if x.ndim == 4 else "trilinear"
            map = F.interpolate(self.attention(y)[:, None], size=self.shape[1:], mode=mode)[:, 0]
            map, image = gaussian_smooth(map, s.smoothing), self.unlikely(mean)
        else:
            map = gaussian_smooth((y - restored).square().mean(1), s.smoothing)
            image = reduce_map(map, s.reduce)
        return Scores(image, map, self.standardise.inverse(restored), latent=mean)
