"""Synthetic changes of the diffusion signal, detected voxel by voxel after training on healthy voxels of the same brain.

    python recipes/qspace_diffusion.py --data-root DIR [--out DIR]      (1 core, about 2 minutes)

DIR holds small_64D.nii with .bval and .bvec (10x10x10 voxels, 64 directions at b=1000 s/mm^2) and small_101D.nii.gz with .bval
(6x10x10 voxels, 101 measurements up to b=4065, directions not given). Even slices are for training, odd ones for testing, each
written as a 4D volume with its b-values in the layout train/good, test/<kind>, ground_truth/<kind>, and read as
`diffusion:FOLDER`. A test volume has three lesions of up to 7 or 19 voxels, of one kind. The lesions change A, the part of S / S0
that is explained by the first six principal components of the file; the remainder, mainly noise, is kept. (In a first trial it
was changed too: lesions were then less noisy than healthy voxels and scored lower, with AUROCs down to 0.2.)

    restricted  diffusion is slower by half, as in acute ischaemia, A <- A^(1/2)
    free_water  half is free water, as in oedema, A <- (A + exp(-b 0.003 mm^2/s)) / 2
    isotropic   the differences between directions of one b-value are reduced to a quarter, A <- (A + 3 mean A of that b) / 4
    dropout     an artefact: half of the signal is lost in a quarter of the measurements, the same for a lesion

Some healthy voxels have free water or little anisotropy, so a method that scores one voxel at a time may not detect these.

Every score of `qspace_vae` (Vasilev et al. 2018) with its defaults, and two baselines without a network: the mean squared z-score
of a voxel's signals, and their residual after the principal components that explain 95 % of the variance. Voxel AUROC and AP
against the unchanged voxels of the same volumes and the volume without lesions. Intervals: 95 %, bootstrap over volumes; they
describe the effect of lesion positions, not of brains, because each file has one brain. The ends of AUROC intervals come from
histograms and are accurate to 0.002. Nothing is chosen on test volumes.

Expected: with 101 b-values the reconstruction error detects restricted diffusion (AUROC 1.00, AP 1.00) and dropout (0.98, 0.93);
the z-score is better on free water (0.96 against 0.62), PCA on dropout (1.00); no score detects the loss of anisotropy well
(at most 0.71, PCA). With 64 directions of one b-value healthy voxels vary so much that no AUROC exceeds 0.68 for any change.

A third file, S0_10slices.nii.gz, contains b=0 only and has no q-space; it was used to inspect the brain mask.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import torch

from normalcy import Detector, open_data
from normalcy.data.dataset import DataSet
from normalcy.data.diffusion import read_scheme
from normalcy.metrics import Interval, pixel_auroc_interval, pixel_average_precision_interval
from normalcy.provenance import write_record
from normalcy.results.predict import score_into

RESULT = Path(__file__).parent / "results" / "qspace_diffusion.json"
FILES = ("small_64D.nii", "small_101D.nii.gz")
LESIONS, COMPONENTS = 3, 6
Floats = npt.NDArray[np.float64]
Change = Callable[[Floats, Floats, np.random.Generator], Floats]
"""Attenuations (voxels, N) and b-values (N,) in s/mm^2 -> attenuations of a lesion."""


def isotropic(a: Floats, b: Floats, rng: np.random.Generator) -> Floats:
    shell = np.round(b, -2)
    mean = np.stack([a[:, shell == s].mean(1) for s in shell], 1)
    return (a + 3 * mean) / 4


def dropout(a: Floats, b: Floats, rng: np.random.Generator) -> Floats:
    return a * np.where(rng.permutation(b.size) < b.size / 4, 0.5, 1.0)


KINDS: Mapping[str, Change] = {
    "restricted": lambda a, b, rng: np.sqrt(a),
    "free_water": lambda a, b, rng: (a + np.exp(-0.003 * b)) / 2,
    "isotropic": isotropic,
    "dropout": dropout,
}


def smooth_part(signals: Floats, is_b0: npt.NDArray[np.bool_]) -> Floats:
    """S / S0 of the weighted images, (X, Y, Z, N), projected onto the first principal components; in [0, 1]."""
    rows = (signals[..., ~is_b0] / signals[..., is_b0].mean(-1, keepdims=True)).reshape(-1, int((~is_b0).sum()))
    mean = rows.mean(0)
    axes = np.linalg.svd(rows - mean, full_matrices=False)[2][:COMPONENTS]
    held = mean + (rows - mean) @ axes.T @ axes
    return np.asarray(np.clip(held, 0, 1).reshape(*signals.shape[:3], -1))


def planted(
    signals: Floats, held: Floats, b: Floats, is_b0: npt.NDArray[np.bool_], change: Change, rng: np.random.Generator
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Signals (X, Y, Z, N) with lesions, and their mask (X, Y, Z); ``held``: their smooth part."""
    mask, changed = np.zeros(signals.shape[:3], bool), signals.copy()
    base = signals[..., is_b0].mean(-1, keepdims=True)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in mask.shape], indexing="ij"), -1)
    for _ in range(LESIONS):
        at = [int(rng.integers(n)) for n in mask.shape]
        lesion = ((grid - at) ** 2).sum(-1) <= rng.choice((1, 2))
        lesion &= ~mask
        rows = changed[lesion]
        rows[:, ~is_b0] += base[lesion] * (change(held[lesion], b[~is_b0], rng) - held[lesion])
        changed[lesion] = np.maximum(rows, 0)
        mask |= lesion
    return changed, mask


