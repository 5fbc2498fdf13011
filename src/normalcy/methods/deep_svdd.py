"""Deep SVDD: network that maps normal images near a centre in latent space; scored by the squared distance to the centre.

Ruff et al. 2018, with the lengths and learning rates of section 4.1 of DDR-ID (Lin et al. 2020), whose baseline it is. An
autoencoder is trained first; its encoder gives the centre c (the mean latent code, coordinates near 0 moved to +-0.1, since a
network of zeros would otherwise be a trivial solution); then the encoder alone is trained. For the same reason its layers have no
biases and its batch norms no shift. ``one_class`` minimises the mean squared distance to c; ``soft_boundary`` the squared
radius R^2 of a sphere around c plus the distances outside of it, and R^2 is subtracted from its scores.

| | paper | authors' code | normalcy |
| --- | --- | --- | --- |
| epochs, pretraining + training | 150 + 100 (DDR-ID) | MNIST 150 + 150, CIFAR-10 350 + 150 | 150 + 100 |
| learning rate a tenth after epoch | 50 (DDR-ID) | 50; CIFAR-10: 250 and 50 | 50 |
| radius | line search every 5 epochs | Theano: see below; PyTorch: of each batch | of the batch before (in its process) |
| radius is 0 for the first | | PyTorch: 10 epochs | tenth of the stage |
| nu | the better of 0.01 and 0.1 on the test set | 0.1 | 0.05 (DDR-ID) |
| radius of the score | | | that of all training images |
| first layer | random | dictionary of patches (MNIST), else random | as the authors' code (``first_filters``) |
| decoder | code as 4x4 pixels | the same | starts with a linear layer, for images of any size |

The radius is the (1 - nu)-quantile of the squared distances, at which the loss of these distances is smallest. The Theano code,
which gave the paper's numbers, sets it to this quantile at the start and after each of the first 10 epochs, then every 5 by a
line search that takes the best R for R^2: about nu of the images are outside when distances are near 1. A radius of earlier,
larger distances leaves no image outside: the loss then has no gradient, and training stands still.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from sklearn.decomposition import MiniBatchDictionaryLearning
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy import config
from normalcy.method import Batches, Method, Objective, Scores, Stage
from normalcy.nets.convnets import LENET_UP_TO, ConvNet, Network, choose
from normalcy.nets.neighbours import Reservoir
from normalcy.nets.schedules import drop_after
from normalcy.nets.seeds import random_state

WARM_UP = 0.1
"""Fraction of the stage in which the radius is 0 and the loss of the soft boundary is that of ``one_class``."""
RETIRED = ("recent", "seen", "twentieth")
"""Buffers of saved models from when the radius was that of recent batches."""
PATCHES = 10_000
"""Number of image patches from which a dictionary is learned."""


@dataclass(frozen=True)
class DeepSVDDSettings:
    objective: Literal["one_class", "soft_boundary"] = "one_class"
    """"one_class": mean squared distance to the centre; "soft_boundary": squared radius plus distances outside of it."""
    latent: int | None = None
    """Latent dimension; none: 32 for images of one channel, 128 for others (the paper's for MNIST and CIFAR-10)."""
    nu: float = 0.05
    """nu of the soft boundary: fraction of the training images that may lie outside (Ruff et al. try 0.01 and 0.1)."""
    nudge: float = 0.1
    """Coordinates of the centre closer to 0 than this are moved to this distance from 0, in units of the latent code."""
    network: Network = "auto"
    """"auto": "lenet" for sides of at most 32 pixels, else "dcgan". "lenet": 5x5 convolutions and max-pooling (Ruff et al. 2018);
    "dcgan": 4x4 convolutions of stride 2 (Radford et al. 2016)."""
    width: int | None = None
    """Channels of the first level; none: 8 for a LeNet on one channel, else 32."""
    first_filters: Literal["auto", "random", "dictionary"] = "auto"
    """First weights of the first layer: "random"; "dictionary": atoms of a sparse dictionary of training patches (2D only);
    "auto": "dictionary" for images of one channel up to 32 pixels, as in the authors' scripts, else "random"."""
    lr: float = 1e-4
    """Learning rate in both stages (Adam)."""
    weight_decay: float = 1e-6
    """Weight decay in both stages (paper: 1e-6)."""

    def __post_init__(self) -> None:
        positive, non_negative = ("latent", "width", "lr"), ("nudge", "weight_decay")
        config.require("deep_svdd", self, positive=positive, non_negative=non_negative, fraction=("nu",))

    def dictionary(self, shape: Sequence[int]) -> bool:
        """Whether the first layer starts from a dictionary, for images (C, *spatial)."""
        if self.first_filters == "auto":
            return len(shape) == 3 and shape[0] == 1 and max(shape) <= LENET_UP_TO
        return self.first_filters == "dictionary"


class DeepSVDD(Method):
    name = "deep_svdd"
    Settings = DeepSVDDSettings
    family = "one-class"
    reference = (
        "L. Ruff, R. Vandermeulen, N. Görnitz, L. Deecke, S. A. Siddiqui, A. Binder, E. Müller, M. Kloft. Deep one-class "
        "classification. ICML, 2018."
    )
    spatial_dims = (2, 3)
    late_settings: ClassVar = {"objective": 1, "nu": 1, "nudge": 1}
    settings: DeepSVDDSettings
    centre: Tensor
    squared_radius: Tensor

    def __init__(self, settings: DeepSVDDSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        fits = settings.first_filters != "dictionary" or len(self.shape) == 3
        config.require_that(
            fits, "deep_svdd", "first_filters", '"auto" or "random" for volumes', settings.first_filters
        )
        usual = choose(settings.network, self.shape, settings.width)
        net = ConvNet(usual.kind, usual.channels, norm="batch", affine=False, bias=False, slope=0.01)
        latent = settings.latent or (32 if self.shape[0] == 1 else 128)
        self.encoder = net.encoder(self.shape, latent)
        self.decoder = net.decoder(self.shape, latent)
        self.register_buffer("centre", torch.zeros(latent))
        self.register_buffer("squared_radius", torch.zeros(()))
        self.radius_follows = False  # true once the warm-up is over
        self.register_load_state_dict_pre_hook(_drop_retired)  # type: ignore[no-untyped-call]

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
        """R^2 + 1/nu mean max(0, |phi(x) - c|^2 - R^2); in training, this batch then gives the R^2 of the next step."""
        distance = self.distance(x)
        squared_radius = self.squared_radius.clone()
        outside = (distance - squared_radius).clamp(min=0)
        if self.training and self.radius_follows:
            self.squared_radius.copy_(torch.quantile(distance.detach(), 1 - self.settings.nu))
        return {
            "loss": squared_radius + outside.mean() / self.settings.nu,
            "squared_radius": squared_radius,
            "outside": (outside > 0).float().mean(),
        }

    def follow_radius(self, fraction: float) -> None:
        self.radius_follows = fraction >= WARM_UP

    def measure_radius(self, batches: Batches) -> None:
        """The radius that leaves the fraction nu of the training images outside."""
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


def _drop_retired(method: DeepSVDD, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in RETIRED:
        state.pop(prefix + name, None)


def patch_dictionary(batches: Batches, shape: Sequence[int]) -> Tensor:
    """Filters (N, C, h, w): the atoms of a sparse dictionary of image patches, standardised by position; norms are at most 1."""
    count, _, *kernel = shape
    sample = Reservoir(PATCHES)
    for x in batches:
        sample.add(F.unfold(x.cpu(), tuple(kernel)).movedim(1, 2).flatten(0, 1))
    rows = sample.rows
    std = rows.std(0)
    patches = ((rows - rows.mean(0)) / torch.where(std > 0, std, 1.0)).double().numpy()
    learner = MiniBatchDictionaryLearning(count, alpha=1.0, max_iter=1, batch_size=10, random_state=random_state())
    return torch.from_numpy(learner.fit(patches).components_).float().view(*shape)
