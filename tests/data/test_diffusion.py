"""Diffusion MRI: attenuations from files with b-values, and from fit to map in the space of the file."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pytest

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
    np.testing.assert_allclose(np.array(data.scheme["scheme"])[:, 1:], directions()[[1, 3, 4, 5, 6]], atol=1e-5)
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
