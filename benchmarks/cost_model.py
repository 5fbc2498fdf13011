"""What scoring N images on W workers takes: hours, bytes, and the stage that limits it. No measurement of its own.

Numbers of this machine come from results/costs.json and results/scaling.json, those of a store and of a cluster are assumptions
(:class:`Store`, :class:`Cluster`). simulation.py checks the model; the tables of docs/explanation/scale.md come from both.
"""

from __future__ import annotations

import heapq
import json
import math
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
LARGEST = 2**22
"""Files of one data set (normalcy.data.formats.LIMITS.entries)."""
AHEAD = 16
"""Files that a worker fetches at the same time (normalcy.remote.mirror.AHEAD)."""
UPLOADS = 8
"""Files that a worker sends at the same time (normalcy.remote.transfer)."""


@dataclass(frozen=True)
class Costs:
    """Of one core, measured: seconds of processor time and bytes."""

    start: float
    """Of a command, without reading names."""
    name: float
    """For each name of a data set: list it, and describe it for a run."""
    name_bytes: float
    """Memory for each name."""
    fetch: float
    """For each image in a store, beside decoding."""
    decode: float
    preprocess: float
    network: float
    table: float
    """Map and restored image at the size of the image, and the row of the tables."""
    maps: float = 0.0
    """For the map and the restored image; 0 without."""
    merge: float = 0.0
    """For each image, by the process that merges."""
    image_bytes: float = 0.0
    """Read for each image."""
    row_bytes: float = 0.0
    map_bytes: float = 0.0
    map_files: int = 0

    @property
    def image(self) -> float:
        """Processor seconds of an image."""
        return self.fetch + self.decode + self.preprocess + self.network + self.table + self.maps


@dataclass(frozen=True)
class Store:
    """An object store. Defaults are assumptions: 100 ms for a request to a small object, 5,500 reads and 3,500 writes per second
    for each prefix, 1,000 names in a page (Amazon's documentation of S3: "Best practices design patterns: optimizing Amazon S3
    performance", ListObjectsV2). The spread, the slow requests and the bandwidth of a worker are assumed, without a source."""

    latency: float = 0.1
    """Median seconds of a read."""
    spread: float = 0.3
    """Standard deviation of the logarithm of these seconds."""
    slow: float = 0.001
    """Fraction of reads that take ``slow_seconds`` longer, such as a retry."""
    slow_seconds: float = 1.0
    """By which these are slower."""
    page: int = 1000
    """Names of a request that lists."""
    page_latency: float = 0.1
    """Median seconds of such a request."""
    reads: float = 5500.0
    """Per second and prefix."""
    writes: float = 3500.0
    """Per second and prefix."""
    bandwidth: float = 1e8
    """Bytes per second of a worker."""

    def mean(self, median: float) -> float:
        """Mean seconds of requests with this median."""
        return median * math.exp(self.spread**2 / 2) + self.slow * self.slow_seconds


@dataclass(frozen=True)
class Cluster:
    """Workers. All but the number are assumptions."""

    workers: int
    speed: float = 1.0
    """Of the processor, against the core that was measured."""
    network_speed: float = 1.0
    """Of the method alone, against that core: a GPU's, to be measured by the user."""
    uneven: float = 0.05
    """Standard deviation of the logarithm of the workers' speeds."""
    failures: float = 0.0
    """Of a worker, per hour; its shard is begun again."""
    restart: float = 30.0
    """Seconds until another worker begins."""


@dataclass(frozen=True)
class Work:
    """``sets`` data sets (folders, prefixes or ranges of tars) of ``names`` images, each in ``shards`` shards that are jobs of a
    queue. ``lists_once``: a worker lists a data set once for all of its shards of it (Ray), else each shard lists it."""

    sets: int
    names: int
    shards: int = 1
    lists_once: bool = False

    @property
    def images(self) -> int:
        return self.sets * self.names

    @property
    def jobs(self) -> int:
        return self.sets * self.shards


