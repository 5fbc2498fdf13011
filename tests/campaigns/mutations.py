"""Structure-aware mutations of real model, exported and results folders, many in one guarded process.

    nice -n 5 python tests/campaigns/mutations.py 5000 --seed 0 --out tests/campaigns/results/mutations.json

Models of several methods (images and volumes), their exported graphs, and results of them (maps, restored images, masks, latents,
metrics, an audit, a comparison) are made once. Each case copies a folder, changes one to three things of its structure (a value,
key or number of a JSON file or log; a cell; a field in the header of a safetensors, npy, PNG, TIFF, NIfTI or ONNX file, with
checksums that fit; a pipe, device, link, folder or sparse file in the place of a file) and reads it: load and score, calibrate,
report, evaluate, normalcy-runtime's load. Cases run in a forked process with a bound on memory; another watches their time.

A case is right when it works or ends in one short NormalcyError, within the bounds, and nothing was run, connected to, written
outside its folder, or read in a private one. Wrong ones are listed with their number: ``--only models:17`` repeats one. The
result is kept after each process, and a call with the same arguments goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gzip
import hashlib
import json
import os
import random
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import nibabel
import numpy as np
import onnxruntime  # noqa: F401 (loaded once, before processes are made)
import torch
from hostile import IDLE, RAW, SECONDS, TOKEN, VALUES, changed, ticks_of
from PIL import Image

import normalcy.cli.app
import normalcy.results.evaluate
import normalcy.results.predict
from normalcy import Detector, load, open_data
from normalcy.cli.printing import printable
from normalcy.engines.cached import SECRET
from normalcy.errors import NormalcyError
from normalcy.export import export
from normalcy.export.scorer import load as load_scorer
from normalcy.provenance import write_record
from normalcy.report import write_comparison, write_report
from normalcy.results.folder import read_results
from normalcy.studies.audit import audit
from normalcy.studies.compare import compare

MEMORY = 2**31
"""Bytes of address space that a case may take beyond those of its process before the first one."""
PROCESS = 100
"""Cases in one process."""
LONGEST_MESSAGE = 1000
WATCHED = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "socket.bind",
           "socket.getaddrinfo", "os.kill", "pty.")  # fmt: skip
"""Beginnings of audit events that no case may raise."""
WRITING = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.chmod",
    "os.truncate",
    "shutil.rmtree",
)

Change = Callable[[Path, random.Random], str]
Op = Callable[[Path, "Given"], object]


class Given:
    """Images to score, one of each kind."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.images = {
            (1, 2): (100 + 20 * rng.random((2, 16, 16))).astype(np.uint8),
            (3, 2): (100 + 20 * rng.random((2, 16, 16, 3))).astype(np.uint8),
            (1, 3): (100 + 20 * rng.random((2, 8, 16, 16, 1))).astype(np.uint8),
        }

    def of(self, shape: tuple[int, ...]) -> Any:
        return self.images.get((shape[0], len(shape) - 1), self.images[1, 2])


# -- templates ---------------------------------------------------------------------------------------------------------------


