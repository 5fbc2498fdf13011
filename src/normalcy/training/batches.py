"""Images and the batches that are drawn from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from normalcy.arrays import Indices
from normalcy.errors import SettingsError
from normalcy.method import Stage
from normalcy.training.processes import from_first, spread
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
    """All images once, in order, as :class:`normalcy.method.Batches`; the last batch may be smaller."""

    def __init__(
        self,
        images: Images,
        shape: Sequence[int],
        size: int,
        device: torch.device,
        channels_last: bool,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.images, self.shape, self.size = images, shape, size
        self.device, self.channels_last = device, channels_last
        self.rank, self.processes = rank, processes
        self.count = len(images)

    def __len__(self) -> int:
        return math.ceil(self.count / self.size)

    def __iter__(self) -> Iterator[Tensor]:
        return map(self._batch, range(len(self)))

    def map(self, function: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        if self.processes == 1:
            return map(function, self)
        numbers = range(len(self))
        return spread(numbers, lambda i: function(self._batch(i)), self.device, self.rank, self.processes)

    def once(self, work: Callable[[], Tensor]) -> Tensor:
        if self.processes == 1:
            return work()
        return from_first([work()] if self.rank == 0 else [], self.device, self.rank)[0]

    def _batch(self, number: int) -> Tensor:
        first = number * self.size
        x = take(self.images, np.arange(first, min(first + self.size, self.count)), self.device)
        # Random crops in training: everything else sees the centre.
        for axis, side in enumerate(self.shape[1:], start=2):
            x = x.narrow(axis, (x.shape[axis] - side) // 2, side)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x


class ShuffledBatches:
    """The batches of a stage by number, from 0 on; all of ``size`` images.

    An epoch is ceil(count / size) batches in an order of its own that depends on ``seed``, ``stage`` and the epoch alone. It
    has each image once; where the size does not divide the count, its last batch is filled up by the images that the epoch
    began with, as torch's ``DistributedSampler`` does. A smaller last batch would weigh its images more, give batch
    norm poor statistics (of a single image none) and processes unequal parts.
    """

    def __init__(self, count: int, size: int, seed: int, stage: int) -> None:
        self.count, self.size, self.seed, self.stage = count, size, seed, stage
        self.epoch = -1  # that of self.order

    def rows(self, number: int) -> Indices:
        """(size,) indices of different images, those of batch ``number``."""
        epoch, place = divmod(number, batches_per_epoch(self.count, self.size))
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = np.random.default_rng([self.seed, self.stage, epoch]).permutation(self.count)
        rows = self.order[place * self.size : (place + 1) * self.size]
        return np.concatenate([rows, self.order[: self.size - len(rows)]])


def batches_per_epoch(count: int, size: int) -> int:
    return math.ceil(count / size)


def steps_per_epoch(stage: Stage, settings: TrainSettings, count: int) -> float:
    """Steps in which ``stage`` draws as many batches as an epoch over ``count`` images has."""
    return batches_per_epoch(count, batch_size_of(stage, settings, count)) / draws_per_step(stage)


def take(images: Images, index: Indices, device: torch.device) -> Tensor:
    """(len(index), C, *spatial) on ``device``."""
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
    """Images per batch over all processes: at most ``count``, the same number for each process."""
    size = min(settings.batch_size or stage.batch_size, count)
    if size >= settings.devices:
        size -= size % settings.devices
    if size < settings.devices:
        raise SettingsError(
            f"A batch of {size} images cannot be shared by {settings.devices} devices: use fewer devices."
        )
    return size


def draws_per_step(stage: Stage) -> int:
    """Batches that one step draws: the first, and one for each repeat after an objective's first."""
    return 1 + sum(objective.repeats - 1 for objective in stage.objectives)
