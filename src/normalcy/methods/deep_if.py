"""Deep IF: isolation forest on globally averaged features of a pretrained network; scored as ``isolation_forest``.

Each channel of the network's layers is averaged over the image; only the forest is trained. Ouardini et al. 2019; the strongest
baseline on CIFAR-10 in table 1 of DPA (Shvetsova et al. 2021).

| | paper | DPA's authors | normalcy |
| --- | --- | --- | --- |
| network | Inception-ResNet-v2 | the same | EfficientNet-Lite0, which installs offline |
| layers | last one, 1,536 channels | eleven, concatenated; "chosen": one of them | all six, concatenated |
| side of the images | 299 | 299 | at least 224, for which the network was trained |
| trees | | 100 | 500, chosen on training images of CIFAR-10 (``recipes/deep_if_trees.py``) |

On CIFAR-10 the distances of ``deep_knn`` and ``mahalanobis`` in the same features separate better than a forest (table
``dpa/ten-classes``): compare with them first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from normalcy import config
from normalcy.method import Batches, Method, Scores, Stage
from normalcy.nets.forest import IsolationTrees
from normalcy.nets.pooled import PooledFeatures


@dataclass(frozen=True)
class DeepIFSettings:
    backbone: str = "efficientnet_lite0"
    """Pretrained network: timm name, "name:file" or the embedded efficientnet_lite0."""
    layers: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """Layers of the backbone whose features are concatenated; 5 of efficientnet_lite0 is the last convolution after its
    activation."""
    side: int = 224
    """Images whose longer side is shorter are enlarged to this many pixels (the paper: 299)."""
    trees: int = 500
    """Number of isolation trees (Liu et al. 2008: 100)."""
    images_per_tree: int = 256
    """Number of training images drawn at random for each tree (Liu et al. 2008: 256)."""
    bf16: bool = False
    """Run the backbone in bfloat16: about twice as fast where the processor supports it."""

    def __post_init__(self) -> None:
        config.require("deep_if", self, positive=("side", "trees"), at_least={"images_per_tree": 2})


class DeepIF(Method):
    name = "deep_if"
    Settings = DeepIFSettings
    family = "density"
    reference = (
        "K. Ouardini et al. Towards practical unsupervised anomaly detection on retinal images. Domain Adaptation and "
        "Representation Transfer (MICCAI workshop), 2019."
    )
    search: ClassVar = {"layers": ((0, 1, 2, 3, 4, 5), (2,), (3,), (4,), (5,), (4, 5)), "trees": (100, 500)}
    settings: DeepIFSettings

    def __init__(self, settings: DeepIFSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        s = settings
        self.features = PooledFeatures(s.backbone, s.layers, self.shape, s.side, s.bf16)
        self.forest = IsolationTrees(s.trees, s.images_per_tree)

    def stages(self) -> Sequence[Stage]:
        return [Stage("forest", prepare=self._learn)]

    def _learn(self, batches: Batches) -> None:
        self.forest.learn(self.features.gather(batches))

    def _score(self, x: Tensor) -> Scores:
        features = self.features(x)
        return Scores(image=self.forest(features), latent=features)
