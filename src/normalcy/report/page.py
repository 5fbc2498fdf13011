"""The report of one results folder: what was found, how sure that is, and the images to judge it by."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from normalcy.arrays import Float64, Indices, Mask
from normalcy.data.dataset import DataSet
from normalcy.data.open import open_data
from normalcy.errors import DataError
from normalcy.files import write_bytes
from normalcy.metrics.intervals import wilson
from normalcy.report import figures
from normalcy.report.figures import Curve
from normalcy.report.gallery import images_section
from normalcy.report.markup import (
    MISSING,
    Content,
    Markup,
    count,
    definitions,
    document,
    interval,
    join,
    metric,
    number,
    percent,
    table,
    tag,
)
from normalcy.report.pictures import restored_thumbnails
from normalcy.results.folder import LATENTS, Json, Results, finite, look, read_results
from normalcy.scoring import NOTICE

LATENT_POINTS = 2000
LISTED = 100  # failed files


def write_report(results: Path, dataset: DataSet | None = None) -> Path:
    """Writes ``report.html`` into a results folder and returns its path.

    The inputs are read from ``dataset``, by default from the data set that run.json names; without them the page shows
    the maps alone and says so. Only files of images that are shown are read. Raises DataError when scores.csv, run.json or
    metrics.json cannot be used.
    """
    folder = Path(results)
    read = read_results(folder)
    why_no_inputs = ""
    if dataset is None:
        dataset, why_no_inputs = _reopen(read)
    page = _page(read, dataset, why_no_inputs)
    path = folder / "report.html"
    write_bytes(path, page.encode("utf-8"))
    return path


def headline(results: Results) -> Markup:
    """The result in a sentence or two."""
    counts = _Counts(results)
    auroc = look(results.metrics, "image", "auroc")
    total = len(results)
    if finite(look(auroc, "value")) is not None:
        start: Content = [
            "AUROC ", tag("strong", metric(auroc["value"])), " ", interval(auroc.get("low"), auroc.get("high")),
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


def _decision(results: Results, counts: "_Counts") -> Markup:
    """What the threshold promised and what it did."""
    threshold = look(results.run, "calibration", "threshold")
    if not (results.flagged >= 0).any():
        return join("There is no threshold, so nothing is flagged: the detector was not calibrated.")
    promise = _false_alarms(results)
    if promise and finite(threshold) is None:
        held_out = look(results.run, "calibration", "count")
        return join(
            f"Nothing can be flagged: {held_out} calibration images are too few to promise at most {percent(promise)} "
            f"false alarms; at least {math.ceil(1 / promise - 1)} are needed."
        )
    subject = f"The threshold promises at most {percent(promise)} false alarms" if promise else "At the threshold"
    parts = []
    if counts.normal:
        parts.append(f"{counts.false_alarms:,} of {counts.normal:,} normal images flagged")
    if counts.anomalous:
        parts.append(f"{counts.found:,} of {counts.anomalous:,} anomalous found")
    if not parts or counts.unknown:
        flagged = int(((results.flagged == 1) & (results.labels < 0)).sum())
        parts.append(f"{flagged:,} of {counts.unknown:,} {'unlabelled ' if parts else ''}images flagged")
    return join(subject, ": ", ", ".join(parts), ".")


def _false_alarms(results: Results) -> float | None:
    """The promised share, where the threshold comes with a promise."""
    if look(results.run, "calibration", "rule") not in (None, "false_alarms"):
        return None
    return finite(look(results.run, "calibration", "false_alarms"))


class _Counts:
    """How many images of each label, and what became of them."""

    def __init__(self, results: Results) -> None:
        labels, flagged = results.labels, results.flagged == 1
        decided = results.flagged >= 0
        self.normal, self.anomalous, self.unknown = (int((labels == value).sum()) for value in (0, 1, -1))
        self.false_alarms, self.found = (int((flagged & (labels == value)).sum()) for value in (0, 1))
        self.missed = int(((labels == 1) & decided & ~flagged).sum())


# --- the page


def _page(results: Results, dataset: DataSet | None, why_no_inputs: str) -> str:
    run = results.run
    method, data = look(run, "model", "method") or "unknown method", look(run, "data", "name") or results.folder.name
    sections: list[tuple[str, str, Content]] = [
        ("audit", "Suspicious training images", _audit(results)),
        ("summary", "Summary", _summary(results)),
        ("curves", "Scores and curves", _curves(results)),
        ("types", "Types of anomaly", _types(results)),
        ("images", "Images", images_section(results, dataset, why_no_inputs)),
        ("latent", "Latent space", _latent(results)),
        ("training", "Training", _training(results)),
        ("details", "Settings, data and notes", _details(results)),
    ]
    present = [(key, title, content) for key, title, content in sections if content]
    description = look(run, "model", "description")
    facts = [
        count(len(results), "image") + (f" ({split})" if (split := look(run, "data", "split")) else ""),
        f"{number(speed, 3)} images/s on {look(run, 'device')}" if (speed := look(run, "images_per_second")) else None,
        str(look(run, "created") or "")[:16].replace("T", " "),
        f"normalcy {look(run, 'normalcy') or '?'}",
    ]
    header = tag(
        "header",
        tag("p", " · ".join(fact for fact in facts if fact), class_="facts"),
        tag("h1", method, tag("span", " on ", class_="light"), data),
        tag("p", description, class_="about") if description else None,
        tag("p", headline(results), class_="headline"),
        _warnings(results),
    )
    navigation = tag("nav", [tag("a", title, href=f"#{key}") for key, title, _ in present], aria_label="Sections")
    body = [tag("section", tag("h2", title), content, id=key) for key, title, content in present]
    return document(f"{method} on {data}: normalcy report", header, navigation, tag("main", body), script=True)


def _warnings(results: Results) -> Content:
    """What a reader must know before believing the numbers."""
    counts, promise = _Counts(results), _false_alarms(results)
    words = [NOTICE] if look(results.run, "data", "medical") else []
    if promise and counts.normal and (results.flagged >= 0).any():
        low, _ = wilson(counts.false_alarms, counts.normal)
        if low > promise:
            words.append(
                f"{percent(counts.false_alarms / counts.normal)} of the normal images are flagged, more than the promised "
                f"{percent(promise)} and more than chance explains: they differ from the normal images that the "
                "threshold was set on (another camera, site, lot or patient group?)."
            )
    held_out = look(results.run, "calibration", "count")
    if isinstance(held_out, int) and held_out < 20:
        words.append(
            f"Only {count(held_out, 'image')} to calibrate on: p-values are steps of {number(1 / (held_out + 1), 2)}."
        )
    lost = int((~np.isfinite(results.scores)).sum())
    if lost:
        words.append(
            f"{count(lost, 'image has', 'images have')} no finite score; they are left out of figures and galleries."
        )
    failed = look(results.run, "data", "failed")
    if failed:
        words.append(f"{count(len(failed), 'file')} could not be read: see Failed files, at the end.")
    if results.metrics is None and counts.normal and counts.anomalous:
        words.append(
            "Labels are known but metrics.json is missing: 'normalcy evaluate' adds AUROC, curves and intervals."
        )
    return [tag("p", text, class_="warning") for text in words]


# --- summary


def _summary(results: Results) -> Content:
    left = [part for part in (_image_table(results), _decision_table(results)) if part]
    right = [part for part in (_pixel_table(results), _region_table(results)) if part]
    return (
        tag("div", [tag("div", left), tag("div", right) if right else None], class_="tables") if left or right else None
    )


def _image_table(results: Results) -> Content:
    image = look(results.metrics, "image")
    if not image:
        return None
    normal, anomalous = look(image, "normal"), look(image, "anomalous")
    chance = anomalous / (normal + anomalous) if normal or anomalous else None
    rows = [
        _row(
            "AUROC",
            image.get("auroc"),
            "chance that an anomalous image scores higher than a normal one; 0.5 is guessing",
        ),
        _row(
            "Average precision",
            image.get("average_precision"),
            f"area under precision-recall; {metric(chance)} is guessing",
        ),
        _row(
            "FPR at 95 % TPR",
            image.get("fpr_at_95_tpr"),
            "share of normal images flagged when 95 % are found",
        ),
        _row("F1 max (oracle)", image.get("f1_max"), _oracle(image.get("f1_max"))),
    ]
    return _metric_table("Images: how well scores separate", rows)


def _decision_table(results: Results) -> Content:
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
            rows.append([name, f"{k:,}", f"{n - k:,}", percent(k / n), _share_interval(k, n)])
    at = look(results.metrics, "image", "at_threshold")
    extra = []
    if at and counts.normal and counts.anomalous:
        extra = [f"Mean accuracy {metric(at.get('mean_accuracy'))}, F1 {metric(at.get('f1'))}."]
    threshold = finite(look(results.run, "calibration", "threshold"))
    promise, rule = _false_alarms(results), look(results.run, "calibration", "rule")
    origin = (
        f", set for at most {percent(promise)} false alarms" if promise else f", by the rule {rule}" if rule else ""
    )
    return tag(
        "div",
        table(
            ["", "flagged", "not", "share flagged", "95 % interval"], rows,
            caption=f"Decision at the threshold {number(threshold)}{origin}",
        ),
        tag("p", extra, class_="note") if extra else None,
    )  # fmt: skip


def _share_interval(k: int, n: int) -> str:
    low, high = wilson(k, n)
    return f"{percent(low)} to {percent(high)}" if n else MISSING


def _pixel_table(results: Results) -> Content:
    pixel = look(results.metrics, "pixel")
    if not pixel:
        return None
    limit = look(pixel, "aupro", "limit")
    rows = [
        _row("AUROC", pixel.get("auroc"), "over all pixels; 0.5 is guessing"),
        _row(
            "AUPRO", pixel.get("aupro"),
            "area under per-region overlap" + (f", up to {percent(limit)} of normal pixels flagged" if limit else ""),
        ),
        _row("Average precision", pixel.get("average_precision"), "area under precision-recall of pixels"),
        _row("F1 max (oracle)", pixel.get("f1_max"), _oracle(pixel.get("f1_max"))),
    ]  # fmt: skip
    at, regions = pixel.get("at_threshold"), pixel.get("regions")
    if at:
        where = f"at the pixel threshold {number(at.get('threshold'))}: "
        rows += [
            _row("Dice", at.get("dice"), where + "overlap with the true masks"),
            _row("PRO", at.get("pro"), where + "mean overlap by region"),
            _row("Normal pixels flagged", at.get("false_positive_rate"), where + "in normal images"),
        ]
    if look(pixel, "mood_ap") is not None:
        rows.append(_row("MOOD AP", pixel["mood_ap"], "pixels of all images pooled"))
    if regions and look(regions, "total"):
        hit, total = int(regions["hit"]), int(regions["total"])
        low, high = wilson(hit, total)
        false = look(regions, "false_regions")
        rows.append(
            [
                "Regions found",
                f"{hit:,} of {total:,}",
                interval(low, high),
                f"{false:,} flagged regions touch no true one",
            ]
        )
    return _metric_table(f"Pixels: how well maps point ({count(pixel.get('images', 0), 'image')})", rows)


def _region_table(results: Results) -> Content:
    """By region (free response) and by patch."""
    region, patch = look(results.metrics, "region"), look(results.metrics, "patch")
    rows = []
    if region and look(region, "total"):
        for entry in region.get("sensitivity") or []:
            if entry.get("false_per_image") in (0.125, 1.0, 8.0):
                level = number(entry["false_per_image"])
                meaning = f"of {region['total']:,} true regions, with at most {level} false ones per image"
                rows.append(_row(f"Found at {level}", entry, meaning))
        rows.append(
            _row("Mean sensitivity", region.get("mean_sensitivity"), "the same at 1/8, 1/4, 1/2, 1, 2, 4 and 8")
        )
    if patch:
        what = (
            f"{patch['anomalous']:,} patches of side {patch['size']} with at least {percent(patch['share'])} marked, "
            f"{patch['normal']:,} with nothing marked, {patch['left_out']:,} between left out"
        )
        rows += [
            _row("Patch AUROC", patch.get("auroc"), what),
            _row("Patch AP", patch.get("average_precision"), "of the same patches"),
        ]
    return _metric_table("Regions and patches", rows) if any(row[1] != MISSING for row in rows) else None


def _row(name: str, entry: Any, meaning: Content) -> list[Content]:
    values = entry if isinstance(entry, dict) else {"value": entry}
    if (finite(values.get("error")) or 0.0) >= 0.0005:  # what three decimals show
        meaning = join(meaning, f"; exact to {number(values['error'], 1)}")
    return [name, metric(values.get("value")), interval(values.get("low"), values.get("high")), meaning]


def _oracle(entry: Any) -> str:
    return f"threshold {number(look(entry, 'threshold'))}, the best on these labels: a bound, not a forecast"


def _metric_table(caption: str, rows: Sequence[Sequence[Content]]) -> Markup:
    shown = [row for row in rows if row[1] != MISSING]
    body = [[row[0], row[1], row[2], tag("span", row[3], class_="meaning")] for row in shown]
    return tag(
        "div", table(["", "value", "95 % interval", tag("span", "meaning", class_="meaning")], body, caption=caption)
    )


# --- audit


def _audit(results: Results) -> Content:
    """Of a training set: what is suspicious, how that was decided, and what other values of lambda said."""
    facts = look(results.run, "audit")
    if not isinstance(facts, dict):
        return None
    threshold, share = finite(look(results.run, "calibration", "threshold")), finite(facts.get("share"))
    falling = np.argsort(-results.scores, kind="stable")
    chosen = [int(i) for i in falling if results.flagged[i] == 1]
    rule = (
        f"the highest scores, as many as the share of {percent(share)} that was given"
        if share is not None
        else f"more than {number(threshold)} robust deviations above the median. No share was assumed and none is promised: "
        "judge the list from the top"
    )
    folds = facts.get("folds")
    seen = (
        "All images were scored by one fit to all of them."
        if folds == 1
        else f"Each image was scored by one of {folds} fits, one that had not seen it."
    )
    weight, sparse = finite(facts.get("weight")), finite(facts.get("with_sparse_part"))
    lambdas = (
        f"With lambda {number(weight)} a sparse part S was needed by {percent(sparse)} of the images: what the autoencoder could "
        "not say of them, shown as 'sparse'."
        if weight is not None and sparse is not None
        else ""
    )
    rows: list[list[Content]] = [
        [results.paths[i], results.cases[i], number(results.scores[i].item())] for i in chosen[:LISTED]
    ]
    more = f"and {len(chosen) - LISTED:,} more, in suspicious.csv." if len(chosen) > LISTED else None
    path = [
        [number(one["weight"]), percent(one["with_sparse_part"]), f"{one['rounds']}", percent(one["constraint"])]
        for one in facts.get("path") or []
    ]
    return [
        tag("p", f"{count(len(chosen), 'image')} of {len(results):,} suspicious: {rule}. {seen} {lambdas}"),
        table(["image", "case", "score"], rows, caption="Suspicious, the strangest first", numbers=2) if rows else None,
        tag("p", more, class_="note") if more else None,
        table(["lambda", "images with S", "rounds", "|X - L - S| / |X|"], path, caption="Values of lambda")
        if path
        else None,
    ]


# --- curves


def _curves(results: Results) -> Content:
    shown: list[Content] = []
    if np.isfinite(results.scores).any():
        threshold = finite(look(results.run, "calibration", "threshold"))
        figure, note = figures.score_figure(results.scores, results.labels, threshold)
        shown.append(_plot("Scores by label", figure, note + "Larger is stranger. The less they overlap, the better."))
    if np.isfinite(results.p_values).any():
        shown.append(_p_values(results))
    curves = look(results.metrics, "curves") or {}
    if roc := _curve("ROC", curves.get("roc"), "fpr", "tpr"):
        at = look(results.metrics, "image", "at_threshold")
        ends = finite(look(at, "false_alarm_rate")), finite(look(at, "detection_rate"))
        point = (ends[0], ends[1]) if ends[0] is not None and ends[1] is not None else None
        auroc = look(results.metrics, "image", "auroc") or {}
        words = f"AUROC {metric(auroc.get('value'))} {interval(auroc.get('low'), auroc.get('high'))}."
        shown.append(_plot("ROC", figures.roc_figure([roc], point), words))
    if precision := _curve("precision-recall", curves.get("pr"), "recall", "precision"):
        counts = _Counts(results)
        prevalence = counts.anomalous / max(counts.normal + counts.anomalous, 1)
        entry = look(results.metrics, "image", "average_precision") or {}
        words = f"Average precision {metric(entry.get('value'))} {interval(entry.get('low'), entry.get('high'))}."
        shown.append(_plot("Precision and recall", figures.precision_recall_figure(precision, prevalence), words))
    if pro := _curve("PRO", curves.get("pro"), "fpr", "pro"):
        entry = look(results.metrics, "pixel", "aupro") or {}
        limit = finite(entry.get("limit")) or 0.3
        words = f"AUPRO {metric(entry.get('value'))} {interval(entry.get('low'), entry.get('high'))}: the area up to {limit}."
        shown.append(_plot("Overlap with regions, by pixel", figures.pro_figure(pro, limit), words))
    if froc := _curve("FROC", curves.get("froc"), "false_per_image", "sensitivity"):
        entry = look(results.metrics, "region", "mean_sensitivity") or {}
        words = f"Mean sensitivity {metric(entry.get('value'))} {interval(entry.get('low'), entry.get('high'))}."
        shown.append(_plot("Regions found", figures.froc_figure(froc), words))
    return tag("div", shown, class_="plots") if shown else None


def _p_values(results: Results) -> Markup:
    held_out = look(results.run, "calibration", "count")
    figure = figures.p_value_figure(
        results.p_values, results.labels, held_out if isinstance(held_out, int) else 0, _false_alarms(results)
    )
    words = "Uniform, that is along the diagonal, for normal images; anomalous ones rise at once."
    if not (results.labels == 0).any():
        words = "p-values of normal images follow the diagonal; what rises above it is strange."
    return _plot("p-values", figure, words)


def _curve(name: str, points: Any, x: str, y: str) -> Curve | None:
    xs, ys = look(points, x), look(points, y)
    usable = isinstance(xs, list) and isinstance(ys, list) and len(xs) == len(ys) > 1
    return Curve(name, xs, ys) if usable else None


def _plot(title: str, figure: Markup, words: Content) -> Markup:
    return tag("figure", tag("figcaption", tag("strong", title), " ", words), tag("div", figure), class_="plot")


def _median(scores: Float64) -> str:
    scores = scores[np.isfinite(scores)]
    return number(float(np.median(scores))) if scores.size else MISSING


# --- types


def _types(results: Results) -> Content:
    """One row for each type of anomalous image, the hardest first."""
    evaluated = look(results.metrics, "types") or {}
    labels, flagged, decided = results.labels, results.flagged == 1, results.flagged >= 0
    kinds = np.array(results.types, dtype=object)
    names = {str(name) for name in evaluated} | {str(name) for name in kinds[labels == 1] if name}
    if not names:
        return None

    def area(name: str) -> float:
        value = finite(look(evaluated, name, "auroc", "value"))
        return 2.0 if value is None else value

    start = 0.5 if all(area(name) >= 0.5 for name in names) else 0.0
    rows: list[list[Content]] = []
    for name in sorted(names, key=lambda name: (area(name), name)):
        entry = evaluated.get(name) or {}
        here = (labels == 1) & (kinds == name)
        n, k = int((here & decided).sum()), int((here & flagged).sum())
        auroc = entry.get("auroc") or {}
        ends = finite(auroc.get("low")), finite(auroc.get("high"))
        rows.append([
            name, f"{int(here.sum()) or entry.get('count', 0):,}", metric(auroc.get("value")), interval(*ends),
            figures.interval_mark(finite(auroc.get("value")), *ends, start),
            f"{k:,} of {n:,}" if n else MISSING, _share_interval(k, n),
            metric(entry.get("pixel_auroc")), metric(entry.get("aupro")), _median(results.scores[here]),
        ])  # fmt: skip
    head: list[Content] = [
        "", "images", "AUROC", "95 % interval", f"{start:g} to 1", "found", "95 % interval", "pixel AUROC", "AUPRO",
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


# --- latent space, training


def _latent(results: Results) -> Content:
    """Both spaces in which one may look at images: their codes, and their restored versions."""
    path = results.folder / LATENTS
    if not path.is_file():
        return None
    try:
        codes = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        return tag("p", f"{LATENTS} cannot be read ({error}).", class_="warning")
    if codes.ndim < 2 or len(codes) != len(results):
        return tag(
            "p", f"{LATENTS} has shape {codes.shape}, expected {len(results):,} rows; not shown.", class_="warning"
        )
    rows = np.arange(len(codes))
    if len(rows) > LATENT_POINTS:
        rows = np.sort(np.random.default_rng(0).choice(rows, LATENT_POINTS, replace=False))
    return [
        _space(results, rows, np.asarray(codes.reshape(len(codes), -1)[rows], np.float64), "latent code"),
        _space(results, rows, restored_thumbnails(results, rows), "restored image"),
    ]


def _space(results: Results, rows: Indices, x: Float64, what: str) -> Content:
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


def _groups(results: Results, rows: Indices) -> dict[str, Mask]:
    labels, kinds = results.labels[rows], np.array(results.types, dtype=object)[rows]
    groups = {"unknown": labels < 0, "normal": labels == 0}
    anomalous = sorted({str(kind) for kind in kinds[labels == 1]})
    if 1 < len(anomalous) <= 7:
        groups |= {kind or "other": (labels == 1) & (kinds == kind) for kind in anomalous}
    else:
        groups["anomalous"] = labels == 1
    return {name: inside for name, inside in groups.items() if inside.any()}


def _training(results: Results) -> Content:
    """A figure for each stage. After a resume, a step may have been recorded twice: the later one counts."""
    try:
        lines = (results.folder / "train.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    stages: dict[str, dict[str, dict[int, float]]] = {}
    for line in lines:
        try:
            record: Any = json.loads(line)
        except ValueError:
            continue  # the last line of a killed run
        step, stage = look(record, "step"), str(look(record, "stage") or "")
        if not isinstance(step, int):
            continue
        for name, value in record.items():
            if (
                name not in ("method", "stage", "step", "steps", "images_per_second", "event")
                and (y := finite(value)) is not None
            ):
                stages.setdefault(stage, {}).setdefault(name, {})[step] = y
    shown = []
    for stage, terms in stages.items():
        ordered = sorted(terms, key=lambda name: (name != "loss", name != "held_out_loss"))[:8]
        curves = {name: _thinned(sorted(terms[name].items())) for name in ordered}
        shown.append(tag("figure", tag("div", figures.training_figure(stage, curves)), class_="plot"))
    return tag("div", shown, class_="plots") if shown else None


def _thinned(points: list[tuple[int, float]], most: int = 400) -> tuple[list[int], list[float]]:
    """Means of equal runs of points, so that a long training stays a small figure."""
    run = math.ceil(len(points) / most)
    groups = [points[k : k + run] for k in range(0, len(points), run)]
    return [group[-1][0] for group in groups], [math.fsum(y for _, y in group) / len(group) for group in groups]


# --- details


def _details(results: Results) -> Content:
    run = results.run
    model, data, calibration = (look(run, key) or {} for key in ("model", "data", "calibration"))
    words = model.get("words") or {}
    failed = data.get("failed") or []
    parts: list[tuple[str, Content]] = [
        ("What the numbers mean", tag("ul", [tag("li", note) for note in _notes(results)])),
        ("Settings", definitions([(name, _plain(value)) for name, value in words.items()]) if words else None),
        ("Model", _facts(model, ("method", "description", "shape", "preprocess", "training_data", "fit"))),
        ("Data", _facts(data, ("spec", "data_root", "name", "count", "fingerprint", "split", "has_masks"))),
        ("Calibration", _facts(calibration, tuple(calibration)) if calibration else None),
        (
            "Run",
            _facts(
                run, ("created", "normalcy", "commit", "score", "device", "seconds", "images_per_second", "versions")
            ),
        ),
        (f"Failed files ({len(failed)})", _failed(failed) if failed else None),
    ]
    files = [name for name in ("scores.csv", "metrics.json", "run.json") if (results.folder / name).is_file()]
    links = [[tag("a", name, href=quote(name)), " "] for name in files]
    folded = [(title, content) for title, content in parts if content]
    return [
        [
            tag("details", tag("summary", title), content, open="open" if k == 0 else None)
            for k, (title, content) in enumerate(folded)
        ],
        tag("p", "Beside this page: ", links, class_="note"),
    ]


def _notes(results: Results) -> list[Content]:
    run, counts = results.run, _Counts(results)
    notes: list[Content] = ["A larger score is stranger. An image is flagged when its score is above the threshold."]
    promise, held_out = _false_alarms(results), look(run, "calibration", "count")
    if promise and held_out:
        notes.append(
            f"The promise: the threshold was set on {count(held_out, 'normal image')} that the model was not trained on, so that "
            f"of new normal images from the same source at most {percent(promise)} are flagged on average (split conformal "
            "prediction). It says nothing about images from elsewhere, nor about how many anomalies are found."
        )
    if promise and finite(look(run, "calibration", "pixel_threshold")) is not None:
        notes.append(
            f"The pixel threshold likewise: on average at most {percent(promise)} of a new normal image is outlined."
        )
    if np.isfinite(results.p_values).any():
        notes.append(
            "A p-value is the share of calibration images, and this one, that are at least as strange: of normal images, one "
            "in twenty has p up to 0.05."
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
        notes.append("Intervals of shares (flagged, found) are Wilson's, and take images as independent of each other.")
    notes.append(
        "Images larger than 400 pixels are reduced for display: inputs by the mean, maps by the largest value of a block. "
        "Contours and colours do not change any number on this page."
    )
    extra = look(results.metrics, "notes")
    others = [str(note) for note in (extra if isinstance(extra, list) else [])]
    return notes + [note for note in others if not note.startswith("f1_max is")]  # said above


def _facts(tree: Json, keys: Sequence[str]) -> Content:
    present = [(key.replace("_", " "), _plain(tree[key])) for key in keys if tree.get(key) is not None]
    return definitions(present) if present else None


def _plain(value: Any) -> str:
    """A JSON value in words."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return number(value, 6) if isinstance(value, float) else str(value)


def _failed(failed: Sequence[Any]) -> Content:
    rows = [[str(part) for part in (e.values() if isinstance(e, dict) else e)] for e in failed[:LISTED]]
    more = f"and {len(failed) - LISTED:,} more, in run.json." if len(failed) > LISTED else None
    return [table(["file", "reason"], rows, numbers=9), tag("p", more, class_="note") if more else None]


def _reopen(results: Results) -> tuple[DataSet | None, str]:
    """The data set that was scored, or why it cannot be opened."""
    spec, root = look(results.run, "data", "spec"), look(results.run, "data", "data_root")
    if not spec:
        return None, "run.json names no data set to read them from."
    try:
        return open_data(str(spec), root), ""
    except DataError as error:
        return None, str(error)
