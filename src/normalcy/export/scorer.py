"""Scoring by an exported model without torch: what ``normalcy-runtime`` installs.

The same preprocessing, scoring and calibration as :class:`normalcy.Detector`, with the graph in the place of the method.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from normalcy import config
from normalcy.arrays import Array, Float32
from normalcy.calibrate import Calibration, Decision, decide
from normalcy.data.dataset import DataSet, Failure
from normalcy.data.open import as_dataset
from normalcy.engines.graph import Graph, open_graph
from normalcy.errors import DataError, ModelFileError, SettingsError
from normalcy.files import read_json
from normalcy.preprocessing.pipeline import Preprocess
from normalcy.preprocessing.views import ViewSettings
from normalcy.scoring import Pipeline, Result, Results, stream
from normalcy.settings import DecisionSettings, InputSettings

__all__ = ["Scorer", "load"]

_PARTS = ("settings", "input", "train", "decision", "data", "preprocess", "views", "graph")
"""Objects of ``detector.json``."""


@dataclass(frozen=True)
class GraphScores:
    """A graph as :func:`normalcy.scoring.stream` wants a method."""

    name: str
    shape: tuple[int, ...]
    graph: Graph
    on_processor: bool = True

    def score_arrays(self, x: Float32) -> dict[str, Array]:
        """Preprocessed images (B, C, *spatial) -> the outputs of the graph by name, see :mod:`normalcy.engines.graph`."""
        return {**self.graph(x)}


class Scorer:
    """An exported model. :meth:`score` may be called from several threads at once."""

    def __init__(
        self,
        description: Mapping[str, Any],
        pipeline: Pipeline,
        decision: DecisionSettings,
        graph: Graph,
    ) -> None:
        self.description, self.graph = description, graph
        self._pipeline, self._decision = pipeline, decision

    @property
    def calibration(self) -> Calibration | None:
        """Scores of held-out normal images; None where there were none."""
        return self._pipeline.calibration

    def decide(self, false_alarms: float | None = None) -> Decision | None:
        """Thresholds that bound the false-positive rate, by default at the setting ``false_alarms``; None without calibration."""
        if self.calibration is None:
            return None
        return decide(self.calibration, self._decision.false_alarms if false_alarms is None else false_alarms)

    def score(self, images: Any, *, batch_size: int = 32, false_alarms: float | None = None) -> Results:
        """Scores, p-values, maps and restored images of arrays (N, H, W) or (N, H, W, C), paths, or a data set.

        Maps have the size of their image. Images that cannot be read are listed in ``failed``; raises DataError when all are bad.
        """
        data = as_dataset(images)
        results: list[Result] = []
        failed: list[Failure] = []
        for r in self.stream(data, batch_size=batch_size, false_alarms=false_alarms):
            results.append(r) if isinstance(r, Result) else failed.append(r)
        if failed and not results:
            raise DataError(f"None of the {len(data)} images can be scored: {failed[0].path}: {failed[0].reason}")
        return Results(results, failed)

    def stream(
        self, data: DataSet, *, batch_size: int = 32, false_alarms: float | None = None
    ) -> Iterator[Result | Failure]:
        """One result at a time; memory does not grow with the number of images."""
        scheme = self.description.get("data", {}).get("scheme", {})
        if scheme or data.scheme:
            from normalcy.data.diffusion import check_scheme

            check_scheme(scheme, data.scheme, data.name)
        p = self._pipeline
        decision = self.decide(false_alarms)
        pipeline = Pipeline(p.method, p.preprocess, p.views, p.view_score, p.calibration, decision)
        return stream(pipeline, data, batch_size)


def load(folder: Path | str, engine: str = "auto", threads: int | None = None) -> Scorer:
    """Read a folder that ``normalcy export`` wrote. Runs no code from it.

    ``engine``: "onnxruntime", "openvino" or "auto", the one that the graph was written for. ``threads`` of one call; none: as
    many as there are cores. Raises ModelFileError for a folder that is damaged or no exported model, SettingsError for an engine
    that is not installed.
    """
    folder = Path(folder)
    words = read_json(folder / "detector.json")
    if not isinstance(words.get("graph"), dict):
        raise ModelFileError(f"{folder} is no exported model: write one with 'normalcy export MODEL --out {folder}'.")
    try:
        for part, kind in (("method", str), ("normalcy", str), *((part, dict) for part in _PARTS)):
            if not isinstance(words.get(part), kind):
                raise ValueError(f"{part} is missing or of another type")
        name = words["method"]
        inputs = InputSettings.from_json(words["input"])
        decision = config.build(DecisionSettings, words["decision"], "decision")
        preprocess = Preprocess.from_json(words["preprocess"])
        views = config.build(ViewSettings, words["views"], "views")
        shape = tuple(int(n) for n in words["shape"])
        if not 3 <= len(shape) <= 4 or min(shape) < 1 or float(np.prod([float(n) for n in shape])) > 2**31:
            raise ValueError(f"shape {shape} is impossible")
    except (AttributeError, KeyError, TypeError, ValueError, SettingsError, DataError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelFileError(f"{folder} is damaged or does not fit this version ({reason}).") from error
    steps = [step for step in words["preprocess"]["steps"] if step.startswith("clahe") or step.endswith("body")]
    if (steps or views.body) and find_spec("skimage") is None:
        raise SettingsError(f"{(*steps, 'slice_body')[0]} needs scikit-image: pip install 'normalcy-runtime[body]'.")
    graph = open_graph(folder, words["graph"], engine, threads)
    calibration = None
    if (folder / "calibration.json").exists():
        found = read_json(folder / "calibration.json").get(words["graph"]["score"])
        calibration = None if found is None else Calibration.from_json(found)
    pipeline = Pipeline(GraphScores(name, shape, graph), preprocess, views, inputs.view_score, calibration)
    return Scorer(words, pipeline, decision, graph)
