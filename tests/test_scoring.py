"""The pipeline of scoring: order, failures, what it changes (nothing), and that it keeps few images."""

from __future__ import annotations

import threading
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from normalcy import DataError, DataSet, Detector, Failure, Item, NormalcyError, Result, scoring
from normalcy.arrays import Array
from normalcy.calibrate import Decision
from normalcy.data.open import as_dataset, open_data
from normalcy.data.splits import images_to_score
from normalcy.preprocessing.views import ViewSettings
from normalcy.scoring import Pipeline, Results, stream
from normalcy.testing import smooth_textures

IMAGES = (255 * smooth_textures(60, (1, 16, 16), seed=0)[:, 0].numpy()).astype(np.uint8)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector("pca", components=4).fit(IMAGES)


@pytest.fixture(scope="module")
def pipeline(detector: Detector) -> Pipeline:
    """The parts of the detector, without calibration and decision."""
    assert detector.method is not None
    return Pipeline(detector.method, detector.preprocess, ViewSettings())


def reading(count: int, read: object) -> DataSet:
    return DataSet("some", [Item(f"{i}.png", f"{i}.png") for i in range(count)], read)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [1, 7, 32, 100])
def test_one_result_or_failure_per_image_in_order(pipeline: Pipeline, batch_size: int) -> None:
    def read(i: int) -> Array:
        if i % 10 == 3:
            raise DataError(f"{i}.png is damaged.")
        return IMAGES[i % 60][None] if i != 5 else np.zeros((1, 8, 8), np.uint8)

    found = list(stream(pipeline, reading(45, read), batch_size))
    assert [r.path for r in found] == [f"{i}.png" for i in range(45)]
    failures = {int(r.path[:-4]): r.reason for r in found if isinstance(r, Failure)}
    assert set(failures) == {3, 5, 13, 23, 33, 43}
    assert failures[13] == "13.png is damaged."
    assert "pca expects images (1, 16, 16)" in failures[5]
    expected = {r.path: r.score for r in stream(pipeline, reading(45, read), 16) if isinstance(r, Result)}
    np.testing.assert_allclose([r.score for r in found if isinstance(r, Result)], list(expected.values()), rtol=1e-5)


def test_without_calibration_and_decision_scores_alone(pipeline: Pipeline, detector: Detector) -> None:
    data = as_dataset(IMAGES[:3])
    for r in stream(pipeline, data):
        assert isinstance(r, Result)
        assert (r.p_value, r.flagged) == (None, None)
    decided = replace(pipeline, calibration=detector.calibration, decision=Decision("some", -1.0))
    for r in stream(decided, data):
        assert isinstance(r, Result)
        assert r.flagged is True
        assert r.p_value is not None


def test_parts_and_failures_are_frozen(pipeline: Pipeline) -> None:
    with pytest.raises(FrozenInstanceError):
        pipeline.view_score = "mean"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        Failure("a", "b").path = "c"  # type: ignore[misc]


@pytest.mark.parametrize(("how", "expected"), [("max", np.max), ("mean", np.mean), (0.5, lambda x: np.quantile(x, 0.5, method="higher"))])  # fmt: skip # noqa: E501
def test_score_of_an_image_from_its_tiles(pipeline: Pipeline, how: str | float, expected: object) -> None:
    tiled = replace(pipeline, preprocess=replace(pipeline.preprocess, size=None), views=ViewSettings(tile=(16, 16)))
    wide = np.concatenate([IMAGES[0], IMAGES[1], IMAGES[2]], axis=1)
    [whole] = stream(replace(tiled, view_score=how), as_dataset([wide]))
    parts = [r.score for r in stream(pipeline, as_dataset(IMAGES[:3])) if isinstance(r, Result)]
    assert isinstance(whole, Result)
    assert whole.score == pytest.approx(expected(parts), rel=1e-5)  # type: ignore[operator]
    assert whole.map is not None
    assert whole.map.shape == (16, 48)


def test_few_images_are_kept_however_many_there_are(pipeline: Pipeline) -> None:
    """Two groups read ahead, one with the method, one behind: whoever takes results slowly does not make it pile up."""
    lock, begun = threading.Lock(), 0

    def read(i: int) -> Array:
        nonlocal begun
        with lock:
            begun += 1
        return IMAGES[i % 60][None]

    most = 0
    for taken, _ in enumerate(stream(pipeline, reading(400, read), 8), start=1):
        most = max(most, begun - taken)
    assert begun == 400
    assert most <= 5 * 8


