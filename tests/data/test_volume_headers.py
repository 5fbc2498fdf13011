"""Headers of volumes: what places or scales voxels is read as nibabel and ITK do, and says the same in results."""

import gzip
from itertools import product
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK
from test_volumes import affine_of, oblique

from normalcy.data.volumes import Space, decode_volume, volume_space, write_volume
from normalcy.errors import DataError

RNG = np.random.default_rng(0)
VOLUME = RNG.integers(0, 999, (11, 9, 7)).astype(np.int16)
SERIES = RNG.integers(0, 999, (6, 5, 4, 3)).astype(np.int16)
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
PLACES = ("qform_code", "sform_code", "xyzt_units", "toffset", "pixdim", "srow_x", "srow_y", "srow_z")


def geometry(file: Path) -> tuple[np.ndarray, ...]:
    """Size, spacing, origin and directions by ITK."""
    image = SimpleITK.ReadImage(str(file))
    return tuple(map(np.array, (image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())))


def itk_affine(file: Path) -> np.ndarray:
    """(4, 4) from index to mm in LPS, of the first three axes."""
    size, spacing, origin, direction = geometry(file)
    affine, used, n = np.eye(4), min(len(size), 3), len(size)
    affine[:used, :used] = (direction.reshape(n, n) * spacing)[:used, :used]
    affine[:used, 3] = origin[:used]
    return affine


def read(file: Path) -> tuple[np.ndarray, Space]:
    data = file.read_bytes()
    x, space = decode_volume(data, file.name)
    alone = volume_space(data, file.name)
    np.testing.assert_array_equal(alone.affine, space.affine)
    return x, space


def nifti(path: Path, array: np.ndarray, qform: int, sform: int, units: str, second: bool = False) -> Path:
    """A file whose two forms differ, with a repetition time and an offset in time."""
    kind = nibabel.Nifti2Image if second else nibabel.Nifti1Image
    image = kind(array, None)
    image.header.set_qform(affine_of("LIP", (0.7, 1.9, 3.1), oblique()), qform)
    image.header.set_sform(affine_of("LIP", (0.7, 1.9, 3.1), oblique(25.0)), sform)
    image.header["pixdim"][4] = 2.5
    image.header["toffset"] = 1.25
    image.header.set_xyzt_units(units, "msec")
    path.write_bytes(image.to_bytes())
    return path


@pytest.mark.parametrize("units", ["unknown", "mm", "micron", "meter"])
@pytest.mark.parametrize(("qform", "sform"), product((0, 1, 2), (0, 1, 4)))
@pytest.mark.parametrize("second", [False, True], ids=["nifti1", "nifti2"])
def test_nifti_results_lie_and_scale_as_their_source(tmp_path: Path, qform: int, sform: int, units: str, second: bool):
    source = nifti(tmp_path / "in.nii", SERIES, qform, sform, units, second)
    x, space = read(source)
    factor = {"micron": 1e-3, "meter": 1e3}.get(units, 1.0)
    theirs = nibabel.load(source)
    np.testing.assert_allclose(space.affine[:3], theirs.affine[:3] * factor, rtol=1e-6)
    if (qform or sform) and not second:  # else they differ in what the axes are, or ITK does not read it
        np.testing.assert_allclose(np.linalg.norm(space.affine[:3, :3], axis=0), geometry(source)[1][:3], rtol=1e-5)
    write_volume(tmp_path / "restored.nii.gz", x, space, like_file=True)
    write_volume(tmp_path / "map.nii.gz", x[0].astype(np.float32), space)
    for name in ("restored", "map"):
        result = nibabel.load(tmp_path / f"{name}.nii.gz")
        assert type(result) is type(theirs)
        np.testing.assert_array_equal(result.affine, theirs.affine)
        np.testing.assert_array_equal(result.get_qform(), theirs.get_qform())
        for field in PLACES:
            np.testing.assert_array_equal(result.header[field], theirs.header[field], err_msg=field)
        if not second:
            np.testing.assert_allclose(itk_affine(tmp_path / f"{name}.nii.gz"), itk_affine(source), rtol=1e-6)
    if not second:
        for ours, given in zip(geometry(tmp_path / "restored.nii.gz"), geometry(source)):
            np.testing.assert_allclose(ours, given, rtol=1e-6)
    assert nibabel.load(tmp_path / "restored.nii.gz").header.get_zooms()[3] == 2.5
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "restored.nii.gz").dataobj), SERIES)


