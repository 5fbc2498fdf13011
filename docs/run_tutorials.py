"""Execute the tutorials: their code, in order, in an empty folder; outputs and figures stand below each block.

    python docs/run_tutorials.py --write [NAME ...]        executes them and writes the notebooks beside the pages

A tutorial is a page in ``docs/tutorials``. Its blocks of ``python`` share one namespace, as the cells of a notebook do; its
blocks of ``sh`` run in the same folder. A block after the line ``<!-- not run -->`` is shown only. The line
``<!-- data: FILE -->`` names a file that cannot be part of the repository: where it is not in the folder of data, the outputs of
the committed notebook are shown.

Outputs are kept in ``build/tutorials`` under a hash of the page and of the package's source, so that only changes cost time.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = ROOT / "docs" / "tutorials"
CACHE = ROOT / "build" / "tutorials"
DATA = Path("~/.cache/normalcy/data").expanduser()
"""Where the command line looks for data sets, too."""
LANGUAGES = ("python", "sh")
TIMEOUT = 900


class Block(NamedTuple):
    """A part of a page: text, or code that is run."""

    text: str
    language: str = ""
    """Empty: Markdown, blocks that are only shown among it."""


class Output(NamedTuple):
    """What a block printed, and its figures as PNG in base64."""

    text: str = ""
    images: tuple[str, ...] = ()


def blocks_of(page: str) -> list[Block]:
    """The parts of a page in order; together they hold all of its lines but the fences of the code that is run."""
    found: list[Block] = []
    text: list[str] = []
    code: list[str] | None = None
    language = fence = ""
    for line in page.splitlines():
        if code is not None and line != "```":
            code.append(line)
        elif code is not None:
            if language:
                found += [Block("\n".join(text).strip()), Block("\n".join(code), language)]
                text = []
            else:
                text += [fence, *code, line]
            code = None
        elif line.startswith("```"):
            shown_only = bool(text) and text[-1] == "<!-- not run -->"
            language = line[3:] if line[3:] in LANGUAGES and not shown_only else ""
            fence, code = line, []
        else:
            text.append(line)
    return [block for block in (*found, Block("\n".join(text).strip())) if block.text]


# -- running ---------------------------------------------------------------------------------------------------------


def outputs_of(name: str, data: Path = DATA) -> tuple[list[Output], str]:
    """Outputs of the blocks of a tutorial that are run, and a sentence that says where they are from.

    RuntimeError with the output of a block that fails; FileNotFoundError where neither its data nor a notebook of it exist.
    """
    page = (TUTORIALS / f"{name}.md").read_text(encoding="utf-8")
    needed = re.findall(r"^<!-- data: (\S+) -->$", page, flags=re.MULTILINE)
    absent = [file for file in needed if not (data / file).is_file()]
    if absent:
        return committed(name), f"The outputs are those of the committed notebook: {', '.join(absent)} was not at hand."
    kept = CACHE / f"{name}-{key(page)}.json"
    if not kept.is_file():
        made = execute([block for block in blocks_of(page) if block.language], [data / file for file in needed], name)
        CACHE.mkdir(parents=True, exist_ok=True)
        for old in CACHE.glob(f"{name}-*.json"):
            old.unlink()
        kept.write_text(json.dumps(made), encoding="utf-8")
    found = [Output(text, tuple(images)) for text, images in json.loads(kept.read_text(encoding="utf-8"))]
    return found, "The outputs were made by this code when the site was built."


def key(page: str) -> str:
    """Of a page and all that can change its outputs."""
    found = hashlib.sha256(page.encode())
    for path in [Path(__file__), *sorted((ROOT / "src").rglob("*.py"))]:
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def execute(blocks: Sequence[Block], data: Sequence[Path], name: str) -> list[Output]:
    """Run blocks in a process and a folder of their own."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "work"
        folder.mkdir()
        for file in data:
            shutil.copy2(file, folder)
        given, made = Path(temporary) / "blocks.json", Path(temporary) / "outputs.json"
        given.write_text(json.dumps(blocks), encoding="utf-8")
        command = [sys.executable, __file__, "--worker", str(given), str(made)]
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        environment = {**os.environ, "PATH": path, "MPLBACKEND": "Agg", "COLUMNS": "110", "NO_COLOR": "1"}
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
        if done.returncode:
            raise RuntimeError(f"The tutorial {name} failed.\n{done.stdout}{done.stderr}")
        return [Output(text, tuple(images)) for text, images in json.loads(made.read_text(encoding="utf-8"))]


def work(given: Path, made: Path) -> None:
    """The process of a tutorial."""
    space: dict[str, Any] = {"__name__": "__main__"}
    outputs = []
    for text, language in json.loads(given.read_text(encoding="utf-8")):
        sys.stdout.write(f"\n{text}\n")  # shown if a later line fails
        outputs.append(run_python(text, space) if language == "python" else Output(run_shell(text)))
    made.write_text(json.dumps(outputs), encoding="utf-8")


