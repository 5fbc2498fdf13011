"""The processes that torchrun has started: together they make one fit, of which the first process writes."""

from __future__ import annotations

import gc
import itertools
import json
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from normalcy import errors
from normalcy.errors import NormalcyError, NormalcyWarning, SettingsError, TrainingError

if TYPE_CHECKING:  # the command line imports this before it knows whether it needs torch
    import torch
    from torch import Tensor

T = TypeVar("T")

START_SECONDS = 600.0
"""Within which all processes must have started."""
DAYS = 7
"""Within which the first process of a node must have read the images, or the first of all have written the model."""
_PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_FAULT = "fault"


@dataclass
class Processes:
    """The place of this process among those of one fit; by default it is alone."""

    rank: int = 0
    count: int = 1
    local: int = 0
    """Rank within the node."""
    per_node: int = 1
    everyone: Any = None
    """Process group of all, on the CPU."""
    neighbours: Any = None
    """Process group of the node, on the CPU."""

    @property
    def first(self) -> bool:
        """Whether it writes what the fit writes: model folder, run folder, log, progress."""
        return self.rank == 0

    @property
    def nodes(self) -> int:
        return self.count // self.per_node

    def once_per_node(self, work: Callable[[], T]) -> T:
        """What ``work`` returns in the first process of the node; it must be pickled."""
        if self.per_node == 1:
            return work()
        import torch.distributed as dist

        sent: list[Any] = [work() if self.local == 0 else None]
        dist.broadcast_object_list(sent, self.rank - self.local, self.neighbours)
        return sent[0]  # type: ignore[no-any-return]

    def every(self, value: T) -> list[T]:
        """``value`` of each process, in the order of their ranks."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, self.everyone)
        return values

    def dealt(self, own: Iterable[list[T]]) -> Iterator[T]:
        """What is in all blocks in order, where block i was dealt to process i % count and ``own`` are those of this one.

        Every item is sent by itself, so that a process holds its own block and no other.
        """
        if self.count == 1:
            for block in own:
                yield from block
            return
        import torch.distributed as dist

        rest = iter(own)
        while True:
            mine: list[T] | None = next(rest, None)
            sizes = self.every(None if mine is None else len(mine))
            if sizes[0] is None:
                return
            for rank, size in enumerate(sizes):
                for i in range(size or 0):
                    sent: list[Any] = [mine[i] if mine is not None and rank == self.rank else None]
                    dist.broadcast_object_list(sent, rank, self.everyone)
                    yield sent[0]


ALONE = Processes()
_current = ALONE
_joins = itertools.count()


def by_torchrun() -> bool:
    """Whether torchrun, or what sets the same variables of the environment, has started this process."""
    return all(name in os.environ for name in _PLACE)


def current() -> Processes:
    """Those of the fit that is running in this process."""
    return _current


@contextmanager
def joined() -> Iterator[Processes]:
    """Connect the processes of torchrun until the end of the block, which all of them reach together; else ALONE.

    An error in one of them ends the block in all of them with this error. Within such a block it does nothing.

    Raises TrainingError where a process does not start or is lost.
    """
    if _current is not ALONE or not by_torchrun():
        yield _current
        return
    with _connected() as processes:
        yield processes


def spread(
    items: Sequence[T], function: Callable[[T], Tensor], device: torch.device, rank: int, count: int
) -> Iterator[Tensor]:
    """``function`` of each item, in order; process ``rank`` of ``count`` computes every count-th, and all get all.

    Each result is that of one process, bit by bit, on processors that are alike.
    """
    import torch.distributed as dist

    abouts: list[Any] = [None] * count
    for first in range(0, len(items), count):
        mine = function(items[first + rank]) if first + rank < len(items) else None
        dist.all_gather_object(abouts, None if mine is None else (mine.shape, mine.dtype))
        for source, about in enumerate(abouts):
            if about is not None:
                yield _sent(mine if source == rank else None, about, device, source)


def from_first(tensors: Sequence[Tensor], device: torch.device, rank: int) -> list[Tensor]:
    """The tensors of the first process, whatever their shapes, on ``device``."""
    import torch.distributed as dist

    about: list[Any] = [[(x.shape, x.dtype) for x in tensors] if rank == 0 else None]
    dist.broadcast_object_list(about, 0)
    return [_sent(tensors[i] if rank == 0 else None, kind, device, 0) for i, kind in enumerate(about[0])]


# -- private ---------------------------------------------------------------------------------------------------------


def _sent(x: Tensor | None, kind: tuple[Any, torch.dtype], device: torch.device, source: int) -> Tensor:
    """``x`` of process ``source``, of this shape and type."""
    import torch
    import torch.distributed as dist

    shape, dtype = kind
    sent = torch.empty(shape, dtype=dtype, device=device) if x is None else x.detach().to(device).contiguous()
    if sent.numel():  # as bytes: not every backend sends every type
        dist.broadcast(sent.flatten().view(torch.uint8), source)
    return sent


@cache
def _store() -> Any:
    """Words that all processes share, kept by torchrun or by the first of them."""
    import torch.distributed as dist

    return next(iter(dist.rendezvous("env://")))[0]  # type: ignore[attr-defined]


def _part_of(store: Any, name: str) -> Any:
    import torch.distributed as dist

    return dist.PrefixStore(name, store)  # type: ignore[attr-defined]


@contextmanager
def _connected() -> Iterator[Processes]:
    global _current
    import torch.distributed as dist

    rank, count, local = (int(os.environ[name]) for name in _PLACE[:3])
    store = _part_of(_store(), f"normalcy-{next(_joins)}")
    mine = not dist.is_initialized()
    try:
        try:
            _await_all(store, count)
            if mine:
                _connect(store, rank, count)
            _current = _grouped(rank, count, local)
            with warnings.catch_warnings():
                if rank:  # said once
                    warnings.simplefilter("ignore", NormalcyWarning)
                yield _current
            _current.every(None)
        except BaseException as error:
            cause = _cause(store, rank, count, error)
            # Connections close with the last reference to them: others, who wait at one, then see that this process has left.
            traceback.clear_frames(error.__traceback__)
            if cause is error:
                raise
            raise cause from error
    finally:
        _current.everyone = _current.neighbours = None
        _current = ALONE
        if mine and dist.is_initialized():
            dist.destroy_process_group()
        gc.collect()


def _await_all(store: Any, count: int) -> None:
    """Until all processes are here: a connection alone would wait for one that has failed."""
    store.add("here", 1)
    until = time.monotonic() + START_SECONDS
    while (here := store.add("here", 0)) < count:
        if store.check([_FAULT]):
            raise TrainingError("another process has failed.")  # whose message takes this one's place
        if time.monotonic() > until:
            raise TrainingError(
                f"Only {here} of {count} processes have started within {START_SECONDS:.0f} s: start torchrun on all "
                "nodes, with the same --master_addr and --master_port."
            )
        time.sleep(0.05)


def _connect(store: Any, rank: int, count: int) -> None:
    import torch
    import torch.distributed as dist

    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    group = _part_of(store, "group")
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", store=group, rank=rank, world_size=count)


def _grouped(rank: int, count: int, local: int) -> Processes:
    import torch.distributed as dist

    patience = timedelta(days=DAYS)
    everyone = dist.new_group(backend="gloo", timeout=patience)
    locals_ = Processes(rank, count, everyone=everyone).every(local)
    per_node = max(locals_) + 1
    if locals_ != list(range(per_node)) * (count // per_node):
        raise SettingsError(
            f"fit expects the same number of processes on each node, got the local ranks {locals_}: start torchrun with "
            "the same --nproc_per_node everywhere."
        )
    nodes = [range(first, first + per_node) for first in range(0, count, per_node)]
    groups = [dist.new_group([*node], backend="gloo", timeout=patience) for node in nodes]
    return Processes(rank, count, local, per_node, everyone, groups[rank // per_node])


def _cause(store: Any, rank: int, count: int, error: BaseException) -> BaseException:
    """The error to raise: that of the process that failed first, where this one fails because of it.

    The others are told of an error of this process.
    """
    lost = isinstance(error, RuntimeError) and not isinstance(error, NormalcyError) and _of_connection(error)
    try:
        until = time.monotonic() + (5 if lost else 0)
        while not (told := store.check([_FAULT])) and time.monotonic() < until:
            time.sleep(0.1)
        if told:
            return _read_fault(store.get(_FAULT))
        if not lost and isinstance(error, Exception):
            store.set(_FAULT, _fault(error, rank, count))
    except RuntimeError:  # torchrun has ended with its store
        pass
    if not lost:
        return error
    return TrainingError(
        f"Another of the {count} processes of this fit has ended without a message; see its own output. Interrupted "
        "training resumes with --resume."
    )


def _of_connection(error: RuntimeError) -> bool:
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


def _fault(error: Exception, rank: int, count: int) -> str:
    """An error as text; what is no error of normalcy becomes a TrainingError."""
    if isinstance(error, NormalcyError):
        return json.dumps({"kind": type(error).__name__, "message": str(error)})
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    return json.dumps({"kind": "TrainingError", "message": f"Process {rank} of {count} has failed: {reason}"})


def _read_fault(text: bytes) -> NormalcyError:
    words = json.loads(text)
    kind = getattr(errors, str(words["kind"]), TrainingError)
    known = isinstance(kind, type) and issubclass(kind, NormalcyError)
    error: NormalcyError = (kind if known else TrainingError)(str(words["message"]))
    error.told = True
    return error
