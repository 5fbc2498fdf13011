"""--json, exit codes and NO_COLOR: what the page of the command line says of them."""

import ast
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from runner import Run

from normalcy.cli import app as module
from normalcy.cli.app import EXIT_CODES, app
from normalcy.cli.printing import fit_progress, record, show, show_table, tables_as_json
from normalcy.errors import DataError, NormalcyError, SettingsError
from normalcy.methods import FAMILIES, METHODS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "command-line.md"


def documented() -> dict[tuple[str, str], set[str]]:
    """(Command, table) -> keys that the page names."""
    section = PAGE.read_text("utf-8").partition("## JSON\n")[2].partition("\n<!-- ")[0]
    found = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 3 and cells[0].startswith("`"):
            for command in re.findall(r"`([^`]+)`", cells[0]):
                found[command, cells[1].strip("`")] = set(re.findall(r"`([a-z_]+)`", cells[2]))
    return found


def tables(run: Run, *words: object, code: int = 0) -> dict[str, list[dict[str, Any]]]:
    assert run(*words, "--json") == code, run.err
    found: dict[str, list[dict[str, Any]]] = json.loads(run.out)
    return found


def check_keys(command: str, found: dict[str, list[dict[str, Any]]], optional: frozenset[str] = frozenset()) -> None:
    for table, rows in found.items():
        known = documented()[command, table]
        for row in rows:
            assert set(row) <= known, (command, table)
            assert known - set(row) <= optional, (command, table)


def test_commands_with_json_are_those_of_the_page():
    group: Any = typer.main.get_command(app)
    have = {name for name, command in group.commands.items() if any("--json" in p.opts for p in command.params)}
    assert have == {command.split()[0] for command, _ in documented()}


def test_methods_as_json(run: Run):
    found = tables(run, "methods")
    check_keys("methods", found, frozenset({"scores"}))
    assert {row["method"] for row in found["methods"]} >= set(METHODS)
    assert {row["family"] for row in found["methods"]} >= set(FAMILIES)
    assert run.err == ""
    family = tables(run, "methods", "--family", "one-class")["methods"]
    assert {row["family"] for row in family} == {"one-class"}
    one = tables(run, "methods", "vae")
    check_keys("methods", {"methods": one["methods"]})
    check_keys("methods NAME", {"settings": one["settings"]})
    assert "elbo" in one["methods"][0]["scores"]
    assert {row["part"] for row in one["settings"]} == {"vae", "input", "training", "decision"}


def test_a_data_set_its_results_and_a_comparison_as_json(run: Run, tiles: Path, model: Path, tmp_path: Path):
    found = tables(run, "check", tiles)
    check_keys("check", found)
    assert found["data"][0]["images"] == found["data"][0]["normal"] + found["data"][0]["anomalous"]
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "one.png").write_bytes(b"\x89PNG")
    found = tables(run, "check", tmp_path / "bad", code=1)
    check_keys("check", found)
    assert found["problems"][0]["path"] == "one.png"
    results = tmp_path / "R"
    run.good("score", model, tiles, "--out", results)
    found = tables(run, "evaluate", results)
    check_keys("evaluate", found, frozenset({"value", "low", "high", "count", "of"}))
    rows = {row["metric"]: row for row in found["metrics"]}
    written = json.loads((results / "metrics.json").read_text())
    assert rows["image AUROC"]["value"] == written["image"]["auroc"]["value"]
    assert rows["false alarms"]["count"] == written["image"]["at_threshold"]["false_positives"]
    found = tables(run, "compare", tiles, "--methods", "zscore,pca", "--set", "size=32", "--out", tmp_path / "C")
    written = json.loads((tmp_path / "C" / "compare.json").read_text())
    assert {row["name"]: row["auroc"]["value"] for row in found["methods"]} == {
        row["name"]: row["auroc"]["value"] for row in written["methods"]
    }
    assert set(found["methods"][0]) >= set(written["methods"][0])


def test_published_tables_as_json(run: Run, tmp_path: Path):
    check_keys("reproduce", tables(run, "reproduce"))
    found = tables(run, "reproduce", "ddr_id/table-2", "--list", "--out", tmp_path)
    check_keys("reproduce NAME", found)
    assert found["lines"]


def test_an_audit_and_a_selection_as_json(run: Run, tiles: Path, tmp_path: Path):
    small = ("--set", "size=16", "--set", "components=3")
    found = tables(
        run, "audit", tiles, "--method", "pca", "--folds", 2, "--share", 0.1, "--out", tmp_path / "A", *small
    )
    check_keys("audit", found)
    scores = [row["score"] for row in found["suspects"]]
    assert scores
    assert scores == sorted(scores, reverse=True)
    words = ("--method", "pca", "--trials", 2, "--try", "components=2|4", "--set", "size=16")
    found = tables(run, "select", tiles, *words, "--out", tmp_path / "S")
    check_keys("select", found)
    assert [row["number"] for row in found["trials"]] == [0, 1]


def test_an_error_leaves_stdout_empty(run: Run):
    assert run("methods", "nothing", "--json") == 2
    assert run.out == ""


def test_what_is_no_row_goes_to_stderr(capsys: pytest.CaptureFixture[str]):
    with tables_as_json(True):
        show("text")
        show_table(("a",), [("b",)])
        assert record("table", path="\x1b[31m\udcff", value=float("nan"), where=Path("x"), inner=({"a": float("inf")},))
    captured = capsys.readouterr()
    assert captured.err == "text\n"
    assert captured.out.isascii()
    assert json.loads(captured.out) == {
        "table": [{"path": "\x1b[31m\udcff", "value": None, "where": "x", "inner": [{"a": None}]}]
    }
    assert not record("table", a=1)


# -- exit codes and colours


def test_no_other_exit_code_is_used():
    """Numbers that the command line ends with, in its source and in the errors."""
    used = {error.exit_code for error in (NormalcyError, DataError, SettingsError)}
    for path in Path(module.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(attr="Exit"), args=[ast.Constant(value=int(code)), *_]):
                    used.add(code)
                case ast.Call(func=ast.Name(id="Stopped"), args=[ast.Constant(value=int(code)), *_]):
                    used.add(code)
                case ast.Assign(targets=[ast.Name(id="code")], value=ast.IfExp(body=body, orelse=other)):
                    used |= {int(part.value) for part in (body, other) if isinstance(part, ast.Constant)}
                case ast.Return(value=ast.Tuple(elts=[ast.Constant(value=int(code)), *_])):
                    used.add(code)
    assert used | {0} == set(EXIT_CODES)


@pytest.mark.parametrize("colours", [True, False])
def test_no_color(monkeypatch: pytest.MonkeyPatch, colours: bool):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not colours:
        monkeypatch.setenv("NO_COLOR", "1")
    with fit_progress() as (log, on_decode):
        on_decode(1, 2)
        log({"stage": "training", "step": 1, "steps": 2, "loss": 0.5, "images_per_second": 3.0})
    coloured = re.findall(r"\x1b\[[\d;]*(?:3[0-7]|38|9[0-7])[\d;]*m", stream.getvalue())
    assert bool(coloured) == colours
