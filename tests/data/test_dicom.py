"""DICOM: values, places and order are those of the file; what is no single volume is refused; no name of a patient leaves."""

import hashlib
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless, generate_uid
from runner import Run
from scipy.spatial.transform import Rotation

from normalcy.data.check import check, refuse_mixed
from normalcy.data.dicom import decode_series, windows
from normalcy.data.open import open_data
from normalcy.data.stores import Folder
from normalcy.detector import Detector
from normalcy.errors import DataError

CT = pydicom.uid.CTImageStorage


def dataset(pixels: np.ndarray, series: str = "1.2.3", **words: Any) -> Dataset:
    """One slice (rows, columns) or (rows, columns, 3); ``words`` replace or remove (None) elements."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CT
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.1", series, "1.2.9"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Doe^Jane", "MRN-47110815", "19700101", "F"
    ds.StudyID, ds.StudyDate, ds.StudyTime, ds.AccessionNumber = "1", "20200101", "120000", "A77"
    ds.ReferringPhysicianName, ds.SeriesNumber, ds.InstanceNumber = "Roe^Richard", 1, 1
    ds.Modality = "CT"
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    ds.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = 8 * pixels.dtype.itemsize
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(pixels.dtype.kind == "i")
    ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 0]
    ds.PixelSpacing, ds.SliceThickness = [1, 1], 1
    ds.PixelData = pixels.tobytes()
    for word, value in words.items():
        if value is None:
            delattr(ds, word)
        else:
            setattr(ds, word, value)
    return ds


def encoded(ds: Dataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def series(
    volume: np.ndarray, turn: np.ndarray, spacing: Sequence[float] = (0.8, 0.5, 2.5), **words: Any
) -> list[Dataset]:
    """Slices of (slices, rows, columns): rows and columns run along the first two columns of ``turn`` (in LPS)."""
    made = []
    for k, plane in enumerate(volume):
        position = np.array([-20.0, 11.0, 5.0]) + k * spacing[2] * turn[:, 2]
        made.append(
            dataset(
                plane,
                ImageOrientationPatient=[*turn[:, 0].round(9), *turn[:, 1].round(9)],
                ImagePositionPatient=list(position.round(9)),
                PixelSpacing=[spacing[0], spacing[1]],  # between rows, between columns
                SliceThickness=spacing[2],
                InstanceNumber=k + 1,
                **words,
            )
        )
    return made


def read(datasets: Sequence[Dataset]) -> tuple[np.ndarray, Any]:
    return decode_series([encoded(ds) for ds in datasets], [f"{i}.dcm" for i in range(len(datasets))], "series")


def turns() -> list[np.ndarray]:
    """All 24 rotations of a cube, and an oblique one."""
    return [*Rotation.create_group("O").as_matrix(), Rotation.from_rotvec([0.2, -0.3, 0.5]).as_matrix()]


@pytest.mark.parametrize("backwards", [False, True], ids=["rising", "falling"])
@pytest.mark.parametrize("number", range(25))
def test_marked_voxel_comes_back(number: int, backwards: bool):
    """Equation C.7.6.2.1-1 of the standard gives the place, whatever the order of the files."""
    turn = turns()[number]
    volume = np.zeros((4, 5, 6), np.int16)
    k, row, column = 2, 1, 4
    volume[k, row, column] = 99
    slices = series(volume, turn)
    x, space = read(slices[::-1] if backwards else slices)
    ds = slices[k]
    orientation, (between_rows, between_columns) = np.array(ds.ImageOrientationPatient, float), ds.PixelSpacing
    lps = np.array(ds.ImagePositionPatient, float)
    lps += orientation[:3] * float(between_columns) * column + orientation[3:] * float(between_rows) * row
    (place,) = np.argwhere(x[0] == 99)
    np.testing.assert_allclose(space.world(tuple(place)), lps * [-1, -1, 1], atol=1e-4)
    steps = np.array([space.world(tuple(place + s)) - space.world(tuple(place)) for s in np.eye(3, dtype=int)])
    assert (steps[(0, 1, 2), (2, 1, 0)] > 0).all(), "towards head, front and right"
    np.testing.assert_array_equal(space.to_file(x[0]).transpose(2, 1, 0), volume)


@pytest.mark.parametrize(
    ("stored", "words", "expected", "dtype"),
    [
        ([0, 100], {"RescaleSlope": 1, "RescaleIntercept": -1024, "BitsStored": 12, "HighBit": 11}, [-1024, -924], "int16"),
        ([0, 100], {"RescaleSlope": 0.5, "RescaleIntercept": 1}, [1, 51], "float32"),
        ([0, 60000], {"RescaleSlope": 1, "RescaleIntercept": -1024}, [-1024, 58976], "int32"),
        ([0, 100], {}, [0, 100], "uint16"),
        ([1, 4095], {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}, [4094, 0], "uint16"),
    ],
)  # fmt: skip
def test_values(stored: list[int], words: dict[str, Any], expected: list[float], dtype: str):
    plane = np.array([stored] * 2, np.uint16)
    x, _ = read([dataset(plane, **words)])
    assert x.dtype == dtype
    # a slice on its own is an image, its rows from back to front
    np.testing.assert_array_equal(x[0], np.array([expected] * 2)[:, ::-1])


def test_signed_and_colour():
    x, space = read(
        [dataset(np.array([[-5, 7], [1, 2]], np.int16), ImageOrientationPatient=None, ImagePositionPatient=None)]
    )
    np.testing.assert_array_equal(x, [[[-5, 7], [1, 2]]])
    assert not space.oriented
    colours = np.random.default_rng(0).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    x, _ = read([dataset(colours, ImageOrientationPatient=None, ImagePositionPatient=None)])
    np.testing.assert_array_equal(x, np.moveaxis(colours, -1, 0))


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=lambda uid: uid.keyword)
def test_compressed(syntax: str):
    volume = np.random.default_rng(0).integers(0, 4000, (3, 40, 41), dtype=np.uint16)
    slices = series(volume, np.eye(3))
    plain, _ = read(slices)
    for ds in slices:
        if syntax == JPEG2000Lossless:  # pydicom's encoder needs a package that nothing else does
            frame = imagecodecs.jpeg2k_encode(ds.pixel_array, codecformat="j2k", reversible=True, level=0)
            ds.PixelData, ds.file_meta.TransferSyntaxUID = encapsulate([frame]), syntax
        else:
            ds.compress(syntax)
    np.testing.assert_array_equal(read(slices)[0], plain)


def multi_frame(volume: np.ndarray, order: Sequence[int]) -> Dataset:
    """An enhanced CT of (slices, rows, columns), its frames stored in this order."""
    ds = dataset(volume[0], ImageOrientationPatient=None, ImagePositionPatient=None, PixelSpacing=None)
    ds.NumberOfFrames, ds.PixelData = len(order), volume[list(order)].tobytes()
    shared, per_frame = Dataset(), []
    orientation, measures = Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness = [0.8, 0.5], 2.5
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    rescale = Dataset()
    rescale.RescaleSlope, rescale.RescaleIntercept = 2, -10
    shared.PixelValueTransformationSequence = [rescale]
    for k in order:
        position, group = Dataset(), Dataset()
        position.ImagePositionPatient = [-20, 11, 5 + 2.5 * k]
        group.PlanePositionSequence = [position]
        per_frame.append(group)
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [shared], per_frame
    return ds


def test_multi_frame_is_the_same_volume():
    volume = np.random.default_rng(0).integers(0, 99, (4, 5, 6), dtype=np.int16)
    expected, space = read(series(volume, np.eye(3), RescaleSlope=2, RescaleIntercept=-10))
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        x, found = read([multi_frame(volume, order)])
        np.testing.assert_array_equal(x, expected)
        np.testing.assert_allclose(found.affine, space.affine)
    cine = multi_frame(volume, range(4))
    del cine.PerFrameFunctionalGroupsSequence, cine.SharedFunctionalGroupsSequence
    assert read([cine])[0].shape == (1, 4, 5, 6), "frames without a place are in their order"


def test_frames_that_are_rescaled_apart():
    """As in PET: each frame has a slope of its own, whatever the order in the file."""
    volume = np.random.default_rng(0).integers(0, 99, (4, 5, 6), dtype=np.int16)
    slopes = np.array([2, 0.5, 3, 1])
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        ds = multi_frame(volume, order)
        del ds.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
        for k, group in zip(order, ds.PerFrameFunctionalGroupsSequence):
            rescale = Dataset()
            rescale.RescaleSlope, rescale.RescaleIntercept = slopes[k], -10 * k
            group.PixelValueTransformationSequence = [rescale]
        x, _ = read([ds])
        alike, _ = read(series(volume, np.eye(3)))
        expected = alike[0] * slopes[:, None, None] - 10 * np.arange(4)[:, None, None]
        np.testing.assert_allclose(x[0], expected, rtol=1e-6)
    del ds.PerFrameFunctionalGroupsSequence[1].PixelValueTransformationSequence
    with pytest.raises(DataError, match="has 4 frames and 3 rescale slopes"):
        read([ds])


def faults() -> dict[str, tuple[list[bytes], str]]:
    volume = np.random.default_rng(0).integers(0, 99, (5, 8, 8), dtype=np.int16)

    def changed(i: int, **words: Any) -> list[bytes]:
        slices = series(volume, np.eye(3))
        for word, value in words.items():
            setattr(slices[i], word, value)
        return [encoded(ds) for ds in slices]

    whole = changed(0)
    compressed = series(volume[:1], np.eye(3))[0]
    compressed.compress(RLELossless)
    compressed.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"  # MPEG-4: no codec for it
    other_size = encoded(dataset(np.zeros((4, 8), np.int16), ImagePositionPatient=[-20, 11, 5]))
    report = dataset(volume[0], Modality="SR", Rows=None, Columns=None, PixelData=None)
    return {
        "missing slice": (whole[:2] + whole[3:], "a slice is missing: 5 mm after slice 1, elsewhere 2.5 mm"),
        "uneven": (changed(4, ImagePositionPatient=[-20, 11, 16]), "unevenly spaced"),
        "mixed series": (changed(1, SeriesInstanceUID="9.9"), "mixed series"),
        "twice": (whole + whole[1:2], "two slices at the same place"),
        "localiser": (changed(2, ImageOrientationPatient=[0, 1, 0, 0, 0, 1]), "differ in orientation"),
        "other size": ([*whole, other_size], "4 x 8 and 8 x 8 pixels"),
        "no place": (changed(0, ImagePositionPatient=None), "do not say where they lie"),
        "cut off": ([whole[0][:-30]], "do not fit its header|damaged"),
        "cut early": ([whole[0][:400]], "holds no|damaged"),
        "no codec": ([encoded(compressed)], "cannot be decoded: damaged, or of a kind that no codec here knows"),
        "no image": ([encoded(report)], "holds no image"),
        "not DICOM": ([b"x" * 200], "the mark DICM is missing"),
        "empty": ([b""], "zero bytes"),
        "flat": (changed(0, PixelSpacing=[0, 1])[:1], "its pixel spacing is 0 1 mm, expected positive numbers"),
    }


@pytest.mark.parametrize("name", faults())
def test_faults_are_a_sentence(name: str):
    files, reason = faults()[name]
    with pytest.raises(DataError, match=reason) as caught:
        decode_series(files, [f"{i}.dcm" for i in range(len(files))], "scan")
    assert str(caught.value).startswith("scan: cannot be read as DICOM (")
    assert not any(secret in str(caught.value) for secret in ("Doe", "4711"))


def test_windows_are_offered():
    ds = dataset(np.zeros((4, 4), np.int16), WindowCenter=[40, 400], WindowWidth=[80, 1800])
    assert windows(encoded(ds)) == [(40, 80), (400, 1800)]
    assert windows(encoded(dataset(np.zeros((4, 4), np.int16)))) == []


def write(folder: Path, slices: Sequence[Dataset], reverse: bool = False) -> None:
    """Files without a suffix, as scanners write them; names in the order of the slices or against it."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, ds in enumerate(slices[::-1] if reverse else slices):
        (folder / f"IM{i:04d}").write_bytes(encoded(ds))


