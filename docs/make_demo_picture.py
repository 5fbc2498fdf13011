"""Make docs/images/demo.png: solar cells with input, anomaly map, overlay and restored image.

    python docs/make_demo_picture.py        (about 2 minutes on one core)

Data: the package elpv-dataset (Deitsch et al. 2019), CC BY-NC-SA 4.0. Both detectors are trained on the functional cells of
the training split. The anomaly map is that of ``patchcore``; the overlay shows it above the pixel threshold, which on average
at most 5 % of the pixels of a normal image exceed. The restored image is the reconstruction of ``pca`` with 14 components.
The cells are examples of the test split, selected by hand.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from normalcy import Detector, open_data

OUT = Path(__file__).parent / "images" / "demo.png"
CELLS = ("0415", "0385", "0419", "1630", "0571")
ROWS = ("input", "anomaly map\n(patchcore)", "overlay", "restored\n(pca)")


def main() -> None:
    data = open_data("elpv")
    test = data.select(split="test")
    place = {Path(item.path).stem[-4:]: i for i, item in enumerate(test.items)}
    cells = test.subset([place[cell] for cell in CELLS])

    localiser = Detector("patchcore", size=256, seed=0).fit(data)
    threshold = localiser.decide().pixel_threshold
    located = localiser.score(cells)
    restored = Detector("pca", size=256, components=14, seed=0).fit(data).score(cells).restored

    maps = [result.map for result in located]
    low, high = 0.6 * threshold, max(map.max() for map in maps)
    figure, axes = plt.subplots(len(ROWS), len(CELLS), figsize=(8, 6.8))
    for column, (item, result, map) in enumerate(zip(cells.items, located, maps, strict=True)):
        image = cells.read(column)[0]
        opacity = 0.65 * np.clip(4 * (map - threshold) / (high - threshold), 0, 1)
        top, middle, overlay, bottom = axes[:, column]
        top.imshow(image, cmap="gray", vmin=0, vmax=255)
        middle.imshow(map, cmap="inferno", vmin=low, vmax=high)
        overlay.imshow(image, cmap="gray", vmin=0, vmax=255)
        overlay.imshow(map, cmap="inferno", vmin=low, vmax=high, alpha=opacity)
        bottom.imshow(restored[column][0], cmap="gray", vmin=0, vmax=255)
        kind = "defective" if item.label else "functional"
        top.set_title(f"{kind}\np = {result.p_value:.3f}{', flagged' if result.flagged else ''}", fontsize=9)
    for row, name in enumerate(ROWS):
        axes[row, 0].set_ylabel(name, fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.tight_layout(pad=0.2, h_pad=0.3, w_pad=0.3)
    figure.savefig(OUT, dpi=100, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main()
