"""A small version of the MOOD challenge: anomalies in brain volumes after training on normal volumes only.

    python recipes/toy_mood.py --templates DIR [--out DIR]      (1 core, about two hours)

DIR holds mni152_t1_1mm.nii.gz and colin27_brain_1mm.nii.gz. Each normal volume is one of the two templates at 4 mm (48 voxels
a side), rotated, scaled, translated and smoothly deformed, with random contrast, a slow bias field and noise. Test volumes are
generated in the same way; three of four contain a synthetic anomaly (blob, intensity, rectangle, displace, mirror) of 0.4 % of the
volume inside the brain. All are written as NIfTI in the layout train/good, test/<type>, ground_truth/<type>, and read, scored and
evaluated like any volumes: maps are in the space of the files.

`vq_restoration` on slices, with the paper's and with the bidirectional prior, and in 3D, against a 3D `vae`. All maps have the
same filter, a Gaussian of 1.5 voxels. Image score and map of each row are those of one score; "reconstruction" of
vq_restoration is the same fit without restoration. Every row trains for about 25 minutes of one core, on as many volumes as
MOOD has. No setting was chosen on these test volumes; on volumes of another seed, pixel_quantile (0.95 and 0.99; in 3D also
0.98; with the bidirectional prior 0.99 to 0.99995) and the halvings in 3D (2 and 3) were chosen by voxel AP, and
sample_quantile (0.95 to 0.9995) by sample AP. There is no calibration set. With 20 normal and 60 anomalous test volumes the
intervals of the differences are as wide as the differences. With two templates, this tests the pipeline and compares methods on
this task; it does not predict performance on patients.

"differences" are those of voxel AP between two maps of the same volumes, with paired bootstrap intervals. With --out, volumes,
models and results are kept there, and models that are there are not trained again.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter, map_coordinates, zoom
from scipy.spatial.transform import Rotation

from normalcy import Detector, open_data
from normalcy.data.dataset import DataSet
from normalcy.data.splits import images_to_score
from normalcy.data.synthetic import make
from normalcy.files import read_json
from normalcy.metrics import pixel_average_precision_difference
from normalcy.provenance import write_record
from normalcy.results.evaluate import evaluate
from normalcy.results.folder import read_results
from normalcy.results.predict import score_into
from normalcy.results.schema import to_json

SIDE, SPACING = 48, 4.0
KINDS = ("blob", "intensity", "rectangle", "displace", "mirror")
AREA = 0.004
TEMPLATES = ("mni152_t1_1mm.nii.gz", "colin27_brain_1mm.nii.gz")
RESULT = Path(__file__).parent / "results" / "toy_mood.json"
Floats = npt.NDArray[np.float32]

SMALL: dict[str, Any] = {
    "codes": 64, "dimension": 32, "halvings": 2, "width": 48, "residuals": 1, "prior_width": 48, "prior_blocks": 2,
    "lr": 1e-3, "slices_per_step": 8, "copies": 6, "pixel_quantile": 0.99, "sample_quantile": 0.999, "calibration": 0.0,
}  # fmt: skip
FILTER = 1.5
"""Standard deviation of the Gaussian that filters every map, in voxels."""
RUNS: Mapping[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "vq_restoration, slices": (
        "vq_restoration", {**SMALL, "batch_size": 4, "steps": 29000}, ("restored", "reconstruction", "likelihood")
    ),
    "vq_restoration, slices, masked prior": (
        "vq_restoration",
        {**SMALL, "prior": "masked", "pixel_quantile": 0.999, "batch_size": 4, "steps": 16000},
        ("restored", "reconstruction", "surprise"),
    ),
    "vae": (
        "vae",
        {"width": 16, "latent": 64, "smoothing": FILTER, "batch_size": 8, "steps": 18500, "calibration": 0.0},
        ("gradient_elbo", "reconstruction", "combined"),
    ),
    "vq_restoration, 3D": (
        "vq_restoration",
        {**SMALL, "volumes": "whole", "batch_size": 4, "steps": 10000},
        ("restored", "reconstruction", "likelihood"),
    ),
}  # fmt: skip
"""Row -> method, settings, scores."""


def template(path: Path) -> Floats:
    """A template at 4 mm around its middle, (SIDE, SIDE, SIDE) along x, y, z, the brain's 99th percentile at 0.8."""
    image = nibabel.as_closest_canonical(nibabel.load(path))
    values = np.asarray(image.dataobj, np.float32)
    steps = image.header.get_zooms()[:3]
    small = zoom(gaussian_filter(values, 0.4 * SPACING), [s / SPACING for s in steps], order=1)
    inside = np.argwhere(small > 0.1 * small.max())
    middle = (inside.min(0) + inside.max(0)) // 2
    padded = np.pad(small, SIDE // 2)
    cube = padded[tuple(slice(m, m + SIDE) for m in middle)]
    return (0.8 * cube / np.percentile(cube[cube > 0.1 * cube.max()], 99)).astype(np.float32)


def smooth(rng: np.random.Generator, shape: Sequence[int], points: int, deviation: float) -> Floats:
    """A smooth random field with ``points`` free points a side."""
    field = zoom(rng.normal(size=(points,) * 3), [n / points for n in shape], order=3, mode="nearest")
    return (field * (deviation / field.std())).astype(np.float32)


def deformed(volume: Floats, rng: np.random.Generator, outside: float = 0.0) -> Floats:
    """Random shape: small rotation, scaling and translation, deformed by about a voxel."""
    grid = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float64) for n in volume.shape], indexing="ij"))
    turn = Rotation.from_euler("xyz", rng.normal(0, 3, 3), degrees=True).as_matrix() * rng.uniform(0.94, 1.06, 3)
    bend = np.stack([smooth(rng, volume.shape, 6, 1.0) for _ in range(3)])  # voxels
    centre = np.array(volume.shape).reshape(3, 1, 1, 1) / 2 - 0.5
    at = np.tensordot(turn, grid - centre, 1) + centre + rng.normal(0, 0.7, (3, 1, 1, 1)) + bend
    moved: Floats = map_coordinates(volume, at, order=1, cval=outside)
    return moved


