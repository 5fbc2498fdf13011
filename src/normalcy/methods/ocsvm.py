"""One-class SVM: a boundary around normal images in the feature space of a Gaussian kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sklearn.svm import OneClassSVM
from torch import Tensor

from normalcy.errors import SettingsError
from normalcy.method import Batches, Method, Scores, Stage
from normalcy.nets.features import FeatureSettings, Features, log_kernel_sum


@dataclass(frozen=True)
class OCSVMSettings(FeatureSettings):
    nu: float = 0.1
    gamma: float | None = None
    max_points: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()


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
        self.learned("support", "log_weights")  # (n, k), (n,)
        self.register_buffer("gamma", torch.tensor(1.0))
        self.register_buffer("log_offset", torch.tensor(0.0))

    def stages(self) -> Sequence[Stage]:
        return [Stage("boundary", prepare=self._learn)]
