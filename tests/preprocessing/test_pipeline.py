"""Preprocessing: what each step computes, and that all of them are undone at the right place."""

import json
import pickle

import numpy as np
import pytest
import torch
from skimage import exposure

from normalcy.errors import DataError, ModelFileError, SettingsError
from normalcy.preprocessing.pipeline import Preprocess
from normalcy.preprocessing.steps import split_words


def fitted(words, *images, size=None):
    return Preprocess(tuple(words), size).fit(lambda i: images[i], len(images))


def noise(shape, dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(100, 40, shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


# --- scale of values


def test_uint8_is_scaled_exactly_without_reading_all_images():
    image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    reads = []
    preprocess = Preprocess().fit(lambda i: reads.append(i) or image, 1000)
    x, _ = preprocess.apply(image)
    assert reads == [0]
    assert x.dtype == torch.float32
    assert torch.equal(x.flatten(), torch.arange(256, dtype=torch.float32) / 255)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32, np.float64, ">u2"])
def test_other_types_use_the_range_of_the_training_data_and_do_not_clip(dtype):
    train = [np.full((1, 4, 4), value, dtype) for value in (1000, 3000)]
    preprocess = fitted((), *train)
    assert (preprocess.fitted.low, preprocess.fitted.high) == (1000, 3000)
    x, _ = preprocess.apply(np.array([[[500, 2000, 5000]]], dtype))
    assert x.flatten().tolist() == [-0.25, 0.5, 2.0]


def test_bool_images_and_constant_training_data():
    assert fitted((), np.eye(3, dtype=bool)[None]).apply(np.eye(3, dtype=bool)[None])[0].sum() == 3
    assert fitted((), np.full((1, 3, 3), 7.0)).apply(np.full((1, 3, 3), 9.0))[0].unique().tolist() == [2.0]


def test_apply_neither_changes_nor_aliases_its_input():
    image = noise((1, 8, 8), np.float32)
    image = (image - image.min()) / (image.max() - image.min())
    before = image.copy()
    image.flags.writeable = False
    x, _ = fitted(("zscore",), image).apply(image)
    x += 1
    assert np.array_equal(image, before)


# --- words


def test_size_goes_after_the_last_geometric_step_or_first():
    names = lambda *words: [f"{s.name}:{s.numbers[0]:g}" if s.numbers else s.name for s in Preprocess(words, 64).plan]
    assert names("gcn") == ["resize:64", "gcn"]
    assert names("centre_crop:0.5", "gcn", "pad:8", "zscore") == [
        "centre_crop:0.5",
        "gcn",
        "pad:8",
        "resize:64",
        "zscore",
    ]
    assert names("resize:300", "centre_crop:0.75") == ["resize:300", "centre_crop:0.75", "resize:64"]


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["blur:3"], "known are: resize:SIDE, centre_crop:FRACTION"),
        (["resize"], "resize:SIDE with a whole number from 1"),
        (["resize:12.5"], "got 'resize:12.5'"),
        (["centre_crop:75"], "number from 1e-06 to 1"),
        (["pad:32,mirror"], "optionally reflect or edge or zero"),
        (["window:40,0"], "window:CENTRE,WIDTH"),
        (["window:nan,1"], "window:CENTRE,WIDTH"),
        (["percentile:99,1"], "percentile:LOW,HIGH"),
        (["gcn:1"], "without numbers"),
        (["gcn", "gcn"], "gcn once"),
        (["gcn", "window:0,1"], "put window first"),
    ],
)
def test_wrong_words_are_refused_with_the_right_ones(words, fragment):
    with pytest.raises(SettingsError, match="expects") as error:
        Preprocess(tuple(words))
    assert fragment in str(error.value)


def test_size_must_be_a_positive_whole_number():
    with pytest.raises(SettingsError, match="size expects resize:SIDE"):
        Preprocess(size=0)


def test_one_string_and_a_list_give_the_same():
    words = ("window:-600,1500", "pad:32:edge", "clahe", "resize:64")
    assert split_words("window:-600,1500,pad:32:edge, clahe resize:64") == words
    assert Preprocess.parse(",".join(words)) == Preprocess.parse(list(words)) == Preprocess(words)
    assert Preprocess.parse("") == Preprocess()
    assert Preprocess(("pad:32,edge",)).plan == Preprocess(("pad:32:edge",)).plan


# --- borders