def varied(brain: Floats, rng: np.random.Generator) -> Floats:
    """Random shape and contrast, values in [0, 1]."""
    moved = deformed(brain, rng)
    bias = smooth(rng, brain.shape, 4, 0.06)
    shown = np.clip(moved, 0, 1) ** rng.uniform(0.85, 1.2) * (1 + bias)
    return np.clip(shown + rng.normal(0, 0.015, shown.shape), 0, 1).astype(np.float32)


def with_anomaly(volume: Floats, kind: str, rng: np.random.Generator) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """One anomaly inside the brain."""
    brain = gaussian_filter(volume, 1) > 0.2
    while True:
        changed, mask = make(volume[None], kind, rng, area=AREA)
        if brain[mask].mean() > 0.7:
            return changed[0], mask


def generate(folder: Path, templates: Path, counts: tuple[int, int, int], seed: int) -> None:
    """Training volumes, normal test volumes and anomalous ones, as NIfTI with 16 bits."""
    brains = [template(templates / name) for name in TEMPLATES]
    rng = np.random.default_rng(seed)
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])

    def save(values: npt.NDArray[Any], name: str) -> None:
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values, affine), path)

    for k in range(sum(counts)):
        volume, kind, mask = varied(brains[int(rng.integers(2))], rng), "good", None
        part = "train" if k < counts[0] else "test"
        if k >= counts[0] + counts[1]:
            kind = KINDS[k % len(KINDS)]
            volume, mask = with_anomaly(volume, kind, rng)
        save((1000 * volume).round().astype(np.int16), f"{part}/{kind}/{k:03d}")
        if mask is not None:
            save(mask.astype(np.uint8), f"ground_truth/{kind}/{k:03d}_mask")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--templates", type=Path, required=True)
    parser.add_argument("--rows", default=";".join(RUNS), help="some of them, separated by ;")
    parser.add_argument("--counts", default="800,40,120", help="training, normal test and anomalous test volumes")
    parser.add_argument("--length", type=float, default=1.0, help="of the training, as a multiple")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resamples", type=int, default=200, help="of the intervals")
    parser.add_argument("--out", type=Path, default=None, help="keep volumes and results here")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    counts = tuple(int(n) for n in options.counts.split(","))
    assert len(counts) == 3
    rows: list[dict[str, Any]] = []
    folders: dict[tuple[str, str], Path] = {}
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        generate(out / "volumes", options.templates, counts, options.seed)
        data = open_data(out / "volumes")
        test, split = images_to_score(data, None)
        for name, (method, words, scores) in RUNS.items():
            if name not in options.rows.split(";"):
                continue
            words = {**words, "steps": max(2, round(options.length * words["steps"])), "seed": options.seed}
            detector = fitted(out / name.replace(", ", "-").replace(" ", "-"), method, words, data)
            for score in scores:
                folder = out / f"{name.replace(', ', '-').replace(' ', '-')}-{score}"
                started = time.process_time()
                score_into(
                    detector.with_score(score), test, folder, split=split, spec=str(out / "volumes"), overwrite=True
                )
                seconds = time.process_time() - started
                folders[name, score] = folder
                found = to_json(evaluate(folder, resamples=options.resamples))
                row = {
                    "row": name,
                    "score": score,
                    "voxel_ap": found["pixel"]["average_precision"],
                    "sample_ap": found["image"]["average_precision"],
                    "voxel_auroc": found["pixel"]["auroc"],
                    "sample_auroc": found["image"]["auroc"],
                    "types": {kind: entry["auroc"]["value"] for kind, entry in found["types"].items()},
                    "fit_processor_seconds": detector.facts["processor_seconds"],
                    "score_processor_seconds_per_volume": round(seconds / len(test), 2),
                    "settings": words,
                }
                rows.append(row)
                shown = {key: row[key] for key in ("fit_processor_seconds", "score_processor_seconds_per_volume")}
                print(name, score, voxel_ap(row), shown, "sample AP", row["sample_ap"]["value"], flush=True)
        write_record(
            options.result,
            {
                "recipe": "toy_mood",
                "volumes": {
                    "train": counts[0],
                    "test_normal": counts[1],
                    "test_anomalous": counts[2],
                    "side": SIDE,
                    "mm": SPACING,
                },
                "anomalies": {"kinds": KINDS, "share_of_volume": AREA},
                "voxel_ap_by_chance": AREA * counts[2] / (counts[1] + counts[2]),
                "filter": f"Gaussian, standard deviation {FILTER} voxels",
                "seed": options.seed,
                "threads": options.threads,
                "resamples": options.resamples,
                "rows": rows,
                "differences": differences(folders, options.resamples),
            },
        )


