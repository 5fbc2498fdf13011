"""The arrows of the architecture: who may import whom, and what ``import normalcy`` must not load."""

import ast
import subprocess
import sys
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

import pytest

import normalcy

ROOT = Path(normalcy.__file__).parent
FOUNDATION = {"arrays", "errors", "config", "files", "provenance"}
DATA = FOUNDATION | {"data", "remote"}
METHOD = FOUNDATION | {"method"}
BELOW_DETECTOR = DATA | {
    "calibrate",
    "method",
    "methods",
    "metrics",
    "nets",
    "preprocessing",
    "scoring",
    "settings",
    "training",
}
USE = BELOW_DETECTOR | {"detector", "engines", "model_folder"}
ALLOWED = {
    "arrays": set(),
    "errors": set(),
    "config": {"errors", "files"},
    "files": {"errors"},
    "provenance": {"errors", "files"},
    "remote": {"errors", "files", "remote"},
    "data": DATA,
    "preprocessing": DATA | {"preprocessing"},
    "method": FOUNDATION,
    "nets": METHOD | {"nets"},
    "methods": METHOD | {"methods", "nets", "data.synthetic"},
    "metrics": FOUNDATION | {"metrics"},
    "calibrate": FOUNDATION | {"metrics"},
    "training": METHOD | {"training"},
    "settings": METHOD | {"methods", "nets", "preprocessing", "training"},
    "scoring": BELOW_DETECTOR - {"settings", "methods", "nets"},
    "model_folder": FOUNDATION,
    "engines": METHOD | {"engines", "nets.backbones"},
    "detector": BELOW_DETECTOR | {"engines", "model_folder"},
    "export": USE | {"export", "results"},
    "results": USE | {"results"},
    "report": FOUNDATION | {"data", "metrics", "report", "results", "training"},
    "review": FOUNDATION | {"data", "metrics", "results", "review"},
    "studies": USE | {"report", "results", "studies"},
    "testing": USE,
    "sklearn": USE,
}
"""Part -> parts of normalcy that it may import; what is not named (the command line) may import all."""

INSIDE_DATA = ("formats", "companions", "foreground", "stain", "synthetic", "volumes", "kinds", "dicom_codecs", "dicom", "images",
               "roi", "dataset", "splits", "check", "samples", "stores", "polygons", "layouts", "annotations", "indexed",
               "folder", "table", "webdataset", "elsewhere", "published", "named", "diffusion", "slides", "union",
               "open")  # fmt: skip
"""Files of ``data``: each imports only those before it."""
LARGEST_ROOT = 14
"""Files in the root of the package."""


@cache
def modules() -> dict[str, Path]:
    """Dotted name inside normalcy -> file."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str) -> set[str]:
    """Modules of normalcy that a module imports, anywhere in its text, relative to normalcy."""
    known, found = modules(), set()
    package = f"normalcy.{name}" if known[name].name == "__init__.py" else f"normalcy.{name}".rpartition(".")[0]
    for node in ast.walk(ast.parse(known[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package.rstrip("."))
            targets = [f"{source}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            head, _, inside = target.partition(".")
            if head == "normalcy":
                found.add(inside if inside in known else inside.rpartition(".")[0])
    return found - {""}


def part(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("name", [name for name in modules() if part(name) in ALLOWED])
def test_arrows(name: str):
    wrong = {target for target in imports(name) if not {part(target), target} & ALLOWED[part(name)]}
    assert not wrong, f"{name} must not import {', '.join(sorted(wrong))}"


def test_files_of_data_import_those_before_them():
    assert {f"data.{name}" for name in INSIDE_DATA} == {m for m in modules() if m.startswith("data.")}
    for place, name in enumerate(INSIDE_DATA):
        later = {f"data.{other}" for other in INSIDE_DATA[place:]}
        assert not imports(f"data.{name}") & later, f"data.{name} must not import {imports(f'data.{name}') & later}"


def test_no_import_circle():
    """At the level of files; imports for annotations alone (``if TYPE_CHECKING``) count too."""
    graph = {name: imports(name) & set(modules()) for name in modules() if name}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"import circle: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in done:
            for target in sorted(graph.get(name, ())):
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_root_stays_small():
    files = sorted(path.name for path in ROOT.glob("*.py"))
    assert len(files) <= LARGEST_ROOT, files


def test_every_named_part_exists():
    assert set(ALLOWED) <= {part(name) for name in modules()}


def test_methods_do_not_import_each_other():
    """A method reaches another one by name through the registry, as ``patchwise`` does."""
    for name in modules():
        if name.startswith("methods."):
            others = {target for target in imports(name) if target.startswith("methods.")}
            assert not others, (
                f"{name} must not import {', '.join(sorted(others))}; what two methods share belongs in nets"
            )


def test_nothing_imports_the_command_line():
    for name in modules():
        if name == "__main__" or part(name) == "cli":
            continue
        assert "cli" not in {part(target) for target in imports(name)}, f"{name} must not import cli"


def test_only_the_command_line_imports_its_libraries():
    for name, path in modules().items():
        if part(name) != "cli":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = (
                    [a.name for a in node.names]
                    if isinstance(node, ast.Import)
                    else [getattr(node, "module", None) or ""]
                )
                assert not {n.split(".")[0] for n in names} & {"typer", "click"}, f"{name} must not import Typer"


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in memory after a statement in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "sklearn",
    "skimage",
    "scipy",
    "matplotlib",
    "lightning_fabric",
    "huggingface_hub",
    "nibabel",
    "pydicom",
    "highdicom",
    "tiffslide",
    "optuna",
    "sqlalchemy",
}


def test_import_normalcy_is_light():
    assert not loaded_by("import normalcy") & (HEAVY | {"numpy", "PIL", "typer", "rich"})


def test_help_is_light():
    statement = """
