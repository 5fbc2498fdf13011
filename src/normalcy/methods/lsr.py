"""LSR (latent space resampling): unlikely VQ-VAE codes are replaced; scored by the distance to the original reconstruction.

Wang et al. 2020. A VQ-VAE encodes an image as a grid of discrete codes; PixelSNAIL learns the distribution of such grids over
normal images. In raster order, a code less likely than eta becomes the likeliest one if one of its later neighbours is
unlikely too (equation 5). The map is the distance between the images decoded from the restored and from the original codes
(equation 6), after a bilateral filter. The restoration is exact and takes one pass through the prior for each changed code
(:mod:`normalcy.nets.restore`).

| | paper | normalcy |
|---|---|---|
| encoder | six strided layers; 32x32 codes for 256x256 pixels | three strided layers, which give 32x32 codes |
| images | | standardised by the mean training image, so that the terms of equation 3 have one scale; terms are means |
| augmentation | random rotations and flips | none by default; ``augment=rotate90,flip`` |
| codebook | starts from N(0, 1) | starts from encoded training images; unused codes are reset |
| encoded vectors | | normalised at each position; otherwise they outgrow the codebook at first and most collapse to a few codes |
| widths | not given | ``preset="paper"``, or ``"small"`` for CPUs: narrow, 64 codes instead of 512 |
| learning rates | | ``"small"``: 3 times for the VQ-VAE, 5 times for the prior, a tenth of that in its last third |
| training steps | | ``"small"``: 70 % of them for the VQ-VAE; ``"paper"``: 40 % |
| prior kept | | that with the best likelihood of held-out normal codes, since it memorises few images |
| eta | 0.0005 | 0.0005, or a quantile of held-out normal codes, or by search on held-out images with rectangles (section 4.3.3) |

With ``"small"`` there are fewer codes because a small prior cannot predict the texture noise that more codes represent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.config import require, require_that
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
"""Values tried by ``eta="search"``."""


@dataclass(frozen=True)
class LSRSettings:
    score: Score = "restored"
    """The map: "restored", distance between the images decoded from restored and from original codes (equation 6); "input",
    distance between the restored image and the input; "likelihood", negative log-likelihood of the codes, in nats."""
    eta: float | Literal["quantile", "search"] = 0.0005
    """Likelihood below which a code is replaced (equation 5), in (0, 1); "quantile": so that the fraction ``quantile`` of
    held-out normal codes is less likely; "search": best pixel AUROC on held-out images with rectangles (section 4.3.3)."""
    quantile: float = 0.01
    """Fraction of held-out normal codes less likely than eta, with eta="quantile"."""
    local: bool = True
    """Replace a code only if one of its later neighbours is unlikely too (equation 5)."""
    codes: int | None = None
    """K, the number of codes in the codebook; none: 512, or 64 with preset="small"."""
    dimension: int = 32
    """D, the dimension of a code vector."""
    halvings: int = 3
    """Strided layers of the encoder: the grid of codes has 1 / 2^halvings of the image's sides."""
    beta: float = 0.25
    """Weight of the commitment loss (equation 3)."""
    ema: float | None = None
    """Decay of a codebook of moving averages; none: the codebook learns by gradients, as in the paper."""
    preset: Literal["paper", "small"] = "paper"
    """Defaults of the settings that are none: "paper", or "small" for CPUs."""
    width: int | None = None
    """Channels of the VQ-VAE; none: 128, or 48 with preset="small"."""
    residuals: int | None = None
    """Residual blocks of the encoder and of the decoder; none: 8, or 2 with preset="small"."""
    prior_width: int | None = None
    """Channels of PixelSNAIL; none: 128, or 48 with preset="small"."""
    prior_blocks: int | None = None
    """Pairs of a gated residual block and an attention block in PixelSNAIL; none: 3, or 2 with preset="small"."""
    lr: float | None = None
    """Learning rate of the VQ-VAE (Adam); none: 0.0003, or 0.001 with preset="small"."""
    prior_lr: float | None = None
    """Learning rate of the prior (Adam); none: 0.0003, or 0.0015 with preset="small", a tenth of it in the last third."""
    filter: bool = True
    """Bilateral filter of the map: diameter 20 pixels, standard deviations of 75 pixels and of 75/255 in value."""
    reduce: Reduce = "max"
    """Image score of "restored" and "input": "mean" or "max" of the map, or this quantile of it, in [0, 1]. That of "likelihood"
    is the sum over the codes."""

    def __post_init__(self) -> None:
        positive = ("dimension", "halvings", "beta", *PRESETS["paper"])
        require("lsr", self, positive=positive, fraction=("quantile", "ema"))
        valid = isinstance(self.eta, str) or 0 < self.eta < 1
        require_that(valid, "lsr", "eta", '"quantile", "search" or between 0 and 1, both excluded', self.eta)
        check_reduce("lsr", self.reduce)

    def number(self, name: str) -> Any:
        """A setting's value, or the preset's where it is none."""
        value = getattr(self, name)
        return PRESETS[self.preset][name] if value is None else value