def test_folders_of_series(tmp_path: Path):
    volume = np.random.default_rng(0).integers(0, 99, (3, 8, 8), dtype=np.int16)
    write(tmp_path / "a", series(volume, np.eye(3)))
    for k, uid in enumerate(("1.7", "1.8")):
        for i, ds in enumerate(series(volume, np.eye(3), SeriesInstanceUID=uid, PatientID="other")):
            (tmp_path / "b").mkdir(exist_ok=True)
            (tmp_path / "b" / f"{k}{i}.dcm").write_bytes(encoded(ds))
    (tmp_path / "single.dcm").write_bytes(encoded(series(volume, np.eye(3))[0]))
    (tmp_path / "bad.dcm").write_bytes(b"nothing")
    (tmp_path / "notes.txt").write_text("x" * 200)
    data = open_data(tmp_path)
    paths = [item.path for item in data.items]
    assert paths[:1] + paths[3:] == ["a", "bad.dcm", "single.dcm"]
    assert all(re.fullmatch(r"b/series-1-axial-[0-9a-f]{8}", path) for path in paths[1:3])
    cases = [item.case for item in data.items]
    assert cases[0] == cases[4] != cases[1] == cases[2], "one patient's series and single image, another's two"
    assert cases[0].startswith("patient-")
    assert data.ignored == ("notes.txt",)
    assert data.read(0).shape == (1, 3, 8, 8)
    assert data.size(0) == (3, 8, 8)
    (tmp_path / "table.csv").write_text("path,case\na,first\nsingle.dcm,second\n")
    assert [open_data(tmp_path / "table.csv").read(i).shape for i in (0, 1)] == [(1, 3, 8, 8), (1, 8, 8)]
    assert open_data(tmp_path / "single.dcm").read(0).shape == (1, 8, 8)


