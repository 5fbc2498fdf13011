"""AnomalyDINO: cosine distance of each patch's DINO features to the nearest patch of a few normal images.

Damm et al. 2025. The patch features of the last block of a self-supervised vision transformer are compared with a memory bank of
all patches of k normal images (``shots``) and their rotations. Nothing is trained. The image score is the mean of the highest 1 %
of the patch distances.

| | paper and authors' code | normalcy |
|---|---|---|
| network | DINOv2 ViT-S/14, last block with the final layer norm | the same; ``backbone``, DINOv3 included |
| images | shorter side 448, bicubic, cropped to patches | shorter side 448, bilinear, both sides rounded to patches |
| k images | k neighbours in the order of their names | k at random, by the seed; 0: all |
| rotations (agnostic preprocessing) | 8, by 45 degrees, borders reflected; full-shot: none | the same; ``rotations`` |
| memory bank | all patches | at most ``memory``, a random sample |
| distance | cosine, nearest neighbour | the same; ``neighbours`` |
| masking | object by object: none for textures | off; ``masking`` |
| image score | mean of the highest 1 % of the patches, rounded down | rounded to the nearest number |
| map | bilinear to the image, Gaussian of 4 pixels | the same |

With ``masking``, patches of the background have the distance 0. They are those whose first principal component over the image's
own patches is at most ``masking_threshold``; where no more than 35 % of the central patches (three fifths of each side) are kept,
the sign of the component is reversed. The mask is then dilated and closed by 3 x 3 patches. As in the authors' code, the memory
bank is not masked. The threshold of 10 is in the units of DINOv2's features; other networks need another.

The weights of DINO networks are not installed with normalcy: they come from the hub, or from a file with
``backbone=vit_small_patch14_dinov2.lvd142m:model.safetensors``. DINOv3 (``vit_small_patch16_dinov3.lvd1689m``) has a licence of
its own. Any other backbone works, too; with ``efficientnet_lite0``, which needs no network, it is another method by the same
formulas. Images reach the network at 448 pixels, but with no more detail than ``size`` has left: give ``size=448`` (or 672) for
larger ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import cos, pi, sin
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from normalcy.config import require
from normalcy.errors import DataError
from normalcy.method import Batches, Method, Scores, Stage
from normalcy.nets.backbones import Backbone
from normalcy.nets.filters import gaussian_smooth, mean_of_highest
from normalcy.nets.neighbours import Reservoir, nearest

BORDER = 0.2
"""Fraction of each side that is not central."""
CENTRAL = 0.35
"""Fraction of the central patches of which more must be kept, or the first principal component is reversed."""


@dataclass(frozen=True)
class AnomalyDINOSettings:
    backbone: str = "vit_small_patch14_dinov2.lvd142m"
    """Pretrained network: a timm model, "timm model:weights file", or the embedded "efficientnet_lite0" (nets/backbones.py)."""
    layer: int | None = None
    """Feature layer of the backbone: a block of a transformer, from 0. none: the last."""
    side: int = 448
    """Shorter side in pixels to which images are resized (paper: 448, and 672); both sides become multiples of the patch."""
    shots: int = 0
    """k, the number of training images in the memory bank (paper: 1, 2, 4, 8, 16), drawn by the seed; 0: all."""
    rotations: int | None = None
    """Copies of each training image, rotated by equal angles; 1: only itself. none: 8 with shots, as in the paper, else 1."""
    memory: int = 200_000
    """Maximum number of patches in the memory bank, drawn at random (an image of 448 pixels has 1,024 of 14 pixels)."""
    neighbours: int = 1
    """Nearest patches over which the distance is averaged."""
    masking: bool = False
    """Give patches of the background the distance 0. Only for single objects in the centre of the image; a model with masking
    cannot be exported."""
    masking_threshold: float = 10.0
    """With masking: first principal component above which a patch belongs to the object."""
    top: float = 0.01
    """Image score: mean over this fraction of highest patch distances, in [0, 1]; 0 is the maximum, 1 the mean of all."""
    smoothing: float = 4.0
    """Standard deviation of the Gaussian that smooths the map, in pixels; 0: no smoothing."""
    bf16: bool = False
    """Run the backbone in bfloat16: about twice as fast where the processor supports it."""

    def __post_init__(self) -> None:
        positive = ("side", "rotations", "memory", "neighbours")
        non_negative = ("shots", "masking_threshold", "smoothing")
        require("anomaly_dino", self, positive=positive, non_negative=non_negative, unit=("top",))

    @property
    def copies(self) -> int:
        """Rotated copies of each training image, itself included."""
        return self.rotations or (8 if self.shots else 1)


class AnomalyDINO(Method):
    name = "anomaly_dino"
    Settings = AnomalyDINOSettings
    family = "density"
    reference = (
        "S. Damm, M. Laszkiewicz, J. Lederer, A. Fischer. AnomalyDINO: boosting patch-based few-shot anomaly detection with "
        "DINOv2. WACV, 2025. arXiv:2405.14529"
    )
    search: ClassVar = {"top": (0.0, 0.01, 0.1), "rotations": (1, 4, 8)}
    settings: AnomalyDINOSettings
    memory: Tensor

    def __init__(self, settings: AnomalyDINOSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        s = settings
        layers = None if s.layer is None else (s.layer,)
        self.backbone = Backbone(s.backbone, layers, self.shape[0], s.bf16, norm=True)
        patch, factor = self.backbone.reductions[0], s.side / min(self.shape[1:])
        self.sides = [max(1, round(n * factor / patch)) * patch for n in self.shape[1:]]
        self.learned("memory")

    def stages(self) -> Sequence[Stage]:
        return [Stage("memory", prepare=self._remember)]

    def _remember(self, batches: Batches) -> None:
        sample = Reservoir(self.settings.memory)
        for x in self._chosen(batches):
            for number in range(self.settings.copies):
                sample.add(F.normalize(self._patches(rotated(x, 2 * pi * number / self.settings.copies)).flatten(0, 2)))
        if not bool(sample.rows.isfinite().all()):
            raise DataError("anomaly_dino: features of the training images are not finite; check the images for NaN.")
        self.memory = sample.rows

    def _chosen(self, batches: Batches) -> Iterator[Tensor]:
        """The training images of the memory bank, in their order."""
        shots = self.settings.shots or batches.count
        if batches.count < shots:
            raise DataError(
                f"anomaly_dino: shots={shots} needs as many training images, got {batches.count} without those held out for "
                "calibration: add images, or set fewer shots or calibration=0."
            )
        chosen = torch.zeros(batches.count, dtype=torch.bool)
        chosen[torch.randperm(batches.count)[:shots]] = True
        first = 0
        for x in batches:
            kept = chosen[first : first + len(x)]
            first += len(x)
            if kept.any():
                yield x[kept.to(x.device)]

    def _patches(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, h, w, D)"""
        if list(x.shape[2:]) != self.sides:
            x = F.interpolate(x, size=self.sides, mode="bilinear", antialias=self.sides[0] < x.shape[2])
        maps: list[Tensor] = self.backbone(x)
        return maps[0].permute(0, 2, 3, 1)

    def _score(self, x: Tensor) -> Scores:
        patches = self._patches(x)  # (B, h, w, D)
        queries = F.normalize(patches.flatten(0, 2))
        distance, _ = nearest(queries, self.memory, min(self.settings.neighbours, len(self.memory)))
        # |a - b|^2 = 2 - 2 cos for vectors of length 1
        distance = (distance.square() / 2).mean(1).view(patches.shape[:3])
        if self.settings.masking:
            distance = distance * foreground(patches, self.settings.masking_threshold)
        map_ = F.interpolate(distance.unsqueeze(1), size=self.shape[1:], mode="bilinear").squeeze(1)
        image = mean_of_highest(distance, self.settings.top)
        return Scores(image=image, map=gaussian_smooth(map_, self.settings.smoothing))


