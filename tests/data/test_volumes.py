"""Volumes: every orientation, affine and type comes back as it was; damaged files are a sentence."""

import gzip
import io
import resource
import zlib
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff

from normalcy.data.formats import Limits
from normalcy.data.images import read_image, read_mask
from normalcy.data.open import open_data
from normalcy.data.volumes import Space, decode_volume, split_name, volume_space, write_volume
from normalcy.errors import DataError

CODES = [
    "".join(code)
    for axes in permutations(("RL", "AP", "SI"))
    for code in product(*axes)
]  # fmt: skip
SHAPE = (6, 5, 4)


def oblique(degrees: float = 17.0) -> np.ndarray:
    """A rotation about an axis that is none of the patient's."""
    from scipy.spatial.transform import Rotation

    return np.asarray(Rotation.from_rotvec(np.radians(degrees) * np.array([0.6, 0.64, 0.48])).as_matrix())


def affine_of(code: str, spacing: tuple[float, ...] = (1.0, 1.0, 1.0), turn: np.ndarray | None = None) -> np.ndarray:
    """An affine whose file axes run as ``code`` says, with spacing along the file's axes in mm."""
    affine = inv_ornt_aff(axcodes2ornt(tuple(code)), SHAPE)
    affine = np.linalg.inv(affine)
    affine[:3, :3] = affine[:3, :3] * spacing
    if turn is not None:
        affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = (-31.5, 12.25, 70.125)
    return np.asarray(affine)


def write(path: Path, array: np.ndarray, affine: np.ndarray, **words: object) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, affine, dtype=array.dtype, **words), path)
    return path


@pytest.mark.parametrize("suffix", ["", "[z=1]", "[z=1:3]"])
def test_masks_on_another_grid_are_refused(tmp_path: Path, suffix: str):
    affine = affine_of("LPS", (0.8, 1, 2))
    write(tmp_path / "a.nii.gz", np.arange(120, dtype=np.int16).reshape(SHAPE), affine)
    for name, moved, sound in (
        ("same", affine, True),
        ("rounded", affine + np.eye(4) * [0.001, 0.001, 0.001, 0], True),
        ("aside", affine + np.outer([1, 0, 0, 0], [0, 0, 0, 0.5]), False),
        ("larger", affine @ np.diag([1, 1, 1.5, 1]), False),
    ):
        write(tmp_path / f"{name}.nii.gz", np.ones(SHAPE, np.uint8), moved)
        table = tmp_path / "t.csv"
        table.write_text(f'path,label,mask\n"a.nii.gz{suffix}",1,"{name}.nii.gz{suffix}"\n')
        if sound:
            assert open_data(table).mask(0).all()
        else:
            with pytest.raises(DataError, match=r"expected the grid of its image.* mm away; resample"):
                open_data(table).mask(0)
    silent = nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), None)
    silent.set_sform(None, 0)
    silent.set_qform(None, 0)
    nibabel.save(silent, tmp_path / "same.nii.gz")
    table.write_text('path,label,mask\n"a.nii.gz",1,"same.nii.gz"\n')
    assert open_data(table).mask(0).all(), "a header that says no place says no wrong one"


def test_48_codes():
    assert len(set(CODES)) == 48


@pytest.mark.parametrize("kind", ["plain", "anisotropic", "oblique"])
@pytest.mark.parametrize("code", CODES)
def test_marked_voxel_comes_back(tmp_path: Path, code: str, kind: str):
    """World coordinates computed by nibabel, from the file that was given and the one that was written."""
    spacing = (1.0, 1.0, 1.0) if kind == "plain" else (0.7, 1.9, 3.1)
    affine = affine_of(code, spacing, oblique() if kind == "oblique" else None)
    assert kind == "oblique" or "".join(nibabel.aff2axcodes(affine)) == code
    array = np.zeros(SHAPE, np.int16)
    marked = (1, 3, 2)
    array[marked] = 700
    file = write(tmp_path / "in.nii.gz", array, affine)
    x, space = decode_volume(file.read_bytes(), "in")
    (place,) = np.argwhere(x[0] == 700)
    expected = nibabel.affines.apply_affine(nibabel.load(file).affine, marked)
    np.testing.assert_allclose(space.world(tuple(place)), expected, atol=1e-4)
    world = np.array([space.world(tuple(place + step)) - space.world(tuple(place)) for step in np.eye(3, dtype=int)])
    assert (np.abs(world).argmax(1) == (2, 1, 0)).all(), "the axes are z, y, x"
    assert (world[(0, 1, 2), (2, 1, 0)] > 0).all(), "towards head, front and right"
    write_volume(tmp_path / "out.nii.gz", x[0].astype(np.float32), space)
    back = nibabel.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(np.asarray(back.dataobj), array)
    np.testing.assert_array_equal(back.affine, nibabel.load(file).affine)
    assert back.get_data_dtype() == np.float32


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64", ">i2", ">f4"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_types_are_kept(tmp_path: Path, dtype: str, suffix: str):
    array = (np.random.default_rng(0).normal(0, 30, SHAPE) + 100).astype(dtype)
    file = write(tmp_path / f"in{suffix}", array, affine_of("LPS"))
    x, space = decode_volume(file.read_bytes(), "in")
    assert x.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(x[0], array[::-1, ::-1].transpose(2, 1, 0))
    write_volume(tmp_path / "out.nii.gz", x, space, like_file=True)
    back = nibabel.load(tmp_path / "out.nii.gz")
    assert back.get_data_dtype() == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(np.asarray(back.dataobj), array)