@dataclass(frozen=True)
class Prediction:
    """Seconds unless said otherwise."""

    hours: float
    """From the first job to the end of the last merge."""
    machine_hours: float
    stages: dict[str, float] = field(hash=False)
    """Seconds of worker time of all workers by stage: start, list, read, score, write, repeat."""
    merge_hours: float
    """Of one process, for all data sets."""
    bytes_read: float
    bytes_written: float
    memory: float
    """Bytes for the names of one data set, in each worker."""

    @property
    def bottleneck(self) -> str:
        """The largest stage after scoring itself."""
        return max(self.stages, key=lambda name: self.stages[name] if name != "score" else 0.0)

    @property
    def efficiency(self) -> float:
        """Worker time that scores."""
        return self.stages["score"] / sum(self.stages.values())


@cache
def in_order(processor: float, store: Store, images: int = 5000) -> float:
    """Seconds of an image of one worker that has the store to itself, by a recurrence with drawn latencies.

    Image k is asked for when image k - 16 is taken, and taken after image k - 1: a slow request holds up those behind it, so this
    is more than latency / 16.
    """
    rng = np.random.default_rng(0)
    latencies = store.latency * np.exp(rng.normal(0, store.spread, images))
    latencies += store.slow_seconds * (rng.random(images) < store.slow)
    done = [0.0] * AHEAD
    for latency in latencies.tolist():
        done.append(max(done[-1], done[-AHEAD] + latency) + processor)
    return done[-1] / images


def image_seconds(costs: Costs, store: Store, cluster: Cluster, sharing: float) -> tuple[float, float]:
    """For each image of one worker: processor time (score), and time that reading adds because the store is slower.

    Reading overlaps with scoring. The slowest of processor and latencies, bandwidth, and this worker's part of the requests that
    a prefix allows (``sharing``: workers at it at the same time) determines the rate.
    """
    processor = (costs.image - costs.network) / cluster.speed + costs.network / (cluster.speed * cluster.network_speed)
    whole = max(in_order(processor, store), costs.image_bytes / store.bandwidth, sharing / store.reads)
    return processor, whole - processor