import contextlib, io
from normalcy.cli.app import app
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    app(["--help"])
"""
    assert not loaded_by(statement) & HEAVY


def test_public_names_exist():
    for name in normalcy.__all__:
        assert getattr(normalcy, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        normalcy.nothing  # noqa: B018


OPENERS = {
    "os": {
        "open",
        "replace",
        "rename",
        "renames",
        "remove",
        "unlink",
        "mkdir",
        "makedirs",
        "rmdir",
        "symlink",
        "chmod",
    },
    "io": {"open", "FileIO"},
    "np": {"save", "savez", "savez_compressed", "load", "loadtxt", "savetxt", "genfromtxt", "fromfile", "memmap"},
    "numpy": {"save", "load", "fromfile", "memmap"},
    "torch": {"save", "load"},
    "tifffile": {"imwrite", "imread", "TiffWriter", "TiffFile"},
    "zipfile": {"ZipFile"},
    "tiffslide": {"TiffSlide"},
    "nibabel": {"load", "save"},
    "sqlite3": {"connect"},
    "shutil": {"rmtree", "copy", "copyfile", "copytree", "move"},
    "tempfile": {"mkdtemp", "mkstemp", "TemporaryDirectory", "NamedTemporaryFile", "TemporaryFile"},
}
"""Module -> functions that open, write, move or remove files."""
OPENING = {"open", "safe_open", "load_file", "save_file", "open_memmap", "imwrite", "imread", "rmtree"}
"""Those under their own name."""
METHODS_OF_PATHS = {
    *(
        "read_text",
        "read_bytes",
        "write_text",
        "write_bytes",
        "unlink",
        "mkdir",
        "rmdir",
        "touch",
        "chmod",
        "symlink_to",
    ),
    *("hardlink_to", "tofile", "save_as", "rename"),
}
MAY_OPEN = {
    ("cli.app", "os.open(os.devnull"): "standard output that nobody reads any more",
    ("data.diffusion", "np.loadtxt(read_text("): "lines of a text that files.py has read",
    ("results.writer", "np.save(buffer"): "a buffer in memory",
    ("results.writer", "tifffile.imwrite(buffer"): "a buffer in memory",
    ("results.dicom", "dataset.save_as(buffer"): "a buffer in memory",
    ("results.slides", "tifffile.TiffWriter(opened"): "the handle comes from files.py",
    ("data.images", "tifffile.imwrite(buffer"): "a buffer in memory",
    ("data.images", "tifffile.TiffFile(io.BytesIO("): "a buffer in memory",
    ("remote.store", "zipfile.ZipFile(self.archive("): "the handle comes from files.py, or reads blocks of a store",
    ("data.stores", "zipfile.ZipFile(open_regular("): "the handle comes from files.py",
    ("data.slides", "tiffslide.TiffSlide("): "it reads parts of a file by its name; files.py has looked at it before",
    ("model_folder", "safe_open("): "it maps the file by its name; files.py has read it for the checksum before",
    ("model_folder", "save_file("): "into the new folder that files.py gives",
    ("model_folder", "(partial / WEIGHTS).chmod("): "safetensors makes its files private",
    ("preprocessing.decode", "np.memmap("): "images that this fit has written through files.py",
    ("report.markup", "(resources.files("): "a text of the package itself",
    ("review.pixels", "np.save(buffer"): "a buffer in memory",
    ("review.server", "found.read_bytes("): "a file of the package itself, by a fixed list",
    ("training.checkpoint", "torch.save(content, file"): "the handle comes from files.py",
    ("training.checkpoint", "torch.load(file"): "the handle comes from files.py",
    ("training.fit", "torch.save(job.method.state_dict(), file"): "the handle comes from files.py",
    ("training.fit", "torch.load(file"): "the handle comes from files.py",
}
"""Module and beginning of a call -> why it may be there."""


def openings(name: str) -> set[str]:
    """Calls of a module that open, write, move or remove files, as text."""
    found = set()
    for node in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id in OPENING:
            found.add(ast.unparse(node))
        elif isinstance(called, ast.Attribute):
            owner = called.value.id if isinstance(called.value, ast.Name) else None
            if called.attr in OPENERS.get(owner or "", ()) or called.attr in METHODS_OF_PATHS:
                found.add(ast.unparse(node))
    return found


def test_only_files_py_opens_and_writes():
    """Regular files alone, bounded, whole or absent, inside their folder: promised in one place."""
    wrong, used = [], set()
    for name in modules():
        if name == "files":
            continue
        for call in openings(name):
            known = [key for key in MAY_OPEN if key[0] == name and call.startswith(key[1])]
            used.update(known)
            if not known:
                wrong.append(f"{name}: {call[:100]}")
    assert not wrong, "open through normalcy.files instead:\n" + "\n".join(sorted(wrong))
    assert used == set(MAY_OPEN), f"no longer needed: {set(MAY_OPEN) - used}"


def test_what_opens_files_is_recognised():
    assert openings("files") > {"open(place, 'xb')"}
    assert any(call.startswith("shutil.rmtree(") for call in openings("files"))