def test_images_of_another_kind_are_refused():
    preprocess = fitted((), noise((1, 8, 8)))
    for wrong in (noise((1, 8, 8), np.uint16), noise((3, 8, 8)), noise((1, 8, 8, 8)), noise((1, 8, 8), np.float32)):
        with pytest.raises(DataError, match=r"expects 8-bit images \(1, H, W\).*got"):
            preprocess.apply(wrong)
    with pytest.raises(DataError, match="training image 1"):
        fitted((), noise((1, 8, 8), np.uint16), noise((1, 8, 8)))
    with pytest.raises(DataError, match="images of numbers"):
        preprocess.apply(np.zeros((1, 8, 8), complex))
    with pytest.raises(DataError, match="1 or 3 channels for grey, got 4"):
        fitted(("grey",), noise((4, 8, 8)))
    with pytest.raises(DataError, match="add the axis of channels"):
        fitted((), noise((8, 8)))
    with pytest.raises(DataError, match="at least one training image"):
        fitted(())
    with pytest.raises(SettingsError, match="call fit first"):
        Preprocess().apply(noise((1, 8, 8)))


def test_values_that_are_not_finite_are_refused():
    bad = np.array([[[0.0, np.nan]]], np.float32)
    with pytest.raises(DataError, match=r"training image 1.*finite"):
        fitted((), np.zeros((1, 1, 2), np.float32), bad)
    with pytest.raises(DataError, match="finite"):
        fitted((), np.ones((1, 1, 2), np.float32)).apply(bad)


# --- each step


def test_resize_to_the_same_size_is_the_identity():
    image = noise((3, 32, 32))
    x, geometry = fitted(("resize:32",), image, size=32).apply(image)
    assert np.array_equal(x.numpy(), image / np.float32(255))
    assert geometry.moves == ()
    assert np.array_equal(geometry.invert_map(x[0]), x[0].numpy())


def test_resize_keeps_flat_regions_and_averages_stripes():
    flat, _ = fitted((), np.full((1, 31, 47), 51, np.uint8), size=16).apply(np.full((1, 31, 47), 51, np.uint8))
    assert torch.allclose(flat, torch.tensor(0.2), atol=1e-6)
    stripes = np.zeros((1, 64, 64), np.uint8)
    stripes[:, :, ::2] = 200
    x, _ = fitted((), stripes, size=16).apply(stripes)  # without antialiasing: 0 or 200/255
    assert torch.allclose(x[..., 2:-2], torch.tensor(100 / 255), atol=0.02)


def test_volumes_are_resized_linearly_along_each_axis():
    ramp = np.mgrid[0:20, 0:30, 0:40].astype(np.float32)
    x, _ = fitted((), ramp, size=10).apply(ramp)
    x = x.numpy() * ramp.max()
    for axis, side in enumerate((20, 30, 40)):
        expected = (np.arange(10) + 0.5) * side / 10 - 0.5
        got = np.moveaxis(x[axis], axis, 0)
        assert np.allclose(got[2:-2], expected[2:-2, None, None], atol=1e-4)


def test_trilinear_enlargement_is_that_of_torch():
    volume = noise((2, 5, 6, 7), np.float32)
    x, _ = fitted((), volume, size=12).apply(volume)
    scaled = (volume - volume.min()) / (volume.max() - volume.min())
    expected = torch.nn.functional.interpolate(torch.from_numpy(scaled)[None], (12, 12, 12), mode="trilinear")[0]
    assert torch.allclose(x, expected, atol=1e-5)


def test_crop_and_pad_take_the_middle():
    image = np.arange(70, dtype=np.uint8).reshape(1, 7, 10)
    x, _ = fitted(("centre_crop:0.5",), image).apply(image)
    assert np.array_equal(np.rint(x.numpy() * 255), image[:, 1:5, 2:7])
    x, _ = fitted(("pad:4",), image).apply(image)
    assert np.array_equal(np.rint(x.numpy() * 255), np.pad(image, [(0, 0), (0, 1), (1, 1)], mode="reflect"))
    x, _ = fitted(("pad_to:9,zero",), image).apply(image)
    assert np.array_equal(np.rint(x.numpy() * 255), np.pad(image, [(0, 0), (1, 1), (0, 0)]))
    assert fitted(("pad_to:32,edge",), image[:, :1]).apply(image[:, :1])[0].shape == (1, 32, 32)


