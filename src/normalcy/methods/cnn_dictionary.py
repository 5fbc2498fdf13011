"""CNN feature dictionary: distance of each patch's deep features to the nearest entries of a dictionary of normal patches.

Features of normal patches from a pretrained network are reduced by PCA to 95 % of the variance and clustered by k-means; the
dictionary holds, for each of the ``words`` centres, the nearest training patch. The score of a patch is its mean Euclidean
distance to the ``nearest`` entries (Napoletano, Piccoli, Schettini 2018); the score of the image is the mean over the ``top``
highest-scoring positions.

| | paper | normalcy |
| --- | --- | --- |
| patch features | a ResNet-18 run on each patch | maps of one layer, averaged over ``pool`` x ``pool`` positions, in one pass |
| PCA and k-means | training patches | at most ``patches`` random ones |
| image score | none, pixels only | mean over the fraction ``top`` of positions |
| threshold | mean and standard deviation of training patches | normalcy's calibration |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional as F

from normalcy import config
from normalcy.errors import DataError
from normalcy.method import Batches, Method, Scores, Stage
from normalcy.nets.backbones import Backbone
from normalcy.nets.filters import gaussian_smooth
from normalcy.nets.neighbours import Reservoir, nearest
from normalcy.nets.seeds import random_state
from normalcy.nets.statistics import principal_components


@dataclass(frozen=True)
class CNNDictionarySettings:
    backbone: str = "efficientnet_lite0"
    """Pretrained network: timm name, "name:file" or the embedded efficientnet_lite0."""
    layer: int = 2
    """Layer of the backbone (default: at 1/8 of the image's side)."""
    pool: int = 3
    """Side of the square over which features are averaged, in positions of the layer; odd."""
    variance: float = 0.95
    """Fraction of the variance that PCA keeps (paper: 0.95)."""
    words: int = 100
    """Number of dictionary entries (the paper tries 10 to 1000)."""
    nearest: int = 5
    """m, number of nearest dictionary entries whose distances are averaged."""
    patches: int = 20_000
    """Maximum number of training patches from which PCA and centres are learned."""
    top: float = 0.1
    """Image score: mean over this fraction of the highest-scoring positions; 0 is the maximum, 1 the mean of all."""
    smoothing: float = 4.0
    """Standard deviation of the Gaussian that smooths the map, in pixels."""

    def __post_init__(self) -> None:
        config.require(
            "cnn_dictionary",
            self,
            positive=("words", "nearest", "patches"),
            non_negative=("smoothing",),
            fraction=("variance",),
            unit=("top",),
        )
        odd = self.pool > 0 and self.pool % 2 == 1
        config.require_that(odd, "cnn_dictionary", "pool", "an odd number of at least 1", self.pool)


class CNNDictionary(Method):
    name = "cnn_dictionary"
    Settings = CNNDictionarySettings
    family = "density"
    reference = (
        "P. Napoletano, F. Piccoli, R. Schettini. Anomaly detection in nanofibrous materials by CNN-based "
        "self-similarity. Sensors 18, 2018. doi:10.3390/s18010209."
    )
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
        for patches in batches.map(lambda x: self.patches(x).flatten(0, 2)):
            sample.add(patches)
        rows = sample.rows
        self.centre = rows.mean(0)
        if not bool((rows - self.centre).any()):
            raise DataError("cnn_dictionary expects training images that differ, got equal patches everywhere.")
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