def make_templates(folder: Path, few: bool = False) -> None:
    """``few``: of two methods alone."""
    rng = np.random.default_rng(0)
    images = (100 + 20 * rng.random((44, 16, 16))).astype(np.uint8)
    volumes = (100 + 20 * rng.random((44, 8, 16, 16, 1))).astype(np.uint8)
    small: dict[str, dict[str, Any]] = {
        "autoencoder": {"latent": 4, "steps": 2, "width": 4, "size": 16},
        "pca": {"components": 3},
        "zscore": {},
        "vae": {"latent": 4, "steps": 2, "width": 4},
        "isolation_forest": {"trees": 5},
        "gmm": {},
        "deep_svdd": {"steps": 2, "width": 4},
        "kde": {},
    }
    detectors: dict[str, Detector] = {}
    for name, words in small.items():
        if few and name not in ("autoencoder", "zscore"):
            continue
        detectors[name] = Detector(name, **words).fit(images)
    detectors["volumes"] = Detector("zscore").fit(volumes)
    if not few:
        detectors["volume_autoencoder"] = Detector("autoencoder", latent=4, steps=2, width=4, size=8).fit(
            volumes[:, :, :8, :8]
        )
    detectors["slices"] = Detector("pca", components=2, slices="z", calibration=0.5).fit(volumes)
    for name, detector in detectors.items():
        detector.save(folder / "models" / name)
    if not few:
        load(folder / "models" / "autoencoder").use_engine("onnxruntime")  # the graph is kept in the folder
    for name in ("zscore",) if few else ("autoencoder", "pca"):
        export(folder / "models" / name, folder / "exported" / name, calibrate=images[:30])
    parts = folder / "parts"
    for place, count in (("train/good", 40), ("test/good", 3), ("test/spot", 3)):
        (parts / place).mkdir(parents=True)
        for i in range(count):
            values = 100 + 20 * rng.random((16, 16))
            if "spot" in place:
                values[4:9, 4:9] = 240
            Image.fromarray(values.astype(np.uint8)).save(parts / place / f"{i:02d}.png")
    (parts / "ground_truth/spot").mkdir(parents=True)
    mask = np.zeros((16, 16), np.uint8)
    mask[4:9, 4:9] = 255
    for i in range(3):
        Image.fromarray(mask).save(parts / "ground_truth/spot" / f"{i:02d}_mask.png")
    for k in range(3):
        nibabel.save(nibabel.Nifti1Image(volumes[k, ..., 0].T.copy(), np.eye(4)), parts.parent / f"volume{k}.nii.gz")
    opened = open_data(parts)
    test = opened.select(split="test")
    results = folder / "results"
    for name in ("autoencoder",) if few else ("autoencoder", "vae"):
        normalcy.results.predict.score_into(detectors[name], test, results / name, spec=str(parts), split="test")
    normalcy.results.evaluate.evaluate(results / "autoencoder", resamples=20)
    scans = normalcy.data.open.open_files(sorted(folder.glob("*.nii.gz")))
    normalcy.results.predict.score_into(detectors["slices"], scans, results / "volumes")
    if few:
        return
    audit(opened, results / "audit", "pca", settings={"components": 2}, folds=2, spec=str(parts))
    compare(opened, ["zscore", "pca"], results / "comparison", {"components": 2})


# -- changes -----------------------------------------------------------------------------------------------------------------


def regular(root: Path, *endings: str) -> list[Path]:
    found = (p for p in root.rglob("*") if p.is_file() and not p.is_symlink() and p.stat().st_size < 2**22)
    return sorted(p for p in found if p.name.endswith(endings or ("",)))


def private(root: Path) -> Path:
    return root.parent / "private"


def odd(rng: random.Random, root: Path) -> Any:
    """A value in the place of another."""
    return rng.choice((
        *VALUES, str(private(root) / "n.json"), "../private/n.json", "../../..", "/", "~", -0.0, 5e-324, 2**63 - 1, 2**53 + 1,
        [[[[]]]], {"": {"": {}}}, "\u0000", "\udcff", "\u202e\u2066", "e\u0301" * 50, "\U0001f600", "1e999", "true", [None] * 3,
        "resnet18:/etc/passwd", "window:0,1", "resize:99999999", "-" * 3, ["resize:9999999"], "tile=3",
    ))  # fmt: skip


JSON_CHANGES = (*["value"] * 3, *["number"] * 2, "raw", "delete", "swap", "rename", "double", "wrap", "long")


