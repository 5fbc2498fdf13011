"""The training loop: plans, draws, objectives, preparation, early stopping, checkpoints, resume, several processes."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import train_killed
from torch import Tensor, nn

from normalcy.errors import SettingsError, TrainingError
from normalcy.method import Batches, EarlyStop, Method, Objective, Scores, Stage
from normalcy.training.fit import fit, plan_steps
from normalcy.training.settings import TrainSettings, best_precision

Record = dict[str, Any]


@dataclass(frozen=True)
class ProbeSettings:
    power: float = 1.0


class Probe(Method):
    """Two numbers that learn, and the stages that a test gives it."""

    name = "probe"
    Settings = ProbeSettings

    def __init__(self, *stages: Stage, shape: Sequence[int] = (1, 1, 1)) -> None:
        super().__init__(ProbeSettings(), shape)
        self.a, self.b = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.given = list(stages)

    def stages(self) -> Sequence[Stage]:
        return self.given

    def _score(self, x: Tensor) -> Scores:
        return Scores(x.flatten(1).mean(1))


def numbers(count: int) -> Tensor:
    """Images of one pixel: 0, 1, 2, ..."""
    return torch.arange(float(count)).view(count, 1, 1, 1)


def values(x: Tensor) -> list[int]:
    return [int(v) for v in x.flatten()]


def train(method: Method, images: Any, **words: Any) -> list[Record]:
    """Fit on the CPU in 32 bits; the records of each step."""
    settings = {k: words.pop(k) for k in list(words) if k in TrainSettings.__dataclass_fields__}
    records: list[Record] = []
    defaults = {"device": "cpu", "precision": "32-true", "log_steps": 1}
    fit(method, images, TrainSettings(**{**defaults, **settings}), log=records.append, **words)
    return records


def sgd(loss: Callable[[Tensor], Mapping[str, Tensor]], parameters: list[nn.Parameter], **words: Any) -> Objective:
    """Plain gradient descent."""
    return Objective(loss, parameters, optimiser="sgd", betas=(0.0, 0.0), **words)


def staged(seed: int = 0) -> train_killed.Staged:
    torch.manual_seed(seed)
    return train_killed.Staged(train_killed.StagedSettings(), (1, 8, 8))


def same(one: Method, other: Method) -> bool:
    return all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())


class Interrupt(Exception):
    pass


def interrupt_after(count: int) -> Callable[[Record], None]:
    seen: list[Record] = []

    def log(record: Record) -> None:
        seen.append(record)
        if len(seen) == count:
            raise Interrupt

    return log


# -- plans -----------------------------------------------------------------------------------------------------------


def one_loss(x: Tensor) -> dict[str, Tensor]:
    raise AssertionError("a plan must not train")


def planned(*lengths: dict[str, Any], count: int = 100, **settings: Any) -> list[int]:
    stages = []
    for number, length in enumerate(lengths):
        words = dict(length)
        repeats = words.pop("repeats", 1)
        stages.append(
            Stage(str(number), [Objective(one_loss, [], repeats=repeats)] if words else [], batch_size=10, **words)
        )
    return plan_steps(stages, TrainSettings(**settings), count)


def test_plan_of_one_stage():
    assert planned({"epochs": 3}) == [30]
    assert planned({"steps": 7}) == [7]
    assert planned({"epochs": 3}, epochs=0.5) == [5]
    assert planned({"epochs": 3}, steps=4) == [4]
    assert planned({"steps": 7}, epochs=2) == [20]
    assert planned({"epochs": 3}, batch_size=25) == [12]
    assert planned({"epochs": 3}, count=4) == [3], "fewer images than a batch: a batch of all of them"
    assert planned({"epochs": 0.001}) == [1], "never without a step"


def test_plan_shares_a_total_in_the_proportion_of_the_defaults():
    assert planned({"epochs": 30}, {}, {"epochs": 10}) == [300, 0, 100]
    assert planned({"epochs": 30}, {}, {"epochs": 10}, epochs=4) == [30, 0, 10]
    assert planned({"epochs": 30}, {}, {"epochs": 10}, steps=8) == [6, 0, 2]
    assert planned({"steps": 30}, {"epochs": 1}, steps=8) == [6, 2]
    assert planned({}, {}, epochs=5) == [0, 0]


def test_plan_counts_critic_batches_as_passes():
    assert planned({"epochs": 10, "repeats": 5}) == [20]
    assert planned({"epochs": 10, "repeats": 5}, {"epochs": 10}, epochs=10) == [10, 50]


# -- steps -----------------------------------------------------------------------------------------------------------


def test_loss_falls():
    method = staged()
    records = train(method, train_killed.images(64), steps=80)
    losses = [r["loss"] for r in records if r["stage"] == "prior"]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    restored = method.score(train_killed.images(8, seed=1)).image
    untrained = staged()
    untrained.centre, untrained._fitted = method.centre, torch.tensor(True)
    assert restored.mean() < 0.5 * untrained.score(train_killed.images(8, seed=1)).image.mean()


def test_an_epoch_draws_each_image_once_in_a_new_order():
    seen: list[list[int]] = []
    method = Probe()

    def loss(x: Tensor) -> dict[str, Tensor]:
        seen.append(values(x))
        return {"loss": method.a**2}

    method.given = [Stage("all", [Objective(loss, [method.a])], epochs=2, batch_size=4)]
    train(method, numbers(12))
    first, second = list(chain(*seen[:3])), list(chain(*seen[3:]))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    assert first != sorted(first)


def test_repeats_draw_new_batches():
    seen: dict[str, list[list[int]]] = {"critic": [], "generator": []}
    method = Probe()

    def loss(who: str, parameter: nn.Parameter) -> Callable[[Tensor], dict[str, Tensor]]:
        return lambda x: seen[who].append(values(x)) or {"loss": parameter**2}  # type: ignore[func-returns-value]

    critic = Objective(loss("critic", method.a), [method.a], repeats=3)
    generator = Objective(loss("generator", method.b), [method.b])
    method.given = [Stage("game", [critic, generator], epochs=1, batch_size=2)]
    records = train(method, numbers(12))
    assert len(records) == len(seen["generator"]) == 2
    assert sorted(chain(*seen["critic"])) == list(range(12)), "three batches of two, in each of two steps"
    assert seen["generator"] == [seen["critic"][2], seen["critic"][5]], (
        "the second objective takes the round's last batch"
    )


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


# -- preparation and inputs ------------------------------------------------------------------------------------------


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


def as_memmap(x: Tensor, folder: Path) -> Any:
    np.save(folder / "images.npy", x.numpy())
    return np.load(folder / "images.npy", mmap_mode="r")


class Listing:
    """Images read one by one when asked for, as from files."""

    def __init__(self, x: Tensor) -> None:
        self.images, self.shape = [image.numpy() for image in x], tuple(x.shape)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        return self.images[index] if np.ndim(index) == 0 else np.stack([self.images[i] for i in index])


def test_arrays_files_and_lists_train_like_tensors(tmp_path: Path):
    x = train_killed.images(16)
    methods = []
    for images in (x, x.numpy(), as_memmap(x, tmp_path), Listing(x)):
        method = staged()
        train(method, images, steps=6)
        methods.append(method)
    assert all(same(methods[0], other) for other in methods[1:])


# -- early stopping --------------------------------------------------------------------------------------------------


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


# -- conclusion ------------------------------------------------------------------------------------------------------


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


# -- faults ----------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("images", "words", "sentence"),
    [
        (numbers(0), {}, "at least one normal image"),
        (torch.zeros(4, 3, 1, 1), {}, r"built for images \(1, 1, 1\), got \(3, 1, 1\)"),
        (numbers(4).to(torch.uint8), {}, "learns from float32 images, got uint8"),
        (numbers(4).numpy().astype(float), {}, "learns from float32 images, got float64"),
        (numbers(4), {"epochs": 1, "steps": 1}, "epochs or steps, not both"),
        (numbers(4), {"steps": 0}, "steps must be positive"),
        (numbers(4), {"epochs": math.inf}, "epochs must be positive, got inf"),
        (numbers(4), {"batch_size": -1}, "batch_size must be positive"),
        (numbers(4), {"seed": -1}, "seed must not be negative"),
        (numbers(4), {"device": "tpu"}, "auto, cpu, cuda or mps, got 'tpu'"),
        (numbers(4), {"precision": "8-bit"}, "precision must be auto, 32-true, bf16-mixed or 16-mixed, got '8-bit'"),
        (numbers(4), {"devices": 2}, "does not train by gradients, so more devices do not help"),
    ],
)
def test_refusals(images: Any, words: dict[str, Any], sentence: str):
    with pytest.raises(SettingsError, match=sentence):
        train(Probe(Stage("look", prepare=lambda batches: None)), images, **words)


def test_batch_that_cannot_be_shared():
    with pytest.raises(SettingsError, match="A batch of 2 images cannot be shared by 3 devices"):
        planned({"epochs": 1}, devices=3, batch_size=2)


# -- records and precision -------------------------------------------------------------------------------------------


def test_records_are_json():
    records = train(staged(), train_killed.images(), held_out=train_killed.images(8, seed=1))
    for record in records:
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        assert record["method"] == "staged"
        assert record["stage"] in ("game", "prior")
    game = [r for r in records if r["stage"] == "game" and "step" in r]
    assert [r["step"] for r in game] == list(range(1, 13))
    assert {key for r in game for key in r if key.endswith("loss")} == {"critic_loss/loss", "reconstruction/loss"}


def test_records_are_averages_between_them():
    method = Probe()
    method.given = [Stage("down", [sgd(lambda x: {"loss": -method.a}, [method.a], lr=1.0)], steps=5)]
    records = train(method, numbers(4), log_steps=2)
    assert [(r["step"], r["loss"]) for r in records] == [(2, -0.5), (4, -2.5), (5, -4.0)]


def test_precision(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert best_precision("cpu") == "bf16-mixed"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    assert best_precision("cpu") == "32-true"
    assert best_precision("mps") == "32-true"
    method, kinds = Probe(), []

    def loss(x: Tensor) -> dict[str, Tensor]:
        kinds.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        return {"loss": method.a}

    for precision, dtype in (("auto", torch.float32), ("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)):
        method.given = [Stage("one", [Objective(loss, [method.a])], steps=1)]
        summary = fit(method, numbers(2), TrainSettings(device="cpu", precision=precision))
        assert kinds.pop() == dtype
        assert summary.precision == ("32-true" if precision == "auto" else precision)
        assert (summary.steps, summary.device) == (1, "cpu")


def test_bf16_keeps_weights_in_32_bits_and_prepares_in_32():
    method = staged()
    train(method, train_killed.images(), precision="bf16-mixed")
    assert {v.dtype for v in method.state_dict().values() if v.is_floating_point()} == {torch.float32}
    assert bool(method.score(train_killed.images()).image.isfinite().all())


# -- checkpoints -----------------------------------------------------------------------------------------------------


def test_same_seed_same_weights():
    assert same(*(fitted(seed=3) for _ in range(2)))
    assert not same(fitted(seed=3), fitted(seed=4))


def fitted(**words: Any) -> train_killed.Staged:
    method = staged()
    train(method, train_killed.images(), held_out=train_killed.images(8, seed=1), augment=train_killed.turn, **words)
    return method


@pytest.mark.parametrize("every", [1, 5])
def test_interrupted_run_ends_as_if_it_never_was(every: int, tmp_path: Path):
    words: dict[str, Any] = {
        "held_out": train_killed.images(8, seed=1),
        "augment": train_killed.turn,
        "run_dir": tmp_path,
    }
    settings = TrainSettings(device="cpu", precision="32-true", log_steps=1, checkpoint_steps=every)

    def begun() -> Method:
        """Before the first checkpoint only the caller's own seed can repeat the first weights."""
        return staged(seed=9 if (tmp_path / "checkpoint.pt").exists() else 0)

    for count in (1, 9, 12):
        with pytest.raises(Interrupt):
            fit(begun(), train_killed.images(), settings, resume=True, log=interrupt_after(count), **words)
    method = begun()
    summary = fit(method, train_killed.images(), settings, resume=True, **words)
    assert summary.steps == 24
    assert same(method, fitted())


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path):
    method = staged()
    train(method, train_killed.images(), run_dir=tmp_path, steps=4)
    again = staged(seed=1)
    assert train(again, train_killed.images(), run_dir=tmp_path, steps=4, resume=True) == []
    assert same(method, again)
    assert bool(again.score(train_killed.images()).image.isfinite().all())


