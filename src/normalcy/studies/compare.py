"""Several methods on one data set: fit, score, evaluate, and paired tests between them on the same images."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from normalcy.data.dataset import DataSet
from normalcy.data.splits import images_to_score, with_split
from normalcy.detector import Detector
from normalcy.errors import DataError, NormalcyError, SettingsError, WriteError
from normalcy.files import prepare_target, remove
from normalcy.metrics import delong_test
from normalcy.nets.pooled import kept_features
from normalcy.provenance import versions
from normalcy.remote.urls import public
from normalcy.report import write_comparison, write_report
from normalcy.results.cluster import connected, each
from normalcy.results.comparison import COMPARISON, Compared, ComparedData, Comparison, MethodFailure, Paired
from normalcy.results.evaluate import evaluate
from normalcy.results.folder import ResultsFolder, read_results
from normalcy.results.metrics import read_metrics
from normalcy.results.names import REPORT
from normalcy.results.predict import score_into
from normalcy.results.run import read_run
from normalcy.results.schema import as_read, dumps
from normalcy.results.writer import Writer
from normalcy.settings import settings_for_method
from normalcy.training.log import Log

__all__ = ["compare"]


def compare(
    data: DataSet,
    methods: Sequence[str],
    out: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    spec: str | None = None,
    overwrite: bool = False,
    log: Log | None = None,
    ray: str | None = None,
    opening: Callable[[], DataSet] | None = None,
    on_method: Callable[[str, str], None] | None = None,
) -> Comparison:
    """Fit each method on the normal training images and evaluate it on the test split; one results folder per method.

    ``settings``: see :func:`~normalcy.settings.settings_for_method`. ``on_method`` gets (method, "fit" | "score" | "evaluate"). A
    method that fails is listed with its reason, the others continue. Until the comparison is complete it is kept in
    ``<out>.run``, where the same call continues with the methods that are missing. The paired test against the best is
    DeLong's on image AUROC; the best is the best on these test images, so the comparison describes, it does not select.
    Returns the content of ``compare.json``.

    ``ray``: address of a Ray cluster whose workers have a method each (see :mod:`normalcy.results.cluster`); they open the data
    by ``opening``, which can be pickled.

    Raises SettingsError where ``out`` is in use or holds something, or an unfinished comparison of something else is kept, and
    DataError where the images change meanwhile.
    """
    methods = list(dict.fromkeys(methods))
    if not methods:
        raise SettingsError("compare needs at least one method.")
    settings = settings or {}
    own = {name: settings_for_method(name, settings, methods) for name in methods}
    seed = int(settings.get("seed", 0))
    data = with_split(data, seed)
    test, split = images_to_score(data, None)
    tell = on_method or (lambda name, step: None)
    with prepare_target(out, overwrite) as target, kept_features():
        fingerprint = data.fingerprint()
        identity = [own, fingerprint, spec, split, versions()]
        work = target.begin(identity, "comparison", "images, methods or settings")
        rows, failed = [], []
        pending = [name for name in methods if not (work / name / REPORT).exists()]  # written last
        if ray is None:
            made = _in_turn(pending, _Method(data, test, split, spec, own, work, log), tell)
        else:
            if opening is None:
                raise SettingsError("compare: work on a cluster needs opening, by which workers open the data.")
            made = _on_cluster(pending, _Opening(opening, seed, own, spec, work), ray)
        reasons = {name: error for name, error in made if error is not None}
        for name in methods:
            try:
                if name in reasons:
                    raise reasons[name]
                rows.append(_row(work, name, own[name]))
            except WriteError:
                raise
            except NormalcyError as error:
                failed.append(MethodFailure(name, str(error)))
        if not rows or data.fingerprint() != fingerprint:
            remove(target.unfinished)
        if not rows:
            raise NormalcyError("No method could be compared: " + "; ".join(f"{f.name}: {f.reason}" for f in failed))
        if not work.exists():
            raise DataError(f"The images of {data.name} changed while methods were compared on them: compare again.")
        about = ComparedData(data.name, None if spec is None else public(spec), fingerprint, len(test))
        comparison = as_read(_with_tests(work, Comparison(about, tuple(rows), tuple(failed))))
        Writer(work).bytes(COMPARISON, dumps(comparison))
        write_comparison(work)
        target.put(work)
        remove(target.unfinished)
    return comparison


# -- private -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Method:
    """Fits a method, scores the test images and evaluates it, into a folder of its own in ``work``."""

    data: DataSet
    test: DataSet
    split: str | None
    spec: str | None
    settings: Mapping[str, Mapping[str, Any]]
    work: Path
    log: Log | None = None

    def __call__(self, name: str, tell: Callable[[str, str], None]) -> None:
        folder = self.work / name
        tell(name, "fit")
        detector = Detector(name, **self.settings[name]).fit(self.data, log=self.log)
        tell(name, "score")
        score_into(detector, self.test, folder, spec=self.spec, split=self.split, overwrite=True)
        tell(name, "evaluate")
        evaluate(folder)
        write_report(folder, dataset=self.test)


@dataclass(frozen=True)
class _Opening:
    """Opens the data in a worker of a cluster."""

    open: Callable[[], DataSet]
    seed: int
    settings: Mapping[str, Mapping[str, Any]]
    spec: str | None
    work: Path

    def __call__(self) -> Callable[[str, object], None]:
        data = with_split(self.open(), self.seed)
        test, split = images_to_score(data, None)
        make = _Method(data, test, split, self.spec, self.settings, self.work)
        return lambda name, on_done: make(name, lambda name, step: None)


def _in_turn(
    names: Sequence[str], make: _Method, tell: Callable[[str, str], None]
) -> Iterator[tuple[str, NormalcyError | None]]:
    """Each method with the reason why it failed."""
    for name in names:
        try:
            make(name, tell)
            yield name, None
        except NormalcyError as error:
            if isinstance(error, WriteError):
                raise
            yield name, error


def _on_cluster(names: Sequence[str], opening: _Opening, address: str) -> Iterator[tuple[str, NormalcyError | None]]:
    if not names:
        return
    with connected(address) as ray:
        yield from each(ray, opening, deque(names))


def _row(out: Path, name: str, settings: Mapping[str, Any]) -> Compared:
    run, found = read_run(out / name), read_metrics(out / name)
    return Compared(
        name=name,
        settings=settings,
        auroc=found.image.auroc,
        pixel_auroc=None if found.pixel is None else found.pixel.auroc,
        aupro=None if found.pixel is None else found.pixel.aupro,
        at_threshold=found.image.at_threshold,
        fit_seconds=None if run.model.fit is None else run.model.fit.seconds,
        images_per_second=run.images_per_second,
        folder=name,
        classes=found.classes,
        class_mean=found.class_mean,
    )


def _with_tests(out: Path, comparison: Comparison) -> Comparison:
    """With DeLong's test of every method against the one with the highest image AUROC."""
    best = comparison.ranked()[0]
    if best.area is None:
        return comparison
    ours = read_results(out / best.folder)
    tested = [
        one
        if one is best or one.area is None
        else replace(one, against_best=_paired(best.name, ours, read_results(out / one.folder)))
        for one in comparison.methods
    ]
    return replace(comparison, methods=tuple(tested))


def _paired(best: str, ours: ResultsFolder, theirs: ResultsFolder) -> Paired:
    """On the images that both scored."""
    places = theirs.paths.places_in(ours.paths)
    other = np.flatnonzero((places >= 0) & (ours.labels[places] >= 0))
    mine = places[other]
    test = delong_test(ours.labels[mine], theirs.scores[other], ours.scores[mine])
    return Paired(best, test.difference, test.low, test.high, test.p)