def test_slope_and_intercept(tmp_path: Path):
    stored = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
    image = nibabel.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    raw = bytearray(image.to_bytes())
    raw[112:120] = np.array([0.5, -3], "<f4").tobytes()  # to_bytes resets them
    x, space = decode_volume(bytes(raw), "in")
    (tmp_path / "in.nii").write_bytes(raw)
    np.testing.assert_allclose(x[0].transpose(2, 1, 0), nibabel.load(tmp_path / "in.nii").get_fdata(), rtol=1e-6)
    write_volume(tmp_path / "out.nii.gz", x, space, like_file=True)
    back = nibabel.load(tmp_path / "out.nii.gz")
    assert back.get_data_dtype() == np.int16
    assert (back.dataobj.slope, back.dataobj.inter) == (0.5, -3)
    np.testing.assert_array_equal(back.dataobj.get_unscaled(), stored)


def test_four_axes_are_channels_and_two_an_image(tmp_path: Path):
    rng = np.random.default_rng(0)
    series = rng.integers(0, 99, (*SHAPE, 3)).astype(np.int16)
    x, space = decode_volume(write(tmp_path / "a.nii.gz", series, affine_of("PIR")).read_bytes(), "a")
    assert x.shape[0] == 3
    write_volume(tmp_path / "b.nii.gz", x, space, like_file=True)
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "b.nii.gz").dataobj), series)
    one = rng.integers(0, 99, (7, 9, 1)).astype(np.int16)
    x, space = decode_volume(write(tmp_path / "c.nii", one, np.eye(4)).read_bytes(), "c")
    np.testing.assert_array_equal(x[0], one[:, :, 0].T)
    write_volume(tmp_path / "d.nii.gz", x[0], space)
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "d.nii.gz").dataobj), one)
    x, _ = decode_volume(write(tmp_path / "e.nii", one[:, :, 0], np.eye(4)).read_bytes(), "e")
    np.testing.assert_array_equal(x[0], one[:, :, 0].T)


def test_header_alone_gives_the_size(tmp_path: Path):
    file = write(tmp_path / "a.nii.gz", np.zeros(SHAPE, np.uint8), affine_of("AIL", (1, 2, 3)))
    space = volume_space(file.read_bytes(), "a")
    assert space.size == read_image(file).shape[1:] == (5, 6, 4)
    np.testing.assert_allclose(space.spacing, (2, 1, 3))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.nii.gz[z=3]", ("a.nii.gz", {"z": (3, 4)})),
        ("a.nii[x=1:4, t=2]", ("a.nii", {"x": (1, 4), "t": (2, 3)})),
        ("a[b].nii", ("a[b].nii", {})),
    ],
)
def test_names_of_parts(name: str, expected: tuple[str, dict[str, tuple[int, int]]]):
    assert split_name(name) == expected


@pytest.mark.parametrize("code", ["RAS", "LPI", "SAR", "ILA"])
@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_slice_of_a_volume(tmp_path: Path, code: str, axis: str):
    """A slice lies where it lay in the volume, and its map is a NIfTI file of one slice."""
    array = np.random.default_rng(1).integers(0, 99, SHAPE).astype(np.int16)
    file = write(tmp_path / "a.nii.gz", array, affine_of(code, (1, 2, 3), oblique()))
    whole, space = decode_volume(file.read_bytes(), "a")
    data = open_data(f"{file}[{axis}=2]")
    x, part = data.read(0), data.space(0)
    position = "zyx".index(axis)
    np.testing.assert_array_equal(x, whole.take(2, axis=1 + position))
    assert isinstance(part, Space)
    assert data.size(0) == x.shape[1:]
    assert data.items[0].case == "a.nii.gz"
    place = [1, 1]
    place.insert(position, 2)
    np.testing.assert_allclose(part.world((1, 1)), space.world(tuple(place)))
    write_volume(tmp_path / "b.nii.gz", x, part, like_file=True)
    back = nibabel.load(tmp_path / "b.nii.gz")
    (marked,) = np.argwhere(np.asarray(back.dataobj) == x.max())[:1]
    world = nibabel.affines.apply_affine(back.affine, marked)
    found = nibabel.affines.apply_affine(nibabel.load(file).affine, np.argwhere(array == x.max()))
    assert np.linalg.norm(found - world, axis=1).min() < 1e-3


