"""Galleries of a report: which images to show, each as a card with input, restoration, map, overlay and what is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from normalcy.arrays import Indices, Mask
from normalcy.data.dataset import DataSet
from normalcy.report.figures import colour_bar
from normalcy.report.markup import Content, Markup, tag
from normalcy.report.pictures import Picture, Range, coloured, contour, data_uri, display, load_picture, palette
from normalcy.report.text import number
from normalcy.results.folder import ResultsFolder
from normalcy.results.names import readable

GALLERY = 12  # images in each, at most
MOST_NORMAL = 6


def images_section(
    results: ResultsFolder, dataset: DataSet | None, why_no_inputs: str, radiological: bool = True
) -> Content:
    """All galleries with their key; the pixels of every image shown stand once, at the end."""
    galleries = _galleries(results)
    shown = sorted({int(i) for gallery in galleries for i in gallery.images})
    if not shown:
        return None
    wanted = {results.paths[i] for i in shown}
    places = (
        {path: k for k, item in enumerate(dataset.items) if (path := readable(item.path)) in wanted}
        if dataset is not None
        else {}
    )
    pictures = {i: load_picture(results, i, dataset, places.get(results.paths[i]), radiological) for i in shown}
    if dataset is None:
        for picture in pictures.values():
            picture.missing = ""  # said once, above
    drawing = _Drawing(results, pictures)
    parts: list[Content] = []
    for gallery in galleries:
        shown_of = (
            "" if len(gallery.images) == gallery.whole else f" {len(gallery.images)} of {gallery.whole:,} are shown."
        )
        none = tag("p", "None.", class_="none") if not gallery.whole else None
        parts += [
            tag(
                "h3",
                gallery.title,
                tag("span", f" {gallery.whole:,}", class_="light") if "Most" not in gallery.title else None,
            ),
            tag("p", gallery.explanation, shown_of, class_="note") if gallery.whole else none,
            tag("div", [drawing.card(int(i)) for i in gallery.images], class_="cards"),
        ]
    notes = [tag("p", "Inputs are not shown: ", why_no_inputs, class_="warning")] if dataset is None else []
    store = tag(
        "svg",
        tag("defs", _HEAT, drawing.store),
        width=0,
        height=0,
        aria_hidden="true",
        class_="store",
        focusable="false",
    )
    return [*notes, _legend(drawing), *parts, store]


@dataclass(frozen=True)
class _Gallery:
    title: str
    explanation: str
    images: Indices
    whole: int  # how many there are


def _galleries(results: ResultsFolder) -> list[_Gallery]:
    """Which images to show, under which heading: first those where the decision was wrong."""
    scores, labels, flagged = results.scores, results.labels, results.flagged
    known = np.isfinite(scores)
    rising = np.argsort(scores, kind="stable")
    rising = rising[known[rising]]
    falling = rising[::-1]
    galleries = []

    def add(title: str, explanation: str, order: Indices, among: Mask, limit: int = GALLERY) -> None:
        chosen = order[among[order]]
        galleries.append(_Gallery(title, explanation, chosen[:limit], len(chosen)))

    if (labels == 1).any():
        if (flagged >= 0).any():
            add(
                "Missed anomalies",
                "Anomalous, not flagged; lowest score first.",
                rising,
                (labels == 1) & (flagged == 0),
            )
        else:
            add("Anomalous images that look normal", "The lowest scores first.", rising, labels == 1)
    if (labels == 0).any():
        if (flagged >= 0).any():
            add("False alarms", "Normal, but flagged; highest score first.", falling, (labels == 0) & (flagged == 1))
        else:
            add("Normal images that look anomalous", "The highest scores first.", falling, labels == 0)
    add("Most anomalous", "The highest scores of all images.", falling, known)
    add("Most normal", "The lowest scores of all images.", rising, known, MOST_NORMAL)
    return galleries


class _Drawing:
    """Cards of the images shown. An image's pixels stand once in the page, however often they are shown."""

    def __init__(self, results: ResultsFolder, pictures: dict[int, Picture]) -> None:
        self.results, self.pictures = results, pictures
        calibration = results.run.calibration
        self.level = None if calibration is None else calibration.pixel_threshold
        fixed = None if calibration is None else calibration.map_range
        self.fixed = fixed is not None
        maps = [p.map for p in pictures.values() if p.map is not None]
        self.map_range: Range = fixed or results.run.map_range or _extent(maps)
        self.has_maps = bool(maps)
        uncertainties = [p.uncertainty for p in pictures.values() if p.uncertainty is not None]
        self.uncertainty_range = (0.0, _extent(uncertainties)[1]) if uncertainties else None
        others = {name for p in pictures.values() for name in p.others}
        self.other_ranges = {
            name: _extent([p.others[name] for p in pictures.values() if name in p.others]) for name in sorted(others)
        }
        self.has_masks = any(p.mask is not None for p in pictures.values())
        self.store: list[Markup] = []
        self.made: dict[int, list[tuple[str, Markup]]] = {}

    def card(self, i: int) -> Markup:
        if i not in self.made:
            self.made[i] = self._panels(i)
        panels = [
            tag(
                "button", tag("span", svg, class_="pixels"), tag("span", name, class_="name"),
                type="button", class_="panel", title="Enlarge",
            )
            for name, svg in self.made[i]
        ]  # fmt: skip
        height, width = self.pictures[i].size
        layout = "panels broad" if width > 1.5 * height and len(panels) > 2 else "panels"
        return tag("figure", tag("div", panels, class_=layout), self._caption(i), class_="card")

    def _panels(self, i: int) -> list[tuple[str, Markup]]:
        picture, path = self.pictures[i], self.results.paths[i]
        names: list[tuple[str, str, str, Any]] = []  # what it is, its identifier, its alternative text, its pixels
        if picture.input is not None:
            names.append(("input", f"input-{i}", f"input image {path}", picture.input))
        if picture.restored is not None:
            names.append(("restored", f"restored-{i}", f"{path} as it would look if normal", picture.restored))
        if picture.map is not None:
            pixels = coloured(picture.map, self.map_range, "inferno")
            names.append(("map", f"map-{i}", f"anomaly map of {path}, largest value {number(_peak(picture))}", pixels))
        height, width = picture.size
        crisp = "pixelated" if max(picture.size) <= 96 else None
        panels = []
        for name, identifier, words, pixels in names:
            self._keep(identifier, pixels, picture.size, crisp)
            panels.append((name, _picture(width, height, words, _use(identifier), _letters(picture))))
        if picture.input is not None and (picture.map is not None or picture.mask is not None):
            layers = [_use(f"input-{i}"), *self._layers(i, picture), _letters(picture)]
            panels.append(("overlay", _picture(width, height, f"{path} under its anomaly map, with outlines", layers)))
        elif picture.map is not None:
            outlines = [_use(f"map-{i}"), *self._outlines(picture), _letters(picture)]
            panels[-1] = ("map", _picture(width, height, f"anomaly map of {path}, with outlines", outlines))
        if picture.uncertainty is not None and self.uncertainty_range is not None:
            self._keep(
                f"uncertainty-{i}",
                coloured(picture.uncertainty, self.uncertainty_range, "viridis"),
                picture.size,
                crisp,
            )
            words = f"uncertainty of the map of {path}"
            panels.append(("uncertainty", _picture(width, height, words, _use(f"uncertainty-{i}"), _letters(picture))))
        # From what came in, over what explains it, to what is concluded.
        order = {"input": 0, "restored": 2, "map": 4, "overlay": 5, "uncertainty": 6}
        ranked = [(order[name], (name, drawn)) for name, drawn in panels]
        for name, values in picture.others.items():
            limits = self.other_ranges[name]
            pixels = coloured(values, limits, "viridis") if values.ndim == 2 else display(values, limits)[0]
            self._keep(f"{name}-{i}", pixels, picture.size, crisp)
            title = name.replace("_", " ")
            panel = title, _picture(width, height, f"{title} of {path}", _use(f"{name}-{i}"), _letters(picture))
            ranked.append((3 if values.ndim == 2 else 1, panel))
        return [panel for _, panel in sorted(ranked, key=lambda pair: pair[0])]

    def _layers(self, i: int, picture: Picture) -> list[Content]:
        heat = _use(f"map-{i}", class_="heat", filter="url(#heat)") if picture.map is not None else None
        return [heat, *self._outlines(picture)]

    def _outlines(self, picture: Picture) -> list[Content]:
        """Each line twice: a dark one below, so that it is seen on any ground."""
        outlines: list[Content] = []
        for kind, plane, level in (("mask", picture.mask, 0.5), ("contour", picture.map, self.level)):
            path = contour(plane, level, picture.size) if plane is not None and level is not None else ""
            if path:
                outlines += [tag("path", d=path, class_="casing " + kind), tag("path", d=path, class_=kind)]
        return outlines

    def _keep(self, identifier: str, pixels: Any, size: tuple[int, int], crisp: str | None) -> None:
        height, width = size
        self.store.append(
            tag(
                "image", id=identifier, width=width, height=height, href=Markup(data_uri(pixels)),
                preserveAspectRatio="none", image_rendering=crisp,
            )
        )  # fmt: skip

    def _caption(self, i: int) -> Markup:
        results, picture = self.results, self.pictures[i]
        path, label, flagged = results.paths[i], int(results.labels[i]), int(results.flagged[i])
        kind = results.types[i]
        name = {0: "normal", 1: "anomalous", -1: "unlabelled"}[label]
        if kind and label == 1:
            name = f"anomalous: {kind}"
        elif kind and kind not in ("good", "normal"):
            name = f"{name}: {kind}"
        badges = [
            tag("span", name, class_=f"badge {('normal', 'anomalous', 'unknown')[label]}"),
            tag("span", "⚑ flagged" if flagged else "not flagged", class_="badge" + (" flagged" if flagged else ""))
            if flagged >= 0
            else None,
        ]
        facts = [f"score {number(results.scores[i].item())}"]
        if math.isfinite(results.p_values[i]):
            facts.append(f"p = {number(results.p_values[i].item(), 3)}")
        if results.cases[i] != path:
            facts.append(f"case {results.cases[i]}")
        if picture.map is not None:
            facts.append(f"map up to {number(_peak(picture), 3)}")
        if picture.uncertainty is not None:
            facts.append(f"uncertainty up to {number(float(picture.uncertainty.max()), 3)}")
        if picture.slice is not None:
            facts.append(f"slice {picture.slice[0]} of 0–{picture.slice[1] - 1}, where the map is largest")
        if max(picture.size) > 1:
            facts.append(f"{picture.size[1]}\u00a0×\u00a0{picture.size[0]}\u00a0px")
        notes = [picture.shown_as, f"input not shown: {picture.missing}" if picture.missing else ""]
        return tag(
            "figcaption",
            tag("p", path, class_="path"),
            tag("p", [[badge, " "] for badge in badges if badge], " · ".join(facts)),
            [tag("p", note, class_="fine") for note in notes if note],
        )


