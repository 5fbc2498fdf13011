"""Padding of CT, declared in DICOM or a usual fill in any volume, has no part in ranges and statistics of values."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from runner import Run

from normalcy import Detector
from normalcy.data.check import check_and_survey
from normalcy.data.kinds import Kind
from normalcy.data.open import open_data
from normalcy.data.stain import normalise
from normalcy.data.volumes import Space, as_darkest, imaged
from normalcy.preprocessing.pipeline import Preprocess
from normalcy.preprocessing.plan import survey
from normalcy.results.dicom import write_dicom
from normalcy.results.predict import score_into
from normalcy.studies.select import synthetic_anomalies

SIDE = 24
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]
CIRCLE = (ROWS - 11.5) ** 2 + (COLUMNS - 11.5) ** 2 < 11.5**2


def slice_of(i: int, fill: float) -> np.ndarray:
    """(rows, columns) in Hounsfield units: air, a body of 40, noise, a bone of 1,200; the corners are not imaged."""
    rng = np.random.default_rng(i)
    x = np.where((ROWS - 12) ** 2 + (COLUMNS - 12) ** 2 < 64, 40.0, -1000.0) + rng.normal(0, 5, (SIDE, SIDE))
    x[12:14, 12:14] = 1200
    return np.where(CIRCLE, np.clip(x, -1024, 2000), fill).round()


def write_dicom_slice(folder: Path, i: int, fill: float, declared: bool) -> None:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{i}.1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = f"1.2.3.{i}", f"1.2.3.{i}.2", f"1.2.3.{i}.3"
    ds.PatientID, ds.PatientName, ds.Modality, ds.SeriesNumber = str(i), "A", "CT", 1
    ds.PatientBirthDate = ds.PatientSex = ds.AccessionNumber = ds.ReferringPhysicianName = ds.StudyID = ""
    ds.StudyDate = ds.StudyTime = ""
    ds.InstanceNumber, ds.Rows, ds.Columns = 1, SIDE, SIDE
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, 1
    ds.ImageOrientationPatient, ds.ImagePositionPatient, ds.PixelSpacing = [1, 0, 0, 0, 1, 0], [0, 0, 0], [1, 1]
    ds.RescaleSlope, ds.RescaleIntercept, ds.SliceThickness = 1, -1024, 1
    stored = (slice_of(i, fill) + 1024).astype(np.int16)
    if declared:
        ds.PixelPaddingValue = int(stored[0, 0])
    ds.PixelData = stored.tobytes()
    pydicom.dcmwrite(folder / f"{i:02d}.dcm", ds, enforce_file_format=True)


def folder_of(kind: str, root: Path, fill: float) -> Path:
    folder = root / f"{kind.replace(' ', '_')}_{abs(fill):g}"
    folder.mkdir()
    for i in range(24):
        if kind == "nifti":
            volume = slice_of(i, fill).astype(np.int16)[:, :, None]
            nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / f"{i:02d}.nii.gz")
        else:
            write_dicom_slice(folder, i, fill, kind == "declared")
    return folder


@pytest.mark.parametrize(
    ("kind", "fill"), [("declared", -3024), ("declared", -1500), ("other", -3024), ("nifti", -2000)]
)
def test_the_range_of_values_is_that_of_what_was_imaged(kind: str, fill: float, tmp_path: Path, run: Run):
    folder = folder_of(kind, tmp_path, fill)
    data = open_data(folder)
    for kinds in (survey(data)[0], check_and_survey(data)[1]):
        assert all(isinstance(one, Kind) and -1100 < one.low < -1000 and one.high == 1200 for one in kinds)
    run.good("fit", folder, "--method", "zscore", "--out", tmp_path / "model")
    fitted = json.loads((tmp_path / "model/detector.json").read_text())["preprocess"]["fitted"]
    assert -1100 < fitted["low"] < -1000
    assert fitted["high"] == 1200
    again = Preprocess().fit(data.read, len(data), imaged=data.imaged).constants
    assert -1100 < again.low <= fitted["low"], "of all images, not only of those that are trained on"
    assert again.high == fitted["high"]


@pytest.mark.parametrize(
    "steps",
    [(), ("gcn",), ("zscore",), ("percentile:1:99",), ("histogram_equalisation",), ("clahe",), ("resize:32", "gcn")],
    ids=str,
)
def test_statistics_leave_padding_out(steps: tuple[str, ...], tmp_path: Path):
    """Where it is filled with -3024 as where it is filled with -2000; and it is no darker than what was imaged."""
    found = []
    for fill in (-3024, -2000):
        data = open_data(folder_of("other", tmp_path, fill))
        fitted = Preprocess(steps).fit(data.read, len(data), imaged=data.imaged)
        image = data.read(3)
        found.append(fitted.apply(image, data.imaged(3, image))[0])
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    if "resize:32" not in steps:
        inside = imaged(image, data.space(3))
        assert inside.sum() == CIRCLE.sum()
        assert found[0][0, ~inside].min() >= found[0][0, inside].min() - 0.1
        plain = Preprocess(steps).fit(lambda i: data.read(i)[:, 9:16, 9:16], len(data))
        assert plain.constants.values == fitted.constants.values
    if not steps:
        assert (found[0].min(), found[0].max()) == (0, 1)


def test_usual_fills_alone_are_taken_for_padding():
    space = Space((4, 4, 1), np.eye(4))
    x = np.full((1, 4, 4), 50, np.int16)
    x[0, 0], x[0, 1] = -3024, -1024
    np.testing.assert_array_equal(imaged(x, space), x[0] != -3024)
    for other in (-1024, -1500, -3000):  # an image that has such values, for all that is known
        assert imaged(np.where(x == -3024, other, x), space).all()
    x[0, 2] = -1900  # not in Hounsfield units
    assert imaged(x, space).all()
    assert imaged(np.full((1, 4, 4), -3024), space).all(), "nothing else is there"
    assert imaged(np.where(x < -1000, 0, x).astype(np.uint16), space).all()


def test_padding_is_shown_as_the_darkest_of_the_rest():
    x = np.array([[[-3024, -1000], [40, 1200]]], np.int16)
    shown = as_darkest(x, x[0] != -3024)
    np.testing.assert_array_equal(shown, [[[-1000, -1000], [40, 1200]]])
    assert as_darkest(x, None) is x


def test_overlays_and_planted_anomalies_leave_padding_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = open_data(folder_of("declared", tmp_path, -3024))
    planted = synthetic_anomalies(data)
    changed = [planted.read(i)[:, CIRCLE] for i in range(len(planted))]
    assert min(x.min() for x in changed) >= -1100, "defects have values that were imaged"
    detector = Detector("zscore", false_alarms=0.2).fit(data)
    score_into(detector, data, tmp_path / "results")
    write_dicom(tmp_path / "results", tmp_path / "out", data)
    overlay = pydicom.dcmread(next((tmp_path / "out").rglob("overlay-*.dcm"))).pixel_array.max(-1)
    air, bone = overlay[12, 1], overlay[12, 12]
    assert int(bone) - int(air) > 150
    assert abs(int(overlay[0, 0]) - int(air)) < 30, "-3024 is as black as air"


@pytest.mark.parametrize("way", ["macenko", "vahadane"])
def test_black_of_slides_has_no_part_in_stains(way: str):
    rng = np.random.default_rng(0)
    tile = np.clip(np.array([150, 90, 160])[:, None, None] + rng.normal(0, 25, (3, 48, 48)), 20, 235).astype(np.uint8)
    black = tile.copy()
    black[:, :, :16] = 0
    normal: Callable[..., np.ndarray] = normalise
    without, beside = normal(tile[:, :, 16:], way), normal(black, way)
    np.testing.assert_array_equal(beside[:, :, :16], 0)
    assert np.abs(beside[:, :, 16:].astype(int) - without).mean() < 3