def test_series_of_one_folder_are_told_apart_without_identifiers(tmp_path: Path):
    """By number and plane, as a person may look for them; what is no number is not told."""
    volume = np.random.default_rng(0).integers(0, 99, (7, 8, 8), dtype=np.int16)
    turned = np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]])
    (tmp_path / "study").mkdir()
    for k, (number, turn) in enumerate(((3, np.eye(3)), (12, turned), (None, np.eye(3)), (4711081547, np.eye(3)))):
        slices = series(volume + k, turn, SeriesInstanceUID=f"1.7.{k}", SeriesNumber=number)
        for i, ds in enumerate(slices if k else slices[:2] + slices[3:]):
            (tmp_path / "study" / f"IM{k}{i}").write_bytes(encoded(ds))
    data = open_data(tmp_path)
    words = [item.path.removeprefix("study/series-").rpartition("-")[0] for item in data.items]
    assert sorted(words) == ["12-sagittal", "3-axial", "axial", "axial"], "a number of ten digits may be a patient's"
    assert not any("4711" in item.path for item in data.items)
    problems = {fault.path: fault.problem for fault in check(data) if fault.severity == "error"}
    (path,) = problems
    assert path.startswith("study/series-3-axial-")
    assert "study (6 files, IM00 the first): cannot be read as DICOM (a slice is missing" in problems[path]


