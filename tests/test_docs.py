"""The documentation says what the code does: made parts, links, commands, settings and examples."""

import ast
import importlib
import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import typer

from normalcy import Detector, Method
from normalcy.cli import new_method
from normalcy.cli.app import app
from normalcy.config import parse_settings
from normalcy.data.named import NAMED
from normalcy.methods import METHODS
from normalcy.preprocessing.augment import TRANSFORMS
from normalcy.preprocessing.steps import STEPS
from normalcy.settings import settings_for_method
from normalcy.testing import check_method

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


class Block(NamedTuple):
    """A fenced block: the page, the line of its fence, its language, the comment on the line before, its text."""

    page: Path
    line: int
    language: str
    comment: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    start = None
    for i, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = i
            continue
        before = re.fullmatch(r"<!-- (.*) -->", lines[start - 1]) if start else None
        text = "\n".join(lines[start + 1 : i]) + "\n"
        yield Block(page, start + 1, lines[start][3:].strip(), before[1] if before else "", text)
        start = None
    assert start is None, f"{page}: the block from line {start} on is not closed"


def blocks(language: str) -> list[Any]:
    return [pytest.param(b, id=b.place) for page in PAGES for b in blocks_of(page) if b.language == language]


def commands_in(block: Block) -> list[list[str]]:
    """Words of each normalcy command of a block of shell lines."""
    lines = block.text.replace("\\\n", " ").splitlines()
    found = [shlex.split(part, comments=True) for line in lines for part in re.split(r"&& | \| ", line)]
    return [words for words in found if words[:1] == ["normalcy"]]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def make_pages(module_of: Callable[[str], ModuleType]) -> ModuleType:
    return module_of("docs/make_pages.py")


# -- made parts ------------------------------------------------------------------------------------------------------


def test_made_parts_are_up_to_date(make_pages: ModuleType):
    made = make_pages.pages()
    stale = [p.relative_to(ROOT) for p, text in made.items() if not p.exists() or p.read_text("utf-8") != text]
    assert not stale, f"run: python docs/make_pages.py (stale: {', '.join(map(str, stale))})"
    assert {p for p in made if p.parent.name == "methods"} == set((ROOT / "docs" / "methods").glob("*.md"))


def test_option_names_are_those_of_the_app(make_pages: ModuleType):
    group: Any = typer.main.get_command(app)
    page = make_pages.command_line()
    for name, command in group.commands.items():
        section = page.split(f"## normalcy {name}\n")[1].split("## ")[0]
        for option in (p for p in command.params if p.param_type_name == "option" and p.name != "help"):
            assert all(re.search(rf"[`, ]{spelling}[`, ]", section) for spelling in option.opts), (name, option.opts)


def test_markdown_of_a_docstring(make_pages: ModuleType):
    text = "See :func:`~a.b`.\n\n=====  =====\n``x``  |one|\n=====  =====\nend"
    assert make_pages.markdown(text) == "See `a.b`.\n\n|  |  |\n| --- | --- |\n| `x` | \\|one\\| |\nend"


def test_pipe_tables_of_a_docstring_stay(make_pages: ModuleType):
    text = "| | paper | normalcy |\n| --- | --- | --- |\n| steps | 500 | ``steps``, 50 |"
    assert make_pages.markdown(text) == text.replace("``", "`")


def test_a_method_page_shows_what_was_measured(make_pages: ModuleType):
    """By numbers read here from the result files, for one recipe, one reproduced table and one benchmark."""
    results = make_pages.RESULTS
    part = next(iter(json.loads((results / "three_tasks.json").read_text("utf-8"))["parts"].values()))
    best, auroc = part["rows"][0]["row"], part["rows"][0]["image_auroc"]
    lines = json.loads((results / "ddr_id" / "gans.json").read_text("utf-8"))["lines"]
    digits = [line["measured"]["value"] for line in lines if line["method"] == "anogan" and line["column"] != "mean"]
    benchmark = json.loads((make_pages.BENCHMARKS / "anogan.json").read_text("utf-8"))["found"]
    assert f"image AUROC {auroc['value']:.3f} [{auroc['low']:.3f}, {auroc['high']:.3f}]" in make_pages.measured(best)[0]
    _, tables, benchmarks, _ = make_pages.measured("anogan")  # recipes first
    [line] = [line for line in tables.splitlines() if "/gans.md" in line]
    assert [cell.strip() for cell in line.split("|")[4:8]] == [f"{sum(digits) / 10:.1f}", "91.3", "10 of 10", "1"]
    assert all(name in benchmarks for name in benchmark)


