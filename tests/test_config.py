"""Settings: text to dataclasses and back, with one error message for each mistake."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from normalcy.config import (
    assign_settings,
    build,
    default_of,
    field_docs,
    fields_of,
    parse_settings,
    read_toml,
    shown_default,
    to_dict,
)
from normalcy.errors import SettingsError


@dataclass(frozen=True)
class Every:
    """One setting of each kind."""

    whole: int = 1
    """How many."""
    number: float = 0.5
    yes: bool = False
    text: str = "a"
    word: Literal["l1", "l2"] = "l2"
    maybe: int | None = None
    either: int | str = "all"
    pair: tuple[float, float] = (0.0, 0.9)
    several: tuple[str, ...] = ()
    """Names, in order.

    More about it.
    """


@dataclass(frozen=True)
class Other:
    epochs: int = 3


@pytest.mark.parametrize(
    ("word", "given", "expected"),
    [
        ("whole", "7", 7),
        ("whole", 7.0, 7),
        ("number", "1e-3", 1e-3),
        ("number", 2, 2.0),
        ("yes", "true", True),
        ("yes", "No", False),
        ("yes", True, True),
        ("text", "x=y", "x=y"),
        ("word", "l1", "l1"),
        ("maybe", "none", None),
        ("maybe", "5", 5),
        ("maybe", None, None),
        ("either", "3", 3),
        ("either", "all", "all"),
        ("pair", "0.5, 0.99", (0.5, 0.99)),
        ("pair", [0, 1], (0.0, 1.0)),
        ("several", "a,b", ("a", "b")),
        ("several", "", ()),
        ("several", ["a"], ("a",)),
    ],
)
def test_values_are_read_as_their_type(word: str, given: Any, expected: Any):
    value = getattr(build(Every, {word: given}, "it"), word)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("word", "given", "sentence"),
    [
        ("whole", "seven", "it: whole must be a whole number, got 'seven'"),
        ("whole", 7.5, "it: whole must be a whole number, got 7.5"),
        ("whole", True, "it: whole must be int, got True"),
        ("number", "much", "it: number must be a number, got 'much'"),
        ("yes", "maybe", "it: yes must be true or false, got 'maybe'"),
        ("yes", 1, "it: yes must be true or false, got 1"),
        ("text", 5, "it: text must be str, got 5"),
        ("word", "l3", "it: word must be one of l1, l2, got 'l3'"),
        ("maybe", "x", "it: maybe must be a whole number, got 'x'"),
        ("pair", "1", "it: pair must have 2 values, got '1'"),
        ("pair", "a,b", "it: pair must be a number, got 'a'"),
        ("several", 3, "it: several must be a list, got 3"),
        ("wholes", 3, "it has no setting 'wholes': did you mean 'whole'"),
        ("zzz", 3, "it has no setting 'zzz'. Valid settings: either, maybe, number"),
    ],
)
def test_mistakes_are_one_sentence(word: str, given: Any, sentence: str):
    with pytest.raises(SettingsError) as caught:
        build(Every, {word: given}, "it")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_round_trip_through_json():
    for settings in (Every(), Every(7, 1e-9, True, "ü", "l1", 3, 4, (0.1, 0.2), ("a", "b"))):
        assert build(Every, json.loads(json.dumps(to_dict(settings))), "it") == settings


def test_settings_are_assigned_to_their_parts():
    parts = assign_settings({"whole": "4", "epochs": 9}, {"a": Every, "b": Other}, "fit")
    assert parts == {"a": Every(whole=4), "b": Other(epochs=9)}
    with pytest.raises(SettingsError, match="fit has no setting 'epoch': did you mean 'epochs'"):
        assign_settings({"epoch": 1}, {"a": Every, "b": Other}, "fit")


def test_pairs():
    assert parse_settings(["latent=64", " loss = l1", "text=a=b", "several="]) == {
        "latent": "64", "loss": "l1", "text": "a=b", "several": ""
    }  # fmt: skip
    for wrong in ("latent", "=3", " =3"):
        with pytest.raises(SettingsError, match="--set expects key=value"):
            parse_settings([wrong])


def test_toml(tmp_path: Path):
    path = tmp_path / "run.toml"
    path.write_text('whole = 3\npair = [0.1, 0.2]\nyes = true\nword = "l1"\n')
    assert build(Every, read_toml(path), "it") == Every(whole=3, pair=(0.1, 0.2), yes=True, word="l1")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"whole = ", "is not valid TOML"),
        (b"\xff\xfe", "is not valid TOML"),
        (b"[vae]\nlatent = 3", "settings are flat, got the table \\[vae\\]"),
        (None, "Cannot read the settings file"),
    ],
)
def test_toml_mistakes(content: bytes | None, sentence: str, tmp_path: Path):
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=sentence):
        read_toml(path)


def test_defaults_and_meanings():
    assert {word: default_of(field) for word, field in fields_of(Every).items()}["pair"] == (0.0, 0.9)
    shown = {name: shown_default(field) for name, field in fields_of(Every).items()}
    assert shown == {
        "whole": "1", "number": "0.5", "yes": "false", "text": "a", "word": "l2", "maybe": "none", "either": "all",
        "pair": "0.0,0.9", "several": "-",
    }  # fmt: skip
    typed = {name: "" if text == "-" else text for name, text in shown.items()}
    assert build(Every, typed, "it") == Every(), "a default can be typed as it is shown"
    assert field_docs(Every) == {"whole": "How many.", "several": "Names, in order. More about it."}
