"""One-class support vector machine: a boundary around normal images in the feature space of a Gaussian kernel.

Source: Schölkopf et al. 2001; protocol of Deep SVDD (Ruff et al. 2018): PCA to 95 % of the variance, then a grid for gamma.
Fitted with scikit-learn. The score is -log(sum_i a_i K(x_i, x) / rho): 0 on the boundary, and the same order as scikit-learn's
decision function sum_i a_i K(x_i, x) - rho, which far from the images is -rho for all alike.

Choice of gamma. Paper: 2^-10 ... 2^-1 by AUROC on a tenth of the labelled test images, nu 0.1 or 0.01 by the better result.
Here no label is seen: gamma is the one that best tells held-out normal images from images put together at random, each feature
drawn by itself from the training images ("unsupervised as supervised", Hastie et al. 2009, section 14.2.4); this favours tighter
boundaries, so the grid goes on to 2^3, and nu, which then hardly matters, is 0.1. (The usual heuristics fail on the paper's MNIST
protocol: the median distance, gamma="scale" and the held-out rejection nearest to nu all give a far too wide kernel.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sklearn.metrics import roc_auc_score
from sklearn.svm import OneClassSVM
from torch import Tensor

from normalcy.errors import SettingsError
from normalcy.method import Batches, Method, Scores, Stage
from normalcy.nets.densities import log_kernel_sum
from normalcy.nets.features import Features, FeatureSettings
from normalcy.nets.statistics import gather


@dataclass(frozen=True)
class OCSVMSettings(FeatureSettings):
    nu: float = 0.1
    """Greatest share of the training images outside the boundary, in (0, 1]."""
    gammas: tuple[float, ...] = tuple(2.0**k for k in range(-10, 4))
    """To choose from: K(x, y) = exp(-gamma |x - y|^2) on the features; one: it is taken."""
    held_out: float = 0.2
    """Share of the images held out for this choice, which is made on ``search_points`` evenly spaced images."""
    search_points: int = 1500
    max_points: int = 5000
    """Evenly spaced training images of the fit: time and memory grow with their square."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gammas or min(self.gammas) <= 0 or not 0 < self.nu <= 1 or not 0 < self.held_out < 1:
            raise SettingsError("ocsvm: gammas must be positive, nu in (0, 1], held_out in (0, 1).")
        if min(self.search_points, self.max_points) < 2:
            raise SettingsError("ocsvm: search_points and max_points must be at least 2.")


class OCSVM(Method):
    name = "ocsvm"
    Settings = OCSVMSettings
    spatial_dims = (2, 3)
    settings: OCSVMSettings
    support: Tensor
    log_weights: Tensor
    gamma: Tensor
    log_offset: Tensor

    def __init__(self, settings: OCSVMSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.features = Features(settings, self.shape)
        self.learned("support", "log_weights")  # support vectors (n, k), log of their dual coefficients (n,)
        self.register_buffer("gamma", torch.tensor(settings.gammas[0]))
        self.register_buffer("log_offset", torch.tensor(0.0))  # log rho

    def stages(self) -> Sequence[Stage]:
        return [Stage("boundary", prepare=self._learn)]

    def _learn(self, batches: Batches) -> None:
        x = self.features.learn(batches, self.settings.max_points).cpu()
        gamma = self._choose(gather([x], len(x), self.settings.search_points))
        self.support, self.log_weights, self.log_offset = self._boundary(x, gamma)
        self.gamma = torch.tensor(gamma)

    def _choose(self, x: Tensor) -> float:
        order = torch.randperm(len(x))
        out, rest = x[order].tensor_split([max(1, round(self.settings.held_out * len(x)))])
        if len(self.settings.gammas) == 1 or not len(rest):
            return self.settings.gammas[0]
        mixed = torch.stack([column[torch.randint(len(rest), (len(out),))] for column in rest.T], 1)
        unlike = torch.arange(2 * len(out)) >= len(out)

        def separation(gamma: float) -> float:
            support, log_weights, _ = self._boundary(rest, gamma)
            return float(roc_auc_score(unlike, -log_kernel_sum(torch.cat([out, mixed]), support, gamma, log_weights)))

        return max(self.settings.gammas, key=separation)

    def _boundary(self, x: Tensor, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
        """Support vectors, log dual coefficients and log rho."""
        machine = OneClassSVM(nu=self.settings.nu, gamma=gamma).fit(x.numpy())
        dual = torch.from_numpy(machine.dual_coef_[0]).log().float()
        return torch.from_numpy(machine.support_vectors_).float(), dual, torch.tensor(math.log(-machine.intercept_[0]))

    def _score(self, x: Tensor) -> Scores:
        kernels = log_kernel_sum(self.features(x), self.support, self.gamma, self.log_weights)
        return Scores(image=self.log_offset - kernels)
