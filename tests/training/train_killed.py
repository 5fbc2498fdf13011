"""Fits a two-stage method in child processes that are killed at random moments, then resumed; see test_checkpoint.py.

``python train_killed.py FOLDER`` prints one line of JSON. Children are forked, so that torch is imported once.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from normalcy.method import Batches, EarlyStop, Method, Objective, Scores, Stage
from normalcy.training.fit import fit
from normalcy.training.settings import TrainSettings


@dataclass(frozen=True)
class StagedSettings:
    width: int = 8


class Staged(Method):
    """Everything that a resumed run could get wrong: dropout, noise, BatchNorm, two objectives, derived inputs, early stop."""

    name = "staged"
    Settings = StagedSettings

    def __init__(self, settings: StagedSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        c, w = self.shape[0], settings.width
        self.encoder = nn.Sequential(
            nn.Conv2d(c, w, 4, 2, 1), nn.BatchNorm2d(w), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(w, 4, 1)
        )
        self.decoder = nn.ConvTranspose2d(4, c, 4, 2, 1)
        self.critic = nn.Sequential(nn.Conv2d(c, 4, 4, 2, 1), nn.Flatten(), nn.LazyLinear(1))
        self.critic(torch.zeros(1, *self.shape))
        self.prior = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout(0.2), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.register_buffer("progress", torch.tensor(0.0))
        self.learned("centre")
        self.register_buffer("judged", torch.tensor(0.0))

    def stages(self) -> Sequence[Stage]:
        auto = [*self.encoder.parameters(), *self.decoder.parameters()]
        return [
            Stage(
                "game",
                [
                    Objective(self.critic_loss, self.critic.parameters(), repeats=2, clip_value=0.1),
                    Objective(self.reconstruction, auto, lr=3e-3, schedule=lambda f: 1 - f, clip_norm=1.0),
                ],
                steps=12,
                batch_size=8,
                prepare=self.measure,
                on_progress=self.progress.fill_,
                finalise=self.judge,
            ),
            Stage(
                "prior",
                [Objective(self.prior_loss, self.prior.parameters(), optimiser="sgd", lr=1e-2)],
                steps=12,
                batch_size=8,
                derive=self.encode,
                early_stop=EarlyStop(self.prior_loss, every=2, patience=3),
            ),
        ]

    def measure(self, batches: Batches) -> None:
        self.centre = torch.cat(list(batches)).mean(0) + 0.1 * torch.randn(self.shape)

    def judge(self, batches: Batches) -> None:
        self.judged.add_(torch.cat([self.restore(x) for x in batches]).abs().mean())  # twice would be seen

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x - self.centre)

    def restore(self, x: Tensor) -> Tensor:
        code = self.encode(x)
        return self.decoder(code + self.progress * torch.randn_like(code) if self.training else code)

    def critic_loss(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.critic(self.restore(x).detach()).mean() - self.critic(x).mean()}

    def reconstruction(self, x: Tensor) -> dict[str, Tensor]:
        restored = self.restore(x)
        return {"loss": (x - restored).square().mean() - 0.01 * self.critic(restored).mean()}

    def prior_loss(self, code: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.prior(code + 0.1 * torch.randn_like(code)) - code).square().mean()}

    def _score(self, x: Tensor) -> Scores:
        return Scores((x - self.restore(x)).square().flatten(1).mean(1))


def images(count: int = 22, seed: int = 0) -> Tensor:
    """By default 22, which batches of 8 do not divide."""
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def turn(x: Tensor, generator: torch.Generator) -> Tensor:
    """An augmentation: the same random flip for the whole batch, and noise."""
    flipped = x.flip(-1) if torch.rand((), generator=generator) < 0.5 else x
    return flipped + 0.01 * torch.rand(x.shape, generator=generator)


def run(folder: Path, augment: bool) -> None:
    """One fit, from where the folder's checkpoint stands; each step adds a line to ``steps.txt``."""
    torch.set_num_threads(1)
    torch.manual_seed(7)
    method = Staged(StagedSettings(), (1, 8, 8))

    def log(record: dict[str, object]) -> None:
        with open(folder / "steps.txt", "a") as file:
            file.write(json.dumps(record) + "\n")

    settings = TrainSettings(device="cpu", precision="32-true", log_steps=1, checkpoint_steps=1)
    fit(
        method, images(), settings, held_out=images(8, seed=1), augment=turn if augment else None,
        run_dir=folder / "run", resume=True, log=log,
    )  # fmt: skip
    torch.save(method.state_dict(), folder / "weights.pt")


def fork(action: Callable[[], None]) -> int:
    """The id of a child that does ``action`` and ends."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException as error:
            print(f"child failed: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return child


def lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def main() -> None:
    root, choose = Path(sys.argv[1]), random.Random()
    report = {}
    for augment in (False, True):
        whole, broken = root / f"whole{augment}", root / f"broken{augment}"
        kills = []
        for folder in (whole, broken):
            folder.mkdir(parents=True)
        assert os.waitpid(fork(lambda folder=whole, augment=augment: run(folder, augment)), 0)[1] == 0
        for first, last in ((2, 11), (15, 26)):
            moment = choose.randint(first, last)
            child = fork(lambda folder=broken, augment=augment: run(folder, augment))
            while lines(broken / "steps.txt") < moment:
                assert os.waitpid(child, os.WNOHANG)[0] == 0, "the run ended before it was killed"
            time.sleep(choose.uniform(0, 0.005))
            os.kill(child, signal.SIGKILL)
            assert os.waitpid(child, 0)[1] == signal.SIGKILL
            kills.append(moment)
        assert os.waitpid(fork(lambda folder=broken, augment=augment: run(folder, augment)), 0)[1] == 0
        one, other = (torch.load(folder / "weights.pt", weights_only=True) for folder in (whole, broken))
        different = [name for name in one if not torch.equal(one[name], other[name])]
        report[f"augment={augment}"] = {"killed_after_lines": kills, "different": different, "tensors": len(one)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
