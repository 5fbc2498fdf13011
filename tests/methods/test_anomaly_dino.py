"""Facts of AnomalyDINO on a small vision transformer with random weights; what holds for every method is in test_contract.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter
from sklearn.decomposition import PCA
from torch import Tensor

from normalcy.engines.cached import graph_of
from normalcy.engines.method import graph_method
from normalcy.engines.probe import largest_differences
from normalcy.errors import DataError, SettingsError
from normalcy.methods.anomaly_dino import AnomalyDINO, AnomalyDINOSettings, foreground, rotated
from normalcy.testing import smooth_textures, with_defect

CONTRACT: dict[str, Any] = {"backbone": "efficientnet_lite0", "layer": 2, "side": 64}
"""Settings that make the contract tests quick; the weights of a DINO network are not at hand."""

SHAPE = (1, 64, 72)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings with a transformer of patches of 16 pixels and 64 dimensions, whose weights are random."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), file)
    return {"backbone": f"test_vit:{file}", "side": 96}


@pytest.fixture(scope="module")
def method(fitted: Callable[..., AnomalyDINO], vit: dict[str, Any]) -> AnomalyDINO:
    return fitted(AnomalyDINO, SHAPE, **vit, count=12)


def unit_patches(method: AnomalyDINO, x: Tensor) -> Any:
    """(B, patches, D) of length 1, in double precision."""
    with torch.no_grad():
        patches = method._patches(x).flatten(1, 2).double().numpy()
    return patches / np.linalg.norm(patches, axis=2, keepdims=True)


def test_features_are_the_transformers_own_after_its_last_norm(method: AnomalyDINO) -> None:
    x = smooth_textures(2, SHAPE, seed=1)
    network, backbone = method.backbone.network, method.backbone
    larger = torch.nn.functional.interpolate(x, size=(96, 112), mode="bilinear")  # 72 / 64 * 96 = 108, to patches of 16
    with torch.no_grad():
        tokens = network.forward_features((larger - backbone.mean) / backbone.std)[:, network.num_prefix_tokens :]
        assert torch.equal(method._patches(x).flatten(1, 2), tokens)
    assert method._patches(x).shape == (2, 6, 7, 64)


def test_score_is_the_mean_of_the_highest_cosine_distances(method: AnomalyDINO) -> None:
    """All distances by NumPy; 10 % of 42 patches are 4."""
    memory = unit_patches(method, smooth_textures(12, SHAPE, seed=0)).reshape(-1, 64)
    queries = unit_patches(method, smooth_textures(3, SHAPE, seed=1))
    distance = (1 - queries @ memory.T).min(2)
    method.settings = method.settings.__class__(**{**vars(method.settings), "top": 0.1})
    scores = method.score(smooth_textures(3, SHAPE, seed=1))
    np.testing.assert_allclose(scores.image.numpy(), np.sort(distance)[:, -4:].mean(1), rtol=1e-3)
    larger = torch.nn.functional.interpolate(
        torch.from_numpy(distance).view(3, 1, 6, 7), size=SHAPE[1:], mode="bilinear"
    )
    expected = np.stack([gaussian_filter(m, 4, mode="nearest") for m in larger[:, 0].numpy()])
    assert scores.map is not None
    np.testing.assert_allclose(scores.map.numpy(), expected, rtol=1e-2)


@pytest.mark.parametrize(("top", "count"), [(0.0, 1), (0.01, 1), (0.05, 2), (1.0, 42)])
def test_fraction_of_the_highest_patches(
    fitted: Callable[..., AnomalyDINO], vit: dict[str, Any], top: float, count: int
) -> None:
    model = fitted(AnomalyDINO, SHAPE, **vit, count=4, top=top, neighbours=3)
    memory = unit_patches(model, smooth_textures(4, SHAPE, seed=0)).reshape(-1, 64)
    distance = np.sort(1 - unit_patches(model, smooth_textures(2, SHAPE, seed=1)) @ memory.T)[..., :3].mean(2)
    expected = np.sort(distance)[:, -count:].mean(1)
    np.testing.assert_allclose(model.score(smooth_textures(2, SHAPE, seed=1)).image.numpy(), expected, rtol=1e-3)


def test_memory_holds_all_rotated_patches_of_the_shots(fitted: Callable[..., AnomalyDINO], vit: dict[str, Any]) -> None:
    """Of which images is decided by the seed, and their number does not change which come first."""
    images = smooth_textures(10, SHAPE, seed=0)
    one = fitted(AnomalyDINO, images, **vit, shots=3)
    assert one.memory.shape == (3 * 8 * 42, 64)  # 8 rotations, as in the paper
    assert torch.equal(fitted(AnomalyDINO, images, **vit, shots=3).memory, one.memory)
    plain = fitted(AnomalyDINO, images, **vit, shots=3, rotations=1, batch_size=4)
    assert plain.memory.shape == (3 * 42, 64)
    patches = torch.from_numpy(unit_patches(plain, images)).float()
    same = [int(torch.cdist(patches[i], plain.memory).amin(1).max() < 1e-3) for i in range(10)]
    assert sum(same) == 3
    assert fitted(AnomalyDINO, images, **vit).memory.shape == (10 * 42, 64)
    assert fitted(AnomalyDINO, images, **vit, memory=50).memory.shape == (50, 64)


def test_a_quarter_turn_is_exact_and_full_turns_return() -> None:
    x = torch.rand(2, 3, 24, 24)
    torch.testing.assert_close(rotated(x, torch.pi / 2), torch.rot90(x, 1, (2, 3)), rtol=1e-4, atol=1e-4)
    oblong = torch.rand(1, 1, 24, 40)
    torch.testing.assert_close(rotated(oblong, torch.pi), oblong.flip(2, 3), rtol=1e-4, atol=1e-4)
    assert rotated(x, 0) is x


def test_rotation_keeps_shapes_on_oblong_images() -> None:
    """A disc off the centre is moved on a circle, and remains a disc."""
    rows, columns = torch.meshgrid(torch.arange(60.0), torch.arange(100.0), indexing="ij")
    disc = (((rows - 29.5) ** 2 + (columns - 69.5) ** 2) < 64).float()[None, None]
    turned = rotated(disc, torch.pi / 2)[0, 0]
    weight = turned / turned.sum()
    assert float((weight * rows).sum()) == pytest.approx(29.5 - 20, abs=0.2)
    assert float((weight * columns).sum()) == pytest.approx(49.5, abs=0.2)
    assert float(turned.sum()) == pytest.approx(float(disc.sum()), rel=0.02)


def brute_force_mask(patches: Any, threshold: float) -> Any:
    """The authors' rule with scikit-learn and SciPy; (h, w, D) -> (h, w)."""
    height, width, _ = patches.shape
    first = PCA(1, svd_solver="full").fit_transform(patches.reshape(height * width, -1)).reshape(height, width)
    mask = first > threshold
    centre = mask[int(height * 0.2) : int(height * 0.8), int(width * 0.2) : int(width * 0.8)]
    if centre.sum() <= centre.size * 0.35:
        mask = -first > threshold
    square = np.ones((3, 3))
    return binary_erosion(
        binary_dilation(mask, square, iterations=2), square, border_value=1
    )  # as OpenCV at the border


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_foreground_is_the_authors_rule(sign: float) -> None:
    """An object in the centre, whichever sign its component has; texture has none above the threshold."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(3, 12, 10, 16, generator=generator)
    direction = torch.nn.functional.normalize(torch.randn(16, generator=generator), dim=0)
    patches[:2, 3:9, 2:8] += sign * 40 * direction
    patches[1, 5, 5] -= sign * 40 * direction  # a hole, which the closing fills
    mask = foreground(patches, 10.0)
    for ours, one in zip(mask, patches):
        assert np.array_equal(ours.numpy(), brute_force_mask(one.numpy(), 10.0))
    assert mask[0, 3:9, 2:8].all()
    assert not mask[0, 0].any()
    assert not mask[2].any()


def test_masking_ignores_the_background(fitted: Callable[..., AnomalyDINO], vit: dict[str, Any]) -> None:
    x = smooth_textures(4, SHAPE, seed=1)
    plain, masked = (
        fitted(AnomalyDINO, SHAPE, **vit, count=8, masking=on, masking_threshold=1.0) for on in (False, True)
    )
    with torch.no_grad():
        inside = foreground(masked._patches(x), 1.0)
    assert 0 < inside.float().mean() < 1
    assert torch.equal(plain.memory, masked.memory)
    rows = [np.where(mask.numpy(), 1.0, 0.0) for mask in inside]
    memory = unit_patches(plain, smooth_textures(8, SHAPE, seed=0)).reshape(-1, 64)
    distance = (1 - unit_patches(plain, x) @ memory.T).min(2).reshape(4, 6, 7) * np.stack(rows)
    np.testing.assert_allclose(masked.score(x).image.numpy(), distance.reshape(4, -1).max(1), rtol=1e-3, atol=1e-7)


def test_finds_a_defect_with_a_random_transformer(method: AnomalyDINO) -> None:
    images, _ = with_defect(smooth_textures(8, SHAPE, seed=2), seed=3)
    assert method.score(images).image.min() > method.score(smooth_textures(8, SHAPE, seed=4)).image.max()


@pytest.mark.parametrize("side", [96, 48])
def test_a_transformer_is_exported(fitted: Callable[..., AnomalyDINO], vit: dict[str, Any], side: int) -> None:
    """With images enlarged, and with images reduced with antialiasing."""
    method = fitted(AnomalyDINO, SHAPE, **vit | {"side": side}, count=4)
    twin = graph_method(AnomalyDINO, method.settings, SHAPE, graph_of(method, "onnxruntime"))
    x = with_defect(smooth_textures(3, SHAPE, seed=2), seed=3)[0]
    for part, difference in largest_differences(method.score(x), twin.score(x)).items():
        assert difference["relative"] < 1e-4, part


def test_masking_refuses_export_in_a_sentence(fitted: Callable[..., AnomalyDINO], vit: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="anomaly_dino cannot be exported"):
        graph_of(fitted(AnomalyDINO, SHAPE, **vit, count=4, masking=True), "onnxruntime")


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2.lvd142m", "vit_small_patch16_dinov3.lvd1689m"])
def test_without_network_and_weights_the_error_says_how_to_get_them(
    name: str, fitted: Callable[..., AnomalyDINO], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(HfApi, "model_info", offline)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    message = (
        rf'Get model.safetensors of timm/{name} on a connected machine and give "{name}:/path/to/model.safetensors"'
    )
    with pytest.raises(SettingsError, match=re.escape(message)):
        fitted(AnomalyDINO, SHAPE, backbone=name, side=56, count=4)
    with pytest.raises(SettingsError, match="there is no weights file"):
        fitted(AnomalyDINO, SHAPE, backbone=f"{name}:{tmp_path / 'none.safetensors'}", side=56, count=4)


def test_dinov2_and_dinov3_networks_give_patches() -> None:
    """As built, without their weights: sizes and tokens of the real networks."""
    for name, patch in (("vit_small_patch14_dinov2.lvd142m", 14), ("vit_small_patch16_dinov3.lvd1689m", 16)):
        method = AnomalyDINO(AnomalyDINOSettings(backbone=name, side=4 * patch), (3, 50, 50))
        method.backbone.has_weights.fill_(True)
        assert method._patches(torch.rand(1, 3, 50, 50)).shape == (1, 4, 4, 384)


def test_more_shots_than_images_are_refused(fitted: Callable[..., AnomalyDINO], vit: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="shots=5 needs as many training images, got 4"):
        fitted(AnomalyDINO, SHAPE, **vit, count=4, shots=5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"shots": -1}, "anomaly_dino: shots must be at least 0, got -1."),
        ({"rotations": 0}, "anomaly_dino: rotations must be at least 1, got 0."),
        ({"top": 1.5}, "anomaly_dino: top must be between 0 and 1, got 1.5."),
    ],
    ids=str,
)
def test_impossible_settings(words: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        AnomalyDINOSettings(**words)
