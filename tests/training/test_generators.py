"""The global random generators: seeded by place within a fit, the caller's before and after."""

import pickle
import random
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from probe import Interrupt, Probe, numbers, train
from torch import Tensor

from normalcy.method import Batches, EarlyStop, Objective, Stage
from normalcy.training.fit import fit
from normalcy.training.generators import caller_generators_kept, seed_generators, seed_of
from normalcy.training.settings import TrainSettings

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
    pytest.param("mps", marks=pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs an MPS device")),
]


def states() -> dict[str, Any]:
    """Of all global generators, those of devices included."""
    found = {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": pickle.dumps(np.random.get_state()),  # noqa: NPY002
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        found["cuda"] = [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()]
    if torch.backends.mps.is_available():
        found["mps"] = torch.mps.get_rng_state().numpy().tobytes()
    return found


def everywhere(device: str = "cpu") -> list[float]:
    """A number from each global generator."""
    drawn = [float(torch.rand(())), float(np.random.random()), random.random()]  # noqa: NPY002
    return drawn if device == "cpu" else [*drawn, float(torch.rand((), device=device))]


def drawing(method: Probe, seen: list[Any], device: str = "cpu") -> list[Stage]:
    """Stages that draw from all generators wherever a method may."""

    def note(where: str, result: Any = None) -> Any:
        seen.append((where, everywhere(device)))
        return result

    def loss(where: str) -> Callable[[Tensor], dict[str, Tensor]]:
        return lambda x: note(where, {"loss": (method.a - x.mean()) ** 2})

    def look_at(where: str) -> Callable[[Batches], None]:
        return lambda batches: note(where)

    return [
        Stage(
            "draws",
            [Objective(loss("step"), [method.a])],
            steps=3,
            prepare=look_at("prepare"),
            finalise=look_at("finalise"),
            early_stop=EarlyStop(loss("look"), every=2),
        )
    ]


@pytest.mark.parametrize("device", DEVICES)
def test_fit_leaves_the_global_generators_alone(device: str):
    method, seen = Probe().to(device), []
    method.given = drawing(method, seen, device)
    seed_generators(7, torch.device(device))
    before, threads = states(), torch.get_num_threads()
    fit(method, numbers(4), TrainSettings(device=device, precision="32-true"), held_out=numbers(2), log=lambda _: None)
    assert states() == before
    assert torch.get_num_threads() == threads
    assert [where for where, _ in seen] == ["prepare", "step", "step", "look", "step", "finalise"]


@pytest.mark.parametrize("device", DEVICES)
def test_fit_does_not_depend_on_the_global_generators(device: str):
    seen: list[list[Any]] = [[], []]
    for caller, drawn in enumerate(seen):
        method = Probe().to(device)
        method.given = drawing(method, drawn, device)
        seed_generators(caller, torch.device(device))
        settings = TrainSettings(device=device, precision="32-true", seed=3)
        fit(method, numbers(4), settings, held_out=numbers(2))
    assert seen[0] == seen[1]
    values = [value for _, drawn in seen[0] for value in drawn]
    assert len(set(values)) == len(values), "each place has numbers of its own"


def test_generators_are_given_back_after_an_error():
    def loss(x: Tensor) -> dict[str, Tensor]:
        everywhere()
        raise Interrupt

    method = Probe()
    method.given = [Stage("broken", [Objective(loss, [method.a])], steps=1)]
    before = states()
    with pytest.raises(Interrupt):
        train(method, numbers(4))
    assert states() == before


def test_a_fit_on_the_cpu_does_not_seed_other_devices(monkeypatch: pytest.MonkeyPatch):
    """torch.manual_seed would, and where CUDA is not started yet, the seed would wait there for its start."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed", seeded.append)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    method = Probe()
    method.given = drawing(method, [])
    train(method, numbers(4))
    assert seeded == []


def test_seeding_repeats():
    with caller_generators_kept(torch.device("cpu")):
        drawn = []
        for seed in (5, 6, 5, seed_of(1, 2)):
            seed_generators(seed, torch.device("cpu"))
            drawn.append(everywhere())
    assert drawn[0] == drawn[2] != drawn[1]
    assert not set(drawn[0]) & set(drawn[3])


def test_seeds_of_places():
    assert seed_of(0, 1, 2) == seed_of(0, 1, 2)
    places = list(product(range(3), range(3), (-1, 0, 1), (0, 1)))  # seed, stage, step, process
    seeds = {seed_of(*place) for place in places}
    assert len(seeds) == len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)