@pytest.mark.parametrize(("qform", "sform"), [(1, 0), (0, 2), (1, 4)])
def test_a_part_of_a_nifti_file_lies_where_it_lay(tmp_path: Path, qform: int, sform: int):
    source = nifti(tmp_path / "in.nii", SERIES, qform, sform, "micron")
    _, space = read(source)
    part = space.part({"z": (1, 3), "y": (2, 4), "t": (1, 3)})
    stored = np.zeros((2, *part.size), np.int16)
    write_volume(tmp_path / "part.nii.gz", stored, part, like_file=True)
    theirs, ours = nibabel.load(source), nibabel.load(tmp_path / "part.nii.gz")
    start = np.linalg.inv(space.affine) @ part.affine[:, 3]  # of the part in the whole, in voxels
    assert np.abs(start - start.round()).max() < 1e-5
    assert start[:3].any()
    for form in ("get_qform", "get_sform"):
        np.testing.assert_allclose(getattr(ours, form)()[:, 3], getattr(theirs, form)() @ start, rtol=1e-5)
    assert ours.header["toffset"] == pytest.approx(1.25 + 2.5)
    assert ours.header.get_xyzt_units() == ("micron", "msec")


def test_long_extensions_are_skipped(tmp_path: Path):
    """Such as the history that AFNI writes; longer than what is read of the header."""
    image = nibabel.Nifti1Image(VOLUME, np.eye(4))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("afni", b"<AFNI/>" * 2000))
    nibabel.save(image, tmp_path / "in.nii.gz")
    x, space = read(tmp_path / "in.nii.gz")
    np.testing.assert_array_equal(space.to_file(x[0]), VOLUME)


def test_free_text_of_a_header_is_not_copied(tmp_path: Path):
    image = nibabel.Nifti1Image(VOLUME, np.eye(4))
    for field in ("descrip", "db_name", "aux_file", "intent_name"):
        image.header[field] = b"Doe Jane"
    (tmp_path / "in.nii").write_bytes(image.to_bytes())
    x, space = read(tmp_path / "in.nii")
    write_volume(tmp_path / "out.nii.gz", x, space, like_file=True)
    assert b"Doe" not in gzip.decompress((tmp_path / "out.nii.gz").read_bytes())


def same_as_itk(folder: Path, file: Path) -> Space:
    """Places and values of the file, and of a result in its space, by ITK."""
    x, space = read(file)
    image = SimpleITK.ReadImage(str(file))
    expected = SimpleITK.GetArrayFromImage(image)  # (..., z, y, x[, channels])
    if image.GetNumberOfComponentsPerPixel() == 1:
        expected = expected[..., None] if image.GetDimension() < 4 else np.moveaxis(expected, 0, -1)
    expected = expected if expected.ndim == 4 else expected[None]
    stored = space.to_file(x)
    stored = stored if stored.ndim == 4 else stored[..., None]
    np.testing.assert_array_equal(stored.transpose(2, 1, 0, 3), expected)
    np.testing.assert_allclose(TO_LPS @ space.affine, itk_affine(file), atol=1e-6)
    write_volume(folder / "map.nii.gz", x[0].astype(np.float32), space)
    np.testing.assert_allclose(itk_affine(folder / "map.nii.gz"), itk_affine(file), atol=1e-5)
    write_volume(folder / "restored.nii.gz", x, space, like_file=True)
    if image.GetDimension() == 4:
        for ours, given in zip(geometry(folder / "restored.nii.gz"), geometry(file)):
            np.testing.assert_allclose(ours, given, atol=1e-5)
    return space


COLOUR = RNG.integers(0, 255, (3, 11, 9, 7)).astype(np.uint8)
LAST = np.moveaxis(COLOUR, 0, -1)
NRRD: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "plain": (VOLUME, {}),
    "spacings": (VOLUME, {"spacings": [0.5, 2, 3]}),
    "negative": (VOLUME, {"spacings": [-0.5, 2, 3]}),
    "directions": (VOLUME, {"space dimension": 3, "space directions": np.diag([0.5, 2, 3]), "space origin": [1, 2, 3]}),
    "RAS": (VOLUME, {"space": "RAS", "space directions": np.diag([0.5, 2, 3]), "space origin": [1, 2, 3]}),
    "LPS without origin": (
        VOLUME,
        {"space": "left-posterior-superior", "space directions": (oblique() * [0.5, 2, 3]).T},
    ),
    "colour first": (COLOUR, {"kinds": ["RGB-color", "domain", "domain", "domain"]}),
    "colour first, spacings": (COLOUR, {"kinds": ["3-color"] + ["domain"] * 3, "spacings": [np.nan, 0.5, 2, 3]}),
    "vector last": (LAST, {"kinds": ["domain"] * 3 + ["vector"], "spacings": [0.5, 2, 3, np.nan]}),
    "list last": (LAST, {"kinds": ["domain"] * 3 + ["list"]}),
    "time": (LAST, {"kinds": ["domain"] * 3 + ["time"], "spacings": [0.5, 2, 3, 7]}),
    "four axes": (LAST, {"spacings": [0.5, 2, 3, 7]}),
    "plane": (VOLUME[:, :, 0], {"spacings": [0.5, 2]}),
    "plane in colour": (COLOUR[..., 0], {"kinds": ["RGB-color", "domain", "domain"], "spacings": [np.nan, 0.5, 2]}),
    "plane, directions": (
        VOLUME[:, :, 0],
        {"space dimension": 2, "space directions": np.diag([0.5, 2]), "space origin": [1, 2]},
    ),
}


