"""1,000 workers that score images in a store, simulated event by event, against the model of cost.

    python benchmarks/simulation.py

Nothing is read or scored. Each worker lists a data set page by page, fetches 16 images ahead, scores one after the other, writes,
and takes the next shard of a queue; it may die, and its shard is begun again by the next one. Requests of all workers to a prefix
pass one counter of requests per second. Seconds of an image and of a name are those of results/costs.json; latencies of the store
are drawn from :class:`cost_model.Store`. Shards are divided by normalcy's own rule, the checksum of the case.

Scenarios of 1,000,000 images are simulated image by image, those of 1,000,000,000 in groups of 2,000. Writes
results/simulation.json: prediction and simulation of each.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from cost_model import AHEAD, UPLOADS, Cluster, Costs, Store, Work, in_order, measured, of_tars, predict

from normalcy.provenance import write_record
from normalcy.results.run import case_numbers

RESULT = Path(__file__).parent / "results" / "simulation.json"
MILLION, BILLION = 10**6, 10**9


@dataclass(frozen=True)
class Outcome:
    """What a simulation ends with; seconds unless said otherwise."""

    hours: float
    machine_hours: float
    stages: dict[str, float]
    """Worker time by stage."""
    deaths: int
    requests: dict[str, int]
    """Pages, reads and writes."""
    largest_shard: float
    """Against the mean."""


class Prefix:
    """Requests of all workers to one prefix, admitted in order at a rate."""

    def __init__(self, rate: float) -> None:
        self.rate, self.free = rate, 0.0

    def admit(self, now: float, requests: int) -> float:
        """When the last of these requests is let through."""
        self.free = max(self.free, now) + requests / self.rate
        return self.free


class Simulation:
    """One run. ``group``: images of one event; 1 simulates each request, more take sums of their latencies."""

    def __init__(self, costs: Costs, store: Store, cluster: Cluster, work: Work, seed: int = 0, group: int = 1) -> None:
        self.costs, self.store, self.cluster, self.work, self.group = costs, store, cluster, work, group
        self.rng = np.random.default_rng(seed)
        self.speeds = cluster.speed * np.exp(self.rng.normal(0, cluster.uneven, cluster.workers))
        self.sizes = shard_sizes(work.names, work.shards)
        # shard after shard of a data set: those that work at the same time share as few data sets as possible
        self.queue = deque((k, s) for k in range(work.shards) for s in range(work.sets))
        if work.lists_once:
            self.queue = deque((k, s) for s in range(work.sets) for k in range(work.shards))
        self.reads = [Prefix(store.reads) for _ in range(work.sets)]
        self.writes = [Prefix(store.writes) for _ in range(work.sets)]
        self.left = Counter(dict.fromkeys(range(work.sets), work.shards))
        self.stages: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.deaths, self.end, self.busy = 0, 0.0, 0.0
        self._single = self._singles()

    def run(self) -> Outcome:
        order = count()
        waiting = [(0.0, next(order), self._worker(w)) for w in range(min(self.cluster.workers, self.work.jobs))]
        heapq.heapify(waiting)
        while waiting:
            _, _, worker = heapq.heappop(waiting)
            for until in worker:
                heapq.heappush(waiting, (until, next(order), worker))
                break
        return Outcome(
            hours=self.end / 3600,
            machine_hours=self.busy / 3600,
            stages={name: float(value) for name, value in self.stages.items()},
            deaths=self.deaths,
            requests=dict(self.requests),
            largest_shard=float(self.sizes.max() / self.sizes.mean()),
        )

    # -- private

    def _worker(self, w: int) -> Iterator[float]:
        """Yields the time until which the worker is busy; jobs until there are none."""
        now, speed, known = 0.0, float(self.speeds[w]), set[int]()
        while self.queue:
            shard, place = self.queue.popleft()
            rate = self.cluster.failures / 3600
            dies = now + self.rng.exponential(1 / rate) if rate else math.inf
            begun, stages = now, Counter[str]()
            for stage, until in self._job(now, speed, shard, place, known):
                if until > dies:
                    break
                stages[stage] += until - now
                now = until
                yield now
            else:
                self.stages += stages
                self.busy += now - begun
                self._finished(place, now)
                continue
            self.deaths += 1
            self.queue.appendleft((shard, place))
            now = dies + self.cluster.restart
            known.clear()
            self.stages["repeat"] += now - begun
            self.busy += now - begun
            yield now

    def _job(self, now: float, speed: float, shard: int, place: int, known: set[int]) -> Iterator[tuple[str, float]]:
        """Stage and its end, one after the other."""
        costs, store = self.costs, self.store
        if not (self.work.lists_once and known):
            now += costs.start / speed
            yield "start", now
        if place not in known:
            pages = math.ceil(self.work.names / store.page)
            self.requests["pages"] += pages
            for first in range(0, pages, 100):  # one after the other: each page says where the next one begins
                some = min(100, pages - first)
                let = self.reads[place].admit(now, some)
                now = max(let, now + self._latencies(some, store.page_latency))
                yield "list", now
            now += self.work.names * costs.name / speed
            yield "list", now
            if self.work.lists_once:
                known.add(place)
        processor = (costs.image - costs.network) / speed + costs.network / (speed * self.cluster.network_speed)
        images = int(self.sizes[shard])
        read = self._one_by_one if self.group == 1 else self._in_groups
        yield from read(now, place, images, processor)
        if costs.map_files:
            yield from self._write(place, images)

    def _one_by_one(self, now: float, place: int, images: int, processor: float) -> Iterator[tuple[str, float]]:
        self.requests["reads"] += images
        ready: deque[float] = deque()
        line = now  # the worker's own connection to the store
        issued = 0
        for k in range(images):
            while issued < min(images, k + AHEAD):
                line = max(line, now) + self.costs.image_bytes / self.store.bandwidth
                ready.append(max(self.reads[place].admit(now, 1) + self._latencies(1, self.store.latency), line))
                issued += 1
            there = ready.popleft()
            if there > now:
                now = there
                yield "read", now
            now += processor
            yield "score", now
        self._now = now

    def _in_groups(self, now: float, place: int, images: int, processor: float) -> Iterator[tuple[str, float]]:
        self.requests["reads"] += images
        alone = in_order(float(f"{processor:.2g}"), self.store)
        for first in range(0, images, self.group):
            some = min(self.group, images - first)
            scored = now + some * processor
            there = max(
                self.reads[place].admit(now, some),
                now + some * alone,
                now + some * self.costs.image_bytes / self.store.bandwidth,
            )
            yield "score", scored
            now = max(scored, there)
            if there > scored:
                yield "read", now
        self._now = now

    def _write(self, place: int, images: int) -> Iterator[tuple[str, float]]:
        """Files of maps, sent when the shard is scored."""
        files, now = images * self.costs.map_files, self._now
        self.requests["writes"] += files
        step = max(1, self.group) * 100
        for first in range(0, files, step):
            some = min(step, files - first)
            now = max(
                self.writes[place].admit(now, some),
                now + self._latencies(some, self.store.latency) / UPLOADS,
                now + some * self.costs.map_bytes / self.costs.map_files / self.store.bandwidth,
            )
            yield "write", now

    def _finished(self, place: int, now: float) -> None:
        self.left[place] -= 1
        if not self.left[place] and self.work.shards > 1:
            now += self.work.names * self.costs.merge
        self.end = max(self.end, now)

    def _latencies(self, requests: int, median: float) -> float:
        """The sum of the seconds of these requests."""
        store = self.store
        if requests == 1:
            factor, slow = next(self._single)
            return median * factor + store.slow_seconds * slow
        mean = math.exp(store.spread**2 / 2)  # a sum of many is nearly normal
        deviation = mean * math.sqrt(math.expm1(store.spread**2) * requests)
        drawn = median * max(0.0, requests * mean + deviation * self.rng.normal())
        return float(drawn + store.slow_seconds * self.rng.binomial(requests, store.slow))

    def _singles(self) -> Iterator[tuple[float, bool]]:
        """Of requests one by one: seconds by their median, and whether they are slow."""
        while True:
            factors = np.exp(self.rng.normal(0, self.store.spread, 10_000)).tolist()
            yield from zip(factors, (self.rng.random(10_000) < self.store.slow).tolist())


@cache
def shard_sizes(names: int, shards: int) -> Any:
    """Images of each shard of a data set, by the rule of ``normalcy score --shard``."""
    if shards == 1:
        return np.array([names])
    numbers = case_numbers([f"{k // 1000:04}/{k:07}.png" for k in range(names)])
    return np.bincount(numbers % shards, minlength=shards)


# -- scenarios -----------------------------------------------------------------------------------------------------------


def scenarios() -> dict[str, tuple[Costs, Store, Cluster, Work, int]]:
    """Name -> what is simulated, and the images of an event."""
    plain, mapped = measured(), measured(maps=True)
    tars = measured(tars=True)
    heavy = measured("patchcore")
    gpu = replace(Cluster(1000), network_speed=100.0)
    store, workers = Store(), Cluster(1000)
    return {
        "a million, 1 data set, 1,000 shards that each list it": (plain, store, workers, Work(1, MILLION, 1000), 1),
        "a million, 1 data set, 1,000 shards by Ray on 50 workers": (
            plain,
            store,
            Cluster(50),
            Work(1, MILLION, 1000, lists_once=True),
            1,
        ),
        "a million, 1,000 data sets": (plain, store, workers, Work(1000, 1000), 1),
        "a million, 1,000 data sets, patchcore": (heavy, store, workers, Work(1000, 1000), 1),
        "a million, 1,000 data sets, maps": (mapped, store, workers, Work(1000, 1000), 1),
        "a billion, 1,000 data sets of a million": (plain, store, workers, Work(1000, MILLION), 2000),
        "a billion, 1,000 data sets, 10 shards each": (plain, store, workers, Work(1000, MILLION, 10), 2000),
        "a billion, 10,000 tars of 100,000": (
            tars,
            of_tars(tars, store),
            workers,
            Work(10_000, MILLION // 10),
            2000,
        ),
        "a billion, 10,000 data sets, a death per 100 hours": (
            plain,
            store,
            replace(workers, failures=0.01),
            Work(10_000, MILLION // 10),
            2000,
        ),
        "a billion, 1,000 data sets, patchcore": (heavy, store, workers, Work(1000, MILLION), 2000),
        "a billion, 1,000 data sets, patchcore, network 100 times as fast": (
            heavy,
            store,
            gpu,
            Work(1000, MILLION),
            2000,
        ),
        "a billion, 1,000 data sets, maps": (mapped, store, workers, Work(1000, MILLION), 2000),
    }


def main() -> None:
    rows = []
    for name, (costs, store, cluster, work, group) in scenarios().items():
        predicted = predict(costs, store, cluster, work)
        outcome = Simulation(costs, store, cluster, work, group=group).run()
        rows.append(
            {
                "scenario": name,
                "images": work.images,
                "predicted": rounded(
                    {**asdict(predicted), "bottleneck": predicted.bottleneck, "efficiency": predicted.efficiency}
                ),
                "simulated": rounded(asdict(outcome)),
                "hours_predicted_by_simulated": round(predicted.hours / outcome.hours, 3),
                "machine_hours_predicted_by_simulated": round(predicted.machine_hours / outcome.machine_hours, 3),
            }
        )
        print(
            name,
            {key: value for key, value in rows[-1].items() if key.startswith(("hours", "machine"))},
            outcome.hours,
            flush=True,
        )
        write_record(
            RESULT,
            {
                "benchmark": "1,000 simulated workers against the model of cost",
                "workers": 1000,
                "seed": 0,
                "scenarios": rows,
            },
        )


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Four digits."""
    return {
        key: rounded(value) if isinstance(value, dict) else float(f"{value:.4g}") if isinstance(value, float) else value
        for key, value in values.items()
    }


if __name__ == "__main__":
    main()