def json_value(root: Path, rng: random.Random) -> str:
    path = rng.choice(regular(root, ".json"))
    tree = json.loads(path.read_text())
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in rng.sample(list(keys), min(len(keys), 12)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(tree)
    raw = None
    kind = ""
    for _ in range(rng.choice((1, 1, 2, 4))):
        node, key = rng.choice(places)
        if key not in node if isinstance(node, dict) else key >= len(node):
            continue
        kind = rng.choice(
            ("value", "value", "value", "number", "number", "raw", "delete", "swap", "rename", "double", "wrap", "long")
        )
        if kind == "value":
            node[key] = odd(rng, root)
        elif kind == "number" and isinstance(node[key], int | float):
            node[key] = rng.choice(
                (0, -1, 1, 2, -node[key], node[key] + 1, node[key] * 1000, 1e308, -1e308, 2**31, 0.5, 1e-320)
            )
        elif kind == "raw":
            raw, node[key] = rng.choice(RAW), "THE-PLACE"
        elif kind == "delete":
            del node[key]
        elif kind == "swap":
            other, place = rng.choice(places)
            if place in other if isinstance(other, dict) else place < len(other):
                node[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(node[key])
        elif kind == "rename" and isinstance(node, dict):
            node[str(odd(rng, root))[:60]] = node.pop(key)
        elif kind == "double" and isinstance(node, list):
            node += [copy.deepcopy(node[key])] * rng.choice((1, 3, 1000))
        elif kind == "wrap":
            node[key] = [node[key]]
        elif kind == "long" and isinstance(node[key], str):
            node[key] = node[key] * rng.choice((2, 1000))
    text = json.dumps(tree)
    path.write_text(text if raw is None else text.replace('"THE-PLACE"', raw), errors="surrogatepass")
    return f"{path.relative_to(root)}: {kind}"


def cell(root: Path, rng: random.Random) -> str:
    path = rng.choice(regular(root, ".csv"))
    rows = [row.split(",") for row in path.read_text().splitlines()]
    row = rng.randrange(len(rows))
    column = rng.randrange(len(rows[row]))
    rows[row][column] = rng.choice((
        "", "nan", "inf", "-inf", "1e308", "-1e999", "1e101", "x", "../../private/n.npy", str(private(root) / "n"), "<script>",
        '"', "x" * 200_000, "x" * 3000, "2", "-1", "\u202e", "a\0b", "=1+1", "'=1", "../" * 500,
        "proc", ".", "/", "train", "0", "1",
    ))  # fmt: skip
    if rng.random() < 0.2:
        rows = rows * rng.choice((2, 300)) if rng.random() < 0.5 else rows[:row]
    path.write_text("\n".join(",".join(row) for row in rows))
    return f"{path.relative_to(root)}: cell {row},{column}"


def log_line(root: Path, rng: random.Random) -> str:
    path = rng.choice(regular(root, ".jsonl"))
    value = rng.choice((json.dumps(odd(rng, root)), *RAW))
    name = rng.choice(("step", "stage", "loss", "event", "kl", "steps", "held_out_loss"))
    line = f'{{"method": "x", "stage": "s", "step": 3, "loss": 1.0, "{name}": {value}}}\n'
    path.write_text(path.read_text() + line * rng.choice((1, 2, 2000)))
    return f"{path.name}: {name}"


def safetensors_field(root: Path, rng: random.Random) -> str:
    path = rng.choice(regular(root, ".safetensors"))
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    name = rng.choice([name for name in header if name != "__metadata__"])
    kind = rng.choice(
        ("dtype", "shape", "data_offsets", "delete", "rename", "length", "values", "values", "more", "nested")
    )
    if kind == "dtype":
        header[name][kind] = rng.choice(("F64", "I8", "BF16", "F16", "F8_E4M3", "U64", "BOOL", "x", 3))
    elif kind == "shape":
        own = list(header[name][kind])
        odd_shape = [rng.choice((0, 1, 2**31, 2**62, -1, 1.5)) for _ in range(rng.randint(0, 5))]
        header[name][kind] = rng.choice((odd_shape, own[::-1], [*own, 1], [int(np.prod(own))]))
    elif kind == "data_offsets":
        header[name][kind] = [rng.choice((0, 4, 2**40, -1)), rng.choice((0, 8, 2**63, len(body)))]
    elif kind == "delete":
        del header[name]
    elif kind == "rename":
        header[rng.choice(("x", "", "../x", "_fitted", "__metadata__"))] = header.pop(name)
    elif kind == "values":  # not finite, huge, or of an index
        first, last = header[name]["data_offsets"]
        value = rng.choice(
            (b"\xff", b"\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\xc0\x7f", b"\xff\xff\x7f\x7f", b"\x00\x00\x80\xff")
        )
        part = rng.choice((last - first, min(8, last - first)))
        body = body[:first] + (value * part)[:part] + body[first + part :]
    elif kind == "more":
        header["another"] = copy.deepcopy(header[name])
    elif kind == "nested":
        header[name]["shape"] = "NEST"
    text = json.dumps(header).replace('"NEST"', "[" * 5000 + "]" * 5000).encode()
    length = rng.choice((2**63, 2**40, 3, 0)) if kind == "length" else len(text)
    path.write_bytes(struct.pack("<Q", length) + text + body)
    refit(root)
    return f"{path.name}: {kind} of {name}"


DTYPES = (
    "<f4",
    ">f8",
    "|O",
    "<U9",
    "<c16",
    "|b1",
    "<M8[s]",
    "|S5",
    "<f2",
    [["a", "<f4"]],
    "|V7",
    "<i8",
    "x",
    "<f4" * 99,
)
HEADERS = ("{" * 3000, "__import__('os').system('x')", "{'a': " + "[" * 200 + "}", "", "\xff" * 100, "1" + "0" * 5000)


def npy_field(root: Path, rng: random.Random) -> str:
    path = rng.choice(regular(root, ".npy"))
    array = np.load(path)
    descr = rng.choice(
        (
            "<f4",
            ">f8",
            "|O",
            "<U9",
            "<c16",
            "|b1",
            "<M8[s]",
            "|S5",
            "<f2",
            [["a", "<f4"]],
            "|V7",
            "<i8",
            "x",
            "<f4" * 99,
        )
    )
    shape: Any = rng.choice((array.shape, array.shape[::-1], (), (0,), (-1, 2), (2**40,), (2**31, 2**31), array.shape + (1,) * 3,
                             (1,) * 40, (*array.shape[::-1], 1), (True,), (10**30,), (array.size,)))  # fmt: skip
    text = repr({"descr": descr, "fortran_order": rng.choice((False, True, 2)), "shape": shape})
    if rng.random() < 0.2:
        text = rng.choice(
            ("{" * 3000, "__import__('os').system('x')", "{'a': " + "[" * 200 + "}", "", "\xff" * 100, "1" + "0" * 5000)
        )
    version = rng.choice((b"\x01\x00", b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09"))
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", (len(text) + 1) % 65_536)
    body = array.tobytes()
    if rng.random() < 0.4:  # values that are not finite
        body = (rng.choice((b"\x00\x00\x80\x7f", b"\x00\x00\xc0\x7f", b"\xff\xff\x7f\x7f")) * (len(body) // 4 + 1))[
            : len(body)
        ]
    path.write_bytes(b"\x93NUMPY" + version + size + text.encode("latin-1") + b"\n" + body)
    return f"{path.relative_to(root)}: {descr} {str(shape)[:40]}"


def png_field(root: Path, rng: random.Random) -> str:
    path = rng.choice(regular(root, ".png"))
    data, at, chunks = path.read_bytes(), 8, []
    while at + 8 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    k = rng.randrange(len(chunks))
    kind, body = chunks[k]
    if kind == b"IHDR" or rng.random() < 0.5:
        k, kind, body = 0, *chunks[0]
        fields = list(struct.unpack(">IIBBBBB", body[:13]))
        field = rng.randrange(7)
        fields[field] = rng.choice(
            (0, 1, 20_000, 65_535, 2**31 - 1, 2**32 - 1) if field < 2 else (0, 1, 2, 3, 4, 6, 7, 8, 16, 255)
        )
        body = struct.pack(">IIBBBBB", *fields)
    else:
        body = rng.choice((b"", changed(body, rng), zlib.compress(bytes(10**6))))
    chunks[k] = (kind, body)
    if rng.random() < 0.2:
        chunks.insert(1, (rng.choice((b"zTXt", b"iCCP")), b"a\0\0" + zlib.compress(bytes(10**7), 1)))
    write = b"".join(struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks)
    path.write_bytes(data[:8] + write)
    return f"{path.relative_to(root)}: {kind!r}"


def tiff_field(root: Path, rng: random.Random) -> str:
    path = rng.choice(regular(root, ".tiff", ".tif"))
    data = bytearray(path.read_bytes())
    order = "<" if data[:2] == b"II" else ">"
    (at,) = struct.unpack(order + "I", data[4:8])
    (count,) = struct.unpack(order + "H", data[at : at + 2])
    place = at + 2 + 12 * rng.randrange(count)
    offset, form = rng.choice(((0, "H"), (2, "H"), (4, "I"), (8, "I"), (8, "H")))
    struct.pack_into(order + form, data, place + offset, rng.choice((0, 1, 2, 3, 16, 255, 30_000, 65_535)))
    if rng.random() < 0.2:  # a circle of pages
        struct.pack_into(order + "I", data, at + 2 + 12 * count, rng.choice((at, 8, len(data), 2**32 - 1)))
    path.write_bytes(data)
    return f"{path.relative_to(root)}: tag"


def nifti_field(root: Path, rng: random.Random) -> str:
    path = rng.choice(regular(root, ".nii.gz"))
    data = bytearray(gzip.decompress(path.read_bytes()))
    offset, form = rng.choice(((40, "h"), (42, "h"), (44, "h"), (46, "h"), (70, "h"), (72, "h"), (76, "f"), (80, "f"), (108, "f"),
                               (112, "f"), (116, "f"), (252, "h"), (254, "h"), (280, "f"), (0, "i"), (344, "i")))  # fmt: skip
    value: Any = rng.choice((0, 1, -1, 2, 3, 4, 7, 8, 16, 64, 128, 32_767, -32_768))
    if form == "f":
        value = rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e30, 352.0, 2**30, 1e-30))
    struct.pack_into("<" + form, data, offset, value)
    packed = gzip.compress(bytes(data) + bytes(rng.choice((0, 0, 10**7))), 1)
    path.write_bytes(packed if rng.random() < 0.9 else changed(packed, rng))
    return f"{path.relative_to(root)}: field at {offset}"


def onnx_bytes(root: Path, rng: random.Random) -> str:
    path = rng.choice(regular(root, ".onnx"))
    path.write_bytes(changed(path.read_bytes(), rng))
    refit(root)
    return f"{path.relative_to(root)}: bytes"


def any_bytes(root: Path, rng: random.Random) -> str:
    path = rng.choice(regular(root))
    path.write_bytes(changed(path.read_bytes(), rng))
    if rng.random() < 0.7:
        refit(root)
    return f"{path.relative_to(root)}: bytes"


OTHERS = (
    "pipe",
    "device",
    "full",
    "circle",
    "folder",
    "sparse",
    "private",
    "private folder",
    "empty",
    "gone",
    "up",
    "name",
)
FAULTS = (
    IndexError,
    ValueError,
    KeyError,
    OSError,
    TypeError,
    RecursionError,
    struct.error,
    EOFError,
    AttributeError,
    zlib.error,
)
"""What an earlier change makes of a later one."""


def another_file(root: Path, rng: random.Random) -> str:
    """Something else in the place of a file or folder."""
    path = rng.choice([*regular(root), *(p for p in root.rglob("*") if p.is_dir())])
    kind = rng.choice(
        (
            "pipe",
            "device",
            "full",
            "circle",
            "folder",
            "sparse",
            "private",
            "private folder",
            "empty",
            "gone",
            "up",
            "name",
        )
    )
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with open(path, "wb") as file:
            file.truncate(2**40)
    elif kind == "empty":
        path.touch()
    elif kind == "name":
        (path.parent / os.fsdecode(b"\xff\x1b[31m" + bytes(200))[:90].replace("\0", "x")).write_text("{}")
    elif kind != "gone":
        ending = "".join(path.suffixes[-1:]) or ".json"
        targets = {"device": Path("/dev/zero"), "full": Path("/dev/full"), "circle": path, "up": root.parent,
                   "private": private(root) / f"n{ending}", "private folder": private(root)}  # fmt: skip
        path.symlink_to(targets[kind])
    return f"{kind} for {path.relative_to(root)}"


def refit(root: Path) -> None:
    """Checksums that fit what was changed."""
    for path in regular(root, "detector.json", "graph.json"):
        with contextlib.suppress(ValueError, KeyError, TypeError, OSError, AttributeError, RecursionError):
            words = json.loads(path.read_text())
            weights = path.parent / "weights.safetensors"
            if "weights_sha256" in words and weights.is_file():  # it may be a pipe by now
                words["weights_sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
            graph = words.get("graph", words)
            if "sha256" in graph:
                graph["sha256"] = [
                    hashlib.sha256((path.parent / name).read_bytes()).hexdigest() for name in graph["files"]
                ]
            path.write_text(json.dumps(words))


# -- what is done with them --------------------------------------------------------------------------------------------------


def score(folder: Path, given: Given) -> object:
    detector = load(folder)
    assert detector.method is not None
    detector.card()
    detector.decide()
    return detector.score(given.of(detector.method.shape), batch_size=2)


def score_by_graph(folder: Path, given: Given) -> object:
    detector = load(folder)
    detector.use_engine("auto", images=1)
    assert detector.method is not None
    return detector.score(given.of(detector.method.shape), batch_size=2)


def calibrate(folder: Path, given: Given) -> object:
    detector = load(folder)
    assert detector.method is not None
    detector.calibrate(given.of(detector.method.shape))
    return detector.no_flags(), detector.all_settings(), detector.hub_files()


def by_runtime(folder: Path, given: Given) -> object:
    scorer = load_scorer(folder, threads=1)
    return scorer.score(given.images[1, 2])


def report(folder: Path, given: Given) -> object:
    return write_comparison(folder) if (folder / "compare.json").exists() else write_report(folder)


def evaluate(folder: Path, given: Given) -> object:
    return normalcy.results.evaluate.evaluate(folder, resamples=5)


def read(folder: Path, given: Given) -> object:
    return read_results(folder)


KINDS: dict[str, tuple[tuple[Change, ...], tuple[Op, ...]]] = {
    "models": ((*[json_value] * 6, *[safetensors_field] * 4, any_bytes, another_file, log_line),
               (score, score, score, calibrate, score_by_graph)),
    "exported": ((*[json_value] * 4, onnx_bytes, any_bytes, another_file), (by_runtime, by_runtime, score)),
    "results": ((*[json_value] * 6, *[cell] * 4, *[npy_field] * 2, *[png_field] * 2, tiff_field, nifti_field, log_line, any_bytes,
                 *[another_file] * 2), (report, evaluate, read, read)),
}  # fmt: skip
"""Folder of templates -> changes, what is done."""


# -- one case ----------------------------------------------------------------------------------------------------------------


def prepare(kind: str, number: int, seed: int, templates: Path, place: Path) -> tuple[Path, str, Op]:
    rng = random.Random(f"{seed} {kind} {number}")
    template = rng.choice(sorted((templates / kind).iterdir()))
    root = place / "case"
    shutil.copytree(template, root, symlinks=True)
    changes, ops = KINDS[kind]
    said = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        for _ in range(5):  # another change where there is no such file
            try:
                said.append(rng.choice(changes)(root, rng))
                break
            except (
                IndexError,
                ValueError,
                KeyError,
                OSError,
                TypeError,
                RecursionError,
                struct.error,
                EOFError,
                AttributeError,
                zlib.error,
            ):
                continue
    return root, f"{template.name}: {'; '.join(said)}", rng.choice(ops)


class Guard:
    """Watches, by audit events, what a case does."""

    def __init__(self) -> None:
        self.place: Path | None = None
        self.seen: list[str] = []
        self.links = False
        """Whether links may be followed: the parts of a model may lie elsewhere, as in the cache of the hub."""
        sys.addaudithook(self.hook)

    def hook(self, event: str, what: tuple[Any, ...]) -> None:
        if self.place is None:
            return
        if event.startswith(WATCHED):
            self.seen.append(f"{event} {str(what)[:200]}")
        elif event == "open" and isinstance(what[0], str | bytes):
            path = os.path.realpath(os.fsdecode(what[0]))
            writes = isinstance(what[2], int) and what[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and not self.allowed(path):
                self.seen.append(f"writes {path}")
            elif path.startswith(str(self.place / "private")) and not self.links:
                self.seen.append(f"reads {path}")
        elif event in WRITING and isinstance(what[0], str | bytes | os.PathLike):
            base = os.readlink(f"/proc/self/fd/{what[-1]}") if isinstance(what[-1], int) and what[-1] >= 0 else "."
            path = os.path.join(base, os.fsdecode(what[0])).rstrip("/")
            path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
            if not self.allowed(path):
                self.seen.append(f"{event} {path}")

    def allowed(self, path: str) -> bool:
        place, temporary = str(self.place), tempfile.gettempdir()
        key = SECRET.expanduser()  # by which graphs of this user are recognised
        ours = path.startswith(f"{temporary}/normalcy-") or path in ("/dev/null", temporary, str(key), str(key.parent))
        return path.startswith(f"{place}/case") or ours


def snapshot(place: Path) -> list[tuple[str, int, int]]:
    """The private files, and what lies beside the folder of the case."""
    found = [place, *(p for p in place.rglob("*") if not p.is_relative_to(place / "case"))]
    return sorted(
        (str(p), p.lstat().st_size if p.is_file() else 0, p.lstat().st_mtime_ns if p.is_file() else 0) for p in found
    )


def peak() -> int:
    """Bytes of memory at most since :func:`forget`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def forget() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def case(kind: str, number: int, seed: int, templates: Path, place: Path, guard: Guard, given: Given) -> dict[str, Any]:
    """What became of it: ``word``, and of a wrong one what and why."""
    shutil.rmtree(place / "case", ignore_errors=True)
    root, how, op = prepare(kind, number, seed, templates, place)
    before = snapshot(place)
    forget()
    start, cpu = peak(), time.process_time()
    word, said = "worked", ""
    guard.place, guard.seen, guard.links = place, [], kind != "results"
    try:
        op(root, given)
    except NormalcyError as error:
        word, said = "refused", str(error)
        if len(said) > LONGEST_MESSAGE or "\n" in printable(said):
            word = "long message"
    except BaseException as error:
        word, said = (
            "traceback",
            f"{type(error).__name__}: {error} " + "".join(traceback.format_tb(error.__traceback__)[-2:]),
        )
    finally:
        guard.place = None
    cpu, memory = time.process_time() - cpu, peak() - start
    if cpu > SECONDS:
        word = "slow"
    elif guard.seen:
        word, said = "reached out", "; ".join(guard.seen[:3])
    elif snapshot(place) != before:
        word = "changed"
    elif TOKEN in said or any(TOKEN.encode() in path.read_bytes() for path in regular(root, ".html")):
        word = "leaked"
    found = {"number": number, "word": word, "cpu": round(cpu, 3), "memory": memory}
    if word not in ("worked", "refused"):
        found |= {"what": how, "op": op.__name__, "said": said[:700]}
    return found


def work(kind: str, numbers: list[int], seed: int, templates: Path, place: Path, pipe: int) -> None:
    """In a process of its own: a line before and after each case."""
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    torch.set_num_threads(1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    if os.environ.get("NORMALCY_SHOW") is None:
        os.dup2(quiet, 2)
    guard, given = Guard(), Given()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(place)
    for number in numbers:
        os.write(pipe, f"{json.dumps({'start': number})}\n".encode())
        os.write(pipe, f"{json.dumps(case(kind, number, seed, templates, place, guard, given))}\n".encode())


def watch(kind: str, numbers: list[int], seed: int, templates: Path, place: Path) -> list[dict[str, Any]]:
    """Runs cases in a process until all are done or one crashes, waits or is slow; that one is the last."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            work(kind, numbers, seed, templates, place, writing)
        except BaseException:
            traceback.print_exc()
            os._exit(70)
        os._exit(0)
    os.close(writing)
    found: list[dict[str, Any]] = []
    current, text = None, b""
    moved, ticks, begun = time.monotonic(), 0, 0
    verdict = "crashed"
    while True:
        if select.select([reading], [], [], 0.2)[0]:
            part = os.read(reading, 2**16)
            if not part:
                break
            text += part
            *lines, text = text.split(b"\n")
            for line in map(json.loads, lines):
                if "start" in line:
                    current, begun, moved = line["start"], ticks_of(child)[0], time.monotonic()
                else:
                    found.append(line)
                    current = None
            continue
        now, ready = ticks_of(child)
        moved = time.monotonic() if ready or now != ticks else moved
        ticks = now
        if now - begun > 3 * SECONDS * os.sysconf("SC_CLK_TCK") or time.monotonic() - moved > IDLE:
            verdict = "slow" if time.monotonic() - moved <= IDLE else "waits"
            os.kill(child, signal.SIGKILL)
            break
    os.close(reading)
    _, status = os.waitpid(child, 0)
    if current is not None or status != 0:
        number = numbers[len(found)] if current is None else current
        shutil.rmtree(place / "case", ignore_errors=True)
        _, how, op = prepare(kind, number, seed, templates, place)
        found.append(
            {
                "number": number,
                "word": verdict,
                "cpu": 0,
                "memory": 0,
                "what": how,
                "op": op.__name__,
                "said": str(status),
            }
        )
    return found


# -- the campaign ------------------------------------------------------------------------------------------------------------


def folders(place: Path) -> None:
    """The place of cases, with private files of every kind beside them."""
    hidden = place / "private"
    hidden.mkdir(parents=True)
    (hidden / "n.json").write_text(json.dumps({"format": 1, "secret": TOKEN}))
    (hidden / "n.csv").write_text(f"path,score\n{TOKEN},1\n")
    (hidden / "n.jsonl").write_text(json.dumps({"stage": TOKEN, "step": 1, "loss": 1.0}) + "\n")
    np.save(hidden / "n.npy", np.zeros((16, 16), np.float32))
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(hidden / "n.png")


def totals(record: dict[str, Any], kind: str, found: list[dict[str, Any]]) -> None:
    part = record["folders"].setdefault(
        kind, {"cases": 0, "outcomes": {}, "longest_cpu_seconds": 0.0, "largest_memory_mib": 0, "failures": []}
    )
    part["cases"] += len(found)
    part["outcomes"] = dict(sorted((Counter(part["outcomes"]) + Counter(one["word"] for one in found)).items()))
    part["longest_cpu_seconds"] = round(max([part["longest_cpu_seconds"], *(one["cpu"] for one in found)]), 2)
    part["largest_memory_mib"] = max([part["largest_memory_mib"], *(round(one["memory"] / 2**20) for one in found)])
    part["failures"] += [one for one in found if one["word"] not in ("worked", "refused")]


def campaign(counts: dict[str, int], seed: int, out: Path | None, seconds: float, few: bool = False) -> dict[str, Any]:
    record: dict[str, Any] = {
        "seed": seed,
        "counts": counts,
        "bounds": {"cpu_seconds": SECONDS, "idle_seconds": IDLE, "memory_bytes": MEMORY},
        "seconds": 0.0,
        "folders": {},
    }
    if out is not None and out.exists():
        before = json.loads(out.read_text())
        record = (
            before
            if {name: before.get(name) for name in ("seed", "counts")} == {"seed": seed, "counts": counts}
            else record
        )
    started, spent = time.monotonic(), record["seconds"]
    with tempfile.TemporaryDirectory(prefix="campaign-") as name:
        base = Path(name)
        make_apart(base / "templates", few)
        folders(base / "place")
        while time.monotonic() - started < seconds:
            done = {kind: record["folders"].get(kind, {}).get("cases", 0) for kind in counts}
            kind = min(counts, key=lambda kind: done[kind] / counts[kind])
            if done[kind] >= counts[kind]:
                break
            numbers = list(range(done[kind], min(done[kind] + PROCESS, counts[kind])))
            totals(record, kind, watch(kind, numbers, seed, base / "templates", base / "place"))
            record["seconds"] = round(spent + time.monotonic() - started, 1)
            if out is not None:
                write_record(out, record)
    return record


def make_apart(folder: Path, few: bool = False) -> None:
    """In another process: what training leaves in memory is not for the cases."""
    folder.mkdir()
    if (child := os.fork()) == 0:
        code = 1
        try:
            warnings.simplefilter("ignore")
            make_templates(folder, few)
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit("the templates could not be made")


def repeat(kind: str, number: int, seed: int) -> None:
    with tempfile.TemporaryDirectory(prefix="campaign-") as name:
        base = Path(name)
        make_apart(base / "templates")
        folders(base / "place")
        print(json.dumps(watch(kind, [number], seed, base / "templates", base / "place"), indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, help="model folders and results folders each; a tenth as many exported ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="repeat this case alone, for example models:17")
    parser.add_argument("--few", action="store_true", help="folders of two methods alone, which are soon made")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no process after these")
    parser.add_argument(
        "--out", type=Path, help="file for the result; with the same arguments the campaign goes on from it"
    )
    given = parser.parse_args()
    if given.only is not None:
        kind, _, number = given.only.partition(":")
        repeat(kind, int(number), given.seed)
        return
    counts = {"models": given.count, "results": given.count, "exported": max(1, given.count // 10)}
    record = campaign(counts, given.seed, given.out, given.seconds, given.few)
    print(json.dumps(record, indent=1))
    sys.exit(any(part["failures"] for part in record["folders"].values()))


if __name__ == "__main__":
    main()
