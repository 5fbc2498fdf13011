"""Images and the batches that are drawn from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from normalcy.errors import SettingsError
from normalcy.method import Stage
from normalcy.training.settings import TrainSettings

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Images (B, C, *spatial) and a generator -> images of the size that the method sees."""


class Images(Protocol):
    """A tensor, an array or a file on disk: (N, C, *spatial) float32, indexed by an array of numbers."""

    @property
    def shape(self) -> Sequence[int]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: Any) -> Any: ...


class OrderedBatches:
    """See :class:`normalcy.method.Batches`."""

    def __init__(
        self, images: Images, shape: Sequence[int], size: int, device: torch.device, channels_last: bool
    ) -> None:
        self.images, self.shape, self.size = images, shape, size
        self.device, self.channels_last = device, channels_last
        self.count = len(images)

    def __len__(self) -> int:
        return math.ceil(self.count / self.size)

    def __iter__(self) -> Iterator[Tensor]:
        for first in range(0, self.count, self.size):
            x = take(self.images, np.arange(first, min(first + self.size, self.count)), self.device)
            # Random crops in training: everything else sees the centre.
            for axis, side in enumerate(self.shape[1:], start=2):
                x = x.narrow(axis, (x.shape[axis] - side) // 2, side)
            yield x.contiguous(memory_format=torch.channels_last) if self.channels_last else x


def take(images: Images, index: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    if isinstance(images, Tensor):
        return images[torch.from_numpy(index).to(images.device)].to(device, non_blocking=True)
    return torch.from_numpy(np.ascontiguousarray(images[index])).to(device)


def first_image(images: Images) -> np.ndarray[Any, Any]:
    return np.asarray(images[0].cpu() if isinstance(images, Tensor) else images[0])


def on_device(images: Images, device: torch.device) -> Images:
    """Keep the images on the GPU when they take less than a quarter of what is free there."""
    if isinstance(images, Tensor) and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if images.numel() * images.element_size() < free // 4:
            return images.to(device)
    return images


def batch_size_of(stage: Stage, settings: TrainSettings, count: int) -> int:
    size = min(settings.batch_size or stage.batch_size, count)
    if size >= settings.devices:
        size -= size % settings.devices
    if size < settings.devices:
        raise SettingsError(
            f"A batch of {size} images cannot be shared by {settings.devices} devices: use fewer devices."
        )
    return size


def draws_per_step(stage: Stage) -> int:
    """Batches that one step draws: the round's first, and one for each repeat after the first."""
    return 1 + sum(objective.repeats - 1 for objective in stage.objectives)
