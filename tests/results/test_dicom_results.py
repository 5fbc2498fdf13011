"""``normalcy dicom``: nothing of a file is printed, and one image that cannot be written costs no other."""

import io
import logging
import warnings
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, UltrasoundImageStorage, generate_uid

from normalcy import Detector
from normalcy.cli.app import main

SECRETS = ("Mustermann", "Erika", "4711081547", "19620304", "ACC90210", "Ferencz", "1.2.826.0.1.3680043.77")


def dataset(i: int, k: int, pixels: np.ndarray, place: bool) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage if place else UltrasoundImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"1.2.826.0.1.3680043.77.{i}", f"1.2.826.0.1.3680043.77.{i}.1"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "Mustermann^Erika", f"4711081547-{i}", "19620304"
    ds.PatientSex, ds.AccessionNumber, ds.ReferringPhysicianName = "F", "ACC90210", "Ferencz^Anna"
    ds.StudyID, ds.StudyDate, ds.StudyTime = "1", "20200101", "120000"
    ds.SeriesNumber, ds.InstanceNumber, ds.Modality = 1, k + 1, "CT"
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, 1
    if place:
        ds.FrameOfReferenceUID = f"1.2.826.0.1.3680043.77.{i}.2"
        ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2 * k]
        ds.PixelSpacing, ds.SliceThickness = [1, 1], 2
    ds.PixelData = pixels.astype(np.int16).tobytes()
    return ds


def write(folder: Path, i: int, place: bool = True) -> None:
    """A series of one slice, which is read as an image."""
    pixels = np.random.default_rng(i).normal(100, 10, (12, 10))
    folder.mkdir(parents=True)
    pydicom.dcmwrite(folder / "1.dcm", dataset(i, 0, pixels, place), enforce_file_format=True)


def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["normalcy", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capfd.readouterr()
    return int(stop.value.code or 0), out + err


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images to train on, a model, and a folder of two to score, of which one says no place."""
    root = tmp_path_factory.mktemp("dicom")
    for i in range(30):
        write(root / f"train/{i:02d}", i)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Detector("zscore", false_alarms=0.1).fit(root / "train").save(root / "model")
    write(root / "new/ct", 40)
    write(root / "new/us", 41, place=False)
    return root


def test_images_without_a_place_are_listed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, said = command(monkeypatch, capfd, "score", place / "model", place / "new", "--out", tmp_path / "results")
    assert code == 0, said
    texts = [said]
    code, said = command(monkeypatch, capfd, "dicom", tmp_path / "results", "--out", tmp_path / "out")
    assert code == 0, said
    assert "Skipped new/us" in said or "Skipped us" in said
    assert "FrameOfReferenceUID" in said
    assert "Wrote DICOM results of 1 images" in said
    assert {path.name for path in (tmp_path / "out").rglob("*.dcm")} >= {"map.dcm"}
    assert not [path for path in (tmp_path / "out/us").rglob("*") if path.is_file()]
    texts.append(said)
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "out").rglob("*"))
    code, said = command(monkeypatch, capfd, "dicom", tmp_path / "results", "--out", tmp_path / "out")
    assert code != 0
    assert "--overwrite" in said
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "out").rglob("*"))
    (tmp_path / "out/another patient.dcm").write_bytes(b"x")
    assert command(monkeypatch, capfd, "dicom", tmp_path / "results", "--out", tmp_path / "out", "--overwrite")[0] == 0
    assert not (tmp_path / "out/another patient.dcm").exists()
    files = [path for path in (*tmp_path.rglob("*"), *(place / "model").rglob("*")) if path.is_file()]
    texts += [path.read_bytes().decode("latin-1") for path in files if path.suffix != ".dcm"]
    for secret in SECRETS:
        assert not any(secret in text for text in texts), secret


def test_what_libraries_say_is_never_printed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Warnings, log records and exceptions of every type that quote the file."""
    write(tmp_path / "new/a", 50)
    write(tmp_path / "new/b", 51)
    out = tmp_path / "results"
    assert command(monkeypatch, capfd, "score", place / "model", tmp_path / "new", "--out", out)[0] == 0
    original = highdicom.pm.ParametricMap
    failures = [
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        NotImplementedError,
        IndexError,
        RuntimeError,
        ImportError,
    ]
    for failure in failures:
        calls: list[int] = []

        def chatty(sources: Any, *words: Any, calls: list[int] = calls, failure: Any = failure, **more: Any) -> Any:
            text = f"{sources[0].PatientName} no attribute 'Mustermann' {sources[0].PatientID}"
            warnings.warn(text, UserWarning, stacklevel=1)
            logging.getLogger("highdicom").warning(text)
            logging.getLogger("pydicom").error(text)
            calls.append(1)
            if len(calls) == 1:
                raise failure(text)
            return original(sources, *words, **more)

        monkeypatch.setattr(highdicom.pm, "ParametricMap", chatty)
        code, said = command(monkeypatch, capfd, "dicom", out, "--out", tmp_path / "out", "--overwrite")
        assert code == 0, said
        assert "Wrote DICOM results of 1 images" in said
        assert "the source lacks what DICOM results need" in said
        assert "Traceback" not in said
        for secret in SECRETS:
            assert secret not in said, (failure, secret)


def test_reading_never_quotes_a_file(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Values where the standard has none like them, in elements that are read."""
    buffer = io.BytesIO()
    ds = dataset(60, 0, np.zeros((8, 8)), True)
    ds.PatientBirthDate = "Mustermann"
    pydicom.dcmwrite(buffer, ds, enforce_file_format=True)
    whole = buffer.getvalue()
    (tmp_path / "new").mkdir()
    damages = {
        "spacing": whole.replace(b"1\\1 ", b"Eri\\", 1),
        "cut": whole[: len(whole) // 2],
        "length": whole.replace(b"PN", b"SQ", 1),
        "type": whole.replace(b"US\x02\x00\x08\x00", b"LO\x02\x00\x08\x00", 1),
    }
    for name, data in damages.items():
        (tmp_path / f"new/{name}.dcm").write_bytes(data)
    for words in (("check", tmp_path / "new"), ("score", place / "model", tmp_path / "new", "--out", tmp_path / "r")):
        said = command(monkeypatch, capfd, *words)[1]
        assert "Traceback" not in said
        for secret in SECRETS:
            assert secret not in said
