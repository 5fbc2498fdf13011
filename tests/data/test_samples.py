"""Data sets of other libraries: torch, MONAI's dictionaries (as it makes them; MONAI itself is not needed), Hugging Face."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from normalcy import DataError, Detector, open_data, open_samples
from normalcy.data.open import as_dataset


def images(n: int, seed: int = 0, side: int = 16) -> np.ndarray:
    """(N, H, W) uint8, the last tenth with a bright square."""
    x = (100 + 20 * np.random.default_rng(seed).random((n, side, side))).astype(np.uint8)
    x[n - n // 10 :, 4:9, 4:9] = 255
    return x


def labels(n: int) -> np.ndarray:
    return (np.arange(n) >= n - n // 10).astype(int)


class Pairs(TorchDataset):
    """As torchvision's: (image, label)."""

    def __init__(self, x: Any, y: Any = None) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.x[i] if self.y is None else (self.x[i], self.y[i])


class Stream(IterableDataset):
    def __init__(self, source: Any) -> None:
        self.source, self.passes = source, 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        return (self.source[i] for i in range(len(self.source)))


class MetaTensor(torch.Tensor):
    """As MONAI's: a tensor of a class of its own with facts beside it, channels first."""

    @staticmethod
    def of(values: np.ndarray) -> "MetaTensor":
        tensor = torch.from_numpy(values).as_subclass(MetaTensor)
        tensor.meta = {"filename_or_obj": "scan.nii.gz"}
        return tensor


# -- torch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["arrays", "tensors", "pillow", "floats"])
def test_a_torch_data_set_is_what_its_arrays_are(kind: str):
    x, y = images(60), labels(60)
    plain = as_dataset(x, labels=y)
    made = {
        "arrays": x,
        "tensors": torch.from_numpy(x)[:, None],
        "pillow": [Image.fromarray(one) for one in x],
        "floats": torch.from_numpy(x)[:, None] / 255,  # torchvision's ToTensor
    }[kind]
    data = open_samples(Pairs(made, torch.from_numpy(y)))
    np.testing.assert_array_equal(data.labels, plain.labels)
    assert data.read(59).dtype == (np.float32 if kind == "floats" else np.uint8)
    factor = 255 if kind == "floats" else 1
    np.testing.assert_allclose(factor * data.read(59).astype(float), plain.read(59), atol=1e-4)
    detector, expected = Detector("pca").fit(data), Detector("pca").fit(plain)
    assert detector.facts["data"]["count"] == expected.facts["data"]["count"]
    scores = detector.score(data).scores
    assert scores[y == 1].min() > scores[y == 0].max()
    if kind != "floats":  # whose range is that of the training images
        np.testing.assert_allclose(scores, expected.score(plain).scores, rtol=1e-5)


def test_fit_and_score_take_data_sets_directly():
    x = images(60)[:54]
    detector = Detector("pca").fit(Pairs(x))
    np.testing.assert_array_equal(detector.score(Pairs(x)).scores, Detector("pca").fit(x).score(x).scores)
    assert len(detector.score([(one, 0) for one in x[:3]])) == 3
    assert len(open_data(TensorDataset(torch.from_numpy(x)[:, None], torch.zeros(54)))) == 54


def test_colours_of_pillow_images():
    rgb = Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3))
    sixteen = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)
    data = open_samples([rgb, rgb.convert("P"), rgb.convert("1"), sixteen, rgb.convert("RGBA")])
    assert [data.read(i).shape[0] for i in range(5)] == [3, 3, 1, 1, 4]
    assert data.read(3).dtype == np.uint16
    assert data.read(3).max() == 63000
    assert set(np.unique(data.read(2))) <= {0, 255}


