"""Which images a fit uses: the majority of all decides, nothing is skipped without a word, and check says it before."""

from pathlib import Path

import numpy as np
import pytest

from normalcy import DataError, DataSet, Detector, Item, load
from normalcy.data.open import as_dataset
from normalcy.data.volumes import Space
from normalcy.detector import outlook
from normalcy.errors import NormalcyWarning
from normalcy.preprocessing.plan import survey

pytestmark = pytest.mark.filterwarnings("ignore::normalcy.errors.NormalcyWarning")


def texture(seed: int, channels: int = 1, side: int = 16, dtype: type = np.uint8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (100 + 40 * rng.random((channels, side, side))).astype(dtype)


def made(images: list[np.ndarray | None], cases: list[str] | None = None, spaces: list[Space] | None = None) -> DataSet:
    """None cannot be read."""
    reads: list[int] = []

    def read(i: int) -> np.ndarray:
        reads.append(i)
        image = images[i]
        if image is None:
            raise DataError(f"{i:03d}.png: is cut off")
        return image

    items = [Item(f"{i:03d}.png", cases[i] if cases else f"{i}") for i in range(len(images))]
    data = DataSet("made", items, read, space=None if spaces is None else lambda i: spaces[i])
    data.reads = reads  # type: ignore[attr-defined]
    return data


def skipped(detector: Detector) -> list[str]:
    return [path for path, _ in detector.facts["data"]["failed"]]


@pytest.mark.parametrize(
    "odd", [texture(1), texture(1, 3, dtype=np.uint16), np.ones((3, 4, 16, 16), np.uint8), None], ids=str
)
def test_the_majority_decides_and_not_the_first(odd: np.ndarray | None) -> None:
    data = made([odd] * 5 + [texture(i, 3) for i in range(55)])
    detector = Detector("pca").fit(data)
    assert detector.method is not None
    assert detector.method.shape == (3, 16, 16)
    assert skipped(detector) == [f"{i:03d}.png" for i in range(5)]
    assert detector.facts["data"]["count"] == 35
    assert detector.facts["data"]["held_out"] == 20
    assert detector.calibration is not None
    assert detector.calibration.count == 20
    found = outlook(data, survey(data)[0])
    assert (found.train, found.held_out, found.shape) == (35, 20, (3, 16, 16))
    assert [one.path for one in found.skipped] == skipped(detector)


def test_a_fit_that_skips_many_fails_unless_told_otherwise() -> None:
    data = made([texture(i) for i in range(7)] + [texture(i, 3) for i in range(53)])
    with pytest.raises(
        DataError, match=r"7 of 60 training images cannot be used, more than the fraction max_skipped=0\.1"
    ) as info:
        Detector("pca").fit(data)
    assert all(f"{i:03d}.png: 8-bit images (1, H, W), while 53 of 60" in str(info.value) for i in range(7))
    assert "allow it with max_skipped=0.12" in str(info.value)
    with pytest.raises(DataError, match="7 of 60"):
        outlook(data, survey(data)[0])
    assert skipped(Detector("pca", max_skipped=0.12).fit(data)) == [f"{i:03d}.png" for i in range(7)]
    grey = Detector("pca", preprocess=("grey",)).fit(data)
    assert skipped(grey) == []


def test_every_damaged_image_is_listed_wherever_it_would_have_been() -> None:
    data = made([None if i % 3 == 0 else texture(i) for i in range(60)])
    with pytest.raises(DataError, match="20 of 60 training images cannot be used"):
        Detector("pca").fit(data)
    detector = Detector("pca", max_skipped=0.5).fit(data)
    assert len(skipped(detector)) == 20
    assert detector.facts["data"]["count"] == detector.facts["data"]["held_out"] == 20
    assert detector.no_flags() is None


def test_images_are_read_once_where_they_fit_into_memory() -> None:
    data = made([texture(i, dtype=np.uint16) for i in range(60)])
    Detector("pca", calibration=0).fit(data)
    assert max(data.reads.count(i) for i in range(60)) <= 2  # type: ignore[attr-defined] # the fingerprint reads 32 of them


# -- size


def test_one_image_of_another_size_decides_nothing() -> None:
    data = made([texture(0, side=20)] + [texture(i) for i in range(300)])
    detector = Detector("pca").fit(data)
    assert detector.method is not None
    assert detector.method.shape == (1, 16, 16)
    ((path, reason),) = detector.facts["data"]["failed"]
    assert path == "000.png"
    assert reason == "20 x 20, while 300 of 301 images are 16 x 16; size=N resizes all images"
    assert skipped(Detector("pca", size=16).fit(data)) == []


def test_images_of_many_sizes_are_resized() -> None:
    data = made([texture(i, side=(16, 18, 20)[i % 3]) for i in range(45)])
    detector = Detector("zscore", calibration=0).fit(data)
    assert detector.method is not None
    assert detector.method.shape == (1, 256, 256)
    assert skipped(detector) == []
    assert outlook(data, survey(data)[0], Detector("zscore", calibration=0)).shape == (1, 256, 256)


def test_a_second_fit_chooses_again() -> None:
    detector = Detector("zscore", calibration=0).fit(made([texture(i, side=(16, 20)[i % 2]) for i in range(10)]))
    assert detector.preprocess.size == 256
    detector.fit(made([texture(i) for i in range(10)]))
    assert detector.method is not None
    assert detector.method.shape == (1, 16, 16)
    assert detector.preprocess.size is None


# -- values


def test_whole_numbers_of_all_types_go_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(-1000, 3000, (1, 16, 16)).astype((np.int16, np.int32, np.float32)[i % 3]) for i in range(60)]
    detector = Detector("zscore").fit(made([*images]))
    assert skipped(detector) == []
    low = min(float(image.min()) for image in images)
    assert low <= detector.preprocess.constants.low < low + 20  # of the images that are trained on
    detector.save(tmp_path / "m")
    scores = [
        load(tmp_path / "m").score(made([images[0].astype(t)])).scores[0] for t in (np.int16, np.float32, np.float64)
    ]
    assert scores[0] == scores[1] == pytest.approx(scores[2], rel=1e-6)
    with pytest.raises(DataError, match="expects integer images"):
        detector.score(made([images[0] / np.float32(3000)]))


