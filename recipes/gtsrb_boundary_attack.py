"""Adversarial stop signs for table 5 of DDR-ID: the boundary attack against a classifier of stop signs.

    python recipes/gtsrb_boundary_attack.py --data-root DIR     (DIR holds gtsrb_stop.npz and CIFAR-10; minutes on 2 cores)

Ruff et al. 2018 and DDR-ID attack 20 stop signs of the test set; neither their images nor the classifier are published. A
decision-based attack needs at least two classes. As gtsrb_stop.npz contains stop signs only, the classifier here separates them
from CIFAR-10 images: a small network, trained on the 780 training signs and 10,000 training images of CIFAR-10, half of each
batch from either, and tested on the test sets of both. This is not the paper's classifier, so the adversarial images differ
too: they are the nearest images classified as "not a stop sign", not as another sign. The two classes are far apart, so the
changes are larger than those of an attack on a classifier of all signs: 8 to 16 of 255 per value. No paper names their size.
--change SIZE scales each to this root mean square, in the direction that the attack found; scaled down, an
image no longer deceives the classifier here.

The size of the changes is not what makes these images hard to tell: three methods without training by gradients are measured
on the changes scaled to sizes from 0 (the chosen signs as they are) to 80 of 255, and none comes to its published number.

Attack: Brendel et al. 2018 (algorithm 1), from uniform noise if the classifier misclassifies it, else from an image of CIFAR-10
(as their targeted attack starts from an image of the other class): one step along the sphere around the original, then one
towards it, each kept only if the image is still misclassified; both step sizes follow their success rates.

Writes gtsrb_stop_attacked.npz into the data root: x_train (780 signs), x_test (270 signs and 20 adversarial images), y_test
(1: adversarial); and the measurements to recipes/results/gtsrb_boundary_attack.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy import Detector, metrics, open_data
from normalcy.data.open import DEFAULT_DATA_ROOT
from normalcy.provenance import write_record

ATTACKED = 20
SIZES = (0.0, 5.0, 10.0, 20.0, 40.0, 80.0)
"""Root mean squares of changes, of 255."""
RESULT = Path(__file__).parent / "results" / "gtsrb_boundary_attack.json"


def boundary_attack(
    adversarial: Callable[[Tensor], Tensor],
    images: Tensor,
    start: Tensor,
    *,
    steps: int,
    generator: torch.Generator,
    spherical_step: float = 0.1,
    source_step: float = 0.1,
    bounds: tuple[float, float] = (0.0, 1.0),
    window: int = 30,
) -> Tensor:
    """Adversarial images near ``images`` (B, C, H, W), from adversarial ``start``, in parallel, each with its own step
    sizes. ``adversarial``: images -> (B,) bool.

    The paper's rules: in each step Gaussian noise of length spherical_step * d, where d is the distance to the original,
    projected onto the sphere of radius d around it; then a step of source_step * d towards the original. The first step size
    is changed so that about half of the points on the sphere are adversarial, the second so that about a quarter of the
    steps succeed; here after each ``window`` steps, by a factor of 1.5.
    """
    x = start.clone()
    if not bool(adversarial(x).all()):
        raise ValueError("The starting images must be adversarial.")
    sphere, towards = torch.full((len(x),), spherical_step), torch.full((len(x),), source_step)
    on_sphere, kept, tried = torch.zeros(len(x)), torch.zeros(len(x)), 0

    def each(values: Tensor) -> Tensor:
        return values.view(-1, 1, 1, 1)

    def length(v: Tensor) -> Tensor:
        return each(v.flatten(1).norm(dim=1).clamp(min=1e-12))

    for step in range(1, steps + 1):
        back = images - x
        distance = length(back)
        noise = torch.randn(x.shape, generator=generator)
        noise = noise * each(sphere) * distance / length(noise)
        direction = x + noise - images
        candidate = (images + direction * distance / length(direction)).clamp(*bounds)
        fooled = adversarial(candidate)
        nearer = candidate + each(towards) * distance * (images - candidate) / length(images - candidate)
        nearer = nearer.clamp(*bounds)
        success = fooled & adversarial(nearer) & ((nearer - images).flatten(1).norm(dim=1) < distance.flatten())
        x = torch.where(each(success), nearer, x)
        on_sphere, kept, tried = on_sphere + fooled, kept + success, tried + 1
        if step % window == 0:
            share, steps_kept = on_sphere / tried, kept / on_sphere.clamp(min=1)
            sphere = sphere * torch.where(share > 0.5, 1.5, torch.where(share < 0.2, 1 / 1.5, 1.0))
            grow, shrink = steps_kept > 0.25, (steps_kept < 0.1) & (on_sphere > 0)
            towards = (towards * torch.where(grow, 1.5, torch.where(shrink, 1 / 1.5, 1.0))).clamp(max=0.5)
            sphere = sphere.clamp(max=0.5)
            on_sphere, kept, tried = torch.zeros(len(x)), torch.zeros(len(x)), 0
    return x


def scaled(images: Tensor, attacked: Tensor, size: float) -> Tensor:
    """Attacked images (B, C, H, W) in [0, 1] whose changes have the root mean square ``size`` over their values; values that
    reach 0 or 1 change less."""
    change = attacked - images
    norm = change.flatten(1).square().mean(1).sqrt().clamp(min=1e-12)
    return (images + change * (size / norm).view(-1, 1, 1, 1)).clamp(0, 1)


def classifier() -> nn.Sequential:
    """(B, 3, 32, 32) in [0, 1] -> logit of "a stop sign", (B, 1)."""
    net = nn.Sequential()
    for before, after in ((3, 16), (16, 32), (32, 64)):
        net.extend([nn.Conv2d(before, after, 4, 2, 1), nn.ReLU()])
    net.extend([nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU(), nn.Linear(64, 1)])
    return net


def train(signs: Tensor, others: Tensor, epochs: int, generator: torch.Generator) -> nn.Sequential:
    """Batches of 64 signs, shifted by up to two pixels, and 64 others."""
    net = classifier()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    target = torch.cat([torch.ones(64), torch.zeros(64)])
    for _ in range(epochs * len(signs) // 64):
        shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
        batch = signs[torch.randint(len(signs), (64,), generator=generator)].roll(shift, (2, 3))
        batch = torch.cat([batch, others[torch.randint(len(others), (64,), generator=generator)]])
        loss = F.binary_cross_entropy_with_logits(net(batch)[:, 0], target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.eval()


def cifar(root: Path, split: str, count: int, rng: np.random.Generator) -> Tensor:
    """Images of all classes of CIFAR-10, (N, 3, 32, 32) in [0, 1]."""
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    images = []
    for name in classes:
        data = open_data(f"cifar10:{name}", root).select(split=split, label=0)
        chosen = rng.permutation(len(data))[: count // len(classes)]
        images += [data.read(int(i)) for i in chosen]
    return torch.from_numpy(np.stack(images)).float() / 255


def accuracy_by_size(
    x_train: np.ndarray, x_test: np.ndarray, images: Tensor, attacked: Tensor
) -> dict[str, list[float]]:
    """Method -> image AUROC of attacked signs against x_test, (N, 32, 32, 3) uint8, at each of SIZES, preprocessed as in
    table 5."""
    labels = np.repeat([0, 1], [len(x_test), len(attacked)])
    found: dict[str, list[float]] = {}
    for method in ("ocsvm", "kde", "isolation_forest"):
        detector = Detector(method, preprocess=["gcn"], calibration=0, seed=0).fit(x_train)
        normal = detector.score(x_test).scores
        found[method] = []
        for size in SIZES:
            changed = eight_bits(scaled(images, attacked, size / 255))
            scores = np.concatenate([normal, detector.score(changed).scores])
            found[method].append(round(metrics.auroc(labels, scores), 4))
    return found


def eight_bits(images: Tensor) -> np.ndarray:
    """(B, C, H, W) in [0, 1] -> (B, H, W, C) uint8."""
    return (images * 255).round().byte().permute(0, 2, 3, 1).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=DEFAULT_DATA_ROOT)
    parser.add_argument("--out", type=Path, default=None, help="the file to write [in the data root]")
    parser.add_argument("--epochs", type=int, default=30, help="of the classifier")
    parser.add_argument("--steps", type=int, default=10_000, help="of the attack")
    parser.add_argument(
        "--change", type=float, default=None, help="root mean square of a change, of 255 [as the attack ends]"
    )
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    root = options.data_root.expanduser()
    out = options.out or root / "gtsrb_stop_attacked.npz"
    torch.manual_seed(options.seed)
    generator, rng = torch.Generator().manual_seed(options.seed), np.random.default_rng(options.seed)
    with np.load(root / "gtsrb_stop.npz") as file:
        x_train, x_test = file["x_train"], file["x_test"]
    signs, signs_test = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255 for x in (x_train, x_test))
    net = train(signs, cifar(root, "train", 10_000, rng), options.epochs, generator)
    with torch.no_grad():
        found_signs = float((net(signs_test) > 0).float().mean())
        others_test = cifar(root, "test", 2_000, rng)
        found_others = float((net(others_test) < 0).float().mean())
    print(
        f"classifier: {100 * found_signs:.1f} % of the test signs, {100 * found_others:.1f} % of the other images right"
    )

    right = np.flatnonzero((net(signs_test) > 0).detach().numpy()[:, 0])
    chosen = np.sort(rng.permutation(right)[:ATTACKED])
    images = signs_test[torch.from_numpy(chosen)]

    def as_stored(x: Tensor) -> Tensor:
        """An image rounded to eight bits: it must remain adversarial."""
        return (x * 255).round() / 255

    @torch.no_grad()
    def adversarial(x: Tensor) -> Tensor:
        return net(as_stored(x))[:, 0] < 0

    start = torch.rand(images.shape, generator=generator)
    noise_fools = adversarial(start)
    others_test = others_test[adversarial(others_test)][: len(start)]
    start = torch.where(noise_fools.view(-1, 1, 1, 1), start, others_test)
    attacked = boundary_attack(adversarial, images, start, steps=options.steps, generator=generator)
    if options.change is not None:
        attacked = scaled(images, attacked, options.change / 255)
    attacked = as_stored(attacked)
    per_pixel = (attacked - images).square().flatten(1).mean(1).sqrt() * 255
    print(
        f"adversarial: {int(adversarial(attacked).sum())} of {len(attacked)}; change per value {per_pixel.median():.2f} of 255"
    )

    new = eight_bits(attacked)
    labels = np.concatenate([np.zeros(len(x_test), np.int64), np.ones(len(new), np.int64)])
    np.savez_compressed(out, x_train=x_train, x_test=np.concatenate([x_test, new]), y_test=labels)
    write_record(
        options.result,
        {
            "recipe": "gtsrb_boundary_attack",
            "classifier": {
                "test_signs_right": found_signs,
                "other_images_right": found_others,
                "epochs": options.epochs,
            },
            "attack": {
                "steps": options.steps,
                "from_noise": int(noise_fools.sum()),
                "scaled_to_of_255": options.change,
                "adversarial": int(adversarial(attacked).sum()),
                "change_per_value_of_255": [round(float(v), 3) for v in per_pixel],
            },
            "image_auroc_by_size_of_change": {"of_255": SIZES, **accuracy_by_size(x_train, x_test, images, attacked)},
            "test_images_attacked": chosen.tolist(),
            "seed": options.seed,
        },
    )
    print(out)


if __name__ == "__main__":
    main()