def test_check_lists_modality_and_damage(tmp_path: Path):
    volume = np.random.default_rng(0).integers(0, 99, (3, 8, 8), dtype=np.int16)
    for i in range(3):
        uid = f"1.{i}"
        write(
            tmp_path / f"s{i}", series(volume + i, np.eye(3), SeriesInstanceUID=uid, Modality="MR" if i == 1 else "CT")
        )
    slices = series(volume, np.eye(3), SeriesInstanceUID="1.9")
    write(tmp_path / "s9", [slices[0], slices[2], *series(volume[:1] + 7, np.eye(3), SeriesInstanceUID="1.9")][:2])
    problems = {fault.path: fault.problem for fault in check(open_data(tmp_path)) if fault.severity == "error"}
    assert "modality MR, while 3 of 4 images have modality CT" in problems["s1"]


def test_mixed_modalities_and_units_are_refused_with_a_list(tmp_path: Path):
    volume = np.random.default_rng(0).integers(0, 99, (3, 8, 8), dtype=np.int16)

    def add(name: str, **words: Any) -> None:
        write(tmp_path / name, series(volume, np.eye(3), SeriesInstanceUID=f"1.{len(name)}.{ord(name[-1])}", **words))

    for i in range(5):
        add(f"ct{i}")
    (tmp_path / "bad.dcm").write_bytes(b"nothing")
    refuse_mixed(open_data(tmp_path))
    add("mr", Modality="MR")
    add("zeff", RescaleType="Z_EFF", RescaleSlope=1, RescaleIntercept=0)
    with pytest.raises(DataError) as caught:
        refuse_mixed(open_data(tmp_path))
    assert (
        "expected images of one modality in one unit, got 5 of CT in HU (ct0, ct1, ct2, ...); 1 of MR in no unit (mr); "
        "1 of CT in Z_EFF (zeff); choose some with a table of paths."
    ) in str(caught.value)
    problems = {fault.path: fault.problem for fault in check(open_data(tmp_path)) if fault.severity == "error"}
    assert "modality CT in Z_EFF, while 5 of 7 images have modality CT in HU" in problems["zeff"]


