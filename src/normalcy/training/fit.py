"""Train a method in one process or several: :func:`fit` moves it through its stages."""

from __future__ import annotations

import copy
import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.utilities import move_data_to_device
from torch.multiprocessing.spawn import ProcessRaisedException

from normalcy.errors import NormalcyError, SettingsError
from normalcy.files import open_regular, temporary_folder, writing
from normalcy.method import Method, Stage
from normalcy.training.batches import Augment, Images, first_image, on_device, steps_per_epoch
from normalcy.training.checkpoint import Checkpoint, Job, State
from normalcy.training.generators import caller_generators_kept, seed_generators, seed_of
from normalcy.training.log import Log
from normalcy.training.loop import StageRun, finalise, share_state, train_stage
from normalcy.training.processes import ALONE, Processes, joined
from normalcy.training.settings import FitSummary, TrainSettings, accelerator_of, precision_of


def fit(
    method: Method,
    images: Images,
    settings: TrainSettings | None = None,
    *,
    held_out: Images | None = None,
    augment: Augment | None = None,
    run_dir: Path | None = None,
    resume: bool = False,
    shared: Path | None = None,
    log: Log | None = None,
) -> FitSummary:
    """Train ``method`` in place on normal ``images`` (N, C, *spatial), float32.

    ``held_out`` normal images serve early stopping and ``Stage.finalise`` only. With ``run_dir`` there is a checkpoint at an
    interval and after each stage, and ``resume=True`` continues from it. ``shared`` is a folder of stages that fits on
    the same images have in common (:attr:`Method.late_settings`). ``log`` gets one record (JSON values) at each
    ``log_steps``. Afterwards the method is in evaluation mode and the global random generators are as they were.

    Processes that torchrun has started train together, each on its part of every batch. All of them call this with the same
    method, images and settings; the first alone reads and writes ``run_dir`` and ``shared`` and gets ``log``.

    Raises SettingsError when the settings do not go together or the checkpoint belongs to another run, TrainingError when a
    loss is not finite.
    """
    settings = settings or TrainSettings()
    if len(images) == 0:
        raise SettingsError(f"{method.name} needs at least one normal image to fit, got none.")
    cropped = getattr(augment, "size_of", tuple)(images.shape[2:])
    if (images.shape[1], *cropped) != method.shape:
        raise SettingsError(f"{method.name} was built for images {method.shape}, got {(images.shape[1], *cropped)}.")
    if (dtype := first_image(images).dtype) != np.float32:
        raise SettingsError(f"{method.name} learns from float32 images, got {dtype}: convert them first.")
    accelerator = accelerator_of(settings.device)
    with joined() as processes:
        settings = _divided(settings, processes)
        job = Job(method, images, settings, accelerator, held_out, augment, run_dir, resume, shared)
        if settings.devices > processes.count:
            return _launch(job, log)
        fabric = _fabric(job, processes)
        with caller_generators_kept(fabric.device), torch.inference_mode(False), torch.enable_grad():
            return _train(fabric, job, log)


def plan_steps(stages: Sequence[Stage], settings: TrainSettings, count: int) -> list[int]:
    """Steps of each stage (0 for one without objectives) on ``count`` images.

    A given total is shared in the proportion of the stages' defaults.
    """
    per_epoch = [steps_per_epoch(stage, settings, count) for stage in stages]
    default = [float(stage.steps or (stage.epochs or 0) * rate) for stage, rate in zip(stages, per_epoch)]
    total = math.fsum(default)
    if settings.steps is not None and total:
        default = [settings.steps * d / total for d in default]
    elif settings.epochs is not None and total:
        passes = [d / rate for d, rate in zip(default, per_epoch)]
        default = [settings.epochs * p / math.fsum(passes) * rate for p, rate in zip(passes, per_epoch)]
    return [max(1, round(d)) if stage.objectives else 0 for stage, d in zip(stages, default)]


def _divided(settings: TrainSettings, processes: Processes) -> TrainSettings:
    """Settings whose ``devices`` is the number of processes that torchrun has started, if it has."""
    if processes is ALONE:
        return settings
    if settings.devices not in (1, processes.count):
        raise SettingsError(
            f"fit expects no --devices beside torchrun, which has started {processes.count} processes, got "
            f"{settings.devices}."
        )
    return replace(settings, devices=processes.count)


