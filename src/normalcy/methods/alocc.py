"""ALOCC: adversarially trained denoising autoencoder, scored by reconstruction error or by the discriminator.

A refiner R (encoder and decoder) and a discriminator D are trained against each other on normal images: D separates images X
from R(X + noise); R minimises -log D(R(X + noise)) + lambda |X - R(X + noise)|^2 with lambda = 0.4 (Sabokrou et al. 2018). R
reconstructs other images poorly.

==================  ====================================================================================================
``reconstruction``  (x - R(x))^2, its mean (``reduce``), which Lin et al. (DDR-ID) report for ALOCC
``discriminator``   -logit D(x), computed by the authors' script
``refined``         -logit D(R(x)), the paper's score
==================  ====================================================================================================

| | paper | authors' script | normalcy |
| --- | --- | --- | --- |
| target of R | the clean image | the noisy image | the clean image; ``noisy_target=true``: the noisy one |
| reconstruction loss | squared error, lambda 0.4 | cross-entropy, weight 0.2 | squared error, ``weight`` |
| updates of R for one of D |  | 2 | ``refiner_steps``, 1 |
| optimiser |  | RMSprop, 2e-3 | Adam, 1e-5; ``optimiser``, ``lr`` |
| networks | DCGAN; R without a bottleneck | the same | DCGAN; R with a bottleneck; ``refiner="ddr_id"``: R of DDR-ID |
| noise | Gaussian | digits: in [0, 1] (twice as strong), once, clipped | in [-1, 1], new at each step |

Learning rate, epochs and batch size are those of DDR-ID. Images are mapped to [-1, 1] by the minimum and maximum of the training
images before the noise is added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from normalcy import config
from normalcy.method import Method, Objective, Scores, Stage
from normalcy.nets.filters import Reduce, check_reduce, reduce_map
from normalcy.nets.gan import Encoder, Generator, discriminator_loss, generator_loss
from normalcy.nets.reconstruction import ReconstructionNetwork
from normalcy.nets.scaling import Range

Score = Literal["reconstruction", "discriminator", "refined"]


@dataclass(frozen=True)
class ALOCCSettings:
    score: Score = "reconstruction"
    """"reconstruction": (x - R(x))^2; "discriminator": -logit D(x); "refined": -logit D(R(x))."""
    refiner: Literal["dcgan", "ddr_id"] = "dcgan"
    """Network R: "dcgan": halved until the longest side is below 8 pixels, two levels for 28 pixels; "ddr_id": that of table 1 of
    DDR-ID, four levels for 28 or 32 pixels."""
    latent: int = 128
    """Latent dimension of the refiner (DDR-ID: 128 for MNIST, else 512)."""
    width: int = 64
    """Channels of the level next to the image, in all networks."""
    noise: float = 0.155
    """Standard deviation of the Gaussian noise in training, for images in [-1, 1]."""
    weight: float = 0.4
    """lambda, weight of the squared error, which is summed over the image."""
    noisy_target: bool = False
    """Target of R in training: the noisy image (authors' script) instead of the clean one (paper)."""
    refiner_steps: int = 1
    """Updates of R for each update of D."""
    optimiser: Literal["adam", "rmsprop"] = "adam"
    """Optimiser of both networks: "adam" (DDR-ID) or "rmsprop" (authors' script)."""
    lr: float = 1e-5
    """Learning rate of both networks (DDR-ID: 1e-5; authors' script: 2e-3)."""
    weight_decay: float = 1e-6
    """Weight decay of both networks (DDR-ID)."""
    reduce: Reduce = "auto"
    """Image score of "reconstruction": "mean", "max" or "top" (largest 1 %) of the error, or this quantile of it, in [0, 1];
    "auto": "mean" up to 32 pixels a side, else "top"."""

    def __post_init__(self) -> None:
        positive, non_negative = ("latent", "width", "refiner_steps", "lr"), ("noise", "weight", "weight_decay")
        config.require("alocc", self, positive=positive, non_negative=non_negative)
        check_reduce("alocc", self.reduce)


class ALOCC(Method):
    name = "alocc"
    Settings = ALOCCSettings
    family = "adversarial"
    reference = (
        "M. Sabokrou, M. Khalooei, M. Fathy, E. Adeli. Adversarially learned one-class classifier for novelty detection. "
        "CVPR, 2018. arXiv:1802.09088."
    )
    scores = get_args(Score)
    map_scores = ("reconstruction",)
    settings: ALOCCSettings

    def __init__(self, settings: ALOCCSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        s = settings
        self.range = Range()
        if s.refiner == "ddr_id":
            self.refiner: nn.Module = ReconstructionNetwork(self.shape, s.latent, s.width)
        else:
            self.refiner = nn.Sequential(
                Encoder(self.shape, s.latent, s.width), Generator(self.shape, s.latent, s.width)
            )
        self.discriminator = Encoder(self.shape, 1, s.width)

    def stages(self) -> Sequence[Stage]:
        s = self.settings
        game = [
            Objective(
                loss,
                net.parameters(),
                lr=s.lr,
                weight_decay=s.weight_decay,
                optimiser=s.optimiser,
                repeats=repeats,
            )
            for loss, net, repeats in (
                (self.discriminator_loss, self.discriminator, 1),
                (self.refiner_loss, self.refiner, s.refiner_steps),
            )
        ]
        return [Stage("game", game, epochs=50, batch_size=256, prepare=self.range.measure)]

    def noisy(self, y: Tensor) -> Tensor:
        return y + self.settings.noise * torch.randn_like(y)

    def discriminator_loss(self, x: Tensor) -> Mapping[str, Tensor]:
        y = self.range(x)
        with torch.no_grad():
            fake = self.refiner(self.noisy(y))
        return {"loss": discriminator_loss(self.discriminator, y, fake)}

    def refiner_loss(self, x: Tensor) -> Mapping[str, Tensor]:
        y = self.range(x)
        noisy = self.noisy(y)
        refined = self.refiner(noisy)
        target = noisy if self.settings.noisy_target else y
        error = (target - refined).square().flatten(1).sum(1).mean()
        adversarial = generator_loss(self.discriminator, refined)
        return {"loss": adversarial + self.settings.weight * error, "error": error, "adversarial": adversarial}

    def _score(self, x: Tensor) -> Scores:
        y = self.range(x)
        refined = self.refiner(y)
        restored = self.range.inverse(refined)
        error = (x - restored).square().mean(1)
        match self.settings.score:
            case "reconstruction":
                image = reduce_map(error, self.settings.reduce)
            case "discriminator":
                image = -self.discriminator(y).squeeze(1)
            case "refined":
                image = -self.discriminator(refined).squeeze(1)
        return Scores(image=image, map=error, restored=restored)
