"""Scoring by engine: torch, onnxruntime, OpenVINO in 32 bits and in bfloat16, from PNG files; and a peer's exported model.

    pip install 'normalcy[export,openvino]'
    python benchmarks/deploy.py --prepare [--peer PYTHON]     # once; PYTHON: of an environment with anomalib and openvino
    python benchmarks/deploy.py [--rows patchcore-1,...]      # the rows that results/deploy.json does not have yet

Solar cells (package elpv-dataset). PatchCore at 256x256 with 761 training images (the held-out ones included), 10,000 memory
patches and the default backbone; autoencoder, vae (score elbo) and dpa at 128x128, deep_svdd at 64x64, fitted for a few steps, as
speed does not depend on them. All engines score the same PNG files, in interleaved rounds in one process; the fastest counts.

A row is METHOD-CORES. On one core (one thread of the engine): images per second of processor time, so that other work on the
machine counts less. On two cores: per second of the clock. Each has the rates to arrays and, with the fastest engine in 32 bits,
into a results folder; the largest difference of scores from torch; the latency of one image in memory (wall clock).

The peer is PatchCore of anomalib with the same backbone weights and as many memory patches (of the first training images, without
a choice, which takes it hours and does not change the time of scoring), exported by torch.onnx in its environment, and run by
OpenVINO in 32 bits in the rounds of the row patchcore, from the same files one by one (read by Pillow, normalised and resized as
its pre-processor does).

fit-1 is PatchCore's fit in processor seconds, its backbone by torch and by an engine, and how far a row of one memory bank is
from the nearest of the other, in units of the mean length of a row.

Work files lie in --folder, which should be on a file system where few files were deleted in the last minutes: ext4 passes over
the inodes of these one by one when it makes a file. A row that is interrupted is measured again. Writes results/deploy.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normalcy import Detector, open_data
from normalcy.data.dataset import DataSet
from normalcy.data.images import write_image
from normalcy.engines.graph import Engine, Graph, Precision, has_bf16
from normalcy.export import export
from normalcy.export.scorer import load as load_scorer
from normalcy.nets.neighbours import nearest
from normalcy.provenance import write_record
from normalcy.results.predict import score_into

METHODS: dict[str, dict[str, Any]] = {
    "patchcore": {"size": 256},
    "autoencoder": {"size": 128, "steps": 5},
    "vae": {"size": 128, "steps": 5, "score": "elbo"},
    "dpa": {"size": 128, "steps": 2, "grow": False},
    "deep_svdd": {"size": 64, "steps": 5},
}
ENGINES: dict[str, tuple[str, Precision]] = {
    "onnxruntime": ("onnx", "32"),
    "openvino": ("openvino", "32"),
    "openvino bf16": ("openvino", "bf16"),
}
TRAINING = 761
RESULT = Path(__file__).parent / "results" / "deploy.json"
ROWS = [*(f"{name}-{cores}" for cores in (1, 2) for name in METHODS), "fit-1"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=Path("deploy-work"))
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--peer", help="Python of an environment with anomalib")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--test", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.prepare:
        prepare(given.folder, given.test, given.peer)
        return
    facts: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    rows: dict[str, Any] = facts.get("rows", {})
    for row in [row for row in given.rows.split(",") if row not in rows]:
        name, cores = row.split("-")
        rows[row] = fit_seconds() if name == "fit" else measure(name, int(cores), given.folder, given.rounds)
        print(row, json.dumps(rows[row]), flush=True)
        order = {row: rows[row] for row in ROWS if row in rows}
        write_record(
            RESULT,
            {"benchmark": "images per second from PNG files", "training": TRAINING, "test": given.test, "rows": order},
        )


def training() -> DataSet:
    return open_data("elpv").select(label=0).subset(np.arange(TRAINING))


def prepare(folder: Path, test: int, peer: str | None) -> None:
    """The test images, a fitted and exported model of each method, and the peer's, where they are missing."""
    cells = open_data("elpv").select(label=0)
    for k in range(test):
        if not (path := folder / "images" / f"{k:04d}.png").exists():
            write_image(path, cells.read(len(cells) - 1 - k))
    normal = training()
    for name, words in METHODS.items():
        model = folder / name
        if not model.exists():
            Detector(name, device="cpu", precision="32-true", **words).fit(normal).save(model)
        for engine, (to, precision) in ENGINES.items():
            out = folder / f"{name} {engine}"
            if not out.exists() and (precision == "32" or has_bf16()):
                export(model, out, to, precision, calibrate=normal.subset(np.arange(24)))
    if peer is not None and not (folder / "peer.onnx").exists():
        images = np.stack([normal.read(i)[0] for i in range(10)])
        np.save(folder / "peer.npy", images)
        subprocess.run([peer, str(Path(__file__)), "--export-peer", str(folder)], check=True)


def export_peer(folder: Path) -> None:
    """In the peer's environment."""
    import peer as module  # the benchmark beside this one

    torch.set_num_threads(1)

    def first(model: Any, _: float) -> None:
        model.memory_bank = torch.vstack(model.embedding_store)[:10_000]

    module.PatchcoreModel.subsample_embedding = first
    model = module.peer(np.load(folder / "peer.npy"))
    batch = torch.rand(1, 3, module.SIDE, module.SIDE)
    target = folder / "peer.onnx"
    torch.onnx.export(model, (batch,), target, dynamo=False, input_names=["images"], dynamic_axes={"images": [0]})
    (folder / "peer.txt").write_text(version("anomalib"))


