"""A results folder + labels and masks -> ``metrics.json``: metrics on raw scores, with confidence intervals by case.

Nothing is chosen on the test images, except where a number says so (F1 max is the best that any threshold reaches on these
very labels: an upper bound, not a result).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from normalcy import metrics
from normalcy.arrays import Array, Indices
from normalcy.data.images import raw_size, read_mask, read_raw
from normalcy.data.union import class_of
from normalcy.errors import DataError
from normalcy.results.cases import Cases, numbers_of
from normalcy.results.drawn import TABLE as DRAWS
from normalcy.results.drawn import estimate, read_plan
from normalcy.results.folder import MAPS, ResultsFolder, read_results
from normalcy.results.labels import Labels, read_labels, with_labels
from normalcy.results.metrics import (
    AUPRO,
    METRICS,
    Best,
    CaseMetrics,
    ClassMean,
    ClassMetrics,
    Curves,
    DrawnRates,
    Froc,
    ImageMetrics,
    ImagesAtThreshold,
    Interval,
    Metrics,
    PatchMetrics,
    PixelMetrics,
    PixelsAtThreshold,
    PrecisionRecall,
    Pro,
    RegionMetrics,
    RegionsAtThreshold,
    Roc,
    Sensitivity,
    TypeMetrics,
)
from normalcy.results.schema import as_read, dumps
from normalcy.results.writer import Writer

__all__ = ["evaluate"]

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
    patch_fraction: float = 0.05,
    resamples: int = 1000,
    seed: int = 0,
    labels: Path | str | None = None,
) -> Metrics:
    """Metrics of a results folder by image, patch, region and pixel, also written to its ``metrics.json``.

    ``labels``: "review" or a table (:func:`~normalcy.results.labels.read_labels`), whose labels and masks count instead of those
    of the data; where the images were reviewed in the informative order, rates of all images are estimated from them. Images
    whose labels chose the settings or the threshold of these results are no test images: they are left out.

    ``limit``: of the false-positive rate in AUPRO. ``patch``: side of a patch in pixels (default: an eighth of the shortest
    side of the first map, at least 4); a patch is anomalous when at least ``patch_fraction`` of it is marked. Images whose map
    or mask cannot be used are left out of the metrics of maps and noted. Raises DataError when the images have no labels, or
    all that have one chose something.
    """
    read = read_results(results)
    table = None if labels is None else read_labels(labels, results)
    read = read if table is None else with_labels(read, table)
    known = np.flatnonzero(read.labels >= 0)
    if not len(known):
        raise DataError(
            f"{results} has no labels: score a data set with labels (MVTec layout, a table, a named set), or review it with "
            "'normalcy review' and evaluate with --labels review."
        )
    known, chosen = _test_images(read, known)
    case_of = numbers_of(read, known)
    bootstrap = _Bootstrap(resamples, seed)
    located = _Located(read, known)
    few = located.usable and located.pixels <= _EXACT_PIXELS
    curve = metrics.froc(located.maps, located.masks) if few else None
    notes = ["f1_max is the best that any threshold could reach on these labels: an upper bound, not a decision."]
    if chosen:
        notes.append(
            f"{chosen} images whose labels chose the settings or the threshold are left out: they are no test images."
        )
    if len(known) + chosen < len(read):
        notes.append(f"{len(read) - len(known) - chosen} images without a label are left out.")
    drawn = None if table is None else _drawn(read, table)
    if table is not None and drawn is None:
        notes.append("The labels are those of the reviewed images alone, which need not be typical of all images.")
    notes += [f"Incomplete: {one.path}: {one.reason}" for one in read.run.data.incomplete]
    classes = _classes(read, known, located, limit)
    found = Metrics(
        image=_image_metrics(read, known, case_of, bootstrap),
        case=None if case_of is None else _case_metrics(read, known, case_of),
        pixel=_pixel_metrics(located, limit, bootstrap) if located.usable else None,
        patch=_patch_metrics(located, patch, patch_fraction, bootstrap) if located.usable else None,
        region=None if curve is None else _region_metrics(curve, located, bootstrap),
        types=_types(read, known, located, limit),
        classes=classes or None,
        class_mean=ClassMean.of(classes.values()) if classes else None,
        curves=_curves(read, known, located, limit, curve),
        notes=(*notes, *located.notes),
        resamples=resamples,
        seed=seed,
        labels=None if table is None else _named(table.file, results),
        drawn=drawn,
    )
    found = as_read(found)
    Writer(results).bytes(METRICS, dumps(found))
    return found


# -- private ---------------------------------------------------------------------------------------------------------


def _test_images(read: ResultsFolder, known: Indices) -> tuple[Indices, int]:
    """Images with a label that chose nothing of these results, and the number of the others. Raises DataError without any."""
    chosen = np.array(list(read.paths.find(read.run.chosen_on).values()), np.intp)
    if not len(chosen):
        return known, 0
    kept = known[~np.isin(known, chosen)]
    if not len(kept):
        raise DataError(
            f"{read.folder}: all {len(known)} images with a label chose the settings or the threshold of these results, so they "
            "prove nothing about them; review other images, or evaluate on a test set."
        )
    return kept, len(known) - len(kept)


def _named(file: Path, results: Path) -> str:
    """A table of labels as text: from the results folder where it is inside."""
    try:
        return file.resolve().relative_to(results.resolve()).as_posix()
    except ValueError:
        return file.name


def _drawn(read: ResultsFolder, table: Labels) -> DrawnRates | None:
    """Rates of all images, where the reviewed ones were drawn for that."""
    path = table.file.parent / DRAWS
    if not path.exists() or read.paths.find(read.run.chosen_on):
        return None
    found = estimate(read_plan(path), read, {row.image: row.label for row in table.rows})
    return None if isinstance(found, str) else DrawnRates.of(found)


class _Bootstrap:
    """Intervals over resampled cases, all with the same resamples and seed."""

    def __init__(self, resamples: int, seed: int) -> None:
        self.settings: dict[str, Any] = {"resamples": resamples, "seed": seed}

    def scores(self, statistic: Any, labels: Array, scores: Array, cases: Sequence[str]) -> Interval:
        return Interval.of(
            metrics.bootstrap_interval(statistic, labels, scores, labels=labels, cases=cases, **self.settings)
        )


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

    def __init__(self, read: ResultsFolder, known: Indices) -> None:
        self.read = read
        self.images: list[int] = []
        self.pixels = 0
        maps: list[Path] = []
        masks: list[Path | None] = []
        unknown, bad = 0, []
        for i in known if read.has_masks else ():
            values, mask = read.file("maps", int(i), *MAPS), read.mask(int(i))
            mask = mask if read.labels[i] == 1 else None
            if values is None:
                continue
            if read.labels[i] == 1 and mask is None:
                unknown += 1
                continue
            try:
                size = _checked_size(values, mask)
            except DataError as error:
                bad.append(f"{read.paths[i]}: {error}")
                continue
            self.images.append(int(i))
            maps.append(values)
            masks.append(mask)
            self.pixels += math.prod(size)
        self.maps, self.masks = _Maps(maps), _Masks(masks)
        self.cases = [read.cases[i] for i in self.images]
        self.usable = any(mask is not None for mask in masks)
        self.notes = [f"Left out of the metrics of maps: {reason}" for reason in bad]
        if self.usable and unknown:
            self.notes.append(
                f"{unknown} anomalous images in which nothing is marked are left out of the pixel metrics."
            )
        if self.usable and self.pixels > _EXACT_PIXELS:
            self.notes.append("Pixel metrics come from bins of 0.05 % width; 'error' bounds the effect.")

    def of_type(self, kind: str) -> tuple[_Maps, _Masks]:
        """Normal images and those of one type; no maps where nothing of the type is marked."""
        own = [k for k, i in enumerate(self.images) if self.read.labels[i] == 1 and self.read.types[i] == kind]
        return self._part([k for k, i in enumerate(self.images) if own and self.read.labels[i] == 0] + own)

    def of_class(self, name: str, classes: Sequence[str]) -> tuple[_Maps, _Masks]:
        """Images of one class; no maps where nothing of it is marked."""
        own = [k for k, i in enumerate(self.images) if class_of(self.read.paths[i], classes) == name]
        return self._part(own if any(self.masks.paths[k] is not None for k in own) else [])

    def _part(self, chosen: Sequence[int]) -> tuple[_Maps, _Masks]:
        return _Maps([self.maps.paths[k] for k in chosen]), _Masks([self.masks.paths[k] for k in chosen])


def _checked_size(values: Path, mask: Path | None) -> tuple[int, ...]:
    """The size of a map. Raises DataError where the map or its mask cannot be read or is of another size."""
    try:
        size = raw_size(values)
        marked = None if mask is None else _Masks([mask])[0].shape
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"its map or mask is damaged ({' '.join(str(error).split())[:100]}).") from None
    if marked is not None and marked != size:
        raise DataError(f"its mask has the size {marked}, its map {size}.")
    return size


def _image_metrics(read: ResultsFolder, known: Indices, cases: Indices | None, bootstrap: _Bootstrap) -> ImageMetrics:
    labels, scores, flagged = read.labels[known], read.scores[known], read.flagged[known]
    threshold = None if read.run.calibration is None else read.run.calibration.threshold
    decided = (flagged >= 0).all()
    ranked = (metrics.Ranking.auroc, metrics.Ranking.average_precision, metrics.Ranking.fpr_at_tpr)
    found = metrics.ranking_intervals(ranked, labels, scores, cases=cases, **bootstrap.settings)
    auroc, precision, fpr = map(Interval.of, found)
    return ImageMetrics(
        normal=int((labels == 0).sum()),
        anomalous=int((labels == 1).sum()),
        auroc=auroc,
        average_precision=precision,
        fpr_at_95_tpr=fpr,
        f1_max=Best(*metrics.f1_max(labels, scores)),
        at_threshold=ImagesAtThreshold.of(threshold, metrics.at_threshold(labels, flagged)) if decided else None,
    )


def _case_metrics(read: ResultsFolder, known: Indices, case_of: Indices) -> CaseMetrics:
    """Of cases with several images (patients, volumes in slices)."""
    cases = Cases.of(read, case_of, known)
    truth, scores = cases.labels, cases.scores
    normal, anomalous = int((truth == 0).sum()), int((truth == 1).sum())
    sure = min(normal, anomalous) > 1
    return CaseMetrics(normal, anomalous, Interval.of(metrics.delong_interval(truth, scores)) if sure else None)


def _pixel_metrics(located: _Located, limit: float, bootstrap: _Bootstrap) -> PixelMetrics:
    maps, masks = located.maps, located.masks
    again: dict[str, Any] = {"cases": located.cases, **bootstrap.settings}
    auroc = metrics.pixel_auroc_interval(maps, masks, **again)
    aupro = metrics.aupro_interval(maps, masks, limit, **again)
    at, regions = _at_pixel_threshold(located)
    if located.pixels > _EXACT_PIXELS:
        return PixelMetrics(
            len(maps), Interval.of(auroc), AUPRO.of(aupro, limit=limit), at_threshold=at, regions=regions
        )
    ranking = metrics.pixel_ranking(maps, masks)
    challenge = all(m.min() >= 0 and m.max() <= 1 for m in maps)  # the rule of MOOD for maps
    return PixelMetrics(
        images=len(maps),
        auroc=Interval.of(auroc, ranking.auroc()),
        aupro=AUPRO.of(aupro, metrics.aupro(maps, masks, limit), limit=limit),
        average_precision=Interval.of(metrics.pixel_average_precision_interval(maps, masks, **again)),
        f1_max=Best(*ranking.f1_max()),
        mood_ap=metrics.mood_ap(maps, masks) if challenge else None,
        at_threshold=at,
        regions=regions,
    )


def _at_pixel_threshold(located: _Located) -> tuple[PixelsAtThreshold | None, RegionsAtThreshold | None]:
    calibration = located.read.run.calibration
    threshold = None if calibration is None else calibration.pixel_threshold
    if threshold is None:
        return None, None
    maps, masks = located.maps, located.masks
    hits = metrics.region_hits(maps, masks, threshold)
    normal = np.array([_mean(m > threshold) for m, mask in zip(maps, masks) if mask is None])
    return PixelsAtThreshold(
        threshold=threshold,
        dice=metrics.dice(maps, masks, threshold),
        f1=metrics.pixel_f1_at(maps, masks, threshold),
        pro=metrics.pro(maps, masks, threshold),
        false_positive_rate=_mean(normal),
    ), RegionsAtThreshold(
        total=hits.regions,
        hit=hits.found,
        false_regions=int(hits.false_regions.sum()),
        false_per_image=hits.false_per_image,
        threshold=threshold,
    )


def _patch_metrics(located: _Located, size: int | None, fraction: float, bootstrap: _Bootstrap) -> PatchMetrics:
    if size is None:
        size = max(4, min(raw_size(located.maps.paths[0])) // 8)
    found = metrics.patches(located.maps, located.masks, size, fraction)
    kept = [k for k, own in enumerate(found.labels) if own.size]
    if not kept:
        return PatchMetrics(size, fraction, left_out=found.left_out)
    by_image, scores_by_image = [found.labels[k] for k in kept], [found.scores[k] for k in kept]
    cases = [located.cases[k] for k in kept]
    labels, scores = np.concatenate(by_image, axis=1)[0], np.concatenate(scores_by_image, axis=1)[0]
    of_patch = [case for case, own in zip(cases, by_image) for _ in range(own.size)]
    auroc = metrics.pixel_auroc_interval(scores_by_image, by_image, cases=cases, **bootstrap.settings)
    few = labels.size <= _BOOTSTRAPPED_PATCHES
    return PatchMetrics(
        size=size,
        fraction=fraction,
        normal=int((~labels).sum()),
        anomalous=int(labels.sum()),
        left_out=found.left_out,
        auroc=Interval.of(auroc, metrics.auroc(labels, scores)),
        average_precision=bootstrap.scores(metrics.average_precision, labels, scores, of_patch)
        if few
        else Interval(metrics.average_precision(labels, scores)),
    )


def _region_metrics(curve: metrics.Froc, located: _Located, bootstrap: _Bootstrap) -> RegionMetrics:
    again: dict[str, Any] = {"cases": located.cases, **bootstrap.settings}
    return RegionMetrics(
        total=int(curve.regions.sum()),
        images=len(curve.regions),
        sensitivity=tuple(
            Sensitivity.of(metrics.froc_interval(curve, [level], **again), false_per_image=level)
            for level in FALSE_PER_IMAGE
        ),
        mean_sensitivity=Interval.of(metrics.froc_interval(curve, FALSE_PER_IMAGE, **again)),
    )


def _types(read: ResultsFolder, known: Indices, located: _Located, limit: float) -> dict[str, TypeMetrics]:
    types: dict[str, TypeMetrics] = {}
    normal = known[read.labels[known] == 0]
    anomalous = known[read.labels[known] == 1]
    for kind in read.types.among(anomalous):
        if not kind:
            continue
        members = anomalous[read.types.are(kind)[anomalous]]
        both = np.concatenate([normal, members])
        labels, scores, flagged = read.labels[both], read.scores[both], read.flagged[members]
        sure = len(normal) > 1 and len(members) > 1
        maps, masks = located.of_type(kind)
        exact = len(maps) > 0 and located.pixels <= _EXACT_PIXELS
        types[kind] = TypeMetrics(
            count=len(members),
            auroc=Interval.of(metrics.delong_interval(labels, scores))
            if sure
            else Interval(metrics.auroc(labels, scores)),
            true_positive_rate=_mean(flagged == 1) if (flagged >= 0).all() else None,
            pixel_auroc=metrics.pixel_auroc(maps, masks) if exact else None,
            aupro=metrics.aupro(maps, masks, limit) if exact else None,
        )
    return types


def _classes(read: ResultsFolder, known: Indices, located: _Located, limit: float) -> dict[str, ClassMetrics]:
    """Of several data sets in one, each for itself: its anomalous images against its own normal ones."""
    classes = read.run.data.classes
    of_image = np.array([class_of(path, classes) for path in read.paths] if classes else [], dtype=object)
    found: dict[str, ClassMetrics] = {}
    for name in classes:
        own = known[of_image[known] == name]
        labels, scores, flagged = read.labels[own], read.scores[own], read.flagged[own]
        normal, anomalous = int((labels == 0).sum()), int((labels == 1).sum())
        decided = (flagged >= 0).all()
        maps, masks = located.of_class(name, classes)
        exact = len(maps) > 0 and located.pixels <= _EXACT_PIXELS
        area = Interval()
        if normal and anomalous:
            sure = min(normal, anomalous) > 1
            area = (
                Interval.of(metrics.delong_interval(labels, scores))
                if sure
                else Interval(metrics.auroc(labels, scores))
            )
        found[name] = ClassMetrics(
            normal=normal,
            anomalous=anomalous,
            auroc=area,
            false_positive_rate=_mean(flagged[labels == 0] == 1) if decided and normal else None,
            true_positive_rate=_mean(flagged[labels == 1] == 1) if decided and anomalous else None,
            pixel_auroc=metrics.pixel_auroc(maps, masks) if exact else None,
            aupro=metrics.aupro(maps, masks, limit) if exact else None,
        )
    return found


def _curves(read: ResultsFolder, known: Indices, located: _Located, limit: float, curve: metrics.Froc | None) -> Curves:
    labels, scores = read.labels[known], read.scores[known]
    roc = pr = pro = None
    if len(np.unique(labels)) > 1:
        fpr, tpr, _ = metrics.roc_curve(labels, scores)
        precision, recall, _ = metrics.precision_recall_curve(labels, scores)
        roc, pr = Roc(_thin(fpr), _thin(tpr)), PrecisionRecall(_thin(recall), _thin(precision))
        if located.usable and located.pixels <= _EXACT_PIXELS:
            points = metrics.pro_curve(located.maps, located.masks, limit, _CURVE_POINTS)
            pro = Pro(tuple(points[0].tolist()), tuple(points[1].tolist()))
    froc = None if curve is None else Froc(tuple(curve.false_per_image.tolist()), tuple(curve.sensitivity.tolist()))
    return Curves(roc, pr, pro, froc)


def _mean(values: Array) -> float:
    return float(np.mean(values)) if np.size(values) else math.nan


def _thin(values: Array) -> tuple[float, ...]:
    kept = np.unique(np.linspace(0, len(values) - 1, min(len(values), _CURVE_POINTS)).round().astype(int))
    return tuple(float(v) for v in values[kept])
