"""The report of one results folder: the result, how sure it is, and the images to judge it by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from normalcy.arrays import Float64, Indices, Mask
from normalcy.data.dataset import DataSet, Failure
from normalcy.errors import DataError
from normalcy.files import is_inside, read_array
from normalcy.metrics.intervals import wilson
from normalcy.provenance import NOTICE
from normalcy.report import figures
from normalcy.report.classes import HEAD, NOTE, class_rows
from normalcy.report.figures import Curve
from normalcy.report.gallery import images_section
from normalcy.report.markup import Content, Markup, definitions, document, join, table, tag
from normalcy.report.pictures import restored_thumbnails
from normalcy.report.text import MISSING, count, ends, metric, number, percent, plain, with_interval
from normalcy.results.folder import LATENTS, ResultsFolder, read_results
from normalcy.results.inputs import reopen
from normalcy.results.labels import relabelled
from normalcy.results.metrics import Best, Curves, Interval
from normalcy.results.names import REPORT
from normalcy.results.schema import to_json
from normalcy.results.writer import Writer
from normalcy.training.log import TRAIN_LOG, read_log

LATENT_POINTS = 2000
LATENT_VALUES = 2**26
LISTED = 100  # failed files


def write_report(results: Path, dataset: DataSet | None = None, radiological: bool = True) -> Path:
    """Writes ``report.html`` into a results folder and returns its path.

    ``radiological``: of medical images, the patient's right is shown on the left; else on the right. Letters say which.

    The inputs are read from ``dataset``; by default from the data set that run.json names, if it has the same fingerprint as the
    one that was scored (:func:`~normalcy.results.inputs.reopen`). Without them the page shows the maps alone and says so. Only
    files of images that are shown are read. Raises DataError when scores.csv, run.json or metrics.json cannot be used.
    """
    folder = Path(results)
    read = relabelled(read_results(folder))
    about = "Inputs: the data set that was given."
    if dataset is None:
        dataset, about = reopen(read)
    page = _page(read, dataset, about, radiological)
    return Writer(folder).bytes(REPORT, page.encode("utf-8"))


def headline(results: ResultsFolder) -> Markup:
    """The result in a sentence or two."""
    counts = _Counts(results)
    auroc = results.metrics.image.auroc if results.metrics is not None else Interval()
    total = len(results)
    if auroc.value is not None:
        start: Content = [
            "AUROC ", tag("strong", metric(auroc.value)), " ", ends(auroc.low, auroc.high),
            f" on {count(total, 'image')}: {counts.normal:,} normal, {counts.anomalous:,} anomalous"
            + (f", {counts.unknown:,} unlabelled" if counts.unknown else "") + ".",
        ]  # fmt: skip
    elif counts.normal or counts.anomalous:
        start = f"{count(total, 'image')} scored: {counts.normal:,} normal, {counts.anomalous:,} anomalous" + (
            f", {counts.unknown:,} of unknown label." if counts.unknown else "."
        )
    else:
        start = f"{count(total, 'image')} scored, of unknown label."
    return join(start, " ", _decision(results, counts))


def _decision(results: ResultsFolder, counts: _Counts) -> Markup:
    """What the threshold guarantees and what it did."""
    calibration = results.run.calibration
    if not (results.flagged >= 0).any():
        return join("There is no threshold, so nothing is flagged: the detector was not calibrated.")
    bound = _false_alarms(results)
    if bound and calibration is not None and calibration.threshold is None:
        return join(
            f"Nothing can be flagged: {calibration.count} calibration images are too few to guarantee at most "
            f"{percent(bound)} false alarms; at least {math.ceil(1 / bound - 1)} are needed."
        )
    subject = f"The threshold guarantees at most {percent(bound)} false alarms" if bound else "At the threshold"
    parts = []
    if counts.normal:
        parts.append(f"{counts.false_alarms:,} of {counts.normal:,} normal images flagged")
    if counts.anomalous:
        parts.append(f"{counts.found:,} of {counts.anomalous:,} anomalous detected")
    if not parts or counts.unknown:
        flagged = int(((results.flagged == 1) & (results.labels < 0)).sum())
        parts.append(f"{flagged:,} of {counts.unknown:,} {'unlabelled ' if parts else ''}images flagged")
    return join(subject, ": ", ", ".join(parts), ".")


def _false_alarms(results: ResultsFolder) -> float | None:
    """The guaranteed bound of the false-positive rate, where the threshold has one."""
    calibration = results.run.calibration
    if calibration is None or calibration.rule not in (None, "false_alarms"):
        return None
    return calibration.false_alarms


class _Counts:
    """How many images of each label, and what became of them."""

    def __init__(self, results: ResultsFolder) -> None:
        labels, flagged = results.labels, results.flagged == 1
        decided = results.flagged >= 0
        self.normal, self.anomalous, self.unknown = (int((labels == value).sum()) for value in (0, 1, -1))
        self.false_alarms, self.found = (int((flagged & (labels == value)).sum()) for value in (0, 1))
        self.missed = int(((labels == 1) & decided & ~flagged).sum())


# --- the page


def _page(results: ResultsFolder, dataset: DataSet | None, about_inputs: str, radiological: bool) -> str:
    run = results.run
    method, data = run.model.method, run.data.name or results.folder.name
    sections: list[tuple[str, str, Content]] = [
        ("audit", "Suspicious training images", _audit(results)),
        ("summary", "Summary", _summary(results)),
        ("curves", "Scores and curves", _curves(results)),
        ("types", "Types of anomaly", _types(results)),
        ("classes", "Classes", _classes(results)),
        ("images", "Images", images_section(results, dataset, about_inputs, radiological)),
        ("latent", "Latent space", _latent(results)),
        ("training", "Training", _training(results)),
        ("details", "Settings, data and notes", _details(results, about_inputs)),
    ]
    present = [(key, title, content) for key, title, content in sections if content]
    facts = [
        count(len(results), "image") + (f" ({run.data.split})" if run.data.split else ""),
        f"{number(run.images_per_second, 3)} images/s on {run.device}" if run.images_per_second else None,
        run.created[:16].replace("T", " "),
        f"normalcy {run.normalcy or '?'}",
    ]
    header = tag(
        "header",
        tag("p", " · ".join(fact for fact in facts if fact), class_="facts"),
        tag("h1", method, tag("span", " on ", class_="light"), data),
        tag("p", run.model.description, class_="about") if run.model.description else None,
        tag("p", headline(results), class_="headline"),
        _warnings(results),
    )
    navigation = tag("nav", [tag("a", title, href=f"#{key}") for key, title, _ in present], aria_label="Sections")
    body = [tag("section", tag("h2", title), content, id=key) for key, title, content in present]
    return document(f"{method} on {data}: normalcy report", header, navigation, tag("main", body), script=True)


def _warnings(results: ResultsFolder) -> Content:
    """What a reader must know before believing the numbers."""
    counts, bound, run = _Counts(results), _false_alarms(results), results.run
    texts = [NOTICE] if run.data.medical else []
    if bound and counts.normal and (results.flagged >= 0).any():
        low, _ = wilson(counts.false_alarms, counts.normal)
        if low > bound:
            texts.append(
                f"{percent(counts.false_alarms / counts.normal)} of the normal images are flagged, more than the guaranteed "
                f"{percent(bound)} and more than chance explains: they differ from the normal images that the "
                "threshold was set on (another camera, site, lot or patient group?)."
            )
    held_out = None if run.calibration is None else run.calibration.count
    if held_out is not None and held_out < 20:
        texts.append(
            f"Only {count(held_out, 'image')} to calibrate on: p-values are steps of {number(1 / (held_out + 1), 2)}."
        )
    lost = int((~np.isfinite(results.scores)).sum())
    if lost:
        texts.append(
            f"{count(lost, 'image has', 'images have')} no finite score; they are left out of figures and galleries."
        )
    if run.data.failed:
        texts.append(
            f"{count(run.data.failed_count or len(run.data.failed), 'file')} could not be read: see Failed files, at the end."
        )
    if run.data.incomplete:
        images = count(run.data.incomplete_count or len(run.data.incomplete), "image")
        texts.append(
            f"Of {images} the mask could not be used or a file not be written: see Incomplete images, at the end."
        )
    if results.metrics is None and counts.normal and counts.anomalous:
        texts.append(
            "Labels are known but metrics.json is missing: 'normalcy evaluate' adds AUROC, curves and intervals."
        )
    return [tag("p", text, class_="warning") for text in texts]


# --- summary


def _summary(results: ResultsFolder) -> Content:
    left = [part for part in (_image_table(results), _decision_table(results)) if part]
    right = [part for part in (_pixel_table(results), _region_table(results)) if part]
    return (
        tag("div", [tag("div", left), tag("div", right) if right else None], class_="tables") if left or right else None
    )


def _image_table(results: ResultsFolder) -> Content:
    if results.metrics is None:
        return None
    image = results.metrics.image
    labelled = image.normal + image.anomalous
    prevalence = image.anomalous / labelled if labelled else None
    rows = [
        _row(
            "AUROC",
            image.auroc,
            "chance that an anomalous image scores higher than a normal one; 0.5 is guessing",
        ),
        _row(
            "Average precision",
            image.average_precision,
            f"area under precision-recall; {metric(prevalence)} is guessing",
        ),
        _row("FPR at 95 % TPR", image.fpr_at_95_tpr, "fraction of normal images flagged when 95 % are detected"),
        _best_row(image.f1_max),
    ]
    return _metric_table("Images: how well scores separate", rows)


def _decision_table(results: ResultsFolder) -> Content:
    """Flagged or not against the label, from scores.csv."""
    counts = _Counts(results)
    decided, flagged = results.flagged >= 0, results.flagged == 1
    if not decided.any():
        return None
    names = {0: "normal", 1: "anomalous", -1: "of unknown label"}
    rows: list[list[Content]] = []
    for label, name in names.items():
        here = decided & (results.labels == label)
        n, k = int(here.sum()), int((here & flagged).sum())
        if n:
            rows.append([name, f"{k:,}", f"{n - k:,}", percent(k / n), _fraction_interval(k, n)])
    at = None if results.metrics is None else results.metrics.image.at_threshold
    extra = None
    if at is not None and counts.normal and counts.anomalous:
        extra = f"Mean accuracy {metric(at.mean_accuracy)}, F1 {metric(at.f1)}."
    calibration = results.run.calibration
    threshold = None if calibration is None else calibration.threshold
    rule = None if calibration is None else calibration.rule
    bound = _false_alarms(results)
    origin = f", set for at most {percent(bound)} false alarms" if bound else f", by the rule {rule}" if rule else ""
    return tag(
        "div",
        table(
            ["", "flagged", "not", "fraction flagged", "95 % interval"], rows,
            caption=f"Decision at the threshold {number(threshold)}{origin}",
        ),
        tag("p", extra, class_="note") if extra else None,
    )  # fmt: skip


def _fraction_interval(k: int, n: int) -> str:
    low, high = wilson(k, n)
    return f"{percent(low)} to {percent(high)}" if n else MISSING


def _pixel_table(results: ResultsFolder) -> Content:
    pixel = None if results.metrics is None else results.metrics.pixel
    if pixel is None:
        return None
    rows = [
        _row("AUROC", pixel.auroc, "over all pixels; 0.5 is guessing"),
        _row(
            "AUPRO",
            pixel.aupro,
            f"area under per-region overlap, up to {percent(pixel.aupro.limit)} of normal pixels flagged",
        ),
        _row("Average precision", pixel.average_precision, "area under precision-recall of pixels"),
        _best_row(pixel.f1_max),
    ]
    at, regions = pixel.at_threshold, pixel.regions
    if at is not None:
        where = f"at the pixel threshold {number(at.threshold)}: "
        rows += [
            _row("Dice", Interval(at.dice), where + "overlap with the true masks"),
            _row("PRO", Interval(at.pro), where + "mean overlap by region"),
            _row("Normal pixels flagged", Interval(at.false_positive_rate), where + "in normal images"),
        ]
    if pixel.mood_ap is not None:
        rows.append(_row("MOOD AP", Interval(pixel.mood_ap), "pixels of all images pooled"))
    if regions is not None and regions.total:
        low, high = wilson(regions.hit, regions.total)
        meaning = f"{regions.false_regions:,} flagged regions touch no true one"
        rows.append(["Regions detected", f"{regions.hit:,} of {regions.total:,}", ends(low, high), meaning])
    return _metric_table(f"Pixels: how well maps localise ({count(pixel.images, 'image')})", rows)


def _region_table(results: ResultsFolder) -> Content:
    """By region (free response) and by patch."""
    if results.metrics is None:
        return None
    region, patch = results.metrics.region, results.metrics.patch
    rows = []
    if region is not None and region.total:
        for entry in region.sensitivity:
            if entry.false_per_image in (0.125, 1.0, 8.0):
                level = number(entry.false_per_image)
                meaning = f"of {region.total:,} true regions, with at most {level} false ones per image"
                rows.append(_row(f"Sensitivity at {level}", entry, meaning))
        rows.append(_row("Mean sensitivity", region.mean_sensitivity, "the same at 1/8, 1/4, 1/2, 1, 2, 4 and 8"))
    if patch is not None:
        what = (
            f"{patch.anomalous:,} patches of side {patch.size} with at least {percent(patch.fraction)} marked, "
            f"{patch.normal:,} with nothing marked, {patch.left_out:,} between left out"
        )
        rows += [
            _row("Patch AUROC", patch.auroc, what),
            _row("Patch AP", patch.average_precision, "of the same patches"),
        ]
    return _metric_table("Regions and patches", rows) if any(row[1] != MISSING for row in rows) else None


def _row(name: str, found: Interval | None, meaning: Content) -> list[Content]:
    found = found or Interval()
    if found.error >= 0.0005:  # what three decimals show
        meaning = join(meaning, f"; exact to {number(found.error, 1)}")
    return [name, metric(found.value), ends(found.low, found.high), meaning]


def _best_row(best: Best | None) -> list[Content]:
    best = best or Best()
    meaning = f"threshold {number(best.threshold)}, the best on these labels: a bound, not a forecast"
    return _row("F1 max (oracle)", Interval(best.value), meaning)


def _metric_table(caption: str, rows: Sequence[Sequence[Content]]) -> Markup:
    shown = [row for row in rows if row[1] != MISSING]
    body = [[row[0], row[1], row[2], tag("span", row[3], class_="meaning")] for row in shown]
    return tag(
        "div", table(["", "value", "95 % interval", tag("span", "meaning", class_="meaning")], body, caption=caption)
    )


# --- audit


def _audit(results: ResultsFolder) -> Content:
    """Of a training set: what is suspicious, how that was decided, and what other values of lambda gave."""
    audit, calibration = results.run.audit, results.run.calibration
    if audit is None:
        return None
    threshold = None if calibration is None else calibration.threshold
    falling = np.argsort(-results.scores, kind="stable")
    chosen = falling[results.flagged[falling] == 1].tolist()
    rule = (
        f"the highest scores, as many as the fraction of {percent(audit.fraction)} that was given"
        if audit.fraction is not None
        else f"more than {number(threshold)} robust standard deviations above the median. No fraction was assumed and none is "
        "guaranteed: judge the list from the top"
    )
    seen = (
        "All images were scored by one fit to all of them."
        if audit.folds == 1
        else f"Each image was scored by one of {audit.folds} fits, one that had not seen it."
    )
    lambdas = (
        f"With lambda {number(audit.weight)} a sparse part S was needed by {percent(audit.with_sparse_part)} of the images: what "
        "the autoencoder does not reconstruct, shown as 'sparse'."
        if audit.weight is not None and audit.with_sparse_part is not None
        else ""
    )
    rows: list[list[Content]] = [
        [results.paths[i], results.cases[i], number(results.scores[i].item())] for i in chosen[:LISTED]
    ]
    more = f"and {len(chosen) - LISTED:,} more, in suspicious.csv." if len(chosen) > LISTED else None
    path = [
        [number(one.weight), percent(one.with_sparse_part), number(one.rounds), percent(one.constraint)]
        for one in audit.path
    ]
    return [
        tag("p", f"{count(len(chosen), 'image')} of {len(results):,} suspicious: {rule}. {seen} {lambdas}"),
        table(["image", "case", "score"], rows, caption="Suspicious, highest score first", numbers=2) if rows else None,
        tag("p", more, class_="note") if more else None,
        table(["lambda", "images with S", "rounds", "|X - L - S| / |X|"], path, caption="Values of lambda")
        if path
        else None,
    ]


# --- curves


def _curves(results: ResultsFolder) -> Content:
    shown: list[Content] = []
    calibration, found = results.run.calibration, results.metrics
    if np.isfinite(results.scores).any():
        threshold = None if calibration is None else calibration.threshold
        figure, note = figures.score_figure(results.scores, results.labels, threshold)
        shown.append(
            _plot("Scores by label", figure, note + "Higher is more anomalous. The less they overlap, the better.")
        )
    if np.isfinite(results.p_values).any():
        shown.append(_p_values(results))
    curves = Curves() if found is None else found.curves
    if found is not None and (roc := curves.roc) is not None and len(roc.fpr) > 1:
        at, auroc = found.image.at_threshold, found.image.auroc
        point = None
        if at is not None and at.false_positive_rate is not None and at.true_positive_rate is not None:
            point = at.false_positive_rate, at.true_positive_rate
        figure = figures.roc_figure([Curve("ROC", roc.fpr, roc.tpr)], point)
        shown.append(_plot("ROC", figure, f"AUROC {with_interval(auroc)}."))
    if found is not None and (pr := curves.pr) is not None and len(pr.recall) > 1:
        counts = _Counts(results)
        prevalence = counts.anomalous / max(counts.normal + counts.anomalous, 1)
        figure = figures.precision_recall_figure(Curve("precision-recall", pr.recall, pr.precision), prevalence)
        text = f"Average precision {with_interval(found.image.average_precision)}."
        shown.append(_plot("Precision and recall", figure, text))
    if found is not None and found.pixel is not None and (pro := curves.pro) is not None and len(pro.fpr) > 1:
        aupro = found.pixel.aupro
        figure = figures.pro_figure(Curve("PRO", pro.fpr, pro.pro), aupro.limit)
        text = f"AUPRO {with_interval(aupro)}: the area up to {aupro.limit:g}."
        shown.append(_plot("Overlap with regions, by pixel", figure, text))
    if (
        found is not None
        and found.region is not None
        and (froc := curves.froc) is not None
        and len(froc.sensitivity) > 1
    ):
        figure = figures.froc_figure(Curve("FROC", froc.false_per_image, froc.sensitivity))
        text = f"Mean sensitivity {with_interval(found.region.mean_sensitivity)}."
        shown.append(_plot("Regions detected", figure, text))
    return tag("div", shown, class_="plots") if shown else None


def _p_values(results: ResultsFolder) -> Markup:
    calibration = results.run.calibration
    held_out = (calibration.count if calibration is not None else None) or 0
    figure = figures.p_value_figure(results.p_values, results.labels, held_out, _false_alarms(results))
    text = "Uniform, that is along the diagonal, for normal images; anomalous ones rise at once."
    if not (results.labels == 0).any():
        text = "p-values of normal images follow the diagonal; what rises above it is anomalous."
    return _plot("p-values", figure, text)


def _plot(title: str, figure: Markup, words: Content) -> Markup:
    return tag("figure", tag("figcaption", tag("strong", title), " ", words), tag("div", figure), class_="plot")


def _median(scores: Float64) -> str:
    scores = scores[np.isfinite(scores)]
    return number(float(np.median(scores))) if scores.size else MISSING


# --- types


def _types(results: ResultsFolder) -> Content:
    """One row for each type of anomalous image, the hardest first."""
    evaluated = {} if results.metrics is None else results.metrics.types
    labels, flagged, decided = results.labels, results.flagged == 1, results.flagged >= 0
    names = {*evaluated, *results.types.among(labels == 1)} - {""}
    if not names:
        return None

    def area(name: str) -> float:
        value = evaluated[name].auroc.value if name in evaluated else None
        return 2.0 if value is None else value

    start = 0.5 if all(area(name) >= 0.5 for name in names) else 0.0
    rows: list[list[Content]] = []
    for name in sorted(names, key=lambda name: (area(name), name)):
        entry = evaluated.get(name)
        here = (labels == 1) & results.types.are(name)
        n, k = int((here & decided).sum()), int((here & flagged).sum())
        auroc = Interval() if entry is None else entry.auroc
        rows.append([
            name, f"{int(here.sum()) or (0 if entry is None else entry.count):,}", metric(auroc.value),
            ends(auroc.low, auroc.high), figures.interval_mark(auroc.value, auroc.low, auroc.high, start),
            f"{k:,} of {n:,}" if n else MISSING, _fraction_interval(k, n),
            *((MISSING, MISSING) if entry is None else (metric(entry.pixel_auroc), metric(entry.aupro))),
            _median(results.scores[here]),
        ])  # fmt: skip
    head: list[Content] = [
        "", "images", "AUROC", "95 % interval", f"{start:g} to 1", "detected", "95 % interval", "pixel AUROC", "AUPRO",
        "median score",
    ]  # fmt: skip
    kept = [k for k in range(len(head)) if k < 2 or any(row[k] not in (MISSING, None) for row in rows)]
    words = "Each type against all normal images; the hardest first." if evaluated else ""
    if (labels == 0).any():
        words += f" The median score of normal images is {_median(results.scores[labels == 0])}."
    return [
        tag("p", words.strip(), class_="note") if words else None,
        table([head[k] for k in kept], [[row[k] for k in kept] for row in rows]),
    ]


def _classes(results: ResultsFolder) -> Content:
    """One row for each class of normal images."""
    rows = [] if results.metrics is None else class_rows({"": results.metrics})
    return [tag("p", NOTE, class_="note"), table(HEAD, [row[1:] for row in rows])] if rows else None


# --- latent space, training


def _latent(results: ResultsFolder) -> Content:
    """Both spaces in which one may look at images: their codes, and their restored versions."""
    path = results.folder / LATENTS
    if not (path.is_file() and is_inside(path, results.folder)):
        return None
    try:
        codes = read_array(path)
    except DataError as error:
        return tag("p", f"{LATENTS} cannot be read ({error}).", class_="warning")
    if codes.ndim < 2 or len(codes) != len(results) or codes.dtype.kind not in "fiu":
        return tag(
            "p", f"{LATENTS} has shape {codes.shape}, expected {len(results):,} rows; not shown.", class_="warning"
        )
    if min(len(codes), LATENT_POINTS) * codes[0].size > LATENT_VALUES:
        return tag("p", f"{LATENTS} has shape {codes.shape}, too large to be shown.", class_="warning")
    rows = np.arange(len(codes))
    if len(rows) > LATENT_POINTS:
        rows = np.sort(np.random.default_rng(0).choice(rows, LATENT_POINTS, replace=False))
    return [
        _space(results, rows, np.asarray(codes.reshape(len(codes), -1)[rows], np.float64), "latent code"),
        _space(results, rows, restored_thumbnails(results, rows), "restored image"),
    ]


def _space(results: ResultsFolder, rows: Indices, x: Float64, what: str) -> Content:
    """Rows of ``x`` that have a number missing are left out."""
    good = np.isfinite(x).all(axis=1) & (x.shape[1] > 0)
    rows, x = rows[good], x[good]
    if len(rows) < 5:
        return None
    words = f"t-SNE of {count(len(rows), what)} of {x.shape[1]} numbers"
    words += f", drawn at random from {len(results):,}. " if len(rows) < len(results) else ". "
    return _plot(
        f"{what.capitalize()}s",
        figures.latent_figure(_tsne(x), _groups(results, rows), what),
        words + "Near points are alike; distances between groups and their sizes mean little.",
    )


def _tsne(x: Float64) -> Float64:
    """``(N, d)`` to ``(N, 2)`` (van der Maaten and Hinton 2008), by way of 50 principal components as they do."""
    from sklearn.decomposition import PCA  # slow to import, and few methods have latents
    from sklearn.manifold import TSNE

    x = x - x.mean(axis=0)
    scale = float(x.std())
    x = x / (scale if scale > 0 else 1.0)
    components = min(50, *x.shape)
    x = PCA(components, random_state=0).fit_transform(x) if x.shape[1] > 50 and scale > 0 else x
    perplexity = min(30.0, (len(x) - 1) / 3)
    method = "exact" if len(x) <= 300 else "barnes_hut"  # for few points its threads wait longer than they work
    # random: the default starts from principal components, which identical codes do not have
    points: Float64 = TSNE(2, perplexity=perplexity, method=method, init="random", random_state=0).fit_transform(x)
    return points


def _groups(results: ResultsFolder, rows: Indices) -> dict[str, Mask]:
    labels = results.labels[rows]
    groups = {"unknown": labels < 0, "normal": labels == 0}
    anomalous = results.types.among(rows[labels == 1])
    if 1 < len(anomalous) <= 7:
        groups |= {kind or "other": (labels == 1) & results.types.are(kind)[rows] for kind in anomalous}
    else:
        groups["anomalous"] = labels == 1
    return {name: inside for name, inside in groups.items() if inside.any()}


def _training(results: ResultsFolder) -> Content:
    """A figure for each stage. After a resume, a step may have been recorded twice: the later one counts."""
    stages: dict[str, dict[str, dict[int, float]]] = {}
    path = results.folder / TRAIN_LOG
    for record in read_log(path) if is_inside(path, results.folder) else ():
        step, stage = record.get("step"), str(record.get("stage") or "")
        if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 2**53:
            continue
        for name, value in record.items():
            if name not in _NO_TERMS and isinstance(value, int | float) and abs(value) < 1e100:  # false for NaN
                stages.setdefault(stage, {}).setdefault(name, {})[step] = float(value)
    shown = []
    for stage, terms in stages.items():
        ordered = sorted(terms, key=lambda name: (name != "loss", name != "held_out_loss"))[:8]
        curves = {name: _thinned(sorted(terms[name].items())) for name in ordered}
        shown.append(tag("figure", tag("div", figures.training_figure(stage, curves)), class_="plot"))
    return tag("div", shown, class_="plots") if shown else None


_NO_TERMS = ("method", "stage", "step", "steps", "images_per_second", "event")
"""Of a record of the training log: what is no loss term."""


def _thinned(points: list[tuple[int, float]], most: int = 400) -> tuple[list[int], list[float]]:
    """Means of equal runs of points, so that a long training stays a small figure."""
    run = math.ceil(len(points) / most)
    groups = [points[k : k + run] for k in range(0, len(points), run)]
    return [group[-1][0] for group in groups], [math.fsum(y for _, y in group) / len(group) for group in groups]


# --- details


def _details(results: ResultsFolder, about_inputs: str) -> Content:
    run = results.run
    settings, failed, incomplete = run.model.settings, run.data.failed, run.data.incomplete
    model, data, whole = to_json(run.model), to_json(run.data), to_json(run)
    parts: list[tuple[str, Content]] = [
        ("What the numbers mean", tag("ul", [tag("li", note) for note in _notes(results)])),
        ("Settings", definitions([(name, plain(value)) for name, value in settings.items()]) if settings else None),
        ("Model", _facts(model, ("method", "description", "shape", "preprocess", "training_data", "fit"))),
        (
            "Data",
            [_facts(data, ("spec", "name", "count", "fingerprint", "split", "has_masks")), tag("p", about_inputs)],
        ),
        ("Calibration", _facts(calibration, tuple(calibration)) if (calibration := to_json(run.calibration)) else None),
        (
            "Run",
            _facts(
                whole, ("created", "normalcy", "commit", "score", "device", "seconds", "images_per_second", "versions")
            ),
        ),
        (f"Failed files ({run.data.failed_count or len(failed)})", _failed(failed) if failed else None),
        (
            f"Incomplete images ({run.data.incomplete_count or len(incomplete)})",
            _failed(incomplete) if incomplete else None,
        ),
    ]
    files = [
        name
        for name in ("scores.csv", "failed.csv", "incomplete.csv", "metrics.json", "run.json")
        if (results.folder / name).is_file()
    ]
    links = [[tag("a", name, href=quote(name)), " "] for name in files]
    folded = [(title, content) for title, content in parts if content]
    return [
        [
            tag("details", tag("summary", title), content, open="open" if k == 0 else None)
            for k, (title, content) in enumerate(folded)
        ],
        tag("p", "Beside this page: ", links, class_="note"),
    ]


def _notes(results: ResultsFolder) -> list[Content]:
    calibration, counts = results.run.calibration, _Counts(results)
    notes: list[Content] = [
        "Higher scores are more anomalous. An image is flagged when its score is above the threshold."
    ]
    bound, held_out = _false_alarms(results), None if calibration is None else calibration.count
    if bound and held_out:
        notes.append(
            f"The guarantee: the threshold was set on {count(held_out, 'normal image')} that the model was not trained on, so "
            f"that of new normal images from the same source at most {percent(bound)} are flagged on average (split conformal "
            "prediction). It does not hold for images from elsewhere, and says nothing about how many anomalies are detected."
        )
    if bound and calibration is not None and calibration.pixel_threshold is not None:
        notes.append(
            f"The pixel threshold likewise: on average at most {percent(bound)} of a new normal image is outlined."
        )
    if np.isfinite(results.p_values).any():
        notes.append(
            "A p-value is the fraction of calibration images, and this one, whose score is at least as high: of normal images, "
            "one in twenty has p up to 0.05."
        )
    if results.metrics is not None:
        notes.append(
            "F1 max is an oracle number: its threshold is the one that suits these labels best, which nobody has "
            "beforehand. It bounds what a threshold can do and is not to be compared with results at a fixed one."
        )
        notes.append(
            "AUROC and the other areas need no threshold. Their 95 % intervals come from resampled cases; those of single "
            "types from DeLong's variance."
        )
    if counts.normal or counts.anomalous:
        notes.append(
            "Intervals of rates (flagged, detected) are Wilson's, and take images as independent of each other."
        )
    notes.append(
        "Images larger than 400 pixels are reduced for display: inputs by the mean, maps by the largest value of a block. "
        "Contours and colours do not change any number on this page."
    )
    others = () if results.metrics is None else results.metrics.notes
    return [*notes, *(note for note in others if not note.startswith("f1_max is"))]  # said above


def _facts(tree: dict[str, Any], keys: Sequence[str]) -> Content:
    present = [(key.replace("_", " "), plain(tree[key])) for key in keys if tree.get(key) not in (None, "")]
    return definitions(present) if present else None


def _failed(failed: Sequence[Failure]) -> Content:
    rows = [[one.path, one.reason] for one in failed[:LISTED]]
    more = f"and {len(failed) - LISTED:,} more, in run.json." if len(failed) > LISTED else None
    return [table(["file", "reason"], rows, numbers=9), tag("p", more, class_="note") if more else None]
