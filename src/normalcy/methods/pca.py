"""Principal component analysis: squared error of an image's projection onto the principal components of normal images.

Source: Pearson 1901; for images Turk and Pentland 1991 (distance from "face space"). The map is the squared error, mean over
channels; ``restored`` is the projection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normalcy.config import require, require_that
from normalcy.method import Batches, Method, Scores, Stage
from normalcy.nets.filters import Reduce, check_reduce, gaussian_smooth, reduce_map
from normalcy.nets.statistics import Mapped, mean_and_std, principal_components


@dataclass(frozen=True)
class PCASettings:
    components: int | float = 0.9
    """Number of principal components (1 or more), or the fraction of the variance that they explain, in (0, 1)."""
    smoothing: float = 0.0
    """Standard deviation of the Gaussian that smooths the map, in pixels; 0: no smoothing."""
    reduce: Reduce = "auto"
    """Image score: "mean", "max" or "top" (mean of the largest 1 %) of the map, or this quantile of it, in [0, 1]; "auto": "mean"
    up to 32 pixels a side, else "top"."""

    def __post_init__(self) -> None:
        valid = 0 < self.components < 1 or (self.components >= 1 and float(self.components).is_integer())
        require_that(valid, "pca", "components", "a number of them or a fraction between 0 and 1", self.components)
        require("pca", self, non_negative=("smoothing",))
        check_reduce("pca", self.reduce)


class PCA(Method):
    name = "pca"
    Settings = PCASettings
    family = "reconstruction"
    reference = (
        "K. Pearson. On lines and planes of closest fit to systems of points in space. Philosophical Magazine "
        "2(11), 1901. doi:10.1080/14786440109462720\n"
        "M. Turk, A. Pentland. Eigenfaces for recognition. Journal of Cognitive Neuroscience 3(1), 1991. "
        "doi:10.1162/jocn.1991.3.1.71"
    )
    spatial_dims = (2, 3)
    map_scores = ("",)
    settings: PCASettings
    centre: Tensor
    basis: Tensor

    def __init__(self, settings: PCASettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.register_buffer("centre", torch.zeros(math.prod(self.shape)))
        self.learned("basis")  # (k, C * pixels)

    def stages(self) -> Sequence[Stage]:
        return [Stage("components", prepare=self._learn)]

    def _learn(self, batches: Batches) -> None:
        self.centre, _ = mean_and_std(Mapped(batches, lambda x: x.flatten(1)))
        centred = Mapped(batches, lambda x: x.flatten(1) - self.centre)
        self.basis, _ = principal_components(centred, batches.count, self.settings.components)

    def _score(self, x: Tensor) -> Scores:
        restored = (self.centre + (x.flatten(1) - self.centre) @ self.basis.T @ self.basis).view(x.shape)
        error = (x - restored).square().mean(1)  # (B, *spatial)
        error = gaussian_smooth(error, self.settings.smoothing)
        return Scores(image=reduce_map(error, self.settings.reduce), map=error, restored=restored)
