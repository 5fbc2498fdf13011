"""Make the images of the gallery, docs/images/gallery: figures of the committed notebooks, and defects in photographed textures.

    python docs/make_gallery.py [--restoration]       (about half a minute on one core; with restoration, five minutes)

The textures are photographs that come with scikit-image (brick, grass and gravel of ambientCG, CC0). For each, ``patchcore`` is
fitted to 120 crops of its left part; crops of its right part get a synthetic anomaly each. Figures of notebooks: docs/tutorials.

--restoration: what ``lsr`` with codes of features finds in the same crops, for its page (docs/images/methods).
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from pathlib import Path

import matplotlib
import numpy as np
import skimage
from PIL import Image

matplotlib.use("Agg")
import torch
from matplotlib import pyplot as plt

from normalcy import Detector
from normalcy.data.synthetic import make

DOCS = Path(__file__).parent
OUT = DOCS / "images" / "gallery"
FIGURES = {"industrial-parts": 0, "chest-xray": 0, "brain-mri": 0, "one-class-ddr-id": 0}
"""Tutorial -> which of its figures is shown."""
TEXTURES = {"brick": "scratch", "grass": "blob", "gravel": "intensity"}
"""Photograph -> kind of the anomalies."""
SIDE = 96


def figure_of(name: str, number: int) -> Image.Image:
    """A figure of the notebook of a tutorial."""
    cells = json.loads((DOCS / "tutorials" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    found = [output["data"]["image/png"] for cell in cells for output in cell.get("outputs", []) if "data" in output]
    return Image.open(io.BytesIO(base64.b64decode(found[number])))


def crops(image: np.ndarray, count: int, columns: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(count, SIDE, SIDE) uint8, from anywhere between two columns."""
    tops = rng.integers(0, image.shape[0] - SIDE, count)
    lefts = rng.integers(columns[0], columns[1] - SIDE, count)
    return np.stack([image[top : top + SIDE, left : left + SIDE] for top, left in zip(tops, lefts)])


def textures() -> plt.Figure:
    figure, axes = plt.subplots(3, 6, figsize=(8.2, 4.4))
    for column, (name, kind) in enumerate(TEXTURES.items()):
        rng = np.random.default_rng(column)
        image = getattr(skimage.data, name)()
        detector = Detector("patchcore", size=SIDE, seed=0).fit(crops(image, 120, (0, 320), rng))
        for place in (2 * column, 2 * column + 1):
            [normal] = crops(image, 1, (320, 512), rng)
            changed, mask = make(normal[None].astype(np.float32) / 255, kind, rng, area=0.02, strength=0.35)
            shown = (255 * changed[0]).round().astype(np.uint8)
            top, middle, bottom = axes[:, place]
            top.imshow(shown, cmap="gray", vmin=0, vmax=255)
            top.set_title(f"{name}: {kind}", fontsize=8)
            middle.imshow(detector.score(shown[None])[0].map, cmap="inferno")
            bottom.imshow(mask, cmap="gray")
    for axis, label in zip(axes[:, 0], ("input", "anomaly map", "truth")):
        axis.set_ylabel(label, fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.tight_layout(pad=0.3)
    return figure


def restoration() -> plt.Figure:
    """Rows: crop with a synthetic anomaly, its codes, their surprise, the restored image, fused and default map, truth."""
    labels = ("input", "codes", "surprise", "changed codes", "restored image", "fused map", "default map", "truth")
    figure, axes = plt.subplots(len(labels), 6, figsize=(8.2, 10.8))
    for column, (name, kind) in enumerate(TEXTURES.items()):
        rng = np.random.default_rng(column)
        image = getattr(skimage.data, name)()
        words = {"preset": "features", "size": SIDE, "batch_size": 16, "steps": 1600, "seed": 0}
        detector = Detector("lsr", **words).fit(crops(image, 400, (0, 320), rng))
        method = detector.method
        for place in (2 * column, 2 * column + 1):
            [normal] = crops(image, 1, (320, 512), rng)
            changed, mask = make(normal[None].astype(np.float32) / 255, kind, rng, area=0.02, strength=0.35)
            shown = (255 * changed[0]).round().astype(np.uint8)
            result = detector.score(shown[None])[0]
            codes = method.to_codes(torch.from_numpy(detector.preprocess.apply(shown[None])[0])[None])[0]
            parts = (
                (shown, "gray", 255),
                (codes, "nipy_spectral", len(method.quantiser.book)),
                (result.extra_maps["surprise"], "inferno", None),
                (result.extra_maps["changed_codes"], "gray", 1),
                (result.restored, "gray", None),
                (detector.with_score("fused").score(shown[None])[0].map, "inferno", None),
                (result.map, "inferno", None),
                (mask, "gray", 1),
            )
            for axis, (values, colours, highest) in zip(axes[:, place], parts):
                axis.imshow(np.squeeze(values), cmap=colours, vmin=None if highest is None else 0, vmax=highest)
            axes[0, place].set_title(f"{name}: {kind}", fontsize=8)
    for axis, label in zip(axes[:, 0], labels):
        axis.set_ylabel(label, fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.tight_layout(pad=0.3)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--restoration", action="store_true", help="make the picture of lsr's page only")
    if parser.parse_args().restoration:
        place = DOCS / "images" / "methods"
        place.mkdir(parents=True, exist_ok=True)
        restoration().savefig(place / "lsr.png", dpi=80, pil_kwargs={"optimize": True})
        return
    OUT.mkdir(parents=True, exist_ok=True)
    textures().savefig(OUT / "textures.png", dpi=100, pil_kwargs={"optimize": True})
    for name, number in FIGURES.items():
        figure_of(name, number).convert("RGB").save(OUT / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