def test_scaled_images_and_integers_do_not_go_together() -> None:
    scaled = [texture(i, dtype=np.float32) / np.float32(255) for i in range(40)]
    detector = Detector("zscore", calibration=0).fit(made([texture(0, dtype=np.uint16), *scaled]))
    assert skipped(detector) == ["000.png"]
    with pytest.raises(DataError, match="expects float images"):
        detector.score(made([texture(0, dtype=np.uint16)]))


def test_modalities_and_units_are_not_mixed() -> None:
    images = [texture(i, dtype=np.int16) for i in range(25)]
    spaces = [Space((16, 16, 1), np.eye(4), modality="CT", unit="HU") for _ in range(24)]
    spaces.insert(0, Space((16, 16, 1), np.eye(4), modality="RTDOSE", unit="GY"))
    with pytest.raises(DataError, match=r"24 of CT in HU \(001\.png.*1 of RTDOSE in GY \(000\.png\)"):
        Detector("zscore", calibration=0).fit(made([*images], spaces=spaces))


# -- calibration


def test_a_set_of_one_case_is_refused_before_training(tmp_path: Path) -> None:
    data = made([texture(i) for i in range(30)], cases=["patient 1"] * 30)
    with pytest.raises(DataError, match=r"all of one case \(patient 1\).*column case.*calibration=0"):
        Detector("pca").fit(data, run_dir=tmp_path / "m.run")
    assert not (tmp_path / "m.run").exists()
    assert Detector("pca", calibration=0).fit(data).facts["data"]["count"] == 30


def test_it_is_said_when_nothing_can_be_flagged() -> None:
    with pytest.warns(
        NormalcyWarning, match="with 15 held-out images at false-alarm rate 0.05: at least 19 are needed"
    ):
        detector = Detector("pca").fit(made([texture(i) for i in range(30)]))
    assert "no image can be flagged with 15 held-out images" in detector.card()
    assert "a score above" not in detector.card()
    assert Detector("pca", false_alarms=0.1).fit(made([texture(i) for i in range(30)])).no_flags() is None


def test_held_out_images_that_cannot_be_scored_are_listed() -> None:
    images = [texture(i) for i in range(60)]
    detector = Detector("pca").fit(made([*images]))
    failed = detector.calibrate(made([texture(90), None, texture(91), texture(92, 3)]))
    assert [one.path for one in failed] == ["001.png", "003.png"]
    assert detector.calibration is not None
    assert detector.calibration.count == 2
    with pytest.raises(DataError, match="None of the 1 images held out"):
        detector.calibrate(made([None]))


# -- arrays


def test_shapes_of_arrays_that_look_like_something_else_are_refused() -> None:
    import torch

    with pytest.raises(DataError, match="single image"):
        as_dataset(np.zeros((64, 48, 1), np.uint8))
    for channels in (1, 3, 4):
        with pytest.raises(DataError, match=r"channels last.*permute\(0, 3, 1, 2\)"):
            as_dataset(torch.zeros(5, 32, 48, channels))
    assert len(as_dataset(torch.zeros(5, 3, 32, 4))) == 5
    assert len(as_dataset(np.zeros((64, 48, 48), np.uint8))) == 64


def test_padding_has_no_part_in_statistics_of_the_body() -> None:
    rng = np.random.default_rng(0)
    images, spaces = [], []
    for i in range(30):
        image = rng.normal(-1000, 20, (1, 8, 16, 16)).astype(np.int16)
        image[0, 2:6, 4:12, 4:12] = rng.normal(40, 20, (4, 8, 8))
        image[0, :, :, :4] = -3000 + 10 * i  # another value in each file
        images.append(image)
        spaces.append(Space((16, 16, 8), np.eye(4), padding=(-3000 + 10 * i,) * 2))
    data = made([*images], spaces=spaces)
    detector = Detector("zscore", calibration=0, preprocess=("zscore:body",)).fit(data)
    plain = detector.score(made([image.clip(-1200) for image in images], spaces=[Space((16, 16, 8), np.eye(4))] * 30))
    padded = detector.score(data)
    for image, with_mask, without in zip(images, padded, plain):
        assert with_mask.map is not None
        assert without.map is not None
        seen = image[0] > -1200
        np.testing.assert_allclose(with_mask.map[seen], without.map[seen], atol=1e-4)
