"""Settings chosen by a few anomalies, for any method: section III-C, "weakly supervised", of DPA (Shvetsova et al. 2021).

The normal training images are split in three parts, the anomalies too. With each of three fits a part of the normal images is
left out and ranked against each part of the anomalies: nine AUROC, whose mean is to be as large as possible. The anomalies
take part in nothing but this choice; images of the test split are refused. (The paper has three of these nine: part k of
the normal images against part k of the anomalies.) Without anomalies, ``"synthetic"`` plants defects in the left-out images.

Where a method stops early, each fit watches a fifth of its own normal images, as the authors' code does, and the mean over the
fits of the best number of steps becomes the length of the final training (``Method.length_setting``), in place of fixed
``steps`` or ``epochs``.

Optuna searches what the method declares (``Method.search``) or what is asked for. After each fit a setting that is below the
median of earlier ones at the same point is given up. The study lies in a database: a second call resumes it, and several
workers can share it. Everything is written to ``out``: ``study.db``, ``trials.csv``, ``select.json``, ``best.toml``,
``report.html``.
"""

from __future__ import annotations

import json
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from normalcy import config
from normalcy.arrays import Array, Float64, Mask
from normalcy.data.dataset import DataSet, Item
from normalcy.data.kinds import range_of
from normalcy.data.open import as_dataset
from normalcy.data.splits import folds, normal_training_images, with_split
from normalcy.data.synthetic import SYNTHETIC, make
from normalcy.detector import Detector
from normalcy.errors import DataError, NormalcyError, SettingsError, WriteError
from normalcy.files import make_folder
from normalcy.methods import get
from normalcy.metrics import auroc
from normalcy.report.selection import write_selection
from normalcy.results.cluster import connected, each
from normalcy.results.schema import Count, Rate, dumps
from normalcy.results.writer import Writer
from normalcy.settings import COMMON

__all__ = ["Selection", "select", "synthetic_anomalies"]

FOLDS = 3
WATCHED = 0.2
"""Fraction of the images of a fit on which it stops early."""
AT_FIRST = 5
"""Trials before one can be given up."""
JOURNAL = "journal"
"""Scheme of the URL of a file that Optuna appends to."""
GIVEN = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED, optuna.trial.TrialState.FAIL)


@dataclass(frozen=True)
class Trial:
    """One setting tried."""

    number: int
    settings: Mapping[str, Any]
    state: Literal["complete", "given up", "failed"]
    aurocs: Float64
    """(fits done, 3): part of the normal images left out x part of the anomalies."""
    reason: str = ""
    """Why it failed."""
    steps: tuple[int, ...] = ()
    """Of each fit, the steps of the stage that stops early at its lowest loss on held-out images; empty without such a stage."""

    @property
    def mean(self) -> float:
        return float(self.aurocs.mean()) if self.aurocs.size else math.nan

    @property
    def length(self) -> int | None:
        """Mean of ``steps``."""
        return round(sum(self.steps) / len(self.steps)) if self.steps else None

    @property
    def standard_deviation(self) -> float:
        """Over the folds."""
        return float(self.aurocs.std(ddof=1)) if self.aurocs.size > 1 else math.nan

    def summary(self) -> str:
        settings = ", ".join(f"{name}={_text(value)}" for name, value in self.settings.items())
        if self.state == "failed":
            return f"{settings}: {self.reason}"
        return f"{settings}: AUROC {self.mean:.3f} +- {self.standard_deviation:.3f}{' (given up)' * (self.state == 'given up')}"


Aurocs = tuple[tuple[Rate, ...], ...]


@dataclass(frozen=True)
class SelectionRecord:
    """The content of ``select.json``."""

    method: str
    best: Mapping[str, str]
    """The best settings, those that were searched."""
    auroc: Rate
    """Mean over the folds."""
    standard_deviation: float | None
    """Over the folds."""
    aurocs: Aurocs
    """Part of the normal images left out x part of the anomalies."""
    default_aurocs: Aurocs | None
    """Of the method's own settings."""
    normal_images: Count
    anomalies: Count
    synthetic: bool
    trials: Count
    chosen_on: tuple[str, ...] = ()
    """The anomalies, as hashes of their content: no test images of a model with these settings."""
    steps: Count | None = None
    """Of the stage that stops early: mean over the fits of the best number."""


