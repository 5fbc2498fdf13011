"""Where numbers come from: the commit and whether files are changed, versions, hardware, records."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from normalcy import provenance


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, from which the package seems to run."""
    folder = tmp_path / "repository" / "package"
    folder.mkdir(parents=True)
    (folder / "provenance.py").write_text("1\n")
    (tmp_path / "repository" / "readme.md").write_text("1\n")
    git(folder.parent, "init", "-q")
    git(folder.parent, "add", ".")
    git(folder.parent, "commit", "-q", "-m", "first")
    monkeypatch.setattr(provenance, "__file__", str(folder / "provenance.py"))
    return folder


def test_commit_says_whether_files_of_the_package_are_changed(checkout: Path):
    head = git(checkout, "rev-parse", "HEAD")
    assert len(head) == 40
    assert provenance.commit() == head
    (checkout.parent / "readme.md").write_text("2\n")
    (checkout / "new.py").write_text("1\n")
    assert provenance.commit() == head, "files beside the package and untracked ones do not count"
    (checkout / "provenance.py").write_text("2\n")
    assert provenance.commit() == head + "+"
    git(checkout, "commit", "-q", "-a", "-m", "second")
    assert provenance.commit() == git(checkout, "rev-parse", "HEAD") != head


def test_no_commit_outside_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.commit() is None


def test_no_commit_without_git(checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.commit() is None


def test_versions_are_those_that_are_installed():
    found = provenance.versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == version("torch")
    assert found["normalcy"] == version("normalcy")
    assert all(isinstance(value, str) for value in found.values())


def test_hardware_of_this_machine():
    found = provenance.hardware()
    assert found["processor"]
    assert found["cores"] == os.cpu_count()
    if Path("/proc/meminfo").exists():
        kib = int(Path("/proc/meminfo").read_text().partition("MemTotal:")[2].split()[0])
        assert found["memory_gib"] == pytest.approx(kib / 2**20, abs=0.1)
    assert ("gpu" in found) == torch.cuda.is_available()


def test_a_record_holds_the_result_and_where_it_comes_from(tmp_path: Path, checkout: Path):
    days = [datetime.now(UTC).date().isoformat()]
    provenance.write_record(tmp_path / "record.json", {"auroc": 0.93, "words": ["a", "b"]})
    days.append(datetime.now(UTC).date().isoformat())  # another one at midnight
    text = (tmp_path / "record.json").read_text()
    record = json.loads(text)
    assert list(record) == ["auroc", "words", "commit", "date", "hardware", "versions"]
    assert (record["auroc"], record["words"]) == (0.93, ["a", "b"])
    assert record["commit"] == git(checkout, "rev-parse", "HEAD")
    assert record["date"] in days
    assert record["hardware"] == provenance.hardware()
    assert record["versions"] == provenance.versions()
    assert text.endswith("}\n")
