"""DICOM: what a file is (dose, parametric map, nuclear medicine, no image at all), where its frames lie, what its values mean."""

import gzip
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom import uid
from pydicom.dataset import Dataset
from test_dicom import dataset, encoded, multi_frame, read, series

from normalcy.data.dicom import decode_series, series_space
from normalcy.data.volumes import Space, decode_volume, imaged, write_volume
from normalcy.errors import DataError

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"
LPS = np.diag([-1.0, -1.0, 1.0])


def of_class(kind: str, pixels: np.ndarray, **words: Any) -> Dataset:
    """A data set of a SOP class, multi-frame where ``pixels`` has three axes."""
    ds = dataset(pixels if pixels.ndim == 2 else pixels[0], **words)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = kind
    if pixels.ndim == 3:
        ds.NumberOfFrames, ds.PixelData = len(pixels), pixels.tobytes()
    return ds


def one(ds: Dataset) -> tuple[np.ndarray, Space]:
    return decode_series([encoded(ds)], ["a.dcm"], "scan")


def same_as_itk(folder: Path, ds: Dataset | Path, meant: Callable[[np.ndarray], np.ndarray] = np.asarray) -> None:
    """Values and the place of each voxel, in our space and in a map that is written in it, are those of ITK's reader.

    ``meant`` gives the values from what ITK reads.
    """
    file = ds if isinstance(ds, Path) else folder / "a.dcm"
    if isinstance(ds, Dataset):
        file.write_bytes(encoded(ds))
    x, space = decode_series([file.read_bytes()], ["a"], "a")
    theirs = SimpleITK.ReadImage(str(file))
    stored = space.to_file(x)
    axes = theirs.GetDimension()
    stored = stored.transpose(2, 1, 0, *range(3, stored.ndim))
    expected = meant(SimpleITK.GetArrayFromImage(theirs))
    np.testing.assert_allclose(stored, expected.reshape(stored.shape), rtol=1e-6)
    write_volume(folder / "map.nii.gz", x[0].astype(np.float32), space)
    ours = SimpleITK.ReadImage(str(folder / "map.nii.gz"))
    assert ours.GetSize()[:axes] == theirs.GetSize()
    for index in ((0, 0, 0), (1, 2, 0), tuple(n - 1 for n in ours.GetSize())):
        place = theirs.TransformIndexToPhysicalPoint(index[: theirs.GetDimension()])
        np.testing.assert_allclose(ours.TransformIndexToPhysicalPoint(index)[: len(place)], place, atol=1e-3)
        np.testing.assert_allclose((LPS @ space.affine[:3] @ [*index, 1])[: len(place)], place, atol=1e-3)
    again, back = decode_volume((folder / "map.nii.gz").read_bytes(), "map")
    np.testing.assert_array_equal(again[0], x[0].astype(np.float32))
    assert back.oriented == space.oriented
    np.testing.assert_allclose(back.affine, space.affine, atol=1e-4)


# -- dose, parametric maps, nuclear medicine ------------------------------------------------------------------------------


def test_dose_is_in_gray_and_its_frames_lie_where_their_offsets_say():
    data = (SHIPPED / "rtdose.dcm").read_bytes()
    ds = pydicom.dcmread(SHIPPED / "rtdose.dcm")
    x, space = decode_series([data], ["a"], "dose")
    expected = ds.pixel_array * float(ds.DoseGridScaling)
    np.testing.assert_allclose(space.to_file(x[0]).transpose(2, 1, 0), expected, rtol=1e-6)
    assert x.max() == pytest.approx(1.254)
    assert (space.modality, space.unit) == ("RTDOSE", ds.DoseUnits)
    assert space.spacing == (5, 10, 10)
    first = np.asarray(ds.ImagePositionPatient, float)
    np.testing.assert_allclose(LPS @ space.affine[:3, 3], first)
    np.testing.assert_allclose(
        LPS @ space.affine[:3] @ [0, 0, 14, 1], first + np.array([0, 0, ds.GridFrameOffsetVector[14]])
    )
    assert series_space([data], ["a"], "dose").spacing == space.spacing


def dose(offsets: Sequence[float], **words: Any) -> Dataset:
    grid = np.arange(3 * 4 * 5, dtype=np.uint16).reshape(3, 4, 5)
    ds = of_class(uid.RTDoseStorage, grid, Modality="RTDOSE", **words)
    ds.ImagePositionPatient, ds.GridFrameOffsetVector = [-20, 11, 5], list(offsets)
    ds.DoseUnits, ds.DoseGridScaling = "GY", 0.25
    return ds


