"""PIAD (perceptual image anomaly detection): a GAN with an encoder, scored by the perceptual error of the reconstruction.

Tuluptceva et al. 2019. A generator G maps codes z ~ N(0, I) to images, an encoder E images to codes. One Wasserstein critic with
gradient penalty compares images x with G(z), another codes z with E(x); the relative perceptual L1 between x and G(E(x)) is a
loss and the score. Its weight is set automatically, separately for G and E: every ``balance_steps`` steps the norms of the
gradients of both terms are compared layer by layer, and the median ratio, smoothed, makes them equal.

| | paper and authors' code | normalcy |
|---|---|---|
| perceptual features | VGG19, r42; statistics of ImageNet | layer 2 of EfficientNet-Lite0; see ``dpa`` |
| networks | residual, no norm in G and E | DCGAN type, no norm in G and E; group norm in the critic |
| channels (DPA's repository, 64 pixels) | G and E 32 to 256, critic 32 to 128 | ``width``, doubled with each halving: 64 to 512 |
| length | 100,000 steps of 32 images | the same; ``preset="short"``: 10,000 of 64 |
| weight of the perceptual term | median over layers and the last 200 looks | median over layers |
| images | | scaled to [-1, 1] by the range of the training images |
| map | | perceptual error of each pixel |

``preset="short"`` is for processors without a GPU: fewer channels, batch norm, a smaller code critic and one rate for all
networks. It is another training, which the paper did not evaluate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from normalcy.config import require, require_that
from normalcy.method import Batches, Method, Objective, Scores, Stage
from normalcy.nets.filters import gaussian_smooth
from normalcy.nets.gan import Encoder, Generator, wasserstein_loss
from normalcy.nets.perceptual import PerceptualFeatures, joined, parted, relative_l1, relative_map
from normalcy.nets.scaling import Range
from normalcy.nets.statistics import Mapped

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "latent": 256,
        "width": 64,
        "hidden": 1024,
        "norm": "none",
        "linear": True,
        "drift": 1e-3,
        "lr": 5e-4,
        "lr_generator": 1e-4,
        "betas": (0.5, 0.99),
        "steps": 100_000,
        "batch_size": 32,
    },
    "short": {
        "latent": 64,
        "width": 32,
        "hidden": 128,
        "norm": "batch",
        "linear": False,
        "drift": 0.0,
        "lr": 5e-4,
        "lr_generator": 5e-4,
        "betas": (0.0, 0.9),
        "steps": 10_000,
        "batch_size": 64,
    },
}
"""What a preset stands for: also the norm of generator and encoder, whether the generator ends without tanh, Adam's betas, and
length and batch size unless given."""


@dataclass(frozen=True)
class PIADSettings:
    preset: Literal["paper", "short"] = "paper"
    """What settings of none stand for: "paper", or "short", for processors without a GPU."""
    latent: int | None = None
    """Latent dimension; codes are standard normal. none: 256, or 64 with preset="short"."""
    width: int | None = None
    """Channels of the layer next to the image, in generator, encoder and image critic. none: 64, or 32 with preset="short"."""
    hidden: int | None = None
    """Width of the two hidden layers of the code critic. none: 1024, or 128 with preset="short"."""
    backbone: str = "efficientnet_lite0"
    """Pretrained network: the embedded "efficientnet_lite0", a timm model, or "timm model:weights file" (nets/backbones.py)."""
    layer: int = 2
    """Feature layer of the backbone."""
    magnify: int | None = 1
    """Factor by which images are enlarged for the backbone; none: the reduction of its first layer."""
    statistics: str = "natural"
    """Mean and standard deviation of the features: "natural" (of natural images), "training" (of the training images) or an .npz
    file with the arrays <layer>_mean and <layer>_std."""
    cache: bool = True
    """Features of the images are computed once and kept in memory where images are not augmented."""
    critic_steps: int = 2
    """Updates of the critics for each update of generator and encoder."""
    penalty: float = 10.0
    """lambda, the weight of the gradient penalty."""
    drift: float | None = None
    """Weight of the squared outputs of the critics on real images and codes. none: 0.001, or 0 with preset="short"."""
    balance_steps: int = 100
    """Steps between two updates of the weight of the perceptual term."""
    balance_memory: float = 0.95
    """Smoothing of that weight: fraction of the old value in the new one, in [0, 1)."""
    lr: float | None = None
    """Learning rate (Adam) of the critics. none: 0.0005."""
    lr_generator: float | None = None
    """Learning rate (Adam) of generator and encoder. none: 0.0001 (DPA's authors: 0.0002), or 0.0005 with preset="short"."""
    smoothing: float = 0.0
    """Standard deviation of the Gaussian that smooths the map, in pixels; 0: no smoothing."""

    def __post_init__(self) -> None:
        positive = ("latent", "width", "hidden", "critic_steps", "balance_steps", "lr", "lr_generator")
        require("piad", self, positive=positive, non_negative=("penalty", "drift", "smoothing"))
        valid = 0 <= self.balance_memory < 1
        require_that(valid, "piad", "balance_memory", "at least 0 and below 1", self.balance_memory)

    def value(self, name: str) -> Any:
        """A setting's value, or the preset's where it is none or no setting."""
        given = getattr(self, name, None)
        return PRESETS[self.preset][name] if given is None else given


class PIAD(Method):
    name = "piad"
    Settings = PIADSettings
    family = "adversarial"
    reference = (
        "N. Tuluptceva, B. Bakker, I. Fedulova, A. Konushin. Perceptual image anomaly detection. ACPR, 2019. "
        "arXiv:1909.05904"
    )
    search: ClassVar = {
        "latent": (16, 32, 64, 128, 256),
        "layer": (0, 1, 2, 3),
        "statistics": ("natural", "training"),
        "preprocess": ((), ("histogram_equalisation",)),
    }
    settings: PIADSettings
    weights: Tensor
    looks: Tensor

    def __init__(self, settings: PIADSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        s = settings
        self.latent, width, hidden = (s.value(name) for name in ("latent", "width", "hidden"))
        self.range = Range()
        self.perceptual = PerceptualFeatures(s.backbone, [s.layer], self.shape[0], s.magnify)
        self.generator = Generator(self.shape, self.latent, width, s.value("norm"), s.value("linear"))
        self.encoder = Encoder(self.shape, self.latent, width, s.value("norm"))
        self.image_critic = Encoder(self.shape, 1, width, norm="group")
        self.code_critic = nn.Sequential(
            nn.Linear(self.latent, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, 1),
        )
        self.register_buffer("weights", torch.ones(2))  # weights of the perceptual term, for generator and encoder
        self.register_buffer("looks", torch.zeros((), dtype=torch.long))  # losses computed so far

    def stages(self) -> Sequence[Stage]:
        s = self.settings
        betas = s.value("betas")
        critics = [*chain(self.image_critic.parameters(), self.code_critic.parameters())]
        both = [*chain(self.generator.parameters(), self.encoder.parameters())]
        game = [
            Objective(self.critic_loss, critics, lr=s.value("lr"), betas=betas, repeats=s.critic_steps),
            Objective(self.autoencoder_loss, both, lr=s.value("lr_generator"), betas=betas, weight_decay=1e-8),
        ]
        derive = self._with_features if s.cache else None
        return [
            Stage(
                "game",
                game,
                steps=s.value("steps"),
                batch_size=s.value("batch_size"),
                prepare=self.measure,
                derive=derive,
            )
        ]

    def measure(self, batches: Batches) -> None:
        """Measure the range of the images and set the statistics of the perceptual features."""
        self.range.measure(batches)
        self.perceptual.measure(Mapped(batches, self.range), self.settings.statistics)

    def codes(self, count: int) -> Tensor:
        """Codes (count, latent), standard normal."""
        return torch.randn(count, self.latent, device=self.device)

    def features(self, y: Tensor) -> Tensor:
        """Perceptual features (B, D, h, w) of images in [-1, 1]."""
        features: Tensor = self.perceptual(y, self.settings.layer)
        return features

    def _with_features(self, x: Tensor) -> Tensor:
        return joined(y := self.range(x), self.features(y))

    def _unpack(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images in [-1, 1] and, where the stage computed them in advance, their features, (B, n)."""
        return (self.range(x), None) if x.ndim == 4 else parted(x, self.shape)

    def critic_loss(self, x: Tensor) -> Mapping[str, Tensor]:
        (y, _), z, s = self._unpack(x), self.codes(len(x)), self.settings
        with torch.no_grad():
            image, code = self.generator(z), self.encoder(y)
        of_images = wasserstein_loss(self.image_critic, y, image, s.penalty, s.value("drift"))
        of_codes = wasserstein_loss(self.code_critic, z, code, s.penalty, s.value("drift"))
        return {
            "loss": of_images["loss"] + of_codes["loss"],
            "images": of_images["wasserstein"],
            "codes": of_codes["wasserstein"],
        }

    def autoencoder_loss(self, x: Tensor) -> Mapping[str, Tensor]:
        """The losses of G and of E from one pass through both: adversarial terms, and the perceptual term, whose gradient has a
        weight of its own for each of the two."""
        y, target = self._unpack(x)
        code = self.encoder(y)
        into_generator = code.view_as(code)
        scale = [torch.ones((), device=code.device)]
        if code.requires_grad:
            into_generator.register_hook(lambda gradient: gradient * scale[0])
        content = self.content(y, self.generator(into_generator), target)
        for_generator = -self.image_critic(self.generator(self.codes(len(y)))).mean()
        for_encoder = -self.code_critic(code).mean()
        if content.requires_grad:
            self.balance([(for_generator, self.generator), (for_encoder, self.encoder)], content)
        of_generator, of_encoder = self.weights.clone()
        scale[0] = of_encoder / of_generator
        return {
            "loss": for_generator + for_encoder + of_generator * content,
            "content": content,
            "weight": of_generator,
            "encoder_weight": of_encoder,
        }

    def content(self, y: Tensor, restored: Tensor, target: Tensor | None = None) -> Tensor:
        """Relative perceptual L1 between images in [-1, 1] and their reconstructions, mean over the batch."""
        features = self.features(restored)
        if target is None:
            with torch.no_grad():
                target = self.features(y)
        return relative_l1(target.view_as(features), features).mean()

    def balance(self, players: Sequence[tuple[Tensor, nn.Module]], content: Tensor) -> None:
        """Update, where it is due, the weights of the perceptual term by the adversarial terms of G and E."""
        s = self.settings
        if int(self.looks) % s.balance_steps == 0:
            ratios = [gradient_ratio(adversarial, content, list(net.parameters())) for adversarial, net in players]
            memory = s.balance_memory if self.looks else 0.0
            self.weights.lerp_(torch.stack(ratios).to(self.weights), 1 - memory)
        self.looks += 1

    def _score(self, x: Tensor) -> Scores:
        y = self.range(x)
        code = self.encoder(y)
        restored = self.generator(code)
        target, output = self.features(y), self.features(restored)
        map = gaussian_smooth(relative_map(target, output, self.shape[1:]), self.settings.smoothing)
        return Scores(relative_l1(target, output), map, self.range.inverse(restored), latent=code)


def gradient_ratio(first: Tensor, second: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Median over layers of |d first / d weights| / |d second / d weights|, clamped to [1e-3, 1e3]."""
    layers = [p for p in parameters if p.ndim > 1]
    pairs = zip(
        torch.autograd.grad(first, layers, retain_graph=True, allow_unused=True),
        torch.autograd.grad(second, layers, retain_graph=True, allow_unused=True),
        strict=True,
    )
    ratios = [
        (a.float().norm() + 1e-12) / (b.float().norm() + 1e-12) for a, b in pairs if a is not None and b is not None
    ]
    return torch.stack(ratios).median().clamp(1e-3, 1e3)
