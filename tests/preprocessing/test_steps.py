"""Preprocessing steps: how they are written, and what each computes."""

import re

import numpy as np
import pytest
import torch
from example_images import fitted, noise
from skimage import exposure

from normalcy.config import parse_settings, read_toml
from normalcy.detector import Detector
from normalcy.errors import DataError, SettingsError
from normalcy.preprocessing.grammar import read_step
from normalcy.preprocessing.pipeline import Preprocess
from normalcy.preprocessing.steps import STEPS, Clahe, Pad, Percentile, Resize, Window, ZScore

# --- how steps are written


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("window:40:80", Window((40.0, 80.0))),
        ("window:brain", Window((40.0, 80.0))),
        ("pad:32:edge", Pad((32.0,), "edge")),
        ("pad:32", Pad((32.0,), "reflect")),
        (" pad : 32 : zero ", Pad((32.0,), "zero")),
        ("zscore", ZScore()),
        ("zscore:body", ZScore((), "body")),
        ("percentile", Percentile((1.0, 99.0))),
        ("percentile:body", Percentile((1.0, 99.0), "body")),
        ("percentile:0:95:nonzero", Percentile((0.0, 95.0), "nonzero")),
        ("clahe", Clahe((0.01,))),
        ("clahe:0.02", Clahe((0.02,))),
    ],
)
def test_arguments_are_separated_by_colons(text, expected):
    step = read_step(text, STEPS, "preprocess")
    assert step == expected
    assert type(step) is type(expected)
    assert read_step(str(step), STEPS, "preprocess") == step, "the text of a step is what is typed"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("blur:3", "preprocess expects one of its steps, got 'blur:3'. Available: resize:SIDE, centre_crop:FRACTION, pad:N[:"),
        ("resize", "expects resize:SIDE with SIDE a whole number from 1 to 65536, got 'resize'; correct the step."),
        ("resize:12.5", "got 'resize:12.5'"),
        ("resize:", "got 'resize:'"),
        ("resize:inf", "got 'resize:inf'"),
        ("centre_crop:75", "with FRACTION a number above 0 and at most 1, got"),
        ("centre_crop:0", "with FRACTION a number above 0 and at most 1, got"),
        ("pad:32:mirror", "pad:N[:MODE] with N a whole number from 1 to 65536, MODE reflect (default) or edge or zero, got"),
        ("window:40:0", "window:CENTRE:WIDTH or window:NAME with CENTRE a number, WIDTH a positive number, NAME one of"),
        ("window:40", "window:CENTRE:WIDTH or window:NAME with"),
        ("window:nan:1", "window:CENTRE:WIDTH or window:NAME with"),
        ("window:inf:1", "window:CENTRE:WIDTH or window:NAME with"),
        ("window:40,80", "got 'window:40,80'; write colons between arguments."),
        ("percentile:99:1", "percentile[:LOW:HIGH][:PIXELS] with LOW a number from 0 to 100, HIGH a number from 0 to 100, "
                            "LOW below HIGH, PIXELS nonzero or body, got 'percentile:99:1'"),
        ("gcn:1", "expects gcn without arguments, got 'gcn:1'"),
    ],
)  # fmt: skip
def test_wrong_steps_are_refused_with_what_can_be_typed(text, message):
    with pytest.raises(SettingsError) as error:
        read_step(text, STEPS, "preprocess")
    assert message in str(error.value)
    assert "inf to" not in str(error.value)


@pytest.mark.parametrize("name", STEPS)
def test_what_usage_shows_can_be_typed(name):
    """Of every step, without and with its optional arguments."""
    usage = STEPS[name].form.usage(name).partition(" or ")[0]
    values = {"SIDE": "8", "N": "8", "FRACTION": "0.5", "LIMIT": "0.02", "CENTRE": "40", "WIDTH": "80", "LOW": "2",
              "HIGH": "98", "MODE": "edge", "PIXELS": "body"}  # fmt: skip
    for form in (re.sub(r"\[.*\]", "", usage), usage.replace("[", "").replace("]", "")):
        text = ":".join(values.get(part, part) for part in form.split(":"))
        assert read_step(text, STEPS, "preprocess").name == name


@pytest.mark.parametrize(
    "given",
    [
        "window:40:80,resize:64",
        " window:40:80 , resize:64,",
        ["window:40:80", "resize:64"],
        ("window:40:80", "resize:64"),
    ],
)
def test_text_and_lists_of_steps_give_the_same(given):
    detector = Detector("pca", preprocess=given)
    assert detector.input.preprocess == ("window:40:80", "resize:64")
    assert detector.preprocess.plan == (Window((40.0, 80.0)), Resize((64.0,)))


def test_toml_and_the_command_line_give_the_same(tmp_path):
    (tmp_path / "list.toml").write_text('preprocess = ["window:40:80", "resize:64"]\n')
    (tmp_path / "text.toml").write_text('preprocess = "window:40:80,resize:64"\n')
    given = [read_toml(tmp_path / "list.toml"), read_toml(tmp_path / "text.toml")]
    given.append(parse_settings(["preprocess=window:40:80,resize:64"]))
    assert {Detector("pca", **settings).input.preprocess for settings in given} == {("window:40:80", "resize:64")}