def run_python(text: str, space: dict[str, Any]) -> Output:
    """Run a block; the value of a last line that is an expression is printed, figures are closed."""
    from matplotlib import pyplot as plt

    tree = ast.parse(text)
    last = ast.Expression(tree.body.pop().value) if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        exec(compile(tree, "tutorial", "exec"), space)
        value = eval(compile(last, "tutorial", "eval"), space) if last is not None else None
        if value is not None and not plt.get_fignums():
            printed.write(f"{value!r}\n")
    images = []
    for number in plt.get_fignums():
        picture = io.BytesIO()
        plt.figure(number).savefig(picture, dpi=90, bbox_inches="tight", pil_kwargs={"optimize": True})
        images.append(base64.b64encode(picture.getvalue()).decode())
    plt.close("all")
    return Output(printed.getvalue(), tuple(images))


def run_shell(text: str) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stdout)
    return done.stdout


# -- pages and notebooks ---------------------------------------------------------------------------------------------


def with_outputs(name: str, page: str, into: Path, data: Path = DATA) -> str:
    """The page of a tutorial with outputs below its blocks and a link to its notebook; figures are written into ``into``."""
    outputs, origin = outputs_of(name, data)
    remaining, parts, number = iter(outputs), [], 0
    for block in blocks_of(page):
        if not block.language:
            parts.append(block.text)
            continue
        parts.append(f"```{block.language}\n{block.text}\n```")
        output = next(remaining)
        inside = [f"```text\n{output.text.rstrip()}\n```"] if output.text.strip() else []
        for image in output.images:
            number += 1
            file = f"{name}-{number}.png"
            into.mkdir(parents=True, exist_ok=True)
            (into / file).write_bytes(base64.b64decode(image))
            inside.append(f"![Figure {number} of this tutorial]({file})")
        if inside:
            parts.append('<div class="output" markdown="1">\n\n' + "\n\n".join(inside) + "\n\n</div>")
    title, _, rest = parts[0].partition("\n")
    return "\n\n".join([f"{title}\n\n*[Notebook]({name}.ipynb) of this page. {origin}*\n{rest}", *parts[1:]]) + "\n"


def notebook(name: str, outputs: Sequence[Output]) -> str:
    """The page as a Jupyter notebook (format 4.5) with these outputs."""
    remaining, cells = iter(outputs), []
    for i, block in enumerate(blocks_of((TUTORIALS / f"{name}.md").read_text(encoding="utf-8"))):
        cell: dict[str, Any] = {"id": f"cell-{i}", "metadata": {}, "source": lines(block.text)}
        if not block.language:
            cells.append({"cell_type": "markdown", **cell})
            continue
        output = next(remaining)
        shown: list[dict[str, Any]] = []
        if output.text.strip():
            shown.append({"output_type": "stream", "name": "stdout", "text": lines(output.text)})
        for image in output.images:
            shown.append({"output_type": "display_data", "metadata": {}, "data": {"image/png": image}})
        source = block.text if block.language == "python" else f"%%bash\n{block.text}"
        cells.append({"cell_type": "code", **cell, "source": lines(source), "execution_count": None, "outputs": shown})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def committed(name: str) -> list[Output]:
    """Outputs of the notebook beside the page; FileNotFoundError where there is none of this page as it is."""
    path = TUTORIALS / f"{name}.ipynb"
    found = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.is_file() else []
    outputs = []
    for cell in (cell for cell in found if cell["cell_type"] == "code"):
        text = "".join("".join(o["text"]) for o in cell["outputs"] if o["output_type"] == "stream")
        outputs.append(Output(text, tuple(o["data"]["image/png"] for o in cell["outputs"] if "data" in o)))
    codes = sum(bool(block.language) for block in blocks_of((TUTORIALS / f"{name}.md").read_text(encoding="utf-8")))
    if len(outputs) != codes or notebook(name, outputs) != path.read_text(encoding="utf-8"):
        raise FileNotFoundError(
            f"{path.relative_to(ROOT)} is not a notebook of the page beside it: run docs/run_tutorials.py --write {name} "
            "where its data are."
        )
    return outputs


def names() -> list[str]:
    return sorted(path.stem for path in TUTORIALS.glob("*.md"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="some of the tutorials; all if none is given")
    parser.add_argument("--write", action="store_true", help="write the notebooks")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the files that tutorials need")
    parser.add_argument("--worker", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(*options.worker)
        return
    for name in options.names or names():
        outputs, _ = outputs_of(name, options.data)
        if options.write:
            (TUTORIALS / f"{name}.ipynb").write_text(notebook(name, outputs), encoding="utf-8")


if __name__ == "__main__":
    main()
