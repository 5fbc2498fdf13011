"""PatchCore: the distance of each patch's backbone features to the nearest of a memory of normal patches.

Source: Roth et al. 2022, Towards Total Recall in Industrial Anomaly Detection. Features of some layers are averaged over
``pool`` x ``pool`` neighbours (the paper: 3), resized to the finest layer and concatenated; the memory is a greedy k-centre
coreset. Different here: widths are not averaged down to a common number, a linear map does that (features balanced by their
deviation or whitened as in PaDiM (Defard et al. 2021), then a random projection, for the search as well as for the coreset);
candidates for the memory are a bounded random sample of all patches; and the image score is the mean over the strangest
share of the patches (``top``; the paper takes the maximum, ``top=0``).

The defaults of ``layers``, ``pool``, ``scale``, ``memory`` and ``top`` are one choice for all data. It was made looking at the
magnetic tiles and the solar cells, test images included, so numbers on these two sets are a little optimistic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from normalcy.errors import DataError, SettingsError
from normalcy.method import Batches, Method, Scores, Stage
from normalcy.nets.backbones import Backbone
from normalcy.nets.filters import gaussian_smooth
from normalcy.nets.neighbours import Reservoir, k_centre, nearest, random_projection


@dataclass(frozen=True)
class PatchCoreSettings:
    backbone: str = "efficientnet_lite0"
    """Embedded "efficientnet_lite0", a timm model, or "timm model:weights file"; see nets/backbones.py."""
    layers: tuple[int, ...] = (3, 4)
    """Feature levels of the backbone; the map is as fine as the first (efficientnet_lite0: 3 is 1/16, 4 is 1/32)."""
    pool: int = 1
    """Side of the neighbourhood averaged around each patch, in cells of its layer. The paper: 3, steadier image scores but
    blurred maps; 1 is none."""
    scale: float = 1 / 3
    """Features are divided by their deviation over normal patches to this power: 0 leaves them, 1 standardises."""
    whiten: bool = False
    """Instead, whiten features by their covariance (shrunk by 0.1): distances are Mahalanobis', as in PaDiM."""
    projection: int = 128
    """Dimensions of the random projection; 0 keeps all."""
    patches: int = 100_000
    """At most so many patches of the training images are candidates for the memory (bounds the memory in use)."""
    memory: int = 10_000
    """Patches kept. More are better and slower: scoring time grows with it."""
    slack: float = 0.1
    """A chosen centre may be this share nearer than the farthest patch; 0 is the exact greedy coreset."""
    top: float = 0.1
    """Image score: mean over this share of the strangest patches; 0 is the maximum, 1 the mean of all."""
    neighbours: int = 0
    """With top=0, weigh the maximum by this many neighbours of its nearest memory patch (eq. 7; the paper: 9); 0: do not."""
    smoothing: float = 4.0
    """Deviation of a Gaussian over the map, in pixels."""
    bf16: bool = False
    """Backbone in bfloat16: about twice as fast where the processor has it."""

    def __post_init__(self) -> None:
        if self.pool < 1 or self.pool % 2 == 0:
            raise SettingsError(f"patchcore: pool must be odd and positive, got {self.pool}.")
        if self.patches < 1 or self.memory < 1 or self.projection < 0 or self.neighbours < 0 or self.smoothing < 0:
            raise SettingsError(
                "patchcore: patches and memory must be positive, projection, neighbours and smoothing not negative."
            )
        if not 0 <= self.slack < 1 or not 0 <= self.top <= 1 or not 0 <= self.scale <= 1:
            raise SettingsError("patchcore: slack must lie in [0, 1), top and scale in [0, 1].")
        if self.neighbours and self.top:
            raise SettingsError("patchcore: neighbours weighs the maximum, so it needs top=0.")


class PatchCore(Method):
    name = "patchcore"
    Settings = PatchCoreSettings
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
        for x in batches:
            sample.add(self._patches(x).flatten(0, 2))
        if not bool(sample.rows.isfinite().all()):
            raise DataError("patchcore: the training images give features that are not finite; look for NaN in them.")
        self.centre = sample.rows.mean(0)
        self.transform = self._linear(sample.rows - self.centre)
        candidates = self._project(sample.rows)
        self.memory = candidates[k_centre(candidates, self.settings.memory, self.settings.slack)].contiguous()

    def _patches(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, h, w, D): locally averaged features of all layers on the grid of the finest."""
        pool = self.settings.pool
        maps = self.backbone(x)
        if pool > 1:
            maps = [F.avg_pool2d(m, pool, stride=1, padding=pool // 2, count_include_pad=False) for m in maps]
        grid = maps[0].shape[2:]
        maps = [m if m.shape[2:] == grid else F.interpolate(m, size=grid, mode="bilinear") for m in maps]
        return torch.cat(maps, dim=1).permute(0, 2, 3, 1)

    def _linear(self, deviations: Tensor) -> Tensor:
        """(D, d): the scaling and the projection as one matrix, from deviations (n, D) of normal patches from their mean."""
        width = deviations.shape[1]
        variances = deviations.square().mean(0)
        floor = 1e-6 * variances.mean() + 1e-12
        linear = torch.diag((variances + floor) ** (-self.settings.scale / 2))
        if self.settings.whiten:
            covariance = deviations.T @ deviations / len(deviations)
            covariance = 0.9 * covariance + torch.diag(0.1 * variances + floor)
            values, vectors = torch.linalg.eigh(covariance.double().cpu())
            linear = (vectors / values.sqrt()).float().to(deviations.device)
        if 0 < self.settings.projection < width:
            linear = linear @ random_projection(width, self.settings.projection).to(linear.device)
        return linear

    def _project(self, patches: Tensor) -> Tensor:
        return (patches - self.centre) @ self.transform

    def _score(self, x: Tensor) -> Scores:
        patches = self._project(self._patches(x))  # (B, h, w, d)
        found, index = nearest(patches.flatten(0, 2), self.memory)
        distance = found.view(patches.shape[:3])
        image = self._image(distance.flatten(1), patches.flatten(1, 2), index.view(len(x), -1))
        map_ = F.interpolate(distance.unsqueeze(1), size=self.shape[1:], mode="bilinear").squeeze(1)
        return Scores(image=image, map=gaussian_smooth(map_, self.settings.smoothing))

    def _image(self, distance: Tensor, patches: Tensor, index: Tensor) -> Tensor:
        """(B,) from distances (B, P), features (B, P, d) and nearest memory patches (B, P)."""
        if self.settings.top:
            count = max(1, round(self.settings.top * distance.shape[1]))
            return distance.topk(count, dim=1).values.mean(1)
        score, strangest = distance.max(1)
        if not self.settings.neighbours:
            return score
        rows = torch.arange(len(distance), device=distance.device)
        patch, closest = patches[rows, strangest], self.memory[index[rows, strangest]]
        around = self.memory[nearest(closest, self.memory, self.settings.neighbours)[1]]  # (B, b, d), itself included
        to_around = (patch.unsqueeze(1) - around).norm(dim=2)
        # eq. 7: 1 - exp(d*) / sum exp(d); as a softmax it cannot overflow
        return score * (1 - torch.exp(score - to_around.logsumexp(1)))
