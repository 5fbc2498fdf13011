"""The version of a release stands in the same words everywhere.

    python tests/packaging/versions.py [TAG]

Ends with an error message where pyproject.toml, ``normalcy.__version__``, CHANGELOG.md and the tag (v1.2.3) do not agree.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def problems(tag: str | None = None, root: Path = ROOT) -> list[str]:
    """What does not agree; with a ``tag``, also what a release lacks."""
    version = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    found = []
    package = (root / "src" / "normalcy" / "__init__.py").read_text("utf-8")
    if f'__version__ = "{version}"' not in package:
        found.append(f"normalcy.__version__ is not {version}, the version in pyproject.toml.")
    newest = re.search(r"^## (\S+)( \(unreleased\))?", (root / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    if newest is None or newest[1] != version:
        found.append(f"The newest section of CHANGELOG.md is {newest and newest[1]}, expected {version}.")
    if tag is not None and tag != f"v{version}":
        found.append(f"The tag is {tag}, expected v{version}.")
    if tag is not None and newest is not None and newest[2]:
        found.append(f"CHANGELOG.md says that {version} is unreleased; put the date there.")
    return found


if __name__ == "__main__":
    if wrong := problems(*sys.argv[1:2]):
        sys.exit("\n".join(wrong))
