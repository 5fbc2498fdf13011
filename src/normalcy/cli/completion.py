"""Completion in bash, zsh and fish: the script of each shell, and the candidates for a line that it asks for.

The script calls ``normalcy`` with the shell in ``_NORMALCY_COMPLETE`` and the line up to the cursor in ``_NORMALCY_LINE``; it
gets a candidate in each line of stdout, and none where the shell is to complete names of files. Settings of methods are read
from their source without importing it: torch takes seconds, and a Tab key must not.
"""

from __future__ import annotations

import ast
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from normalcy.cli.printing import show
from normalcy.errors import SettingsError

Complete = Callable[[typer.Context, str], list[str]]
"""Gets the context (the options so far are in ``params``, all words in ``obj``) and the word so far; gives whole words."""

VARIABLE = "_NORMALCY_COMPLETE"
LINE = "_NORMALCY_LINE"

BASH = f"""\
_normalcy_completion() {{
    local IFS=$'\\n'
    COMPREPLY=($({VARIABLE}=bash {LINE}="${{COMP_LINE:0:COMP_POINT}}" COMP_WORDBREAKS="$COMP_WORDBREAKS" "$1" 2>/dev/null))
    [[ ${{#COMPREPLY[@]}} -eq 1 && ${{COMPREPLY[0]}} == *[=:/] ]] && compopt -o nospace
    return 0
}}
complete -o default -F _normalcy_completion normalcy
"""
ZSH = f"""\
#compdef normalcy
_normalcy() {{
    local -a found open
    found=("${{(@f)$({VARIABLE}=zsh {LINE}="${{(j: :)words[1,CURRENT]}}" $words[1] 2>/dev/null)}}")
    found=(${{found:#}})
    open=(${{(M)found:#*[=:/]}})
    found=(${{found:#*[=:/]}})
    if (( ! $#found && ! $#open )); then
        _files
    else
        compadd -- $found
        compadd -S '' -- $open
    fi
}}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _normalcy "$@"
else
    compdef _normalcy normalcy
fi
"""
FISH = f"""\
function _normalcy_completion
    set -l line (commandline -cp | string collect)
    set -l found ({VARIABLE}=fish {LINE}=$line command normalcy 2>/dev/null)
    if test (count $found) -eq 0
        __fish_complete_path (commandline -ct)
    else
        printf '%s\\n' $found
    end
end
complete -c normalcy -f -a '(_normalcy_completion)'
"""
SCRIPTS: Mapping[str, str] = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def chosen(*words: str) -> Complete:
    """Complete one of these words."""
    return lambda ctx, incomplete: list(words)


Shell = Annotated[
    str, typer.Argument(metavar="SHELL", help="bash, zsh or fish.", autocompletion=chosen("bash", "zsh", "fish"))
]


def completion(shell: Shell) -> None:
    """Print the completion script of a shell.

    It completes commands, options, methods, settings after --set and their values, named data sets and tables.
    """
    if shell not in SCRIPTS:
        raise SettingsError(f"There is no completion for {shell!r}. Available: {', '.join(SCRIPTS)}.")
    show(SCRIPTS[shell].rstrip("\n"))


def answer(app: typer.Typer) -> None:
    """Print the candidates for the line in the environment; an error is no candidate."""
    line, shell = os.environ.get(LINE, ""), os.environ.get(VARIABLE, "")
    with suppress(Exception):
        words, incomplete = split_line(line)
        # A shell replaces what follows the last character that ends a word: in bash "=" and ":" do.
        breaks = os.environ.get("COMP_WORDBREAKS", "") if shell == "bash" else ""
        start = max((incomplete.rfind(c) + 1 for c in "=:" if c in breaks), default=0)
        sys.stdout.write("".join(f"{word[start:]}\n" for word in candidates(app, words, incomplete)))


