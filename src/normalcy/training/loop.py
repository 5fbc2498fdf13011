"""The loop of one stage: :func:`train_stage`.

Random numbers of a step depend on (seed, stage, step, process) alone and batches on (seed, stage, epoch), so a fit that was
interrupted and resumed repeats exactly what an uninterrupted one does; no generator state is stored.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from normalcy.errors import SettingsError, TrainingError
from normalcy.method import Loss, Method, Objective, Stage
from normalcy.training.batches import (
    Images,
    OrderedBatches,
    ShuffledBatches,
    batch_size_of,
    draws_per_step,
    steps_per_epoch,
    take,
)
from normalcy.training.checkpoint import Checkpoint, Job, State
from normalcy.training.generators import seed_generators, seed_of
from normalcy.training.log import Log, Meter
from normalcy.training.processes import from_first
from normalcy.training.settings import TrainSettings

# Fabric announces precision and processes at each start; the summary and the log say the same.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)

BEFORE, LOOK, AFTER = -1, -2, -3
"""Places of random numbers outside the steps, which count from 0: prepare, a look of early stopping, finalise."""


@dataclass(frozen=True)
class StageRun:
    """One stage of a fit: what stays the same from its first step to its last."""

    fabric: Fabric
    job: Job
    images: Images
    """(N, C, *spatial), those of the job, perhaps on the device."""
    stage: Stage
    index: int
    """Place of the stage in the method."""
    steps: int
    checkpoint: Checkpoint
    log: Log | None
    """None in all processes but the first."""
    started: float
    """``time.monotonic()`` at the start of the fit, less the seconds of earlier runs."""

    @property
    def method(self) -> Method:
        return self.job.method

    @cached_property
    def trained(self) -> list[list[nn.Parameter]]:
        """The parameters of each objective; read once, as they may come from a generator."""
        return [list(objective.parameters) for objective in self.stage.objectives]

    @property
    def batch_size(self) -> int:
        return batch_size_of(self.stage, self.job.settings, len(self.images))

    @property
    def channels_last(self) -> bool:
        return self.job.settings.channels_last and len(self.method.shape) == 3

    def seed(self, place: int) -> int:
        """Of a step (from 0) in this process, or of BEFORE, LOOK and AFTER, which are the same in all processes."""
        return seed_of(self.job.settings.seed, self.index, place, self.fabric.global_rank if place >= 0 else 0)

    def in_order(self, images: Images) -> OrderedBatches:
        fabric = self.fabric
        place = fabric.global_rank, fabric.world_size
        return OrderedBatches(images, self.method.shape, self.batch_size, fabric.device, self.channels_last, *place)


@dataclass(frozen=True)
class Player:
    """An objective ready to be stepped. Two in a stage make a game."""

    objective: Objective
    loss: Loss
    """The objective's, compiled where asked for."""
    parameters: list[nn.Parameter]
    optimiser: Any
    """As wrapped by Fabric, which knows about precision and processes."""
    prefix: str
    """Of its terms in the log; empty where it plays alone."""


# -- the loop --------------------------------------------------------------------------------------------------------


def train_stage(run: StageRun, state: State, optimiser_states: Sequence[Mapping[str, Any]]) -> None:
    """Prepare, then step until the stage's length is reached or early stopping ends it. Continues at ``state.step``."""
    method, stage, settings = run.method, run.stage, run.job.settings
    if state.step < 0:
        prepare(run)
        state.step = 0
        if stage.prepare is not None and run.steps:
            save(run, state, [])
    if not run.steps or (stage.skip is not None and stage.skip()):
        return
    images = derived_once(run)
    with requires_grad_kept(method):
        model, players = set_up(run, optimiser_states)
        batches = ShuffledBatches(len(images), run.batch_size, settings.seed, run.index)
        meter = Meter(
            method.name,
            stage.name,
            run.steps,
            settings.log_steps,
            run.log,
            run.fabric.world_size,
            run.fabric.all_reduce,
        )
        meter.resume(state.averages)
        last_saved = time.monotonic()
        for step in range(state.step, run.steps):
            seed_generators(run.seed(step), run.fabric.device)
            if stage.on_progress is not None:
                stage.on_progress(step / run.steps)
            first = step * draws_per_step(stage)
            draws = (drawn(run, images, batches, first + repeat) for repeat in range(draws_per_step(stage)))
            terms, count = take_step(run, model, players, draws, step / run.steps)
            meter.add(step, terms, count)
            state.step, state.total_steps = step + 1, state.total_steps + 1
            if stops_early(run, state):
                break
            if state.step < run.steps and due(settings, state.step, last_saved):
                meter.check()  # no checkpoint of weights that a loss has spoilt
                state.averages = meter.kept()
                save(run, state, [player.optimiser for player in players])
                last_saved = time.monotonic()
        meter.flush()
    if state.best_weights:
        method.load_state_dict(state.best_weights)


