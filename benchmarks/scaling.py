"""Scoring 10,000 images by shards and by Ray against one process: seconds and processor seconds of whole commands.

    pip install 'normalcy[ray,onnxruntime]'
    python benchmarks/scaling.py --data-root DIR [--seconds 280] [--rounds 2] [--anew]

Data: 1,000 chest X-rays of 256x256 (chest_xray_256.zip, see recipes/chest_xray.py), written as PNG ten times under different
names, in ten folders. Autoencoder at 64x64 with the engine that `normalcy score` takes by itself; maps and
restored images are written. A worker is one core: each process is bound to one, with one thread of the network.

    one             normalcy score on one core
    shards          2 shards one after the other on that core, then normalcy merge: the overhead of shards
    ray             normalcy score --ray local, driver, Ray and its worker together on that core: the overhead of Ray
    2 shards        the same 2 shards side by side on two cores, then merge
    ray, 2 workers  on a cluster of two nodes with one core each; the seconds are without its start
    one, 16 images; ray, 16 images    what does not depend on the number of images

Wanted: at most 1.05 for `shards` and `ray` against `one`, start-up included. Parts are written to results/scaling.json as they
come; another call adds those that are missing, where code and settings are the same. Each round has the opposite order of the
one before. --seconds: no part is begun that would not end in this time. --work: a folder in
memory (/dev/shm) if the disk is slow or shared, as 3 GB of maps are written by each part.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from normalcy import Detector, open_data
from normalcy.data.dataset import DataSet, Item
from normalcy.data.images import write_image
from normalcy.data.stores import Files, Zip
from normalcy.provenance import commit, write_record

RESULT = Path(__file__).parent / "results" / "scaling.json"
IMAGES, FEW, TRAINING = 10_000, 16, 300
METHOD: dict[str, Any] = {"size": 64, "steps": 30}
PROGRAM = str(Path(sys.executable).with_name("normalcy"))
LASTS = {"one": 1.0, "shards": 1.15, "ray": 1.3, "2 shards": 0.7, "ray, 2 workers": 1.0}
"""Parts of a round, and about how long each lasts beside the first."""
Part = Callable[[Path], None]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--work", type=Path, help="folder that keeps images and model for the next call")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--anew", action="store_true")
    given = parser.parse_args()
    end = time.monotonic() + given.seconds
    adopt_orphans()
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_urlsafe(24)}
    os.environ |= {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", **token}
    parts = [] if given.anew else earlier(given.result, given.images)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.work or Path(temporary)
        images, few, model = prepare(folder, given.data_root, given.images)
        score = [PROGRAM, "score", str(model)]
        works: dict[str, Part] = {
            "one": lambda out: run([0], [*score, str(images), "--out", str(out)]),
            "shards": lambda out: shards(score, images, out, side_by_side=False),
            "ray": lambda out: run([0], [*score, str(images), "--out", str(out), "--ray", "local"]),
            "2 shards": lambda out: shards(score, images, out, side_by_side=True),
            "ray, 2 workers": lambda out: ray_on_two([*score, str(images), "--out", str(out)]),
            "one, 16 images": lambda out: run([0], [*score, str(few), "--out", str(out)]),
            "ray, 16 images": lambda out: run([0], [*score, str(few), "--out", str(out), "--ray", "local"]),
        }
        done = {(part["round"], part["part"]) for part in parts}
        for round_ in range(given.rounds):
            order = list(LASTS) if round_ % 2 == 0 else list(LASTS)[::-1]
            for name in [*order, "one, 16 images", "ray, 16 images"]:
                left = end - time.monotonic()
                if (round_, name) in done or lasts(name, parts) > left:
                    continue
                parts.append({"round": round_, "part": name, **measured(works[name], folder / "results")})
                print(parts[-1], f"{left:.0f} s were left", flush=True)
                write_record(
                    given.result,
                    {
                        **facts(given.images, str(folder).startswith("/dev/shm")),
                        **summary(parts, given.images),
                        "parts": parts,
                    },
                )


def facts(images: int, in_memory: bool) -> dict[str, Any]:
    return {
        "benchmark": "normalcy score by shards and by Ray against one process, autoencoder at 64x64 on PNG of 256x256",
        "written_to": "memory" if in_memory else "disk",
        "wanted_ratio": {"shards": 1.05, "ray": 1.05},
        "images": images,
    }


def earlier(result: Path, images: int) -> list[dict[str, Any]]:
    """Parts of an earlier call with the same code and settings; refuses others."""
    if not result.exists():
        return []
    found = json.loads(result.read_text())
    if found["commit"] != commit() or found["images"] != images:
        sys.exit(f"{result} is of another commit or number of images: give --anew to replace it.")
    return list(found["parts"])


def lasts(name: str, parts: list[dict[str, Any]]) -> float:
    """About how many seconds a part takes."""
    if name not in LASTS:
        return 30
    known = [part["seconds"] / LASTS[part["part"]] for part in parts if part["part"] in LASTS]
    return LASTS[name] * (statistics.median(known) if known else 75)


def summary(parts: list[dict[str, Any]], images: int) -> dict[str, Any]:
    """Ratios to one process within each round, their medians, and what is left without start-up."""
    seconds = {(part["round"], part["part"]): part for part in parts}
    ratios: dict[str, Any] = {}
    for name in list(LASTS)[1:]:
        for unit in ("seconds", "processor_seconds"):
            found = [
                seconds[round_, name][unit] / seconds[round_, "one"][unit]
                for round_ in range(10)
                if {(round_, name), (round_, "one")} <= set(seconds)
            ]
            if found:
                ratios.setdefault(name, {})[unit] = round(statistics.median(found), 3)
    medians = {
        name: {
            unit: round(statistics.median(part[unit] for part in parts if part["part"] == name), 2)
            for unit in ("seconds", "processor_seconds")
        }
        for name in dict.fromkeys(part["part"] for part in parts)
    }
    found_: dict[str, Any] = {"medians": medians, "ratio_to_one": ratios}
    if {"one", "ray", "one, 16 images", "ray, 16 images"} <= set(medians):
        start = {name: medians[f"{name}, 16 images"]["seconds"] for name in ("one", "ray")}
        rates = {name: (medians[name]["seconds"] - start[name]) / (images - FEW) for name in start}
        found_ |= {
            "start_seconds": start,
            "milliseconds_per_image_after_start": {name: round(1000 * rate, 3) for name, rate in rates.items()},
            "ray_ratio_after_start": round(rates["ray"] / rates["one"], 3),
        }
    return found_


# -- the commands ------------------------------------------------------------------------------------------------------


def prepare(folder: Path, data_root: Path, count: int) -> tuple[Path, Path, Path]:
    """All images, a few of them, and a model with its graph."""
    images, few, model = folder / "images", folder / "few", folder / "model"
    if not few.exists():
        xrays = open_xrays(data_root)
        for k in range(count):
            write_image(images / f"{k // 1000:03}" / f"{k:05}.png", xrays.read(k % len(xrays)))
        Detector("autoencoder", device="cpu", precision="32-true", **METHOD).fit(
            open_data(images, as_normal=True).subset(np.arange(TRAINING))
        ).save(model)
        run([0], [PROGRAM, "score", str(model), str(images / "000"), "--out", str(folder / "first")])  # makes the graph
        for k in range(FEW):
            write_image(few / f"{k:05}.png", xrays.read(k))
    return images, few, model


def open_xrays(data_root: Path) -> DataSet:
    opener = Zip(data_root / "chest_xray_256.zip")
    names = [name for name in opener.names() if name.startswith(("No_findings/", "Pneumonia/"))]
    return Files(opener, names).data_set("chest_xray", [Item(name, name) for name in names])


def shards(score: list[str], images: Path, out: Path, side_by_side: bool) -> None:
    """Two shards and their merge."""
    folders = [out.with_name(f"shard-{k}") for k in (1, 2)]
    commands = [[*score, str(images), "--shard", f"{k}/2", "--out", str(at)] for k, at in enumerate(folders, 1)]
    if side_by_side:
        ends = [start([core], command) for core, command in enumerate(commands)]
        for end in ends:
            end()
    else:
        for command in commands:
            run([0], command)
    run([0], [PROGRAM, "merge", *map(str, folders), "--out", str(out)])


def ray_on_two(command: list[str]) -> None:
    """On two nodes of one core each, both on this machine."""
    with cluster() as address:
        BETWEEN.append(time.perf_counter())
        run([0, 1], [*command, "--ray", address])
        BETWEEN.append(time.perf_counter())


BETWEEN: list[float] = []
"""Start and end of what counts as the seconds of a part, where that is not all of it."""


@contextmanager
def cluster() -> Iterator[str]:
    port = free_port()
    address = f"127.0.0.1:{port}"
    ray = str(Path(sys.executable).with_name("ray"))
    node = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats"]
    try:
        run([0], [ray, "start", "--head", f"--port={port}", "--include-dashboard=false", *node])
        run([1], [ray, "start", f"--address={address}", *node])
        yield address
    finally:
        end_children()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start(cores: list[int], command: list[str]) -> Callable[[], None]:
    """Begin a command on these cores; what is returned waits for it."""
    process = subprocess.Popen(
        command,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    def end() -> None:
        said, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{said}")

    return end


def run(cores: list[int], command: list[str]) -> None:
    start(cores, command)()


# -- measuring ---------------------------------------------------------------------------------------------------------


def measured(work: Part, out: Path) -> dict[str, float]:
    """Seconds, and processor seconds of all processes, also of those that Ray starts."""
    remove_results(out)
    os.sync()
    BETWEEN.clear()
    with Processes() as processes:
        started = time.perf_counter()
        work(out)
        begun, ended = BETWEEN or (started, time.perf_counter())
    end_children()
    remove_results(out)
    return {"seconds": round(ended - begun, 2), "processor_seconds": round(processes.seconds(), 2)}


def remove_results(out: Path) -> None:
    for made in (out, out.with_name(f"{out.name}.run"), *out.parent.glob("shard-*")):
        shutil.rmtree(made, ignore_errors=True)


class Processes:
    """Processor time of all processes that descend from this one, looked at twice a second: Ray does not wait for its own, so
    the system does not add them up. What a process does after the last look is lost."""

    def __init__(self) -> None:
        self.ticks: dict[tuple[int, str], int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Processes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._look()
        self._ended.set()
        self._thread.join()

    def seconds(self) -> float:
        return sum(self.ticks.values()) / os.sysconf("SC_CLK_TCK")

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            self._look()

    def _look(self) -> None:
        waiting = children()
        while waiting:
            process = waiting.pop()
            with suppress(OSError):
                words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
                self.ticks[process, words[19]] = int(words[11]) + int(words[12])
                waiting += children(process)


def adopt_orphans() -> None:
    """Processes whose parents end become children of this one (Linux), so that they are counted and ended, too."""
    set_child_subreaper = 36
    ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def end_children() -> None:
    """End and wait for all processes that descend from this one."""
    deadline = time.monotonic() + 20
    while True:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        left = children()
        if not left:
            return
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM if time.monotonic() < deadline - 10 else signal.SIGKILL)
        time.sleep(0.2)


def children(process: int | str = "self") -> list[int]:
    tasks = Path(f"/proc/{process}/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


if __name__ == "__main__":
    main()
