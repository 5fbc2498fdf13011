"""Experiment tracking: settings, log records and results of a fit, written to CSV, TensorBoard, MLflow or Weights & Biases.

A destination is ``KIND`` or ``KIND:PLACE``, on the command line (``--log-to``) and here:

=========================  =============================================================================================
``csv:DIR``                ``DIR/version_N/metrics.csv`` and ``settings.json``
``tensorboard:DIR``        ``DIR/version_N/``: event files
``mlflow:DIR``             ``DIR/mlflow.db`` and ``DIR/artifacts``; ``mlflow:URI`` for a tracking server
``wandb:DIR``              ``DIR/wandb/offline-run-*``: nothing is sent; ``wandb sync`` uploads it
=========================  =============================================================================================

Curves are called ``STAGE/TERM`` and run over the steps of their stage; what is known after the fit is called ``final/NAME``.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from normalcy.errors import NormalcyWarning, SettingsError
from normalcy.files import make_folder, write_bytes
from normalcy.training.log import Record

PACKAGES = {"csv": "", "tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
"""Kind of destination -> the package that it needs, which is also the name of normalcy's extra."""
PROJECT = "normalcy"
"""Name of the experiment (MLflow) and of the project (Weights & Biases)."""

Numbers = Mapping[str, float]


class Destination(NamedTuple):
    """Where a run is logged: a kind of ``PACKAGES``, and a folder or the address of a server."""

    kind: str
    place: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.place}"


class Sink(Protocol):
    """One destination of a run."""

    def settings(self, settings: Mapping[str, Any]) -> None: ...
    def log(self, stage: str, step: int, terms: Numbers) -> None: ...
    def close(self, settings: Mapping[str, Any], results: Numbers, finished: bool) -> None: ...


def destinations(specs: Sequence[str], default: Path) -> list[Destination]:
    """Destinations as typed; without a place ``default/KIND``.

    Raises SettingsError for an unknown kind and for one whose package is missing.
    """
    found = []
    for spec in specs:
        kind, _, place = spec.partition(":")
        if kind not in PACKAGES:
            raise SettingsError(
                f"log-to expects KIND or KIND:PLACE with KIND one of {', '.join(PACKAGES)}, got {spec!r}."
            )
        package = PACKAGES[kind]
        if package and find_spec(package) is None:
            raise SettingsError(
                f"log-to {kind} needs the package {package}, which is not installed: pip install 'normalcy[{package}]'."
            )
        is_address = kind == "mlflow" and "://" in place
        found.append(
            Destination(kind, place if is_address else str(Path(place or default / kind).expanduser().absolute()))
        )
    return found


class Tracker:
    """A log (:data:`normalcy.training.log.Log`) that passes records on to every destination.

    A destination that fails during the fit is given up with a warning; the fit goes on.
    """

    def __init__(self, where: Sequence[Destination], settings: Mapping[str, Any], name: str) -> None:
        self._settings = {key: _plain(value) for key, value in settings.items()}
        self._results: dict[str, float] = {}
        self._seen: set[tuple[str, int, frozenset[str]]] = set()
        versions = [_next_version(Path(one.place)) for one in where]
        self._sinks: dict[Destination, Sink] = {}
        for one, version in zip(where, versions):
            try:
                self._sinks[one] = _SINKS[one.kind](one.place, version, name)
                self._sinks[one].settings(self._settings)
            except Exception as error:
                self._close(finished=False)
                raise SettingsError(
                    f"log-to cannot write to {one} ({_one_line(error)}); name another place."
                ) from error

    def __call__(self, record: Record) -> None:
        """Log the loss terms of a record; a resumed fit repeats some, which are logged once."""
        if "step" not in record:
            return
        stage, step = str(record["stage"]), int(record["step"])
        terms = {name: float(value) for name, value in record.items() if name not in _NO_TERMS}
        key = stage, step, frozenset(terms)
        if key not in self._seen:
            self._seen.add(key)
            self._each(lambda sink: sink.log(stage, step, _finite(terms)))

    def results(self, results: Numbers) -> None:
        """Numbers that are known after the fit, such as those of :meth:`normalcy.Detector.outcome`."""
        self._results.update(_finite(results))

    def _close(self, finished: bool) -> None:
        self._each(lambda sink: sink.close(self._settings, self._results, finished))
        self._sinks = {}

    def _each(self, what: Callable[[Sink], None]) -> None:
        for one, sink in list(self._sinks.items()):
            try:
                what(sink)
            except Exception as error:
                del self._sinks[one]
                warnings.warn(f"logging to {one} ended: {_one_line(error)}", NormalcyWarning, stacklevel=4)