def test_reproduced_tables_come_from_the_committed_cells(make_pages: ModuleType):
    """A mean over digits, made here from the cells, and a table that is older than the cells."""
    reproduced = make_pages.reproduced
    cells = [json.loads(p.read_text("utf-8")) for p in (make_pages.RESULTS / "cells" / "kde").glob("mnist-*.json")]
    mean = 100 * sum(cell["auroc"] for cell in cells) / len(cells)
    [row] = [line for line in reproduced.digits().splitlines() if line.startswith("| KDE |")]
    assert len(cells) == 10
    assert f"| {mean:.1f} [" in row
    assert "| all |" in row
    older = make_pages.RESULTS / "ddr_id" / "gans.json"
    assert reproduced.files()[older] == older.read_text("utf-8")
    assert {path.with_suffix("") for path in reproduced.files()} == {p.with_suffix("") for p in reproduced.paths()}


def test_a_recipe_of_several_tasks(make_pages: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    interval = {"value": 0.8125, "low": 0.75, "high": 0.875}
    rows = [
        {"row": "dpa", "columns": ["mnist:3"], "training_seconds": 120.0, "image_auroc": interval, "memory_gib": 0.5},
        {"row": "pca", "columns": ["mnist:3"], "training_seconds": None, "image_auroc": interval, "memory_gib": 0.25},
    ]
    failed = {"row": "rda", "columns": ["mnist:3"], "training_seconds": 30.0, "failed": "mnist:3: too long"}
    parts = {"one class": {"rows": [*rows, failed], "not_run": ["kde"]}, "mr": {"rows": rows[1:], "not_run": []}}
    seconds = {"one class": [30.0, 120.0], "mr": [60.0, 240.0], "not run": [7.0, 8.0]}
    settings = {"settings": {"dpa": {"latent": 4, "grow": False}}, "without_gcn": ["deep_knn"]}
    content = {"training_seconds": seconds, "seed": 0, "threads": 1, **settings, "parts": parts}
    (tmp_path / "three_tasks.json").write_text(json.dumps(content), "utf-8")
    monkeypatch.setattr(make_pages, "RESULTS", tmp_path)
    monkeypatch.setattr(make_pages, "DOCS", tmp_path)
    monkeypatch.setattr(make_pages, "RECIPES", {"three_tasks": make_pages.RECIPES["three_tasks"]})
    page = make_pages.evidence()
    assert "training: one class 30 and 120; mr 60 and 240. Threads" in page
    first, second = page.split("#### One class\n")[1].split("#### MR\n")
    assert "| method | image AUROC | training s | memory GiB |" in first
    assert "| [`dpa`](../methods/dpa.md) | 0.812 [0.750, 0.875] | 120 | 0.5 |" in first
    assert "| method | image AUROC | memory GiB |" in second
    assert "| [`pca`](../methods/pca.md) | 0.812 [0.750, 0.875] | 0.2 |" in second
    assert "(`gcn`) but for `deep_knn`, which" in page
    assert "the defaults, but `dpa`: latent 4, grow False. Short" in page
    assert "\n- `rda`, 30 s of training: no result (mnist:3: too long)\n" in first
    assert "\nNot run yet: [`kde`](../methods/kde.md).\n" in first
    assert "no result" not in second
    assert "Not run" not in second
    assert "three-tasks.png" not in page
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "three-tasks.png").write_bytes(b"")
    assert "](../images/three-tasks.png)" in make_pages.evidence()


def test_rows_of_several_seeds_stand_as_one(make_pages: ModuleType):
    def row(seed: int, value: float, **more: object) -> dict[str, object]:
        return {
            "row": "vae",
            "score": None,
            "seed": seed,
            "auroc": {"value": value, "low": value - 0.2, "high": 1.0},
            **more,
        }

    first, second = make_pages.over_seeds([row(0, 0.6), row(1, 0.8), row(0, 0.5, size=64)])
    assert first["auroc"] == pytest.approx({"value": 0.7, "low": 0.5, "high": 1.0})
    assert (first["seeds"], second["seeds"], second["auroc"]["value"]) == (2, 1, 0.5)
    assert make_pages.over_seeds([{"row": "vae"}, {"row": "vae"}]) == [{"row": "vae"}, {"row": "vae"}]


