"""Studies that several workers share: a journal file, and a real PostgreSQL."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from runner import Run

from normalcy.data.open import as_dataset
from normalcy.errors import SettingsError, WriteError
from normalcy.studies.select import select

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["normalcy.studies.select", "normalcy.methods.pca", __name__])
"""Only the first process imports torch and Optuna."""
USER = "postgres"
SPACE = {"components": [1, 2, 3, 4, 5, 6]}


def images(count: int, brighter: float = 0.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.4 + brighter + 0.1 * rng.random((count, 8, 8))).astype(np.float32)


def work(out: Path, storage: str, trials: int) -> None:
    select(images(60), "pca", as_dataset(images(18, 0.02, 1)), out, trials=trials, space=SPACE, storage=storage)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def share(tmp_path: Path, storage: str) -> None:
    """One worker begins the study; two continue it side by side, and a third reads what they have done."""
    work(tmp_path / "first", storage, 1)
    both = [FORKS.Process(target=work, args=(tmp_path / name, storage, 5), daemon=True) for name in ("one", "two")]
    for process in both:
        process.start()
    for process in both:
        process.join(90)
    assert [process.exitcode for process in both] == [0, 0]
    work(tmp_path / "last", storage, 5)
    tried = rows(tmp_path / "last")
    assert 5 <= len(tried) <= 6  # both may have begun one when four were done
    assert [int(row["trial"]) for row in sorted(tried, key=lambda row: int(row["trial"]))] == list(range(len(tried)))
    assert not any((tmp_path / name / "study.db").exists() for name in ("first", "one", "two", "last"))
    best = json.loads((tmp_path / "last" / "select.json").read_text())["auroc"]
    assert best == pytest.approx(max(float(row["auroc"]) for row in tried if row["state"] == "complete"), abs=1e-4)


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """URL of a new database of a server that runs for these tests, reached by a socket in a folder of its own."""
    places = [shutil.which("initdb"), *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")))]
    found = [Path(place).parent for place in places if place]
    if not found:
        assert not os.environ.get("CI"), "PostgreSQL is missing: make database installs it"
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    user = {"user": USER, "group": USER, "extra_groups": []} if os.geteuid() == 0 else {}  # it refuses root
    folder = Path(tempfile.mkdtemp(prefix="normalcy-postgresql-"))
    if user:
        shutil.chown(folder, USER, USER)

    def call(name: str, *words: str) -> None:
        with (Path(tempfile.gettempdir()) / f"{folder.name}.log").open("ab") as log:
            done = subprocess.run([found[-1] / name, *words], stdout=log, stderr=log, cwd="/", check=False, **user)  # type: ignore[call-overload]
        assert done.returncode == 0, Path(log.name).read_text()

    data = str(folder / "data")
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    try:
        call("initdb", "-D", data, "-U", USER, "-A", "trust", "--no-sync")
        call("pg_ctl", "start", "-w", "-D", data, "-o", options, "-l", str(folder / "log"))
        try:
            call("createdb", "-h", str(folder), "-U", USER, "study")
            yield f"postgresql+pg8000://{USER}@/study?unix_sock={folder}/.s.PGSQL.5432"
        finally:
            call("pg_ctl", "stop", "-D", data, "-m", "immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        (Path(tempfile.gettempdir()) / f"{folder.name}.log").unlink(missing_ok=True)


def test_workers_share_a_journal(tmp_path: Path):
    share(tmp_path, f"journal://{tmp_path / 'shared' / 'study.log'}")


def test_workers_share_a_postgresql(tmp_path: Path, postgresql: str):
    share(tmp_path, postgresql)


def test_the_command_continues_a_journal(tmp_path: Path, run: Run):
    np.savez(tmp_path / "normal.npz", x_train=images(60), y_train=np.zeros(60, int))
    np.savez(tmp_path / "known.npz", x_train=images(18, 0.02, 1), y_train=np.ones(18, int))
    storage = f"journal://{tmp_path / 'study.log'}"
    words = ["select", tmp_path / "normal.npz", "--method", "pca", "--anomalies", tmp_path / "known.npz"]
    words += ["--try", "components=1|2|3", "--storage", storage]
    run.good(*words, "--trials", 2, "--out", tmp_path / "a")
    run.good(*words, "--trials", 3, "--out", tmp_path / "b")
    assert len(rows(tmp_path / "b")) == 3
    assert (tmp_path / "study.log").stat().st_size > 0


def test_refusals(tmp_path: Path):
    for storage in ("nothing", "none://secret@machine/x", "postgresql+absent://user:secret@machine/x"):
        with pytest.raises(SettingsError, match="expected a database URL") as refused:
            work(tmp_path / "out", storage, 1)
        assert "secret" not in str(refused.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError):
        work(tmp_path / "out", f"journal://{tmp_path / 'file' / 'study.log'}", 1)
