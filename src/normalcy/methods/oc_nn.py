"""One-class neural network: a learned hyperplane separates normal features from the origin; scored by the margin to it.

Chalapathy, Menon and Chawla 2018. The encoder of an autoencoder gives codes z; a hidden layer V with activation g and an output
w give y = w . g(V z). Over n images,

    1/2 |w|^2 + 1/2 |V|^2 + 1/nu 1/n sum max(0, r - y) - r    (equation 4)

is minimised alternately over the weights, by gradients, and over r, whose optimum is the nu-quantile of y (theorem 1). The
score is r - y, or ``two_sided``.

| | paper | authors' code | normalcy |
|---|---|---|---|
| r | set once per epoch | | from the y of that epoch (each process its own, thus less often); at the end from the final weights |
| encoder | learns the objective | | learns the objective (``fine_tune``), or stays that of the autoencoder |
| networks | | | those of the other methods |
| ``two_sided`` | | | distance of y to its median over the training images |
| AUROC | of r - y | of the signs of r - y, in an earlier version (issue 4 of raghavchalapathy/oc-nn_old) | of the score |

The objective only rewards a large y, and y grows with the norm of the code. Anomalous images often have codes of larger norm
than normal ones, hence a larger y, and r - y ranks them as normal; ``two_sided`` counts a y that is too large as anomalous, too.
The paper's AUROC on MNIST was not reproduced, with either score. With a linear activation nothing bounds y, so the objective
has no minimum and the length of training matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn

from normalcy.config import require
from normalcy.method import Batches, Method, Objective, Scores, Stage
from normalcy.nets.convnets import CLIP, Network, Norm, choose
from normalcy.nets.scaling import Standardise
from normalcy.nets.schedules import late_drop


@dataclass(frozen=True)
class OCNNSettings:
    latent: int = 32
    """Latent dimension of the autoencoder."""
    score: Literal["hyperplane", "two_sided"] = "hyperplane"
    """"hyperplane": r - y, as in the paper; "two_sided": |y - median of y over the training images|, since anomalous images often
    lie far on the normal side of the hyperplane."""
    hidden: int = 32
    """Units of the hidden layer, the rows of V."""
    activation: Literal["sigmoid", "linear"] = "sigmoid"
    """g, the activation of the hidden layer: "sigmoid" or "linear"."""
    nu: float = 0.1
    """Fraction of the training images beyond the hyperplane, in (0, 1)."""
    fine_tune: bool = True
    """Train the encoder with the one-class objective too, as in the paper; false: it stays that of the autoencoder."""
    network: Network = "auto"
    """Encoder and decoder: "lenet" (5x5 convolutions, pooling), "dcgan" (strided 4x4 convolutions) or "auto", which is "lenet" up
    to 32 pixels, else "dcgan"."""
    width: int | None = None
    """Channels of the first level; none: 8 for a LeNet on one channel, else 32."""
    norm: Norm = "none"
    """Normalisation layers of encoder and decoder: "batch", "group" or "none"."""
    pretraining_lr: float = 2e-3
    """Learning rate (Adam) of the autoencoder; a tenth of it in the last third."""
    lr: float = 1e-4
    """Learning rate (Adam) of the one-class objective; a tenth of it in the last third."""
    weight_decay: float = 1e-6
    """Weight decay of the autoencoder."""

    def __post_init__(self) -> None:
        positive = ("latent", "hidden", "pretraining_lr", "lr")
        require("oc_nn", self, positive=positive, non_negative=("weight_decay",), fraction=("nu",))


class OCNN(Method):
    name = "oc_nn"
    Settings = OCNNSettings
    family = "one-class"
    reference = (
        "R. Chalapathy, A. K. Menon, S. Chawla. Anomaly detection using one-class neural networks. "
        "arXiv:1802.06360, 2018"
    )
    scores = ("hyperplane", "two_sided")
    spatial_dims = (2, 3)
    settings: OCNNSettings
    r: Tensor
    median: Tensor
    recent: Tensor
    seen: Tensor

    def __init__(self, settings: OCNNSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        net = choose(settings.network, self.shape, settings.width, settings.norm)
        self.standardise = Standardise(self.shape)
        self.encoder = net.encoder(self.shape, settings.latent)
        self.decoder = net.decoder(self.shape, settings.latent)
        self.V = nn.Linear(settings.latent, settings.hidden, bias=False)
        self.w = nn.Linear(settings.hidden, 1, bias=False)
        self.register_buffer("r", torch.zeros(()))
        self.register_buffer("median", torch.zeros(()))  # median of y over the training images
        self.learned("recent")  # y of this epoch's images, (n,); those not seen yet are the last epoch's
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))  # images of this epoch so far

    def encode(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> (B, latent)"""
        code: Tensor = self.encoder(self.standardise(x))
        return code.float()

    def normality(self, code: Tensor) -> Tensor:
        """y = w . g(V z): (B, latent) -> (B,)"""
        hidden = self.V(code).float()
        if self.settings.activation == "sigmoid":
            hidden = hidden.sigmoid()
        y: Tensor = self.w(hidden).float().squeeze(1)
        return y

    def reconstruction(self, x: Tensor) -> Mapping[str, Tensor]:
        """Mean squared error of the autoencoder."""
        restored = self.standardise.inverse(self.decoder(self.encode(x)).float())
        return {"loss": (x - restored).square().mean()}

    def one_class(self, x: Tensor) -> Mapping[str, Tensor]:
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
        """Set r and the median from the final weights."""
        self._set_r(batches)
        self.median = self.recent.median()
        self.recent = torch.empty(0)

    def stages(self) -> Sequence[Stage]:
        s = self.settings
        autoencoder = list(chain(self.encoder.parameters(), self.decoder.parameters()))
        head = list(chain(self.V.parameters(), self.w.parameters()))
        own = [*self.encoder.parameters(), *head] if s.fine_tune else head
        pretrain = Objective(
            self.reconstruction,
            autoencoder,
            lr=s.pretraining_lr,
            weight_decay=s.weight_decay,
            schedule=late_drop,
            clip_norm=CLIP,
        )
        separate = Objective(self.one_class, own, lr=s.lr, schedule=late_drop)
        return [
            Stage("reconstruction", [pretrain], epochs=30, batch_size=64, prepare=self.standardise.measure),
            Stage("one_class", [separate], epochs=30, batch_size=64, prepare=self._set_r),
            Stage("boundary", prepare=self._finish),
        ]

    def _score(self, x: Tensor) -> Scores:
        code = self.encode(x)
        y = self.normality(code)
        image = self.r - y if self.settings.score == "hyperplane" else (y - self.median).abs()
        return Scores(image=image, latent=code)
