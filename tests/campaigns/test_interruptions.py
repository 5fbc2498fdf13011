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
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["failures"] == []
    assert result["points"]["kills"] >= 3
    assert result["points"]["faults"] == 5, "it neither syncs nor lacks the calls of the five other faults"
    assert result["points"]["two processes"] == 1
    assert result["points"]["signals"] == 2


def test_the_committed_result_is_whole() -> None:
    result = json.loads((HERE / "results" / "interruptions.json").read_text())
    assert result["failures"] == []
    assert result["points"]["kills"] - result["points"]["kills not reached"] >= 200
    assert result["points"]["faults"] + result["points"]["small disks"] >= 50
    assert min(result["points"][part] for part in ("two processes", "signals", "clocks", "changes")) >= 20
    assert len(result["outcomes"]["kills"]) >= 20, "every command that writes"
    assert {one.get("rows") for one in result["measured"]} >= {1_000_000}
    assert result["commit"]
    assert result["hardware"]
    assert result["seconds"] > 0