# --- each step


def test_resize_to_the_same_size_is_the_identity():
    image = noise((3, 32, 32))
    x, geometry = fitted(("resize:32",), image, size=32).apply(image)
    assert np.array_equal(x, image / np.float32(255))
    assert geometry.moves == ()
    assert np.array_equal(geometry.invert_map(x[0]), x[0])


def test_resize_keeps_flat_regions_and_averages_stripes():
    flat, _ = fitted((), np.full((1, 31, 47), 51, np.uint8), size=16).apply(np.full((1, 31, 47), 51, np.uint8))
    assert np.allclose(flat, 0.2, rtol=0, atol=1e-6)
    stripes = np.zeros((1, 64, 64), np.uint8)
    stripes[:, :, ::2] = 200
    x, _ = fitted((), stripes, size=16).apply(stripes)  # without antialiasing: 0 or 200/255
    assert np.allclose(x[..., 2:-2], 100 / 255, rtol=0, atol=0.02)


def test_volumes_are_resized_linearly_along_each_axis():
    ramp = np.mgrid[0:20, 0:30, 0:40].astype(np.float32)
    x, _ = fitted((), ramp, size=10).apply(ramp)
    x = x * ramp.max()
    for axis, side in enumerate((20, 30, 40)):
        expected = (np.arange(10) + 0.5) * side / 10 - 0.5
        got = np.moveaxis(x[axis], axis, 0)
        assert np.allclose(got[2:-2], expected[2:-2, None, None], atol=1e-4)


def test_trilinear_enlargement_is_that_of_torch():
    volume = noise((2, 5, 6, 7), np.float32)
    x, _ = fitted((), volume, size=12).apply(volume)
    scaled = (volume - volume.min()) / (volume.max() - volume.min())
    expected = torch.nn.functional.interpolate(torch.from_numpy(scaled)[None], (12, 12, 12), mode="trilinear")[0]
    assert np.allclose(x, expected.numpy(), rtol=0, atol=1e-5)


def test_crop_and_pad_take_the_middle():
    image = np.arange(70, dtype=np.uint8).reshape(1, 7, 10)
    x, _ = fitted(("centre_crop:0.5",), image).apply(image)
    assert np.array_equal(np.rint(x * 255), image[:, 1:5, 2:7])
    x, _ = fitted(("pad:4",), image).apply(image)
    assert np.array_equal(np.rint(x * 255), np.pad(image, [(0, 0), (0, 1), (1, 1)], mode="reflect"))
    x, _ = fitted(("pad_to:9:zero",), image).apply(image)
    assert np.array_equal(np.rint(x * 255), np.pad(image, [(0, 0), (1, 1), (0, 0)]))
    assert fitted(("pad_to:32:edge",), image[:, :1]).apply(image[:, :1])[0].shape == (1, 32, 32)


def test_gcn_is_that_of_deep_svdd():
    train = [noise((3, 9, 11), seed=i) for i in range(4)]

    def global_contrast_normalisation(image):  # the authors' formula, scale "l1"
        x = image / 255.0
        x = x - x.mean()
        return x / np.abs(x).mean()

    normalised = [global_contrast_normalisation(image) for image in train]
    low, high = min(x.min() for x in normalised), max(x.max() for x in normalised)
    preprocess = fitted(("gcn",), *train)
    outputs = [preprocess.apply(image)[0] for image in train]
    for x, expected in zip(outputs, normalised):
        assert np.allclose(x, (expected - low) / (high - low), atol=1e-5)
    assert min(x.min() for x in outputs) == pytest.approx(0, abs=1e-6)
    assert max(x.max() for x in outputs) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("word", ["gcn", "zscore", "percentile", "histogram_equalisation", "clahe"])
@pytest.mark.parametrize("value", [0, 77, 255])
def test_constant_images_stay_finite_and_constant(word, value):
    constant = np.full((1, 12, 12), value, np.uint8)
    x, _ = fitted((word,), noise((1, 12, 12)), constant).apply(constant)
    assert len(np.unique(x)) == 1
    assert np.isfinite(x).all()


def test_gcn_of_16_bit_images_reads_in_two_passes():
    train = [noise((1, 6, 6), np.uint16, seed=i) for i in range(3)]
    reads = []
    Preprocess(("gcn",)).fit(lambda i: reads.append(i) or train[i], 3)
    assert reads == [0, 1, 2, 1, 2]


def test_window_is_in_the_units_of_the_file_and_needs_no_pass():
    image = np.array([[[-1000, 0, 20, 40, 80, 3000]]], np.int16)
    reads = []
    preprocess = Preprocess(("window:40:80",)).fit(lambda i: reads.append(i) or image, 5)
    x, geometry = preprocess.apply(image)
    assert reads == [0]
    assert x.flatten().tolist() == [0, 0, 0.25, 0.5, 1, 1]
    assert preprocess.invert_image(x, image, geometry).flatten().tolist() == [0, 0, 20, 40, 80, 80]


