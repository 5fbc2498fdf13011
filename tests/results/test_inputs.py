"""Inputs of a results folder are opened again where they are there and unchanged; nothing else that run.json names is."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_parts import save, texture, write_table

from normalcy import DataError, Detector, open_data
from normalcy.data.open import open_recorded
from normalcy.data.splits import images_to_score
from normalcy.report import write_report
from normalcy.results.dicom import write_dicom
from normalcy.results.evaluate import evaluate
from normalcy.results.folder import read_results
from normalcy.results.inputs import reopen
from normalcy.results.predict import score_into
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


@pytest.mark.parametrize(
    "spec", ["/", "/proc", "/proc/self", "/dev", "/sys", "~", "slides:/", "diffusion:/", "slides:/proc,tile=8"]
)
def test_no_folder_of_this_machine_is_walked(scored: Path, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even with names that are there."""
    pydicom = pytest.importorskip("pydicom")
    scandir, listed = os.scandir, list[str]()

    def watched(path: str = ".") -> Any:
        listed.append(str(path))
        return scandir(path)

    for name in (
        "proc",
        "proc/self/environ",
        "environ",
        "self",
        "zero",
        "dev/zero",
        "home",
        "etc/x.png",
        "../etc/hosts.png",
    ):
        (scored / "scores.csv").write_text(f"path,score\n{name},1\n")
        change(scored, spec=spec, base="/")
        with monkeypatch.context() as patched:
            patched.setattr(os, "scandir", watched)
            found, about = reopen(read_results(scored))
        assert found is None
        assert "is not there or has another fingerprint" in about
    packages = str(Path(pydicom.__file__).parent)  # which looks at its own files when it is imported
    assert {place for place in listed if not place.startswith(packages)} <= {"/home"}, (
        "the folder of a series that is named"
    )


def test_only_the_images_of_the_table_are_opened(scored: Path, tmp_path: Path) -> None:
    """Of a folder where they are and where other things are, nothing else is read; neither are the table and its masks."""
    (scored.parent / "t.csv").write_text("no table at all")
    (scored.parent / "secret.png").write_text("not for this page")
    opened: list[str] = []
    sys.addaudithook(lambda event, what: opened.append(str(what[0])) if event == "open" and watching else None)
    watching = [True]
    found, about = reopen(read_results(scored))
    watching.clear()
    assert found is not None, about
    below = {name for name in opened if name.startswith(str(tmp_path)) and "/R/" not in name}
    assert {Path(name).parent.name for name in below} == {"img"}


def test_what_is_wrong_with_a_file_of_this_machine_is_not_said(scored: Path, tmp_path: Path) -> None:
    """Neither its content nor the names beside it."""
    private = tmp_path / "private"
    private.mkdir()
    (private / "passwords.csv").write_text("user,password\njane,hunter2\n")
    (private / "n0.png").write_text("TOKEN-A")
    (scored / "scores.csv").write_text("path,score\nn0.png,1\n")
    for spec in ("passwords.csv", "password.csv", ".", "n0.png", "passwords.csv:3", "diffusion:.", "slides:n0.png"):
        change(scored, spec=spec, base=str(private))
        page = page_of(scored)
        for word in ("hunter2", "user,", "password, ", "TOKEN", "Did you mean"):
            assert word not in page


@pytest.mark.parametrize(
    "name", ["run.json", "scores.csv", "metrics.json", "latents.npy", "train.jsonl", "maps", "restored"]
)
def test_links_bring_no_file_of_this_machine_into_a_page(scored: Path, tmp_path: Path, name: str) -> None:
    """Archives of results folders may hold links."""
    evaluate(scored)
    private = tmp_path / "private"
    private.mkdir()
    before = page_of(scored)
    place = scored / name
    if name == "train.jsonl":
        place.write_text(json.dumps({"stage": "first", "step": 1, "loss": 0.5}) + "\n")
    if place.exists():
        place.rename(private / name)
    else:
        (private / name).mkdir()
        for k in range(4):
            save(private / name / f"img-n{k}.png.png", texture(k))
    place.symlink_to(private / name)
    if name in ("run.json", "scores.csv", "metrics.json"):
        with pytest.raises(DataError, match="is a link to another place"):
            page_of(scored)
        return
    after = page_of(scored)
    assert len(after) <= len(before)
    assert 'id="training"' not in after
    assert name != "maps" or 'id="map-' not in after


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
    found, about = reopen(read_results(tmp_path / "R"))
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
    found, about = reopen(read_results(tmp_path / "A"))
    assert found is not None, about
    assert len(found) == 10
    assert (found.labels == -1).all()


