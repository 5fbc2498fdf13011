"""Completion: candidates, settings read from source, and the scripts in the real shells."""

import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from runner import Run

from normalcy.cli.app import app
from normalcy.cli.completion import SCRIPTS, candidates, settings_in_source, tables, words_of
from normalcy.config import fields_of
from normalcy.methods import METHODS, get
from normalcy.studies import tables as published


def completed(line: str) -> list[str]:
    *words, incomplete = line.split(" ")
    return candidates(app, words, incomplete)


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("", ["fit", "score", "new-method", "completion"]),
        ("fit data --meth", ["--method"]),
        ("fit data --method deep_", ["deep_geo", "deep_if", "deep_knn", "deep_svdd"]),
        ("fit data --method vae --set lat", ["latent="]),
        ("fit data --method vae --set epo", ["epochs="]),
        ("fit data --method ocgan --set score=", ["score=reconstruction", "score=discriminator"]),
        ("fit data --set bb", []),
        ("fit data --device ", ["auto", "cpu", "cuda", "mps"]),
        ("fit cifar10:ca", ["cifar10:cat"]),
        ("fit el", ["elpv"]),
        ("fit mvtec:bo", ["mvtec:bottle"]),
        ("methods --family one", ["one-class"]),
        ("methods patchc", ["patchcore"]),
        ("compare data --methods pca,z", ["pca,zscore"]),
        ("compare data --methods pca,vae --set vae.lat", ["vae.latent="]),
        ("select data --method ocgan --try score=reconstruction|d", ["score=reconstruction|discriminator"]),
        ("reproduce ddr_id/table-2", ["ddr_id/table-2", "ddr_id/table-2-short"]),
        ("review R --order inf", ["informative"]),
        ("export M --to ", ["onnx", "openvino"]),
        ("completion ", ["bash", "zsh", "fish"]),
    ],
)
def test_candidates(line: str, some: list[str]):
    found = completed(line)
    assert set(some) <= set(found)
    if line[-1:].isalnum() or not some:
        assert found == some


def test_scores_are_those_of_the_model(tmp_path: Path):
    (tmp_path / "detector.json").write_text('{"method": "alocc"}')
    assert completed(f"score {tmp_path} data --score re") == ["reconstruction", "refined"]


def test_data_completes_names_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("magnets", "mnt"):
        (tmp_path / name).mkdir()
    assert completed("fit ma") == ["magnetic_tile", "magnets/"]
    assert completed("fit magnets/") == []  # the shell completes files


@pytest.mark.parametrize("name", METHODS)
def test_settings_in_source_are_those_of_the_class(name: str):
    settings = get(name).Settings
    hints = get_type_hints(settings)
    expected = {word: tuple(words_of(hints[word])) for word in fields_of(settings)}
    assert {word: tuple(values) for word, values in settings_in_source(METHODS[name]).items()} == expected


def test_tables_are_the_published_ones():
    assert tables(None, "") == published.tables()  # type: ignore[arg-type]


def test_completion_does_not_import_torch():
    line = "normalcy fit data --method vae --set score="
    code = """
import sys
from normalcy.cli.app import main
try:
    main()
except SystemExit:
    print(*sys.modules, file=sys.stderr)
"""
    environment = {**os.environ, "_NORMALCY_COMPLETE": "zsh", "_NORMALCY_LINE": line}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "score=elbo" in done.stdout.split()
    assert not {"torch", "sklearn", "scipy", "matplotlib"} & {*done.stderr.split()}