def test_zscore_of_the_image_and_of_its_foreground():
    image = noise((1, 20, 20), np.float32)
    x, _ = fitted(("zscore",), image).apply(image)
    assert float(x.mean()) == pytest.approx(0, abs=1e-5)
    assert float(x.std(ddof=0)) == pytest.approx(1, abs=1e-5)
    image[:, :10] = 0
    x, _ = fitted(("gcn", "zscore:nonzero"), image).apply(image)
    assert float(x[:, 10:].mean()) == pytest.approx(0, abs=1e-5)
    assert float(x[:, 10:].std(ddof=0)) == pytest.approx(1, abs=1e-5)
    x, _ = fitted(("zscore:nonzero",), np.zeros((1, 5, 5), np.uint8)).apply(np.zeros((1, 5, 5), np.uint8))
    assert not x.any()


def test_percentiles_become_0_and_1():
    image = np.arange(101, dtype=np.float32).reshape(1, 1, 101)
    x, _ = fitted(("percentile:10:60",), image).apply(image)
    assert np.allclose(x, np.clip((image - 10) / 50, 0, 1), atol=1e-6)


def test_histogram_equalisation_against_its_definition():
    image = (noise((1, 40, 50)).astype(float) ** 2 / 255).astype(np.uint8)
    counts = np.bincount(image.ravel(), minlength=256)
    cumulative = counts.cumsum() / image.size
    least = cumulative[image.min()]
    x, _ = fitted(("histogram_equalisation",), image).apply(image)
    assert np.allclose(x, ((cumulative - least) / (1 - least))[image], atol=1e-6)


def test_clahe_is_that_of_scikit_image_also_for_volumes_of_three_columns():
    image = noise((2, 80, 96))
    x, _ = fitted(("clahe:0.02",), image).apply(image)
    for got, channel in zip(x, image):
        assert np.allclose(got, exposure.equalize_adapthist(channel / 255, clip_limit=0.02), atol=1e-3)
    volume = noise((1, 16, 24, 3))
    x, _ = fitted(("clahe",), volume).apply(volume)
    turned = np.ascontiguousarray(volume.transpose(0, 3, 1, 2))
    y, _ = fitted(("clahe",), turned).apply(turned)
    assert np.allclose(x.transpose(0, 3, 1, 2), y, atol=1e-3)


@pytest.mark.parametrize("colours", [1, 3])
def test_drop_alpha_leaves_the_last_of_two_or_four_channels_out_and_puts_it_back(colours):
    image, plain = noise((colours + 1, 6, 8)), noise((colours, 6, 8))
    preprocess = fitted(("drop_alpha", "resize:16"), image)
    x, geometry = preprocess.apply(image)
    assert preprocess.constants.channels == colours
    assert np.allclose(x, fitted(("resize:16",), image[:colours]).apply(image[:colours])[0], atol=1e-6)
    restored = preprocess.invert_image(np.zeros_like(x), image, geometry)
    assert np.array_equal(restored[colours], image[colours])
    assert not restored[:colours].any()
    assert preprocess.apply(plain)[0].shape == (colours, 16, 16)
    late = fitted(("resize:16", "drop_alpha"), image)
    assert np.array_equal(
        late.invert_image(*late.apply(image)[:1], image, late.apply(image)[1])[colours], image[colours]
    )
    both = fitted(("drop_alpha", "grey"), image)
    assert both.apply(image)[0].shape == (1, 6, 8)
    assert np.array_equal(both.invert_image(both.apply(image)[0], image, both.apply(image)[1])[colours], image[colours])


def test_drop_alpha_refuses_what_has_no_alpha():
    with pytest.raises(DataError, match="1 to 4 channels for drop_alpha, got 5; leave it out"):
        fitted(("drop_alpha",), noise((5, 6, 8)))
    with pytest.raises(DataError, match="put drop_alpha before it"):
        fitted(("rgb",), noise((4, 6, 8)))


def test_grey_and_rgb_convert_what_they_are_asked_to_and_accept_both():
    colour, single = noise((3, 5, 6)), noise((1, 5, 6))
    preprocess = fitted(("grey",), colour)
    x, geometry = preprocess.apply(colour)
    expected = (0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]) / 255
    assert x.shape == (1, 5, 6)
    assert np.allclose(x[0], expected, atol=1e-6)
    assert preprocess.invert_image(x, colour, geometry).shape == (3, 5, 6)
    assert preprocess.apply(single)[0].shape == (1, 5, 6)
    preprocess = fitted(("rgb",), single)
    x, geometry = preprocess.apply(single)
    assert x.shape == (3, 5, 6)
    assert preprocess.constants.channels == 3
    assert np.array_equal(preprocess.invert_image(x, single, geometry), single)


def test_messages_quote_the_start_of_a_long_step():
    for text in ("resize:" + "9" * 5000, "x" * 5000):
        with pytest.raises(SettingsError) as caught:
            read_step(text, STEPS, "preprocess")
        assert len(str(caught.value)) < 1000