@dataclass(frozen=True)
class Selection:
    """The result of a search."""

    method: str
    trials: Sequence[Trial]
    """All, in order; number 0 has the method's own settings."""
    best: Trial
    default: Trial | None
    """The method's own settings, where they were tried to the end."""
    normal: int
    anomalies: int
    synthetic: bool
    chosen_on: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """The best settings, those that were searched."""
        return dict(self.best.settings)

    def record(self) -> SelectionRecord:
        best = self.best
        return SelectionRecord(
            method=self.method,
            best={name: _text(value) for name, value in self.settings.items()},
            auroc=best.mean,
            standard_deviation=best.standard_deviation,
            aurocs=tuple(map(tuple, best.aurocs.tolist())),
            default_aurocs=None if self.default is None else tuple(map(tuple, self.default.aurocs.tolist())),
            normal_images=self.normal,
            anomalies=self.anomalies,
            synthetic=self.synthetic,
            trials=len(self.trials),
            chosen_on=self.chosen_on,
            steps=self.best.length,
        )

    def gain(self) -> tuple[float, float, int] | None:
        """Best minus default on the same folds: mean, standard deviation, and in how many folds the best is ahead."""
        if self.default is None:
            return None
        difference = self.best.aurocs - self.default.aurocs
        return float(difference.mean()), float(difference.std(ddof=1)), int((difference > 0).sum())

    def summary(self) -> str:
        """How good the choice is and how sure."""
        kind = "synthetic anomalies" if self.synthetic else "anomalies"
        text = (
            f"Best of {len(self.trials)} settings of {self.method}: AUROC {self.best.mean:.3f} +- "
            f"{self.best.standard_deviation:.3f} over {self.best.aurocs.size} folds of {self.normal} normal images and "
            f"{self.anomalies} {kind}"
        )
        gain = self.gain()
        if gain is None:
            return f"{text}; the method's own settings were not tried to the end."
        if self.best is self.default:
            return f"{text}; these are the method's own settings."
        unsure = abs(gain[0]) < gain[1]
        judged = (
            "less than its standard deviation, so the choice is not sure"
            if unsure
            else "more than its standard deviation"
        )
        return (
            f"{text}; {gain[0]:+.3f} +- {gain[1]:.3f} against the method's own settings ({judged}; ahead in {gain[2]} of "
            f"{self.best.aurocs.size} folds). It was chosen on these folds, so expect somewhat less."
        )


