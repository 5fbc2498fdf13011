"""Results stay inside their folder, overwrite no input, and have files of their own; one bad image does not cost the rest."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import threading
from pathlib import Path

import nibabel
import numpy as np
import pytest
from example_parts import MASK, save, texture, write_table
from PIL import Image

from normalcy import DataError, Detector, SettingsError, open_data
from normalcy.data.dataset import DataSet, Item
from normalcy.data.open import as_dataset
from normalcy.report import write_report
from normalcy.results import pictures
from normalcy.results.evaluate import evaluate
from normalcy.results.folder import MAPS, MASKS, read_results
from normalcy.results.pictures import write_pictures
from normalcy.results.predict import score_into
from normalcy.results.run import read_run
from normalcy.results.writer import Writer


def checksums(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# -- names from tables -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "up", "absolute"])
def test_results_do_not_depend_on_how_a_table_names_its_images(detector: Detector, parts: Path, kind: str) -> None:
    prefix = {"plain": "", "up": "../", "absolute": f"{parts}/"}[kind]
    table = write_table(parts / ("tab/t.csv" if kind == "up" else "t.csv"), f"{prefix}img/", f"{prefix}msk/")
    before = checksums(parts / "img") | checksums(parts / "msk")
    score_into(detector, open_data(table), parts / "R")
    assert checksums(parts / "img") | checksums(parts / "msk") == before, "no input changed, nothing beside them"
    assert {path.name for path in parts.iterdir()} <= {"img", "msk", "tab", "t.csv", "R"}
    results = read_results(parts / "R")
    for i in range(8):
        files = [results.file(*wanted) for wanted in (("maps", i, *MAPS), ("restored", i, ".png"))]
        assert None not in files, "each image has files of its own"
        assert (results.file("masks", i, *MASKS) is not None) == (results.labels[i] == 1)
    assert len({*results.files}) == 8
    metrics = evaluate(parts / "R", resamples=50)
    assert metrics.image.auroc.value == 1.0
    assert metrics.pixel is not None
    assert metrics.pixel.images == 8
    assert metrics.pixel.auroc.value is not None
    assert metrics.pixel.auroc.value > 0.95
    if kind == "plain":
        assert results.files == results.paths


def test_an_image_called_like_the_picture_of_another(detector: Detector, tmp_path: Path) -> None:
    for k, name in enumerate(("a.jpg", "a.jpg.png", "a.jpg.npy.png", "a.JPG")):
        save(tmp_path / "in" / name, texture(k, defect=k == 1))
    data = open_data(tmp_path / "in")
    score_into(detector, data, tmp_path / "R")
    results = read_results(tmp_path / "R")
    assert len(results) == 4
    for i, expected in enumerate(detector.score(data)):
        file = results.file("maps", i, *MAPS)
        assert file is not None
        assert expected.map is not None
        np.testing.assert_allclose(np.load(file), expected.map, atol=1e-5)


def test_dicom_folder_and_file_of_one_name(tmp_path: Path) -> None:
    """A series in the folder T1 and the file T1.nii.gz: two maps."""
    rng = np.random.default_rng(0)
    normal = rng.normal(100, 5, (40, 6, 7, 8, 1)).astype(np.float32)
    for k in range(2):
        volume = nibabel.Nifti1Image(rng.normal(100, 5, (8, 7, 6)).astype(np.float32), np.eye(4))
        nibabel.save(volume, tmp_path / f"in{k}.nii.gz")
    source = open_data(tmp_path)
    items = [Item(path, path) for path in ("T1", "T1.nii.gz")]
    data = DataSet("two", items, source.read, space=source.space)
    score_into(Detector("zscore").fit(normal), data, tmp_path / "R")
    maps = {path.name for path in (tmp_path / "R" / "maps").iterdir()}
    assert len(maps) == 2
    assert "T1.nii.gz" in maps


# -- one bad thing ---------------------------------------------------------------------------------------------------


def test_a_mask_of_another_size_and_a_missing_one_cost_only_themselves(detector: Detector, parts: Path) -> None:
    save(parts / "msk" / "big.png", np.kron(MASK, np.ones((2, 2), np.uint8)))
    table = write_table(parts / "t.csv", "img/", "msk/", d1="big.png", d2="gone.png")
    run = score_into(detector, open_data(table), parts / "R")
    assert run.data.count == 8
    assert [one.path for one in run.data.incomplete] == ["img/d1.png", "img/d2.png"]
    assert "(48, 48), expected that of the image, (24, 24)" in run.data.incomplete[0].reason
    assert "gone.png" in run.data.incomplete[1].reason
    assert read_run(parts / "R") == run
    metrics = evaluate(parts / "R", resamples=50)
    assert metrics.image.anomalous == 4
    assert metrics.pixel is not None
    assert metrics.pixel.images == 6
    assert any("img/d2.png" in note and "gone.png" in note for note in metrics.notes)


def test_masks_that_were_damaged_later_are_left_out(detector: Detector, parts: Path) -> None:
    table = write_table(parts / "t.csv", "img/", "msk/")
    score_into(detector, open_data(table), parts / "R")
    (parts / "R/masks/img/d0.png.png").write_bytes(b"no image")
    save(parts / "R/masks/img/d1.png.png", MASK[:10])
    (parts / "R/maps/img/d2.png.npy").write_bytes(b"\x93NUMPY nonsense")
    metrics = evaluate(parts / "R", resamples=50)
    assert metrics.pixel is not None
    assert metrics.pixel.images == 5
    for name in ("d0", "d1", "d2"):
        assert any(f"img/{name}.png" in note for note in metrics.notes)


@pytest.mark.skipif(os.name == "nt", reason="names of files are text there")
def test_names_that_are_not_utf_8_or_very_long(detector: Detector, tmp_path: Path) -> None:
    names = [b"caf\xe9.png", b"x" * 240 + b".png", b"a.png"]
    for k, name in enumerate(names):
        save(bytes(tmp_path / "in") + b"/" + name, texture(k))
    run = score_into(detector, open_data(tmp_path / "in"), tmp_path / "R", spec=str(tmp_path / "in"))
    assert run.data.count == 3
    assert run.data.failed == run.data.incomplete == ()
    text = (tmp_path / "R/scores.csv").read_bytes().decode("utf-8")  # valid UTF-8
    rows = list(csv.DictReader(text.splitlines()))
    assert {row["path"] for row in rows} == {"caf\\udce9.png", "x" * 240 + ".png", "a.png"}
    results = read_results(tmp_path / "R")
    assert all(results.file("maps", i, *MAPS) is not None for i in range(3))
    page = write_report(tmp_path / "R").read_text(encoding="utf-8")
    assert "Inputs are not shown" not in page
    assert page.count('id="input-') == 3


def test_an_extra_map_cannot_leave_the_folder(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "R")
    (tmp_path / "R").mkdir()
    for parts in (("../x",), ("maps", "../../x"), ("/etc/x",), ("extra_maps/../../x", "a")):
        with pytest.raises(DataError, match="outside"):
            writer.path(*parts)
    (tmp_path / "R" / "maps").symlink_to(tmp_path)
    with pytest.raises(DataError, match="outside"):
        writer.path("maps", "a.npy")
    assert writer.path("a", "b.npy") == tmp_path / "R/a/b.npy"


# -- inputs are no targets -------------------------------------------------------------------------------------------


def test_results_do_not_replace_the_folder_of_their_images(detector: Detector, parts: Path) -> None:
    data = open_data(parts / "img")
    before = checksums(parts / "img")
    with pytest.raises(SettingsError, match="an image to score"):
        score_into(detector, data, parts / "img", overwrite=True)
    with pytest.raises(SettingsError, match="an image to score"):
        score_into(detector, data, parts, overwrite=True)
    assert checksums(parts / "img") == before


def test_nor_one_that_holds_links_to_them(detector: Detector, parts: Path) -> None:
    (parts / "R").mkdir()
    os.link(parts / "img/n0.png", parts / "R/copy.png")
    with pytest.raises(SettingsError, match="an image to score"):
        score_into(detector, open_data(parts / "img"), parts / "R", overwrite=True)
    (parts / "R/copy.png").unlink()
    (parts / "R/note.txt").write_text("mine")
    with pytest.raises(SettingsError, match="not empty"):
        score_into(detector, open_data(parts / "img"), parts / "R")
    score_into(detector, open_data(parts / "img"), parts / "R", overwrite=True)
    assert not (parts / "R/note.txt").exists()


# -- pictures of maps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [False, True])
@pytest.mark.parametrize("calibration", [0, 0.5])
def test_pictures_of_maps_have_one_range(tmp_path: Path, calibration: float, tile: bool) -> None:
    """A flawless image is never brighter than a defect, with and without a calibration."""
    images = np.stack([texture(seed) for seed in range(60)])
    detector = Detector("pca", components=4, calibration=calibration).fit(images)
    data = as_dataset(np.stack([texture(100), texture(101), texture(102, defect=True)]))
    run = score_into(detector, data, tmp_path / "R", tile=tile)
    assert run.map_range is not None
    assert write_pictures(read_results(tmp_path / "R")) == 3
    shown = [np.asarray(Image.open(tmp_path / f"R/maps/images/{k:05}.png")) for k in range(3)]  # indices of colours
    maps = [np.load(tmp_path / f"R/maps/images/{k:05}.npy") for k in range(3)]
    low, high = run.map_range
    for picture, values in zip(shown, maps):
        np.testing.assert_allclose(picture, np.rint(255 * np.clip((values - low) / (high - low), 0, 1)), atol=1)
    assert shown[2].max() == 255
    assert max(shown[0].max(), shown[1].max()) <= shown[2].max()
    if not calibration or tile:
        assert (low, high) == (min(m.min() for m in maps), max(m.max() for m in maps))
        assert shown[0].max() < 200, "the defect is far brighter"


def test_the_palette_is_decoded_before_there_are_threads(
    detector: Detector, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``base64`` fills a table when it is first used, without a lock: threads that decode meanwhile fail."""
    decode, threads = base64.b85decode, set[str]()

    def watched(text: str) -> bytes:
        threads.add(threading.current_thread().name)
        return decode(text)

    score_into(detector, open_data(parts / "img"), parts / "R")
    assert not list((parts / "R" / "maps").rglob("*.png")), "only when somebody asks for them"
    pictures._palette.cache_clear()
    monkeypatch.setattr(pictures.base64, "b85decode", watched)
    write_pictures(read_results(parts / "R"))
    assert len(list((parts / "R" / "maps").rglob("*.png"))) > 1
    assert threads == {threading.main_thread().name}
