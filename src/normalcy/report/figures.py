"""Figures as SVG inside the page, drawn with Matplotlib. Its colours become CSS variables, so that figures follow the
page from light to dark and to paper, and its text stays text: readable, searchable, in the font of the page.

Colours are Okabe and Ito's, told apart by colour-blind readers; lines and markers differ in form as well.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normalcy.arrays import Array, Float64, Mask
from normalcy.report.markup import Content, Markup, join, tag
from normalcy.report.text import number

# colours that stand for a variable of page.css
INK, FAINT, NORMAL, ANOMALOUS, UNKNOWN = "#010203", "#020304", "#030405", "#040506", "#050607"
SERIES = ("#060708", "#070809", "#08090a", "#090a0b", "#0a0b0c", "#0b0c0d", "#0c0d0e", "#0d0e0f")
_VARIABLES = {INK: "ink", FAINT: "rule", NORMAL: "normal", ANOMALOUS: "anomalous", UNKNOWN: "unknown"} | {
    colour: f"series-{k}" for k, colour in enumerate(SERIES)
}
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)), (0, (3, 1, 1, 1)))
_MARKERS = "osD^vPX*"
_TYPES = (1, 2, 3, 4, 7, 6, 5)  # of the series, those unlike the colour of normal images first
_STYLE: Any = {
    "svg.fonttype": "none",  # text, not outlines
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.formatter.use_mathtext": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 2,
    "mathtext.default": "regular",
}


@dataclass(frozen=True)
class Curve:
    """A line from (0, 0) to (1, 1) or so, with a name for the legend."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def roc_figure(
    curves: Sequence[Curve], point: tuple[float, float] | None = None, size: tuple[float, float] | None = None
) -> Markup:
    """ROC curves; ``point`` is (false-positive rate, true-positive rate) at the threshold in use, ``size`` is in inches."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _square("false-positive rate (images)", "true-positive rate (images)", size)
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1.5, linestyle="--")
        _curves(axes, curves)
        if point is not None:
            axes.plot(
                *point, "o", color=INK, markersize=8, markerfacecolor="none", markeredgewidth=2, label="the threshold"
            )
        if len(curves) > 1 or point is not None:
            axes.legend(loc="lower right")
        return _svg(figure, "ROC curve", "roc")


def precision_recall_figure(curve: Curve, prevalence: float) -> Markup:
    with matplotlib.rc_context(_STYLE):
        figure, axes = _square("recall", "precision")
        axes.axhline(prevalence, color=FAINT, linewidth=1.5, linestyle="--")
        _curves(axes, [curve])
        low_line = prevalence < 0.85
        axes.text(
            0.01, prevalence + (0.015 if low_line else -0.015), "flagging at random",
            va="bottom" if low_line else "top", fontsize=9,
        )  # fmt: skip
        return _svg(figure, "precision-recall curve", "pr")


def pro_figure(curve: Curve, limit: float) -> Markup:
    with matplotlib.rc_context(_STYLE):
        figure, axes = _square("false-positive rate (pixels)", "mean overlap with true regions (PRO)")
        axes.set_xlim(0, max(limit, 1e-6) * 1.02)
        inside = np.asarray(curve.x, float) <= limit
        axes.fill_between(
            np.asarray(curve.x, float)[inside], np.asarray(curve.y, float)[inside], color=SERIES[0], alpha=0.15
        )
        _curves(axes, [curve])
        return _svg(figure, "per-region overlap curve", "pro")


def froc_figure(curve: Curve) -> Markup:
    """False regions per image on a logarithmic axis from 1/16 on; what is below stands at its left end."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _square("false regions per image", "sensitivity (regions)")
        x = np.maximum(np.asarray(curve.x, float), 1 / 16)
        axes.set_xscale("log", base=2)
        axes.set_xlim(1 / 16, max(16.0, float(x.max())))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        _curves(axes, [Curve(curve.name, x.tolist(), curve.y)])
        return _svg(figure, "free-response curve", "froc")


def score_figure(scores: Float64, labels: npt.NDArray[np.int8], threshold: float | None) -> tuple[Markup, str]:
    """Histogram of the scores by label, and a sentence on its axis."""
    known = np.isfinite(scores)
    scores, labels = scores[known], labels[known]
    low, high = float(scores.min()), float(scores.max())
    median = float(np.median(scores))
    logarithmic = low > 0 and high / median > 30
    note = "The score axis is logarithmic. " if logarithmic else ""
    if not high > low:
        low, high = low - 0.5 * max(abs(low), 1e-3), high + 0.5 * max(abs(high), 1e-3)
    bins = int(np.clip(2 * math.sqrt(len(scores)), 8, 50))
    edges = np.geomspace(low, high, bins + 1) if logarithmic else np.linspace(low, high, bins + 1)
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)  # geomspace rounds
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(6.6, 3.5, "score" + (" (logarithmic)" if logarithmic else ""), "images, % of their label")
        for label, name, colour, pattern in _LABELS:
            part = scores[labels == label]
            if part.size:
                shares = 100 * np.histogram(part, edges)[0] / part.size
                axes.stairs(shares, edges, fill=True, color=colour, alpha=0.35)
                axes.stairs(
                    shares, edges, color=colour, linewidth=1.8, linestyle=pattern, label=f"{name} ({part.size:,})"
                )
        if threshold is not None:
            axes.axvline(threshold, color=INK, linewidth=1.5, linestyle=":", label=f"threshold {number(threshold)}")
        if logarithmic:
            axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return _svg(figure, "histogram of the scores by label", "scores"), note


