"""Several methods on one data set: fit, score, evaluate, and paired tests between them on the same images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from normalcy.data.dataset import DataSet
from normalcy.data.splits import images_to_score, with_split
from normalcy.detector import Detector
from normalcy.errors import DataError, NormalcyError, SettingsError, WriteError
from normalcy.files import Target, make_folder, prepare_target, remove
from normalcy.metrics import delong_test
from normalcy.provenance import versions
from normalcy.remote.urls import public
from normalcy.report import write_comparison, write_report
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


def compare(
    data: DataSet,
    methods: Sequence[str],
    out: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    spec: str | None = None,
    overwrite: bool = False,
    log: Log | None = None,
    on_method: Callable[[str, str], None] | None = None,
) -> Comparison:
    """Fit each method on the normal training images and evaluate it on the test split; one results folder per method.

    ``settings``: see :func:`~normalcy.settings.settings_for_method`. ``on_method`` gets (method, "fit" | "score" | "evaluate"). A
    method that fails is listed with its reason, the others continue. Until the comparison is complete it is kept in
    ``<out>.run``, where the same call continues with the methods that are missing. The paired test against the best is
    DeLong's on image AUROC; the best is the best on these test images, so the comparison describes, it does not select.
    Returns the content of ``compare.json``.

    Raises SettingsError where ``out`` is in use or holds something, or an unfinished comparison of something else is kept, and
    DataError where the images change meanwhile.
    """
    methods = list(dict.fromkeys(methods))
    if not methods:
        raise SettingsError("compare needs at least one method.")
    settings = settings or {}
    own = {name: settings_for_method(name, settings, methods) for name in methods}
    data = with_split(data, int(settings.get("seed", 0)))
    test, split = images_to_score(data, None)
    tell = on_method or (lambda name, step: None)
    with prepare_target(out, overwrite) as target:
        fingerprint = data.fingerprint()
        work = _begun(target, [own, fingerprint, spec, split, versions()])
        rows, failed = [], []
        for name in methods:
            try:
                if not (work / name / REPORT).exists():  # written last
                    tell(name, "fit")
                    detector = Detector(name, **own[name]).fit(data, log=log)
                    tell(name, "score")
                    score_into(detector, test, work / name, spec=spec, split=split, overwrite=True)
                    tell(name, "evaluate")
                    evaluate(work / name)
                    write_report(work / name, dataset=test)
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


def _begun(target: Target, identity: Sequence[object]) -> Path:
    """The folder of the unfinished comparison with this identity; made where it is missing."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]
    work = target.unfinished / digest
    if any(path != work for path in target.unfinished.glob("*")):
        if not target.overwrite:
            raise SettingsError(
                f"{target.unfinished} holds an unfinished comparison of other images, methods or settings: repeat that "
                "command to continue it, or pass --overwrite to start again."
            )
        remove(target.unfinished)
    make_folder(work)
    return work


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
    place = {path: i for i, path in enumerate(ours.paths) if ours.labels[i] >= 0}
    both = [(place[path], j) for j, path in enumerate(theirs.paths) if path in place]
    mine, other = map(list, zip(*both))
    test = delong_test(ours.labels[mine], theirs.scores[other], ours.scores[mine])
    return Paired(best, test.difference, test.low, test.high, test.p)