def _legend(drawing: _Drawing) -> Content:
    """The key to the pictures, with the controls of the overlay; it stays in sight while scrolling."""
    if not drawing.has_maps:
        return None
    low, high = drawing.map_range
    of_all = drawing.results.run.map_range is not None
    origin = f"map: range of {'normal images' if drawing.fixed else 'all images' if of_all else 'those shown'}"
    line = '<svg viewBox="0 0 34 12" width="34" height="12" aria-hidden="true"><path d="M1 6H33" class="casing {0}"/><path d="M1 6H33" class="{0}"/></svg>'  # noqa: E501
    items: list[Content] = [
        colour_bar("map", origin, palette("inferno"), (low, high), drawing.fixed, drawing.level),
    ]
    if drawing.uncertainty_range is not None:
        items.append(
            colour_bar(
                "uncertainty", "uncertainty: range of those shown", palette("viridis"), drawing.uncertainty_range
            )
        )
    for name, limits in drawing.other_ranges.items():
        planes = all(p.others[name].ndim == 2 for p in drawing.pictures.values() if name in p.others)
        words, colours = name.replace("_", " "), "viridis" if planes else "gray"
        items.append(colour_bar(words, f"{words}: range of those shown", palette(colours), limits))
    controls: list[Content] = [
        tag(
            "label", "map over image ",
            tag("input", type="range", id="opacity", min=0, max=100, value=70, aria_label="opacity of the map over the image"),
        ),
    ]  # fmt: skip
    if drawing.level is not None:
        box = tag("input", type="checkbox", data_hides="contour", checked="checked")
        controls.append(tag("label", box, Markup(line.format("contour")), " above the pixel threshold"))
    if drawing.has_masks:
        box = tag("input", type="checkbox", data_hides="mask", checked="checked")
        controls.append(tag("label", box, Markup(line.format("mask")), " true mask"))
    return tag("div", tag("div", items, class_="bars"), tag("div", controls, class_="controls"), class_="legend")


