"""PixelSNAIL (Chen et al. 2018): an autoregressive prior over grids of codes, 2D and 3D; masked convolutions and attention.

The logits of a position depend on the codes before it in raster order alone. The first convolution does not see its own
position; later layers may, because what they see there depends on earlier codes alone. Convolutions with such a mask have a
blind spot to the upper right (van den Oord et al. 2016), which the attention over all earlier positions closes.

When codes change one after another, a full pass after each change is not needed: :class:`Memory` caches the activations of a
pass and recomputes a few lines of the grid, from the changed one on.

Differences to the paper: one stream of masked convolutions instead of a vertical and a horizontal one; layer norm over channels
before each block, for training in bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.nets.convnets import conv


class PixelSNAIL(nn.Module):
    """Codes (B, *grid), int64 in [0, codes), and conditions (B, conditions) -> logits (B, codes, *grid), float32."""

    def __init__(
        self,
        grid: Sequence[int],
        codes: int,
        width: int = 64,
        blocks: int = 3,
        residuals: int = 1,
        heads: int = 1,
        kernel: int = 5,
        dropout: float = 0.0,
        conditions: int = 0,
    ) -> None:
        super().__init__()
        self.grid, dims = tuple(grid), len(grid)
        self.embed = nn.Embedding(codes, width)
        self.place = nn.Parameter(0.02 * torch.randn(1, width, *self.grid))
        self.condition = nn.Linear(conditions, width) if conditions else None
        self.enter = _masked(dims, width, width, kernel, centre=False)
        self.blocks = nn.ModuleList()
        for _ in range(blocks):
            self.blocks.append(nn.ModuleList([_Gated(dims, width, dropout) for _ in range(residuals)]))
            self.blocks.append(_Attention(width, heads, dropout))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.ELU(), nn.Linear(width, codes))

    def forward(self, codes: Tensor, conditions: Tensor | None = None, memory: Memory | None = None) -> Tensor:
        """With a filled memory, the logits of its lines (B, codes, [1,] lines, length) alone."""
        place: Tensor = self.place
        if memory is not None and memory.filled:
            codes, place = memory.cut(codes[:, None])[:, 0], memory.cut(place.expand(len(codes), *place.shape[1:]))
        seen = self.embed(codes).movedim(-1, 1) + place  # (B, width, *grid)
        state = self.enter(seen, memory) + place
        if self.condition is not None:
            assert conditions is not None
            shift: Tensor = self.condition(conditions)
            state = state + shift.view(*shift.shape, *[1] * len(self.grid))
        for block in self.blocks:
            if isinstance(block, nn.ModuleList):
                for gated in block:
                    state = gated(state, memory)
            else:
                state = block(state, seen, memory)
        logits: Tensor = self.leave(state.movedim(1, -1)).float()
        return logits.movedim(-1, 1)


def mean_nats(logits: Tensor, codes: Tensor) -> Tensor:
    """Negative log-likelihood of a code, mean over codes (B, *grid) with logits (B, codes, *grid)."""
    return F.cross_entropy(logits.movedim(1, -1).flatten(0, -2), codes.flatten())


class ChannelNorm(nn.Module):
    """Layer norm over the channels of (B, C, *grid)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.movedim(1, -1))
        return y.movedim(-1, 1)


class _Gated(nn.Module):
    """Gated residual block: x + a sigmoid(b), with a and b from two masked 3x3 convolutions."""

    def __init__(self, dims: int, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ChannelNorm(width), nn.ELU(), _masked(dims, width, width, 3), nn.ELU(), nn.Dropout(dropout),
            _masked(dims, width, 2 * width, 3),
        )  # fmt: skip

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        inside = x
        for layer in self.layers:
            inside = layer(inside, memory) if isinstance(layer, _Masked) else layer(inside)
        value, gate = inside.chunk(2, 1)
        y: Tensor = x + value * gate.sigmoid()
        return y


