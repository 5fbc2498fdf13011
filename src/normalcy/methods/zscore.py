"""Voxelwise z-score: mean and deviation of each pixel over aligned normal images; the map is how many deviations away.

Source: the first figure of the deep anomaly detection tutorial (Kim 2020); the robust form takes median and MAD.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normalcy.errors import SettingsError
from normalcy.method import Batches, Method, Scores, Stage
from normalcy.nets.filters import gaussian_smooth, map_quantile
from normalcy.nets.statistics import mean_and_std


@dataclass(frozen=True)
class ZScoreSettings:
    robust: bool = False
    """Median and 1.4826 MAD instead of mean and deviation (holds all images in memory)."""
    smoothing: float = 0.0
    """Deviation of a Gaussian over the map, in pixels."""
    floor: float = 0.02
    """Smallest deviation counted, in the value range of the images: flat background must not give infinite scores."""
    quantile: float = 0.99
    """The image score is this quantile of the map."""

    def __post_init__(self) -> None:
        if self.floor <= 0 or not 0 <= self.quantile <= 1 or self.smoothing < 0:
            raise SettingsError("zscore: floor must be positive, quantile in [0, 1], smoothing not negative.")


class ZScore(Method):
    name = "zscore"
    Settings = ZScoreSettings
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

    def _set(self, centre: Tensor, deviation: Tensor) -> None:
        self.centre, self.deviation = centre.float(), deviation.float().clamp(min=self.settings.floor)

    def _score(self, x: Tensor) -> Scores:
        z = ((x - self.centre) / self.deviation).abs().amax(1)  # (B, *spatial): the strangest channel
        z = gaussian_smooth(z, self.settings.smoothing)
        return Scores(image=map_quantile(z, self.settings.quantile), map=z)