@pytest.mark.parametrize("name", NRRD)
def test_nrrd(tmp_path: Path, name: str):
    array, header = NRRD[name]
    nrrd.write(str(tmp_path / "a.nrrd"), array, header, index_order="F")
    space = same_as_itk(tmp_path, tmp_path / "a.nrrd")
    assert space.step == (7 if name in ("time", "four axes") else None)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"spacings": [0.5, 2, 3], "axis mins": [1, 2, 3]}, "minima or maxima alone"),
        ({"space": "RAS", "spacings": [0.5, 2, 3]}, "places its axes by a space"),
        (
            {"space dimension": 3, "space directions": np.eye(3), "space units": ["um"] * 3},
            "lengths in um, expected mm",
        ),
        ({"spacings": [1, 1, 1], "units": ["cm", "cm", "cm"]}, "lengths in cm, expected mm"),
        ({"kinds": ["domain", "vector", "list"]}, "has 1 axes in space"),
    ],
)
def test_nrrd_that_is_refused(tmp_path: Path, header: dict[str, Any], reason: str):
    nrrd.write(str(tmp_path / "a.nrrd"), VOLUME, header)
    with pytest.raises(DataError, match=reason):
        decode_volume((tmp_path / "a.nrrd").read_bytes(), "a")


def meta_image(path: Path, array: np.ndarray = VOLUME, **words: str) -> Path:
    lines = {
        "ObjectType": "Image", "NDims": array.ndim, "BinaryData": True, "BinaryDataByteOrderMSB": False,
        "DimSize": " ".join(map(str, array.shape)), **words, "ElementType": "MET_SHORT", "ElementDataFile": "LOCAL",
    }  # fmt: skip
    path.write_bytes("".join(f"{key} = {value}\n" for key, value in lines.items()).encode() + array.tobytes("F"))
    return path


TURN = " ".join(map(repr, oblique(100.0).ravel().tolist()))


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"ElementSize": "0.5 2 3"},
        {"ElementSpacing": "0.5 2 3", "ElementSize": "1 1 1"},
        {"TransformMatrix": TURN, "ElementSpacing": "0.5 2 3", "Offset": "1 2 3"},
        {"Rotation": TURN, "ElementSpacing": "0.5 2 3", "Position": "1 2 3"},
        {"Orientation": TURN, "ElementSize": "0.5 2 3", "Origin": "1 2 3"},
        {"TransformMatrix": TURN, "CenterOfRotation": "5 5 5", "AnatomicalOrientation": "LPI", "DistanceUnits": "mm"},
    ],
    ids=lambda words: " ".join(words) or "plain",
)
def test_meta_image(tmp_path: Path, words: dict[str, str]):
    same_as_itk(tmp_path, meta_image(tmp_path / "a.mha", **words))


def test_meta_image_of_four_axes_keeps_its_step(tmp_path: Path):
    file = meta_image(tmp_path / "a.mha", SERIES, ElementSpacing="0.5 2 3 2.5")
    assert same_as_itk(tmp_path, file).step == 2.5


@pytest.mark.parametrize(
    ("words", "reason"),
    [({"DistanceUnits": "um"}, "lengths in um, expected mm"), ({"HeaderSize": "100"}, "a second header")],
)
def test_meta_image_that_is_refused(tmp_path: Path, words: dict[str, str], reason: str):
    with pytest.raises(DataError, match=reason):
        decode_volume(meta_image(tmp_path / "a.mha", **words).read_bytes(), "a")


SHIPPED = sorted(
    file
    for file in Path(nibabel.__file__).parent.rglob("*")
    if file.name.lower().endswith((".nii", ".nii.gz")) and file.is_file()
)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_files_that_nibabel_ships(file: Path, tmp_path: Path):
    if file.name == "row_major.dconn.nii":  # a connectivity matrix
        with pytest.raises(DataError, match="at most one axis of more than 1 beyond the three of space"):
            read(file)
        return
    theirs = nibabel.load(file)
    x, space = read(file)
    stored = space.to_file(x)
    expected = theirs.get_fdata(dtype=np.float64)
    np.testing.assert_allclose(stored, expected.reshape(stored.shape), rtol=1e-5)
    np.testing.assert_allclose(space.affine[:3], theirs.affine[:3], rtol=1e-6)
    write_volume(tmp_path / "out.nii.gz", x, space, like_file=True)
    back = nibabel.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(back.affine, theirs.affine)
    for field in PLACES:
        np.testing.assert_array_equal(back.header[field], theirs.header[field], err_msg=field)
    np.testing.assert_allclose(back.get_fdata().reshape(expected.shape), expected, rtol=1e-5)