def measure(name: str, cores: int, folder: Path, rounds: int) -> dict[str, Any]:
    os.sched_setaffinity(0, range(cores))
    torch.set_num_threads(cores)
    data = open_data(folder / "images")
    detectors = {"torch": Detector.load(folder / name)}
    exported = {engine: folder / f"{name} {engine}" for engine in ENGINES if (folder / f"{name} {engine}").exists()}
    for engine, out in exported.items():
        detectors[engine] = Detector.load(out)
        detectors[engine].method.graph = load_scorer(out, threads=cores).graph  # type: ignore[union-attr]
    scores = {engine: np.zeros(0) for engine in detectors}

    def to_arrays(engine: str) -> None:
        scores[engine] = np.array([r.score for r in detectors[engine].stream(data)])  # type: ignore[union-attr]

    runs: dict[str, Callable[[], object]] = {engine: lambda engine=engine: to_arrays(engine) for engine in detectors}
    if name == "patchcore" and (folder / "peer.onnx").exists():
        runs["peer"] = peer_run(folder, cores)
    clock = time.process_time if cores == 1 else time.perf_counter
    rates = fastest(runs, len(data), rounds, clock)
    facts: dict[str, Any] = {"clock": "processor" if cores == 1 else "wall", "images_per_second": rates}
    for other in ("torch", "peer"):
        if other in rates:
            facts[f"times_{other}"] = {engine: round(rate / rates[other], 2) for engine, rate in rates.items()}
    if "peer" in rates:
        facts["anomalib"] = (folder / "peer.txt").read_text()
    reference = scores["torch"]
    facts["largest_difference"] = {
        engine: float(f"{np.abs(values - reference).max() / np.abs(reference).max():.2g}")
        for engine, values in scores.items()
        if engine != "torch"
    }
    best = max(("torch", "onnxruntime", "openvino"), key=lambda engine: rates[engine])
    number = iter(range(1000))
    results = folder / "results" / f"{os.getpid()}"
    into: dict[str, Callable[[], object]] = {
        "arrays": runs[best],
        "folder": lambda: score_into(detectors[best], data, results / f"{name}-{next(number)}"),
    }
    both = fastest(into, len(data), rounds, clock)
    facts["results_folder"] = {"engine": best, **both, "ratio": round(both["folder"] / both["arrays"], 3)}
    if cores == 1:
        facts["latency_ms"] = {engine: latency(out, data) for engine, out in exported.items()}
    return facts


def fastest(
    runs: dict[str, Callable[[], object]], images: int, rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = clock()
            run()
            seconds[name].append(clock() - started)
    return {name: round(images / min(values), 1) for name, values in seconds.items()}


def latency(folder: Path, data: DataSet) -> dict[str, float]:
    """Of one image in memory, with the map at its size: median and 99th percentile of 60 calls."""
    scorer = load_scorer(folder, threads=1)
    image = np.moveaxis(data.read(0), 0, -1)[None]
    times = []
    for _ in range(65):
        started = time.perf_counter()
        scorer.score(image)
        times.append(1000 * (time.perf_counter() - started))
    kept = sorted(times[5:])
    return {"p50": round(statistics.median(kept), 2), "p99": round(kept[int(0.99 * len(kept))], 2)}


def peer_run(folder: Path, cores: int) -> Callable[[], None]:
    from PIL import Image
    from torch.nn import functional as F

    engine: Engine = "openvino"
    graph = Graph([(folder / "peer.onnx").read_bytes()], ("score", "map"), engine, threads=cores)
    files = sorted((folder / "images").iterdir())
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))

    def run() -> None:
        for file in files:
            x = torch.from_numpy(np.asarray(Image.open(file))[None, None]).float().div(255)
            x = F.interpolate(x, (256, 256), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
            graph(((x - mean) / std).numpy())

    return run


def fit_seconds() -> dict[str, Any]:
    """Of PatchCore, with its backbone by torch and by an engine; processor time."""
    os.sched_setaffinity(0, {0})
    seconds: dict[str, float] = {}
    memories = {}
    for engine in ("torch", "auto"):
        started = time.process_time()
        detector = Detector("patchcore", device="cpu", precision="32-true", engine=engine, size=256).fit(training())
        seconds[engine] = round(time.process_time() - started, 1)
        memories[engine] = detector.method.memory  # type: ignore[union-attr]
    apart = max(float(nearest(one, other)[0].max()) for one, other in permutations(memories.values()))
    return {
        "processor_seconds": seconds,
        "times_torch": round(seconds["torch"] / seconds["auto"], 2),
        "largest_distance_of_a_row_to_the_other_memory": float(
            f"{apart / float(memories['torch'].norm(dim=1).mean()):.2g}"
        ),
    }


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "--export-peer" in sys.argv:
        export_peer(Path(sys.argv[2]))
    else:
        main()
