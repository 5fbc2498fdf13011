"""A few points of the campaign; its last whole run is in ``results/interruptions.json``."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TRACED = sys.platform == "linux" and platform.machine() == "x86_64"


@pytest.mark.skipif(not TRACED, reason="system calls are traced by their numbers on x86-64 under Linux")
def test_disturbed_commands_leave_old_or_new(tmp_path: Path) -> None:
    words = [
        sys.executable,
        str(HERE / "interruptions.py"),
        "--few",
        "--jobs",
        "1",
        "--out",
        str(tmp_path / "result.json"),
    ]
    words += ["--parts", "kills,faults,two processes,signals", "--commands", "score --overwrite"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parts = json.loads((tmp_path / "result.json").read_text())["parts"]
    assert all(part["failures"] == [] for part in parts.values())
    assert parts["kills"]["points"] >= 3
    assert parts["faults"]["points"] == 6, "it does not sync"
    assert parts["two processes"]["points"] == 1
    assert parts["signals"]["points"] == 2


def test_the_committed_result_is_whole() -> None:
    result = json.loads((HERE / "results" / "interruptions.json").read_text())
    parts = result["parts"]
    assert [failure for part in parts.values() for failure in part["failures"]] == []
    points = {name: part["points"] for name, part in parts.items()}
    assert points["kills"] - parts["kills"]["not_reached"] >= 200
    assert points["faults"] + points["small disks"] >= 50
    assert min(points[name] for name in ("two processes", "signals", "clocks", "changes")) >= 20
    assert len(parts["kills"]["outcomes"]) >= 24
    assert all(part["commits"] and part["seconds_of_the_runs"] > 0 for part in parts.values())
    assert result["hardware"]