def _fabric(job: Job, processes: Processes) -> Fabric:
    """Of this process: alone, or one of those that torchrun has started."""
    precision = precision_of(job.settings, job.accelerator)
    if processes is ALONE:
        return Fabric(accelerator=job.accelerator, devices=1, precision=precision)
    if job.accelerator == "cuda" and torch.cuda.device_count() < processes.per_node:
        raise SettingsError(
            f"fit expects a GPU for each process, got {torch.cuda.device_count()} GPUs for {processes.per_node} processes "
            "on a node: start fewer with --nproc_per_node, or use --device cpu."
        )
    fabric = Fabric(
        accelerator=job.accelerator,
        devices=processes.per_node,
        num_nodes=processes.nodes,
        strategy=DDPStrategy(find_unused_parameters=True),
        plugins=TorchElasticEnvironment(),
        precision=precision,
    )
    fabric.launch()
    return fabric


def _launch(job: Job, log: Log | None) -> FitSummary:
    """Train in several processes, started afresh; the parent waits, passes records on and takes the weights back."""
    backend = "nccl" if job.accelerator == "cuda" else "gloo"
    strategy = DDPStrategy(start_method="spawn", find_unused_parameters=True, process_group_backend=backend)
    fabric = Fabric(
        accelerator=job.accelerator,
        devices=job.settings.devices,
        strategy=strategy,
        precision=precision_of(job.settings, job.accelerator),
    )
    with temporary_folder() as folder:
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
        with open_regular(weights) as file:
            job.method.load_state_dict(torch.load(file, weights_only=True))
        job.method.eval()
    return FitSummary(**cast("Any", summary))


def _pass_on(records: Any, log: Log | None, errors: list[Exception]) -> None:
    while (record := records.get()) is not None:
        try:
            if isinstance(record, NormalcyError):
                errors.append(record)
            elif log is not None and not errors:
                log(record)
        except Exception as error:  # raised again by the parent; the processes must not wait for a reader
            errors.append(error)


def _worker(fabric: Fabric, job: Job, records: Any, weights: Path) -> dict[str, Any]:
    if job.accelerator == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // job.settings.devices))
    job.method = copy.deepcopy(job.method)  # what arrives lies in memory that all processes share
    try:
        summary = _train(fabric, job, records.put)
    except NormalcyError as error:
        records.put(error)
        raise
    if fabric.global_rank == 0:
        with writing(weights) as file:
            torch.save(job.method.state_dict(), file)
    fabric.barrier()
    return asdict(summary)


def _from_first(
    fabric: Fabric, state: State, optimisers: list[Mapping[str, Any]]
) -> tuple[State, list[Mapping[str, Any]]]:
    """What the first process has read from its checkpoint."""
    sent = fabric.broadcast(move_data_to_device((dict(vars(state)), optimisers), torch.device("cpu")))
    words, optimisers = move_data_to_device(sent, fabric.device)
    return State(**words), optimisers


def _train(fabric: Fabric, job: Job, log: Log | None) -> FitSummary:
    method, settings = job.method, job.settings
    if settings.channels_last and len(method.shape) == 3:
        method.to(memory_format=torch.channels_last)
    method.to(fabric.device)
    seed_generators(seed_of(settings.seed), fabric.device)
    stages = list(method.stages())
    steps = plan_steps(stages, settings, len(job.images))
    if fabric.global_rank > 0:  # only the first process reads and writes checkpoints
        job = replace(job, run_dir=None, shared=None)
        log = None
    checkpoint = Checkpoint(job, steps)
    method.mark_fitted(False)
    state, optimiser_states = (
        checkpoint.load(fabric.device) if job.resume else (checkpoint.load_shared(fabric.device), [])
    )
    if fabric.world_size > 1:
        state, optimiser_states = _from_first(fabric, state, optimiser_states)
        share_state(fabric, method)
    if state.stage == 0 and state.step == -1:
        method.load_pretrained()
        method.to(fabric.device)
    started = time.monotonic() - state.seconds
    images = on_device(job.images, fabric.device)
    for index in range(state.stage, len(stages)):
        run = StageRun(fabric, job, images, stages[index], index, steps[index], checkpoint, log, started)
        train_stage(run, state, optimiser_states)
        finalise(run)
        method.mark_fitted(index == len(stages) - 1)
        state = State(stage=index + 1, total_steps=state.total_steps, seconds=time.monotonic() - started)
        optimiser_states = []
        if fabric.global_rank == 0:
            checkpoint.save(state, [])
            checkpoint.share(state)
    method.eval()
    precision = str(precision_of(settings, job.accelerator)) if any(steps) else "32-true"  # prepare works in 32 bits
    return FitSummary(state.seconds, state.total_steps, precision, str(fabric.device))
