"""Mutated NIfTI and DICOM files; ``python tests/fuzz_medical.py 100000`` tries more."""

from pathlib import Path

import numpy as np
import pytest
from fuzz_medical import LONGEST, fuzz, mutate, seeds

from normalcy import Detector
from normalcy.data.open import open_data
from normalcy.results.predict import score_into


@pytest.mark.filterwarnings("ignore")
def test_mutated_files_are_read_or_refused():
    outcomes, longest = fuzz(5000, seed=1)
    assert outcomes["read"] > 1000
    assert outcomes["refused"] > 1000
    assert longest < LONGEST


@pytest.mark.filterwarnings("ignore")
def test_no_partial_output(tmp_path: Path):
    """Among whole and damaged files: a map for each that was scored, and every other is listed."""
    rng = np.random.default_rng(2)
    whole = seeds()["nifti.nii"]
    (tmp_path / "data").mkdir()
    for i in range(24):
        (tmp_path / "data" / f"{i:02d}.nii").write_bytes(whole if i < 8 else mutate(whole, rng))
    normal = rng.integers(0, 99, (40, 7, 8, 9, 1)).astype(np.int16)
    data = open_data(tmp_path / "data")
    facts = score_into(Detector("zscore").fit(normal), data, tmp_path / "results").data
    maps = {path.name.removesuffix(".nii.gz") for path in (tmp_path / "results/maps").iterdir()}
    failed = {one.path for one in facts.failed}
    assert len(maps) == facts.count >= 8
    assert failed
    assert maps | failed == {item.path for item in data.items}
    assert not maps & failed