def test_gcn_is_that_of_deep_svdd():
    train = [noise((3, 9, 11), seed=i) for i in range(4)]

    def global_contrast_normalisation(image):  # the authors' formula, scale "l1"
        x = image / 255.0
        x = x - x.mean()
        return x / np.abs(x).mean()

    normalised = [global_contrast_normalisation(image) for image in train]
    low, high = min(x.min() for x in normalised), max(x.max() for x in normalised)
    preprocess = fitted(("gcn",), *train)
    outputs = [preprocess.apply(image)[0].numpy() for image in train]
    for x, expected in zip(outputs, normalised):
        assert np.allclose(x, (expected - low) / (high - low), atol=1e-5)
    assert min(x.min() for x in outputs) == pytest.approx(0, abs=1e-6)
    assert max(x.max() for x in outputs) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("word", ["gcn", "zscore", "percentile", "histogram_equalisation", "clahe"])
@pytest.mark.parametrize("value", [0, 77, 255])
def test_constant_images_stay_finite_and_constant(word, value):
    constant = np.full((1, 12, 12), value, np.uint8)
    x, _ = fitted((word,), noise((1, 12, 12)), constant).apply(constant)
    assert len(x.unique()) == 1
    assert x.isfinite().all()


def test_gcn_of_16_bit_images_reads_in_two_passes():
    train = [noise((1, 6, 6), np.uint16, seed=i) for i in range(3)]
    reads = []
    Preprocess(("gcn",)).fit(lambda i: reads.append(i) or train[i], 3)
    assert reads == [0, 1, 2, 1, 2]


def test_window_is_in_the_units_of_the_file_and_needs_no_pass():
    image = np.array([[[-1000, 0, 20, 40, 80, 3000]]], np.int16)
    reads = []
    preprocess = Preprocess(("window:40,80",)).fit(lambda i: reads.append(i) or image, 5)
    x, geometry = preprocess.apply(image)
    assert reads == [0]
    assert x.flatten().tolist() == [0, 0, 0.25, 0.5, 1, 1]
    assert preprocess.invert_image(x, image, geometry).flatten().tolist() == [0, 0, 20, 40, 80, 80]


def test_zscore_of_the_image_and_of_its_foreground():
    image = noise((1, 20, 20), np.float32)
    x, _ = fitted(("zscore",), image).apply(image)
    assert float(x.mean()) == pytest.approx(0, abs=1e-5)
    assert float(x.std(correction=0)) == pytest.approx(1, abs=1e-5)
    image[:, :10] = 0
    x, _ = fitted(("gcn", "zscore:nonzero"), image).apply(image)
    assert float(x[:, 10:].mean()) == pytest.approx(0, abs=1e-5)
    assert float(x[:, 10:].std(correction=0)) == pytest.approx(1, abs=1e-5)
    x, _ = fitted(("zscore:nonzero",), np.zeros((1, 5, 5), np.uint8)).apply(np.zeros((1, 5, 5), np.uint8))
    assert not x.any()


def test_percentiles_become_0_and_1():
    image = np.arange(101, dtype=np.float32).reshape(1, 1, 101)
    x, _ = fitted(("percentile:10,60",), image).apply(image)
    assert np.allclose(x.numpy(), np.clip((image - 10) / 50, 0, 1), atol=1e-6)


def test_histogram_equalisation_against_its_definition():
    image = (noise((1, 40, 50)).astype(float) ** 2 / 255).astype(np.uint8)
    counts = np.bincount(image.ravel(), minlength=256)
    cumulative = counts.cumsum() / image.size
    least = cumulative[image.min()]
    x, _ = fitted(("histogram_equalisation",), image).apply(image)
    assert np.allclose(x.numpy(), ((cumulative - least) / (1 - least))[image], atol=1e-6)


def test_clahe_is_that_of_scikit_image_also_for_volumes_of_three_columns():
    image = noise((2, 80, 96))
    x, _ = fitted(("clahe:0.02",), image).apply(image)
    for got, channel in zip(x.numpy(), image):
        assert np.allclose(got, exposure.equalize_adapthist(channel / 255, clip_limit=0.02), atol=1e-3)
    volume = noise((1, 16, 24, 3))
    x, _ = fitted(("clahe",), volume).apply(volume)
    turned = np.ascontiguousarray(volume.transpose(0, 3, 1, 2))
    y, _ = fitted(("clahe",), turned).apply(turned)
    assert np.allclose(x.numpy().transpose(0, 3, 1, 2), y.numpy(), atol=1e-3)


