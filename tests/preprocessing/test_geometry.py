"""Geometry: maps and masks come back to their place in the input."""

import numpy as np
import pytest
from example_images import fitted, noise
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from normalcy.data.volumes import Space
from normalcy.errors import DataError
from normalcy.preprocessing.geometry import Geometry
from normalcy.preprocessing.pipeline import Preprocess
from normalcy.preprocessing.views import ViewSettings

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
    assert x.flags.c_contiguous
    if size is not None and not any(word.startswith("resize") for word in words):
        assert set(geometry.size) == {size}
    back = geometry.invert_map(x[0])
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


# --- properties, on drawn shapes and pipelines

PROPERTY = settings(max_examples=30, derandomize=True, deadline=None, database=None)


def steps(*kinds: str) -> st.SearchStrategy[str]:
    """One step of these kinds."""
    drawn = {
        "crop": st.integers(30, 100).map(lambda percent: f"centre_crop:{percent / 100}"),
        "pad": st.tuples(st.integers(1, 12), st.sampled_from(["reflect", "edge", "zero"])).map(lambda p: f"pad:{p[0]}:{p[1]}"),
        "pad_to": st.tuples(st.integers(1, 48), st.sampled_from(["edge", "zero"])).map(lambda p: f"pad_to:{p[0]}:{p[1]}"),
        "resize": st.integers(6, 48).map(lambda side: f"resize:{side}"),
        "resize_plane": st.integers(6, 48).map(lambda side: f"resize_plane:{side}"),
    }  # fmt: skip
    return st.one_of(*(drawn[kind] for kind in kinds))


shapes = st.one_of(
    st.tuples(*[st.integers(5, 40)] * 2),
    st.tuples(*[st.integers(4, 14)] * 3),
)


def draw_pixel(data: st.DataObject, box: tuple[slice, ...]) -> tuple[int, ...]:
    return tuple(data.draw(st.integers(side.start, side.stop - 1), label="index") for side in box)


def geometry_of(pipeline: list[str], shape: tuple[int, ...]) -> Geometry:
    image = np.zeros((1, *shape), np.uint8)
    return fitted(pipeline, image).apply(image)[1]


@PROPERTY
@given(shape=shapes, pipeline=st.lists(steps("crop", "pad", "pad_to"), max_size=4), data=st.data())
def test_crops_and_pads_are_undone_exactly(shape, pipeline, data):
    geometry = geometry_of(pipeline, shape)
    mask = np.zeros(shape, bool)
    mask[draw_pixel(data, geometry.examined)] = True
    forward = geometry.forward_mask(mask)
    assert forward.shape == geometry.size
    assert forward.any()
    assert np.array_equal(geometry.invert_map(forward.astype(np.float32), fill=0) > 0, mask)
    seen = np.zeros(shape, bool)
    seen[geometry.examined] = True
    assert np.array_equal(geometry.invert_map(np.ones(geometry.size), fill=0) > 0, seen)


@PROPERTY
@given(
    shape=shapes,
    pipeline=st.lists(steps("crop", "pad", "pad_to", "resize", "resize_plane"), min_size=1, max_size=4),
    data=st.data(),
)
def test_a_marked_pixel_comes_back_to_its_place(shape, pipeline, data):
    """Through any pipeline, within one pixel of the coarsest grid on the way: the mask forward and the map back."""
    geometry = geometry_of(pipeline, shape)
    box = geometry.examined
    assume(all(side.stop > side.start for side in box))
    pixel = draw_pixel(data, box)
    marked = np.zeros((1, *shape), np.float32)
    marked[(0, *pixel)] = 1
    area = marked
    coarse, factor = np.ones(len(shape)), np.ones(len(shape))
    for move in geometry.moves:
        area = move.apply(area)
        if move.kind == "resize":
            factor = factor * np.divide(move.before, move.after)
        coarse = np.maximum(coarse, factor)
    assume(area.max() > 1e-3)  # not so thin that nothing of it is left on the coarsest grid
    mask = geometry.forward_mask(marked[0], fraction=float(area.max()))
    assert np.array_equal(mask, area[0] >= area.max() - 1e-6), "a mask goes the way of the image"
    back = geometry.invert_map(area[0], fill=0)
    assert back.shape == shape
    brightest = np.argwhere(back >= 0.99 * back.max()).mean(axis=0)
    assert (np.abs(brightest - pixel) <= coarse).all()


@PROPERTY
@given(shape=shapes, tile=st.integers(3, 20), overlap=st.floats(0, 0.9), window=st.sampled_from(["hann", "gaussian"]),
       data=st.data())  # fmt: skip
def test_tiles_are_joined_at_their_place(shape, tile, overlap, window, data):
    image = np.zeros((1, *shape), np.uint8)
    image[(0, *draw_pixel(data, tuple(slice(0, side) for side in shape)))] = 255
    views = ViewSettings(tile=(tile,) * len(shape), overlap=overlap, window=window)
    tiles, cuts = views.cut(fitted((), image), image)
    assert tiles.shape[2:] == (tile,) * len(shape)
    joined = views.join(tiles[:, 0], cuts, lambda values, view: view.geometry.invert_map(values))
    np.testing.assert_allclose(joined, image[0] / 255, atol=1e-5)


@PROPERTY
@given(
    side=st.integers(5, 12),
    depth=st.integers(4, 12),
    axes=st.sampled_from(["z", "y", "x", "xyz"]),
    pipeline=st.lists(steps("crop", "pad"), max_size=2),
    order=st.permutations(range(3)),
    flips=st.tuples(*[st.booleans()] * 3),
    data=st.data(),
)
def test_slices_of_a_file_in_any_orientation_are_joined_at_their_place(side, depth, axes, pipeline, order, flips, data):
    """A voxel that is marked in the file is the one that is marked in the file of its map."""
    shape = (side,) * 3 if axes == "xyz" else (side, depth, side + 1)
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order] * np.where(flips, -1.5, 1.5)
    space = Space(shape, affine)
    voxel = draw_pixel(data, tuple(slice(0, n) for n in shape))
    stored = np.full(shape, 10, np.uint8)
    stored[voxel] = 255
    image = space.from_file(stored)
    views = ViewSettings(slices=axes)
    preprocess = Preprocess(tuple(pipeline), plane=True).fit(lambda i: image, 1)
    inputs, cuts = views.cut(preprocess, image)
    joined = views.join(inputs[:, 0], cuts, lambda values, view: view.geometry.invert_map(values))
    seen = views.examined(cuts)
    assert joined.shape == seen.shape == image.shape[1:]
    np.testing.assert_allclose(joined[seen > 0], image[0][seen > 0] / 255, atol=1e-6)
    in_file = space.to_file(joined)
    if space.to_file(seen)[voxel]:
        assert np.unravel_index(in_file.argmax(), in_file.shape) == voxel
    assert in_file.shape == shape
