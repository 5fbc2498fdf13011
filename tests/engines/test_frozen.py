"""Frozen backbones by an engine while fitting: the same features, the same memory bank, and torch where it is asked for."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from normalcy import Detector, SettingsError
from normalcy.engines import frozen
from normalcy.engines.frozen import backbones_by_engine
from normalcy.nets.backbones import Backbone

pytest.importorskip("onnxruntime")


def images(count: int) -> np.ndarray:
    smooth = np.kron(np.random.default_rng(0).random((count, 8, 8)), np.ones((8, 8)))
    return (255 * smooth).astype(np.uint8)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of images whose maps an engine computed, call by call."""
    calls: list[int] = []
    compute = frozen._Features.__call__

    def call(self: frozen._Features, x: torch.Tensor) -> list[torch.Tensor] | None:
        maps = compute(self, x)
        if maps is not None:
            calls.append(len(x))
        return maps

    monkeypatch.setattr(frozen._Features, "__call__", call)
    return calls


def test_the_memory_bank_has_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "WORTH", 20)
    calls = counted(monkeypatch)
    data, words = images(40), {"device": "cpu", "precision": "32-true", "size": 64, "memory": 60}
    by_torch = Detector("patchcore", engine="torch", **words).fit(data)
    assert not calls, "engine=torch means torch"
    by_engine = Detector("patchcore", **words).fit(data)
    assert sum(calls) == 40, "training and calibration"
    one, other = (detector.method.memory for detector in (by_torch, by_engine))
    distance = torch.cdist(one.double(), other.double())
    assert one.shape == other.shape
    for nearest in (distance.amin(0), distance.amin(1)):
        assert float(nearest.max()) < 1e-4 * float(one.norm(dim=1).max())
    np.testing.assert_allclose(by_torch.calibration.scores, by_engine.calibration.scores, rtol=1e-4)
    assert by_engine.method.backbone.frozen is None, "torch again after the fit"
    seen = len(calls)
    np.testing.assert_allclose(by_engine.score(data[:4]).scores, by_torch.score(data[:4]).scores, rtol=1e-4)
    assert len(calls) == seen


def test_features_agree_and_gradients_stay_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    method = Detector("patchcore", device="cpu", size=64, memory=9, engine="torch").fit(images(20)).method
    backbone: Backbone = method.backbone
    x = torch.rand(5, 1, 64, 64)
    before = torch.get_rng_state()
    with torch.no_grad():
        expected = backbone(x)
        with backbones_by_engine(method, 1000):
            found = backbone(x)
            twin = copy.copy(backbone)(x[:2])
    assert calls == [5, 2]
    assert torch.equal(torch.get_rng_state(), before)
    for one, other, part in zip(expected, found, twin, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-4 * float(one.abs().max()))
        assert torch.allclose(one[:2], part, rtol=0, atol=1e-4 * float(one.abs().max()))
    with backbones_by_engine(method, 1000):
        backbone(x.requires_grad_())[0].sum().backward()
    assert x.grad is not None
    with torch.no_grad(), backbones_by_engine(method, 10):
        backbone(x)
    assert calls == [5, 2], "not for gradients, and not for a few images"


def test_a_network_that_differs_or_cannot_be_traced_stays_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Detector("patchcore", device="cpu", size=64, memory=9, engine="torch").fit(images(20)).method
    x = torch.rand(3, 1, 64, 64)
    expected = method.backbone(x)
    calls = counted(monkeypatch)
    monkeypatch.setattr(frozen, "BOUND", -1.0)
    with torch.no_grad(), backbones_by_engine(method, 1000):
        assert all(torch.equal(one, other) for one, other in zip(expected, method.backbone(x)))

    def fails(*_: object) -> bytes:
        raise SettingsError("cannot be traced")

    monkeypatch.setattr(frozen, "traced", fails)
    with torch.no_grad(), backbones_by_engine(method, 1000):
        assert all(torch.equal(one, other) for one, other in zip(expected, method.backbone(x)))
    assert not calls
    with pytest.raises(SettingsError, match="engine"):
        Detector("patchcore", engine="tensorrt")
