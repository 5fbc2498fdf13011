"""PatchCore: distance of each patch's pretrained features to the nearest in a memory bank of normal patches.

Roth et al. 2022. Feature maps of several layers are locally averaged, resized to the finest layer and concatenated; the memory
bank is a greedy k-centre coreset of the training patches. The image score is the mean over the highest-scoring patches.

| | paper | authors' code | default | ``preset=wide_resnet50`` |
|---|---|---|---|---|
| network | Wide ResNet-50-2, layers 2 and 3 | the same | EfficientNet-Lite0, ``layers`` 3, 4 | as the paper |
| local averaging | 3 x 3 patches | 3 x 3, zeros at the border | none; ``pool`` | as the authors' code |
| dimension | averaged to a common number | 1,024, by adaptive pooling | all channels, scaled, projected to 128 | the code's |
| distances | of all 1,024 dimensions | the same, squared | of the 128 projected ones | as the paper |
| candidates for the bank | all patches | all patches | a random sample of ``patches`` | at most 400,000 |
| coreset | greedy; 1 %, 10 % or 25 % | 10 starting points; 1 % or 10 % | 10,000 patches, ``slack`` 0.1 | 10 %, exact |
| projection for the coreset | Johnson-Lindenstrauss | 128 | none of its own | 128 |
| image score | maximum, reweighted by equation 7 | maximum | mean over ``top`` | as the paper, b = 9 |
| map | bilinear, Gaussian of 4 pixels | the same | the same | the same |
| images | 256 pixels, centre crop of 224 | the shorter side is resized | as given | ``preprocess``, below |

``preset=wide_resnet50`` sets the method, not the images: the paper's are
``--set preset=wide_resnet50 --set preprocess=resize:256,centre_crop:0.875`` (both sides are resized to 256). Each preset's values
can be changed one by one: ``coreset=0.01`` is the paper's fastest bank. The weights (those of torchvision, first version) come
from the hub, or from a file, in timm's names or torchvision's: ``backbone=wide_resnet50_2:FILE``. 400,000 candidates take 1.6 GB
and cover each class of MVTec AD.

Whitening is that of PaDiM (Defard et al. 2021). The defaults of ``layers``, ``pool``, ``scale``, ``memory`` and ``top`` are one
choice for all data, made on the magnetic tiles and the solar cells with their test images: results on these two data sets are
slightly optimistic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from normalcy.config import require, require_that
from normalcy.errors import DataError
from normalcy.method import Batches, Method, Scores, Stage
from normalcy.nets.backbones import Backbone
from normalcy.nets.filters import gaussian_smooth
from normalcy.nets.neighbours import Reservoir, k_centre, nearest, random_projection

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {
        "backbone": "efficientnet_lite0",
        "layers": (3, 4),
        "pool": 1,
        "dimension": 0,
        "scale": 1 / 3,
        "projection": 128,
        "patches": 100_000,
        "coreset": None,
        "coreset_projection": 0,
        "slack": 0.1,
        "top": 0.1,
        "neighbours": 0,
    },
    "wide_resnet50": {
        "backbone": "wide_resnet50_2.tv_in1k",
        "layers": (2, 3),
        "pool": 3,
        "dimension": 1024,
        "scale": 0.0,
        "projection": 0,
        "patches": 400_000,
        "coreset": 0.1,
        "coreset_projection": 128,
        "slack": 0.0,
        "top": 0.0,
        "neighbours": 9,
    },
}
"""What settings of none stand for."""


@dataclass(frozen=True)
class PatchCoreSettings:
    preset: Literal["default", "wide_resnet50"] = "default"
    """What settings of none stand for: "default", or "wide_resnet50", the paper's."""
    backbone: str | None = None
    """Pretrained network: the embedded "efficientnet_lite0", a timm model, or "timm model:weights file" (nets/backbones.py).
    none: efficientnet_lite0, or wide_resnet50_2.tv_in1k with preset=wide_resnet50."""
    layers: tuple[int, ...] | None = None
    """Feature layers of the backbone; the first sets the resolution of the map (efficientnet_lite0: 3 is 1/16, 4 is 1/32). none:
    3,4, or 2,3 with preset=wide_resnet50."""
    pool: int | None = None
    """Side of the neighbourhood averaged around each patch, in cells of its layer, odd. 3, as in the paper, gives steadier image
    scores and blurred maps; 1 is no averaging. none: 1, or 3 with preset=wide_resnet50."""
    dimension: int | None = None
    """Dimension to which the features of each layer, and then those of all, are averaged by adaptive pooling over neighbourhood
    and channels, as in the authors' code; 0: all channels are kept. none: 0, or 1024 with preset=wide_resnet50."""
    scale: float | None = None
    """Features are divided by their standard deviation over normal patches to this power: 0 leaves them, 1 standardises. none:
    1/3, or 0 with preset=wide_resnet50."""
    whiten: bool = False
    """Whiten features by their covariance (shrunk by 0.1) instead of scaling: Mahalanobis distances, as in PaDiM."""
    projection: int | None = None
    """Dimension of the random projection in which distances are measured; 0: no projection. none: 128, or 0 with
    preset=wide_resnet50."""
    patches: int | None = None
    """Maximum number of training patches considered for the memory bank; bounds the memory during training. none: 100000, or
    400000 with preset=wide_resnet50."""
    memory: int = 10_000
    """Patches in the memory bank. More are better and slower: the time of scoring grows with it."""
    coreset: float | None = None
    """Fraction of the considered patches in the memory bank, in place of ``memory`` (paper: 0.01, 0.1 or 0.25). none: ``memory``
    patches, or 0.1 with preset=wide_resnet50."""
    coreset_projection: int | None = None
    """Dimension of a random projection in which the memory bank is chosen, but not searched; 0: none. none: 0, or 128 with
    preset=wide_resnet50."""
    slack: float | None = None
    """Fraction by which a chosen centre may be nearer than the farthest patch, in [0, 1); 0 is the exact greedy coreset. none:
    0.1, or 0 with preset=wide_resnet50."""
    top: float | None = None
    """Image score: mean over this fraction of highest-scoring patches, in [0, 1]; 0 is the maximum, 1 the mean of all. none: 0.1,
    or 0 with preset=wide_resnet50."""
    neighbours: int | None = None
    """With top=0: number of neighbours of the nearest memory patch that reweight the maximum (b of equation 7); 0: none.
    none: 0, or 9, as in common reimplementations, with preset=wide_resnet50 unless top is given."""
    smoothing: float = 4.0
    """Standard deviation of the Gaussian that smooths the map, in pixels; 0: no smoothing."""
    bf16: bool = False
    """Run the backbone in bfloat16: about twice as fast where the processor supports it."""

    def __post_init__(self) -> None:
        non_negative = ("dimension", "projection", "coreset_projection", "neighbours", "smoothing")
        positive = ("patches", "memory")
        unit = ("top", "scale")
        require("patchcore", self, positive=positive, non_negative=non_negative, unit=unit)
        require_that(
            self.coreset is None or 0 < self.coreset <= 1, "patchcore", "coreset", "above 0, at most 1", self.coreset
        )
        pool, slack = self.value("pool"), self.value("slack")
        require_that(pool > 0 and pool % 2 == 1, "patchcore", "pool", "odd and positive", pool)
        require_that(0 <= slack < 1, "patchcore", "slack", "at least 0 and below 1", slack)
        expected = "0 unless top=0, since it reweights the maximum"
        require_that(not (self.neighbours and self.value("top")), "patchcore", "neighbours", expected, self.neighbours)

    def value(self, name: str) -> Any:
        """A setting's value, or the preset's where it is none."""
        given = getattr(self, name)
        if given is None and name == "neighbours" and self.value("top"):
            return 0  # only the maximum is reweighted
        return PRESETS[self.preset][name] if given is None else given


