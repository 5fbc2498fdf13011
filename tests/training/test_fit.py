"""Fits as a whole: plans, refusals, precision, several processes, what a fit leaves alone."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import train_killed
from probe import Probe, numbers, same, staged, train
from torch import Tensor, nn

from normalcy.errors import SettingsError, TrainingError
from normalcy.method import Objective, Stage
from normalcy.methods import get
from normalcy.training.fit import fit, plan_steps
from normalcy.training.settings import TrainSettings, best_precision


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
    assert planned({"epochs": 3}, count=101) == [33], "the remainder is a batch of its own"
    assert planned({"epochs": 100}, count=23) == [300], "ceil(23 / 10) steps per epoch, not 2.3 and not 2"


def test_plan_shares_a_total_in_the_proportion_of_the_defaults():
    assert planned({"epochs": 30}, {}, {"epochs": 10}) == [300, 0, 100]
    assert planned({"epochs": 30}, {}, {"epochs": 10}, epochs=4) == [30, 0, 10]
    assert planned({"epochs": 30}, {}, {"epochs": 10}, steps=8) == [6, 0, 2]
    assert planned({"steps": 30}, {"epochs": 1}, steps=8) == [6, 2]
    assert planned({}, {}, epochs=5) == [0, 0]


def test_plan_counts_critic_batches_as_passes():
    assert planned({"epochs": 10, "repeats": 5}) == [20]
    assert planned({"epochs": 10, "repeats": 5}, {"epochs": 10}, epochs=10) == [10, 50]
    assert planned({"epochs": 10, "repeats": 5}, count=101) == [22], "110 batches, five in a step"


def test_loss_falls():
    method = staged()
    records = train(method, train_killed.images(64), steps=80)
    losses = [r["loss"] for r in records if r["stage"] == "prior"]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    restored = method.score(train_killed.images(8, seed=1)).image
    untrained = staged()
    untrained.centre, untrained._fitted = method.centre, torch.tensor(True)
    assert restored.mean() < 0.5 * untrained.score(train_killed.images(8, seed=1)).image.mean()


def test_a_fit_ends_in_evaluation_mode():
    method = staged()
    train(method, train_killed.images(), steps=2)
    assert not any(part.training for part in method.modules())


def test_a_fit_works_in_inference_mode_and_without_gradients():
    expected = staged()
    train(expected, train_killed.images(), steps=4)
    for mode in (torch.inference_mode, torch.no_grad):
        method = staged()
        with mode():
            train(method, train_killed.images(), steps=4)
        assert same(method, expected)
        assert not any(p.is_inference() for p in method.parameters())


def test_a_method_whose_second_fit_fails_is_not_fitted():
    method = Probe()
    method.given = [Stage("one", [Objective(lambda x: {"loss": method.a}, [method.a])], steps=1)]
    train(method, numbers(4))
    method.given = [Stage("one", [Objective(lambda x: {"loss": method.a / 0}, [method.a])], steps=1)]
    with pytest.raises(TrainingError, match="not finite"):
        train(method, numbers(4))
    with pytest.raises(SettingsError, match="probe is not fitted yet"):
        method.score(numbers(1))


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
    ],
)
def test_refusals(images: Any, words: dict[str, Any], sentence: str):
    with pytest.raises(SettingsError, match=sentence):
        train(Probe(Stage("look", prepare=lambda batches: None)), images, **words)


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


@pytest.mark.slow
def test_two_processes_extract_features_like_one():
    memories = []
    for devices in (1, 2):
        method = get("deep_knn")(get("deep_knn").Settings(layers=(1, 2), side=32), (1, 32, 32))
        train(
            method, torch.rand(14, 1, 32, 32, generator=torch.Generator().manual_seed(0)), devices=devices, batch_size=4
        )
        memories.append(method.memory)
    assert len(memories[0]) == 14
    torch.testing.assert_close(memories[1], memories[0], atol=1e-5, rtol=0)


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
