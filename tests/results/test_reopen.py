"""A results folder of another hand names images: only those that were scored are opened, and nothing is fetched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from example_parts import save, texture

from normalcy import Detector, open_data
from normalcy.report import write_report
from normalcy.results.folder import read_results
from normalcy.results.inputs import reopen
from normalcy.results.predict import score_into


@pytest.fixture
def results(detector: Detector, parts: Path, tmp_path: Path) -> Path:
    out = tmp_path / "R"
    score_into(detector, open_data(parts / "img"), out, spec=str(parts / "img"))
    return out


def point_to(results: Path, spec: str) -> None:
    run = json.loads((results / "run.json").read_text())
    run["data"]["spec"] = spec
    (results / "run.json").write_text(json.dumps(run))


def test_images_that_were_scored_are_opened(results: Path) -> None:
    data, said = reopen(read_results(results).run)
    assert data is not None
    assert len(data) == 8
    assert "has the fingerprint of the images that were scored" in said


def test_other_images_are_not_shown(results: Path, tmp_path: Path) -> None:
    for k in range(8):
        save(tmp_path / "private" / f"{k}.png", texture(k))
    point_to(results, str(tmp_path / "private"))
    data, said = reopen(read_results(results).run)
    assert data is None
    assert "has another fingerprint than the images that were scored" in said
    page = write_report(results).read_text(encoding="utf-8")
    assert 'id="input-' not in page


def test_nothing_is_fetched_by_name(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    point_to(results, "mnist:3")
    data, said = reopen(read_results(results).run)
    assert data is None
    assert "which might have to be fetched" in said
    assert not (tmp_path / "home").exists()