def select(
    data: Any,
    method: str,
    anomalies: DataSet | Literal["synthetic"],
    out: Path,
    *,
    trials: int = 20,
    space: Mapping[str, Sequence[Any]] | None = None,
    settings: Mapping[str, Any] | None = None,
    storage: str | None = None,
    ray: str | None = None,
    opening: Callable[[], tuple[DataSet, DataSet | Literal["synthetic"]]] | None = None,
    on_trial: Callable[[Trial], None] | None = None,
) -> Selection:
    """Try ``trials`` settings of ``method`` in all, those of earlier calls into the same study included.

    ``data`` gives the normal training images; ``anomalies`` a few images, all taken as anomalous where none is labelled so.
    ``space``: setting -> values to choose from (default: ``Method.search``); the method's own value is always among them,
    and the first trial has all of these. ``settings`` stay as they are. ``storage``: a database URL, or ``journal:///FILE`` for
    a file on a disk that machines share (default SQLite in ``out``, with ``ray`` the journal ``study.log`` in it).

    ``ray``: address of a Ray cluster whose workers try a setting each (see :mod:`normalcy.results.cluster`); they open data and
    anomalies by ``opening``, which can be pickled.

    Raises SettingsError for impossible settings or a study of other data, DataError for too few images or anomalies out of
    the test split, NormalcyError when every trial failed.
    """
    if trials < 1:
        raise SettingsError(f"select: trials must be at least 1, got {trials}.")
    fixed = dict(settings or {})
    make_folder(out)
    storage = storage or (
        f"sqlite:///{out / 'study.db'}" if ray is None else f"{JOURNAL}://{(out / 'study.log').absolute()}"
    )
    with _written(out):
        search = _Search(data, anomalies, method, space, fixed, trials, storage)
        choices, study = search.choices, search.study
        normal_parts, anomaly_parts = search.normal_parts, search.anomaly_parts
        if not study.trials:
            study.enqueue_trial({word: values[0] for word, values in _texts(choices).items()})

        def tell(trial: optuna.trial.FrozenTrial) -> None:
            if on_trial is not None:
                on_trial(_trial(trial, choices))

        missing = trials - sum(t.state in GIVEN for t in study.trials)
        if missing > 0 and ray is None:
            stop = optuna.study.MaxTrialsCallback(trials, states=GIVEN)
            search.run(missing, [stop, lambda _, trial: tell(trial)])
        elif missing > 0:
            if opening is None:
                raise SettingsError("select: work on a cluster needs opening, by which workers open the data.")
            make = _Opening(opening, method, space, fixed, trials, storage, out)
            with connected(str(ray)) as module:
                for _, number in each(module, make, deque(range(missing))):
                    if isinstance(number, NormalcyError):
                        raise number
                    if number is not None:
                        tell(study.trials[number])
        trials_made = study.trials
    tried = [_trial(t, choices) for t in trials_made if t.state in GIVEN]
    complete = [t for t in tried if t.state == "complete"]
    if not complete:
        raise NormalcyError(
            "select: no setting could be tried to the end; the first says: " + (tried[0].reason or "none")
        )
    own = {word: values[0] for word, values in choices.items()}
    selection = Selection(
        method,
        tried,
        best=max(complete, key=lambda t: t.mean),
        default=next((t for t in complete if dict(t.settings) == own), None),
        normal=sum(map(len, normal_parts)),
        anomalies=sum(map(len, anomaly_parts[0])),
        synthetic=isinstance(anomalies, str),
        chosen_on=()
        if isinstance(anomalies, str)
        else tuple(sorted(part.trace(i) for part in anomaly_parts[0] for i in range(len(part)))),
    )
    _write(out, selection, fixed)
    return selection


# -- private ---------------------------------------------------------------------------------------------------------


class _Search:
    """A study, and the objective that is tried in it."""

    def __init__(
        self,
        data: Any,
        anomalies: DataSet | Literal["synthetic"],
        method: str,
        space: Mapping[str, Sequence[Any]] | None,
        fixed: Mapping[str, Any],
        trials: int,
        storage: str,
    ) -> None:
        self.method, self.fixed = method, fixed
        self.choices = _choices(method, space, fixed)
        seed = int(fixed.get("seed", 0))
        self.normal_parts, self.anomaly_parts = _parts(data, anomalies, seed)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = optuna.create_study(
            storage=_storage(storage),
            study_name=f"normalcy-{method}",
            sampler=_sampler(self.choices, trials, seed),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=AT_FIRST),
            direction="maximize",
            load_if_exists=True,
        )
        _check_identity(self.study, method, self.choices, fixed, self.normal_parts, self.anomaly_parts)

    def run(self, trials: int, callbacks: Sequence[Callable[[optuna.Study, optuna.trial.FrozenTrial], None]]) -> None:
        self.study.optimize(self._objective, n_trials=trials, callbacks=callbacks, catch=(NormalcyError,))

    def _objective(self, trial: optuna.Trial) -> float:
        texts = _texts(self.choices)
        chosen = {word: trial.suggest_categorical(word, list(values)) for word, values in texts.items()}
        own = {word: self.choices[word][texts[word].index(text)] for word, text in chosen.items()}
        found: list[list[float]] = []
        steps: list[int] = []
        for k in range(FOLDS):
            rest = _joined([part for j, part in enumerate(self.normal_parts) if j != k])
            try:
                detector = Detector(self.method, **{**self.fixed, **own, "calibration": 0.0})
                detector.fit(rest, stopping=WATCHED)
                normal = detector.score(self.normal_parts[k]).scores
                anomalous = [detector.score(part).scores for part in self.anomaly_parts[k]]
            except NormalcyError as error:
                trial.set_user_attr("reason", str(error))
                raise
            found.append([auroc(np.r_[np.zeros(len(normal)), np.ones(len(s))], np.r_[normal, s]) for s in anomalous])
            steps += _best_step(detector.records)
            trial.set_user_attr("aurocs", found)
            trial.set_user_attr("steps", steps)
            trial.report(float(np.mean(found)), k)
            if k + 1 < FOLDS and trial.should_prune():
                raise optuna.TrialPruned
        return float(np.mean(found))


