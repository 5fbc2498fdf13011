"""``Method.reduction``: the image score that a region of interest takes from the map is the one that the method itself gives."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from normalcy.arrays import reduce_within
from normalcy.methods import METHODS, get
from normalcy.testing import smooth_textures

SHAPE = (1, 40, 48)
UNSMOOTHED = ("dsebm", "ganomaly", "ocgan")
"""Methods that reduce the map before it is smoothed."""


def reducing() -> list[str]:
    """Methods whose score may be a reduction of the map."""
    found = [name for name in METHODS if get(name).map_scores or "reduction" in vars(get(name))]
    assert len(found) >= 14
    return found


@pytest.mark.parametrize("name", reducing())
def test_score_is_the_reduction_of_the_map(name: str, fitted: Callable[..., Any]):
    cls = get(name)
    settings = {k: v for k, v in import_module(f"test_{name}").CONTRACT.items() if k not in ("steps", "batch_size")}
    if name in UNSMOOTHED:
        settings["smoothing"] = 0.0
    method = fitted(cls, SHAPE, count=24, steps=2, batch_size=8, **settings)
    x = smooth_textures(3, SHAPE, seed=5).numpy()
    compared = 0
    for score in method.scores or ("",):
        scored = method.with_score(score) if score else method
        if scored.reduction is None:
            continue
        parts = scored.score_arrays(x)
        whole = np.ones(SHAPE[1:], bool)
        reduced = [reduce_within(map, whole, scored.reduction) for map in parts["map"]]
        assert parts["score"] == pytest.approx(reduced, rel=2e-4), score
        compared += 1
    assert compared


@pytest.mark.parametrize("reduce", ["auto", "mean", "top", "max", 0.0, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("shape", [(20, 30), (40, 50)])
def test_reductions_agree_with_those_of_methods(reduce: Any, shape: tuple[int, int]):
    import torch

    from normalcy.nets.filters import reduce_map

    map = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = float(reduce_map(torch.from_numpy(map)[None], reduce)[0])
    assert reduce_within(map, np.ones(shape, bool), reduce) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_reduction_counts_the_pixels_inside_alone():
    map = np.arange(100, dtype=np.float32).reshape(10, 10)
    inside = map < 10
    assert reduce_within(map, inside, "max") == 9
    assert reduce_within(map, inside, "mean") == 4.5
    assert reduce_within(map, inside, "top") == 9
    assert reduce_within(map, inside, 0.5) == 5
