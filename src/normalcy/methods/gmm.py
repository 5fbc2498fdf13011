"""Gaussian mixture model of pixels or deep features; the score is the negative log-likelihood.

Images are represented by their pixels or by pooled deep features (``features``), then PCA to 95 % of the variance. A mixture of
Gaussians with full covariances is fitted by EM (Dempster, Laird, Rubin 1977; scikit-learn); the number of Gaussians is chosen
by the log-likelihood of held-out training images. With one Gaussian the score is half the squared Mahalanobis distance plus a
constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from normalcy import config
from normalcy.method import Batches, Method, Scores, Stage
from normalcy.nets.densities import log_likelihood
from normalcy.nets.features import Features, FeatureSettings
from normalcy.nets.seeds import random_state


@dataclass(frozen=True)
class GMMSettings(FeatureSettings):
    components: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of Gaussians to choose from, by the log-likelihood of held-out training images; a single one is used as it is."""
    held_out: float = 0.2
    """Fraction of the training images held out for this choice; the chosen mixture is fitted on all."""
    tolerance: float = 0.1
    """EM stops when an iteration increases the mean log-likelihood by less than this, in nats."""
    floor: float = 1e-3
    """Added to the variance of each feature, in units of their mean variance; keeps covariances of few images invertible."""

    def __post_init__(self) -> None:
        super().__post_init__()
        config.require("gmm", self, positive=("components", "tolerance", "floor"), fraction=("held_out",))
        config.require_that(
            bool(self.components), "gmm", "components", "a list of at least one number", self.components
        )


class GMM(Method):
    name = "gmm"
    Settings = GMMSettings
    family = "density"
    reference = (
        "A. P. Dempster, N. M. Laird, D. B. Rubin. Maximum likelihood from incomplete data via the EM algorithm. Journal "
        "of the Royal Statistical Society B 39, 1977."
    )
    spatial_dims = (2, 3)
    settings: GMMSettings
    log_weights: Tensor
    means: Tensor
    precision_factors: Tensor

    def __init__(self, settings: GMMSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.features = Features(settings, self.shape)
        # Of m Gaussians over k features: (m,), (m, k), and (m, k, k) upper triangular L with L L^T = inverse covariance.
        self.learned("log_weights", "means", "precision_factors")

    def stages(self) -> Sequence[Stage]:
        return [Stage("mixture", prepare=self._learn)]

    def _learn(self, batches: Batches) -> None:
        x = self.features.learn(batches).cpu().double().numpy()
        mixture = self._mixture(self._choose(x), x).fit(x)
        self.log_weights = torch.from_numpy(np.log(mixture.weights_)).float()
        self.means = torch.from_numpy(mixture.means_).float()
        self.precision_factors = torch.from_numpy(mixture.precisions_cholesky_).float()

    def _choose(self, x: np.ndarray) -> int:
        """The number of Gaussians with the highest log-likelihood of a random part of the images (N, k) that is held out."""
        order = torch.randperm(len(x)).numpy()
        out, rest = np.split(x[order], [max(1, round(self.settings.held_out * len(x)))])
        choices = [m for m in self.settings.components if m <= len(rest)]
        if len(choices) < 2:
            return min(self.settings.components)
        return max(choices, key=lambda m: self._mixture(m, x).fit(rest).score(out))

    def _mixture(self, components: int, x: np.ndarray) -> GaussianMixture:
        floor = self.settings.floor * x.var(0).mean()
        return GaussianMixture(components, tol=self.settings.tolerance, reg_covar=floor, random_state=random_state())

    def _score(self, x: Tensor) -> Scores:
        x = self.features(x)
        return Scores(image=-log_likelihood(x, self.log_weights, self.means, self.precision_factors))
