"""Kills, full disks, second processes, wrong clocks and changing folders: at chosen system calls of every command that writes.

    python tests/campaigns/interruptions.py --out tests/campaigns/results/interruptions.json

Each command runs once undisturbed while its system calls on files are listed (``traced.py``). Then it runs again for each
point: on a fresh copy of its inputs, disturbed exactly at that call; then what is on the disk is judged, the command is repeated
and must give the files of the undisturbed run, byte for byte. The clock stands still, so that times written are equal.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import hashlib
import importlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import highdicom
import numpy as np
import pydicom
import tifffile
import traced
from PIL import Image
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

import normalcy.cli.app
import normalcy.data.check
import normalcy.detector
import normalcy.engines.cached
import normalcy.export.command
import normalcy.export.write
import normalcy.methods.autoencoder
import normalcy.methods.pca
import normalcy.methods.zscore
import normalcy.provenance
import normalcy.report
import normalcy.results.dicom
import normalcy.results.evaluate
import normalcy.results.folder
import normalcy.results.predict
import normalcy.results.run
import normalcy.results.shards
import normalcy.results.slides
import normalcy.studies.audit
import normalcy.studies.compare
import normalcy.studies.reproduce
import normalcy.studies.select
from normalcy.data.open import open_data
from normalcy.errors import WriteError
from normalcy.provenance import commit, write_record

Tree = dict[str, str]
"""Path below a folder -> checksum of the file, or what else it is."""

TABLE = """
paper = "Nobody 2026"
number = 1
shows = "Bars"
protocol = "One direction is normal in turn."
seeds = 1
settings = { calibration = 0 }
[columns.Bars]
data = "bars.npz"
classes = ["0", "1"]
where = "Drawn here."
[[rows]]
name = "A"
method = "autoencoder"
settings = { latent = 4, steps = 4, checkpoint_steps = 2 }
[[rows]]
name = "Z"
method = "zscore"
"""


@dataclass(frozen=True)
class Command:
    """A command that writes, what it needs, and what it may change."""

    name: str
    words: tuple[str, ...] | Callable[[], object]
    inputs: Mapping[str, str]
    """Name in the working directory -> template."""
    target: str
    """What it writes, whole or not at all."""
    again: tuple[str, ...] = ()
    """Words added when it is repeated."""
    progress: str = r"(?!)"
    """Pattern of what an unfinished run may leave, in order to be continued."""
    mark: str | None = None
    """The file that is written last where a folder is filled in place: without it, the folder counts as unfinished."""
    varies: str = r"(?!)"
    """Pattern of files whose bytes differ from run to run."""
    points: int = 11
    """How many of its renamings, syncs and appends are disturbed; fewer where it takes long."""

    def work(self, *more: str, clock: Clock | None = None) -> Callable[[], object]:
        def work() -> object:
            (clock or Clock()).install()
            if callable(self.words):
                return self.words()
            sys.argv = ["normalcy", *self.words, *more]
            return normalcy.cli.app.main()

        return work

    @property
    def overwrites(self) -> bool:
        return not callable(self.words) and "--overwrite" in self.words


class Clock:
    """Time that stands still, or makes a step at each look; what is drawn at random for DICOM is counted instead."""

    def __init__(self, start: float = 1.8e9, step: float = 0.0) -> None:
        self.now, self.step = start, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now

    def install(self) -> None:
        clock = self

        class Watch(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:
                return datetime.fromtimestamp(0, tz) + timedelta(seconds=clock())

        time.time = clock
        if self.step == 0:
            time.monotonic = time.perf_counter = lambda: 1000.0
        for module in (normalcy.detector, normalcy.results.run, normalcy.export.command, normalcy.provenance):
            module.datetime = Watch  # type: ignore[attr-defined]
        normalcy.results.run.commit = normalcy.provenance.commit = lambda: "0" * 40
        count = itertools.count(1)
        highdicom.UID = lambda: pydicom.uid.UID(f"1.2.3.{next(count)}")


FIT = ("fit", "data", "--method", "autoencoder", "--set", "latent=4", "--set", "log_steps=2", "--set", "checkpoint_steps=3",
       "--steps", "8", "--out", "out")  # fmt: skip
SCORE = ("score", "model", "data", "--out", "out")


def recalibrate() -> None:
    """What Python users do in the place of a command."""
    detector = normalcy.detector.Detector.load("model")
    detector.calibrate(open_data(Path("data")).select(split="test", label=0))
    try:
        detector.save("model", overwrite=True)
    except WriteError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)


RUN = r"out\.run(/.*)?$"
DATA = {"data": "data"}
SCORED = {"model": "model", **DATA}
COMMANDS = (
    Command("fit", FIT, DATA, "out", ("--resume",), RUN),
    Command("fit --overwrite", (*FIT, "--overwrite"), {**DATA, "out": "old-model"}, "out", (), RUN),
    Command("fit --resume", (*FIT, "--resume"), {**DATA, "out.run": "unfinished"}, "out", (), RUN),
    Command("fit into an empty folder", FIT, {**DATA, "out": "empty"}, "out", ("--resume",), RUN, "detector.json"),
    Command("fit of a method without training", ("fit", "data", "--method", "zscore", "--out", "out"), DATA, "out",
            ("--resume",), RUN),
    Command("score", SCORE, SCORED, "out"),
    Command("score --overwrite", (*SCORE, "--overwrite"), {**SCORED, "out": "old-results"}, "out"),
    Command("score into an empty folder", SCORE, {**SCORED, "out": "empty"}, "out", mark="run.json"),
    Command("score by a graph", (*SCORE, "--engine", "onnxruntime", "--no-maps"), SCORED, "out",
            progress=r"model/\.graphs(/.*)?$", points=7),
    Command("merge", ("merge", "shard-1", "shard-2", "--out", "out"), {"shard-1": "shard-1", "shard-2": "shard-2"}, "out"),
    Command("evaluate", ("evaluate", "results"), {"results": "old-metrics"}, "results/metrics.json"),
    Command("report", ("report", "results"), {"results": "results", **DATA}, "results/report.html"),
    Command("report, again", ("report", "results"), {"results": "old-report", **DATA}, "results/report.html"),
    Command("calibrate", recalibrate, SCORED, "model"),
    Command("export", ("export", "model", "--out", "out"), {"model": "model"}, "out", points=6),
    Command("export --overwrite", ("export", "model", "--out", "out", "--overwrite"),
            {"model": "model", "out": "old-model"}, "out", points=6),
    Command("compare", ("compare", "data", "--methods", "zscore,pca", "--out", "out"), {"data": "no-masks"}, "out", progress=RUN),
    Command("compare --overwrite", ("compare", "data", "--methods", "zscore,pca", "--out", "out", "--overwrite"),
            {"data": "no-masks", "out": "old-comparison"}, "out", progress=RUN),
    Command("select", ("select", "data", "--out", "out", "--method", "pca", "--trials", "2", "--try", "components=1|2"), DATA,
            "out", progress=r"out(/.*)?$", points=10,
            varies=r"out/(study\.db|best\.toml|report\.html|select\.json|trials\.csv)$"),  # a cut off trial is drawn anew
    Command("reproduce", ("reproduce", "bars.toml", "--out", "out", "--data-root", "root", "--jobs", "1"),
            {"root": "root", "bars.toml": "bars.toml"}, "out", progress=r"out(/.*)?$"),
    Command("audit", ("audit", "data", "--out", "out", "--method", "zscore", "--folds", "2"), DATA, "out"),
    Command("audit --overwrite", ("audit", "data", "--out", "out", "--method", "zscore", "--folds", "2", "--overwrite"),
            {**DATA, "out": "old-results"}, "out"),
    Command("dicom", ("dicom", "results", "--out", "out"), {"results": "dicom-results", "scans": "scans"}, "out",
            varies=r"out/.*\.dcm$"),
    Command("slides", ("slides", "model", "slide.tif", "--out", "out", "--cell", "16", "--engine", "torch"),
            {"model": "slide-model", "slide.tif": "slide.tif"}, "out"),
)  # fmt: skip


# -- templates -------------------------------------------------------------------------------------------------------


def make_templates(folder: Path, needed: Collection[str]) -> None:
    """Images, models, results, scans, a slide and a table, all tiny; the costly ones where they are needed."""
    folder.mkdir()
    os.chdir(folder)
    Clock().install()
    rng = np.random.default_rng(0)
    write_images(Path("data"), rng)
    shutil.copytree("data", "other-data")
    shutil.copytree("data", "no-masks", ignore=shutil.ignore_patterns("ground_truth"))
    Path("empty").mkdir()
    for name, words in (
        ("model", FIT[1:-2]),
        ("old-model", ("data", "--method", "zscore")),
    ):
        command("fit", *words, "--out", name)
    command("score", "model", "data", "--out", "results")
    command("evaluate", "results")
    for k in (1, 2):
        command("score", "model", "data", "--shard", f"{k}/2", "--out", f"shard-{k}")
    command("score", "old-model", "data", "--out", "old-results")
    shutil.copytree("results", "old-metrics")
    command("evaluate", "old-metrics", "--limit", "0.2")
    shutil.copytree("results", "old-report")
    (folder / "old-report" / "report.html").write_text("an older page")
    if "old-comparison" in needed:
        command("compare", "no-masks", "--methods", "zscore", "--out", "old-comparison")
    arrays = {}
    for part, count in (("train", 20), ("test", 20)):
        bars = np.repeat(rng.integers(0, 200, (count, 8, 1), np.uint8), 8, 2)
        arrays[f"x_{part}"] = np.where(np.arange(count)[:, None, None] % 2 == 0, bars, bars.transpose(0, 2, 1))
        arrays[f"y_{part}"] = np.arange(count) % 2
    Path("root").mkdir()
    np.savez("root/bars.npz", **arrays)
    Path("bars.toml").write_text(TABLE)
    if "scans" in needed:
        for i in range(26):
            write_scan(Path("train-scans" if i < 24 else "scans"), i, rng)
        command("fit", "train-scans", "--method", "zscore", "--false-alarms", "0.3", "--out", "scan-model")
        command("score", "scan-model", "scans", "--out", "dicom-results")
    if "slide.tif" in needed:
        Path("tissue").mkdir()
        for i in range(2):
            write_slide(Path(f"tissue/{i}.tif"), rng)
        shutil.copy("tissue/0.tif", "slide.tif")
        command("fit", "slides:tissue,tile=32", "--method", "zscore", "--out", "slide-model")


def command(*words: str) -> None:
    sys.argv = ["normalcy", *words]
    with contextlib.suppress(SystemExit):
        normalcy.cli.app.main()


def write_images(data: Path, rng: np.random.Generator) -> None:
    for place, count in (("train/good", 12), ("test/good", 3), ("test/spot", 3)):
        (data / place).mkdir(parents=True)
        for i in range(count):
            values = 100 + 20 * rng.random((16, 16))
            if "spot" in place:
                values[4:9, 4:9] = 240
            Image.fromarray(values.astype(np.uint8)).save(data / place / f"{i:02d}.png")
    (data / "ground_truth/spot").mkdir(parents=True)
    mask = np.zeros((16, 16), np.uint8)
    mask[4:9, 4:9] = 255
    for i in range(3):
        Image.fromarray(mask).save(data / "ground_truth/spot" / f"{i:02d}_mask.png")


def write_scan(folder: Path, number: int, rng: np.random.Generator) -> None:
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.7.{number}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"1.2.8.{number}", f"1.2.9.{number}"
    dataset.FrameOfReferenceUID = f"1.2.10.{number}"
    dataset.PatientName = dataset.PatientID = dataset.AccessionNumber = dataset.ReferringPhysicianName = f"p{number}"
    dataset.PatientSex, dataset.PatientBirthDate = "F", "19620304"
    dataset.StudyID, dataset.StudyDate, dataset.StudyTime = "1", "20200101", "120000"
    dataset.SeriesNumber, dataset.InstanceNumber, dataset.Modality = 1, 1, "CT"
    dataset.Rows, dataset.Columns = 12, 10
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 0]
    dataset.PixelSpacing, dataset.SliceThickness = [1, 1], 2
    dataset.PixelData = rng.normal(100, 10, (12, 10)).astype(np.int16).tobytes()
    (folder / f"{number:02d}").mkdir(parents=True)
    pydicom.dcmwrite(folder / f"{number:02d}" / "1.dcm", dataset, enforce_file_format=True)


def write_slide(path: Path, rng: np.random.Generator) -> None:
    pixels = np.full((160, 160, 3), 245, np.uint8)
    pixels[:, :128] = np.clip(np.array([200, 130, 170]) + rng.normal(0, 6, (160, 128, 1)), 0, 255).astype(np.uint8)
    resolution = (2e4, 2e4)
    tifffile.imwrite(path, pixels, tile=(32, 32), photometric="rgb", resolution=resolution, resolutionunit="CENTIMETER")


def make_unfinished(bench: Bench) -> None:
    """A fit that was killed while it appended to its log, after a checkpoint."""
    bench.fresh(DATA)
    synced = list[int]()

    def answer(number: int, event: traced.Event) -> int:
        synced.extend([number] * (event.kind == "fsync"))
        return traced.KILL if synced and event.kind == "write" and event.path.endswith(".jsonl") else 0

    ended = traced.run(Command("fit", FIT, DATA, "out").work(), bench.place, answer)
    if ended.code != -signal.SIGKILL:
        raise RuntimeError(f"the fit was not killed: {ended.said}")
    (bench.place / "out.run").rename(bench.templates / "unfinished")


# -- what is on the disk ---------------------------------------------------------------------------------------------


def tree(folder: Path) -> Tree:
    """All that is below a folder."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in folders:
            found[Path(place, name).relative_to(folder).as_posix()] = "folder"
        for name in files:
            path = Path(place, name)
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def hidden(path: str) -> bool:
    """What normalcy writes on the way; a user does not see it."""
    return any(part.startswith((".out.", ".model.", ".normalcy-", ".0", ".1")) for part in path.split("/"))


