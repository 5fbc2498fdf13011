"""Augmentation: what each random transform does to an image, and that a generator determines it."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from normalcy.errors import DataError, SettingsError
from normalcy.preprocessing.augment import TRANSFORMS, Augment

STEPS = ["rotate90", "flip", "flip_horizontal", "rotate:10", "crop:6", "shift:3"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(*shape, seed=0):
    return torch.rand(shape, generator=generator(seed + 100))


@pytest.mark.parametrize("shape", [(16, 3, 9, 9), (16, 1, 9, 9, 9)])
@pytest.mark.parametrize("steps", [[step] for step in STEPS] + [STEPS])
def test_same_generator_same_result_and_input_stays(steps, shape):
    augment = Augment(tuple(steps))
    images = batch(*shape)
    before = images.clone()
    first, again, other = augment(images, generator()), augment(images, generator()), augment(images, generator(1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)
    assert first.dtype == images.dtype
    assert tuple(first.shape[2:]) == augment.size_of(shape[2:])


@pytest.mark.parametrize("step", STEPS)
def test_each_image_of_a_batch_is_drawn_on_its_own(step):
    images = batch(1, 1, 9, 9).expand(64, -1, -1, -1)
    result = Augment((step,))(images, generator())
    assert len(result.unique(dim=0)) > 1


def test_rotate90_and_flip_give_all_their_results_equally_often():
    image = torch.arange(9.0).view(1, 1, 3, 3)
    for step, expected in [
        ("rotate90", [image.rot90(k, (-2, -1)) for k in range(4)]),
        ("flip", [image, image.flip(-1), image.flip(-2), image.flip(-1, -2)]),
        ("flip_horizontal", [image, image.flip(-1)]),
    ]:
        result = Augment((step,))(image.expand(400, -1, -1, -1), generator())
        counts = [int((result == one).flatten(1).all(dim=1).sum()) for one in expected]
        assert sum(counts) == 400
        assert min(counts) > 0.7 * 400 / len(expected)


def test_volumes_are_turned_slice_by_slice():
    volume = batch(8, 1, 5, 6, 6)
    for step in ("rotate90", "flip", "rotate:30"):
        result = Augment((step,))(volume, generator())
        for depth in range(5):
            plane = Augment((step,))(volume[:, :, depth], generator())
            assert torch.allclose(result[:, :, depth], plane, atol=1e-6)


@pytest.mark.parametrize("shape", [(40, 40), (31, 52)])
def test_rotation_is_by_the_drawn_angle_about_the_centre_without_shear(shape):
    images = batch(6, 1, *shape)
    images = torch.from_numpy(ndimage.gaussian_filter(images.numpy(), (0, 0, 2, 2)))
    result = Augment(("rotate:25",))(images, generator())
    angles = (2 * torch.rand(6, generator=generator()) - 1) * 25
    assert angles.abs().max() > 10
    middle = (slice(shape[0] // 4, -shape[0] // 4), slice(shape[1] // 4, -shape[1] // 4))
    for image, turned, angle in zip(images, result, angles):
        ways = [ndimage.rotate(image[0].numpy(), s * float(angle), reshape=False, order=1) for s in (1, -1)]
        errors = [np.abs(turned[0].numpy() - way)[middle].max() for way in ways]
        assert errors[0] < 1e-4  # counterclockwise as in SciPy
    assert torch.allclose(Augment(("rotate:0",))(images, generator()), images, atol=1e-5)


def test_the_border_of_a_rotation_is_reflected_not_black():
    assert Augment(("rotate:45",))(torch.ones(8, 1, 20, 20), generator()).min() > 0.999


def test_crops_are_parts_of_the_image_at_all_places():
    image = torch.arange(64.0).view(1, 1, 8, 8)
    result = Augment(("crop:6",))(image.expand(300, -1, -1, -1), generator())
    corners = result[:, 0, 0, 0]
    assert set(corners.tolist()) == {8.0 * i + j for i in range(3) for j in range(3)}
    for crop, corner in zip(result[:, 0], corners):
        i, j = divmod(int(corner), 8)
        assert torch.equal(crop, image[0, 0, i : i + 6, j : j + 6])


def test_shifts_are_whole_pixels_up_to_the_limit():
    image = torch.zeros(1, 1, 15, 15)
    image[..., 7, 7] = 1
    result = Augment(("shift:2",))(image.expand(200, -1, -1, -1), generator())
    places = result[:, 0].nonzero()[:, 1:] - 7
    assert len(places) == 200
    assert {tuple(place) for place in places.tolist()} == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}


def test_no_steps_no_change():
    images = batch(2, 1, 4, 4)
    assert Augment()(images, generator()) is images


def test_wrong_steps_and_shapes_are_refused():
    with pytest.raises(SettingsError, match="Available: rotate90, flip, flip_horizontal, rotate:DEGREES, crop:SIDE"):
        Augment(("jitter",))
    with pytest.raises(SettingsError, match="crop:SIDE with SIDE a whole number"):
        Augment(("crop",))
    with pytest.raises(DataError, match="square images"):
        Augment(("rotate90",))(batch(2, 1, 4, 6), generator())
    with pytest.raises(DataError, match="at least 8 pixels"):
        Augment(("crop:8",))(batch(2, 1, 4, 16), generator())
    with pytest.raises(DataError, match="more than 4 pixels"):
        Augment(("shift:4",))(batch(2, 1, 4, 4), generator())


def test_every_transform_is_tested_here():
    assert {step.split(":")[0] for step in STEPS} == set(TRANSFORMS)
