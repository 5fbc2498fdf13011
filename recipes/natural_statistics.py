"""Mean and standard deviation of each feature channel of EfficientNet-Lite0 on natural images, by image size.

    pip download --no-deps foolbox==3.3.4 && unzip foolbox-3.3.4-py3-none-any.whl "foolbox/data/imagenet*"
    python recipes/natural_statistics.py --images foolbox/data     (a minute on one core)

They are mu and sigma of DPA's equation 2 (Shvetsova et al. 2021), "pre-calculated on a sufficiently large dataset": the authors
have ImageNet. Here it is the 20 images of ImageNet that come with foolbox (Rauber et al. 2020) and the six colour photographs
that install with scikit-image and scikit-learn; 300 crops of them. Statistics depend on the size of the images (see the output),
so there are four sizes, in grey and in colour. Writes src/normalcy/nets/natural_statistics.npz.

recipes/dpa_defaults.py compares them with statistics of the training images; other choices of natural images are not compared.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from normalcy.files import writing
from normalcy.nets.backbones import EMBEDDED
from normalcy.nets.natural import SIDES, STATISTICS, crops, photographs
from normalcy.nets.perceptual import PerceptualFeatures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of imagenet_*.jpg")
    parser.add_argument("--out", type=Path, default=STATISTICS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    paths = sorted(options.images.glob("imagenet_*.jpg"))
    images = [torch.from_numpy(np.array(Image.open(path).convert("RGB"))).movedim(-1, 0) / 127.5 - 1 for path in paths]
    images += photographs()
    print(f"{len(paths)} images of ImageNet, {len(photographs())} photographs")
    found: dict[str, list[list[np.ndarray]]] = {}
    for channels in (1, 3):
        features = PerceptualFeatures(EMBEDDED, range(5), channels, magnify=1, bf16=False)
        features.backbone.load_pretrained()
        names, widths = features.backbone.names, features.backbone.widths
        for part in found.values():
            part.append([])
        for side in SIDES:
            with torch.no_grad():
                features.measure(crops(images, side, channels), "training")
            for what, values in (("mean", features.mean), ("std", features.std)):
                for name, value in zip(names, values.split_with_sizes(list(widths))):
                    found.setdefault(f"{name}_{what}", [[]])[-1].append(value.numpy().copy())
        for name in names:
            mean, std = np.array(found[f"{name}_mean"][-1]), np.array(found[f"{name}_std"][-1])
            shift = np.abs(mean[0] - mean[-1]).mean() / std.mean()
            print(
                f"{channels} channels, layer {name}: mean moves by {shift:.2f} standard deviations from 32 to 224 pixels"
            )
    with writing(options.out) as file:
        np.savez_compressed(file, **{name: np.array(value, np.float32) for name, value in found.items()})


if __name__ == "__main__":
    main()
