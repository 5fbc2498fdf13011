"""The page of a comparison folder: several methods on the same images, which is best and how sure that is."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

from normalcy.errors import DataError
from normalcy.files import write_bytes
from normalcy.report import figures
from normalcy.report.figures import Curve
from normalcy.report.markup import (
    MISSING,
    Content,
    count,
    definitions,
    document,
    interval,
    join,
    metric,
    number,
    table,
    tag,
)
from normalcy.results.folder import Json, finite, look, read_json

CLEAR = 0.05  # p-value below which a difference from the best is called clear
_DRAWN = 8  # ROC curves that can be told apart


def write_comparison(folder: Path) -> Path:
    """Writes ``report.html`` into a comparison folder, from compare.json and the metrics.json of each method, and returns
    its path. Raises DataError when compare.json cannot be used."""
    folder = Path(folder)
    comparison = read_json(folder / "compare.json", "compare again with 'normalcy compare'")
    methods = [entry for entry in comparison.get("methods") or [] if isinstance(entry, dict)]
    methods.sort(key=lambda entry: -1.0 if (area := _area(entry)) is None else area, reverse=True)
    failed = comparison.get("failed") or []
    if not methods and not failed:
        raise DataError(
            f"{folder / 'compare.json'}: expected at least one method, got none; compare some methods first."
        )
    data = look(comparison, "data", "name") or folder.name
    facts = " · ".join(
        [count(n, "test image") for n in [look(comparison, "data", "test_images")] if isinstance(n, int)]
        + [count(len(methods), "method")]
    )
    header = tag(
        "header",
        tag("p", facts, class_="facts"),
        tag("h1", "Methods", tag("span", " on ", class_="light"), data),
        tag("p", _headline(methods), class_="headline"),
    )
    sections = [
        _section("methods", "Methods", _table(folder, methods)) if methods else None,
        _section("roc", "ROC", _roc(folder, methods)),
        _section("failed", "Failed", _failed(failed)) if failed else None,
        _section("settings", "Settings", _settings(methods)) if methods else None,
        _section("notes", "What the numbers mean", _notes(methods)) if methods else None,
    ]
    path = folder / "report.html"
    write_bytes(path, document(f"Methods on {data}: normalcy", header, tag("main", sections)).encode("utf-8"))
    return path


def _section(key: str, title: str, content: Content) -> Content:
    return tag("section", tag("h2", title), content, id=key) if content else None


def _area(entry: Json) -> float | None:
    return finite(look(entry, "auroc", "value"))


def _headline(methods: list[Json]) -> Content:
    ranked = [entry for entry in methods if _area(entry) is not None]
    if not ranked:
        return "No method has an AUROC: the images have labels of one kind only, or every method failed."
    best = ranked[0]
    auroc = best["auroc"]
    start = [tag("strong", best.get("name")), f" is best with AUROC {metric(auroc['value'])} "]
    start += [interval(auroc.get("low"), auroc.get("high")), "."]
    p_values = {str(entry.get("name")): finite(look(entry, "against_best", "p")) for entry in ranked[1:]}
    tied = [name for name, p in p_values.items() if p is not None and p >= CLEAR]
    clear = [name for name, p in p_values.items() if p is not None and p < CLEAR]
    if tied:
        start.append(f" These images do not tell it apart from {_list(tied)}.")
    elif clear:
        start.append(" It is ahead of every other method by more than chance (p < 0.05 each).")
    return start


def _list(names: list[str]) -> str:
    """
    >>> _list(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _table(folder: Path, methods: list[Json]) -> Content:
    lows = [low for entry in methods if (low := finite(look(entry, "auroc", "low") or _area(entry))) is not None]
    start = next((at for at in (0.75, 0.5, 0.25) if lows and min(lows) >= at), 0.0)
    rows: list[list[Content]] = []
    for entry in methods:
        auroc, against = entry.get("auroc") or {}, entry.get("against_best")
        ends = finite(auroc.get("low")), finite(auroc.get("high"))
        best = against is None and entry is methods[0]
        rows.append([
            _linked(folder, entry), metric(auroc.get("value")), interval(*ends),
            figures.interval_mark(_area(entry), *ends, start, "normal" if best else "ink"),
            "best" if best and len(methods) > 1 else _difference(against), number(look(against, "p"), 2),
            metric(look(entry, "pixel_auroc", "value")), metric(look(entry, "aupro", "value")),
            _seconds(entry.get("fit_seconds")), number(entry.get("images_per_second"), 3),
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


def _linked(folder: Path, entry: Json) -> Content:
    name, place = str(entry.get("name")), entry.get("folder")
    if not isinstance(place, str) or not (folder / place / "report.html").is_file():
        return name
    return tag("a", name, href=f"./{quote(place)}/report.html")


def _difference(against: Any) -> str:
    value = finite(look(against, "difference"))
    if value is None:
        return MISSING
    low, high = finite(look(against, "low")), finite(look(against, "high"))
    ends = f" [{_signed(low)}, {_signed(high)}]" if low is not None and high is not None else ""
    return _signed(value) + ends


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _seconds(value: Any) -> str:
    seconds = finite(value)
    if seconds is None:
        return MISSING
    return (
        f"{seconds:.1f} s"
        if seconds < 120
        else f"{seconds / 60:.1f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def _roc(folder: Path, methods: list[Json]) -> Content:
    curves = []
    for entry in methods:
        path = folder / str(entry.get("folder")) / "metrics.json"
        if _area(entry) is None or not path.is_file():
            continue
        roc = look(read_json(path, "evaluate again with 'normalcy evaluate'"), "curves", "roc")
        fpr, tpr = look(roc, "fpr"), look(roc, "tpr")
        if isinstance(fpr, list) and isinstance(tpr, list) and len(fpr) == len(tpr) > 1:
            curves.append(Curve(f"{entry.get('name')} {metric(_area(entry))}", fpr, tpr))
    if not curves:
        return None
    words = f"The best {_DRAWN} of {len(curves)}." if len(curves) > _DRAWN else "Upper left is better."
    return tag(
        "figure",
        tag("figcaption", words),
        tag("div", figures.roc_figure(curves[:_DRAWN], size=(6.4, 5.6))),
        class_="plot large",
    )


def _failed(failed: list[Json]) -> Content:
    return table(
        ["method", "reason"], [[str(look(one, "name")), str(look(one, "reason"))] for one in failed], numbers=9
    )


def _settings(methods: list[Json]) -> Content:
    return [
        tag("details", tag("summary", entry.get("name")), definitions([(k, _word(v)) for k, v in words.items()]))
        for entry in methods
        if (words := entry.get("words") or {})
    ]


def _word(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _notes(methods: list[Json]) -> Content:
    notes = [
        "AUROC: the chance that an anomalous image scores higher than a normal one; 0.5 is guessing. Intervals are 95 %."
    ]
    if any(entry.get("against_best") for entry in methods):
        notes.append(
            "Against the best: AUROC minus that of the best method on the same images (paired). The p-value is two-sided, for no "
            f"difference; it is not corrected for {count(len(methods) - 1, 'comparison')}, nor for having picked the best "
            "afterwards, so differences near 0.05 are weak evidence."
        )
    notes.append(
        "Intervals that overlap do not show that two methods are equal; the paired difference is the sharper test."
    )
    return tag("ul", [tag("li", join(note)) for note in notes])
