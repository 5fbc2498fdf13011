"""Isolation forest on pixels or deep features; the score is high where few random splits isolate an image.

Images are represented by their pixels or by pooled deep features (``features``), then PCA to 95 % of the variance. 100 trees on
256 images each (Liu, Ting, Zhou 2008), fitted with scikit-learn; the score is the negative of its ``score_samples``, in (0, 1).
On globally averaged features of all layers of a network it is ``deep_if``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from normalcy import config
from normalcy.method import Batches, Method, Scores, Stage
from normalcy.nets.features import Features, FeatureSettings
from normalcy.nets.forest import IsolationTrees


@dataclass(frozen=True)
class IsolationForestSettings(FeatureSettings):
    trees: int = 100
    """Number of isolation trees (paper: 100)."""
    images_per_tree: int = 256
    """Number of training images drawn at random for each tree (paper: 256)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        config.require("isolation_forest", self, positive=("trees",), at_least={"images_per_tree": 2})


class IsolationForest(Method):
    name = "isolation_forest"
    Settings = IsolationForestSettings
    family = "density"
    reference = (
        "F. T. Liu, K. M. Ting, Z.-H. Zhou. Isolation forest. ICDM, 2008. doi:10.1109/ICDM.2008.17.\n"
        "On features of a backbone: N. Tuluptceva, B. Bakker, I. Fedulova, H. Schulz, D. V. Dylov. Anomaly detection with "
        "deep perceptual autoencoders. arXiv:2006.13265, 2020."
    )
    spatial_dims = (2, 3)
    settings: IsolationForestSettings

    def __init__(self, settings: IsolationForestSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.features = Features(settings, self.shape)
        self.forest = IsolationTrees(settings.trees, settings.images_per_tree)

    def stages(self) -> Sequence[Stage]:
        return [Stage("forest", prepare=self._learn)]

    def _learn(self, batches: Batches) -> None:
        self.forest.learn(self.features.learn(batches))

    def _score(self, x: Tensor) -> Scores:
        return Scores(image=self.forest(self.features(x)))