def test_dose_offsets_relative_absolute_and_falling():
    x, space = one(dose([0, 2.5, 5]))
    assert space.unit == "GY"
    np.testing.assert_allclose(space.affine[:3, 2], [0, 0, 2.5])
    np.testing.assert_array_equal(one(dose([5, 7.5, 10]))[0], x)
    np.testing.assert_allclose(one(dose([5, 7.5, 10]))[1].affine, space.affine)
    falling, below = one(dose([0, -2.5, -5]))
    np.testing.assert_array_equal(falling, x[:, ::-1])
    np.testing.assert_allclose(below.affine[:3, 3], [20, -11, 0])
    turned = one(dose([0, 2.5, 5], ImageOrientationPatient=[0, 1, 0, 0, 0, 1]))[1]
    np.testing.assert_allclose(turned.affine[:3, 2], [-2.5, 0, 0])  # along the normal, x in LPS
    with pytest.raises(DataError, match="unevenly spaced, from 2 to 3 mm"):
        one(dose([0, 2, 5]))
    with pytest.raises(DataError, match="3 frames and 2 offsets"):
        one(dose([0, 2]))
    unscaled = dose([0, 2.5, 5])
    del unscaled.DoseGridScaling
    with pytest.raises(DataError, match="dose without its scale"):
        one(unscaled)


def parametric_map(pixels: np.ndarray) -> Dataset:
    ds = multi_frame(pixels, range(len(pixels)))
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = uid.ParametricMapStorage
    mapping, unit = Dataset(), Dataset()
    mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = 0.5, 3.0
    unit.CodeValue, unit.CodingSchemeDesignator, unit.CodeMeaning = "mm2/s", "UCUM", "mm2/s"
    mapping.MeasurementUnitsCodeSequence = [unit]
    del ds.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
    ds.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence = [mapping]
    return ds


def test_parametric_map_is_in_the_unit_of_its_mapping():
    pixels = np.random.default_rng(0).integers(0, 99, (4, 5, 6), dtype=np.uint16)
    ds = parametric_map(pixels)
    x, space = one(ds)
    np.testing.assert_allclose(x[0], pixels[:, ::-1, ::-1] * 0.5 + 3)
    assert space.unit == "mm2/s"
    ds.FloatPixelData = pixels.astype(np.float32).tobytes()
    del ds.PixelData
    ds.BitsAllocated = 32
    np.testing.assert_allclose(one(ds)[0], x)
    mapping = ds.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    del mapping.RealWorldValueSlope
    mapping.RealWorldValueLUTData = [0.0, 1.0]
    with pytest.raises(DataError, match="looked up in a table"):
        one(ds)


def nuclear(step: float = 4.0) -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 99, (6, 5, 4), dtype=np.uint16)
    ds = of_class(uid.NuclearMedicineImageStorage, pixels, Modality="NM", ImageOrientationPatient=None)
    del ds.ImagePositionPatient
    ds.PixelSpacing, ds.SliceThickness, ds.SpacingBetweenSlices = [2, 3], abs(step), step
    detector = Dataset()
    detector.ImagePositionPatient, detector.ImageOrientationPatient = [-10, -20, 30], [1, 0, 0, 0, 1, 0]
    ds.DetectorInformationSequence = [detector]
    return ds


def test_nuclear_medicine_lies_where_its_detector_says(tmp_path: Path):
    same_as_itk(tmp_path, nuclear())
    x, space = one(nuclear())
    np.testing.assert_allclose(space.affine[:3, 3], [10, 20, 30])
    assert space.spacing == (4, 2, 3)
    down, below = one(nuclear(-4.0))
    np.testing.assert_array_equal(down, x[:, ::-1])
    np.testing.assert_allclose(below.affine[:3, 3], [10, 20, 10])
    ds = nuclear()
    ds.SliceVector = [6, 5, 4, 3, 2, 1]
    np.testing.assert_array_equal(one(ds)[0], x[:, ::-1])


