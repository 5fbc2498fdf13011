"""CNN feature dictionary: a patch is strange when its features are far from the few that stand for all normal patches.

Features of patches by a pretrained network, reduced by principal components to 95 % of the variance, then k-means; the
dictionary holds, for each of the ``words`` centres, the training patch nearest to it. A patch's score is its mean Euclidean
distance to the ``nearest`` words (Napoletano, Piccoli, Schettini 2018, "Anomaly Detection in Nanofibrous Materials by CNN-Based
Self-Similarity").

Differences: features are taken from the maps of a layer in one pass (a patch is what a place sees, averaged over ``pool``
places) instead of running a ResNet-18 on each patch; principal components and centres are learned from at most ``patches``
random ones. The image's score is the mean over the strangest ``top`` share of places; the paper gives pixels only, with a
threshold on the training patches' mean and deviation, which normalcy's calibration replaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional as F

from normalcy.errors import DataError, SettingsError
from normalcy.method import Batches, Method, Scores, Stage
from normalcy.nets.backbones import Backbone
from normalcy.nets.filters import gaussian_smooth
from normalcy.nets.neighbours import Reservoir, nearest
from normalcy.nets.seeds import random_state
from normalcy.nets.statistics import principal_components


@dataclass(frozen=True)
class CNNDictionarySettings:
    backbone: str = "efficientnet_lite0"
    """timm name, "name:file" or the embedded efficientnet_lite0."""
    layer: int = 2
    """Its layer (1/8 of the image's side for the default)."""
    pool: int = 3
    """Places, odd, over whose square features are averaged."""
    variance: float = 0.95
    """Share of the variance that the principal components keep."""
    words: int = 100
    """Patches in the dictionary (the paper tries 10 to 1000)."""
    nearest: int = 5
    """m, the words to which the distance is measured."""
    patches: int = 20_000
    """At most so many patches of the training images are looked at."""
    top: float = 0.1
    """Image score: mean over this share of the strangest places; 0 is the maximum, 1 the mean of all."""
    smoothing: float = 4.0
    """Deviation of a Gaussian over the map, in pixels."""

    def __post_init__(self) -> None:
        if min(self.words, self.nearest, self.patches) < 1 or self.pool < 1 or self.pool % 2 == 0:
            raise SettingsError("cnn_dictionary: words, nearest and patches must be positive, pool odd and positive.")
        if not 0 < self.variance < 1 or not 0 <= self.top <= 1 or self.smoothing < 0:
            raise SettingsError(
                "cnn_dictionary: variance must lie in (0, 1), top in [0, 1], smoothing must not be negative."
            )


class CNNDictionary(Method):
    name = "cnn_dictionary"
    Settings = CNNDictionarySettings
    search: ClassVar = {"layer": (1, 2, 3), "words": (10, 30, 100, 300, 1000), "nearest": (1, 5, 10)}
    settings: CNNDictionarySettings
    centre: Tensor
    basis: Tensor
    dictionary: Tensor

    def __init__(self, settings: CNNDictionarySettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.backbone = Backbone(settings.backbone, (settings.layer,), self.shape[0])
        self.learned("centre", "basis", "dictionary")

    def stages(self) -> Sequence[Stage]:
        return [Stage("dictionary", prepare=self._learn)]

    def patches(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, h, w, D)."""
        (maps,) = self.backbone(x)
        pool = self.settings.pool
        maps = F.avg_pool2d(maps, pool, stride=1, padding=pool // 2, count_include_pad=False)
        return maps.permute(0, 2, 3, 1)

    def _learn(self, batches: Batches) -> None:
        sample = Reservoir(self.settings.patches)
        for x in batches:
            sample.add(self.patches(x).flatten(0, 2))
        rows = sample.rows
        self.centre = rows.mean(0)
        if not bool((rows - self.centre).any()):
            raise DataError("cnn_dictionary: the training patches are all equal: give images that differ.")
        self.basis, _ = principal_components([rows - self.centre], len(rows), self.settings.variance)
        reduced = (rows - self.centre) @ self.basis.T
        count = min(self.settings.words, len(reduced))
        centres = KMeans(count, n_init=1, random_state=random_state()).fit(reduced.cpu().numpy()).cluster_centers_
        chosen = nearest(torch.from_numpy(centres).to(reduced), reduced)[1][:, 0]
        self.dictionary = reduced[torch.unique(chosen)].contiguous()

    def _score(self, x: Tensor) -> Scores:
        reduced = (self.patches(x) - self.centre) @ self.basis.T
        distance = nearest(reduced.flatten(0, 2), self.dictionary, self.settings.nearest)[0].mean(1)
        maps = distance.view(reduced.shape[:3])
        count = max(1, round(self.settings.top * maps[0].numel()))
        image = maps.flatten(1).topk(count, dim=1).values.mean(1)
        full = F.interpolate(maps[:, None], size=self.shape[1:], mode="bilinear")[:, 0]
        return Scores(image=image, map=gaussian_smooth(full, self.settings.smoothing))
