"""PaDiM: Mahalanobis distance of each patch's pretrained features from the Gaussian of normal patches at the same position.

Defard et al. 2021. Feature maps of several layers are resized to the finest layer and concatenated; ``dimensions`` channels are
drawn at random. Each position of that grid has its own mean and covariance over the normal images, so the images must be
aligned: the same object at the same place. The image score is the maximum of the map.

| | paper | common reimplementation | normalcy |
|---|---|---|---|
| network | ResNet-18, Wide ResNet-50-2, EfficientNet-B5 | ResNet-18, Wide ResNet-50-2 | EfficientNet-Lite0; ``backbone`` |
| layers | 1 to 3 of a ResNet | the same | 1 to 3: at 1/4, 1/8 and 1/16 of the image's side |
| random dimensions | R18 100, WR50 550 | the same | 100; ``dimensions`` |
| coarse layers | vectors at the corresponding place | nearest | bilinear |
| covariance | N - 1, plus 0.01 I | the same | the same; ``epsilon`` |
| map | resized to the image | bilinear, then Gaussian of 4 pixels | the same; ``smoothing`` |
| image score | maximum of the map | maximum of the smoothed map | maximum of the smoothed map |
| images | 256 pixels, centre crop of 224 | the same | as given; ``preprocess=resize:256,centre_crop:0.875`` |

The reimplementation is the one by xiahaifeng1995 that later work compares with; the authors published no code. Means and
covariances are updated batch by batch, so the memory of training does not grow with the number of images. It takes positions x
dimensions^2 x 4 bytes, which is also the size of the model: with 224 pixels (a grid of 56 x 56) 125 MB for 100 dimensions, 3.8 GB
for 550.
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
from normalcy.nets.filters import Reduce, gaussian_smooth

AT_ONCE = 2**22
"""Values of covariances that are factorised at once, in double precision: 32 MB."""


@dataclass(frozen=True)
class PaDiMSettings:
    backbone: str = "efficientnet_lite0"
    """Pretrained network: the embedded "efficientnet_lite0", a timm model, or "timm model:weights file" (nets/backbones.py)."""
    layers: tuple[int, ...] = (1, 2, 3)
    """Feature layers of the backbone; the first sets the resolution of the map (efficientnet_lite0: 1 is 1/4, 2 is 1/8)."""
    dimensions: int = 100
    """d, the number of channels drawn at random from those of all layers (paper: 100 of 448 for ResNet-18, 550 of 1792 for
    Wide ResNet-50-2); 0: all."""
    epsilon: float = 0.01
    """Added to the diagonal of each covariance."""
    smoothing: float = 4.0
    """Standard deviation of the Gaussian that smooths the map, in pixels; 0: no smoothing."""
    bf16: bool = False
    """Run the backbone in bfloat16: about twice as fast where the processor supports it."""

    def __post_init__(self) -> None:
        require("padim", self, positive=("epsilon",), non_negative=("dimensions", "smoothing"))
        require_that(bool(self.layers), "padim", "layers", "at least one layer of the backbone", self.layers)


class PaDiM(Method):
    name = "padim"
    Settings = PaDiMSettings
    family = "density"
    reference = (
        "T. Defard, A. Setkov, A. Loesch, R. Audigier. PaDiM: a patch distribution modeling framework for anomaly "
        "detection and localization. ICPR workshops, 2021. arXiv:2011.08785"
    )
    search: ClassVar = {"layers": ((1, 2, 3), (2, 3), (2, 3, 4), (3, 4)), "dimensions": (50, 100, 0)}
    settings: PaDiMSettings
    chosen: Tensor
    mean: Tensor
    whitening: Tensor

    def __init__(self, settings: PaDiMSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.backbone = Backbone(settings.backbone, settings.layers, self.shape[0], settings.bf16)
        # (d,) channels; (positions, d); (positions, d, d): the inverse of the covariance's Cholesky factor
        self.learned("mean", "whitening")
        self.register_buffer("chosen", torch.empty(0, dtype=torch.long))

    def stages(self) -> Sequence[Stage]:
        return [Stage("gaussians", prepare=self._learn)]

    def _learn(self, batches: Batches) -> None:
        width = sum(self.backbone.widths)
        count = min(self.settings.dimensions, width) or width
        self.chosen = torch.randperm(width)[:count].sort().values.to(self.device)
        mean, scatter, seen = torch.empty(0), torch.empty(0), 0
        for vectors in batches.map(lambda x: self._patches(x).flatten(1, 2)):
            patches = vectors.transpose(0, 1)  # (positions, B, d)
            new = patches.shape[1]
            own = patches.mean(1)
            if not seen:
                mean, scatter = torch.zeros_like(own), own.new_zeros(len(own), count, count)
            shift = own - mean
            # One row more accounts for the distance of the two means (Chan et al. 1979).
            between = (seen * new / (seen + new)) ** 0.5 * shift
            rows = torch.cat([patches - own.unsqueeze(1), between.unsqueeze(1)], dim=1)
            scatter.baddbmm_(rows.transpose(1, 2), rows)
            mean, seen = mean + shift * (new / (seen + new)), seen + new
        if seen < 2:
            raise DataError(f"padim expects at least 2 training images for its covariances, got {seen}.")
        if not bool(scatter.isfinite().all()):
            raise DataError("padim: features of the training images are not finite; check the images for NaN.")
        self.mean, self.whitening = mean, self._inverted(scatter.div_(seen - 1))

    def _inverted(self, covariances: Tensor) -> Tensor:
        """Inverse Cholesky factors L^-1 of covariances (positions, d, d) plus epsilon, written in their place."""
        identity = torch.eye(covariances.shape[1], dtype=torch.float64)
        for part in torch.split(covariances, max(1, AT_ONCE // identity.numel())):
            factor = torch.linalg.cholesky(part.double().cpu() + self.settings.epsilon * identity)
            part.copy_(torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False))
        return covariances

    def _patches(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, h, w, d): the chosen channels of all layers on the grid of the finest."""
        maps = self.backbone(x)
        grid = maps[0].shape[2:]
        maps = [m if m.shape[2:] == grid else F.interpolate(m, size=grid, mode="bilinear") for m in maps]
        return torch.cat(maps, dim=1)[:, self.chosen].permute(0, 2, 3, 1)

    @property
    def reduction(self) -> Reduce:
        return "max"

    def _score(self, x: Tensor) -> Scores:
        patches = self._patches(x)  # (B, h, w, d)
        centred = patches.flatten(1, 2) - self.mean
        whitened = torch.bmm(self.whitening, centred.permute(1, 2, 0))  # (positions, d, B)
        distance = whitened.norm(dim=1).T.reshape(patches.shape[:3])
        map_ = F.interpolate(distance.unsqueeze(1), size=self.shape[1:], mode="bilinear").squeeze(1)
        map_ = gaussian_smooth(map_, self.settings.smoothing)
        return Scores(image=map_.flatten(1).amax(1), map=map_)
