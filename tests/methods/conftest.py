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
from normalcy.training.fit import fit
from normalcy.training.settings import TrainSettings


@pytest.fixture(scope="session")
def fitted() -> Callable[..., Any]:
    """``fitted(method, data, count=48, steps=10, batch_size=16, validation=None, **settings)``: a fitted method.

    ``method`` is a class or a name; ``data`` the training images (N, C, *spatial), or the shape (C, *spatial) of ``count``
    smooth textures; ``validation`` held-out images. Methods that do not learn by gradients ignore ``steps``.
    """

    def build_and_fit(
        method: type[Method] | str,
        data: Tensor | Sequence[int],
        *,
        count: int = 48,
        steps: int = 10,
        batch_size: int | None = 16,
        validation: Tensor | None = None,
        **settings: Any,
    ) -> Method:
        cls = get(method) if isinstance(method, str) else method
        torch.manual_seed(0)
        images = data if isinstance(data, Tensor) else smooth_textures(count, tuple(data), seed=0)
        model = cls(config.build(cls.Settings, settings, cls.name), images.shape[1:])
        train = TrainSettings(steps=steps, batch_size=batch_size, precision="32-true", device="cpu")
        fit(model, images, train, held_out=validation)
        return model

    return build_and_fit
