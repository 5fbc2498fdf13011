"""Deep IF: isolation forest on globally averaged features of a pretrained network; scored as ``isolation_forest``.

Each channel of the network's layers is averaged over the image; only the forest is trained. Ouardini et al. 2019; the strongest
baseline on CIFAR-10 in table 1 of DPA (Shvetsova et al. 2021), where the layer was searched.

| | paper | normalcy |
| --- | --- | --- |
| network | Inception-ResNet | EfficientNet-Lite0, which installs offline |
| layers | one | all together by default |
| small images | | magnified, so that deep layers still have a grid |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from normalcy import config
from normalcy.method import Batches, Method, Scores, Stage
from normalcy.nets.backbones import Backbone
from normalcy.nets.forest import IsolationTrees


@dataclass(frozen=True)
class DeepIFSettings:
    backbone: str = "efficientnet_lite0"
    """Pretrained network: timm name, "name:file" or the embedded efficientnet_lite0."""
    layers: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Layers of the backbone whose features are concatenated."""
    magnify: int | None = None
    """Factor by which images are enlarged for the backbone; none: until the longer side has 128 pixels, or not at all."""
    trees: int = 100
    """Number of isolation trees (Liu et al. 2008: 100)."""
    images_per_tree: int = 256
    """Number of training images drawn at random for each tree (Liu et al. 2008: 256)."""

    def __post_init__(self) -> None:
        config.require("deep_if", self, positive=("magnify", "trees"), at_least={"images_per_tree": 2})


class DeepIF(Method):
    name = "deep_if"
    Settings = DeepIFSettings
    family = "density"
    reference = (
        "K. Ouardini et al. Towards practical unsupervised anomaly detection on retinal images. Domain Adaptation and "
        "Representation Transfer (MICCAI workshop), 2019."
    )
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
