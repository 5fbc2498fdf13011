"""DDR-ID: effect of the finetuning on the latent codes, and which details left open by the paper matter.

    python recipes/ddr_id_finetuning.py --data-root DIR [--digit 5]      (one thread, about 20 minutes)

Networks with a quarter of the width of table 1 (Lin et al. 2020), batches of 64, learning rate 3e-4, one seed; digits resized to
32 pixels. Training images of MNIST only: all of a digit except 900 are for training, these 900 and 2,100 of other digits for
testing, so the results may be used to choose settings.

First part, by settings (18 epochs in total): AUROC of ``latent`` and ``image`` in percent, the means of AS_l and AS_r over
held-out normal images, the mean standard deviation of a coordinate of a normal image's latent code. Second part, over time: the
same after each epoch of finetuning, from 8 and from 40 epochs of pretraining, and with squares averaged over coordinates and
pixels instead of summed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from normalcy import Detector, open_data
from normalcy.methods.ddr_id import DDRID, DDRIDSettings
from normalcy.metrics import auroc
from normalcy.provenance import write_record

ROWS: tuple[dict[str, Any], ...] = (
    {},
    {"sigma": 0.5},
    {"sigma": 1.0},
    {"discriminator_lr": 1e-3},
    {"discriminator_lr": 1e-3, "non_saturating": True},
    {"bias": False},
)
WORDS: dict[str, Any] = {
    "width": 16, "batch_size": 64, "lr": 3e-4, "preprocess": ["gcn"], "size": 32, "calibration": 0, "device": "cpu", "seed": 0,
}  # fmt: skip
RESULT = Path(__file__).parent / "results" / "ddr_id_finetuning.json"


def measured(model: DDRID, x: Tensor, labels: npt.NDArray[np.int64]) -> dict[str, float]:
    """AUROC of both scores; mean scores and standard deviation of the latent codes of normal images."""
    model.eval()
    with torch.no_grad():
        latent, image = (torch.cat(part).numpy() for part in zip(*map(model.anomaly_scores, torch.split(x, 256))))
        codes = torch.cat(
            [model.class_specific.encode(part) for part in torch.split(x[torch.from_numpy(labels == 0)], 256)]
        )
    normal = labels == 0
    return {
        "auroc_latent": 100 * auroc(labels, latent),
        "auroc_image": 100 * auroc(labels, image),
        "as_l": float(latent[normal].mean()),
        "as_r": float(image[normal].mean()),
        "code_deviation": float(codes.std(0).mean()),
    }


def means(model: DDRID, x: Tensor) -> Mapping[str, Tensor]:
    """Equation 6 with means over coordinates and pixels."""
    code = model.class_specific.encode(x)
    _, coded = model.logits(code)
    total = model.class_specific.decode(code) + model.residual(x)
    return {"loss": (code - model.centre).square().mean() + F.logsigmoid(-coded).mean() + (total - x).square().mean()}


def epoch(model: DDRID, x: Tensor, losses: Sequence[Any], optimisers: Sequence[torch.optim.Optimizer]) -> None:
    """All images; the last batch is filled up by those that the epoch began with, as in normalcy's own loop."""
    model.train()
    order, size = torch.randperm(len(x)), WORDS["batch_size"]
    for rows in torch.split(torch.cat([order, order[: -len(x) % size]]), size):
        for loss, optimiser in zip(losses, optimisers):
            with torch.autocast("cpu", torch.bfloat16):
                value = loss(x[rows])["loss"]
            optimiser.zero_grad()
            value.backward()
            optimiser.step()


def path(
    train: Tensor, test: Tensor, labels: npt.NDArray[np.int64], pretraining: int, finetuning: int, mean: bool
) -> list[dict[str, float]]:
    """Before finetuning and after each of its epochs, at a constant learning rate."""
    torch.manual_seed(0)
    model = DDRID(DDRIDSettings(width=WORDS["width"], lr=WORDS["lr"]), train.shape[1:])
    adam = partial(torch.optim.Adam, lr=WORDS["lr"], weight_decay=model.settings.weight_decay)
    both = [*model.class_specific.parameters(), *model.residual.parameters()]
    optimisers = [adam(both)]
    for _ in range(pretraining):
        epoch(model, train, [model.pretraining], optimisers)
    model.eval()
    with torch.no_grad():
        model.centre.copy_(torch.cat([model.class_specific.encode(x) for x in torch.split(train, 256)]).mean(0))
    found = [measured(model, test, labels)]
    optimisers = [adam(model.discriminator.parameters()), adam(both)]
    for _ in range(finetuning):
        epoch(
            model,
            train,
            [model.discriminator_loss, partial(means, model) if mean else model.autoencoder_loss],
            optimisers,
        )
        found.append(measured(model, test, labels))
        print(f"{pretraining} epochs before", "means" if mean else "sums", rounded(found[-1]), flush=True)
    return found


def rounded(found: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3 if name[:2] in ("as", "co") else 1) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--digit", type=int, default=5)
    parser.add_argument("--trial", action="store_true", help="one epoch of everything, nothing written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = [open_data(f"mnist:{digit}", options.data_root).select(split="train") for digit in range(10)]
    own = known[options.digit]
    train = own.subset(range(len(own) - 900))
    rng = np.random.default_rng(0)
    held = np.stack([own.read(i) for i in range(len(own) - 900, len(own))])
    others = [(d, i) for d, digits in enumerate(known) if d != options.digit for i in range(len(digits))]
    drawn = [others[k] for k in rng.permutation(len(others))[:2100]]
    test = np.concatenate([held, np.stack([known[d].read(i) for d, i in drawn])])
    labels = np.repeat([0, 1], [len(held), len(drawn)])
    rows, paths = [], []
    for row in ROWS:
        detector = Detector("ddr_id", **WORDS, epochs=1 if options.trial else 18, **row).fit(train)
        assert isinstance(detector.method, DDRID)
        prepared = seen(detector, test)
        found = measured(detector.method, prepared, labels)
        rows.append({"settings": row, **found})
        print(row, rounded(found), flush=True)
    images = seen(detector, [train.read(i) for i in range(len(train))])
    for before, after, mean in ((8, 8, False), (40, 4, False), (8, 4, True)):
        before, after = (1, 1) if options.trial else (before, after)
        paths.append(
            {
                "pretraining": before,
                "squares": "mean" if mean else "sum",
                "epochs": path(images, prepared, labels, before, after, mean),
            }
        )
    if not options.trial:
        words = {**WORDS, "epochs": 18}
        write_record(
            RESULT,
            {"recipe": "ddr_id_finetuning", "digit": options.digit, "words": words, "rows": rows, "paths": paths},
        )


def seen(detector: Detector, images: Iterable[npt.NDArray[Any]]) -> Tensor:
    """Images preprocessed for the network."""
    return torch.stack([torch.as_tensor(detector.preprocess.apply(image)[0]) for image in images])


if __name__ == "__main__":
    main()