def p_value_figure(
    p_values: Float64, labels: npt.NDArray[np.int8], calibrated_on: int, false_alarms: float | None
) -> Markup:
    """The fraction of images with a p-value up to x. Normal images should follow the diagonal, within a band that holds 95 %
    of such curves (two-sample Kolmogorov-Smirnov: the calibration images are few as well); anomalous rise at once."""
    known = np.isfinite(p_values)
    p_values, labels = p_values[known], labels[known]
    judged = 0 if (labels == 0).any() else -1
    n = int((labels == judged).sum())
    grid = np.linspace(0, 1, 101)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _square("p-value", "fraction of images with at most this p-value")
        if n:
            half = 1.358 * math.sqrt(1 / n + (1 / calibrated_on if calibrated_on else 0))
            axes.fill_between(
                grid, np.clip(grid - half, 0, 1), np.clip(grid + half, 0, 1), color=FAINT, alpha=0.6, linewidth=0,
                label="where 95 % of curves\nof normal images lie",
            )  # fmt: skip
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--")
        for label, name, colour, pattern in _LABELS:
            part = np.sort(p_values[labels == label])
            if part.size:
                # at most 1,000 steps of a hundred thousand
                ranks = np.unique(np.linspace(1, part.size, min(part.size, 1000)).astype(int))
                x = np.concatenate([[0.0], part[ranks - 1], [1.0]])
                y = np.concatenate([[0.0], ranks / part.size, [1.0]])
                axes.step(x, y, where="post", color=colour, linestyle=pattern, label=f"{name} ({part.size:,})")
        if false_alarms is not None:
            axes.axvline(
                false_alarms, color=INK, linewidth=1.5, linestyle=":", label=f"flagged: up to {number(false_alarms)}"
            )
        axes.legend(loc="lower right")
        return _svg(figure, "p-values of normal and anomalous images", "p-values")