def voxel_ap(row: Mapping[str, Any]) -> str:
    """Voxel AP of a row with its interval."""
    return "voxel AP {value:.3f} [{low:.3f}, {high:.3f}]".format(**row["voxel_ap"])


def fitted(folder: Path, method: str, words: dict[str, Any], data: DataSet) -> Detector:
    """The model in ``folder`` if its settings are these, else a new one, which is saved there."""
    record = folder / "fit.json"
    if record.is_file():
        known = read_json(record)
        if known["settings"] == words:
            detector = Detector.load(folder / "model")
            detector.facts["processor_seconds"] = known["processor_seconds"]
            return detector
    started = time.process_time()
    detector = Detector(method, **words, device="cpu").fit(data)
    seconds = round(time.process_time() - started, 1)
    detector.save(folder / "model", overwrite=True)
    write_record(record, {"settings": words, "processor_seconds": seconds})
    detector.facts["processor_seconds"] = seconds
    return detector


def differences(folders: Mapping[tuple[str, str], Path], resamples: int) -> list[dict[str, Any]]:
    """Voxel AP of each restored map minus that of every other map of no restoration, with paired intervals."""
    found = []
    for (name, score), folder in folders.items():
        if score != "restored":
            continue
        maps, masks = read_maps(folder)
        for (other, its_score), its_folder in folders.items():
            if its_score in ("reconstruction", "combined"):
                paired = pixel_average_precision_difference(
                    maps, read_maps(its_folder)[0], masks, resamples=resamples, seed=0
                )
                value = {"value": paired.value, "low": paired.low, "high": paired.high}
                row = {"row": name, "score": score, "against": other, "its_score": its_score, "voxel_ap": value}
                print(name, score, "minus", other, its_score, voxel_ap(row), flush=True)
                found.append(row)
    return found


def read_maps(folder: Path) -> tuple[list[Floats], list[npt.NDArray[np.bool_] | None]]:
    """Maps and masks of a results folder, in its order; no mask for normal volumes."""
    results = read_results(folder)
    maps, masks = [], []
    for i in range(len(results)):
        values, mask = results.file("maps", i, ".nii.gz"), results.mask(i)
        assert values is not None
        maps.append(np.asarray(nibabel.load(values).dataobj, np.float32))
        masks.append(None if mask is None else np.asarray(nibabel.load(mask).dataobj) > 0)
    return maps, masks


if __name__ == "__main__":
    main()
