"""VQ-VAE restoration: unlikely codes are resampled from a prior; scored by their likelihoods and the distance to the results.

Naval Marimont and Tarroni 2021, for medical images and volumes (second and third place of the MOOD challenge 2020). A VQ-VAE
encodes an image as a grid of discrete codes; PixelSNAIL learns the distribution of such grids over normal images. The image
score is the sum of the negative log-likelihoods of the most unlikely codes, those above lambda_s nats. For the map, codes above
lambda_p nats, given the earlier codes as restored, are resampled from their conditional distribution, 15 times; the map is the
mean distance of these restorations to the image, weighted by softmax(k / mean distance), after a minimum and a mean filter.

``prior="masked"``, our own: a bidirectional prior (:mod:`normalcy.nets.masked`), whose likelihoods are conditioned on codes
on all sides; unlikely codes are hidden with their neighbours and drawn anew in a fixed number of passes.

Volumes are processed slice by slice (``volumes="slices"``), with the position of a slice along the first spatial axis, from
-0.5 to 0.5, as a condition of encoder, decoder and prior; or as a whole by 3D networks. Images have no condition. All copies of
all slices are restored in one batch, with the causal prior to the same codes as by the sequential scan
(:mod:`normalcy.nets.restore`).

| | paper | normalcy |
|---|---|---|
| lambda_s, lambda_p | 7, 5 nats: about the percentiles 98, 90 of normal codes | these percentiles of held-out normal codes |
| prior kept | | that with the best likelihood of held-out normal codes: it memorises few images; whole volumes need many |
| distances in softmax(k / distance) | of images as z-scores | divided by the standard deviation of the training images |
| filter | 3x3x3 minimum, 3x7x7 mean, for 32x160x160 voxels | Gaussian of 1.5 voxels, for small volumes; ``filter=paper`` |
| sample score | likelihoods above lambda_s | this, or the mean of the map (``sample=map``) |
| random numbers | | belong to copy, slice and position, and are the same for every image |
| images | | standardised by the mean training image |
| codebook | | starts from encoded images; unused codes are reset |
| widths, lengths, batch sizes | not in the text available to us | own choice |

Held-out normal codes are those of a tenth of the training images (:meth:`normalcy.Detector.fit`, also with ``calibration=0``),
apart from the images for calibration. In a fit without any (:func:`normalcy.training.fit.fit`), the limits are quantiles of
training codes, and the prior does not stop early.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.config import require, require_that
from normalcy.method import Batches, EarlyStop, Method, Objective, Scores, Stage
from normalcy.nets import masked, vqvae
from normalcy.nets.filters import gaussian_smooth, mean_filter, min_filter
from normalcy.nets.masked import MaskedPrior
from normalcy.nets.pixelsnail import Memory, PixelSNAIL
from normalcy.nets.quantise import Quantised, Quantiser
from normalcy.nets.restore import SampledCodes, limit_of, restore
from normalcy.nets.scaling import Standardise

Score = Literal["restored", "reconstruction", "likelihood", "surprise"]
AT_ONCE = 2**24
"""Logits in memory at once when scoring: grids x codes x positions."""


@dataclass(frozen=True)
class VQRestorationSettings:
    score: Score = "restored"
    """The map: "restored", weighted distance to the restorations; "reconstruction", distance to the reconstruction; "likelihood",
    negative log-likelihood of the codes, in nats; "surprise", the same minus the entropy of the codes' distributions."""
    sample: Literal["likelihood", "map"] = "likelihood"
    """Image score: "likelihood", sum over codes above lambda_s, except for "reconstruction" and "surprise"; "map", mean of the
    map, always so for these two."""
    prior: Literal["causal", "masked"] = "causal"
    """"causal": PixelSNAIL, as in the paper; "masked": bidirectional."""
    rounds: int = 3
    """Masked prior: passes in which the hidden codes are filled in."""
    reach: int = 1
    """Masked prior: codes within this distance of an unlikely one are replaced with it."""
    volumes: Literal["slices", "whole"] = "slices"
    """Volumes: "slices", slice by slice through 2D networks; "whole", through 3D networks."""
    slices_per_step: int = 16
    """Slices of each volume in a training step, drawn at random."""
    copies: int = 15
    """Restorations of each image."""
    sample_limit: float | Literal["quantile"] = "quantile"
    """lambda_s, in nats: codes above it add up to the image score (paper: 7); "quantile": from held-out normal codes."""
    sample_quantile: float = 0.98
    """Quantile of held-out normal codes that sample_limit="quantile" takes, in (0, 1)."""
    pixel_limit: float | Literal["quantile"] = "quantile"
    """lambda_p, in nats: codes above it are resampled (paper: 5); "quantile": from held-out normal codes."""
    pixel_quantile: float = 0.9
    """Quantile of held-out normal codes that pixel_limit="quantile" takes, in (0, 1)."""
    sharpness: float = 3.0
    """k of softmax(k / mean distance) over the restorations, with distances in standard deviations of the training images."""
    codes: int = 128
    """K, the number of codes in the codebook."""
    dimension: int = 256
    """Dimension of a code vector."""
    halvings: int = 3
    """Strided layers of the encoder: the grid of codes has 1 / 2^halvings of the image's sides (160 pixels: 20 codes)."""
    beta: float = 1.0
    """Weight of the commitment loss."""
    ema: float | None = None
    """Decay of a codebook of moving averages; none: the codebook learns by gradients, as in the paper."""
    width: int = 128
    """Channels of the VQ-VAE."""
    residuals: int = 2
    """Gated residual blocks of the encoder and of the decoder, at each grid that has some."""
    residual_grids: Literal["coarsest", "all"] = "coarsest"
    """Grids with residual blocks: the "coarsest", or "all", as in the authors' code."""
    prior_width: int = 128
    """Channels of the prior."""
    prior_blocks: int = 4
    """Blocks of the prior, each with gated residual layers and attention."""
    prior_residuals: int = 1
    """Gated residual layers in each block of the causal prior (authors' code: 4)."""
    dropout: float = 0.1
    """Dropout rate in the prior, in [0, 1)."""
    lr: float = 1e-4
    """Learning rate (Adam) of both stages; gradients are clipped at 1 by value."""
    filter: Literal["gaussian", "paper", "none"] = "gaussian"
    """Filter of the map: "gaussian"; "paper", minimum over 3x3x3 and mean over 3x7x7 voxels (3x3 and 7x7 pixels of an image)."""
    smoothing: float = 1.5
    """filter="gaussian": its standard deviation, in pixels or voxels; 0: no smoothing."""

    def __post_init__(self) -> None:
        counts = ("slices_per_step", "copies", "codes", "dimension", "halvings", "width", "residuals")
        positive = (*counts, "rounds", "prior_width", "prior_blocks", "prior_residuals", "lr", "beta", "sharpness")
        require(
            "vq_restoration",
            self,
            positive=positive,
            non_negative=("reach", "smoothing"),
            fraction=("sample_quantile", "pixel_quantile", "ema"),
        )
        require_that(0 <= self.dropout < 1, "vq_restoration", "dropout", "at least 0 and below 1", self.dropout)
        for name in ("sample_limit", "pixel_limit"):
            limit = getattr(self, name)
            valid = isinstance(limit, str) or 0 < limit < math.inf
            require_that(valid, "vq_restoration", name, '"quantile" or a number of nats greater than 0', limit)


