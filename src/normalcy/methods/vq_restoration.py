"""Restoration of unlikely latent codes by samples of their prior, for medical images and volumes.

Naval Marimont, Tarroni 2021, "Anomaly detection through latent space restoration using vector-quantized variational
autoencoders" (second and third place of the MOOD challenge 2020). A VQ-VAE turns an image into a grid of discrete codes;
PixelSNAIL learns their distribution over normal images. The image score is the sum of the negative log-likelihoods of the
codes that are very unlikely, above lambda_s nats. For the map, codes above lambda_p nats, given the codes before them as
restored, are drawn anew from their conditional, 15 times; the map is the mean distance of these restorations to the image,
each weighted by softmax(k / its mean distance), after a minimum and a mean filter in 3D.

Volumes are seen slice by slice (``volumes="slices"``): the place of a slice along the first spatial axis, from -0.5 to 0.5, is a
condition of encoder, decoder and prior; or as a whole, by 3D networks. Images are taken as they are, without condition.

Restoration is exact and all copies of all slices run in one batch (:mod:`normalcy.nets.restore`).

Differences to the paper:

- lambda_s and lambda_p (7 and 5 nats there, about the 98th and the 90th percentile of normal codes) are by default these
  percentiles of held-out normal codes.
- The prior, which learns few images by heart, is kept as it was when held-out normal codes were likeliest; whole volumes need
  many.
- The random numbers of a restoration belong to copy, slice and position, and are the same for every image.
- Images are standardised by the mean training image; codes begin as encoded images and start anew when out of use.
- Widths, lengths and batch sizes are ours: the text that we have does not name them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.errors import SettingsError
from normalcy.method import Batches, EarlyStop, Method, Objective, Scores, Stage
from normalcy.nets import vqvae
from normalcy.nets.filters import mean_filter, min_filter
from normalcy.nets.pixelsnail import Memory, PixelSNAIL, mean_nats
from normalcy.nets.quantise import Quantised, Quantiser
from normalcy.nets.restore import SampledCodes, limit_of, negative_log_likelihood, restore
from normalcy.nets.scaling import Standardise

Score = Literal["restored", "reconstruction", "likelihood"]
AT_ONCE = 2**24
"""Logits in memory at once when scoring: tables x codes x positions."""


@dataclass(frozen=True)
class VQRestorationSettings:
    score: Score = "restored"
    """The map: weighted distance to the restorations; distance to the direct reconstruction; or the negative log-likelihood of
    the codes, in nats. The image score is the sum of the unlikely codes' in all of them, but the mean of the map with
    "reconstruction"."""
    volumes: Literal["slices", "whole"] = "slices"
    """Volumes go slice by slice through 2D networks, or as a whole through 3D ones."""
    slices_per_step: int = 16
    """Slices of each volume in a training step, drawn at random."""
    copies: int = 15
    """Restorations of each image."""
    sample_limit: float | Literal["quantile"] = "quantile"
    """lambda_s, nats: codes above it make up the image score (paper: 7)."""
    sample_quantile: float = 0.98
    """Of held-out normal codes, for sample_limit="quantile"."""
    pixel_limit: float | Literal["quantile"] = "quantile"
    """lambda_p, nats: codes above it are drawn anew (paper: 5)."""
    pixel_quantile: float = 0.9
    """Of held-out normal codes, for pixel_limit="quantile"."""
    sharpness: float = 3.0
    """k of softmax(k / mean distance) over the restorations, distances in the value range of the images."""
    codes: int = 128
    """K"""
    dimension: int = 256
    """Of a code's vector."""
    halvings: int = 3
    """160 pixels become 20 codes."""
    beta: float = 1.0
    """Weight of the commitment."""
    ema: float | None = None
    """Decay of a codebook of moving averages; none: the codebook learns by gradients, as in the paper."""
    width: int = 128
    """Channels of the VQ-VAE."""
    residuals: int = 2
    """Gated residual blocks of encoder and decoder."""
    prior_width: int = 128
    prior_blocks: int = 4
    """Pairs of a gated residual block and attention."""
    dropout: float = 0.1
    """In the prior."""
    lr: float = 1e-4
    """Of Adam, in both stages; gradients are clipped by value at 1."""
    filter: bool = True
    """Minimum over 3x3x3 and mean over 3x7x7 voxels of the map (3x3 and 7x7 pixels of an image)."""

    def __post_init__(self) -> None:
        counts = (self.slices_per_step, self.copies, self.codes, self.dimension, self.halvings)
        if min(*counts, self.width, self.residuals, self.prior_width, self.prior_blocks) < 1:
            raise SettingsError("vq_restoration: counts, widths and halvings must be 1 or more.")
        if min(self.lr, self.beta, self.sharpness) <= 0:
            raise SettingsError("vq_restoration: lr, beta and sharpness must be positive.")
        for limit in (self.sample_limit, self.pixel_limit):
            if not isinstance(limit, str) and limit <= 0:
                raise SettingsError(f'vq_restoration: limits are in nats above 0, or "quantile", got {limit}.')
        shares = (self.sample_quantile, self.pixel_quantile, self.ema or 0.5)
        if not all(0 < share < 1 for share in shares) or not 0 <= self.dropout < 1:
            raise SettingsError("vq_restoration: quantiles, ema and dropout must be between 0 and 1.")