def latent_figure(points: Float64, groups: Mapping[str, Mask], what: str) -> Markup:
    """Points ``(N, 2)`` of what was embedded, by group, in the order given; a group's name is its entry in the legend."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(6.6, 4.6, "", "")
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", adjustable="datalim")
        size = float(np.clip(5000 / len(points), 8, 50))
        others = 0
        for name, inside in groups.items():
            colour, marker = {"normal": (NORMAL, "o"), "anomalous": (ANOMALOUS, "s"), "unknown": (UNKNOWN, "o")}.get(
                name, ("", "")
            )
            if not colour:  # types of anomaly: not the colour of normal images
                colour, marker = SERIES[_TYPES[others % 7]], _MARKERS[1 + others % 7]
                others += 1
            axes.scatter(
                points[inside, 0], points[inside, 1], s=size, c=colour, marker=marker, linewidths=0, alpha=0.75,
                label=f"{name} ({int(inside.sum()):,})",
            )  # fmt: skip
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=1.3)
        return _svg(figure, f"t-SNE of the {what}s", what.replace(" ", "-"))


def training_figure(stage: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Markup:
    """Loss terms of a stage over its steps; ``held_out_loss`` as points."""
    values = np.concatenate([np.asarray(y, float) for _, y in lines.values()])
    values = values[np.isfinite(values)]
    logarithmic = bool(values.size and values.min() > 0 and values.max() / values.min() > 20)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(4.9, 3.4, "step", "loss" + (" (logarithmic)" if logarithmic else ""))
        for k, (name, (x, y)) in enumerate(lines.items()):
            marker = "o" if name == "held_out_loss" or len(x) == 1 else None
            axes.plot(
                x, y, color=SERIES[k % 8], linestyle=_DASHES[k % 8], marker=marker, markersize=4, linewidth=1.8,
                label=name.replace("_", " "),
            )  # fmt: skip
        if logarithmic:
            axes.set_yscale("log")
        axes.set_title(_plain(stage))
        axes.legend()
        return _svg(figure, f"training curves of the stage {stage}", f"training {stage}")


def interval_mark(
    value: float | None, low: float | None, high: float | None, start: float, colour: str = "ink"
) -> Markup | None:
    """A dot with its interval on a line from ``start`` to 1, for a cell of a table; a tick at 0.5 and 0.75 each."""
    if value is None:
        return None
    width, height, margin = 180, 18, 6

    def x(at: float) -> str:
        return f"{margin + (width - 2 * margin) * (min(max(at, start), 1.0) - start) / (1 - start):.1f}"

    ticks = [
        tag("line", x1=x(at), x2=x(at), y1=2, y2=height - 2, stroke="var(--rule)")
        for at in (0, 0.25, 0.5, 0.75, 1)
        if at >= start
    ]
    line = (
        tag("line", x1=x(low), x2=x(high), y1=9, y2=9, stroke=f"var(--{colour})", stroke_width=2.5)
        if low is not None and high is not None
        else None
    )
    words = number(value, 3) + (f", 95 % interval {number(low, 3)} to {number(high, 3)}" if line else "")
    return tag(
        "svg", ticks, line, tag("circle", cx=x(value), cy=9, r=4.5, fill=f"var(--{colour})"),
        viewBox=f"0 0 {width} {height}", width=width, height=height, role="img", aria_label=words, class_="mark",
    )  # fmt: skip


def colour_bar(
    name: str,
    words: str,
    palette: Array,
    limits: tuple[float, float],
    open_ended: bool = False,
    threshold: float | None = None,
) -> Markup:
    """What the colours of maps mean; ``open_ended`` where larger values may be shown. A notch is the pixel threshold."""
    width = 320.0
    stops = [
        tag("stop", offset=f"{k / 16:.4f}", stop_color="#" + bytes(palette[round(255 * k / 16)]).hex())
        for k in range(17)
    ]
    low, high = limits
    shown: list[Content] = [
        tag("defs", tag("linearGradient", stops, id=f"bar-{name}")),
        tag("rect", x=10, y=22, width=width, height=14, fill=f"url(#bar-{name})"),
        _label(10, 52, number(low, 3), "start"),
        _label(10 + width / 2, 52, words, "middle"),
        _label(10 + width, 52, ("≥ " if open_ended else "") + number(high, 3), "end"),
    ]
    if threshold is not None and math.isfinite(threshold) and high > low:
        beyond = threshold > high or threshold < low
        at = 10 + width * min(max((threshold - low) / (high - low), 0), 1)
        side = "start" if at < 90 else "end" if at > 250 else "middle"
        notch = f"pixel threshold {number(threshold, 3)}" + (" (beyond)" if beyond else "")
        shown += [
            tag("path", d=f"M{at:.1f} 18V40", stroke="var(--ink)", stroke_width=2),
            _label(at, 13, notch, side),
        ]
    label = f"colours of the {name}: {number(low, 3)} to {number(high, 3)}"
    return tag("svg", shown, viewBox="0 0 340 56", width=340, height=56, role="img", aria_label=label, class_="bar")


def _label(x: float, y: float, words: str, anchor: str) -> Markup:
    return tag("text", words, x=f"{x:.1f}", y=y, text_anchor=anchor, fill="var(--ink)", font_size=12)


_LABELS = ((0, "normal", NORMAL, "-"), (1, "anomalous", ANOMALOUS, "--"), (-1, "unknown label", UNKNOWN, "-."))


def _axes(width: float, height: float, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _square(x: str, y: str, size: tuple[float, float] | None = None) -> tuple[Figure, Axes]:
    figure, axes = _axes(*(size or (4.3, 4.1)), x, y)
    axes.set_xlim(-0.015, 1.015)
    axes.set_ylim(-0.015, 1.015)
    return figure, axes


def _curves(axes: Axes, curves: Sequence[Curve]) -> None:
    for k, curve in enumerate(curves):
        axes.plot(
            curve.x,
            curve.y,
            color=SERIES[k % 8],
            linestyle=_DASHES[k % 8],
            label=_plain(curve.name) if len(curves) > 1 else None,
        )


def _plain(text: str) -> str:
    """Matplotlib reads $...$ as mathematics, and a name that starts with _ as none."""
    return text.replace("$", r"\$").lstrip("_")


def _svg(figure: Figure, label: str, name: str) -> Markup:
    """The figure as an element: no size of its own, identifiers of its own, colours as CSS variables."""
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'id="(\w+)"', rf'id="{_word(name)}-\1"', text)
    text = re.sub(r'(href="|url\()#(\w+)', rf"\1#{_word(name)}-\2", text)
    text = re.sub(
        r"#[0-9a-f]{6}\b", lambda colour: f"var(--{_VARIABLES[c]})" if (c := colour[0]) in _VARIABLES else c, text
    )
    box = re.search(r'viewBox="([^"]*)"', text)
    width = float(box[1].split()[2]) if box else 0.0
    opening = join(
        Markup('<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="'), box[1] if box else "", Markup('" role="img" '),
        Markup('aria-label="'), label, Markup(f'" style="width:{1.2 * width:.0f}px">'),
    )  # fmt: skip
    return Markup(opening + text[text.index(">", text.index("<svg")) + 1 :].strip())


def _word(name: str) -> str:
    """An identifier from any text."""
    return "fig-" + "".join(c if c.isascii() and c.isalnum() else f"_{ord(c):x}" for c in name)
