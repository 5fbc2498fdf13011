"""Scores of a fit in a file: what is read is what was written, up to a rounding that no metric sees."""

import base64
import json
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from normalcy.studies.kept_scores import KeptScores, read_scores


def _kept(scores: np.ndarray, labels: np.ndarray) -> KeptScores:
    kept = KeptScores(labels.tolist(), facts={"method": "pca", "seed": 3})
    kept.add("", range(len(scores)), scores.tolist(), 1.25)
    return kept


@pytest.mark.parametrize("scale", ["normal", "lognormal", "large offset"])
def test_scores_come_back(tmp_path: Path, scale: str) -> None:
    rng = np.random.default_rng(0)
    labels = (np.arange(10_000) % 10 > 0).astype(int)
    scores = rng.normal(size=10_000) + labels
    if scale == "lognormal":
        scores = np.exp(2 * scores)
    if scale == "large offset":
        scores = scores - 1e6
    kept = _kept(scores, labels)
    kept.write(tmp_path / "s.json")
    read = read_scores(tmp_path / "s.json")
    assert read is not None
    assert read == KeptScores(labels.tolist(), read.scores, [], {"": 1.25}, {"method": "pca", "seed": 3})
    np.testing.assert_array_equal(read.scores[""], kept.scores[""])
    low, high = np.percentile(scores[labels == 0], [25, 75])
    assert np.abs(read.scores[""] - scores).max() <= (high - low) / 2048
    assert roc_auc_score(labels, read.scores[""]) == pytest.approx(roc_auc_score(labels, scores), abs=1e-4)
    assert (tmp_path / "s.json").stat().st_size < 50_000


@pytest.mark.parametrize("scores", [[2.0, 2.0, 3.0], [0.0, 1.0, 1e30]], ids=["equal", "far"])
def test_what_cannot_be_rounded_is_kept_in_32_bits(tmp_path: Path, scores: list[float]) -> None:
    kept = _kept(np.array(scores), np.array([0, 0, 1]))
    kept.write(tmp_path / "s.json")
    read = read_scores(tmp_path / "s.json")
    assert read is not None
    np.testing.assert_array_equal(read.scores[""].astype(np.float32), np.float32(scores))


def test_parts_and_images_that_cannot_be_read(tmp_path: Path) -> None:
    kept = KeptScores([0, 1, 0, 1, -1], unread=[2])
    kept.add("latent", [0, 1], [0.5, 1.5], 1.0)
    assert kept.covers("latent", [0, 1, 2])
    assert not kept.covers("latent", [0, 3])
    assert not kept.covers("image", [0])
    kept.add("latent", [3, 4], [2.5, 3.5], 1.0)
    kept.write(tmp_path / "s.json")
    read = read_scores(tmp_path / "s.json")
    assert read is not None
    assert read.labels == [0, 1, 0, 1, -1]
    assert read.covers("latent", range(5))
    assert read.seconds == {"latent": 2.0}
    labels, scores = read.of("latent", [1, 2, 3])
    assert labels == [1, 1]
    assert scores == pytest.approx([1.5, 2.5])


def test_files_that_are_no_scores(tmp_path: Path) -> None:
    assert read_scores(tmp_path / "none.json") is None
    (tmp_path / "other.json").write_text('{"format": 99}')
    assert read_scores(tmp_path / "other.json") is None
    (tmp_path / "broken.json").write_text("{")
    assert read_scores(tmp_path / "broken.json") is None


@pytest.mark.parametrize(
    "change",
    [
        {"labels": None}, {"labels": "0x1"}, {"scores": 3}, {"scores": {"": {}}}, {"scores": {"": {"data": 5}}},
        {"unread": [10**9]}, {"unread": "x"}, {"seconds": {}}, {"seconds": {"": [1]}}, {"format": 2},
        {"scores": {"": {"data": "!"}}},
    ],
    ids=str,
)  # fmt: skip
def test_damaged_files_are_none(tmp_path: Path, change: dict[str, object]) -> None:
    kept = KeptScores([0, 0, 1])
    kept.add("", [0, 1, 2], [0.1, 0.2, 0.9], 1.0)
    kept.write(tmp_path / "s.json")
    assert read_scores(tmp_path / "s.json") is not None
    words = json.loads((tmp_path / "s.json").read_text())
    (tmp_path / "s.json").write_text(json.dumps({**words, **change}))
    assert read_scores(tmp_path / "s.json") is None


def test_scores_do_not_decompress_beyond_their_number(tmp_path: Path) -> None:
    bomb = base64.b64encode(zlib.compress(bytes(2**28), 9)).decode()
    record = {"format": 1, "labels": "01", "unread": [], "seconds": {"": 1}, "scores": {"": {"data": bomb}}}
    (tmp_path / "s.json").write_text(json.dumps(record))
    tracemalloc.start()
    assert read_scores(tmp_path / "s.json") is None
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
