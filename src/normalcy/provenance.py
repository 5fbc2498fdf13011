"""Where numbers come from: commit, versions, hardware. Written beside every result."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from normalcy.errors import DataError
from normalcy.files import read_text, write_bytes

NOTICE = "This is research output: it is no diagnosis, and must not be used to make one."
"""Said wherever results of medical images are shown."""


def commit() -> str | None:
    """The commit of the working tree that this code runs from, with "+" where files are changed; None outside one."""
    here = str(Path(__file__).resolve().parent)
    try:
        head = _git(here, "rev-parse", "HEAD")
        return head + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    """Versions of what numbers depend on, as far as it is installed; imports nothing."""
    packages = ("normalcy", "normalcy-runtime", "torch", "timm", "scikit-learn", "numpy", "onnxruntime", "openvino")
    found = {"python": platform.python_version()}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores, memory in GiB, and GPU where there is one."""
    facts: dict[str, Any] = {"processor": _processor(), "cores": os.cpu_count()}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    import torch

    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def write_record(path: Path, result: Mapping[str, Any]) -> None:
    """A result with its provenance, as a small JSON file, whole or not at all."""
    facts = {
        **result,
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(),
        "versions": versions(),
    }
    write_bytes(path, (json.dumps(facts, indent=1) + "\n").encode())


def _git(folder: str, *words: str) -> str:
    done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()


def _processor() -> str:
    with suppress(DataError):
        for line in read_text("/proc/cpuinfo").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
