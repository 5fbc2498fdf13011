"""Commands on mutated models, results, data, tables and settings: each ends soon, in bounded memory, with one message at most.

    python tests/campaigns/hostile.py 2000 --seed 0 --out tests/campaigns/results/hostile.json

A small model, its results, images and a table are made once. Each case copies them, changes one or two things that their
structure offers (a value or a key of a JSON file, a cell, the header of a weights file, bytes anywhere; a pipe, device, link,
folder or sparse file in the place of a file; bombs and deep folders among the images) and runs one command in a process of its
own, with bounds on memory and time. What fails is written with its number, so that ``--only NUMBER`` repeats it.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import imagecodecs  # noqa: F401 (these are loaded once, before processes are made)
import nibabel
import numpy as np
import optuna  # noqa: F401
import skimage.measure  # noqa: F401
import tifffile
import torch  # noqa: F401
from PIL import Image

import normalcy.cli.app
import normalcy.data.check
import normalcy.detector
import normalcy.methods.autoencoder
import normalcy.methods.pca
import normalcy.methods.zscore
import normalcy.report
import normalcy.results.evaluate
import normalcy.results.predict
from normalcy.provenance import write_record

SECONDS = 5.0
"""Processor time that a command may take."""
IDLE = 20.0
"""Seconds in which all threads sleep, after which a command is stopped: it waits for something."""
MEMORY = 3 * 2**30
"""Bytes of address space beyond those of the process before the command."""
TOKEN = "content-of-a-private-file"

VALUES: tuple[Any, ...] = (
    None, True, False, "", "x", "x" * 10_000, -1, 0, 1, 2, 7, 255, 65_536, 3_000_000, 2**31, 2**62, -(2**62), 1e-300, 1e308, 0.5,
    [], {}, [[]], [1], [1, 2, 3], {"a": 1}, "../../secret.txt", "/dev/zero", "/proc/self/environ", "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0", "\x1b[31m\u202e", "nan", "a\nb", [0] * 5000, "mnist:3", "resnet18", "hub:a/b",
)  # fmt: skip
RAW = ("1e999", "-1e999", "NaN", "Infinity", "1" + "0" * 400, "1" + "0" * 10_000, "[" * 50_000, '"\\ud800"', "01", "")
"""Text in the place of a JSON value."""


# -- what is mutated ---------------------------------------------------------------------------------------------------------


def make_templates(folder: Path) -> None:
    """A model, data with masks, a table, results of both, and settings."""
    rng = np.random.default_rng(0)

    def image(defect: bool) -> Image.Image:
        values = 100 + 20 * rng.random((16, 16))
        if defect:
            values[4:9, 4:9] = 240
        return Image.fromarray(values.astype(np.uint8))

    data = folder / "data"
    for place, count in (("train/good", 42), ("test/good", 4), ("test/spot", 4)):
        (data / place).mkdir(parents=True)
        for i in range(count):
            image("spot" in place).save(data / place / f"{i:02d}.png")
    (data / "ground_truth/spot").mkdir(parents=True)
    mask = np.zeros((16, 16), np.uint8)
    mask[4:9, 4:9] = 255
    for i in range(4):
        Image.fromarray(mask).save(data / "ground_truth/spot" / f"{i:02d}_mask.png")
    rows = [f"data/test/good/{i:02d}.png,0,,{i},good" for i in range(4)]
    rows += [f"data/test/spot/{i:02d}.png,1,data/ground_truth/spot/{i:02d}_mask.png,{i + 4},spot" for i in range(4)]
    (folder / "table.csv").write_text("path,label,mask,case,type\n" + "\n".join(rows) + "\n")
    (folder / "settings.toml").write_text('false_alarms = 0.1\nseed = 3\npreprocess = "none"\nsize = 16\n')
    detector = normalcy.detector.Detector("autoencoder", latent=4, steps=2, size=16)
    opened = normalcy.data.open.open_data(data)
    detector.fit(opened).save(folder / "model")
    test = opened.select(split="test")
    normalcy.results.predict.score_into(detector, test, folder / "results", spec=str(data), split="test")
    normalcy.results.evaluate.evaluate(folder / "results")


Mutation = Callable[[Path, random.Random], str]


def mutated(way: Mutation, root: Path, rng: random.Random) -> str:
    """What was changed; nothing where an earlier change left no structure to change."""
    try:
        return way(root, rng)
    except (ValueError, OSError, KeyError, IndexError, TypeError, struct.error) as error:
        return f"nothing more ({type(error).__name__})"


def json_file(root: Path, rng: random.Random, names: tuple[str, ...]) -> str:
    path = root / rng.choice([name for name in names if (root / name).exists()])
    tree = json.loads(path.read_text())
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(min(len(node), 4)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(tree)
    node, key = rng.choice(places)
    kind = rng.choice(("value", "value", "value", "raw", "delete", "double", "rename"))
    if kind == "value":
        node[key] = rng.choice(VALUES)
    elif kind == "raw":
        node[key] = "THE-PLACE"
    elif kind == "delete":
        del node[key]
    elif kind == "double" and isinstance(node, list):
        node.append(node[key])
    elif isinstance(node, dict):
        node[str(rng.choice(VALUES))[:50]] = node.pop(key)
    text = json.dumps(tree)
    path.write_text(text.replace('"THE-PLACE"', rng.choice(RAW)) if kind == "raw" else text)
    return f"{path.name}: {kind} {key}"


def model_json(root: Path, rng: random.Random) -> str:
    return json_file(root, rng, ("model/detector.json", "model/detector.json", "model/calibration.json"))


def results_json(root: Path, rng: random.Random) -> str:
    return json_file(root, rng, ("results/run.json", "results/metrics.json"))


def weights_header(root: Path, rng: random.Random) -> str:
    """The header of the weights file, with a checksum that fits."""
    path = root / "model/weights.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    name = rng.choice([name for name in header if name != "__metadata__"])
    kind = rng.choice(("dtype", "shape", "data_offsets", "delete", "rename", "length"))
    if kind == "dtype":
        header[name][kind] = rng.choice(("F64", "I8", "BF16", "F8_E4M3", "U64", "x"))
    elif kind == "shape":
        header[name][kind] = [rng.choice((0, 1, 2**31, 2**62, -1)) for _ in range(rng.randint(0, 4))]
    elif kind == "data_offsets":
        header[name][kind] = [rng.choice((0, 4, 2**40)), rng.choice((0, 8, 2**63))]
    elif kind == "delete":
        del header[name]
    elif kind == "rename":
        header[rng.choice(("x", "", "../x", "_fitted"))] = header.pop(name)
    text = json.dumps(header).encode()
    length = rng.choice((2**63, 2**40, 3)) if kind == "length" else len(text)
    path.write_bytes(struct.pack("<Q", length) + text + data[8 + struct.unpack("<Q", data[:8])[0] :])
    fit_checksum(root)
    return f"weights: {kind}"


def fit_checksum(root: Path) -> None:
    path = root / "model/detector.json"
    if path not in files_of(root, "model") or root / "model/weights.safetensors" not in files_of(root, "model"):
        return
    words = json.loads(path.read_text())
    words["weights_sha256"] = hashlib.sha256((root / "model/weights.safetensors").read_bytes()).hexdigest()
    path.write_text(json.dumps(words))


def changed(data: bytes, rng: random.Random) -> bytes:
    out, kind = bytearray(data or b"\0"), rng.randrange(5)
    start, length = rng.randrange(len(out)), rng.randint(1, 64)
    if kind == 0:
        for _ in range(rng.randint(1, 16)):
            out[rng.randrange(len(out))] = rng.randrange(256)
    elif kind == 1:
        out[start : start + length] = rng.randbytes(length)
    elif kind == 2:
        del out[start:]
    elif kind == 3:
        del out[start : start + length]
    else:
        out[start:start] = out[start : start + length] * rng.choice((1, 100))
    return bytes(out)


def files_of(root: Path, *folders: str) -> list[Path]:
    """Regular files that are still of a size to be read."""
    found = (path for folder in folders for path in (root / folder).rglob("*"))
    return sorted(p for p in found if p.is_file() and not p.is_symlink() and p.stat().st_size < 2**24)


def bytes_of(*folders: str) -> Mutation:
    def mutate(root: Path, rng: random.Random) -> str:
        path = rng.choice(files_of(root, *folders))
        path.write_bytes(changed(path.read_bytes(), rng))
        if path.name == "weights.safetensors" and rng.random() < 0.7:
            fit_checksum(root)
        return f"bytes of {path.name}"

    return mutate


def special(*folders: str) -> Mutation:
    """Something that is not the file it should be."""

    def mutate(root: Path, rng: random.Random) -> str:
        path = rng.choice(files_of(root, *folders))
        kind = rng.choice(("pipe", "zero", "full", "self", "folder", "sparse", "secret", "empty", "gone"))
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
        elif kind != "gone":
            targets = {
                "zero": Path("/dev/zero"),
                "full": Path("/dev/full"),
                "self": path,
                "secret": root.parent / "secret.txt",
            }
            path.symlink_to(targets[kind])
        return f"{kind} for {path.name}"

    return mutate


def table_cell(root: Path, rng: random.Random) -> str:
    path = root / "table.csv"
    rows = [row.split(",") for row in path.read_text().splitlines()]
    row = rng.randrange(len(rows))
    column = rng.randrange(len(rows[row]))
    secret = root.parent / "secret.txt"
    rows[row][column] = rng.choice(
        ("../secret.txt", str(secret), "../../x.png", "", "2", '"', "a\0b", "x" * 200_000, "data/../data/test/good/00.png",
         "\u202e",         "=1+1", "data", "nan", "1e999", "data/train/good/01.png[z=999999999]", "train", "../" * 3000)
    )  # fmt: skip
    path.write_text("\n".join(",".join(row) for row in rows))
    return f"cell {row},{column}"


def scores_cell(root: Path, rng: random.Random) -> str:
    path = root / "results/scores.csv"
    rows = [row.split(",") for row in path.read_text().splitlines()]
    row = rng.randrange(len(rows))
    column = rng.randrange(len(rows[row]))
    rows[row][column] = rng.choice(
        (
            "",
            "nan",
            "inf",
            "1e308",
            "-1e999",
            "x",
            "../../secret.txt",
            "<script>",
            "x" * 200_000,
            '"',
            "2",
            "-1",
            "\u202e",
        )
    )
    path.write_text("\n".join(",".join(row) for row in rows))
    return f"scores {row},{column}"


def toml(root: Path, rng: random.Random) -> str:
    text = rng.choice(
        (
            *(
                "a = " + "[" * 100_000,
                "seed = 1" + "0" * 10_000,
                "seed = -1",
                "size = 99999999",
                "size = 0",
                "tile = 1000000",
            ),
            *(
                "false_alarms = nan",
                "false_alarms = 1e999",
                "calibration = 2",
                "a" * 2_000_000,
                ".".join(["a"] * 5000) + " = 1",
            ),
            *("preprocess = 'resize:1000000'", "preprocess = 'pad:1000000'", "augment = 'crop:99999'"),
            *("tile = 8\ntile_overlap = 0.9999999", "[seed]\nx = 1", "seed = '../x'", "steps = 1e308", "epochs = inf"),
            *("batch_size = 99999999999", "\0", "seed = {a = {b = 1}}", "preprocess = '" + "grey," * 20_000 + "'"),
        )
    )
    path = root / "settings.toml"
    path.write_text(text if rng.random() < 0.8 else changed(path.read_bytes(), rng).decode("latin-1"))
    return f"settings {text[:30]!r}"


def bomb(root: Path, rng: random.Random) -> str:
    """A file that asks for much, or a folder without end, among the images."""
    folder = root / "data" / rng.choice(("train/good", "test/good", "test/spot"))
    kind = rng.choice(
        (
            "png",
            "png16",
            "tiff",
            "pages",
            "nii.gz",
            "npy",
            "deep",
            "circle",
            "pipe",
            "device",
            "gif",
            "webp",
            "jp2",
            "text",
        )
    )
    path = folder / f"00.{kind.rstrip('16') if kind.startswith('png') else kind}"

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    if kind in ("png", "png16"):
        side = rng.choice((20_000, 60_000, 2**31 - 1))
        header = struct.pack(">IIBBBBB", side, side, 16 if kind == "png16" else 8, 2, 0, 0, 0)
        pixels = zlib.compress(bytes(10**6), 9)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    elif kind in ("tiff", "pages"):
        with tifffile.TiffWriter(folder / "00.tiff") as file:
            for _ in range(3000 if kind == "pages" else 1):
                file.write(np.zeros((16, 16), np.uint8), contiguous=False, metadata=None)
        if kind == "tiff":
            data = bytearray((folder / "00.tiff").read_bytes())
            with tifffile.TiffFile(io.BytesIO(bytes(data))) as read:
                for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
                    tag = read.pages[0].tags[name]
                    struct.pack_into(
                        "<" + {3: "H", 4: "I"}[int(tag.dtype)], data, tag.valueoffset, rng.choice((30_000, 65_535))
                    )
            (folder / "00.tiff").write_bytes(data)
    elif kind == "nii.gz":
        header = nibabel.Nifti1Header()
        header.set_data_shape((1000, 1000, rng.choice((100, 1000))))
        header.set_data_dtype(np.float64)
        header["vox_offset"], header["magic"] = rng.choice((352, 2**30)), b"n+1"
        path.write_bytes(gzip.compress(header.binaryblock + bytes(2 * 10**7), 1))
    elif kind == "npy":
        text = repr(
            {"descr": rng.choice(("<f8", "|O", "<U99")), "fortran_order": False, "shape": (rng.choice((3, 10**9)),) * 3}
        )
        path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n" + bytes(100))
    elif kind == "deep":
        for _ in range(300):
            folder = folder / "d"
            folder.mkdir()
    elif kind == "circle":
        (folder / "again").symlink_to(root / "data")
    elif kind == "pipe":
        os.mkfifo(folder / "pipe.png")
    elif kind == "device":
        (folder / "zero.png").symlink_to("/dev/zero")
    elif kind == "text":
        clean = (folder / "00.png").read_bytes()
        note = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8), 1))
        (folder / "00.png").write_bytes(clean[:33] + note + clean[33:])
    else:
        buffer = io.BytesIO()
        Image.fromarray(np.zeros((16, 16), np.uint8)).convert("RGB").save(
            buffer, {"jp2": "JPEG2000"}.get(kind, kind.upper())
        )
        path.write_bytes(changed(buffer.getvalue(), rng))
    return f"bomb {kind}"


def arrays(root: Path, rng: random.Random) -> str:
    """The data as .npz, with a member that decompresses to much, or headers that lie."""
    with zipfile.ZipFile(root / "data.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        text = repr(
            {"descr": "|u1", "fortran_order": False, "shape": (rng.choice((50, 10**6)), 16, rng.choice((16, 10**4)))}
        )
        head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n"
        archive.writestr("images.npy", head + bytes(rng.choice((50 * 256, 10**8))))
    data = (root / "data.npz").read_bytes()
    if rng.random() < 0.5:
        (root / "data.npz").write_bytes(changed(data[:10_000], rng) + data[10_000:])
    return "npz"


TARGETS: dict[str, tuple[tuple[Mutation, ...], tuple[tuple[str, ...], ...]]] = {
    "model": (
        (model_json, model_json, weights_header, bytes_of("model"), special("model")),
        (("info", "model"), ("info", "model"), ("score", "model", "data", "--out", "out")),
    ),
    "results": (
        (results_json, results_json, scores_cell, bytes_of("results"), special("results")),
        (("evaluate", "results"), ("report", "results")),
    ),
    "data": (
        (bomb, bomb, bytes_of("data"), special("data")),
        (
            ("check", "data"),
            ("score", "model", "data", "--out", "out"),
            ("fit", "data", "--method", "zscore", "--out", "out"),
        ),
    ),
    "table": ((table_cell,), (("check", "table.csv"), ("score", "model", "table.csv", "--out", "out"))),
    "arrays": ((arrays,), (("check", "data.npz"), ("score", "model", "data.npz", "--out", "out"))),
    "settings": ((toml,), (("fit", "data", "--method", "zscore", "--config", "settings.toml", "--out", "out"),)),
}
"""What is mutated -> ways, and commands that read it."""
MAY_CHANGE = re.compile(r"out(\.run)?(/|$)|results/(metrics\.json|report\.html)$|results$|model/\.graphs")


# -- one case ------------------------------------------------------------------------------------------------------------------


def prepare(number: int, seed: int, templates: Path, root: Path) -> tuple[str, str, tuple[str, ...]]:
    """The folder of a case: what is mutated, how, and the command."""
    rng = random.Random(f"{seed} {number}")
    shutil.copytree(templates, root)
    target = rng.choice(list(TARGETS))
    ways, commands = TARGETS[target]
    how = "; ".join(
        mutated(rng.choice(ways), root, rng)
        for _ in range(rng.choice((1, 1, 2)) if target in ("model", "results") else 1)
    )
    return target, how, rng.choice(commands)


def state(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Everything below a folder but what a command may change."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            relative = path.relative_to(folder).as_posix()
            if not MAY_CHANGE.match(relative.partition("/")[2]):
                status = path.lstat()
                size = 0 if path.is_dir() and not path.is_symlink() else status.st_size
                found[relative] = (status.st_mode, size, 0 if path.is_dir() else status.st_mtime_ns)
    return found


def run(command: tuple[str, ...], root: Path, said: Path) -> tuple[int, float, float, int]:
    """In a process of its own: status (-1: it waits), seconds of the processor, seconds, and bytes of memory at most."""
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            code = 70
            os.setpgid(0, 0)
            output = os.open(said, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(root)
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            sys.argv = ["normalcy", *command]
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            try:
                normalcy.cli.app.main()
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            except BaseException:
                import traceback

                traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    moved, spent = started, 0
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            break
        now, (ticks, ready) = time.monotonic(), ticks_of(child)
        moved, spent = (now, ticks) if ready or ticks != spent else (moved, spent)
        if now - moved > IDLE or ticks > 4 * SECONDS * os.sysconf("SC_CLK_TCK"):
            os.kill(child, signal.SIGKILL)
            usage = os.wait4(child, 0)[2]
            return (-1 if now - moved > IDLE else 0), usage.ru_utime + usage.ru_stime, now - started, 0
        time.sleep(0.01)
    cpu = usage.ru_utime + usage.ru_stime
    return status, cpu, time.monotonic() - started, usage.ru_maxrss * 1024


def ticks_of(process: int) -> tuple[int, bool]:
    """Processor time so far, in ticks of the clock; and whether a thread could run if it had a processor."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    ready = fields[0] in "RD"
    for thread in Path(f"/proc/{process}/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # one that ends just now
            ready = ready or thread.read_text().rpartition(")")[2].split()[0] in "RD"
    return int(fields[11]) + int(fields[12]), ready


def judge(status: int, cpu: float, text: str, before: Any, after: Any, root: Path) -> str:
    """One word: worked and refused are right."""
    if status == -1:
        return "waits"
    if os.WIFSIGNALED(status):
        return "crashed"
    if cpu > SECONDS:
        return "slow"
    if "Traceback (most recent call last)" in text or os.WEXITSTATUS(status) not in (0, 1, 2):
        return "traceback"
    if before != after:
        return "changed"
    here = (
        *root.iterdir(),
        *root.parent.iterdir(),
        *((root / "results").iterdir() if (root / "results").is_dir() else ()),
    )
    if any(path.name.startswith(".") for path in here):
        return "left over"
    written = [
        p for folder in ("out", "results") for p in (root / folder).rglob("*") if p.is_file() and not p.is_symlink()
    ]
    if any(p.stat().st_size < 2**26 and TOKEN.encode() in p.read_bytes() for p in written) or TOKEN in text:
        return "leaked"
    return "worked" if os.WEXITSTATUS(status) == 0 else "refused"


def campaign(count: int, seed: int, only: int | None, seconds: float) -> dict[str, Any]:
    outcomes: dict[str, Counter[str]] = {target: Counter() for target in TARGETS}
    failures = []
    longest, largest = 0.0, 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="normalcy-") as place:
        base = Path(place)
        if os.fork() == 0:  # what training leaves in memory is not for the cases
            try:
                (base / "templates").mkdir()
                make_templates(base / "templates")
                os._exit(0)
            finally:
                os._exit(1)
        if os.wait()[1] != 0:
            raise SystemExit("the templates could not be made")
        done = 0
        for number in range(count) if only is None else [only]:
            if time.monotonic() - started > seconds:
                break
            case = base / "case"
            (case / "inside").mkdir(parents=True)
            (case / "inside" / "secret.txt").write_text(TOKEN)
            root = case / "inside" / "here"
            target, how, command = prepare(number, seed, base / "templates", root)
            before = state(case / "inside")
            status, cpu, _, memory = run(command, root, base / "said")
            text = (base / "said").read_text(errors="replace")
            word = judge(status, cpu, text, before, state(case / "inside"), root)
            outcomes[target][word] += 1
            longest, largest, done = max(longest, cpu), max(largest, memory), done + 1
            if word not in ("worked", "refused") or only is not None:
                last = text.strip().splitlines()[-1:] or [""]
                failures.append(
                    {"number": number, "what": how, "command": " ".join(command), "word": word, "said": last[0][:300]}
                )
                print(failures[-1], file=sys.stderr)
                if only is not None:
                    print(text, file=sys.stderr)
            shutil.rmtree(case)
    return {
        "cases": done,
        "seed": seed,
        "bounds": {"cpu_seconds": SECONDS, "idle_seconds": IDLE, "memory_bytes": MEMORY},
        "outcomes": {target: dict(sorted(words.items())) for target, words in outcomes.items()},
        "longest_cpu_seconds": round(longest, 2),
        "largest_memory_mib": round(largest / 2**20),
        "seconds": round(time.monotonic() - started, 1),
        "failures": failures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, help="number of cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="repeat this case alone, and print what it said")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no case after these")
    parser.add_argument("--out", type=Path, help="file for the result")
    given = parser.parse_args()
    result = campaign(given.count, given.seed, given.only, given.seconds)
    if given.out is not None:
        write_record(given.out, result)
    print(json.dumps(result, indent=1))
    sys.exit(bool(result["failures"]))


if __name__ == "__main__":
    main()
