"""Deep IF: an isolation forest on the features of a pretrained network, each channel averaged over the image.

Ouardini et al. 2019, "Towards Practical Unsupervised Anomaly Detection on Retinal Images"; the strongest baseline on CIFAR-10
in table 1 of DPA (Shvetsova et al. 2021), whose search is over the layer. Nothing is trained but the forest.

Difference: EfficientNet-Lite0, which installs offline, and by default all of its layers together, instead of one layer of an
Inception-ResNet; small images are magnified, so that deep layers still see a grid.
Found with it (``normalcy reproduce dpa/three-classes``): AUROC 81.1, 80.9 and 83.3 % on car, frog and ship of CIFAR-10;
published 94.3, 90.3 and 92.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from normalcy.errors import SettingsError
from normalcy.method import Batches, Method, Scores, Stage
from normalcy.nets.backbones import Backbone
from normalcy.nets.forest import IsolationTrees


@dataclass(frozen=True)
class DeepIFSettings:
    backbone: str = "efficientnet_lite0"
    """timm name, "name:file" or the embedded efficientnet_lite0."""
    layers: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the backbone, concatenated."""
    magnify: int | None = None
    """Images are magnified so much for the backbone; none: until the longer side has 128 pixels, or not at all."""
    trees: int = 100
    images_per_tree: int = 256
    """Drawn at random for each tree."""

    def __post_init__(self) -> None:
        if self.trees < 1 or self.images_per_tree < 2 or (self.magnify is not None and self.magnify < 1):
            raise SettingsError("deep_if: trees and magnify must be at least 1, images_per_tree at least 2.")


class DeepIF(Method):
    name = "deep_if"
    Settings = DeepIFSettings
    search: ClassVar = {"layers": ((0, 1, 2, 3, 4), (1,), (2,), (3,), (4,), (2, 3, 4)), "trees": (100, 300)}
    settings: DeepIFSettings

    def __init__(self, settings: DeepIFSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.backbone = Backbone(settings.backbone, settings.layers, self.shape[0])
        self.magnify = settings.magnify or max(1, 128 // max(self.shape[1:]))
        self.forest = IsolationTrees(settings.trees, settings.images_per_tree)

    def stages(self) -> Sequence[Stage]:
        return [Stage("forest", prepare=self._learn)]

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, channels of all layers)."""
        if self.magnify > 1:
            x = F.interpolate(x, scale_factor=float(self.magnify), mode="bilinear")
        return torch.cat([maps.mean((2, 3)) for maps in self.backbone(x)], 1)

    def _learn(self, batches: Batches) -> None:
        self.forest.learn(torch.cat([self.features(x) for x in batches]))

    def _score(self, x: Tensor) -> Scores:
        features = self.features(x)
        return Scores(image=self.forest(features), latent=features)
