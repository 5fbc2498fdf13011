"""An exported graph in the place of a method, so that a detector scores by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from normalcy.arrays import EXTRA_MAP, Array, Float32
from normalcy.engines.graph import Graph
from normalcy.errors import SettingsError
from normalcy.method import Method, Scores, Stage


class GraphMethod(Method):
    """Scores of a method by its graph. It has no weights: it neither learns nor is saved."""

    graph: Graph

    def stages(self) -> Sequence[Stage]:
        raise SettingsError(f"{self.name} was exported and cannot be fitted: fit a Detector anew.")

    def _score(self, x: Tensor) -> Scores:
        parts = {name: torch.from_numpy(v) for name, v in self.graph(x.contiguous().numpy()).items()}
        extra = {name.removeprefix(EXTRA_MAP): v for name, v in parts.items() if name.startswith(EXTRA_MAP)}
        return Scores(
            parts["score"],
            parts.get("map"),
            parts.get("restored"),
            parts.get("uncertainty"),
            parts.get("latent"),
            extra,
        )

    def score_arrays(self, x: Float32) -> dict[str, Array]:
        return {**self.graph(x)}

    def to(self, *args: Any, **kwargs: Any) -> GraphMethod:
        """Stays on the processor. Raises SettingsError for another device."""
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        if device is not None and device.type != "cpu":
            raise SettingsError(
                f"{self.name} was exported for the processor, not for {device.type}: leave out --device."
            )
        return self


def graph_method(cls: type[Method], settings: Any, shape: Sequence[int], graph: Graph) -> GraphMethod:
    """The graph of a fitted ``cls`` with these settings; it offers the one score that it computes."""
    scores = (settings.score,) if cls.scores else ()
    facts = {
        "name": cls.name,
        "Settings": cls.Settings,
        "family": cls.family,
        "reference": cls.reference,
        "spatial_dims": cls.spatial_dims,
        "scores": scores,
        "map_scores": cls.map_scores,
        "reduction": cls.reduction,
        "__module__": cls.__module__,  # its docstring is the summary
        "__doc__": cls.__doc__,
    }
    method: GraphMethod = type(cls.__name__, (GraphMethod,), facts)(settings, shape)
    method.graph = graph
    method.mark_fitted(True)
    method.eval()
    return method
