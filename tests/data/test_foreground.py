"""Body and tissue by Otsu's threshold, against its definition."""

import numpy as np
import pytest

from normalcy.data.foreground import body_mask, otsu


def between_class_variance(x: np.ndarray, threshold: float) -> float:
    low, high = x[x <= threshold], x[x > threshold]
    return float(len(low) * len(high) * (low.mean() - high.mean()) ** 2)


@pytest.mark.parametrize("seed", range(5))
def test_otsu_maximises_the_variance_between_classes(seed: int):
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.normal(20, 6, 300), rng.normal(90 + 10 * seed, 15, 200)]).round().clip(0, 255)
    x = x.astype(np.uint8)
    best = max(between_class_variance(x, t) for t in np.unique(x)[:-1])
    assert between_class_variance(x, otsu(x)) == pytest.approx(best, rel=1e-9)


def test_body_is_where_the_mean_of_the_channels_is_bright():
    image = np.zeros((2, 6, 8))
    image[0, 1:4, 2:5] = 10
    image[1, 1:4, 2:5] = 30
    image[1, 5, 7] = 3  # noise in one channel
    expected = np.zeros((6, 8), bool)
    expected[1:4, 2:5] = True
    mask = body_mask(image)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(body_mask(image[:1]), expected)


@pytest.mark.parametrize("shape", [(5, 7), (4, 5, 6)])
def test_a_constant_image_is_all_body(shape: tuple[int, ...]):
    mask = body_mask(np.full((1, *shape), 3.5))
    assert mask.shape == shape
    assert mask.all()


def test_body_of_a_ct_volume_does_not_depend_on_the_unit():
    rng = np.random.default_rng(0)
    volume = rng.normal(-1000, 20, (1, 10, 20, 20))
    volume[0, 2:8, 5:15, 5:15] = rng.normal(40, 20, (6, 10, 10))
    mask = body_mask(volume)
    assert mask.sum() == 600
    assert mask[2:8, 5:15, 5:15].all()
    np.testing.assert_array_equal(body_mask((volume + 1024) / 4000), mask)
