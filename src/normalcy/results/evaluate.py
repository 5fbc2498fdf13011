"""A results folder + labels and masks -> ``metrics.json``: metrics on raw scores, with confidence intervals by case.

Nothing is chosen on the test images, except where a number says so (F1 max is the best any threshold could do on these
very labels: an upper bound, not a result).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from normalcy import metrics
from normalcy.arrays import Array, Indices
from normalcy.data.images import raw_size, read_mask, read_raw
from normalcy.errors import DataError
from normalcy.files import write_bytes
from normalcy.metrics import Interval
from normalcy.results.folder import FORMAT, MAPS, MASKS, Results, read_results

_EXACT_PIXELS = 150_000_000
"""Above this many pixels, map metrics come from bins, with a stated error."""
_CURVE_POINTS = 400
_BOOTSTRAPPED_PATCHES = 20_000
"""With more patches their average precision has no interval: it would take minutes."""
FALSE_PER_IMAGE = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False regions per image at which the sensitivity by region is read, those of LUNA16 (Setio et al. 2017)."""


def evaluate(
    results: Path,
    *,
    limit: float = 0.3,
    patch: int | None = None,
    patch_share: float = 0.05,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Metrics of a results folder by image, patch, region and pixel, also written to its ``metrics.json``.

    ``limit``: of the false-positive rate in AUPRO. ``patch``: side of a patch in pixels (default: an eighth of the shortest
    side of the first map, at least 4); a patch is anomalous when at least ``patch_share`` of it is marked. Raises DataError
    when the images have no labels.
    """
    read = read_results(results)
    known = np.flatnonzero(read.labels >= 0)
    if not len(known):
        raise DataError(f"{results} has no labels: score a data set with labels (MVTec layout, a table, a named set).")
    decision = read.run["calibration"] or {}
    threshold, pixel_threshold = decision.get("threshold"), decision.get("pixel_threshold")
    notes = ["f1_max is the best that any threshold could reach on these labels: an upper bound, not a decision."]
    if len(known) < len(read):
        notes.append(f"{len(read) - len(known)} images without a label are left out.")
    result: dict[str, Any] = {"format": FORMAT, "resamples": resamples, "seed": seed}
    result["image"] = _image_metrics(read, known, threshold, resamples, seed)
    result["case"] = _case_metrics(read, known)
    located = _Located(read, known)
    notes += located.notes
    result["pixel"] = _pixel_metrics(located, pixel_threshold, limit, resamples, seed) if located.usable else None
    result["patch"] = _patch_metrics(located, patch, patch_share, resamples, seed) if located.usable else None
    curve = metrics.froc(located.maps, located.masks) if located.usable and located.pixels <= _EXACT_PIXELS else None
    result["region"] = None if curve is None else _region_metrics(curve, located, resamples, seed)
    result["types"] = _types(read, known, located, limit)
    result["curves"] = {
        **_curves(read, known, located, limit),
        "froc": None
        if curve is None
        else {"false_per_image": curve.false_per_image.tolist(), "sensitivity": curve.sensitivity.tolist()},
    }
    result["notes"] = notes
    write_bytes(results / "metrics.json", json.dumps(_plain(result), indent=1).encode())
    return result


# -- private ---------------------------------------------------------------------------------------------------------


class _Maps(Sequence[Array]):
    """Maps of a results folder, read when asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: Any) -> Any:
        return np.asarray(read_raw(self.paths[i]))


class _Masks(Sequence["Array | None"]):
    """Masks beside them: None where nothing is marked."""

    def __init__(self, paths: Sequence[Path | None]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: Any) -> Any:
        path = self.paths[i]
        if path is None:
            return None
        return read_mask(path) if path.suffix == ".png" else read_raw(path) > 0


class _Located:
    """The images whose every pixel is known to be normal or marked: normal ones, and anomalous ones with a mask."""

    def __init__(self, read: Results, known: Indices) -> None:
        self.read = read
        self.images: list[int] = []
        maps: list[Path] = []
        masks: list[Path | None] = []
        unknown = 0
        for i in known if read.run["data"]["has_masks"] else ():
            values, mask = read.file("maps", i, *MAPS), read.file("masks", i, *MASKS)
            if values is None:
                continue
            if read.labels[i] == 1 and mask is None:
                unknown += 1
                continue
            self.images.append(int(i))
            maps.append(values)
            masks.append(mask if read.labels[i] == 1 else None)
        self.maps, self.masks = _Maps(maps), _Masks(masks)
        self.usable = any(m is not None for m in masks)
        self.notes = []
        if self.usable and unknown:
            self.notes.append(
                f"{unknown} anomalous images in which nothing is marked are left out of the pixel metrics."
            )
        self.pixels = sum(math.prod(raw_size(p)) for p in maps) if self.usable else 0
        if self.pixels > _EXACT_PIXELS:
            self.notes.append("Pixel metrics come from bins of 0.05 % width; 'error' bounds the effect.")

    def of_type(self, kind: str) -> tuple[_Maps, _Masks]:
        """Normal images and those of one type; no maps where nothing of the type is marked."""
        found = [k for k, i in enumerate(self.images) if self.read.labels[i] == 1 and self.read.types[i] == kind]
        chosen = [k for k, i in enumerate(self.images) if found and self.read.labels[i] == 0] + found
        return _Maps([self.maps.paths[k] for k in chosen]), _Masks([self.masks.paths[k] for k in chosen])


