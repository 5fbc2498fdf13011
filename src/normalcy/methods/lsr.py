"""LSR, latent space resampling: codes of an image that a prior of normal images finds unlikely are replaced by likely ones.

Wang et al. 2020, "Image anomaly detection using normal data only by latent space resampling". A VQ-VAE turns an image into a
grid of discrete codes; PixelSNAIL learns their distribution over normal images. In raster order, a code less likely than
eta, if one of the neighbours that follow it is so too, becomes the likeliest one (equation 5). The map is the distance
between the images decoded from the restored and from the original codes (equation 6), after a bilateral filter. The
restoration is exact and takes one pass through the prior for each changed code (:mod:`normalcy.nets.restore`).

Differences to the paper:

- The paper names six strided layers and 32x32 codes for 256x256 images; the codes decide: three halvings.
- Images are standardised by the mean training image, so that the terms of equation 3 have one scale; all are means.
- Codes begin as encoded training images and start anew when out of use, instead of N(0, 1). The encoded vector of each
  position is normalised: otherwise it outruns the codebook at the start, and all positions fall to a few codes.
- Widths are not in the paper. ``preset="small"`` is for processors without a GPU: narrow, with 64 codes instead of 512 (a
  small prior cannot foresee the noise of a surface that more of them carry); with fewer steps to make, 70 % of them for the
  VQ-VAE, it learns three and its prior five times as fast, the prior with a tenth of that rate in the last third.
- The prior, which learns few images by heart, is kept as it was when held-out normal codes were likeliest.
- Without a validation set with defects eta is 0.0005, the paper's; ``"quantile"`` takes that share of the codes of held-out
  normal images, ``"search"`` the best pixel AUROC on held-out images with black or grey rectangles (section 4.3.3).

Found here, on magnetic tiles (``recipes/lsr_tiles.py``, 25 minutes of one core): trained on tiles turned and mirrored at
random, as the paper does, pixel AUROC 0.664 and AUPRO 0.599; a VAE in the same way 0.619 and 0.527, and on tiles as they are,
where it does better, with twice the steps, 0.667 and 0.564; an autoencoder with L2 0.628 and 0.507. So LSR finds regions
better than these networks trained from scratch, while over pixels it is level with the best VAE, and not by the paper's 0.12
above the autoencoder. Against that VAE it is better on breaks (0.829, 0.768) and frays (0.846, 0.716), worse on cracks
(0.756, 0.941), which the distance of the restored image to the input finds better (0.878): thin lines seem lost in the codes
already. Uneven tiles, 70 % of the marked pixels, are hardly found (0.596, 0.682): brightness changes slowly there, so that
code after code may be likely next to those before. Whole images it finds less well than autoencoders do. Turned and mirrored
training images (``augment=rotate90,flip``) matter, perhaps because a prior learns few images by heart: without them AUPRO is
0.550.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.errors import SettingsError
from normalcy.method import Batches, EarlyStop, Method, Objective, Scores, Stage
from normalcy.nets import vqvae
from normalcy.nets.filters import Reduce, bilateral, check_reduce, reduce_map
from normalcy.nets.pixelsnail import Memory, PixelSNAIL, mean_nats
from normalcy.nets.quantise import Quantised, Quantiser
from normalcy.nets.restore import LikelyCodes, Restored, limit_of, negative_log_likelihood, restore
from normalcy.nets.scaling import Standardise
from normalcy.nets.schedules import LATE, late_drop

Score = Literal["restored", "input", "likelihood"]
PRESETS: Mapping[str, Mapping[str, float]] = {
    "paper": {
        "codes": 512,
        "width": 128,
        "residuals": 8,
        "prior_width": 128,
        "prior_blocks": 3,
        "lr": 3e-4,
        "prior_lr": 3e-4,
    },
    "small": {
        "codes": 64,
        "width": 48,
        "residuals": 2,
        "prior_width": 48,
        "prior_blocks": 2,
        "lr": 1e-3,
        "prior_lr": 1.5e-3,
    },
}
ETAS = tuple(10.0**k for k in (-6, -5, -4.5, -4, -3.5, -3, -2.5, -2, -1.5, -1))
"""Tried by ``eta="search"``."""


@dataclass(frozen=True)
class LSRSettings:
    score: Score = "restored"
    """The map: distance between the images decoded from restored and original codes; between the restored image and the
    input; or the negative log-likelihood of the codes, in nats."""
    eta: float | Literal["quantile", "search"] = 0.0005
    """Likelihood below which a code is replaced."""
    quantile: float = 0.01
    """Share of normal codes below eta="quantile"."""
    local: bool = True
    """A code is replaced only if a neighbour that follows it is unlikely too."""
    codes: int | None = None
    """K: 512, or 64 if small."""
    dimension: int = 32
    """Of a code's vector, D."""
    halvings: int = 3
    beta: float = 0.25
    """Weight of the commitment."""
    ema: float | None = None
    """Decay of a codebook of moving averages; none: the codebook learns by gradients, as in the paper."""
    preset: Literal["paper", "small"] = "paper"
    """Gives the numbers below that are none; with "small" the prior's rate falls to a tenth in the last third."""
    width: int | None = None
    """Channels of the VQ-VAE."""
    residuals: int | None = None
    """Residual blocks of encoder and decoder."""
    prior_width: int | None = None
    prior_blocks: int | None = None
    """Pairs of a gated residual block and attention."""
    lr: float | None = None
    """Of Adam, for the VQ-VAE: 0.0003, or 0.001 if small."""
    prior_lr: float | None = None
    """Of Adam, for the prior: 0.0003, or 0.0015 if small."""
    filter: bool = True
    """Bilateral filter of the map: diameter 20, deviations 75 pixels and 75 of 255."""
    reduce: Reduce = "max"
    """The image score: "mean" or "max" of the map, or this quantile of it, in [0, 1]."""

    def __post_init__(self) -> None:
        positive = (self.dimension, self.halvings, self.beta)
        given = [getattr(self, word) for word in PRESETS["paper"]]
        if min(positive) <= 0 or any(n is not None and n <= 0 for n in given):
            raise SettingsError("lsr: codes, dimension, halvings, beta, rates and all widths must be positive.")
        if not isinstance(self.eta, str) and not 0 < self.eta < 1:
            raise SettingsError(f'lsr: eta must be between 0 and 1, "quantile" or "search", got {self.eta}.')
        if not 0 < self.quantile < 1 or (self.ema is not None and not 0 < self.ema < 1):
            raise SettingsError("lsr: quantile and ema must be between 0 and 1.")
        check_reduce("lsr", self.reduce)

    def number(self, word: str) -> Any:
        """What is given, or the preset's."""
        value = getattr(self, word)
        return PRESETS[self.preset][word] if value is None else value


