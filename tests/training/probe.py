"""A method that does what a test tells it to, and fits of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import train_killed
from torch import Tensor, nn

from normalcy.method import Method, Objective, Scores, Stage
from normalcy.training.fit import fit
from normalcy.training.settings import TrainSettings

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