def set_up(run: StageRun, optimiser_states: Sequence[Mapping[str, Any]]) -> tuple[Any, list[Player]]:
    """The method as Fabric wraps it, and the stage's objectives with their optimisers; all that is trained, and nothing
    else, requires a gradient and is in training mode."""
    objectives = run.stage.objectives
    optimisers = [optimiser_of(*one) for one in zip(objectives, run.trained)]
    for optimiser, saved in zip(optimisers, optimiser_states):
        optimiser.load_state_dict(dict(saved))
    # Before Fabric's set-up: DDP averages over the processes the gradients of what requires one now.
    only_these_require_grad(run.method, [p for parameters in run.trained for p in parameters])
    model = run.fabric.setup_module(run.method)
    players = [
        Player(
            objective,
            torch.compile(objective.loss) if run.job.settings.compile else objective.loss,
            parameters,
            run.fabric.setup_optimizers(optimiser),
            f"{objective.name or getattr(objective.loss, '__name__', place)}/" if len(objectives) > 1 else "",
        )
        for place, (objective, parameters, optimiser) in enumerate(zip(objectives, run.trained, optimisers), start=1)
    ]
    training_mode(run)
    return model, players


def take_step(
    run: StageRun, model: Any, players: Sequence[Player], draws: Iterator[Tensor], fraction: float
) -> tuple[dict[str, Tensor], int]:
    """Update every objective ``repeats`` times, at ``fraction`` in [0, 1) of the stage.

    Returns the loss terms by name, each the mean over its repeats, and the number of this process's images in a batch.
    """
    terms: dict[str, Tensor] = {}
    x = next(draws)  # (B, C, *spatial), or what the stage derives
    for player in players:
        objective, optimiser = player.objective, player.optimiser
        if len(players) > 1:  # the critic's loss moves the critic alone, though it runs through the generator
            only_these_require_grad(run.method, player.parameters)
        for group in optimiser.param_groups:
            group["lr"] = objective.lr * (objective.schedule(fraction) if objective.schedule else 1.0)
        for repeat in range(objective.repeats):
            if repeat:
                x = next(draws)
            named = model(player.loss, x)
            if "loss" not in named:
                raise TrainingError(f'{run.method.name}: a loss must return a term "loss", got {", ".join(named)}.')
            optimiser.zero_grad(set_to_none=True)
            run.fabric.backward(named["loss"])
            if objective.clip_norm is not None or objective.clip_value is not None:
                run.fabric.strategy.precision.unscale_gradients(optimiser.optimizer)  # 16-mixed multiplies the loss
                clip(objective, player.parameters)
            optimiser.step()
            for name, value in named.items():
                name, part = player.prefix + name, value.detach().float() / objective.repeats
                terms[name] = terms[name] + part if repeat else part
    return terms, len(x)


def due(settings: TrainSettings, step: int, last_saved: float) -> bool:
    """Whether a checkpoint is to be written after ``step`` steps; the last was at ``time.monotonic() == last_saved``."""
    if settings.checkpoint_steps:
        return step % settings.checkpoint_steps == 0
    return time.monotonic() - last_saved >= settings.checkpoint_seconds


# -- batches ---------------------------------------------------------------------------------------------------------


def derived_once(run: StageRun) -> Images:
    """(N, ...) what the stage trains on: the images, or what it derives from them where that is the same in every epoch."""
    if run.stage.derive is None or run.job.augment is not None:
        return run.images
    run.method.eval()
    with torch.no_grad():
        return torch.cat([run.stage.derive(x).cpu() for x in run.in_order(run.images)])


def drawn(run: StageRun, images: Images, batches: ShuffledBatches, number: int) -> Tensor:
    """(B, ...) this process's part of batch ``number`` of the stage, augmented, on the device."""
    part, rank = run.batch_size // run.fabric.world_size, run.fabric.global_rank
    x = take(images, batches.rows(number)[rank * part : (rank + 1) * part], run.fabric.device)
    if run.job.augment is not None:
        generator = torch.Generator(device=x.device).manual_seed(run.seed(number))
        x = run.job.augment(x, generator)
        if run.stage.derive is not None:
            run.method.eval()
            with torch.no_grad():
                x = run.stage.derive(x)
            training_mode(run)
    if run.channels_last and x.ndim == 4 and x.is_floating_point():
        x = x.contiguous(memory_format=torch.channels_last)
    return x


# -- beside the steps ------------------------------------------------------------------------------------------------