@pytest.mark.parametrize(
    "vector", ["EnergyWindowVector", "DetectorVector", "TimeSlotVector", "RotationVector", "PhaseVector"]
)
def test_frames_of_nuclear_medicine_that_are_no_stack(vector: str):
    ds = nuclear()
    setattr(ds, vector, [1, 1, 1, 1, 1, 1])
    one(ds)
    setattr(ds, vector, [1, 1, 1, 2, 2, 2])
    with pytest.raises(DataError, match=r"holds frames of 2 .*; expected frames that differ in their place alone"):
        one(ds)


# -- no image -------------------------------------------------------------------------------------------------------------


def other_meanings() -> dict[str, tuple[Dataset, str]]:
    pixels = np.zeros((6, 32, 32), np.uint8)
    slide = of_class(uid.VLWholeSlideMicroscopyImageStorage, pixels, Modality="SM")
    tiles = of_class(uid.SecondaryCaptureImageStorage, pixels, Modality="SM")
    for ds in (slide, tiles):
        ds.TotalPixelMatrixColumns, ds.TotalPixelMatrixRows, ds.DimensionOrganizationType = 96, 64, "TILED_FULL"

    def without_pixels(kind: str) -> Dataset:
        return of_class(kind, pixels[0], Rows=None, Columns=None, PixelData=None)

    return {
        "whole slide": (slide, "holds a whole slide as tiles, expected an image"),
        "tiles": (tiles, "convert it to a tiled TIFF"),
        "segmentation": (of_class(uid.SegmentationStorage, pixels), "holds a segmentation, expected an image"),
        "presentation": (
            without_pixels(uid.GrayscaleSoftcopyPresentationStateStorage),
            "holds no image but is of the class Grayscale Softcopy Presentation State Storage",
        ),
        "structures": (without_pixels(uid.RTStructureSetStorage), "RT Structure Set Storage"),
        "private class": (without_pixels("1.2.3.4.5"), r"\(holds no image\)"),
    }


@pytest.mark.parametrize("name", other_meanings())
def test_what_is_no_image_is_refused(name: str):
    ds, reason = other_meanings()[name]
    with pytest.raises(DataError, match=reason):
        one(ds)
    with pytest.raises(DataError, match=reason):
        series_space([encoded(ds)], ["a.dcm"], "scan")


def test_waveform_is_refused():
    with pytest.raises(DataError, match="holds no image but is of the class 12-lead ECG Waveform Storage"):
        decode_series([(SHIPPED / "waveform_ecg.dcm").read_bytes()], ["a"], "scan")


# -- places ---------------------------------------------------------------------------------------------------------------

VOLUME = np.random.default_rng(0).integers(0, 99, (7, 5, 6), dtype=np.int16)


def test_frames_of_several_orientations_are_refused():
    ds = multi_frame(VOLUME, range(7))
    axial, sagittal = Dataset(), Dataset()
    axial.ImageOrientationPatient, sagittal.ImageOrientationPatient = [1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1]
    for k, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        group.PlaneOrientationSequence = [axial]
        assert k or one(ds)
    one(ds)
    ds.PerFrameFunctionalGroupsSequence[3].PlaneOrientationSequence = [sagittal]
    with pytest.raises(DataError, match=r"mixed frames: they differ in orientation.* 1 0 0 0 1 0 and 0 1 0 0 0 -1"):
        one(ds)


def test_frames_of_several_spacings_or_one_place_are_refused():
    ds = multi_frame(VOLUME, range(7))
    other = Dataset()
    other.PixelSpacing = [0.8, 0.6]
    ds.PerFrameFunctionalGroupsSequence[3].PixelMeasuresSequence = [other]
    with pytest.raises(DataError, match=r"mixed frames: they differ in pixel spacing: 0\.8 0\.5 and 0\.8 0\.6 mm"):
        one(ds)
    ds = multi_frame(VOLUME, range(7))
    ds.SharedFunctionalGroupsSequence[0].PlanePositionSequence = ds.PerFrameFunctionalGroupsSequence[
        0
    ].PlanePositionSequence
    del ds.PerFrameFunctionalGroupsSequence
    with pytest.raises(DataError, match="two slices at the same place"):
        one(ds)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            {"ImageOrientationPatient": [1, 0, 0, 0.5, 0.866, 0]},
            "rows and columns are not at right angles: 1 0 0 0.5 0.866 0",
        ),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "does not say where the voxels lie"),
        ({"PixelSpacing": [-1, 1]}, "its pixel spacing is -1 1 mm, expected positive numbers"),
        ({"PixelSpacing": [0, 0]}, "its pixel spacing is 0 0 mm, expected positive numbers"),
    ],
)
def test_places_that_are_none_are_refused(words: dict[str, Any], reason: str):
    with pytest.raises(DataError, match=reason):
        one(dataset(VOLUME[0], **words))


