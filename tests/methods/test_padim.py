"""Facts of PaDiM; what holds for every method is in test_contract.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from normalcy.errors import DataError, SettingsError
from normalcy.methods.padim import PaDiM, PaDiMSettings
from normalcy.testing import smooth_textures, with_defect

CONTRACT: dict[str, Any] = {"layers": (1, 2), "dimensions": 20}
"""Settings that make the contract tests quick."""

SHAPE = (3, 32, 48)
SMALL: dict[str, Any] = {"layers": (1, 2), "dimensions": 12}


@pytest.fixture(scope="module")
def method(fitted: Callable[..., PaDiM]) -> PaDiM:
    """Fitted on 40 images in batches of 16, the last of 8."""
    return fitted(PaDiM, SHAPE, **SMALL, count=40)


def embedded(method: PaDiM, count: int, seed: int) -> Any:
    """(count, positions, d) in double precision."""
    with torch.no_grad():
        return method._patches(smooth_textures(count, SHAPE, seed=seed)).flatten(1, 2).double().numpy()


def test_map_is_numpys_mahalanobis_distance_at_each_position(method: PaDiM) -> None:
    """With numpy.cov of all training images plus 0.01 on the diagonal, and an inverse, as in the paper."""
    normal, queries = embedded(method, 40, 0), embedded(method, 3, 1)
    distance = np.empty((3, 8, 12))
    for position in range(96):
        inverse = np.linalg.inv(np.cov(normal[:, position], rowvar=False) + 0.01 * np.eye(12))
        centred = queries[:, position] - normal[:, position].mean(0)
        distance[:, position // 12, position % 12] = np.sqrt(np.einsum("bi,ij,bj->b", centred, inverse, centred))
    with torch.no_grad():
        patches = method._patches(smooth_textures(3, SHAPE, seed=1)).flatten(1, 2)
        centred = (patches - method.mean).permute(1, 2, 0)
        ours = torch.bmm(method.whitening, centred).norm(dim=1).T.view(3, 8, 12).numpy()
    np.testing.assert_allclose(ours, distance, rtol=2e-3)
    larger = torch.nn.functional.interpolate(torch.from_numpy(distance)[:, None], size=(32, 48), mode="bilinear")
    expected = np.stack([gaussian_filter(m, 4, mode="nearest") for m in larger[:, 0].numpy()])
    scores = method.score(smooth_textures(3, SHAPE, seed=1))
    assert scores.map is not None
    np.testing.assert_allclose(scores.map.numpy(), expected, rtol=5e-3)
    assert torch.equal(scores.image, scores.map.amax((1, 2)))


def test_statistics_do_not_depend_on_the_batches(fitted: Callable[..., PaDiM], method: PaDiM) -> None:
    whole = fitted(PaDiM, SHAPE, **SMALL, count=40, batch_size=40)
    torch.testing.assert_close(whole.mean, method.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole.whitening, method.whitening, rtol=5e-3, atol=5e-3)


def test_dimensions_are_drawn_without_repetition_by_the_seed(fitted: Callable[..., PaDiM], method: PaDiM) -> None:
    assert method.chosen.unique().tolist() == method.chosen.tolist()
    assert len(method.chosen) == 12
    assert method.whitening.shape == (96, 12, 12)
    again = fitted(PaDiM, SHAPE, **SMALL, count=8)
    assert torch.equal(again.chosen, method.chosen)
    every = fitted(PaDiM, SHAPE, **SMALL | {"dimensions": 0}, count=8)
    assert every.chosen.tolist() == list(range(24 + 40))


def test_fewer_images_than_dimensions_are_regularised(fitted: Callable[..., PaDiM]) -> None:
    """Then the covariance has no full rank; epsilon alone makes it invertible."""
    few = fitted(PaDiM, SHAPE, layers=(1, 2, 3), dimensions=100, count=4)
    scores = few.score(smooth_textures(3, SHAPE, seed=1))
    assert scores.image.isfinite().all()
    assert (few.score(smooth_textures(4, SHAPE, seed=0)).image < scores.image.min()).all()


def test_finds_a_defect_and_its_place(method: PaDiM) -> None:
    images, masks = with_defect(smooth_textures(8, SHAPE, seed=2), seed=3)
    scores = method.score(images)
    assert scores.map is not None
    highest = scores.map.flatten(1).argmax(1)
    assert masks.flatten(1).gather(1, highest[:, None]).float().mean() > 0.7
    assert scores.image.min() > method.score(smooth_textures(8, SHAPE, seed=4)).image.max()


def test_normal_means_normal_at_this_position(fitted: Callable[..., PaDiM]) -> None:
    """The same patch elsewhere in the image is an anomaly: what a memory bank of all positions cannot see."""
    images = 0.3 + 0.01 * torch.randn(24, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    images[:, :, 8:24, 8:24] += 0.4
    model = fitted(PaDiM, images, layers=(1, 2), dimensions=20)
    moved = images[:4].roll((32, 32), (2, 3))
    assert model.score(moved).image.min() > 2 * model.score(images[:4]).image.max()


def test_one_image_is_refused(fitted: Callable[..., PaDiM]) -> None:
    with pytest.raises(DataError, match="at least 2 training images"):
        fitted(PaDiM, SHAPE, **SMALL, count=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"dimensions": -1}, "padim: dimensions must be at least 0, got -1."),
        ({"epsilon": 0.0}, "padim: epsilon must be greater than 0, got 0.0."),
        ({"layers": ()}, "padim: layers must be at least one layer of the backbone, got ()."),
    ],
    ids=str,
)
def test_impossible_settings(words: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        PaDiMSettings(**words)
