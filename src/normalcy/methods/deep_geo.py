"""Deep GEO: a classifier learns which of 72 geometric transforms was applied to normal images; on others it is unsure.

Transforms: mirrored or not, moved by a quarter of the side or not to the left, right, up and down (reflected at the border),
turned by 0, 90, 180 or 270 degrees. A Dirichlet distribution describes the classifier's answers on the training images, for
each transform; the score is minus the sum over transforms of (alpha - 1) . log answer (Golan, El-Yaniv 2018, "Deep Anomaly
Detection Using Geometric Transformations", section 4). Blind to anomalies that leave the geometry readable, and useless where
images have no orientation (tissue, textures): so DPA's table 2.

Paper / authors' code / ours: a Wide ResNet 10-4, Adam, 3 epochs over all images in all transforms / the same, 200 / 72
transforms of 128 images are not held at once: each image of a batch gets a random transform, so 216 passes over the images are
the paper's 3. Ours divides the score by 72. There is no map. Found here (``normalcy reproduce
dpa/three-classes``), a WRN-10-1 and a sixth of the training: AUROC 91.6, 76.5 and 88.8 % on car, frog and ship of CIFAR-10;
published 96.0, 85.2 and 94.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.errors import DataError, SettingsError
from normalcy.method import Batches, Method, Objective, Scores, Stage

TRANSFORMS = tuple(product((False, True), (0, -1, 1), (0, -1, 1), (0, 1, 2, 3)))
"""Mirrored, moved along x, moved along y (quarters of the side), quarter turns; the first changes nothing."""


@dataclass(frozen=True)
class DeepGEOSettings:
    widen: int = 4
    """Channels are 16, 32, 64 times this."""
    blocks: int = 1
    """Residual blocks on each of three resolutions; the network has 6 * blocks + 4 layers."""
    epochs_of_all: float = 3.0
    """Passes over all transforms of all images."""
    lr: float = 1e-3
    """Of Adam."""

    def __post_init__(self) -> None:
        if min(self.widen, self.blocks) < 1 or min(self.epochs_of_all, self.lr) <= 0:
            raise SettingsError("deep_geo: widen, blocks, epochs_of_all and lr must be positive.")


class WideBlock(nn.Module):
    """Pre-activation block of a Wide ResNet (Zagoruyko, Komodakis 2016)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
        self.rest = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
        )
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if before != after else None

    def forward(self, x: Tensor) -> Tensor:
        activated = self.first(x)
        kept = x if self.shortcut is None else self.shortcut(activated)
        y: Tensor = kept + self.rest(activated)
        return y


class DeepGEO(Method):
    name = "deep_geo"
    Settings = DeepGEOSettings
    search: ClassVar = {"epochs_of_all": (1.0, 3.0, 10.0), "widen": (2, 4, 8)}
    settings: DeepGEOSettings
    places: Tensor
    alpha: Tensor

    def __init__(self, settings: DeepGEOSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        channels, height, width = self.shape
        if height != width or height < 8:
            raise DataError(f"deep_geo turns images, so it expects squares of at least 8 pixels, got {self.shape}.")
        self.register_buffer("places", source_of_pixels(height), persistent=False)
        layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1, bias=False)]
        before = 16
        for k, after in enumerate(n * settings.widen for n in (16, 32, 64)):
            for block in range(settings.blocks):
                layers.append(WideBlock(before, after, stride=2 if k and not block else 1))
                before = after
        pooled = [nn.BatchNorm2d(before), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.classifier = nn.Sequential(*layers, *pooled, nn.Linear(before, len(TRANSFORMS)))
        self.register_buffer("alpha", torch.ones(len(TRANSFORMS), len(TRANSFORMS)))

    def stages(self) -> Sequence[Stage]:
        objective = Objective(self.classification, self.classifier.parameters(), lr=self.settings.lr)
        passes = self.settings.epochs_of_all * len(TRANSFORMS)
        return [
            Stage("classifier", [objective], epochs=passes, batch_size=128),
            Stage("dirichlet", prepare=self.measure),
        ]

    def transformed(self, x: Tensor, which: Tensor) -> Tensor:
        """Each of the images (B, C, H, W) by its transform, (B,)."""
        index = self.places[which][:, None].expand(-1, x.shape[1], -1)
        return x.flatten(2).gather(2, index).view(x.shape)

    def classification(self, x: Tensor) -> Mapping[str, Tensor]:
        which = torch.randint(len(TRANSFORMS), (len(x),), device=x.device)
        answers = self.classifier(self.transformed(x, which)).float()
        right = (answers.argmax(1) == which).float().mean()
        return {"loss": F.cross_entropy(answers, which), "right": right}

    def log_answers(self, x: Tensor) -> Tensor:
        """log softmax of the classifier on every transform of images (B, C, H, W): (B, transforms, classes)."""
        parts = []
        for k in range(len(TRANSFORMS)):
            which = torch.full((len(x),), k, device=x.device)
            parts.append(F.log_softmax(self.classifier(self.transformed(x, which)).float(), 1))
        return torch.stack(parts, 1)

    def measure(self, batches: Batches) -> None:
        total = torch.zeros(self.alpha.shape, dtype=torch.float64)
        for x in batches:
            total += self.log_answers(x).double().sum(0).cpu()
        self.alpha.copy_(fit_dirichlet(total / batches.count))

    def _score(self, x: Tensor) -> Scores:
        normality = ((self.alpha - 1) * self.log_answers(x)).sum((1, 2)) / len(TRANSFORMS)
        return Scores(image=-normality)


def source_of_pixels(side: int) -> Tensor:
    """Where each pixel of each transformed image comes from: (transforms, side * side) places in the flat image."""
    pixels = torch.arange(side * side, dtype=torch.float32).view(1, 1, side, side)
    step = side // 4
    around = F.pad(pixels, (step,) * 4, mode="reflect")
    found = []
    for mirrored, x, y, turns in TRANSFORMS:
        image = around.flip(-1) if mirrored else around
        moved = image[..., step - y * step : step - y * step + side, step - x * step : step - x * step + side]
        found.append(torch.rot90(moved, turns, (-2, -1)).flatten().long())
    return torch.stack(found)


def fit_dirichlet(mean_log: Tensor, steps: int = 500, tolerance: float = 1e-5) -> Tensor:
    """Maximum likelihood alpha (n, k) of n Dirichlet distributions from the means of log p over samples, (n, k), float64.

    Minka 2000, "Estimating a Dirichlet distribution": the fixed point psi(alpha) = psi(sum alpha) + mean log p.
    """
    alpha = torch.ones_like(mean_log)
    for _ in range(steps):
        following = inverse_digamma(torch.digamma(alpha.sum(1, keepdim=True)) + mean_log).clamp(1e-8, 1e6)
        still = bool(((following - alpha).abs() <= tolerance * alpha).all())
        alpha = following
        if still:
            break
    return alpha


def inverse_digamma(y: Tensor) -> Tensor:
    """x with psi(x) = y, by five of Newton's steps (Minka 2000, appendix C)."""
    x = torch.where(y >= -2.22, y.exp() + 0.5, -1 / (y + 0.5772156649015329))
    for _ in range(5):
        x = x - (torch.digamma(x) - y) / torch.polygamma(1, x)
    return x
