"""Diffusion MRI: attenuations from files with b-values, and from fit to map in the space of the file."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from scipy.spatial.transform import Rotation

from normalcy.data.check import check
from normalcy.data.diffusion import attenuation, brain_mask
from normalcy.data.open import open_data
from normalcy.data.splits import images_to_score
from normalcy.detector import Detector
from normalcy.errors import DataError, SettingsError
from normalcy.results.predict import score_into

B = np.array([0, 1000, 5, 1000, 2000, 1000, 1000.0])
SHAPE = (12, 11, 13)
AFFINE = np.diag([-2.0, 2.0, 2.5, 1.0])
AFFINE[:3, 3] = (40, -30, 12)


def directions(seed: int = 0) -> npt.NDArray[np.float64]:
    found = np.random.default_rng(seed).normal(size=(len(B), 3))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def write(
    path: Path, seed: int = 0, b: npt.NDArray[np.float64] = B, vectors: npt.NDArray[np.float64] | None = None
) -> Path:
    """A ball of tissue in air: signals fall with b along one fibre per voxel."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"), -1)
    inside = (grid**2).sum(-1) < 0.8
    fibre = rng.normal(size=(*SHAPE, 3))
    fibre /= np.linalg.norm(fibre, axis=-1, keepdims=True)
    known = directions() if vectors is None else vectors
    signal = np.exp(-b / 1000 * (0.3 + (fibre @ known.T) ** 2)) * rng.uniform(400, 800, SHAPE)[..., None]
    signal = np.where(inside[..., None], signal, rng.uniform(0, 9, signal.shape)).round().astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(signal, AFFINE), path)
    name = path.name.removesuffix(".gz").removesuffix(".nii")
    np.savetxt(path.parent / f"{name}.bval", b[None])
    np.savetxt(path.parent / f"{name}.bvec", known.T)
    return path


def test_attenuations_and_brain(tmp_path: Path):
    file = write(tmp_path / "scan.nii.gz")
    data = open_data(f"diffusion:{tmp_path}")
    stored = np.asarray(nibabel.load(file).dataobj, float)[::-1].transpose(3, 2, 1, 0)  # x runs to the left in the file
    x = data.read(0)
    assert x.dtype == np.float32
    assert x.shape == (6, 13, 11, 12)
    base = stored[[0, 2]].mean(0)
    inside = x[0] == 1
    assert set(np.unique(x[0])) == {0, 1}
    assert (inside != (base > 100)).mean() < 0.05  # the median before Otsu's threshold rounds corners
    np.testing.assert_allclose(x[1:, inside], stored[[1, 3, 4, 5, 6]][:, inside] / base[inside], rtol=1e-5)
    assert not x[:, ~inside].any()
    assert data.scheme["b0"] == [0]
    assert [row[0] for row in data.scheme["scheme"]] == [1000, 1000, 2000, 1000, 1000]
    to_the_left = directions()[[1, 3, 4, 5, 6]] * [-1, 1, 1]  # x runs to the left in the file
    np.testing.assert_allclose(np.array(data.scheme["scheme"])[:, 1:], to_the_left, atol=1e-5)
    assert not [fault for fault in check(data) if fault.severity == "error" or "bval" in fault.path]


def test_a_file_tells_the_brain_and_mask_none_takes_all(tmp_path: Path):
    write(tmp_path / "scan.nii.gz")
    everything = open_data(f"diffusion:{tmp_path},mask=none").read(0)
    assert everything[0].mean() > 0.95
    assert everything.shape == (6, 13, 11, 12)
    brain = np.zeros(SHAPE, np.uint8)
    brain[4, 5, 6] = 1
    nibabel.save(nibabel.Nifti1Image(brain, AFFINE), tmp_path / "scan_brain.nii.gz")
    data = open_data(f"diffusion:{tmp_path}")
    assert [item.path for item in data.items] == ["scan.nii.gz"]
    assert np.argwhere(data.read(0)[0]).tolist() == [[6, 5, 7]]  # x runs to the left in the file


def test_b0_limit_and_negative_signals():
    signals = np.array([[[2.0]], [[-1.0]], [[4.0]], [[1.0]]])
    assert attenuation(signals, np.array([True, False, True, False])).ravel().tolist() == [1, 0, pytest.approx(1 / 3)]


