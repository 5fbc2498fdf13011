"""Nearest neighbours in a memory bank: reservoir sampling of a stream, a k-centre coreset, exact search, random projection."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from normalcy.errors import SettingsError

GROUP = 8
"""Rows of a memory that are kept or ruled out together."""
SEARCHED = 16
"""Rows of a memory in a group of :func:`_nearest_by_groups`."""
LARGEST_BLOCK = 2**24
"""Values in a block of distances: 64 MB of float32."""


class Reservoir:
    """A uniform random sample of at most ``capacity`` rows of a stream of any length.

    Each row draws a random key from the global generator of the CPU, and the rows with the smallest keys are kept.

    >>> sample = Reservoir(3)
    >>> for part in torch.arange(10.0).view(5, 2, 1):
    ...     sample.add(part)
    >>> sample.rows.shape
    torch.Size([3, 1])
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._parts: list[Tensor] = []
        self._keys = torch.empty(0, dtype=torch.float64)

    @property
    def rows(self) -> Tensor:
        """(n, d)"""
        if len(self._parts) != 1:  # not at each addition: copies would take longer than features
            self._parts = [torch.cat(self._parts) if self._parts else torch.empty(0)]
        return self._parts[0]

    def add(self, rows: Tensor) -> None:
        """Add ``rows`` (n, d); only those that are kept are copied."""
        keys = torch.rand(len(rows), dtype=torch.float64)
        if len(self._keys) == self.capacity:
            entering = keys < self._keys.max()
            keys, rows = keys[entering], rows[entering.to(rows.device)]
        self._keys = torch.cat([self._keys, keys])
        self._parts.append(rows)
        if len(self._keys) > self.capacity:
            self._keys, kept = self._keys.topk(self.capacity, largest=False, sorted=False)
            self._parts = [self.rows[kept.to(rows.device)]]


def k_centre(points: Tensor, count: int, slack: float = 0.0, pool: int = 2048) -> Tensor:
    """Indices of at most ``count`` of ``points`` (n, d), each the farthest from those before it.

    Greedy k-centre (Gonzalez 1985; PatchCore, algorithm 1), from point 0, with the same result as one-at-a-time selection
    but many centres per pass over the points: distances to the chosen centres only fall, so while the farthest of a ``pool``
    of candidates is farther than every point outside was at the last pass, it is the farthest of all. With ``slack`` a
    candidate may be nearer than the farthest point by that fraction: fewer passes, and a covering radius of at most
    2 / (1 - slack) times the optimum (2 without). ``pool=1`` is the plain algorithm. Ends early when every point coincides
    with a centre. Raises SettingsError for impossible arguments.

    >>> k_centre(torch.tensor([[0.0], [1.0], [5.0], [9.0]]), 3)
    tensor([0, 3, 2])
    """
    if count < 1 or pool < 1 or not 0 <= slack < 1:
        raise SettingsError(f"k_centre expects count and pool >= 1, slack in [0, 1), got {count}, {pool}, {slack}.")
    count = min(count, len(points))
    points = points - points.mean(0)
    norms = points.square().sum(1)
    chosen = [torch.zeros(1, dtype=torch.long, device=points.device)]
    missing = count - 1
    distance_to_centre = torch.full_like(norms, torch.inf)  # squared distance to the nearest centre
    while missing:
        _update(distance_to_centre, points, norms, chosen[-1])
        values, candidates = distance_to_centre.topk(min(pool + 1, len(points)))
        outside = float(values[-1]) * (1 - slack) ** 2 if len(points) > pool else 0.0
        candidates = candidates[:pool]
        picks = _pick(points[candidates], values[:pool], missing, outside)
        if not picks:
            break
        chosen.append(candidates[torch.tensor(picks, device=points.device)])
        missing -= len(picks)
    return torch.cat(chosen)


def _pick(members: Tensor, distance_to_centre: Tensor, limit: int, outside: float) -> list[int]:
    """Greedy selection among candidates while the farthest is at least ``outside`` away; on the CPU, for its many tiny steps."""
    squares = members.square().sum(1)
    between = torch.addmm(squares, members, members.T, alpha=-2).add_(squares[:, None]).cpu().numpy()
    near = distance_to_centre.cpu().numpy().copy()
    picks: list[int] = []
    while len(picks) < limit:
        pick = int(near.argmax())
        if near[pick] <= 0 or near[pick] < outside:
            break
        picks.append(pick)
        np.minimum(near, between[pick], out=near)
        near[pick] = -1
    return picks


