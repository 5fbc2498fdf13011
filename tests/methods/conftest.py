"""A factory of fitted methods for the tests of single methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from normalcy import config
from normalcy.method import Method
from normalcy.methods import get
from normalcy.testing import smooth_textures
from normalcy.train import TrainSettings, fit


@pytest.fixture(scope="session")
def fitted() -> Callable[..., Any]:
    """``fitted(method, shape, images=48, steps=10, batch_size=16, validation=None, **settings)``: a fitted method.

    ``method`` is a class or a name, ``shape`` (C, *spatial), ``images`` a tensor (N, C, *spatial) or the number of smooth
    textures, ``validation`` held-out images. ``steps`` do not matter to methods that do not learn by gradients.
    """

    def build_and_fit(
        method: type[Method] | str,
        shape: Sequence[int],
        *,
        images: Tensor | int = 48,
        steps: int = 10,
        batch_size: int | None = 16,
        validation: Tensor | None = None,
        **settings: Any,
    ) -> Method:
        cls = get(method) if isinstance(method, str) else method
        torch.manual_seed(0)
        model = cls(config.build(cls.Settings, settings, cls.name), shape)
        x = smooth_textures(images, tuple(shape), seed=0) if isinstance(images, int) else images
        train = TrainSettings(steps=steps, batch_size=batch_size, precision="32-true", device="cpu")
        fit(model, x, train, held_out=validation)
        return model

    return build_and_fit