def test_one_value_is_all_brain():
    assert brain_mask(np.full((4, 4, 4), 7.0)).all()


@pytest.mark.parametrize("kind", ["b", "direction", "count"])
def test_another_scheme_is_refused_when_read(tmp_path: Path, kind: str):
    write(tmp_path / "a.nii.gz")
    b, vectors = B.copy(), directions()
    if kind == "b":
        b[4] = 3000
    elif kind == "direction":
        vectors[3] = np.cross(vectors[3], vectors[4]) / np.linalg.norm(np.cross(vectors[3], vectors[4]))
    else:
        b, vectors = b[:-1], vectors[:-1]
    write(tmp_path / "b.nii.gz", b=b, vectors=vectors)
    data = open_data(f"diffusion:{tmp_path}")
    data.read(0)
    with pytest.raises(DataError, match=r"b\.nii\.gz: expected .*weighted image"):
        data.read(1)


def axes_of(code: str, turn: npt.NDArray[np.float64] | None = None) -> npt.NDArray[np.float64]:
    """An affine whose file axes run as ``code`` says, with 2, 2 and 2.5 mm along x, y and z of the patient."""
    affine = np.zeros((4, 4))
    for axis, letter in enumerate(code):
        world = next(k for k, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
        affine[world, axis] = (2.0, 2.0, 2.5)[world] * (1 if letter in "RAS" else -1)
    affine[3, 3] = 1
    if turn is not None:
        affine[:3, :3] = turn @ affine[:3, :3]
    return affine


def stored_along(affine: npt.NDArray[np.float64], world: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Directions in .bvec of a file with this affine, (N, 3), from those in the patient's space; FSL's convention, undone axis by
    axis."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    numbers = np.stack([world @ axis for axis in axes.T], 1)
    if np.linalg.det(affine[:3, :3]) > 0:
        numbers[:, 0] *= -1
    return numbers


def write_along(path: Path, affine: npt.NDArray[np.float64], vectors: npt.NDArray[np.float64]) -> None:
    signals = np.random.default_rng(0).integers(100, 900, (4, 4, 4, len(B))).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(signals, affine), path)
    name = path.name.removesuffix(".nii.gz")
    np.savetxt(path.parent / f"{name}.bval", B[None])
    np.savetxt(path.parent / f"{name}.bvec", vectors.T)


CODES = ["".join(code) for axes in permutations(("RL", "AP", "SI")) for code in product(*axes)]


@pytest.mark.parametrize(
    "turn", [None, Rotation.from_rotvec([0.2, -0.3, 0.5]).as_matrix()], ids=["straight", "oblique"]
)
def test_directions_are_compared_in_the_patient(tmp_path: Path, turn: npt.NDArray[np.float64] | None):
    """One scheme stored along all 48 orders of the axes is one scheme."""
    world = directions()
    for code in CODES:
        affine = axes_of(code, turn)
        write_along(tmp_path / f"{code}.nii.gz", affine, stored_along(affine, world))
    data = open_data(f"diffusion:{tmp_path},mask=none")
    assert len(data) == 48
    np.testing.assert_allclose(np.array(data.scheme["scheme"])[:, 1:], world[[1, 3, 4, 5, 6]], atol=1e-5)
    for i in range(48):
        assert data.read(i).shape == (6, 4, 4, 4)


def test_equal_numbers_along_other_axes_are_another_scheme(tmp_path: Path):
    """Identical .bvec files of RAS and SRA storage mean directions up to 85 degrees apart."""
    write_along(tmp_path / "a.nii.gz", axes_of("RAS"), directions())
    write_along(tmp_path / "b.nii.gz", axes_of("SRA"), directions())
    data = open_data(f"diffusion:{tmp_path},mask=none")
    data.read(0)
    with pytest.raises(DataError, match=r"b\.nii\.gz: expected the b-values and directions of .*a\.nii\.gz"):
        data.read(1)


def test_one_volume_without_b_values_is_listed(tmp_path: Path):
    for name in ("a", "b", "c"):
        write(tmp_path / f"{name}.nii.gz")
    (tmp_path / "a.bval").unlink()
    (tmp_path / "c.bval").write_text("zero")
    data = open_data(f"diffusion:{tmp_path}")
    assert data.read(1).shape == (6, 13, 11, 12)
    errors = {fault.path: fault.problem for fault in check(data) if fault.severity == "error"}
    assert set(errors) == {"a.nii.gz", "c.nii.gz"}
    assert "expected its b-values in a.bval beside it, got none" in errors["a.nii.gz"]
    assert "cannot be read as a table of numbers" in errors["c.nii.gz"]


def test_opposite_directions_and_none_for_b0_are_the_same_scheme(tmp_path: Path):
    write(tmp_path / "a.nii.gz")
    vectors = -directions()
    write(tmp_path / "b.nii.gz", vectors=vectors)
    vectors[[0, 2]] = np.nan
    np.savetxt(tmp_path / "b.bvec", vectors)  # a row for each, as some tools write it
    (tmp_path / "a.bval").write_text(" ".join(str(v) for v in B * 1.02))
    data = open_data(f"diffusion:{tmp_path}")
    assert data.read(1).shape == data.read(0).shape


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "scan.bval").unlink(), "scan.bval beside it, got none"),
        (lambda folder: (folder / "scan.bval").write_text("1000 1000"), "b0 images|b=0 images"),
        (lambda folder: (folder / "scan.bval").write_text("zero"), "table of numbers"),
        (lambda folder: (folder / "scan.bvec").write_text("1 0 0"), "3 numbers for each of 7"),
    ],
    ids=["missing", "no b=0", "words", "few directions"],
)
def test_damaged_schemes_are_sentences(tmp_path: Path, damage, message: str):
    write(tmp_path / "scan.nii.gz")
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        open_data(f"diffusion:{tmp_path}")


