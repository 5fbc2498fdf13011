"""Every line of the threat model and of the security policy names tests, and these exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PAGE, POLICY = ROOT / "docs/explanation/threat-model.md", ROOT / "SECURITY.md"
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


@cache
def names_of_tests(path: Path) -> set[str]:
    """Names of test functions, those of classes included; the file is not imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {node.name for node in found if node.name.startswith("test_") and _asserts(node)}


def _asserts(node: ast.AST) -> bool:
    """Whether something can fail in it but an error."""
    for one in ast.walk(node):
        if isinstance(one, ast.Assert):
            return True
        if isinstance(one, ast.Call) and ("raises" in ast.unparse(one.func) or "assert" in ast.unparse(one.func)):
            return True
    return False


def rows() -> list[str]:
    """Of the tables of the page, without their heads."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    tables = [k for k, line in enumerate(lines) if line.startswith("| ---")]
    found = []
    for k in tables:
        for line in lines[k + 1 :]:
            if not line.startswith("|"):
                break
            found.append(line)
    return found


def bullets() -> list[str]:
    """What the policy says that holds today."""
    text = POLICY.read_text(encoding="utf-8").split("## What holds today")[1].split("\n## ")[0]
    return [part for part in re.split(r"\n(?=- )", text) if part.startswith("- ")]


@pytest.mark.parametrize("line", rows(), ids=lambda line: line.split("|")[1].strip()[:60])
def test_every_row_names_a_test(line: str) -> None:
    assert NAMED.search(line.split("|")[-2]), line


@pytest.mark.parametrize("text", bullets(), ids=lambda text: text[2:50])
def test_every_line_of_the_policy_names_a_test(text: str) -> None:
    assert NAMED.search(text), text


@pytest.mark.parametrize("page", [PAGE, POLICY], ids=lambda page: page.name)
def test_the_named_tests_exist(page: Path) -> None:
    named = NAMED.findall(page.read_text(encoding="utf-8"))
    assert named
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (TESTS / file).is_file() or name not in names_of_tests(TESTS / file)
    ]
    assert not missing


def test_all_names_are_understood() -> None:
    """No name of a test is written in a way that the checks above pass over."""
    for page in (PAGE, POLICY):
        text = page.read_text(encoding="utf-8")
        assert text.count("::") == len(NAMED.findall(text))
