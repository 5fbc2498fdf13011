"""One graph, many threads and many calls."""

import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from normalcy.engines.cached import graph_of
from normalcy.engines.graph import ENGINES, Engine, Graph
from normalcy.errors import ModelFileError
from normalcy.methods import get
from normalcy.testing import Trial


@pytest.fixture(scope="module", params=ENGINES)
def graph(request: pytest.FixtureRequest) -> Graph:
    engine: Engine = request.param
    method = Trial(get("autoencoder"), {"steps": 2, "width": 4, "latent": 4}).fitted()
    return graph_of(method, engine)


def test_threads_give_the_numbers_of_one(graph: Graph):
    images = torch.rand(64, 1, 32, 32, generator=torch.Generator().manual_seed(0)).numpy()
    alone = [graph(image[None]) for image in images]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda image: graph(image[None]), np.concatenate([images] * 4)[:, None][:, 0]))
    for k, result in enumerate(together):
        for name, values in alone[k % 64].items():
            assert np.array_equal(result[name], values), (k, name)


def test_results_are_the_callers(graph: Graph):
    first = graph(np.zeros((1, 1, 32, 32), np.float32))
    kept = {name: values.copy() for name, values in first.items()}
    graph(np.ones((1, 1, 32, 32), np.float32))
    for name, values in kept.items():
        assert np.array_equal(first[name], values)


def test_memory_stays_flat(graph: Graph):
    image = np.full((1, 1, 32, 32), 0.5, np.float32)
    for _ in range(500):
        graph(image)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(10_000):
        graph(image)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024  # KiB


def test_graphs_name_no_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An ONNX graph can take its numbers from any file of the working directory."""
    onnx = pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    np.arange(4, dtype=np.float32).tofile(tmp_path / "private.bin")
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=1)
    for key, value in (("location", "private.bin"), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["B", 4]) for name in ("images", "score")]
    added = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["images", "w"], ["score"])], "g", ends[:1], ends[1:], [tensor]
    )
    content = onnx.helper.make_model(
        added, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()
    for engine in ENGINES:
        with pytest.raises(ModelFileError, match="names other files"):
            Graph([content], ["score"], engine)