class _Attention(nn.Module):
    """Causal attention over all earlier positions: keys and values include the code of their own position, so a query attends to
    strictly earlier ones.

    A learned first key, visible to every query, gives the first position something to attend to.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = math.gcd(width, heads)
        self.norm = ChannelNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(2 * width, 2 * width)
        self.none = nn.Parameter(torch.zeros(1, 1, 2 * width))
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        self.dropout = nn.Dropout(dropout)

    def forward(self, state: Tensor, seen: Tensor, memory: Memory | None = None) -> Tensor:
        """(B, width, *grid) twice: the causal state, and the embedded codes themselves."""
        h = self.norm(state).flatten(2).transpose(1, 2)  # (B, n, width)
        keys = self.key_value(torch.cat([h, seen.flatten(2).transpose(1, 2).to(h.dtype)], 2))
        # Key 0 is the learned one, key j belongs to code j - 1: query i may see keys 0 ... i.
        mask = None
        if memory is not None and memory.filled:
            keys, mask = memory.keys(keys)
        else:
            keys = torch.cat([self.none.expand(len(h), -1, -1).to(keys.dtype), keys], 1)
            if memory is not None:
                memory.keep(keys)
            keys = keys[:, :-1]  # no position comes after the last
        # On CPUs attention, and above all its backward pass, is faster in 32 bits than in bfloat16.
        q, k, v = self.query(h), *keys.chunk(2, 2)
        if q.device.type == "cpu" and q.dtype == torch.bfloat16:
            q, k, v = q.float(), k.float(), v.float()
        q, k, v = (self._split(part) for part in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        y: Tensor = self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return state + y.transpose(1, 2).reshape(state.shape)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


def _masked(dims: int, before: int, after: int, kernel: int, centre: bool = True) -> nn.Module:
    return _Masked(conv(dims)(before, after, kernel, padding=kernel // 2), centre)


class _Masked(nn.Module):
    """A convolution over positions before its own in raster order, and with ``centre`` its own."""

    mask: Tensor

    def __init__(self, convolve: nn.Conv2d | nn.Conv3d, centre: bool) -> None:
        super().__init__()
        self.convolve = convolve
        taps = math.prod(convolve.kernel_size)
        seen = torch.arange(taps) < taps // 2 + centre
        self.register_buffer("mask", seen.float().view(1, 1, *convolve.kernel_size), persistent=False)
        with torch.no_grad():  # keep the scale of the outputs, since masked taps add nothing
            convolve.weight.mul_(math.sqrt(taps / (taps // 2 + centre)))

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        c = self.convolve
        if memory is not None and memory.filled:
            return memory.convolved(x, self)
        if memory is not None:
            memory.keep(memory.lined(x))
        y: Tensor = c._conv_forward(x, c.weight * self.mask, c.bias)
        return y

    def on_lines(self) -> Tensor:
        """The weights of the kernel's visible lines, arranged for a 1D convolution: (after, lines * before, length)."""
        weight = (self.convolve.weight * self.mask).flatten(2, -2)
        lines = weight[:, :, : weight.shape[2] // 2 + 1]
        return lines.transpose(1, 2).flatten(1, 2).contiguous()


class Memory:
    """A prior for :func:`normalcy.nets.restore.restore` that caches its last pass over the same code grids.

    A line is a row of the grid along its last axis. The first call is a full pass. Each later one computes ``lines`` lines of
    each grid, from the line of the first changed position on, using the cached activations of the lines above.
    ``conditions`` (B, conditions), where the model has some, are those of all grids. ``ahead``: number of further positions
    to compute, rounded up to whole lines. ``copies``: consecutive grids that are equal at the first call, which computes them
    once.
    """

    def __init__(
        self, model: PixelSNAIL, conditions: Tensor | None = None, lines: int = 1, ahead: int = 0, copies: int = 1
    ) -> None:
        *above, self.length = model.grid
        self.model, self.conditions, self.copies = model, conditions, copies
        self.above, self.count = above, math.prod(above)
        self.size = min(lines + math.ceil(ahead / self.length), self.count)
        self.rows: Tensor | None = None  # the grids in the cache
        self.filled = False
        self.kept: list[Tensor] = []  # inputs of the layers, in order
        self.next = 0
        self.near: dict[int, Tensor] = {}
        self.weights: dict[_Masked, Tensor] = {}

    def __call__(self, codes: Tensor, rows: Tensor, since: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (b, *grid) of the grids ``rows`` (b,), a subset of the last call's, unchanged before position ``since`` (b,)
        -> logits (b, K, m) of m positions, and the first of these (b,)."""
        conditions = None if self.conditions is None else self.conditions[rows]
        if self.rows is None:
            some = None if conditions is None else conditions[:: self.copies]
            logits = self.model(codes[:: self.copies], some, self).flatten(2).repeat_interleave(self.copies, 0)
            self.kept = [part.repeat_interleave(self.copies, 0) for part in self.kept]
            self.rows, self.filled = rows, True
            return logits, torch.zeros_like(rows)
        if len(rows) < len(self.rows):
            stay = torch.isin(self.rows, rows)
            self.kept, self.rows = [part[stay] for part in self.kept], rows
        first = (since // self.length).clamp(max=self.count - self.size)
        self.lines = first[:, None] + torch.arange(self.size, device=codes.device)  # (b, lines)
        self.table = torch.arange(len(rows), device=codes.device)[:, None]
        self.places = (self.lines[:, :, None] * self.length + torch.arange(self.length, device=codes.device)).flatten(1)
        self.end, self.next = int(self.lines[:, -1].max() + 1) * self.length, 0
        self.mask = (torch.arange(self.end, device=codes.device) <= self.places[:, :, None])[:, None]
        return self.model(codes, conditions, self).flatten(2), first * self.length

    def keep(self, part: Tensor) -> None:
        self.kept.append(part)

    def lined(self, x: Tensor) -> Tensor:
        """(b, C, *grid) -> lines (b, count + 1, C, length); the last stands for positions outside the grid."""
        return F.pad(x.reshape(*x.shape[:2], self.count, self.length).transpose(1, 2), (0, 0, 0, 0, 0, 1))

    def cut(self, x: Tensor) -> Tensor:
        """The lines to compute: (b, C, *grid) -> (b, C, [1,] lines, length)"""
        return self._shaped(x.reshape(*x.shape[:2], self.count, self.length).transpose(1, 2)[self.table, self.lines])

    def convolved(self, x: Tensor, layer: _Masked) -> Tensor:
        """The masked convolution at the lines (b, C, [1,] lines, length), whose inputs enter the cache."""
        kept = self._now()
        kept[self.table, self.lines] = x.flatten(2, -2).transpose(1, 2)
        kernel, padding = int(layer.convolve.kernel_size[0]), int(layer.convolve.padding[-1])
        if kernel not in self.near:
            self.near[kernel] = self._lines_above(kernel).to(x.device)
        if layer not in self.weights:
            self.weights[layer] = layer.on_lines()
        around = kept[self.table[..., None], self.near[kernel][self.lines]]  # (b, lines, seen, C, length)
        y = F.conv1d(around.flatten(2, 3).flatten(0, 1), self.weights[layer], layer.convolve.bias, padding=padding)
        return self._shaped(y.view(*self.lines.shape, *y.shape[1:]))

    def keys(self, new: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values at the lines (b, m, 2 width) -> all up to the last of these, and each query's mask."""
        kept = self._now()
        kept[self.table, self.places + 1] = new
        return kept[:, : self.end], self.mask

    def _now(self) -> Tensor:
        self.next += 1
        return self.kept[self.next - 1]

    def _shaped(self, lines: Tensor) -> Tensor:
        """(b, lines, C, length) -> (b, C, [1,] lines, length)"""
        x = lines.transpose(1, 2)
        return x[:, :, None] if len(self.above) == 2 else x

    def _lines_above(self, kernel: int) -> Tensor:
        """For each line the lines that a masked convolution sees, in the order of its kernel: (count, seen)."""
        reach, dims = kernel // 2, len(self.above)
        steps = torch.cartesian_prod(*[torch.arange(-reach, reach + 1)] * dims).view(-1, dims)
        steps = steps[: len(steps) // 2 + 1]
        at = torch.cartesian_prod(*[torch.arange(n) for n in self.above]).view(-1, 1, dims) + steps
        sides, strides = torch.tensor(self.above), torch.tensor([math.prod(self.above[k + 1 :]) for k in range(dims)])
        inside = ((at >= 0) & (at < sides)).all(2)
        return torch.where(inside, (at * strides).sum(2), self.count)
