"""DDR-ID: two autoencoders split an image into class-specific part and residual; scored by distance to the normal class.

Names are those of Lin et al. 2020. R_C reconstructs what normal images have in common: its latent codes are drawn to their
centre Z_C (equation 3) and, by the discriminator D_L, to the Gaussian N(Z_C, sigma^2 I) (equation 4). R_N reconstructs the rest,
so that both sum to the image (equation 5). Both are first trained as plain autoencoders (Algorithm 1). ``restored`` is the
class-specific component R_C(x); the residual component R_N(x) is among the extra maps.

==============  ========================================================================================================
``latent``      |E_C(x) - Z_C|^2 (equation 7)
``image``       |R_C(x) - D_C(Z_C)|^2 (equation 8)
``sum``         ``latent`` + ``image``
``validation``  the one of ``latent`` and ``image`` with the smaller mean on held-out normal images (Algorithm 2)
==============  ========================================================================================================

Algorithm 2 compares sums over latent dimensions with sums over pixels as they are. There is no public code.

| | paper | normalcy |
| --- | --- | --- |
| networks | table 1; the last deconvolution has 64 channels before the tanh | table 1; the last one has the image's channels |
| image sides | 32, where the decoder ends; 28 not given | any from 8: resized inside (bilinear) to sides that halve evenly |
| larger, smaller images | not given | more levels of 512 channels, fewer levels |
| template of equation 8 | text: "through the encoder"; formula: D_C(Z_C) | D_C(Z_C) |
| sigma | "a small value" | ``sigma``, 0.1 |
| value range | tanh outputs, inputs in [0, 1] | compared and summed as they are |
| loss of the encoder, equation 4 | log(1 - D_L) | log(1 - D_L); ``non_saturating=true``: -log D_L |
| first weights | not given | ``first_weights``, "he"; see below |
| batches of D_L, which has batch norm | not given | Gaussian samples and codes in one batch (``joint_batches``) |

In separate batches, batch norm would hide the difference of mean and standard deviation between Gaussian samples and codes.

The first weights matter more than any other point that the paper leaves open (``recipes/ddr_id_first_weights.py``). The batch
norm behind the decoder's linear layer makes the scale of the codes free, so it stays what the first weights made it, and L_OC,
sigma and AS_l are in that unit; AS_r has the unit of the image. The scale alone can decide which of them Algorithm 2 selects.

Finetuning for long draws all codes together, those of anomalies too. Choose ``epochs`` on normal images with synthetic anomalies
(``normalcy select``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy import config
from normalcy.errors import DataError
from normalcy.method import Batches, Method, Objective, Scores, Stage
from normalcy.nets.reconstruction import FirstWeights, ReconstructionNetwork
from normalcy.nets.schedules import drop_after

Score = Literal["validation", "latent", "image", "sum"]
DROP = 50
"""Epochs of a stage after which the learning rate is a tenth."""


@dataclass(frozen=True)
class DDRIDSettings:
    latent: int | None = None
    """Latent dimension; none: 128 for images of one channel, else 512 (table 1)."""
    score: Score = "validation"
    """"latent": AS_l (equation 7); "image": AS_r (equation 8); "sum": their sum; "validation": the one of "latent" and "image"
    that Algorithm 2 selects."""
    map: Literal["restored", "residual"] = "restored"
    """The map, mean over channels: "restored": |x - R_C(x)|; "residual": |R_N(x)|."""
    sigma: float = 0.1
    """Standard deviation of the Gaussian around Z_C, in units of the latent code; the paper: "a small value"."""
    width: int = 64
    """Channels of the encoder's first level (table 1); those of the others are in proportion."""
    non_saturating: bool = False
    """The encoder minimises -log D_L instead of log(1 - D_L)."""
    joint_batches: bool = True
    """D_L sees Gaussian samples and latent codes in one batch (its batch norms share statistics)."""
    first_weights: FirstWeights = "he"
    """First weights of both autoencoders: "he": normal, such that the scale of activations is kept (He et al. 2015), biases 0;
    "torch": PyTorch's default; "dcgan": normal of standard deviation 0.02, norms around 1 (Radford et al. 2016)."""
    bias: bool = True
    """E_C and E_N have biases and affine norms; false: neither, as in Deep SVDD, so that a constant code cannot be learned."""
    pretraining_epochs: int = 150
    """Epochs of the first stage, plain autoencoders (the paper, GTSRB: 100)."""
    finetuning_epochs: int = 100
    """Epochs of the second stage, equations 3 to 6 (GTSRB: 450); ``epochs`` keeps the proportion of both."""
    lr: float = 1e-4
    """Learning rate (Adam); a tenth of it after 50 of these epochs in either stage."""
    discriminator_lr: float | None = None
    """Learning rate of D_L (Adam), with the same schedule; none: ``lr``."""
    weight_decay: float = 1e-6
    """Weight decay of all networks."""

    def __post_init__(self) -> None:
        config.require(
            "ddr_id",
            self,
            positive=("latent", "sigma", "width", "pretraining_epochs", "finetuning_epochs", "lr", "discriminator_lr"),
            non_negative=("weight_decay",),
        )


