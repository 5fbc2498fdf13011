"""Deep nearest neighbours: distance of an image's pretrained features to those of its nearest normal images.

The channels of a pretrained network's last layer are averaged over the image; the score is the mean distance to the nearest
training images in this space. Nothing is trained. Bergman, Cohen, Hoshen 2020 (DN2): a simple reference that trained methods
have to beat on photographs of objects. Where in an image the anomaly lies remains unknown, and small defects weigh little:
``patchcore`` does the same for patches.

| | paper | normalcy |
| --- | --- | --- |
| network | ResNet-101, ImageNet | EfficientNet-Lite0, which installs offline |
| distance | Euclidean, k = 2 | cosine, k = 5; ``distance``, ``neighbours`` |
| training images | all; or centres of k-means | at most ``memory``, at random |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F

from normalcy import config
from normalcy.method import Batches, Method, Scores, Stage
from normalcy.nets.neighbours import Reservoir, nearest
from normalcy.nets.pooled import PooledFeatures


@dataclass(frozen=True)
class DeepKNNSettings:
    backbone: str = "efficientnet_lite0"
    """Pretrained network: timm name, "name:file" or the embedded efficientnet_lite0."""
    layers: tuple[int, ...] = (5,)
    """Layers of the backbone whose features are concatenated; 5 of efficientnet_lite0 is the last convolution after its
    activation."""
    side: int = 224
    """Images whose longer side is shorter are enlarged to this many pixels."""
    neighbours: int = 5
    """k, the number of nearest training images (the paper: 2)."""
    distance: Literal["cosine", "euclidean"] = "cosine"
    """"cosine": 1 - cosine of the angle between feature vectors; "euclidean": the paper's."""
    memory: int = 50_000
    """Maximum number of training images that are kept, drawn at random."""
    bf16: bool = False
    """Run the backbone in bfloat16: about twice as fast where the processor supports it."""

    def __post_init__(self) -> None:
        config.require("deep_knn", self, positive=("side", "neighbours", "memory"))


class DeepKNN(Method):
    name = "deep_knn"
    Settings = DeepKNNSettings
    family = "density"
    reference = "L. Bergman, N. Cohen, Y. Hoshen. Deep nearest neighbor anomaly detection. arXiv:2002.10445, 2020."
    search: ClassVar = {"layers": ((3,), (4,), (5,), (4, 5)), "neighbours": (1, 2, 5, 20)}
    settings: DeepKNNSettings
    memory: Tensor

    def __init__(self, settings: DeepKNNSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        s = settings
        self.features = PooledFeatures(s.backbone, s.layers, self.shape, s.side, s.bf16)
        self.learned("memory")

    def stages(self) -> Sequence[Stage]:
        return [Stage("memory", prepare=self._remember)]

    def vectors(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, channels), of length 1 for the cosine distance."""
        features: Tensor = self.features(x)
        return F.normalize(features, dim=1) if self.settings.distance == "cosine" else features

    def _remember(self, batches: Batches) -> None:
        sample = Reservoir(self.settings.memory)
        for vectors in batches.map(self.vectors):
            sample.add(vectors)
        self.memory = sample.rows

    def _score(self, x: Tensor) -> Scores:
        vectors = self.vectors(x)
        distance, _ = nearest(vectors, self.memory, min(self.settings.neighbours, len(self.memory)))
        if self.settings.distance == "cosine":
            distance = distance.square() / 2  # |a - b|^2 = 2 - 2 cos for vectors of length 1
        return Scores(image=distance.mean(1), latent=vectors)
