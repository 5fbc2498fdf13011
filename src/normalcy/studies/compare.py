"""Several methods on one data set: fit, score, evaluate, and paired tests between them on the same images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from normalcy.calibrate import Decision
from normalcy.data.dataset import DataSet
from normalcy.data.splits import images_to_score, with_split
from normalcy.detector import Detector
from normalcy.errors import NormalcyError, SettingsError
from normalcy.files import refuse_existing, write_bytes
from normalcy.metrics import delong_test
from normalcy.report import write_comparison, write_report
from normalcy.results.evaluate import evaluate
from normalcy.results.folder import FORMAT, read_results
from normalcy.results.predict import predict
from normalcy.settings import settings_for_method
from normalcy.training.log import Log


def compare(
    data: DataSet,
    methods: Sequence[str],
    out: Path,
    words: Mapping[str, Any] | None = None,
    *,
    spec: str | None = None,
    data_root: Path | None = None,
    overwrite: bool = False,
    log: Log | None = None,
    on_method: Callable[[str, str], None] | None = None,
) -> dict[str, Any]:
    """Fit each method on the normal training images and evaluate it on the test split; one results folder a method.

    ``words`` are settings, see :func:`settings_for_method`. ``on_method`` gets (method,
    "fit" | "score" | "evaluate"). A method that
    fails is listed with its reason, the others go on. The paired test against the best is DeLong's on image AUROC; the best
    is the best on these test images, so the comparison describes, it does not select. Returns what ``compare.json`` says.
    """
    methods = list(dict.fromkeys(methods))
    if not methods:
        raise SettingsError("compare needs at least one method.")
    settings = {name: settings_for_method(name, words or {}, methods) for name in methods}
    data = with_split(data, int(dict(words or {}).get("seed", 0)))
    test, split = images_to_score(data, None)
    refuse_existing(out, overwrite)
    rows: list[dict[str, Any]] = []
    failed = []
    tell = on_method or (lambda name, step: None)
    for name in methods:
        try:
            tell(name, "fit")
            detector = Detector(name, **settings[name]).fit(data, log=log)
            tell(name, "score")
            decision: Decision | None = detector.decide()
            run = predict(
                detector,
                test,
                out / name,
                decision=decision,
                spec=spec,
                data_root=data_root,
                split=split,
                overwrite=overwrite,
            )
            tell(name, "evaluate")
            found = evaluate(out / name)
            write_report(out / name, dataset=test)
        except NormalcyError as error:
            failed.append({"name": name, "reason": str(error)})
            continue
        pixel = found["pixel"] or {}
        rows.append(
            {
                "name": name,
                "words": settings[name],
                "auroc": _finite(found["image"]["auroc"]),
                "pixel_auroc": pixel.get("auroc"),
                "aupro": pixel.get("aupro"),
                "at_threshold": found["image"]["at_threshold"],
                "fit_seconds": run["model"]["fit"]["seconds"],
                "images_per_second": run["images_per_second"],
                "folder": name,
                "against_best": None,
            }
        )
    if not rows:
        raise NormalcyError("No method could be compared: " + "; ".join(f"{f['name']}: {f['reason']}" for f in failed))
    _test_against_best(out, rows)
    comparison = {
        "format": FORMAT,
        "data": {"name": data.name, "spec": spec, "fingerprint": data.fingerprint(), "test_images": len(test)},
        "methods": rows,
        "failed": failed,
    }
    write_bytes(out / "compare.json", json.dumps(comparison, indent=1).encode())
    write_comparison(out)
    return comparison


def _finite(interval: Mapping[str, Any]) -> dict[str, Any]:
    return {key: interval.get(key) for key in ("value", "low", "high")}


def _test_against_best(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    """DeLong's test of every method against the one with the highest image AUROC, on the images that both scored."""
    ranked = [row for row in rows if row["auroc"]["value"] is not None]
    if not ranked:
        return
    best = max(ranked, key=lambda row: row["auroc"]["value"])
    ours = read_results(out / best["folder"])
    place = {path: i for i, path in enumerate(ours.paths) if ours.labels[i] >= 0}
    for row in ranked:
        if row is best:
            continue
        theirs = read_results(out / row["folder"])
        both = [(place[path], j) for j, path in enumerate(theirs.paths) if path in place]
        mine, other = map(list, zip(*both))
        test = delong_test(ours.labels[mine], theirs.scores[other], ours.scores[mine])
        row["against_best"] = {
            "best": best["name"],
            "difference": test.difference,
            "low": test.low,
            "high": test.high,
            "p": test.p,
        }
