"""Processor time and bytes of each image, and of each name of a data set: what the model of cost (cost_model.py) starts from.

    pip install 'normalcy[remote,onnxruntime,openvino]' moto[server]
    python benchmarks/costs.py --data-root DIR [--parts names,store,...]

One thread. Images: chest X-rays of 256x256 (see scaling.py), larger ones are mosaics of them. Parts:

    names    processor time and memory for each name of 200,000 empty files: open the folder, describe it, names of files
    store    listing and reading 2,000 images from a local S3 server (moto, in a process of its own) and from tars there, without
             cache: processor time of normalcy. Seconds of these requests are the server's, not those of a real store
    read     opening and decoding by format and size; bytes of the file
    network  preprocessing, and the method by engine
    write    a results folder with tables alone, and with maps: processor time and bytes of each kind of file
    merge    processor time of merging two shards for each image, tables alone and with maps

Each is the fastest of three or five. Writes results/costs.json, part by part.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scaling import free_port, open_xrays

from normalcy import Detector, open_data
from normalcy.data.images import write_image
from normalcy.detector import load
from normalcy.provenance import write_record
from normalcy.remote import mirror
from normalcy.results.predict import score_into
from normalcy.results.run import Shard, case_numbers, describe
from normalcy.results.shards import merge
from normalcy.results.writer import ImageNames

RESULT = Path(__file__).parent / "results" / "costs.json"
NAMES, STORED, SCORED = 200_000, 2_000, 256
METHODS: dict[str, dict[str, Any]] = {
    "autoencoder": {"size": 64, "steps": 30},
    "vae": {"size": 128, "steps": 5},
    "padim": {"size": 256},
    "patchcore": {"size": 256},
}
WRITTEN = "autoencoder"
"""Whose results are written."""
SIZES = (256, 512, 1024)
KINDS = ("maps", "restored")
Work = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--parts", default=",".join(PARTS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    facts = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name in given.parts.split(","):
        with tempfile.TemporaryDirectory() as folder:
            facts[name] = PARTS[name](Path(folder), given.data_root)
        print(name, json.dumps(facts[name]), flush=True)
        write_record(
            RESULT, {"benchmark": "processor time and bytes for each image and each name, one thread", **facts}
        )


def processor(work: Work, rounds: int = 3) -> float:
    """Processor seconds of this process."""
    times = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


# -- parts -------------------------------------------------------------------------------------------------------------


def names(folder: Path, data_root: Path) -> dict[str, float]:
    """In a process of its own, for its memory."""
    images = folder / "images"
    for k in range(NAMES):
        if k % 10_000 == 0:
            (images / f"{k // 10_000:03}").mkdir(parents=True)
        (images / f"{k // 10_000:03}" / f"{k:06}.png").touch()
    small = images / "000"
    model = folder / "model"
    Detector("zscore", size=8, calibration=0.0).fit(np.random.default_rng(0).random((9, 8, 8, 1), np.float32)).save(
        model
    )
    command = [sys.executable, __file__, "--names", str(images), str(small), str(model)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"count": NAMES, **found}


def measure_names(images: str, small: str, model: str) -> None:
    detector = load(Path(model))
    describe(detector, open_data(small, as_normal=True))  # imports and first calls
    before = resident()
    kept: list[Any] = []
    seconds = {
        "open_us": processor(lambda: kept.append(open_data(images, as_normal=True)), 1),
        "describe_us": processor(lambda: describe(detector, kept[0]), 1),
        "files_us": processor(lambda: kept.append(ImageNames(kept[0])), 1),
        "shard_us": processor(lambda: case_numbers(kept[0].cases), 1),
    }
    memory = resident() - before
    found = {name: round(1e6 * value / len(kept[0]), 2) for name, value in seconds.items()}
    print(json.dumps({**found, "total_us": round(sum(found.values()), 2), "bytes": round(memory / len(kept[0]))}))


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def store(folder: Path, data_root: Path) -> dict[str, Any]:
    import boto3

    xrays = open_xrays(data_root)
    files = [(f"{k:05}.png", png(xrays.read(k % len(xrays)))) for k in range(STORED)]
    with s3_server() as url:
        s3 = boto3.client("s3", endpoint_url=url)
        s3.create_bucket(Bucket="bucket")
        for name, content in files:
            s3.put_object(Bucket="bucket", Key=f"parts/{name}", Body=content)
        tar = BytesIO()
        with tarfile.open(fileobj=tar, mode="w") as archive:
            for name, content in files:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, BytesIO(content))
        s3.put_object(Bucket="bucket", Key="parts.tar", Body=tar.getvalue())
        return {
            "images": STORED,
            "objects": listed_and_read("s3://bucket/parts", folder / "cache"),
            "tar": listed_and_read("s3://bucket/parts.tar", folder / "cache"),
        }


def listed_and_read(url: str, cache: Path) -> dict[str, float]:
    """Fastest of three, each with an empty cache. Decoding is counted, too."""
    rounds = []
    for _ in range(3):
        shutil.rmtree(cache, ignore_errors=True)
        mirror.use_cache(cache, 2**30)
        cpu, wall = time.process_time(), time.perf_counter()
        data = open_data(url, as_normal=True)
        middle = time.process_time(), time.perf_counter()
        for i in range(len(data)):
            data.read(i)
        rounds.append(
            (middle[0] - cpu, time.process_time() - middle[0], middle[1] - wall, time.perf_counter() - middle[1])
        )
    opened, read, opened_wall, read_wall = map(min, zip(*rounds))
    return {
        "open_us": round(1e6 * opened / STORED, 1),
        "read_ms": round(1e3 * read / STORED, 3),
        "open_seconds_here": round(opened_wall, 2),
        "read_seconds_here": round(read_wall, 2),
    }


def read(folder: Path, data_root: Path) -> dict[str, Any]:
    xrays = open_xrays(data_root)
    found: dict[str, Any] = {}
    for size in SIZES:
        side, count = size // 256, max(8, 64 * 256 // size)
        for kind in ("png", "jpg", "tiff", "npy"):
            where = folder / f"{kind}-{size}"
            where.mkdir()
            for k in range(count):
                parts = [xrays.read((k * side * side + p) % len(xrays))[0] for p in range(side * side)]
                mosaic = np.vstack([np.hstack(parts[row * side : (row + 1) * side]) for row in range(side)])
                if kind == "npy":
                    np.save(where / f"{k}.npy", mosaic)
                else:
                    Image.fromarray(mosaic).save(where / f"{k}.{kind}", **({"quality": 90} if kind == "jpg" else {}))
            data = open_data(where, as_normal=True)
            seconds = processor(lambda data=data: [data.read(i) for i in range(len(data))])  # type: ignore[misc]
            size_of = sum(path.stat().st_size for path in where.iterdir()) / count
            found[f"{kind} {size}x{size}"] = {"ms": round(1e3 * seconds / count, 3), "bytes": round(size_of)}
    return found


def network(folder: Path, data_root: Path) -> dict[str, Any]:
    xrays = open_xrays(data_root)
    data, training = xrays.subset(range(64)), xrays.subset(range(500, 800))
    images = [data.read(i) for i in range(len(data))]
    found: dict[str, Any] = {}
    for name, settings in METHODS.items():
        detector = Detector(name, device="cpu", precision="32-true", **settings).fit(training)
        model = detector.save(folder / name)
        steps = detector.preprocess
        seconds = processor(lambda steps=steps: [steps.apply(image) for image in images])  # type: ignore[misc]
        row: dict[str, Any] = {"size": settings["size"], "preprocess_ms": round(1e3 * seconds / len(images), 3)}
        x = np.stack([steps.apply(image)[0] for image in images[:8]])
        for engine in ("torch", "onnxruntime", "openvino"):
            own = load(model)
            own.use_engine(engine, images=10_000)
            method: Any = own._graph or own.method
            method.score_arrays(x)
            row[f"{engine}_ms"] = round(1e3 * processor(lambda m=method, x=x: m.score_arrays(x)) / len(x), 2)  # type: ignore[misc]
        found[name] = row
    return found


def write(folder: Path, data_root: Path) -> dict[str, Any]:
    detector, data = written(folder, data_root)
    arrays = processor(lambda: [None for _ in detector.stream(data)], 5)
    seconds: dict[str, float] = {}
    for name, maps in (("tables", False), ("maps", True)):
        work = partial(score_into, detector, data, folder / "R", maps=maps, overwrite=True)
        seconds[name] = processor(work, 5)
    out = folder / "R"
    sizes = {
        "scores.csv": (out / "scores.csv").stat().st_size,
        "maps/*.npy": sum(path.stat().st_size for path in (out / "maps").glob("*.npy")),
        "restored/*.png": sum(path.stat().st_size for path in (out / "restored").glob("*.png")),
    }
    return {
        "to_arrays_ms": round(1e3 * arrays / len(data), 3),
        "tables_ms": max(0.0, round(1e3 * (seconds["tables"] - arrays) / len(data), 3)),
        "maps_ms": round(1e3 * (seconds["maps"] - seconds["tables"]) / len(data), 3),
        "bytes": {name: round(size / len(data)) for name, size in sizes.items()},
    }


def merging(folder: Path, data_root: Path) -> dict[str, Any]:
    detector, data = written(folder, data_root)
    found = {}
    for name, maps in (("tables", False), ("maps", True)):
        parts = [folder / f"{name}-{k}" for k in (1, 2)]
        for k, part in enumerate(parts, 1):
            score_into(detector, data, part, shard=Shard(k, 2), maps=maps)
        seconds = processor(lambda parts=parts: merge(parts, folder / "merged", overwrite=True))  # type: ignore[misc]
        found[f"{name}_ms"] = round(1e3 * seconds / len(data), 3)
    return found


PARTS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "names": names,
    "store": store,
    "read": read,
    "network": network,
    "write": write,
    "merge": merging,
}

# -- private -----------------------------------------------------------------------------------------------------------


def written(folder: Path, data_root: Path) -> tuple[Detector, Any]:
    """A detector with its faster engine, and PNG to score."""
    xrays = open_xrays(data_root)
    for k in range(SCORED):
        write_image(folder / "images" / f"{k:05}.png", xrays.read(k))
    data = open_data(folder / "images", as_normal=True)
    model = Detector(WRITTEN, device="cpu", precision="32-true", **METHODS[WRITTEN]).fit(data).save(folder / "model")
    detector = load(model)
    detector.use_engine("auto", images=10_000)
    return detector, data


def png(image: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(image[0]).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def s3_server() -> Iterator[str]:
    port = free_port()
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "of-the-benchmark",
        "AWS_SECRET_ACCESS_KEY": "of-the-benchmark",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url,
    }
    try:
        import urllib.request

        for _ in range(200):
            time.sleep(0.2)
            try:
                urllib.request.urlopen(url, timeout=1)
                break
            except OSError:
                continue
        yield url
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if sys.argv[1:2] == ["--names"]:
        measure_names(*sys.argv[2:])
    else:
        main()