class LSR(Method):
    name = "lsr"
    Settings = LSRSettings
    scores = get_args(Score)
    settings: LSRSettings
    eta: Tensor

    def __init__(self, settings: LSRSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        s, channels = settings, self.shape[0]
        self.grid = vqvae.code_grid(self.name, self.shape[1:], s.halvings)
        parts = (2, channels, s.number("width"), s.halvings, s.number("residuals"), s.dimension)
        self.standardise = Standardise(self.shape)
        self.encoder: nn.Module = vqvae.encoder(*parts, normalise=True)
        self.quantiser = Quantiser(s.number("codes"), s.dimension, s.ema)
        self.decoder: nn.Module = vqvae.decoder(*parts)
        self.prior = PixelSNAIL(self.grid, s.number("codes"), s.number("prior_width"), s.number("prior_blocks"))
        self.register_buffer("eta", torch.tensor(s.eta if not isinstance(s.eta, str) else 0.0005))

    # -- stage 1

    def encode(self, x: Tensor) -> Tensor:
        """z_e: (B, C, H, W) -> (B, D, *grid)"""
        z: Tensor = self.encoder(self.standardise(x))
        return z.float()

    def decode(self, codes: Tensor) -> Tensor:
        """(B, *grid) -> (B, C, H, W)"""
        return self.standardise.inverse(self.decoder(self.quantiser.look_up(codes)).float())

    def begin(self, batches: Batches) -> None:
        self.standardise.measure(batches)
        self.quantiser.seed(self.encode(x) for x, _ in zip(batches, range(16)))

    def reconstruction(self, x: Tensor) -> Mapping[str, Tensor]:
        """Equation 3, in units of the images' deviation."""
        found: Quantised = self.quantiser(self.encode(x))
        restored = self.decoder(found.vectors).float()
        error = (self.standardise(x) - restored).square().mean()
        return found.losses(error, self.settings.beta)

    # -- stage 2

    def to_codes(self, x: Tensor) -> Tensor:
        return self.quantiser.nearest(self.encode(x))

    def prior_likelihood(self, codes: Tensor) -> Mapping[str, Tensor]:
        """Negative log-likelihood, nats for a code."""
        nats = mean_nats(self.prior(codes), codes)
        return {"loss": nats, "bits_per_code": nats.detach() / math.log(2)}

    def choose_eta(self, batches: Batches) -> None:
        """From held-out normal images."""
        if self.settings.eta == "quantile":
            nll = torch.cat([self._nll(self.to_codes(x)).flatten() for x in batches])
            self.eta.copy_((-limit_of(nll, self.settings.quantile)).exp())
        elif self.settings.eta == "search":
            self.eta.copy_(self._search_eta(torch.cat(list(batches))))

    def _search_eta(self, x: Tensor) -> Tensor:
        """Section 4.3.3: the eta with the best pixel AUROC on images with a rectangle of 1 % of the area, black or grey."""
        x = x[:64]
        height, width = self.shape[1:]
        sides = max(1, round(0.1 * height)), max(1, round(0.1 * width))
        mask = torch.zeros(len(x), height, width, dtype=torch.bool)
        generator = torch.Generator().manual_seed(0)
        for m in mask:
            top, left = (int(torch.randint(n - s + 1, (), generator=generator)) for n, s in zip((height, width), sides))
            m[top : top + sides[0], left : left + sides[1]] = True
        low, high = float(x.min()), float(x.max())
        shade = torch.where(torch.arange(len(x)) % 2 == 0, low, (low + high) / 2).to(x)
        spoilt = torch.where(mask[:, None].to(x.device), shade[:, None, None, None], x)
        codes = self.to_codes(spoilt)
        found = []
        for eta in ETAS:
            map = self._distance(self.decode(self.restore(codes, eta).codes), self.decode(codes))
            found.append(_auroc(map.cpu().flatten(), mask.flatten()))
        return torch.tensor(ETAS[max(range(len(ETAS)), key=found.__getitem__)])

    def stages(self) -> Sequence[Stage]:
        s, small = self.settings, self.settings.preset == "small"
        autoencoder = [*self.encoder.parameters(), *self.quantiser.parameters(), *self.decoder.parameters()]
        return [
            Stage(
                "vqvae",
                [Objective(self.reconstruction, autoencoder, lr=s.number("lr"))],
                epochs=175 if small else 100,
                batch_size=32,
                prepare=self.begin,
            ),
            Stage(
                "prior",
                [
                    Objective(
                        self.prior_likelihood,
                        self.prior.parameters(),
                        lr=s.number("prior_lr"),
                        clip_norm=1.0,
                        schedule=late_drop if small else None,
                    )
                ],
                epochs=75 if small else 150,
                batch_size=32,
                inputs=self.to_codes,
                early_stop=EarlyStop(self.prior_likelihood, every=3, patience=5, after=LATE if small else 0.0),
                conclude=None if not isinstance(s.eta, str) else self.choose_eta,
            ),
        ]

    # -- testing

    def restore(self, codes: Tensor, eta: float | None = None) -> Restored:
        """Equation 5 over codes (B, *grid)."""
        rule = LikelyCodes(float(self.eta) if eta is None else eta, self.grid, self.settings.local)
        return restore(Memory(self.prior, ahead=rule.ahead), codes, rule)

    def _nll(self, codes: Tensor) -> Tensor:
        """Of each code, in nats, (B, *grid)."""
        logits = self.prior(codes).flatten(2)
        return negative_log_likelihood(logits, codes.flatten(1)).view(codes.shape)

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Equation 6: (B, C, H, W) twice -> (B, H, W), filtered where wanted; 75 of 255 in the scale of the training images."""
        map = (a - b).square().sum(1).sqrt()
        return bilateral(map, 10, 75.0, 75 / 255) if self.settings.filter else map

    def _score(self, x: Tensor) -> Scores:
        codes = self.to_codes(x)
        found = self.restore(codes)
        restored, reconstruction = self.decode(found.codes), self.decode(codes)
        nll = self._to_pixels(found.nll)
        match self.settings.score:
            case "restored":
                map = self._distance(restored, reconstruction)
            case "input":
                map = self._distance(restored, x)
            case "likelihood":
                map = nll
        likelihood = self.settings.score == "likelihood"
        pictures: dict[str, Any] = {
            "reconstruction": reconstruction,
            "code_nll": nll,
            "changed_codes": self._to_pixels(found.changed.float()),
        }
        image = found.nll.flatten(1).sum(1) if likelihood else reduce_map(map, self.settings.reduce)
        return Scores(image=image, map=map, restored=restored, pictures=pictures)

    def _to_pixels(self, values: Tensor) -> Tensor:
        """(B, *grid) -> (B, H, W)"""
        return F.interpolate(values[:, None], size=self.shape[1:], mode="nearest")[:, 0]


def _auroc(scores: Tensor, anomalous: Tensor) -> float:
    """Share of the pairs (anomalous, normal) in order, ties half; methods know no metrics."""
    _, place, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    rank = (counts.cumsum(0).double() - 0.5 * (counts.double() - 1))[place]
    n = int(anomalous.sum())
    return float((rank[anomalous].sum() - n * (n + 1) / 2) / (n * (len(scores) - n)))
