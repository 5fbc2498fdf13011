"""Settings: frozen dataclasses <-> key=value on the command line, TOML and Python. Unknown settings are errors."""

from __future__ import annotations

import ast
import difflib
import inspect
import itertools
import json
import math
import operator
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from normalcy import files
from normalcy.errors import SettingsError

__all__ = ["require", "require_that"]

T = TypeVar("T")


def fields_of(cls: type) -> dict[str, Field[Any]]:
    """The settings of a dataclass by name."""
    return {f.name: f for f in fields(cls) if f.init}


def default_of(f: Field[Any]) -> Any:
    """The default of a setting (None where it has none)."""
    if f.default is not MISSING:
        return f.default
    return f.default_factory() if f.default_factory is not MISSING else None


def shown_default(f: Field[Any]) -> str:
    """The default of a setting as a user types it after ``--set name=``; "-" for an empty text or list.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Settings:
    ...     width: int | None = None
    ...     crop: tuple[float, float] = (0.0, 1.0)
    ...     steps: tuple[str, ...] = ()
    ...     bias: bool = True
    >>> [shown_default(f) for f in fields_of(Settings).values()]
    ['none', '0.0,1.0', '-', 'true']
    """
    value = default_of(f)
    values = value if isinstance(value, tuple | list) else (value,)
    return ",".join(str(v).lower() if v is None or isinstance(v, bool) else str(v) for v in values) or "-"


def build(cls: type[T], settings: Mapping[str, Any], who: str) -> T:
    """An instance of ``cls`` from its settings by name. Text is read as the setting's type.

    Raises SettingsError for an unknown setting (listing the valid ones) or a value of the wrong type.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Settings:
    ...     latent: int = 32
    ...     loss: Literal["l1", "l2"] = "l2"
    >>> build(Settings, {"latent": "64"}, "vae")
    Settings(latent=64, loss='l2')
    >>> build(Settings, {"latnet": 64}, "vae")
    Traceback (most recent call last):
    ...
    normalcy.errors.SettingsError: vae has no setting 'latnet': did you mean 'latent'? Valid settings: latent, loss.
    """
    hints = get_type_hints(cls)
    valid = fields_of(cls)
    values = {}
    for name, value in settings.items():
        if name not in valid:
            raise unknown_setting(name, valid, who)
        values[name] = _convert(value, hints[name], f"{who}: {name}")
    return cls(**values)


def fill_unset(instance: T, known: Mapping[str, Any]) -> T:
    """Settings left at none take the value that ``known`` (``DataSet.scheme``) has under their name; all others stay.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Settings:
    ...     b0: tuple[int, ...] | None = None
    >>> fill_unset(Settings(), {"b0": [0], "scheme": []}), fill_unset(Settings(b0=(3,)), {"b0": [0]})
    (Settings(b0=(0,)), Settings(b0=(3,)))
    """
    unset = [name for name in fields_of(type(instance)) if getattr(instance, name) is None and name in known]
    given = {name: known[name] for name in unset}
    return build(type(instance), {**to_dict(instance), **given}, "data") if given else instance


def unknown_setting(name: str, valid: Iterable[str], who: str) -> SettingsError:
    """The error for a name that is no setting."""
    valid = sorted(valid)
    near = difflib.get_close_matches(name, valid, n=1)
    hint = f": did you mean {near[0]!r}?" if near else "."
    return SettingsError(f"{who} has no setting {name!r}{hint} Valid settings: {', '.join(valid) or 'none'}.")


def assign_settings(settings: Mapping[str, Any], classes: Mapping[str, type], who: str) -> dict[str, Any]:
    """Assign each setting to the dataclass that has it: name of the part -> its instance.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Train:
    ...     epochs: int = 1
    >>> assign_settings({"epochs": "3"}, {"training": Train}, "fit")["training"]
    Train(epochs=3)
    """
    owner = {name: part for part, cls in classes.items() for name in fields_of(cls)}
    given: dict[str, dict[str, Any]] = {part: {} for part in classes}
    for name, value in settings.items():
        if name not in owner:
            raise unknown_setting(name, owner, who)
        given[owner[name]][name] = value
    return {part: build(cls, given[part], who) for part, cls in classes.items()}


def parse_settings(pairs: Sequence[str]) -> dict[str, str]:
    """``["latent=64"]`` -> ``{"latent": "64"}``."""
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise SettingsError(f"--set expects key=value, got {pair!r}.")
        settings[name.strip()] = value.strip()
    return settings


def read_toml(path: Path) -> dict[str, Any]:
    """Settings of a flat TOML file. Raises SettingsError with the position of a syntax error."""
    if not path.exists():
        raise SettingsError(f"Cannot read the settings file {path}: there is no such file.")
    settings = files.read_toml(path)
    for name, value in settings.items():
        if isinstance(value, dict):
            raise SettingsError(f"{path}: settings are flat, got the table [{name}]; write its settings without it.")
    return settings


def write_toml(settings: Mapping[str, Any]) -> str:
    """Flat TOML that :func:`read_toml` reads back; None is the text "none".

    >>> print(write_toml({"latent": 64, "layers": (0, 1), "width": None}), end="")
    latent = 64
    layers = [0, 1]
    width = "none"
    """
    return "".join(f"{name} = {json.dumps('none' if value is None else value)}\n" for name, value in settings.items())