def test_checkpoints_by_the_clock(tmp_path: Path):
    settings = TrainSettings(device="cpu", precision="32-true", log_steps=1, checkpoint_seconds=0)
    with pytest.raises(Interrupt):
        fit(staged(), train_killed.images(), settings, run_dir=tmp_path, log=interrupt_after(6))
    steps = [
        r["step"] for r in train(staged(), train_killed.images(), run_dir=tmp_path, resume=True, checkpoint_seconds=0)
    ]
    assert steps[0] == 5, "record 6 was that of step 5, which was not saved yet"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seed": 1}, "its training was"),
        ({"steps": 8}, "its training was"),
        ({"batch_size": 4}, "its training was"),
        ({"images": train_killed.images(20)}, "its images was"),
        ({"images": train_killed.images(24, seed=5)}, "its first image was"),
        ({"method": train_killed.Staged(train_killed.StagedSettings(width=4), (1, 8, 8))}, "its settings was"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_resume_refuses_another_run(change: dict[str, Any], sentence: str, tmp_path: Path):
    words = {"method": staged(), "images": train_killed.images(), "steps": 4}
    train(**words, run_dir=tmp_path)
    with pytest.raises(SettingsError, match=f"belongs to another run.*{sentence}"):
        train(**{**words, **change}, run_dir=tmp_path, resume=True)


def test_resume_may_change_how_but_not_what(tmp_path: Path):
    train(staged(), train_killed.images(), run_dir=tmp_path, steps=4)
    train(staged(), train_killed.images(), run_dir=tmp_path, steps=4, resume=True, checkpoint_steps=3, log_steps=7)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "half"], ids=["empty", "text", "half"])
