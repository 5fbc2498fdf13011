"""Images as vectors for the classical estimators: pixels or pooled backbone features, then PCA; and Gaussian kernel sums.

Source: the shallow baselines of Deep SVDD (Ruff et al. 2018, section 4): pixels after PCA to 95 % of the variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from normalcy.errors import DataError, SettingsError
from normalcy.method import Batches

LARGEST_MATRIX = 4096
"""Rows of the largest matrix whose eigenvectors are computed (about 20 s on two cores)."""
LARGEST_BLOCK = 2**28
"""Numbers held at once: 1 GB of float32."""


@dataclass(frozen=True)
class FeatureSettings:
    """What ocsvm, kde, isolation_forest and gmm see of an image; each of them adds its own settings."""

    features: Literal["pixels", "backbone"] = "pixels"
    """The pixels, or the mean over the image of each channel of a pretrained network (2D images in [0, 1])."""
    variance: float | None = 0.95
    """Share of the variance that PCA keeps; none: no PCA."""
    backbone: str = "efficientnet_lite0"
    """With features=backbone: timm name, local file or the embedded efficientnet_lite0."""
    layers: tuple[int, ...] = (1, 2, 3, 4)
    """With features=backbone: its layers, concatenated."""

    def __post_init__(self) -> None:
        if self.variance is not None and not 0 < self.variance < 1:
            raise SettingsError(f"variance must lie in (0, 1) or be none, got {self.variance}.")
        if not self.layers:
            raise SettingsError("layers must name at least one layer of the backbone, got none.")


class Features(nn.Module):
    """(B, C, *spatial) -> (B, k), centred on the training images. :meth:`learn` before use.

    Backbone features are divided by their deviation over the training images, since layers differ in scale; pixels are not.
    """

    centre: Tensor
    scale: Tensor
    basis: Tensor

    def __init__(self, settings: FeatureSettings, shape: Sequence[int]) -> None:
        super().__init__()
        self.backbone: nn.Module | None = None
        size = math.prod(shape)
        if settings.features == "backbone":
            if len(shape) != 3:
                raise DataError(f"features=backbone expects 2D images, got {tuple(shape)}: use features=pixels.")
            from normalcy.nets.backbones import Backbone

            backbone = Backbone(settings.backbone, settings.layers, shape[0])
            self.backbone, size = backbone, sum(backbone.widths)
        self.variance = settings.variance
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("basis", torch.empty(0))  # (k, size); unused without PCA

    def learn(self, batches: Batches, most: int | None = None) -> Tensor:
        """Learn centre, scale and PCA from all images; return the features (N, k) of all, or of ``most`` evenly spaced ones.

        Raises DataError when the images do not differ from one another.
        """
        # A network runs once and its features are few; pixels are read again at each pass.
        once = Mapped(batches, self.vectors)
        blocks = once if self.backbone is None else list(once)
        self.centre, deviation = mean_and_deviation(blocks)
        if not bool(deviation.any()):
            raise DataError("The training images are all equal, so how they vary cannot be learned: give more images.")
        if self.backbone is not None:
            self.scale = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
        if self.variance is not None:
            standardised = Mapped(blocks, lambda v: (v - self.centre) / self.scale)
            self.basis, _ = principal_components(standardised, batches.count, self.variance)
        return gather(Mapped(blocks, self.project), batches.count, most)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.vectors(x))

    def vectors(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> (B, D), before PCA."""
        if self.backbone is None:
            return x.flatten(1)
        return torch.cat([maps.flatten(2).mean(2) for maps in self.backbone(x)], 1)

    def project(self, vectors: Tensor) -> Tensor:
        centred = (vectors - self.centre) / self.scale
        return centred if self.variance is None else centred @ self.basis.T


