"""Deep SVDD: a network that draws normal images together around a centre; what lies far from it is strange.

Ruff et al. 2018, with the lengths and rates of section 4.1 of DDR-ID (Lin et al. 2020), whose baseline it is: an
autoencoder is trained first, its encoder gives the centre (the mean code, coordinates near 0 moved out to +-0.1, so that a
network of zeros is no solution), then the encoder alone is trained. For the same reason its layers have no biases and its
batch norms no shift. ``one_class`` minimises the mean squared distance; ``soft_boundary`` the radius of a sphere and what
lies outside of it.

Paper / authors' code / ours:

- Pretraining 150 and training 100 epochs, learning rate a tenth after 50 (DDR-ID) / 150 and 150, after 50 (their example for
  MNIST; for CIFAR-10 350 and 150, after 250 and 50) / as DDR-ID.
- The radius by line search every 5 epochs / the (1 - nu)-quantile of the last batch after each step, past 10 epochs / the
  quantile, which is what the line search finds, of the latest distances in training, every 20th of the stage; past the
  first tenth of it. The radius of the score is that of all training images.
- The first layer begins at random / as a dictionary of image patches for MNIST, at random for CIFAR-10 / as their scripts
  (``first_filters``). It matters: on the ten digits, one seed, 50 epochs in all instead of 250 and a rate of 1e-3 instead of
  1e-4, mean AUROC is 94.5 % one-class (published 94.8) and 91.8 soft-boundary (93.5), and was 93.2 and 90.2 before, at random.
  At random neither the full length nor the authors' decoder, torch's first weights, 32 bits or their weight decay of the
  autoencoder came nearer.
- The decoder views the code as 4x4 pixels / the same / begins with a linear layer, and takes images of any size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from sklearn.decomposition import MiniBatchDictionaryLearning
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.errors import SettingsError
from normalcy.method import Batches, Method, Objective, Scores, Stage
from normalcy.nets.convnets import LENET_UP_TO, ConvNet, Network, choose
from normalcy.nets.neighbours import Reservoir
from normalcy.nets.schedules import drop_after
from normalcy.nets.seeds import random_state

RECENT = 4096
"""Distances that are kept for the radius."""
PATCHES = 10_000
"""From which a dictionary is learned."""


@dataclass(frozen=True)
class DeepSVDDSettings:
    objective: Literal["one_class", "soft_boundary"] = "one_class"
    latent: int | None = None
    """Numbers in the code; none: 32 for images of one channel, 128 for others (the paper's for MNIST and CIFAR-10)."""
    nu: float = 0.05
    """Soft boundary: share of the training images that may lie outside (Ruff et al. try 0.01 and 0.1)."""
    nudge: float = 0.1
    """Coordinates of the centre that are nearer to 0 are moved out to this distance."""
    network: Network = "auto"
    """"auto": "lenet" up to 32 pixels, else "dcgan"."""
    width: int | None = None
    """Channels of the first level; none: 8 for a LeNet on one channel, else 32."""
    first_filters: Literal["auto", "random", "dictionary"] = "auto"
    """How the first layer begins: "dictionary", as atoms of a sparse dictionary of patches of the training images (2D only);
    "auto": that for images of one channel up to 32 pixels, as in the authors' scripts, else "random"."""
    lr: float = 1e-4
    """Of Adam, in both stages."""
    weight_decay: float = 1e-6

    def __post_init__(self) -> None:
        if (self.latent is not None and self.latent < 1) or self.lr <= 0 or min(self.weight_decay, self.nudge) < 0:
            raise SettingsError("deep_svdd: latent and lr must be positive, weight_decay and nudge not negative.")
        if not 0 < self.nu < 1:
            raise SettingsError(f"deep_svdd: nu must be between 0 and 1, got {self.nu}.")

    def dictionary(self, shape: Sequence[int]) -> bool:
        """For images (C, *spatial)."""
        if self.first_filters == "auto":
            return len(shape) == 3 and shape[0] == 1 and max(shape) <= LENET_UP_TO
        return self.first_filters == "dictionary"


class DeepSVDD(Method):
    name = "deep_svdd"
    Settings = DeepSVDDSettings
    spatial_dims = (2, 3)
    settings: DeepSVDDSettings
    centre: Tensor
    squared_radius: Tensor
    recent: Tensor
    seen: Tensor
    twentieth: Tensor

    def __init__(self, settings: DeepSVDDSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        if settings.first_filters == "dictionary" and len(self.shape) != 3:
            raise SettingsError('deep_svdd: first_filters="dictionary" is for 2D images, for volumes use "random".')
        usual = choose(settings.network, self.shape, settings.width)
        net = ConvNet(usual.kind, usual.channels, norm="batch", affine=False, bias=False, slope=0.01)
        latent = settings.latent or (32 if self.shape[0] == 1 else 128)
        self.encoder = net.encoder(self.shape, latent)
        self.decoder = net.decoder(self.shape, latent)
        self.register_buffer("centre", torch.zeros(latent))
        self.register_buffer("squared_radius", torch.zeros(()))
        self.register_buffer("recent", torch.zeros(RECENT))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("twentieth", torch.zeros((), dtype=torch.long))

    def encode(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> (B, latent)"""
        code: Tensor = self.encoder(x)
        return code.float()

    def distance(self, x: Tensor) -> Tensor:
        """Squared distance of the code from the centre, (B,)."""
        return (self.encode(x) - self.centre).square().sum(1)

    def begin(self, batches: Batches) -> None:
        if self.settings.dictionary(self.shape):
            convolution = next(m for m in self.encoder.modules() if isinstance(m, nn.Conv2d))
            convolution.weight.copy_(patch_dictionary(batches, convolution.weight.shape))

    def reconstruction(self, x: Tensor) -> Mapping[str, Tensor]:
        restored = self.decoder(self.encode(x)).float().sigmoid()
        return {"loss": (x - restored).square().flatten(1).sum(1).mean()}

    def place_centre(self, batches: Batches) -> None:
        """c = mean code; |c_i| < nudge becomes +-nudge."""
        centre = torch.cat([self.encode(x) for x in batches]).mean(0)
        sign = torch.where(centre < 0, -1.0, 1.0)
        self.centre = torch.where(centre.abs() < self.settings.nudge, sign * self.settings.nudge, centre)

    def one_class(self, x: Tensor) -> Mapping[str, Tensor]:
        return {"loss": self.distance(x).mean()}

    def soft_boundary(self, x: Tensor) -> Mapping[str, Tensor]:
        """R^2 + 1/nu mean max(0, |phi(x) - c|^2 - R^2), for R as it is."""
        distance = self.distance(x)
        place = (self.seen + torch.arange(len(x), device=x.device)) % RECENT
        self.recent[place] = distance.detach()
        self.seen += len(x)
        outside = (distance - self.squared_radius).clamp(min=0).mean()
        return {"loss": self.squared_radius + outside / self.settings.nu, "squared_radius": self.squared_radius.clone()}

    def follow_radius(self, fraction: float) -> None:
        """A new radius every 20th of the stage, past the first tenth; until then it is 0 and the loss that of one_class."""
        now = int(20 * fraction)
        if now >= 2 and now > int(self.twentieth):
            known = self.recent[: min(int(self.seen), RECENT)]
            self.squared_radius.copy_(torch.quantile(known, 1 - self.settings.nu))
            self.twentieth.fill_(now)

    def measure_radius(self, batches: Batches) -> None:
        """Of the sphere that leaves the share nu of the training images outside."""
        distances = torch.cat([self.distance(x) for x in batches])
        self.squared_radius.copy_(torch.quantile(distances, 1 - self.settings.nu))

    def stages(self) -> Sequence[Stage]:
        s = self.settings
        both = [*self.encoder.parameters(), *self.decoder.parameters()]
        pretraining = Objective(
            self.reconstruction, both, lr=s.lr, weight_decay=s.weight_decay, schedule=drop_after(50 / 150)
        )
        soft = s.objective == "soft_boundary"
        training = Objective(
            self.soft_boundary if soft else self.one_class,
            self.encoder.parameters(),
            lr=s.lr,
            weight_decay=s.weight_decay,
            schedule=drop_after(50 / 100),
        )
        stages = [
            Stage("autoencoder", [pretraining], epochs=150, batch_size=256, prepare=self.begin),
            Stage(
                s.objective,
                [training],
                epochs=100,
                batch_size=256,
                prepare=self.place_centre,
                on_progress=self.follow_radius if soft else None,
            ),
        ]
        return [*stages, Stage("radius", prepare=self.measure_radius)] if soft else stages

    def _score(self, x: Tensor) -> Scores:
        code = self.encode(x)
        distance = (code - self.centre).square().sum(1)
        return Scores(image=distance - self.squared_radius, latent=code)


def patch_dictionary(batches: Batches, shape: Sequence[int]) -> Tensor:
    """Filters (N, C, h, w): the atoms of a sparse dictionary of image patches, standardised by position; norms are at most 1."""
    count, _, *kernel = shape
    sample = Reservoir(PATCHES)
    for x in batches:
        sample.add(F.unfold(x.cpu(), tuple(kernel)).movedim(1, 2).flatten(0, 1))
    rows = sample.rows
    spread = rows.std(0)
    patches = ((rows - rows.mean(0)) / torch.where(spread > 0, spread, 1.0)).double().numpy()
    learner = MiniBatchDictionaryLearning(count, alpha=1.0, max_iter=1, batch_size=10, random_state=random_state())
    return torch.from_numpy(learner.fit(patches).components_).float().view(*shape)
