"""Isolation forest: strange images are separated from the others by few random cuts.

Source: Liu, Ting, Zhou 2008; 100 trees on 256 images each, as there. Fitted with scikit-learn; the score is the negative of
its ``score_samples``, in (0, 1). On the features of a network it is ``deep_if``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from normalcy.errors import SettingsError
from normalcy.method import Batches, Method, Scores, Stage
from normalcy.nets.features import Features, FeatureSettings
from normalcy.nets.forest import IsolationTrees


@dataclass(frozen=True)
class IsolationForestSettings(FeatureSettings):
    trees: int = 100
    images_per_tree: int = 256
    """Drawn at random for each tree."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trees < 1 or self.images_per_tree < 2:
            raise SettingsError("isolation_forest: trees must be at least 1, images_per_tree at least 2.")


class IsolationForest(Method):
    name = "isolation_forest"
    Settings = IsolationForestSettings
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
