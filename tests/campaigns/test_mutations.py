"""A small run of the campaign of mutations; its last long one is in ``results/mutations.json``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_mutated_folders_work_or_are_refused(tmp_path: Path) -> None:
    words = [
        sys.executable,
        str(HERE / "mutations.py"),
        "12",
        "--few",
        "--seed",
        "1",
        "--out",
        str(tmp_path / "r.json"),
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    folders = json.loads((tmp_path / "r.json").read_text())["folders"]
    assert {kind: part["cases"] for kind, part in folders.items()} == {"models": 12, "results": 12, "exported": 1}
    assert set().union(*(part["outcomes"] for part in folders.values())) == {"worked", "refused"}


def test_the_committed_result_holds_the_bounds() -> None:
    result = json.loads((HERE / "results" / "mutations.json").read_text())
    bounds = result["bounds"]
    assert set(result["folders"]) == {"models", "results", "exported"}
    for part in result["folders"].values():
        assert part["failures"] == []
        assert set(part["outcomes"]) == {"worked", "refused"}
        assert part["cases"] == sum(part["outcomes"].values())
        assert part["longest_cpu_seconds"] <= bounds["cpu_seconds"] == 5
        assert part["largest_memory_mib"] <= bounds["memory_bytes"] / 2**20 == 2048
    cases = {kind: part["cases"] for kind, part in result["folders"].items()}
    assert cases == {"models": 5000, "results": 5000, "exported": 300}
    assert result["commit"]