def _image_metrics(read: Results, known: Indices, threshold: float | None, resamples: int, seed: int) -> dict[str, Any]:
    labels, scores, cases = read.labels[known], read.scores[known], [read.cases[i] for i in known]

    def interval(statistic: Any) -> dict[str, Any]:
        return _interval(
            metrics.bootstrap_interval(
                statistic, labels, scores, labels=labels, cases=cases, resamples=resamples, seed=seed
            )
        )

    found: dict[str, Any] = {
        "normal": int((labels == 0).sum()),
        "anomalous": int((labels == 1).sum()),
        "auroc": interval(metrics.auroc),
        "average_precision": interval(metrics.average_precision),
        "fpr_at_95_tpr": interval(metrics.fpr_at_tpr),
        "f1_max": metrics.f1_max(labels, scores)._asdict(),
        "at_threshold": None,
    }
    if (read.flagged[known] >= 0).all():
        flagged = read.flagged[known] == 1
        normal, anomalous = flagged[labels == 0], flagged[labels == 1]
        tp, fp, fn = anomalous.sum(), normal.sum(), (~anomalous).sum()
        rates = (_mean(~normal), _mean(anomalous))
        found["at_threshold"] = {
            "threshold": threshold,
            "false_alarms": int(fp),
            "found": int(tp),
            "false_alarm_rate": _mean(normal),
            "detection_rate": rates[1],
            "accuracy_normal": rates[0],
            "accuracy_anomalous": rates[1],
            "mean_accuracy": sum(rates) / 2,
            "f1": float(2 * tp / (2 * tp + fp + fn)) if tp + fp + fn else math.nan,
        }
    return found


def _case_metrics(read: Results, known: Indices) -> dict[str, Any] | None:
    """Of cases with several images (patients, volumes in slices): a case is as strange as its strangest image, and anomalous
    when one of its images is. None where every image is a case of its own."""
    scores: dict[str, float] = {}
    labels: dict[str, int] = {}
    for i in known:
        case = read.cases[i]
        scores[case] = max(scores.get(case, -math.inf), float(read.scores[i]))
        labels[case] = max(labels.get(case, 0), int(read.labels[i]))
    if len(scores) == len(known):
        return None
    truth = np.array(list(labels.values()))
    normal, anomalous = int((truth == 0).sum()), int((truth == 1).sum())
    sure = min(normal, anomalous) > 1
    auroc = _interval(metrics.delong_interval(truth, list(scores.values()))) if sure else None
    return {"normal": normal, "anomalous": anomalous, "auroc": auroc}


def _pixel_metrics(
    located: _Located, threshold: float | None, limit: float, resamples: int, seed: int
) -> dict[str, Any]:
    maps, masks = located.maps, located.masks
    cases = [located.read.cases[i] for i in located.images]
    again: dict[str, Any] = {"cases": cases, "resamples": resamples, "seed": seed}
    auroc = metrics.pixel_auroc_interval(maps, masks, **again)
    aupro = metrics.aupro_interval(maps, masks, limit, **again)
    found: dict[str, Any] = {
        "images": len(maps),
        "auroc": _interval(auroc),
        "aupro": {**_interval(aupro), "limit": limit},
        "average_precision": None,
        "f1_max": None,
        "mood_ap": None,
    }
    if located.pixels <= _EXACT_PIXELS:
        ranking = metrics.pixel_ranking(maps, masks)
        found["auroc"]["value"], found["aupro"]["value"] = ranking.auroc(), metrics.aupro(maps, masks, limit)
        found["average_precision"] = _interval(metrics.pixel_average_precision_interval(maps, masks, **again))
        found["f1_max"] = ranking.f1_max()._asdict()
        if all(m.min() >= 0 and m.max() <= 1 for m in maps):  # the challenge's rule for maps
            found["mood_ap"] = metrics.mood_ap(maps, masks)
    if threshold is None:
        return {**found, "at_threshold": None, "regions": None}
    hits = metrics.region_hits(maps, masks, threshold)
    found["at_threshold"] = {
        "threshold": threshold,
        "dice": metrics.dice(maps, masks, threshold),
        "f1": metrics.pixel_f1_at(maps, masks, threshold),
        "pro": metrics.pro(maps, masks, threshold),
        "false_positive_rate": _mean(np.array([_mean(m > threshold) for m, mask in zip(maps, masks) if mask is None])),
    }
    found["regions"] = {
        "total": hits.regions,
        "hit": hits.found,
        "false_regions": int(hits.false_regions.sum()),
        "false_per_image": hits.false_per_image,
        "threshold": threshold,
    }
    return found


