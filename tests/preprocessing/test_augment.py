"""Augmentation: what each random transform does to an image, and that a generator determines it."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from normalcy.errors import DataError, SettingsError
from normalcy.preprocessing.augment import TRANSFORMS, Augment

PHOTOMETRIC = ["brightness:0.2", "contrast:0.3", "gamma:0.5", "noise:0.1", "blur:1.5"]
STEPS = ["rotate90", "flip", "flip_horizontal", "rotate:10", "crop:6", "shift:3", *PHOTOMETRIC]


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


@pytest.mark.parametrize("step", PHOTOMETRIC)
@pytest.mark.parametrize("shape", [(64, 1, 12, 12), (64, 5, 12, 12), (64, 2, 8, 8, 8)])
def test_photometric_transforms_keep_the_shape_and_the_range(step, shape):
    images = batch(*shape)
    result = Augment((step,))(images, generator())
    assert result.shape == images.shape
    assert result.min() >= 0
    assert result.max() <= 1 + 1e-6
    changed = (result - images).flatten(1).abs().amax(1) > 1e-6
    assert changed.float().mean() > 0.75  # a blur of less than a fifth of a pixel is none
    wide = 6 * images - 3  # as after zscore
    result = Augment((step,))(wide, generator())
    assert (result.flatten(1).amin(1) >= wide.flatten(1).amin(1) - 1e-5).all()
    assert (result.flatten(1).amax(1) <= wide.flatten(1).amax(1) + 1e-5).all()


def test_brightness_and_contrast_are_one_number_for_each_image():
    images = 0.4 + 0.2 * batch(500, 3, 8, 8)  # far enough from 0 and 1
    added = Augment(("brightness:0.2",))(images, generator()) - images
    assert torch.allclose(added, added[:, :1, :1, :1].expand_as(added), atol=1e-6)
    drawn = added[:, 0, 0, 0]
    assert (round(drawn.min().item(), 2), round(drawn.max().item(), 2)) == (-0.2, 0.2)
    assert abs(drawn.mean()) < 0.02
    mean = images.mean((1, 2, 3), keepdim=True)
    factors = (Augment(("contrast:0.5",))(images, generator()) - mean) / (images - mean)
    middle = factors.flatten(1).median(1).values
    assert torch.allclose(factors[images.sub(mean).abs() > 0.02], middle[:, None, None, None].expand_as(factors)[
        images.sub(mean).abs() > 0.02], atol=1e-3)  # fmt: skip
    assert (round(middle.min().item(), 1), round(middle.max().item(), 1)) == (0.5, 1.5)


def test_gamma_is_a_power_between_0_and_1_alone():
    images = torch.tensor([-0.5, 0.0, 0.25, 0.5, 1.0, 2.0]).view(1, 1, 1, 6).expand(500, -1, -1, -1)
    result = Augment(("gamma:1",))(images, generator())
    outside = [0, 1, 4, 5]
    assert torch.equal(result[..., outside], images[..., outside])
    powers = result[..., 3].log2().neg().flatten()  # 0.5 ** g
    assert torch.allclose(result[..., 2].flatten(), 0.25**powers, atol=1e-6)
    assert (round(powers.min().item(), 1), round(powers.max().item(), 1)) == (0.5, 2.0)


def test_noise_is_gaussian_and_independent_between_channels():
    noise = Augment(("noise:0.1",))(torch.full((300, 2, 32, 32), 0.5), generator()) - 0.5
    stds = noise.flatten(1).std(1)
    assert stds.max() < 0.105
    assert abs(stds.mean() - 0.05) < 0.005
    one, other = noise[:, 0].flatten(1), noise[:, 1].flatten(1)
    assert ((one * other).mean(1) / stds**2).abs().max() < 0.25
    strongest = noise[stds.argmax()].flatten() / stds.max()
    assert abs((strongest.abs() < 1).float().mean() - 0.683) < 0.03


@pytest.mark.parametrize("axes", [2, 3])
def test_blur_is_scipys(axes):
    images = batch(1, 2, *(15,) * axes)
    result = Augment(("blur:2",))(images, generator())
    std = 2 * torch.rand(1, generator=generator()).item()
    expected = ndimage.gaussian_filter(images[0].numpy(), (0, *(std,) * axes), mode="nearest", radius=(0, *(6,) * axes))
    np.testing.assert_allclose(result[0].numpy(), expected, atol=1e-5)


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