def below(target: str, files: Tree) -> Tree:
    return {path: sum_ for path, sum_ in files.items() if path == target or path.startswith(f"{target}/")}


def differences(one: Tree, other: Tree, varies: str = r"(?!)") -> str:
    wrong = [
        path
        for path in sorted(one.keys() | other.keys())
        if one.get(path) != other.get(path) and not (path in one and path in other and re.match(varies, path))
    ]
    return ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")


@dataclass
class Undisturbed:
    """A command's only run without a disturbance."""

    before: Tree
    after: Tree
    events: list[traced.Event]


@dataclass
class Bench:
    """The place of the campaign: templates, and a folder that is made anew for each case."""

    templates: Path
    here: Path
    commands: tuple[Command, ...]
    known: dict[str, Undisturbed] = field(default_factory=dict)

    @property
    def place(self) -> Path:
        return self.here / "case" / "work"

    def fresh(self, inputs: Mapping[str, str]) -> Tree:
        shutil.rmtree(self.here / "case", ignore_errors=True)
        self.place.mkdir(parents=True)
        for name, template in inputs.items():
            source = self.templates / template
            if source.is_dir():
                shutil.copytree(source, self.place / name)
            else:
                shutil.copy(source, self.place / name)
        return tree(self.place)

    def undisturbed(self, command: Command) -> Undisturbed:
        if command.name not in self.known:
            before, events = self.fresh(command.inputs), list[traced.Event]()
            loaded = self.here / "modules"

            def work() -> object:
                try:
                    return command.work()()
                finally:
                    loaded.write_text("\n".join(sys.modules))

            ended = traced.run(
                work, self.place, lambda _, e: events.append(e) or 0, kinds=(*traced.CHANGING, "close", "read")
            )
            if ended.code != 0:
                raise RuntimeError(f"{command.name} fails undisturbed: {ended.code} {ended.said}")
            self.known[command.name] = Undisturbed(before, tree(self.place), events)
            for name in loaded.read_text().splitlines():  # once here, in the place of once in each process
                with contextlib.suppress(Exception):
                    if not name.startswith("triton"):  # complains when the process ends
                        importlib.import_module(name)
            gc.collect()
            gc.freeze()  # children would copy the memory of all that is collected
        return self.known[command.name]