def test_the_patient_is_the_case_in_tables_too(tmp_path: Path):
    volume = np.random.default_rng(0).integers(0, 99, (3, 8, 8), dtype=np.int16)
    for k in range(4):
        uid, who = f"1.{k}", ("A", "A", "B", "B")[k]
        write(tmp_path / f"s{k}", series(volume + k, np.eye(3), SeriesInstanceUID=uid, PatientID=who))
    table = tmp_path / "t.csv"
    table.write_text("path,split,case\ns0,train,\ns1,test,\ns2,train,own\ns3/IM0000,test,\ns2[z=1],test,\n")
    data = open_data(table)
    names = [item.case for item in data.items]
    assert names[0] == names[1] == next(item.case for item in open_data(tmp_path).items if item.path == "s0")
    assert names[2] == "own"
    assert names[3] == names[4] != names[0]
    errors = [fault.problem for fault in check(data) if fault.severity == "error"]
    assert any("is in the training split too" in problem for problem in errors)


def test_the_issuer_counts_where_there_are_several(tmp_path: Path):
    volume = np.zeros((2, 4, 4), np.int16)

    def cases(*issuers: str) -> list[str]:
        for k, issuer in enumerate(issuers):
            words = {"SeriesInstanceUID": f"1.{k}", "IssuerOfPatientID": issuer}
            write(tmp_path / f"s{k}", series(volume, np.eye(3), **words))
        return [item.case for item in open_data(tmp_path).items]

    assert len(set(cases("", "clinic", "clinic"))) == 1
    assert len(set(cases("practice", "clinic", "clinic"))) == 2


def test_one_series_of_two_patients_is_refused(tmp_path: Path):
    volume = np.zeros((3, 4, 4), np.int16)
    write(tmp_path / "a", series(volume, np.eye(3), PatientID="Doe-1"))
    write(tmp_path / "b", series(volume, np.eye(3), PatientID="Doe-2"))
    (tmp_path / "t.csv").write_text("path\na\nb\n")
    for place in (tmp_path, tmp_path / "t.csv"):
        with pytest.raises(DataError, match=r"a/IM0000 and b/IM000\d: are of one series.*two patients") as caught:
            open_data(place)
        assert "Doe" not in str(caught.value)
    slices = series(volume, np.eye(3))
    slices[1].PatientID = "Doe-2"
    with pytest.raises(DataError, match="slices of two patients"):
        decode_series([encoded(ds) for ds in slices], list("abc"), "x")


def test_radiographs_that_share_a_series_are_images(tmp_path: Path):
    rng = np.random.default_rng(0)
    plain = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "Modality": "DX"}
    views = [dataset(rng.integers(0, 99, (6, 5), dtype=np.uint16), "1.5", **plain) for _ in range(3)]
    write(tmp_path / "x", views)
    data = open_data(tmp_path)
    assert [item.path for item in data.items] == ["x/IM0000", "x/IM0001", "x/IM0002"]
    assert len({item.case for item in data.items}) == 1
    for i in range(3):
        np.testing.assert_array_equal(data.read(i)[0], views[i].pixel_array)
    (tmp_path / "t.csv").write_text("path\nx\n")
    with pytest.raises(DataError, match=r"do not say where they lie .*; name each of them as an image of its own"):
        open_data(tmp_path / "t.csv").read(0)


