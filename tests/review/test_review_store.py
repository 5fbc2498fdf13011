"""Decisions on disk: nothing lost, nothing overwritten, tables that other commands read."""

import csv
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from normalcy.errors import DataError, WriteError
from normalcy.files import open_database
from normalcy.results.labels import read_labels
from normalcy.review.labels import Known, by_image, consensus, write_labels
from normalcy.review.store import Decision, Store, folder_of


def test_decisions_come_back(tmp_path: Path):
    store = Store(tmp_path / "review")
    one = store.add(Decision("a/1.png", "anna", "anomalous", "crack", "see the edge"))
    store.add(Decision("a/1.png", "ben", "normal"))
    store.add(Decision("a/2.png", "anna", "unsure"))
    assert one.seq == 1
    assert one.time.endswith("+00:00")
    store.close()
    again = Store(tmp_path / "review")
    assert [(d.image, d.reviewer, d.verdict) for d in again.current()] == [
        ("a/1.png", "anna", "anomalous"),
        ("a/1.png", "ben", "normal"),
        ("a/2.png", "anna", "unsure"),
    ]
    assert again.of("a/1.png", "anna") == one
    assert again.of("a/1.png", "carl") is None


def test_the_last_decision_counts_and_none_is_lost(tmp_path: Path):
    store = Store(tmp_path)
    for verdict in ("normal", "anomalous", ""):
        store.add(Decision("a", "anna", verdict))
    assert store.current() == []
    assert [d.verdict for d in store.after()] == ["normal", "anomalous", ""]
    assert [d.seq for d in store.after(2)] == [3]
    store.add(Decision("a", "anna", "unsure"))
    assert [d.verdict for d in store.current()] == ["unsure"]


WRITER = """
import sys
from normalcy.review.store import Decision, Store
from pathlib import Path
store = Store(Path(sys.argv[1]))
for k in range(100000):
    store.add(Decision(f"image {k}", "anna", "normal"))
    print(k, flush=True)
"""


def test_a_killed_process_loses_nothing(tmp_path: Path):
    """Every decision that was confirmed is there after SIGKILL."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    confirmed = [int(process.stdout.readline()) for _ in range(40)]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    found = {d.image for d in Store(tmp_path).current()}
    assert {f"image {k}" for k in confirmed} <= found


def test_two_processes_and_many_threads(tmp_path: Path):
    stores = [Store(tmp_path), Store(tmp_path)]

    def work(store: Store, name: str) -> None:
        for k in range(25):
            store.add(Decision(f"image {k}", name, "normal"))

    threads = [threading.Thread(target=work, args=(stores[k % 2], f"reviewer {k}")) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores[0].current()) == 100
    assert len({d.seq for d in stores[1].after()}) == 100


def test_all_or_none(tmp_path: Path):
    store = Store(tmp_path)
    with pytest.raises(DataError, match="must be normal, anomalous"):
        store.add_all([Decision("a", "anna", "normal"), Decision("b", "anna", "perhaps")])
    assert store.current() == []


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        (Decision("a", "anna", "maybe"), "must be normal"),
        (Decision("a", "  ", "normal"), "name of its reviewer"),
        (Decision("a", "an\x00na", "normal"), "name of its reviewer"),
        (Decision("a", "a" * 61, "normal"), "may have 60 characters"),
        (Decision("a", "anna", "anomalous", "t" * 61), "may have 60 characters"),
        (Decision("a", "anna", "normal", note="n" * 2001), "may have 2000 characters"),
    ],
)
def test_what_is_no_decision(tmp_path: Path, decision: Decision, message: str):
    with pytest.raises(DataError, match=message):
        Store(tmp_path).add(decision)


def test_read_only(tmp_path: Path):
    assert Store(tmp_path / "none", read_only=True).current() == []
    assert not (tmp_path / "none").exists()
    Store(tmp_path).add(Decision("a", "anna", "normal"))
    only = Store(tmp_path, read_only=True)
    assert len(only.current()) == 1
    with pytest.raises(DataError, match="read-only"):
        only.add(Decision("a", "anna", "unsure"))


def test_what_is_no_database(tmp_path: Path):
    (tmp_path / "review.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(DataError, match="no SQLite database"):
        Store(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="not a regular file"):
        open_database(tmp_path / "pipe")
    (tmp_path / "target").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(DataError, match="not a regular file"):
        open_database(tmp_path / "link")
    with pytest.raises(WriteError, match="cannot be"):
        open_database(tmp_path / "target" / "below" / "a.sqlite")


def test_folders_of_reviewers_differ():
    names = ["anna", "Anna", "ANNA", "an/na", "an_na", "..", ".", "ü", "a b", "a_b"]
    folders = [folder_of(name) for name in names]
    assert len({folder.casefold() for folder in folders}) == len(names)
    assert not any("/" in folder or folder.strip(".") == "" for folder in folders)


# -- together


def test_together():
    def label(*words: str) -> int | None:
        return consensus([Decision("a", f"r{k}", word) for k, word in enumerate(words)]).label

    assert label("normal", "normal") == 0
    assert label("anomalous", "unsure") == 1
    assert label("unsure") is None
    assert label("anomalous", "normal") is None
    apart = consensus([Decision("a", "anna", "anomalous"), Decision("a", "ben", "normal", note="dust")])
    assert apart.note == "reviewers disagree: anna anomalous, ben normal | dust"


def test_tables(tmp_path: Path):
    """labels.csv has a row for each image, decisions.csv one for each decision."""
    folder = tmp_path / "results" / "review"
    store = Store(folder)
    image = tmp_path / "data" / "x, 1.png"
    for decision in (
        Decision("x, 1.png", "anna", "anomalous", "crack", 'say "so"', "masks/anna/x, 1.png.png"),
        Decision("x, 1.png", "ben", "anomalous", "", ""),
        Decision("in the zip/2.png", "ben", "normal"),
        Decision("in the zip/3.png", "ben", "normal"),
        Decision("in the zip/3.png", "ben", ""),
    ):
        store.add(decision)

    def known(path: str) -> Known:
        return Known(str(image), True, case="patient 7") if path == "x, 1.png" else Known(path, False)

    file = write_labels(store, known)
    rows = list(csv.DictReader(file.open(newline="")))
    assert [(r["path"], r["label"], r["type"], r["mask"], r["case"], r["reviewer"], r["image"]) for r in rows] == [
        ("../../data/x, 1.png", "1", "crack", "masks/anna/x, 1.png.png", "patient 7", "anna; ben", "x, 1.png"),
        ("in the zip/2.png", "0", "", "", "", "ben", "in the zip/2.png"),
    ]
    each = list(csv.DictReader((folder / "decisions.csv").open(newline="")))
    assert [(r["image"], r["reviewer"], r["verdict"]) for r in each] == [
        ("x, 1.png", "anna", "anomalous"),
        ("x, 1.png", "ben", "anomalous"),
        ("in the zip/2.png", "ben", "normal"),
    ]
    assert len(by_image(store.current())) == 2


def test_what_a_spreadsheet_would_run_is_text(tmp_path: Path):
    store = Store(tmp_path / "review")
    store.add(Decision("=1+1.png", "anna", "anomalous", "@type", "=cmd|' /C calc'!A0"))
    file = write_labels(store, lambda path: Known(path, False))
    [row] = csv.DictReader(file.open(newline=""))
    assert (row["image"], row["type"], row["note"]) == ("'=1+1.png", "'@type", "'=cmd|' /C calc'!A0")
    [label] = read_labels(file).rows
    assert (label.image, label.type) == ("=1+1.png", "@type")
