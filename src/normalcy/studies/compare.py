"""Several methods on one data set: fit, score, evaluate, and paired tests between them on the same images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from normalcy.data.dataset import DataSet
from normalcy.data.splits import images_to_score, with_split
from normalcy.detector import Detector
from normalcy.errors import NormalcyError, SettingsError
from normalcy.files import refuse_existing
from normalcy.metrics import delong_test
from normalcy.report import write_comparison, write_report
from normalcy.results.comparison import COMPARISON, Compared, ComparedData, Comparison, MethodFailure, Paired
from normalcy.results.evaluate import evaluate
from normalcy.results.folder import ResultsFolder, read_results
from normalcy.results.predict import score_into
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
    method that fails is listed with its reason, the others continue. The paired test against the best is DeLong's on image
    AUROC; the best is the best on these test images, so the comparison describes, it does not select. Returns the content of
    ``compare.json``.
    """
    methods = list(dict.fromkeys(methods))
    if not methods:
        raise SettingsError("compare needs at least one method.")
    settings = settings or {}
    own = {name: settings_for_method(name, settings, methods) for name in methods}
    data = with_split(data, int(settings.get("seed", 0)))
    test, split = images_to_score(data, None)
    refuse_existing(out, overwrite)
    rows: list[Compared] = []
    failed = []
    tell = on_method or (lambda name, step: None)
    for name in methods:
        try:
            tell(name, "fit")
            detector = Detector(name, **own[name]).fit(data, log=log)
            tell(name, "score")
            run = score_into(detector, test, out / name, spec=spec, split=split, overwrite=overwrite)
            tell(name, "evaluate")
            found = evaluate(out / name)
            write_report(out / name, dataset=test)
        except NormalcyError as error:
            failed.append(MethodFailure(name, str(error)))
            continue
        rows.append(
            Compared(
                name=name,
                settings=own[name],
                auroc=found.image.auroc,
                pixel_auroc=None if found.pixel is None else found.pixel.auroc,
                aupro=None if found.pixel is None else found.pixel.aupro,
                at_threshold=found.image.at_threshold,
                fit_seconds=None if run.model.fit is None else run.model.fit.seconds,
                images_per_second=run.images_per_second,
                folder=name,
            )
        )
    if not rows:
        raise NormalcyError("No method could be compared: " + "; ".join(f"{f.name}: {f.reason}" for f in failed))
    about = ComparedData(data.name, spec, data.fingerprint(), len(test))
    comparison = as_read(_with_tests(out, Comparison(about, tuple(rows), tuple(failed))))
    Writer(out).bytes(COMPARISON, dumps(comparison))
    write_comparison(out)
    return comparison


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
