"""q-space novelty detection: a voxel of diffusion MRI is strange when a VAE of healthy voxels' signals cannot say its signals.

Each voxel by itself is a vector of its signals in all directions; encoder and decoder are 1x1 convolutions over the direction
channels, so a slice (or volume) of C directions gives a map (Vasilev et al. 2018, "q-Space Novelty Detection with Variational
Autoencoders"). Signals are divided by the mean of the b=0 images, whose channels are named by ``b0``; of files with b-values
``diffusion:DATA`` does it all, brain mask included.

===================  ===================================================================================================
``reconstruction``   |x - decode(mean)|^2, deterministic
``stochastic_mean``  mean of |x - decode(z)|^2 over ``samples`` draws z ~ q(z|x)
``stochastic_min``   the least of them
``kl``               KL(q(z|x) || N(0, I)) in nats
``nearest``          distance of the mean code to the nearest of ``memory`` mean codes of training voxels
``bhattacharyya``    Bhattacharyya distance of q(z|x) to the nearest of those training voxels' q(z|x_i)
``density``          -log of the density of the mean code in the mixture of those q(z|x_i), in nats
===================  ===================================================================================================

Squared distances are means over directions in units of their deviation over the training voxels. The image's score reduces
its map. Outside of the brain, where the b=0 signal is 0, or below ``mask`` of its largest in training, nothing is learned and
the map is 0.

Paper / authors' code / ours:

- The paper's family compares in the input, the latent space and the output, in many ways / no public licence / the seven above.
  Likelihoods of x under decoded distributions would rank as the squared errors do, for one learned deviation holds for all.
- Distances to all training voxels / - / to a random sample of them. Draws use the same noise for every voxel.
- Measured on lesions of multiple sclerosis / - / on planted changes in two small volumes (``recipes/qspace_diffusion.py``): with
  101 b-values voxel AUROC 1.00 on restricted diffusion, 0.98 on dropout, 0.69 on lost anisotropy and 0.62 on free water, where
  a z-score of the signals has 0.96; with 64 directions of one b-value no score of any method is above 0.68.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn

from normalcy.errors import SettingsError
from normalcy.method import Batches, Method, Objective, Scores, Stage
from normalcy.nets.features import Mapped, mean_and_deviation
from normalcy.nets.filters import Reduce, check_reduce, reduce_map
from normalcy.nets.neighbours import LARGEST_BLOCK, Reservoir, nearest
from normalcy.nets.noise import fixed_noise

Score = Literal["reconstruction", "stochastic_mean", "stochastic_min", "kl", "nearest", "bhattacharyya", "density"]
_CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class QSpaceVAESettings:
    score: Score = "reconstruction"
    b0: tuple[int, ...] | None = None
    """Channels that are b=0 images: they divide the others and are not looked at themselves. None: what the data say, and no
    division where they say nothing."""
    mask: float = 0.0
    """Share of the largest b=0 signal (without ``b0``: of the mean one, and 0 is all) up to which a voxel is outside of the
    brain."""
    latent: int = 4
    hidden: tuple[int, ...] = (64, 32)
    """Channels between directions and code."""
    samples: int = 10
    """Draws from the posterior."""
    memory: int = 5000
    """Codes of training voxels kept for ``nearest``, ``bhattacharyya`` and ``density``."""
    lr: float = 2e-3
    """Of Adam."""
    reduce: Reduce = "mean"
    """The image score: "mean" (over the brain) or "max" of the map, or this quantile of it, in [0, 1]."""

    def __post_init__(self) -> None:
        if min(self.latent, self.samples, self.memory, *self.hidden) < 1 or self.lr <= 0 or not 0 <= self.mask < 1:
            raise SettingsError("qspace_vae: latent, hidden, samples, memory and lr must be positive, mask in [0, 1).")
        check_reduce("qspace_vae", self.reduce)


class QSpaceVAE(Method):
    name = "qspace_vae"
    Settings = QSpaceVAESettings
    scores = get_args(Score)
    spatial_dims = (2, 3)
    search: ClassVar = {"score": get_args(Score), "latent": (1, 2, 4, 8, 16)}
    settings: QSpaceVAESettings
    mean: Tensor
    std: Tensor
    largest: Tensor
    codes: Tensor
    logvars: Tensor

    def __init__(self, settings: QSpaceVAESettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        s, conv = settings, _CONV[len(self.shape) - 1]
        self.b0 = list(s.b0 or ())
        wrong = [c for c in self.b0 if not 0 <= c < self.shape[0]]
        self.directions = [c for c in range(self.shape[0]) if c not in self.b0]
        if wrong or not self.directions:
            raise SettingsError(
                f"qspace_vae: b0 must name some of the channels 0 to {self.shape[0] - 1}, not all, got {s.b0}."
            )
        count = len(self.directions)

        def layers(*widths: int) -> nn.Sequential:
            parts: list[nn.Module] = []
            for before, after in itertools.pairwise(widths):
                parts += [conv(before, after, 1), nn.LeakyReLU(0.1)]
            return nn.Sequential(*parts[:-1])

        self.encoder = layers(count, *s.hidden, 2 * s.latent)
        self.decoder = layers(s.latent, *s.hidden[::-1], count)
        self.tenth_log_sigma = nn.Parameter(torch.tensor(math.log(0.5) / 10))  # in units of the directions' deviations
        self.register_buffer("mean", torch.zeros(count, *[1] * (len(self.shape) - 1)))
        self.register_buffer("std", torch.ones(count, *[1] * (len(self.shape) - 1)))
        self.register_buffer("largest", torch.zeros(()))
        self.learned("codes", "logvars")

    def reference(self, x: Tensor) -> Tensor:
        """The b=0 signal, or the mean signal, of each voxel: (B, 1, *spatial)."""
        return x[:, self.b0 or self.directions].mean(1, keepdim=True)

    def inside(self, x: Tensor) -> Tensor:
        """Which voxels are in the brain, (B, 1, *spatial)."""
        if not self.b0 and not self.settings.mask:
            return torch.ones_like(x[:, :1], dtype=torch.bool)
        return self.reference(x) > self.settings.mask * self.largest

    def attenuation(self, x: Tensor) -> Tensor:
        """Signals divided by the b=0 signal, (B, directions, *spatial)."""
        signals = x[:, self.directions]
        if not self.b0:
            return signals
        return signals / self.reference(x).clamp(min=1e-3 * float(self.largest) + 1e-12)

    def standardised(self, x: Tensor) -> Tensor:
        return (self.attenuation(x) - self.mean) / self.std

    def measure(self, batches: Batches) -> None:
        """Mean and deviation of each direction over the voxels of the brain."""
        self.largest.copy_(torch.stack([self.reference(x).max() for x in batches]).max())
        rows = Mapped(batches, lambda x: self._voxels(self.attenuation(x), x))
        mean, std = mean_and_deviation(rows)
        self.mean.copy_(mean.view_as(self.mean))
        self.std.copy_(std.clamp(min=1e-6).view_as(self.std))

    def _voxels(self, values: Tensor, x: Tensor) -> Tensor:
        """(B, k, *spatial) -> (voxels of the brain, k)."""
        return values.movedim(1, -1)[self.inside(x)[:, 0]]

    def encode(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|y), each (B, latent, *spatial)."""
        mean, logvar = cast(Tensor, self.encoder(y)).float().chunk(2, dim=1)
        return mean, logvar.clamp(-30, 30)

    def decode(self, z: Tensor) -> Tensor:
        return cast(Tensor, self.decoder(z)).float()

    def kl(self, mean: Tensor, logvar: Tensor) -> Tensor:
        """KL(q(z|y) || N(0, I)) of each voxel in nats, (B, *spatial)."""
        return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1)

    def negative_elbo(self, x: Tensor) -> Mapping[str, Tensor]:
        """Nats per voxel, the mean over those of the brain; one draw."""
        y, inside = self.standardised(x), self.inside(x)[:, 0]
        mean, logvar = self.encode(y)
        error = y - self.decode(mean + (0.5 * logvar).exp() * torch.randn_like(mean))
        log_sigma = 10 * self.tenth_log_sigma
        nll = (0.5 * (error * (-log_sigma).exp()).square() + log_sigma + 0.5 * math.log(2 * math.pi)).sum(1)
        count = inside.sum().clamp(min=1)
        nll, kl = (nll * inside).sum() / count, (self.kl(mean, logvar) * inside).sum() / count
        return {"loss": nll + kl, "nll": nll, "kl": kl}

    def remember(self, batches: Batches) -> None:
        """Means and log-variances of q(z|x) of a sample of the voxels, (memory, latent) each."""
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
                novelty[inside[:, 0]] = self.strangeness(self._voxels(mean, x), self._voxels(logvar, x))
            case _:
                errors = torch.stack([(y - self.decode(z)).square().mean(1) for z in self._draws(mean, logvar)])
                novelty = errors.mean(0) if s.score == "stochastic_mean" else errors.amin(0)
        novelty = novelty * inside[:, 0]
        if s.reduce == "mean":
            image = novelty.flatten(1).sum(1) / inside.flatten(1).sum(1).clamp(min=1)
        else:
            image = reduce_map(novelty, s.reduce)
        return Scores(image=image, map=novelty, restored=self._restored(x, restored))

    def strangeness(self, mean: Tensor, logvar: Tensor) -> Tensor:
        """The scores in latent space of posteriors (n, latent), against those of training voxels: (n,)."""
        if self.settings.score == "nearest":
            return nearest(mean, self.codes)[0].flatten()
        variances, found = self.logvars.exp(), []
        at_once = max(1, LARGEST_BLOCK // self.codes.numel())
        for mu, log_var in zip(torch.split(mean, at_once), torch.split(logvar, at_once), strict=True):
            squares = (mu[:, None] - self.codes).square()  # (n, memory, latent)
            if self.settings.score == "density":
                log_density = -0.5 * (squares / variances + self.logvars + math.log(2 * math.pi)).sum(2)
                found.append(math.log(len(self.codes)) - log_density.logsumexp(1))
            else:
                both = 0.5 * (log_var.exp()[:, None] + variances)
                distance = squares / (8 * both) + 0.5 * both.log() - 0.25 * (log_var[:, None] + self.logvars)
                found.append(distance.sum(2).amin(1))
        return torch.cat(found)

    def _draws(self, mean: Tensor, logvar: Tensor) -> list[Tensor]:
        """``samples`` draws (B, latent, *spatial), with one noise vector each for all voxels."""
        noise = fixed_noise(self.settings.samples, self.settings.latent)
        single = (1, -1, *[1] * (mean.ndim - 2))
        return [mean + (0.5 * logvar).exp() * e.to(mean).view(single) for e in noise]

    def _restored(self, x: Tensor, restored: Tensor) -> Tensor:
        """All channels in the unit of the input; b=0 images stay as they are."""
        signals = restored * self.std + self.mean
        if self.b0:
            signals = signals * self.reference(x)
        full = x.clone()
        full[:, self.directions] = signals
        return full
