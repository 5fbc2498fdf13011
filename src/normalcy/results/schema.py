"""Dataclasses <-> JSON files: a file holds what the dataclass says, or one error names the file and the key.

Fields are of the types ``bool``, ``int``, ``float``, ``str``, ``Any`` (JSON values), dataclasses, ``tuple``, ``Mapping`` of text
and unions with ``None``; numbers with bounds are ``Annotated``. Numbers that are not finite are written as null. Keys that the
dataclass does not have are passed over when read, so that a file of a later version can be read.
"""

from __future__ import annotations

import json
import math
import reprlib
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

from normalcy.config import field_docs
from normalcy.errors import DataError
from normalcy.files import is_inside, read_bytes

T = TypeVar("T")

FORMAT = 1
"""Version of all files of a results or comparison folder."""
LARGEST = 1e100
"""Numbers beyond are refused: their squares and sums would overflow."""
LARGEST_FILE = 2**27
"""Bytes of a JSON file."""
DEEPEST = 12
"""Levels of JSON values whose type is not given."""


@dataclass(frozen=True)
class Bounds:
    """Of a number, with a margin for rounding."""

    low: float = -LARGEST
    high: float = LARGEST

    def hold(self, value: float) -> bool:
        return self.low - 1e-9 <= value <= self.high + 1e-9


Count = Annotated[int, Bounds(0, 2**53)]
Rate = Annotated[float, Bounds(0, 1)]
"""A fraction, probability or area under a curve, in [0, 1]."""
Positive = Annotated[float, Bounds(0)]


ABSENT = {"absent": True}
"""Metadata of a field that is not written where it has its default."""


def was(*names: str) -> dict[str, tuple[str, ...]]:
    """Metadata of a field with its names in files of earlier versions."""
    return {"was": names}


def to_json(value: Any) -> Any:
    """JSON values of a dataclass; null for numbers that are not finite."""
    if is_dataclass(value):
        kept = [(f, getattr(value, f.name)) for f in fields(value)]
        return {f.name: to_json(v) for f, v in kept if not (f.metadata.get("absent") and v == f.default)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_json(cls: type[T], tree: Any, who: str, remedy: str) -> T:
    """An instance of ``cls`` from JSON values. Raises DataError with ``who`` (the file), the key and what to do."""
    try:
        return cast("T", _read(cls, tree, ()))
    except _Fault as fault:
        raise DataError(f"{who}: {fault}; {remedy}.") from None


def as_read(instance: T) -> T:
    """The same as it is read from its file: None for numbers that are not finite, lists in JSON values."""
    return from_json(type(instance), to_json(instance), type(instance).__name__, "report this as a fault of normalcy")


def load(cls: type[T], path: Path, remedy: str) -> T:
    """Read a JSON file of this version. Raises DataError when it is missing, damaged or of another version."""
    content = read_json(path, remedy)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        got = reprlib.repr(content.get("format")) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path}: expected format {FORMAT}, got {got}; {remedy} with this version of normalcy.")
    return from_json(cls, content, str(path), remedy)


def dumps(instance: Any) -> bytes:
    """The content of the file of an instance."""
    return (json.dumps({"format": FORMAT, **to_json(instance)}, indent=1, allow_nan=False) + "\n").encode()


def read_json(path: Path, remedy: str) -> Any:
    """The JSON value in a regular file of bounded size."""
    if not path.exists():
        raise DataError(f"{path}: cannot be read (there is no such file); {remedy}.")
    if not is_inside(path, path.parent):
        raise DataError(f"{path}: is a link to another place; {remedy}.")
    data = read_bytes(path, LARGEST_FILE)
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]
        raise DataError(f"{path}: is not valid JSON ({reason}); {remedy}.") from None


# -- for the documentation ---------------------------------------------------------------------------------------------


def describe(cls: type, above: str = "") -> list[tuple[str, str, str]]:
    """Key, values and meaning of the fields of a file; those of larger objects in it follow, with dots (``image.f1_max``)."""
    notes = field_docs(cls)
    rows = []
    for f, hint in _fields(cls):
        key, inner = f"{above}{f.name}", _object_in(hint)
        about = notes.get(f.name) or (" ".join((inner.__doc__ or "").split()) if inner is not None else "")
        rows.append((key, _values(hint), about))
        if inner is not None and not _is_small(inner):
            rows += describe(inner, f"{key}.")
    return rows


def _object_in(hint: Any) -> type | None:
    """The dataclass of which a field holds one, some or none."""
    if is_dataclass(hint):
        return cast("type", hint)
    if get_origin(hint) is Annotated:
        return None
    return next((found for arg in get_args(hint) if (found := _object_in(arg)) is not None), None)


