"""DPA, deep perceptual autoencoder: autoencoder trained and scored with a perceptual (deep-feature) loss.

The loss is the relative perceptual L1: the L1 distance between features of image and output, divided by the L1 norm of the
image's features. For larger images, network, image and loss grow progressively from 8 pixels on (Shvetsova et al. 2021,
equations 1 to 3). The output is a "content tensor", not an image, unless ``l1`` adds a pixel loss; it is returned as
``restored`` in any case.

| | paper | authors' code | normalcy |
| --- | --- | --- | --- |
| features | VGG19, ReLU r12, r22, r32 or r42 | CIFAR-10: r32 or r42, by class | linear bottlenecks of EfficientNet-Lite0 |
| feature statistics | ImageNet | ImageNet | ``statistics``: 26 natural images of about the full size, at all levels |
| initial weights | | He et al. | ``start``: each residual block starts as its shortcut |
| size of the autoencoder | that of the image | the same | ``shrink``: half of it |
| value range | [-1, 1] by the range of the images | the same | [-1, 1] by the range of the training images |
| blocks | "pre-activation residual blocks" | resampling inside the block | as the authors' code |
| channels of a level | | listed by configuration | ``width``, doubled with each halving, at most ``latent`` |
| side of the images | 32, 64 | 4 times a power of two | any that halves to 4 to 7 pixels |
| growing starts | | one halving above the bottleneck | the same |
| steps of a stage, growing | | 20,000; last one 3,500 to 10,000 | 20,000; last one 10,000 |
| steps, not growing | | CIFAR-10 3,666 to 8,000; table 2 16,000 to 34,666 | 5,000 |
| early stopping | on held-out images | final trainings have a fixed length, searched | on held-out images: ``early_stop`` |
| score with an L1 term | includes it (ablations) | | excludes it, unless ``perceptual=0`` |
| adversarial term (table 4) | | critic: an encoder | full resolution only, critic of ``f_anogan`` |
| map | not evaluated | mean error over the layer's channels | as the authors' code |

VGG19 features are for 8, 16, 32 and 64 pixels: r12, r22, r32, and r32 or r42. EfficientNet-Lite0 installs offline and halves
the image where VGG19 does not: its layers 0, 1, 2 have the grids of r22, r32, r42, but are linear and of 16, 24, 40 channels in
place of rectified ones of 128, 256, 512. For the authors' final trainings: ``shrink=1``, ``start="authors"``, ``top=1``,
``early_stop=False`` with a length, ``backbone="vgg19"`` (or "vgg19:file"), ``layers=(1, 3, 5)`` (with r42 at 64 pixels ``(1, 3,
5, 9)``), ``statistics`` a file of ImageNet's; their settings of each data set are in the tables ``dpa/table-2`` to
``dpa/table-5``. ``backbone="self"`` trains a network on the training images by SimCLR.

The statistics of natural images are, for EfficientNet-Lite0, from a file for images of about the same size
(``recipes/natural_statistics.py``); other backbones measure six photographs. A network that grows compares smaller images at
its first levels with the statistics of the full size. ``recipes/dpa_defaults.py`` compares the defaults of ``statistics``,
``start``, ``shrink`` and ``anneal`` with their alternatives on training images of five sets (one seed, short trainings): the
statistics of natural images are better on all of them; ``start="zero"`` is better on chest X-rays and equal elsewhere; half the
size takes 0.6 of the time, and full size ranks better on three sets and worse on two. Which channels and layer suit a class
differs: ``recipes/dpa_classes.py``.

The authors' bottleneck has 8 channels for five classes of CIFAR-10, 256 for cats. A tenth of the normal images is held out for
``early_stop``. The image score of equation 1 is a mean over the image, in which small defects have little weight. Above 32 pixels
the default is the mean over the highest 0.3 of the errors (``top``), which ranks synthetic anomalies of 0.2 to 20 % of magnetic
tiles, chest X-rays and brain slices better (``recipes/dpa_everyday.py``); ``smoothing`` of the map brings nothing there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy import config
from normalcy.errors import DataError
from normalcy.method import Batches, EarlyStop, Method, Objective, Scores, Stage
from normalcy.nets.contrastive import SelfTaught
from normalcy.nets.filters import gaussian_smooth, mean_of_highest
from normalcy.nets.gan import Encoder, wasserstein_loss
from normalcy.nets.perceptual import PerceptualFeatures, joined, parted, relative_error, relative_l1
from normalcy.nets.scaling import Range
from normalcy.nets.statistics import Mapped

SMALL, TOP = 32, 0.3
"""Side in pixels up to which the image score is the mean of all errors, and the fraction of them for larger images."""


@dataclass(frozen=True)
class DPASettings:
    latent: int = 16
    """Channels of the bottleneck; no level has more (the authors: 8 to 256, for a spatial one 4)."""
    bottleneck: Literal["vector", "spatial"] = "vector"
    """"vector": one pixel (the paper: 1x1); "spatial": ``grid`` pixels a side (the paper: for example 4 channels of 8x8)."""
    grid: int = 8
    """Least side of a spatial bottleneck: the image halves to ``grid`` to 2 ``grid`` - 1 pixels."""
    width: int = 32
    """Channels next to the image, doubled with each halving, but never more than ``latent``."""
    blocks: int = 2
    """Residual blocks of each resolution (the authors' "18": 2, their "9": 1)."""
    backbone: str = "efficientnet_lite0"
    """Feature network: timm name, "name:file", the embedded efficientnet_lite0, or "self": SimCLR on the training images."""
    layers: tuple[int, ...] = (0, 1, 2)
    """Feature layers for 8, 16, 32 ... pixels; larger images use the last."""
    magnify: int | None = 1
    """Factor by which images are enlarged for the backbone; none: as its first layer reduces them."""
    statistics: str = "natural"
    """Mean and standard deviation of the features (equation 2): "natural" (of natural images), "training" (of the training
    images) or an .npz file with the arrays <layer>_mean and <layer>_std."""
    start: Literal["authors", "zero"] = "zero"
    """Initial weights: "authors" (He et al. in all layers); "zero": the same, but each residual block starts as its shortcut."""
    shrink: int | None = None
    """Factor by which images are reduced for the autoencoder, whose output is enlarged again: loss and score keep the full
    size; none: 2."""
    grow: bool | None = None
    """Progressive growing; none: for images above 32 pixels."""
    stage_steps: int = 20_000
    """Growing: steps of each stage but the last, before ``steps`` or ``epochs`` shorten or lengthen all."""
    last_steps: int | None = None
    """Steps of the last or only stage, before the same; none: 10,000 when growing, else 5,000."""
    early_stop: bool = True
    """The last stage ends where the loss on held-out normal images, evaluated every 1,000 steps, does not fall any more (the
    paper); false: never (the final trainings of the authors, whose length they searched)."""
    perceptual: float = 1.0
    """Weight of the relative perceptual L1; 0 removes it from loss and score."""
    l1: float = 0.0
    """Weight of the mean absolute error of pixels, of images in [-1, 1]; part of the score only with ``perceptual=0``."""
    adversarial: float = 0.0
    """Weight of a WGAN-GP term on the output (table 4)."""
    critic_steps: int = 2
    """Updates of the critic for each update of the autoencoder."""
    lr: float | None = None
    """Learning rate (Adam); none: 1e-3 when growing or with a spatial bottleneck, else 2.56 / (latent x side), at most 1e-2 (the
    authors, for 32 pixels: 1e-2, 5e-3, 2e-3, 1e-3, 2e-4 with 8, 16, 32, 64, 256 channels; for 64 pixels and 16 channels 2e-3)."""
    anneal: bool = False
    """The learning rate of the last stage falls linearly to 0; false: it is constant, as the authors'."""
    cache: bool = True
    """Features of the images are computed once and kept in memory where the resolution is fixed and images are not
    augmented."""
    top: float | None = None
    """Image score: mean over this fraction of the highest values of the error over the feature grid; 0: the highest alone; 1:
    all, equation 1; none: 1 up to 32 pixels a side, else 0.3."""
    smoothing: float = 0.0
    """Standard deviation of the Gaussian that smooths the map, in pixels."""
    bf16: bool = True
    """The backbone computes in bfloat16 where the training does. Scores are computed in 32 bits."""

    def __post_init__(self) -> None:
        config.require(
            "dpa",
            self,
            positive=(
                "latent",
                "grid",
                "width",
                "blocks",
                "shrink",
                "magnify",
                "stage_steps",
                "last_steps",
                "critic_steps",
                "lr",
            ),
            unit=("top",),
            non_negative=("perceptual", "l1", "adversarial", "smoothing"),
        )
        config.require_that(
            self.perceptual + self.l1 > 0, "dpa", "perceptual", "greater than 0 where l1 is 0", self.perceptual
        )
        config.require_that(bool(self.layers), "dpa", "layers", "a list of at least one layer", self.layers)


class Residual(nn.Module):
    """Pre-activation residual block without norm, after ``resample``: (B, before, h, w) -> (B, after, h', w')."""

    def __init__(self, before: int, after: int, resample: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.resample = resample
        self.first = nn.Conv2d(before, after, 3, padding=1)
        self.second = nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(x, 0.2)
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        y: Tensor = self.shortcut(x) + self.second(F.leaky_relu(self.first(h), 0.2))
        return y


class GrowingAutoencoder(nn.Module):
    """g of the paper: images (B, C, H / 2^level, W / 2^level) in [-1, 1] -> reconstructions, unbounded, float32.

    ``level`` 0 is the full resolution. With ``alpha`` below 1 the layers of this level are blended with those of the
    next coarser one. ``code`` is (B, latent, h, w). Inside, images are ``shrink`` times smaller.
    """

    def __init__(self, shape: Sequence[int], s: DPASettings) -> None:
        super().__init__()
        channels, *sides = shape
        spatial, smallest = s.bottleneck == "spatial", s.grid if s.bottleneck == "spatial" else 4
        halves = all(n % 2 == 0 and n // 2 >= smallest for n in sides)
        self.shrink = s.shrink or (2 if halves else 1)
        if divisible := all(n % self.shrink == 0 for n in sides):
            sides = [n // self.shrink for n in sides]
        self.halvings = 0
        while all(n % 2 == 0 and n // 2 >= smallest for n in sides):
            sides, self.halvings = [n // 2 for n in sides], self.halvings + 1
        if not divisible or not all(smallest <= n < 2 * smallest for n in (min(sides), max(sides))):
            raise DataError(
                f"dpa expects sides that, divided by {self.shrink}, halve to {smallest} to {2 * smallest - 1} pixels, such as "
                f"32, 48, 64 or 256, got {tuple(shape[1:])}: use resize or pad_to."
            )
        latent, blocks = s.latent, s.blocks
        widths = [min(latent, s.width * 2**i) for i in range(self.halvings + 1)]
        self.from_image = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, w, 3, padding=1), *(Residual(w, w) for _ in range(blocks)))
            for w in widths
        )
        self.to_image = nn.ModuleList(
            nn.Sequential(nn.LeakyReLU(0.2), nn.Conv2d(w, channels, 3, padding=1)) for w in widths
        )
        self.down = nn.ModuleList(_residuals(a, b, blocks, downsample) for a, b in itertools.pairwise(widths))
        self.up = nn.ModuleList(_residuals(b, a, blocks, upsample) for a, b in itertools.pairwise(widths))
        last, grid = widths[-1], (sides[0], sides[1])
        self.narrow: nn.Module = Residual(last, latent)
        self.widen: nn.Module = Residual(latent, last)
        if not spatial:
            self.narrow = nn.Sequential(nn.LeakyReLU(0.2), nn.Conv2d(last, latent, grid))
            self.widen = nn.Sequential(nn.LeakyReLU(0.2), nn.ConvTranspose2d(latent, last, grid))
        for part in self.modules():
            if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(part.weight, a=0.2, mode="fan_out")
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
        if s.start == "zero":  # else the output of many blocks without norm is 2 to 70 times as large as images
            for part in self.modules():
                if isinstance(part, Residual):
                    nn.init.zeros_(part.second.weight)

    def encode(self, x: Tensor, level: int = 0, alpha: float = 1.0) -> Tensor:
        x = F.avg_pool2d(x, self.shrink) if self.shrink > 1 else x
        h = self.from_image[level](x)
        for k in range(level, self.halvings):
            h = self.down[k](h)
            if k == level and alpha < 1:
                h = torch.lerp(self.from_image[k + 1](downsample(x)), h, alpha)
        code: Tensor = self.narrow(h)
        return code

    def decode(self, code: Tensor, level: int = 0, alpha: float = 1.0) -> Tensor:
        h = self.widen(code)
        for k in reversed(range(level, self.halvings)):
            coarse, h = h, self.up[k](h)
        image = self._enlarged(self.to_image[level](h))
        if alpha < 1:
            image = torch.lerp(upsample(self._enlarged(self.to_image[level + 1](coarse))), image, alpha)
        return image

    def _enlarged(self, image: Tensor) -> Tensor:
        image = image.float()
        return F.interpolate(image, scale_factor=float(self.shrink), mode="bilinear") if self.shrink > 1 else image

    def forward(self, x: Tensor, level: int = 0, alpha: float = 1.0) -> Tensor:
        return self.decode(self.encode(x, level, alpha), level, alpha)


def _residuals(before: int, after: int, count: int, resample: Callable[[Tensor], Tensor]) -> nn.Sequential:
    return nn.Sequential(Residual(before, after, resample), *(Residual(after, after) for _ in range(count - 1)))


def _to_zero(fraction: float) -> float:
    return 1 - fraction


def downsample(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class DPA(Method):
    name = "dpa"
    Settings = DPASettings
    family = "reconstruction"
    reference = (
        "N. Shvetsova, B. Bakker, I. Fedulova, H. Schulz, D. V. Dylov. Anomaly detection in medical imaging with deep "
        "perceptual autoencoders. IEEE Access 9, 2021. arXiv:2006.13265."
    )
    search: ClassVar = {
        "latent": (4, 8, 16, 32, 64, 128, 256),
        "bottleneck": ("vector", "spatial"),
        "layers": ((0,), (0, 1), (0, 1, 2), (0, 1, 3)),  # another layer each at full resolution, from 32 pixels on
        "statistics": ("natural", "training"),
        "preprocess": ((), ("histogram_equalisation",)),
    }
    length_setting: ClassVar = "last_steps"
    settings: DPASettings

    def __init__(self, settings: DPASettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        s = settings
        self.range = Range()
        self.autoencoder = GrowingAutoencoder(self.shape, s)
        grow = max(self.shape[1:]) > 32 if s.grow is None else s.grow
        # Growing starts one halving above the bottleneck.
        self.levels = list(reversed(range(max(1, self.autoencoder.halvings)))) if grow else [0]
        used = map(self.layer, self.levels)
        self.perceptual = PerceptualFeatures(s.backbone, used, self.shape[0], s.magnify, s.bf16)
        self.critic = Encoder(self.shape, 1, s.width, norm="group") if s.adversarial else None
        self.alpha = 1.0

    def layer(self, level: int) -> int:
        """The feature layer for images of a level."""
        layers = self.settings.layers
        nearest = round(math.log2((min(self.shape[1:]) >> level) / 8))
        return layers[min(max(nearest, 0), len(layers) - 1)]

    # -- features and losses

    def features(self, y: Tensor, level: int = 0) -> Tensor:
        """f^ of equation 2, of images (B, C, h, w) in [-1, 1]: (B, width, h', w')."""
        features: Tensor = self.perceptual(y, self.layer(level))
        return features

    def measure(self, batches: Batches) -> None:
        """Range of the images; mean and standard deviation of each feature channel, unless a file gives them."""
        self.range.measure(batches)
        self.perceptual.measure(Mapped(batches, self.range), self.settings.statistics)

    def restore(self, y: Tensor, level: int = 0, alpha: float = 1.0) -> Tensor:
        restored: Tensor = self.autoencoder(y, level, alpha)
        return restored

    def reconstruction(self, y: Tensor, level: int, target: Tensor | None = None) -> Mapping[str, Tensor]:
        """Loss of images (B, C, h, w) in [-1, 1] at a fixed resolution; ``target``: their features, where known."""
        restored = self.restore(y, level)
        terms = self.compare(y, restored, level, target)
        loss = terms["loss"]
        if self.critic is not None and level == 0 and self.training:  # early stopping excludes the critic
            terms["adversarial"] = -self.critic(restored).mean()
            loss = loss + self.settings.adversarial * terms["adversarial"]
        return {**terms, "loss": loss}

    def compare(self, y: Tensor, restored: Tensor, level: int, target: Tensor | None = None) -> dict[str, Tensor]:
        """The terms of a pair of images (B, C, h, w) in [-1, 1]."""
        s = self.settings
        terms, loss = {}, torch.zeros((), device=y.device)
        if s.perceptual:
            features = self.features(restored, level)
            wanted = self.features(y, level).detach() if target is None else target.view_as(features)
            terms["perceptual"] = relative_l1(wanted, features).mean()
            loss = loss + s.perceptual * terms["perceptual"]
        if s.l1:
            terms["l1"] = (y - restored).abs().mean()
            loss = loss + s.l1 * terms["l1"]
        return {"loss": loss, **terms}

    def fading(self, y: Tensor, level: int, alpha: float) -> Mapping[str, Tensor]:
        """Equation 3, on images (B, C, h, w) in [-1, 1] between two resolutions."""
        y = torch.lerp(upsample(downsample(y)), y, alpha)
        restored = self.restore(y, level, alpha)
        fine = self.compare(y, restored, level)
        coarse = self.compare(downsample(y), downsample(restored), level + 1)
        return {name: alpha * fine[name] + (1 - alpha) * coarse[name] for name in fine}

    def at_level(self, x: Tensor, level: int) -> Tensor:
        """Images (B, C, H, W) as the network sees them at a level."""
        y = self.range(x)
        return F.avg_pool2d(y, 2**level) if level else y

    # -- training

    def stages(self) -> Sequence[Stage]:
        stages = []
        if isinstance(taught := self.perceptual.backbone, SelfTaught):
            simclr = Objective(partial(self._contrast, taught), taught.parameters(), lr=1e-3, name="simclr")
            stages.append(Stage("simclr", [simclr], epochs=100, batch_size=256, prepare=self.range.measure))
        steps = self.settings.stage_steps
        before: int | None = None
        for level in self.levels:
            side = min(self.shape[1:]) >> level
            if before is not None:
                stages.append(self._stage(f"fade {side}", level, steps, fade=True))
            last = self.settings.last_steps or (10_000 if len(self.levels) > 1 else 5_000)
            stages.append(self._stage(f"stabilise {side}", level, steps if level else last, first=before is None))
            before = level
        return stages

    def _contrast(self, taught: SelfTaught, x: Tensor) -> Mapping[str, Tensor]:
        return taught.contrast((self.range(x) + 1) / 2)

    def rate(self) -> float:
        """The default learning rate; as the authors', it falls with the channels, and here also with the side of the image."""
        if len(self.levels) > 1 or self.settings.bottleneck == "spatial":
            return 1e-3
        return min(1e-2, 2.56 / (self.settings.latent * min(self.shape[1:])))

    def _stage(self, name: str, level: int, steps: int, fade: bool = False, first: bool = False) -> Stage:
        """One stage of growing, or the only one, with its own optimiser."""
        s = self.settings
        lr = s.lr or self.rate()
        own = self.autoencoder.parameters()
        if fade:
            objective = Objective(partial(self._fading_loss, level), own, lr=lr, name="fading")
            return Stage(name, [objective], steps=steps, batch_size=128, on_progress=self._fade)
        loss = partial(self._fixed_loss, level)
        anneal = s.anneal and level == 0
        schedule = _to_zero if anneal else None
        objectives = [Objective(loss, own, lr=lr, schedule=schedule, name="reconstruction")]
        if self.critic is not None and level == 0:
            against = Objective(
                partial(self._critic_loss, level),
                self.critic.parameters(),
                lr=lr,
                schedule=schedule,
                betas=(0.0, 0.9),
                repeats=s.critic_steps,
                name="critic",
            )
            objectives.insert(0, against)
        return Stage(
            name,
            objectives,
            steps=steps,
            batch_size=128,
            prepare=self.measure if first else None,
            derive=partial(self._with_features, level) if s.cache and s.perceptual else None,
            early_stop=EarlyStop(loss, every=1000, patience=3, min_delta=0.001, after=0.5 if anneal else 0.0)
            if level == 0 and s.early_stop
            else None,
        )

    def _fade(self, fraction: float) -> None:
        self.alpha = fraction

    def _with_features(self, level: int, x: Tensor) -> Tensor:
        """Images and their features, flattened and concatenated, (B, n)."""
        y = self.at_level(x, level)
        return joined(y, self.features(y, level))

    def _unpack(self, level: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The images at a level and, where the stage computed them in advance, their features."""
        if x.ndim == 4:
            return self.at_level(x, level), None
        return parted(x, (self.shape[0], *(n >> level for n in self.shape[1:])))

    def _fixed_loss(self, level: int, x: Tensor) -> Mapping[str, Tensor]:
        y, target = self._unpack(level, x)
        return self.reconstruction(y, level, target)

    def _fading_loss(self, level: int, x: Tensor) -> Mapping[str, Tensor]:
        return self.fading(self.at_level(x, level), level, self.alpha)

    def _critic_loss(self, level: int, x: Tensor) -> Mapping[str, Tensor]:
        assert self.critic is not None
        y, _ = self._unpack(level, x)
        with torch.no_grad():
            fake = self.restore(y, level)
        return wasserstein_loss(self.critic, y, fake, penalty=10.0)

    # -- scoring

    @property
    def top(self) -> float:
        """Fraction of the errors that the image score is the mean of."""
        if self.settings.top is not None:
            return self.settings.top
        return 1.0 if max(self.shape[1:]) <= SMALL else TOP

    def _score(self, x: Tensor) -> Scores:
        y = self.range(x)
        code = self.autoencoder.encode(y)
        restored = self.autoencoder.decode(code)
        if self.settings.perceptual:
            error = relative_error(self.features(y), self.features(restored))
        else:
            error = (y - restored).abs().mean(1)
        map_ = F.interpolate(error[:, None], size=self.shape[1:], mode="bilinear")[:, 0]
        return Scores(
            image=mean_of_highest(error, self.top),
            map=gaussian_smooth(map_, self.settings.smoothing),
            restored=self.range.inverse(restored),
            latent=code.flatten(1).float(),
        )
