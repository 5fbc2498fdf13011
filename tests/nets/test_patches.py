"""Patch features: principal components of variance 1 on the grid that was asked for."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from normalcy.nets.backbones import Backbone
from normalcy.nets.patches import PatchFeatures
from normalcy.testing import smooth_textures


def test_components_are_uncorrelated_with_variance_1() -> None:
    x = smooth_textures(12, (3, 64, 64), seed=0)
    patches = PatchFeatures("efficientnet_lite0", (1, 2), 3, (16, 16), 10)
    patches.backbone.load_pretrained()
    with torch.no_grad():
        patches.learn(x.split(5))
        rows = patches(x).movedim(1, -1).flatten(0, 2)
    assert rows.shape == (12 * 256, 10)
    torch.testing.assert_close(rows.mean(0), torch.zeros(10), atol=1e-3, rtol=0)
    covariance = rows.T @ rows / len(rows)
    torch.testing.assert_close(covariance - torch.diag(covariance.diag()), torch.zeros(10, 10), atol=1e-2, rtol=0)
    assert bool((covariance.diag() <= 1.01).all())
    assert float(covariance[0, 0]) > 0.99


def test_layers_lie_on_one_grid() -> None:
    """Finer layers are averaged, coarser ones enlarged; the components are the largest directions of all channels."""
    x = smooth_textures(8, (1, 64, 64), seed=1)
    patches = PatchFeatures("efficientnet_lite0", (0, 1, 2), 1, (16, 16), 200)
    patches.backbone.load_pretrained()
    assert patches.dimension == 80  # there are no more channels
    backbone = Backbone("efficientnet_lite0", (0, 1, 2), 1)
    backbone.load_pretrained()
    with torch.no_grad():
        fine, same, coarse = backbone(x)
        expected = [F.avg_pool2d(fine, 2), same, F.interpolate(coarse, size=(16, 16), mode="bilinear")]
        torch.testing.assert_close(patches.maps(x), torch.cat(expected, 1))
        patches.learn([x])
        assert float(patches.maps(x).mean((0, 2, 3)).abs().max()) < 1e-3
