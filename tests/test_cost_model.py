"""The model of cost against a simulation, for each stage that may limit it, and against numbers worked out by hand."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normalcy.data.formats import LIMITS
from normalcy.remote import mirror
from normalcy.results.run import Shard, shard_of

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
NAMES = ("cost_model", "simulation")


@pytest.fixture(scope="module")
def modules() -> Iterator[tuple[Any, Any]]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("cost_model"), importlib.import_module("simulation")
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def costs(modules: tuple[Any, Any]) -> Any:
    return modules[0].Costs(
        start=3.0,
        name=6e-5,
        name_bytes=1500,
        fetch=1e-3,
        decode=1e-3,
        preprocess=3e-4,
        network=3e-3,
        table=2e-4,
        merge=1e-4,
        image_bytes=27_000,
        row_bytes=80,
    )


# name -> changes of costs, store, cluster; sets, names, shards; the stage that limits it after scoring
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], tuple[int, int, int], str]] = {
    "processor": ({"network": 0.05}, {}, {}, (60, 300, 1), "start"),
    "latency": ({}, {"latency": 0.8}, {}, (60, 300, 1), "read"),
    "bandwidth": ({"image_bytes": 2e6}, {}, {}, (60, 300, 1), "read"),
    "requests of a prefix": ({}, {"reads": 300.0}, {}, (1, 9000, 20), "read"),
    "listing by every shard": ({}, {}, {}, (1, 30_000, 100), "list"),
    "writing": ({"map_files": 3, "map_bytes": 300_000}, {}, {}, (60, 300, 1), "write"),
    "deaths": ({"network": 0.3}, {}, {"failures": 20.0}, (200, 200, 1), "repeat"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_model_and_simulation_agree(modules: tuple[Any, Any], costs: Any, name: str):
    model, simulation = modules
    of_costs, of_store, of_cluster, (sets, names, shards), limit = SETTINGS[name]
    own, store = replace(costs, **of_costs), model.Store(**of_store)
    cluster, work = model.Cluster(20, **of_cluster), model.Work(sets, names, shards)
    predicted = model.predict(own, store, cluster, work)
    outcome = simulation.Simulation(own, store, cluster, work).run()
    assert predicted.bottleneck == limit
    after = {stage: seconds for stage, seconds in outcome.stages.items() if stage != "score"}
    assert max(after, key=lambda stage: after[stage]) == limit
    assert predicted.machine_hours == pytest.approx(outcome.machine_hours, rel=0.05)
    assert predicted.hours == pytest.approx(outcome.hours, rel=0.1)


def test_one_worker_by_hand(modules: tuple[Any, Any], costs: Any):
    model, simulation = modules
    store = model.Store(latency=0.016, spread=0, slow=0, page_latency=0.5)
    cluster, work = model.Cluster(1, uneven=0), model.Work(1, 2500)
    by_hand = 3 + 3 * 0.5 + 2500 * 6e-5 + 2500 * 5.5e-3
    assert model.predict(costs, store, cluster, work).machine_hours == pytest.approx(by_hand / 3600, rel=0.001)
    assert simulation.Simulation(costs, store, cluster, work).run().hours == pytest.approx(by_hand / 3600, rel=0.01)


def test_groups_of_images_do_not_change_the_outcome(modules: tuple[Any, Any], costs: Any):
    model, simulation = modules
    for store in (model.Store(), model.Store(latency=0.5)):
        one, many = (
            simulation.Simulation(costs, store, model.Cluster(5), model.Work(20, 2000), group=group).run()
            for group in (1, 200)
        )
        assert many.hours == pytest.approx(one.hours, rel=0.05)
        assert many.requests == one.requests


def test_shards_are_those_of_the_command(modules: tuple[Any, Any]):
    names = [f"{k // 1000:04}/{k:07}.png" for k in range(3000)]
    sizes = modules[1].shard_sizes(3000, 7)
    assert sizes.tolist() == [len(shard_of(names, Shard(k, 7))) for k in range(1, 8)]
    assert sizes.sum() == 3000
    assert (np.abs(sizes - 3000 / 7) < 100).all()


def test_dead_workers_lose_no_image(modules: tuple[Any, Any], costs: Any):
    model, simulation = modules
    work = model.Work(40, 200)
    runs = [
        simulation.Simulation(replace(costs, network=0.2), model.Store(), model.Cluster(4, failures=rate), work, seed=3)
        for rate in (0.0, 30.0, 30.0)
    ]
    without, dying, again = (run.run() for run in runs)
    assert without.deaths == 0 < dying.deaths
    assert dying == again
    assert dying.hours > without.hours
    assert not any(runs[1].left.values())
    assert without.requests["reads"] == work.images < dying.requests["reads"]


def test_limits_are_those_of_the_library(modules: tuple[Any, Any], costs: Any):
    model = modules[0]
    assert LIMITS.entries == model.LARGEST
    assert mirror.AHEAD == model.AHEAD
    with pytest.raises(ValueError, match=r"at most 4,194,304 names in a data set, got 1,000,000,000: divide it"):
        model.predict(costs, model.Store(), model.Cluster(1000), model.Work(1, 10**9, 1000))


def test_committed_simulation_agrees_with_the_model():
    rows = json.loads((BENCHMARKS / "results" / "simulation.json").read_text("utf-8"))["scenarios"]
    assert len(rows) >= 10
    for row in rows:
        assert row["hours_predicted_by_simulated"] == pytest.approx(1, abs=0.1), row["scenario"]
        assert row["machine_hours_predicted_by_simulated"] == pytest.approx(1, abs=0.12), row["scenario"]
