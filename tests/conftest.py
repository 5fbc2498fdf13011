"""What tests of several folders need: the command line, and scripts of the repository as modules."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from runner import Run

collect_ignore_glob = ["*conftest.py"]
"""They have no doctests, and as modules the conftest.py of all folders would have one name."""
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(monkeypatch, capsys)


@pytest.fixture(scope="session")
def module_of() -> Callable[[str], ModuleType]:
    """Loads a file outside of the package, by its path from the root of the repository, as a module."""

    def load(path: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(Path(path).stem, REPOSITORY / path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