def test_parts_that_are_not_there(tmp_path: Path):
    file = write(tmp_path / "a.nii.gz", np.zeros(SHAPE, np.uint8), np.eye(4))
    with pytest.raises(DataError, match="expected z from 0 to 3, got 4 to 4"):
        open_data(f"{file}[z=4]").read(0)
    assert open_data(f"{file}[z=1:3]").read(0).shape == (1, 2, 5, 6)


def test_folder_of_volumes(tmp_path: Path):
    """The MVTec layout, masks of another orientation, subjects as cases."""
    array = np.random.default_rng(0).integers(1, 99, SHAPE).astype(np.uint8)
    for name in ("train/good/sub-01_T1w.nii.gz", "train/good/sub-01_T2w.nii.gz", "test/lesion/b.nii"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, array, affine_of("LPS"))
    (tmp_path / "ground_truth/lesion").mkdir(parents=True)
    mask = np.zeros(SHAPE, np.uint8)
    mask[1, 2, 3] = 1
    in_ras = nibabel.as_closest_canonical(nibabel.Nifti1Image(mask, affine_of("LPS")))
    nibabel.save(in_ras, tmp_path / "ground_truth/lesion/b_mask.nii.gz")
    data = open_data(tmp_path)
    assert [(item.path, item.case, item.label) for item in data.items] == [
        ("test/lesion/b.nii", "test/lesion/b.nii", 1),
        ("train/good/sub-01_T1w.nii.gz", "sub-01", 0),
        ("train/good/sub-01_T2w.nii.gz", "sub-01", 0),
    ]
    found = data.mask(0)
    assert found is not None
    assert data.read(0)[0][found] == array[1, 2, 3]
    assert read_mask(tmp_path / "ground_truth/lesion/b_mask.nii.gz").sum() == 1


def damaged() -> dict[str, tuple[bytes, str]]:
    image = nibabel.Nifti1Image(np.zeros(SHAPE, np.int16), np.eye(4)).to_bytes()
    zipped = gzip.compress(image)
    wrong_sum = bytearray(zipped)
    wrong_sum[-6] ^= 255
    bomb, nowhere = bytearray(image), bytearray(image)
    bomb[42:48] = np.array([30000] * 3, "<i2").tobytes()
    nowhere[280:328] = b"\0" * 48
    complex_ = nibabel.Nifti1Image(np.zeros(SHAPE, np.complex64), np.eye(4)).to_bytes()
    return {
        "cut off": (zipped[:60], "damaged or cut off"),
        "no voxels": (image[:400], "truncated"),
        "checksum": (bytes(wrong_sum), "damaged or cut off"),
        "bomb": (bytes(bomb), "claims the shape"),
        "nowhere": (bytes(nowhere), "does not say where"),
        "complex": (complex_, "voxels are complex64"),
        "pair": (image[:344] + b"ni1\0" + image[348:], "convert the pair"),
        "other": (gzip.compress(b"hello" * 100), "cannot be read as a volume"),
    }


@pytest.mark.parametrize("name", damaged())
def test_damaged_files_are_a_sentence(name: str):
    data, reason = damaged()[name]
    with pytest.raises(DataError, match=reason) as caught:
        decode_volume(data, "scan.nii.gz")
    assert "scan.nii.gz: " in str(caught.value)


def meta_image(array: np.ndarray, matrix: np.ndarray, spacing: tuple[float, ...], zipped: bool) -> bytes:
    """MetaImage of (x, y, z) as its documentation describes it: LPS, a line of the matrix for each axis."""
    values = array.tobytes("F")
    lines = {
        "ObjectType": "Image",
        "NDims": array.ndim,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": False,
        "CompressedData": zipped,
        **({"CompressedDataSize": len(zlib.compress(values))} if zipped else {}),
        "TransformMatrix": " ".join(map(repr, matrix.T.ravel().tolist())),
        "Offset": "1.5 -2.5 3.5",
        "ElementSpacing": " ".join(map(str, spacing)),
        "DimSize": " ".join(map(str, array.shape)),
        "ElementType": {"int16": "MET_SHORT", "float32": "MET_FLOAT"}[array.dtype.name],
        "ElementDataFile": "LOCAL",
    }
    header = "".join(f"{key} = {value}\n" for key, value in lines.items()).encode()
    return header + (zlib.compress(values) if zipped else values)


