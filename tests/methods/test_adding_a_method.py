"""Adding a method to normalcy touches its file, one line of METHODS and its own test; all else follows from these."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAME = "linear_autoencoder"
OWN_TEST = '''"""Facts of the linear autoencoder."""

CONTRACT = {"epochs": 40}


def test_the_latent_dimension_is_that_of_the_settings() -> None:
    from normalcy.methods.linear_autoencoder import LinearAutoencoder, LinearAutoencoderSettings

    method = LinearAutoencoder(LinearAutoencoderSettings(latent=3), (1, 8, 8))
    assert method.encoder.out_features == 3
'''


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the method of docs/how-to/add-a-method.md added."""
    copy = tmp_path_factory.mktemp("repository")
    for part in ("src", "tests/methods", "docs", "recipes", "benchmarks"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / part, copy / part, ignore=ignored)
    for file in ("README.md", "pyproject.toml", "zensical.toml"):
        shutil.copy(ROOT / file, copy / file)
    page = (ROOT / "docs" / "how-to" / "add-a-method.md").read_text(encoding="utf-8")
    [method] = re.findall(r"<!-- method -->\n```python\n(.*?)```", page, flags=re.DOTALL)
    method = method.replace("spatial_dims = (2, 3)", "spatial_dims = (2,)")  # half the contract tests
    (copy / f"src/normalcy/methods/{NAME}.py").write_text(method, encoding="utf-8")
    (copy / f"tests/methods/test_{NAME}.py").write_text(OWN_TEST, encoding="utf-8")
    registry = copy / "src/normalcy/methods/__init__.py"
    line = f'    "{NAME}": "normalcy.methods.{NAME}:LinearAutoencoder",\n'
    text = registry.read_text(encoding="utf-8")
    registry.write_text(text.replace('    "lsr": ', f'{line}    "lsr": ', 1), encoding="utf-8")
    return copy


def changed(copy: Path) -> set[str]:
    """Files of the copy that the repository does not have, or has with another content; made pages apart."""
    files = {p.relative_to(copy).as_posix() for part in ("src", "tests") for p in (copy / part).rglob("*.py")}
    return {f for f in files if not (ROOT / f).exists() or not filecmp.cmp(ROOT / f, copy / f, shallow=False)}


def run(copy: Path, *words: str) -> str:
    """The output of a Python command in the copy."""
    environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_three_places_are_touched(copy: Path) -> None:
    assert changed(copy) == {
        f"src/normalcy/methods/{NAME}.py",
        "src/normalcy/methods/__init__.py",
        f"tests/methods/test_{NAME}.py",
    }
    before = (ROOT / "src/normalcy/methods/__init__.py").read_text(encoding="utf-8").splitlines()
    after = (copy / "src/normalcy/methods/__init__.py").read_text(encoding="utf-8").splitlines()
    assert len(after) == len(before) + 1


def test_the_command_line_and_the_pages_follow(copy: Path) -> None:
    listed = run(copy, "-m", "normalcy", "methods")
    assert "Linear autoencoder; the anomaly score is the mean squared reconstruction error." in " ".join(listed.split())
    settings = run(copy, "-m", "normalcy", "methods", NAME)
    assert "Latent dimension." in settings
    run(copy, "docs/make_pages.py")
    page = (copy / f"docs/methods/{NAME}.md").read_text(encoding="utf-8")
    assert "Neural networks and principal component analysis" in page
    assert NAME in (copy / "docs/reference/methods.md").read_text(encoding="utf-8")
    assert "Neural networks and principal component analysis" in (copy / "docs/reference/papers.md").read_text("utf-8")


def test_the_contract_tests_take_its_settings(copy: Path) -> None:
    words = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/methods/test_contract.py", "-k", NAME)
    assert "100%" in run(copy, *words)  # the exit status is 0 only where some ran and all passed