class PatchCore(Method):
    name = "patchcore"
    Settings = PatchCoreSettings
    family = "density"
    reference = (
        "K. Roth, L. Pemula, J. Zepeda, B. Schölkopf, T. Brox, P. Gehler. Towards total recall in industrial "
        "anomaly detection. CVPR, 2022. arXiv:2106.08265"
    )
    search: ClassVar = {
        "layers": ((1, 2), (2,), (2, 3), (3,), (3, 4)),
        "top": (0.0, 0.01, 0.1, 0.5),
        "scale": (0.0, 0.5, 1.0),
    }
    settings: PatchCoreSettings
    centre: Tensor
    transform: Tensor
    memory: Tensor

    def __init__(self, settings: PatchCoreSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.backbone = Backbone(settings.value("backbone"), settings.value("layers"), self.shape[0], settings.bf16)
        self.learned("centre", "transform", "memory")

    def stages(self) -> Sequence[Stage]:
        return [Stage("memory", prepare=self._remember)]

    def _remember(self, batches: Batches) -> None:
        s = self.settings
        sample = Reservoir(s.value("patches"))
        for rows in batches.map(lambda x: self._patches(x).flatten(0, 2)):
            sample.add(rows)
        if not bool(sample.rows.isfinite().all()):
            raise DataError("patchcore: features of the training images are not finite; check the images for NaN.")
        self.centre = sample.rows.mean(0)
        self.transform = self._linear(sample.rows - self.centre)
        candidates = self._project(sample.rows)
        fraction, width = s.value("coreset"), s.value("coreset_projection")
        count = s.memory if fraction is None else max(1, int(fraction * len(candidates)))
        points = candidates
        if 0 < width < points.shape[1]:
            points = points @ random_projection(points.shape[1], width).to(points.device)
        self.memory = candidates[batches.once(lambda: k_centre(points, count, s.value("slack")))].contiguous()

    def _patches(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, h, w, D): locally averaged features of all layers on the grid of the finest."""
        pool, dimension = self.settings.value("pool"), self.settings.value("dimension")
        maps = self.backbone(x)
        if dimension:
            maps = [neighbourhoods(m, pool, dimension) for m in maps]
        elif pool > 1:
            maps = [F.avg_pool2d(m, pool, stride=1, padding=pool // 2, count_include_pad=False) for m in maps]
        grid = maps[0].shape[2:]
        maps = [m if m.shape[2:] == grid else F.interpolate(m, size=grid, mode="bilinear") for m in maps]
        patches = torch.cat(maps, dim=1).permute(0, 2, 3, 1)
        # A whole number of layers: the mean of as many consecutive values as there are layers is adaptive pooling.
        return patches.reshape(*patches.shape[:3], dimension, len(maps)).mean(4) if dimension else patches

    def _linear(self, centred: Tensor) -> Tensor:
        """(D, d): scaling or whitening and projection as one matrix, from centred features (n, D) of normal patches."""
        width = centred.shape[1]
        variances = centred.square().mean(0)
        floor = 1e-6 * variances.mean() + 1e-12
        linear = torch.diag((variances + floor) ** (-self.settings.value("scale") / 2))
        if self.settings.whiten:
            covariance = centred.T @ centred / len(centred)
            covariance = 0.9 * covariance + torch.diag(0.1 * variances + floor)
            values, vectors = torch.linalg.eigh(covariance.double().cpu())
            linear = (vectors / values.sqrt()).float().to(centred.device)
        projection = self.settings.value("projection")
        if 0 < projection < width:
            linear = linear @ random_projection(width, projection).to(linear.device)
        return linear

    def _project(self, patches: Tensor) -> Tensor:
        """(..., D) -> (..., d)"""
        return (patches - self.centre) @ self.transform

    def _score(self, x: Tensor) -> Scores:
        patches = self._project(self._patches(x))  # (B, h, w, d)
        distance, index = nearest(patches.flatten(0, 2), self.memory)
        distance, index = distance.view(patches.shape[:3]), index.view(patches.shape[:3])
        image = self._image(distance.flatten(1), patches.flatten(1, 2), index.flatten(1))
        map_ = F.interpolate(distance.unsqueeze(1), size=self.shape[1:], mode="bilinear").squeeze(1)
        return Scores(image=image, map=gaussian_smooth(map_, self.settings.smoothing))

    def _image(self, distance: Tensor, patches: Tensor, index: Tensor) -> Tensor:
        """Image scores (B,) from distances (B, P), features (B, P, d) and indices of the nearest memory patches (B, P)."""
        top, neighbours = self.settings.value("top"), self.settings.value("neighbours")
        if top:
            count = max(1, round(top * distance.shape[1]))
            return distance.topk(count, dim=1).values.mean(1)
        score, highest = distance.max(1)
        if not neighbours:
            return score
        rows = torch.arange(len(distance), device=distance.device)
        patch, closest = patches[rows, highest], self.memory[index[rows, highest]]
        around = self.memory[nearest(closest, self.memory, neighbours)[1]]  # (B, b, d), the nearest one included
        to_around = (patch.unsqueeze(1) - around).norm(dim=2)
        # equation 7, 1 - exp(d*) / sum exp(d), in a form that cannot overflow
        return score * (1 - torch.exp(score - to_around.logsumexp(1)))


def neighbourhoods(maps: Tensor, side: int, dimension: int) -> Tensor:
    """(B, C, h, w) -> (B, dimension, h, w): the ``side`` x ``side`` patch around each cell, zeros beyond the border, flattened
    and averaged to ``dimension`` values by adaptive pooling, as in the authors' code."""
    values = F.unfold(maps, side, padding=side // 2).transpose(1, 2)  # (B, h w, C side side)
    count = values.shape[2]
    # torch's adaptive pooling, by indices: where the numbers do not divide, its own exports as one node for each output value
    first = torch.arange(dimension) * count // dimension
    beyond = -(-(torch.arange(dimension) + 1) * count // dimension)
    # an integer of Python's, as one of a tensor would not be constant in a traced graph
    width = max(-(-(i + 1) * count // dimension) - i * count // dimension for i in range(dimension))
    places = first[:, None] + torch.arange(width)  # (dimension, width)
    inside = (places < beyond[:, None]).float()
    weights = (inside / inside.sum(1, keepdim=True)).to(maps.device)
    chosen = values[:, :, places.clamp(max=count - 1).flatten().to(maps.device)].reshape(
        *values.shape[:2], *weights.shape
    )
    averaged: Tensor = (chosen * weights).sum(3).transpose(1, 2)
    return averaged.reshape(maps.shape[0], dimension, *maps.shape[2:])