def mean_and_deviation(blocks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Of each column of vectors that come in blocks (B, D), in one pass and double precision on the processor: (D,), (D,).

    The deviation is that of the given vectors (divided by N).
    """
    count = 0
    mean = squares = torch.zeros((), dtype=torch.float64)
    device = torch.device("cpu")
    for block in blocks:
        x, device = block.cpu().double(), block.device
        n, block_mean = len(x), x.mean(0)
        delta = block_mean - mean
        squares = squares + ((x - block_mean) ** 2).sum(0) + delta**2 * count * n / (count + n)
        mean = mean + delta * n / (count + n)
        count += n
    return mean.float().to(device), (squares / count).sqrt().float().to(device)


def principal_components(centred: Iterable[Tensor], count: int, components: float) -> tuple[Tensor, Tensor]:
    """Orthonormal rows (k, D) in falling order of variance, and their variances (k,), of ``count`` vectors in blocks (B, D).

    ``components``: how many (1 or more), or the share of the variance to explain, in (0, 1). There are fewer when the
    vectors span fewer dimensions. Exact, from the D x D covariance, or from the N x N matrix of scalar products where that
    is smaller. Where both are large (D > 4096, and N > 4096 or more than 1 GB of vectors) from evenly spaced vectors.

    >>> line = torch.tensor([[-2.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    >>> basis, variance = principal_components([line], 3, 0.95)
    >>> basis.abs(), variance
    (tensor([[1., 0.]]), tensor([4.]))
    """
    first = next(iter(centred))
    size, device = first.shape[1], first.device
    used = count
    if size <= min(count, LARGEST_MATRIX):
        product = torch.zeros(size, size, dtype=torch.float64)
        for x in centred:
            product += (x.T @ x).cpu()
        vectors = None
    else:
        used = min(count, LARGEST_MATRIX, max(2, LARGEST_BLOCK // size))
        vectors = gather(centred, count, used)
        product = torch.zeros(used, used, dtype=torch.float64)
        # In blocks of columns, so that sums in float32 stay short.
        for columns in torch.split(vectors, LARGEST_MATRIX, dim=1):
            product += (columns @ columns.T).cpu()
    values, axes = (part.flip(-1) for part in torch.linalg.eigh(product))
    total = product.trace()
    rank = int((values > 1e-7 * total).sum())
    if components < 1:
        share = values.cumsum(0) / total.clamp(min=1e-300)
        rank = min(rank, int((share < components).sum()) + 1)
    else:
        rank = min(rank, int(components))
    axes = axes[:, :rank].T.float().to(device)
    basis = nn.functional.normalize(axes if vectors is None else axes @ vectors, dim=1)
    return basis.contiguous(), (values[:rank] / max(1, used - 1)).float().to(device)


def gather(blocks: Iterable[Tensor], count: int, most: int | None = None) -> Tensor:
    """All ``count`` rows of blocks (B, ...) in one tensor, or ``most`` evenly spaced ones.

    >>> gather([torch.arange(4), torch.arange(4, 6)], 6, most=3)
    tensor([0, 2, 4])
    """
    if most is None or most >= count:
        return torch.cat(list(blocks))
    wanted = torch.arange(most) * count // most
    kept, first = [], 0
    for block in blocks:
        inside = wanted[(wanted >= first) & (wanted < first + len(block))]
        kept.append(block[(inside - first).to(block.device)])
        first += len(block)
    return torch.cat(kept)


def log_kernel_sum(x: Tensor, points: Tensor, gamma: Tensor | float, log_weights: Tensor | float = 0.0) -> Tensor:
    """log sum_i w_i exp(-gamma |x - p_i|^2) for x (B, k), points (n, k), log weights (n,) -> (B,).

    Does not saturate far from the points, as the sum itself does. Memory: at most 64 MB of distances at once.
    """
    rows = max(1, 2**24 // len(points))
    parts = [torch.logsumexp(log_weights - gamma * squared_distances(part, points), 1) for part in torch.split(x, rows)]
    return torch.cat(parts)


def squared_distances(x: Tensor, points: Tensor) -> Tensor:
    """(B, k), (n, k) -> (B, n)."""
    return (x.square().sum(1, keepdim=True) + points.square().sum(1) - 2 * x @ points.T).clamp(min=0)


def random_state() -> int:
    """A seed for scikit-learn, drawn from torch's generator, which the training loop has seeded."""
    return int(torch.randint(2**31 - 1, ()))


class Mapped:
    """Blocks through a function, at each pass anew."""

    def __init__(self, blocks: Iterable[Tensor], function: Callable[[Tensor], Tensor]) -> None:
        self.blocks, self.function = blocks, function

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.function, self.blocks)
