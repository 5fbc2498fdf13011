"""Several methods on the same images: what is returned and written, the paired tests, and a method that fails."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from normalcy import DataError, Detector, NormalcyError, SettingsError
from normalcy.data.dataset import DataSet
from normalcy.data.open import as_dataset
from normalcy.data.splits import train_test
from normalcy.metrics import delong_interval, delong_test
from normalcy.results.comparison import read_comparison
from normalcy.results.folder import read_results
from normalcy.results.metrics import read_metrics
from normalcy.studies.compare import compare
from normalcy.testing import smooth_textures


@pytest.fixture(scope="module")
def data() -> DataSet:
    """Smooth textures; every fifth image is anomalous, with a small bright square."""
    images = (255 * smooth_textures(100, (1, 16, 16), seed=0)[:, 0].numpy()).astype(np.uint8)
    labels = [int(i % 5 == 0) for i in range(100)]
    masks = np.zeros((100, 16, 16), bool)
    masks[::5, 4:7, 8:11] = True
    images[masks] = np.clip(images[masks].astype(int) + 60, 0, 255)
    return train_test(as_dataset(images, labels, masks), seed=0)


def test_what_is_returned_is_what_is_written(data: DataSet, tmp_path: Path) -> None:
    steps: list[tuple[str, str]] = []
    settings = {"calibration": 0.3, "pca.components": 3}
    found = compare(
        data, ["zscore", "pca"], tmp_path / "C", settings, spec="parts", on_method=lambda *step: steps.append(step)
    )
    assert steps == [(name, step) for name in ("zscore", "pca") for step in ("fit", "score", "evaluate")]
    assert read_comparison(tmp_path / "C") == found
    assert found.data.test_images == len(data.select("test"))
    assert found.data.fingerprint == data.fingerprint()
    assert [one.name for one in found.methods] == ["zscore", "pca"]
    assert found.methods[1].settings == {"calibration": 0.3, "components": 3}
    for one in found.methods:
        metrics = read_metrics(tmp_path / "C" / one.folder)
        assert one.auroc == metrics.image.auroc
        assert metrics.pixel is not None
        assert (one.pixel_auroc, one.aupro) == (metrics.pixel.auroc, metrics.pixel.aupro)
        assert one.at_threshold == metrics.image.at_threshold
        assert (tmp_path / "C" / one.folder / "report.html").exists()
    assert "parts" not in {path.name for path in (tmp_path / "C").iterdir()}
    tree = json.loads((tmp_path / "C/compare.json").read_text())
    assert tree["methods"][1]["settings"]["components"] == 3


def test_the_paired_test_is_delongs_on_the_images_that_both_scored(data: DataSet, tmp_path: Path) -> None:
    found = compare(data, ["pca", "zscore"], tmp_path / "C", {"calibration": 0})
    best, other = found.ranked()
    assert best.against_best is None
    test = other.against_best
    assert test is not None
    ours, theirs = (read_results(tmp_path / "C" / one.folder) for one in (best, other))
    assert ours.paths == theirs.paths
    expected = delong_test(ours.labels, theirs.scores, ours.scores)
    assert (test.best, test.difference, test.p) == (best.name, expected.difference, expected.p)
    assert best.area == pytest.approx(delong_interval(ours.labels, ours.scores).value)
    assert best.area is not None
    assert other.area is not None
    assert best.area >= other.area
    assert test.difference == pytest.approx(other.area - best.area)


def test_a_method_that_fails_is_listed(data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Detector.fit

    def failing(self: Detector, *given: object, **more: object) -> Detector:
        if self.name == "pca":
            raise NormalcyError("pca: broken.")
        return fit(self, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Detector, "fit", failing)
    found = compare(data, ["pca", "zscore", "zscore"], tmp_path / "C", {"calibration": 0})
    assert [(one.name, one.reason) for one in found.failed] == [("pca", "pca: broken.")]
    assert [one.name for one in found.methods] == ["zscore"]
    assert "pca: broken." in (tmp_path / "C/report.html").read_text()
    with pytest.raises(NormalcyError, match=r"No method could be compared: pca: pca: broken\."):
        compare(data, ["pca"], tmp_path / "D")


def test_refusals(data: DataSet, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="at least one method"):
        compare(data, [], tmp_path / "C")
    with pytest.raises(SettingsError, match="no setting 'colour'"):
        compare(data, ["pca"], tmp_path / "C", {"colour": "red"})
    (tmp_path / "C").mkdir()
    (tmp_path / "C/mine.txt").write_text("mine")
    with pytest.raises(SettingsError, match="not empty"):
        compare(data, ["pca"], tmp_path / "C")


def test_a_killed_comparison_continues(data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Complete methods are kept with what was measured; another comparison is refused, or starts again."""
    out, settings = tmp_path / "C", {"calibration": 0}
    whole = compare(data, ["zscore", "pca"], tmp_path / "whole", settings)

    def stop(method: str, step: str) -> None:
        if (method, step) == ("pca", "score"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(data, ["zscore", "pca"], out, settings, on_method=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["C.run", "whole"]
    (kept,) = (tmp_path / "C.run").glob("*/zscore/run.json")
    measured = kept.read_bytes()
    with pytest.raises(SettingsError, match="unfinished comparison of other images, methods or settings"):
        compare(data, ["zscore"], out, settings)
    steps: list[str] = []
    found = compare(data, ["zscore", "pca"], out, settings, on_method=lambda name, _: steps.append(name))
    assert set(steps) == {"pca"}
    assert (out / "zscore/run.json").read_bytes() == measured
    assert [(one.name, one.auroc, one.against_best) for one in found.methods] == [
        (one.name, one.auroc, one.against_best) for one in whole.methods
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["C", "whole"]
    with pytest.raises(KeyboardInterrupt):
        compare(data, ["zscore", "pca"], out, settings, overwrite=True, on_method=stop)
    assert (out / "zscore/run.json").read_bytes() == measured, "the old comparison is whole until the new one is"
    compare(data, ["zscore"], out, settings, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["compare.json", "report.html", "zscore"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["C", "whole"]


def test_images_that_change_meanwhile_are_noticed(tmp_path: Path) -> None:
    """The paired test would compare methods on different images."""
    images = (255 * smooth_textures(60, (1, 16, 16), seed=1)[:, 0].numpy()).astype(np.uint8)
    data = train_test(as_dataset(images, [int(i % 5 == 0) for i in range(60)]), seed=0)

    def change(method: str, step: str) -> None:
        if (method, step) == ("pca", "fit"):
            images[:] = 255 - images

    with pytest.raises(DataError, match="changed while methods were compared"):
        compare(data, ["zscore", "pca"], tmp_path / "C", {"calibration": 0}, on_method=change)
    assert list(tmp_path.iterdir()) == []


def test_a_second_process_is_refused(data: DataSet, tmp_path: Path) -> None:
    done: list[str] = []

    def rival(method: str, step: str) -> None:
        with pytest.raises(SettingsError, match="is being written by another process"):
            compare(data, ["pca"], tmp_path / "C", {"calibration": 0})
        done.append(method)

    def other(method: str, step: str) -> None:
        if not done:
            thread = threading.Thread(target=rival, args=(method, step))
            thread.start()
            thread.join()

    compare(data, ["zscore"], tmp_path / "C", {"calibration": 0}, on_method=other)
    assert done == ["zscore"]
    assert [one.name for one in read_comparison(tmp_path / "C").methods] == ["zscore"]
