"""What a method shows beside its scores reaches the results folder and the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from normalcy import Detector
from normalcy.data.dataset import as_dataset
from normalcy.predict import predict
from normalcy.report import write_report
from normalcy.results import read_results


def test_pictures_at_the_size_of_the_input(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (30, 20, 28), dtype=np.uint8)
    words = {"width": 4, "latent": 4, "steps": 2, "batch_size": 8, "size": 16}
    detector = Detector("ddr_id", **words).fit(images)
    data = as_dataset(images[:3])
    predict(detector, data, tmp_path / "results")
    results = read_results(tmp_path / "results")
    assert results.pictures() == ["residual"]
    for i in range(3):
        file = results.file("pictures/residual", i, ".npy")
        assert file is not None
        picture = np.load(file)
        assert picture.shape == (1, 20, 28)
        expected = detector.score(images[i : i + 1])[0].pictures["residual"]
        np.testing.assert_allclose(picture, expected, atol=1e-5)
    page = write_report(tmp_path / "results", dataset=data).read_text(encoding="utf-8")
    assert page.count('<span class="name">residual</span>') == 2 * 3, "in the most normal and the most anomalous images"
