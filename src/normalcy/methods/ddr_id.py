"""DDR-ID: two autoencoders share an image out into what belongs to the normal class and the rest.

Lin et al. 2020, "DDR-ID: dual deep reconstruction networks based image decomposition for anomaly detection"; the names
here are the paper's. R_C is drawn to what normal images have in common: its codes to their centre Z_C (equation 3), and,
against the discriminator D_L, to the Gaussian N(Z_C, sigma^2 I) (equation 4). R_N takes what R_C leaves, so that both
add up to the image (equation 5). First both are trained as plain autoencoders (Algorithm 1). ``restored`` is R_C(x), the
class-specific component; R_N(x), the residual one, is among the extra_maps.

Scores: ``latent``, |E_C(x) - Z_C|^2 (equation 7); ``image``, |R_C(x) - D_C(Z_C)|^2 (equation 8); ``sum`` of the two;
``validation``, the one of the first two with the smaller mean on normal images held out from training (Algorithm 2), sums
over coordinates against sums over pixels as they stand.

Where the paper is silent or slips, and what is done here:

- There is no public code; networks are those of table 1. Its last deconvolution has 64 channels before the tanh, here the
  image's. Four halvings need sides of 32: 28x28 digits and other sides that do not halve evenly are resized inside, bilinear
  (in the tables here the digits are resized before all else, by ``size=32``); larger images get more levels of 512 channels,
  smaller ones fewer levels.
- The template of equation 8 is "through the encoder" in the text, D_C(Z_C) in the formula: the formula.
- sigma is "a small value": a setting, 0.1 unless given.
- tanh outputs are summed and compared with inputs in [0, 1], as they stand.
- The encoder minimises log(1 - D_L) as in equation 4; ``non_saturating`` has it minimise -log D_L instead.
- Whether D_L, which has batch norms, sees Gaussian samples and codes in one batch or in two is not said: in one
  (``joint_batches``), because batch norms of batches apart hide the difference of their means and deviations.

What was found here, on a CPU (``recipes/results/ddr_id``):

- Ten digits, one seed, a quarter of the width, 60 epochs at 3e-4 instead of 250 at 1e-4, D_L with a rate of 1e-3 and the
  non-saturating form: mean AUROC 95.8 % (the paper: 96.2); ``latent`` 95.4 (95.6), ``image`` 95.8 (95.7), ``sum`` 95.5 (95.8).
  Digit 5 is the worst, 91.0. ``validation`` takes ``image`` for every digit; the paper's took ``latent`` for six. These lengths,
  rates and the resizing are the best of some 25 variants tried on training images of digits 2 and 5, with training images of
  other digits as anomalies; the methods beside it in that table had no such search.
- Digit 5, training images alone (``recipes/ddr_id_finetuning.py``: the same width, 18 epochs, batches of 64), ``latent`` and
  ``image``: 90.1 and 90.6. sigma, D_L's rate of 1e-3 and the form of equation 4 change them by 0.6 at most. Encoders without
  biases and affine norms, Deep SVDD's guard against constant codes: 92.5 and 91.1. With means instead of sums of squares 51 to
  74.
- At a constant rate, after 8 epochs of pretraining, ``image`` rises to 90.7 in four epochs of finetuning and falls to 87.0 in
  eight, while codes shrink: R_C becomes its template and R_N draws the image.
- Three classes of CIFAR-10 (automobile, frog, ship; 4 epochs at 3e-4, batches of 64, one seed): 64.0 %, where one-class Deep SVDD
  reaches 68.5 in 20 epochs; the paper has 65.4 and 64.8 over ten classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.errors import DataError, SettingsError
from normalcy.method import Batches, Method, Objective, Scores, Stage
from normalcy.nets.convnets import initialise
from normalcy.nets.halving import DoublingConv2d, HalvingConv2d
from normalcy.nets.schedules import drop_after

Score = Literal["validation", "latent", "image", "sum"]
SLOPE = 0.2
DROP = 50
"""Epochs of a stage after which the rate is a tenth."""


@dataclass(frozen=True)
class DDRIDSettings:
    latent: int | None = None
    """Numbers in the code; none: 128 for images of one channel, else 512 (table 1)."""
    score: Score = "validation"
    """``validation`` is the one of ``latent`` and ``image`` that Algorithm 2 takes."""
    map: Literal["restored", "residual"] = "restored"
    """The map is |x - R_C(x)| or |R_N(x)|, mean over channels."""
    sigma: float = 0.1
    """Deviation of the Gaussian around Z_C, in units of the code; the paper: "a small value"."""
    width: int = 64
    """Channels of the encoder's first level (table 1); those of the others are in proportion."""
    non_saturating: bool = False
    """The encoder minimises -log D_L instead of log(1 - D_L)."""
    joint_batches: bool = True
    """D_L sees Gaussian samples and codes in one batch."""
    bias: bool = True
    """Of E_C and E_N, scales and shifts of their norms too; false: as in Deep SVDD, where a constant code cannot be learned."""
    pretraining_epochs: int = 150
    """Length of the first stage (GTSRB in the paper: 100)."""
    finetuning_epochs: int = 100
    """Of the second (GTSRB: 450); ``epochs`` keeps their proportion."""
    lr: float = 1e-4
    """Of Adam; a tenth of it past the 50th of these epochs in either stage."""
    discriminator_lr: float | None = None
    """The same for D_L; none: lr."""
    weight_decay: float = 1e-6
    """Of all networks."""

    def __post_init__(self) -> None:
        rates = [lr for lr in (self.lr, self.discriminator_lr) if lr is not None]
        if (self.latent is not None and self.latent < 1) or min(*rates, self.sigma) <= 0 or self.weight_decay < 0:
            raise SettingsError("ddr_id: latent, rates and sigma must be positive, weight_decay not negative.")
        if min(self.width, self.pretraining_epochs, self.finetuning_epochs) < 1:
            raise SettingsError("ddr_id: width, pretraining_epochs and finetuning_epochs must be at least 1.")