def test_an_early_stop_ends_all_threads(pipeline: Pipeline) -> None:
    before = threading.active_count()
    results = stream(pipeline, as_dataset(IMAGES), 8)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_scoring_changes_nothing(detector: Detector) -> None:
    method = detector.method
    assert method is not None
    before = {name: value.clone() for name, value in method.state_dict().items()}
    first, second = detector.score(IMAGES[:5]), detector.score(IMAGES[:5])
    assert (first.scores == second.scores).all()
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_a_score_that_is_not_finite_stops(pipeline: Pipeline) -> None:
    method = pipeline.method
    scores = method.score(torch.zeros(1, 1, 16, 16))

    class Broken(type(method)):  # type: ignore[misc]
        def score(self, x: torch.Tensor) -> object:
            return replace(scores, image=torch.full((len(x),), float("nan")), map=None, restored=None)

    broken = object.__new__(Broken)
    broken.__dict__ = dict(method.__dict__)
    with pytest.raises(NormalcyError, match=r"not finite for images/00000"):
        list(stream(replace(pipeline, method=broken), as_dataset(IMAGES[:2])))


def test_results_are_a_sequence_with_columns(detector: Detector) -> None:
    results = detector.score(IMAGES[:4])
    assert isinstance(results[1:3], Results)
    assert len(results[1:3]) == 2
    assert results.scores.shape == results.p_values.shape == results.flagged.shape == (4,)
    assert [m.shape for m in results.maps if m is not None] == [(16, 16)] * 4
    assert results.failed == []


def noise(seed: int, side: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(90, 140, (1, side, side), dtype=np.uint8)


@pytest.fixture(scope="module")
def small_detector() -> Detector:
    items = [Item(f"{i}", f"{i}") for i in range(60)]
    return Detector("zscore", size=16).fit(DataSet("normal", items, noise))


@pytest.mark.parametrize(("side", "at_once"), [(16, 3 * 32), (64, 3 * 8), (256, 3)])
def test_images_are_read_ahead_by_pixels(
    small_detector: Detector, monkeypatch: pytest.MonkeyPatch, side: int, at_once: int
) -> None:
    """Three groups are held: of 32 images where they are small, of as many as have 32,768 pixels where they are not."""
    monkeypatch.setattr(scoring, "IN_GROUP", 2**14)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    read: list[int] = []
    largest = 0

    def image(i: int) -> np.ndarray:
        read.append(i)
        return noise(i, side)

    data = DataSet("new", [Item(f"{i}", f"{i}") for i in range(200)], image, size=lambda i: (side, side))
    scores = []
    for result in small_detector.stream(data):
        largest = max(largest, len(read) - len(scores))
        assert isinstance(result, scoring.Result)
        scores.append(result.score)
    assert len(scores) == 200
    assert at_once / 3 <= largest <= at_once + at_once // 3
    alone = [
        small_detector.score(DataSet("one", [Item("x", "x")], lambda _, i=i: noise(i, side))).scores[0]
        for i in (0, 77, 199)
    ]
    np.testing.assert_allclose([scores[i] for i in (0, 77, 199)], alone, rtol=1e-6)


def test_a_table_without_splits_is_scored_whole(tmp_path: Path) -> None:
    for i in range(26):
        Image.fromarray(noise(i)[0]).save(tmp_path / f"{i:02d}.png")
    table = tmp_path / "t.csv"

    def chosen(labels: list[str], split: str | None) -> tuple[int, str | None]:
        table.write_text("path,label\n" + "".join(f"{i:02d}.png,{label}\n" for i, label in enumerate(labels)))
        data, split = images_to_score(open_data(table), split)
        return len(data), split

    for labels in (["0"] * 20 + ["1"] * 6, ["1"] * 26, ["0"] * 10 + ["1"] * 6 + [""] * 10):
        assert chosen(labels, None) == chosen(labels, "all") == (26, None)
    assert chosen(["0"] * 20 + ["1"] * 6, "test") == (10, "test")  # those that a fit on this table does not learn from
    with pytest.raises(DataError, match="label for every image"):
        chosen(["0"] * 10 + ["1"] * 6 + [""] * 10, "test")


def test_a_method_that_fails_or_gives_other_shapes_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = Detector("zscore", calibration=0).fit(
        np.zeros((8, 8, 8), np.uint8) + np.arange(8, dtype=np.uint8)[:, None, None]
    )
    method = detector.method
    assert method is not None
    image = np.zeros((1, 8, 8), np.uint8)
    monkeypatch.setattr(method, "score_arrays", lambda x: np.zeros((2, 3)) @ np.zeros((2, 3)))
    with pytest.raises(NormalcyError, match=r"zscore cannot score \(ValueError: .*its model is damaged"):
        detector.score(image)
    monkeypatch.setattr(method, "score_arrays", lambda x: {"score": np.zeros((0,), np.float32)})
    with pytest.raises(NormalcyError, match=r"zscore gave scores of shape \(0,\) for 1 images"):
        detector.score(image)
    broken = {"score": np.zeros(1, np.float32), "map": np.full((1, 8, 8), np.nan, np.float32)}
    monkeypatch.setattr(method, "score_arrays", lambda x: broken)
    with pytest.raises(NormalcyError, match="zscore gave a map that is not finite"):
        detector.score(image)
