"""Inputs of a results folder are opened again where they are there and unchanged; nothing else that run.json names is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from example_parts import save, texture, write_table

from normalcy import Detector, open_data
from normalcy.data.splits import images_to_score
from normalcy.report import write_report
from normalcy.results.inputs import reopen
from normalcy.results.predict import score_into
from normalcy.results.run import read_run
from normalcy.studies.audit import audit


@pytest.fixture
def scored(detector: Detector, parts: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A results folder of a table given by a relative name."""
    monkeypatch.chdir(parts)
    write_table(parts / "t.csv", "img/", "msk/")
    score_into(detector, open_data("t.csv"), Path("R"), spec="t.csv")
    return parts / "R"


def page_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def change(folder: Path, **data: object) -> None:
    content = json.loads((folder / "run.json").read_text())
    content["data"].update(data)
    (folder / "run.json").write_text(json.dumps(content))


def test_from_another_working_directory(scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    page = page_of(scored)
    assert page.count('id="input-') == 8
    assert "Inputs are not shown" not in page
    assert f"Inputs: {scored.parent / 't.csv'}, which has the fingerprint of the images that were scored." in page


def test_moved_with_their_results(scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of then is gone: the working directory of now is tried."""
    new = tmp_path / "new"
    new.mkdir()
    for name in ("R", "img", "msk", "t.csv"):
        (scored.parent / name).rename(new / name)
    monkeypatch.chdir(new)
    assert page_of(new / "R").count('id="input-') == 8


def test_not_when_they_have_changed(scored: Path) -> None:
    save(scored.parent / "img/n0.png", texture(9000))
    page = page_of(scored)
    assert 'id="input-' not in page
    assert "has another fingerprint than the images that were scored; name the data set with --data." in page
    given = write_report(scored, open_data(scored.parent / "t.csv")).read_text()
    assert given.count('id="input-') == 8


def test_a_foreign_run_json_shows_no_file_of_this_machine(scored: Path, tmp_path: Path) -> None:
    """Whatever it names: its fingerprint is that of other images."""
    private = tmp_path / "private"
    for k in range(4):
        save(private / f"n{k}.png", texture(4000 + k))
    for spec, base in ((str(private), None), ("private", str(tmp_path)), (f"{private}/n0.png", "/")):
        change(scored, spec=spec, base=base)
        page = page_of(scored)
        assert 'id="input-' not in page
        assert "Inputs are not shown" in page


def test_nothing_is_fetched_and_no_folder_made(scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for spec in ("mnist:3", "cifar10:cat", "svhn:1"):
        change(scored, spec=spec, data_root=str(tmp_path / "root"))
        assert "named set, which might have to be fetched" in page_of(scored)
    assert not (tmp_path / "root").exists()
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("spec", ["gone", "nul\0", "x" * 5000, "", "../gone", "gone.csv", "gone.npz:3"])
def test_names_of_nothing(scored: Path, spec: str) -> None:
    change(scored, spec=spec)
    assert "Inputs are not shown" in page_of(scored)


def test_a_pipe_is_not_waited_for(scored: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe.csv")
    for name in ("pipe.png", "pipe.csv"):
        change(scored, spec=str(tmp_path / name))
        assert "Inputs are not shown" in page_of(scored)


def test_the_part_that_was_scored(detector: Detector, tmp_path: Path) -> None:
    """The test split of a labelled set without one; and the training images of an audit."""
    for k in range(12):
        save(tmp_path / "img" / f"{k}.png", texture(k))
    (tmp_path / "t.csv").write_text("path,label\n" + "".join(f"img/{k}.png,{int(k > 9)}\n" for k in range(12)))
    data, split = images_to_score(open_data(tmp_path / "t.csv"), None, 0)
    score_into(detector, data, tmp_path / "R", spec=str(tmp_path / "t.csv"), split=split)
    found, about = reopen(read_run(tmp_path / "R"))
    assert found is not None, about
    assert [item.path for item in found.items] == [item.path for item in data.items]
    audit(
        open_data(tmp_path / "t.csv"),
        tmp_path / "A",
        "pca",
        settings={"components": 2},
        folds=2,
        spec=str(tmp_path / "t.csv"),
    )
    found, about = reopen(read_run(tmp_path / "A"))
    assert found is not None, about
    assert len(found) == 10
    assert (found.labels == -1).all()


def test_several_inputs_have_to_be_named_again(detector: Detector, parts: Path) -> None:
    score_into(detector, open_data(parts / "img"), parts / "R")
    found, about = reopen(read_run(parts / "R"))
    assert found is None
    assert "--data" in about
    assert np.load(parts / "R/maps/n0.png.npy").shape == (24, 24)
