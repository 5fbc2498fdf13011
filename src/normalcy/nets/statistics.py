"""Statistics of vectors that arrive in blocks: mean, standard deviation, principal components."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST_MATRIX = 4096
"""Side of the largest matrix whose eigenvectors are computed."""
LARGEST_BLOCK = 2**28
"""Values held at once: 1 GB of float32."""


class Mapped:
    """A function applied to each block, anew at each pass."""

    def __init__(self, blocks: Iterable[Tensor], function: Callable[[Tensor], Tensor]) -> None:
        self.blocks, self.function = blocks, function

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.function, self.blocks)


def mean_and_std(blocks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean (D,) and standard deviation (D,) of each column of vectors in blocks (B, D), in one pass, in double precision on the
    CPU; the standard deviation is that of the population (divided by N).
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

    ``components``: their number (1 or more), or the fraction of the variance to explain, in (0, 1); fewer when the vectors
    span fewer dimensions. Exact, from the D x D covariance or the N x N Gram matrix, whichever is smaller. Where both are
    large (D > 4096, and N > 4096 or more than 1 GB of vectors), from evenly spaced vectors.

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
        explained = values.cumsum(0) / total.clamp(min=1e-300)
        rank = min(rank, int((explained < components).sum()) + 1)
    else:
        rank = min(rank, int(components))
    axes = axes[:, :rank].T.float().to(device)
    basis = F.normalize(axes if vectors is None else axes @ vectors, dim=1)
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
