"""One-class neural network: a hyperplane in learned features, as far from the origin as the normal images allow.

Source: Chalapathy, Menon, Chawla 2018, Anomaly Detection using One-Class Neural Networks. The encoder of an autoencoder gives
codes z, one hidden layer V with activation g and an output w give y = w . g(V z), and (eq. 4), over n images,

    1/2 |w|^2 + 1/2 |V|^2 + 1/nu 1/n sum max(0, r - y) - r

is minimised in turn over the weights, by gradients, and over r, whose best value is the nu-quantile of y (theorem 1).
The score is r - y.

r is set once per epoch, here from the y that the training saw in that epoch (of several processes each sees its share, and r
moves as many times less often), and once more at the end from the final weights. Beside V and w the encoder learns this
objective, as in the paper (``fine_tune``). With a linear activation nothing bounds y, so the objective has no minimum and the
length of the training matters. Networks are those of the other methods.

The paper's numbers (mean AUROC of 0.92 on MNIST) were not reached: digits 3 and 8, 2000 training images and 20 epochs gave 0.53
and 0.46, and other rates, activations and epochs 0.15 to 0.75 without an order. The objective only wants y to be large, and y
grows with the code; strange images often have larger codes than normal ones and so a larger y: planted defects have an AUROC of
0.0 to 0.7. In trials that are not kept neither r set at each step, nor networks without biases as in Deep SVDD, nor an encoder
left alone changed that. One of the authors wrote of an earlier version that its AUROC is that of the signs of the scores
(issue 4 of raghavchalapathy/oc-nn_old). Hence a second score that is not in the paper, ``two_sided`` = |y - median y of the
training images|; it sees planted defects (0.64 to 1.0), but other digits no better (0.49 and 0.53).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn

from normalcy.errors import SettingsError
from normalcy.method import Batches, Method, Objective, Scores, Stage
from normalcy.nets.convnets import CLIP, Network, Norm, choose
from normalcy.nets.scaling import Standardise
from normalcy.nets.schedules import late_drop


@dataclass(frozen=True)
class OCNNSettings:
    latent: int = 32
    """Numbers in the code of an image."""
    score: Literal["hyperplane", "two_sided"] = "hyperplane"
    """r - y (the paper), or |y - median y of the training images|: strange images often lie beyond the normal ones."""
    hidden: int = 32
    """Units of the hidden layer, the rows of V."""
    activation: Literal["sigmoid", "linear"] = "sigmoid"
    """g."""
    nu: float = 0.1
    """Share of the training images that may lie beyond the hyperplane, in (0, 1)."""
    fine_tune: bool = True
    """The encoder learns the one-class objective too; else it stays that of the autoencoder."""
    network: Network = "auto"
    """"auto": "lenet" up to 32 pixels, else "dcgan"."""
    width: int | None = None
    """Channels of the first level; none: 8 for a LeNet on one channel, else 32."""
    norm: Norm = "none"
    pretraining_lr: float = 2e-3
    """Of Adam on the autoencoder; a tenth of it in the last third."""
    lr: float = 1e-4
    """Of Adam on the one-class objective."""
    weight_decay: float = 1e-6
    """Of the autoencoder."""

    def __post_init__(self) -> None:
        if min(self.latent, self.hidden) < 1 or min(self.pretraining_lr, self.lr) <= 0 or self.weight_decay < 0:
            raise SettingsError(
                "oc_nn: latent, hidden, lr and pretraining_lr must be positive, weight_decay not negative."
            )
        if not 0 < self.nu < 1:
            raise SettingsError(f"oc_nn: nu must lie in (0, 1), got {self.nu}.")


class OCNN(Method):
    name = "oc_nn"
    Settings = OCNNSettings
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
        self.register_buffer("median", torch.zeros(()))  # of y over the training images
        self.learned("recent")  # y of the images of this epoch, (n,); of the last one where it has not come to them yet
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
        restored = self.standardise.inverse(self.decoder(self.encode(x)).float())
        return {"loss": (x - restored).square().mean()}

    def one_class(self, x: Tensor) -> Mapping[str, Tensor]:
        """Eq. 4 at the present r, which moves on when the batches have filled an epoch."""
        y = self.normality(self.encode(x))
        weights = 0.5 * (self.w.weight.float().square().sum() + self.V.weight.float().square().sum())
        r = self.r.clone()  # _remember changes it before the gradients are taken
        loss = weights + (r - y).relu().mean() / self.settings.nu - r
        beyond = (y < r).float().mean()
        if self.training:
            self._remember(y.detach())
        return {"loss": loss, "beyond": beyond}

    def _remember(self, y: Tensor) -> None:
        """Keep y (B,) of training images; when they make an epoch, r becomes their quantile."""
        n = len(self.recent)
        self.recent[(self.seen + torch.arange(len(y), device=y.device)) % n] = y
        full = self.seen + len(y) >= n
        self.r.copy_(torch.where(full, self._quantile(self.recent), self.r))
        self.seen.copy_((self.seen + len(y)) * ~full)

    def _quantile(self, y: Tensor) -> Tensor:
        """The nu-quantile of y (n,), one of its values: the r at which eq. 4 is least."""
        return y.kthvalue(min(len(y), int(self.settings.nu * len(y)) + 1)).values

    def _set_r(self, batches: Batches) -> None:
        self.recent = torch.cat([self.normality(self.encode(x)) for x in batches])
        self.r = self._quantile(self.recent)
        self.seen.zero_()

    def _finish(self, batches: Batches) -> None:
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