def test_several_inputs_have_to_be_named_again(detector: Detector, parts: Path) -> None:
    score_into(detector, open_data(parts / "img"), parts / "R")
    found, about = reopen(read_results(parts / "R"))
    assert found is None
    assert "--data" in about
    assert np.load(parts / "R/maps/n0.png.npy").shape == (24, 24)


def test_sets_of_every_kind_are_opened_again(detector: Detector, parts: Path, tmp_path: Path) -> None:
    """By the paths of scores.csv alone, one image that cannot be read and a name that is not UTF-8 included."""
    layout = tmp_path / "set"
    for k in range(4):
        save(layout / "train/good" / f"{k}.png", texture(k))
        save(layout / "test/good" / f"{k}.png", texture(k + 10))
        save(layout / "test/spot" / f"{k}.png", texture(k + 20, defect=True))
    (layout / "test/good/1.png").write_bytes(b"no image")
    save(os.fsencode(parts / "img") + b"/caf\xe9.png", texture(3))
    arrays = np.stack([texture(k) for k in range(6)])
    np.savez(tmp_path / "a.npz", x_train=arrays[:3], y_train=[0, 1, 0], x_test=arrays[3:], y_test=[0, 1, 1])
    for k, spec in enumerate((layout, parts / "img", parts / "img/n0.png", tmp_path / "a.npz", f"{tmp_path}/a.npz:1")):
        data, split = images_to_score(open_data(spec), None, 0)
        folder = tmp_path / f"R{k}"
        score_into(detector, data, folder, spec=str(spec), split=split)
        found, about = reopen(read_results(folder))
        assert found is not None, about
        scored = [item for item in data.items if item.path != "test/good/1.png"]
        assert list(found.items) == scored
        assert (found.read(len(found) - 1) == data.read(len(data) - 1)).all()


def test_a_series_is_opened_again(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    for k in range(3):
        for name in ("a", "b/c", "b/d"):
            slice_ = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
            slice_.SeriesInstanceUID = f"1.2.{len(name)}.{name == 'b/c'}".replace("True", "1").replace("False", "2")
            slice_.SOPInstanceUID = f"{slice_.SeriesInstanceUID}.{k}"
            slice_.ImagePositionPatient = [0, 0, 5.0 * k]
            place = tmp_path / "study" / name.rpartition("/")[0]
            place.mkdir(parents=True, exist_ok=True)
            slice_.save_as(place / f"{name[-1]}{k}")
    data = open_data(tmp_path / "study")
    again = open_recorded(str(tmp_path / "study"), data.items, Path("."))
    assert again is not None
    assert again.fingerprint() == data.fingerprint()
    assert {item.path.rpartition("/")[2][:7] for item in again.items} == {"study", "series-"}


@pytest.mark.parametrize("spec", ["private", "private/scan.dcm", "/", "/proc/self/environ"])
def test_dicom_results_open_no_file_of_this_machine(scored: Path, tmp_path: Path, spec: str) -> None:
    """A foreign folder names images of which it has no fingerprint: nothing is written, and nothing of them is said."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "scan.dcm").write_bytes(b"\0" * 128 + b"DICM Mustermann^Erika")
    change(scored, spec=spec if spec.startswith("/") else str(tmp_path / spec))
    with pytest.raises(DataError, match="name the data set with --data") as caught:
        write_dicom(scored, tmp_path / "out")
    assert "Mustermann" not in str(caught.value)
    assert not (tmp_path / "out").exists()
