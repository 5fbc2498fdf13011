"""The package normalcy_runtime, made of those modules of normalcy that scoring by an exported model imports."""

import ast
import re
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ENTRIES = ("export/scorer.py", "export/command.py")
FACADE = '''"""Scores images by models that normalcy exported."""

from normalcy_runtime.export.scorer import Scorer, load

__all__ = ["Scorer", "load"]
__version__ = "{version}"
'''


class RuntimeSources(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root).parent / "src" / "normalcy"
        self._made = tempfile.TemporaryDirectory()
        made = Path(self._made.name)
        files = closure(root)
        for file in files:
            text = re.sub(
                r"(?m)^(\s*)(from|import) normalcy\b", r"\1\2 normalcy_runtime", (root / file).read_text("utf-8")
            )
            (made / file).parent.mkdir(parents=True, exist_ok=True)
            (made / file).write_text(text, "utf-8")
        (made / "__init__.py").write_text(FACADE.format(version=self.metadata.version), "utf-8")
        (made / "py.typed").write_text("", "utf-8")
        build_data["force_include"] |= {
            str(made / f): f"normalcy_runtime/{f}" for f in (*files, "__init__.py", "py.typed")
        }

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self._made.cleanup()


def closure(root: Path) -> list[str]:
    """Files below ``root`` that the entries import when they are imported, and what these import, and so on.

    Imports inside functions and for annotations alone are left out: they are what scoring does not need.
    """
    found: set[str] = set()
    waiting = list(ENTRIES)
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        parent = Path(file).parent
        while parent.parts:
            waiting.append((parent / "__init__.py").as_posix())
            parent = parent.parent
        for node in ast.parse((root / file).read_text("utf-8")).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "normalcy":
                base = Path(*node.module.split(".")[1:])
                for target in (base, *(base / alias.name for alias in node.names)):
                    for path in (target.with_suffix(".py"), target / "__init__.py") if target.parts else ():
                        if (root / path).is_file():
                            waiting.append(path.as_posix())
    return sorted(found)
