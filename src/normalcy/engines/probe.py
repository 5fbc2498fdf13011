"""Images on which a method and its graph are compared where no real ones are at hand."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from normalcy.method import Method, Scores


def probes(method: Method, count: int) -> Tensor:
    """Preprocessed images (count, C, *spatial) in [0, 1]: random fields, coarse to fine, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    channels, *spatial = method.shape
    mode = "bilinear" if len(spatial) == 2 else "trilinear"
    images = torch.full((count, *method.shape), 0.5)
    for cells, amplitude in ((3, 0.15), (9, 0.05)):
        coarse = torch.randn(count, channels, *[cells] * len(spatial), generator=generator)
        images += amplitude * F.interpolate(coarse, tuple(spatial), mode=mode, align_corners=True)
    return (images + 0.02 * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def largest_differences(before: Scores, after: Scores) -> dict[str, dict[str, float]]:
    """Of each output: the largest absolute difference, and that relative to the output's largest absolute value."""
    differences, others = {}, after.by_name()
    for name, values in before.by_name().items():
        largest = float((values.double() - others[name].double()).abs().max())
        differences[name] = {"largest": largest, "relative": largest / max(float(values.abs().max()), 1e-12)}
    return differences
