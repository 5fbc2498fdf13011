"""PatchCore: distance of each patch's pretrained features to the nearest in a memory bank of normal patches.

Roth et al. 2022. Feature maps of several layers are locally averaged, resized to the finest layer and concatenated; the memory
bank is a greedy k-centre coreset of the training patches. The image score is the mean over the highest-scoring patches.

| | paper | normalcy |
|---|---|---|
| local averaging | 3x3 patches | ``pool`` x ``pool``, by default none |
| dimension of the features | averaged to a common number of channels | linear map: scaled or whitened, random projection |
| distances | in the full features; the projection is for the coreset only | in the projected features |
| candidates for the memory bank | all patches | a random sample of at most ``patches`` |
| image score | maximum, reweighted by equation 7 | mean over ``top``; 0: maximum, with ``neighbours`` by equation 7 |

Whitening is that of PaDiM (Defard et al. 2021). The defaults of ``layers``, ``pool``, ``scale``, ``memory`` and ``top`` are one
choice for all data, made on the magnetic tiles and the solar cells with their test images: results on these two data sets are
slightly optimistic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from normalcy.config import require, require_that
from normalcy.errors import DataError
from normalcy.method import Batches, Method, Scores, Stage
from normalcy.nets.backbones import Backbone
from normalcy.nets.filters import gaussian_smooth
from normalcy.nets.neighbours import Reservoir, k_centre, nearest, random_projection


@dataclass(frozen=True)
class PatchCoreSettings:
    backbone: str = "efficientnet_lite0"
    """Pretrained network: the embedded "efficientnet_lite0", a timm model, or "timm model:weights file" (nets/backbones.py)."""
    layers: tuple[int, ...] = (3, 4)
    """Feature layers of the backbone; the first sets the resolution of the map (efficientnet_lite0: 3 is 1/16, 4 is 1/32)."""
    pool: int = 1
    """Side of the neighbourhood averaged around each patch, in cells of its layer, odd. 3, as in the paper, gives steadier image
    scores and blurred maps; 1 is no averaging."""
    scale: float = 1 / 3
    """Features are divided by their standard deviation over normal patches to this power: 0 leaves them, 1 standardises."""
    whiten: bool = False
    """Whiten features by their covariance (shrunk by 0.1) instead of scaling: Mahalanobis distances, as in PaDiM."""
    projection: int = 128
    """Dimension of the random projection; 0: no projection."""
    patches: int = 100_000
    """Maximum number of training patches considered for the memory bank; bounds the memory during training."""
    memory: int = 10_000
    """Patches in the memory bank. More are better and slower: the time of scoring grows with it."""
    slack: float = 0.1
    """Fraction by which a chosen centre may be nearer than the farthest patch, in [0, 1); 0 is the exact greedy coreset."""
    top: float = 0.1
    """Image score: mean over this fraction of highest-scoring patches, in [0, 1]; 0 is the maximum, 1 the mean of all."""
    neighbours: int = 0
    """With top=0: number of neighbours of the nearest memory patch that reweight the maximum (equation 7, paper: 9); 0: none."""
    smoothing: float = 4.0
    """Standard deviation of the Gaussian that smooths the map, in pixels; 0: no smoothing."""
    bf16: bool = False
    """Run the backbone in bfloat16: about twice as fast where the processor supports it."""

    def __post_init__(self) -> None:
        non_negative = ("projection", "neighbours", "smoothing")
        require("patchcore", self, positive=("patches", "memory"), non_negative=non_negative, unit=("top", "scale"))
        require_that(self.pool > 0 and self.pool % 2 == 1, "patchcore", "pool", "odd and positive", self.pool)
        require_that(0 <= self.slack < 1, "patchcore", "slack", "at least 0 and below 1", self.slack)
        expected = "0 unless top=0, since it reweights the maximum"
        require_that(not (self.neighbours and self.top), "patchcore", "neighbours", expected, self.neighbours)


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
        self.backbone = Backbone(settings.backbone, settings.layers, self.shape[0], settings.bf16)
        self.learned("centre", "transform", "memory")

    def stages(self) -> Sequence[Stage]:
        return [Stage("memory", prepare=self._remember)]

    def _remember(self, batches: Batches) -> None:
        sample = Reservoir(self.settings.patches)
        for rows in batches.map(lambda x: self._patches(x).flatten(0, 2)):
            sample.add(rows)
        if not bool(sample.rows.isfinite().all()):
            raise DataError("patchcore: features of the training images are not finite; check the images for NaN.")
        self.centre = sample.rows.mean(0)
        self.transform = self._linear(sample.rows - self.centre)
        candidates = self._project(sample.rows)
        chosen = batches.once(lambda: k_centre(candidates, self.settings.memory, self.settings.slack))
        self.memory = candidates[chosen].contiguous()

    def _patches(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, h, w, D): locally averaged features of all layers on the grid of the finest."""
        pool = self.settings.pool
        maps = self.backbone(x)
        if pool > 1:
            maps = [F.avg_pool2d(m, pool, stride=1, padding=pool // 2, count_include_pad=False) for m in maps]
        grid = maps[0].shape[2:]
        maps = [m if m.shape[2:] == grid else F.interpolate(m, size=grid, mode="bilinear") for m in maps]
        return torch.cat(maps, dim=1).permute(0, 2, 3, 1)

    def _linear(self, centred: Tensor) -> Tensor:
        """(D, d): scaling or whitening and projection as one matrix, from centred features (n, D) of normal patches."""
        width = centred.shape[1]
        variances = centred.square().mean(0)
        floor = 1e-6 * variances.mean() + 1e-12
        linear = torch.diag((variances + floor) ** (-self.settings.scale / 2))
        if self.settings.whiten:
            covariance = centred.T @ centred / len(centred)
            covariance = 0.9 * covariance + torch.diag(0.1 * variances + floor)
            values, vectors = torch.linalg.eigh(covariance.double().cpu())
            linear = (vectors / values.sqrt()).float().to(centred.device)
        if 0 < self.settings.projection < width:
            linear = linear @ random_projection(width, self.settings.projection).to(linear.device)
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
        if self.settings.top:
            count = max(1, round(self.settings.top * distance.shape[1]))
            return distance.topk(count, dim=1).values.mean(1)
        score, highest = distance.max(1)
        if not self.settings.neighbours:
            return score
        rows = torch.arange(len(distance), device=distance.device)
        patch, closest = patches[rows, highest], self.memory[index[rows, highest]]
        around = self.memory[
            nearest(closest, self.memory, self.settings.neighbours)[1]
        ]  # (B, b, d), the nearest one included
        to_around = (patch.unsqueeze(1) - around).norm(dim=2)
        # equation 7, 1 - exp(d*) / sum exp(d), in a form that cannot overflow
        return score * (1 - torch.exp(score - to_around.logsumexp(1)))
