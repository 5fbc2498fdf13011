"""Damaged copies of a JSON file."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from normalcy import DataError

T = TypeVar("T")

WRONG: list[Any] = [
    None, True, -1, 0, 3, 2**70, 10**400, 0.5, -0.25, 1e308, -1e308, float("inf"), float("-inf"), float("nan"), "", "text", "<b>",
    "../../x", "nul\0", [], [1], [[1, 2]], ["a"] * 5, {}, {"value": 1}, {"a": {"b": []}}, [None, None],
]  # fmt: skip


def mutations(text: str, count: int, seed: int, most: int = 3) -> Iterator[str]:
    """Copies with one to ``most`` values exchanged for something else, or their keys taken out or renamed; some are cut."""
    rng = np.random.default_rng(seed)
    tree = json.loads(text)
    for _ in range(count):
        changed = copy.deepcopy(tree)
        for _ in range(rng.integers(1, most + 1)):
            places = list(_places(changed))
            holder, key = places[rng.integers(len(places))]
            match rng.integers(8):
                case 0:
                    del holder[key]
                case 1 if isinstance(holder, dict):
                    holder["x" + str(key)] = holder.pop(key)
                case _:
                    holder[key] = copy.deepcopy(WRONG[rng.integers(len(WRONG))])
        content = json.dumps(changed)
        if rng.random() < 0.05:
            content = content[: rng.integers(len(content))]
        yield content


def outcome(read: Callable[[], T]) -> T | DataError:
    """What reading gives, or the one error that it may end in."""
    try:
        return read()
    except DataError as error:
        return error


def assert_one_sentence(error: DataError, path: Path) -> None:
    """It names the file, on one line that can be read."""
    assert str(path) in str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 1000


def deep(tree: Any, *keys: str) -> str:
    """The JSON of a tree with 10,000 lists in one another at a key."""
    changed = copy.deepcopy(tree)
    holder = changed
    for key in keys[:-1]:
        holder = holder[key]
    holder[keys[-1]] = "HERE"
    return json.dumps(changed).replace('"HERE"', "[" * 10_000 + "]" * 10_000)


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every value of a tree: what holds it, and its key there."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _places(tree[key])
