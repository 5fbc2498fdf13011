"""Files that are no images, or not by themselves: each has a reason that says what to do. FreeSurfer's volumes are read."""

import gzip
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from runner import Run
from test_volumes import oblique

from normalcy.data.check import check
from normalcy.data.companions import NO_IMAGE
from normalcy.data.open import open_data
from normalcy.data.stores import Folder, find_images
from normalcy.data.volumes import decode_volume, volume_space, write_volume
from normalcy.errors import DataError

NIBABEL = Path(nibabel.__file__).parent
VOLUME = np.random.default_rng(0).integers(0, 99, (7, 6, 5)).astype(np.int16)
KINDS = {
    ".mnc": "a MINC volume; convert it to NIfTI",
    ".PAR": "a volume of Philips as PAR/REC; convert it to NIfTI",
    ".REC": "a volume of Philips as PAR/REC; convert it to NIfTI",
    ".HEAD": "a volume of AFNI; convert it to NIfTI",
    ".BRIK": "a volume of AFNI; convert it to NIfTI",
    ".v": "a volume of ECAT; convert it to NIfTI",
    ".hdr": "a detached header of Analyze or NIfTI whose data file",
    ".dcm": "a compressed DICOM file; decompress it",
    ".gii": "a surface (GIFTI), which is no image",
    ".trk": "streamlines, which are no image",
    ".tck": "streamlines, which are no image",
}
SHIPPED = sorted({file.parent for file in NIBABEL.rglob("data/*") if file.is_file()})


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.parent.parent.name)
def test_every_file_that_nibabel_ships_is_read_as_nibabel_does_or_has_its_reason(folder: Path):
    files = {file.name for file in folder.iterdir() if file.is_file() and not file.name.startswith((".", "__"))}
    if not find_images(Folder(folder))[0]:
        with pytest.raises(DataError, match=" other files, such as "):
            open_data(folder)
        return
    data = open_data(folder)
    volumes = 0
    for i, item in enumerate(data.items):
        if not item.path.endswith((".nii", ".nii.gz", ".mgz", ".mgh")):
            continue  # DICOM is compared with ITK elsewhere
        if item.path == "row_major.dconn.nii":  # a connectivity matrix
            with pytest.raises(DataError, match="at most one axis of more than 1 beyond the three of space"):
                data.read(i)
            continue
        theirs = nibabel.load(folder / item.path)
        x, space = data.read(i), data.space(i)
        assert space is not None
        stored = space.to_file(x)
        np.testing.assert_allclose(stored, theirs.get_fdata().reshape(stored.shape), rtol=1e-5)
        np.testing.assert_allclose(space.affine, theirs.affine, atol=1e-6)
        volumes += 1
    listed = {item.path for item in data.items} | set(data.ignored)
    assert volumes >= 5 if "standard.nii.gz" in files else True
    for name in files:
        suffix = Path(name.removesuffix(".gz")).suffix
        if name in data.ignored:
            assert data.reasons[name].startswith(KINDS.get(suffix, NO_IMAGE)), name
        else:
            assert name in listed or suffix in (".dcm", ""), name


# -- detached headers -----------------------------------------------------------------------------------------------------


def volumes_in_two_files(folder: Path) -> None:
    image = SimpleITK.GetImageFromArray(VOLUME)
    SimpleITK.WriteImage(image, str(folder / "a.mhd"))
    SimpleITK.WriteImage(image, str(folder / "zipped.mhd"), useCompression=True)
    SimpleITK.WriteImage(image, str(folder / "b.nhdr"))
    SimpleITK.WriteImage(image, str(folder / "c.hdr"))
    nibabel.save(nibabel.Nifti1Image(VOLUME, np.eye(4)), folder / "whole.nii.gz")
    (folder / "whole.bval").write_text("0 1000\n")
    (folder / "whole.json").write_text("{}")
    (folder / "other.json").write_text("{}")


