"""new-method writes a package whose test passes."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from runner import Run

from normalcy.cli.new_method import METHOD, under_name


def test_the_written_test_passes(run: Run, tmp_path: Path):
    folder = tmp_path / "package"
    assert "python -m pytest" in run.good("new-method", "my_2nd", "--out", folder)
    assert {path.name for path in folder.iterdir()} == {"my_2nd.py", "test_my_2nd.py", "pyproject.toml"}
    points = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"]["normalcy.methods"]
    assert points == {"my_2nd": "my_2nd:My2nd"}
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ))
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    lint = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--select",
        "E,F,I,B",
        "--line-length",
        "120",
        str(folder),
    ]
    assert subprocess.run(lint, capture_output=True, text=True).returncode == 0
    assert run("new-method", "my_2nd", "--out", folder) == 2


@pytest.mark.parametrize("name", ["pca", "My", "two words", "../up", "class", "für", "1st"])
def test_a_name_that_cannot_be_used(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(tmp_path)
    assert run("new-method", name) == 2
    assert repr(name) in run.err
    assert not list(tmp_path.iterdir())


def test_no_old_name_is_left():
    assert "utoencoder" not in under_name(METHOD, "mine").partition("\n")[2].replace("Linear autoencoder", "")
