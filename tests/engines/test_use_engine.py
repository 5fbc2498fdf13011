"""A detector that scores by an engine, and the option of the command line."""

from pathlib import Path

import numpy as np
import pytest
import torch

from normalcy import Detector, SettingsError, load
from normalcy.data.images import write_image
from normalcy.engines import cached
from normalcy.results.folder import read_results
from normalcy.testing import smooth_textures

IMAGES = np.rint(smooth_textures(60, (1, 32, 32), 0)[:, 0].numpy() * 255).astype(np.uint8)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Detector("pca", device="cpu", false_alarms=0.1).fit(IMAGES).save(tmp_path / "model")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_scores_by_an_engine(model: Path, engine: str):
    detector = load(model)
    unseen = np.rint(smooth_textures(9, (1, 32, 32), 7)[:, 0].numpy() * 255).astype(np.uint8)
    expected = detector.score(unseen)
    assert detector.engine == "torch"
    assert detector.use_engine(engine) == detector.engine == engine
    got = detector.score(unseen)
    assert np.allclose(got.scores, expected.scores, rtol=1e-4)
    assert np.allclose(got.p_values, expected.p_values)
    assert detector.use_engine("torch") == "torch"
    assert load(model, engine).engine == engine
    with pytest.raises(SettingsError, match="engine must be one of auto, torch, onnxruntime, openvino, got 'tensorrt'"):
        detector.use_engine("tensorrt")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_use_the_threads_of_torch(model: Path, engine: str, monkeypatch: pytest.MonkeyPatch):
    """Which follows OMP_NUM_THREADS: workers beside each other on one machine must not each take all cores."""
    given = []
    opener = cached.open_graph
    monkeypatch.setattr(cached, "open_graph", lambda *words: given.append(words[3]) or opener(*words))
    load(model).use_engine(engine)  # makes the graph
    load(model).use_engine(engine)  # finds it
    assert given == [torch.get_num_threads()] * 2


def test_auto_waits_until_it_pays(model: Path):
    detector = load(model)
    assert detector.use_engine(images=cached.WORTH - 1) == "torch"
    assert not (model / cached.CACHE).exists()
    assert detector.use_engine(images=cached.WORTH) == "onnxruntime"
    assert load(model).use_engine(images=1) == "onnxruntime"  # it is there now


def test_another_score_gets_its_own_graph(tmp_path: Path):
    detector = Detector("vae", steps=4, width=4, latent=4, score="elbo", device="cpu").fit(IMAGES)
    detector.use_engine("onnxruntime")
    assert detector.with_score("kl").engine == "torch"


def test_command_line_takes_an_engine_and_an_exported_folder(model: Path, tmp_path: Path):
    from normalcy.cli.app import app

    for k in range(6):
        write_image(tmp_path / "images" / f"{k}.png", IMAGES[k][None])
    words = [str(model), str(tmp_path / "images"), "--out"]
    for engine in ("torch", "onnxruntime", "openvino"):
        app(["score", *words, str(tmp_path / engine), "--engine", engine], standalone_mode=False)
    app(["export", str(model), "--out", str(tmp_path / "exported")], standalone_mode=False)
    words[0] = str(tmp_path / "exported")
    app(["score", *words, str(tmp_path / "graph")], standalone_mode=False)
    results = {name: read_results(tmp_path / name) for name in ("torch", "onnxruntime", "openvino", "graph")}
    for name, found in results.items():
        assert np.allclose(found.scores, results["torch"].scores, rtol=1e-4), name
        assert np.array_equal(found.flagged, results["torch"].flagged)
    assert [results[name].run.device for name in results] == [
        "cpu (torch)", "cpu (onnxruntime)", "cpu (openvino)", "cpu (onnxruntime)",
    ]  # fmt: skip


def test_a_kept_graph_of_somebody_else_is_not_used(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A model folder may come with a graph that its weights do not make."""
    monkeypatch.setattr(cached, "SECRET", tmp_path / "theirs.key")
    load(model).use_engine("onnxruntime")
    (kept,) = (model / cached.CACHE).iterdir()
    made = (kept / "graph.json").read_bytes()
    graph = (kept / "model.onnx").stat().st_mtime_ns
    load(model).use_engine("onnxruntime")
    assert (kept / "model.onnx").stat().st_mtime_ns == graph, "the same user's is used again"
    monkeypatch.setattr(cached, "SECRET", tmp_path / "ours.key")
    load(model).use_engine("onnxruntime")
    assert (kept / "model.onnx").stat().st_mtime_ns != graph
    assert (kept / "graph.json").read_bytes() != made
    assert (tmp_path / "ours.key").stat().st_mode & 0o077 == 0