def test_detached_headers_are_listed_with_their_reason_and_their_data_files_are_not(tmp_path: Path, run: Run):
    volumes_in_two_files(tmp_path)
    data = open_data(tmp_path)
    assert [item.path for item in data.items] == ["whole.nii.gz"]
    both = "a detached header of {}, its values are in another file; save both as one {} file"
    assert data.reasons == {
        "a.mhd": both.format("MetaImage", ".mha"),
        "b.nhdr": both.format("NRRD", ".nrrd"),
        "c.hdr": both.format("Analyze or NIfTI", ".nii"),
        "other.json": NO_IMAGE,
        "zipped.mhd": both.format("MetaImage", ".mha"),
    }
    run("check", tmp_path)
    assert "warning: a.mhd: a detached header of MetaImage, its values are in another file" in run.out
    assert ".raw" not in run.out
    for name in ("a.raw", "zipped.zraw", "b.raw.gz", "b.raw", "c.img"):
        (tmp_path / name).unlink(missing_ok=True)
    reasons = open_data(tmp_path).reasons
    for name, missing in (("a.mhd", "a.raw"), ("b.nhdr", "b.raw"), ("c.hdr", "c.img"), ("zipped.mhd", "zipped.zraw")):
        assert f"whose data file {missing}" in reasons[name]
        assert "is missing; add it and save both as one" in reasons[name]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "a.mhd",
            "a.mhd: is a detached header of MetaImage, its values are in another file; save both as one .mha file.",
        ),
        ("c.img", "c.img: is values without a header"),
        ("a.raw", "a.raw: is values without a header (.mhd, .nhdr or .hdr) beside them; save the volume as one .nii"),
        ("scan.PAR", "scan.PAR: is a volume of Philips as PAR/REC; convert it to NIfTI, for example with dcm2niix"),
        ("study.zip", "study.zip: is an archive; unpack it, and name the folder"),
        ("scan.dcm.gz", "scan.dcm.gz: is a compressed DICOM file; decompress it"),
        ("DICOMDIR", "DICOMDIR: is an index of DICOM files, which are read without it"),
        ("twice.nii.gz", "twice.nii.gz: cannot be read as a volume (compressed twice; decompress it once)"),
        ("text.nii.gz", "text.nii.gz: cannot be read as a volume (what is compressed is no NIfTI or MGH volume)"),
        ("dicom.nii", "dicom.nii: cannot be read as an image (a DICOM file by its content; give it the suffix .dcm)"),
        (
            "colour.nii",
            "colour.nii: cannot be read as a volume (voxels are colours, expected integers or real numbers)",
        ),
    ],
)
def test_one_such_file_on_the_command_line(tmp_path: Path, run: Run, name: str, said: str):
    volumes_in_two_files(tmp_path)
    (tmp_path / "scan.PAR").write_text("# general information\n")
    for other in ("study.zip", "scan.dcm.gz", "DICOMDIR"):
        (tmp_path / other).write_bytes(b"x" * 200)
    (tmp_path / "twice.nii.gz").write_bytes(gzip.compress((tmp_path / "whole.nii.gz").read_bytes()))
    (tmp_path / "text.nii.gz").write_bytes(gzip.compress(b"hello" * 100))
    (tmp_path / "dicom.nii").write_bytes(bytes(128) + b"DICM" + bytes(100))
    colours = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), tmp_path / "colour.nii")
    assert run("check", tmp_path / name) == 1
    assert said in run.out + run.err


@pytest.mark.parametrize(
    "header",
    [
        b"", b"ElementDataFile = \n", b"ElementDataFile = LIST 3\n", b"ElementDataFile = ../../etc/passwd\n",
        b"ElementDataFile = slice%03d.raw 1 5 1\n", b"\xff\xfe" * 50, b"ElementDataFile = " + b"x" * 10**6,
    ],
)  # fmt: skip
def test_headers_that_name_nothing_that_can_be_looked_for(tmp_path: Path, header: bytes):
    (tmp_path / "a.mhd").write_bytes(header)
    nibabel.save(nibabel.Nifti1Image(VOLUME, np.eye(4)), tmp_path / "whole.nii")
    (reason,) = open_data(tmp_path).reasons.values()
    assert reason.startswith(
        ("a header of MetaImage that names no file", "a detached header of MetaImage whose data file")
    )
    assert "passwd" not in reason


# -- FreeSurfer -----------------------------------------------------------------------------------------------------------


def mgh(path: Path, array: np.ndarray, affine: np.ndarray, time: float = 0.0) -> Path:
    image = nibabel.MGHImage(array, affine)
    image.header["tr"] = time
    nibabel.save(image, path)
    return path


