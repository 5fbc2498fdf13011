"""Mahalanobis distance of an image's pretrained features from the Gaussian that is fitted to those of normal images.

The channels of a pretrained network's layers are averaged over the image, divided by their standard deviations over the training
images and reduced by PCA; the score is the Mahalanobis distance there. Rippel, Mertens, Merhof 2020: a simple reference that
trained methods have to beat on photographs.

| | paper | normalcy |
| --- | --- | --- |
| network | EfficientNet-B4, ImageNet | EfficientNet-Lite0, which installs offline |
| layers | each has a Gaussian; distances are summed | one Gaussian over all layers; ``layers`` |
| covariance | shrunk (Ledoit, Wolf 2004), or PCA | PCA to 95 % of the variance |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from normalcy import config
from normalcy.errors import DataError
from normalcy.method import Batches, Method, Scores, Stage
from normalcy.nets.pooled import PooledFeatures
from normalcy.nets.statistics import principal_components


@dataclass(frozen=True)
class MahalanobisSettings:
    backbone: str = "efficientnet_lite0"
    """Pretrained network: timm name, "name:file" or the embedded efficientnet_lite0."""
    layers: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """Layers of the backbone whose features are concatenated; 5 of efficientnet_lite0 is the last convolution after its
    activation."""
    side: int = 224
    """Images whose longer side is shorter are enlarged to this many pixels."""
    variance: float = 0.95
    """Fraction of the variance of the features that PCA keeps."""
    bf16: bool = False
    """Run the backbone in bfloat16: about twice as fast where the processor supports it."""

    def __post_init__(self) -> None:
        config.require("mahalanobis", self, positive=("side",), fraction=("variance",))


class Mahalanobis(Method):
    name = "mahalanobis"
    Settings = MahalanobisSettings
    family = "density"
    reference = (
        "O. Rippel, P. Mertens, D. Merhof. Modeling the distribution of normal data in pre-trained deep features for "
        "anomaly detection. ICPR, 2020. arXiv:2005.14140"
    )
    search: ClassVar = {"layers": ((0, 1, 2, 3, 4, 5), (3,), (4,), (5,), (4, 5)), "variance": (0.9, 0.95, 0.99)}
    settings: MahalanobisSettings
    centre: Tensor
    whitening: Tensor

    def __init__(self, settings: MahalanobisSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        s = settings
        self.features = PooledFeatures(s.backbone, s.layers, self.shape, s.side, s.bf16)
        self.learned("centre", "whitening")

    def stages(self) -> Sequence[Stage]:
        return [Stage("gaussian", prepare=self._learn)]

    def _learn(self, batches: Batches) -> None:
        vectors = self.features.gather(batches)
        self.centre = vectors.mean(0)
        std = (vectors - self.centre).square().mean(0).sqrt()
        if float(std.max()) <= 1e-5 * float(self.centre.abs().max()):
            raise DataError("mahalanobis: the training images have equal features; provide more, different images.")
        scale = torch.where(std > 1e-5 * std.max(), std, torch.inf)  # channels without variation do not count
        basis, variance = principal_components([(vectors - self.centre) / scale], len(vectors), self.settings.variance)
        self.whitening = (basis / variance.sqrt()[:, None]).T / scale[:, None]

    def _score(self, x: Tensor) -> Scores:
        whitened = (self.features(x) - self.centre) @ self.whitening  # (B, components), of unit variance
        return Scores(image=whitened.norm(dim=1), latent=whitened)
