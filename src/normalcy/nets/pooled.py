"""Feature vectors of whole images: the mean over the image of each channel of a pretrained network."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.method import Batches
from normalcy.nets.backbones import Backbone


class _Kept:
    """The last used feature vectors, up to ``maximum`` bytes."""

    def __init__(self, maximum: int) -> None:
        self.maximum, self.bytes = maximum, 0
        self.vectors: OrderedDict[tuple[object, ...], Tensor] = OrderedDict()

    def get(self, key: tuple[object, ...]) -> Tensor | None:
        if key in self.vectors:
            self.vectors.move_to_end(key)
        return self.vectors.get(key)

    def put(self, key: tuple[object, ...], vectors: Tensor) -> None:
        if key not in self.vectors:
            self.bytes += vectors.nbytes
        self.vectors[key] = vectors
        while self.bytes > self.maximum:
            self.bytes -= self.vectors.popitem(last=False)[1].nbytes


_KEPT: ContextVar[_Kept | None] = ContextVar("kept features", default=None)


@contextmanager
def kept_features(maximum: int = 512 * 2**20) -> Iterator[None]:
    """Inside, the feature vectors of a batch are computed once for all models: for several methods on one data set, or several
    classes with the same test images. Only equal batches, of one network in one precision, share them, so that no result
    changes. At most ``maximum`` bytes are kept, those used last."""
    token = _KEPT.set(_Kept(maximum))
    try:
        yield
    finally:
        _KEPT.reset(token)


class PooledFeatures(nn.Module):
    """(B, C, H, W) in [0, 1] -> (B, channels of all ``layers``) of :class:`Backbone`.

    Images whose longer side has fewer than ``side`` pixels are enlarged to it, so that deep layers still have a grid.
    """

    def __init__(self, backbone: str, layers: Sequence[int], shape: Sequence[int], side: int, bf16: bool) -> None:
        super().__init__()
        self.backbone = Backbone(backbone, layers, shape[0], bf16)
        factor = max(1.0, side / max(shape[1:]))
        self.sides = [round(n * factor) for n in shape[1:]]

    def forward(self, x: Tensor) -> Tensor:
        kept = _KEPT.get()
        if kept is None or torch.is_grad_enabled():
            return torch.cat(self._layers(x), 1)
        keys = self._keys(x)
        vectors = [found for key in keys if (found := kept.get(key)) is not None]
        if len(vectors) < len(keys):
            vectors = self._layers(x)
            for key, computed in zip(keys, vectors, strict=True):
                kept.put(key, computed)
        return torch.cat(vectors, 1)

    def _layers(self, x: Tensor) -> list[Tensor]:
        if list(x.shape[2:]) != self.sides:
            x = F.interpolate(x, size=self.sides, mode="bilinear")
        return [maps.mean((2, 3)) for maps in self.backbone(x)]

    def _keys(self, x: Tensor) -> list[tuple[object, ...]]:
        """Of each layer: what its vectors of this batch depend on."""
        b = self.backbone
        content = hashlib.sha256(x.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
        computed = (b.bf16, torch.is_autocast_enabled(x.device.type), torch.get_num_threads())
        common = (b.name, *computed, tuple(self.sides), tuple(x.shape), str(x.dtype), str(x.device), content)
        return [(*common, layer) for layer in b.layers]

    def gather(self, batches: Batches) -> Tensor:
        """The vectors of all images, (N, channels)."""
        return torch.cat([self(x) for x in batches])