def test_a_line_that_cannot_be_completed_prints_nothing(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("_NORMALCY_COMPLETE", "bash")
    for line in ("normalcy score nowhere data --score ", "normalcy 'open"):
        monkeypatch.setenv("_NORMALCY_LINE", line)
        assert run() == 0
        assert (run.out, run.err) == ("", "")


def test_an_unknown_shell_is_refused(run: Run):
    assert run("completion", "tcsh") == 2
    assert "Available: bash, zsh, fish." in run.err
    for shell, script in SCRIPTS.items():
        assert run.good("completion", shell) == script


# -- in the shells


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A normalcy on the path that is the one under test, and the scripts."""
    folder = tmp_path_factory.mktemp("bin")
    command = folder / "normalcy"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m normalcy "$@"\n')
    command.chmod(0o755)
    for shell, script in SCRIPTS.items():
        (folder / f"normalcy.{shell}").write_text(script)
    (folder / "empty").mkdir()
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {
        **os.environ,
        "PATH": path,
        "SCRIPTS": str(folder),
        "HOME": str(folder),
        "TERM": "dumb",
        "LC_ALL": "C.UTF-8",
    }


def in_shell(shell: str, code: str, environment: dict[str, str]) -> list[str]:
    options = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    done = subprocess.run(
        [shell, *options, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(environment["SCRIPTS"]) / "empty",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def needs(shell: str) -> Any:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed")


LINES = [
    ("normalcy fit data --method deep_s", ["deep_svdd"], ["deep_svdd"]),
    ("normalcy fit data --method ocgan --set score=", ["score=reconstruction", "score=discriminator"], None),
    ("normalcy fit cifar10:ca", ["cifar10:cat"], ["cat"]),
]
"""A line, what replaces its last word, and what bash puts after the last "=" or ":" of it."""


@needs("bash")
@pytest.mark.parametrize(("line", "whole", "rest"), LINES)
def test_bash(line: str, whole: list[str], rest: list[str] | None, environment: dict[str, str]):
    code = f"""source "$SCRIPTS/normalcy.bash"
        COMP_LINE='{line}' COMP_POINT={len(line)}
        _normalcy_completion normalcy; printf '%s\\n' "${{COMPREPLY[@]}}" """
    expected = [word.partition("=")[2] for word in whole] if rest is None else rest
    assert in_shell("bash", code, environment) == expected


@needs("bash")
def test_the_tab_key_in_bash(environment: dict[str, str]):
    """An interactive bash on a pseudo-terminal completes a line, which is then echoed."""
    pty = pytest.importorskip("pty", reason="needs a terminal as Unix has them")
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(Path(environment["SCRIPTS"]) / "empty")
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environment)
    try:
        os.write(terminal, b'source "$SCRIPTS/normalcy.bash"; PS1=ready\n')
        assert "ready" in "".join(_until(terminal, "\nready"))
        os.write(
            terminal, b"echo normalcy\rnormalcy fit data --method vae --set laten\t64 --device cu\t\x01echo [\x05]\r"
        )
        assert "[normalcy fit data --method vae --set latent=64 --device cuda ]" in "".join(_until(terminal, "cuda ]"))
    finally:
        os.write(terminal, b"\x03exit\n")
        os.close(terminal)
        os.waitpid(process, 0)


def _until(terminal: int, wanted: str) -> Iterator[str]:
    text, deadline = "", time.monotonic() + 120
    while wanted not in text and time.monotonic() < deadline:
        if select.select([terminal], [], [], 1)[0]:
            part = os.read(terminal, 4096).decode(errors="replace")
            text += part
            yield part


@needs("zsh")
@pytest.mark.parametrize(("line", "whole", "rest"), LINES)
def test_zsh(line: str, whole: list[str], rest: list[str] | None, environment: dict[str, str]):
    code = f"""compdef() {{ }}
        compadd() {{ while [[ $1 != -- ]]; do shift; done; shift; print -l -- "$@" }}
        source "$SCRIPTS/normalcy.zsh"
        words=({line.replace("data", "'my data'")}) CURRENT=$#words
        _normalcy"""
    assert in_shell("zsh", code, environment) == whole


@needs("fish")
@pytest.mark.parametrize(("line", "whole", "rest"), LINES)
def test_fish(line: str, whole: list[str], rest: list[str] | None, environment: dict[str, str]):
    code = f'source "$SCRIPTS/normalcy.fish"; complete -C "{line}"'
    assert sorted(in_shell("fish", code, environment)) == sorted(whole)