def test_a_file_without_preamble_is_called_one(tmp_path: Path):
    (tmp_path / "a.dcm").write_bytes(encoded(dataset(np.zeros((4, 4), np.int16)))[132:])
    with pytest.raises(DataError, match=r"the preamble of 128 bytes.*dcmconv"):
        open_data(tmp_path).read(0)


def test_parts_of_a_series(tmp_path: Path):
    volume = np.random.default_rng(0).integers(0, 99, (5, 8, 6), dtype=np.int16)
    write(tmp_path / "ct", series(volume, np.eye(3)))
    whole = open_data(tmp_path / "ct").read(0)
    (tmp_path / "t.csv").write_text('path,label\nct[z=2],0\n"ct[z=1:4]",0\nct,0\n')
    table = open_data(tmp_path / "t.csv")
    one = open_data(f"{tmp_path}/ct[z=2]")
    assert one.items[0].path.endswith("ct[z=2]")
    for x in (one.read(0), table.read(0)):
        np.testing.assert_array_equal(x, whole[:, 2])
    np.testing.assert_array_equal(table.read(1), whole[:, 1:4])
    np.testing.assert_array_equal(table.read(2), whole)
    assert table.size(0) == whole.shape[2:]
    np.testing.assert_allclose(table.space(0).world((0, 0)), table.space(2).world((2, 0, 0)))
    with pytest.raises(DataError, match="expected z from 0 to 4, got 7"):
        open_data(f"{tmp_path}/ct[z=7]").read(0)


def test_the_space_of_a_series_that_was_read_costs_no_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for i in range(6):
        write(tmp_path / f"ct{i}", series(np.full((3, 8, 8), 7 + i, np.int16), np.eye(3), SeriesInstanceUID=f"1.{i}"))
    write(tmp_path / "dose", series(np.zeros((3, 8, 8), np.int16), np.eye(3), SeriesInstanceUID="2.1", Modality="MR"))
    data, reads = open_data(tmp_path), []
    original = Folder.bytes
    monkeypatch.setattr(Folder, "bytes", lambda self, file: reads.append(file) or original(self, file))
    with pytest.raises(DataError, match=r"6 of CT in HU.*1 of MR"):
        Detector("zscore", calibration=0).fit(data)
    assert len(reads) == 21


SECRETS = (b"Doe", b"Jane", b"MRN-", b"47110815", b"19700101", b"Roe")


