"""The documentation site: its navigation, the links that leave docs, the check of what was built, tutorials and notebooks."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import normalcy

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def run_tutorials(module_of: Any) -> ModuleType:
    return module_of("docs/run_tutorials.py")


@pytest.fixture(scope="module")
def make_site(module_of: Any, run_tutorials: ModuleType) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        yield module_of("docs/make_site.py")


# -- configuration ---------------------------------------------------------------------------------------------------


def pages_in(navigation: Any) -> Iterator[str]:
    for entry in navigation:
        for inside in entry.values():
            yield from [inside] if isinstance(inside, str) else pages_in(inside)


def configuration() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    return found


def test_the_navigation_lists_every_page_once(make_site: ModuleType):
    pages = list(pages_in(configuration()["nav"]))
    assert len(pages) == len(set(pages))
    wanted = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert set(pages) == wanted | {f"repository/{name}" for name in make_site.EXTRA}


def test_links_are_checked_strictly_and_fonts_stay_at_home():
    project = configuration()
    assert project["validation"] == {"invalid_links": True, "invalid_link_anchors": True}
    assert project["theme"]["font"] is False


def test_the_reference_describes_every_public_name():
    described = {p.stem: p.read_text(encoding="utf-8") for p in (DOCS / "api").glob("*.md")}
    text = "\n".join(described.values())
    for name in set(normalcy.__all__) - {"__version__"}:
        assert re.search(rf"^### (class|function|data) {name}$", text, flags=re.MULTILINE), name


# -- pages to build --------------------------------------------------------------------------------------------------


def test_links_out_of_docs_lead_to_copies(make_site: ModuleType):
    page = DOCS / "reference" / "recipes.md"
    text = (
        "[a](../../SECURITY.md#report) [b](../../recipes/toy_mood.py) [c](settings.md)\n```sh\n[d](../../x.md)\n```\n"
    )
    moved, linked = make_site.moved_links(text, page)
    assert moved == (
        "[a](../repository/SECURITY.md#report) [b](../repository/recipes/toy_mood.py.md) [c](settings.md)\n"
        "```sh\n[d](../../x.md)\n```\n"
    )
    assert linked == [ROOT / "SECURITY.md", ROOT / "recipes" / "toy_mood.py", DOCS / "reference" / "settings.md"]


def test_a_link_to_no_file_is_refused(make_site: ModuleType):
    with pytest.raises(FileNotFoundError, match=r"docs/index\.md links to \.\./none\.md"):
        make_site.moved_links("[x](../none.md)", DOCS / "index.md")


def test_pipes_in_the_code_of_tables(make_site: ModuleType):
    text = "| `int \\| None` | a \\| b |\n`x \\| y`\n"
    assert make_site.plain_pipes(text) == "| `int | None` | a \\| b |\n`x \\| y`\n"


# -- pages built -----------------------------------------------------------------------------------------------------

GOOD = '<h1 id="top">A</h1><a href="b.html#part">b</a><a href="#top">t</a><a href="https://example.org">e</a><img src="i.png">'
BAD = {
    '<a href="c.html">': 'a href="c.html" does not exist',
    '<a href="b.html#none">': 'a href="b.html#none" names no heading',
    '<img src="j.png">': 'img src="j.png" does not exist',
    '<script src="https://example.org/x.js"></script>': "is loaded from elsewhere",
    '<link rel="stylesheet" href="//example.org/x.css">': "is loaded from elsewhere",
}


def small_site(folder: Path, index: str, css: str = "") -> Path:
    (folder / "index.html").write_text(index, encoding="utf-8")
    (folder / "b.html").write_text('<h2 id="part">B</h2><a href="index.html">back</a>', encoding="utf-8")
    (folder / "i.png").write_bytes(b"")
    (folder / "x.css").write_text(css, encoding="utf-8")
    return folder


def test_a_good_site_has_no_problems(make_site: ModuleType, tmp_path: Path):
    assert make_site.problems(small_site(tmp_path, GOOD, 'a { background: url("i.png") }')) == []


@pytest.mark.parametrize(("tag", "why"), BAD.items())
def test_problems_of_a_site(make_site: ModuleType, tmp_path: Path, tag: str, why: str):
    [found] = make_site.problems(small_site(tmp_path, GOOD + tag))
    assert found.startswith("index.html: ")
    assert why in found


def test_a_style_sheet_must_not_load_from_elsewhere(make_site: ModuleType, tmp_path: Path):
    [found] = make_site.problems(small_site(tmp_path, GOOD, "@import 'https://example.org/f.css';"))
    assert found == "x.css: https://example.org/f.css is loaded from elsewhere"


# -- tutorials -------------------------------------------------------------------------------------------------------

PAGE = """# A page

Text.

```python
x = 20
```

```text
shown
```

<!-- not run -->
```sh
exit 1
```

```sh
echo from the shell > file.txt
```

```python
print(open("file.txt").read().strip())
x + 1
```
"""


def test_blocks_of_a_page(run_tutorials: ModuleType):
    blocks = run_tutorials.blocks_of(PAGE)
    assert [block.language for block in blocks] == ["", "python", "", "sh", "python"]
    assert "exit 1" in blocks[2].text
    assert "```text\nshown\n```" in blocks[2].text


def test_blocks_share_a_folder_and_a_namespace(run_tutorials: ModuleType):
    blocks = [block for block in run_tutorials.blocks_of(PAGE) if block.language]
    figure = run_tutorials.Block("from matplotlib import pyplot as plt\nplt.subplots(figsize=(1, 1))", "python")
    *texts, drawn = run_tutorials.execute([*blocks, figure], [], "page")
    assert [output.text for output in texts] == ["", "", "from the shell\n21\n"]
    assert drawn.text == ""
    assert [image[:8] for image in drawn.images] == ["iVBORw0K"]


def test_a_block_that_fails_stops_the_build(run_tutorials: ModuleType):
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        run_tutorials.execute([run_tutorials.Block("1 / 0", "python")], [], "page")


@pytest.mark.parametrize("page", sorted((DOCS / "tutorials").glob("*.md")), ids=lambda page: page.stem)
def test_notebooks_are_those_of_the_pages(run_tutorials: ModuleType, page: Path):
    """With an output for each block of code; ``docs/run_tutorials.py --write`` makes them."""
    outputs = run_tutorials.committed(page.stem)
    assert any(output.text for output in outputs)
    found = json.loads(page.with_suffix(".ipynb").read_text(encoding="utf-8"))
    assert len({cell["id"] for cell in found["cells"]}) == len(found["cells"])
