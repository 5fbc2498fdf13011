"""The scores of all test images of a fit, in one JSON file: other metrics, other test images and ROC curves need no new fit.

Scores are rounded to a power of two of at most 1/1024 of the interquartile range of the normal images' scores, which makes a file
of 10,000 images about 25 kB a score and changes an AUROC by less than 1e-4. Where that is impossible (equal scores, scores more
than 2^30 steps from the smallest one) they are kept in 32 bits.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normalcy.errors import DataError
from normalcy.files import write_bytes
from normalcy.results.schema import read_json

Json = dict[str, Any]
Float64 = NDArray[np.float64]
FORMAT = 1
LEVELS = 1024
"""Steps of the rounding in the interquartile range of the normal images' scores, at least."""
LARGEST = 2**30
"""Largest distance from the smallest score, in steps."""


@dataclass
class KeptScores:
    """Scores of the test images of one fit, in the order of the data set; NaN where an image was not scored."""

    labels: Sequence[int]
    """0 (normal) or 1 (anomalous) of each test image; -1 where it has no label."""
    scores: dict[str, Float64] = field(default_factory=dict)
    """Name of the score ("" for the only one of a method) -> (N,)."""
    unread: list[int] = field(default_factory=list)
    """Images that could not be read."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Name of the score -> seconds that scoring took."""
    facts: Json = field(default_factory=dict)
    """Method, data, seed and settings; what was trained on, and how long the fit took."""

    @property
    def images(self) -> set[int]:
        """Those that were scored with any score."""
        return {int(i) for values in self.scores.values() for i in np.flatnonzero(np.isfinite(values))}

    def covers(self, name: str, images: Sequence[int]) -> bool:
        """Whether all these images were scored with this score, or could not be read."""
        if name not in self.scores:
            return False
        readable = np.setdiff1d(np.asarray(images, dtype=int), self.unread)
        return bool(np.isfinite(self.scores[name][readable]).all())

    def add(self, name: str, images: Sequence[int], scores: Sequence[float], seconds: float) -> None:
        """Add scores of test images, rounded as they will be kept."""
        values = self.scores.get(name, np.full(len(self.labels), np.nan))
        values[np.asarray(images, dtype=int)] = scores
        self.scores[name] = _unpacked(_packed(values, np.asarray(self.labels) == 0), len(values))
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 2)

    def of(self, name: str, images: Sequence[int]) -> tuple[list[int], list[float]]:
        """Labels and scores of those of the images that could be read."""
        readable = [i for i in images if math.isfinite(self.scores[name][i])]
        return [int(self.labels[i]) for i in readable], [float(self.scores[name][i]) for i in readable]

    def write(self, path: Path) -> None:
        normal = np.asarray(self.labels) == 0
        record = {
            "format": FORMAT,
            **self.facts,
            "labels": "".join("?01"[label + 1] for label in self.labels),
            "unread": self.unread,
            "seconds": self.seconds,
            "scores": {name: _packed(values, normal) for name, values in self.scores.items()},
        }
        write_bytes(path, (json.dumps(record, indent=1) + "\n").encode())


def read_scores(path: Path) -> KeptScores | None:
    """The scores that ``path`` holds; none where there is no such file, or one that is damaged or of another format."""
    try:
        record = read_json(path, "remove it")
        if record["format"] != FORMAT:
            return None
        labels = ["?01".index(character) - 1 for character in record["labels"]]
        scores = {name: _unpacked(packed, len(labels)) for name, packed in record["scores"].items()}
        unread = [range(len(labels))[i] for i in record["unread"]]
        seconds = {name: float(record["seconds"][name]) for name in scores}
    except (DataError, KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError, zlib.error):
        return None
    own = ("format", "labels", "unread", "seconds", "scores")
    facts = {word: value for word, value in record.items() if word not in own}
    return KeptScores(labels, scores, unread, seconds, facts)


def _packed(values: Float64, normal: NDArray[np.bool_]) -> Json:
    """``low`` + ``step`` times whole numbers, the first one for NaN; or the scores in 32 bits."""
    scored = values[np.isfinite(values)]
    reference = values[normal & np.isfinite(values)]
    spread = float(np.subtract(*np.percentile(reference, [75, 25]))) if len(reference) else 0.0
    if spread > 0:
        step = 2.0 ** math.floor(math.log2(spread / LEVELS))
        low = step * math.floor(float(scored.min()) / step)
        if (scored.max() - low) / step < LARGEST and abs(low) / step < 2**52:
            places = np.where(np.isfinite(values), np.rint((values - low) / step) + 1, 0).astype("<u4")
            return {"low": low, "step": step, "data": _text(places)}
    return {"data": _text(values.astype("<f4"))}


def _unpacked(packed: Mapping[str, Any], count: int) -> Float64:
    """Raises ValueError and others for what does not hold ``count`` scores; takes no more memory than those."""
    data = zlib.decompressobj().decompress(base64.b64decode(packed["data"]), 4 * count + 1)
    if len(data) != 4 * count:
        raise ValueError(f"expected {count} scores")
    columns = np.frombuffer(data, np.uint8).reshape(4, -1)
    content = np.ascontiguousarray(columns.T)
    if "step" not in packed:
        return content.view("<f4")[:, 0].astype(np.float64)
    places = content.view("<u4")[:, 0].astype(np.float64)
    return np.where(places == 0, np.nan, float(packed["low"]) + float(packed["step"]) * (places - 1))


def _text(values: NDArray[Any]) -> str:
    """Numbers of four bytes: first bytes first, which zlib packs better."""
    columns = np.ascontiguousarray(values.view(np.uint8).reshape(-1, 4).T)
    return base64.b64encode(zlib.compress(columns.tobytes(), 9)).decode()
