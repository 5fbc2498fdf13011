"""DSEBM, deep structured energy-based model: scores an image by its energy under a network trained by score matching.

E(x) = 1/2 |x - b|^2 - sum of softplus features of a convolutional network (Zhai et al. 2016). By score matching, learning E is
learning to denoise: x - dE/dx at a noisy image is trained to be the clean image, so no samples of the model are needed, and
x - dE/dx is a reconstruction.

==================  ====================================================================================================
``energy``          E(x), which the paper finds better on images
``reconstruction``  |dE/dx|^2, the squared error of the reconstruction; it gives the map with either score
==================  ====================================================================================================

| | paper | normalcy |
| --- | --- | --- |
| input | x | x minus the mean training image; there b starts at 0 |
| energy and error of an image | sums over pixels | means over pixels, so that image sizes are comparable |
| network | | strided convolutions with a softplus after each |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy import config
from normalcy.method import Method, Objective, Scores, Stage
from normalcy.nets.convnets import conv, initialise
from normalcy.nets.filters import Reduce, check_reduce, gaussian_smooth, reduce_map
from normalcy.nets.scaling import Standardise

Score = Literal["energy", "reconstruction"]


@dataclass(frozen=True)
class DSEBMSettings:
    score: Score = "energy"
    """"energy": E(x), mean over pixels; "reconstruction": |dE/dx|^2 of the pixels (``reduce``)."""
    width: int = 32
    """Channels of the first level."""
    features: int = 256
    """Softplus units of the last layer."""
    noise: float = 0.5
    """Standard deviation of the noise in training, in units of the training images' standard deviation around their mean."""
    lr: float = 1e-3
    """Learning rate (Adam)."""
    smoothing: float = 0.0
    """Standard deviation of the Gaussian that smooths the map, in pixels."""
    reduce: Reduce = "auto"
    """Image score of "reconstruction": "mean", "max" or "top" (largest 1 %) of the error, or this quantile of it, in [0, 1];
    "auto": "mean" up to 32 pixels a side, else "top"."""

    def __post_init__(self) -> None:
        config.require("dsebm", self, positive=("width", "features", "noise", "lr"), non_negative=("smoothing",))
        check_reduce("dsebm", self.reduce)


class DSEBM(Method):
    name = "dsebm"
    Settings = DSEBMSettings
    family = "density"
    reference = (
        "S. Zhai, Y. Cheng, W. Lu, Z. Zhang. Deep structured energy based models for anomaly detection. ICML, 2016. "
        "arXiv:1605.07717."
    )
    scores = get_args(Score)
    spatial_dims = (2, 3)
    search: ClassVar = {"score": get_args(Score), "noise": (0.1, 0.2, 0.5, 1.0), "features": (64, 256, 1024)}
    not_exportable: ClassVar = dict.fromkeys(
        get_args(Score), "its map is the gradient of the energy with respect to the image; take autoencoder."
    )
    map_scores = ("reconstruction",)
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
        """E of standardised images (B, C, *spatial), mean over pixels, (B,)."""
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
        """Score matching: mean squared difference of the image and the noisy image minus dE/dy."""
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
        image = self.energy(y) if self.settings.score == "energy" else reduce_map(error, self.settings.reduce)
        map = gaussian_smooth(error, self.settings.smoothing)
        return Scores(image=image, map=map, restored=self.standardise.inverse(y - gradient))