def of_tars(costs: Costs, store: Store) -> Store:
    """The same store for images in tars: a request is a block of 4 MiB, one after the other for the index; afterwards blocks are
    in the cache, which must hold the tars of a job."""
    block = 2**22  # normalcy.remote.mirror.BLOCK
    return replace(
        store, latency=0.0, slow=0.0, page=max(1, int(block // costs.image_bytes)), page_latency=store.latency
    )


def list_seconds(costs: Costs, store: Store, cluster: Cluster, names: int, sharing: float) -> float:
    """To list a data set, one page after the other, and to describe it for a run."""
    page = max(store.mean(store.page_latency), sharing / store.reads)
    return math.ceil(names / store.page) * page + names * costs.name / cluster.speed


def write_seconds(costs: Costs, store: Store, sharing: float) -> float:
    """To send the files of an image."""
    files = costs.map_files
    request = max(store.mean(store.latency) / UPLOADS, sharing / store.writes)
    return max(files * request, costs.map_bytes / store.bandwidth)


def queue(jobs: int, workers: int, mean: float, deviation: float, uneven: float) -> float:
    """Seconds until all jobs of a queue are done: each worker takes the next one when it is free. Durations and the logarithms of
    speeds are spread as a normal distribution."""
    rng = np.random.default_rng(0)
    durations = np.maximum(0, mean + deviation * rng.permutation(spread(jobs)))
    slowness = np.exp(-uneven * rng.permutation(spread(workers))).tolist()
    free = [(0.0, w) for w in range(workers)]
    for duration in durations.tolist():
        now, w = free[0]
        heapq.heapreplace(free, (now + duration * slowness[w], w))
    return max(now for now, _ in free)


def spread(count: int) -> Any:
    """Quantiles of the standard normal distribution at the middles of ``count`` equal parts."""
    normal = NormalDist()
    return np.array([normal.inv_cdf((k + 0.5) / count) for k in range(count)])


def predict(costs: Costs, store: Store, cluster: Cluster, work: Work) -> Prediction:
    """From means of all stages, and a queue of the jobs.

    Raises ValueError for a data set of more files than normalcy reads.
    """
    if work.names > LARGEST:
        raise ValueError(f"Work expects at most {LARGEST:,} names in a data set, got {work.names:,}: divide it.")
    together = min(cluster.workers, work.jobs)
    sharing = min(work.shards, max(1.0, together / work.sets))
    processor, waiting = image_seconds(costs, store, cluster, sharing)
    sends = write_seconds(costs, store, sharing)
    openings = min(work.jobs, max(together, work.sets)) if work.lists_once else work.jobs
    stages = {
        "start": (together if work.lists_once else work.jobs) * costs.start / cluster.speed,
        "list": openings * list_seconds(costs, store, cluster, work.names, sharing),
        "read": work.images * waiting,
        "score": work.images * processor,
        "write": work.images * sends,
    }
    job, rate = sum(stages.values()) / work.jobs, cluster.failures / 3600
    deaths = math.expm1(rate * job)  # of a job until it ends, if each begins anew
    stages["repeat"] = work.jobs * (deaths / rate - job + deaths * cluster.restart) if rate else 0.0
    mean, in_shard = sum(stages.values()) / work.jobs, work.names / work.shards
    own = (
        processor + waiting + sends if sharing / store.reads < processor + waiting else 0.0
    )  # a common limit evens out
    slow = store.slow_seconds * math.sqrt(in_shard * store.slow)
    deviation = math.hypot(own * math.sqrt(in_shard) * (work.shards > 1), slow)
    span = queue(work.jobs, together, mean, deviation, cluster.uneven * stages["score"] / sum(stages.values()))
    merging = work.names * costs.merge * (work.shards > 1)
    return Prediction(
        hours=(span + merging) / 3600,
        machine_hours=sum(stages.values()) / 3600,
        stages=stages,
        merge_hours=work.sets * merging / 3600,
        bytes_read=work.images * costs.image_bytes,
        bytes_written=work.images * (costs.row_bytes + costs.map_bytes),
        memory=work.names * costs.name_bytes,
    )


def measured(method: str = "autoencoder", engine: str = "onnxruntime", maps: bool = False, tars: bool = False) -> Costs:
    """The costs of PNG of 256x256 in a store on the machine of the result files."""
    found, scaling = read("costs"), read("scaling")
    stored, network, written = found["store"]["tar" if tars else "objects"], found["network"][method], found["write"]
    decode = found["read"]["png 256x256"]
    sizes, own = written["bytes"], found["network"]["autoencoder"]
    finish = written["to_arrays_ms"] - decode["ms"] - own["preprocess_ms"] - own["onnxruntime_ms"]
    return Costs(
        start=scaling["medians"]["one, 16 images"]["processor_seconds"],
        name=1e-6 * (stored["open_us"] + found["names"]["total_us"] - found["names"]["open_us"]),
        name_bytes=found["names"]["bytes"],
        fetch=1e-3 * max(0.0, stored["read_ms"] - decode["ms"]),
        decode=1e-3 * decode["ms"],
        preprocess=1e-3 * network["preprocess_ms"],
        network=1e-3 * network[f"{engine}_ms"],
        table=1e-3 * (max(0.0, finish) + written["tables_ms"]),
        maps=1e-3 * written["maps_ms"] if maps else 0.0,
        merge=1e-3 * found["merge"]["maps_ms" if maps else "tables_ms"],
        image_bytes=decode["bytes"],
        row_bytes=sizes["scores.csv"],
        map_bytes=sum(size for name, size in sizes.items() if name != "scores.csv") if maps else 0.0,
        map_files=2 if maps else 0,
    )


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found
