"""Images drawn for review with known probabilities (``review/sampling.csv``), and what their labels say of all images."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from normalcy.errors import DataError
from normalcy.files import read_bytes
from normalcy.metrics import sampling
from normalcy.results.folder import ResultsFolder

TABLE = "sampling.csv"
COLUMNS = ("draw", "image", "probability")
MOST = 20_000
"""Draws in the table."""


@dataclass(frozen=True)
class Plan:
    """Images in the order in which they were drawn, with replacement, and the probability of each in a draw."""

    images: tuple[str, ...]
    """Paths in ``scores.csv``."""
    probabilities: tuple[float, ...]


def read_plan(path: Path) -> Plan:
    """Raises DataError for a table that is damaged."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_bytes(path, 2**28).decode("utf-8", "surrogateescape"), newline="")))
        plan = Plan(tuple(row["image"] for row in rows), tuple(float(row["probability"]) for row in rows))
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: is no table of draws ({error}); move it away to draw again.") from None
    if not plan.images or not all(0 < q <= 1 for q in plan.probabilities):
        raise DataError(f"{path}: expected probabilities in (0, 1]; move it away to draw again.")
    return plan


def write_plan(plan: Plan) -> bytes:
    text = io.StringIO()
    rows = ((k, image, repr(q)) for k, (image, q) in enumerate(zip(plan.images, plan.probabilities)))
    csv.writer(text).writerows([COLUMNS, *rows])
    return text.getvalue().encode("utf-8", "surrogateescape")


def estimate(plan: Plan, read: ResultsFolder, labels: Mapping[str, int | None]) -> sampling.Rates | str:
    """Rates of all images from the draws before the first image without a decision; why there are none, as text.

    ``labels``: 0 or 1 of each reviewed image; None where its reviewers are unsure or disagree, whose draws do not count.
    """
    places = read.paths.find(labels)
    drawn: list[int] = []
    q: list[float] = []
    for image, probability in zip(plan.images, plan.probabilities):
        if image not in labels or image not in places:
            break
        if labels[image] is not None:
            drawn.append(places[image])
            q.append(probability)
    if len(drawn) < sampling.FEWEST:
        return f"{len(drawn)} of the first draws are reviewed; estimates start at {sampling.FEWEST}."
    truth = np.array([labels[read.paths[i]] for i in drawn])
    flagged = read.flagged == 1
    return sampling.rates(drawn, q, truth, flagged[drawn], len(read), int(flagged.sum()))