def test_directions_of_few_digits_are_read():
    _, space = one(dataset(VOLUME[0], ImageOrientationPatient=[0.87, 0.5, 0, -0.5, 0.86, 0]))
    np.testing.assert_allclose(np.linalg.norm(space.affine[:3, :2], axis=0), space.spacing[:0:-1], rtol=1e-6)


def moved(offsets: np.ndarray) -> list[Dataset]:
    """A series whose slices lie off their places by (N, 3) mm."""
    slices = series(VOLUME, np.eye(3))
    for ds, offset in zip(slices, offsets):
        ds.ImagePositionPatient = list((np.array(ds.ImagePositionPatient, float) + offset).round(6))
    return slices


@pytest.mark.parametrize("k", range(7))
def test_a_slice_beside_the_line_is_refused(k: int):
    offsets = np.zeros((7, 3))
    offsets[k, 0] = 15
    with pytest.raises(
        DataError, match=r"slices do not lie in equal steps on a line: slice \d is \d+(\.\d)? mm off it"
    ):
        read(moved(offsets))


@pytest.mark.parametrize("drift", [0.09, -0.09, 0.05])
def test_drifting_spacing_is_refused(drift: float):
    """From one end to the other the spacing changes by 9 or 5 %."""
    offsets = np.zeros((7, 3))
    offsets[1:, 2] = np.cumsum(2.5 * np.linspace(0, drift, 6))
    with pytest.raises(DataError, match=r"unevenly spaced, from 2\.\d+ to 2\.\d+ mm"):
        read(moved(offsets))


def test_rounded_positions_and_a_tilted_gantry_are_read():
    rounded = np.random.default_rng(0).uniform(-0.005, 0.005, (7, 3))
    assert read(moved(rounded))[0].shape == (1, 7, 5, 6)
    tilt = np.outer(np.arange(7), [0, 0.7, 0])
    x, space = read(moved(tilt))
    np.testing.assert_allclose(space.affine[:3, 2], [0, -0.7, 2.5], atol=1e-6)
    assert x.shape == (1, 7, 5, 6)


# -- images without a place -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "modality"),
    [
        (uid.ComputedRadiographyImageStorage, "CR"),
        (uid.UltrasoundImageStorage, "US"),
        (uid.SecondaryCaptureImageStorage, "OT"),
    ],
)
@pytest.mark.parametrize("frames", [1, 3])
def test_map_of_an_image_without_place_lies_on_it(tmp_path: Path, kind: str, modality: str, frames: int):
    """As ITK sees both; the array keeps the rows and columns of the file."""
    pixels = np.random.default_rng(0).integers(0, 99, (frames, 5, 6), dtype=np.uint8)
    ds = of_class(
        kind,
        pixels if frames > 1 else pixels[0],
        Modality=modality,
        ImageOrientationPatient=None,
        ImagePositionPatient=None,
    )
    del ds.PixelSpacing
    ds.ImagerPixelSpacing = [0.4, 0.3]
    if modality != "CR":  # ITK takes the one of these for CR and the other for the rest
        ds.PixelSpacing = [0.4, 0.3]
    same_as_itk(tmp_path, ds)
    x, space = one(ds)
    assert not space.oriented
    np.testing.assert_array_equal(x[0], pixels if frames > 1 else pixels[0])


def test_radiograph_that_does_not_know_its_scale():
    ds = of_class(
        uid.ComputedRadiographyImageStorage,
        VOLUME[0],
        ImageOrientationPatient=None,
        ImagePositionPatient=None,
        Modality="CR",
    )
    ds.PixelSpacing = [0, 0]
    x, space = one(ds)
    np.testing.assert_array_equal(x[0], VOLUME[0])
    assert space.spacing == (1, 1, 1)


# -- values ---------------------------------------------------------------------------------------------------------------


