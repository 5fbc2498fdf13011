"""The one training loop: :func:`fit` moves any method through its stages.

Random numbers of a step depend on (seed, stage, step, process) alone and batches on (seed, stage, epoch), so a run that
was killed and resumed repeats exactly what an uninterrupted one does; no generator state is stored.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from normalcy.errors import SettingsError, TrainingError
from normalcy.method import Objective, Stage
from normalcy.training.batches import Images, OrderedBatches, batch_size_of, draws_per_step, take
from normalcy.training.checkpoint import Checkpoint, Job, State
from normalcy.training.log import Log, Meter

# Fabric announces precision and processes at each start; the summary and the log say the same.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)


# -- private ---------------------------------------------------------------------------------------------------------


class StageRun:
    """One stage: prepare, derive the inputs, then step."""

    def __init__(
        self,
        fabric: Fabric,
        job: Job,
        images: Images,
        stage: Stage,
        index: int,
        steps: int,
        checkpoint: Checkpoint,
        log: Log | None,
        started: float,
    ) -> None:
        self.fabric, self.job, self.images, self.stage, self.index = fabric, job, images, stage, index
        self.steps, self.checkpoint, self.log, self.started = steps, checkpoint, log, started
        self.method, self.settings = job.method, job.settings
        self.batch_size = batch_size_of(stage, job.settings, len(images))
        self.channels_last = job.settings.channels_last and len(job.method.shape) == 3

    def run(self, state: State, optimiser_states: Sequence[Mapping[str, Any]]) -> None:
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
        meter = Meter(
            self.method.name,
            self.stage.name,
            self.steps,
            self.settings.log_steps,
            self.log,
            self.fabric.world_size,
            self.fabric.all_reduce,
        )
        last_saved = time.monotonic()
        self._training_mode()
        try:
            first = state.step
            for step in range(first, self.steps):
                torch.manual_seed(step_seed(self.settings.seed, self.index, step, self.fabric.global_rank))
                fraction = step / self.steps
                if self.stage.on_progress is not None:
                    self.stage.on_progress(fraction)
                draw = step * draws_per_step(self.stage)
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

    def finalise(self) -> None:
        if self.stage.finalise is None:
            return
        torch.manual_seed(step_seed(self.settings.seed, self.index, -3, 0))
        self.method.eval()
        held_out = self.images if self.job.held_out is None else self.job.held_out
        with torch.no_grad():
            self.stage.finalise(self._in_order(held_out))
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
        torch.manual_seed(step_seed(self.settings.seed, self.index, -1, 0))
        self.method.eval()
        if self.log is not None:
            self.log({"method": self.method.name, "stage": self.stage.name, "event": "prepare"})
        batches = self._in_order(self.images)
        with torch.no_grad():
            self.stage.prepare(batches)
        self.method.to(self.fabric.device)

    def _in_order(self, images: Images) -> OrderedBatches:
        return OrderedBatches(images, self.method.shape, self.batch_size, self.fabric.device, self.channels_last)

    def _source(self) -> Images:
        """The images, or what the stage derives from them."""
        if self.stage.derive is None or self.job.augment is not None:
            return self.images
        self.method.eval()
        batches = self._in_order(self.images)
        with torch.no_grad():
            return torch.cat([self.stage.derive(x).cpu() for x in batches])

    def _batch(self, source: Images, draw: int) -> Tensor:
        """This process's part of the ``draw``-th batch of the stage."""
        n, size = len(source), self.batch_size
        per_epoch = max(1, n // size)
        epoch, place = divmod(draw, per_epoch)
        part = size // self.fabric.world_size
        first = place * size + self.fabric.global_rank * part
        x = take(source, self._order(epoch, n)[first : first + part], self.fabric.device)
        if self.job.augment is not None:
            generator = torch.Generator(device=x.device)
            generator.manual_seed(step_seed(self.settings.seed, self.index, draw, self.fabric.global_rank))
            x = self.job.augment(x, generator)
            if self.stage.derive is not None:
                self.method.eval()
                with torch.no_grad():
                    x = self.stage.derive(x)
                self._training_mode()
        if self.channels_last and x.ndim == 4 and x.is_floating_point():
            x = x.contiguous(memory_format=torch.channels_last)
        return x

    def _order(self, epoch: int, n: int) -> np.ndarray[Any, Any]:
        if getattr(self, "_epoch", None) != epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng([self.settings.seed, self.index, epoch]).permutation(n)
        return self._permutation

    def _stop_early(self, state: State, step: int) -> bool:
        rule = self.stage.early_stop
        if rule is None or self.job.held_out is None:
            return False
        per_epoch = max(1, len(self.images) // self.batch_size) / draws_per_step(self.stage)
        every = max(1, round(rule.every if self.stage.steps else rule.every * per_epoch))
        if (step + 1) % every:
            return False
        self.method.eval()
        torch.manual_seed(step_seed(self.settings.seed, self.index, -2, 0))
        total = count = 0.0
        with torch.no_grad():
            for x in self._in_order(self.job.held_out):
                derived = x if self.stage.derive is None else self.stage.derive(x)  # in 32 bits, as in training
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

    def _save(self, state: State, optimisers: Sequence[torch.optim.Optimizer]) -> None:
        if self.fabric.global_rank == 0:
            state.seconds = time.monotonic() - self.started
            self.checkpoint.save(state, [o.state_dict() for o in optimisers])


def step_seed(*parts: int) -> int:
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
