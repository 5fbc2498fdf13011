"""The table by class of results with several classes of normal images, for the command line and the pages."""

from __future__ import annotations

from collections.abc import Mapping

from normalcy.report.text import metric, percent, with_interval
from normalcy.results.comparison import Compared
from normalcy.results.metrics import Metrics

HEAD = ("class", "normal", "anomalous", "AUROC [95 %]", "pixel AUROC", "AUPRO", "false alarms", "detected")
NOTE = "Each class for itself, by one model and one threshold: its anomalous images against its own normal ones."


def class_rows(found: Mapping[str, Metrics | Compared]) -> list[tuple[str, ...]]:
    """A row for each class and one for the means, of each named result that has classes: its name, then as in HEAD."""
    rows: list[tuple[str, ...]] = []
    for name, one in found.items():
        for kind, own in (one.classes or {}).items():
            areas = (with_interval(own.auroc), metric(own.pixel_auroc), metric(own.aupro))
            decided = (percent(own.false_positive_rate), percent(own.true_positive_rate))
            rows.append((name, kind, str(own.normal), str(own.anomalous), *areas, *decided))
        if (mean := one.class_mean) is not None:
            rows.append(
                (name, "mean", "", "", metric(mean.auroc), metric(mean.pixel_auroc), metric(mean.aupro), "", "")
            )
    return rows
