"""Principal components: what the main directions of variation of normal images cannot reproduce is strange.

Source: Turk and Pentland 1991 (distance from "face space"). The map is the squared error of the projection, mean over
channels; ``restored`` is the projection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normalcy.errors import SettingsError
from normalcy.method import Batches, Method, Scores, Stage
from normalcy.nets.filters import gaussian_smooth, map_quantile
from normalcy.nets.statistics import Mapped, mean_and_std, principal_components


@dataclass(frozen=True)
class PCASettings:
    components: int | float = 0.9
    """How many, or the share of the variance, in (0, 1), that they must explain."""
    smoothing: float = 0.0
    """Deviation of a Gaussian over the map, in pixels."""
    quantile: float | None = None
    """The image score is this quantile of the map; none: its mean."""

    def __post_init__(self) -> None:
        whole = float(self.components).is_integer()
        if self.components <= 0 or (self.components > 1 and not whole):
            raise SettingsError(
                f"pca: components must be a number of them or a share in (0, 1), got {self.components}."
            )
        if self.smoothing < 0 or (self.quantile is not None and not 0 <= self.quantile <= 1):
            raise SettingsError("pca: smoothing must not be negative, quantile must lie in [0, 1] or be none.")


class PCA(Method):
    name = "pca"
    Settings = PCASettings
    spatial_dims = (2, 3)
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
        quantile = self.settings.quantile
        error = gaussian_smooth(error, self.settings.smoothing)
        return Scores(
            image=error.flatten(1).mean(1) if quantile is None else map_quantile(error, quantile),
            map=error,
            restored=restored,
        )