def candidates(app: typer.Typer, words: list[str], incomplete: str) -> list[str]:
    """Whole words that may stand in place of ``incomplete`` after ``normalcy WORDS``.

    >>> from normalcy.cli.app import app
    >>> candidates(app, ["fit", "data", "--method"], "deep_s")
    ['deep_svdd']
    """
    from typer._completion_classes import (
        BashComplete,
    )  # typer's own parser of unfinished lines, which is the same for all

    shell = BashComplete(typer.main.get_command(app), {"obj": words}, "normalcy", VARIABLE)
    return [item.value for item in shell.get_completions(words, incomplete) if item.type == "plain"]


def split_line(line: str) -> tuple[list[str], str]:
    """The words after the command, and the unfinished one; quotes may be open.

    >>> split_line("normalcy fit 'my data' --set latent=6"), split_line("normalcy fit ")
    ((['fit', 'my data', '--set'], 'latent=6'), (['fit'], ''))
    """
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    try:
        words += lexer
    except ValueError:  # an open quote or a backslash at the end
        words.append(lexer.token)
    else:
        if line[-1:].isspace() or len(words) == 1:
            words.append("")
    return words[1:-1], words[-1]


# -- what is completed -----------------------------------------------------------------------------------------------


def methods(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of methods; in a list separated by commas, after the last one."""
    from normalcy.methods import available

    before = incomplete[: incomplete.rfind(",") + 1]
    return [before + name for name in sorted(available()) if name not in before.split(",")]


def families(ctx: typer.Context, incomplete: str) -> list[str]:
    from normalcy.methods import FAMILIES

    return list(FAMILIES)


def tables(ctx: typer.Context, incomplete: str) -> list[str]:
    """Published tables, without importing what runs them."""
    spec = find_spec("normalcy.studies")
    folders = [] if spec is None else [Path(each) / "tables" for each in spec.submodule_search_locations or ()]
    return sorted(
        path.relative_to(folder).with_suffix("").as_posix() for folder in folders for path in folder.glob("*/*.toml")
    )


def data(ctx: typer.Context, incomplete: str) -> list[str]:
    """Named data sets with their classes, and folders and files."""
    from normalcy.data.named import CLASSES, NAMED
    from normalcy.data.published import PUBLISHED

    choices = {**CLASSES, **{name: known.categories for name, known in PUBLISHED.items()}}
    name, colon, _ = incomplete.partition(":")
    if colon and name in choices:
        return [f"{name}:{choice.replace(' ', chr(92) + ' ')}" for choice in choices[name]]
    named = [f"{name}:" if name in choices else name for name in NAMED]
    return [*named, *(paths(incomplete) if any(name.startswith(incomplete) for name in named) else [])]


def paths(incomplete: str) -> list[str]:
    """Files and folders that begin so, the latter with a slash; empty where a name would have to be quoted."""
    folder, slash, start = incomplete.rpartition("/")
    found = []
    with suppress(OSError, ValueError):
        for entry in sorted(os.scandir(folder + slash or "."), key=lambda entry: entry.name):
            if entry.name.startswith(start) and not entry.name.startswith("."):
                found.append(folder + slash + entry.name + "/" * entry.is_dir())
    return found if all(shlex.quote(name) == name for name in found) else []


def settings(ctx: typer.Context, incomplete: str) -> list[str]:
    """``NAME=`` of every setting of the methods on the line, and after it the values, where they are a few words."""
    known = _settings_on(ctx)
    name, equals, _ = incomplete.partition("=")
    if equals:
        return [f"{name}={value}" for value in known.get(name, ())]
    return [f"{name}=" for name in sorted(known)]


def tried(ctx: typer.Context, incomplete: str) -> list[str]:
    """As :func:`settings`, with several values: ``NAME=A|B``."""
    head = incomplete[: incomplete.rfind("|") + 1]
    if not head:
        return settings(ctx, incomplete)
    name = head.partition("=")[0]
    return [f"{head}{value}" for value in _settings_on(ctx).get(name, ())]


def scores(ctx: typer.Context, incomplete: str) -> list[str]:
    """Scores that the method of the model on the line offers.

    The model is not in ``params``: no argument is, before an option that has no value yet.
    """
    from normalcy.files import read_json
    from normalcy.methods import available

    model = next(path for word in ctx.obj if (path := Path(word) / "detector.json").is_file())
    method = read_json(model)["method"]
    return list(settings_in_source(available()[method]).get("score", ()))


def _settings_on(context: typer.Context) -> dict[str, tuple[str, ...]]:
    """Setting -> its values, of the methods that the options so far name."""
    from normalcy.config import fields_of
    from normalcy.methods import available
    from normalcy.settings import COMMON

    several = [name for name in str(context.params.get("methods") or "").split(",") if name]
    names = several or [str(context.params.get("method") or "patchcore")]
    found: dict[str, tuple[str, ...]] = {}
    for part in COMMON.values():
        hints = get_type_hints(part)
        found.update({name: tuple(words_of(hints[name])) for name in fields_of(part)})
    for name in names:
        own = settings_in_source(available()[name]) if name in available() else {}
        found.update(own)
        if several:
            found.update({f"{name}.{setting}": values for setting, values in own.items()})
    return found


def words_of(hint: Any) -> Iterator[str]:
    """Words that a setting of this type may be.

    >>> from typing import Literal
    >>> list(words_of(Literal["l1", "l2"] | None)), list(words_of(bool)), list(words_of(float))
    (['l1', 'l2', 'none'], ['true', 'false'], [])
    """
    if hint is bool:
        yield from ("true", "false")
    elif hint is type(None):
        yield "none"
    elif get_origin(hint) is not tuple:
        for inner in get_args(hint):
            yield from [str(inner)] if isinstance(inner, str | int | float) else words_of(inner)


# -- settings without importing a method -----------------------------------------------------------------------------


def settings_in_source(target: str) -> dict[str, tuple[str, ...]]:
    """Setting -> its values, of the method "module:class".

    >>> settings_in_source("normalcy.methods.ocgan:OCGAN")["score"]
    ('reconstruction', 'discriminator')
    """
    module, _, name = target.partition(":")
    while (place := _defined(module, name)) is not None:
        module, cls = place
        if not isinstance(cls, ast.ClassDef):
            break
        for statement in cls.body:
            match statement:
                case ast.Assign(targets=[ast.Name(id="Settings")], value=ast.Name(id=settings)):
                    return dict(_fields(module, settings))
        name = next((base.id for base in cls.bases if isinstance(base, ast.Name)), "")
    return {}


def _fields(module: str, name: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Fields of a dataclass and of its base classes, with their values."""
    place = _defined(module, name)
    if place is None:
        return
    module, cls = place
    if not isinstance(cls, ast.ClassDef):
        return
    for base in cls.bases:
        if isinstance(base, ast.Name):
            yield from _fields(module, base.id)
    for statement in cls.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement.target.id, tuple(_words(module, statement.annotation))


def _words(module: str, node: ast.AST) -> Iterator[str]:
    """As :func:`words_of`, of an annotation."""
    match node:
        case ast.Name(id="bool"):
            yield from ("true", "false")
        case ast.Constant(value=None):
            yield "none"
        case ast.Constant(value=value):
            yield str(value)
        case ast.BinOp(left=left, right=right):
            yield from (*_words(module, left), *_words(module, right))
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            for each in inner.elts if isinstance(inner, ast.Tuple) else [inner]:
                yield from _words(module, each)
        case ast.Name(id=name) if (place := _defined(module, name)) is not None:
            yield from _words(*place)


def _defined(module: str, name: str) -> tuple[str, ast.AST] | None:
    """Where a class or an alias is defined, followed through imports: the module, and the class or the value."""
    for node in _statements(module):
        match node:
            case ast.ClassDef(name=found) if found == name:
                return module, node
            case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                return module, value
            case ast.ImportFrom(module=str(source), names=names, level=0):
                for alias in names:
                    if (alias.asname or alias.name) == name:
                        return _defined(source, alias.name)
    return None


@cache
def _statements(module: str) -> Iterable[ast.stmt]:
    from normalcy.files import read_text

    if module.partition(".")[0] in sys.stdlib_module_names:
        return []
    spec = find_spec(module)
    return [] if spec is None or spec.origin is None else ast.parse(read_text(spec.origin)).body
