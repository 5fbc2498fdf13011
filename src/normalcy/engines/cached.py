"""A fitted method's graph for scoring by onnxruntime or OpenVINO on this machine, kept beside the model."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from normalcy.config import to_dict
from normalcy.engines.graph import Engine, Graph, GraphFile, available, open_graph
from normalcy.engines.method import GraphMethod, graph_method
from normalcy.engines.probe import largest_differences, probes
from normalcy.engines.trace import check_exportable, to_onnx
from normalcy.errors import ModelFileError, NormalcyError, SettingsError
from normalcy.files import own_secret, read_bytes, read_json, temporary_folder, write_bytes, write_folder, write_json
from normalcy.method import Method

CACHE = ".graphs"
"""Folder inside a model folder; it can be deleted at any time."""
SECRET = Path("~/.cache/normalcy/graphs.key")
"""By which graphs that this user has made are recognised."""
BOUND = 1e-4
"""Largest difference allowed between a method and its graph in 32 bits, of every output, relative to its largest value."""
WORTH = 200
"""Images from which on tracing and compiling a graph, once, costs less than it saves."""


def write_graph(onnx: bytes, folder: Path, engine: Engine) -> dict[str, bytes]:
    """Writes the graph for an engine and returns the content of its files by name."""
    if engine == "onnxruntime":
        write_bytes(folder / "model.onnx", onnx)
        return {"model.onnx": onnx}
    import openvino

    openvino.save_model(openvino.Core().read_model(onnx), folder / "model.xml", compress_to_fp16=False)
    return {name: read_bytes(folder / name) for name in ("model.xml", "model.bin")}


def graph_of(method: Method, engine: Engine) -> Graph:
    """The graph of a fitted method, in memory, in 32 bits. Raises SettingsError as :func:`to_onnx` does."""
    onnx, outputs = to_onnx(method)
    with temporary_folder() as folder:
        return Graph(tuple(write_graph(onnx, Path(folder), engine).values()), outputs, engine)


def faster(
    method: Method, folder: Path | None, weights: str, engine: str = "auto", images: int | None = None
) -> GraphMethod | None:
    """``method`` scored by an engine, in 32 bits, or None where torch is to score.

    ``engine`` "auto": onnxruntime, or else OpenVINO, where it is installed, the method lies on the processor, its score can be
    exported, and the graph is kept in ``folder`` already or the number of ``images`` is worth making it. ``weights`` is the
    checksum of the model's weights. The engine uses as many threads as torch would (``OMP_NUM_THREADS``, or the cores that the
    process may use), so that workers on one machine do not compete. A new graph is compared with the method and kept in
    ``folder`` / ".graphs", if that can be written.

    Raises SettingsError where an engine that was asked for by name is missing or cannot score by this method.
    """
    asked = engine != "auto"
    # In 32 bits onnxruntime takes less of a processor's time for most methods (benchmarks/results/deploy.json).
    wanted: Engine = (
        "openvino" if engine == "openvino" or (not asked and "onnxruntime" not in available()) else "onnxruntime"
    )
    if not asked and (wanted not in available() or method.device.type != "cpu"):
        return None
    if asked and wanted not in available():
        raise SettingsError(f"The engine {wanted} is not installed: pip install 'normalcy[{wanted}]'.")
    try:
        check_exportable(method)
    except SettingsError:
        if asked:
            raise
        return None
    kept = None if folder is None else folder / CACHE / _key(method, weights, wanted)
    if kept is not None and (kept / "graph.json").exists():
        with suppress(ModelFileError, OSError):  # damaged, or made by somebody else: made again
            words = read_json(kept / "graph.json")
            if hmac.compare_digest(str(words.pop("seal", "")).encode(), _seal(kept.name, words).encode()):
                return _of(method, open_graph(kept, words, wanted, torch.get_num_threads()))
    if not asked and (images is None or images < WORTH):
        return None
    try:
        twin = _make(method, kept, wanted)
    except NormalcyError:
        if asked:
            raise
        return None
    return twin


def _make(method: Method, kept: Path | None, engine: Engine) -> GraphMethod:
    onnx, outputs = to_onnx(method)

    def fill(partial: Path) -> None:
        contents = write_graph(onnx, partial, engine)
        digests = tuple(hashlib.sha256(content).hexdigest() for content in contents.values())
        facts = asdict(GraphFile(engine, "32", _score(method), outputs, tuple(contents), digests))
        write_json(partial / "graph.json", facts if kept is None else {**facts, "seal": _seal(kept.name, facts)})

    with temporary_folder() as temporary:
        folder = Path(temporary) / "graph"
        write_folder(folder, fill)
        words = read_json(folder / "graph.json")
        words.pop("seal", None)
        twin = _of(method, open_graph(folder, words, engine, torch.get_num_threads()))
        images = probes(method, 2)
        differences = largest_differences(method.score(images), twin.score(images))
        worst = max(d["relative"] for d in differences.values())
        if not worst <= BOUND:
            raise SettingsError(
                f"{method.name} by {engine} differs by {worst:.2g} from torch, more than {BOUND:g}: use --engine torch."
            )
        if kept is not None:
            with suppress(OSError, SettingsError):  # a folder that cannot be written, or is by another process
                write_folder(kept, fill, overwrite=True)
    return twin


def _of(method: Method, graph: Graph) -> GraphMethod:
    return graph_method(type(method), method.settings, method.shape, graph)


def _score(method: Method) -> str:
    return str(method.settings.score) if method.scores else ""


def _seal(name: str, words: Mapping[str, Any]) -> str:
    """Shows that this user's normalcy made the graph: a model folder may come from elsewhere, with a graph that its weights do
    not make. Raises OSError where the user has no place for a secret."""
    text = json.dumps([name, words], sort_keys=True)
    return hmac.new(own_secret(SECRET.expanduser()), text.encode(), "sha256").hexdigest()


def _key(method: Method, weights: str, engine: Engine) -> str:
    """What the graph depends on."""
    facts: Mapping[str, Any] = {
        "weights": weights,
        "settings": to_dict(method.settings),
        "shape": method.shape,
        "normalcy": version("normalcy"),
        "torch": torch.__version__,
        engine: version(engine),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