# red of inferno rises early: as opacity it leaves unremarkable places clear
_HEAT = tag(
    "filter",
    tag("feColorMatrix", type="matrix", values="1 0 0 0 0  0 1 0 0 0  0 0 1 0 0  1.25 0 0 0 -0.1"),
    id="heat", color_interpolation_filters="sRGB", x=0, y=0, width="100%", height="100%",
)  # fmt: skip


def _picture(width: int, height: int, words: str, *content: Content) -> Markup:
    return tag("svg", content, viewBox=f"0 0 {width} {height}", role="img", aria_label=words)


def _letters(picture: Picture) -> Content:
    """Where the borders lie in the patient."""
    if picture.letters is None:
        return None
    height, width = picture.size
    size = min(height, width) / 12
    places = ((size, height / 2), (width - size, height / 2), (width / 2, size), (width / 2, height - size))
    return [
        tag("text", letter, x=f"{x:.4g}", y=f"{y:.4g}", font_size=f"{size:.3g}", class_="side")
        for letter, (x, y) in zip(picture.letters, places)
    ]


def _use(identifier: str, **attributes: Content) -> Markup:
    return tag("use", href=f"#{identifier}", **attributes)


def _peak(picture: Picture) -> float:
    return float(picture.map.max()) if picture.map is not None else math.nan


def _extent(planes: Sequence[Any]) -> Range:
    """From the smallest value to the largest."""
    return (float(min(p.min() for p in planes)), float(max(p.max() for p in planes))) if planes else (0.0, 1.0)