def affine_of_mgh(data: bytes) -> np.ndarray:
    """By FreeSurfer's documentation: direction cosines times sizes; the centre of the volume is at c_ras."""
    sizes = np.frombuffer(data, ">i4", 3, 4)
    step, cosines, centre = (np.frombuffer(data, ">f4", count, at) for count, at in ((3, 30), (9, 42), (3, 78)))
    affine = np.eye(4)
    affine[:3, :3] = cosines.reshape(3, 3).T * step
    affine[:3, 3] = centre - affine[:3, :3] @ (sizes / 2)
    return affine


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32"])
@pytest.mark.parametrize("suffix", [".mgh", ".mgz"])
def test_values_and_places_of_mgh(tmp_path: Path, dtype: str, suffix: str):
    affine = np.eye(4)
    affine[:3, :3] = oblique() * [0.7, 1.9, 3.1]
    affine[:3, 3] = [-20, 11, 5]
    file = mgh(tmp_path / f"a{suffix}", VOLUME.astype(dtype), affine)
    raw = gzip.decompress(file.read_bytes()) if suffix == ".mgz" else file.read_bytes()
    x, space = decode_volume(file.read_bytes(), "a")
    assert x.dtype == dtype
    np.testing.assert_array_equal(space.to_file(x[0]), VOLUME)
    np.testing.assert_allclose(space.affine, affine_of_mgh(raw), atol=1e-4)
    np.testing.assert_allclose(space.affine, affine, atol=1e-4)
    np.testing.assert_array_equal(volume_space(file.read_bytes(), "a").affine, space.affine)
    write_volume(tmp_path / "restored.nii.gz", x, space, like_file=True)
    back = nibabel.load(tmp_path / "restored.nii.gz")
    assert back.get_data_dtype() == dtype
    np.testing.assert_allclose(back.affine, nibabel.load(file).affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(back.dataobj), VOLUME)


def test_mgh_of_four_axes_keeps_its_repetition_time(tmp_path: Path):
    series = np.random.default_rng(0).integers(0, 99, (6, 5, 4, 3)).astype(np.int16)
    file = mgh(tmp_path / "a.mgz", series, np.eye(4), time=2500.0)
    x, space = decode_volume(file.read_bytes(), "a")
    assert (x.shape, space.step) == ((3, 4, 5, 6), 2.5)
    write_volume(tmp_path / "restored.nii.gz", x, space, like_file=True)
    back = nibabel.load(tmp_path / "restored.nii.gz")
    assert back.header.get_zooms()[3] == 2.5
    assert back.header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_array_equal(np.asarray(back.dataobj), series)


def test_damaged_mgh_is_a_sentence(tmp_path: Path):
    whole = mgh(tmp_path / "a.mgh", VOLUME, np.eye(4)).read_bytes()
    zipped = gzip.compress(whole)
    singular = bytearray(whole)
    singular[42:78] = bytes(36)
    for data, reason in (
        (whole[:300], "truncated"),
        (whole[:50], "header or the voxels are damaged|does not say where"),
        (zipped[: len(zipped) // 2], "damaged or cut off"),
        (whole[:4] + b"\0\0\x75\x30" * 3 + whole[16:], "claims the shape"),
        (bytes(singular), "does not say where"),
    ):
        with pytest.raises(DataError, match=rf"^scan\.mgz: cannot be read as a volume \(.*({reason})"):
            decode_volume(data, "scan.mgz")


def test_fit_and_score_mgz(tmp_path: Path, run: Run):
    rng = np.random.default_rng(0)
    affine = np.array([[-1.5, 0, 0, 20], [0, 0, 2.0, -30], [0, -1.25, 0, 7], [0, 0, 0, 1]])
    (tmp_path / "train").mkdir()
    for i in range(24):
        volume = (100 + 10 * rng.random((8, 9, 10))).astype(np.float32)
        mgh(tmp_path / f"train/sub-{i:02d}_T1w.mgz", volume, affine)
    volume[2:4, 3:6, 4:7] = 300
    mgh(tmp_path / "new.mgz", volume, affine)
    assert not [fault for fault in check(open_data(tmp_path / "train")) if fault.severity == "error"]
    assert open_data(tmp_path / "train").cases[3] == "sub-03"
    run.good("fit", tmp_path / "train", "--method", "zscore", "--out", tmp_path / "model")
    run.good("score", tmp_path / "model", tmp_path / "new.mgz", "--out", tmp_path / "results")
    written = nibabel.load(next((tmp_path / "results/maps").iterdir()))
    np.testing.assert_allclose(written.affine, affine, atol=1e-5)
    values = written.get_fdata()
    assert values[2:4, 3:6, 4:7].mean() > 3 * values.mean()


def test_a_folder_of_none_but_such_files_says_one_of_the_reasons(tmp_path: Path):
    shutil.copy(NIBABEL / "tests/data/tiny.mnc", tmp_path)
    with pytest.raises(DataError, match=r"1 other files, such as tiny\.mnc \(a MINC volume; convert it to NIfTI"):
        open_data(tmp_path)
