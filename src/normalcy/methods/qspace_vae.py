"""q-space novelty detection: scores each diffusion-MRI voxel by how poorly a VAE of healthy voxels models its signal.

Vasilev et al. 2018. Each voxel is a vector of its signals in all directions; encoder and decoder are 1x1 convolutions over the
direction channels, so a slice (or volume) of C directions gives a map. Signals are divided by the mean of the b=0 images, whose
channels are named by ``b0``; for files with b-values ``diffusion:DATA`` does all of this, brain mask included.

===================  ===================================================================================================
``reconstruction``   |x - decode(mean)|^2, deterministic
``stochastic_mean``  mean of |x - decode(z)|^2 over ``samples`` draws z ~ q(z|x)
``stochastic_min``   minimum of |x - decode(z)|^2 over these draws
``kl``               KL(q(z|x) || N(0, I)) in nats
``nearest``          distance of the mean code to the nearest of ``memory`` mean codes of training voxels
``bhattacharyya``    Bhattacharyya distance of q(z|x) to the nearest q(z|x_i) of these training voxels
``density``          -log of the density of the mean code in the mixture of these q(z|x_i), in nats
===================  ===================================================================================================

Squared distances are means over directions, in units of their standard deviations over the training voxels. The image score
reduces the map. Voxels outside the brain, where the b=0 signal is 0, or below ``mask`` of its maximum in training, are not
trained on and are 0 in the map.

| | paper | normalcy |
|---|---|---|
| scores | many, in input, latent and output space | the seven above |
| likelihoods of decoded signals | among the scores | none: with one shared standard deviation they rank as the squared errors |
| distances in latent space | to all training voxels | to a random sample of them, ``memory`` |
| draws | | the same noise for every voxel |
| evaluation | lesions of multiple sclerosis | changes planted in two small volumes (``recipes/qspace_diffusion.py``) |

The authors' code has no public licence.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn

from normalcy.config import require, require_that
from normalcy.method import Batches, Method, Objective, Scores, Stage
from normalcy.nets.convnets import conv
from normalcy.nets.filters import Reduce, check_reduce, reduce_map
from normalcy.nets.neighbours import LARGEST_BLOCK, Reservoir, nearest
from normalcy.nets.noise import fixed_noise
from normalcy.nets.statistics import Mapped, mean_and_std

Score = Literal["reconstruction", "stochastic_mean", "stochastic_min", "kl", "nearest", "bhattacharyya", "density"]


@dataclass(frozen=True)
class QSpaceVAESettings:
    score: Score = "reconstruction"
    """Squared error ("reconstruction", "stochastic_mean", "stochastic_min"), "kl", or, against the codes of training voxels,
    "nearest", "bhattacharyya" or "density"; see the table above."""
    b0: tuple[int, ...] | None = None
    """Channels of the b=0 images, by which the others are divided and which are not scored. None: those that the data name; no
    division where they name none."""
    mask: float = 0.0
    """A voxel is outside the brain up to this fraction of the maximal b=0 signal (without ``b0``: of the mean signal, and 0 masks
    nothing), in [0, 1)."""
    latent: int = 4
    """Latent dimension of a voxel."""
    hidden: tuple[int, ...] = (64, 32)
    """Channels of the hidden layers, from directions to code."""
    samples: int = 10
    """Draws from the posterior for the stochastic scores."""
    memory: int = 5000
    """Training voxels whose codes are kept for "nearest", "bhattacharyya" and "density"."""
    lr: float = 2e-3
    """Learning rate (Adam)."""
    reduce: Reduce = "mean"
    """Image score: "mean" (over the brain) or "max" of the map, or this quantile of it, in [0, 1]."""

    def __post_init__(self) -> None:
        require("qspace_vae", self, positive=("latent", "hidden", "samples", "memory", "lr"))
        require_that(0 <= self.mask < 1, "qspace_vae", "mask", "at least 0 and below 1", self.mask)
        check_reduce("qspace_vae", self.reduce)


class QSpaceVAE(Method):
    name = "qspace_vae"
    Settings = QSpaceVAESettings
    family = "reconstruction"
    reference = (
        "A. Vasilev, V. Golkov, M. Meissner, I. Lipp, E. Sgarlata, V. Tomassini, D. K. Jones, D. Cremers. q-Space "
        "novelty detection with variational autoencoders. arXiv:1806.02997, 2018"
    )
    scores = get_args(Score)
    spatial_dims = (2, 3)
    search: ClassVar = {"score": get_args(Score), "latent": (1, 2, 4, 8, 16)}
    not_exportable: ClassVar = dict.fromkeys(
        ("nearest", "bhattacharyya", "density"),
        "it compares only the voxels inside the brain, whose number differs; take score=reconstruction or score=kl.",
    )
    settings: QSpaceVAESettings
    mean: Tensor
    std: Tensor
    largest: Tensor
    codes: Tensor
    logvars: Tensor

    def __init__(self, settings: QSpaceVAESettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        s, layer = settings, conv(len(self.shape) - 1)
        self.b0 = list(s.b0 or ())
        wrong = [c for c in self.b0 if not 0 <= c < self.shape[0]]
        self.directions = [c for c in range(self.shape[0]) if c not in self.b0]
        expected = f"some of the channels 0 to {self.shape[0] - 1}, not all"
        require_that(not wrong and bool(self.directions), "qspace_vae", "b0", expected, s.b0)
        count = len(self.directions)

        def layers(*widths: int) -> nn.Sequential:
            parts: list[nn.Module] = []
            for before, after in itertools.pairwise(widths):
                parts += [layer(before, after, 1), nn.LeakyReLU(0.1)]
            return nn.Sequential(*parts[:-1])

        self.encoder = layers(count, *s.hidden, 2 * s.latent)
        self.decoder = layers(s.latent, *s.hidden[::-1], count)
        self.tenth_log_sigma = nn.Parameter(torch.tensor(math.log(0.5) / 10))  # of standardised signals
        self.register_buffer("mean", torch.zeros(count, *[1] * (len(self.shape) - 1)))
        self.register_buffer("std", torch.ones(count, *[1] * (len(self.shape) - 1)))
        self.register_buffer("largest", torch.zeros(()))
        self.learned("codes", "logvars")

    def baseline(self, x: Tensor) -> Tensor:
        """The b=0 signal, or the mean signal, of each voxel: (B, 1, *spatial)."""
        return x[:, self.b0 or self.directions].mean(1, keepdim=True)

    def inside(self, x: Tensor) -> Tensor:
        """Mask of the brain, (B, 1, *spatial), bool."""
        if not self.b0 and not self.settings.mask:
            return torch.ones_like(x[:, :1], dtype=torch.bool)
        return self.baseline(x) > self.settings.mask * self.largest

    def attenuation(self, x: Tensor) -> Tensor:
        """Signals divided by the b=0 signal, (B, directions, *spatial)."""
        signals = x[:, self.directions]
        if not self.b0:
            return signals
        return signals / self.baseline(x).clamp(min=1e-3 * float(self.largest) + 1e-12)

    def standardised(self, x: Tensor) -> Tensor:
        """Attenuations with mean 0 and standard deviation 1 in each direction, (B, directions, *spatial)."""
        return (self.attenuation(x) - self.mean) / self.std

    def measure(self, batches: Batches) -> None:
        """Measure mean and standard deviation of each direction over the voxels of the brain."""
        self.largest.copy_(torch.stack([self.baseline(x).max() for x in batches]).max())
        rows = Mapped(batches, lambda x: self._voxels(self.attenuation(x), x))
        mean, std = mean_and_std(rows)
        self.mean.copy_(mean.view_as(self.mean))
        self.std.copy_(std.clamp(min=1e-6).view_as(self.std))

    def _voxels(self, values: Tensor, x: Tensor) -> Tensor:
        """(B, k, *spatial) -> (voxels of the brain, k)."""
        return values.movedim(1, -1)[self.inside(x)[:, 0]]

    def encode(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|y), each (B, latent, *spatial)."""
        mean, logvar = cast("Tensor", self.encoder(y)).float().chunk(2, dim=1)
        return mean, logvar.clamp(-30, 30)

    def decode(self, z: Tensor) -> Tensor:
        """(B, latent, *spatial) -> standardised signals (B, directions, *spatial)."""
        return cast("Tensor", self.decoder(z)).float()

    def kl(self, mean: Tensor, logvar: Tensor) -> Tensor:
        """KL(q(z|y) || N(0, I)) of each voxel in nats, (B, *spatial)."""
        return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1)

    def negative_elbo(self, x: Tensor) -> Mapping[str, Tensor]:
        """Nats per voxel, mean over the brain; one draw from the posterior."""
        y, inside = self.standardised(x), self.inside(x)[:, 0]
        mean, logvar = self.encode(y)
        error = y - self.decode(mean + (0.5 * logvar).exp() * torch.randn_like(mean))
        log_sigma = 10 * self.tenth_log_sigma
        nll = (0.5 * (error * (-log_sigma).exp()).square() + log_sigma + 0.5 * math.log(2 * math.pi)).sum(1)
        count = inside.sum().clamp(min=1)
        nll, kl = (nll * inside).sum() / count, (self.kl(mean, logvar) * inside).sum() / count
        return {"loss": nll + kl, "nll": nll, "kl": kl}

    def remember(self, batches: Batches) -> None:
        """Keep means and log-variances of q(z|x) of a random sample of the voxels, (memory, latent) each."""
        sample = Reservoir(self.settings.memory)
        for x in batches:
            sample.add(self._voxels(torch.cat(self.encode(self.standardised(x)), 1), x))
        self.codes, self.logvars = (rows.contiguous() for rows in sample.rows.chunk(2, dim=1))

    def stages(self) -> Sequence[Stage]:
        objective = Objective(self.negative_elbo, self.parameters(), lr=self.settings.lr, clip_norm=100.0)
        return [
            Stage("elbo", [objective], epochs=50, batch_size=8, prepare=self.measure),
            Stage("codes", prepare=self.remember),
        ]

    def _score(self, x: Tensor) -> Scores:
        s, y, inside = self.settings, self.standardised(x), self.inside(x)
        mean, logvar = self.encode(y)
        restored = self.decode(mean)
        match s.score:
            case "reconstruction":
                novelty = (y - restored).square().mean(1)
            case "kl":
                novelty = self.kl(mean, logvar)
            case "nearest" | "bhattacharyya" | "density":
                novelty = torch.zeros_like(mean[:, 0])
                novelty[inside[:, 0]] = self.latent_novelty(self._voxels(mean, x), self._voxels(logvar, x))
            case _:
                errors = torch.stack([(y - self.decode(z)).square().mean(1) for z in self._draws(mean, logvar)])
                novelty = errors.mean(0) if s.score == "stochastic_mean" else errors.amin(0)
        novelty = novelty * inside[:, 0]
        if s.reduce == "mean":
            image = novelty.flatten(1).sum(1) / inside.flatten(1).sum(1).clamp(min=1)
        else:
            image = reduce_map(novelty, s.reduce)
        return Scores(image=image, map=novelty, restored=self._restored(x, restored))

    def latent_novelty(self, mean: Tensor, logvar: Tensor) -> Tensor:
        """The latent-space scores of posteriors (n, latent) against those of training voxels: (n,)."""
        if self.settings.score == "nearest":
            return nearest(mean, self.codes)[0].flatten()
        variances, parts = self.logvars.exp(), []
        at_once = max(1, LARGEST_BLOCK // self.codes.numel())
        for mu, log_var in zip(torch.split(mean, at_once), torch.split(logvar, at_once), strict=True):
            squares = (mu[:, None] - self.codes).square()  # (n, memory, latent)
            if self.settings.score == "density":
                log_density = -0.5 * (squares / variances + self.logvars + math.log(2 * math.pi)).sum(2)
                parts.append(math.log(len(self.codes)) - log_density.logsumexp(1))
            else:
                both = 0.5 * (log_var.exp()[:, None] + variances)
                distance = squares / (8 * both) + 0.5 * both.log() - 0.25 * (log_var[:, None] + self.logvars)
                parts.append(distance.sum(2).amin(1))
        return torch.cat(parts)

    def _draws(self, mean: Tensor, logvar: Tensor) -> list[Tensor]:
        """``samples`` draws (B, latent, *spatial), with one noise vector each for all voxels."""
        noise = fixed_noise(self.settings.samples, self.settings.latent)
        single = (1, -1, *[1] * (mean.ndim - 2))
        return [mean + (0.5 * logvar).exp() * e.to(mean).view(single) for e in noise]

    def _restored(self, x: Tensor, restored: Tensor) -> Tensor:
        """Reconstructed signals in the unit of the input, all channels; b=0 images are those of the input."""
        signals = restored * self.std + self.mean
        if self.b0:
            signals = signals * self.baseline(x)
        full = x.clone()
        full[:, self.directions] = signals
        return full
