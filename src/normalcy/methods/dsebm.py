"""DSEBM, deep structured energy-based model: a network gives each image an energy; normal images lie where it is low and flat.

E(x) = 1/2 |x - b|^2 - sum of softplus features of a convolutional network (Zhai et al. 2016, "Deep Structured Energy Based
Models for Anomaly Detection"). By score matching, learning E is learning to denoise: x - dE/dx at a noisy image is to be the
image, so no samples of the model are needed, and x - dE/dx is a reconstruction.

==================  ====================================================================================================
``energy``          E(x)
``reconstruction``  |dE/dx|^2, the squared error of the reconstruction; it gives the map in any case
==================  ====================================================================================================

Paper / ours: x as it is / as deviations from the mean training image, in which b begins at 0; sums / means over pixels, so that
sizes compare; strided convolutions with softplus after each. The paper finds the energy better on images, so it is the default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.errors import SettingsError
from normalcy.method import Method, Objective, Scores, Stage
from normalcy.nets.convnets import conv, initialise
from normalcy.nets.filters import gaussian_smooth
from normalcy.nets.scaling import Standardise

Score = Literal["energy", "reconstruction"]


@dataclass(frozen=True)
class DSEBMSettings:
    score: Score = "energy"
    width: int = 32
    """Channels of the first level."""
    features: int = 256
    """Softplus units at the end."""
    noise: float = 0.5
    """Deviation of the noise in training, in deviations of the training images from their mean."""
    lr: float = 1e-3
    """Of Adam."""
    smoothing: float = 0.0
    """Deviation of a Gaussian over the map, in pixels."""

    def __post_init__(self) -> None:
        if min(self.width, self.features) < 1 or min(self.lr, self.noise) <= 0 or self.smoothing < 0:
            raise SettingsError("dsebm: width, features, noise and lr must be positive, smoothing not negative.")


class DSEBM(Method):
    name = "dsebm"
    Settings = DSEBMSettings
    scores = get_args(Score)
    spatial_dims = (2, 3)
    search: ClassVar = {"score": get_args(Score), "noise": (0.1, 0.2, 0.5, 1.0), "features": (64, 256, 1024)}
    settings: DSEBMSettings

    def __init__(self, settings: DSEBMSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        s, layer = settings, conv(len(self.shape) - 1)
        self.standardise = Standardise(self.shape)
        self.bias = nn.Parameter(torch.zeros(self.shape))
        sides, layers, before, after = list(self.shape[1:]), nn.Sequential(), self.shape[0], s.width
        while min(sides) >= 8 and len(layers) < 8:
            layers.extend([layer(before, after, 5, stride=2, padding=2), nn.Softplus()])
            sides, before, after = [(n + 1) // 2 for n in sides], after, min(2 * after, 4 * s.width)
        size = before
        for n in sides:
            size *= n
        self.network = initialise(layers.extend([nn.Flatten(), nn.Linear(size, s.features), nn.Softplus()]), slope=0.0)

    def energy(self, y: Tensor) -> Tensor:
        """E of deviations (B, C, *spatial), mean over pixels, (B,)."""
        far = 0.5 * (y - self.bias).square().flatten(1).sum(1)
        features: Tensor = self.network(y)
        return (far - features.float().sum(1)) / y[0].numel()

    def step(self, y: Tensor, create_graph: bool = False) -> Tensor:
        """dE/dy of the energy summed over pixels, (B, C, *spatial)."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.energy(y).sum() * y[0].numel(), y, create_graph=create_graph)
        return gradient.float()

    def denoising(self, x: Tensor) -> Mapping[str, Tensor]:
        """Score matching: mean squared difference of the image and the noisy image after a step down."""
        y = self.standardise(x)
        noisy = y + self.settings.noise * torch.randn_like(y)
        create = torch.is_grad_enabled()
        return {"loss": F.mse_loss(noisy - self.step(noisy, create_graph=create), y)}

    def stages(self) -> Sequence[Stage]:
        objective = Objective(self.denoising, self.parameters(), lr=self.settings.lr, clip_norm=10.0)
        return [Stage("denoising", [objective], epochs=50, batch_size=64, prepare=self.standardise.measure)]

    def _score(self, x: Tensor) -> Scores:
        y = self.standardise(x)
        gradient = self.step(y)
        error = gradient.square().mean(1)
        image = self.energy(y) if self.settings.score == "energy" else error.flatten(1).mean(1)
        map = gaussian_smooth(error, self.settings.smoothing)
        return Scores(image=image, map=map, restored=self.standardise.inverse(y - gradient))
