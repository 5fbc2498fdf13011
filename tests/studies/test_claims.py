"""Claims: one owner, release, what a killed process or a machine leaves, and tables that two processes fill side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normalcy.detector import Detector
from normalcy.studies import claims
from normalcy.studies.claims import claimed
from normalcy.studies.reproduce import reproduce, tabulate
from normalcy.studies.tables import cells_of, read_table

TABLE = """
paper = "Somebody 2020"
number = 1
shows = "Bars of two directions"
protocol = "One direction is normal in turn."
seeds = 3
settings = { calibration = 0 }

[columns.Bars]
data = "bars.npz"
classes = ["0", "1"]

[[rows]]
name = "PCA, few"
method = "pca"
settings = { components = 2 }
published = { Bars = 90.0 }

[[rows]]
name = "Z"
method = "zscore"
published = { Bars = 80.0 }
"""
FITS = 12
FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["normalcy.detector", "normalcy.methods.pca", "normalcy.methods.zscore", __name__])
"""Only the first process imports torch."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)

    def images(n: int) -> tuple[np.ndarray, np.ndarray]:
        classes = np.arange(n) % 2
        bars = np.repeat(rng.uniform(0, 200, (n, 8, 1)), 8, 2)
        bars = np.where(classes[:, None, None] == 0, bars, bars.transpose(0, 2, 1))
        return (bars + rng.uniform(0, 55, bars.shape)).astype(np.uint8), classes

    (x_train, y_train), (x_test, y_test) = images(40), images(60)
    np.savez(tmp_path / "bars.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    (tmp_path / "bars.toml").write_text(TABLE)
    return tmp_path


def start(root: Path, name: str, delay: float = 0.0, lease: float = 60, machine: str = "") -> BaseProcess:
    process = FORKS.Process(target=fill, args=(root, name, delay, lease, machine), daemon=True)
    process.start()
    return process


def fill(root: Path, name: str, delay: float, lease: float, machine: str) -> None:
    """Fill the table; each fit is recorded, and lasts ``delay`` seconds longer."""
    fit = Detector.fit

    def recorded(self: Detector, *given: Any, **words: Any) -> Detector:
        with open(root / "fits", "a") as file:
            print(name, self.name, words["run_dir"].name, file=file)
        time.sleep(delay)
        return fit(self, *given, **words)

    Detector.fit = recorded  # type: ignore[method-assign]
    if machine:
        claims._machine = lambda: machine  # type: ignore[assignment]
    found = reproduce(read_table(str(root / "bars.toml")), root / "out", data_root=root, jobs=1, lease=lease)
    assert all(line.cells.done == line.cells.of for line in found.lines if line.method), found.lines


def ended(process: BaseProcess) -> int | None:
    process.join(60)
    return process.exitcode


def fits(root: Path) -> list[str]:
    """Keys of the fits that were begun, in order."""
    path = root / "fits"
    return [line.split()[2] for line in path.read_text().splitlines()] if path.exists() else []


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def whole(root: Path) -> bool:
    table = read_table(str(root / "bars.toml"))
    lines = tabulate(table, root / "out").lines
    return len(cells_of(table)) == FITS and all(line.cells.done == line.cells.of for line in lines)


def a_dead_process() -> tuple[int, str]:
    """Its number, and when it started."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = claims._started(process.pid)
    process.kill()
    process.wait()
    return process.pid, started


# -- claims ------------------------------------------------------------------------------------------------------------


def test_one_owner_until_it_ends(tmp_path: Path):
    path = tmp_path / "work" / "a.claim"
    with claimed(path) as first:
        assert first
        with claimed(path) as second:
            assert not second
        assert json.loads(path.read_text())["process"] == os.getpid()
    assert list(path.parent.iterdir()) == []
    with claimed(path) as again:
        assert again
    with pytest.raises(RuntimeError), claimed(path):
        raise RuntimeError
    assert not path.exists()


def test_waiting_for_a_claim(tmp_path: Path):
    path, released = tmp_path / "a.claim", threading.Event()

    def hold() -> None:
        with claimed(path):
            released.wait(10)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(hold)
        until(path.exists)
        threading.Timer(0.5, released.set).start()
        started = time.monotonic()
        with claimed(path, wait=10) as ours:
            assert ours
            assert 0.3 < time.monotonic() - started < 5


def test_a_claim_of_a_dead_process_of_this_machine_is_void_at_once(tmp_path: Path):
    path = tmp_path / "a.claim"
    process, started = a_dead_process()
    assert started
    words = {"machine": claims._machine(), "process": process, "started": started, "lease": 1000, "key": "k"}
    path.write_text(json.dumps(words))
    with claimed(path) as ours:
        assert ours
        assert json.loads(path.read_text())["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_process_with_the_number_of_a_dead_one_is_another(tmp_path: Path):
    path = tmp_path / "a.claim"
    words = {"machine": claims._machine(), "process": os.getpid(), "started": "1", "lease": 1000, "key": "k"}
    path.write_text(json.dumps(words))
    with claimed(path) as ours:
        assert ours


def test_a_claim_of_another_machine_is_void_after_its_lease(tmp_path: Path):
    path = tmp_path / "a.claim"
    words = {"machine": "another", "process": os.getpid(), "started": "1", "lease": 100, "key": "k"}
    path.write_text(json.dumps(words))
    with claimed(path) as ours:
        assert not ours
    os.utime(path, (time.time() - 90, time.time() - 90))
    with claimed(path, lease=1) as ours:  # its own lease counts, not that of who looks
        assert not ours
    os.utime(path, (time.time() - 101, time.time() - 101))
    with claimed(path) as ours:
        assert ours


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"lease": "x"}', b'{"lease": null, "machine": 3}'])
def test_a_claim_that_was_cut_off_is_void_after_a_lease(tmp_path: Path, content: bytes):
    path = tmp_path / "a.claim"
    path.write_bytes(content)
    with claimed(path) as ours:
        assert not ours
    os.utime(path, (time.time() - claims.LEASE - 1,) * 2)
    with claimed(path) as ours:
        assert ours


def test_a_live_owner_keeps_its_claim_beyond_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.claim"
    with claimed(path, lease=0.6) as ours:
        assert ours
        monkeypatch.setattr(claims, "_machine", lambda: "another")  # who looks is elsewhere
        for _ in range(8):
            time.sleep(0.2)
            with claimed(path) as other:
                assert not other


def test_the_clock_of_the_file_system_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Not that of the machine that looks, which may be a day off."""
    path = tmp_path / "a.claim"
    words = {"machine": "another", "process": 1, "started": "1", "lease": 5, "key": "k"}
    path.write_text(json.dumps(words))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 86400)
    with claimed(path) as ours:
        assert not ours


