"""Which of the training images look anomalous? For training sets that may not all be normal.

A method learns from all of them and scores them. A method that separates a sparse part from each image (``rda``) is made for
that: outliers go into the sparse part, which it does not learn. Other methods may have memorised the images they are asked
about (a memory bank holds the image itself), so they score each image by a fit that has seen neither it nor its case: ``folds``
fits, each with a part left out.

Fits differ in scale, so a score here is counted in robust standard deviations: (s - median) / d over the images that one fit
scores, d = 1.4826 times the median distance of the upper half from the median (so a long tail below does not matter; where that
is 0, 1.2533 times the mean distance, Iglewicz and Hoaglin 1993). Suspicious is, by choice,

- ``robust``: above 3.5, the bound of Iglewicz and Hoaglin. No fraction is assumed, and none is guaranteed: scores of normal
  images have tails of many kinds, so look at the list from the top;
- ``fraction``: as many of the highest scores as are expected to be anomalous.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from normalcy.arrays import Float64
from normalcy.calibrate import Decision
from normalcy.data.dataset import DataSet, Failure
from normalcy.data.open import as_dataset
from normalcy.data.splits import folds as part_cases
from normalcy.data.splits import normal_training_images
from normalcy.detector import Detector
from normalcy.errors import SettingsError
from normalcy.files import prepare_target
from normalcy.methods import get
from normalcy.report import write_report
from normalcy.results.names import readable
from normalcy.results.predict import predict
from normalcy.results.run import AuditRun, SparseFit, describe
from normalcy.results.writer import Writer, refuse_inputs
from normalcy.scoring import Result

__all__ = ["Audit", "Suspect", "audit"]

BAR = 3.5
SUSPICIOUS = "suspicious.csv"


@dataclass(frozen=True)
class Suspect:
    """A training image that looks anomalous."""

    path: str
    case: str
    score: float
    """Robust standard deviations above the median training image."""


@dataclass(frozen=True)
class Audit:
    """The result of an audit."""

    images: int
    """Training images that were scored."""
    suspects: Sequence[Suspect]
    """Highest score first."""
    rule: str
    threshold: float
    """Suspicious is a score above it."""
    path: Sequence[SparseFit]
    """For each weight of the sparse part that was tried, in the order given."""
    failed: Sequence[Failure]
    """Images that could not be read."""


def audit(
    data: Any,
    out: Path | str,
    method: str = "rda",
    *,
    settings: Mapping[str, Any] | None = None,
    fraction: float | None = None,
    weights: Sequence[float] = (),
    folds: int | None = None,
    show: int = 100,
    spec: str | None = None,
    overwrite: bool = False,
    on_step: Callable[[str], None] | None = None,
) -> Audit:
    """Score the training images of ``data`` (of the training split where there is one) into the results folder ``out``.

    Beside the files of every results folder (maps, restored images and S of the ``show`` highest-scoring images alone) it has
    ``suspicious.csv`` (path, case, score; highest score first) and ``report.html``. Labels play no part; images that are labelled
    anomalous are left out, as no method here learns from them.

    ``fraction``: expected fraction of anomalous images, in (0, 0.5]. ``weights``: values of the weight of the sparse part (RDA's
    lambda); the one whose fraction of images with a sparse part is nearest to ``fraction`` is taken. ``folds``: fits that each
    leave out a part of the images and score it; 1 scores all images by one fit to all. Default 1 for a method with a sparse
    part, else 5.

    Raises SettingsError for choices that do not go together, DataError for images that cannot be used.
    """
    out = Path(out)
    cls = get(method)
    given = {**cls.audit_settings, **(settings or {})}
    folds = folds if folds is not None else 1 if cls.sparse_weight else 5
    _check(method, given, fraction, weights, folds, show)
    given["calibration"] = 0.0
    prepare_target(out, overwrite)
    data = as_dataset(data)
    refuse_inputs(out, data)
    images = normal_training_images(data)
    images = images.with_items([replace(item, label=None) for item in images.items])
    tell = on_step or (lambda what: None)

    candidates = [{cls.sparse_weight: float(weight)} for weight in weights] or [{}]
    tried = [list(_fitted(method, {**given, **weight}, images, folds, tell)) for weight in candidates]
    sparse = [_sparse_fit(parts) for parts in tried]
    path = tuple(fit for fit in sparse if fit is not None) if weights else ()
    k = min(range(len(path)), key=lambda i: abs(path[i].with_sparse_part - (fraction or 0))) if path else 0
    chosen = tried[k]
    of_image = {image: score for part in chosen for image, score in part.scores.items()}
    decision = _decide(np.array(list(of_image.values())), fraction)
    threshold = cast("float", decision.threshold)
    ranked = np.sort(list(of_image.values()))[::-1]
    lowest = -math.inf if show >= len(ranked) else float(ranked[show])
    cases = {item.path: item.case for item in images.items}
    falling = sorted(of_image.items(), key=lambda one: -one[1])
    suspects = [Suspect(image, cases[image], score) for image, score in falling if score > threshold]

    def finish(folder: Path) -> None:
        rows = [(readable(s.path), readable(s.case), repr(s.score)) for s in suspects]
        Writer(folder).csv(SUSPICIOUS, ("path", "case", "score"), rows)
        write_report(folder, images)

    tell("writing")
    split = "train" if any(item.split for item in images.items) else None
    run = describe(chosen[0].detector, images, decision, spec=spec, split=split)
    facts = AuditRun(folds, fraction, **({} if sparse[k] is None else vars(sparse[k])), path=path)
    run = predict(
        _results(chosen, of_image, decision),
        replace(run, audit=facts),
        images,
        out,
        maps=lambda result: result.score > lowest,
        records=chosen[0].detector.records,
        overwrite=overwrite,
        finish=finish,
    )
    return Audit(len(of_image), suspects, decision.rule, threshold, path, run.data.failed)


def robust_deviations(scores: Float64) -> Float64:
    """(s - median) / d, see above; 0 for scores that are all the same.

    >>> robust_deviations(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 60.0])).round(2)
    array([-1.12, -0.67, -0.22,  0.22,  0.67, 25.41])
    """
    above = scores - np.median(scores)
    upper = np.sort(above)[len(above) // 2 :]
    scale = 1.4826 * float(np.median(upper)) or 1.2533 * float(upper.mean())
    return above / scale if scale > 0 else np.zeros_like(above)


# -- private ---------------------------------------------------------------------------------------------------------


def _check(
    method: str,
    settings: Mapping[str, Any],
    fraction: float | None,
    weights: Sequence[float],
    folds: int,
    show: int,
) -> None:
    if fraction is not None and not 0 < fraction <= 0.5:
        raise SettingsError(f"audit expects a fraction of anomalous images in (0, 0.5], got {fraction}.")
    if folds < 1 or show < 0:
        raise SettingsError(f"audit expects at least 1 fold and no negative number to show, got {folds} and {show}.")
    if float(settings.get("calibration", 0)) or "false_alarms" in settings:
        raise SettingsError("audit scores the training images themselves: there is nothing to calibrate on.")
    if weights and not get(method).separates(settings):
        raise SettingsError(
            "weights are values of lambda of rda with penalty images or l1 (or of another method with a sparse part of each "
            f"image), got the method {method}; leave them out."
        )
    if weights and fraction is None:
        raise SettingsError("To choose among weights, audit needs the fraction of anomalous images that you expect.")


@dataclass(frozen=True)
class _Part:
    """A fit, the images that it scores, and their scores."""

    detector: Detector
    images: DataSet
    scores: dict[str, float]
    """Robust standard deviations, by path."""
    with_sparse_part: float | None
    """Fraction of the images whose sparse part is not 0, for a method with one."""


def _fitted(
    method: str, settings: Mapping[str, Any], images: DataSet, folds: int, tell: Callable[[str], None]
) -> Iterator[_Part]:
    everything = np.arange(len(images))
    parts = part_cases(images.cases, folds, int(settings.get("seed", 0))) if folds > 1 else [everything]
    weight = get(method).sparse_weight
    for number, part in enumerate(parts, start=1):
        detector = Detector(method, **settings)
        tell(f"fit {number} of {folds}" + (f", lambda {getattr(detector.settings, weight):g}" if weight else ""))
        detector.fit(images if folds == 1 else images.subset(np.setdiff1d(everything, part)))
        own = images.subset(part)
        raw: dict[str, float] = {}
        sparse = []
        for r in detector.stream(own):
            if isinstance(r, Result):
                raw[r.path] = r.score
                if weight:
                    sparse.append(bool(r.extra_maps["sparse"].any()))
        deviations = robust_deviations(np.array(list(raw.values()))) if raw else np.zeros(0)
        yield _Part(detector, own, dict(zip(raw, deviations.tolist())), float(np.mean(sparse)) if sparse else None)


def _sparse_fit(parts: Sequence[_Part]) -> SparseFit | None:
    """Fraction of the images with a sparse part over all fits, and how the first fit converged; None for other methods."""
    fractions = [part.with_sparse_part for part in parts if part.with_sparse_part is not None]
    method = parts[0].detector.method
    if method is None or not fractions:
        return None
    return SparseFit(getattr(method.settings, method.sparse_weight), float(np.mean(fractions)), **method.convergence())


def _decide(scores: Float64, fraction: float | None) -> Decision:
    if fraction is None:
        return Decision("robust", BAR)
    count = max(1, round(fraction * len(scores)))
    falling = np.sort(scores)[::-1]
    return Decision("fraction", float(falling[count]) if count < len(falling) else -math.inf)


def _results(parts: Sequence[_Part], of_image: Mapping[str, float], decision: Decision) -> Iterator[Result | Failure]:
    """All images of all parts, fit by fit, each scored by its fit in robust standard deviations."""
    for part in parts:
        for r in part.detector.stream(part.images):
            if isinstance(r, Result):
                score = of_image[r.path]
                latent = r.latent if len(parts) == 1 else None  # codes of different fits have nothing in common
                r = replace(r, score=score, flagged=decision.flags(score, None), latent=latent)
            yield r