class DDRID(Method):
    name = "ddr_id"
    Settings = DDRIDSettings
    family = "decomposition"
    reference = (
        "D. Lin, Y. Li, S. Xie, T. L. Nwe, S. Dong. DDR-ID: dual deep reconstruction networks based image decomposition "
        "for anomaly detection. Journal of Ambient Intelligence and Humanized Computing, 2021. arXiv:2007.09431."
    )
    scores = get_args(Score)
    settings: DDRIDSettings
    centre: Tensor
    """Z_C, (latent,)"""
    validation_means: Tensor
    """Mean of AS_l and of AS_r over held-out normal images."""

    def __init__(self, settings: DDRIDSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        if min(self.shape[1:]) < 8:
            raise DataError(f"ddr_id expects images with sides of at least 8 pixels, got {self.shape}: use resize.")
        latent = settings.latent or (128 if self.shape[0] == 1 else 512)
        build = partial(
            ReconstructionNetwork, self.shape, latent, settings.width, settings.bias, settings.first_weights
        )
        self.class_specific, self.residual = build(), build()  # R_C = D_C(E_C(.)) and R_N
        first = 64 if latent <= 128 else 128  # table 1: MNIST, others
        self.discriminator = nn.Sequential()  # D_L, up to the sigmoid
        for before, after in zip((latent, first, 32), (first, 32, 16)):
            self.discriminator.append(
                nn.Sequential(nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True))
            )
        self.discriminator.append(nn.Linear(16, 1))
        self.register_buffer("centre", torch.zeros(latent))
        self.register_buffer("validation_means", torch.zeros(2))

    # -- pretraining

    def pretraining(self, x: Tensor) -> Mapping[str, Tensor]:
        """Equations 1 and 2; the networks share no weights, so the sum trains each by its own term."""
        class_specific = _squares(x - self.class_specific(x)).mean()
        residual = _squares(x - self.residual(x)).mean()
        return {"loss": class_specific + residual, "class_specific": class_specific, "residual": residual}

    def place_centre(self, batches: Batches) -> None:
        """Z_C, the mean code of E_C."""
        self.centre.copy_(torch.cat([self.class_specific.encode(x) for x in batches]).mean(0))

    # -- finetuning

    def logits(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """D_L before the sigmoid, (B,) each: of samples from N(Z_C, sigma^2 I) and of codes (B, latent)."""
        z = self.centre + self.settings.sigma * torch.randn_like(code)
        if self.settings.joint_batches:
            both = self.discriminator(torch.cat([z, code])).float().squeeze(1)
            return both[: len(z)], both[len(z) :]
        return self.discriminator(z).float().squeeze(1), self.discriminator(code).float().squeeze(1)

    def discriminator_loss(self, x: Tensor) -> Mapping[str, Tensor]:
        """Of D_L, which maximises L_LSC (equation 4): -log D_L(Z) - log(1 - D_L(E_C(X)))."""
        with torch.no_grad():
            code = self.class_specific.encode(x)
        sample, coded = self.logits(code)
        return {"loss": -(F.logsigmoid(sample) + F.logsigmoid(-coded)).mean()}

    def autoencoder_loss(self, x: Tensor) -> Mapping[str, Tensor]:
        """Of R_C and R_N: L_OC + L_LSC + L_R (equations 3 to 6); of L_LSC the term that depends on the encoder."""
        code = self.class_specific.encode(x)
        one_class = (code - self.centre).square().sum(1).mean()
        _, coded = self.logits(code)
        latent = -F.logsigmoid(coded).mean() if self.settings.non_saturating else F.logsigmoid(-coded).mean()
        total = self.class_specific.decode(code) + self.residual(x)
        reconstruction = _squares(total - x).mean()
        return {
            "loss": one_class + latent + reconstruction,
            "one_class": one_class,
            "latent_constraint": latent,
            "reconstruction": reconstruction,
        }

    def validate(self, batches: Batches) -> None:
        """The means that Algorithm 2 compares, over held-out normal images."""
        scores = torch.cat([torch.stack(self.anomaly_scores(x), 1) for x in batches])
        self.validation_means.copy_(scores.mean(0))

    def notes(self) -> Sequence[str]:
        if self.settings.score != "validation":
            return ()
        latent, image = self.validation_means.tolist()
        chosen = "latent" if latent < image else "image"
        return [
            f"score: `{chosen}`; means on held-out normal images (Algorithm 2): `latent` {latent:.4g}, `image` {image:.4g}"
        ]

    def stages(self) -> Sequence[Stage]:
        s = self.settings
        both = [*self.class_specific.parameters(), *self.residual.parameters()]
        early, late = drop_after(DROP / s.pretraining_epochs), drop_after(DROP / s.finetuning_epochs)
        pretraining = Objective(self.pretraining, both, lr=s.lr, weight_decay=s.weight_decay, schedule=early)
        game = [
            Objective(
                self.discriminator_loss,
                self.discriminator.parameters(),
                lr=s.discriminator_lr or s.lr,
                weight_decay=s.weight_decay,
                schedule=late,
            ),
            Objective(self.autoencoder_loss, both, lr=s.lr, weight_decay=s.weight_decay, schedule=late),
        ]
        return [
            Stage("pretraining", [pretraining], epochs=s.pretraining_epochs, batch_size=256),
            Stage(
                "finetuning",
                game,
                epochs=s.finetuning_epochs,
                batch_size=256,
                prepare=self.place_centre,
                finalise=self.validate,
            ),
        ]

    # -- testing

    def anomaly_scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """AS_l and AS_r, equations 7 and 8, (B,) each."""
        code = self.class_specific.encode(x)
        return self._anomaly_scores(code, self.class_specific.decode(code))

    def _anomaly_scores(self, code: Tensor, restored: Tensor) -> tuple[Tensor, Tensor]:
        template = self.class_specific.decode(self.centre[None])
        return (code - self.centre).square().sum(1), _squares(restored - template)

    def decompose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The class-specific component R_C(x) and the residual one R_N(x), each (B, C, H, W); their sum approximates x."""
        return self.class_specific(x), self.residual(x)

    def _score(self, x: Tensor) -> Scores:
        code = self.class_specific.encode(x)
        restored = self.class_specific.decode(code)
        residual = self.residual(x)
        latent, image = self._anomaly_scores(code, restored)
        match self.settings.score:
            case "latent":
                score = latent
            case "image":
                score = image
            case "sum":
                score = latent + image
            case "validation":
                score = torch.where(self.validation_means[0] < self.validation_means[1], latent, image)
        difference = x - restored if self.settings.map == "restored" else residual
        return Scores(
            image=score,
            map=difference.abs().mean(1),
            restored=restored,
            latent=code,
            extra_maps={"residual": residual},
        )


def _squares(x: Tensor) -> Tensor:
    """Sum of squares of each image, (B,)."""
    return x.square().flatten(1).sum(1)
