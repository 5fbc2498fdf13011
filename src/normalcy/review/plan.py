"""The informative order: which images to review so that the rates of the whole folder are known best, and these rates.

The draws are made once, written to ``review/sampling.csv`` and never changed, so that the labels of a prefix of them are a sample
with known probabilities whatever else is reviewed; see :mod:`normalcy.metrics.sampling`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from normalcy.files import write_bytes
from normalcy.metrics import sampling
from normalcy.results.drawn import MOST, TABLE, Plan, estimate, read_plan, write_plan
from normalcy.results.folder import ResultsFolder

__all__ = ["MOST", "Plan", "estimate", "of"]


def possible(read: ResultsFolder) -> bool:
    """Whether the flags divide the images, so that there are rates to estimate."""
    flagged = read.flagged
    decided = bool((flagged >= 0).all()) and 0 < int((flagged == 1).sum()) < len(flagged)
    return decided and bool(np.isfinite(read.scores).all())


def of(read: ResultsFolder, folder: Path, write: bool = True) -> Plan | None:
    """The draws of a results folder: those written before, else new ones. None where the flags do not divide the images."""
    if not possible(read):
        return None
    flagged = read.flagged
    path = folder / TABLE
    if path.exists():
        return read_plan(path)
    q = sampling.proposal(read.scores, flagged == 1, read.p_values)
    drawn = sampling.draw(q, min(MOST, 20 * len(read)))
    plan = Plan(tuple(read.paths[i] for i in drawn), tuple(float(q[i]) for i in drawn))
    if write:
        write_bytes(path, write_plan(plan))
    return plan