def test_iterables_are_read_once_into_a_file():
    x, y = images(60), labels(60)
    stream = Stream([{"image": one, "label": int(k), "mask": one == 255} for one, k in zip(x, y)])
    data = open_samples(stream)
    scores = Detector("pca").fit(data).score(data).scores
    assert stream.passes == 1
    np.testing.assert_array_equal(scores, Detector("pca").fit(as_dataset(x, labels=y)).score(x).scores)
    assert data.mask(59).sum() == 25
    assert not data.mask(0).any()
    assert len(as_dataset(Pairs(x)[i] for i in range(5))) == 5  # a generator


def test_memory_is_that_of_one_sample():
    sample = np.zeros((500, 500), np.uint8)
    tracemalloc.start()
    data = as_dataset(sample + np.uint8(k) for k in range(100))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * sample.nbytes
    assert data.read(99)[0, 0, 0] == 99


# -- labels ----------------------------------------------------------------------------------------------------------


def test_which_labels_are_normal_is_said_or_asked():
    x = images(30)
    classes = Pairs(x, np.arange(30) % 3)
    with pytest.raises(DataError, match=r"got 0, 1, 2: say which are normal, open_samples\(data, normal=LABEL\)"):
        as_dataset(classes)
    one, two = open_samples(classes, normal=2), open_samples(classes, normal=[0, 1])
    np.testing.assert_array_equal(one.labels, np.arange(30) % 3 != 2)
    np.testing.assert_array_equal(two.labels, np.arange(30) % 3 == 2)
    assert one.items[0].type == "0"
    with pytest.raises(DataError, match="normal=7 is not among its labels: 0, 1, 2"):
        open_samples(classes, normal=7)
    classes.classes = ["bad", "good", "odd"]  # torchvision's ImageFolder: in the order of the alphabet
    with pytest.raises(DataError, match=r"classes are bad, good, odd, and which of them is normal is not known"):
        as_dataset(classes)
    named = open_samples(classes, normal="good")
    np.testing.assert_array_equal(named.labels, np.arange(30) % 3 != 1)
    assert [item.type for item in named.items[:3]] == ["bad", "good", "odd"]
    assert (open_samples(classes, labelled=False).labels == -1).all()
    assert as_dataset(classes, labels=[0] * 30).labels.tolist() == [0] * 30


def test_missing_labels_are_unknown_and_vectors_are_refused():
    assert open_samples([(images(1)[0], None), (images(1)[0], True)]).labels.tolist() == [-1, 1]
    with pytest.raises(DataError, match=r"sample 0: expected a label or case that is one number"):
        open_samples([(images(1)[0], [0, 1])])


# -- dictionaries ----------------------------------------------------------------------------------------------------


def test_dictionaries_as_monai_makes_them(tmp_path: Path):
    x = np.random.default_rng(0).random((40, 2, 12, 10, 8)).astype(np.float32)  # volumes of two channels
    masks = np.zeros((40, 1, 12, 10, 8), np.float32)
    masks[35:, :, 2:5, 2:5, 2:5] = 1
    samples = [
        {"image": MetaTensor.of(image), "label": MetaTensor.of(mask), "case": f"patient {i // 2}"}
        for i, (image, mask) in enumerate(zip(x, masks))
    ]
    data = as_dataset(samples)
    assert data.read(3).shape == (2, 12, 10, 8)
    assert data.labels.tolist() == [0] * 35 + [1] * 5  # a label with axes is a mask
    assert data.mask(39).sum() == 27
    assert data.mask(0).shape == (12, 10, 8)
    assert data.items[3].case == "patient 1"
    detector = Detector("zscore").fit(data)
    assert detector.score(data.subset([0, 39]))[1].map.shape == (12, 10, 8)
    paths = []
    for i in range(2):
        Image.fromarray(images(2)[i]).save(tmp_path / f"{i}.png")
        paths.append({"image": str(tmp_path / f"{i}.png"), "label": i})  # before they are loaded
    assert open_samples(paths).read(1).shape == (1, 16, 16)


