"""The entry point: stopping, full disks, closed outputs, notes of other libraries, names that would act on a terminal."""

import inspect
import logging
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runner import Run

from normalcy.cli import fit, options, results, score, studies
from normalcy.cli.printing import printable
from normalcy.errors import NormalcyWarning


def instead_of_reading(monkeypatch: pytest.MonkeyPatch, action: Any) -> None:
    """Any command that opens a data set does ``action`` in its place."""
    monkeypatch.setattr("normalcy.data.open.open_data", lambda *_, **__: action())


def raising(error: BaseException) -> Any:
    def action() -> None:
        raise error

    return action


# -- stopping


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_says_so(run: Run, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int):
    def stop() -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)

    before = signal.getsignal(signal.SIGTERM)
    interrupts = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored where the tests run in the background
    instead_of_reading(monkeypatch, stop)
    try:
        assert run("check", "anything") == code
    finally:
        signal.signal(signal.SIGINT, interrupts)
    assert run.err == "Stopped. Interrupted training resumes with --resume.\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_fit_that_is_terminated_resumes(run: Run, tiles: Path, tmp_path: Path):
    words = ["fit", str(tiles), "--method", "autoencoder", "--out", str(tmp_path / "M"), "--set", "size=16"]
    words += ["--set", "checkpoint_steps=1", "--set", "width=4", "--set", "latent=4"]
    process = subprocess.Popen(
        [sys.executable, "-m", "normalcy", *words, "--steps", "100000"], stderr=subprocess.PIPE, text=True
    )
    checkpoint = tmp_path / "M.run"
    deadline = time.monotonic() + 120
    while not list(checkpoint.glob("*checkpoint*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Stopped. Interrupted training resumes with --resume." in said
    assert "Traceback" not in said
    assert not (tmp_path / "M").exists()
    assert run(*words, "--steps", "2") == 2
    assert "resume it with --resume" in run.err


# -- errors


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(28, "No space left on device", "/out/scores.csv"), "Error: No space left on device: /out/scores.csv."),
        (PermissionError(13, "Permission denied"), "Error: Permission denied."),
        (OSError("odd"), "Error: odd."),
        (RecursionError("maximum recursion depth exceeded"), "Error: the input is nested too deeply."),
        (MemoryError(), "Error: there is not enough memory: use a smaller batch_size or size, or tile=256."),
    ],
)
def test_errors_of_the_system_are_one_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
):
    instead_of_reading(monkeypatch, raising(error))
    assert run("check", "anything") == 1
    assert run.err == f"{sentence}\n"


def test_an_error_that_is_no_users_fault_is_not_hidden(run: Run, monkeypatch: pytest.MonkeyPatch):
    instead_of_reading(monkeypatch, raising(KeyError("a fault of the program")))
    with pytest.raises(KeyError, match="a fault of the program"):
        run("check", "anything")


def test_debug_shows_tracebacks(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    instead_of_reading(monkeypatch, raising(OSError(5, "Input/output error")))
    assert run("check", "anything") == 1
    assert "raising" not in run.err
    with pytest.raises(AssertionError):  # the runner refuses every traceback
        run("--debug", "check", "anything")
    assert "OSError: [Errno 5] Input/output error" in run.err
    assert run.err.endswith("Error: Input/output error.\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_and_a_closed_pipe():
    """In a process of its own, since it is about the real stdout."""

    def normalcy(stdout: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "normalcy", "reproduce"], stdout=stdout, stderr=-1, text=True)

    with open("/dev/full", "w") as full:
        done = normalcy(full)
    assert (done.returncode, done.stderr) == (1, "Error: No space left on device.\n")
    reader, writer = os.pipe()
    os.close(reader)
    done = normalcy(writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


# -- notes


def test_notes_of_other_libraries_are_counted_and_withheld(run: Run, monkeypatch: pytest.MonkeyPatch):
    library = logging.getLogger("another library")
    library.propagate = False  # pytest has a handler at the root, a user has none

    def noisy() -> None:
        warnings.warn("a note for the user", NormalcyWarning, stacklevel=1)
        warnings.warn("Invalid value for (0010,0010): 'Doe^Jane'", UserWarning, stacklevel=1)
        library.warning("Doe^Jane again")
        raise OSError(5, "the end")

    instead_of_reading(monkeypatch, noisy)
    before = warnings.showwarning, logging.lastResort
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run("check", "anything") == 1
        assert "Doe" not in run.err
        assert run.err.splitlines() == [
            "Note: a note for the user",
            "Error: the end.",
            "2 notes of other libraries were withheld (--debug shows them).",
        ]
        with pytest.raises(AssertionError):
            run("--debug", "check", "anything")
        assert run.err.count("Doe^Jane") == 2
        assert "withheld" not in run.err
    assert (warnings.showwarning, logging.lastResort) == before


# -- what is printed


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("scan_01 ü 脳 [z=3]\tok\n", "scan_01 ü 脳 [z=3]\tok\n"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\r\x08b\x9b", r"a\x0d\x08b\x9b"),
        ("invoice\u202egnp.exe\u2066\u200f", r"invoice\u202egnp.exe\u2066\u200f"),
        (os.fsdecode(b"caf\xe9.png"), r"caf\xe9.png"),
        ("line\u2028separator\ud800", r"line\u2028separator\ud800"),
    ],
)
def test_printable(text: str, printed: str):
    assert printable(text) == printed
    printable(text).encode()


def test_names_of_files_cannot_act_on_a_terminal(run: Run, tmp_path: Path):
    names = ["\x1b[2J.png", "a\u202egnp.png", os.fsdecode(b"caf\xe9.png"), ":smile: [red]x.png", "two\nlines.png"]
    for name in names:
        (tmp_path / name).write_bytes(b"no image")
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "good.png")
    assert run("check", tmp_path) == 1
    shown = run.out + run.err
    assert not {"\x1b", "\u202e", "\udce9"} & set(shown)
    for text in (r"\x1b[2J.png", r"a\u202egnp.png", r"caf\xe9.png", ":smile: [red]x.png"):
        assert text in shown


