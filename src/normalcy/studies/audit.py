"""Which of the training images look anomalous? For training sets that may not be all normal.

A method learns from all of them and scores them. ``rda`` is made for that: it learns from what it can say of the images and
puts the rest aside. Other methods may have learnt by heart what they are asked about (a memory bank holds the image itself),
so they score each image by a fit that has not seen it, nor its case: ``folds`` fits, each with a part left out.

Fits differ in scale, so a score here is counted in robust deviations: (s - median) / d over the images that one fit answers
for, d = 1.4826 times the median distance of the upper half from the median (so a long tail below does not matter; where that
is 0, 1.2533 times the mean distance, Iglewicz and Hoaglin 1993). Suspicious is, by choice,

- ``robust``: above 3.5, the bound of Iglewicz and Hoaglin. No share is assumed, and none is promised: scores of normal images
  have tails of many kinds, so look at the list from the top;
- ``share``: as many of the highest scores as are expected to be anomalous.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from normalcy.arrays import Float64
from normalcy.calibrate import Decision
from normalcy.data.dataset import DataSet
from normalcy.data.open import as_dataset
from normalcy.data.splits import folds as part_cases
from normalcy.data.splits import normal_training_images
from normalcy.detector import Detector
from normalcy.errors import SettingsError
from normalcy.files import refuse_existing, write_bytes
from normalcy.methods.rda import RDA
from normalcy.report import write_report
from normalcy.results.predict import predict
from normalcy.scoring import Result

BAR = 3.5
SUSPICIOUS = "suspicious.csv"


@dataclass(frozen=True)
class Suspect:
    """A training image that looks anomalous."""

    path: str
    case: str
    score: float
    """Robust deviations above the median training image."""


@dataclass(frozen=True)
class Audit:
    """What an audit found."""

    images: int
    """Training images that were scored."""
    suspects: Sequence[Suspect]
    """The strangest first."""
    rule: str
    threshold: float
    """Suspicious is a score above it."""
    path: Sequence[Mapping[str, Any]]
    """For each lambda of RDA that was tried: ``weight``, ``with_sparse_part`` (share of the images), ``rounds`` and
    ``constraint`` (c1, see :mod:`normalcy.methods.rda`)."""
    failed: Sequence[tuple[str, str]]
    """Images that could not be read, with the reason."""


def audit(
    data: Any,
    out: Path | str,
    method: str = "rda",
    *,
    words: Mapping[str, Any] | None = None,
    share: float | None = None,
    weights: Sequence[float] = (),
    folds: int | None = None,
    show: int = 100,
    spec: str | None = None,
    data_root: Path | None = None,
    overwrite: bool = False,
    on_step: Callable[[str], None] | None = None,
) -> Audit:
    """Score the training images of ``data`` (of the training split where there is one) into the results folder ``out``.

    Beside the files of every results folder (maps, restored images and S of the ``show`` strangest images alone) it has
    ``suspicious.csv`` (path, case, score; the strangest first) and ``report.html``. Labels play no part; images that are labelled
    anomalous are left out, as no method here learns from them.

    ``share``: expected share of anomalous images, in (0, 0.5]. ``weights``: values of RDA's lambda; the one whose share of
    images with a sparse part is nearest to ``share`` is taken. ``folds``: fits that each leave out a part of the images and
    score it; 1 scores all images by one fit to all. Default 1 for ``rda``, else 5.

    Raises SettingsError for choices that do not go together, DataError for images that cannot be used.
    """
    out, words = Path(out), dict(words or {})
    folds = folds if folds is not None else 1 if method == "rda" else 5
    _check(method, share, weights, folds, show, words)
    refuse_existing(out, overwrite)
    images = normal_training_images(as_dataset(data))
    images = images.with_items([replace(item, label=None) for item in images.items])
    if method == "rda":
        words.setdefault("penalty", "images")
    words["calibration"] = 0.0
    tell = on_step or (lambda what: None)

    tried = [
        list(_fitted(method, {**words, **lambdas}, images, folds, tell))
        for lambdas in [{"weight": float(weight)} for weight in weights] or [{}]
    ]
    entries = [_path_entry(parts) for parts in tried]
    k = min(range(len(tried)), key=lambda i: abs(entries[i]["with_sparse_part"] - share)) if share and weights else 0
    auditor = _Auditor(tried[k])
    decision = _decide(auditor.scores(), share)
    threshold = cast(float, decision.threshold)
    ranked = np.sort(auditor.scores())[::-1]
    lowest = -math.inf if show >= len(ranked) else float(ranked[show])
    facts = {
        "folds": folds,
        "rule": decision.rule,
        "share": share,
        **entries[k],
        "path": entries if weights else [],
    }
    tell("writing")
    run = predict(
        auditor,
        images,
        out,
        decision=decision,
        spec=spec,
        data_root=data_root,
        split="train" if any(item.split for item in images.items) else None,
        maps=lambda result: result.score > lowest,
        more={"audit": facts},
        overwrite=overwrite,
    )
    found = sorted(auditor.of_image.items(), key=lambda one: -one[1])
    cases = {item.path: item.case for item in images.items}
    suspects = [Suspect(path, cases[path], score) for path, score in found if score > threshold]
    table = io.StringIO()
    csv.writer(table).writerows([("path", "case", "score"), *((s.path, s.case, repr(s.score)) for s in suspects)])
    write_bytes(out / SUSPICIOUS, table.getvalue().encode("utf-8", "surrogateescape"))
    write_report(out, images)
    failed = [(path, reason) for path, reason in run["data"]["failed"]]
    return Audit(len(found), suspects, decision.rule, threshold, facts["path"], failed)


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
    method: str, share: float | None, weights: Sequence[float], folds: int, show: int, words: Mapping[str, Any]
) -> None:
    if share is not None and not 0 < share <= 0.5:
        raise SettingsError(f"audit expects a share of anomalous images in (0, 0.5], got {share}.")
    if folds < 1 or show < 0:
        raise SettingsError(f"audit expects at least 1 fold and no negative number to show, got {folds} and {show}.")
    if float(words.get("calibration", 0)) or "false_alarms" in words:
        raise SettingsError("audit scores the training images themselves: there is nothing to calibrate on.")
    if weights and (method != "rda" or words.get("penalty") == "pixels"):
        raise SettingsError(
            f"weights are values of lambda of rda with penalty images or l1, got the method {method}"
            f"{' with penalty pixels' if method == 'rda' else ''}; leave them out."
        )
    if weights and share is None:
        raise SettingsError("To choose among weights, audit needs the share of anomalous images that you expect.")


@dataclass(frozen=True)
class _Part:
    """A fit, the images that it answers for, and what it says of them."""

    detector: Detector
    images: DataSet
    scores: dict[str, float]
    """Robust deviations, by path."""
    with_sparse_part: float | None
    """Share of the images of which S is not 0, for RDA."""


def _fitted(
    method: str, words: Mapping[str, Any], images: DataSet, folds: int, tell: Callable[[str], None]
) -> Iterator[_Part]:
    seed = int(words.get("seed", 0))
    everything = np.arange(len(images))
    parts = part_cases(images.cases, folds, seed) if folds > 1 else [everything]
    for number, part in enumerate(parts, start=1):
        detector = Detector(method, **words)
        tell(f"fit {number} of {folds}" + (f", lambda {detector.settings.weight:g}" if method == "rda" else ""))
        detector.fit(images if folds == 1 else images.subset(np.setdiff1d(everything, part)))
        own = images.subset(part)
        raw: dict[str, float] = {}
        sparse = []
        for r in detector.stream(own):
            if isinstance(r, Result):
                raw[r.path] = r.score
                if "sparse" in r.extra_maps:
                    sparse.append(bool(r.extra_maps["sparse"].any()))
        deviations = robust_deviations(np.array(list(raw.values()))) if raw else np.zeros(0)
        shares = float(np.mean(sparse)) if sparse else None
        yield _Part(detector, own, dict(zip(raw, deviations.tolist())), shares)


def _path_entry(parts: Sequence[_Part]) -> dict[str, Any]:
    """Of RDA: lambda, the share of images with S, and c1 and the number of rounds, of the first fit."""
    entry: dict[str, Any] = {"weight": None, "with_sparse_part": None}
    sparse = [p.with_sparse_part for p in parts if p.with_sparse_part is not None]
    if isinstance(parts[0].detector.method, RDA) and sparse:
        method = parts[0].detector.method
        held = method.residuals[:, 0]
        held = held[held.isfinite()]
        entry = {"weight": method.settings.weight, "with_sparse_part": float(np.mean(sparse)), "rounds": len(held)}
        entry["constraint"] = float(held[-1])
    return entry


def _decide(scores: Float64, share: float | None) -> Decision:
    if share is None:
        return Decision("robust", BAR)
    count = max(1, round(share * len(scores)))
    falling = np.sort(scores)[::-1]
    return Decision("share", float(falling[count]) if count < len(falling) else -math.inf)


class _Auditor(Detector):
    """Several fits as one detector: each scores the images that it answers for, in robust deviations."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self.__dict__ = {**parts[0].detector.__dict__}
        self.parts = parts
        self.of_image = {path: score for part in parts for path, score in part.scores.items()}

    def scores(self) -> Float64:
        return np.array(list(self.of_image.values()))

    def stream(
        self,
        data: DataSet,
        *,
        batch_size: int = 32,
        tile: bool = False,
        decision: Decision | None = None,
        then: Callable[[Result], Any] | None = None,
    ) -> Iterator[Any]:
        """All images of all parts, whatever ``data`` is, fit by fit."""
        several = len(self.parts) > 1

        def finish(result: Result) -> Any:
            score = self.of_image[result.path]
            flagged = None if decision is None else decision.flags(score, None)
            latent = None if several else result.latent  # codes of different fits have nothing in common
            result = replace(result, score=score, flagged=flagged, latent=latent)
            return result if then is None else then(result)

        for part in self.parts:
            yield from part.detector.stream(part.images, batch_size=batch_size, tile=tile, then=finish)