def test_more_images_than_b_values(tmp_path: Path):
    write(tmp_path / "scan.nii.gz")
    (tmp_path / "scan.bval").write_text("0 1000 1000")
    (tmp_path / "scan.bvec").unlink()
    with pytest.raises(DataError, match="each of its 3 b-values, got 7 images"):
        open_data(f"diffusion:{tmp_path}").read(0)


def test_unknown_options_and_arrays_are_refused(tmp_path: Path):
    write(tmp_path / "scan.nii.gz")
    with pytest.raises(SettingsError, match="did you mean 'mask'"):
        open_data(f"diffusion:{tmp_path},maks=none")
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match="volumes in files"):
        open_data(f"diffusion:{tmp_path / 'a.npz'}")


def test_from_files_to_a_map_in_their_space(tmp_path: Path):
    for k in range(4):
        write(tmp_path / f"train/sub-{k}.nii.gz", seed=k)
    new = write(tmp_path / "new/sub-9.nii.gz", seed=9)
    detector = Detector(
        "qspace_vae", calibration=0.0, steps=5, batch_size=2, hidden=(8,), latent=2, memory=100, device="cpu"
    ).fit(f"diffusion:{tmp_path / 'train'}")
    assert detector.settings.b0 == (0,)
    detector.save(tmp_path / "model")
    detector = Detector.load(tmp_path / "model")
    data, split = images_to_score(open_data(f"diffusion:{new.parent}"), None)
    score_into(detector, data, tmp_path / "results", split=split, spec="new")
    (file,) = (tmp_path / "results" / "maps").glob("*.nii.gz")
    map = nibabel.load(file)
    np.testing.assert_allclose(map.affine, AFFINE)
    inside = data.read(0)[0].T[::-1] == 1
    assert map.shape == SHAPE
    assert ((np.asarray(map.dataobj) > 0) == inside).all()
    (file,) = (tmp_path / "results" / "restored").glob("*.nii.gz")
    restored = nibabel.load(file)
    assert restored.shape == (*SHAPE, 6)
    assert restored.get_data_dtype() == np.float32
    write(tmp_path / "other/sub-8.nii.gz", seed=8, b=np.where(B > 500, 3000, B))
    with pytest.raises(DataError, match="of the training volumes"):
        detector.score(f"diffusion:{tmp_path / 'other'}")
