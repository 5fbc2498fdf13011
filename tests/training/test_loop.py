"""The loop of a stage: objectives, schedules, preparation, early stopping, finalise."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from probe import Interrupt, Probe, numbers, sgd, train, values
from torch import Tensor, nn

from normalcy.errors import SettingsError, TrainingError
from normalcy.method import Batches, EarlyStop, Objective, Stage

# -- steps -----------------------------------------------------------------------------------------------------------


def test_objectives_own_their_parameters():
    method = Probe()
    frozen_before = nn.Parameter(torch.ones(()), requires_grad=False)
    method.frozen = frozen_before
    states = []

    def loss(sign: int) -> Callable[[Tensor], dict[str, Tensor]]:
        def both(x: Tensor) -> dict[str, Tensor]:
            states.append((sign, method.a.requires_grad, method.b.requires_grad, method.frozen.requires_grad))
            return {"loss": sign * (method.a + method.b)}

        return both

    method.given = [
        Stage("game", [sgd(loss(1), [method.a], lr=1.0), sgd(loss(-1), [method.b], lr=1.0)], steps=3, batch_size=2),
        Stage("alone", [sgd(loss(2), [method.b], lr=1.0)], steps=1, batch_size=2),
    ]
    train(method, numbers(4))
    assert states == [(1, True, False, False), (-1, False, True, False)] * 3 + [(2, False, True, False)]
    assert (method.a.item(), method.b.item()) == (-3, 3 - 2)
    assert [p.requires_grad for p in (method.a, method.b, method.frozen)] == [True, True, False]


def test_flags_are_restored_when_a_loss_fails():
    method = Probe()

    def loss(x: Tensor) -> dict[str, Tensor]:
        raise Interrupt

    method.given = [Stage("broken", [Objective(loss, [method.a])], steps=1)]
    with pytest.raises(Interrupt):
        train(method, numbers(4))
    assert method.b.requires_grad


def test_parts_that_a_stage_does_not_train_stay_frozen():
    """Running statistics of a frozen part's batch norm do not move; those of a trained part do."""

    class Frozen(Probe):
        def __init__(self):
            super().__init__()
            self.frozen = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.BatchNorm1d(1))
            self.trained = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.BatchNorm1d(1))

    method = Frozen()

    def loss(x):
        x = x.flatten(1)[:, :1]
        return {"loss": (method.trained(method.frozen(x)) - x).square().mean()}

    method.given = [Stage("second", [sgd(loss, list(method.trained.parameters()), lr=0.01)], steps=3)]
    train(method, numbers(8))
    assert float(method.frozen[1].num_batches_tracked) == 0
    assert float(method.trained[1].num_batches_tracked) == 3


def test_a_stage_that_asks_for_it_ends_after_its_preparation():
    method, order = Probe(), []
    words: dict[str, Any] = {"steps": 3, "prepare": lambda batches: order.append("prepare")}

    def asked(answer: bool) -> Callable[[], bool]:
        def ask() -> bool:
            order.append("asked")
            return answer

        return ask

    def step(x: Tensor) -> dict[str, Tensor]:
        order.append("step")
        return {"loss": method.a}

    method.given = [
        Stage("left out", [sgd(step, [method.a])], skip=asked(True), **words),
        Stage("done", [sgd(step, [method.a], lr=1.0)], skip=asked(False), **words),
    ]
    train(method, numbers(4))
    assert order == ["prepare", "asked", "prepare", "asked", "step", "step", "step"]
    assert method.a.item() == -3


def test_schedule_is_a_factor_on_the_rate():
    method, asked = Probe(), []

    def schedule(fraction: float) -> float:
        asked.append(fraction)
        return 1 - fraction

    method.given = [
        Stage("slower", [sgd(lambda x: {"loss": method.a}, [method.a], lr=0.1, schedule=schedule)], steps=4)
    ]
    train(method, numbers(4))
    assert asked == [0, 0.25, 0.5, 0.75]
    assert method.a.item() == pytest.approx(-0.1 * (1 + 0.75 + 0.5 + 0.25))


@pytest.mark.parametrize(
    ("clip", "moved"),
    [
        ({}, (-3, -4)),
        ({"clip_norm": 1.0}, (-0.6, -0.8)),
        ({"clip_value": 1.0}, (-1, -1)),
        ({"clip_norm": 10.0}, (-3, -4)),
    ],
)
def test_clipping(clip: dict[str, float], moved: tuple[float, float]):
    method = Probe()
    loss = lambda x: {"loss": 3 * method.a + 4 * method.b}
    method.given = [Stage("one", [sgd(loss, [method.a, method.b], lr=1.0, **clip)], steps=1)]
    train(method, numbers(4))
    assert (method.a.item(), method.b.item()) == pytest.approx(moved, abs=1e-5)


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd", "rmsprop"])
def test_optimisers_go_downhill(optimiser: str):
    method = Probe()
    objective = Objective(lambda x: {"loss": (method.a - 1) ** 2}, [method.a], optimiser=optimiser, lr=0.05)
    method.given = [Stage("down", [objective], steps=30)]
    losses = [r["loss"] for r in train(method, numbers(4))]
    assert losses[-1] < 0.5 * losses[0]