class ReconstructionNetwork(nn.Module):
    """Table 1: encoder (B, C, H, W) -> (B, latent) and decoder back, both of the DCGAN type."""

    def __init__(self, shape: Sequence[int], latent: int, width: int, bias: bool = True) -> None:
        super().__init__()
        channels, *self.sides = shape
        levels = max(1, math.ceil(math.log2(max(self.sides) / 4)))  # of the decoder, above its first grid: 3 for 32x32
        self.grid = tuple(max(2, math.ceil(side / 2**levels)) for side in self.sides)
        self.inside = [n * 2**levels for n in self.grid]  # sides that the levels halve evenly
        widths = [width * min(8, 2**i) for i in range(levels + 1)]
        encoder = nn.Sequential()
        for level, (before, after) in enumerate(zip([channels, *widths], widths)):
            # A norm makes the bias of the layer before it idle.
            convolve = HalvingConv2d(before, after, bias=bias and level == 0)
            encoder.append(nn.Sequential(convolve, *self._norm(after, bias)[0 if level else 1 :]))
        last = [n // 2 for n in self.grid]
        encoder.extend([nn.Flatten(), nn.Linear(widths[-1] * math.prod(last), latent, bias=bias)])
        decoder = nn.Sequential(
            # What a transposed convolution from one pixel onto the grid computes.
            nn.Linear(latent, widths[-1] * math.prod(self.grid), bias=False),
            nn.Sequential(nn.Unflatten(1, (widths[-1], *self.grid)), *self._norm(widths[-1])),
        )
        for before, after in zip(widths[:0:-1], widths[-2:0:-1]):
            decoder.append(nn.Sequential(DoublingConv2d(before, after, bias=False), *self._norm(after)))
        decoder.append(nn.Sequential(DoublingConv2d(widths[1], channels), nn.Tanh()))
        self.encoder, self.decoder = initialise(encoder, SLOPE), initialise(decoder, SLOPE)

    @staticmethod
    def _norm(channels: int, affine: bool = True) -> list[nn.Module]:
        return [nn.BatchNorm2d(channels, affine=affine), nn.LeakyReLU(SLOPE, inplace=True)]

    def encode(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, latent), float32"""
        code: Tensor = self.encoder(_resized(x, self.inside))
        return code.float()

    def decode(self, code: Tensor) -> Tensor:
        """(B, latent) -> (B, C, H, W) in [-1, 1], float32."""
        image: Tensor = self.decoder(code).float()
        return _resized(image, self.sides)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class DDRID(Method):
    name = "ddr_id"
    Settings = DDRIDSettings
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
        self.class_specific = ReconstructionNetwork(
            self.shape, latent, settings.width, settings.bias
        )  # R_C = D_C(E_C(.))
        self.residual = ReconstructionNetwork(self.shape, latent, settings.width, settings.bias)  # R_N
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
        """Equations 1 and 2; the networks share nothing, so the sum trains each by its own."""
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

    def ascend(self, x: Tensor) -> Mapping[str, Tensor]:
        """D_L ascends L_LSC, equation 4: the loss is log D_L(Z) + log(1 - D_L(E_C(X))) with the sign turned."""
        with torch.no_grad():
            code = self.class_specific.encode(x)
        sample, coded = self.logits(code)
        return {"loss": -(F.logsigmoid(sample) + F.logsigmoid(-coded)).mean()}

    def descend(self, x: Tensor) -> Mapping[str, Tensor]:
        """L_OC + L_LSC + L_R, equations 3 to 6; of L_LSC what concerns the encoder."""
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

    def stages(self) -> Sequence[Stage]:
        s = self.settings
        both = [*self.class_specific.parameters(), *self.residual.parameters()]
        early, late = drop_after(DROP / s.pretraining_epochs), drop_after(DROP / s.finetuning_epochs)
        pretraining = Objective(self.pretraining, both, lr=s.lr, weight_decay=s.weight_decay, schedule=early)
        game = [
            Objective(
                self.ascend,
                self.discriminator.parameters(),
                lr=s.discriminator_lr or s.lr,
                weight_decay=s.weight_decay,
                schedule=late,
            ),
            Objective(self.descend, both, lr=s.lr, weight_decay=s.weight_decay, schedule=late),
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
        """The class-specific component R_C(x) and the residual one R_N(x), each (B, C, H, W); their sum is near x."""
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


def _resized(x: Tensor, sides: Sequence[int]) -> Tensor:
    """(B, C, H, W) -> (B, C, *sides), in 32 bits where anything changes"""
    if list(x.shape[2:]) == list(sides):
        return x
    with torch.autocast(x.device.type, enabled=False):
        return F.interpolate(x.float(), tuple(sides), mode="bilinear", antialias=True)