def test_grey_and_rgb_convert_what_they_are_asked_to_and_accept_both():
    colour, single = noise((3, 5, 6)), noise((1, 5, 6))
    preprocess = fitted(("grey",), colour)
    x, geometry = preprocess.apply(colour)
    expected = (0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]) / 255
    assert x.shape == (1, 5, 6)
    assert np.allclose(x[0].numpy(), expected, atol=1e-6)
    assert preprocess.invert_image(x, colour, geometry).shape == (3, 5, 6)
    assert preprocess.apply(single)[0].shape == (1, 5, 6)
    preprocess = fitted(("rgb",), single)
    x, geometry = preprocess.apply(single)
    assert x.shape == (3, 5, 6)
    assert preprocess.constants.channels == 3
    assert np.array_equal(preprocess.invert_image(x, single, geometry), single)


# --- there and back: the marked pixel

PIPELINES = [
    (),
    ("centre_crop:0.75",),
    ("pad:32",),
    ("pad:32,zero",),
    ("pad_to:64,edge",),
    ("resize:30", "centre_crop:0.75"),
    ("centre_crop:0.8", "pad:7", "resize:40", "centre_crop:0.9"),
    ("pad:16", "centre_crop:0.7"),
    ("histogram_equalisation",),
    ("clahe:0.01",),
    ("gcn", "centre_crop:0.9"),
    ("window:128,256",),
    ("zscore",),
    ("zscore:nonzero", "pad:8"),
    ("percentile:1,100",),
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
    if size is not None:
        assert geometry.size == (size,) * len(shape)
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
    assert geometry.forward_mask(thin, share=0.01).any()
    assert geometry.forward_mask(np.ones((40, 60))).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("words", [(), ("gcn",), ("zscore",), ("zscore:nonzero",), ("pad:16", "gcn", "centre_crop:0.6"),
                                   ("percentile:0,100",)])  # fmt: skip
def test_an_unchanged_image_is_restored_to_itself(words, dtype):
    train = [noise((3, 21, 17), dtype, seed) for seed in (1, 2)]
    preprocess = fitted(words, *train)
    x, geometry = preprocess.apply(train[0])
    back = preprocess.invert_image(x, train[0], geometry)
    assert back.dtype == train[0].dtype
    if np.dtype(dtype).kind == "f":
        assert np.allclose(back, train[0], atol=2e-3 * np.ptp(train[0]) / 255)
    else:
        assert np.array_equal(back, train[0])


def test_a_restored_image_keeps_the_pixels_that_were_cropped_away_and_is_clipped_to_its_type():
    image = noise((1, 40, 60))
    preprocess = fitted(("centre_crop:0.5",), image, size=24)
    _, geometry = preprocess.apply(image)
    back = preprocess.invert_image(torch.full((1, 24, 24), 1.7), image, geometry)
    expected = image.copy()
    expected[:, 10:30, 15:45] = 255
    assert np.array_equal(back, expected)
    with pytest.raises(DataError, match=r"restored image \(1, 24, 24\)"):
        preprocess.invert_image(torch.zeros(1, 40, 60), image, geometry)


# --- saved


@pytest.mark.parametrize("words", [(), ("gcn",), ("window:40,80", "pad:32,zero")])
def test_json_and_pickle_round_trips_are_exact(words):
    image = noise((1, 21, 17), np.float32) / 3
    preprocess = fitted(words, image, size=16)
    again = Preprocess.from_json(json.loads(json.dumps(preprocess.to_json())))
    assert again == preprocess
    assert again.plan == preprocess.plan
    x, geometry = preprocess.apply(image)
    assert torch.equal(again.apply(image)[0], x)
    assert pickle.loads(pickle.dumps((preprocess, geometry))) == (preprocess, geometry)
    assert Preprocess.from_json(Preprocess(words).to_json()) == Preprocess(words)


@pytest.mark.parametrize(
    "data", [{}, {"steps": ["blur"], "size": None, "fitted": None}, {"steps": [], "size": None, "fitted": {"low": 0}}]
)
def test_damaged_json_is_refused(data):
    with pytest.raises(ModelFileError, match="damaged"):
        Preprocess.from_json(data)