@pytest.mark.parametrize("kind", ["mha", "mha zipped", "nrrd"])
@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_nrrd_and_meta_image(tmp_path: Path, kind: str, dtype: str):
    """The same voxel at the same place as in the equal NIfTI file; the formats count to the left and the back."""
    array = np.random.default_rng(0).normal(0, 99, SHAPE).astype(dtype)
    spacing, matrix = (0.7, 1.9, 3.1), oblique(100.0)
    file = tmp_path / f"a.{kind.split()[0]}"
    if kind == "nrrd":
        import nrrd

        words = {"space": "left-posterior-superior", "space origin": [1.5, -2.5, 3.5]}
        nrrd.write(str(file), array, {**words, "space directions": (matrix * spacing).T})
    else:
        file.write_bytes(meta_image(array, matrix, spacing, zipped="zipped" in kind))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix * spacing, (1.5, -2.5, 3.5)
    affine = np.diag([-1, -1, 1, 1]) @ affine
    expected, space = decode_volume(write(tmp_path / "b.nii", array, affine).read_bytes(), "b")
    data = open_data(file)
    np.testing.assert_array_equal(data.read(0), expected)
    found = data.space(0)
    assert found is not None
    np.testing.assert_allclose(found.affine, space.affine, atol=1e-5)
    assert data.size(0) == expected.shape[1:]
    itk = pytest.importorskip("SimpleITK")
    image = itk.ReadImage(str(file))
    np.testing.assert_array_equal(itk.GetArrayFromImage(image).transpose(2, 1, 0), array)
    place = np.array(image.TransformIndexToPhysicalPoint((3, 2, 1))) * [-1, -1, 1]
    np.testing.assert_allclose(nibabel.affines.apply_affine(found.affine, (3, 2, 1)), place, atol=1e-4)


def test_nrrd_with_channels_first(tmp_path: Path):
    import nrrd

    array = np.random.default_rng(0).integers(0, 99, (3, *SHAPE)).astype(np.int16)
    header = {
        "space": "RAS",
        "space directions": np.vstack([np.full(3, np.nan), np.eye(3)]),
        "kinds": ["vector", *["space"] * 3],
    }
    nrrd.write(str(tmp_path / "a.nrrd"), array, header)
    np.testing.assert_array_equal(read_image(tmp_path / "a.nrrd"), array.transpose(0, 3, 2, 1))


@pytest.mark.parametrize("length", [20, 200, 330])
def test_cut_off_nrrd_and_meta_image(length: int):
    data = meta_image(np.zeros(SHAPE, np.int16), np.eye(3), (1, 1, 1), zipped=False)
    for begin in (data, b"NRRD0004\ntype: short\ndimension: 3\nsizes: 6 5 4\nencoding: raw\n\n" + bytes(300)):
        with pytest.raises(DataError, match="cannot be read as a volume"):
            decode_volume(begin[:length], "scan")


def test_bombs_are_refused_by_bytes():
    """A few MB that would take 8 GiB and more, in the voxels, behind them, and in a header that does not say so."""
    nrrd = pytest.importorskip("nrrd")
    header = nibabel.Nifti1Header()
    header.set_data_shape((1000, 1000, 1000))
    header.set_data_dtype(np.float64)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    claims = gzip.compress(header.binaryblock + bytes(10**6), 1)
    small = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)).to_bytes()
    behind = gzip.compress(small + bytes(2**29), 1)
    fields = {"type": "int16", "dimension": 3, "sizes": [4, 4, 4], "encoding": "gzip", "endian": "little"}
    text = "NRRD0004\n" + "".join(
        f"{key}: {' '.join(map(str, value)) if isinstance(value, list) else value}\n" for key, value in fields.items()
    )
    hidden = text.encode() + b"\n" + gzip.compress(bytes(2**29), 1)
    assert nrrd.read_header(io.BytesIO(hidden))["encoding"] == "gzip"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"8,000,000,000 bytes when decoded, more than the limit of 4,294,967,296"):
        decode_volume(claims, "a.nii.gz")
    assert decode_volume(behind, "a.nii.gz")[0].shape == (1, 4, 4, 4)
    with pytest.raises(DataError, match=r"more than 1,000,000 bytes, the limit"):
        decode_volume(hidden, "a.nrrd", Limits(decoded_bytes=10**6))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # KiB
