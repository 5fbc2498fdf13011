"""Frozen backbones by onnxruntime while a method is fitted and calibrated: features that need no gradient, on the processor."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from normalcy.engines.cached import BOUND, WORTH
from normalcy.engines.graph import Graph, available
from normalcy.engines.trace import BATCH, traced
from normalcy.errors import NormalcyError
from normalcy.method import Method
from normalcy.nets.backbones import Backbone


@contextmanager
def backbones_by_engine(method: Method, images: int, engine: str = "auto") -> Iterator[None]:
    """Inside of the block the backbones of ``method`` that compute in 32 bits run by onnxruntime wherever no gradient is needed.

    Features agree to 1e-4; a backbone that cannot be traced, or differs by more, stays with torch. Nothing changes for ``engine``
    "torch", without onnxruntime, and where the number of ``images`` is not worth tracing the networks.
    """
    parts: Sequence[Backbone] = []
    if engine != "torch" and images >= WORTH and "onnxruntime" in available():
        parts = [part for part in method.modules() if isinstance(part, Backbone) and not part.bf16]
    try:
        for part in parts:
            part.frozen = _Features(part)
        yield
    finally:
        for part in parts:
            part.frozen = None


class _Features:
    """Feature maps of a backbone by its graph, which is made of the first images; None where torch is to compute."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self._graphs: dict[tuple[int, ...], Graph | None] = {}
        self._lock = threading.Lock()

    def __call__(self, x: Tensor) -> list[Tensor] | None:
        shape = tuple(x.shape[1:])
        with self._lock:
            if shape not in self._graphs:
                self._graphs[shape] = None  # while it is made, torch computes
                self._graphs[shape] = self._make(x)
        graph = self._graphs[shape]
        return None if graph is None else [torch.from_numpy(m) for m in graph(x.detach().contiguous().numpy()).values()]

    def _make(self, x: Tensor) -> Graph | None:
        names = tuple(f"layer{k}" for k in self.backbone.layers)
        images = torch.rand(BATCH, *x.shape[1:], generator=torch.Generator().manual_seed(0))
        try:
            onnx = traced(_Maps(self.backbone), images, names)
            graph = Graph([onnx], names, "onnxruntime", threads=torch.get_num_threads())
            expected, found = self.backbone(images, bf16=False), graph(images.numpy())
        except NormalcyError:
            return None
        for one, other in zip(expected, found.values(), strict=True):
            if not float((one - torch.from_numpy(other)).abs().max()) <= BOUND * float(one.abs().max()):
                return None
        return graph


class _Maps(nn.Module):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone(images, bf16=False))
