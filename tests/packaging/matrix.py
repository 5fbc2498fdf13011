"""Build normalcy, install it in fresh environments without extras and with each, and check what is installed.

    python tests/packaging/matrix.py [--python 3.11 ...] [--extra NAME ...] [--lowest] [--pin torch==2.15.0 ...]

Needs uv, and its cache or a network. ``--lowest`` takes the least versions that pyproject.toml allows (uv's lowest-direct);
``--pin`` fixes others. Writes ``tests/packaging/results.json``, a row for each environment; rows of other runs stay.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results.json")
NO_EXTRA = "none"


def uv() -> str:
    """uv of this environment, else of the path."""
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        sys.exit("uv is needed: python -m pip install uv")
    return found


def build(folder: Path) -> tuple[Path, Path]:
    """The wheel and the source distribution of the working tree."""
    subprocess.run([uv(), "build", "--quiet", "--out-dir", str(folder), str(ROOT)], check=True)
    return next(folder.glob("normalcy-*.whl")), next(folder.glob("normalcy-*.tar.gz"))


def extras() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return [NO_EXTRA, *(name for name in project["optional-dependencies"] if name != "dev")]


def check(archive: Path, python: str, extra: str, folder: Path, lowest: bool, pins: list[str]) -> dict[str, Any]:
    """Install an archive with an extra in a new environment and run ``installed.py`` there; a row of the results."""
    row: dict[str, Any] = {"archive": archive.name, "asked": python, "extra": extra, "lowest": lowest, "pins": pins}
    start = time.monotonic()
    wanted = str(archive) if extra == NO_EXTRA else f"{archive}[{extra}]"
    place = folder / "environment"
    interpreter = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = ["pip", "install", "--quiet", "--python", str(interpreter), wanted, *pins]
    resolve: list[list[str]] = []
    if lowest:  # of what pyproject.toml requires; of a wheel these are not direct
        (folder / "pins.txt").write_text("\n".join(pins))
        options = [
            "--resolution",
            "lowest-direct",
            "--python-version",
            python,
            "--constraints",
            str(folder / "pins.txt"),
        ]
        options += ["--extra", extra] if extra != NO_EXTRA else []
        requirements = str(folder / "lowest.txt")
        resolve = [[uv(), "pip", "compile", "--quiet", *options, "-o", requirements, str(ROOT / "pyproject.toml")]]
        install += ["--requirements", requirements]
    program = str(Path(__file__).with_name("installed.py"))
    words = ["--without-fit", extra] if extra != NO_EXTRA else []  # the fit is that of the environment without extras
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for step in (
        [uv(), "venv", "--quiet", "--clear", "--python", python, str(place)],
        *resolve,
        [uv(), *install],
        [str(interpreter), program, *words],
    ):
        done = subprocess.run(step, capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            reason = (done.stderr.strip() or done.stdout.strip()).replace(str(folder), "").replace(str(ROOT), "")
            return {**row, "ok": False, "reason": reason[-600:], "seconds": round(time.monotonic() - start)}
    listed = subprocess.run(
        [uv(), "pip", "list", "--format", "json", "--python", str(interpreter)], capture_output=True, text=True
    )
    packages = {one["name"]: one["version"] for one in json.loads(listed.stdout)}
    own = {name: packages[name] for name in sorted(packages) if name in direct()}
    return {**row, **json.loads(done.stdout), "ok": True, "seconds": round(time.monotonic() - start), "packages": own}


def direct() -> set[str]:
    """Names of the distributions that pyproject.toml requires."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = [*project["dependencies"], *(line for each in project["optional-dependencies"].values() for line in each)]
    return {line.replace("[", ">").partition(">")[0].strip() for line in lines} - {"normalcy"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=[f"{sys.version_info[0]}.{sys.version_info[1]}"])
    parser.add_argument("--extra", nargs="+", choices=extras(), default=extras())
    parser.add_argument("--lowest", action="store_true")
    parser.add_argument("--sdist", action="store_true", help="install the source distribution instead of the wheel")
    parser.add_argument("--pin", nargs="+", default=[])
    asked = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        wheel, source = build(Path(folder))
        for python in asked.python:
            for extra in asked.extra:
                archive = source if asked.sdist else wheel
                row = check(archive, python, extra, Path(folder), asked.lowest, asked.pin)
                failed += not row["ok"]
                print(
                    f"Python {python}, {extra}: {'ok' if row['ok'] else row['reason']} ({row['seconds']} s)", flush=True
                )
                keep(row)
    return int(failed > 0)


def keep(row: dict[str, Any]) -> None:
    """Put a row into the results, in the place of an earlier one of the same environment."""

    def key(one: dict[str, Any]) -> tuple[Any, ...]:
        return one["archive"].endswith(".whl"), one["asked"], one["extra"], one["lowest"]

    rows = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else []
    rows = [one for one in rows if key(one) != key(row)] + [row]
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
