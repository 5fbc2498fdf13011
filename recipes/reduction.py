"""Which reduction of an anomaly map to an image score detects small and large anomalies: evidence for the default of `reduce`.

    python recipes/reduction.py --data-root DIR [--seconds 60]      (1 core, about 15 minutes)

Sets: magnetic tiles and chest X-rays without findings at 128x128, axial slices of varied brain templates at 64x64
(recipes/toy_mood.py). Methods: pca, autoencoder, vae, each trained on the normal images but 100 (tiles: 150), the networks for
--seconds of processor time. The held-out normal images, as they are and with one synthetic anomaly each (six kinds, 0.2, 1 and 5
% of the image), give an AUROC for each reduction, set, method and area: the choice is made of these alone, by the mean and the
smallest of them. Real anomalies (defects of tiles, pneumonia) are scored as well, to see whether the choice holds.

Writes results/reduction.json after each set; sets that are there are not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from budget import steps_in
from chest_xray import open_chest
from scipy.ndimage import gaussian_filter
from torch import Tensor
from toy_mood import TEMPLATES, template, varied

from normalcy import Detector, open_data
from normalcy.data.open import as_dataset
from normalcy.data.splits import with_split
from normalcy.data.synthetic import SYNTHETIC, make
from normalcy.metrics import auroc
from normalcy.nets.filters import gaussian_smooth, map_quantile
from normalcy.provenance import write_record

RESULT = Path(__file__).parent / "results" / "reduction.json"
AREAS = (0.002, 0.01, 0.05)
METHODS: dict[str, dict[str, Any]] = {
    "pca": {},
    "autoencoder": {"batch_size": 32},
    "vae": {"score": "reconstruction", "batch_size": 32},
}
Floats = npt.NDArray[np.float32]


def smoothed_max(maps: Tensor, fraction: float) -> Tensor:
    """Maximum after a Gaussian of this fraction of the longest side."""
    return gaussian_smooth(maps, fraction * max(maps.shape[1:])).flatten(1).amax(1)


def tail_mean(maps: Tensor, fraction: float) -> Tensor:
    flat = maps.flatten(1)
    return flat.topk(max(1, round(fraction * flat.shape[1])), dim=1).values.mean(1)


PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda m: m.flatten(1).mean(1),
    "quantile 0.9": lambda m: map_quantile(m, 0.9),
    "quantile 0.99": lambda m: map_quantile(m, 0.99),
    "quantile 0.999": lambda m: map_quantile(m, 0.999),
    "max": lambda m: map_quantile(m, 1.0),
    "mean of the largest 1 %": lambda m: tail_mean(m, 0.01),
    "mean of the largest 5 %": lambda m: tail_mean(m, 0.05),
    "smoothed max, 1/64": lambda m: smoothed_max(m, 1 / 64),
    "smoothed max, 1/32": lambda m: smoothed_max(m, 1 / 32),
    "smoothed max, 1/16": lambda m: smoothed_max(m, 1 / 16),
    "smoothed max, 1/8": lambda m: smoothed_max(m, 1 / 8),
    "smoothed max 1/32 / mean": lambda m: smoothed_max(m, 1 / 32) / m.flatten(1).mean(1),
    "geometric mean of mean and smoothed max 1/32": lambda m: (smoothed_max(m, 1 / 32) * m.flatten(1).mean(1)).sqrt(),
}
COMBINED = {
    "largest rank of mean and smoothed max 1/32": ("mean", "smoothed max, 1/32"),
    "largest rank of mean and smoothed max 1/16": ("mean", "smoothed max, 1/16"),
    "largest rank of mean, quantile 0.99 and smoothed max 1/32": ("mean", "quantile 0.99", "smoothed max, 1/32"),
}
"""Ranks against the other held-out normal images; the number of them below, then the distance beyond the largest."""


def reduced(maps: Tensor, normal: Tensor) -> dict[str, Floats]:
    """Scores of maps (B, H, W) by each reduction; ``normal``: maps of the normal images that ranks refer to."""
    scores = {name: reduce(maps).numpy() for name, reduce in PLAIN.items()}
    known = {name: np.sort(reduce(normal).numpy()) for name, reduce in PLAIN.items()}
    for name, parts in COMBINED.items():
        # z-score of the logarithm against the held-out normal images: ranks, continued beyond the largest
        logs = [(np.log(scores[p]) - np.log(known[p]).mean()) / np.log(known[p]).std() for p in parts]
        scores[name] = np.max(logs, axis=0)
    return scores


def sets(root: Path) -> Iterator[tuple[str, Any, list[Floats], Any, dict[str, Any]]]:
    """Name, training images, held-out normal images (1, H, W) in [0, 1], a labelled test set or none, settings."""
    for name, data, held in (
        ("magnetic tiles", open_data("magnetic_tile", root), 150),
        ("chest X-rays", open_chest(root / "chest_xray_256.zip"), 100),
    ):
        data = with_split(data, 0)
        train, test = data.select(split="train"), data.select(split="test")
        order = np.random.default_rng(0).permutation(len(train))
        kept, carved = np.sort(order[held:]), np.sort(order[:held])
        yield name, train.subset(kept), [train.read(int(i)) for i in carved], test, {"size": 128}
    rng = np.random.default_rng(0)
    brains = [template(root / "volumes" / file) for file in TEMPLATES]
    slices = [varied(brains[k % 2], rng)[:, :, z] for k in range(60) for z in range(14, 36, 3)]
    held_out = [image[None] for image in slices[-13 * 8 :]]
    yield "brain slices", as_dataset(np.stack(slices[: -13 * 8])), held_out, None, {"size": 64}


def with_anomaly(
    image: Floats, kind: str, area: float, rng: np.random.Generator, inside: bool
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """The image with one synthetic anomaly, and its mask (H, W); ``inside``: in what is not black background."""
    content = gaussian_filter(image[0], 1) > 0.15
    for _ in range(50):
        changed, mask = make(image, kind, rng, area=area)
        if not inside or content[mask].mean() > 0.7:
            break
    return changed, mask


def maps_of(detector: Detector, images: Floats) -> Tensor:
    """Maps of images (N, 1, H, W) as the network sees them."""
    method = detector.method
    assert method is not None
    parts = [method.score(x).map for x in torch.from_numpy(images).split(64)]
    return torch.cat([part for part in parts if part is not None]).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    if options.result.exists():
        record = json.loads(options.result.read_text(encoding="utf-8"))
        rows = record["rows"] if record["seconds"] == options.seconds else []
    for name, train, held_out, test, settings in sets(options.data_root):
        if any(row["set"] == name for row in rows):
            continue
        for method, own in METHODS.items():
            words = {**settings, **own, "calibration": 0, "seed": 0}
            if method != "pca":
                words["steps"] = steps_in(method, words, train, options.seconds)
            detector = Detector(method, **words).fit(train)
            seen = np.stack([detector.preprocess.apply(image)[0] for image in held_out]).clip(0, 1)
            normal = maps_of(detector, seen)
            clean = reduced(normal, normal)
            for area in AREAS:
                rng = np.random.default_rng(1)
                kinds = list(SYNTHETIC)
                anomalous = np.stack(
                    [
                        with_anomaly(x, kinds[i % len(kinds)], area, rng, name == "brain slices")[0]
                        for i, x in enumerate(seen)
                    ]
                )
                found = reduced(maps_of(detector, anomalous), normal)
                labels = np.repeat([0, 1], [len(seen), len(seen)])
                rows.append(
                    {
                        "set": name,
                        "method": method,
                        "area": area,
                        "auroc": {k: round(auroc(labels, np.concatenate([clean[k], found[k]])), 4) for k in clean},
                    }
                )
                print(name, method, area, rows[-1]["auroc"], flush=True)
            if test is not None:
                x = np.stack([detector.preprocess.apply(test.read(i))[0] for i in range(len(test))])
                found = reduced(maps_of(detector, x), normal)
                real = {k: round(auroc(np.array(test.labels), found[k]), 4) for k in found}
                rows.append({"set": name, "method": method, "area": "real", "auroc": real})
                print(name, method, "real", real, flush=True)
        write(options.result, options.seconds, rows)


def write(result: Path, seconds: float, rows: list[dict[str, Any]]) -> None:
    """The rows and, for each reduction, the mean and the smallest AUROC."""
    synthetic = [row for row in rows if row["area"] != "real"]
    summary = {}
    for key in (*PLAIN, *COMBINED):
        values = [row["auroc"][key] for row in synthetic]
        real = [row["auroc"][key] for row in rows if row["area"] == "real"]
        by_area = {str(a): float(np.mean([r["auroc"][key] for r in synthetic if r["area"] == a])) for a in AREAS}
        summary[key] = {
            "mean": round(float(np.mean(values)), 4),
            "smallest": min(values),
            **{f"area {a}": round(v, 4) for a, v in by_area.items()},
            "real": round(float(np.mean(real)), 4),
        }
        print(key, summary[key])
    write_record(result, {"recipe": "reduction", "seconds": seconds, "summary": summary, "rows": rows})


if __name__ == "__main__":
    main()