# -- kills -----------------------------------------------------------------------------------------------------------

ALL_OF = ("rename", "fsync", "rmdir")
"""Events of which each is a point; and each append."""


def points(events: Sequence[traced.Event], most: int, others: int) -> list[int]:
    """Numbers of the events to disturb: all renamings, syncs and appends (at most ``most``), and ``others`` spread evenly."""
    chosen = [i for i, e in enumerate(events) if e.kind in ALL_OF or (e.kind == "write" and e.path.endswith(".jsonl"))]
    return sorted({*spread(chosen, most), *spread(range(len(events)), others)})


def spread(numbers: Sequence[int], most: int) -> list[int]:
    """At most this number of them, evenly, with the first and the last; the middle one of one."""
    if len(numbers) <= most:
        return list(numbers)
    if most == 1:
        return [numbers[len(numbers) // 2]]
    return [numbers[round(k)] for k in np.linspace(0, len(numbers) - 1, most)]


def judge_unfinished(command: Command, known: Undisturbed, now: Tree) -> str:
    """What is wrong with the files after a kill; empty if nothing is."""
    seen = {path: sum_ for path, sum_ in now.items() if not hidden(path) and not re.match(command.progress, path)}
    old, new, here = (below(command.target, files) for files in (known.before, known.after, seen))
    outside = {path: sum_ for path, sum_ in seen.items() if path not in here}
    expected = {
        path: sum_ for path, sum_ in known.before.items() if path not in old and not re.match(command.progress, path)
    }
    if wrong := differences(outside, expected):
        return f"other files changed: {wrong}"
    if here == old or not differences(here, new, command.varies) or re.match(command.progress, command.target):
        return ""
    if command.mark is not None and f"{command.target}/{command.mark}" not in here:
        return (
            ""
            if all(new.get(path) == sum_ for path, sum_ in here.items())
            else "files in the folder that are not the new ones"
        )
    return f"neither old nor new: {differences(here, new)}"


def repeat(command: Command, known: Undisturbed, place: Path) -> str:
    """What is wrong with the repeated command or its files; empty if nothing is."""
    ended = traced.run(command.work(*command.again), place)
    if ended.code == 2 and not command.overwrites and "exists and is not empty" in ended.said:
        # It was complete when it was killed, or is now that the start of this one has finished it.
        if wrong := differences(below(command.target, tree(place)), below(command.target, known.after), command.varies):
            return f"repeated, it is refused, but differs: {wrong}"
        ended = traced.run(command.work(*command.again, "--overwrite"), place)
    if ended.code != 0:
        return f"repeated, it ends with {ended.code}: {last_line(ended)}"
    if wrong := differences(tree(place), known.after, command.varies):
        return f"repeated, it differs: {wrong}"
    return ""


def last_line(ended: traced.Ended) -> str:
    return (ended.said.strip().splitlines() or [""])[-1][:300]


def kills(bench: Bench, others: int) -> Iterator[tuple[str, str, str]]:
    """Command, kind of the event, and what is wrong."""
    for command in bench.commands:
        known = bench.undisturbed(command)
        changing = [e for e in known.events if e.kind in traced.CHANGING]
        for number in points(changing, command.points, others):
            bench.fresh(command.inputs)
            seen = list[traced.Event]()

            def answer(i: int, event: traced.Event, number: int = number, seen: list[traced.Event] = seen) -> int:
                seen.append(event)
                return traced.KILL if i == number else 0

            ended = traced.run(command.work(), bench.place, answer)
            if ended.code != -signal.SIGKILL:  # files are written in threads: the number of events can differ by some
                yield (
                    command.name,
                    "not reached",
                    "" if ended.code == 0 else f"ends with {ended.code}: {last_line(ended)}",
                )
                continue
            where = f"{seen[-1].kind} {seen[-1].path} ({number})"
            wrong = judge_unfinished(command, known, tree(bench.place)) or repeat(command, known, bench.place)
            yield command.name, seen[-1].kind, f"killed at {where}: {wrong}" if wrong else ""


# -- a disk that refuses ---------------------------------------------------------------------------------------------


def one_message(ended: traced.Ended, codes: Sequence[int] = (1, 2)) -> str:
    """What is wrong with how a command was refused; empty if nothing is."""
    if ended.code not in codes:
        return f"ends with {ended.code}: {last_line(ended)}"
    if "Traceback (most recent call last)" in ended.said:
        return f"a traceback: {last_line(ended)}"
    said = [line for line in ended.said.splitlines() if line.startswith(("Error:", "Stopped."))]
    if not said and "\nFailed: " in f"\n{ended.said}":  # reproduce: each cell with its reason
        return ""
    return "" if len(said) == 1 else f"{len(said)} messages: {said}"


FAULTS: Mapping[str, tuple[int, tuple[str, ...], bool]] = {
    "full": (errno.ENOSPC, ("write", "create", "mkdir", "allocate"), True),
    "quota": (errno.EDQUOT, ("write", "create", "mkdir", "allocate"), True),
    "read-only": (errno.EROFS, traced.CHANGING, True),
    "fsync fails": (errno.EIO, ("fsync",), False),
    "close fails": (errno.EIO, ("close",), False),
    "write fails": (errno.EIO, ("write",), False),
    "rename fails": (errno.EACCES, ("rename",), False),
}
"""Fault -> error, calls that give it, and whether it lasts from the first one on."""


def refused(command: Command, known: Undisturbed, now: Tree, ended: traced.Ended, undone: bool) -> str:
    """What is wrong after a fault; empty if nothing is. ``undone``: files could be removed again."""
    if ended.code == 0:  # a call that does not matter, such as that of a cache
        wrong = differences(below(command.target, now), below(command.target, known.after), command.varies)
        return f"succeeds, but differs: {wrong}" if wrong else ""
    if wrong := one_message(ended):
        return wrong
    if not undone:
        return judge_unfinished(command, known, now)
    left = {path: sum_ for path, sum_ in now.items() if not re.match(command.progress, path)}
    expected = {path: sum_ for path, sum_ in known.before.items() if not re.match(command.progress, path)}
    wrong = differences(left, expected)
    return f"left or changed: {wrong}" if wrong else ""


def faults(bench: Bench, each: int) -> Iterator[tuple[str, str, str]]:
    """Command, fault, and what is wrong."""
    for command, (fault, (code, kinds, lasts)) in itertools.product(bench.commands, FAULTS.items()):
        known = bench.undisturbed(command)
        matching = [e for e in known.events if e.kind in kinds]
        for number in spread(range(len(matching)), each if command.points > 10 else 1):
            bench.fresh(command.inputs)

            def answer(i: int, event: traced.Event, first: int = number, lasts: bool = lasts, code: int = code) -> int:
                return code if i == first or (lasts and i > first) else 0

            ended = traced.run(command.work(), bench.place, answer, kinds=kinds)
            wrong = refused(command, known, tree(bench.place), ended, fault != "read-only")
            yield command.name, fault, f"{fault} at {matching[number]} ({number}): {wrong}" if wrong else ""


SIZES = (20, 60, 120)
"""Of small file systems, in kB."""


def small_disks(bench: Bench, _: int) -> Iterator[tuple[str, str, str]]:
    """On a file system of a few kilobytes, and one that is mounted read-only. Only the superuser can mount them."""
    disk = bench.here / "disk"
    disk.mkdir(exist_ok=True)
    for command, size in itertools.product(bench.commands, (*SIZES, 0)):
        if command.target != "out" or "out" in command.inputs:
            continue
        known = bench.undisturbed(command)
        bench.fresh(command.inputs)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size or 64}k,nr_inodes=1000", "tmpfs", disk], check=True)
        try:
            if not size:
                subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
            words = [str(disk / "out") if word == "out" else word for word in command.words]  # type: ignore[union-attr]
            ended = traced.run(Command(command.name, tuple(words), {}, "out").work(), bench.place)
            left = tree(disk)
        finally:
            subprocess.run(["umount", disk], check=True)
        name = f"{size} kB" if size else "mounted read-only"
        if ended.code == 0:
            wrong = differences(left, below("out", known.after), command.varies)
        else:
            wrong = one_message(ended)
            kept = [path for path in left if not re.match(command.progress, path)]
            wrong = wrong or (f"left: {kept[:5]}" if kept else "")
        yield command.name, "small disk" if size else "disk mounted read-only", f"{name}: {wrong}" if wrong else ""


# -- two processes ---------------------------------------------------------------------------------------------------


def rivals(bench: Bench, each: int) -> Iterator[tuple[str, str, str]]:
    """One process waits at a call while another does all its work on the same folder; they would write different results."""
    by_name = {command.name: command for command in COMMANDS}
    other_fit = tuple("latent=3" if word == "latent=4" else word for word in FIT)
    pairs = (
        ("fit", other_fit, {}),
        ("fit --overwrite", (*other_fit, "--overwrite"), {}),
        ("score", ("score", "other", "data", "--out", "out"), {"other": "old-model"}),
        ("score --overwrite", ("score", "other", "data", "--out", "out", "--overwrite"), {"other": "old-model"}),
        ("score into an empty folder", ("score", "other", "data", "--out", "out"), {"other": "old-model"}),
        ("export", ("export", "other", "--out", "out"), {"other": "old-model"}),
        ("report, again", ("report", "results", "--data", "other"), {"other": "other-data"}),
        ("compare", ("compare", "data", "--methods", "zscore", "--out", "out"), {}),
        ("compare --overwrite", ("compare", "data", "--methods", "zscore", "--out", "out", "--overwrite"), {}),
        ("audit", ("audit", "data", "--out", "out", "--method", "zscore", "--folds", "3"), {}),
    )
    for name, words, more in pairs:
        mine = by_name[name]
        if name not in {command.name for command in bench.commands}:
            continue
        inputs = {**mine.inputs, **more}
        first, second = (
            Command(f"{name}, {which}", w, inputs, mine.target, mine.again, mine.progress, mine.mark)
            for which, w in (("one", mine.words), ("other", words))
        )
        known, rival = bench.undisturbed(first), bench.undisturbed(second)
        changing = [e for e in known.events if e.kind in traced.CHANGING]
        for number in spread(range(len(changing)), each if mine.points > 10 else 2):
            bench.fresh(inputs)
            others = list[traced.Ended]()

            def answer(i: int, event: traced.Event, number: int = number, others: list[traced.Ended] = others) -> int:
                if i == number:
                    others.append(traced.run(second.work(), bench.place, said="other"))  # noqa: B023
                return 0

            ended = traced.run(first.work(), bench.place, answer)
            now = tree(bench.place)
            results = [ended, *others]
            wrong = next((w for one in results if one.code != 0 and (w := one_message(one))), "")
            if not wrong and all(one.code != 0 for one in results):
                wrong = f"nobody wins: {[last_line(one) for one in results]}"
            whole = [differences(now, one.after, mine.varies) for one in (known, rival)]
            if not wrong and all(whole):
                wrong = f"a mix, or something is left: {whole}"
            yield name, "two processes", f"at {changing[number]} ({number}): {wrong}" if wrong else ""


# -- a clock that is wrong -------------------------------------------------------------------------------------------


def clocks(bench: Bench, _: int) -> Iterator[tuple[str, str, str]]:
    """Time that runs backwards by an hour at each look, with files of the far future and of 1970: results are the same."""
    chosen = [command for command in bench.commands if not callable(command.words) and command.varies == r"(?!)"]
    for command, stamp in itertools.product(chosen, (0, 4 * 10**9)):
        known = bench.undisturbed(command)
        bench.fresh(command.inputs)
        for path in bench.place.rglob("*"):
            os.utime(path, (stamp, stamp))
        ended = traced.run(command.work(clock=Clock(3e9, -3600.0)), bench.place)
        wrong = f"ends with {ended.code}: {last_line(ended)}" if ended.code else ""
        timed = r".*(\.json|\.jsonl|\.html|\.md)$"  # they hold times: when they were written, and seconds that passed
        wrong = wrong or differences(tree(bench.place), known.after, timed)
        yield command.name, "clock", f"files of {stamp}: {wrong}" if wrong else ""


# -- a folder that changes -------------------------------------------------------------------------------------------


def change(way: str, path: Path) -> None:
    """What another program might do to an image."""
    if way == "removed":
        path.unlink(missing_ok=True)
    elif way == "folder":
        path.unlink(missing_ok=True)
        path.mkdir(exist_ok=True)
    elif way == "cut short":
        path.write_bytes(path.read_bytes()[:40])
    elif way == "text":
        path.write_text("not an image")
    elif way == "larger":
        Image.fromarray(np.full((24, 20), 99, np.uint8)).save(path)
    elif way == "colour":
        Image.fromarray(np.full((16, 16, 3), 99, np.uint8)).save(path)
    elif way == "other pixels":
        Image.fromarray(np.full((16, 16), 250, np.uint8)).save(path)
    elif way == "pipe":
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    elif way == "added":
        Image.fromarray(np.full((16, 16), 99, np.uint8)).save(path.with_name("zz.png"))
    elif way == "all removed":
        shutil.rmtree(path.parent)


WAYS = ("removed", "folder", "cut short", "text", "larger", "colour", "other pixels", "pipe", "added", "all removed")


def changes(bench: Bench, each: int) -> Iterator[tuple[str, str, str]]:
    """An image changes just before it is opened for the n-th time: it is read or listed, and the command ends well or in one
    message."""
    chosen = [c for c in bench.commands if c.name in ("fit", "score", "score by a graph", "audit", "compare", "report")]
    for command, way in itertools.product(chosen, WAYS):
        known = bench.undisturbed(command)
        opened = [e for e in known.events if e.kind == "read" and e.path.endswith(".png")]
        for number in spread(range(len(opened)), each):
            bench.fresh(command.inputs)
            named = list[str]()

            def answer(
                i: int, event: traced.Event, number: int = number, way: str = way, named: list[str] = named
            ) -> int:
                if event.path.endswith(".png") and event.path.startswith("data/"):
                    named.append(event.path)
                    if len(named) == number + 1:
                        change(way, bench.place / event.path)
                return 0

            ended = traced.run(command.work(), bench.place, answer, kinds=("read",))
            now = tree_of_regular(bench.place)
            wrong = one_message(ended, (0, 1, 2)) if ended.code else "a traceback" if "Traceback" in ended.said else ""
            if ended.code == 0 and not wrong:
                wrong = whole(bench.place / command.target)
            elif not wrong and below(command.target, now) != below(command.target, known.before):
                wrong = "it fails, but something is written"
            if any(hidden(path) for path in now) and not wrong:
                wrong = "something is left"
            where = opened[number].path
            yield command.name, "changing folder", f"{way} at reading {number} ({where}): {wrong}" if wrong else ""


def tree_of_regular(folder: Path) -> Tree:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def whole(target: Path) -> str:
    """What is wrong with results that should be complete; empty if nothing is."""
    if target.is_file():
        return ""
    if (target / "detector.json").exists():
        normalcy.detector.Detector.load(target)
        return ""
    if (target / "compare.json").exists():
        return "" if (target / "report.html").exists() else "no report"
    read = normalcy.results.folder.read_results(target)
    listed = {one.path for one in read.run.data.failed} | {one.path for one in read.run.data.incomplete}
    missing = [path for i, path in enumerate(read.paths) if path not in listed and read.file("maps", i, ".npy") is None]
    if (target / "maps").is_dir() and missing:
        return f"no map of {missing[:3]}"
    return "" if len(read) == read.run.data.count else "another number of images than counted"


# -- signals ---------------------------------------------------------------------------------------------------------


def signals(bench: Bench, each: int) -> Iterator[tuple[str, str, str]]:
    """SIGTERM and Ctrl-C at a call: the exit code, one message, nothing half; the repeated command gives the same."""
    codes = {signal.SIGTERM: 143, signal.SIGINT: 130}
    for command, number in itertools.product(bench.commands, codes):
        if callable(command.words):
            continue
        known = bench.undisturbed(command)
        changing = [e for e in known.events if e.kind in traced.CHANGING]
        for place in spread(range(len(changing)), each if command.points > 10 else 1):
            bench.fresh(command.inputs)
            ended = traced.run(
                command.work(),
                bench.place,
                lambda i, _: -number - 1 if i == place else 0,  # noqa: B023
            )
            now = tree(bench.place)
            wrong = ""
            if ended.code != 0:  # at the very end the command may be over before it sees the signal
                wrong = one_message(ended, (codes[number],)) or judge_unfinished(command, known, now)
                left = [p for p in now if hidden(p) and not re.match(command.progress, p)]
                wrong = wrong or (f"left: {left[:3]}" if left else "") or repeat(command, known, bench.place)
            elif place < len(changing) - 3:
                wrong = "it goes on"
            else:
                wrong = differences(now, known.after, command.varies)
            yield command.name, signal.Signals(number).name, f"at {changing[place]} ({place}): {wrong}" if wrong else ""


# -- large tables and long lists -------------------------------------------------------------------------------------

ROWS = 1_000_000
BOUNDS = {"seconds of the processor": 300.0, "bytes for a row": 4096.0}
"""For each command on a table of that many rows, of which three name an image; the memory is beyond that for ten rows."""
LIST = 40_000


def tables(bench: Bench, rows: int) -> Iterator[tuple[str, str, str, dict[str, float]]]:
    """``check`` and ``score`` with tables of a million rows, and a list of 40,000 paths, against ten times fewer."""
    import pyarrow
    import pyarrow.parquet

    inputs = {"data": "data", "model": "old-model"}
    for suffix, name in (("csv", "score"), ("parquet", "check")):
        bench.fresh(inputs)
        ended = {}
        for count in (10, rows):
            paths = [f"data/test/good/{i:02d}.png" if i < 3 else f"data/absent/{i:07d}.png" for i in range(count)]
            labels = [i % 2 for i in range(count)]
            table = bench.place / f"table.{suffix}"
            if suffix == "csv":
                table.write_text("path,label\n" + "".join(f"{p},{k}\n" for p, k in zip(paths, labels)))
            else:
                pyarrow.parquet.write_table(pyarrow.table({"path": paths, "label": labels}), table)
            words = ("check", table.name) if name == "check" else ("score", "model", table.name, "--out", f"out{count}")
            ended[count] = traced.run(Command(name, words, inputs, "out").work(), bench.place, seconds=1500)
        one, large = ended[10], ended[rows]
        figures = {
            "rows": rows, "cpu_seconds": round(large.cpu, 1), "more_memory_mib": round((large.memory - one.memory) / 2**20)
        }  # fmt: skip
        expected = 1 if name == "check" else 0  # absent images are errors of the table, and skipped by score
        wrong = "" if large.code == one.code == expected else f"ends with {large.code}: {last_line(large)}"
        if large.cpu > BOUNDS["seconds of the processor"] * rows / ROWS + 5:
            wrong = wrong or f"takes {large.cpu:.0f} s"
        if large.memory - one.memory > max(2**26, BOUNDS["bytes for a row"] * rows):
            wrong = wrong or f"takes {(large.memory - one.memory) >> 20} MiB"
        yield f"{name}, {suffix}", "large table", wrong, figures
    bench.fresh(inputs)
    seconds = {}
    for count in (LIST // 10, LIST):
        (bench.place / "many").mkdir(exist_ok=True)
        for i in range(count):
            with contextlib.suppress(FileExistsError):
                os.link(bench.place / "data/test/good/00.png", bench.place / f"many/{i:05d}.png")
        names = [f"many/{i:05d}.png" for i in range(count)]
        ended_list = traced.run(lambda names=names: len(open_data_list(names)) - len(names), bench.place)  # type: ignore[misc]
        seconds[count] = ended_list.cpu
    figures = {
        "paths": LIST,
        "cpu_seconds": round(seconds[LIST], 2),
        "cpu_seconds_of_a_tenth": round(seconds[LIST // 10], 2),
    }
    slow = seconds[LIST] > 15 * seconds[LIST // 10] + 1
    yield "open_data", "long list", f"is not linear: {seconds}" if slow else "", figures


def open_data_list(names: list[str]) -> Any:
    return normalcy.data.open.open_files(names)


# -- all -------------------------------------------------------------------------------------------------------------

PARTS: Mapping[str, tuple[Callable[..., Iterator[Any]], int]] = {
    "kills": (kills, 3),
    "faults": (faults, 1),
    "small disks": (small_disks, 0),
    "two processes": (rivals, 3),
    "signals": (signals, 1),
    "clocks": (clocks, 0),
    "changes": (changes, 1),
    "tables": (tables, ROWS),
}
"""Part -> function, and how many points it takes of each kind."""


def worker(bench: Bench, parts: Sequence[str], few: bool) -> None:
    """All parts for some of the commands; the outcomes go to a file."""
    outcomes: dict[str, dict[str, Counter[str]]] = {}
    failures, measured = [], []
    for part in parts:
        function, count = PARTS[part]
        for name, kind, wrong, *figures in function(bench, min(count, 1) if few else count):
            outcomes.setdefault(part, {}).setdefault(name, Counter())[kind] += 1
            measured += [{"command": name, **one} for one in figures]
            if wrong:
                failures.append({"part": part, "command": name, "wrong": wrong})
                print(failures[-1], file=sys.stderr, flush=True)
        print(part, "done", file=sys.stderr, flush=True)
    (bench.here / "result.json").write_text(
        json.dumps({"outcomes": outcomes, "failures": failures, "measured": measured})
    )


def campaign(commands: Sequence[Command], parts: Sequence[str], jobs: int, few: bool) -> dict[str, Any]:
    started, code = time.monotonic(), commit()
    with tempfile.TemporaryDirectory(prefix="interruptions-") as place:
        base = Path(place)
        templates = base / "templates"
        (base / "first").mkdir()
        needed = {template for one in commands for template in one.inputs.values()}
        made = traced.run(lambda: make_templates(templates, needed), base / "first", seconds=600)
        if made.code != 0:
            raise SystemExit(f"the templates could not be made: {made.said}")
        if "unfinished" in needed:
            make_unfinished(Bench(templates, base / "first", ()))
        children = []
        shares = [(tuple(commands)[k::jobs], [part for part in parts if part != "tables"]) for k in range(jobs)]
        shares += [((), ["tables"])] if "tables" in parts else []
        for k, (own, share) in enumerate(shares):
            (base / str(k)).mkdir()
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    worker(Bench(templates, base / str(k), own), share, few)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            children.append(child)
        statuses = {os.waitpid(child, 0)[1] for child in children}
        if statuses != {0}:
            raise SystemExit("a part of the campaign stopped")
        found = [json.loads((base / str(k) / "result.json").read_text()) for k in range(len(shares))]
    seconds = round(time.monotonic() - started, 1)
    failures = [failure for one in found for failure in one["failures"]]
    result = {}
    for part in parts:
        outcomes = {name: kinds for one in found for name, kinds in one["outcomes"].get(part, {}).items()}
        result[part] = {
            "points": sum(sum(kinds.values()) for kinds in outcomes.values()),
            "not_reached": sum(kinds.get("not reached", 0) for kinds in outcomes.values()),
            "seconds_of_the_runs": seconds,
            "commits": [code],
            "failures": [failure for failure in failures if failure["part"] == part],
            "outcomes": outcomes,
        }
        if part == "tables":
            result[part] |= {"bounds": BOUNDS, "measured": [figures for one in found for figures in one["measured"]]}
    return result


def joined(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """A part of the result in which some commands were run again."""
    if old is None:
        return new
    outcomes = {**old["outcomes"], **new["outcomes"]}
    stay = [failure for failure in old["failures"] if failure["command"] not in new["outcomes"]]
    return {
        **old,
        **new,
        "points": sum(sum(kinds.values()) for kinds in outcomes.values()),
        "not_reached": sum(kinds.get("not reached", 0) for kinds in outcomes.values()),
        "seconds_of_the_runs": round(old["seconds_of_the_runs"] + new["seconds_of_the_runs"], 1),
        "commits": list(dict.fromkeys([*old["commits"], *new["commits"]])),
        "failures": [*stay, *new["failures"]],
        "outcomes": outcomes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, separated by commas")
    parser.add_argument("--commands", default="", help="names of commands, separated by semicolons; all by default")
    parser.add_argument("--jobs", type=int, default=2, help="processes that share the commands")
    parser.add_argument("--few", action="store_true", help="two or three points of each command and part")
    parser.add_argument("--out", type=Path, help="file for the result")
    given = parser.parse_args()
    names = list(filter(None, given.commands.split(";")))
    commands = [command for command in COMMANDS if not names or command.name in names]
    if given.few:
        commands = [replace(command, points=2) for command in commands]
    result = campaign(commands, given.parts.split(","), given.jobs, given.few)
    if given.out is not None:  # other parts and commands stay: each part says its commits
        kept = json.loads(given.out.read_text())["parts"] if given.out.exists() else {}
        write_record(
            given.out, {"parts": {**kept, **{part: joined(kept.get(part), one) for part, one in result.items()}}}
        )
    for part, one in result.items():
        print(
            f"{part}: {one['points']} points, {len(one['failures'])} failures, in a run of {one['seconds_of_the_runs']} s"
        )
    sys.exit(any(one["failures"] for one in result.values()))


if __name__ == "__main__":
    main()
