"""Feature vectors of images for classical estimators: pixels or pooled backbone features, then PCA.

Source: the shallow baselines of Deep SVDD (Ruff et al. 2018, section 4): pixels after PCA to 95 % of the variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from normalcy.config import require, require_that
from normalcy.errors import DataError
from normalcy.method import Batches
from normalcy.nets.statistics import Mapped, gather, mean_and_std, principal_components


@dataclass(frozen=True)
class FeatureSettings:
    """The input of ocsvm, kde, isolation_forest and gmm; each of them adds its own settings."""

    features: Literal["pixels", "backbone"] = "pixels"
    """Input of the estimator: "pixels", or "backbone", the mean over the image of each channel of a pretrained network (2D images
    in [0, 1])."""
    variance: float | None = 0.95
    """Fraction of the variance that PCA keeps; none: no PCA."""
    backbone: str = "efficientnet_lite0"
    """With features=backbone: the embedded "efficientnet_lite0", a timm model, or "timm model:weights file"."""
    layers: tuple[int, ...] = (1, 2, 3, 4)
    """With features=backbone: feature layers of the backbone, concatenated."""

    def __post_init__(self) -> None:
        require("features", self, fraction=("variance",))
        require_that(bool(self.layers), "features", "layers", "at least one layer of the backbone", self.layers)


class Features(nn.Module):
    """(B, C, *spatial) -> (B, k), centred on the training images. Call :meth:`learn` before use.

    Backbone features are divided by their standard deviations over the training images, since layers differ in scale; pixels
    are not.
    """

    centre: Tensor
    scale: Tensor
    basis: Tensor

    def __init__(self, settings: FeatureSettings, shape: Sequence[int]) -> None:
        super().__init__()
        self.backbone: nn.Module | None = None
        size = math.prod(shape)
        if settings.features == "backbone":
            if len(shape) != 3:
                raise DataError(f"features=backbone expects 2D images, got {tuple(shape)}: use features=pixels.")
            from normalcy.nets.backbones import Backbone

            backbone = Backbone(settings.backbone, settings.layers, shape[0])
            self.backbone, size = backbone, sum(backbone.widths)
        self.variance = settings.variance
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("basis", torch.empty(0))  # (k, size); unused without PCA

    def learn(self, batches: Batches, most: int | None = None) -> Tensor:
        """Learn centre, scale and PCA from all images; return the features (N, k) of all, or of ``most`` evenly spaced ones.

        Raises DataError when all images are equal.
        """
        # Backbone features are small and computed once; pixels are read again at each pass.
        blocks = Mapped(batches, self.vectors) if self.backbone is None else list(batches.map(self.vectors))
        self.centre, std = mean_and_std(blocks)
        if not bool(std.any()):
            raise DataError(
                "The training images are all equal, so their variation cannot be learned: provide more images."
            )
        if self.backbone is not None:
            self.scale = torch.where(std > 0, std, torch.ones_like(std))
        if self.variance is not None:
            standardised = Mapped(blocks, lambda v: (v - self.centre) / self.scale)
            self.basis, _ = principal_components(standardised, batches.count, self.variance)
        return gather(Mapped(blocks, self.project), batches.count, most)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.vectors(x))

    def vectors(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> (B, D), before PCA."""
        if self.backbone is None:
            return x.flatten(1)
        return torch.cat([maps.flatten(2).mean(2) for maps in self.backbone(x)], 1)

    def project(self, vectors: Tensor) -> Tensor:
        """Vectors (B, D) centred, scaled and projected onto the principal components: (B, k)."""
        centred = (vectors - self.centre) / self.scale
        return centred if self.variance is None else centred @ self.basis.T
