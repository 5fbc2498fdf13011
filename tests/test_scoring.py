"""Scoring holds a bounded number of pixels at a time, and scores what it is given."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from normalcy import DataSet, Detector, Item, scoring
from normalcy.data.open import open_data
from normalcy.data.splits import images_to_score
from normalcy.errors import DataError


def noise(seed: int, side: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(90, 140, (1, side, side), dtype=np.uint8)


@pytest.fixture(scope="module")
def detector() -> Detector:
    items = [Item(f"{i}", f"{i}") for i in range(60)]
    return Detector("zscore", size=16).fit(DataSet("normal", items, noise))


@pytest.mark.parametrize(("side", "at_once"), [(16, 3 * 32), (64, 3 * 8), (256, 3)])
def test_images_are_read_ahead_by_pixels(
    detector: Detector, monkeypatch: pytest.MonkeyPatch, side: int, at_once: int
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
    for result in detector.stream(data):
        largest = max(largest, len(read) - len(scores))
        assert isinstance(result, scoring.Result)
        scores.append(result.score)
    assert len(scores) == 200
    assert at_once / 3 <= largest <= at_once + at_once // 3
    alone = [
        detector.score(DataSet("one", [Item("x", "x")], lambda _, i=i: noise(i, side))).scores[0] for i in (0, 77, 199)
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
