"""Texture inspection: negative log-likelihood of patches under Gaussian mixtures at neighbouring scales of an image pyramid.

Böttger and Ulrich 2016, the "texture inspection" of Bergmann et al. 2019. Each square patch at each level of an image pyramid is
described by a few fixed random projections ("compressed sensing"); one Gaussian mixture per level learns those of normal images;
the negative log-likelihood is the level's map. A defect is anomalous at two neighbouring levels at once: maps of neighbours are
combined by their minimum, then all pairs by their maximum.

| | paper | normalcy |
|---|---|---|
| combination of levels | intersection and union of thresholded regions | minimum and maximum of standardised maps |
| pyramid | | halved by means of 2x2 pixels |

Maps are standardised by their mean and standard deviation over the training images.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.nn import functional as F

from normalcy.config import require, require_that
from normalcy.errors import DataError
from normalcy.method import Batches, Method, Scores, Stage
from normalcy.nets.densities import log_likelihood
from normalcy.nets.filters import Reduce, check_reduce, gaussian_smooth, reduce_map
from normalcy.nets.neighbours import Reservoir, random_projection
from normalcy.nets.seeds import random_state
from normalcy.nets.statistics import Mapped, mean_and_std


@dataclass(frozen=True)
class TextureGMMSettings:
    patch: int = 7
    """Side of a patch, in pixels of its level, odd."""
    levels: int = 4
    """Levels of the pyramid; fewer where the image would become smaller than a patch."""
    projections: int = 16
    """Random projections that describe a patch."""
    components: int = 10
    """Gaussians in the mixture of each level."""
    patches: int = 20_000
    """Maximum number of training patches of each level."""
    floor: float = 1e-3
    """Added to the variance of each projection, in units of their mean variance."""
    smoothing: float = 1.0
    """Standard deviation of the Gaussian that smooths the map, in pixels; 0: no smoothing."""
    reduce: Reduce = 0.99
    """Image score: "mean" or "max" of the map, or this quantile of it, in [0, 1]."""

    def __post_init__(self) -> None:
        positive, at_least = ("levels", "projections", "components", "floor"), {"patches": 2}
        require("texture_gmm", self, positive=positive, non_negative=("smoothing",), at_least=at_least)
        require_that(self.patch > 0 and self.patch % 2 == 1, "texture_gmm", "patch", "odd and positive", self.patch)
        check_reduce("texture_gmm", self.reduce)


class TextureGMM(Method):
    name = "texture_gmm"
    Settings = TextureGMMSettings
    family = "density"
    reference = (
        "T. Böttger, M. Ulrich. Real-time texture error detection on textured surfaces with compressed sensing. "
        "Pattern Recognition and Image Analysis 26(1), 2016"
    )
    search: ClassVar = {"patch": (5, 7, 11, 15), "components": (5, 10, 20), "levels": (1, 2, 3, 4)}
    map_scores = ("",)
    settings: TextureGMMSettings
    filters: Tensor
    log_weights: Tensor
    means: Tensor
    precision_factors: Tensor
    level_mean: Tensor
    level_std: Tensor

    def __init__(self, settings: TextureGMMSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        s = settings
        if min(self.shape[1:]) < s.patch:
            raise DataError(
                f"texture_gmm expects sides of at least {s.patch} pixels, got {self.shape}: choose a smaller patch."
            )
        sizes = [min(self.shape[1:]) >> level for level in range(s.levels)]
        self.levels = sum(size >= s.patch for size in sizes)
        pixels = self.shape[0] * s.patch**2
        self.dims = min(s.projections, pixels)
        self.register_buffer("filters", torch.zeros(self.dims, self.shape[0], s.patch, s.patch))
        self.register_buffer("level_mean", torch.zeros(self.levels))
        self.register_buffer("level_std", torch.ones(self.levels))
        # One mixture per level: (levels, k), (levels, k, d), (levels, k, d, d), see nets/densities.py.
        self.learned("log_weights", "means", "precision_factors")

    def stages(self) -> Sequence[Stage]:
        return [Stage("mixtures", prepare=self._learn)]

    def project(self, x: Tensor, level: int) -> Tensor:
        """Projections of the patches around all pixels of a level of images (B, C, H, W), borders replicated: (B, h, w, d)."""
        if level:
            x = F.avg_pool2d(x, 2**level)
        margin = self.settings.patch // 2
        padded = F.pad(x, (margin,) * 4, mode="replicate")
        return F.conv2d(padded, self.filters).permute(0, 2, 3, 1)

    def _learn(self, batches: Batches) -> None:
        pixels = self.filters[0].numel()
        self.filters.copy_(random_projection(pixels, self.dims).T.view_as(self.filters))
        mixtures = [self._mixture(batches, level) for level in range(self.levels)]
        least = min(len(m.weights_) for m in mixtures)
        if any(len(m.weights_) != least for m in mixtures):
            mixtures = [self._mixture(batches, level, least) for level in range(self.levels)]
        parts = [[np.log(m.weights_), m.means_, m.precisions_cholesky_] for m in mixtures]
        self.log_weights, self.means, self.precision_factors = (
            torch.from_numpy(np.stack(arrays)).float().to(self.device) for arrays in zip(*parts)
        )
        for level in range(self.levels):
            values = Mapped(batches, lambda x, level=level: self.negative_log_likelihood(x, level).reshape(-1, 1))  # type: ignore[misc]
            mean, std = mean_and_std(values)
            self.level_mean[level], self.level_std[level] = mean[0], std[0].clamp(min=1e-6)

    def _mixture(self, batches: Batches, level: int, components: int | None = None) -> GaussianMixture:
        """Fit the mixture of a level, by default with fewer components where there are few patches."""
        sample = Reservoir(self.settings.patches)
        for x in batches:
            sample.add(self.project(x, level).flatten(0, 2))
        rows = sample.rows.cpu().double().numpy()
        floor = self.settings.floor * rows.var(0).mean() + 1e-9
        count = components or max(1, min(self.settings.components, len(rows) // (2 * self.dims)))
        mixture = GaussianMixture(
            count, reg_covar=floor, tol=1e-2, init_params="k-means++", random_state=random_state()
        )
        return mixture.fit(rows)

    def negative_log_likelihood(self, x: Tensor, level: int) -> Tensor:
        """Negative log-likelihood of each pixel of a level, in nats: (B, h, w)."""
        rows = self.project(x, level)
        nats = -log_likelihood(
            rows.flatten(0, 2), self.log_weights[level], self.means[level], self.precision_factors[level]
        )
        return nats.view(rows.shape[:3])

    def _score(self, x: Tensor) -> Scores:
        maps = []
        for level in range(self.levels):
            standardised = (self.negative_log_likelihood(x, level) - self.level_mean[level]) / self.level_std[level]
            maps.append(F.interpolate(standardised[:, None], size=self.shape[1:], mode="bilinear")[:, 0])
        pairs = [torch.minimum(a, b) for a, b in itertools.pairwise(maps)] or maps
        united = gaussian_smooth(torch.stack(pairs).amax(0), self.settings.smoothing)
        return Scores(image=reduce_map(united, self.settings.reduce), map=united)
