"""Grad-CAM of a VAE's latent code localises what makes an image atypical; scored by how unlikely the code is.

Liu et al. 2020, section 3. The gradient of a value computed from the code with respect to the feature maps A_k of an encoder
level, averaged over the map, gives weights alpha_k; M = ReLU(sum_k alpha_k A_k) is its attention map.

==================  ====================================================================================================
``attention``       image score: how unlikely the code is among those of the training images, the sum of half the squared
                    differences of the posterior mean from their mean, in units of their standard deviations; map: the
                    attention of this score
``reconstruction``  map: squared error; image score: its mean
==================  ====================================================================================================

| | paper | authors' code | normalcy |
|---|---|---|---|
| attention of | codes drawn from the difference to posteriors of normal images | sum of the posterior mean | the image score |
| image score | none | | as above |
| feature maps | | second convolution, a quarter of the side | ``level`` |
| sign of the map | ReLU | absolute value | ``sign`` |
| size of the map | | | bilinear interpolation to the image's size |

The sum of a code can be small or large for anomalous images, so it is no score; the attention of the squared difference
grows with what moves the code away from those of normal images. Grad-CAM follows activations: where an image is bright,
attention is high in part for that reason alone, so compare both maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.config import require, require_that
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
    """"attention": how unlikely the code is, with its Grad-CAM as map; "reconstruction": squared error."""
    latent: int = 32
    """Latent dimension."""
    level: int | None = None
    """Encoder level of the feature maps: 0 has half the image's sides, 1 a quarter ...; none: 1, if there are two levels."""
    sign: Literal["absolute", "relu"] = "absolute"
    """Map from the weighted sum of feature maps: its absolute value, as in the authors' code, or its positive part ("relu")."""
    width: int | None = None
    """Channels of the first level; none: 32."""
    beta: float = 1.0
    """Weight of the KL in training."""
    lr: float = 1e-3
    """Learning rate (Adam); a tenth of it in the last third of the training."""
    smoothing: float = 1.0
    """Standard deviation of the Gaussian that smooths the map, in pixels; 0: no smoothing."""
    reduce: Reduce = "auto"
    """Image score of "reconstruction": "mean", "max" or "top" (mean of the largest 1 %) of the map, or this quantile of it, in
    [0, 1]; "auto": "mean" up to 32 pixels a side, else "top"."""

    def __post_init__(self) -> None:
        require("vae_attention", self, positive=("latent", "lr"), non_negative=("level", "beta", "smoothing"))
        check_reduce("vae_attention", self.reduce)


class VAEAttention(Method):
    name = "vae_attention"
    Settings = VAEAttentionSettings
    family = "reconstruction"
    reference = (
        "W. Liu, R. Li, M. Zheng, S. Karanam, Z. Wu, B. Bhanu, R. J. Radke, O. Camps. Towards visually explaining "
        "variational autoencoders. CVPR, 2020. arXiv:1911.07389"
    )
    scores = get_args(Score)
    spatial_dims = (2, 3)
    search: ClassVar = {"score": get_args(Score), "latent": (8, 16, 32, 64, 128), "level": (0, 1)}
    not_exportable: ClassVar = {"attention": "it is a gradient of the latent code; take score=reconstruction."}
    map_scores = ("reconstruction",)
    settings: VAEAttentionSettings
    code_mean: Tensor
    code_std: Tensor

    def __init__(self, settings: VAEAttentionSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        net: ConvNet = choose("dcgan", self.shape, settings.width)
        self.level = min(1, len(net.channels) - 1) if settings.level is None else settings.level
        expected = f"one of the levels 0 to {len(net.channels) - 1} of the encoder of images {self.shape}"
        require_that(self.level < len(net.channels), "vae_attention", "level", expected, self.level)
        self.standardise = Standardise(self.shape)
        self.encoder = net.encoder(self.shape, 2 * settings.latent)
        self.decoder = net.decoder(self.shape, settings.latent)
        with torch.no_grad():  # the posterior starts near the prior
            last = self.encoder[-1]
            assert isinstance(last, nn.Linear)
            last.weight.mul_(0.1)
        self.register_buffer("code_mean", torch.zeros(settings.latent))
        self.register_buffer("code_std", torch.ones(settings.latent))

    def posterior(self, h: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, (B, latent) each, from the input of level ``first`` of the encoder."""
        mean, logvar = self.encoder[first:](h).float().chunk(2, dim=1)
        return mean, logvar.clamp(-30, 30)

    def decode(self, z: Tensor) -> Tensor:
        """(B, latent) -> standardised images (B, C, *spatial)."""
        restored: Tensor = self.decoder(z)
        return restored.float()

    def negative_elbo(self, x: Tensor) -> Mapping[str, Tensor]:
        """In nats per image, up to a constant, on standardised images with unit variance of the observations."""
        y = self.standardise(x)
        mean, logvar = self.posterior(y)
        nll = 0.5 * (y - self.decode(draw(mean, logvar))).square().flatten(1).sum(1).mean()
        kl = kl_to_standard(mean, logvar).mean()
        return {"loss": nll + self.settings.beta * kl, "nll": nll, "kl": kl}

    def measure(self, batches: Batches) -> None:
        """Measure mean and standard deviation of the codes of the training images."""
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

    def atypicality(self, mean: Tensor) -> Tensor:
        """Half the squared distance of posterior means (B, latent) from their training mean, in standard deviations: (B,)."""
        return 0.5 * ((mean - self.code_mean) / self.code_std).square().sum(1)

    def attention(self, y: Tensor) -> Tensor:
        """|sum_k alpha_k A_k|, or its positive part, for ``atypicality``: standardised images -> (B, *grid of the level)."""
        after = self.level + 1
        with torch.enable_grad():
            maps = self.encoder[:after](y).detach().requires_grad_()
            attended = grad_cam(self.atypicality(self.posterior(maps, after)[0]), maps).detach()
        return attended.abs() if self.settings.sign == "absolute" else attended.clamp(min=0)

    def _score(self, x: Tensor) -> Scores:
        s, y = self.settings, self.standardise(x)
        mean, _ = self.posterior(y)
        restored = self.decode(mean)
        if s.score == "attention":
            mode = "bilinear" if x.ndim == 4 else "trilinear"
            map = F.interpolate(self.attention(y)[:, None], size=self.shape[1:], mode=mode)[:, 0]
            map, image = gaussian_smooth(map, s.smoothing), self.atypicality(mean)
        else:
            map = gaussian_smooth((y - restored).square().mean(1), s.smoothing)
            image = reduce_map(map, s.reduce)
        return Scores(image, map, self.standardise.inverse(restored), latent=mean)
