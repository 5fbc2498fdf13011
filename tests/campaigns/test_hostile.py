"""A small run of the campaign; its last long one is in ``results/hostile.json``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_mutated_files_end_soon_and_in_one_message(tmp_path: Path) -> None:
    words = [sys.executable, str(HERE / "hostile.py"), "50", "--seed", "1", "--out", str(tmp_path / "result.json")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    words_of = [set(outcomes) for outcomes in result["outcomes"].values()]
    assert result["cases"] == 50
    assert result["failures"] == []
    assert set().union(*words_of) == {"worked", "refused"}, "some files are harmless, some are not"


def test_the_committed_result_holds_the_bounds() -> None:
    result = json.loads((HERE / "results" / "hostile.json").read_text())
    assert result["cases"] >= 400
    assert result["failures"] == []
    assert result["longest_cpu_seconds"] <= result["bounds"]["cpu_seconds"] == 5
    assert result["commit"]
