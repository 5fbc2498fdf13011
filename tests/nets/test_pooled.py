"""Feature vectors of whole images."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from normalcy.nets.backbones import Backbone
from normalcy.nets.pooled import PooledFeatures


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
