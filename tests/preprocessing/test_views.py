"""Slices of volumes: cut and joined they are the volume again; what was left out is known."""

import numpy as np
import pytest

from normalcy.data.foreground import body_mask
from normalcy.errors import DataError
from normalcy.preprocessing.pipeline import Preprocess
from normalcy.preprocessing.steps import WINDOWS
from normalcy.preprocessing.views import SliceView, View, ViewSettings

SHAPE = (9, 12, 12)


def volume(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 255, (1, *shape), dtype=np.uint8)


def back(inputs: np.ndarray, view: View) -> np.ndarray:
    return view.geometry.invert_map(inputs)


@pytest.mark.parametrize("axis", ["z", "y", "x"])
@pytest.mark.parametrize("words", [(), ("pad:8",), ("centre_crop:0.7",)])
def test_joined_slices_are_the_volume(axis: str, words: tuple[str, ...]):
    image = volume()
    preprocess = Preprocess(words, plane=True).fit(lambda i: image, 1)
    settings = ViewSettings(slices=axis)
    inputs, views = settings.cut(preprocess, image)
    joined = settings.join(inputs[:, 0], views, back)
    seen = settings.examined(views) > 0
    assert seen.all() == (words != ("centre_crop:0.7",))
    np.testing.assert_allclose(joined[seen], image[0][seen] / 255, atol=1e-6)


def test_slices_lie_along_their_axis():
    image = volume()
    preprocess = Preprocess(plane=True).fit(lambda i: image, 1)
    for axis, name in enumerate("zyx"):
        inputs, (view,) = ViewSettings(slices=name).cut(preprocess, image)
        np.testing.assert_allclose(inputs[4, 0] * 255, np.take(image[0], 4, axis), atol=1e-4)
        assert view.count == SHAPE[axis]


def test_three_axes_are_averaged():
    image = volume(shape=(12, 12, 12))
    preprocess = Preprocess(plane=True).fit(lambda i: image, 1)
    settings = ViewSettings(slices="xyz")
    inputs, views = settings.cut(preprocess, image)
    assert len(inputs) == 36
    maps = np.concatenate([np.full((12, 12, 12), value, np.float32) for value in (1, 2, 6)])
    np.testing.assert_allclose(settings.join(maps, views, back), 3)
    np.testing.assert_allclose(settings.join(inputs[:, 0], views, back), image[0] / 255, atol=1e-6)


def test_three_axes_of_other_lengths_need_a_size():
    image = volume(shape=(9, 12, 14))
    with pytest.raises(DataError, match="size=128"):
        ViewSettings(slices="xyz").cut(Preprocess(plane=True).fit(lambda i: image, 1), image)
    inputs, views = ViewSettings(slices="xyz").cut(Preprocess(size=10, plane=True).fit(lambda i: image, 1), image)
    assert inputs.shape == (9 + 12 + 14, 1, 10, 10)
    assert ViewSettings(slices="xyz").join(inputs[:, 0], views, back).shape == (9, 12, 14)


def test_range_and_empty_slices():
    image = np.zeros((1, 20, 8, 8), np.uint8)
    image[0, 5:15, 2:6, 2:6] = 200
    preprocess = Preprocess(plane=True).fit(lambda i: image, 1)
    settings = ViewSettings(slices="z", range=(0.0, 0.6), body=0.1)
    _, (view,) = settings.cut(preprocess, image)
    assert isinstance(view, SliceView)
    assert view.chosen.tolist() == list(range(5, 12)), "in the first 12 slices, those with something in them"
    assert view.in_image.tolist() == list(range(5, 12))
    joined = settings.join(np.ones((7, 8, 8), np.float32) * 3, [view], back)
    assert (joined == 3).all(), "what was not examined gets the least value"
    assert (settings.examined([view]).any((1, 2)) == [5 <= z < 12 for z in range(20)]).all()
    nothing = ViewSettings(slices="z", body=0.9).cut(preprocess, image)[0]
    assert len(nothing) == 1, "the fullest slice where none is full enough"


def test_index_in_a_padded_volume():
    image = volume(shape=(9, 12, 12))
    preprocess = Preprocess(("pad:16",), plane=True).fit(lambda i: image, 1)
    _, (view,) = ViewSettings(slices="z").cut(preprocess, image)
    assert view.count == 16
    assert view.in_image[3:12].tolist() == list(range(9))


def test_pictures_have_channels():
    image = volume()
    preprocess = Preprocess(plane=True).fit(lambda i: image, 1)
    settings = ViewSettings(slices="y")
    inputs, views = settings.cut(preprocess, image)
    two = np.concatenate([inputs, 2 * inputs], 1)
    joined = settings.join(two, views, lambda values, view: np.stack([back(v, view) for v in values]))
    np.testing.assert_allclose(joined, np.concatenate([image, 2.0 * image]) / 255, atol=1e-6)


def test_body_of_a_bright_object():
    rng = np.random.default_rng(0)
    image = rng.normal(-1000, 20, (1, 10, 20, 20))
    image[0, 2:8, 5:15, 5:15] = rng.normal(40, 20, (6, 10, 10))
    mask = body_mask(image)
    assert mask.sum() == 600
    assert mask[2:8, 5:15, 5:15].all()
    x, _ = Preprocess(("zscore:body",)).fit(lambda i: image, 1).apply(image)
    inside = x[0][mask]
    assert abs(inside.mean()) < 1e-3
    assert abs(inside.std() - 1) < 1e-3
    x, _ = Preprocess(("percentile:0:100:body",)).fit(lambda i: image, 1).apply(image)
    assert x[0][mask].min() == 0
    assert x[0][~mask].max() == 0


def test_windows_by_name():
    image = np.array([-2000, -600, 40, 400, 3000], np.int16).reshape(1, 1, 5).repeat(8, 1)
    for name, (centre, width) in WINDOWS.items():
        by_name, _ = Preprocess((f"window:{name}",)).fit(lambda i: image, 1).apply(image)
        expected = np.clip((image.astype(float) - centre) / width + 0.5, 0, 1)
        np.testing.assert_allclose(by_name, expected, atol=1e-6)


def test_padding_is_no_body():
    """The round field of view of a CT, in a square of -3024: without its mask, air would be body."""
    rng = np.random.default_rng(0)
    image = rng.normal(-1000, 20, (1, 10, 40, 40))
    body = np.zeros((10, 40, 40), bool)
    body[2:8, 15:25, 15:25] = True
    image[0][body] = rng.normal(40, 20, 600)
    rows, columns = np.mgrid[:40, :40] - 19.5
    seen = np.broadcast_to(rows**2 + columns**2 < 15**2, (10, 40, 40))
    image[0][~seen] = -3024
    assert (body_mask(image) == seen).all()
    assert (body_mask(image, seen) == body).all()
    assert body_mask(np.where(seen, image, 3000), seen).sum() == 600
    for word, wanted in (("zscore:body", (0, 1)), ("percentile:0:100:body", None)):
        x, _ = Preprocess((word,)).fit(lambda i: image, 1).apply(image, seen)
        assert wanted is None or (abs(x[0][body].mean()) < 1e-3 and abs(x[0][body].std() - 1) < 1e-3)
        assert wanted is not None or (x[0][body].min(), x[0][body].max()) == (0, 1)
    preprocess = Preprocess(plane=True).fit(lambda i: image, 1)
    settings = ViewSettings(slices="z", body=0.01)
    assert settings.cut(preprocess, image, seen)[1][0].chosen.tolist() == list(range(2, 8))
    assert len(settings.cut(preprocess, image)[1][0].chosen) == 10
