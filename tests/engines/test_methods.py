"""Every method: its graph gives its scores within 1e-4, or the method says why it has none."""

import sys
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from normalcy.engines.cached import BOUND, graph_of
from normalcy.engines.method import graph_method
from normalcy.engines.probe import largest_differences
from normalcy.engines.trace import check_exportable
from normalcy.errors import SettingsError
from normalcy.method import Method
from normalcy.methods import METHODS, get
from normalcy.testing import Trial, default_shapes

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))  # contract settings lie beside each method's own test


def scores_of(name: str) -> tuple[str, ...]:
    return get(name).scores or ("",)


def exportable(name: str) -> list[str]:
    return [score for score in scores_of(name) if score not in get(name).not_exportable]


@lru_cache(maxsize=1)
def fitted(name: str, shape: tuple[int, ...]) -> tuple[Method, torch.Tensor]:
    words: dict[str, Any] = dict(import_module(f"test_{name}").CONTRACT)
    if "steps" in words:
        words["steps"] = 4
    if name == "patchwise":
        words |= {"patch": 16, "stride": 16}  # the graph holds every patch of an image
    trial = Trial(get(name), words, shape)
    return trial.fitted(), trial.mixed


def cases() -> list[Any]:
    """The first score of each method that can be exported, the others as slow; a volume for some."""
    found = []
    for name in METHODS:
        for place, score in enumerate(exportable(name)):
            marks = [pytest.mark.slow] if place else []
            shape = default_shapes(get(name))[0]
            found.append(pytest.param(name, score, shape, id=f"{name}-{score}".rstrip("-"), marks=marks))
    for name in ("autoencoder", "vae", "zscore"):
        found.append(pytest.param(name, exportable(name)[0], (1, 16, 16, 16), id=f"{name}-volume"))
    return found


@pytest.mark.parametrize(("name", "score", "shape"), cases())
def test_graph_scores_as_the_method(name: str, score: str, shape: tuple[int, ...]):
    method, images = fitted(name, shape)
    if score:
        method = method.with_score(score)
    graph = graph_of(method, "onnxruntime")
    twin = graph_method(type(method), method.settings, shape, graph)
    for batch in (images[:1], images):  # the size of a batch is free
        differences = largest_differences(method.score(batch), twin.score(batch))
        assert "score" in differences
        for output, difference in differences.items():
            assert difference["relative"] <= BOUND, (output, difference)


@pytest.mark.parametrize("name", [name for name in METHODS if get(name).not_exportable])
def test_refusals_name_a_way_out(name: str):
    cls = get(name)
    assert set(cls.not_exportable) <= set(scores_of(name))
    for score, reason in cls.not_exportable.items():
        settings = cls.Settings(score=score) if score else cls.Settings()
        method = cls(settings, default_shapes(cls)[0])
        with pytest.raises(SettingsError, match=r"cannot be exported: its? .*; take ") as refusal:
            check_exportable(method)
        assert reason in str(refusal.value)
        advice = reason.rpartition("; take ")[2].rstrip(".")
        known = [*METHODS, *(f"score={other}" for other in exportable(name))]
        assert any(word in advice for word in known), advice


def test_at_least_28_methods_export():
    assert sum(bool(exportable(name)) for name in METHODS) >= 28


def test_untraceable_method_refuses_in_a_sentence():
    method, _ = fitted("anogan", (1, 32, 32))
    undeclared = type("Undeclared", (type(method),), {"not_exportable": {}, "name": "undeclared"})
    method.__class__ = undeclared
    with pytest.raises(SettingsError, match=r"^undeclared cannot be exported, as its score cannot be traced"):
        graph_of(method, "onnxruntime")