class VQRestoration(Method):
    name = "vq_restoration"
    Settings = VQRestorationSettings
    scores = get_args(Score)
    spatial_dims = (2, 3)
    settings: VQRestorationSettings
    sample_limit: Tensor
    pixel_limit: Tensor

    def __init__(self, settings: VQRestorationSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        s, channels = settings, self.shape[0]
        self.sliced = len(self.shape) == 4 and s.volumes == "slices"
        # What the networks see is a plane here: a slice of a volume, or a whole image or volume, of which depth is 1.
        plane = self.shape[2:] if self.sliced else self.shape[1:]
        self.depth, known = (self.shape[1], 1) if self.sliced else (1, 0)
        self.grid = vqvae.code_grid(self.name, plane, s.halvings)
        parts = (s.width, s.halvings, s.residuals)
        self.standardise = Standardise(self.shape)
        self.encoder: nn.Module = vqvae.encoder(len(plane), channels + known, *parts, s.dimension, gated=True)
        self.quantiser = Quantiser(s.codes, s.dimension, s.ema)
        self.decoder: nn.Module = vqvae.decoder(len(plane), channels, *parts, s.dimension + known, gated=True)
        self.prior = PixelSNAIL(self.grid, s.codes, s.prior_width, s.prior_blocks, dropout=s.dropout, conditions=known)
        for name, limit, paper in (("sample_limit", s.sample_limit, 7.0), ("pixel_limit", s.pixel_limit, 5.0)):
            self.register_buffer(name, torch.tensor(paper if isinstance(limit, str) else limit))

    # -- planes (N, C, *plane), N = B * depth, and the number of each in its volume (N,), 0 ... depth - 1

    def planes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, *spatial) -> (N, C, *plane), (N,)"""
        numbers = torch.arange(self.depth, device=x.device).repeat(len(x))
        return (x.transpose(1, 2).flatten(0, 1) if self.sliced else x), numbers

    def whole(self, planes: Tensor) -> Tensor:
        """(N, C, *plane) -> (B, C, *spatial)"""
        return planes.view(-1, self.depth, *planes.shape[1:]).transpose(1, 2) if self.sliced else planes

    def condition(self, numbers: Tensor) -> Tensor:
        """(N, 1) coordinates of slices in [-0.5, 0.5]; (N, 0) where there are none."""
        places = numbers.float() / max(self.depth - 1, 1) - 0.5
        return places[:, None] if self.sliced else places[:, None][:, :0]

    def draw(self, planes: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Some slices of each volume, at random, in training."""
        order = torch.rand(len(planes) // self.depth, self.depth, device=planes.device).argsort(1)
        first = self.depth * torch.arange(len(order), device=planes.device)[:, None]
        chosen = (first + order[:, : self.settings.slices_per_step]).flatten()
        return planes[chosen], numbers[chosen]

    # -- stage 1

    def encode(self, planes: Tensor, numbers: Tensor) -> Tensor:
        """z_e of standardised planes: (N, C, *plane) -> (N, D, *grid)"""
        z: Tensor = self.encoder(_with(planes, self.condition(numbers)))
        return z.float()

    def decode(self, vectors: Tensor, numbers: Tensor) -> Tensor:
        """(N, D, *grid) -> standardised planes (N, C, *plane)"""
        y: Tensor = self.decoder(_with(vectors, self.condition(numbers)))
        return y.float()

    def begin(self, batches: Batches) -> None:
        self.standardise.measure(batches)
        drawn = (self.draw(*self.planes(self.standardise(x))) for x, _ in zip(batches, range(16)))
        self.quantiser.seed(self.encode(planes, numbers) for planes, numbers in drawn)

    def reconstruction(self, x: Tensor) -> Mapping[str, Tensor]:
        """Mean absolute error in units of the images' deviation, codebook and commitment."""
        planes, numbers = self.draw(*self.planes(self.standardise(x)))
        found: Quantised = self.quantiser(self.encode(planes, numbers))
        error = (planes - self.decode(found.vectors, numbers)).abs().mean()
        return found.losses(error, self.settings.beta)

    # -- stage 2

    def to_codes(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> codes (B, depth, *grid), int64"""
        parts = self._split(*self.planes(self.standardise(x)))
        codes = torch.cat([self.quantiser.nearest(self.encode(planes, numbers)) for planes, numbers in parts])
        return codes.view(-1, self.depth, *self.grid)

    def prior_likelihood(self, codes: Tensor) -> Mapping[str, Tensor]:
        """Negative log-likelihood of codes (B, depth, *grid), nats for a code."""
        tables, numbers = self.draw(*self._tables(codes))
        nats = mean_nats(self.prior(tables, self.condition(numbers)), tables)
        return {"loss": nats, "bits_per_code": nats.detach() / math.log(2)}

    def choose_limits(self, batches: Batches) -> None:
        """From held-out normal images."""
        s, nll = self.settings, torch.cat([self.nll(self.to_codes(x)).flatten() for x in batches])
        for limit, given, quantile in (
            (self.sample_limit, s.sample_limit, s.sample_quantile),
            (self.pixel_limit, s.pixel_limit, s.pixel_quantile),
        ):
            if isinstance(given, str):
                limit.copy_(limit_of(nll, 1 - quantile))

    def stages(self) -> Sequence[Stage]:
        s = self.settings
        autoencoder = [*self.encoder.parameters(), *self.quantiser.parameters(), *self.decoder.parameters()]
        size = 64 if len(self.shape) == 3 else 4  # volumes, of which 16 slices each
        chosen = "quantile" in (s.sample_limit, s.pixel_limit)
        return [
            Stage(
                "vqvae",
                [Objective(self.reconstruction, autoencoder, lr=s.lr, clip_value=1.0)],
                epochs=100,
                batch_size=size,
                prepare=self.begin,
            ),
            Stage(
                "prior",
                [Objective(self.prior_likelihood, self.prior.parameters(), lr=s.lr, clip_value=1.0)],
                epochs=150,
                batch_size=size,
                inputs=self.to_codes,
                early_stop=EarlyStop(self.prior_likelihood, every=3, patience=5),
                conclude=self.choose_limits if chosen else None,
            ),
        ]

    # -- testing

    def nll(self, codes: Tensor) -> Tensor:
        """Of codes (B, depth, *grid), in nats."""
        parts = []
        for tables, numbers in self._split(*self._tables(codes)):
            logits = self.prior(tables, self.condition(numbers)).flatten(2)
            parts.append(negative_log_likelihood(logits, tables.flatten(1)).view(tables.shape))
        return torch.cat(parts).view(codes.shape)

    def restore(self, tables: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of planes (n, *grid) -> restored ones (n, copies, *grid), and which were changed."""
        copies = self.settings.copies
        condition = self.condition(numbers).repeat_interleave(copies, 0)
        rule = SampledCodes(float(self.pixel_limit), self._uniform()[numbers].flatten(0, 1))
        prior = Memory(self.prior, condition, copies=copies)
        found = restore(prior, tables.repeat_interleave(copies, 0), rule)
        shape = (-1, copies, *self.grid)
        return found.codes.view(shape), found.changed.view(shape)

    def images(self, tables: Tensor, numbers: Tensor) -> Tensor:
        """Codes (n, *grid) -> planes (n, C, *plane) in the value range of the images."""
        mean, _ = self.planes(self.standardise.mean[None])
        return mean[numbers] + self.standardise.scale * self.decode(self.quantiser.look_up(tables), numbers)

    def _score(self, x: Tensor) -> Scores:
        s, codes = self.settings, self.to_codes(x)
        nll = self.nll(codes)
        planes, numbers = self.planes(x)
        tables, _ = self._tables(codes)
        reconstruction = torch.cat([self.images(*part) for part in self._split(tables, numbers)])
        sample = torch.where(nll > self.sample_limit, nll, 0).flatten(1).sum(1)
        nats = self._to_pixels(nll.flatten(0, 1))
        pictures = {"reconstruction": self.whole(reconstruction), "code_nll": nats}
        if s.score == "likelihood":
            return Scores(sample, map=nats, pictures=pictures)
        if s.score == "reconstruction":
            map = self._map((planes - reconstruction).abs().mean(1))
            return Scores(map.flatten(1).mean(1), map=map, restored=pictures["reconstruction"], pictures=pictures)
        found = [self._weigh(*part) for part in self._split(planes, tables, numbers, copies=s.copies)]
        distance, spread, restored, changed = (torch.cat(part) for part in zip(*found))
        return Scores(
            sample,
            map=self._map(distance),
            restored=self.whole(restored),
            spread=self.whole(spread[:, None])[:, 0],
            pictures={**pictures, "changed_codes": self._to_pixels(changed)},
        )

    def _weigh(self, planes: Tensor, tables: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Over the restorations of each of n planes: weighted distance to it and deviation of the distance (n, *plane),
        weighted restored plane (n, C, *plane), share of changed codes (n, *grid)."""
        s = self.settings
        restored, changed = self.restore(tables, numbers)
        images = self.images(restored.flatten(0, 1), numbers.repeat_interleave(s.copies))
        images = images.view(len(planes), s.copies, *images.shape[1:])
        distance = (planes[:, None] - images).abs().mean(2)  # (n, copies, *plane)
        weight = (s.sharpness / distance.flatten(2).mean(2).clamp(min=1e-6)).softmax(1)  # (n, copies)
        return (
            torch.einsum("nj,nj...->n...", weight, distance),
            distance.std(1, correction=0),
            torch.einsum("nj,nj...->n...", weight, images),
            changed.float().mean(1),
        )

    def _map(self, distance: Tensor) -> Tensor:
        """(N, *plane) -> (B, *spatial), filtered where wanted."""
        map = self.whole(distance[:, None])[:, 0]
        if not self.settings.filter:
            return map
        return mean_filter(min_filter(map, (3,) * (map.ndim - 1)), (3, 7, 7)[-map.ndim + 1 :])

    def _to_pixels(self, values: Tensor) -> Tensor:
        """(N, *grid) -> (B, *spatial)"""
        sides = tuple(n * 2**self.settings.halvings for n in self.grid)
        return self.whole(F.interpolate(values[:, None], size=sides, mode="nearest"))[:, 0]

    def _tables(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """(B, depth, *grid) -> (N, *grid), and the planes' numbers."""
        return codes.flatten(0, 1), torch.arange(self.depth, device=codes.device).repeat(len(codes))

    def _split(self, *parts: Tensor, copies: int = 1) -> Iterator[tuple[Tensor, ...]]:
        """So many planes at a time that their logits find room."""
        step = max(1, AT_ONCE // (copies * self.settings.codes * math.prod(self.grid)))
        return zip(*(torch.split(part, step) for part in parts))

    def _uniform(self) -> Tensor:
        """The random number of each position of each copy of each slice, (depth, copies, positions)."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.depth, self.settings.copies, math.prod(self.grid))
        return torch.rand(shape, generator=generator).to(self.device)


def _with(x: Tensor, condition: Tensor) -> Tensor:
    """(N, C, *plane) with the conditions (N, n) as further channels."""
    spread = condition.view(*condition.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
    return torch.cat([x, spread.to(x.dtype)], 1)
