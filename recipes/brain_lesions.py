"""Haemorrhage-like lesions in brain MR and in CT: lesion-wise sensitivity after training on normal volumes only.

    python recipes/brain_lesions.py --data-root DIR [--out DIR]      (1 core, about 25 minutes)

DIR holds mni152_t1_1mm.nii.gz, colin27_brain_1mm.nii.gz and ct_3mm.nii.gz. Normal volumes are random variants of these at 4 mm:
rotated, scaled, translated and smoothly deformed as in recipes/toy_mood.py; MR with random contrast, a slow bias field and noise,
CT with a random offset and noise in Hounsfield units. Two of three test volumes contain one to three lesions with soft edges, 8
to 16 mm in radius: in MR brighter by 0.3 to 0.6 of the range (at most 1), in CT tissue of 65 to 95 HU, like blood. The CT is an
abdomen (liver, kidneys, spine), not a head. It is nevertheless viewed in the brain window (40/80 HU, 0 to 80 HU from black to
white), and lesions are placed in tissue of 0 to 60 HU. As skulls are stripped from heads, only soft tissue at least one voxel
from its edge is evaluated.

`spatial_uae` against `vae`, on slices, trained on the same number of slices, each scored by its own map and by the smoothed
difference to its restored volume; and a voxelwise `zscore`. In a first run, lesions in MR were brighter by only 0.15 to 0.3, and
hardly any was detected in any row; the contrast of lesions, training lengths and the difference map were then chosen on another
seed. Lesion-wise sensitivity at a fixed false-positive rate: the threshold is the smallest at which held-out lesion-free volumes
have on average the stated number of false regions per volume; the number on the lesion-free test volumes is reported beside it. A
lesion is detected if a tenth of its voxels are flagged. Intervals: 95 %, bootstrap over volumes. Nothing is chosen on test
volumes. With three templates, this compares methods on this task; it does not predict performance on patients.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import binary_erosion, gaussian_filter, zoom
from toy_mood import SPACING, TEMPLATES, deformed, smooth, template, varied

from normalcy import Detector, metrics
from normalcy.metrics import bootstrap_interval, pixel_auroc_interval, pixel_average_precision_interval
from normalcy.provenance import write_record

RESULT = Path(__file__).parent / "results" / "brain_lesions.json"
FALSE_REGIONS = (1.0, 5.0)
"""Per lesion-free volume, at which sensitivity is read."""
OVERLAP = 0.1
Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Maker = Callable[[np.random.Generator], Floats]

DIFFERENCE = "difference"
ROWS: Mapping[str, tuple[str, str | None, dict[str, Any]]] = {
    "spatial_uae": ("spatial_uae", None, {}),
    "spatial_uae, difference": ("spatial_uae", DIFFERENCE, {}),
    "vae, reconstruction": ("vae", "reconstruction", {"width": 16}),
    "vae, difference": ("vae", DIFFERENCE, {"width": 16}),
    "vae, gradient_elbo": ("vae", "gradient_elbo", {"width": 16}),
    "zscore": ("zscore", None, {"slices": "none", "smoothing": 1.0}),
}
"""Row -> method, score, settings. Rows of one method share a fit. DIFFERENCE: see ``difference``."""


def mr(folder: Path) -> tuple[Maker, Callable[[Floats], Mask], Callable[[Floats, Floats, np.random.Generator], Floats]]:
    """How to make a normal volume, where lesions may be placed, and how a lesion with weights in [0, 1] changes the volume."""
    brains = [template(folder / name) for name in TEMPLATES]

    def change(volume: Floats, weight: Floats, rng: np.random.Generator) -> Floats:
        return np.clip(volume + rng.uniform(0.3, 0.6) * weight, 0, 1).astype(np.float32)

    return (
        lambda rng: varied(brains[int(rng.integers(2))], rng),
        lambda volume: np.asarray(gaussian_filter(volume, 1) > 0.25),
        change,
    )


def ct(folder: Path) -> tuple[Maker, Callable[[Floats], Mask], Callable[[Floats, Floats, np.random.Generator], Floats]]:
    """The same in Hounsfield units."""
    image = nibabel.as_closest_canonical(nibabel.load(folder / "ct_3mm.nii.gz"))
    steps = image.header.get_zooms()[:3]
    body = zoom(np.asarray(image.dataobj, np.float32), [s / SPACING for s in steps], order=1)

    def make(rng: np.random.Generator) -> Floats:
        moved = deformed(body, rng, outside=-1000.0)
        drift = smooth(rng, body.shape, 4, 2.0) + rng.normal(0, 2)
        return (moved + drift + rng.normal(0, 6, body.shape)).astype(np.float32)

    def change(volume: Floats, weight: Floats, rng: np.random.Generator) -> Floats:
        blood = rng.uniform(65, 95) + rng.normal(0, 6, volume.shape)
        return (volume + weight * (blood - volume)).astype(np.float32)

    def tissue(volume: Floats) -> Mask:
        seen = gaussian_filter(volume, 1)
        return np.asarray((seen > 0) & (seen < 60))

    return make, tissue, change


def with_lesions(
    volume: Floats,
    allowed: Callable[[Floats], Mask],
    change: Callable[[Floats, Floats, np.random.Generator], Floats],
    rng: np.random.Generator,
) -> tuple[Floats, Mask]:
    """One to three ellipsoids with soft edges that lie in tissue; the mask is where they are at least half there."""
    inside, mask = allowed(volume), np.zeros(volume.shape, bool)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in volume.shape], indexing="ij"), -1)
    places = np.argwhere(inside)
    for _ in range(int(rng.integers(1, 4))):
        for _ in range(1000):
            radii = rng.uniform(8, 16, 3) / SPACING
            at = places[int(rng.integers(len(places)))]
            distance = np.sqrt((((grid - at) / radii) ** 2).sum(-1))
            lesion = distance <= 1
            if inside[lesion].mean() > 0.9 and not (mask & (distance <= 1.7)).any():
                break
        else:
            continue
        weight = np.clip(2.5 - 2 * distance, 0, 1).astype(np.float32)  # 1 inside of 3/4 of the radius, 1/2 at the edge
        volume = change(volume, weight, rng)
        mask |= lesion
    return volume, mask


def soft_tissue(volume: Floats, part: str) -> Mask:
    """Voxels to evaluate: soft tissue and lesions, without bones, air and adjacent voxels."""
    low, high = (0.25, 2.0) if part == "mr" else (-20.0, 100.0)
    seen = gaussian_filter(volume, 1)
    return np.asarray(binary_erosion((seen > low) & (seen < high)))


def difference(volumes: Floats, restored: Sequence[Floats], part: str) -> list[Floats]:
    """|G(x - restored)| with a Gaussian of one voxel: noise and fine edges cancel, lesions do not. In CT within the window."""
    top = 80.0 if part == "ct" else 1.0
    pairs = zip(volumes, restored, strict=True)
    return [np.abs(gaussian_filter(np.clip(x, 0, top) - np.clip(r, 0, top), 1)) for x, r in pairs]


def threshold_at(maps: Sequence[Floats], rate: float) -> float:
    """The smallest threshold at which these normal maps have on average at most ``rate`` flagged regions, in 150 steps."""
    values = np.sort(np.concatenate([m.ravel() for m in maps]))
    least = float(values[-1])
    for share in np.geomspace(1 / values.size, 0.2, 150):
        threshold = float(values[int(values.size * (1 - share))])
        if np.mean([metrics.label_regions(m > threshold)[1] for m in maps]) > rate:
            break
        least = threshold
    return least


def read_off(maps: Sequence[Floats], masks: Sequence[Mask | None], threshold: float, resamples: int) -> dict[str, Any]:
    """Sensitivity by lesion over all volumes, and false regions on the lesion-free ones."""
    hits = metrics.region_hits(maps, masks, threshold, overlap=OVERLAP)
    found = np.array([h.sum() for h in hits.hits], float)
    count = np.array([h.size for h in hits.hits], float)
    ill = count > 0
    sensitivity = bootstrap_interval(
        lambda f, n: float(f.sum() / n.sum()), found[ill], count[ill], resamples=resamples, seed=0
    )
    false = bootstrap_interval(lambda f: float(f.mean()), hits.false_regions[~ill], resamples=resamples, seed=0)
    return {"sensitivity": plain(sensitivity), "false_regions_per_test_volume": plain(false), "threshold": threshold}


def plain(interval: metrics.Interval) -> dict[str, float]:
    return {name: round(float(getattr(interval, name)), 4) for name in ("value", "low", "high")}


def picture(
    path: Path, volume: Floats, mask: Mask, maps: Mapping[str, Floats], restored: Floats | None, limits: Any
) -> None:
    """The slice with most lesion: image, lesion, restored image, maps."""
    import matplotlib.pyplot as plt

    z = int(mask.sum((1, 2)).argmax())
    panels: list[tuple[str, Any, dict[str, Any]]] = [("image", volume, limits), ("lesions", mask, {})]
    if restored is not None:
        panels.append(("restored by spatial_uae", restored, limits))
    panels += [(name, m, {"vmax": float(np.percentile(m, 99.9))}) for name, m in maps.items()]
    figure, axes = plt.subplots(1, len(panels), figsize=(2.6 * len(panels), 2.9), constrained_layout=True)
    for axis, (name, values, words) in zip(axes, panels):
        grey = name in ("image", "lesions", "restored by spatial_uae")
        axis.imshow(values[z], origin="lower", cmap="gray" if grey else "magma", **words)
        axis.set_title(name, fontsize=9)
        axis.axis("off")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True, help="folder of the volumes")
    parser.add_argument("--rows", default=";".join(ROWS), help="some of them, separated by ;")
    parser.add_argument("--parts", default="mr,ct")
    parser.add_argument(
        "--counts", default="100,10,10,20", help="training, held-out, normal test and test volumes with lesions"
    )
    parser.add_argument("--images", type=int, default=48_000, help="slices that each network sees in training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resamples", type=int, default=1000, help="of the intervals")
    parser.add_argument("--out", type=Path, default=None, help="keep figures here")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    train, held_out, normal, ill = (int(n) for n in options.counts.split(","))
    words = {"slices": "z", "slice_body": 0.02, "batch_size": 32, "steps": max(2, options.images // 32)}
    words |= {"calibration": 0.0, "seed": options.seed, "device": "cpu"}
    parts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        for part in options.parts.split(","):
            make, allowed, change = (mr if part == "mr" else ct)(options.data_root)
            rng = np.random.default_rng(options.seed)
            volumes = [make(rng) for _ in range(train + held_out + normal)]
            marked = [with_lesions(make(rng), allowed, change, rng) for _ in range(ill)]
            turned = [v.transpose(2, 1, 0) for v in (*volumes, *(v for v, _ in marked))]  # z, y, x
            masks: list[Mask | None] = [None] * normal + [m.transpose(2, 1, 0) for _, m in marked]
            x = np.stack(turned)[..., None]
            tissue = [soft_tissue(v, part) for v in turned[train:]]
            window = {"preprocess": "window:40:80"} if part == "ct" else {}
            rows, shown, restored, fitted = [], {}, None, {}
            for name in options.rows.split(";"):
                method, score, settings = ROWS[name]
                started = time.process_time()
                if method not in fitted:
                    chosen = {**words, **window, **settings}
                    fitted[method] = Detector(method, **chosen).fit(x[:train]), round(time.process_time() - started, 1)
                detector, seconds = fitted[method]
                named = score not in (None, DIFFERENCE)
                results = (detector.with_score(score) if named else detector).score(x[train:])
                maps = results.maps
                if score == DIFFERENCE:
                    maps = difference(x[train:, ..., 0], [r[0] for r in results.restored], part)
                maps = [np.where(seen, m, 0).astype(np.float32) for seen, m in zip(tissue, maps, strict=True)]
                test = maps[held_out:]
                row: dict[str, Any] = {"row": name, "fit_processor_seconds": seconds}
                row["voxel_ap"] = plain(pixel_average_precision_interval(test, masks, resamples=options.resamples))
                row["voxel_auroc"] = plain(pixel_auroc_interval(test, masks, resamples=options.resamples))
                row["at_false_regions_per_volume"] = {
                    f"{rate:g}": read_off(test, masks, threshold_at(maps[:held_out], rate), options.resamples)
                    for rate in FALSE_REGIONS
                }
                rows.append(row)
                shown[name] = test[normal]
                if method == "spatial_uae":
                    restored = results.restored[held_out + normal][0]
                print(part, name, row["voxel_ap"], row["at_false_regions_per_volume"]["1"]["sensitivity"], flush=True)
            limits = {"vmin": 0, "vmax": 80 if part == "ct" else 1}
            first = marked[0][1].transpose(2, 1, 0)
            picture(out / f"{part}.png", x[train + held_out + normal, ..., 0], first, shown, restored, limits)
            lesions = sum(metrics.label_regions(m)[1] for m in masks if m is not None)
            share = float(np.mean([0.0 if m is None else m.mean() for m in masks]))
            parts[part] = {
                "shape": list(x.shape[1:4]),
                "lesions": lesions,
                "voxel_ap_by_chance": round(share, 5),
                "rows": rows,
            }
    counts = {"train": train, "held_out_normal": held_out, "test_normal": normal, "test_with_lesions": ill}
    write_record(
        options.result,
        {
            "recipe": "brain_lesions",
            "volumes": counts,
            "mm": SPACING,
            "overlap": OVERLAP,
            "words": words,
            "settings": {name: settings for name, (_, _, settings) in ROWS.items()},
            "resamples": options.resamples,
            "parts": parts,
        },
    )


if __name__ == "__main__":
    main()