def test_other_keys_and_axes():
    samples = [{"pixels": np.zeros((3, 16, 16)), "target": 1, "segmentation": np.ones((1, 16, 16))}]
    data = open_samples(samples, image="pixels", label="target", mask="segmentation", channel_axis=0)
    assert data.read(0).shape == (3, 16, 16)
    assert data.mask(0).all()
    with pytest.raises(DataError, match=r"expected the key 'image', got pixels, target, segmentation"):
        open_samples(samples)


# -- Hugging Face ----------------------------------------------------------------------------------------------------


def test_hugging_face_data_sets():
    import datasets

    x, y = images(60), labels(60)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ok", "scratch"])})
    rows = {"image": [Image.fromarray(one) for one in x], "label": y.tolist()}
    made = datasets.Dataset.from_dict(rows, features=features)
    with pytest.raises(DataError, match=r"classes are ok, scratch, and which of them is normal.*normal='ok'"):
        Detector("pca").fit(made)
    data = open_samples(made, normal="ok")
    assert data.labels.tolist() == y.tolist()
    assert data.items[59].type == "scratch"
    np.testing.assert_array_equal(data.read(59)[0], x[59])
    plain = Detector("pca").fit(as_dataset(x, labels=y)).score(x).scores
    np.testing.assert_allclose(Detector("pca").fit(data).score(data).scores, plain, rtol=1e-5)
    tensors = open_samples(made.with_format("torch"), normal=0)
    np.testing.assert_array_equal(tensors.read(59)[0], x[59])
    streamed = open_samples(made.to_iterable_dataset(), normal="ok")
    np.testing.assert_array_equal(streamed.read(59)[0], x[59])
    with pytest.raises(
        DataError, match=r"got a DatasetDict with the keys train: give one of its values, such as data\['train'\]"
    ):
        as_dataset(datasets.DatasetDict({"train": made}))


# -- errors ----------------------------------------------------------------------------------------------------------


def test_samples_that_cannot_be_read_are_listed():
    class Broken(Pairs):
        def __getitem__(self, i: int) -> Any:
            if i == 7:
                raise OSError("disk gone")
            return super().__getitem__(i)

    broken = Broken(images(60)[:54])
    detector = Detector("pca").fit(broken)
    assert detector.facts["data"]["failed"] == [
        ["Broken/00007", "Broken: sample 7 cannot be read (OSError: disk gone)."]
    ]
    [failure] = detector.score(broken).failed
    assert failure.path == "Broken/00007"
    one_bad = as_dataset(sample for sample in [images(1)[0], np.zeros(3), images(1)[0]])
    [failure] = detector.score(one_bad).failed
    assert "sample 1: expected an image (H, W)" in failure.reason


def test_what_is_no_data_set_of_images():
    x = torch.from_numpy(images(8))[:, None]
    with pytest.raises(DataError, match=r"got a DataLoader: give its data set \(loader.dataset\)"):
        Detector("pca").fit(DataLoader(TensorDataset(x), batch_size=4))
    with pytest.raises(DataError, match="expected at least one sample, got none"):
        as_dataset(Pairs([]))
    with pytest.raises(DataError, match=r"none that can be read: Pairs: sample 0: expected an image"):
        as_dataset(Pairs(["a.b", 3][1:]))
    with pytest.raises(DataError, match=r"sample 0: expected a mask of the image's size \(8, 8\), got \(4, 4\)"):
        as_dataset([(np.zeros((8, 8)), 0, np.zeros((4, 4)))])
    with pytest.raises(DataError, match="channels first"):
        as_dataset([(torch.zeros(16, 16, 3), 0)])
    with pytest.raises(DataError, match="channel_axis must be"):
        open_samples([(np.zeros((8, 8)), 0)], channel_axis=1)
    with pytest.raises(DataError, match=r"expected \(image, label\[, mask\]\), got 4 values"):
        as_dataset([(np.zeros((8, 8)), 0, None, 3)])