def write_set(folder: Path, source: Path, volumes: int, seed: int) -> None:
    """Even slices for training, odd ones for the test, as files with their scheme beside them."""
    image = nibabel.load(source)
    signals = np.asarray(image.dataobj, np.float64)
    name = source.name.removesuffix(".gz").removesuffix(".nii")
    b = np.loadtxt(source.parent / f"{name}.bval").ravel()
    is_b0 = read_scheme(source, 50.0)[0]
    rng = np.random.default_rng(seed)

    def save(values: npt.NDArray[Any], file: str, scheme: bool) -> None:
        path = folder / f"{file}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values, image.affine), path)
        for suffix in (".bval", ".bvec") if scheme else ():
            if (text := source.parent / f"{name}{suffix}").exists():
                shutil.copyfile(text, folder / f"{file}{suffix}")

    save(signals[:, :, 0::2].astype(np.float32), "train/good/even", True)
    test, held = signals[:, :, 1::2], smooth_part(signals, is_b0)[:, :, 1::2]
    save(test.astype(np.float32), "test/good/odd", True)
    for kind, change in KINDS.items():
        for k in range(volumes):
            changed, mask = planted(test, held, b, is_b0, change, rng)
            save(changed.astype(np.float32), f"test/{kind}/{k:02d}", True)
            save(mask.astype(np.uint8), f"ground_truth/{kind}/{k:02d}_mask", False)


def baselines(train: DataSet, test: DataSet) -> dict[str, list[npt.NDArray[np.float32]]]:
    """Maps of the baselines without a network."""
    rows = np.concatenate([x[1:, x[0] > 0].T for x in map(train.read, range(len(train)))])
    mean, std = rows.mean(0), rows.std(0)
    _, values, axes = np.linalg.svd((rows - mean) / std, full_matrices=False)
    kept = axes[: 1 + int(np.searchsorted(np.cumsum(values**2) / (values**2).sum(), 0.95))]
    maps: dict[str, list[npt.NDArray[np.float32]]] = {"zscore, by voxel": [], "pca, by voxel": []}
    for x in map(test.read, range(len(test))):
        inside = x[0] > 0
        z = (x[1:, inside].T - mean) / std
        for name, left in (("zscore, by voxel", z), ("pca, by voxel", z - z @ kept.T @ kept)):
            found = np.zeros(inside.shape, np.float32)
            found[inside] = (left**2).mean(1)
            maps[name].append(found)
    return maps


def plain(interval: Interval) -> dict[str, float]:
    return {name: round(float(getattr(interval, name)), 4) for name in ("value", "low", "high")}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True, help="folder of the diffusion volumes")
    parser.add_argument("--volumes", type=int, default=8, help="test volumes of each kind of lesion")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resamples", type=int, default=1000, help="of the intervals")
    parser.add_argument("--out", type=Path, default=None, help="keep volumes and results here")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    words = {"slices": "z", "steps": options.steps, "calibration": 0.0, "seed": options.seed, "device": "cpu"}
    sets: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        for file in FILES:
            folder = out / file.split(".")[0]
            write_set(folder / "volumes", options.data_root / file, options.volumes, options.seed)
            data = open_data(f"diffusion:{folder / 'volumes'},mask=none")
            train, test = data.select("train"), data.select("test")
            started = time.process_time()
            detector = Detector("qspace_vae", **words).fit(data)
            seconds = round(time.process_time() - started, 1)
            score_into(detector, test, folder / "results", split="test", spec=str(folder / "volumes"), overwrite=True)
            maps: dict[str, list[npt.NDArray[np.float32]]] = baselines(train, test)
            for score in detector.method.scores if detector.method else ():
                found = detector.with_score(score).score(test).maps
                maps[f"qspace_vae, {score}"] = [np.asarray(m, np.float32) for m in found]
            masks = [test.mask(i) for i in range(len(test))]
            rows = []
            for name, values in maps.items():
                row: dict[str, Any] = {"row": name}
                for kind in KINDS:
                    of_kind = [i for i, item in enumerate(test.items) if item.type in (kind, "good")]
                    pair = [values[i] for i in of_kind], [masks[i] for i in of_kind]
                    row[kind] = {
                        "auroc": plain(pixel_auroc_interval(*pair, resamples=options.resamples)),
                        "ap": plain(pixel_average_precision_interval(*pair, resamples=options.resamples)),
                    }
                rows.append(row)
                print(
                    file,
                    name,
                    {kind: (row[kind]["auroc"]["value"], row[kind]["ap"]["value"]) for kind in KINDS},
                    flush=True,
                )
            marked = [m for m in masks if m is not None and m.any()]
            sets[file] = {
                "shape": list(train.read(0).shape),
                "voxel_ap_by_chance": round(float(np.mean([m.mean() for m in marked])), 4),
                "fit_processor_seconds": seconds,
                "rows": rows,
            }
    write_record(
        options.result,
        {
            "recipe": "qspace_diffusion",
            "volumes_per_kind": options.volumes,
            "words": words,
            "resamples": options.resamples,
            "sets": sets,
        },
    )


if __name__ == "__main__":
    main()
