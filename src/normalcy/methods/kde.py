"""Kernel density estimate of pixels or deep features; the score is the negative log-density.

Images are represented by their pixels or by pooled deep features (``features``), then PCA to 95 % of the variance. The density
is the mean of Gaussians around the training images (Parzen 1962), with the protocol of Deep SVDD (Ruff et al. 2018): PCA, and
the bandwidth by 5-fold cross-validation of the log-likelihood of the training images.

| | Ruff et al. 2018 | authors' code | normalcy |
| --- | --- | --- | --- |
| bandwidths | 2^0.5, 2^1, ..., 2^5 | 20 values from 2^-4.5 to 2^5 | from 2^-4 to 2^5; at 2^0.5 the likelihood still rises |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normalcy import config
from normalcy.method import Batches, Method, Scores, Stage
from normalcy.nets.densities import log_kernel_sum, squared_distances
from normalcy.nets.features import Features, FeatureSettings
from normalcy.nets.statistics import gather


@dataclass(frozen=True)
class KDESettings(FeatureSettings):
    bandwidths: tuple[float, ...] = tuple(2 ** (k / 2) for k in range(-8, 11))
    """Standard deviations of the Gaussian to choose from, in the unit of the features; a single one is used as it is."""
    folds: int = 5
    """Number of folds of the cross-validation that chooses the bandwidth (Ruff et al.: 5)."""
    search_points: int = 2000
    """Number of evenly spaced points used for this choice; its time grows with their square."""
    max_points: int = 10_000
    """Maximum number of training images, evenly spaced, kept as points of the density."""

    def __post_init__(self) -> None:
        super().__post_init__()
        config.require(
            "kde", self, positive=("bandwidths",), at_least={"folds": 2, "search_points": 2, "max_points": 2}
        )
        config.require_that(
            bool(self.bandwidths), "kde", "bandwidths", "a list of at least one number", self.bandwidths
        )


class KDE(Method):
    name = "kde"
    Settings = KDESettings
    family = "density"
    reference = (
        "E. Parzen. On estimation of a probability density function and mode. The Annals of Mathematical Statistics 33, "
        "1962. doi:10.1214/aoms/1177704472."
    )
    spatial_dims = (2, 3)
    settings: KDESettings
    points: Tensor
    bandwidth: Tensor

    def __init__(self, settings: KDESettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.features = Features(settings, self.shape)
        self.learned("points")  # (n, k)
        self.register_buffer("bandwidth", torch.tensor(settings.bandwidths[0]))

    def stages(self) -> Sequence[Stage]:
        return [Stage("density", prepare=self._learn)]

    def _learn(self, batches: Batches) -> None:
        self.points = self.features.learn(batches, self.settings.max_points)
        choices = self.settings.bandwidths
        if len(choices) > 1 and len(self.points) > 1:
            best = int(self._held_out_log_density(torch.tensor(choices)).argmax())
            self.bandwidth = torch.tensor(choices[best])

    def _held_out_log_density(self, bandwidths: Tensor) -> Tensor:
        """For each bandwidth the sum over points of the log-density under the other folds (contiguous blocks, as in
        scikit-learn's KFold)."""
        points = gather([self.points], len(self.points), self.settings.search_points)
        folds = points.tensor_split(min(self.settings.folds, len(points)))
        total = torch.zeros(len(bandwidths), dtype=torch.float64)
        for k, fold in enumerate(folds):
            rest = torch.cat([*folds[:k], *folds[k + 1 :]])
            for x in torch.split(fold, 256):
                squared = squared_distances(x, rest)
                for b, bandwidth in enumerate(bandwidths):
                    kernels = torch.logsumexp(squared * (-0.5 / bandwidth**2), 1)
                    total[b] += float((kernels + log_normaliser(rest, bandwidth)).sum())
        return total

    def _score(self, x: Tensor) -> Scores:
        """Negative log-density in nats: the mean over the points p (n, k) of N(x; p, bandwidth^2 I)."""
        sums = log_kernel_sum(self.features(x), self.points, 0.5 / self.bandwidth**2)
        return Scores(image=-(sums + log_normaliser(self.points, self.bandwidth)))


def log_normaliser(points: Tensor, bandwidth: Tensor) -> Tensor:
    """Added to a log sum of kernels around points (n, k), gives the log-density."""
    n, k = points.shape
    return -math.log(n) - k * (bandwidth.log() + 0.5 * math.log(2 * math.pi))