def test_version(run: Run):
    assert run("--version") == 0
    assert run.out == f"normalcy {version('normalcy')}\n"


def test_no_command_is_a_usage_error_with_the_help(run: Run):
    assert run() == 2
    assert "Commands:" in run.out + run.err


def test_methods_are_listed_by_family(run: Run):
    from normalcy.methods import FAMILIES, METHODS, get

    assert run("methods") == 0
    listed = {line.split()[0]: line.strip() for line in run.out.splitlines() if line.startswith("  ")}
    assert set(METHODS) <= set(listed)
    named = [line.partition(":")[0] for line in run.out.splitlines() if line and not line.startswith("  ")]
    assert [name for name in named if name in FAMILIES] == [name for name in FAMILIES if name in named]
    assert run("methods", "--family", "one-class") == 0
    shown = {line.split()[0] for line in run.out.splitlines() if line.startswith("  ")}
    assert shown == {name for name in METHODS if get(name).family == "one-class"}
    assert "deep_svdd" in shown
    assert run("methods", "--family", "onclass") == 2
    assert "Available: reconstruction, restoration" in run.err


def test_defaults_are_shown_as_they_are_typed(run: Run):
    assert run("methods", "pca") == 0
    shown = dict(re.findall(r"^(\w+) {2,}(\S+) {2,}", run.out, flags=re.MULTILINE))
    expected = {"size": "none", "preprocess": "-", "slice_range": "0.0,1.0", "channels_last": "true", "seed": "0"}
    assert expected.items() <= shown.items()


# -- options


def test_commands_that_train_have_the_same_options():
    fields = list(inspect.signature(options.Training).parameters)
    for command in (studies.audit, fit.fit, studies.compare, studies.select):
        parameters = inspect.signature(command).parameters
        assert [name for name in parameters if name in fields] == fields
        assert "training" not in parameters


def test_no_command_is_long():
    for module in (fit, score, results, studies):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__:
                assert len(inspect.getsource(inspect.unwrap(function)).splitlines()) <= 60, name


def test_options_override_set_which_overrides_the_file(tmp_path: Path):
    path = tmp_path / "run.toml"
    path.write_text("epochs = 3\nseed = 1\nlatent = 4\nwidth = 8\n")
    training = options.Training(steps=7, set_=["latent=5", "seed=2"], config_file=path, seed=9)
    assert training.settings(devices=None) == {"steps": 7, "latent": "5", "width": 8, "seed": 9}


@pytest.mark.parametrize("command", ["score", "slides"])
def test_batch_size_and_rates_are_checked(run: Run, tiles: Path, model: Path, tmp_path: Path, command: str):
    assert run(command, model, tiles, "--out", tmp_path / "R", "--batch-size", "0") == 2
    assert "--batch-size must be at least 1, got 0" in run.err


def test_a_false_alarm_rate_of_zero_is_refused(run: Run, tiles: Path, model: Path, tmp_path: Path):
    assert run("score", model, tiles, "--out", tmp_path / "R", "--false-alarms", "0") == 2
    assert "false_alarms must be between 0 and 1, got 0" in run.err
    assert not (tmp_path / "R").exists()


@pytest.mark.parametrize("seeds", ["0-999999999999", "1-x", "9" * 30, "-3"])
def test_impossible_seeds_are_refused_at_once(run: Run, seeds: str):
    assert run("reproduce", "ddr_id/table-2", "--list", f"--seeds={seeds}") == 2
    assert "--seeds expects" in run.err
