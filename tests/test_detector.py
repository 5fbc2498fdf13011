"""The detector on arrays and data sets: learning, scoring, tiling, calibration, model folders."""

import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import normalcy
from normalcy import DataError, DataSet, Detector, Item, ModelFileError, SettingsError
from normalcy.files import write_folder


def textures(count: int, side: tuple[int, int] = (32, 32), seed: int = 0, dtype: Any = np.uint8) -> np.ndarray:
    """Smooth random images in the middle of the range of values."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.normal(size=(count, *side)), (0, 2, 2))
    values = 0.5 + 0.1 * smooth / smooth.std()
    return (np.clip(values, 0, 1) * (np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1)).astype(dtype)


def with_defect(images: np.ndarray, row: int = 8, column: int = 20, side: int = 6) -> np.ndarray:
    changed = images.copy()
    top = np.iinfo(images.dtype).max if np.issubdtype(images.dtype, np.integer) else 1
    changed[:, row : row + side, column : column + side] = top
    return changed


@pytest.fixture(scope="module")
def pca() -> Detector:
    return Detector("pca", false_alarms=0.1).fit(textures(120))


def test_finds_shows_and_restores(pca: Detector) -> None:
    images = np.concatenate([textures(5, seed=1), with_defect(textures(5, seed=2))])
    results = pca.score(images)
    assert len(results) == 10
    assert results.scores[5:].min() > results.scores[:5].max()
    assert results.flagged[5:].all()
    assert (results.p_values[5:] <= 0.1).all()
    for r in results[5:]:
        assert r.map is not None
        assert r.restored is not None
        row, column = np.unravel_index(r.map.argmax(), r.map.shape)
        assert 8 <= row < 14
        assert 20 <= column < 26
        assert r.restored.dtype == np.uint8
        assert r.restored.shape == (1, 32, 32)
        # the restored image is nearer to normal than the defect is
        assert r.restored[0, 10, 22] < 250


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_bit_depth_is_kept(dtype: Any) -> None:
    detector = Detector("pca").fit(textures(60, dtype=dtype))
    result = detector.score(with_defect(textures(1, seed=3, dtype=dtype)))[0]
    assert result.restored is not None
    assert result.restored.dtype == dtype
    with pytest.raises(DataError, match="None of the 1 images can be scored"):
        detector.score(textures(1))  # 8-bit images for a detector of another depth


def test_tensors_arrays_and_lists_give_the_same_scores(pca: Detector) -> None:
    images = textures(3, seed=4)
    expected = pca.score(images).scores
    assert np.allclose(pca.score(torch.from_numpy(images)[:, None]).scores, expected)
    assert np.allclose(pca.score(list(images)).scores, expected)
    assert np.allclose(pca.score(images[..., None]).scores, expected)
    assert np.allclose(pca.score(images, batch_size=1).scores, expected, rtol=1e-4)


def test_order_is_kept_and_bad_images_are_listed(pca: Detector) -> None:
    images = textures(40, seed=5)

    def read(i: int) -> np.ndarray:
        if i in (3, 17):
            raise DataError(f"image {i} is truncated")
        return images[i][None]

    data = DataSet("some", [Item(f"{i}.png", str(i)) for i in range(40)], read)
    results = pca.score(data, batch_size=8)
    assert [r.path for r in results] == [f"{i}.png" for i in range(40) if i not in (3, 17)]
    assert [one.path for one in results.failed] == ["3.png", "17.png"]
    fitted = Detector("pca", calibration=0).fit(data)
    assert [f[0] for f in fitted.facts["data"]["failed"]] == ["3.png", "17.png"]
    assert fitted.facts["data"]["count"] == 38
    assert fitted.score(images[:2])[0].p_value is None


def test_anomalous_and_test_images_never_train() -> None:
    images = textures(60)
    seen: list[int] = []

    def read(i: int) -> np.ndarray:
        seen.append(i)
        return images[i][None]

    items = [Item(f"{i}", f"{i}", int(i % 10 == 0), None, "test" if i >= 40 else "train") for i in range(60)]
    Detector("zscore").fit(DataSet("labelled", items, read))
    # the fingerprint reads images too, of the chosen ones alone
    assert {i for i in seen if i >= 40 or i % 10 == 0} == set()


def test_groups_stay_together_in_calibration() -> None:
    images = textures(100)
    data = DataSet("patients", [Item(f"{i}", f"patient {i // 10}") for i in range(100)], lambda i: images[i][None])
    detector = Detector("zscore", calibration=0.2).fit(data)
    assert detector.facts["data"]["held_out"] == 20
    assert detector.facts["data"]["count"] == 80


def test_images_of_other_sizes_come_back_at_their_own(pca: Detector) -> None:
    images = [textures(1, (40 + i, 60))[0] for i in range(50)]
    detector = Detector("pca", size=32).fit(images)
    changed = images[0].copy()
    changed[10:20, 40:50] = 255
    result = detector.score([changed])[0]
    assert result.map is not None
    assert result.map.shape == (40, 60)
    row, column = np.unravel_index(result.map.argmax(), result.map.shape)
    assert 9 <= row <= 20
    assert 39 <= column <= 50
    with pytest.raises(DataError, match="expects images"):
        pca.score([textures(1, (40, 40))[0]])


def test_tiles_cover_large_images_at_native_resolution() -> None:
    detector = Detector("pca", tile=32).fit(textures(40, (64, 96)))
    large = textures(2, (150, 111), seed=9)
    changed = with_defect(large, 100, 90, 8)
    result = detector.score(changed)[0]
    assert result.p_value is not None
    assert result.map is not None
    assert result.map.shape == (150, 111)
    row, column = np.unravel_index(result.map.argmax(), result.map.shape)
    assert 99 <= row <= 108
    assert 89 <= column <= 98
    assert detector.score(changed).scores[0] > 2 * detector.score(large).scores[0]


def test_tiling_on_request_for_a_detector_fitted_without(pca: Detector) -> None:
    changed = with_defect(textures(1, (100, 100)), 70, 30, 8)
    result = pca.score(changed, tile=True)[0]
    assert result.p_value is None  # the calibration does not hold for tiles
    assert result.flagged is None
    assert result.map is not None
    assert result.map.shape == (100, 100)
    assert 69 <= np.unravel_index(result.map.argmax(), result.map.shape)[0] <= 78


def test_random_crops_train_and_tiles_score() -> None:
    detector = Detector("autoencoder", augment=("crop:16",), steps=3, batch_size=8).fit(textures(50))
    assert detector.method is not None
    assert detector.method.shape == (1, 16, 16)
    result = detector.score(textures(1))[0]
    assert result.map is not None
    assert result.map.shape == (32, 32)


def test_another_score_has_its_own_calibration(tmp_path: Path) -> None:
    images = textures(60)
    detector = Detector("vae", steps=5, batch_size=16, latent=4).fit(images)
    kl = detector.with_score("kl")
    direct = Detector("vae", steps=5, batch_size=16, latent=4, score="kl").fit(images)
    assert np.allclose(kl.score(images[:4]).scores, direct.score(images[:4]).scores, rtol=1e-4)
    assert kl.decide() == direct.decide()
    assert detector.settings.score != "kl"
    detector.save(tmp_path / "m")
    loaded = normalcy.load(tmp_path / "m").with_score("kl")
    assert np.allclose(loaded.score(images[:4]).scores, kl.score(images[:4]).scores, rtol=1e-6)
    with pytest.raises(SettingsError, match="has no score"):
        detector.with_score("luck")


def test_words_are_checked() -> None:
    with pytest.raises(SettingsError, match="did you mean 'components'"):
        Detector("pca", component=3)
    with pytest.raises(SettingsError, match="There is no method"):
        Detector("pac")
    with pytest.raises(SettingsError, match="not fitted yet"):
        Detector("pca").score(textures(1))
    with pytest.raises(SettingsError, match="epochs or steps"):
        Detector("autoencoder", epochs=1, steps=1)
    with pytest.raises(SettingsError, match="false_alarms"):
        Detector("pca", false_alarms=2)


def test_mixed_channels_are_refused_with_what_to_do() -> None:
    images = [textures(1)[0] for _ in range(30)]
    images[7] = np.stack([images[7]] * 3, -1)
    fitted = Detector("zscore", calibration=0).fit(images)  # one of thirty: listed, not fatal
    assert len(fitted.facts["data"]["failed"]) == 1
    assert "channel" in fitted.facts["data"]["failed"][0][1]


# -- model folders


def test_model_folder_gives_the_same_results(pca: Detector, tmp_path: Path) -> None:
    folder = pca.save(tmp_path / "model")
    assert sorted(p.name for p in folder.iterdir()) == [
        "CARD.md",
        "calibration.json",
        "detector.json",
        "train.jsonl",
        "weights.safetensors",
    ]
    images = with_defect(textures(4, seed=6))
    again = normalcy.load(folder)
    a, b = pca.score(images), again.score(images)
    assert (a.scores == b.scores).all()
    assert (a.p_values == b.p_values).all()
    assert all((x == y).all() for x, y in zip(a.maps, b.maps))
    assert again.decide() == pca.decide()
    assert again.all_settings() == pca.all_settings()


def test_saving_overwrites_nothing_unasked(pca: Detector, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious.txt").write_text("mine")
    with pytest.raises(SettingsError, match="not empty"):
        pca.save(tmp_path / "model")
    assert (tmp_path / "model" / "precious.txt").read_text() == "mine"
    pca.save(tmp_path / "model", overwrite=True)
    assert not (tmp_path / "model" / "precious.txt").exists()
    normalcy.load(tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError("disk full")

    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "kept").write_text("kept")
    for name in ("new", "old"):
        with pytest.raises(OSError, match="disk full"):
            write_folder(tmp_path / name, fill, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old" / "kept").read_text() == "kept"


def _edit(folder: Path, **changes: Any) -> None:
    words = json.loads((folder / "detector.json").read_text())
    words.update(changes)
    (folder / "detector.json").write_text(json.dumps(words))


DAMAGES = {
    "no json": (lambda f: (f / "detector.json").write_text("{"), "not valid JSON"),
    "a list": (lambda f: (f / "detector.json").write_text("[1]"), "JSON object"),
    "deep json": (lambda f: (f / "detector.json").write_text("[" * 100_000), "not valid JSON"),
    "binary": (lambda f: (f / "detector.json").write_bytes(os.urandom(200)), "not valid JSON"),
    "future version": (lambda f: _edit(f, format=99), "format version 99"),
    "unknown method": (lambda f: _edit(f, method="os.system"), "damaged"),
    "unknown setting": (lambda f: _edit(f, settings={"exec": "rm"}), "damaged"),
    "wrong type": (lambda f: _edit(f, settings=[1]), "damaged"),
    "huge shape": (lambda f: _edit(f, shape=[1, 10**9, 10**9]), "damaged"),
    "other shape": (lambda f: _edit(f, shape=[1, 16, 16]), "damaged"),
    "negative shape": (lambda f: _edit(f, shape=[1, -4, 4]), "damaged"),
    "no preprocessing": (lambda f: _edit(f, preprocess={}), "damaged"),
    "missing weights": (lambda f: (f / "weights.safetensors").unlink(), "Cannot read"),
    "cut weights": (lambda f: (f / "weights.safetensors").write_bytes(b"abc"), "damaged or was exchanged"),
    "other weights": (
        lambda f: (f / "weights.safetensors").write_bytes((f / "weights.safetensors").read_bytes()[:-1] + b"\x7f"),
        "damaged or was exchanged",
    ),
    "bad calibration": (lambda f: (f / "calibration.json").write_text('{"": {"scores": 3}}'), "calibration.json"),
    "listed calibration": (lambda f: (f / "calibration.json").write_text('{"": 3}'), "calibration.json"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_and_hostile_model_folders_give_one_sentence(pca: Detector, tmp_path: Path, name: str) -> None:
    damage, says = DAMAGES[name]
    folder = pca.save(tmp_path / "model")
    damage(folder)  # type: ignore[no-untyped-call]
    with pytest.raises(ModelFileError, match=says) as caught:
        normalcy.load(folder)
    assert "\n" not in str(caught.value)


def test_weights_with_a_matching_checksum_but_other_tensors_are_refused(pca: Detector, tmp_path: Path) -> None:
    import hashlib

    from safetensors.torch import load_file, save_file

    folder = pca.save(tmp_path / "model")
    tensors = load_file(folder / "weights.safetensors")
    tensors["extra"] = torch.zeros(3)
    save_file(tensors, folder / "weights.safetensors")
    _edit(folder, weights_sha256=hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest())
    with pytest.raises(ModelFileError, match="damaged or does not fit"):
        normalcy.load(folder)


def test_missing_model_folder() -> None:
    with pytest.raises(ModelFileError, match="There is no model folder"):
        normalcy.load("nowhere")


def test_hub_upload_and_download(pca: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls that reach the hub, with the hub itself replaced by a folder (no network in tests)."""
    import shutil

    import huggingface_hub

    class FakeApi:
        def create_repo(self, repo: str, private: bool, exist_ok: bool) -> None:
            (tmp_path / repo).mkdir(parents=True)

        def upload_folder(self, repo_id: str, folder_path: str) -> str:
            shutil.copytree(folder_path, tmp_path / repo_id, dirs_exist_ok=True)
            return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda repo, revision, allow_patterns: str(tmp_path / repo)
    )
    assert pca.push_to_hub("me/model").endswith("me/model")
    assert {path.name for path in (tmp_path / "me/model").iterdir()} == set(pca.hub_files())
    images = textures(2)
    assert (Detector.from_hub("me/model").score(images).scores == pca.score(images).scores).all()