def test_fit_and_score_series(tmp_path: Path, run: Run):
    """Both orders of file names give the same result; nothing that names a patient is in any file or message."""
    rng = np.random.default_rng(0)

    def scan(folder: str, patient: int, bright: bool = False, reverse: bool = False) -> None:
        volume = rng.normal(300, 20, (8, 10, 12)).astype(np.int16)
        if bright:
            volume[2:5, 3:7, 4:9] += 700
        uid = f"1.{sum(folder.encode())}.{patient}"
        words = {"SeriesInstanceUID": uid, "PatientID": f"MRN-47110815-{patient}"}
        write(tmp_path / "data" / folder, series(volume, np.eye(3), **words), reverse)

    for i in range(40):
        scan(f"train/good/{i}", i // 2, reverse=i % 2 == 1)
    for i in range(2):
        scan(f"test/good/{i}", 100 + i)
        scan(f"test/bright/{i}", 200 + i, bright=True, reverse=i == 1)
    (tmp_path / "data/train/good/99").mkdir()
    (tmp_path / "data/train/good/99/x.dcm").write_bytes(
        encoded(series(np.zeros((1, 4, 4), np.int16), np.eye(3))[0])[:600]
    )

    said = run.said("check", tmp_path / "data")
    assert "train/good/99/x.dcm" in said
    said += run.said("fit", tmp_path / "data", "--method", "zscore", "--out", tmp_path / "model")
    said += run.said("score", tmp_path / "model", tmp_path / "data", "--out", tmp_path / "results")
    said += run.said("report", tmp_path / "results")
    import nibabel

    for i in range(2):
        values = nibabel.load(tmp_path / f"results/maps/test/bright/{i}.nii.gz").get_fdata()
        assert values.shape == (12, 10, 8)
        assert values[4:9, 3:7, 2:5].min() > values.mean(), "columns, rows, slices from the lowest on"
    check_dicom_results(tmp_path, run.said("dicom", tmp_path / "results", "--out", tmp_path / "dicom"))
    fitted = json.loads((tmp_path / "model/detector.json").read_text())["data"]
    name = f"image {hashlib.sha256(b'train/good/99/x.dcm').hexdigest()[:8]}"  # folders name patients
    assert [path for path, _ in fitted["failed"]] == [name]
    written = [path for folder in ("model", "results") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    texts = [said.encode(), *(path.read_bytes() for path in written)]
    assert len(texts) > 10
    for secret in SECRETS:
        assert not any(secret in text for text in texts), secret
    assert "no diagnosis" in (tmp_path / "results/report.html").read_text()
    assert "no diagnosis" in (tmp_path / "model/CARD.md").read_text()


def check_dicom_results(folder: Path, said: str) -> None:
    """Values and places are those of the map; source instances are named."""
    import nibabel

    assert "Wrote DICOM results of 4 images" in said
    values = nibabel.load(folder / "results/maps/test/bright/1.nii.gz").get_fdata(dtype=np.float32)
    found = pydicom.dcmread(folder / "dicom/test/bright/1/map.dcm")
    x, space = decode_series([(folder / "dicom/test/bright/1/map.dcm").read_bytes()], ["map.dcm"], "map")
    np.testing.assert_array_equal(space.to_file(x[0]), values)
    np.testing.assert_allclose(
        space.affine, nibabel.load(folder / "results/maps/test/bright/1.nii.gz").affine, atol=1e-4
    )
    sources = {ds.SOPInstanceUID: ds for ds in map(pydicom.dcmread, (folder / "data/test/bright/1").iterdir())}
    referenced = {ref.ReferencedSOPInstanceUID for ref in found.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referenced == set(sources)
    threshold = json.loads((folder / "results/run.json").read_text())["calibration"]["pixel_threshold"]
    regions = pydicom.dcmread(folder / "dicom/test/bright/1/regions.dcm")
    assert regions.Modality == "SEG"
    assert int(regions.pixel_array.sum()) == int((values > threshold).sum())
    overlays = sorted((folder / "dicom/test/bright/1").glob("overlay-*.dcm"))
    assert len(overlays) == int((values > threshold).any((0, 1)).sum())
    shown = pydicom.dcmread(overlays[0])
    assert shown.pixel_array.shape == (10, 12, 3)
    assert shown.SourceImageSequence[0].ReferencedSOPInstanceUID in sources
    assert (shown.StudyInstanceUID, shown.PatientID) == ("1.2.1", "MRN-47110815-201")


REAL = Path(__file__).parents[2].parent / "shared" / "data" / "volumes" / "ct_3mm.nii.gz"


@pytest.mark.skipif(not REAL.is_file(), reason="needs ../shared/data/volumes")
def test_real_ct_as_a_series(tmp_path: Path):
    """The same values at the same places from NIfTI and from a DICOM series made of it."""
    import nibabel

    image = nibabel.load(REAL)
    stored = np.asarray(image.dataobj).astype(np.int16)[::3, ::3]
    affine = image.affine @ np.diag([3, 3, 1, 1])
    nibabel.save(nibabel.Nifti1Image(stored, affine), tmp_path / "ct.nii.gz")
    turn = np.diag([-1.0, -1.0, 1.0])  # the file runs to the right and the front, DICOM counts to the left and the back
    slices = series(stored.transpose(2, 1, 0), turn, spacing=(9, 9, 3), RescaleSlope=1, RescaleIntercept=0)
    for k, ds in enumerate(slices):
        ds.ImagePositionPatient = list((affine[:3, 3] + k * affine[:3, 2]) * [-1, -1, 1])
    write(tmp_path / "series", slices, reverse=True)
    data = open_data(tmp_path)
    expected, found = data.read(0), data.read(1)
    assert [item.path for item in data.items] == ["ct.nii.gz", "series"]
    np.testing.assert_array_equal(found, expected)
    for index in ((0, 0, 0), (7, 20, 31)):
        one, other = (data.space(i) for i in (0, 1))
        assert one is not None
        assert other is not None
        np.testing.assert_allclose(other.world(index), one.world(index), atol=1e-3)
