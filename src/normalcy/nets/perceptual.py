"""Images compared by the features of a network: what PIAD (Tuluptceva et al. 2019) and DPA (Shvetsova et al. 2021) train with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.errors import SettingsError
from normalcy.nets.backbones import Backbone
from normalcy.nets.contrastive import SelfTaught
from normalcy.nets.statistics import Mapped, mean_and_std


class PerceptualFeatures(nn.Module):
    """f^ of DPA's equation 2: features of some ``layers`` of a backbone, standardised by channel. :meth:`measure` before use.

    ``backbone`` is a name as :class:`Backbone` takes it, or "self" (:class:`SelfTaught`, to be trained). Images (B, C, h, w)
    in [-1, 1] are magnified ``magnify`` times; none: as much as the backbone's first layer reduces them. ``bf16``: the
    backbone computes in bfloat16 where the loop trains in mixed precision, else always in 32 bits.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: str, layers: Iterable[int], channels: int, magnify: int | None = None, bf16: bool = True
    ) -> None:
        super().__init__()
        used = sorted(set(layers))
        self.backbone: Backbone | SelfTaught = (
            SelfTaught(used, channels) if backbone == "self" else Backbone(backbone, used, channels)
        )
        self.bf16 = bf16
        self.places = {layer: i for i, layer in enumerate(used)}
        self.magnify = magnify or self.backbone.finest
        self.register_buffer("mean", torch.zeros(sum(self.backbone.widths)))  # of all layers, one after the other
        self.register_buffer("std", torch.ones(sum(self.backbone.widths)))

    def maps(self, y: Tensor) -> list[Tensor]:
        """Features of each layer in use as the backbone gives them."""
        image = (y + 1) / 2
        if self.magnify > 1:
            image = F.interpolate(image, scale_factor=float(self.magnify), mode="bilinear")
        if isinstance(self.backbone, SelfTaught):
            taught: list[Tensor] = self.backbone(image)
            return taught
        maps: list[Tensor] = self.backbone(image, self.bf16 and torch.is_autocast_enabled(y.device.type))
        return maps

    def forward(self, y: Tensor, layer: int) -> Tensor:
        """Standardised features (B, width, h', w') of a layer."""
        place = self.places[layer]
        both = torch.stack([self.mean, self.std]).split_with_sizes(self.backbone.widths, 1)[place]
        mean, std = both[:, None, :, None, None]
        standardised: Tensor = (self.maps(y)[place] - mean) / std
        return standardised

    def measure(self, batches: Iterable[Tensor], file: str = "") -> None:
        """Mean and deviation of each channel over all pixels of images in [-1, 1], or those in an .npz file."""
        if file:
            mean, std = _read_statistics(Path(file), self.backbone.names, self.backbone.widths)
        else:
            found = [mean_and_std(Mapped(batches, partial(self._rows, place))) for place in self.places.values()]
            mean, std = torch.cat([mean for mean, _ in found]), torch.cat([std for _, std in found])
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=0.01 * float(std.mean()) + 1e-6))  # channels that never fire

    def _rows(self, place: int, y: Tensor) -> Tensor:
        """The features of images pixel by pixel, (n, width)."""
        return self.maps(y)[place].movedim(1, -1).flatten(0, 2)


def relative_l1(wanted: Tensor, found: Tensor) -> Tensor:
    """|f(x) - f(x~)|_1 / |f(x)|_1 of features (B, ...) of image and output: (B,). No gradient through the divisor.

    The same for features of any scale (equation 1 of DPA).
    """
    size = wanted.detach().abs().flatten(1).mean(1).clamp(min=1e-6)
    return (wanted - found).abs().flatten(1).mean(1) / size


def relative_map(wanted: Tensor, found: Tensor, size: Sequence[int]) -> Tensor:
    """The same before its mean over pixels, over channels alone, brought to ``size`` (H, W): (B, H, W)."""
    error = (wanted - found).abs().mean(1) / wanted.abs().mean((1, 2, 3)).clamp(min=1e-6)[:, None, None]
    return F.interpolate(error[:, None], size=tuple(size), mode="bilinear")[:, 0]


def _read_statistics(path: Path, names: Sequence[str], widths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the channels of some layers, one after the other, from an .npz file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, std = (
                torch.cat([torch.from_numpy(file[f"{name}_{what}"]).float() for name in names])
                for what in ("mean", "std")
            )
    except (OSError, ValueError, KeyError) as error:
        raise SettingsError(
            f"{path} cannot give the statistics of the layers {', '.join(names)} ({error}): give an .npz file with the "
            "arrays <layer>_mean and <layer>_std."
        ) from error
    if len(mean) != sum(widths) or len(std) != sum(widths):
        raise SettingsError(f"The statistics in {path} are of {len(mean)} channels, expected {sum(widths)}.")
    return mean, std
