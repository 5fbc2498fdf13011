"""The pipeline: scale of values, size, refusals, restored images, JSON."""

import json
import pickle

import numpy as np
import pytest
from example_images import fitted, noise

from normalcy.errors import DataError, ModelFileError, SettingsError
from normalcy.preprocessing.pipeline import Preprocess
from normalcy.settings import InputSettings

# --- scale of values


def test_uint8_is_scaled_exactly_without_reading_all_images():
    image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    reads = []
    preprocess = Preprocess().fit(lambda i: reads.append(i) or image, 1000)
    x, _ = preprocess.apply(image)
    assert reads == [0]
    assert x.dtype == np.float32
    assert np.array_equal(x.ravel(), np.arange(256, dtype=np.float32) / np.float32(255))


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32, np.float64, ">u2"])
def test_other_types_use_the_range_of_the_training_data_and_do_not_clip(dtype):
    train = [np.full((1, 4, 4), value, dtype) for value in (1000, 3000)]
    preprocess = fitted((), *train)
    assert (preprocess.fitted.low, preprocess.fitted.high) == (1000, 3000)
    x, _ = preprocess.apply(np.array([[[500, 2000, 5000]]], dtype))
    assert x.flatten().tolist() == [-0.25, 0.5, 2.0]


def test_bool_images_and_constant_training_data():
    assert fitted((), np.eye(3, dtype=bool)[None]).apply(np.eye(3, dtype=bool)[None])[0].sum() == 3
    assert np.unique(fitted((), np.full((1, 3, 3), 7.0)).apply(np.full((1, 3, 3), 9.0))[0]).tolist() == [2.0]


def test_apply_neither_changes_nor_aliases_its_input():
    image = noise((1, 8, 8), np.float32)
    image = (image - image.min()) / (image.max() - image.min())
    before = image.copy()
    image.flags.writeable = False
    x, _ = fitted(("zscore",), image).apply(image)
    x += 1
    assert np.array_equal(image, before)


# --- size and order


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


def test_size_must_be_a_positive_whole_number():
    with pytest.raises(SettingsError, match="size expects resize:SIDE"):
        Preprocess(size=0)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["gcn", "gcn"], "preprocess expects gcn once, got it 2 times"),
        (["gcn", "window:0:1"], "preprocess expects window, which is in the units of the file, before gcn"),
    ],
)
def test_impossible_orders_are_refused(steps, message):
    with pytest.raises(SettingsError) as error:
        Preprocess(tuple(steps))
    assert message in str(error.value)


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


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("words", [(), ("gcn",), ("zscore",), ("zscore:nonzero",), ("pad:16", "gcn", "centre_crop:0.6"),
                                   ("percentile:0:100",)])  # fmt: skip
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
    back = preprocess.invert_image(np.full((1, 24, 24), 1.7), image, geometry)
    expected = image.copy()
    expected[:, 10:30, 15:45] = 255
    assert np.array_equal(back, expected)
    with pytest.raises(DataError, match=r"restored image \(1, 24, 24\)"):
        preprocess.invert_image(np.zeros((1, 40, 60)), image, geometry)


# --- saved


@pytest.mark.parametrize("words", [(), ("gcn",), ("window:40:80", "pad:32:zero")])
def test_json_and_pickle_round_trips_are_exact(words):
    image = noise((1, 21, 17), np.float32) / 3
    preprocess = fitted(words, image, size=16)
    again = Preprocess.from_json(json.loads(json.dumps(preprocess.to_json())))
    assert again == preprocess
    assert again.plan == preprocess.plan
    x, geometry = preprocess.apply(image)
    assert np.array_equal(again.apply(image)[0], x)
    assert pickle.loads(pickle.dumps((preprocess, geometry))) == (preprocess, geometry)
    assert Preprocess.from_json(Preprocess(words).to_json()) == Preprocess(words)


def test_json_of_an_earlier_version_is_converted():
    """Its steps separated arguments by commas."""
    old = {
        "steps": ["window:40,80", "pad:32,zero", "percentile:1,99,body", "centre_crop:0.75"],
        "size": 64,
        "fitted": {"values": "integer", "channels": 1, "spatial_dims": 2, "low": 0.0, "high": 80.0, "gcn": None},
    }
    loaded = Preprocess.from_json(json.loads(json.dumps(old)))
    assert loaded.steps == ("window:40:80", "pad:32:zero", "percentile:1:99:body", "centre_crop:0.75")
    assert loaded == Preprocess(loaded.steps, 64, loaded.fitted)
    settings = InputSettings.from_json({"size": 64, "preprocess": old["steps"], "augment": ["crop,48", "flip"]})
    assert settings == InputSettings(64, preprocess=loaded.steps, augment=("crop:48", "flip"))


@pytest.mark.parametrize(
    "data", [{}, {"steps": ["blur"], "size": None, "fitted": None}, {"steps": [], "size": None, "fitted": {"low": 0}}]
)
def test_damaged_json_is_refused(data):
    with pytest.raises(ModelFileError, match="damaged"):
        Preprocess.from_json(data)


def test_a_size_that_asks_for_gigabytes_is_refused_before_memory_is_taken() -> None:
    image = np.zeros((1, 16, 16), np.uint8)
    for steps in (("resize:60000",), ("resize:128", "pad:60000")):
        words = {**fitted((), image).to_json(), "steps": list(steps)}
        with pytest.raises(DataError, match="pixels of an image"):
            Preprocess.from_json(words).apply(image)


def test_values_of_an_unknown_kind_are_refused() -> None:
    words = fitted((), noise((1, 16, 16))).to_json()
    words["fitted"]["values"] = "a\nb"
    with pytest.raises(ModelFileError, match="unknown type"):
        Preprocess.from_json(words)
