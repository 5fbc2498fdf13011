"""The page of a comparison folder: several methods on the same images, which is best and how sure that is."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from normalcy.errors import DataError
from normalcy.report import figures
from normalcy.report.classes import HEAD, NOTE, class_rows
from normalcy.report.figures import Curve
from normalcy.report.markup import Content, definitions, document, join, table, tag
from normalcy.report.text import (
    MISSING,
    count,
    duration,
    ends,
    listed,
    metric,
    number,
    plain,
    signed,
)
from normalcy.results.comparison import COMPARISON, Compared, Comparison, MethodFailure, Paired, read_comparison
from normalcy.results.metrics import METRICS, Interval, read_metrics
from normalcy.results.names import REPORT
from normalcy.results.writer import Writer

CLEAR = 0.05  # p-value below which a difference from the best is called clear
_DRAWN = 8  # ROC curves that can be told apart


def write_comparison(folder: Path) -> Path:
    """Writes ``report.html`` into a comparison folder, from compare.json and the metrics.json of each method, and returns
    its path. Raises DataError when compare.json cannot be used."""
    folder = Path(folder)
    comparison = read_comparison(folder)
    methods, failed = comparison.ranked(), comparison.failed
    if not methods and not failed:
        raise DataError(f"{folder / COMPARISON}: expected at least one method, got none; compare some methods first.")
    return Writer(folder).bytes(REPORT, _page(folder, comparison, methods).encode("utf-8"))


def _page(folder: Path, comparison: Comparison, methods: list[Compared]) -> str:
    data, failed = comparison.data.name or folder.name, comparison.failed
    tested = comparison.data.test_images
    facts = [] if tested is None else [count(tested, "test image")]
    header = tag(
        "header",
        tag("p", " · ".join([*facts, count(len(methods), "method")]), class_="facts"),
        tag("h1", "Methods", tag("span", " on ", class_="light"), data),
        tag("p", _headline(methods), class_="headline"),
    )
    sections = [
        _section("methods", "Methods", _table(folder, methods)) if methods else None,
        _section("classes", "Classes", _classes(methods)) if any(one.classes for one in methods) else None,
        _section("roc", "ROC", _roc(folder, methods)),
        _section("failed", "Failed", _failed(failed)) if failed else None,
        _section("settings", "Settings", _settings(methods)) if methods else None,
        _section("notes", "What the numbers mean", _notes(methods)) if methods else None,
    ]
    return document(f"Methods on {data}: normalcy", header, tag("main", sections))


def _section(key: str, title: str, content: Content) -> Content:
    return tag("section", tag("h2", title), content, id=key) if content else None


def _headline(methods: list[Compared]) -> Content:
    ranked = [one for one in methods if one.area is not None]
    if not ranked or ranked[0].auroc is None:
        return "No method has an AUROC: the images have labels of one kind only, or every method failed."
    auroc = ranked[0].auroc
    start = [tag("strong", ranked[0].name), f" is best with AUROC {metric(auroc.value)} "]
    start += [ends(auroc.low, auroc.high), "."]
    tests = [(one.name, one.against_best) for one in ranked[1:]]
    p_values = [(name, test.p) for name, test in tests if test is not None and test.p is not None]
    tied = [name for name, p in p_values if p >= CLEAR]
    if tied:
        start.append(f" These images do not tell it apart from {listed(tied)}.")
    elif p_values:
        start.append(" It is ahead of every other method by more than chance (p < 0.05 each).")
    return start


def _table(folder: Path, methods: list[Compared]) -> Content:
    areas = [one.auroc or Interval() for one in methods]
    lows = [low for auroc in areas if (low := auroc.low or auroc.value) is not None]
    start = next((at for at in (0.75, 0.5, 0.25) if lows and min(lows) >= at), 0.0)
    rows: list[list[Content]] = []
    for one, auroc in zip(methods, areas):
        test = one.against_best
        best = test is None and one is methods[0]
        rows.append([
            _linked(folder, one), metric(auroc.value), ends(auroc.low, auroc.high),
            figures.interval_mark(auroc.value, auroc.low, auroc.high, start, "normal" if best else "ink"),
            "best" if best and len(methods) > 1 else _difference(test), number(test.p if test else None, 2),
            metric(one.pixel_auroc.value if one.pixel_auroc else None), metric(one.aupro.value if one.aupro else None),
            duration(one.fit_seconds), number(one.images_per_second, 3),
        ])  # fmt: skip
    head = [
        "",
        "AUROC",
        "95 % interval",
        f"{start:g} to 1",
        "against the best",
        "p",
        "pixel AUROC",
        "AUPRO",
        "fit",
        "images/s",
    ]
    kept = [k for k in range(len(head)) if k < 4 or any(row[k] != MISSING for row in rows)]
    return table([head[k] for k in kept], [[row[k] for k in kept] for row in rows])


def _classes(methods: list[Compared]) -> Content:
    rows = class_rows({one.name: one for one in methods})
    return [tag("p", NOTE, class_="note"), table(("method", *HEAD), rows, numbers=2)]


def _linked(folder: Path, one: Compared) -> Content:
    own = _folder(folder, one)
    if own is None or not (own / REPORT).is_file():
        return one.name
    return tag("a", one.name, href=f"./{quote(one.folder)}/report.html")


def _folder(folder: Path, one: Compared) -> Path | None:
    """The results folder of a method; None for a name that leads out of the comparison."""
    try:
        own = folder / one.folder
        inside = own.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):  # a name too long or with a null byte
        return None
    return own if one.folder and inside else None


def _difference(test: Paired | None) -> str:
    if test is None or test.difference is None:
        return MISSING
    span = f" [{signed(test.low)}, {signed(test.high)}]" if test.low is not None and test.high is not None else ""
    return signed(test.difference) + span


def _roc(folder: Path, methods: list[Compared]) -> Content:
    curves = []
    for one in methods:
        own = _folder(folder, one)
        if one.area is None or own is None or not (own / METRICS).is_file():
            continue
        roc = read_metrics(own).curves.roc
        if roc is not None and len(roc.fpr) > 1:
            curves.append(Curve(f"{one.name} {metric(one.area)}", roc.fpr, roc.tpr))
    if not curves:
        return None
    text = f"The best {_DRAWN} of {len(curves)}." if len(curves) > _DRAWN else "Upper left is better."
    return tag(
        "figure",
        tag("figcaption", text),
        tag("div", figures.roc_figure(curves[:_DRAWN], size=(6.4, 5.6))),
        class_="plot large",
    )


def _failed(failed: tuple[MethodFailure, ...]) -> Content:
    return table(["method", "reason"], [[one.name, one.reason] for one in failed], numbers=9)


def _settings(methods: list[Compared]) -> Content:
    return [
        tag("details", tag("summary", one.name), definitions([(k, plain(v)) for k, v in one.settings.items()]))
        for one in methods
        if one.settings
    ]


def _notes(methods: list[Compared]) -> Content:
    notes = [
        "AUROC: the chance that an anomalous image scores higher than a normal one; 0.5 is guessing. Intervals are 95 %."
    ]
    if any(one.against_best for one in methods):
        notes.append(
            "Against the best: AUROC minus that of the best method on the same images (paired). The p-value is two-sided, for no "
            f"difference; it is not corrected for {count(len(methods) - 1, 'comparison')}, nor for having picked the best "
            "afterwards, so differences near 0.05 are weak evidence."
        )
    notes.append(
        "Intervals that overlap do not show that two methods are equal; the paired difference is the sharper test."
    )
    return tag("ul", [tag("li", join(note)) for note in notes])
