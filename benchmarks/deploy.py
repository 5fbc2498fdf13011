"""Scoring by engine: torch, onnxruntime, OpenVINO in 32 bits and in bfloat16, from PNG files; and a peer's exported model.

    pip install 'normalcy[export,openvino]'      # with anomalib in the same environment for --peer
    python benchmarks/deploy.py [--training 300] [--test 96] [--peer]

Solar cells (package elpv-dataset). PatchCore at 256x256 with 10,000 memory patches and the default backbone; autoencoder, vae
(score elbo) and dpa at 128x128, deep_svdd at 64x64, fitted for a few steps, as speed does not depend on them. Each engine uses
one thread and scores the same PNG files to arrays; rounds are interleaved and the fastest counts, in images per second of
processor time, so that other work on the machine counts less. Also: a results folder against arrays, the latency of one image
in memory (wall clock, one thread), and the largest difference of scores from torch.

--peer: anomalib's PatchCore with the same backbone weights, images, and as many memory patches, exported by torch.onnx and
run by OpenVINO in 32 bits, from the same files (read by Pillow, normalised and resized as its pre-processor does).

Writes results/deploy.json with the processor.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normalcy import Detector, open_data
from normalcy.data.dataset import DataSet
from normalcy.data.images import write_image
from normalcy.engines.graph import has_bf16
from normalcy.export import export
from normalcy.export.scorer import load as load_scorer
from normalcy.provenance import write_record
from normalcy.results.predict import score_into

METHODS: dict[str, dict[str, Any]] = {
    "patchcore": {"size": 256},
    "autoencoder": {"size": 128, "steps": 5},
    "vae": {"size": 128, "steps": 5, "score": "elbo"},
    "dpa": {"size": 128, "steps": 2, "grow": False},
    "deep_svdd": {"size": 64, "steps": 5},
}
ENGINES = {"onnxruntime": ("onnx", "32"), "openvino": ("openvino", "32"), "openvino bf16": ("openvino", "bf16")}
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--training", type=int, default=761)
    parser.add_argument("--test", type=int, default=96)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--peer", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cells = open_data("elpv").select(label=0)
    training = cells.subset(np.arange(min(given.training, len(cells) - given.test)))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for k in range(given.test):
            write_image(folder / "images" / f"{k:04d}.png", cells.read(len(cells) - 1 - k))
        data = open_data(folder / "images")
        results = {name: measure(name, training, data, folder) for name in given.methods.split(",")}
        if given.peer:
            results["peer"] = peer(training, data, folder)
    write_record(
        Path(__file__).parent / "results" / "deploy.json",
        {
            "benchmark": "images per second of processor time, one thread, from PNG files to arrays",
            "training": len(training),
            "test": given.test,
            "methods": results,
        },
    )


def measure(name: str, training: DataSet, data: DataSet, folder: Path) -> dict[str, Any]:
    started = time.process_time()
    detector = Detector(name, device="cpu", precision="32-true", **METHODS[name]).fit(training)
    facts: dict[str, Any] = {"fit_processor_seconds": round(time.process_time() - started, 1)}
    model = detector.save(folder / name)
    detectors = {"torch": detector}
    exported = {}
    for engine, (to, precision) in ENGINES.items():
        if precision == "bf16" and not has_bf16():
            continue
        out = folder / f"{name} {engine}"
        export(model, out, to, precision, calibrate=training.subset(np.arange(24)))  # type: ignore[arg-type]
        exported[engine] = out
        detectors[engine] = Detector.load(out)
        detectors[engine].method.graph = load_scorer(out, threads=1).graph  # type: ignore[union-attr]
    scores = {engine: np.zeros(0) for engine in detectors}

    def to_arrays(engine: str) -> None:
        scores[engine] = np.array([r.score for r in detectors[engine].stream(data)])  # type: ignore[union-attr]

    rates = fastest({engine: lambda engine=engine: to_arrays(engine) for engine in detectors}, len(data))
    reference = scores["torch"]
    facts["images_per_second"] = rates
    facts["times_torch"] = {engine: round(rate / rates["torch"], 2) for engine, rate in rates.items()}
    facts["largest_difference"] = {
        engine: float(f"{np.abs(values - reference).max() / np.abs(reference).max():.2g}")
        for engine, values in scores.items()
    }
    best = "openvino"
    round_ = iter(range(100))
    into = fastest({"folder": lambda: score_into(detectors[best], data, folder / f"r{name}{next(round_)}")}, len(data))
    facts["results_folder_against_arrays"] = round(into["folder"] / rates[best], 3)
    facts["latency_ms"] = {engine: latency(out, data) for engine, out in exported.items()}
    print(name, facts, flush=True)
    return facts


def fastest(runs: dict[str, Callable[[], object]], images: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            started = time.process_time()
            run()
            seconds[name].append(time.process_time() - started)
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


def peer(training: DataSet, data: DataSet, folder: Path) -> dict[str, Any]:
    import openvino
    import peer as module
    from peer import SIDE, peer_input  # the benchmark beside this one
    from peer import peer as fit_peer
    from PIL import Image

    module.MEMORY = 10_000
    images = np.stack([training.read(i)[0] for i in range(len(training))])
    model = fit_peer(images)
    batch = torch.rand(1, 3, SIDE, SIDE)
    torch.onnx.export(
        model, (batch,), folder / "peer.onnx", dynamo=False, input_names=["input"], dynamic_axes={"input": [0]}
    )
    core = openvino.Core()
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(folder / "peer.onnx"), "CPU", hints)
    request = compiled.create_infer_request()
    files = sorted((folder / "images").iterdir())

    def run() -> None:
        for file in files:
            request.infer([peer_input(np.asarray(Image.open(file))[None]).numpy()])

    return {"images_per_second": fastest({"openvino": run}, len(data)), "anomalib": version("anomalib")}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
