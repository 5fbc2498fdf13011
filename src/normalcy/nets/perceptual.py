"""Perceptual (deep-feature) distances of images, as in PIAD (Tuluptceva et al. 2019) and DPA (Shvetsova et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.errors import SettingsError
from normalcy.files import read_arrays
from normalcy.nets.backbones import EMBEDDED, Backbone
from normalcy.nets.contrastive import SelfTaught
from normalcy.nets.natural import crops, photographs, shipped_statistics
from normalcy.nets.statistics import Mapped, mean_and_std


class PerceptualFeatures(nn.Module):
    """f^ of DPA's equation 2: features of ``layers`` of a backbone, standardised per channel. Call :meth:`measure` before use.

    ``backbone`` is a name that :class:`Backbone` accepts, or "self" (:class:`SelfTaught`, to be trained). Images (B, C, h, w)
    in [-1, 1] are enlarged ``magnify`` times; None: by the reduction of the backbone's first layer. ``bf16``: the backbone
    computes in bfloat16 where the loop trains in mixed precision, else always in 32 bits.
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
        self.register_buffer("mean", torch.zeros(sum(self.backbone.widths)))  # all layers, concatenated
        self.register_buffer("std", torch.ones(sum(self.backbone.widths)))

    def maps(self, y: Tensor) -> list[Tensor]:
        """Features of each layer in use, not standardised."""
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

    def measure(self, batches: Iterable[Tensor], statistics: str = "training") -> None:
        """Set mean and standard deviation of each channel, for images (B, C, h, w) in [-1, 1].

        A layer has one mean and standard deviation, of images of the size of ``batches``, for images of any size: a network that
        grows (``dpa``) measures at its full size and uses them at all levels.

        ``statistics``: "training" (those of ``batches``), "natural" (of natural images of the size of ``batches``; "self",
        a network of the training images, has theirs) or an .npz file. Raises SettingsError when the file does not hold them.
        """
        if statistics in ("training", "") or (statistics == "natural" and isinstance(self.backbone, SelfTaught)):
            mean, std = self._moments(batches)  # "": of model folders from before the setting had names
        elif statistics == "natural":
            mean, std = self._natural(next(iter(batches)))
        else:
            mean, std = _read_statistics(Path(statistics), self.backbone.names, self.backbone.widths)
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=0.01 * float(std.mean()) + 1e-6))  # channels that are never active

    def _natural(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of all channels on natural images of the size and channels of ``like``."""
        side, channels = min(like.shape[2:]), like.shape[1]
        if self.backbone.name != EMBEDDED:
            return self._moments(Mapped(crops(photographs(), side, channels), lambda y: y.to(like)))
        mean, std = of_layers(shipped_statistics(side * self.magnify, channels), self.backbone.names)
        return mean.to(like), std.to(like)

    def _moments(self, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of all channels over all pixels of all images."""
        moments = [mean_and_std(Mapped(batches, partial(self._rows, place))) for place in self.places.values()]
        return torch.cat([mean for mean, _ in moments]), torch.cat([std for _, std in moments])

    def _rows(self, place: int, y: Tensor) -> Tensor:
        """The features of each pixel of images, (n, width)."""
        return self.maps(y)[place].movedim(1, -1).flatten(0, 2)


def joined(y: Tensor, features: Tensor) -> Tensor:
    """Images (B, C, H, W) and their features as rows (B, n), to be kept by a stage that derives its inputs once."""
    return torch.cat([y.flatten(1), features.flatten(1)], 1)


def parted(rows: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Images (B, *shape) and their features (B, n) from what :func:`joined` made."""
    pixels = math.prod(shape)
    return rows[:, :pixels].reshape(-1, *shape), rows[:, pixels:]


def relative_l1(target: Tensor, output: Tensor) -> Tensor:
    """|f(x) - f(x~)|_1 / |f(x)|_1 of features (B, ...) of image and output: (B,) (equation 1 of DPA).

    Invariant to the scale of the features. No gradient through the divisor.
    """
    size = target.detach().abs().flatten(1).mean(1).clamp(min=1e-6)
    return (target - output).abs().flatten(1).mean(1) / size


def relative_error(target: Tensor, output: Tensor) -> Tensor:
    """The same averaged over channels alone, (B, h, w): its mean over the grid is :func:`relative_l1`."""
    return (target - output).abs().mean(1) / target.abs().mean((1, 2, 3)).clamp(min=1e-6)[:, None, None]


def relative_map(target: Tensor, output: Tensor, size: Sequence[int]) -> Tensor:
    """:func:`relative_error` resized to ``size`` (H, W) bilinearly: (B, H, W)."""
    return F.interpolate(relative_error(target, output)[:, None], size=tuple(size), mode="bilinear")[:, 0]


def of_layers(arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """``<layer>_mean`` and ``<layer>_std`` of some layers, concatenated. Raises KeyError where one is missing."""
    mean, std = (
        torch.cat([torch.from_numpy(arrays[f"{name}_{what}"]).float() for name in names]) for what in ("mean", "std")
    )
    return mean, std


def _read_statistics(path: Path, names: Sequence[str], widths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the channels of some layers, concatenated, from an .npz file."""
    try:
        mean, std = of_layers(read_arrays(path), names)
    except (OSError, ValueError, KeyError) as error:
        raise SettingsError(
            f"{path} lacks statistics of the layers {', '.join(names)} ({error}): give an .npz file with the arrays "
            "<layer>_mean and <layer>_std."
        ) from error
    if len(mean) != sum(widths) or len(std) != sum(widths):
        raise SettingsError(f"The statistics in {path} are of {len(mean)} channels, expected {sum(widths)}.")
    return mean, std
