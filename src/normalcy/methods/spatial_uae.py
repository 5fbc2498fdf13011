"""Spatial uncertainty autoencoder: a code that keeps its place in the image and is blurred by noise of a fixed variance.

The code is a small image itself, so anatomy stays where it is; isotropic Gaussian noise on it limits what it can carry to what
normal images share. The reconstruction error is the map, the reconstruction a normal-like image. From the "Deep anomaly
detection in medical imaging" tutorial (spatial uncertainty autoencoder for head CT), after Grover, Ermon 2018, "Uncertainty
Autoencoders", whose bound on the mutual information of image and noisy code is the squared error.

Papers / ours (of the tutorial's system, "in preparation", there is no code; that of Grover and Ermon is not compared here):

- Grover and Ermon learn compressed measurements of flat images; the tutorial names a spatial autoencoder, Gaussian noise of a
  fixed variance and normal-like restored images, but no sizes / network, code and noise are ours.
- An unbounded encoder outgrows any fixed noise; Grover and Ermon penalise its weights / codes are bounded by tanh.
- Noise in scoring is not spoken of / the code is decoded without noise, and ``spread`` is the deviation over ``samples``
  decodings with noise, the same for all images.
- The tutorial looks at CT in the window of the brain, 40/80 HU / ``preprocess=window:40:80``, or any other.
- It claims better sensitivity for haemorrhage than VAE and VAE-GAN, without numbers / ``recipes/brain_lesions.py`` measures
  sensitivity by lesion at a fixed rate of false alarms beside ``vae``, on synthetic lesions: in MR of the brain 0.74 (0.60 to
  0.87) at 5 false regions per volume and 0.61 (0.49 to 0.74) for the VAE's reconstruction, but 0.16 and 0.18 at one; in CT of an
  abdomen, where bones and noise make the error, the VAE is the better of two poor ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.errors import SettingsError
from normalcy.method import Method, Objective, Scores, Stage
from normalcy.nets.convnets import Standardise, initialise
from normalcy.nets.filters import Reduce, check_reduce, gaussian_smooth, reduce_map
from normalcy.nets.noise import fixed_noise
from normalcy.nets.schedules import late_drop

_CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class SpatialUAESettings:
    latent: int = 8
    """Channels of the code."""
    halvings: int = 3
    """The code has 1 / 2^halvings of the image's sides."""
    sigma: float = 0.2
    """Deviation of the noise on codes in [-1, 1]."""
    width: int = 16
    """Channels next to the image, doubled with each halving."""
    samples: int = 4
    """Noisy decodings for the spread; 0: no spread."""
    lr: float = 2e-3
    """Of Adam; a tenth of it in the last third of the training."""
    smoothing: float = 1.0
    """Deviation of a Gaussian over the map, in pixels."""
    reduce: Reduce = "mean"
    """The image score: "mean" or "max" of the map, or this quantile of it, in [0, 1]."""

    def __post_init__(self) -> None:
        if min(self.latent, self.halvings, self.width) < 1 or self.lr <= 0:
            raise SettingsError("spatial_uae: latent, halvings, width and lr must be positive.")
        if min(self.sigma, self.samples, self.smoothing) < 0:
            raise SettingsError("spatial_uae: sigma, samples and smoothing must not be negative.")
        check_reduce("spatial_uae", self.reduce)


class SpatialUAE(Method):
    name = "spatial_uae"
    Settings = SpatialUAESettings
    spatial_dims = (2, 3)
    search: ClassVar = {"latent": (2, 4, 8, 16, 32), "halvings": (2, 3, 4), "sigma": (0.0, 0.05, 0.1, 0.2, 0.5)}
    settings: SpatialUAESettings

    def __init__(self, settings: SpatialUAESettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        s, channels, dims = settings, self.shape[0], len(self.shape) - 1
        conv = _CONV[dims]
        self.standardise = Standardise(self.shape)
        widths = [channels, *(s.width * 2**i for i in range(s.halvings))]
        encoder, decoder = nn.Sequential(), nn.Sequential()
        for before, after in itertools.pairwise(widths):
            encoder.extend([conv(before, after, 3, stride=2, padding=1), nn.LeakyReLU(0.1)])
            encoder.extend([conv(after, after, 3, padding=1), nn.LeakyReLU(0.1)])
        self.encoder = initialise(encoder.append(conv(widths[-1], s.latent, 1)), slope=0.1)
        decoder.append(conv(s.latent, widths[-1], 1))
        for before, after in zip(widths[:0:-1], [*widths[-2:0:-1], s.width], strict=True):
            decoder.extend([nn.LeakyReLU(0.1), nn.Upsample(scale_factor=2), conv(before, after, 3, padding=1)])
        decoder.extend([nn.LeakyReLU(0.1), conv(s.width, channels, 3, padding=1)])
        self.decoder = initialise(decoder, slope=0.1)
        with torch.no_grad():  # begin at the mean image
            self.decoder[-1].weight.mul_(0.1)  # type: ignore[operator]

    def encode(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> (B, latent, *spatial / 2^halvings, rounded up), in [-1, 1]."""
        y = self.standardise(x)
        multiple = 2**self.settings.halvings
        missing = [side for n in reversed(self.shape[1:]) for side in (0, -n % multiple)]
        code: Tensor = self.encoder(F.pad(y, missing, mode="replicate"))
        return torch.tanh(code.float())

    def decode(self, code: Tensor) -> Tensor:
        """The reverse, (B, C, *spatial)."""
        y: Tensor = self.decoder(code)
        for axis, n in enumerate(self.shape[1:], start=2):
            y = y.narrow(axis, 0, n)
        return self.standardise.inverse(y.float())

    def reconstruction(self, x: Tensor) -> Mapping[str, Tensor]:
        """Mean squared error after noise on the code, in squared deviations of the training images."""
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