def test_damaged_checkpoint(content: Any, tmp_path: Path):
    train(staged(), train_killed.images(), run_dir=tmp_path, steps=4)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content == "half" else content)
    with pytest.raises(TrainingError, match=r"checkpoint\.pt cannot be read, .*: start without --resume\.$"):
        train(staged(), train_killed.images(), run_dir=tmp_path, steps=4, resume=True)


def test_checkpoint_of_another_kind_runs_no_code(tmp_path: Path):
    torch.save({"identity": print}, tmp_path / "checkpoint.pt")
    with pytest.raises(TrainingError, match="cannot be read"):
        train(staged(), train_killed.images(), run_dir=tmp_path, resume=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills forked processes")
def test_killed_twice_and_resumed_bit_for_bit(tmp_path: Path):
    done = subprocess.run([sys.executable, train_killed.__file__, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for what, outcome in json.loads(done.stdout).items():
        assert outcome["different"] == [], what
        assert outcome["tensors"] > 15


# -- several processes -----------------------------------------------------------------------------------------------


class Exact(train_killed.Staged):
    """The same without noise, so that processes can be compared: no dropout, BatchNorm per process left out."""

    def __init__(self, settings: train_killed.StagedSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.encoder[1] = nn.Identity()
        self.encoder[3] = self.prior[1] = nn.Identity()
        self.prior.requires_grad_(False)  # an objective trains what it owns all the same

    def measure(self, batches: Any) -> None:
        self.centre = torch.cat(list(batches)).mean(0)

    def restore(self, x: Tensor) -> Tensor:
        return self.decoder(self.encode(x))

    def prior_loss(self, code: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.prior(code) - code).square().mean()}


@pytest.mark.slow
def test_two_processes_train_like_one():
    outcomes = []
    for devices in (1, 2):
        torch.manual_seed(0)
        method = Exact(train_killed.StagedSettings(), (1, 8, 8))
        records = train(method, train_killed.images(), held_out=train_killed.images(8, seed=1), devices=devices)
        losses = [{k: v for k, v in r.items() if k != "images_per_second"} for r in records]
        outcomes.append((losses, method.state_dict()))
    (one, weights), (two, weights_of_two) = outcomes
    assert len(one) == len(two)
    for a, b in zip(one, two):
        assert a == pytest.approx(b, abs=1e-4)
    for name, value in weights.items():
        torch.testing.assert_close(weights_of_two[name], value, atol=1e-4, rtol=0, msg=name)


class Poisoned(Exact):
    """Its loss is not finite in one of two processes."""

    def prior_loss(self, code: Tensor) -> dict[str, Tensor]:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        return {"loss": super().prior_loss(code)["loss"] / (1 - rank)}


@pytest.mark.slow
def test_fault_in_one_of_two_processes_is_one_sentence():
    method = Poisoned(train_killed.StagedSettings(), (1, 8, 8))
    with pytest.raises(TrainingError, match="staged: the loss is not finite in stage 'prior' at step 1 of 12"):
        train(method, train_killed.images(), devices=2)


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
