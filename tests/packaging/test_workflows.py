"""The workflows: each step can be run locally, and what it names exists."""

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from normalcy.model_folder import ADDED, ALWAYS_MEAN, FORMAT, OLD_NAMES

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def jobs(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load(path.read_text("utf-8"))["jobs"].values())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_commands_of_a_workflow_exist(path: Path):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for job in jobs(path):
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            if "uses" in step:
                assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])
                continue
            words = step["run"].split()
            assert words[0] in ("make", "python", "uv")
            if words[0] == "make":
                assert set(words[1:]) <= targets
            for script in (word for word in words if word.endswith(".py")):
                assert (ROOT / script).is_file()


def test_only_the_release_may_publish():
    for path in WORKFLOWS:
        content = yaml.safe_load(path.read_text("utf-8"))
        assert content["permissions"] == {"contents": "read"}
        asked = {name for job in jobs(path) for name, right in job.get("permissions", {}).items() if right == "write"}
        assert asked == {"release.yml": {"id-token"}, "docs.yml": {"pages", "id-token"}}.get(path.name, set())


def test_tests_run_on_three_systems():
    [matrix] = [
        job["strategy"]["matrix"]
        for job in jobs(WORKFLOWS[-1])
        if "system" in job.get("strategy", {}).get("matrix", {})
    ]
    assert matrix["system"] == ["ubuntu-latest", "windows-latest", "macos-latest"]


def test_hooks_are_the_checks_of_make_lint_and_types():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"][0]["hooks"]
    entries = [hook["entry"].replace(" --force-exclude", "") for hook in hooks]
    makefile = (ROOT / "Makefile").read_text("utf-8").replace("$(BIN)", ".venv/bin")
    assert all(re.search(rf"^\t{re.escape(entry)}", makefile, re.MULTILINE) for entry in entries)


def test_the_page_of_versions_names_what_old_folders_have():
    page = (ROOT / "docs" / "reference" / "versions.md").read_text("utf-8")
    for names in OLD_NAMES.values():
        assert all(f"| `{old}` | `{new}` |" in page for old, new in names.items())
    assert all(f"`{method}`" in page for method in (*ADDED, *ALWAYS_MEAN))
    assert f"`format` in `detector.json` is {FORMAT} |" in page


def test_versions_agree(module_of: Callable[[str], ModuleType], tmp_path: Path):
    versions = module_of("tests/packaging/versions.py")
    assert versions.problems() == []
    (tmp_path / "src" / "normalcy").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    (tmp_path / "src" / "normalcy" / "__init__.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3 (2027-01-01)\n")
    assert versions.problems("v1.2.3", tmp_path) == []
    assert versions.problems("v1.2.4", tmp_path) == ["The tag is v1.2.4, expected v1.2.3."]
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3 (unreleased)\n")
    assert "unreleased" in versions.problems("v1.2.3", tmp_path)[0]