def to_dict(instance: Any) -> dict[str, Any]:
    """All settings of an instance as plain JSON values."""
    settings = {}
    for name in fields_of(type(instance)):
        value = getattr(instance, name)
        settings[name] = list(value) if isinstance(value, tuple) else value
    return settings


def field_docs(cls: type) -> dict[str, str]:
    """What each setting means: the text below it in the source of its dataclass, or of its base class."""
    notes = field_docs(cls.__base__) if cls.__base__ not in (None, object) else {}
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    statements = body.body if isinstance(body, ast.ClassDef) else []
    for setting, note in itertools.pairwise(statements):
        if isinstance(setting, ast.AnnAssign) and isinstance(setting.target, ast.Name) and isinstance(note, ast.Expr):
            text = note.value.value if isinstance(note.value, ast.Constant) else ""
            notes[setting.target.id] = " ".join(str(text).split())
    return notes


def require(
    who: str,
    settings: Any,
    *,
    positive: Sequence[str] = (),
    non_negative: Sequence[str] = (),
    fraction: Sequence[str] = (),
    unit: Sequence[str] = (),
    at_least: Mapping[str, float] | None = None,
) -> None:
    """Check numbers of a settings dataclass, in its ``__post_init__``. A setting that is None passes.

    ``positive``: > 0 (at least 1 where whole); ``non_negative``: >= 0; ``fraction``: 0 < x < 1; ``unit``: 0 <= x <= 1;
    ``at_least``: name -> least value. Of a tuple every element is checked. Raises SettingsError that names the setting,
    what was expected and what it got.

    >>> from types import SimpleNamespace
    >>> require("vae", SimpleNamespace(latent=0, lr=1e-3), positive=("latent", "lr"))
    Traceback (most recent call last):
    ...
    normalcy.errors.SettingsError: vae: latent must be at least 1, got 0.
    """
    rules: list[tuple[str, str, Callable[[float], bool]]] = []
    for name in positive:
        values = _values(getattr(settings, name))
        whole = all(isinstance(v, int) for v in values)
        rules.append((name, "at least 1" if whole else "greater than 0", lambda v: v > 0))
    rules += [(name, "at least 0", lambda v: v >= 0) for name in non_negative]
    rules += [(name, "between 0 and 1, both excluded", lambda v: 0 < v < 1) for name in fraction]
    rules += [(name, "between 0 and 1", lambda v: 0 <= v <= 1) for name in unit]
    for name, low in (at_least or {}).items():
        rules.append((name, f"at least {low:g}", partial(operator.le, low)))
    for name, expected, holds in rules:
        value = getattr(settings, name)
        require_that(all(math.isfinite(v) and holds(v) for v in _values(value)), who, name, expected, value)


def require_that(holds: bool, who: str, name: str, expected: str, got: Any) -> None:
    """The error of :func:`require` for any other rule: SettingsError unless ``holds``.

    >>> require_that(3 % 2 == 0, "lsr", "window", "an even number", 3)
    Traceback (most recent call last):
    ...
    normalcy.errors.SettingsError: lsr: window must be an even number, got 3.
    """
    if not holds:
        raise SettingsError(f"{who}: {name} must be {expected}, got {got!r}.")


def _values(value: Any) -> tuple[Any, ...]:
    return () if value is None else tuple(value) if isinstance(value, tuple | list) else (value,)


def _convert(value: Any, hint: Any, who: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if type(None) in args and (value is None or (isinstance(value, str) and value.lower() == "none")):
            return None
        for option in (a for a in args if a is not type(None)):
            try:
                return _convert(value, option, who)
            except SettingsError:
                if option is [a for a in args if a is not type(None)][-1]:
                    raise
    if origin is Literal:
        for option in args:
            if value == option or (isinstance(value, str) and value == str(option)):
                return option
        raise SettingsError(f"{who} must be one of {', '.join(map(str, args))}, got {value!r}.")
    if origin is tuple:
        items = [v.strip() for v in value.split(",") if v.strip()] if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise SettingsError(f"{who} must be a list, got {value!r}.")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_convert(v, args[0], who) for v in items)
        if len(items) != len(args):
            raise SettingsError(f"{who} must have {len(args)} values, got {value!r}.")
        return tuple(_convert(v, a, who) for v, a in zip(items, args))
    if hint is bool:
        truth = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in truth:
            return truth[value.lower()]
        raise SettingsError(f"{who} must be true or false, got {value!r}.")
    if hint in (int, float) and not isinstance(value, bool):
        try:
            number = hint(value)
        except (
            TypeError,
            ValueError,
            OverflowError,
        ):  # overflow: a float that is infinite, or an integer beyond floats
            number = None
        if number is not None and not (hint is int and isinstance(value, float) and value != number):
            return number
        raise SettingsError(f"{who} must be {'a whole number' if hint is int else 'a number'}, got {value!r}.")
    if hint is str and isinstance(value, str):
        return value
    raise SettingsError(f"{who} must be {getattr(hint, '__name__', hint)}, got {value!r}.")
