"""Feature vectors of whole images."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from normalcy.nets.backbones import Backbone
from normalcy.nets.pooled import PooledFeatures, kept_features


@pytest.mark.parametrize(
    ("shape", "sides"), [((3, 32, 32), [64, 64]), ((1, 40, 20), [64, 32]), ((1, 70, 66), [70, 66])]
)
def test_vectors_are_channel_means_of_enlarged_images(shape: tuple[int, int, int], sides: list[int]) -> None:
    pooled = PooledFeatures("efficientnet_lite0", (1, 5), shape, 64, False)
    pooled.backbone.load_pretrained()
    backbone = Backbone("efficientnet_lite0", (1, 5), shape[0])
    backbone.load_pretrained()
    x = torch.rand(3, *shape)
    maps = backbone(F.interpolate(x, size=sides, mode="bilinear"))
    vectors = pooled(x)
    assert vectors.shape == (3, 24 + 1280)
    torch.testing.assert_close(vectors, torch.cat([m.flatten(2).mean(2) for m in maps], 1), rtol=1e-4, atol=1e-5)


def test_kept_vectors_are_computed_once_and_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    forward = Backbone.forward
    monkeypatch.setattr(Backbone, "forward", lambda self, x: (computed.append(self.layers), forward(self, x))[1])

    def made(layers: tuple[int, ...]) -> PooledFeatures:
        pooled = PooledFeatures("efficientnet_lite0", layers, (3, 32, 32), 32, False)
        pooled.backbone.load_pretrained()
        return pooled

    both, last = made((1, 5)), made((5,))
    x, y = torch.rand(2, 4, 3, 32, 32)
    with torch.no_grad():
        plain, other = both(x), both(y)
        computed.clear()
        with kept_features():
            for _ in range(2):
                assert torch.equal(both(x), plain)
                assert torch.equal(last(x), plain[:, 24:])
                assert torch.equal(both(y), other)
            assert torch.equal(made((1, 5))(x), plain)
            assert computed == [(1, 5), (1, 5)]
            with torch.autocast("cpu", torch.bfloat16):
                last(x)
            assert len(computed) == 3
        last(x)
        assert len(computed) == 4
        computed.clear()
        with kept_features(maximum=plain.nbytes):
            for z in (x, x, y, x):
                both(z)
        assert len(computed) == 3


def test_gradients_are_never_kept() -> None:
    pooled = PooledFeatures("efficientnet_lite0", (1,), (3, 32, 32), 32, False)
    pooled.backbone.load_pretrained()
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    with kept_features():
        for _ in range(2):
            pooled(x).sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0).any())