@contextmanager
def tracking(
    where: Sequence[str | Destination], settings: Mapping[str, Any], *, name: str = "fit", default: Path | str = "logs"
) -> Iterator[Tracker]:
    """A run in each of the destinations, closed at the end: as finished, or as failed after an error.

    ``settings`` are logged as hyperparameters (:meth:`normalcy.Detector.all_settings`); ``name`` is that of the run where runs
    have one; ``default/KIND`` is the place of a destination that names none.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with tracking([f"csv:{folder}"], {"latent": 64}) as log:
    ...         log({"stage": "fit", "step": 50, "steps": 100, "loss": 0.5})
    ...         log.results({"seconds": 3.0})
    ...     print((Path(folder) / "version_0" / "metrics.csv").read_text())
    final/seconds,fit/loss,step
    ,0.5,50
    3.0,,0
    """
    texts = [one for one in where if isinstance(one, str)]
    given = [*(one for one in where if isinstance(one, Destination)), *destinations(texts, Path(default))]
    tracker = Tracker(given, settings, name)
    finished = False
    try:
        yield tracker
        finished = True
    finally:
        tracker._close(finished)


# -- private ---------------------------------------------------------------------------------------------------------

_NO_TERMS = ("method", "stage", "step", "steps", "event")
"""Keys of a record that are no numbers to draw."""


class _CSV:
    def __init__(self, place: str, version: int, name: str) -> None:
        from lightning_fabric.loggers.csv_logs import CSVLogger

        self.folder = Path(place) / f"version_{version}"
        self.logger = CSVLogger(place, name="", version=version, flush_logs_every_n_steps=1)

    def settings(self, settings: Mapping[str, Any]) -> None:
        self.logger.save()  # makes the folder
        write_bytes(self.folder / "settings.json", (json.dumps(settings, indent=2) + "\n").encode())

    def log(self, stage: str, step: int, terms: Numbers) -> None:
        values: dict[str, Any] = {f"{stage}/{name}": value for name, value in terms.items()}
        self.logger.log_metrics(values, step)

    def close(self, settings: Mapping[str, Any], results: Numbers, finished: bool) -> None:
        if results:
            self.logger.log_metrics(dict[str, Any](_final(results)), 0)
        self.logger.finalize("success" if finished else "failed")


class _TensorBoard:
    def __init__(self, place: str, version: int, name: str) -> None:
        from lightning_fabric.loggers.tensorboard import TensorBoardLogger

        self.logger = TensorBoardLogger(place, name="", version=version, default_hp_metric=False)

    def settings(self, settings: Mapping[str, Any]) -> None:
        rows = "".join(f"| {name} | {value} |\n" for name, value in settings.items())
        self.logger.experiment.add_text("settings", f"| setting | value |\n| --- | --- |\n{rows}")

    def log(self, stage: str, step: int, terms: Numbers) -> None:
        self.logger.log_metrics({f"{stage}/{name}": value for name, value in terms.items()}, step)

    def close(self, settings: Mapping[str, Any], results: Numbers, finished: bool) -> None:
        self.logger.log_hyperparams(dict(settings), _final(results), 0)  # with results, or the table of runs is empty
        self.logger.finalize("success" if finished else "failed")


