"""The one training loop: :func:`fit` moves any method through its stages.

Random numbers of a step depend on (seed, stage, step, process) alone and batches on (seed, stage, epoch), so a run that
was killed and resumed repeats exactly what an uninterrupted one does; no generator state is stored.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor
from torch.multiprocessing.spawn import ProcessRaisedException

from normalcy.config import to_words
from normalcy.errors import NormalcyError, SettingsError, TrainingError
from normalcy.method import Method, Objective, Stage

# Fabric announces precision and processes at each start; the summary and the log say the same.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)

Record = dict[str, Any]
Log = Callable[[Record], None]
Augment = Callable[[Tensor, torch.Generator], Tensor]


class Images(Protocol):
    """A tensor, an array or a file on disk: (N, C, *spatial) float32, indexed by an array of numbers."""

    @property
    def shape(self) -> Sequence[int]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: Any) -> Any: ...


@dataclass(frozen=True)
class TrainSettings:
    """How to train, for any method; lengths and batch sizes are the method's own unless given here."""

    epochs: float | None = None
    """Total passes over the images; several stages share it in the proportion of their defaults."""
    steps: int | None = None
    """Total steps, shared likewise."""
    batch_size: int | None = None
    """Images per step over all processes."""
    seed: int = 0
    """Of splits, first weights, batches and noise."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "mps"."""
    devices: int = 1
    """Processes; each takes its part of every batch."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    """"auto" is bf16-mixed where the processor computes in bf16, else 32-true."""
    channels_last: bool = True
    """Memory layout of 2D images: faster on most processors, the same numbers up to rounding."""
    compile: bool = False
    """Compile the losses with torch.compile (slow start, faster steps)."""
    checkpoint_seconds: float = 60.0
    """Time between two checkpoints of a run folder."""
    checkpoint_steps: int | None = None
    """Checkpoint each so many steps instead of by the clock."""
    log_steps: int = 50
    """Steps between two records of the log."""

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise SettingsError("Give epochs or steps, not both.")
        for word in ("epochs", "steps", "batch_size", "devices", "log_steps", "checkpoint_steps"):
            value = getattr(self, word)
            if value is not None and not 0 < value < math.inf:
                raise SettingsError(f"{word} must be positive, got {value}.")
        if self.seed < 0:
            raise SettingsError(f"seed must not be negative, got {self.seed}.")
        if self.device not in ("auto", "cpu", "cuda", "mps"):
            raise SettingsError(f"device must be auto, cpu, cuda or mps, got {self.device!r}.")
        if self.precision not in ("auto", "32-true", "bf16-mixed", "16-mixed"):
            raise SettingsError(f"precision must be auto, 32-true, bf16-mixed or 16-mixed, got {self.precision!r}.")


@dataclass(frozen=True)
class FitSummary:
    """What a fit cost, over all its interruptions."""

    seconds: float
    steps: int
    precision: str
    device: str


def fit(
    method: Method,
    images: Images,
    settings: TrainSettings | None = None,
    *,
    held_out: Images | None = None,
    augment: Augment | None = None,
    run_dir: Path | None = None,
    resume: bool = False,
    log: Log | None = None,
) -> FitSummary:
    """Train ``method`` in place on normal ``images`` (N, C, *spatial), float32.

    ``held_out`` normal images serve early stopping and the conclusion of stages only. With ``run_dir`` there is a
    checkpoint at an interval and after each stage, and ``resume=True`` goes on from it. ``log`` gets one record (JSON values)
    at each ``log_steps``.

    Raises SettingsError when the settings do not go together or the checkpoint belongs to another run, TrainingError when a
    loss is not finite.
    """
    settings = settings or TrainSettings()
    if len(images) == 0:
        raise SettingsError(f"{method.name} needs at least one normal image to fit, got none.")
    cropped = getattr(augment, "size_of", tuple)(images.shape[2:])
    if (images.shape[1], *cropped) != method.shape:
        raise SettingsError(f"{method.name} was built for images {method.shape}, got {(images.shape[1], *cropped)}.")
    if (dtype := _first(images).dtype) != np.float32:
        raise SettingsError(f"{method.name} learns from float32 images, got {dtype}: convert them first.")
    accelerator = _accelerator(settings.device)
    job = _Job(method, images, settings, accelerator, held_out, augment, run_dir, resume)
    if settings.devices == 1:
        return _train(Fabric(accelerator=accelerator, devices=1, precision=_precision(settings, accelerator)), job, log)
    return _launch(job, log)


def plan_steps(stages: Sequence[Stage], settings: TrainSettings, count: int) -> list[int]:
    """Steps of each stage (0 for one without objectives) on ``count`` images.

    A given total is shared in the proportion of the stages' defaults.
    """
    per_epoch = [max(1, count // _batch_size(stage, settings, count)) / _draws(stage) for stage in stages]
    default = [float(stage.steps or (stage.epochs or 0) * rate) for stage, rate in zip(stages, per_epoch)]
    total = math.fsum(default)
    if settings.steps is not None and total:
        default = [settings.steps * d / total for d in default]
    elif settings.epochs is not None and total:
        passes = [d / rate for d, rate in zip(default, per_epoch)]
        default = [settings.epochs * p / math.fsum(passes) * rate for p, rate in zip(passes, per_epoch)]
    return [max(1, round(d)) if stage.objectives else 0 for stage, d in zip(stages, default)]


def best_precision(accelerator: str) -> str:
    """ "bf16-mixed" where the processor computes in bf16, else "32-true"."""
    if accelerator == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    has_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16-mixed" if accelerator == "cpu" and has_bf16() else "32-true"


# -- private ---------------------------------------------------------------------------------------------------------


@dataclass
class _Job:
    method: Method
    images: Images
    settings: TrainSettings
    accelerator: str
    held_out: Images | None
    augment: Augment | None
    run_dir: Path | None
    resume: bool


@dataclass
class _State:
    """What a checkpoint holds beside weights and optimisers."""

    stage: int = 0
    step: int = -1  # -1: the stage is not prepared yet
    seconds: float = 0.0
    total_steps: int = 0
    best: float = math.inf
    looks_since_best: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def _accelerator(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[device]:
        raise SettingsError(f"This machine has no {device} device: use --device cpu or auto.")
    return device


def _precision(settings: TrainSettings, accelerator: str) -> Any:
    return best_precision(accelerator) if settings.precision == "auto" else settings.precision


def _launch(job: _Job, log: Log | None) -> FitSummary:
    """Train in several processes, started afresh; the parent waits, passes records on and takes the weights back."""
    if not any(stage.objectives for stage in job.method.stages()):
        raise SettingsError(
            f"{job.method.name} does not train by gradients, so more devices do not help: use --devices 1."
        )
    backend = "nccl" if job.accelerator == "cuda" else "gloo"
    strategy = DDPStrategy(start_method="spawn", find_unused_parameters=True, process_group_backend=backend)
    fabric = Fabric(
        accelerator=job.accelerator,
        devices=job.settings.devices,
        strategy=strategy,
        precision=_precision(job.settings, job.accelerator),
    )
    with tempfile.TemporaryDirectory() as folder:
        records = torch.multiprocessing.get_context("spawn").SimpleQueue()
        errors: list[Exception] = []
        reader = threading.Thread(target=_pass_on, args=(records, log, errors), daemon=True)
        reader.start()
        weights = Path(folder) / "weights.pt"
        try:
            summary = fabric.launch(partial(_worker, job=job, records=records, weights=weights))
        except ProcessRaisedException:
            if not errors:
                raise
        finally:
            records.put(None)
            reader.join()
        if errors:
            raise errors[0]
        job.method.load_state_dict(torch.load(weights, weights_only=True))
    return FitSummary(**cast(Any, summary))


def _pass_on(records: Any, log: Log | None, errors: list[Exception]) -> None:
    while (record := records.get()) is not None:
        try:
            if isinstance(record, NormalcyError):
                errors.append(record)
            elif log is not None and not errors:
                log(record)
        except Exception as error:  # raised again by the parent; the processes must not wait for a reader
            errors.append(error)


def _worker(fabric: Fabric, job: _Job, records: Any, weights: Path) -> dict[str, Any]:
    if job.accelerator == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // job.settings.devices))
    job.method = copy.deepcopy(job.method)  # what arrives lies in memory that all processes share
    try:
        summary = _train(fabric, job, records.put)
    except NormalcyError as error:
        records.put(error)
        raise
    if fabric.global_rank == 0:
        torch.save(job.method.state_dict(), weights)
    fabric.barrier()
    return asdict(summary)


def _train(fabric: Fabric, job: _Job, log: Log | None) -> FitSummary:
    method, settings = job.method, job.settings
    if settings.channels_last and len(method.shape) == 3:
        method.to(memory_format=torch.channels_last)
    method.to(fabric.device)
    stages = list(method.stages())
    steps = plan_steps(stages, settings, len(job.images))
    checkpoint = _Checkpoint(job, steps)
    state, optimiser_states = checkpoint.load(fabric.device) if job.resume else (_State(), [])
    if state.stage == 0 and state.step == -1:
        method.load_pretrained()
        method.to(fabric.device)
    if fabric.global_rank > 0:
        log = None
    started = time.monotonic() - state.seconds
    images = _on_device(job.images, fabric.device)
    for index in range(state.stage, len(stages)):
        runner = _StageRun(fabric, job, images, stages[index], index, steps[index], checkpoint, log, started)
        runner.run(state, optimiser_states)
        runner.conclude()
        method._fitted.fill_(index == len(stages) - 1)  # type: ignore[operator]
        state = _State(stage=index + 1, total_steps=state.total_steps, seconds=time.monotonic() - started)
        optimiser_states = []
        if fabric.global_rank == 0:
            checkpoint.save(state, [])
    method.eval()
    precision = str(_precision(settings, job.accelerator)) if any(steps) else "32-true"  # prepare works in 32 bits
    return FitSummary(state.seconds, state.total_steps, precision, str(fabric.device))


class _StageRun:
    """One stage: prepare, derive the inputs, then step."""

    def __init__(
        self,
        fabric: Fabric,
        job: _Job,
        images: Images,
        stage: Stage,
        index: int,
        steps: int,
        checkpoint: _Checkpoint,
        log: Log | None,
        started: float,
    ) -> None:
        self.fabric, self.job, self.images, self.stage, self.index = fabric, job, images, stage, index
        self.steps, self.checkpoint, self.log, self.started = steps, checkpoint, log, started
        self.method, self.settings = job.method, job.settings
        self.batch_size = _batch_size(stage, job.settings, len(images))
        self.channels_last = job.settings.channels_last and len(job.method.shape) == 3

    def run(self, state: _State, optimiser_states: Sequence[Mapping[str, Any]]) -> None:
        if state.step < 0:
            self._prepare()
            state.step = 0
            if self.stage.prepare is not None and self.steps:
                self._save(state, [])
        if not self.steps or (self.stage.skip is not None and self.stage.skip()):
            return
        source = self._source()
        objectives = [(o, list(o.parameters)) for o in self.stage.objectives]
        self.parameters = [parameters for _, parameters in objectives]
        optimisers = [_optimiser(o, parameters) for o, parameters in objectives]
        for optimiser, saved in zip(optimisers, optimiser_states):
            optimiser.load_state_dict(dict(saved))
        frozen_or_not = [(p, p.requires_grad) for p in self.method.parameters()]
        own = [{id(p) for p in parameters} for _, parameters in objectives]
        for p, _ in frozen_or_not:  # before the set-up: gradients are brought together only of what is trainable now
            p.requires_grad_(any(id(p) in ids for ids in own))
        model = self.fabric.setup_module(self.method)
        fabric_optimisers = [cast(Any, self.fabric.setup_optimizers(o)) for o in optimisers]
        losses = [torch.compile(o.loss) if self.settings.compile else o.loss for o, _ in objectives]
        prefixes = [
            f"{o.name or getattr(o.loss, '__name__', k + 1)}/" if len(objectives) > 1 else ""
            for k, (o, _) in enumerate(objectives)
        ]
        meter = _Meter(self, state)
        last_saved = time.monotonic()
        self._training_mode()
        try:
            first = state.step
            for step in range(first, self.steps):
                torch.manual_seed(_seed(self.settings.seed, self.index, step, self.fabric.global_rank))
                fraction = step / self.steps
                if self.stage.on_progress is not None:
                    self.stage.on_progress(fraction)
                draw = step * _draws(self.stage)
                terms: dict[str, Tensor] = {}
                x = self._batch(source, draw)
                for k, ((objective, parameters), optimiser, loss) in enumerate(
                    zip(objectives, fabric_optimisers, losses)
                ):
                    if len(objectives) > 1:
                        for p, _ in frozen_or_not:
                            p.requires_grad_(id(p) in own[k])
                    for group in optimiser.param_groups:
                        group["lr"] = objective.lr * (objective.schedule(fraction) if objective.schedule else 1.0)
                    for repeat in range(objective.repeats):
                        if repeat:
                            draw += 1
                            x = self._batch(source, draw)
                        named = model(loss, x)
                        if "loss" not in named:
                            known = ", ".join(named)
                            raise TrainingError(f'{self.method.name}: a loss must return a term "loss", got {known}.')
                        optimiser.zero_grad(set_to_none=True)
                        self.fabric.backward(named["loss"])
                        if objective.clip_norm is not None or objective.clip_value is not None:
                            self.fabric.strategy.precision.unscale_gradients(optimiser.optimizer)  # of 16-mixed
                            _clip(objective, parameters)
                        optimiser.step()
                        for name, value in named.items():  # the mean over repeats
                            part = value.detach().float() / objective.repeats
                            terms[prefixes[k] + name] = terms[prefixes[k] + name] + part if repeat else part
                meter.add(step, terms, len(x))
                state.step = step + 1
                state.total_steps += 1
                if self._stop_early(state, step):
                    break
                every = self.settings.checkpoint_steps
                due = (
                    state.step % every == 0
                    if every
                    else time.monotonic() - last_saved >= self.settings.checkpoint_seconds
                )
                if due and state.step < self.steps:
                    meter.check()
                    self._save(state, optimisers)
                    last_saved = time.monotonic()
            meter.flush()
        finally:
            for p, trainable in frozen_or_not:
                p.requires_grad_(trainable)
        if state.best_weights:
            self.method.load_state_dict(state.best_weights)

    def conclude(self) -> None:
        if self.stage.conclude is None:
            return
        torch.manual_seed(_seed(self.settings.seed, self.index, -3, 0))
        self.method.eval()
        held_out = self.images if self.job.held_out is None else self.job.held_out
        with torch.no_grad():
            self.stage.conclude(self._in_order(held_out))
        self.method.to(self.fabric.device)

    def _training_mode(self) -> None:
        """Training mode, but for parts with parameters of which none is trained in this stage: frozen means frozen, running
        statistics of batch norms and dropout included."""
        self.method.train()
        trained = {id(p) for objective in self.parameters for p in objective}
        for module in self.method.modules():
            own = list(module.parameters())
            if own and not any(id(p) in trained for p in own):
                module.eval()

    def _prepare(self) -> None:
        if self.stage.prepare is None:
            return
        torch.manual_seed(_seed(self.settings.seed, self.index, -1, 0))
        self.method.eval()
        if self.log is not None:
            self.log({"method": self.method.name, "stage": self.stage.name, "event": "prepare"})
        batches = self._in_order(self.images)
        with torch.no_grad():
            self.stage.prepare(batches)
        self.method.to(self.fabric.device)

    def _in_order(self, images: Images) -> _OrderedBatches:
        return _OrderedBatches(images, self.method.shape, self.batch_size, self.fabric.device, self.channels_last)

    def _source(self) -> Images:
        """The images, or what the stage derives from them."""
        if self.stage.inputs is None or self.job.augment is not None:
            return self.images
        self.method.eval()
        batches = self._in_order(self.images)
        with torch.no_grad():
            return torch.cat([self.stage.inputs(x).cpu() for x in batches])

    def _batch(self, source: Images, draw: int) -> Tensor:
        """This process's part of the ``draw``-th batch of the stage."""
        n, size = len(source), self.batch_size
        per_epoch = max(1, n // size)
        epoch, place = divmod(draw, per_epoch)
        part = size // self.fabric.world_size
        first = place * size + self.fabric.global_rank * part
        x = _take(source, self._order(epoch, n)[first : first + part], self.fabric.device)
        if self.job.augment is not None:
            generator = torch.Generator(device=x.device)
            generator.manual_seed(_seed(self.settings.seed, self.index, draw, self.fabric.global_rank))
            x = self.job.augment(x, generator)
            if self.stage.inputs is not None:
                self.method.eval()
                with torch.no_grad():
                    x = self.stage.inputs(x)
                self._training_mode()
        if self.channels_last and x.ndim == 4 and x.is_floating_point():
            x = x.contiguous(memory_format=torch.channels_last)
        return x

    def _order(self, epoch: int, n: int) -> np.ndarray[Any, Any]:
        if getattr(self, "_epoch", None) != epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng([self.settings.seed, self.index, epoch]).permutation(n)
        return self._permutation

    def _stop_early(self, state: _State, step: int) -> bool:
        rule = self.stage.early_stop
        if rule is None or self.job.held_out is None:
            return False
        per_epoch = max(1, len(self.images) // self.batch_size) / _draws(self.stage)
        every = max(1, round(rule.every if self.stage.steps else rule.every * per_epoch))
        if (step + 1) % every:
            return False
        self.method.eval()
        torch.manual_seed(_seed(self.settings.seed, self.index, -2, 0))
        total = count = 0.0
        with torch.no_grad():
            for x in self._in_order(self.job.held_out):
                derived = x if self.stage.inputs is None else self.stage.inputs(x)  # in 32 bits, as in training
                with self.fabric.autocast():
                    total += float(rule.loss(derived)["loss"]) * len(x)
                count += len(x)
        self._training_mode()
        value = self.fabric.broadcast(total / count)
        if self.log is not None:
            self.log({"method": self.method.name, "stage": self.stage.name, "step": step + 1, "held_out_loss": value})
        if value < state.best - rule.min_delta:
            state.best, state.looks_since_best = value, 0
            state.best_weights = {k: v.detach().clone() for k, v in self.method.state_dict().items()}
            return False
        if step + 1 >= rule.after * self.steps:
            state.looks_since_best += 1
        return state.looks_since_best >= rule.patience

    def _save(self, state: _State, optimisers: Sequence[torch.optim.Optimizer]) -> None:
        if self.fabric.global_rank == 0:
            state.seconds = time.monotonic() - self.started
            self.checkpoint.save(state, [o.state_dict() for o in optimisers])


class _Meter:
    """Averages of the loss terms between two records, and the watch for non-finite ones (exact step, no waiting on a GPU)."""

    def __init__(self, run: _StageRun, state: _State) -> None:
        self.run, self.pending, self.sums = run, [], {}  # type: tuple[_StageRun, list[tuple[int, Tensor]], dict[str, Tensor]]
        self.count, self.images, self.since = 0, 0, time.monotonic()
        self.step = state.step

    def add(self, step: int, terms: Mapping[str, Tensor], images: int) -> None:
        self.step = step + 1
        self.pending.append((step, torch.stack([v for k, v in terms.items() if k.rpartition("/")[2] == "loss"]).sum()))
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value.float()
        self.count += 1
        self.images += images * self.run.fabric.world_size
        if self.pending[0][1].device.type == "cpu" or len(self.pending) >= self.run.settings.log_steps:
            self.check()
        if self.step % self.run.settings.log_steps == 0:
            self.flush()

    def check(self) -> None:
        if not self.pending:
            return
        finite = torch.stack([value for _, value in self.pending]).isfinite().tolist()
        for (step, _), good in zip(self.pending, finite):
            if not good:
                raise TrainingError(
                    f"{self.run.method.name}: the loss is not finite in stage {self.run.stage.name!r} at step {step + 1} of "
                    f"{self.run.steps}. Check the images for NaN, lower the learning rate or use precision 32-true."
                )
        self.pending.clear()

    def flush(self) -> None:
        self.check()
        if not self.count:
            return
        names = list(self.sums)
        means = torch.stack([self.sums[name] for name in names]) / self.count
        if self.run.fabric.world_size > 1:
            means = cast(Tensor, self.run.fabric.all_reduce(means))
        now = time.monotonic()
        if self.run.log is not None:
            self.run.log(
                {
                    "method": self.run.method.name,
                    "stage": self.run.stage.name,
                    "step": self.step,
                    "steps": self.run.steps,
                    "images_per_second": round(self.images / max(now - self.since, 1e-9), 1),
                    **{name: float(value) for name, value in zip(names, means.tolist())},
                }
            )
        self.sums, self.count, self.images, self.since = {}, 0, 0, now


class _Checkpoint:
    """``checkpoint.pt`` in the run folder: written whole or not at all, read without running code from it."""

    def __init__(self, job: _Job, steps: Sequence[int]) -> None:
        self.method = job.method
        self.path = job.run_dir / "checkpoint.pt" if job.run_dir is not None else None
        kept = replace(
            job.settings, checkpoint_seconds=60.0, checkpoint_steps=None, log_steps=50, devices=1, device="auto"
        )
        self.identity = {
            "method": job.method.name,
            "settings": json.dumps(to_words(job.method.settings), sort_keys=True),
            "training": json.dumps(to_words(kept), sort_keys=True),
            "images": json.dumps([*job.images.shape]),
            "first image": hashlib.sha256(np.ascontiguousarray(_first(job.images)).tobytes()).hexdigest()[:16],
            "steps": json.dumps(list(steps)),
        }

    def save(self, state: _State, optimisers: Sequence[Mapping[str, Any]]) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "identity": self.identity,
            "state": dict(vars(state)),
            "weights": self.method.state_dict(),
            "optimisers": list(optimisers),
        }
        partial = self.path.with_suffix(".partial")
        with open(partial, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path)

    def load(self, device: torch.device) -> tuple[_State, list[Mapping[str, Any]]]:
        if self.path is None or not self.path.exists():
            return _State(), []
        try:
            content = torch.load(self.path, map_location=device, weights_only=True)
            saved = content["identity"]
            state, optimisers = _State(**content["state"]), content["optimisers"]
        except Exception as error:  # whatever a damaged file makes of the reader
            sentence = (
                f"The checkpoint {self.path} cannot be read, it is damaged or no checkpoint: start without --resume."
            )
            raise TrainingError(sentence) from error
        for what, value in self.identity.items():
            if saved.get(what) != value:
                raise SettingsError(
                    f"The checkpoint {self.path} belongs to another run (its {what} was {saved.get(what)}, now {value}): "
                    "repeat the first command with --resume, or start without it."
                )
        self.method.load_state_dict(content["weights"])
        return state, optimisers


class _OrderedBatches:
    """See :class:`normalcy.method.Batches`."""

    def __init__(
        self, images: Images, shape: Sequence[int], size: int, device: torch.device, channels_last: bool
    ) -> None:
        self.images, self.shape, self.size = images, shape, size
        self.device, self.channels_last = device, channels_last
        self.count = len(images)

    def __len__(self) -> int:
        return math.ceil(self.count / self.size)

    def __iter__(self) -> Iterator[Tensor]:
        for first in range(0, self.count, self.size):
            x = _take(self.images, np.arange(first, min(first + self.size, self.count)), self.device)
            # Random crops in training: everything else sees the centre.
            for axis, side in enumerate(self.shape[1:], start=2):
                x = x.narrow(axis, (x.shape[axis] - side) // 2, side)
            yield x.contiguous(memory_format=torch.channels_last) if self.channels_last else x


def _take(images: Images, index: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    if isinstance(images, Tensor):
        return images[torch.from_numpy(index).to(images.device)].to(device, non_blocking=True)
    return torch.from_numpy(np.ascontiguousarray(images[index])).to(device)


def _first(images: Images) -> np.ndarray[Any, Any]:
    return np.asarray(images[0].cpu() if isinstance(images, Tensor) else images[0])


def _on_device(images: Images, device: torch.device) -> Images:
    """Keep the images on the GPU when they take less than a quarter of what is free there."""
    if isinstance(images, Tensor) and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if images.numel() * images.element_size() < free // 4:
            return images.to(device)
    return images


def _batch_size(stage: Stage, settings: TrainSettings, count: int) -> int:
    size = min(settings.batch_size or stage.batch_size, count)
    if size >= settings.devices:
        size -= size % settings.devices
    if size < settings.devices:
        raise SettingsError(
            f"A batch of {size} images cannot be shared by {settings.devices} devices: use fewer devices."
        )
    return size


def _draws(stage: Stage) -> int:
    """Batches that one step draws: the round's first, and one for each repeat after the first."""
    return 1 + sum(objective.repeats - 1 for objective in stage.objectives)


def _seed(*parts: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


def _optimiser(objective: Objective, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    lr, decay = objective.lr, objective.weight_decay
    match objective.optimiser:
        case "adam":
            return torch.optim.Adam(parameters, lr=lr, betas=objective.betas, weight_decay=decay)
        case "adamw":
            return torch.optim.AdamW(parameters, lr=lr, betas=objective.betas, weight_decay=decay)
        case "sgd":
            return torch.optim.SGD(parameters, lr=lr, momentum=objective.betas[0], weight_decay=decay)
        case "rmsprop":
            return torch.optim.RMSprop(parameters, lr=lr, weight_decay=decay)
    raise SettingsError(f"optimiser must be adam, adamw, sgd or rmsprop, got {objective.optimiser!r}.")


def _clip(objective: Objective, parameters: list[torch.nn.Parameter]) -> None:
    if objective.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(parameters, objective.clip_norm)
    if objective.clip_value is not None:
        torch.nn.utils.clip_grad_value_(parameters, objective.clip_value)
