"""Voxelwise z-score: distance of each pixel from its mean over aligned normal images, in standard deviations.

Source: the first figure of the deep anomaly detection tutorial (Kim 2020); the robust form uses median and MAD.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normalcy.config import require
from normalcy.method import Batches, Method, Scores, Stage
from normalcy.nets.filters import Reduce, gaussian_smooth, map_quantile
from normalcy.nets.statistics import mean_and_std


@dataclass(frozen=True)
class ZScoreSettings:
    robust: bool = False
    """Use the median and 1.4826 MAD instead of mean and standard deviation (holds all images in memory)."""
    smoothing: float = 0.0
    """Standard deviation of the Gaussian that smooths the map, in pixels; 0: no smoothing."""
    floor: float = 0.02
    """Smallest standard deviation, in the value range of the images, so that flat background does not give infinite scores."""
    quantile: float = 0.99
    """Image score: this quantile of the map, in [0, 1]."""

    def __post_init__(self) -> None:
        require("zscore", self, positive=("floor",), non_negative=("smoothing",), unit=("quantile",))


class ZScore(Method):
    name = "zscore"
    Settings = ZScoreSettings
    family = "density"
    reference = "J. Kim. Recent advances in deep anomaly detection. Tutorial, 2020"
    spatial_dims = (2, 3)
    settings: ZScoreSettings
    centre: Tensor
    deviation: Tensor

    def __init__(self, settings: ZScoreSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.register_buffer("centre", torch.zeros(self.shape))
        self.register_buffer("deviation", torch.ones(self.shape))

    def stages(self) -> Sequence[Stage]:
        return [Stage("statistics", prepare=self._robust if self.settings.robust else self._moments)]

    def _moments(self, batches: Batches) -> None:
        self._set(*mean_and_std(batches))

    def _robust(self, batches: Batches) -> None:
        x = torch.cat(list(batches))
        centre = x.median(0).values
        self._set(centre, 1.4826 * (x - centre).abs().median(0).values)

    def _set(self, centre: Tensor, std: Tensor) -> None:
        self.centre, self.deviation = centre.float(), std.float().clamp(min=self.settings.floor)

    @property
    def reduction(self) -> Reduce:
        return self.settings.quantile

    def _score(self, x: Tensor) -> Scores:
        z = ((x - self.centre) / self.deviation).abs().amax(1)  # (B, *spatial), the maximum over channels
        z = gaussian_smooth(z, self.settings.smoothing)
        return Scores(image=map_quantile(z, self.settings.quantile), map=z)