def prepare(run: StageRun) -> None:
    """The stage's pass over the training images before its steps."""
    if run.stage.prepare is not None:
        if run.log is not None:
            run.log({"method": run.method.name, "stage": run.stage.name, "event": "prepare"})
        seed_generators(run.seed(BEFORE), run.fabric.device)
        run.method.eval()
        with torch.no_grad():
            run.stage.prepare(run.in_order(run.images))
        run.method.to(run.fabric.device)  # what it has learned may have been computed elsewhere
        share_state(run.fabric, run.method)


def finalise(run: StageRun) -> None:
    """The stage's pass over the held-out images after its steps."""
    if run.stage.finalise is not None:
        seed_generators(run.seed(AFTER), run.fabric.device)
        run.method.eval()
        with torch.no_grad():
            run.stage.finalise(run.in_order(run.images if run.job.held_out is None else run.job.held_out))
        run.method.to(run.fabric.device)
        share_state(run.fabric, run.method)


def stops_early(run: StageRun, state: State) -> bool:
    """Look at the loss on held-out images where a look is due after ``state.step`` steps, and keep the best weights in
    ``state``; true where ``patience`` looks brought nothing better."""
    rule, held_out, settings = run.stage.early_stop, run.job.held_out, run.job.settings
    if rule is None or held_out is None:
        return False
    every = rule.every if run.stage.steps else rule.every * steps_per_epoch(run.stage, settings, len(run.images))
    if state.step % max(1, round(every)):
        return False
    seed_generators(run.seed(LOOK), run.fabric.device)
    run.method.eval()
    total = count = 0.0
    with torch.no_grad():
        for x in run.in_order(held_out):
            derived = x if run.stage.derive is None else run.stage.derive(x)  # in 32 bits, as in training
            with run.fabric.autocast():
                total += float(rule.loss(derived)["loss"]) * len(x)
            count += len(x)
    training_mode(run)
    value = run.fabric.broadcast(total / count)  # all processes decide alike
    if run.log is not None:
        run.log({"method": run.method.name, "stage": run.stage.name, "step": state.step, "held_out_loss": value})
    if value < state.best - rule.min_delta:
        state.best, state.looks_since_best = value, 0
        state.best_weights = {k: v.detach().clone() for k, v in run.method.state_dict().items()}
        return False
    if state.step >= rule.after * run.steps:
        state.looks_since_best += 1
    return state.looks_since_best >= rule.patience


@torch.no_grad()
def share_state(fabric: Fabric, method: Method) -> None:
    """Give all processes the weights and buffers of the first: what each has computed may differ by rounding."""
    if fabric.world_size == 1:
        return
    own = method.state_dict()
    shared = dict(zip(own, from_first(list(own.values()), fabric.device, fabric.global_rank)))
    if fabric.global_rank:
        for name, value in shared.items():
            if own[name].shape != value.shape:  # a learned buffer
                owner, _, leaf = name.rpartition(".")
                method.get_submodule(owner)._buffers[leaf] = value
        method.load_state_dict(shared)


def save(run: StageRun, state: State, optimisers: Sequence[torch.optim.Optimizer]) -> None:
    """A checkpoint, written by the first process."""
    if run.fabric.global_rank == 0:
        state.seconds = time.monotonic() - run.started
        run.checkpoint.save(state, [o.state_dict() for o in optimisers])


# -- parts and optimisers --------------------------------------------------------------------------------------------


def training_mode(run: StageRun) -> None:
    """Training mode, except for parts of which the stage trains no parameter: frozen means frozen, dropout and the running
    statistics of batch norms included."""
    trained = {id(p) for parameters in run.trained for p in parameters}
    run.method.train()
    for module in run.method.modules():
        own = list(module.parameters())
        if own and not any(id(p) in trained for p in own):
            module.eval()


def only_these_require_grad(method: Method, parameters: Sequence[nn.Parameter]) -> None:
    wanted = {id(p) for p in parameters}
    for p in method.parameters():
        p.requires_grad_(id(p) in wanted)


@contextmanager
def requires_grad_kept(method: Method) -> Iterator[None]:
    """Set ``requires_grad`` of all parameters back afterwards, also after an error."""
    before = [(p, p.requires_grad) for p in method.parameters()]
    try:
        yield
    finally:
        for p, required in before:
            p.requires_grad_(required)


def optimiser_of(objective: Objective, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
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


def clip(objective: Objective, parameters: list[nn.Parameter]) -> None:
    if objective.clip_norm is not None:
        nn.utils.clip_grad_norm_(parameters, objective.clip_norm)
    if objective.clip_value is not None:
        nn.utils.clip_grad_value_(parameters, objective.clip_value)
