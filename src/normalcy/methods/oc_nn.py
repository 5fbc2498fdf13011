"""One-class neural network: a hypersphere or a hyperplane around learned features; scored by the distance from its centre.

Chalapathy, Menon and Chawla 2018. The encoder of an autoencoder gives codes z, and a new linear layer V without bias gives V z.
There are two objectives, since the numbers in the paper are not of the objective in the paper.

``hypersphere``, which the authors' code computes (there the paper's output w is commented out): y = V z with mean c; minimise
r^2 + sum_j max(0, (y_j - c_j)^2 - r^2) with a fixed r. The score is |y - c|^2.

``hyperplane``, of the paper: y = w . g(V z) with an activation g; minimise, over n images,

    1/2 |w|^2 + 1/2 |V|^2 + 1/nu 1/n sum max(0, r - y) - r    (equation 4)

alternately over the weights, by gradients, and over r, whose optimum is the nu-quantile of y (theorem 1). The score is r - y.

``hypersphere`` is one-class Deep SVDD with a new last layer and a dead zone of r around each coordinate of the centre.

| | paper | authors' code | normalcy |
| --- | --- | --- | --- |
| objective | hyperplane | hypersphere | hypersphere; ``objective="hyperplane"`` |
| r of the hypersphere | | 0.1 | ``radius``, 0.1 |
| factor 1/nu of the hypersphere | | 5 | none: Adam ignores the scale of a loss, but for ``weight_decay`` |
| r of the hyperplane | set once per epoch | | from the y of that epoch (each process its own, thus less often); at the end from \
the final weights |
| encoder | learns the objective | learns the objective | learns the objective; ``fine_tune=false``: stays the autoencoder's |
| networks | | LeNet | LeNet of Deep SVDD, without biases and with batch norm without shift |
| images of the published AUROC | | tested on images that it was trained on | a test set of its own |

The authors' MNIST test set has five sixths of the digit's training images, its test images and 1 % anomalies, and training runs
on that set; their CIFAR-10 test set is the training set. The hyperplane rewards a large y, and y grows with the norm of the code:
anomalous images often have codes of larger norm than normal ones, so that r - y ranks them as normal. With a linear activation
nothing bounds y, the objective has no minimum, and the length of training matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from normalcy.config import require
from normalcy.method import Batches, Method, Objective, Scores, Stage
from normalcy.nets.convnets import ConvNet, Network, choose
from normalcy.nets.schedules import late_drop


@dataclass(frozen=True)
class OCNNSettings:
    objective: Literal["hypersphere", "hyperplane"] = "hypersphere"
    """"hypersphere": squared distance to the mean, with a dead zone (authors' code); "hyperplane": equation 4 (paper)."""
    latent: int = 32
    """Latent dimension of the autoencoder."""
    hidden: int = 32
    """Rows of V (paper and authors' code: 32)."""
    radius: float = 0.1
    """Hypersphere: r, the distance from the centre along a coordinate up to which there is no loss."""
    nudge: float = 0.1
    """Hypersphere: coordinates of the centre closer to 0 than this are moved to this distance from 0."""
    activation: Literal["sigmoid", "linear"] = "sigmoid"
    """Hyperplane: g, the activation of the hidden layer."""
    nu: float = 0.1
    """Hyperplane: fraction of the training images beyond it, in (0, 1)."""
    fine_tune: bool = True
    """Train the encoder with the one-class objective too; false: it stays that of the autoencoder."""
    network: Network = "auto"
    """Encoder and decoder: "lenet" (5x5 convolutions, pooling), "dcgan" (strided 4x4 convolutions) or "auto", which is "lenet" up
    to 32 pixels, else "dcgan"."""
    width: int | None = None
    """Channels of the first level; none: 8 for a LeNet on one channel, else 32."""
    pretraining_lr: float = 1e-3
    """Learning rate (Adam) of the autoencoder; a tenth of it in the last third."""
    lr: float = 1e-3
    """Learning rate (Adam) of the one-class objective; a tenth of it in the last third."""
    weight_decay: float = 1e-6
    """Weight decay of the autoencoder and, with the hypersphere, of encoder and V."""

    def __post_init__(self) -> None:
        positive = ("latent", "hidden", "width", "pretraining_lr", "lr")
        require("oc_nn", self, positive=positive, non_negative=("radius", "nudge", "weight_decay"), fraction=("nu",))


class OCNN(Method):
    name = "oc_nn"
    Settings = OCNNSettings
    family = "one-class"
    reference = (
        "R. Chalapathy, A. K. Menon, S. Chawla. Anomaly detection using one-class neural networks. "
        "arXiv:1802.06360, 2018"
    )
    spatial_dims = (2, 3)
    late_settings: ClassVar = dict.fromkeys(("objective", "radius", "nudge", "activation", "nu", "fine_tune", "lr"), 1)
    settings: OCNNSettings
    r: Tensor
    centre: Tensor
    recent: Tensor
    seen: Tensor

    def __init__(self, settings: OCNNSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        usual = choose(settings.network, self.shape, settings.width)
        net = ConvNet(usual.kind, usual.channels, norm="batch", affine=False, bias=False, slope=0.01)
        self.encoder = net.encoder(self.shape, settings.latent)
        self.decoder = net.decoder(self.shape, settings.latent)
        self.V = nn.Linear(settings.latent, settings.hidden, bias=False)
        self.w = nn.Linear(settings.hidden, 1, bias=False)
        self.register_buffer("centre", torch.zeros(settings.hidden))  # c of the hypersphere
        self.register_buffer("r", torch.zeros(()))  # of the hyperplane
        self.learned("recent")  # y of this epoch's images, (n,); those not seen yet are the last epoch's
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))  # images of this epoch so far

    def encode(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> (B, latent)"""
        code: Tensor = self.encoder(x)
        return code.float()

    def reconstruction(self, x: Tensor) -> Mapping[str, Tensor]:
        """Squared error of the autoencoder, summed over the image."""
        restored = self.decoder(self.encode(x)).float().sigmoid()
        return {"loss": (x - restored).square().flatten(1).sum(1).mean()}

    # -- hypersphere

    def features(self, x: Tensor) -> Tensor:
        """V z: (B, C, *spatial) -> (B, hidden)"""
        features: Tensor = self.V(self.encode(x))
        return features.float()

    def hypersphere(self, x: Tensor) -> Mapping[str, Tensor]:
        """r^2 + sum_j max(0, (y_j - c_j)^2 - r^2), mean over the batch."""
        squares, squared_radius = (self.features(x) - self.centre).square(), self.settings.radius**2
        return {"loss": squared_radius + (squares - squared_radius).clamp(min=0).sum(1).mean()}

    def place_centre(self, batches: Batches) -> None:
        """c = mean of V z; |c_j| < nudge becomes +-nudge."""
        centre = torch.cat([self.features(x) for x in batches]).mean(0)
        sign = torch.where(centre < 0, -1.0, 1.0)
        self.centre = torch.where(centre.abs() < self.settings.nudge, sign * self.settings.nudge, centre)

    # -- hyperplane

    def normality(self, code: Tensor) -> Tensor:
        """y = w . g(V z): (B, latent) -> (B,)"""
        hidden = self.V(code).float()
        if self.settings.activation == "sigmoid":
            hidden = hidden.sigmoid()
        y: Tensor = self.w(hidden).float().squeeze(1)
        return y

    def hyperplane(self, x: Tensor) -> Mapping[str, Tensor]:
        """Equation 4 at the current r, which is updated after each epoch; ``beyond``: fraction of the batch with y < r."""
        y = self.normality(self.encode(x))
        weights = 0.5 * (self.w.weight.float().square().sum() + self.V.weight.float().square().sum())
        r = self.r.clone()  # _remember changes r before the gradients are computed
        loss = weights + (r - y).relu().mean() / self.settings.nu - r
        beyond = (y < r).float().mean()
        if self.training:
            self._remember(y.detach())
        return {"loss": loss, "beyond": beyond}

    def _remember(self, y: Tensor) -> None:
        """Record y (B,) of training images; after a full epoch, set r to their nu-quantile."""
        n = len(self.recent)
        self.recent[(self.seen + torch.arange(len(y), device=y.device)) % n] = y
        full = self.seen + len(y) >= n
        self.r.copy_(torch.where(full, self._quantile(self.recent), self.r))
        self.seen.copy_((self.seen + len(y)) * ~full)

    def _quantile(self, y: Tensor) -> Tensor:
        """The nu-quantile of y (n,), one of its values, which minimises equation 4."""
        return y.kthvalue(min(len(y), int(self.settings.nu * len(y)) + 1)).values

    def _set_r(self, batches: Batches) -> None:
        """Set r from y over all training images."""
        self.recent = torch.cat([self.normality(self.encode(x)) for x in batches])
        self.r = self._quantile(self.recent)
        self.seen.zero_()

    def _finish(self, batches: Batches) -> None:
        """Set r from the final weights."""
        self._set_r(batches)
        self.recent = torch.empty(0)

    # -- both

    def stages(self) -> Sequence[Stage]:
        s = self.settings
        autoencoder = list(chain(self.encoder.parameters(), self.decoder.parameters()))
        pretrain = Objective(
            self.reconstruction, autoencoder, lr=s.pretraining_lr, weight_decay=s.weight_decay, schedule=late_drop
        )
        first = Stage("reconstruction", [pretrain], epochs=20, batch_size=128)
        encoder = list(self.encoder.parameters()) if s.fine_tune else []
        if s.objective == "hypersphere":
            own = [*encoder, *self.V.parameters()]
            sphere = Objective(self.hypersphere, own, lr=s.lr, weight_decay=s.weight_decay, schedule=late_drop)
            return [first, Stage("hypersphere", [sphere], epochs=15, batch_size=128, prepare=self.place_centre)]
        own = [*encoder, *self.V.parameters(), *self.w.parameters()]
        plane = Objective(self.hyperplane, own, lr=s.lr, schedule=late_drop)
        return [
            first,
            Stage("hyperplane", [plane], epochs=15, batch_size=128, prepare=self._set_r),
            Stage("boundary", prepare=self._finish),
        ]

    def _score(self, x: Tensor) -> Scores:
        if self.settings.objective == "hypersphere":
            features = self.features(x)
            return Scores(image=(features - self.centre).square().sum(1), latent=features)
        code = self.encode(x)
        return Scores(image=self.r - self.normality(code), latent=code)