def test_many_that_take_over_at_once_have_one_owner(tmp_path: Path):
    process, started = a_dead_process()
    words = {"machine": claims._machine(), "process": process, "started": started, "lease": 1000, "key": "k"}
    for k in range(20):
        path = tmp_path / f"{k}.claim"
        path.write_text(json.dumps(words))
        if k % 2:  # a process died between claiming the right to take over and doing so
            claims._take(path.with_name(f"{path.name}.{claims.hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"),
                         json.dumps({**words, "key": "l"}).encode())  # fmt: skip
        barrier, owned = threading.Barrier(8), []

        def take(path: Path = path, barrier: threading.Barrier = barrier, owned: list[bool] = owned) -> None:
            barrier.wait()
            with claimed(path) as ours:
                owned.append(ours)
                barrier.wait()

        with ThreadPoolExecutor(8) as pool:
            for _ in range(8):
                pool.submit(take)
        assert sum(owned) == 1
    assert list(tmp_path.iterdir()) == []


# -- tables ------------------------------------------------------------------------------------------------------------


def test_two_processes_share_a_table(root: Path):
    both = [start(root, name, delay=0.2) for name in ("a", "b")]
    assert [ended(process) for process in both] == [0, 0]
    assert sorted(Counter(fits(root)).values()) == [1] * FITS  # each once
    assert {line.split()[0] for line in (root / "fits").read_text().splitlines()} == {"a", "b"}
    assert whole(root)
    assert not (root / "out" / "running").exists()


def test_the_other_runs_the_cell_of_a_process_that_was_killed(root: Path):
    first = start(root, "a", delay=60)
    until(lambda: len(fits(root)) == 1)
    second = start(root, "b")
    until(lambda: len(fits(root)) > 2)
    first.kill()
    first.join()
    assert ended(second) == 0
    lost = fits(root)[0]
    assert Counter(fits(root)) == {lost: 2} | {key: 1 for key in fits(root) if key != lost}
    assert whole(root)


def test_the_other_runs_the_cell_of_a_machine_that_died_after_the_lease(root: Path):
    first = start(root, "a", delay=60, lease=3, machine="first")
    until(lambda: len(fits(root)) == 1)
    second = start(root, "b", machine="second")
    until(lambda: len(set(fits(root))) == FITS)
    time.sleep(3.5)  # beyond the lease: the owner is slow, but alive
    assert len(fits(root)) == FITS
    assert second.is_alive()
    first.kill()
    first.join()
    killed = time.monotonic()
    assert ended(second) == 0
    assert time.monotonic() - killed > 1.5  # it was marked at most half a second (and a moment) before
    assert Counter(fits(root))[fits(root)[0]] == 2
    assert len(fits(root)) == FITS + 1
    assert whole(root)


def test_an_interrupted_command_gives_up_its_claims(root: Path):
    command = [sys.executable, "-m", "normalcy", "reproduce", str(root / "bars.toml"), "--data-root", str(root),
               "--out", str(root / "out"), "--jobs", "2", "--rows", "Slow"]  # fmt: skip
    slow = '\n[[rows]]\nname = "Slow"\nmethod = "autoencoder"\nsettings = { epochs = 100000 }\npublished = { Bars = 1.0 }\n'
    (root / "bars.toml").write_text(TABLE + slow)
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    running = root / "out" / "running"
    try:
        until(lambda: len([*running.glob("*.claim")]) == len([*running.glob("*/checkpoint.pt")]) == 2, 120)
        process.terminate()
        assert process.wait(30) == 143
    finally:
        process.kill()
    assert list(running.glob("*.claim*")) == []
    assert len([path for path in running.iterdir() if (path / "checkpoint.pt").exists()]) == 2  # the fits resume
