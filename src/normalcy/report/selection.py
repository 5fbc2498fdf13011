"""The page of a choice of settings: the best ones, how good they are, and all that was tried."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from normalcy.arrays import Float64
from normalcy.report.markup import definitions, document, table, tag
from normalcy.report.text import number
from normalcy.results.writer import Writer


def write_selection(
    folder: Path,
    method: str,
    summary: str,
    best: Mapping[str, str],
    aurocs: Float64,
    head: Sequence[str],
    trials: Iterable[Sequence[str | int]],
) -> Path:
    """Writes ``report.html``. ``best``: settings as text; ``aurocs`` (normal parts, parts of the anomalies) of the best settings;
    ``head`` and ``trials``: the table of all that was tried."""
    title = f"Settings of {method}"
    parts = [(f"normal part {k + 1}", ", ".join(number(v.item(), 3) for v in row)) for k, row in enumerate(aurocs)]
    page = document(
        title,
        tag("h1", title),
        tag("p", summary),
        tag("h2", "Best settings"),
        definitions(best.items()),
        tag("h2", "Its AUROC against each part of the anomalies"),
        definitions(parts),
        tag("h2", "All trials"),
        table(head, trials),
    )
    return Writer(folder).bytes("report.html", page.encode())
