"""Self-supervised features by SimCLR (Chen et al. 2020), for use where pretrained weights are not allowed.

The two random views of an image (crop, flip, contrast, brightness) are positives, the views of all other images of the batch
negatives. The layers have the resolutions of a VGG: 1/1, 1/2, 1/4, 1/8 of the image's side. Differences to the paper: a small
VGG-like network instead of a ResNet-50, batches of hundreds instead of thousands of images, no blur and no change of hue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.errors import SettingsError

WIDTHS = (32, 64, 128, 256)
"""Channels of the layers."""


class SelfTaught(nn.Module):
    """Feature maps of ``layers`` (0 to 3, ascending), with the interface of :class:`normalcy.nets.backbones.Backbone`.

    Raises SettingsError for other layers.
    """

    finest = 1

    def __init__(self, layers: Sequence[int], channels: int, temperature: float = 0.5) -> None:
        super().__init__()
        self.layers, self.temperature = tuple(layers), temperature
        if not self.layers or list(self.layers) != sorted({i for i in self.layers if 0 <= i < len(WIDTHS)}):
            known = len(WIDTHS) - 1
            raise SettingsError(f"Backbone self has the layers 0 to {known}, ascending; got {layers or 'none'}.")
        self.widths = tuple(WIDTHS[i] for i in self.layers)
        self.names = tuple(map(str, self.layers))
        self.levels = nn.ModuleList(_level(a, b) for a, b in zip((channels, *WIDTHS), WIDTHS))
        self.head = nn.Sequential(nn.Linear(WIDTHS[-1], 128), nn.ReLU(), nn.Linear(128, 64))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, C, H, W) in [0, 1] -> for each layer (B, width, H / 2^layer, W / 2^layer), float32."""
        return [m.float() for i, m in enumerate(self._maps(x, max(self.layers))) if i in self.layers]

    def contrast(self, x: Tensor) -> Mapping[str, Tensor]:
        """The contrastive loss of images (B, C, H, W) in [0, 1], in nats."""
        deepest = self._maps(torch.cat([view(x), view(x)]), len(WIDTHS) - 1)[-1]
        return {"loss": nt_xent(self.head(deepest.mean((2, 3))).float(), self.temperature)}

    def _maps(self, x: Tensor, last: int) -> list[Tensor]:
        maps: list[Tensor] = []
        x = 4 * x - 2
        for level in self.levels[: last + 1]:
            maps.append(level(F.avg_pool2d(maps[-1], 2) if maps else x))
        return maps


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """NT-Xent (equation 1), in nats, mean over codes (2B, d), where i and i + B are the two views of one image."""
    z = F.normalize(z, dim=1)
    similar = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    other = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    return F.cross_entropy(similar, other)


def view(x: Tensor) -> Tensor:
    """A random view of each image (B, C, H, W): a crop of 30 to 100 % of its area, mirrored with probability 1/2, with contrast
    and brightness scaled by 0.6 to 1.4."""
    count, device = len(x), x.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, device=device)

    side = uniform(0.3, 1.0).sqrt()
    mirrored = 1 - 2 * torch.randint(2, (count,), device=device)
    centre = uniform(-1, 1, 2) * (1 - side)[:, None]
    matrix = torch.zeros(count, 2, 3, device=device)
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, :, 2] = side * mirrored, side, centre
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    cropped = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    mean = cropped.mean((2, 3), keepdim=True)
    return (cropped - mean) * uniform(0.6, 1.4, 1, 1, 1) + mean * uniform(0.6, 1.4, x.shape[1], 1, 1)


def _level(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (before, after):
        layers += [nn.Conv2d(width, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)
