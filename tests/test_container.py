"""The entry point of the container for challenges: an answer for every file, maps in the space of the input."""

import csv
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import nibabel
import numpy as np

from normalcy import Detector

AFFINE = np.array([[-2.0, 0, 0, 5], [0, 1, 0, -3], [0, 0, 3, 9], [0, 0, 0, 1]])


def test_folder_in_folder_out(tmp_path: Path, module_of: Callable[[str], ModuleType]):
    module = module_of("containers/volumes/entrypoint.py")
    rng = np.random.default_rng(0)
    normal = rng.normal(100, 5, (60, 8, 10, 12, 1)).astype(np.float32)
    Detector("zscore").fit(normal).save(tmp_path / "model")
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        array = rng.normal(100, 5, (12, 10, 8)).astype(np.float32)
        if name == "b":
            array[2:6, 3:7, 2:5] += 200
        nibabel.save(nibabel.Nifti1Image(array, AFFINE), tmp_path / "in" / f"{name}.nii.gz")
    (tmp_path / "in/c.nii.gz").write_bytes(b"\x1f\x8bnothing")
    assert module.main([str(tmp_path / "in"), str(tmp_path / "out"), "--model", str(tmp_path / "model")]) == 0
    with open(tmp_path / "out/scores.csv", encoding="utf-8") as file:
        scores = {row["file"]: float(row["score"]) for row in csv.DictReader(file)}
    assert set(scores) == {"a.nii.gz", "b.nii.gz", "c.nii.gz"}
    assert scores["a.nii.gz"] < scores["b.nii.gz"] == scores["c.nii.gz"]
    assert float((tmp_path / "out/b.nii.gz.txt").read_text()) == scores["b.nii.gz"]
    written = nibabel.load(tmp_path / "out/b.nii.gz")
    np.testing.assert_array_equal(written.affine, AFFINE)
    values = written.get_fdata()
    assert 0 <= values.min() <= values.max() <= 1
    assert values[2:6, 3:7, 2:5].mean() > 2 * values.mean()
    assert module.main([str(tmp_path / "in"), str(tmp_path / "out"), "--model", str(tmp_path / "none")]) == 1