_NO_PATCHES: dict[str, Any] = {"auroc": {"value": None}, "average_precision": {"value": None}}


def _patch_metrics(located: _Located, size: int | None, share: float, resamples: int, seed: int) -> dict[str, Any]:
    if size is None:
        size = max(4, min(raw_size(located.maps.paths[0])) // 8)
    found = metrics.patches(located.maps, located.masks, size, share)
    cases = [located.read.cases[i] for i, own in zip(located.images, found.labels) if own.size]
    found = found._replace(scores=[s for s in found.scores if s.size], labels=[m for m in found.labels if m.size])
    if not cases:
        return {"size": size, "share": share, "normal": 0, "anomalous": 0, "left_out": found.left_out, **_NO_PATCHES}
    labels, scores = np.concatenate(found.labels, axis=1)[0], np.concatenate(found.scores, axis=1)[0]
    of_patch = [case for case, own in zip(cases, found.labels) for _ in range(own.size)]
    again: dict[str, Any] = {"resamples": resamples, "seed": seed}
    if labels.size <= _BOOTSTRAPPED_PATCHES:
        ap = _interval(
            metrics.bootstrap_interval(
                metrics.average_precision, labels, scores, labels=labels, cases=of_patch, **again
            )
        )
    else:
        ap = {"value": metrics.average_precision(labels, scores), "low": None, "high": None}
    return {
        "size": size,
        "share": share,
        "normal": int((~labels).sum()),
        "anomalous": int(labels.sum()),
        "left_out": found.left_out,
        "auroc": _interval(metrics.pixel_auroc_interval(found.scores, found.labels, cases=cases, **again))
        | {"value": metrics.auroc(labels, scores)},
        "average_precision": ap,
    }


def _region_metrics(curve: metrics.Froc, located: _Located, resamples: int, seed: int) -> dict[str, Any]:
    cases = [located.read.cases[i] for i in located.images]

    def interval(levels: Sequence[float]) -> dict[str, Any]:
        return _interval(metrics.froc_interval(curve, levels, cases=cases, resamples=resamples, seed=seed))

    return {
        "total": int(curve.regions.sum()),
        "images": len(curve.regions),
        "sensitivity": [{"false_per_image": level, **interval([level])} for level in FALSE_PER_IMAGE],
        "mean_sensitivity": interval(FALSE_PER_IMAGE),
    }


def _types(read: Results, known: Indices, located: _Located, limit: float) -> dict[str, Any]:
    types: dict[str, Any] = {}
    normal = known[read.labels[known] == 0]
    anomalous = known[read.labels[known] == 1]
    for kind in sorted({read.types[i] for i in anomalous} - {""}):
        members = np.array([i for i in anomalous if read.types[i] == kind])
        both = np.concatenate([normal, members])
        labels, scores, flagged = read.labels[both], read.scores[both], read.flagged[members]
        sure = len(normal) > 1 and len(members) > 1
        entry: dict[str, Any] = {
            "count": len(members),
            "auroc": _interval(metrics.delong_interval(labels, scores))
            if sure
            else {"value": metrics.auroc(labels, scores), "low": None, "high": None},
            "detection_rate": _mean(flagged == 1) if (flagged >= 0).all() else None,
            "pixel_auroc": None,
            "aupro": None,
        }
        maps, masks = located.of_type(kind)
        if len(maps) and located.pixels <= _EXACT_PIXELS:
            entry["pixel_auroc"] = metrics.pixel_auroc(maps, masks)
            entry["aupro"] = metrics.aupro(maps, masks, limit)
        types[kind] = entry
    return types


def _curves(read: Results, known: Indices, located: _Located, limit: float) -> dict[str, Any]:
    labels, scores = read.labels[known], read.scores[known]
    if len(set(labels.tolist())) < 2:
        return {"roc": None, "pr": None, "pro": None}
    roc, pr = metrics.roc_curve(labels, scores), metrics.precision_recall_curve(labels, scores)
    pro = None
    if located.usable and located.pixels <= _EXACT_PIXELS:
        curve = metrics.pro_curve(located.maps, located.masks, limit, _CURVE_POINTS)
        pro = {"fpr": curve[0].tolist(), "pro": curve[1].tolist()}
    return {
        "roc": {"fpr": _thin(roc.fpr), "tpr": _thin(roc.tpr)},
        "pr": {"recall": _thin(pr.recall), "precision": _thin(pr.precision)},
        "pro": pro,
    }


def _interval(interval: Interval) -> dict[str, Any]:
    words = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {**words, "error": interval.error} if interval.error else words


def _mean(values: Array) -> float:
    return float(np.mean(values)) if np.size(values) else math.nan


def _thin(values: Array) -> list[float]:
    kept = np.unique(np.linspace(0, len(values) - 1, min(len(values), _CURVE_POINTS)).round().astype(int))
    return [float(v) for v in values[kept]]


def _plain(value: Any) -> Any:
    """JSON values; null for what is not a number."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