def _update(distance_to_centre: Tensor, points: Tensor, norms: Tensor, centres: Tensor) -> None:
    new, squares = points[centres], norms[centres]
    step = max(1, LARGEST_BLOCK // len(new))
    for i in range(0, len(points), step):
        part = slice(i, i + step)
        squared = torch.addmm(squares, points[part], new.T, alpha=-2).amin(1) + norms[part]
        torch.minimum(distance_to_centre[part], squared.clamp_(min=0), out=distance_to_centre[part])
    distance_to_centre[centres] = -1  # never chosen again


def nearest(queries: Tensor, memory: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """Euclidean distances (n, k), ascending, and indices (n, k) of the ``k`` rows of ``memory`` (m, d) nearest to each query.

    Ranked in blocks by |a|^2 - 2ab + |b|^2; the distances are then recomputed from differences, since that formula suffers
    from cancellation for close points.

    >>> nearest(torch.tensor([[0.9]]), torch.tensor([[0.0], [1.0], [5.0]]))[1]
    tensor([[1]])
    """
    if k == 1 and _worth_bf16(queries, memory):
        return _nearest_by_bf16(queries, memory)
    centre = memory.mean(0)
    shifted = memory - centre
    squares = shifted.square().sum(1)
    k = min(k, len(memory))
    if k == 1 and torch.compiler.is_compiling():
        return _nearest_by_groups(queries, memory, centre)
    distances, indices = [], []
    step = max(1, LARGEST_BLOCK // len(memory))
    # Traced for export: one block, as the number of blocks would fix the size of a batch.
    for part in [queries] if torch.compiler.is_compiling() else torch.split(queries, step):
        ranks = torch.addmm(squares, part - centre, shifted.T, alpha=-2)
        closest = ranks.argmin(1, keepdim=True) if k == 1 else ranks.topk(k, dim=1, largest=False).indices
        exact, order = (part.unsqueeze(1) - memory[closest]).norm(dim=2).sort(dim=1)
        distances.append(exact)
        indices.append(closest.gather(1, order))
    return torch.cat(distances), torch.cat(indices)


def _nearest_by_groups(queries: Tensor, memory: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest row of ``memory`` to each query, for engines, in which an argmin over all rows is slow.

    By the least rank of each of m / G groups of rows, the group of the least, and the distances of its G rows. In one block, as
    the number of blocks would fix the size of a batch.
    """
    count = -(-len(memory) // SEARCHED)
    # Group k: rows k, k + count, ...
    padded = torch.cat([memory, memory[-1:].expand(SEARCHED * count - len(memory), -1)])
    shifted = padded - centre
    ranks = torch.addmm(shifted.square().sum(1), queries - centre, shifted.T, alpha=-2)
    group = ranks.view(-1, SEARCHED, count).amin(1).argmin(1)
    members = padded.view(SEARCHED, count, -1).transpose(0, 1)[group]  # (n, G, d)
    distance, place = (queries.unsqueeze(1) - members).norm(dim=2).min(1, keepdim=True)
    return distance, (place * count + group.unsqueeze(1)).clamp(max=len(memory) - 1)


def _worth_bf16(queries: Tensor, memory: Tensor) -> bool:
    """Whether the processor multiplies matrices in bfloat16, and these are large enough to gain."""
    if torch.compiler.is_compiling() or queries.device.type != "cpu" or queries.requires_grad or memory.requires_grad:
        return False
    large = len(queries) * len(memory) >= 2**20 and queries.dtype == memory.dtype == torch.float32
    return large and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()


def _nearest_by_bf16(queries: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest row of ``memory`` to each query: candidates by products in bfloat16, measured in float32.

    With u = 2^-9, the rounding of bfloat16, the rank ab - |b|^2 / 2 of a row b is off by at most E = u (4.1 |a| |b| + |b|^2): the
    operands, the sum and its addend are each rounded once. A row whose rank + E is below the highest rank - E cannot be the
    nearest; all others are measured. Rows of similar length are ruled out in groups.
    """
    centre = memory.mean(0)
    shifted = memory - centre
    half = shifted.square().sum(1) / 2
    order = half.argsort()
    order = torch.cat([order, order[-1:].expand(-len(memory) % GROUP)]).view(-1, GROUP)  # (groups, GROUP)
    length = (2 * half[order[:, -1]]).sqrt()  # the longest of each group
    columns = order.T.flatten()  # a maximum over groups then runs over long rows
    bias, low, members = (-half[columns]).bfloat16(), shifted[columns].bfloat16().T, memory[order]
    distances, indices = [], []
    for part in torch.split(queries, max(1, LARGEST_BLOCK // len(memory))):
        from_centre = part - centre
        ranks = torch.addmm(bias, from_centre.bfloat16(), low).view(len(part), GROUP, -1).amax(1).float()
        error = 2**-9 * (4.1 * from_centre.norm(dim=1)[:, None] * length + length.square())
        query, group = (ranks + error >= (ranks - error).amax(1)[:, None]).nonzero(as_tuple=True)
        best, place = [], []
        for some in range(0, max(1, len(query)), step := max(1, LARGEST_BLOCK // (4 * GROUP * memory.shape[1]))):
            rows = slice(some, some + step)
            measured = (part[query[rows]].unsqueeze(1) - members[group[rows]]).norm(dim=2).min(1)
            best.append(measured.values)
            place.append(measured.indices)
        found = torch.cat(best)
        distance = torch.full((len(part),), torch.inf).scatter_reduce_(0, query, found, "amin")
        index = torch.where(found == distance[query], order[group, torch.cat(place)], len(memory))
        distances.append(distance)
        indices.append(
            torch.full((len(part),), len(memory)).scatter_reduce_(0, query, index, "amin").clamp_(max=len(memory) - 1)
        )
    return torch.cat(distances).unsqueeze(1), torch.cat(indices).unsqueeze(1)


def covering_radius(points: Tensor, centres: Tensor) -> float:
    """Largest distance of a point (n, d) to its nearest centre (m, d): what :func:`k_centre` minimises."""
    return float(nearest(points, centres)[0].max())


def random_projection(width: int, dims: int) -> Tensor:
    """(width, dims): a Gaussian matrix that preserves squared distances in expectation (Johnson and Lindenstrauss 1984).

    The relative error of distances is about 1 / sqrt(2 dims). From the global generator of the CPU.
    """
    return torch.randn(width, dims).mul_(dims**-0.5)
