"""Dataclasses <-> JSON: what is read back, old names, and one error for what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normalcy.errors import DataError
from normalcy.results.schema import (
    ABSENT,
    Count,
    Rate,
    as_read,
    describe,
    dumps,
    from_json,
    load,
    read_json,
    to_json,
    was,
)


@dataclass(frozen=True)
class Part:
    """A part."""

    rate: Rate | None = None
    """A rate."""
    error: float = field(default=0.0, metadata=ABSENT)


@dataclass(frozen=True)
class Whole:
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict, metadata=was("words"))
    count: Count = 0
    parts: tuple[Part, ...] = ()
    named: Mapping[str, Part] = field(default_factory=dict)
    span: tuple[float, float] | None = None
    good: bool = True


WHOLE = Whole("a", {"x": [1, None, "t"]}, 3, (Part(0.5), Part(None, 0.1)), {"p": Part(1.0)}, (0.0, 2.5), False)


def test_what_is_written_is_read(tmp_path: Path):
    (tmp_path / "w.json").write_bytes(dumps(WHOLE))
    assert load(Whole, tmp_path / "w.json", "do it again") == WHOLE


def test_what_is_not_finite_is_null_and_defaults_may_be_left_out():
    tree = to_json(Whole("a", {"x": np.float32(0.5)}, parts=(Part(float("nan")),), span=(0.0, float("inf"))))
    assert tree["span"] == [0.0, None]
    assert tree["parts"] == [{"rate": None}]
    assert tree["settings"] == {"x": 0.5}
    assert as_read(Whole("a", parts=(Part(float("nan"), 0.5),))).parts == (Part(None, 0.5),)


def test_names_of_earlier_versions_and_unknown_keys():
    assert from_json(Whole, {"name": "a", "words": {"k": 1}, "later": 3}, "f", "r").settings == {"k": 1}
    pair = from_json(Whole, {"name": "a", "parts": [[0.25, 0.5]]}, "f", "r")
    assert pair.parts == (Part(0.25, 0.5),), "a list gives the fields in order"


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({}, "expected the key 'name'"),
        ({"name": 3}, "name: expected text, got 3"),
        ({"name": "a", "count": -1}, r"count: expected a number of at least 0, got -1|count: expected a number in"),
        ({"name": "a", "count": 1.5}, "count: expected a whole number, got 1.5"),
        ({"name": "a", "count": True}, "count: expected a whole number, got True"),
        ({"name": "a", "count": 10**400}, "count: expected a whole number"),
        ({"name": "a", "parts": {}}, "parts: expected a list"),
        ({"name": "a", "parts": [{"rate": 1.5}]}, r"parts\.0\.rate: expected a number in \[0, 1\], got 1\.5"),
        ({"name": "a", "parts": [{"rate": float("inf")}]}, r"parts\.0\.rate: expected a finite number"),
        ({"name": "a", "parts": [{"rate": float("nan")}]}, r"parts\.0\.rate: expected a finite number"),
        ({"name": "a", "parts": [3]}, r"parts\.0: expected an object"),
        ({"name": "a", "named": []}, "named: expected an object"),
        ({"name": "a", "named": {"p\nq": 1}}, r"named\.p q: expected an object"),
        ({"name": "a", "span": [1]}, "span: expected a list of 2"),
        ({"name": "a", "span": [1, 1e308]}, r"span\.1: expected a finite number"),
        ({"name": "a", "good": 1}, "good: expected true or false"),
        ({"name": "a", "settings": {"x": 10**400}}, r"settings\.x: expected a whole number"),
        ([], "expected an object"),
        (None, "expected an object"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_with_file_and_key(tree: Any, says: str):
    with pytest.raises(DataError, match=says) as caught:
        from_json(Whole, tree, "R/w.json", "do it again")
    assert str(caught.value).startswith("R/w.json: ")
    assert str(caught.value).endswith("; do it again.")
    assert "\n" not in str(caught.value)


def test_values_of_no_type_are_not_nested_without_end():
    tree: Any = 0
    for _ in range(500):
        tree = [tree]
    with pytest.raises(DataError, match="levels"):
        from_json(Whole, {"name": "a", "settings": {"x": tree}}, "f", "r")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 10_000 + b"]" * 10_000, "too deeply nested|levels|expected format"),
        (b"1" * 5_000, "not valid JSON|expected format"),
        (b"[]", "expected format 1, got list"),
        (b'{"format": 2}', "expected format 1, got 2"),
        (b'{"format": "' + b"x" * 5_000 + b'"}', "expected format 1"),
    ],
)
def test_files_that_are_no_json_of_this_version(tmp_path: Path, content: bytes, says: str):
    (tmp_path / "w.json").write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        load(Whole, tmp_path / "w.json", "do it again")
    assert len(str(caught.value)) < 600


def test_only_regular_files_are_read(tmp_path: Path):
    with pytest.raises(DataError, match="cannot be read"):
        read_json(tmp_path / "none.json", "r")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="is not a regular file"):
        read_json(tmp_path / "folder", "r")
    import os

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is not a regular file"):
        read_json(tmp_path / "pipe", "r")


def test_the_description_names_every_key():
    rows = {key: (values, about) for key, values, about in describe(Whole)}
    assert rows["parts"] == ("list: {`rate`, `error`}", "A part.")
    assert rows["count"][0] == "whole number, at least 0"
    assert rows["span"][0] == "list: number (2) or null"
    assert rows["named"][0] == "object: name to {`rate`, `error`}"
