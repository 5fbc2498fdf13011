"""LSR (latent space resampling): unlikely VQ-VAE codes are replaced; scored by likelihoods and by what the replacement changes.

Wang et al. 2020. A VQ-VAE encodes an image as a grid of discrete codes; a prior learns the distribution of such grids over normal
images. The paper: PixelSNAIL, an autoregressive prior (``prior="causal"``). In raster order, a code less likely than eta becomes
the likeliest one if one of its later neighbours is unlikely too (equation 5). The map is the distance between the images decoded
from the restored and from the original codes (equation 6), after a bilateral filter. The restoration is exact and takes one pass
through the prior for each changed code (:mod:`normalcy.nets.restore`).

``preset="features"``, our own: the codes represent features of a pretrained network, in which defects differ more than in
pixels; residuals are those of features, and a second decoder, which does not change the codes, shows images.

``prior="masked"``, our own: a bidirectional prior (:mod:`normalcy.nets.masked`). The likelihood of a code is conditioned on codes
on all sides, while its block and every second block from there are hidden; unlikely codes are hidden with their neighbours and
refilled, in a fixed number of passes. Inside a homogeneous anomaly each code is likely after the one before: an autoregressive
prior sees nothing there.

Maps of a fit, each a score of its own; ``score="auto"`` is the one that finds synthetic anomalies in held-out normal images best:

| score | map |
|---|---|
| ``restored`` | distance of what is decoded from restored and from original codes (equation 6) |
| ``input`` | distance of what is decoded from restored codes to the input |
| ``residual`` | distance of what is decoded from original codes to the input |
| ``likelihood`` | negative log-likelihood of the codes, in nats |
| ``surprise`` | negative log-likelihood of the codes minus the entropy of their distribution, as texture is hard to predict |
| ``fused`` | squared residual relative to the usual one of its code, plus twice the surprise, in standard deviations |
| ``mixed`` | residual, plus twice the surprise, in the same units, which are measured on held-out normal images |

| | paper | normalcy |
|---|---|---|
| encoder | six strided layers; 32x32 codes for 256x256 pixels | three strided layers; ``"small"``: two, for thin defects |
| images | | standardised by the mean training image, so that the terms of equation 3 have one scale; terms are means |
| augmentation | random rotations and flips | none by default; ``augment=rotate90,flip`` |
| codebook | starts from N(0, 1) | starts from encoded training images; unused codes are reset |
| encoded vectors | | normalised at each position; otherwise they outgrow the codebook at first and most collapse to a few codes |
| widths | not given | ``preset="paper"``, or ``"small"`` for CPUs: narrow, 64 codes instead of 512, masked prior |
| learning rates | | ``"small"``: 3 times for the VQ-VAE, 5 times for the prior, a tenth of that in its last third |
| training steps | epochs over an augmented set whose size is not given | 3,900 and 23,400: 100 and 150 epochs of 10,000 images |
| batches | 256 and 64 | the same; ``"small"``: 32, 200 epochs of the VQ-VAE and 100 of the prior |
| prior kept | | that with the best likelihood of held-out normal codes, since it memorises few images |
| eta | 0.0005, K = 512 | 0.256 / K; or a quantile of held-out normal codes; or by search with rectangles (section 4.3.3) |
| bilateral filter | diameter 20 of 256 pixels | the same fraction of the image's longer side |

With ``"small"`` there are fewer codes because a small prior cannot predict the texture noise that more codes represent.

Held-out normal images are a tenth of the training images (:meth:`normalcy.Detector.fit`, also with ``calibration=0``), apart
from those for calibration. In a fit without any (:func:`normalcy.training.fit.fit`), eta, units and map are chosen on the
training images, and the prior does not stop early.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.config import require, require_that
from normalcy.data.synthetic import SYNTHETIC, make_set
from normalcy.errors import DataError
from normalcy.method import Batches, EarlyStop, Method, Objective, Scores, Stage
from normalcy.nets import masked, vqvae
from normalcy.nets.filters import Reduce, bilateral, check_reduce, gaussian_smooth, reduce_map
from normalcy.nets.masked import MaskedPrior
from normalcy.nets.patches import PatchFeatures
from normalcy.nets.perceptual import joined, parted
from normalcy.nets.pixelsnail import Memory, PixelSNAIL
from normalcy.nets.quantise import Quantised, Quantiser
from normalcy.nets.restore import LikelyCodes, Restored, limit_of, restore
from normalcy.nets.scaling import Standardise
from normalcy.nets.schedules import LATE, late_drop

Map = Literal["restored", "input", "residual", "likelihood", "surprise", "fused", "mixed"]
Score = Literal["auto", Map]
MAPS: tuple[Map, ...] = get_args(Map)
_PRESETS: dict[str, Mapping[str, float | str]] = {
    "paper": {
        "codes": 512,
        "halvings": 3,
        "width": 128,
        "residuals": 8,
        "coded": "pixels",
        "prior": "causal",
        "prior_width": 128,
        "prior_blocks": 3,
        "lr": 3e-4,
        "prior_lr": 3e-4,
    },
    "small": {
        "codes": 64,
        "halvings": 2,
        "width": 32,
        "residuals": 2,
        "coded": "pixels",
        "prior": "masked",
        "prior_width": 48,
        "prior_blocks": 2,
        "lr": 1e-3,
        "prior_lr": 1.5e-3,
    },
}
PRESETS: Mapping[str, Mapping[str, float | str]] = {
    **_PRESETS,
    "features": {**_PRESETS["small"], "halvings": 3, "coded": "features"},
}
ETAS = tuple(10.0**k for k in (-6, -5, -4.5, -4, -3.5, -3, -2.75, -2.5, -2.25, -2, -1.75, -1.5, -1.25, -1))
"""Values tried by ``eta="search"``."""
PAPER_ETA = 0.0005 * 512
"""eta of the paper times its number of codes."""
WEIGHT = 2.0
"""Of the surprise beside a residual."""
CHOICE = 48
"""Held-out images at most, by which score="auto" and eta="search" choose."""
AREAS = (0.005, 0.02)
"""Of the synthetic anomalies, as fractions of the image, by which score="auto" chooses."""


@dataclass(frozen=True)
class LSRSettings:
    score: Score = "auto"
    """The map, see the table above; "auto": the one with the best mean pixel AUROC over kinds and sizes of synthetic anomalies in
    held-out normal images."""
    prior: Literal["causal", "masked"] | None = None
    """"causal": PixelSNAIL, as in the paper; "masked": bidirectional; none: "causal", or "masked" with the other presets."""
    eta: float | Literal["quantile", "search"] | None = None
    """Likelihood below which a code is replaced (equation 5), in (0, 1); "quantile": so that the fraction ``quantile`` of
    held-out normal codes is less likely; "search": best pixel AUROC on held-out images with rectangles (section 4.3.3), tried
    with and without ``local``; none: 0.256 divided by the number of codes (the paper's 0.0005 for 512), or "quantile" with the
    masked prior."""
    quantile: float = 0.03
    """Fraction of held-out normal codes less likely than eta, with eta="quantile"."""
    local: bool = True
    """Causal prior: replace a code only if one of its later neighbours is unlikely too (equation 5)."""
    rounds: int = 3
    """Masked prior: passes in which the hidden codes are filled in."""
    reach: int = 1
    """Masked prior: codes within this distance of an unlikely one are replaced with it."""
    coded: Literal["pixels", "features"] | None = None
    """What the codes represent and what residuals compare: "pixels", as in the paper, or "features" of a pretrained network,
    from which a second decoder shows images (2D images of 1 or 3 channels in [0, 1]); none: "pixels", or "features" with
    preset="features"."""
    backbone: str = "efficientnet_lite0"
    """coded="features": timm name, "name:file" or the embedded efficientnet_lite0."""
    layers: tuple[int, ...] = (2, 3)
    """coded="features": layers of the backbone, all resized to the grid of codes."""
    components: int = 64
    """coded="features": principal components of the features that are kept."""
    cache: bool = True
    """coded="features": features of the training images are computed once and kept in memory where images are not augmented."""
    codes: int | None = None
    """K, the number of codes in the codebook; none: 512, or 64 with the other presets."""
    dimension: int = 32
    """D, the dimension of a code vector."""
    halvings: int | None = None
    """Strided layers of the encoder: the grid of codes has 1 / 2^halvings of the image's sides; none: 3, or 2 with
    preset="small"."""
    beta: float = 0.25
    """Weight of the commitment loss (equation 3)."""
    ema: float | None = None
    """Decay of a codebook of moving averages; none: the codebook learns by gradients, as in the paper."""
    preset: Literal["paper", "small", "features"] = "paper"
    """Defaults of the settings that are none: "paper", "small" for CPUs, or "features": the same with coded="features" and
    halvings=3."""
    width: int | None = None
    """Channels of the VQ-VAE; none: 128, or 32 with the other presets."""
    residuals: int | None = None
    """Residual blocks of the encoder and of the decoder; none: 8, or 2 with the other presets."""
    prior_width: int | None = None
    """Channels of the prior; none: 128, or 48 with the other presets."""
    prior_blocks: int | None = None
    """Blocks of the prior, each with gated residual layers and attention; none: 3, or 2 with the other presets."""
    dropout: float = 0.0
    """Dropout rate in the prior, in [0, 1) (paper: 0.1)."""
    lr: float | None = None
    """Learning rate of the VQ-VAE (Adam); none: 0.0003, or 0.001 with the other presets."""
    prior_lr: float | None = None
    """Learning rate of the prior (Adam); none: 0.0003, or 0.0015 with the other presets, a tenth of it in the last third."""
    filter: bool = True
    """Filter of the maps: "restored" and "input" bilateral, diameter 20 of 256 pixels, standard deviations of 75 of 256 pixels
    and of 75/255 in value; "likelihood" none; the others Gaussian, with a standard deviation of 1/32 of the longer side
    ("residual", and all distances of features: 1/64), the surprise before that with one of one code."""
    reduce: Reduce = "auto"
    """Image score: "mean", "max" or "top" (mean of the largest 1 %) of the map, or this quantile of it, in [0, 1]; "auto": "mean"
    up to 32 pixels a side, else "top". That of "likelihood" is the sum over the codes."""

    def __post_init__(self) -> None:
        numbers = [name for name in PRESETS["paper"] if name not in ("prior", "coded")]
        positive = ("dimension", "beta", "rounds", "components", *numbers)
        require("lsr", self, positive=positive, non_negative=("reach",), fraction=("quantile", "ema"))
        require_that(0 <= self.dropout < 1, "lsr", "dropout", "at least 0 and below 1", self.dropout)
        valid = self.eta is None or isinstance(self.eta, str) or 0 < self.eta < 1
        require_that(valid, "lsr", "eta", '"quantile", "search" or between 0 and 1, both excluded', self.eta)
        check_reduce("lsr", self.reduce)

    def number(self, name: str) -> Any:
        """A setting's value, or the preset's where it is none."""
        value = getattr(self, name)
        return PRESETS[self.preset][name] if value is None else value

    @property
    def eta_rule(self) -> float | str:
        """eta, or how it is chosen."""
        if self.eta is not None:
            return self.eta
        return "quantile" if self.number("prior") == "masked" else min(0.5, PAPER_ETA / self.number("codes"))


class LSR(Method):
    name = "lsr"
    Settings = LSRSettings
    family = "restoration"
    reference = (
        "L. Wang, D. Zhang, J. Guo, Y. Han. Image anomaly detection using normal data only by latent space "
        "resampling. Applied Sciences 10(23):8660, 2020. doi:10.3390/app10238660\n"
        "Prior: X. Chen, N. Mishra, M. Rohaninejad, P. Abbeel. PixelSNAIL: an improved autoregressive generative "
        "model. ICML, 2018. arXiv:1712.09763\n"
        "Masked prior: H. Chang, H. Zhang, L. Jiang, C. Liu, W. T. Freeman. MaskGIT: masked generative image transformer. "
        "CVPR, 2022. arXiv:2202.04200"
    )
    scores = get_args(Score)
    not_exportable: ClassVar = dict.fromkeys(
        get_args(Score), "it resamples codes until they are likely; take vae with score=elbo, or spatial_uae."
    )
    settings: LSRSettings
    eta: Tensor
    local: Tensor
    code_error: Tensor
    spread: Tensor
    chosen: Tensor
    tried: Tensor
    map_aurocs: Tensor

    def __init__(self, settings: LSRSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        s, channels, codes = settings, self.shape[0], settings.number("codes")
        self.grid = vqvae.code_grid(self.name, self.shape[1:], s.number("halvings"))
        parts = (2, channels, s.number("width"), s.number("halvings"), s.number("residuals"), s.dimension)
        self.standardise = Standardise(self.shape)
        self.features: PatchFeatures | None = None
        self.painter: nn.Module | None = None
        if s.number("coded") == "features":
            self.features = PatchFeatures(s.backbone, s.layers, channels, self.grid, s.components)
            of_features = (2, self.features.dimension, 2 * s.number("width"), s.number("residuals"), s.dimension)
            self.encoder: nn.Module = vqvae.grid_encoder(*of_features)
            self.quantiser = Quantiser(codes, s.dimension, s.ema)
            self.decoder: nn.Module = vqvae.grid_decoder(*of_features)
            self.painter = vqvae.decoder(*parts)
        else:
            self.encoder = vqvae.encoder(*parts, normalise=True)
            self.quantiser = Quantiser(codes, s.dimension, s.ema)
            self.decoder = vqvae.decoder(*parts)
        network = MaskedPrior if s.number("prior") == "masked" else PixelSNAIL
        width, blocks = s.number("prior_width"), s.number("prior_blocks")
        self.prior: MaskedPrior | PixelSNAIL = network(self.grid, codes, width, blocks, dropout=s.dropout)
        rule = s.eta_rule
        self.register_buffer("eta", torch.tensor(PAPER_ETA / 512 if isinstance(rule, str) else rule))
        self.register_buffer("local", torch.tensor(s.local))
        self.register_buffer("code_error", torch.ones(codes))  # mean squared residual of each code
        self.register_buffer(
            "spread", torch.ones(3)
        )  # standard deviations on held-out images: residual, relative, surprise
        self.register_buffer("chosen", torch.tensor(MAPS.index("surprise")))
        self.register_buffer("tried", torch.tensor(0))  # images with synthetic anomalies by which it was chosen
        self.register_buffer("map_aurocs", torch.zeros(len(MAPS)))  # of each map on them, mean over kinds and sizes

    # -- stage 1

    def encode(self, x: Tensor) -> Tensor:
        """z_e: (B, C, H, W) -> (B, D, *grid)"""
        return self.encode_compared(self.compared(x))

    def encode_compared(self, compared: Tensor) -> Tensor:
        """z_e of what :meth:`compared` returns."""
        z: Tensor = self.encoder(self.standardise(compared) if self.features is None else compared)
        return z.float()

    def decode(self, codes: Tensor) -> Tensor:
        """(B, *grid) -> (B, C, H, W)"""
        shown: Tensor = (self.painter or self.decoder)(self.quantiser.look_up(codes))
        return self.standardise.inverse(shown.float())

    def compared(self, x: Tensor) -> Tensor:
        """What residuals compare: images (B, C, H, W), or their features (B, components, *grid)."""
        return x if self.features is None else self.features(x)

    def compared_codes(self, codes: Tensor) -> Tensor:
        """The same, decoded from codes (B, *grid)."""
        if self.features is None:
            return self.decode(codes)
        decoded: Tensor = self.decoder(self.quantiser.look_up(codes)).float()
        return decoded

    def begin(self, batches: Batches) -> None:
        """Measure the standardisation and initialise the codebook from the first 16 batches."""
        self.standardise.measure(batches)
        if self.features is not None:
            self.features.learn(batches)
        self.quantiser.seed(self.encode(x) for x, _ in zip(batches, range(16)))

    def reconstruction(self, x: Tensor) -> Mapping[str, Tensor]:
        """Equation 3, on standardised images; of features, and of the images that are shown, which do not change the codes."""
        if self.features is None:
            quantised: Quantised = self.quantiser(self.encode(x))
            restored = self.decoder(quantised.vectors).float()
            return quantised.losses((self.standardise(x) - restored).square().mean(), self.settings.beta)
        image, features = self._unpack(x)
        quantised = self.quantiser(self.encode_compared(features))
        error = (features - self.decoder(quantised.vectors).float()).square().mean()
        assert self.painter is not None
        shown = self.painter(quantised.vectors.detach()).float()
        losses = quantised.losses(error, self.settings.beta)
        picture = (self.standardise(image) - shown).square().mean()
        return {**losses, "loss": losses["loss"] + picture, "picture": picture}

    def _with_features(self, x: Tensor) -> Tensor:
        """Images and their features as rows (B, n), to be computed once."""
        assert self.features is not None
        return joined(x, self.features(x))

    def _unpack(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images and features of a batch, of images or of such rows."""
        assert self.features is not None
        if x.ndim == 4:
            return x, self.features(x)
        image, features = parted(x, self.shape)
        return image, features.reshape(-1, self.features.dimension, *self.grid)

    # -- stage 2

    def to_codes(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> codes (B, *grid), int64"""
        return self.quantiser.nearest(self.encode(x))

    def prior_likelihood(self, codes: Tensor) -> Mapping[str, Tensor]:
        """Negative log-likelihood of codes (B, *grid), nats per code: of random hidden ones while a masked prior trains."""
        if isinstance(self.prior, MaskedPrior) and self.prior.training:
            hidden = masked.draw_hidden(len(codes), self.grid, codes.device)
            nats = masked.masked_nats(self.prior(codes, hidden), codes, hidden)
        else:
            nats = self.likelihoods(codes)[0].mean()
        return {"loss": nats, "bits_per_code": nats.detach() / math.log(2)}

    def choose(self, batches: Batches) -> None:
        """Set eta, the units of the maps and the default map from held-out normal images."""
        if self.settings.eta_rule == "quantile":
            nll = torch.cat([self._nll(self.to_codes(x)).flatten() for x in batches])
            self.eta.copy_((-limit_of(nll, self.settings.quantile)).exp())
        elif self.settings.eta_rule == "search":
            self._search_eta(torch.cat(list(batches))[:CHOICE])
        self._measure(batches)
        score = self.settings.score
        first = torch.cat([x for x, _ in zip(batches, range(CHOICE))])[:CHOICE]
        self.chosen.fill_(self._best_map(first) if score == "auto" else MAPS.index(score))

    def _measure(self, batches: Batches) -> None:
        """The mean squared residual of each code, and the standard deviations of the maps that are added."""
        total, count = torch.zeros_like(self.code_error), torch.zeros_like(self.code_error)
        for x in batches:
            compared = self.compared(x)
            codes = self.quantiser.nearest(self.encode_compared(compared))
            error = (compared - self.compared_codes(codes)).square().sum(1, keepdim=True)
            error = F.adaptive_avg_pool2d(error, (self.grid[0], self.grid[1]))
            total.index_add_(0, codes.flatten(), error.flatten())
            count.index_add_(0, codes.flatten(), torch.ones_like(error.flatten()))
        mean = total.sum() / count.sum()
        usual = (total + mean) / (count + 1)  # rare codes lean on the mean of all
        self.code_error.copy_(usual.clamp(min=1e-3 * float(mean) + 1e-12))
        self.spread.fill_(1)
        parts = [[maps.residual, maps.relative, maps.surprise] for maps in (_Maps(self, x) for x in batches)]
        for k in range(len(self.spread)):
            self.spread[k] = torch.cat([part[k].flatten() for part in parts]).std().clamp(min=1e-6)

    def _best_map(self, x: Tensor) -> int:
        """Place in MAPS of the map with the best pixel AUROC, mean over kinds and sizes of synthetic anomalies in ``x``."""
        low, high = float(x.min()), float(x.max())
        images = ((x - low) / max(high - low, 1e-6)).cpu().numpy()
        totals, sets, tried = torch.zeros(len(MAPS)), 0, 0
        for k, area in enumerate(AREAS):
            for kind in SYNTHETIC:
                try:
                    made, marked, _ = make_set(images, [kind], np.random.default_rng(k), area=area)
                except DataError:  # constant images, which some kinds cannot change
                    continue
                changed = torch.from_numpy(made).to(x) * (high - low) + low
                maps = [_Maps(self, part) for part in torch.split(changed, 8)]
                anomalous = torch.from_numpy(marked).flatten()
                sets, tried = sets + 1, tried + len(made)
                for place, name in enumerate(MAPS):
                    values = torch.cat([part.of(name) for part in maps]).cpu().flatten()
                    totals[place] += _auroc(values, anomalous)
        self.tried.fill_(tried)
        self.map_aurocs.copy_(totals / max(sets, 1))
        return int(totals.argmax())

    def _search_eta(self, x: Tensor) -> None:
        """Section 4.3.3: the eta with the best pixel AUROC on images with a rectangle of 1 % of the area, black or grey; with the
        causal prior, for both values of ``local``."""
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
        best = -1.0
        for local in (True, False) if isinstance(self.prior, PixelSNAIL) else (self.settings.local,):
            for eta in ETAS:
                restored = self.restore(codes, eta, local).codes
                map = self._distance(self.compared_codes(restored), self.compared_codes(codes))
                auroc = _auroc(map.cpu().flatten(), mask.flatten())
                if auroc > best:
                    best = auroc
                    self.eta.fill_(eta)
                    self.local.fill_(local)

    def notes(self) -> Sequence[str]:
        lines = []
        if self.settings.score == "auto":
            why = ""
            if int(self.tried):  # models of earlier versions lack it
                aurocs = ", ".join(f"`{name}` {auroc:.3f}" for name, auroc in zip(MAPS, self.map_aurocs.tolist()))
                why = (
                    f", the best of {len(MAPS)} on {int(self.tried)} images with synthetic anomalies, made from held-out normal "
                    f"images; pixel AUROC: {aurocs}"
                )
            lines.append(f"default map: `{self._map()}`{why}")
        rule = self.settings.eta_rule
        if rule == "quantile":
            lines.append(
                f"eta: {float(self.eta):.3g}, likelihood quantile {self.settings.quantile:g} of held-out normal codes"
            )
        elif rule == "search":
            also = f", `local` {bool(self.local)}".lower() if isinstance(self.prior, PixelSNAIL) else ""
            lines.append(f"eta: {float(self.eta):.3g}{also}, the best on held-out normal images with rectangles")
        return lines

    def stages(self) -> Sequence[Stage]:
        s, small = self.settings, self.settings.preset != "paper"
        parts = [part for part in (self.encoder, self.quantiser, self.decoder, self.painter) if part is not None]
        autoencoder = list(nn.ModuleList(parts).parameters())
        return [
            Stage(
                "vqvae",
                [Objective(self.reconstruction, autoencoder, lr=s.number("lr"))],
                epochs=200 if small else None,
                steps=None if small else 3_900,
                batch_size=32 if small else 256,
                prepare=self.begin,
                derive=self._with_features if self.features is not None and s.cache else None,
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
                epochs=100 if small else None,
                steps=None if small else 23_400,
                batch_size=32 if small else 64,
                derive=self.to_codes,
                early_stop=EarlyStop(
                    self.prior_likelihood, every=3 if small else 100, patience=5, after=LATE if small else 0.0
                ),
                finalise=self.choose,
            ),
        ]

    # -- testing

    def likelihoods(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of codes (B, *grid) and entropy of their distributions, in nats: given the earlier codes, or
        with the masked prior given those around."""
        if isinstance(self.prior, MaskedPrior):
            return masked.likelihoods(self.prior, codes)
        return masked.pseudo_likelihood(self.prior(codes), codes)

    def restore(
        self, codes: Tensor, eta: float | None = None, local: bool | None = None, nll: Tensor | None = None
    ) -> Restored:
        """Equation 5 over codes (B, *grid), or the refilling of the masked prior; ``nll`` of the codes, if it is known."""
        eta = float(self.eta) if eta is None else eta
        if isinstance(self.prior, MaskedPrior):
            nll = self._nll(codes) if nll is None else nll
            s = self.settings
            return masked.refill(self.prior, codes, nll, -math.log(eta), rounds=s.rounds, reach=s.reach)
        rule = LikelyCodes(eta, self.grid, bool(self.local) if local is None else local)
        return restore(Memory(self.prior, ahead=rule.ahead), codes, rule)

    def _nll(self, codes: Tensor) -> Tensor:
        """Negative log-likelihood of each code, in nats, (B, *grid)."""
        return self.likelihoods(codes)[0]

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Equation 6, filtered if the settings say so: two of what residuals compare -> (B, H, W)."""
        map = self._squared(a, b).sqrt()
        if self.features is not None:
            return self._smooth(map, 1 / 64)
        side = max(self.shape[1:]) / 256
        return bilateral(map, max(1, round(10 * side)), 75.0 * side, 75 / 255) if self.settings.filter else map

    def _squared(self, a: Tensor, b: Tensor) -> Tensor:
        """Squared distance of what residuals compare, at each pixel: (B, H, W)."""
        squared = (a - b).square().sum(1)
        return squared if self.features is None else self._to_pixels(squared, "bilinear")

    def _smooth(self, map: Tensor, fraction: float) -> Tensor:
        """A Gaussian with this fraction of the longer side as standard deviation, if the settings say so."""
        return gaussian_smooth(map, fraction * max(self.shape[1:])) if self.settings.filter else map

    @property
    def reduction(self) -> Reduce | None:
        return None if self._map() == "likelihood" else self.settings.reduce

    def _map(self) -> Map:
        """The name of the map that scores."""
        return MAPS[int(self.chosen)] if self.settings.score == "auto" else self.settings.score

    def _score(self, x: Tensor) -> Scores:
        maps, name = _Maps(self, x), self._map()
        map = maps.of(name)
        extra_maps: dict[str, Any] = {
            "reconstruction": maps.reconstruction,
            "code_nll": self._to_pixels(maps.likelihoods[0]),
            "surprise": maps.surprise,
            "changed_codes": self._to_pixels(maps.resampled.changed.float()),
        }
        image = maps.likelihoods[0].flatten(1).sum(1) if name == "likelihood" else reduce_map(map, self.settings.reduce)
        return Scores(image=image, map=map, restored=maps.restored, extra_maps=extra_maps)

    def _to_pixels(self, values: Tensor, mode: str = "nearest") -> Tensor:
        """(B, *grid) -> (B, H, W)"""
        return F.interpolate(values[:, None], size=self.shape[1:], mode=mode)[:, 0]


class _Maps:
    """What an LSR finds in images ``x`` (B, C, H, W), each part computed once, when it is asked for; maps are (B, H, W)."""

    def __init__(self, method: LSR, x: Tensor) -> None:
        self.method, self.x = method, x

    def of(self, name: Map) -> Tensor:
        m = self.method
        choices: Mapping[Map, Callable[[], Tensor]] = {
            "restored": lambda: m._distance(m.compared_codes(self.resampled.codes), self.decoded),
            "input": lambda: m._distance(m.compared_codes(self.resampled.codes), self.compared),
            "residual": lambda: self.residual,
            "likelihood": lambda: m._to_pixels(self.likelihoods[0]),
            "surprise": lambda: self.surprise,
            "fused": lambda: self.relative / m.spread[1] + WEIGHT * self.surprise / m.spread[2],
            "mixed": lambda: self.residual / m.spread[0] + WEIGHT * self.surprise / m.spread[2],
        }
        return choices[name]()

    @cached_property
    def codes(self) -> Tensor:
        return self.method.quantiser.nearest(self.method.encode_compared(self.compared))

    @cached_property
    def reconstruction(self) -> Tensor:
        return self.method.decode(self.codes)

    @cached_property
    def compared(self) -> Tensor:
        return self.method.compared(self.x)

    @cached_property
    def decoded(self) -> Tensor:
        return self.reconstruction if self.method.features is None else self.method.compared_codes(self.codes)

    @cached_property
    def squared(self) -> Tensor:
        return self.method._squared(self.compared, self.decoded)

    @cached_property
    def likelihoods(self) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood and entropy of the codes, in nats, (B, *grid)."""
        return self.method.likelihoods(self.codes)

    @cached_property
    def resampled(self) -> Restored:
        return self.method.restore(self.codes, nll=self.likelihoods[0])

    @cached_property
    def restored(self) -> Tensor:
        return self.method.decode(self.resampled.codes)

    @cached_property
    def residual(self) -> Tensor:
        return self.method._smooth(self.squared.sqrt(), 1 / 64)

    @cached_property
    def relative(self) -> Tensor:
        """Squared residual in units of the mean of its code."""
        usual = self.method._to_pixels(self.method.code_error[self.codes])
        return self.method._smooth(self.squared / usual, 1 / 32)

    @cached_property
    def surprise(self) -> Tensor:
        nll, expected = self.likelihoods
        values = nll - expected
        if self.method.settings.filter:
            values = gaussian_smooth(values, 1.0)
        return self.method._smooth(self.method._to_pixels(values, "bilinear"), 1 / 32)


def _auroc(scores: Tensor, anomalous: Tensor) -> float:
    """Fraction of the pairs (anomalous, normal) in the right order, ties half. Methods do not import normalcy.metrics."""
    _, place, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    rank = (counts.cumsum(0).double() - 0.5 * (counts.double() - 1))[place]
    n = int(anomalous.sum())
    return float((rank[anomalous].sum() - n * (n + 1) / 2) / (n * (len(scores) - n)))
