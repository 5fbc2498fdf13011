"""The log of a fit: averages of the loss terms, kept in memory and as JSON lines in the run folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normalcy.errors import TrainingError
from normalcy.files import append_text, read_json_lines, write_bytes

if TYPE_CHECKING:  # records are read and written where there is no torch
    from torch import Tensor

Record = dict[str, Any]
"""JSON values: method, stage, step, steps, images_per_second and the loss terms; or an event."""
Log = Callable[[Record], None]
TRAIN_LOG = "train.jsonl"


class Journal:
    """Records of the loop: kept, written to the run folder line by line, passed on."""

    def __init__(self, path: Path | None, resume: bool, then: Log | None) -> None:
        self.path, self.then = path, then
        self.kept = read_log(path) if path is not None and resume else []
        if path is not None:
            write_bytes(path, "".join(json.dumps(r) + "\n" for r in self.kept).encode())

    def __call__(self, record: Record) -> None:
        self.kept.append(record)
        if self.path is not None:
            append_text(self.path, json.dumps(record) + "\n")
        if self.then is not None:
            self.then(record)

    def records(self) -> list[Record]:
        """The last record of each step: those after a checkpoint are written again by a resumed run."""
        by_step = {(r.get("stage"), r.get("event"), r.get("step"), "held_out_loss" in r): r for r in self.kept}
        return list(by_step.values())


def read_log(path: Path) -> list[Record]:
    """Records of an earlier run; a line that was cut off by a kill is passed over."""
    return read_json_lines(path) if path.exists() else []


class Meter:
    """Averages of the loss terms between two records, and the watch for non-finite ones (exact step, no waiting on a GPU).

    ``all_reduce`` averages a tensor over processes. ``log`` is None in all but the first process.
    """

    def __init__(
        self,
        method: str,
        stage: str,
        steps: int,
        log_steps: int,
        log: Log | None,
        processes: int = 1,
        all_reduce: Callable[[Tensor], Any] = lambda x: x,
    ) -> None:
        self.method, self.stage, self.steps, self.log_steps, self.log = method, stage, steps, log_steps, log
        self.processes, self.all_reduce = processes, all_reduce
        self.pending: list[tuple[int, Tensor]] = []
        self.sums: dict[str, Tensor] = {}
        self.count, self.images, self.since, self.step = 0, 0, time.monotonic(), 0

    def kept(self) -> dict[str, Any]:
        """What has been added since the last record, for :meth:`resume`."""
        return {
            "sums": {name: value.clone() for name, value in self.sums.items()},
            "count": self.count,
            "images": self.images,
            "seconds": time.monotonic() - self.since,
        }

    def resume(self, kept: Mapping[str, Any]) -> None:
        """Continue the averages of an interrupted run; nothing where it had none."""
        if kept:
            self.sums, self.count, self.images = dict(kept["sums"]), kept["count"], kept["images"]
            self.since = time.monotonic() - kept["seconds"]

    def add(self, step: int, terms: Mapping[str, Tensor], images: int) -> None:
        """The loss terms of step ``step`` (from 0) on this process's ``images`` images."""
        import torch

        self.step = step + 1
        self.pending.append((step, torch.stack([v for k, v in terms.items() if k.rpartition("/")[2] == "loss"]).sum()))
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value.float()
        self.count += 1
        self.images += images * self.processes
        if self.pending[0][1].device.type == "cpu" or len(self.pending) >= self.log_steps:
            self.check()
        if self.step % self.log_steps == 0:
            self.flush()

    def check(self) -> None:
        """Raises TrainingError where a loss since the last check is not finite."""
        if not self.pending:
            return
        import torch

        finite = torch.stack([value for _, value in self.pending]).isfinite().tolist()
        for (step, _), good in zip(self.pending, finite):
            if not good:
                raise TrainingError(
                    f"{self.method}: the loss is not finite in stage {self.stage!r} at step {step + 1} of "
                    f"{self.steps}. Check the images for NaN, lower the learning rate or use precision 32-true."
                )
        self.pending.clear()

    def flush(self) -> None:
        """Write the averages since the last record."""
        self.check()
        if not self.count:
            return
        import torch

        names = list(self.sums)
        means = torch.stack([self.sums[name] for name in names]) / self.count
        if self.processes > 1:
            means = self.all_reduce(means)
        now = time.monotonic()
        if self.log is not None:
            self.log(
                {
                    "method": self.method,
                    "stage": self.stage,
                    "step": self.step,
                    "steps": self.steps,
                    "images_per_second": round(self.images / max(now - self.since, 1e-9), 1),
                    **{name: float(value) for name, value in zip(names, means.tolist())},
                }
            )
        self.sums, self.count, self.images, self.since = {}, 0, 0, now
