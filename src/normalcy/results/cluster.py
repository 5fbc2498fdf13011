"""Work on a Ray cluster: actors that open a model once, shards of a data set as their tasks, and one results folder.

Images never pass through the driver: it sends numbers of shards, and each actor reads its images and writes its results. All
machines see the same files under the same paths. Shards that are done stay in ``<out>.run`` until all are merged, where the same
call resumes.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normalcy.errors import NormalcyError, SettingsError
from normalcy.files import prepare_target, remove, rename
from normalcy.results.run import RUN, Shard
from normalcy.results.shards import merge

CORES = 4
"""Of an actor without a GPU, where the machines have as many."""
DEATHS = 3
"""Times that the actor of one task may be lost before the task is given up."""
LATEST = 0.5
"""Seconds after which progress is asked for again."""
PER_SHARD, FEWEST, MOST = 1000, 64, 10_000
"""Images of a shard; the number of shards of sets with fewer than 64,000 images; the largest number of shards."""

REACHED = 10.0
"""Seconds within which a cluster must answer."""

OnDone = Callable[[int], None]
"""Gets the number of images of the task that are done."""
Work = Callable[[Any, OnDone], Any]
"""Does a task."""


@dataclass(frozen=True)
class Shards:
    """The shards of a data set, to be scored on a cluster."""

    open: Callable[[], Callable[..., int]]
    """Called once by each actor: opens model and data; what it returns takes a folder that is written, ``shard=`` and
    ``on_progress=``, scores this part and returns the number of images (slides). Both can be pickled."""
    count: int
    """Number of shards."""
    images: int
    """Number of images (slides) of all shards."""
    identity: Sequence[object]
    """What the results depend on: an unfinished run with another identity is not resumed."""
    gpu: bool = True
    """Whether actors take a GPU where the cluster has some."""


def shards_for(images: int) -> int:
    """Number of shards, whatever the cluster: a run may be resumed on another one."""
    return max(1, min(MOST, max(math.ceil(images / PER_SHARD), min(FEWEST, math.ceil(images / 16)))))


def score_on_cluster(
    shards: Shards,
    out: Path,
    address: str,
    *,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> int:
    """Score all shards on the Ray cluster at ``address`` and merge them into ``out``; returns the number of images (slides).

    Tasks of a worker or a machine that is lost are done by others. Raises SettingsError where ``out`` is in use or holds
    something, where an unfinished run of something else is kept, or without Ray, and NormalcyError for a cluster that cannot be
    reached or a shard whose worker dies again and again.
    """
    with prepare_target(out, overwrite) as target:
        if target.in_place:
            raise SettingsError(
                f"{out} cannot be replaced as a whole (a mount point, for example): choose another folder."
            )
        work = target.begin([*shards.identity, shards.count], "run", "model, data or options")
        folders = {k: work / f"shard-{k}" for k in range(1, shards.count + 1)}
        for left in work.glob("attempt-*"):
            remove(left)
        waiting = deque(k for k, folder in folders.items() if not (folder / RUN).exists())
        if waiting:
            make = _Scoring(shards.open, shards.count, work)
            with connected(address) as ray:
                before = round(shards.images * (1 - len(waiting) / shards.count))
                done = _Progress(before, shards.images, on_progress)
                for _, outcome in each(ray, make, waiting, gpu=shards.gpu, on_running=done.running):
                    if isinstance(outcome, NormalcyError):
                        raise outcome
                    done.finished(outcome)
        if on_progress is not None:
            on_progress(shards.images, shards.images)
        count = merge(list(folders.values()), out, overwrite)
        remove(target.unfinished)
    return count


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module ``ray``, connected to the cluster at ``address``: "auto" for the one this machine belongs to, "local" for one
    of this machine alone, that ends with the block."""
    try:
        import ray
    except ImportError:
        raise SettingsError("--ray needs Ray: pip install 'normalcy[ray]'.") from None

    if ray.is_initialized():  # by who calls this
        yield ray
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        _reach(address)
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **own)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise NormalcyError(
            f"--ray {address}: cannot connect to this Ray cluster ({reason}); start it with ray start, or use --ray local. A "
            "cluster with a token needs RAY_AUTH_MODE=token and the token of its first machine (~/.ray/auth_token) here, too."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def each(
    ray: Any,
    make: Callable[[], Work],
    waiting: deque[Any],
    *,
    gpu: bool = True,
    on_running: Callable[[Mapping[int, int]], None] | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Each task of ``waiting`` with its outcome, as they come: what the work that ``make`` opens in an actor returns, or the
    NormalcyError that it raises or that says that its actor died again and again.

    There is an actor for each GPU of the cluster (``gpu``), or where it has none for each four cores; each has one task at a
    time. The task of an actor that is lost goes to another. Who iterates may append to ``waiting``. ``on_running`` gets the
    images done of each task that runs.
    """
    options, count = _shape(ray, gpu)
    kind = ray.remote(concurrency_groups={"progress": 1}, **options)(_Actor)
    active: dict[Any, tuple[Any, Any]] = {}
    deaths: Counter[int] = Counter()
    unborn = 0

    def begin() -> None:
        actor = kind.remote(make, os.getcwd())
        active[actor.ready.remote()] = actor, None

    try:
        for _ in range(min(count, len(waiting))):
            begin()
        while waiting or any(task is not None for _, task in active.values()):
            for ref in ray.wait(list(active), timeout=LATEST)[0]:
                actor, task = active.pop(ref)
                try:
                    outcome = ray.get(ref)
                except ray.exceptions.RayTaskError as error:
                    if not isinstance(error.cause, NormalcyError):
                        raise
                    outcome = error.cause
                except ray.exceptions.RayError as error:
                    ray.kill(actor)
                    begin()
                    if task is None:
                        unborn += 1
                        if unborn > DEATHS * count:
                            raise NormalcyError(
                                f"No worker can be started on the cluster: {_first_line(error)}"
                            ) from error
                        continue
                    deaths[id(task)] += 1
                    if deaths[id(task)] < DEATHS:
                        waiting.appendleft(task)
                        continue
                    yield (
                        task,
                        NormalcyError(f"Its worker died {DEATHS} times; perhaps memory ran out: {_first_line(error)}"),
                    )
                    continue
                unborn = 0
                if task is not None:
                    yield task, outcome
                if waiting:
                    task = waiting.popleft()
                    active[actor.run.remote(task)] = actor, task
                else:
                    ray.kill(actor)
            if on_running is not None:
                on_running(_running(ray, [actor for actor, task in active.values() if task is not None]))
    finally:
        for actor, _ in active.values():
            ray.kill(actor)


# -- private -----------------------------------------------------------------------------------------------------------


def _reach(address: str) -> None:
    """Raises OSError within ``REACHED`` seconds where nothing answers at HOST:PORT; Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED).close()


@dataclass(frozen=True)
class _Scoring:
    """Opens what scores shards into ``work``."""

    open: Callable[[], Callable[..., int]]
    count: int
    work: Path

    def __call__(self) -> Work:
        score = self.open()

        def run(k: int, on_done: OnDone) -> int:
            # A machine that was given up may still write: each attempt has a folder of its own, and the first one counts.
            attempt, folder = self.work / f"attempt-{k}-{os.urandom(4).hex()}", self.work / f"shard-{k}"
            done = score(attempt, shard=Shard(k, self.count), on_progress=lambda done, _: on_done(done))
            if not rename(attempt, folder):
                remove(attempt)
            return done

        return run


class _Progress:
    """Images done by finished and by running tasks, as one number that does not fall."""

    def __init__(self, done: int, total: int, on_progress: Callable[[int, int], None] | None) -> None:
        self.done, self.total, self.on_progress, self.shown = done, total, on_progress, 0

    def finished(self, images: int) -> None:
        self.done += images

    def running(self, images: Mapping[int, int]) -> None:
        self.shown = max(self.shown, min(self.done + sum(images.values()), self.total))
        if self.on_progress is not None:
            self.on_progress(self.shown, self.total)


class _Actor:
    """Keeps what ``make`` opens, and does one task after the other; ``progress`` answers meanwhile, in a thread of its own."""

    def __init__(self, make: Callable[[], Work], folder: str) -> None:
        self.make, self.folder, self.done = make, folder, 0
        self.work: Work | None = None

    def ready(self) -> None:
        """Answers when the actor has started."""

    def run(self, task: Any) -> Any:
        self.done = 0
        if self.work is None:  # not at the start: its errors are those of a task
            os.chdir(self.folder)  # for relative paths
            self.work = self.make()
        return self.work(task, self._note)

    def progress(self) -> int:
        return self.done

    def _note(self, done: int) -> None:
        self.done = done


def _shape(ray: Any, gpu: bool) -> tuple[dict[str, float], int]:
    """What an actor takes, and how many the cluster holds."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(machine.get("GPU", 0)) for machine in machines) if gpu else 0
    if gpus:
        return {"num_cpus": 1, "num_gpus": 1}, gpus
    cores = [int(machine["CPU"]) for machine in machines if machine.get("CPU", 0) >= 1]
    own = min([CORES, *cores])
    return {"num_cpus": own, "num_gpus": 0}, max(1, sum(count // own for count in cores))


def _running(ray: Any, actors: Sequence[Any]) -> dict[int, int]:
    asked = [actor.progress.options(concurrency_group="progress").remote() for actor in actors]
    found = {}
    for i, ref in enumerate(asked and ray.wait(asked, num_returns=len(asked), timeout=LATEST)[0]):
        with contextlib.suppress(ray.exceptions.RayError):  # lost: seen by its task
            found[i] = ray.get(ref)
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
