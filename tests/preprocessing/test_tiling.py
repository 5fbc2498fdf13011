"""Tiles cover and come back."""

import numpy as np
import pytest

from normalcy.preprocessing.tiling import blend, cut, places


@pytest.mark.parametrize("shape", [(64, 64), (70, 131), (30, 90), (16, 16), (20, 33, 41)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
def test_cut_and_blended_back_is_the_identity(shape: tuple[int, ...], overlap: float) -> None:
    image = np.random.default_rng(0).random((2, *shape)).astype(np.float32)
    side = (16,) * len(shape)
    tiles, corners = cut(image, side, overlap)
    assert tiles.shape == (len(corners), 2, *side)
    assert np.allclose(blend(tiles, corners, shape), image, atol=1e-5)
    assert np.allclose(blend(tiles[:, 0], corners, shape), image[0], atol=1e-5)


def test_images_smaller_than_a_tile_are_mirrored_up_and_cut_back() -> None:
    image = np.random.default_rng(0).random((1, 9, 20)).astype(np.float32)
    tiles, corners = cut(image, (32, 32), 0.25)
    assert tiles.shape == (1, 1, 32, 32)
    assert np.allclose(blend(tiles, corners, (9, 20)), image)


def test_every_pixel_is_covered_and_the_last_tile_is_flush() -> None:
    corners = places((101, 64), (32, 32), 0.25)
    assert max(row for row, _ in corners) == 101 - 32
    covered = np.zeros((101, 64), bool)
    for row, column in corners:
        covered[row : row + 32, column : column + 32] = True
    assert covered.all()
