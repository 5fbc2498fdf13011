"""Exported folders: what is in them, that they score as the model, and when nothing is written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normalcy import Detector, ModelFileError, SettingsError
from normalcy.engines import cached
from normalcy.engines.graph import has_bf16
from normalcy.export import export
from normalcy.export import write as module
from normalcy.testing import smooth_textures


def textures(count: int, seed: int, side: int = 40) -> Any:
    return np.rint(smooth_textures(count, (1, side, side), seed)[:, 0].numpy() * 255).astype(np.uint8)


def fitted(name: str = "pca", **words: Any) -> Detector:
    return Detector(name, size=32, false_alarms=0.1, device="cpu", **words).fit(textures(60, 0))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitted().save(tmp_path_factory.mktemp("models") / "pca")


def bright(images: Any) -> Any:
    images = images.copy()
    images[::2, 5:15, 5:15] = 250
    return images


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_folder_scores_as_the_model(model: Path, tmp_path: Path, to: str):
    parity = export(model, tmp_path / "out", to, calibrate=textures(40, 3))
    assert parity == json.loads((tmp_path / "out" / "parity.json").read_text())
    assert parity["inputs"]["count"] == 16
    assert parity["largest_differences"]["score"]["relative"] <= 1e-4
    assert {"p_value", "map", "restored"} <= set(parity["largest_differences"])
    images = bright(textures(12, 5))
    before, after = Detector.load(model), Detector.load(tmp_path / "out")
    a, b = before.score(images), after.score(images)
    assert np.allclose(a.scores, b.scores, rtol=1e-4)
    assert after.calibration is not None
    assert after.calibration.count == 40
    assert b.flagged[::2].all()
    for left, right in zip(a, b, strict=True):
        assert left.map is not None
        assert right.map is not None
        assert right.map.shape == (40, 40)  # of the image, not of the graph
        assert np.allclose(left.map, right.map, atol=1e-4 * np.abs(left.map).max())
        assert np.abs(left.restored.astype(int) - right.restored.astype(int)).max() <= 1


def test_without_images_the_calibration_is_that_of_the_model(model: Path, tmp_path: Path):
    parity = export(model, tmp_path / "out")
    assert (tmp_path / "out" / "calibration.json").read_bytes() == (model / "calibration.json").read_bytes()
    assert parity["inputs"]["name"].startswith("smooth random textures")
    images = bright(textures(12, 5))
    a, b = Detector.load(model).score(images), Detector.load(tmp_path / "out").score(images)
    assert (a.flagged == b.flagged).all()
    assert np.allclose(a.p_values, b.p_values)


def test_card_and_description_name_no_path_of_this_machine(model: Path, tmp_path: Path):
    export(model, tmp_path / "out")
    for file in (tmp_path / "out").iterdir():
        assert str(Path(module.__file__).parents[1]).encode() not in file.read_bytes(), file.name
    card = (tmp_path / "out" / "CARD.md").read_text()
    assert "## Exported graph" in card
    assert "| score |" in card


def test_nothing_is_written_when_the_graph_differs(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "BOUND", 0.0)
    with pytest.raises(SettingsError, match="pca: nothing was exported, as the graph's"):
        export(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_another_score_and_a_refused_one(tmp_path: Path):
    model = fitted("vae", steps=4, latent=4, width=4, score="gradient_elbo").save(tmp_path / "vae")
    with pytest.raises(SettingsError, match=r"vae with score=gradient_elbo cannot be exported: .*score=elbo"):
        export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export(model, tmp_path / "out", score="elbo")
    exported = Detector.load(tmp_path / "out")
    images = textures(5, 6)
    expected = Detector.load(model).with_score("elbo").score(images)
    got = exported.score(images)
    assert np.allclose(got.scores, expected.scores, rtol=1e-4)
    assert np.allclose(got.p_values, expected.p_values)
    with pytest.raises(SettingsError, match="vae has no score 'kl'"):
        exported.with_score("kl")


def test_bf16_needs_images_and_openvino(model: Path, tmp_path: Path):
    with pytest.raises(SettingsError, match=r"give normal images .* with --calibrate"):
        export(model, tmp_path / "out", "openvino", "bf16")
    with pytest.raises(SettingsError, match="bf16 runs by OpenVINO alone"):
        export(model, tmp_path / "out", "onnx", "bf16")
    assert not (tmp_path / "out").exists()


def test_bf16_is_calibrated_on_its_own_scores(tmp_path: Path):
    model = fitted("autoencoder", steps=20, width=8, latent=8).save(tmp_path / "model")
    normal = textures(40, 3)
    if not has_bf16():
        with pytest.raises(SettingsError, match="this processor does not have"):
            export(model, tmp_path / "out", "openvino", "bf16", calibrate=normal)
        return
    parity = export(model, tmp_path / "out", "openvino", "bf16", calibrate=normal)
    assert parity["bound"] is None
    exported = Detector.load(tmp_path / "out")
    assert exported.calibration is not None
    assert np.allclose(np.sort(exported.score(normal).scores), exported.calibration.scores, rtol=1e-6)


def test_a_damaged_graph_is_refused(model: Path, tmp_path: Path):
    export(model, tmp_path / "out")
    graph = tmp_path / "out" / "model.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    with pytest.raises(ModelFileError, match="damaged or was exchanged"):
        Detector.load(tmp_path / "out")


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", ".hidden"])
def test_a_graph_lies_in_its_folder(model: Path, tmp_path: Path, name: str):
    export(model, tmp_path / "out")
    path = tmp_path / "out" / "detector.json"
    words = json.loads(path.read_text())
    words["graph"]["files"] = [name]
    path.write_text(json.dumps(words))
    with pytest.raises(ModelFileError, match="outside of the folder"):
        Detector.load(tmp_path / "out")


def test_engine_of_an_ordinary_model(model: Path, tmp_path: Path):
    detector = Detector.load(model)
    method = detector.method
    assert method is not None
    assert cached.faster(method, model, "w", images=10) is None  # not worth it yet
    made = cached.faster(method, model, "w", "onnxruntime")
    assert made is not None
    kept = list((model / cached.CACHE).iterdir())
    assert len(kept) == 1
    again = cached.faster(method, model, "w", images=10)  # now it is there
    assert again is not None
    x = smooth_textures(3, method.shape, 8)
    for twin in (made, again):
        assert np.allclose(twin.score(x).image, method.score(x).image, rtol=1e-4)
    (kept[0] / "model.onnx").write_bytes(b"")
    mended = cached.faster(method, model, "w", "onnxruntime")
    assert mended is not None
    assert np.allclose(mended.score(x).image, method.score(x).image, rtol=1e-4)
    vae = fitted("vae", steps=2, latent=4, width=4, score="combined").method
    assert vae is not None
    with pytest.raises(SettingsError, match="cannot be exported"):
        cached.faster(vae, None, "w", "openvino")
    assert cached.faster(vae, None, "w", "auto", 10_000) is None
