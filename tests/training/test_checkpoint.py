"""Checkpoints: an interrupted fit ends as an uninterrupted one, another run is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import train_killed
from probe import Interrupt, interrupt_after, same, staged, train

from normalcy.errors import SettingsError, TrainingError
from normalcy.method import Method
from normalcy.training.fit import fit
from normalcy.training.settings import TrainSettings


def fitted(**words: Any) -> train_killed.Staged:
    method = staged()
    train(method, train_killed.images(), held_out=train_killed.images(8, seed=1), augment=train_killed.turn, **words)
    return method


def test_same_seed_same_weights():
    assert same(*(fitted(seed=3) for _ in range(2)))
    assert not same(fitted(seed=3), fitted(seed=4))


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


def last_image_changed() -> torch.Tensor:
    images = train_killed.images()
    images[-1] += 0.01
    return images


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seed": 1}, "its training was"),
        ({"steps": 8}, "its training was"),
        ({"batch_size": 4}, "its training was"),
        ({"images": train_killed.images(20)}, "its images was"),
        ({"images": train_killed.images(22, seed=5)}, "its first image was"),
        ({"images": last_image_changed()}, "its content of the images was"),
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
    """Intervals of checkpoints and records, not numbers: the fit of other intervals is continued, and ends the same."""
    whole, resumed = staged(), staged(seed=1)
    train(whole, train_killed.images(), steps=8)
    settings = TrainSettings(device="cpu", precision="32-true", log_steps=1, checkpoint_steps=1, steps=8)
    with pytest.raises(Interrupt):
        fit(staged(), train_killed.images(), settings, run_dir=tmp_path, log=interrupt_after(4))
    records = train(
        resumed, train_killed.images(), run_dir=tmp_path, steps=8, resume=True, checkpoint_steps=3, log_steps=2
    )
    assert [(r["stage"], r["step"]) for r in records] == [("game", 4), ("prior", 2), ("prior", 4)]
    assert same(whole, resumed)


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


@pytest.mark.parametrize(
    ("part", "value"),
    [("weights", {}), ("weights", 3), ("state", {"stage": "x"}), ("state", {"none": 1}), ("state", 3), ("identity", 3),
     ("optimisers", 3)],
)  # fmt: skip
def test_parts_of_another_type(part: str, value: Any, tmp_path: Path):
    train(staged(), train_killed.images(), run_dir=tmp_path, steps=4)
    path = tmp_path / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    torch.save({**content, part: value}, path)
    with pytest.raises(TrainingError, match="cannot be read"):
        train(staged(), train_killed.images(), run_dir=tmp_path, steps=4, resume=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills forked processes")
def test_killed_twice_and_resumed_bit_for_bit(tmp_path: Path):
    done = subprocess.run([sys.executable, train_killed.__file__, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for what, outcome in json.loads(done.stdout).items():
        assert outcome["different"] == [], what
        assert outcome["tensors"] > 15
