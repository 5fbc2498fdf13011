"""Synthetic anomalies: the mask is exactly what changed, of about the asked area, whatever the image."""

import numpy as np
import pytest
from scipy import ndimage

from normalcy.data.synthetic import SYNTHETIC, TOLERANCE, VISIBLE, make, make_set
from normalcy.errors import DataError, SettingsError


def texture(*shape, seed=0):
    """Smooth texture with fine grain, within [0, 1]."""
    rng = np.random.default_rng(seed)
    image = ndimage.gaussian_filter(rng.random(shape), (0, *[2] * (len(shape) - 1)))
    image = (image - image.min()) / np.ptp(image)
    return np.clip(image + 0.02 * rng.standard_normal(shape), 0, 1).astype(np.float32)


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 45, 70), (1, 28, 28), (2, 24, 30, 20)])
@pytest.mark.parametrize("kind", list(SYNTHETIC))
@pytest.mark.parametrize("area", [0.01, 0.05])
def test_mask_is_what_changed_and_has_the_asked_area(kind, shape, area):
    image = texture(*shape)
    before = image.copy()
    asked = area * image[0].size
    for seed in range(10):
        changed, mask = make(image, kind, np.random.default_rng(seed), area=area)
        assert np.array_equal((changed != image).any(axis=0), mask)
        assert mask.dtype == bool
        assert mask.any()
        assert abs(mask.sum() - asked) <= max(1.5, TOLERANCE * asked + 0.5)
        assert changed.dtype == np.float32
        assert changed.min() >= 0
        assert changed.max() <= 1
    assert np.array_equal(image, before)


@pytest.mark.parametrize("kind", list(SYNTHETIC))
def test_same_generator_same_anomaly(kind):
    image = texture(1, 40, 40)
    one, two = (make(image, kind, np.random.default_rng(3)) for _ in range(2))
    other = make(image, kind, np.random.default_rng(4))
    assert np.array_equal(one[0], two[0])
    assert np.array_equal(one[1], two[1])
    assert not np.array_equal(one[0], other[0])


def test_rectangles_are_black_or_grey_and_filled():
    image = np.full((3, 60, 60), 0.8, np.float32)
    values = set()
    for seed in range(20):
        changed, mask = make(image, "rectangle", np.random.default_rng(seed))
        (box,) = ndimage.find_objects(mask.astype(int))
        assert mask[box].all()
        values |= set(changed[:, mask].ravel().tolist())
    assert values == {0.0, 0.5}


@pytest.mark.parametrize("kind", ["blob", "intensity"])
@pytest.mark.parametrize("shape", [(1, 60, 60), (1, 24, 24, 24)])
def test_shifts_are_one_solid_region_of_visible_change(kind, shape):
    image = np.full(shape, 0.4, np.float32)
    sizes = []
    for seed in range(20):
        changed, mask = make(image, kind, np.random.default_rng(seed), area=0.03, strength=0.2)
        assert ndimage.label(mask)[1] == 1
        assert ndimage.binary_fill_holes(mask).sum() == mask.sum()
        change = (changed - image)[0][mask]
        assert np.abs(change).min() >= VISIBLE - 1e-6
        assert (change > 0).all() or (change < 0).all()
        assert mask.sum() == round(0.03 * image[0].size)
        sizes.append(np.abs(change).max())
    assert 0.14 <= np.median(sizes) <= 0.45


def test_intensity_is_sharp_or_slow():
    image = np.full((1, 80, 80), 0.5, np.float32)
    spreads = []
    for seed in range(20):
        changed, mask = make(image, "intensity", np.random.default_rng(seed), area=0.05)
        change = np.abs(changed - image)[0][mask]
        spreads.append(float(np.ptp(change)))
    sharp = [spread < 1e-6 for spread in spreads]
    assert 3 <= sum(sharp) <= 17
    assert all(spread > 0.1 for spread, is_sharp in zip(spreads, sharp) if not is_sharp)


def test_displaced_and_mirrored_patches_consist_of_the_image():
    rng = np.random.default_rng(0)
    image = rng.permutation(1600).reshape(1, 40, 40).astype(np.float32) / 1600  # every pixel its own value
    changed, mask = make(image, "displace", rng)
    there, here = np.argwhere(np.isin(image[0], changed[0][mask])), np.argwhere(mask)
    assert len(np.unique(there - here, axis=0)) == 1  # one shift for all
    changed, mask = make(image, "mirror", rng)
    assert np.array_equal(np.sort(changed[0][mask]), np.sort(image[0][mask]))


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_constant_images(value):
    image = np.full((1, 32, 32), value, np.float32)
    for kind in ("rectangle", "blob", "intensity"):
        assert make(image, kind, np.random.default_rng(0))[1].any()
    for kind in ("displace", "mirror"):
        with pytest.raises(DataError, match=f"{kind} can change.*use rectangle"):
            make(image, kind, np.random.default_rng(0))


def test_thin_images_and_large_areas():
    for shape, area in [((1, 3, 200), 0.3), ((1, 1, 50), 0.1), ((1, 30, 30), 0.6), ((1, 2, 40, 40), 0.1)]:
        image = texture(*shape)
        for kind in ("rectangle", "blob", "intensity", "displace"):
            changed, mask = make(image, kind, np.random.default_rng(1), area=area)
            assert np.array_equal((changed != image).any(axis=0), mask)
            assert mask.any()


def test_a_set_takes_the_kinds_in_turn():
    images = np.stack([texture(1, 32, 32, seed=i) for i in range(7)])
    made, masks, types = make_set(images, ["blob", "mirror", "rectangle"], np.random.default_rng(0), area=0.03)
    assert types == ["blob", "mirror", "rectangle", "blob", "mirror", "rectangle", "blob"]
    assert made.shape == images.shape
    assert masks.shape == (7, 32, 32)
    assert np.array_equal((made != images).any(axis=1), masks)
    again = make_set(images, ["blob", "mirror", "rectangle"], np.random.default_rng(0), area=0.03)
    assert np.array_equal(made, again[0])


def test_wrong_kinds_areas_and_images_are_refused():
    rng = np.random.default_rng(0)
    image = texture(1, 16, 16)
    with pytest.raises(SettingsError, match="rectangle, blob, intensity, displace, mirror, scratch, got 'stain'"):
        make(image, "stain", rng)
    with pytest.raises(SettingsError, match="area between 0 and 1"):
        make(image, "blob", rng, area=2)
    with pytest.raises(DataError, match=r"values in \[0, 1\]"):
        make(image * 255, "blob", rng)
    with pytest.raises(DataError, match="images and kinds"):
        make_set(image[None], [], rng)