@dataclass(frozen=True)
class _Opening:
    """Opens data and study in a worker of a cluster, whose tasks are one trial each."""

    open: Callable[[], tuple[DataSet, DataSet | Literal["synthetic"]]]
    method: str
    space: Mapping[str, Sequence[Any]] | None
    fixed: Mapping[str, Any]
    trials: int
    storage: str
    out: Path

    def __call__(self) -> Callable[[object, object], int | None]:
        """What tries a setting and returns the number of the trial; None where none is left."""
        with _written(self.out):
            search = _Search(*self.open(), self.method, self.space, self.fixed, self.trials, self.storage)

        def work(task: object, on_done: object) -> int | None:
            made: list[int] = []
            with _written(self.out):
                search.run(1, [lambda _, trial: made.append(trial.number)])
            return made[0] if made else None

        return work


@contextmanager
def _written(out: Path) -> Iterator[None]:
    """Raises WriteError where the database cannot be written or is not one."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = " ".join(str(getattr(error, "orig", None) or error.__cause__ or error).split())
        raise WriteError(
            f"{out}: the study cannot be kept ({reason[:200]}); free some space, or check its database."
        ) from error


def _storage(url: str) -> optuna.storages.BaseStorage:
    """Of a database URL, or of ``journal:///FILE``."""
    scheme, _, rest = url.partition("://")
    try:
        if scheme == JOURNAL:
            path = Path(rest)
            make_folder(path.parent)
            with warnings.catch_warnings():  # that it is "experimental" is nothing a user can act on
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return JournalStorage(JournalFileBackend(str(path)))
        return optuna.storages.get_storage(url)
    except (ArgumentError, ValueError, ImportError) as error:
        raise SettingsError(
            f"select: the storage {scheme}://... cannot be opened; expected a database URL whose driver is installed, such as "
            f"postgresql+pg8000://user@machine/name, or {JOURNAL}:///FILE."
        ) from error
    except OSError as error:
        if isinstance(error, NormalcyError):
            raise
        raise WriteError(f"{rest}: the study cannot be kept there ({error.strerror}); choose another place.") from error


def _choices(
    method: str, space: Mapping[str, Sequence[Any]] | None, fixed: Mapping[str, Any]
) -> dict[str, tuple[Any, ...]]:
    """Setting -> values to choose from, the one in force without a search first; checked and of the settings' own types."""
    cls = get(method)
    parts = {"method": cls.Settings, **COMMON}
    space = {word: values for word, values in (cls.search if space is None else space).items() if word not in fixed}
    if not space:
        raise SettingsError(
            f"select: {method} declares no settings to search: name some, such as --try latent=16|32|64."
        )

    def read(word: str, value: Any) -> Any:
        given = {**fixed} if value is None else {**fixed, word: value}
        settings = config.assign_settings(given, parts, method)
        owner = next(part for part in settings.values() if word in config.fields_of(type(part)))
        return getattr(owner, word)

    for word in space:
        if not any(word in config.fields_of(part) for part in parts.values()):
            raise config.unknown_setting(word, set().union(*map(config.fields_of, parts.values())), f"select, {method}")
    return {
        word: tuple(dict.fromkeys([read(word, None), *(read(word, value) for value in values)]))
        for word, values in space.items()
    }


