"""What scoring N images on W workers takes: hours, bytes, and the stage that limits it. No measurement of its own.

Numbers of this machine come from results/costs.json and results/scaling.json, those of a store and of a cluster are assumptions
(:class:`Store`, :class:`Cluster`). simulation.py checks the model; the tables of docs/explanation/scale.md come from both.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    """For the row of an image."""
    maps: float = 0.0
    """For the map, its picture and the restored image; 0 without."""
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
    """Fraction of reads that take ``slow_seconds`` longer (a retry)."""
    slow_seconds: float = 1.0
    page: int = 1000
    page_latency: float = 0.1
    reads: float = 5500.0
    """Per second and prefix."""
    writes: float = 3500.0
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


def image_seconds(costs: Costs, store: Store, cluster: Cluster, sharing: float) -> tuple[float, float]:
    """For each image of one worker: processor time (score), and time that reading adds because the store is slower.

    Reading overlaps with scoring: the slowest of processor, latency / 16, bandwidth, and this worker's part of the requests that
    a prefix allows (``sharing``: workers at it at the same time) determines the rate.
    """
    processor = (costs.image - costs.network) / cluster.speed + costs.network / (cluster.speed * cluster.network_speed)
    reading = max(store.mean(store.latency) / AHEAD, costs.image_bytes / store.bandwidth, sharing / store.reads)
    return processor, max(0.0, reading - processor)


def list_seconds(costs: Costs, store: Store, cluster: Cluster, names: int, sharing: float) -> float:
    """To list a data set, one page after the other, and to describe it for a run."""
    page = max(store.mean(store.page_latency), sharing / store.reads)
    return math.ceil(names / store.page) * page + names * costs.name / cluster.speed


def write_seconds(costs: Costs, store: Store, sharing: float) -> float:
    """To send the files of an image."""
    files = costs.map_files
    request = max(store.mean(store.latency) / UPLOADS, sharing / store.writes)
    return max(files * request, costs.map_bytes / store.bandwidth)


def predict(costs: Costs, store: Store, cluster: Cluster, work: Work) -> Prediction:
    """From sums of means and the last jobs at the end of the queue, without simulation.

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
    mean = sum(stages.values()) / work.jobs
    in_shard = work.names / work.shards
    largest = mean + 3 * (processor + waiting + sends) * math.sqrt(in_shard) * (work.shards > 1)
    if work.jobs <= together:  # the slowest of all workers
        span = largest * math.exp(cluster.uneven * math.sqrt(2 * math.log(max(2, together))))
    else:  # all work until the queue is empty; the last jobs end one after the other
        span = mean * work.jobs / together + largest / 2
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
    sizes = written["bytes"]
    return Costs(
        start=scaling["medians"]["one, 16 images"]["processor_seconds"],
        name=1e-6 * (stored["open_us"] + found["names"]["total_us"] - found["names"]["open_us"]),
        name_bytes=found["names"]["bytes"],
        fetch=1e-3 * max(0.0, stored["read_ms"] - decode["ms"]),
        decode=1e-3 * decode["ms"],
        preprocess=1e-3 * network["preprocess_ms"],
        network=1e-3 * network[f"{engine}_ms"],
        table=1e-3 * max(0.0, written["tables_ms"]),
        maps=1e-3 * written["maps_ms"] if maps else 0.0,
        merge=1e-3 * found["merge"]["maps_ms" if maps else "tables_ms"],
        image_bytes=decode["bytes"],
        row_bytes=sizes["scores.csv"],
        map_bytes=sum(size for name, size in sizes.items() if name != "scores.csv") if maps else 0.0,
        map_files=3 if maps else 0,
    )


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found
