"""Features of image patches from a pretrained network: several layers on one grid, decorrelated, a few numbers for each patch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.method import Batches
from normalcy.nets.backbones import Backbone

FLOOR = 1e-2
"""Least variance of a component, as a fraction of the mean of those that are kept: smaller ones are mostly noise."""


class PatchFeatures(nn.Module):
    """(B, C, H, W) in [0, 1] -> (B, dimension, *grid): principal components of the features of ``layers``, of variance 1.

    All layers are resized to ``grid`` (bilinear; finer ones averaged). Mean and components are those of the training patches;
    call :meth:`learn` before use.
    """

    centre: Tensor
    basis: Tensor

    def __init__(
        self,
        backbone: str,
        layers: Sequence[int],
        channels: int,
        grid: Sequence[int],
        dimension: int,
    ) -> None:
        super().__init__()
        self.backbone = Backbone(backbone, layers, channels)
        self.grid = tuple(grid)
        width = sum(self.backbone.widths)
        self.dimension = min(dimension, width)
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("basis", torch.zeros(width, self.dimension))

    def maps(self, x: Tensor) -> Tensor:
        """All layers on the grid, (B, channels of all layers, *grid), each channel centred where that is known."""
        parts = []
        for part in self.backbone(x):
            if part.shape[2] > self.grid[0]:
                part = F.adaptive_avg_pool2d(part, (self.grid[0], self.grid[1]))
            elif part.shape[2:] != self.grid:
                part = F.interpolate(part, size=self.grid, mode="bilinear")
            parts.append(part)
        return torch.cat(parts, 1) - self.centre[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,cd->bdhw", self.maps(x), self.basis)

    @torch.no_grad()
    def learn(self, batches: Batches) -> None:
        """Mean and components of the patches of all images, in one pass, in double precision."""
        width = len(self.centre)
        count, total, products = 0, torch.zeros(width).double(), torch.zeros(width, width).double()
        self.centre.zero_()
        for x in batches:
            rows = self.maps(x).movedim(1, -1).flatten(0, 2).double().cpu()
            count += len(rows)
            total += rows.sum(0)
            products += rows.T @ rows
        mean = total / count
        values, vectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))
        values, vectors = values.flip(0)[: self.dimension], vectors.flip(1)[:, : self.dimension]
        scale = values.clamp(min=FLOOR * float(values.clamp(min=0).mean()) + 1e-12).rsqrt()
        self.centre.copy_(mean)
        self.basis.copy_(vectors * scale)
