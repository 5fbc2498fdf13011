"""The checkpoint of a run folder."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normalcy.config import to_dict
from normalcy.errors import SettingsError, TrainingError
from normalcy.files import open_regular, writing
from normalcy.method import Method
from normalcy.training.batches import Augment, Images, first_image, take
from normalcy.training.settings import TrainSettings


@dataclass
class Job:
    """What is to be trained, on what, and how."""

    method: Method
    images: Images
    settings: TrainSettings
    accelerator: str
    held_out: Images | None
    augment: Augment | None
    run_dir: Path | None
    resume: bool
    shared: Path | None = None
    """Folder of stages that several fits have in common."""


@dataclass
class State:
    """What a checkpoint holds beside weights and optimisers."""

    stage: int = 0
    step: int = -1  # -1: the stage is not prepared yet
    seconds: float = 0.0
    total_steps: int = 0
    best: float = math.inf
    looks_since_best: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    averages: dict[str, Any] = field(default_factory=dict)
    """Of the loss terms since the last record, see :meth:`~normalcy.training.log.Meter.kept`."""


class Checkpoint:
    """``checkpoint.pt`` in the run folder: written whole or not at all, read without running code from it."""

    def __init__(self, job: Job, steps: Sequence[int]) -> None:
        self.method, self.shared = job.method, job.shared
        self.path = job.run_dir / "checkpoint.pt" if job.run_dir is not None else None
        kept = replace(
            job.settings, checkpoint_seconds=60.0, checkpoint_steps=None, log_steps=50, devices=1, device="auto"
        )
        self.identity = {
            "method": job.method.name,
            "settings": json.dumps(to_dict(job.method.settings), sort_keys=True),
            "training": json.dumps(to_dict(kept), sort_keys=True),
            "images": json.dumps([*job.images.shape]),
            "first image": hashlib.sha256(np.ascontiguousarray(first_image(job.images)).tobytes()).hexdigest()[:16],
            "content of the images": digest_of(job.images) if job.run_dir or job.shared else "",
            "steps": json.dumps(list(steps)),
        }

    def save(self, state: State, optimisers: Sequence[Mapping[str, Any]]) -> None:
        if self.path is not None:
            self._write(self.path, state, optimisers)

    def _write(self, path: Path, state: State, optimisers: Sequence[Mapping[str, Any]]) -> None:
        content = {
            "identity": self.identity,
            "state": dict(vars(state)),
            "weights": self.method.state_dict(),
            "optimisers": list(optimisers),
        }
        with writing(path, durable=True) as file:
            torch.save(content, file)

    def share(self, state: State) -> None:
        """Keep the end of a stage for fits that differ only in settings that later stages read (:attr:`Method.late_settings`)."""
        if (path := self._shared(state.stage)) is not None:
            self._write(path, state, [])

    def load_shared(self, device: torch.device) -> State:
        """The latest stage that another fit has kept, with its weights; a state at the start where there is none."""
        for stage in sorted(set(self.method.late_settings.values()), reverse=True):
            path = self._shared(stage)
            if path is not None and path.exists():
                with _damage(path):
                    content = _content(path, device)
                    self.method.load_state_dict(content["weights"])
                    return _state(content["state"])
        return State()

    def _shared(self, stage: int) -> Path | None:
        """File of the fits that are the same up to this stage; none where nothing is shared there."""
        late = {name for name, first in self.method.late_settings.items() if first >= stage}
        if self.shared is None or stage not in self.method.late_settings.values():
            return None
        settings = {name: value for name, value in to_dict(self.method.settings).items() if name not in late}
        identity = {**self.identity, "settings": settings, "steps": json.loads(self.identity["steps"])[:stage]}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        return self.shared / f"{self.method.name}-{digest}.pt"

    def load(self, device: torch.device) -> tuple[State, list[Mapping[str, Any]]]:
        if self.path is None or not self.path.exists():
            return self.load_shared(device), []
        with _damage(self.path):
            content = _content(self.path, device)
            saved = dict(content["identity"])
            state, optimisers = _state(content["state"]), list(content["optimisers"])
        for what, value in self.identity.items():
            if saved.get(what) != value:
                raise SettingsError(
                    f"The checkpoint {self.path} belongs to another run (its {what} was {saved.get(what)}, now {value}): "
                    "repeat the first command with --resume, or start without it."
                )
        with _damage(self.path):
            self.method.load_state_dict(content["weights"])
        return state, optimisers


# -- private ---------------------------------------------------------------------------------------------------------


def _content(path: Path, device: torch.device) -> dict[str, Any]:
    with open_regular(path) as file:
        content = torch.load(file, map_location=device, weights_only=True)
    return dict(content)


def _state(words: Mapping[str, Any]) -> State:
    """Raises TypeError for values of other types."""
    state = State(**words)
    for name, value in vars(State()).items():
        kinds = (int, float) if isinstance(value, float) else type(value)
        if not isinstance(getattr(state, name), kinds):
            raise TypeError(f"{name} is of another type")
    return state


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes of the reader is one error."""
    try:
        yield
    except Exception as error:
        sentence = f"The checkpoint {path} cannot be read, it is damaged or no checkpoint: start without --resume."
        raise TrainingError(sentence) from error


def digest_of(images: Images) -> str:
    """Changes with any value of any image; reads them once."""
    digest = hashlib.sha256()
    at_once = max(1, 2**24 // max(1, math.prod(images.shape[1:])))
    for first in range(0, len(images), at_once):
        rows = np.arange(first, min(first + at_once, len(images)))
        digest.update(np.ascontiguousarray(take(images, rows, torch.device("cpu"))).data)
    return digest.hexdigest()[:16]