class VQRestoration(Method):
    name = "vq_restoration"
    Settings = VQRestorationSettings
    family = "restoration"
    reference = (
        "S. Naval Marimont, G. Tarroni. Anomaly detection through latent space restoration using vector quantized "
        "variational autoencoders. ISBI, 2021. arXiv:2012.06765\n"
        "Masked prior: H. Chang, H. Zhang, L. Jiang, C. Liu, W. T. Freeman. MaskGIT: masked generative image transformer. "
        "CVPR, 2022. arXiv:2202.04200"
    )
    scores = get_args(Score)
    spatial_dims = (2, 3)
    not_exportable: ClassVar = dict.fromkeys(
        get_args(Score), "it resamples codes by a prior; take vae with score=elbo, or spatial_uae."
    )
    settings: VQRestorationSettings
    sample_limit: Tensor
    pixel_limit: Tensor
    deviation: Tensor

    def __init__(self, settings: VQRestorationSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        s, channels = settings, self.shape[0]
        self.sliced = len(self.shape) == 4 and s.volumes == "slices"
        # A plane is the input of the networks: a slice of a volume, or a whole image or volume, of depth 1.
        plane = self.shape[2:] if self.sliced else self.shape[1:]
        self.depth, conditions = (self.shape[1], 1) if self.sliced else (1, 0)
        self.grid = vqvae.code_grid(self.name, plane, s.halvings)
        parts, everywhere = (s.width, s.halvings, s.residuals), s.residual_grids == "all"
        self.standardise = Standardise(self.shape)
        self.encoder: nn.Module = vqvae.encoder(
            len(plane), channels + conditions, *parts, s.dimension, gated=True, everywhere=everywhere
        )
        self.quantiser = Quantiser(s.codes, s.dimension, s.ema)
        self.decoder: nn.Module = vqvae.decoder(
            len(plane), channels, *parts, s.dimension + conditions, gated=True, everywhere=everywhere
        )
        prior = (self.grid, s.codes, s.prior_width, s.prior_blocks)
        shared: dict[str, Any] = {"dropout": s.dropout, "conditions": conditions}
        self.prior: MaskedPrior | PixelSNAIL = (
            MaskedPrior(*prior, **shared) if s.prior == "masked" else PixelSNAIL(*prior, s.prior_residuals, **shared)
        )
        self.register_buffer("deviation", torch.ones(()))  # standard deviation of the training images
        for name, limit, paper in (("sample_limit", s.sample_limit, 7.0), ("pixel_limit", s.pixel_limit, 5.0)):
            self.register_buffer(name, torch.tensor(paper if isinstance(limit, str) else limit))

    # -- planes (N, C, *plane), N = B * depth, and the index of each in its volume (N,), 0 ... depth - 1

    def planes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, *spatial) -> (N, C, *plane), (N,)"""
        numbers = torch.arange(self.depth, device=x.device).repeat(len(x))
        return (x.transpose(1, 2).flatten(0, 1) if self.sliced else x), numbers

    def whole(self, planes: Tensor) -> Tensor:
        """(N, C, *plane) -> (B, C, *spatial)"""
        return planes.view(-1, self.depth, *planes.shape[1:]).transpose(1, 2) if self.sliced else planes

    def condition(self, numbers: Tensor) -> Tensor:
        """(N, 1): positions of slices in [-0.5, 0.5]; (N, 0) without slices."""
        places = numbers.float() / max(self.depth - 1, 1) - 0.5
        return places[:, None] if self.sliced else places[:, None][:, :0]

    def draw(self, planes: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """``slices_per_step`` random slices of each volume, for training."""
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
        """Measure the standardisation and initialise the codebook from the first 16 batches."""
        self.standardise.measure(batches)
        self.deviation.copy_(_deviation(batches))
        drawn = (self.draw(*self.planes(self.standardise(x))) for x, _ in zip(batches, range(16)))
        self.quantiser.seed(self.encode(planes, numbers) for planes, numbers in drawn)

    def reconstruction(self, x: Tensor) -> Mapping[str, Tensor]:
        """Mean absolute error of standardised images, codebook loss and commitment loss."""
        planes, numbers = self.draw(*self.planes(self.standardise(x)))
        quantised: Quantised = self.quantiser(self.encode(planes, numbers))
        error = (planes - self.decode(quantised.vectors, numbers)).abs().mean()
        return quantised.losses(error, self.settings.beta)

    # -- stage 2

    def to_codes(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> codes (B, depth, *grid), int64"""
        parts = self._split(*self.planes(self.standardise(x)))
        codes = torch.cat([self.quantiser.nearest(self.encode(planes, numbers)) for planes, numbers in parts])
        return codes.view(-1, self.depth, *self.grid)

    def prior_likelihood(self, codes: Tensor) -> Mapping[str, Tensor]:
        """Negative log-likelihood of codes (B, depth, *grid), nats per code: of hidden ones while a masked prior trains."""
        tables, numbers = self.draw(*self._tables(codes))
        if isinstance(self.prior, MaskedPrior) and self.prior.training:
            hidden = masked.draw_hidden(len(tables), self.grid, tables.device)
            nats = masked.masked_nats(self.prior(tables, hidden, self.condition(numbers)), tables, hidden)
        else:
            nats = self._likelihoods(tables, numbers)[0].mean()
        return {"loss": nats, "bits_per_code": nats.detach() / math.log(2)}

    def choose_limits(self, batches: Batches) -> None:
        """Set the limits from held-out normal images."""
        s, nll = self.settings, torch.cat([self.nll(self.to_codes(x)).flatten() for x in batches])
        for limit, given, quantile in (
            (self.sample_limit, s.sample_limit, s.sample_quantile),
            (self.pixel_limit, s.pixel_limit, s.pixel_quantile),
        ):
            if isinstance(given, str):
                limit.copy_(limit_of(nll, 1 - quantile))

    def notes(self) -> Sequence[str]:
        s = self.settings
        limits = (
            ("sample_limit", s.sample_limit, self.sample_limit, s.sample_quantile),
            ("pixel_limit", s.pixel_limit, self.pixel_limit, s.pixel_quantile),
        )
        return [
            f"{name}: {float(limit):.3g} nats, quantile {quantile:g} of held-out normal codes"
            for name, given, limit, quantile in limits
            if given == "quantile"
        ]

    def stages(self) -> Sequence[Stage]:
        s = self.settings
        autoencoder = [*self.encoder.parameters(), *self.quantiser.parameters(), *self.decoder.parameters()]
        size = 64 if len(self.shape) == 3 else 4  # of a volume there are ``slices_per_step`` slices in a step
        chosen = "quantile" in (s.sample_limit, s.pixel_limit)
        return [
            Stage(
                "vqvae",
                [Objective(self.reconstruction, autoencoder, lr=s.lr, clip_value=1.0)],
                epochs=125,
                batch_size=size,
                prepare=self.begin,
            ),
            Stage(
                "prior",
                [Objective(self.prior_likelihood, self.prior.parameters(), lr=s.lr, clip_value=1.0)],
                epochs=125,
                batch_size=size,
                derive=self.to_codes,
                early_stop=EarlyStop(self.prior_likelihood, every=3, patience=5),
                finalise=self.choose_limits if chosen else None,
            ),
        ]

    # -- testing

    def _likelihoods(self, tables: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`likelihoods`, of codes (n, *grid)."""
        if isinstance(self.prior, MaskedPrior):
            return masked.likelihoods(self.prior, tables, self.condition(numbers))
        return masked.pseudo_likelihood(self.prior(tables, self.condition(numbers)), tables)

    def nll(self, codes: Tensor) -> Tensor:
        """Negative log-likelihood of codes (B, depth, *grid), in nats."""
        return self.likelihoods(codes)[0]

    def likelihoods(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of codes (B, depth, *grid) and entropy of their distributions, in nats: given the earlier
        codes, or with the masked prior given those around."""
        parts = [self._likelihoods(*part) for part in self._split(*self._tables(codes))]
        nll, entropy = (torch.cat(part).view(codes.shape) for part in zip(*parts))
        return nll, entropy

    def restore(self, tables: Tensor, numbers: Tensor, nll: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Codes of planes (n, *grid) -> restored codes (n, copies, *grid), int64, and which were changed, bool; ``nll`` of the
        codes, (n, *grid), if it is known: only the masked prior needs it."""
        copies = self.settings.copies
        condition = self.condition(numbers).repeat_interleave(copies, 0)
        many, uniform = tables.repeat_interleave(copies, 0), self._uniform()[numbers].flatten(0, 1)
        if isinstance(self.prior, MaskedPrior):
            s, limit = self.settings, float(self.pixel_limit)
            nll = self._likelihoods(tables, numbers)[0] if nll is None else nll
            some = condition if self.sliced else None
            result = masked.refill(
                self.prior, many, nll.repeat_interleave(copies, 0), limit,
                conditions=some, uniform=uniform, rounds=s.rounds, reach=s.reach,
            )  # fmt: skip
        else:
            prior = Memory(self.prior, condition, copies=copies)
            result = restore(prior, many, SampledCodes(float(self.pixel_limit), uniform))
        shape = (-1, copies, *self.grid)
        return result.codes.view(shape), result.changed.view(shape)

    def images(self, tables: Tensor, numbers: Tensor) -> Tensor:
        """Codes (n, *grid) -> planes (n, C, *plane) in the value range of the images."""
        mean, _ = self.planes(self.standardise.mean[None])
        return mean[numbers] + self.standardise.scale * self.decode(self.quantiser.look_up(tables), numbers)

    def _score(self, x: Tensor) -> Scores:
        s, codes = self.settings, self.to_codes(x)
        nll, entropy = self.likelihoods(codes)
        planes, numbers = self.planes(x)
        tables, _ = self._tables(codes)
        reconstruction = torch.cat([self.images(*part) for part in self._split(tables, numbers)])
        sample = torch.where(nll > self.sample_limit, nll, 0).flatten(1).sum(1)
        nats = self._to_pixels(nll.flatten(0, 1))
        extra_maps = {"reconstruction": self.whole(reconstruction), "code_nll": nats}
        if s.score == "likelihood":
            return Scores(sample if s.sample == "likelihood" else _mean(nats), map=nats, extra_maps=extra_maps)
        if s.score == "surprise":
            map = self._map(self._to_pixels((nll - entropy).flatten(0, 1), whole=False))
            return Scores(_mean(map), map=map, extra_maps=extra_maps)
        if s.score == "reconstruction":
            map = self._map((planes - reconstruction).abs().mean(1))
            return Scores(_mean(map), map=map, restored=extra_maps["reconstruction"], extra_maps=extra_maps)
        parts = [
            self._weigh(*part) for part in self._split(planes, tables, numbers, nll.flatten(0, 1), copies=s.copies)
        ]
        distance, spread, restored, changed = (torch.cat(part) for part in zip(*parts))
        map = self._map(distance)
        return Scores(
            sample if s.sample == "likelihood" else _mean(map),
            map=map,
            restored=self.whole(restored),
            uncertainty=self.whole(spread[:, None])[:, 0],
            extra_maps={**extra_maps, "changed_codes": self._to_pixels(changed)},
        )

    def _weigh(
        self, planes: Tensor, tables: Tensor, numbers: Tensor, nll: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Over the restorations of each of n planes: weighted distance to it and standard deviation of the distance (n, *plane),
        weighted restored plane (n, C, *plane), fraction of restorations in which a code changed (n, *grid)."""
        s = self.settings
        restored, changed = self.restore(tables, numbers, nll)
        images = self.images(restored.flatten(0, 1), numbers.repeat_interleave(s.copies))
        images = images.view(len(planes), s.copies, *images.shape[1:])
        distance = (planes[:, None] - images).abs().mean(2)  # (n, copies, *plane)
        relative = distance.flatten(2).mean(2) / self.deviation
        weight = (s.sharpness / relative.clamp(min=1e-6)).softmax(1)  # (n, copies)
        return (
            torch.einsum("nj,nj...->n...", weight, distance),
            distance.std(1, correction=0),
            torch.einsum("nj,nj...->n...", weight, images),
            changed.float().mean(1),
        )

    def _map(self, distance: Tensor) -> Tensor:
        """(N, *plane) -> (B, *spatial), filtered if the settings say so."""
        map = self.whole(distance[:, None])[:, 0]
        if self.settings.filter == "none":
            return map
        if self.settings.filter == "gaussian":
            return gaussian_smooth(map, self.settings.smoothing)
        return mean_filter(min_filter(map, (3,) * (map.ndim - 1)), (3, 7, 7)[-map.ndim + 1 :])

    def _to_pixels(self, values: Tensor, whole: bool = True) -> Tensor:
        """(N, *grid) -> (B, *spatial), or (N, *plane)"""
        sides = tuple(n * 2**self.settings.halvings for n in self.grid)
        planes = F.interpolate(values[:, None], size=sides, mode="nearest")
        return (self.whole(planes) if whole else planes)[:, 0]

    def _tables(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """(B, depth, *grid) -> (N, *grid), and the planes' indices (N,)."""
        return codes.flatten(0, 1), torch.arange(self.depth, device=codes.device).repeat(len(codes))

    def _split(self, *parts: Tensor, copies: int = 1) -> Iterator[tuple[Tensor, ...]]:
        """The planes in parts whose logits fit into memory (``AT_ONCE``)."""
        step = max(1, AT_ONCE // (copies * self.settings.codes * math.prod(self.grid)))
        return zip(*(torch.split(part, step) for part in parts))

    def _uniform(self) -> Tensor:
        """The random number of each position of each copy of each slice, (depth, copies, positions)."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.depth, self.settings.copies, math.prod(self.grid))
        return torch.rand(shape, generator=generator).to(self.device)


def _mean(map: Tensor) -> Tensor:
    """(B, *spatial) -> (B,)"""
    return map.flatten(1).mean(1)


def _deviation(batches: Batches) -> Tensor:
    """Standard deviation of all values of the images."""
    moments = torch.stack([torch.stack([x.sum(), x.square().sum(), x.new_tensor(x.numel())]).double() for x in batches])
    total, squares, count = moments.sum(0)
    deviation: Tensor = (squares / count - (total / count) ** 2).clamp(min=1e-12).sqrt().float()
    return deviation


def _with(x: Tensor, condition: Tensor) -> Tensor:
    """(N, C, *plane) with the conditions (N, n) as additional channels."""
    planes = condition.view(*condition.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
    return torch.cat([x, planes.to(x.dtype)], 1)
