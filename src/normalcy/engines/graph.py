"""Running an exported graph by onnxruntime or OpenVINO. Imports no torch.

A graph has one input, ``images`` (B, C, *spatial), float32, preprocessed; B is free. Its outputs are ``score`` (B,) and, where
the method has them, ``map`` and ``uncertainty`` (B, *spatial), ``restored`` (B, C, *spatial), ``latent`` (B, d) and
``extra_maps.NAME``.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from normalcy import config
from normalcy.arrays import Float32, Reduce
from normalcy.errors import ModelFileError, SettingsError
from normalcy.files import read_bytes

INPUT = "images"
Engine = Literal["onnxruntime", "openvino"]
Precision = Literal["32", "bf16"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
Run = Callable[[Float32], Sequence[Float32]]


@dataclass(frozen=True)
class GraphFile:
    """The entry ``graph`` of an exported model's ``detector.json``."""

    engine: Engine
    """The engine that it was written and compared for; an ONNX graph runs on both."""
    precision: Precision
    """Of the computation, "32" or "bf16"."""
    score: str
    """The score of the method that it computes; "" where there is one."""
    outputs: tuple[str, ...]
    files: tuple[str, ...]
    """The graph, and the file of its weights where they are apart."""
    sha256: tuple[str, ...]
    """Of each file."""
    reduction: Reduce | None = None
    """How the score follows from the map; none where it does not, and in models of earlier versions."""

    @classmethod
    def from_json(cls, words: Mapping[str, Any]) -> GraphFile:
        """Raises ModelFileError for anything but what was written."""
        try:
            graph = config.build(cls, words, "graph")
            names = (*graph.files, *graph.sha256)
            if len(graph.files) != len(graph.sha256) or not graph.files or "score" not in graph.outputs:
                raise ValueError("files, checksums or outputs are missing")
            if any("/" in name or "\\" in name or name.startswith(".") for name in names):
                raise ValueError("a file lies outside of the folder")
        except (TypeError, ValueError, SettingsError) as error:
            raise ModelFileError(f"detector.json is damaged (graph: {error}); export the model again.") from error
        return graph

    def read(self, folder: Path) -> tuple[bytes, ...]:
        """Content of the files. Raises ModelFileError when one is missing or not the one that was written."""
        contents = []
        for name, digest in zip(self.files, self.sha256):
            content = read_bytes(folder / name, error=ModelFileError)
            if hashlib.sha256(content).hexdigest() != digest:
                raise ModelFileError(f"{folder / name} is damaged or was exchanged: copy the exported model again.")
            contents.append(content)
        return tuple(contents)


class Graph:
    """A graph in an engine. Calls from several threads give the results of one.

    ``threads`` is the number of threads of a call; none: as many as there are cores.
    """

    def __init__(
        self,
        contents: Sequence[bytes],
        outputs: Sequence[str],
        engine: Engine,
        precision: Precision = "32",
        threads: int | None = None,
    ) -> None:
        self.outputs, self.engine, self.precision = tuple(outputs), engine, precision
        if (
            not contents[0].lstrip().startswith(b"<") and b"location" in contents[0]
        ):  # a key of ONNX, for tensors in other files
            raise ModelFileError("The graph names other files, which are not read: export the model again.")
        if engine not in available():
            raise SettingsError(f"The engine {engine} is not installed: pip install {engine}.")
        make = _onnxruntime if engine == "onnxruntime" else _openvino
        self._run: Run = make(contents, precision, threads)

    def __call__(self, images: Float32) -> dict[str, Float32]:
        """Preprocessed images (B, C, *spatial) -> outputs by name; each array is the caller's."""
        return dict(zip(self.outputs, self._run(images)))


def open_graph(folder: Path, words: Mapping[str, Any], engine: str = "auto", threads: int | None = None) -> Graph:
    """The graph of an exported folder whose ``detector.json`` has the entry ``words``.

    ``engine`` "auto" is the one that the graph was written for, or OpenVINO for an ONNX graph where that alone is installed.
    Raises SettingsError for an engine that cannot run it, ModelFileError for files that are damaged.
    """
    file = GraphFile.from_json(words)
    readable = ENGINES if file.engine == "onnxruntime" else (file.engine,)
    if engine == "auto":
        engine = next((e for e in (file.engine, *readable) if e in available()), file.engine)
    if engine not in readable:
        raise SettingsError(
            f"{folder} is a graph for {' or '.join(readable)}, not for {engine}: leave out --engine, or export again with --to."
        )
    return Graph(file.read(folder), file.outputs, engine, file.precision, threads)


@cache
def available() -> tuple[Engine, ...]:
    """The engines that are installed."""
    return tuple(engine for engine in ENGINES if find_spec(engine) is not None)


def has_bf16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this processor."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _onnxruntime(contents: Sequence[bytes], precision: Precision, threads: int | None) -> Run:
    import onnxruntime

    if precision != "32":
        raise SettingsError("onnxruntime computes in 32 bits on a processor: export with --to openvino for bf16.")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = True
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(contents[0], options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base
        raise ModelFileError(
            f"The graph cannot be read by onnxruntime ({_first_line(error)}): export again."
        ) from error

    def run(images: Float32) -> Sequence[Float32]:
        outputs: Sequence[Float32] = session.run(None, {INPUT: images})
        return outputs

    return run


def _openvino(contents: Sequence[bytes], precision: Precision, threads: int | None) -> Run:
    import openvino

    core = openvino.Core()
    if precision == "bf16" and not has_bf16():
        raise SettingsError(
            "The model was exported and calibrated in bf16, which this processor does not have: export with --precision 32."
        )
    # Without a hint OpenVINO takes bf16 where the processor has it.
    hints: dict[str, Any] = {"INFERENCE_PRECISION_HINT": {"32": "f32", "bf16": "bf16"}[precision]}
    hints["PERFORMANCE_HINT"] = "LATENCY"
    if threads is not None:
        hints["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled = core.compile_model(core.read_model(*contents), "CPU", hints)
    except RuntimeError as error:
        raise ModelFileError(f"The graph cannot be read by OpenVINO ({_first_line(error)}): export again.") from error
    mine = threading.local()  # a request is for one thread at a time

    def run(images: Float32) -> Sequence[Float32]:
        if not hasattr(mine, "request"):
            mine.request = compiled.create_infer_request()
        return list(mine.request.infer([images], share_inputs=True, share_outputs=False).values())

    return run


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
