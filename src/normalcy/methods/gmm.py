"""Gaussian mixture: the score is the negative log likelihood of the features under a few Gaussians with full covariance.

Source: Dempster, Laird, Rubin 1977, fitted with scikit-learn. With one Gaussian it is half the squared Mahalanobis distance
plus a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from normalcy.errors import SettingsError
from normalcy.method import Batches, Method, Scores, Stage
from normalcy.nets.densities import log_likelihood
from normalcy.nets.features import Features, FeatureSettings
from normalcy.nets.seeds import random_state


@dataclass(frozen=True)
class GMMSettings(FeatureSettings):
    components: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of Gaussians to choose from, by the log likelihood of held-out training images; one: it is taken."""
    held_out: float = 0.2
    """Share of the training images held out for this choice; the chosen mixture is fitted on all."""
    tolerance: float = 0.1
    """The fit ends when a step adds less than this to the mean log likelihood, in nats."""
    floor: float = 1e-3
    """Added to the variance of each feature, in units of their mean variance: few images must not give flat Gaussians."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (
            not self.components
            or min(self.components) < 1
            or not 0 < self.held_out < 1
            or self.floor <= 0
            or self.tolerance <= 0
        ):
            raise SettingsError("gmm: components must be at least 1, held_out in (0, 1), tolerance and floor positive.")


class GMM(Method):
    name = "gmm"
    Settings = GMMSettings
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
        """The number of Gaussians under which a random part of the training images, left out of the fit, is likeliest."""
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
