"""Records of the training: averages of the loss terms, the journal, and the watch for losses that are not finite."""

import json
import math
from pathlib import Path

import pytest
import torch
import train_killed
from probe import Probe, Record, numbers, sgd, staged, train
from torch import Tensor

from normalcy.errors import TrainingError
from normalcy.method import Stage
from normalcy.training.log import Journal, Meter, read_log


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


# -- the meter -------------------------------------------------------------------------------------------------------


def loss_of(value: float, **others: float) -> dict[str, Tensor]:
    return {name: torch.tensor(v) for name, v in {"loss": value, **others}.items()}


def test_meter_averages_each_term_since_its_last_record():
    records: list[Record] = []
    meter = Meter("probe", "down", 5, 2, records.append)
    for step, value in enumerate([1.0, 3.0, 5.0]):
        meter.add(step, loss_of(value, kl=10 * value), images=4)
    assert [(r["step"], r["loss"], r["kl"]) for r in records] == [(2, 2.0, 20.0)]
    meter.flush()
    meter.flush()
    assert [(r["step"], r["loss"], r["kl"]) for r in records[1:]] == [(3, 5.0, 50.0)], "nothing is written twice"
    assert records[0].keys() == {"method", "stage", "step", "steps", "images_per_second", "loss", "kl"}
    assert (records[0]["method"], records[0]["stage"], records[0]["steps"]) == ("probe", "down", 5)


def test_meter_continues_the_averages_of_an_interrupted_run():
    records: list[Record] = []
    first, second = (Meter("probe", "down", 5, 2, records.append) for _ in range(2))
    first.resume({})
    first.add(0, loss_of(1.0, kl=10.0), images=4)
    kept = first.kept()
    first.add(1, loss_of(9.0, kl=9.0), images=4)  # after the checkpoint: lost
    second.resume(kept)
    second.add(1, loss_of(3.0, kl=30.0), images=4)
    assert [(r["step"], r["loss"], r["kl"]) for r in records] == [(2, 5.0, 9.5), (2, 2.0, 20.0)]


def test_meter_averages_over_processes():
    records: list[Record] = []
    meter = Meter("probe", "down", 5, 1, records.append, processes=2, all_reduce=lambda x: (x + 3.0) / 2)
    meter.add(0, loss_of(1.0), images=4)
    assert records[0]["loss"] == 2.0


def test_meter_names_the_step_whose_loss_is_not_finite():
    meter = Meter("probe", "down", 9, 50, None)
    meter.add(6, loss_of(1.0, kl=math.inf), images=1)  # a term that is watched, not minimised
    with pytest.raises(TrainingError, match="probe: the loss is not finite in stage 'down' at step 8 of 9"):
        meter.add(7, {"critic/loss": torch.tensor(math.nan)}, images=1)


# -- the journal -----------------------------------------------------------------------------------------------------


def test_journal_is_kept_written_and_passed_on(tmp_path: Path):
    path, passed = tmp_path / "run" / "train.jsonl", []
    journal = Journal(path, resume=False, then=passed.append)
    records = [{"stage": "a", "step": n, "loss": n / 3} for n in range(3)]
    for record in records:
        journal(record)
    assert journal.records() == passed == read_log(path) == records


def test_journal_of_a_resumed_run_has_each_step_once(tmp_path: Path):
    path = tmp_path / "train.jsonl"
    first = Journal(path, resume=False, then=None)
    for step in (1, 2, 3):
        first({"stage": "a", "step": step, "loss": 1.0})
    second = Journal(path, resume=True, then=None)
    for record in ({"stage": "a", "step": 3, "loss": 2.0}, {"stage": "a", "step": 3, "held_out_loss": 4.0}):
        second(record)
    assert [(r["step"], r.get("loss")) for r in second.records()] == [(1, 1.0), (2, 1.0), (3, 2.0), (3, None)]
    assert Journal(path, resume=False, then=None).records() == []
    assert read_log(path) == [], "a new run starts a new log"


def test_log_passes_over_what_a_kill_cut_off(tmp_path: Path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "lo\n7\n\xff\n{"step": 3}')
    assert read_log(path) == [{"step": 1}, {"step": 3}]
    assert read_log(tmp_path / "none.jsonl") == []