def test_monochrome1_is_inverted_after_the_modality_lut():
    table = (np.arange(4096) ** 2 / 4095.0).round().astype(np.uint16)
    ramp = np.linspace(0, 4095, 12 * 10).reshape(12, 10).astype(np.uint16)
    ds = of_class(
        uid.DigitalXRayImageStorageForPresentation, ramp, BitsStored=12, HighBit=11, PhotometricInterpretation="MONOCHROME1",
        ImageOrientationPatient=None, ImagePositionPatient=None, Modality="DX",
    )  # fmt: skip
    lut = Dataset()
    lut.LUTDescriptor, lut.ModalityLUTType, lut.LUTData = [4096, 0, 16], "OD", table.tobytes()
    lut["LUTDescriptor"].VR, lut["LUTData"].VR = "US", "OW"
    ds.ModalityLUTSequence = [lut]
    x, space = one(ds)
    np.testing.assert_array_equal(x[0], 4095 - table[ramp])
    assert space.unit == "OD"
    ds.PhotometricInterpretation = "MONOCHROME2"
    np.testing.assert_array_equal(one(ds)[0][0], table[ramp])


def test_monochrome1_with_rescale():
    stored = np.array([[0, 100], [4000, 4095]], np.uint16)
    words = {"BitsStored": 12, "HighBit": 11, "ImageOrientationPatient": None, "ImagePositionPatient": None}
    for slope, intercept in ((1, 0), (2, -50), (0.5, 7)):
        ds = dataset(
            stored, RescaleSlope=slope, RescaleIntercept=intercept, PhotometricInterpretation="MONOCHROME1", **words
        )
        meant = stored * float(slope) + intercept
        np.testing.assert_allclose(one(ds)[0][0], (4095 * slope + 2 * intercept) - meant)


@pytest.mark.parametrize("padding", [0, 4095])
def test_padding_of_monochrome1_is_the_darkest(padding: int):
    stored = np.full((6, 6), 2000, np.uint16)
    stored[:2], stored[2, 0], stored[2, 1] = padding, 1000, 3000
    words = {"BitsStored": 12, "HighBit": 11, "ImageOrientationPatient": None, "ImagePositionPatient": None}
    ds = dataset(stored, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=padding, **words)
    x, space = one(ds)
    assert set(x[0, :2].ravel()) == {0}
    assert (x[0, 2, 0], x[0, 2, 1], x[0, 5, 5]) == (3095, 1095, 2095)
    np.testing.assert_array_equal(imaged(x, space), stored != padding)


def test_padding_is_told_in_the_values_that_are_read():
    volume = np.random.default_rng(0).integers(0, 2000, (3, 8, 8)).astype(np.int16)
    volume[:, :, :2] = -2000
    slices = series(volume, np.eye(3), RescaleSlope=1, RescaleIntercept=-1024, PixelPaddingValue=-2000)
    x, space = read(slices)
    assert space.padding == (-3024, -3024)
    np.testing.assert_array_equal(imaged(x, space), space.from_file((volume != -2000).transpose(2, 1, 0))[0])
    ranged = series(volume, np.eye(3), PixelPaddingValue=-2000)
    for ds in ranged:
        ds.PixelPaddingRangeLimit = 9
    x, space = read(ranged)
    assert space.padding == (-2000, 9)
    np.testing.assert_array_equal(imaged(x, space), (x[0] > 9))
    x, space = read(series(volume, np.eye(3)))
    assert space.padding is None
    np.testing.assert_array_equal(imaged(x, space), (x[0] != -2000))  # not declared, but a usual fill
    x, space = read(series(np.maximum(volume, -1000), np.eye(3)))
    assert imaged(x, space).all()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"Modality": "CT"}, ("CT", "HU")),
        ({"Modality": "CT", "RescaleType": "Z_EFF", "RescaleSlope": 2, "RescaleIntercept": 0}, ("CT", "Z_EFF")),
        ({"Modality": "PT", "Units": "BQML"}, ("PT", "BQML")),
        ({"Modality": "MR"}, ("MR", None)),
        ({"Modality": "MR", "RescaleType": "US"}, ("MR", None)),
        ({"Modality": "Doe Jane, born 1970"}, (None, None)),
    ],
)
def test_modality_and_unit(words: dict[str, Any], expected: tuple[str | None, str | None]):
    space = one(dataset(VOLUME[0], **words))[1]
    assert (space.modality, space.unit) == expected


# -- all files that pydicom ships -----------------------------------------------------------------------------------------