def _texts(choices: Mapping[str, Sequence[Any]]) -> dict[str, list[str]]:
    """The same as text, which any database keeps."""
    return {word: [_text(value) for value in values] for word, values in choices.items()}


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _sampler(choices: Mapping[str, Sequence[Any]], trials: int, seed: int) -> optuna.samplers.BaseSampler:
    """All of a space that is no larger than the number of trials, each once; else the tree of Parzen estimators."""
    if math.prod(map(len, choices.values())) <= trials:
        with warnings.catch_warnings():  # that the sampler is "experimental" is nothing a user can act on
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.BruteForceSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=AT_FIRST)


def _parts(
    data: Any, anomalies: DataSet | Literal["synthetic"], seed: int
) -> tuple[list[DataSet], list[list[DataSet]]]:
    """The parts of the normal images, and for each of them the parts of the anomalies that it is ranked against."""
    whole = with_split(as_dataset(data), seed)
    normal = normal_training_images(whole)
    normal_parts = [normal.subset(part) for part in folds(normal.cases, FOLDS, seed)]
    if isinstance(anomalies, str):
        if anomalies != "synthetic":
            raise SettingsError(f'select expects anomalies as a data set or "synthetic", got {anomalies!r}.')
        planted = [synthetic_anomalies(part, seed + k) for k, part in enumerate(normal_parts)]
        return normal_parts, [[p.subset(part) for part in folds(p.cases, FOLDS, seed)] for p in planted]
    anomalous = anomalies.select(label=1) if any(item.label == 1 for item in anomalies.items) else anomalies
    test = {whole.source(i) or item.path for i, item in enumerate(whole.items) if item.split == "test"}
    if anomalies.name == whole.name or anomalies.root is not None:
        shared = [item.path for i, item in enumerate(anomalous.items) if (anomalous.source(i) or item.path) in test]
        if shared:
            raise DataError(
                f"select: {len(shared)} of the anomalies are test images of {whole.name}, as {shared[0]}; test data choose "
                "nothing, so take other anomalies or move these out of the test split."
            )
    parts = [anomalous.subset(part) for part in folds(anomalous.cases, FOLDS, seed)]
    return normal_parts, [parts] * FOLDS


def synthetic_anomalies(data: DataSet, seed: int = 0) -> DataSet:
    """Each image of ``data`` with one planted defect, in its own dtype: the kinds of :mod:`normalcy.data.synthetic` in turn,
    where an image does not allow one (a constant image cannot be mirrored) the next."""
    rng = np.random.default_rng(seed)
    kinds = sorted(SYNTHETIC)
    images, types = [], []
    for i in range(len(data)):
        image = data.read(i)
        low, high = (
            (0.0, float(np.iinfo(image.dtype).max))
            if image.dtype.kind == "u"
            else range_of(image, data.imaged(i, image))
        )
        unit = ((image.astype(np.float32) - low) / max(high - low, 1e-12)).clip(0, 1)
        for kind in [*kinds[i % len(kinds) :], *kinds[: i % len(kinds)]]:
            try:
                changed, _ = make(unit, kind, rng, area=0.02)
                break
            except DataError as error:
                reason = error
        else:
            raise reason
        types.append(kind)
        back = changed.astype(np.float64) * (high - low) + low
        images.append((back.round() if image.dtype.kind in "ui" else back).astype(image.dtype))
    items = [Item(f"synthetic/{i:05}", item.case, label=1, type=types[i]) for i, item in enumerate(data.items)]
    roi = data.own_roi if data.has_rois else None
    return DataSet(f"{data.name} with planted defects", items, lambda i: images[i], roi=roi)