def test_unknown_optimiser():
    method = Probe()
    method.given = [Stage("one", [Objective(lambda x: {"loss": method.a}, [method.a], optimiser="adan")], steps=1)]
    with pytest.raises(SettingsError, match="adamw, sgd or rmsprop, got 'adan'"):
        train(method, numbers(4))


def test_on_progress_is_told_the_fraction():
    method, told = Probe(), []
    method.given = [
        Stage("grow", [Objective(lambda x: {"loss": method.a}, [method.a])], steps=5, on_progress=told.append)
    ]
    train(method, numbers(4))
    assert told == [0, 0.2, 0.4, 0.6, 0.8]


def test_random_numbers_differ_by_step_and_repeat_by_seed():
    def drawn(seed: int) -> list[float]:
        method = Probe()
        method.given = [
            Stage("noise", [Objective(lambda x: {"loss": method.a * 0 + torch.rand(())}, [method.a])], steps=4)
        ]
        return [r["loss"] for r in train(method, numbers(4), seed=seed)]

    assert len(set(drawn(0))) == 4
    assert drawn(0) == drawn(0)
    assert not set(drawn(0)) & set(drawn(1))


def test_loss_that_is_not_finite_names_method_stage_and_step():
    method, seen = Probe(), []

    def loss(x: Tensor) -> dict[str, Tensor]:
        seen.append(x)
        return {"loss": method.a * x.mean() / (x.max() != 7)}

    good = Objective(lambda x: {"loss": method.b}, [method.b])
    bad = Objective(loss, [method.a])
    method.given = [Stage("warm", [good], steps=2, batch_size=1), Stage("train", [bad], epochs=1, batch_size=1)]
    with pytest.raises(TrainingError, match="probe: the loss is not finite in stage 'train' at step") as caught:
        train(method, numbers(12), log_steps=50)
    assert seen[-1].item() == 7
    assert f"at step {len(seen)} of 12." in str(caught.value)


def test_loss_without_a_loss():
    method = Probe()
    method.given = [Stage("one", [Objective(lambda x: {"mse": method.a}, [method.a])], steps=1)]
    with pytest.raises(TrainingError, match='must return a term "loss", got mse'):
        train(method, numbers(2))


# -- prepare, derive, augment ------------------------------------------------------------------------------------------


def test_prepare_sees_all_images_once_in_order():
    method, calls = Probe(), []

    def prepare(batches: Any) -> None:
        assert not torch.is_grad_enabled()
        assert not method.training
        x = list(batches)
        assert all(part.dtype == torch.float32 for part in x)
        assert (len(batches), batches.count) == (len(x), 10)
        assert values(torch.cat(list(batches))) == list(range(10)), "as often as one likes"
        calls.append([len(part) for part in x])

    method.given = [
        Stage("look", batch_size=4, prepare=prepare),
        Stage("train", [Objective(lambda x: {"loss": method.a}, [method.a])], steps=3, batch_size=5, prepare=prepare),
    ]
    train(method, numbers(10))
    assert calls == [[4, 4, 2], [5, 5]]


