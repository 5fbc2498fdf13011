"""A fitted method -> an ONNX graph of its score, map, restored image and latent code, by torch.export."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from normalcy.engines.graph import INPUT
from normalcy.errors import SettingsError
from normalcy.method import Method

OPSET = 20
BATCH = 3
"""Images in the batch that is traced: a number that no other axis should have, so that the batch alone stays free."""


def check_exportable(method: Method) -> None:
    """Raises SettingsError where the method's score cannot be a graph, with the reason and what to take instead."""
    score = getattr(method.settings, "score", "") if method.scores else ""
    who = f"{method.name} with score={score}" if score else method.name
    if score in method.not_exportable:
        raise SettingsError(f"{who} cannot be exported: {method.not_exportable[score]}")
    if getattr(getattr(method, "backbone", None), "bf16", False):
        raise SettingsError(f"{who} was fitted with bf16=true: fit with bf16=false and export with --precision bf16.")


def to_onnx(method: Method) -> tuple[bytes, tuple[str, ...]]:
    """The graph (opset 20, any batch size) and the names of its outputs. The method is to lie on the processor.

    Raises SettingsError for a method that cannot be traced.
    """
    check_exportable(method)
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise SettingsError(f"Exporting needs {' and '.join(missing)}: pip install 'normalcy[export]'.")
    images = torch.rand(BATCH, *method.shape, generator=torch.Generator().manual_seed(0))
    names = tuple(method.score(images).by_name())  # this first run also draws the noise that the graph keeps
    training = method.training
    method.eval()
    try:
        with torch.no_grad(), _quiet():
            program: Any = torch.onnx.export(
                _Outputs(method),
                (images,),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(names),
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            )
    except Exception as error:  # of torch.export, the decompositions and the converter
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise SettingsError(
            f"{method.name} cannot be exported, as its score cannot be traced by torch.export ({cause}). A method whose score "
            "searches, samples or depends on values in its control flow says so in not_exportable."
        ) from error
    finally:
        method.train(training)
    _remove_traces_of_the_machine(program.model)
    buffer = io.BytesIO()
    program.save(buffer)
    return buffer.getvalue(), names


def traced(module: nn.Module, images: Tensor, names: Sequence[str]) -> bytes:
    """The graph (any batch size) of a network that does the same for all values, traced on ``images``; its outputs are a tuple
    with these ``names``. In a twentieth of the time of :func:`to_onnx`, by the exporter that records one run.

    Raises SettingsError where the network cannot be traced, or ``onnx`` is not installed.
    """
    buffer: Any = io.BytesIO()
    try:
        with torch.no_grad(), _quiet():
            torch.onnx.export(
                module,
                (images,),
                buffer,
                dynamo=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(names),
                dynamic_axes={name: [0] for name in (INPUT, *names)},
            )
    except Exception as error:  # of the tracing and the converter
        raise SettingsError(f"The network cannot be traced ({str(error).strip().splitlines()[:1]}).") from error
    return bytes(buffer.getvalue())


class _Outputs(nn.Module):
    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.method._score(images).by_name().values())


def _remove_traces_of_the_machine(model: Any) -> None:
    """Stack traces, with paths of files, that the exporter notes at each node."""
    model.metadata_props.clear()
    for graph in model.graphs():
        graph.metadata_props.clear()
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns and logs about its own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