def _joined(parts: Sequence[DataSet]) -> DataSet:
    """Several sets, whose items count as normal training images, as one."""
    items = [replace(item, split=None, label=0) for part in parts for item in part.items]
    places = [(part, i) for part in parts for i in range(len(part))]

    def read(i: int) -> Array:
        part, inside = places[i]
        return part.read(inside)

    def roi(i: int) -> Mask | None:
        part, inside = places[i]
        return part.own_roi(inside)

    return DataSet(parts[0].name, items, read, roi=roi if any(part.has_rois for part in parts) else None)


def _check_identity(
    study: optuna.Study,
    method: str,
    choices: Mapping[str, Sequence[Any]],
    fixed: Mapping[str, Any],
    normal: Sequence[DataSet],
    anomalous: Sequence[Sequence[DataSet]],
) -> None:
    """A study that goes on must be about the same images and choices."""
    identity = {
        "method": method,
        "choices": json.dumps(_texts(choices), sort_keys=True),
        "settings": json.dumps({word: _text(value) for word, value in fixed.items()}, sort_keys=True),
        "images": ",".join(part.fingerprint() for part in normal),
        "anomalies": ",".join(part.fingerprint() for part in anomalous[0]),
    }
    for what, value in identity.items():
        before = study.user_attrs.get(what)
        if before is None:
            study.set_user_attr(what, value)
        elif before != value:
            raise SettingsError(
                f"select: the study there is about other {what} ({before}, now {value}): give another folder or storage."
            )


def _trial(trial: optuna.trial.FrozenTrial, choices: Mapping[str, Sequence[Any]]) -> Trial:
    texts = _texts(choices)
    state: Literal["complete", "given up", "failed"] = "failed"
    if trial.state == optuna.trial.TrialState.COMPLETE:
        state = "complete"
    elif trial.state == optuna.trial.TrialState.PRUNED:
        state = "given up"
    settings = {name: choices[name][texts[name].index(text)] for name, text in trial.params.items()}
    aurocs = np.array(trial.user_attrs.get("aurocs", []), np.float64).reshape(-1, FOLDS)
    steps = tuple(trial.user_attrs.get("steps", ()))
    return Trial(trial.number, settings, state, aurocs, trial.user_attrs.get("reason", ""), steps)


def _best_step(records: Sequence[Mapping[str, Any]]) -> list[int]:
    """The step of the lowest loss on held-out images in the last stage that looks at it; none where none does."""
    looks = [record for record in records if "held_out_loss" in record]
    last = [record for record in looks if record["stage"] == looks[-1]["stage"]]
    return [min(last, key=lambda record: record["held_out_loss"])["step"]] if last else []


def _write(out: Path, selection: Selection, fixed: Mapping[str, Any]) -> None:
    ranked = sorted(
        selection.trials, key=lambda t: (t.state != "complete", -t.mean if t.aurocs.size else 1.0, t.number)
    )
    best = {name: _text(value) for name, value in selection.settings.items()}
    head = ["trial", *best, "state", "auroc", "standard_deviation", "folds"]
    rows: list[list[str | int]] = [
        [
            t.number,
            *(_text(t.settings.get(name, "")) for name in best),
            t.state if not t.reason else f"{t.state}: {t.reason}",
            *(("", "") if not t.aurocs.size else (f"{t.mean:.4f}", f"{t.standard_deviation:.4f}")),
            t.aurocs.size,
        ]
        for t in ranked
    ]
    writer = Writer(out)
    writer.csv("trials.csv", head, rows)
    settings = {**fixed, **selection.settings}
    if length := selection.best.length:  # a total of all stages would change it, or contradict it
        settings = {name: value for name, value in settings.items() if name not in ("steps", "epochs")}
        settings[get(selection.method).length_setting] = length
    toml = config.write_toml({"method": selection.method, **settings})
    writer.bytes("best.toml", f"# {selection.summary()}\n{toml}".encode())
    writer.bytes("select.json", dumps(selection.record()))
    write_selection(out, selection.method, selection.summary(), best, selection.best.aurocs, head, rows)
