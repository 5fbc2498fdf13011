"""Deep GEO: classifier of 72 geometric transforms, scored by the negative Dirichlet log-likelihood of its softmax outputs.

The classifier learns which transform was applied to a normal image: mirrored or not, shifted by a quarter of the side left,
right, up or down or not (mirrored at the border, the last pixel included), rotated by 0, 90, 180 or 270 degrees. For each
transform, a Dirichlet distribution is fitted to the classifier's softmax outputs on the training images; the score is minus the
mean over transforms of (alpha - 1) . log y(x) (Golan, El-Yaniv 2018, section 4). Anomalies that leave the orientation readable go
unnoticed, and images without orientation (tissue, textures) cannot be used: table 2 of DPA. There is no map.

| | paper and authors' code | normalcy |
| --- | --- | --- |
| network | Wide ResNet 10-4 | the same: ``blocks``, ``widen`` |
| batch | 128 images in all 72 transforms | a random transform for each image of a batch |
| length | 3 epochs of all images in all transforms (authors' code: 200 / 72) | 216 passes over the images, the same |
| score | sum over transforms | mean over transforms |
| L2 penalty | authors' code: 2.5e-4 on all weights, biases and norms | the same: ``weight_decay`` is twice that |
| value range | authors' code: [-1, 1] | [-1, 1] by the range of the training images |
| initial weights, head | Keras; mean over 8x8 pixels | Torch; mean over all pixels, which differs from 64 pixels on |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy import config
from normalcy.errors import DataError
from normalcy.method import Batches, Method, Objective, Scores, Stage
from normalcy.nets.scaling import Range

TRANSFORMS = tuple(product((False, True), (0, -1, 1), (0, -1, 1), (0, 1, 2, 3)))
"""Mirrored, moved along x, moved along y (quarters of the side), quarter turns; the first changes nothing."""


@dataclass(frozen=True)
class DeepGEOSettings:
    widen: int = 4
    """Widening factor k: the three resolutions have 16 k, 32 k and 64 k channels."""
    blocks: int = 1
    """Residual blocks at each of the three resolutions; the network has 6 * blocks + 4 layers."""
    epochs_of_all: float = 3.0
    """Epochs over all images in all transforms; one is 72 passes over the images."""
    lr: float = 1e-3
    """Learning rate (Adam)."""

    weight_decay: float = 5e-4
    """Added to the gradient times each weight, bias and norm (authors' code: the gradient of an L2 penalty of 2.5e-4)."""

    def __post_init__(self) -> None:
        positive = ("widen", "blocks", "epochs_of_all", "lr")
        config.require("deep_geo", self, positive=positive, non_negative=("weight_decay",))


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
    family = "one-class"
    reference = "I. Golan, R. El-Yaniv. Deep anomaly detection using geometric transformations. NeurIPS, 2018. arXiv:1805.10917."
    search: ClassVar = {"epochs_of_all": (1.0, 3.0, 10.0), "widen": (2, 4, 8)}
    settings: DeepGEOSettings
    places: Tensor
    alpha: Tensor

    def __init__(self, settings: DeepGEOSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        channels, height, width = self.shape
        if height != width or height < 8:
            raise DataError(f"deep_geo turns images, so it expects squares of at least 8 pixels, got {self.shape}.")
        self.range = Range()
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
        s = self.settings
        objective = Objective(self.classification, self.classifier.parameters(), lr=s.lr, weight_decay=s.weight_decay)
        passes = s.epochs_of_all * len(TRANSFORMS)
        return [
            Stage("classifier", [objective], epochs=passes, batch_size=128, prepare=self.range.measure),
            Stage("dirichlet", prepare=self.measure),
        ]

    def transformed(self, x: Tensor, which: Tensor) -> Tensor:
        """Each of the images (B, C, H, W) by its transform, (B,)."""
        index = self.places[which][:, None].expand(-1, x.shape[1], -1)
        return x.flatten(2).gather(2, index).view(x.shape)

    def classification(self, x: Tensor) -> Mapping[str, Tensor]:
        which = torch.randint(len(TRANSFORMS), (len(x),), device=x.device)
        answers = self.classifier(self.transformed(self.range(x), which)).float()
        right = (answers.argmax(1) == which).float().mean()
        return {"loss": F.cross_entropy(answers, which), "right": right}

    def log_answers(self, x: Tensor) -> Tensor:
        """log softmax of the classifier on every transform of images (B, C, H, W): (B, transforms, classes)."""
        x = self.range(x)
        if torch.compiler.is_compiling():  # traced for export: one pass of the classifier, not 72 in the graph
            copies = x.flatten(2)[:, :, self.places].transpose(1, 2).reshape(-1, *x.shape[1:])
            return F.log_softmax(self.classifier(copies).float(), 1).view(len(x), len(TRANSFORMS), -1)
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
    step = side // 4
    # "reflect" of Keras and scipy, which repeats the last pixel, is numpy's "symmetric".
    around = torch.from_numpy(np.pad(np.arange(side * side).reshape(side, side), step, mode="symmetric"))
    sources = []
    for mirrored, x, y, turns in TRANSFORMS:
        image = around.flip(-1) if mirrored else around
        moved = image[..., step - y * step : step - y * step + side, step - x * step : step - x * step + side]
        sources.append(torch.rot90(moved, turns, (-2, -1)).flatten())
    return torch.stack(sources)


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
