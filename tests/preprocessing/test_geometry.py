"""Geometry: maps and masks come back to their place in the input."""

import numpy as np
import pytest
from example_images import fitted, noise

from normalcy.errors import DataError

# --- there and back: the marked pixel

PIPELINES = [
    (),
    ("centre_crop:0.75",),
    ("pad:32",),
    ("pad:32:zero",),
    ("pad_to:64:edge",),
    ("resize:30", "centre_crop:0.75"),
    ("centre_crop:0.8", "pad:7", "resize:40", "centre_crop:0.9"),
    ("pad:16", "centre_crop:0.7"),
    ("histogram_equalisation",),
    ("clahe:0.01",),
    ("gcn", "centre_crop:0.9"),
    ("window:128:256",),
    ("zscore",),
    ("zscore:nonzero", "pad:8"),
    ("percentile:1:100",),
    ("grey",),
    ("centre_crop:0.9", "clahe", "rgb", "gcn"),
]


@pytest.mark.parametrize(
    ("shape", "size"),
    [((37, 53), None), ((37, 53), 16), ((41, 29), 27), ((37, 53), 96), ((15, 21, 19), None), ((15, 21, 19), 12)],
)
@pytest.mark.parametrize("words", PIPELINES)
def test_a_marked_spot_comes_back_to_its_place(shape, words, size):
    centre = [round(0.35 * side) for side in shape]
    image = np.full((1, *shape), 20, np.uint8)
    image[(0, *(slice(c - 1, c + 2) for c in centre))] = 250
    preprocess = fitted(words, image, size=size)
    assert preprocess.size_of(shape) == preprocess.apply(image)[1].size
    x, geometry = preprocess.apply(image)
    assert tuple(x.shape[1:]) == geometry.size
    assert x.is_contiguous()
    if size is not None and not any(word.startswith("resize") for word in words):
        assert set(geometry.size) == {size}
    back = geometry.invert_map(x[0].numpy())
    assert back.shape == shape
    assert back.dtype == np.float32
    bright = np.argwhere(back >= 0.9 * back.max() + 0.1 * np.median(back))
    # Half a pixel of the coarsest grid that the image went through, in pixels of the input.
    coarse = np.ones(len(shape))
    for axis in range(len(shape)):
        step = 1.0
        for move in geometry.moves:
            if move.kind == "resize":
                step *= move.before[axis] / move.after[axis]
            coarse[axis] = max(coarse[axis], step)
    assert (np.abs(bright.mean(axis=0) - centre) <= 0.5 * coarse).all()


def test_a_map_of_positions_comes_back_as_positions():
    """Stronger than a spot: every pixel of a linear ramp returns to its own value, away from the borders."""
    ramp = np.mgrid[0:60, 0:90].astype(np.float32)
    for words, size in [
        ((), 32),
        (("centre_crop:0.8",), 40),
        (("pad:64",), 48),
        (("resize:50", "centre_crop:0.9"), 33),
    ]:
        x, geometry = fitted(words, ramp, size=size).apply(ramp)
        for axis in range(2):
            back = geometry.invert_map(x[axis]) * 89
            assert np.abs(back - ramp[axis])[15:45, 20:70].max() < 0.1  # pixels


def test_cropped_away_area_gets_the_minimum_or_the_fill():
    image = noise((1, 40, 60))
    _, geometry = fitted(("centre_crop:0.5",), image, size=24).apply(image)
    map = np.random.default_rng(1).random(geometry.size, dtype=np.float32) + 3
    back = geometry.invert_map(map)
    outside = np.ones((40, 60), bool)
    outside[10:30, 15:45] = False
    assert geometry.examined == (slice(10, 30), slice(15, 45))
    assert (back[outside] == map.min()).all()
    assert (back[~outside] > map.min()).all()
    assert (geometry.invert_map(map, fill=-1.0)[outside] == -1).all()
    with pytest.raises(DataError, match=r"map \(24, 24\), got \(40, 60\)"):
        geometry.invert_map(np.zeros((40, 60)))


def test_masks_go_the_way_of_the_image():
    image = noise((1, 40, 60))
    mask = np.zeros((40, 60), bool)
    mask[12:20, 30:42] = True
    _, geometry = fitted(("centre_crop:0.5",), image).apply(image)
    assert np.array_equal(geometry.forward_mask(mask), mask[10:30, 15:45])
    _, geometry = fitted((), image, size=20).apply(image)
    small = geometry.forward_mask(mask)
    assert np.array_equal(small, np.pad(np.ones((4, 4), bool), [(6, 10), (10, 6)]))
    thin = np.zeros((40, 60), bool)
    thin[20, 30] = True
    assert not geometry.forward_mask(thin).any()
    assert geometry.forward_mask(thin, fraction=0.01).any()
    assert geometry.forward_mask(np.ones((40, 60))).all()