def rotated(x: Tensor, angle: float) -> Tensor:
    """Images (B, C, H, W) rotated about their centre by ``angle`` in radians, counterclockwise; borders are reflected."""
    if angle == 0:
        return x
    height, width = x.shape[2:]
    # In pixels a rotation, in the coordinates of the sides, [-1, 1], with their ratio.
    matrix = [
        [cos(angle), -sin(angle) * height / width, 0.0],
        [sin(angle) * width / height, cos(angle), 0.0],
    ]
    grid = F.affine_grid(x.new_tensor(matrix).expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def foreground(patches: Tensor, threshold: float) -> Tensor:
    """Which patches (B, h, w, D) belong to the object in the centre of each image: bool (B, h, w)."""
    count, height, width, _ = patches.shape
    centred = patches.flatten(1, 2) - patches.mean((1, 2)).unsqueeze(1)
    axis = torch.linalg.eigh(centred.transpose(1, 2) @ centred).eigenvectors[..., -1]  # (B, D)
    # The sign of an eigenvector is arbitrary; as in scikit-learn, its largest entry is positive.
    axis = axis * axis.gather(1, axis.abs().argmax(1, keepdim=True)).sign()
    first = (centred @ axis.unsqueeze(2)).view(count, height, width)
    mask = first > threshold
    rows = slice(int(height * BORDER), int(height * (1 - BORDER)))
    columns = slice(int(width * BORDER), int(width * (1 - BORDER)))
    kept = mask[:, rows, columns].flatten(1).float()
    reverse = kept.sum(1) <= CENTRAL * kept.shape[1]
    mask = torch.where(reverse.view(-1, 1, 1), -first > threshold, mask)
    dilated = F.max_pool2d(F.max_pool2d(mask.float(), 3, 1, 1), 3, 1, 1)  # dilation, then that of the closing
    return -F.max_pool2d(-dilated, 3, 1, 1) > 0