def _is_small(cls: type) -> bool:
    """Written on one line."""
    return len(_fields(cls)) <= 5 and all(_object_in(hint) is None for _, hint in _fields(cls))


def _values(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        low, high = args[1].low, args[1].high
        span = f" in [{low:g}, {high:g}]" if high < 2**53 else f", at least {low:g}" if low > -LARGEST else ""
        return _values(args[0]) + span
    if origin in (Union, types.UnionType):
        return f"{_values(next(arg for arg in args if arg is not type(None)))} or null"
    if origin is tuple:
        return f"list: {_values(args[0])}" + ("" if args[-1] is Ellipsis else f" ({len(args)})")
    if origin is not None and issubclass(origin, Mapping):
        return f"object: name to {_values(args[1])}"
    if is_dataclass(hint):
        names = ", ".join(f"`{f.name}`" for f, _ in _fields(cast("type", hint)))
        return f"{{{names}}}" if _is_small(cast("type", hint)) else "object"
    return {bool: "true, false", int: "whole number", float: "number", str: "text", Any: "any"}[hint]


# -- private -----------------------------------------------------------------------------------------------------------

_Key = tuple["str | int", ...]


class _Fault(Exception):
    """What is wrong at a key."""

    def __init__(self, key: _Key, expected: str, value: Any) -> None:
        place = " ".join(".".join(map(str, key)).split())[:200]
        super().__init__(f"{place}: " * bool(place) + f"expected {expected}, got {reprlib.repr(value)}")


@cache
def _fields(cls: type) -> tuple[tuple[Field[Any], Any], ...]:
    """Fields of a dataclass with their resolved types."""
    hints = get_type_hints(cls, include_extras=True)
    return tuple((f, hints[f.name]) for f in fields(cls))


def _read(hint: Any, value: Any, key: _Key) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        number = _read(args[0], value, key)
        bounds: Bounds = args[1]
        if not bounds.hold(number):
            span = f"in [{bounds.low:g}, {bounds.high:g}]" if bounds.high < 2**53 else f"of at least {bounds.low:g}"
            raise _Fault(key, f"a number {span}", value)
        return number
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        [kind] = [arg for arg in args if arg is not type(None)]
        return _read(kind, value, key)
    if origin is tuple:
        if not isinstance(value, list):
            raise _Fault(key, "a list", value)
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise _Fault(key, f"a list of {len(args)}", value)
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
        return tuple(_read(kind, item, (*key, k)) for k, (kind, item) in enumerate(zip(kinds, value)))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise _Fault(key, "an object", value)
        return {name: _read(args[1], item, (*key, name)) for name, item in value.items()}
    if hint is Any:
        return _plain(value, key, 0)
    if is_dataclass(hint):
        return _instance(cast("type", hint), value, key)
    return _scalar(hint, value, key)


def _instance(cls: type, value: Any, key: _Key) -> Any:
    """Of an object, or of a list of the values of all fields in order."""
    known = _fields(cls)
    if isinstance(value, list) and len(value) == len(known):
        value = {f.name: item for (f, _), item in zip(known, value)}
    if not isinstance(value, dict):
        raise _Fault(key, "an object", value)
    given = {}
    for f, hint in known:
        name = next((name for name in (f.name, *f.metadata.get("was", ())) if name in value), None)
        if name is not None:
            given[f.name] = _read(hint, value[name], (*key, name))
        elif f.default is MISSING and f.default_factory is MISSING:
            raise _Fault(key, f"the key {f.name!r}", value)
    try:
        return cls(**given)
    except ValueError as error:  # of __post_init__
        raise _Fault(key, str(error), given) from None


def _scalar(hint: Any, value: Any, key: _Key) -> Any:
    names = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}
    right = isinstance(value, int | float if hint is float else hint) and isinstance(value, bool) == (hint is bool)
    if right and hint in (int, float):
        right = -LARGEST <= value <= LARGEST  # also false for NaN
    if not right:
        raise _Fault(key, names[hint], value)
    return float(value) if hint is float else value


def _plain(value: Any, key: _Key, depth: int) -> Any:
    """JSON values of any type, numbers as above."""
    if depth > DEEPEST:
        raise _Fault(key[:DEEPEST], f"at most {DEEPEST} levels", type(value).__name__)
    if isinstance(value, dict):
        return {name: _plain(item, (*key, name), depth + 1) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, (*key, k), depth + 1) for k, item in enumerate(value)]
    if value is None or isinstance(value, str | bool):
        return value
    return _scalar(int if isinstance(value, int) else float, value, key)
