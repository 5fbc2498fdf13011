"""Feature vectors of whole images: the mean over the image of each channel of a pretrained network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.method import Batches
from normalcy.nets.backbones import Backbone


class PooledFeatures(nn.Module):
    """(B, C, H, W) in [0, 1] -> (B, channels of all ``layers``) of :class:`Backbone`.

    Images whose longer side has fewer than ``side`` pixels are enlarged to it, so that deep layers still have a grid.
    """

    def __init__(self, backbone: str, layers: Sequence[int], shape: Sequence[int], side: int, bf16: bool) -> None:
        super().__init__()
        self.backbone = Backbone(backbone, layers, shape[0], bf16)
        factor = max(1.0, side / max(shape[1:]))
        self.sides = [round(n * factor) for n in shape[1:]]

    def forward(self, x: Tensor) -> Tensor:
        if list(x.shape[2:]) != self.sides:
            x = F.interpolate(x, size=self.sides, mode="bilinear")
        return torch.cat([maps.mean((2, 3)) for maps in self.backbone(x)], 1)

    def gather(self, batches: Batches) -> Tensor:
        """The vectors of all images, (N, channels)."""
        return torch.cat(list(batches.map(self)))
