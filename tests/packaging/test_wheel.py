"""The wheel: what it holds, and that it works in an environment of its own. ``matrix.py`` beside this file tries fresh ones."""

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("normalcy-*.whl"))


def test_the_wheel_holds_the_package_and_no_more(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"normalcy", next(top for top in tops if top.endswith(".dist-info"))}
    inside = {name.removeprefix("normalcy/") for name in names if name.startswith("normalcy/")}
    package = ROOT / "src" / "normalcy"
    there = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    assert inside == {name for name in there if "__pycache__" not in name}
    assert "py.typed" in inside


def test_the_wheel_works_in_an_environment_of_its_own(wheel: Path, tmp_path: Path):
    """Installed without dependencies; those are seen in the environment of the tests."""
    place = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    interpreter = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    ask = [str(interpreter), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    others = next(path for path in map(Path, sys.path) if (path / "torch").is_dir())
    (site / "others.pth").write_text(f"{others}\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    program = str(Path(__file__).with_name("installed.py"))
    done = subprocess.run([str(interpreter), program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["normalcy"] in wheel.name


@pytest.fixture(scope="module")
def programs(module_of: Callable[[str], ModuleType]) -> tuple[ModuleType, ModuleType]:
    return module_of("tests/packaging/matrix.py"), module_of("tests/packaging/installed.py")


def test_every_extra_is_checked(programs: tuple[ModuleType, ModuleType]):
    matrix, installed = programs
    assert set(matrix.extras()) == {matrix.NO_EXTRA, *installed.MODULES}


def test_the_committed_results_are_of_every_extra_and_good(programs: tuple[ModuleType, ModuleType]):
    matrix, _ = programs
    rows = json.loads(matrix.RESULTS.read_text("utf-8"))
    assert {row["extra"] for row in rows if row["ok"]} == set(matrix.extras())
    assert all(row["ok"] for row in rows), [row for row in rows if not row["ok"]]
    assert any(row["lowest"] for row in rows)
    assert any(row["archive"].endswith(".tar.gz") for row in rows)


def test_metadata_and_workflow_name_the_same_python_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = [
        line.rpartition(" ")[2]
        for line in project["classifiers"]
        if line.startswith("Programming Language") and "3." in line
    ]
    assert named == ["3.11", "3.12", "3.13", "3.14"]
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text("utf-8")
    assert f"python: [{', '.join(f'{chr(34)}{version}{chr(34)}' for version in named)}]" in workflow
    assert project["requires-python"] == f">={named[0]}"
