"""Kills, full disks, second processes, wrong clocks and changing folders: at chosen system calls of every command that writes.

    python tests/campaigns/interruptions.py --out tests/campaigns/results/interruptions.json

Each command runs once undisturbed while its system calls on files are listed (``traced.py``). Then it runs again for each
point: on a fresh copy of its inputs, disturbed exactly at that call; then what is on the disk is judged, the command is repeated
and must give the files of the undisturbed run, byte for byte. The clock stands still, so that times written are equal.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import errno
import hashlib
import importlib
import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import highdicom
import numpy as np
import pydicom
import tifffile
import torch
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
import normalcy.results.predict
import normalcy.results.run
import normalcy.results.slides
import normalcy.studies.audit
import normalcy.studies.compare
import normalcy.studies.reproduce
import normalcy.studies.select  # noqa: F401
from normalcy.data.open import open_data
from normalcy.provenance import write_record

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
    points: int = 14
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
        normalcy.results.run.commit = lambda: "0" * 40
        count = itertools.count(1)
        highdicom.UID = lambda: pydicom.uid.UID(f"1.2.3.{next(count)}")


FIT = ("fit", "data", "--method", "autoencoder", "--set", "latent=4", "--set", "log_steps=2", "--set", "checkpoint_steps=3",
       "--steps", "8", "--out", "out")  # fmt: skip
SCORE = ("score", "model", "data", "--out", "out")


def recalibrate() -> None:
    """What Python users do in the place of a command."""
    detector = normalcy.detector.Detector.load("model")
    detector.calibrate(open_data(Path("data")).select(split="test", label=0))
    detector.save("model", overwrite=True)


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
    Command("evaluate", ("evaluate", "results"), {"results": "old-metrics"}, "results/metrics.json"),
    Command("report", ("report", "results"), {"results": "results", **DATA}, "results/report.html"),
    Command("report, again", ("report", "results"), {"results": "old-report", **DATA}, "results/report.html"),
    Command("calibrate", recalibrate, SCORED, "model"),
    Command("export", ("export", "model", "--out", "out"), {"model": "model"}, "out", points=6),
    Command("export --overwrite", ("export", "model", "--out", "out", "--overwrite"),
            {"model": "model", "out": "old-model"}, "out", points=6),
    Command("compare", ("compare", "data", "--methods", "zscore,pca", "--out", "out"), DATA, "out", progress=RUN),
    Command("compare --overwrite", ("compare", "data", "--methods", "zscore,pca", "--out", "out", "--overwrite"),
            {**DATA, "out": "old-comparison"}, "out", progress=RUN),
    Command("select", ("select", "data", "--out", "out", "--method", "pca", "--trials", "2", "--try", "components=1|2"), DATA,
            "out", progress=r"out(/.*)?$", varies=r"out/study\.db$", points=10),
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


# -- templates -----------------------------------------------------------------------------------------------------------------


def make_templates(folder: Path) -> None:
    """Images, models, results, scans, a slide and a table, all tiny."""
    folder.mkdir()
    os.chdir(folder)
    Clock().install()
    rng = np.random.default_rng(0)
    write_images(Path("data"), rng)
    shutil.copytree("data", "other-data")
    Path("empty").mkdir()
    for name, words in (
        ("model", FIT[1:-2]),
        ("old-model", ("data", "--method", "zscore")),
    ):
        command("fit", *words, "--out", name)
    command("score", "model", "data", "--out", "results")
    command("evaluate", "results")
    command("score", "old-model", "data", "--out", "old-results")
    shutil.copytree("results", "old-metrics")
    command("evaluate", "old-metrics", "--limit", "0.2")
    shutil.copytree("results", "old-report")
    (folder / "old-report" / "report.html").write_text("an older page")
    command("compare", "data", "--methods", "zscore", "--out", "old-comparison")
    arrays = {}
    for part, count in (("train", 20), ("test", 20)):
        bars = np.repeat(rng.integers(0, 200, (count, 8, 1), np.uint8), 8, 2)
        arrays[f"x_{part}"] = np.where(np.arange(count)[:, None, None] % 2 == 0, bars, bars.transpose(0, 2, 1))
        arrays[f"y_{part}"] = np.arange(count) % 2
    Path("root").mkdir()
    np.savez("root/bars.npz", **arrays)
    Path("bars.toml").write_text(TABLE)
    for i in range(26):
        write_scan(Path("train-scans" if i < 24 else "scans"), i, rng)
    command("fit", "train-scans", "--method", "zscore", "--false-alarms", "0.3", "--out", "scan-model")
    command("score", "scan-model", "scans", "--out", "dicom-results")
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
    (bench.place / "out.run").rename(bench.base / "templates" / "unfinished")


# -- what is on the disk ---------------------------------------------------------------------------------------------------------


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

    base: Path
    known: dict[str, Undisturbed] = field(default_factory=dict)

    @property
    def place(self) -> Path:
        return self.base / "case" / "here"

    def fresh(self, inputs: Mapping[str, str]) -> Tree:
        shutil.rmtree(self.base / "case", ignore_errors=True)
        self.place.mkdir(parents=True)
        for name, template in inputs.items():
            source = self.base / "templates" / template
            if source.is_dir():
                shutil.copytree(source, self.place / name)
            else:
                shutil.copy(source, self.place / name)
        return tree(self.place)

    def undisturbed(self, command: Command) -> Undisturbed:
        if command.name not in self.known:
            before, events = self.fresh(command.inputs), list[traced.Event]()
            loaded = self.base / "modules"

            def work() -> object:
                try:
                    return command.work()()
                finally:
                    loaded.write_text("\n".join(sys.modules))

            ended = traced.run(work, self.place, lambda _, e: events.append(e) or 0, kinds=(*traced.CHANGING, "close", "read"))
            if ended.code != 0:
                raise RuntimeError(f"{command.name} fails undisturbed: {ended.code} {ended.said}")
            self.known[command.name] = Undisturbed(before, tree(self.place), events)
            for name in loaded.read_text().splitlines():  # once here, in the place of once in each process
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
        return self.known[command.name]


# -- kills -----------------------------------------------------------------------------------------------------------------------

ALL_OF = ("rename", "fsync", "rmdir")
"""Events of which each is a point; and each append."""


def points(events: Sequence[traced.Event], most: int, others: int) -> list[int]:
    """Numbers of the events to disturb: all renamings, syncs and appends (at most ``most``), and ``others`` spread evenly."""
    chosen = [i for i, e in enumerate(events) if e.kind in ALL_OF or (e.kind == "write" and e.path.endswith(".jsonl"))]
    return sorted({*spread(chosen, most), *spread(range(len(events)), others)})


def spread(numbers: Sequence[int], most: int) -> list[int]:
    """At most so many of them, evenly, with the first and the last."""
    if len(numbers) <= most:
        return list(numbers)
    return [numbers[round(k)] for k in np.linspace(0, len(numbers) - 1, most)]


def judge_unfinished(command: Command, known: Undisturbed, now: Tree) -> str:
    """What is wrong with the files after a kill; empty if nothing is."""
    seen = {path: sum_ for path, sum_ in now.items() if not hidden(path) and not re.match(command.progress, path)}
    old, new, here = (below(command.target, files) for files in (known.before, known.after, seen))
    outside = {path: sum_ for path, sum_ in seen.items() if path not in here}
    expected = {path: sum_ for path, sum_ in known.before.items() if path not in old and not re.match(command.progress, path)}
    if wrong := differences(outside, expected):
        return f"other files changed: {wrong}"
    if here in (old, new) or re.match(command.progress, command.target):
        return ""
    if command.mark is not None and f"{command.target}/{command.mark}" not in here:
        return "" if all(new.get(path) == sum_ for path, sum_ in here.items()) else "files in the folder that are not the new ones"
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
    for command in COMMANDS:
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
                yield command.name, "not reached", "" if ended.code == 0 else f"ends with {ended.code}: {last_line(ended)}"
                continue
            where = f"{seen[-1].kind} {seen[-1].path} ({number})"
            wrong = judge_unfinished(command, known, tree(bench.place)) or repeat(command, known, bench.place)
            yield command.name, seen[-1].kind, f"killed at {where}: {wrong}" if wrong else ""