REFUSED = {
    "JPEG2000-embedded-sequence-delimiter": "cannot be decoded: damaged",
    "MR_truncated": "damaged",
    "badVR": "damaged",
    "liver_1frame": "holds a segmentation, expected an image",
    "liver_expb_1frame": "holds a segmentation, expected an image",
    "rtplan": "RT Plan Storage",
    "rtplan_truncated": "RT Plan Storage",
    "test-SR": "holds no image but is of the class",
    "reportsi": "holds no image but is of the class",
    "reportsi_with_empty_number_tags": "holds no image but is of the class",
    "waveform_ecg": "12-lead ECG Waveform Storage",
}
for name in ("DICOMDIR-empty", "UN_sequence", "empty_charset_LEI", "meta_missing_tsyntax", "nested_priv_SQ", "priv_SQ"):
    REFUSED[name] = "holds no image"
REFUSED["no_meta_group_length"] = "holds no image"


def scaled_dose(file: Path) -> np.ndarray:
    ds = pydicom.dcmread(file)
    return np.atleast_3d(ds.pixel_array.T * float(ds.DoseGridScaling))


@pytest.mark.parametrize("file", sorted(SHIPPED.rglob("*.dcm")), ids=lambda file: file.stem)
def test_shipped_files_are_read_as_itk_does_or_refused(file: Path, tmp_path: Path):
    """Values and places.

    ITK reads no dose of one frame or with the high byte first, misreads run lengths of wide colours, and cuts palettes to 8 bits.
    """
    data = file.read_bytes()
    known = REFUSED.get(file.stem, None if data[128:132] == b"DICM" else "the mark DICM is missing")
    if known is not None:
        with pytest.raises(DataError, match=rf"^a: cannot be read as DICOM \(.*{known}.*\); replace or remove it\.$"):
            decode_series([data], ["a"], "a")
    elif file.stem in ("rtdose", "rtdose_rle"):
        same_as_itk(tmp_path, file, lambda x: x * float(pydicom.dcmread(file).DoseGridScaling))
    elif file.stem.startswith("rtdose"):
        x, space = decode_series([data], ["a"], "a")
        np.testing.assert_allclose(space.to_file(x[0]), scaled_dose(file), rtol=1e-6)
        whole = decode_series([(SHIPPED / "rtdose.dcm").read_bytes()], ["a"], "a")[1]
        np.testing.assert_allclose(space.affine[:, [0, 1, 3]], whole.affine[:, [0, 1, 3]])
    elif file.stem.startswith(("SC_rgb_rle_16bit", "SC_rgb_rle_32bit")):
        narrow = SimpleITK.ReadImage(str(SHIPPED / (file.stem.replace("_16bit", "").replace("_32bit", "") + ".dcm")))
        largest = 65535 if "16bit" in file.stem else 2**32 - 1
        x, space = decode_series([data], ["a"], "a")
        expected = SimpleITK.GetArrayFromImage(narrow).astype(np.uint64) * (largest // 255)
        np.testing.assert_array_equal(space.to_file(x).transpose(2, 1, 0, 3).reshape(expected.shape), expected)
    elif file.stem == "examples_palette":
        same_as_itk(tmp_path, file, lambda x: x * np.uint16(256))
    else:
        same_as_itk(tmp_path, file)


NIBABEL = Path(nibabel.__file__).parent
OTHERS = sorted(
    [
        *(
            file
            for file in SHIPPED.rglob("*")
            if file.is_file() and file.suffix not in (".dcm", ".dump", ".json", ".txt", ".icc")
        ),
        *NIBABEL.rglob("*.dcm"),
        *NIBABEL.rglob("*.dcm.gz"),
    ]
)


@pytest.mark.parametrize("file", OTHERS, ids=lambda file: file.name)
def test_other_shipped_files_are_read_as_itk_does_or_refused(file: Path, tmp_path: Path):
    """Those without a suffix that pydicom ships, mostly headers alone, and those that nibabel ships, perhaps zipped."""
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    header = pydicom.dcmread(io.BytesIO(data), force=True)
    if "PixelData" in header and "MOSAIC" not in header.ImageType:
        (tmp_path / "in.dcm").write_bytes(data)
        same_as_itk(tmp_path, tmp_path / "in.dcm")
    else:
        with pytest.raises(
            DataError, match=r"^a: cannot be read as DICOM \((holds|not a DICOM file).*\); replace or remove it\.$"
        ):
            decode_series([data], ["a"], "a")
