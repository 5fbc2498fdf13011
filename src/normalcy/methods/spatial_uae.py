"""Spatial uncertainty autoencoder: reconstruction error with a spatial code blurred by Gaussian noise of fixed variance.

The code is a small image, so anatomy keeps its place; isotropic Gaussian noise on it limits its information to what normal images
have in common. The reconstruction error is the map, the reconstruction the nearest normal image. From J. Kim's tutorial on deep
anomaly detection (2020; a system for head CT, "in preparation", without code), after Grover and Ermon 2018, whose bound on the
mutual information of image and noisy code is the squared error.

| | Grover, Ermon | tutorial | normalcy |
|---|---|---|---|
| network | compressed measurements of flat images | spatial autoencoder, no sizes given | own choice |
| noise | Gaussian, fixed variance | Gaussian, fixed variance, not given | ``sigma`` |
| scale of the code, which would outgrow the noise | penalty on the encoder's weights | | bounded by tanh |
| scoring | | noise not specified | decodes without noise; ``spread`` from ``samples`` noisy decodings |
| CT window | | brain, 40/80 HU | any; ``preprocess=window:40:80`` |
| evaluation | | haemorrhage: more sensitive than VAE and VAE-GAN, no numbers | lesions of ``recipes/brain_lesions.py`` |

``spread`` is the standard deviation over the noisy decodings, with the same noise for all images. The code of Grover and Ermon is
not compared here.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.config import require
from normalcy.method import Method, Objective, Scores, Stage
from normalcy.nets.convnets import conv, initialise
from normalcy.nets.filters import Reduce, check_reduce, gaussian_smooth, reduce_map
from normalcy.nets.noise import fixed_noise
from normalcy.nets.scaling import Standardise
from normalcy.nets.schedules import late_drop


@dataclass(frozen=True)
class SpatialUAESettings:
    latent: int = 8
    """Channels of the spatial code."""
    halvings: int = 3
    """Strided layers of the encoder: the code has 1 / 2^halvings of the image's sides."""
    sigma: float = 0.2
    """Standard deviation of the noise on codes, which are in [-1, 1]."""
    width: int = 16
    """Channels of the first level, doubled with each halving."""
    samples: int = 4
    """Noisy decodings for the spread; 0: no spread."""
    lr: float = 2e-3
    """Learning rate (Adam); a tenth of it in the last third of the training."""
    smoothing: float = 1.0
    """Standard deviation of the Gaussian that smooths the map, in pixels; 0: no smoothing."""
    reduce: Reduce = "auto"
    """Image score: "mean", "max" or "top" (mean of the largest 1 %) of the map, or this quantile of it, in [0, 1]; "auto": "mean"
    up to 32 pixels a side, else "top"."""

    def __post_init__(self) -> None:
        positive = ("latent", "halvings", "width", "lr")
        require("spatial_uae", self, positive=positive, non_negative=("sigma", "samples", "smoothing"))
        check_reduce("spatial_uae", self.reduce)


class SpatialUAE(Method):
    name = "spatial_uae"
    Settings = SpatialUAESettings
    family = "reconstruction"
    reference = (
        "A. Grover, S. Ermon. Uncertainty autoencoders: learning compressed representations via variational "
        "information maximization. arXiv:1812.10539, 2018\n"
        "Head CT: J. Kim. Recent advances in deep anomaly detection. Tutorial, 2020"
    )
    spatial_dims = (2, 3)
    search: ClassVar = {"latent": (2, 4, 8, 16, 32), "halvings": (2, 3, 4), "sigma": (0.0, 0.05, 0.1, 0.2, 0.5)}
    map_scores = ("",)
    settings: SpatialUAESettings

    def __init__(self, settings: SpatialUAESettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        s, channels, dims = settings, self.shape[0], len(self.shape) - 1
        layer = conv(dims)
        self.standardise = Standardise(self.shape)
        widths = [channels, *(s.width * 2**i for i in range(s.halvings))]
        encoder, decoder = nn.Sequential(), nn.Sequential()
        for before, after in itertools.pairwise(widths):
            encoder.extend([layer(before, after, 3, stride=2, padding=1), nn.LeakyReLU(0.1)])
            encoder.extend([layer(after, after, 3, padding=1), nn.LeakyReLU(0.1)])
        self.encoder = initialise(encoder.append(layer(widths[-1], s.latent, 1)), slope=0.1)
        decoder.append(layer(s.latent, widths[-1], 1))
        for before, after in zip(widths[:0:-1], [*widths[-2:0:-1], s.width], strict=True):
            decoder.extend([nn.LeakyReLU(0.1), nn.Upsample(scale_factor=2), layer(before, after, 3, padding=1)])
        decoder.extend([nn.LeakyReLU(0.1), layer(s.width, channels, 3, padding=1)])
        self.decoder = initialise(decoder, slope=0.1)
        with torch.no_grad():  # start at the mean image
            self.decoder[-1].weight.mul_(0.1)  # type: ignore[operator]

    def encode(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> (B, latent, *spatial / 2^halvings, rounded up), in [-1, 1]."""
        y = self.standardise(x)
        multiple = 2**self.settings.halvings
        missing = [side for n in reversed(self.shape[1:]) for side in (0, -n % multiple)]
        code: Tensor = self.encoder(F.pad(y, missing, mode="replicate"))
        return torch.tanh(code.float())

    def decode(self, code: Tensor) -> Tensor:
        """The inverse, (B, C, *spatial), in the value range of the images."""
        y: Tensor = self.decoder(code)
        for axis, n in enumerate(self.shape[1:], start=2):
            y = y.narrow(axis, 0, n)
        return self.standardise.inverse(y.float())

    def reconstruction(self, x: Tensor) -> Mapping[str, Tensor]:
        """Mean squared error with a noisy code, on standardised images."""
        code = self.encode(x)
        restored = self.decode(code + self.settings.sigma * torch.randn_like(code))
        error = ((x - restored) / self.standardise.scale).square().mean()
        return {"loss": error}

    def stages(self) -> Sequence[Stage]:
        objective = Objective(self.reconstruction, self.parameters(), lr=self.settings.lr, schedule=late_drop)
        return [Stage("reconstruction", [objective], epochs=30, batch_size=32, prepare=self.standardise.measure)]

    def _score(self, x: Tensor) -> Scores:
        s, code = self.settings, self.encode(x)
        restored = self.decode(code)
        error = gaussian_smooth((x - restored).abs().mean(1), s.smoothing)
        spread = None
        if s.samples:
            noise = fixed_noise(s.samples, *code.shape[1:]).to(code.device)
            noisy = torch.stack([self.decode(code + s.sigma * e) for e in noise])
            spread = noisy.std(0, correction=0).mean(1)
        return Scores(image=reduce_map(error, s.reduce), map=error, restored=restored, uncertainty=spread)