class _MLflow:
    def __init__(self, place: str, version: int, name: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
        from mlflow import MlflowClient

        for talkative in ("mlflow", "alembic"):  # each table that it makes
            logging.getLogger(talkative).setLevel(logging.WARNING)
        address, artifacts = place, None
        if "://" not in place:
            make_folder(Path(place))
            address, artifacts = f"sqlite:///{place}/mlflow.db", (Path(place) / "artifacts").as_uri()
        self.client = MlflowClient(tracking_uri=address)
        known = self.client.get_experiment_by_name(PROJECT)
        experiment = known.experiment_id if known else self.client.create_experiment(PROJECT, artifacts)
        self.run = self.client.create_run(experiment, run_name=name).info.run_id

    def settings(self, settings: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)) for name, value in settings.items()]
        for start in range(0, len(params), 100):  # the most that it takes at once
            self.client.log_batch(self.run, params=params[start : start + 100])

    def log(self, stage: str, step: int, terms: Numbers) -> None:
        self._metrics({f"{stage}/{name}": value for name, value in terms.items()}, step)

    def close(self, settings: Mapping[str, Any], results: Numbers, finished: bool) -> None:
        self._metrics(_final(results), 0)
        self.client.set_terminated(self.run, "FINISHED" if finished else "FAILED")

    def _metrics(self, numbers: Numbers, step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self.client.log_batch(self.run, [Metric(_word(name), value, now, step) for name, value in numbers.items()])


class _WandB:
    def __init__(self, place: str, version: int, name: str) -> None:
        import wandb

        make_folder(Path(place))
        kept = {key: os.environ.get(key) for key in ("WANDB_CACHE_DIR", "WANDB_ERROR_REPORTING")}
        # its service writes a log to the user's cache, and reports its own errors to its makers
        os.environ.update(WANDB_CACHE_DIR=str(Path(place) / "wandb" / "cache"), WANDB_ERROR_REPORTING="false")
        try:
            quiet = wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                save_code=False,
                root_dir=place,
                x_disable_meta=True,  # the name of the machine and of the user
                x_disable_stats=True,
                x_save_requirements=False,
            )
            self.run: Any = wandb.init(project=PROJECT, name=name, dir=place, mode="offline", settings=quiet)
        finally:
            for key, value in kept.items():
                os.environ.pop(key) if value is None else os.environ.update({key: value})
        self.stages: set[str] = set()

    def settings(self, settings: Mapping[str, Any]) -> None:
        self.run.config.update(dict(settings))

    def log(self, stage: str, step: int, terms: Numbers) -> None:
        if stage not in self.stages:  # wandb's own steps may not start again with each stage
            self.stages.add(stage)
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self.run.log({f"{stage}/step": step, **{f"{stage}/{name}": value for name, value in terms.items()}})

    def close(self, settings: Mapping[str, Any], results: Numbers, finished: bool) -> None:
        self.run.summary.update(_final(results))
        self.run.finish(exit_code=0 if finished else 1)


_SINKS: Mapping[str, Any] = {"csv": _CSV, "tensorboard": _TensorBoard, "mlflow": _MLflow, "wandb": _WandB}


def _final(results: Numbers) -> dict[str, float]:
    return {f"final/{name}": value for name, value in results.items()}


def _finite(numbers: Numbers) -> dict[str, float]:
    """Without infinite thresholds, which no destination can draw."""
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}


def _plain(value: Any) -> str | float | bool:
    """A setting as every destination takes it."""
    return value if isinstance(value, str | int | float | bool) else json.dumps(value)


def _word(name: str) -> str:
    """Letters that MLflow takes in the name of a metric."""
    return re.sub(r"[^\w\-./ :]", "_", name)


def _next_version(folder: Path) -> int:
    """The first N for which neither ``version_N`` nor a later one is in the folder."""
    taken = [int(p.name[8:]) for p in folder.glob("version_*") if p.name[8:].isdecimal()] if folder.is_dir() else []
    return max(taken, default=-1) + 1


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