class LSR(Method):
    name = "lsr"
    Settings = LSRSettings
    family = "restoration"
    reference = (
        "L. Wang, D. Zhang, J. Guo, Y. Han. Image anomaly detection using normal data only by latent space "
        "resampling. Applied Sciences 10(23):8660, 2020. doi:10.3390/app10238660\n"
        "Prior: X. Chen, N. Mishra, M. Rohaninejad, P. Abbeel. PixelSNAIL: an improved autoregressive generative "
        "model. ICML, 2018. arXiv:1712.09763"
    )
    scores = get_args(Score)
    not_exportable: ClassVar = dict.fromkeys(
        get_args(Score), "it resamples codes until they are likely; take vae with score=elbo, or spatial_uae."
    )
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
        """Measure the standardisation and initialise the codebook from the first 16 batches."""
        self.standardise.measure(batches)
        self.quantiser.seed(self.encode(x) for x, _ in zip(batches, range(16)))

    def reconstruction(self, x: Tensor) -> Mapping[str, Tensor]:
        """Equation 3, on standardised images."""
        quantised: Quantised = self.quantiser(self.encode(x))
        restored = self.decoder(quantised.vectors).float()
        error = (self.standardise(x) - restored).square().mean()
        return quantised.losses(error, self.settings.beta)

    # -- stage 2

    def to_codes(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> codes (B, *grid), int64"""
        return self.quantiser.nearest(self.encode(x))

    def prior_likelihood(self, codes: Tensor) -> Mapping[str, Tensor]:
        """Negative log-likelihood of codes (B, *grid), nats per code."""
        nats = mean_nats(self.prior(codes), codes)
        return {"loss": nats, "bits_per_code": nats.detach() / math.log(2)}

    def choose_eta(self, batches: Batches) -> None:
        """Set eta from held-out normal images."""
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
        defective = torch.where(mask[:, None].to(x.device), shade[:, None, None, None], x)
        codes = self.to_codes(defective)
        aurocs = []
        for eta in ETAS:
            map = self._distance(self.decode(self.restore(codes, eta).codes), self.decode(codes))
            aurocs.append(_auroc(map.cpu().flatten(), mask.flatten()))
        return torch.tensor(ETAS[max(range(len(ETAS)), key=aurocs.__getitem__)])

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
                derive=self.to_codes,
                early_stop=EarlyStop(self.prior_likelihood, every=3, patience=5, after=LATE if small else 0.0),
                finalise=None if not isinstance(s.eta, str) else self.choose_eta,
            ),
        ]

    # -- testing

    def restore(self, codes: Tensor, eta: float | None = None) -> Restored:
        """Equation 5 over codes (B, *grid)."""
        rule = LikelyCodes(float(self.eta) if eta is None else eta, self.grid, self.settings.local)
        return restore(Memory(self.prior, ahead=rule.ahead), codes, rule)

    def _nll(self, codes: Tensor) -> Tensor:
        """Negative log-likelihood of each code, in nats, (B, *grid)."""
        logits = self.prior(codes).flatten(2)
        return negative_log_likelihood(logits, codes.flatten(1)).view(codes.shape)

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Equation 6, filtered if the settings say so: two images (B, C, H, W) -> (B, H, W)."""
        map = (a - b).square().sum(1).sqrt()
        return bilateral(map, 10, 75.0, 75 / 255) if self.settings.filter else map

    def _score(self, x: Tensor) -> Scores:
        codes = self.to_codes(x)
        result = self.restore(codes)
        restored, reconstruction = self.decode(result.codes), self.decode(codes)
        nll = self._to_pixels(result.nll)
        match self.settings.score:
            case "restored":
                map = self._distance(restored, reconstruction)
            case "input":
                map = self._distance(restored, x)
            case "likelihood":
                map = nll
        likelihood = self.settings.score == "likelihood"
        extra_maps: dict[str, Any] = {
            "reconstruction": reconstruction,
            "code_nll": nll,
            "changed_codes": self._to_pixels(result.changed.float()),
        }
        image = result.nll.flatten(1).sum(1) if likelihood else reduce_map(map, self.settings.reduce)
        return Scores(image=image, map=map, restored=restored, extra_maps=extra_maps)

    def _to_pixels(self, values: Tensor) -> Tensor:
        """(B, *grid) -> (B, H, W)"""
        return F.interpolate(values[:, None], size=self.shape[1:], mode="nearest")[:, 0]


def _auroc(scores: Tensor, anomalous: Tensor) -> float:
    """Fraction of the pairs (anomalous, normal) in the right order, ties half. Methods do not import normalcy.metrics."""
    _, place, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    rank = (counts.cumsum(0).double() - 0.5 * (counts.double() - 1))[place]
    n = int(anomalous.sum())
    return float((rank[anomalous].sum() - n * (n + 1) / 2) / (n * (len(scores) - n)))
