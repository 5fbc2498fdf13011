"""One-class support vector machine with a Gaussian kernel; the score is the negative log of its kernel sum.

Schölkopf et al. 2001, fitted with scikit-learn, with the protocol of Deep SVDD (Ruff et al. 2018): PCA to 95 % of the variance,
then a grid search for gamma. The score -log(sum_i a_i K(x_i, x) / rho) is 0 on the boundary and ranks images as scikit-learn's
decision function sum_i a_i K(x_i, x) - rho does, without saturating at -rho far from the training images.

| | Deep SVDD's protocol | normalcy |
|---|---|---|
| gamma | 2^-10 ... 2^-1, by AUROC on a tenth of the labelled test images | 2^-10 ... 2^3, without labels (below) |
| nu | 0.1 or 0.01, by the better result | 0.1; it has little effect with gamma chosen in this way |

gamma is the value that best separates held-out normal images from artificial ones, each feature of which is drawn independently
from the training images ("unsupervised as supervised", Hastie et al. 2009, section 14.2.4). This favours tighter boundaries, so
the grid extends to 2^3. On MNIST in Deep SVDD's protocol the usual heuristics (median distance, gamma="scale", held-out rejection
rate nearest to nu) choose far too wide a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sklearn.metrics import roc_auc_score
from sklearn.svm import OneClassSVM
from torch import Tensor

from normalcy.config import require, require_that
from normalcy.method import Batches, Method, Scores, Stage
from normalcy.nets.densities import log_kernel_sum
from normalcy.nets.features import Features, FeatureSettings
from normalcy.nets.statistics import gather


@dataclass(frozen=True)
class OCSVMSettings(FeatureSettings):
    nu: float = 0.1
    """nu, the largest fraction of the training images outside the boundary, in (0, 1]."""
    gammas: tuple[float, ...] = tuple(2.0**k for k in range(-10, 4))
    """Values of gamma to choose from, in K(x, y) = exp(-gamma |x - y|^2) on the features; a single one is used as it is."""
    held_out: float = 0.2
    """Fraction of the ``search_points`` images held out for the choice of gamma, in (0, 1)."""
    search_points: int = 1500
    """Number of evenly spaced training images used for the choice of gamma."""
    max_points: int = 5000
    """Number of evenly spaced training images used for the fit; its time and memory grow with the square."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least = {"search_points": 2, "max_points": 2}
        require("ocsvm", self, positive=("gammas", "nu"), fraction=("held_out",), unit=("nu",), at_least=at_least)
        require_that(bool(self.gammas), "ocsvm", "gammas", "at least one number", self.gammas)


class OCSVM(Method):
    name = "ocsvm"
    Settings = OCSVMSettings
    family = "one-class"
    reference = (
        "B. Schölkopf, J. C. Platt, J. Shawe-Taylor, A. J. Smola, R. C. Williamson. Estimating the support of a "
        "high-dimensional distribution. Neural Computation 13(7), 2001. doi:10.1162/089976601750264965"
    )
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
        """The gamma that best separates held-out features from artificial ones, of features (n, k)."""
        order = torch.randperm(len(x))
        out, rest = x[order].tensor_split([max(1, round(self.settings.held_out * len(x)))])
        if len(self.settings.gammas) == 1 or not len(rest):
            return self.settings.gammas[0]
        mixed = torch.stack([column[torch.randint(len(rest), (len(out),))] for column in rest.T], 1)
        artificial = torch.arange(2 * len(out)) >= len(out)

        def separation(gamma: float) -> float:
            support, log_weights, _ = self._boundary(rest, gamma)
            return float(
                roc_auc_score(artificial, -log_kernel_sum(torch.cat([out, mixed]), support, gamma, log_weights))
            )

        return max(self.settings.gammas, key=separation)

    def _boundary(self, x: Tensor, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
        """Support vectors (n, k), logs of their dual coefficients (n,) and log rho, of features (N, k)."""
        machine = OneClassSVM(nu=self.settings.nu, gamma=gamma).fit(x.numpy())
        dual = torch.from_numpy(machine.dual_coef_[0]).log().float()
        return torch.from_numpy(machine.support_vectors_).float(), dual, torch.tensor(math.log(-machine.intercept_[0]))

    def _score(self, x: Tensor) -> Scores:
        kernels = log_kernel_sum(self.features(x), self.support, self.gamma, self.log_weights)
        return Scores(image=self.log_offset - kernels)