@pytest.mark.parametrize("method", ["deep_svdd", "ganomaly", "autoencoder", "vae"])
def test_eight_threads_score_with_one_loaded_detector(method: str, tmp_path: Path) -> None:
    """The numbers of one thread, and nothing changed: neither weights and running statistics nor modes."""
    words: dict[str, Any] = {"vae": {"score": "gradient_elbo"}}.get(method, {})
    Detector(method, steps=3, calibration=0, device="cpu", **words).fit(textures(40)).save(tmp_path / "model")
    detector = normalcy.load(tmp_path / "model")
    assert detector.method is not None
    images = [np.concatenate([textures(2, seed=k), with_defect(textures(2, seed=k))]) for k in range(8)]
    alone = [detector.score(x) for x in images]
    state = {k: v.clone() for k, v in detector.method.state_dict().items()}
    for training in (False, True):
        detector.method.train(training)
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda k: detector.score(images[k % 8]), range(24)))
        for k, results in enumerate(together):
            np.testing.assert_allclose(results.scores, alone[k % 8].scores, rtol=1e-6)
            for one, other in zip(results.maps, alone[k % 8].maps):
                if one is not None and other is not None:
                    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        assert all(torch.equal(v, state[k]) for k, v in detector.method.state_dict().items())
        assert {part.training for part in detector.method.modules()} == {training}


def test_load_score_and_fit_in_inference_mode(tmp_path: Path) -> None:
    detector = Detector("vae", steps=4, calibration=0, device="cpu", score="gradient_elbo").fit(textures(20))
    expected = detector.score(textures(3, seed=1)).scores
    detector.save(tmp_path / "model")
    with torch.inference_mode():
        loaded = normalcy.load(tmp_path / "model")
        assert loaded.score(textures(3, seed=1)).scores == pytest.approx(expected, rel=1e-6)
        again = Detector("vae", steps=4, calibration=0, device="cpu", score="gradient_elbo").fit(textures(20))
    assert again.score(textures(3, seed=1)).scores == pytest.approx(expected, rel=1e-6)
    assert loaded.method is not None
    assert not any(v.is_inference() for v in loaded.method.state_dict().values())


def test_fit_and_score_leave_the_global_generators_alone() -> None:
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002
    detector = Detector("deep_svdd", steps=3, device="cpu").fit(textures(30))
    detector.score(textures(3, seed=1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert random.getstate() == before[2]