def test_every_method_stands_in_one_family(make_pages: ModuleType):
    table = make_pages.families_table("docs/methods")
    assert all(table.count(f"[`{name}`](docs/methods/{name}.md)") == 1 for name in METHODS)
    assert make_pages.methods_table("x").count("](x/") == len(METHODS)


# -- links -----------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES])
def test_links_resolve(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{page.relative_to(ROOT)} links to {target}, which does not exist"
        assert not anchor or anchor in anchors(path), f"{page.relative_to(ROOT)} links to {target}: no such heading"


def test_every_page_can_be_reached():
    linked = {
        (page.parent / target).resolve() for page in PAGES for target in re.findall(r"\]\(([^)#\s]+)", prose(page))
    }
    assert set((ROOT / "docs").rglob("*.md")) <= linked


# -- commands and settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", blocks("sh"))
def test_commands_parse(block: Block):
    group: Any = typer.main.get_command(app)
    for words in commands_in(block):
        if words[1:] == ["--help"]:
            continue
        common = {option for parameter in group.params if not parameter.is_flag for option in parameter.opts}
        while words[1] in common:  # options of all commands, with their values
            words = [words[0], *words[3:]]
        command = group.commands.get(words[1])
        assert command is not None, f"{block.place}: there is no command {words[1]}"
        if words[2:] == ["--help"]:
            continue
        options = command.make_context(words[1], words[2:]).params  # raises for an unknown option or a missing argument
        settings = parse_settings(options.get("set_") or [])
        if words[1] == "fit" and options["config_file"] is None:
            Detector(options["method"] or "patchcore", **settings)
        if words[1] == "compare":
            methods = options["methods"].split(",")
            for method in methods:
                Detector(method, **settings_for_method(method, settings, methods))


@pytest.mark.parametrize("page", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES])
def test_commands_and_options_in_the_text_exist(page: Path):
    group: Any = typer.main.get_command(app)
    if page.name == "recipes.md":
        return  # its options are those of the recipes
    everywhere = [group, *group.commands.values()]
    options = {o for c in everywhere for p in c.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        words = code.split()
        if words[0] == "normalcy" and len(words) > 1:
            assert words[1] in group.commands or words[1] in options, f"{page.name}: {code}"
        if words[0].startswith("--"):
            assert words[0].rstrip(",").partition("=")[0] in options, f"{page.name}: {code}"


@pytest.mark.parametrize("block", blocks("toml"))
def test_settings_files_are_good(block: Block):
    words = tomllib.loads(block.text)
    if "project" not in words:
        Detector(words.pop("method"), **words)


def test_steps_and_names_are_described():
    steps = (ROOT / "docs" / "how-to" / "preprocessing.md").read_text(encoding="utf-8")
    assert [word for word in (*STEPS, *TRANSFORMS) if f"| `{word}" not in steps and f", `{word}" not in steps] == []
    sources = (ROOT / "docs" / "reference" / "data-sources.md").read_text(encoding="utf-8")
    assert [name for name in NAMED if f"`{name}" not in sources] == []


# -- examples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", blocks("python"))
def test_python_examples(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runnable ones run; of the others the grammar is checked, and that what they import exists."""
    tree = ast.parse(block.text, block.place)
    if block.comment != "runnable":
        imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        absent = {"linear_autoencoder", "normalcy_runtime"}  # an example's own; tested in an environment of its own
        outside = [node for node in imports if getattr(node, "module", None) not in absent]
        tree = ast.Module(outside, type_ignores=[])
    monkeypatch.chdir(tmp_path)
    exec(compile(tree, block.place, "exec"), {"__name__": "example"})


def test_readme_has_a_runnable_example():
    assert any(b.comment == "runnable" for b in blocks_of(ROOT / "README.md"))


def test_the_example_of_a_method_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    [block] = [b for b in blocks_of(ROOT / "docs" / "how-to" / "add-a-method.md") if b.comment == "method"]
    assert block.text == new_method.METHOD  # what the command new-method writes
    (tmp_path / "linear_autoencoder.py").write_text(block.text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    cls: type[Method] = importlib.import_module("linear_autoencoder").LinearAutoencoder
    check_method(cls, {"epochs": 40}, shapes=[(1, 32, 32)])


def test_the_threat_model_names_tests_that_exist():
    page = (ROOT / "docs" / "explanation" / "threat-model.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", page)
    assert len(named) > 25
    for file, test in named:
        path = ROOT / file if file.startswith("tests/") else ROOT / "tests" / file
        assert path.is_file(), file
        assert not test or f"def {test}(" in path.read_text(encoding="utf-8"), f"{file}::{test}"