@pytest.mark.parametrize("augmented", [False, True])
def test_inputs_are_derived_once_or_per_batch_when_augmented(augmented: bool):
    method, derived, trained = Probe(), [], []

    def codes(x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not method.training
        derived.extend(values(x))
        return (2 * x).long()

    def loss(k: Tensor) -> dict[str, Tensor]:
        assert method.training
        assert k.dtype == torch.int64
        trained.extend(values(k))
        return {"loss": method.a**2}

    method.given = [Stage("prior", [Objective(loss, [method.a])], epochs=2, batch_size=4, derive=codes)]
    train(method, numbers(8), augment=(lambda x, generator: x + 100) if augmented else None)
    assert sorted(trained) == sorted(2 * v + 200 * augmented for v in [*range(8), *range(8)])
    assert len(derived) == (16 if augmented else 8)


def test_augmentation_repeats_by_seed():
    def batches(seed: int) -> list[list[int]]:
        method, seen = Probe(), []

        def loss(x: Tensor) -> dict[str, Tensor]:
            seen.append(values(x))
            return {"loss": method.a}

        method.given = [Stage("all", [Objective(loss, [method.a])], steps=4, batch_size=2)]
        shift = lambda x, generator: x + 100 * torch.randint(9, (), generator=generator)
        train(method, numbers(8), augment=shift, seed=seed)
        return seen

    assert batches(3) == batches(3) != batches(4)
    assert len({b[0] // 100 for b in batches(3)}) > 1, "each draw is augmented anew"


# -- early stopping ----------------------------------------------------------------------------------------------------


def falling(method: Probe, **rule: Any) -> Stage:
    """``a`` goes 1, 2, 3, ...; the held-out loss is least at 4."""
    look = EarlyStop(lambda x: {"loss": (method.a - x.mean()) ** 2}, **rule)
    return Stage("down", [sgd(lambda x: {"loss": -method.a}, [method.a], lr=1.0)], steps=20, early_stop=look)


def test_early_stopping_keeps_the_best():
    method = Probe()
    method.given = [falling(method, every=1, patience=2)]
    records = train(method, numbers(3), held_out=torch.full((3, 1, 1, 1), 4.0))
    looks = [r["held_out_loss"] for r in records if "held_out_loss" in r]
    assert looks == [9, 4, 1, 0, 1, 4], "two looks without a better one"
    assert method.a.item() == 4


def test_early_stopping_waits_and_asks_for_a_real_gain():
    method = Probe()
    method.given = [falling(method, every=2, patience=1, min_delta=100.0)]
    records = train(method, numbers(3), held_out=torch.full((3, 1, 1, 1), 4.0))
    assert [r["step"] for r in records if "held_out_loss" in r] == [2, 4], "a gain below min_delta is none"
    assert method.a.item() == 2


def test_early_stopping_counts_no_looks_before_its_part_of_the_stage():
    """The rate falls at the end: a standstill before says nothing yet; what was best is kept all the same."""
    method = Probe()
    method.given = [falling(method, every=1, patience=2, after=0.5)]
    records = train(method, numbers(3), held_out=torch.full((3, 1, 1, 1), 4.0))
    assert [r["step"] for r in records if "held_out_loss" in r][-1] == 11, "steps 10 and 11 of 20 count"
    assert method.a.item() == 4


def test_early_stopping_looks_after_whole_epochs():
    method = Probe()
    loss = lambda x: {"loss": method.a**2}
    rule = EarlyStop(loss, every=1, patience=9)
    method.given = [Stage("all", [Objective(loss, [method.a])], epochs=3, batch_size=4, early_stop=rule)]
    records = train(method, numbers(9), held_out=numbers(3))
    assert [r["step"] for r in records if "held_out_loss" in r] == [3, 6, 9], "an epoch of 9 images is 3 steps of 4"


def test_no_early_stopping_without_held_out_images():
    method = Probe()
    method.given = [falling(method, every=1, patience=1)]
    train(method, numbers(3))
    assert method.a.item() == 20


def test_early_stopping_sees_inputs_as_training_does():
    """Codes are derived in 32 bits, losses computed in the precision of the training, held-out ones too."""
    method, precisions = Probe(), {"inputs": set(), "loss": set(), "look": set()}

    def note(what: str) -> None:
        precisions[what].add(torch.is_autocast_enabled("cpu"))

    def inputs(x: Tensor) -> Tensor:
        note("inputs")
        return x

    def loss(x: Tensor, what: str) -> dict[str, Tensor]:
        note(what)
        return {"loss": method.a**2}

    look = EarlyStop(lambda x: loss(x, "look"), every=1)
    method.given = [
        Stage("all", [Objective(lambda x: loss(x, "loss"), [method.a])], steps=2, derive=inputs, early_stop=look)
    ]
    train(method, numbers(4), held_out=numbers(2), precision="bf16-mixed")
    assert precisions == {"inputs": {False}, "loss": {True}, "look": {True}}


# -- finalise ----------------------------------------------------------------------------------------------------------


def test_a_stage_concludes_on_held_out_images():
    for held_out, seen in ((None, [0.0, 1.0, 2.0]), (torch.full((2, 1, 1, 1), 4.0), [4.0, 4.0])):
        method = Probe()
        found: list[float] = []

        def look(batches: Batches, method: Probe = method, found: list[float] = found) -> None:
            assert not method.training
            assert not torch.is_grad_enabled()
            assert method.a.item() == 5, "after the steps"
            found.extend(float(image) for x in batches for image in x)

        one = sgd(lambda x: {"loss": -method.a}, [method.a], lr=1.0)  # noqa: B023
        method.given = [Stage("with steps", [one], steps=5, finalise=look), Stage("without", finalise=look)]
        train(method, numbers(3), held_out=held_out)
        assert found == 2 * seen
