"""Parts of volumes that a table names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from normalcy import DataError, open_data


@pytest.mark.parametrize("part", ["z=999999999", "z=0:999999999", "x=" + "9" * 30, "z=5:2", "t=7", "y=" + "9" * 5000])
def test_absurd_parts_are_one_error(tmp_path: Path, part: str) -> None:
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 4), np.uint8), np.eye(4)), tmp_path / "v.nii.gz")
    (tmp_path / "t.csv").write_text(f'path\n"v.nii.gz[{part}]"\n')
    with pytest.raises(DataError) as caught:
        open_data(tmp_path / "t.csv").read(0)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
