"""Stain normalisation: painted stains are estimated, two stainings of the same tissue come out alike."""

import numpy as np
import pytest

from normalcy.data.stain import AMOUNTS, FAINT, REFERENCE, WHITE, normalise, optical_density, stain_vectors


def painted(stains: np.ndarray, seed: int = 0) -> np.ndarray:
    """uint8 (3, 64, 64) of two stains, each alone in places."""
    rng = np.random.default_rng(seed)
    amounts = rng.gamma(2.0, 0.4, (2, 64 * 64)) * (rng.random((2, 64 * 64)) > 0.4)
    pixels = WHITE * np.exp(-stains.T @ amounts) - 1
    return np.rint(np.clip(pixels, 0, 255)).astype(np.uint8).reshape(3, 64, 64)


OTHER = np.array([[0.75, 0.60, 0.28], [0.10, 0.95, 0.30]])
OTHER = OTHER / np.linalg.norm(OTHER, axis=1, keepdims=True)


@pytest.mark.parametrize("way", ["macenko", "vahadane"])
@pytest.mark.parametrize("stains", [REFERENCE, OTHER], ids=["reference", "other"])
def test_stains_are_found(way: str, stains: np.ndarray):
    density = optical_density(painted(stains))
    found = stain_vectors(density[(density > FAINT).any(1)], way)
    angles = np.degrees(np.arccos(np.clip((found * stains).sum(1) / np.linalg.norm(stains, axis=1), -1, 1)))
    assert angles.max() < 6, "degrees between the stains that were painted and those that were found"


@pytest.mark.parametrize("way", ["macenko", "vahadane"])
def test_two_stainings_look_alike(way: str):
    one, other = painted(REFERENCE), painted(OTHER)
    before = np.abs(one.astype(float) - other).mean()
    after = np.abs(normalise(one, way).astype(float) - normalise(other, way)).mean()
    assert after < 0.35 * before
    white = np.full((3, 32, 32), 245, np.uint8)
    np.testing.assert_array_equal(normalise(white, way), white)


def test_optical_density_is_minus_log_of_the_light_that_is_left():
    image = np.array([[[239, 119]], [[0, 239]], [[23, 239]]], np.uint8)  # (3, 1, 2)
    expected = [[0, np.log(240), np.log(10)], [np.log(2), 0, 0]]  # (pixels, 3), of intensity + 1
    np.testing.assert_allclose(optical_density(image), expected, atol=1e-12)


@pytest.mark.parametrize("way", ["macenko", "vahadane"])
def test_stains_are_unit_vectors_with_haematoxylin_first(way: str):
    swapped = painted(OTHER[::-1])
    density = optical_density(swapped)
    found = stain_vectors(density[(density > FAINT).any(1)], way)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert found[0, 0] > found[1, 0], "haematoxylin absorbs more red"
    assert (found >= 0).all()


def test_estimation_from_many_pixels_uses_some_of_them():
    density = optical_density(painted(REFERENCE))
    density = density[(density > FAINT).any(1)]
    few, many = stain_vectors(density, "macenko"), stain_vectors(np.tile(density, (20, 1)), "macenko")
    assert len(density) < 20_000 < 20 * len(density)
    np.testing.assert_allclose(many, few, atol=0.05)


@pytest.mark.parametrize("way", ["macenko", "vahadane"])
def test_amounts_are_scaled_to_the_reference(way: str):
    """A section stained half as strongly comes out as the other, with the reference's 99th percentiles."""
    rng = np.random.default_rng(0)
    amounts = rng.gamma(2.0, 0.6, (2, 64 * 64)) * (rng.random((2, 64 * 64)) > 0.4)

    def stained(strength: float) -> np.ndarray:
        pixels = WHITE * np.exp(-REFERENCE.T @ (strength * amounts)) - 1
        return np.rint(np.clip(pixels, 0, 255)).astype(np.uint8).reshape(3, 64, 64)

    strong, weak = normalise(stained(1.0), way).astype(float), normalise(stained(0.5), way).astype(float)
    before = np.abs(stained(1.0).astype(float) - stained(0.5)).mean()
    assert np.abs(strong - weak).mean() < 0.2 * before
    density = optical_density(np.rint(weak).astype(np.uint8))
    got = np.percentile(np.linalg.lstsq(REFERENCE.T, density.T, rcond=None)[0], 99, axis=1)
    np.testing.assert_allclose(got, AMOUNTS, rtol=0.15)


def test_images_without_enough_stain_and_without_a_way_are_left_alone():
    nearly_white = np.full((3, 32, 32), 245, np.uint8)
    nearly_white[:, :7, :7] = painted(REFERENCE)[:, :7, :7]  # 49 pixels, one too few
    np.testing.assert_array_equal(normalise(nearly_white, "macenko"), nearly_white)
    image = painted(OTHER)
    assert normalise(image, "none") is image
    for way in ("macenko", "vahadane"):
        assert normalise(image, way).dtype == np.uint8
        assert normalise(image, way).shape == image.shape
