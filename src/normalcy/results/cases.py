"""Images together by their case (patient, part): ``cases.csv``, and what evaluation says of cases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from normalcy.arrays import Float64, Indices
from normalcy.results.columns import Texts, by_first
from normalcy.results.run import CASE_COLUMNS, CaseRow
from normalcy.results.writer import Writer


class Rows(Protocol):
    """Columns of images."""

    @property
    def cases(self) -> Texts: ...
    @property
    def scores(self) -> Float64: ...
    @property
    def p_values(self) -> Float64: ...
    @property
    def flagged(self) -> npt.NDArray[np.int8]: ...
    @property
    def labels(self) -> npt.NDArray[np.int8]: ...


@dataclass(frozen=True)
class Cases:
    """Cases in the order of their first images, as columns; see :class:`~normalcy.results.run.CaseRow`."""

    first: Indices
    """Place of the first image of each."""
    images: Indices
    scores: Float64
    p_values: Float64
    """NaN where none is known."""
    flagged: npt.NDArray[np.int8]
    labels: npt.NDArray[np.int8]
    """1, 0, or -1 unknown."""

    @classmethod
    def of(cls, rows: Rows, numbers: Indices, among: Indices) -> Cases:
        """``numbers``: the case of each image of ``among``, from 0 by its first (:func:`~normalcy.results.columns.by_first`)."""
        count = int(numbers.max(initial=-1)) + 1
        first, scores, least = np.full(count, len(numbers)), np.full(count, -np.inf), np.full(count, np.inf)
        flagged, labels = np.full(count, -1, np.int8), np.full(count, -1, np.int8)
        p_values = rows.p_values[among]
        known = ~np.isnan(p_values)
        np.minimum.at(first, numbers, np.arange(len(numbers)))
        np.maximum.at(scores, numbers, rows.scores[among])
        np.minimum.at(least, numbers[known], p_values[known])
        np.maximum.at(flagged, numbers, rows.flagged[among])
        np.maximum.at(labels, numbers, rows.labels[among])
        tested = np.bincount(numbers[known], minlength=count)
        with np.errstate(invalid="ignore"):
            combined = np.where(tested > 0, np.minimum(1.0, tested * least), np.nan)  # Bonferroni
        return cls(among[first], np.bincount(numbers, minlength=count), scores, combined, flagged, labels)


def write_cases(writer: Writer, rows: Rows) -> None:
    """``cases.csv``, where a case has several images."""
    numbers = rows.cases.numbers()
    if int(numbers.max(initial=-1)) + 1 < len(numbers):
        cases = Cases.of(rows, numbers, np.arange(len(numbers)))
        with writer.table("cases.csv", CASE_COLUMNS) as add:
            for row in _rows(cases, rows.cases):
                add(row.cells())


def numbers_of(rows: Rows, among: Indices) -> Indices | None:
    """The case of each image of ``among``, from 0 by its first; None where each is a case of its own."""
    numbers = by_first(rows.cases.numbers()[among])
    return None if int(numbers.max(initial=-1)) + 1 == len(numbers) else numbers


# -- private -----------------------------------------------------------------------------------------------------------


def _rows(cases: Cases, names: Texts) -> Iterator[CaseRow]:
    for k, at in enumerate(cases.first.tolist()):
        p, flagged, label = float(cases.p_values[k]), int(cases.flagged[k]), int(cases.labels[k])
        yield CaseRow(
            case=names[at],
            images=int(cases.images[k]),
            score=float(cases.scores[k]),
            p_value=p if p == p else None,
            flagged=bool(flagged) if flagged >= 0 else None,
            label=label if label >= 0 else None,
        )
