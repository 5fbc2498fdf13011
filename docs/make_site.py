"""Build the documentation site: ``build/site/index.html``, to open from the disk or to put on any web server.

    python docs/make_site.py        (make docs)

1. Tutorials are executed (docs/run_tutorials.py); those whose text and code did not change are taken from the cache.
2. ``docs`` is copied to ``build/docs`` with their outputs. Files of the repository that pages link to (recipes, result files,
   the changelog) are copied beside them, so that no link leaves the site.
3. Zensical builds the site (zensical.toml) and stops at a link to a page or heading that does not exist.
4. The pages made are read again: every link, image and anchor must exist in them, and nothing may be loaded from elsewhere.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from run_tutorials import DATA, TUTORIALS, with_outputs

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BUILD = ROOT / "build"
EXTRA = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
"""Pages of the repository's root that are part of the navigation."""
NOT_COPIED = ("*.py", "__pycache__")
WORKER = "https://unpkg.com/iframe-worker/shim"
"""What the builder would load from elsewhere for the search from file://; docs/assets/worker.js does it instead."""


# -- the pages to build ----------------------------------------------------------------------------------------------


def stage(into: Path, finish: Callable[[Path, str], str]) -> None:
    """Copy ``docs`` and the files of the repository that its pages link to; ``finish`` is given each page and its text."""
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(DOCS, into, ignore=shutil.ignore_patterns(*NOT_COPIED))
    waiting = [*sorted(DOCS.rglob("*.md")), *(ROOT / name for name in EXTRA)]
    done = set(waiting)
    while waiting:
        source = waiting.pop()
        target = into / staged(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".md":
            text, linked = moved_links(source.read_text(encoding="utf-8"), source)
            target.write_text(finish(source, plain_pipes(text)), encoding="utf-8")
            fresh = [path for path in linked if path not in done and not is_copied(path)]
            waiting += fresh
            done.update(fresh)
        elif source.suffix == ".py":
            name = source.relative_to(ROOT).as_posix()
            target.write_text(f"# {name}\n\n````python\n{source.read_text(encoding='utf-8')}````\n", encoding="utf-8")
        else:
            shutil.copy2(source, target)


def is_copied(path: Path) -> bool:
    """Whether it is copied with ``docs``."""
    return path.is_relative_to(DOCS) and path.suffix != ".py"


def staged(source: Path) -> Path:
    """Where a file of the repository is in the pages to build; a program becomes a page."""
    if is_copied(source):
        return source.relative_to(DOCS)
    place = Path("repository") / source.relative_to(ROOT)
    return place.with_name(f"{place.name}.md") if place.suffix == ".py" else place


def moved_links(text: str, source: Path) -> tuple[str, list[Path]]:
    """A page with the links that hold where it is built, and the files that it links to. Fenced blocks stay as they are."""
    linked: list[Path] = []

    def moved(link: re.Match[str]) -> str:
        file, mark, anchor = link[1].partition("#")
        if not file or re.match(r"[a-z]+:", file):
            return link[0]
        path = (source.parent / file).resolve()
        if not path.is_file() or not path.is_relative_to(ROOT):
            raise FileNotFoundError(
                f"{source.relative_to(ROOT)} links to {link[1]}, which is no file; correct the link."
            )
        linked.append(path)
        return f"]({os.path.relpath(staged(path), staged(source).parent)}{mark}{anchor})"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if i % 2 else re.sub(r"\]\(([^)\s]+)\)", moved, part) for i, part in enumerate(parts)), linked


def plain_pipes(text: str) -> str:
    """Code in tables: on GitHub a pipe in it needs a backslash, which the builder would show."""
    code = re.compile(r"`[^`\n]+`")
    rows = re.compile(r"^\|.*$", flags=re.MULTILINE)
    return rows.sub(lambda row: code.sub(lambda span: span[0].replace("\\|", "|"), row[0]), text)


# -- the pages built -------------------------------------------------------------------------------------------------


class _Page(HTMLParser):
    """The anchors of a page, and what it refers to: (tag, attribute, value)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.references: list[tuple[str, str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        for name in ("href", "src", "data", "poster", "srcset"):
            if name in values and values.get("rel") != "canonical":
                self.references.append((tag, name, values[name]))


def problems(site: Path) -> list[str]:
    """Broken links and anchors of a built site, and what its pages or style sheets would load from elsewhere."""
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        for tag, name, value in page.references:
            why = _problem(site, path, tag, value, pages)
            if why:
                found.append(f'{path.relative_to(site).as_posix()}: {tag} {name}="{value}" {why}')
    for path in sorted(site.rglob("*.css")):
        for value in re.findall(
            r"(?:url\(|@import\s)\s*[\"']?((?:https?:)?//[^\"')\s]+)", path.read_text(encoding="utf-8")
        ):
            found.append(f"{path.relative_to(site).as_posix()}: {value} is loaded from elsewhere")
    return found


def _problem(site: Path, path: Path, tag: str, value: str, pages: dict[Path, _Page]) -> str | None:
    parts = urlsplit(value)
    if parts.scheme in ("data", "mailto"):
        return None
    if parts.scheme or parts.netloc:
        return None if tag == "a" else "is loaded from elsewhere"
    target = path
    if parts.path.startswith("/"):
        target = (site / unquote(parts.path).lstrip("/")).resolve()
    elif parts.path:
        target = (path.parent / unquote(parts.path)).resolve()
    if target.is_dir():
        target = target / "index.html"
    if not target.is_file():
        return "does not exist"
    if parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
        return "names no heading"
    return None


def worker_of_its_own(site: Path) -> None:
    """Replace the script that the builder would load from elsewhere by the one in ``assets``."""
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        own = os.path.relpath(site / "assets" / "worker.js", path.parent)
        path.write_text(text.replace(WORKER, own), encoding="utf-8")


# -- all of it -------------------------------------------------------------------------------------------------------


def build(into: Path) -> None:
    """Zensical on what was staged; SystemExit with its messages where it stops."""
    shutil.rmtree(into, ignore_errors=True)
    zensical = [
        sys.executable,
        "-m",
        "zensical",
        "build",
        "--strict",
        "--clean",
        "--config-file",
        str(ROOT / "zensical.toml"),
    ]
    made = subprocess.run(zensical, cwd=ROOT, capture_output=True, text=True)
    if made.returncode:
        text = re.sub(r"\x1b\[[0-9;]*m", "", made.stdout + made.stderr)
        raise SystemExit(f"The site was not built: zensical stopped.\n{text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the files that tutorials need")
    options = parser.parse_args()

    def finish(page: Path, text: str) -> str:
        if page.parent != TUTORIALS:
            return text
        return with_outputs(page.stem, text, BUILD / "docs" / "tutorials", options.data)

    stage(BUILD / "docs", finish)
    site = BUILD / "site"
    build(site)
    worker_of_its_own(site)
    if found := problems(site):
        raise SystemExit("\n".join([f"The site has {len(found)} broken links:", *found[:50]]))
    sys.stdout.write(f"{len(list(site.rglob('*.html')))} pages: {(site / 'index.html').relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
