"""``normalcy dicom``: nothing of a file is printed, and one image that cannot be written costs no other."""

import io
import logging
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, UltrasoundImageStorage, generate_uid

from normalcy import Detector
from normalcy.cli.app import main
from normalcy.data.open import open_data
from normalcy.errors import NormalcyWarning
from normalcy.results.dicom import write_dicom
from normalcy.results.predict import score_into

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


def test_images_without_a_place_get_what_needs_none(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, said = command(monkeypatch, capfd, "score", place / "model", place / "new", "--out", tmp_path / "results")
    assert code == 0, said
    texts = [said]
    code, said = command(monkeypatch, capfd, "dicom", tmp_path / "results", "--out", tmp_path / "out")
    assert code == 0, said
    assert "Note: 1 images have no frame of reference (FrameOfReferenceUID, ImageOrientationPatient)" in said
    assert "no parametric map" in said
    assert "Wrote DICOM results of 2 images" in said
    assert (tmp_path / "out/ct/1.dcm/map.dcm").exists()
    without = {path.name for path in (tmp_path / "out/us").rglob("*") if path.is_file()}
    assert "map.dcm" not in without
    assert "overlay-0000.dcm" in without
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


@pytest.mark.parametrize(
    ("kind", "frames", "orientation", "files"),
    [
        (uid.ComputedRadiographyImageStorage, 0, ["L", "F"], {"overlay-0000.dcm", "regions.dcm"}),
        (uid.DigitalMammographyXRayImageStorageForPresentation, 0, ["A", "FR"], {"overlay-0000.dcm", "regions.dcm"}),
        (uid.DigitalXRayImageStorageForPresentation, 0, None, {"overlay-0000.dcm", "regions.dcm"}),
        (uid.UltrasoundImageStorage, 0, None, {"overlay-0000.dcm", "regions.dcm"}),
        (uid.SecondaryCaptureImageStorage, 0, None, {"overlay-0000.dcm", "regions.dcm"}),
        (uid.XRayAngiographicImageStorage, 0, None, {"overlay-0000.dcm"}),
        (uid.UltrasoundMultiFrameImageStorage, 3, None, {"overlay-0001.dcm"}),
    ],
    ids=["CR", "MG", "DX", "US", "SC", "XA", "US of frames"],
)
def test_objects_without_a_frame_of_reference(
    tmp_path: Path, kind: str, frames: int, orientation: list[str] | None, files: set[str]
) -> None:
    """By the standard: a segmentation, which gives its derivation, and secondary captures need none; a parametric map does."""
    rng = np.random.default_rng(0)
    for k in range(31):
        pixels = rng.integers(90, 110, (max(frames, 1), 20, 24)).astype(np.int16)
        if k == 30:
            pixels[min(1, len(pixels) - 1), 4:9, 5:10] = 250
        ds = dataset(k, 0, pixels[0], place=False)
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = kind
        ds.Modality, ds.PatientOrientation, ds.PixelData = "OT", orientation, pixels.tobytes()
        if frames:
            ds.NumberOfFrames = frames
        (tmp_path / ("new" if k == 30 else "train")).mkdir(exist_ok=True)
        pydicom.dcmwrite(tmp_path / ("new" if k == 30 else "train") / f"{k}.dcm", ds, enforce_file_format=True)
    detector = Detector("zscore", false_alarms=0.1).fit(tmp_path / "train")
    data = open_data(tmp_path / "new")
    score_into(detector, data, tmp_path / "results")
    with pytest.warns(NormalcyWarning, match="no parametric map"):
        assert write_dicom(tmp_path / "results", tmp_path / "out", data) == (1, [])
    written = {path.name: path for path in (tmp_path / "out").rglob("*.dcm") if path.is_file()}
    assert files <= set(written)
    assert "map.dcm" not in written
    assert ("regions.dcm" in written) == ("regions.dcm" in files)
    source = pydicom.dcmread(tmp_path / "new/30.dcm")
    for name, path in written.items():
        ds = pydicom.dcmread(path)
        assert list(ds.PatientOrientation or []) == (orientation or [])
        assert "FrameOfReferenceUID" not in ds
        assert ds.StudyInstanceUID == source.StudyInstanceUID
        assert ds.SOPInstanceUID != source.SOPInstanceUID
        if name == "regions.dcm":
            assert ds.pixel_array.reshape(20, 24)[4:9, 5:10].all()
        else:
            (reference,) = ds.SourceImageSequence
            assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
            assert reference.get("ReferencedFrameNumber") == (int(name[8:12]) + 1 if frames else None)
        if shutil.which("dciodvfy"):  # of dicom3tools
            found = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True).stderr
            assert not [line for line in found.splitlines() if line.startswith("Error")], found
