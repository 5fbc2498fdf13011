"""RDA, robust deep autoencoder: images X are a part L that an autoencoder can say and a sparse part S that it cannot, X = L + S.

Alternately the autoencoder learns L = X - S, and S becomes what is left of X - D(E(L)) after a threshold ``weight`` (lambda):
Zhou, Paffenroth 2017, "Anomaly Detection with Robust Deep Autoencoders". So it learns from images that are not all normal,
and S shows in what a training image is not. The ``penalty`` says how S is sparse:

==========  ============================================================================================================
``l1``      single pixels: soft threshold, sign(e) max(0, |e| - lambda)
``images``  whole images (l2,1 over the rows of X): e max(0, 1 - lambda / |e_i|), which finds images that do not belong
``pixels``  pixels that are broken in many images (l2,1 over the columns)
==========  ============================================================================================================

Scores: ``noise`` is the paper's, mean |S|, 0 for every image that needs none; ``error`` is the root mean square of X - D(E(L)).

Rounds end before ``rounds`` when the constraint holds: c1 = |X - D(E(L)) - S| / |X| or c2, the change of D(E(L)) + S since the
round before, divided by |X|, is below ``constraint`` (both kept in the buffer ``residuals``, a row for each round).
c1 cannot fall below what the threshold leaves of an image, so most often it is c2 that ends them, or ``rounds``.

Paper / authors' code / ours:

- The S of a training image is kept from round to round / the same / found anew at the beginning of a round, from S = 0 by
  S <- threshold(x - D(E(x - S))) while the objective falls and S moves by more than ``tolerance``. So S is a function of the
  image, also of a new one.
- lambda is in the values' unit and norms are sums / the same / in deviations of the training images from their mean, with
  root mean squares as norms, so that one lambda serves all sizes and numbers of images.
- The constraint is to hold to 1e-7 / the same, which ends no run: a fixed number of rounds does / to 1 %, which is near what
  training by batches can reach.
- An image is an anomaly when its row of S is not 0, and lambda is chosen by labels / the same / ``normalcy audit`` lists
  training images by their score; with an expected share of anomalies it can choose lambda by the share of images with S.
- Fully connected layers / the same / the convolutional networks of ``autoencoder``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn

from normalcy.errors import SettingsError
from normalcy.method import Batches, Method, Objective, Scores, Stage
from normalcy.nets.convnets import Network, Standardise, choose

Score = Literal["error", "noise"]


@dataclass(frozen=True)
class RDASettings:
    score: Score = "error"
    penalty: Literal["l1", "images", "pixels"] = "l1"
    weight: float = 0.5
    """lambda, in deviations of the training images from their mean image."""
    rounds: int = 5
    """Alternations; in the first S is 0."""
    iterations: int = 20
    """At most so many steps to find S and L of an image."""
    tolerance: float = 1e-3
    """They end when S moves by less (root mean square, in the same unit)."""
    constraint: float = 0.01
    """Rounds end when c1 or c2 is below; 0: never."""
    latent: int = 32
    """Numbers in the code of an image."""
    network: Network = "auto"
    """"auto": "lenet" up to 32 pixels, else "dcgan"."""
    width: int | None = None
    """Channels of the first level; none: 8 for a LeNet on one channel, else 32."""
    lr: float = 2e-3
    """Of Adam."""

    def __post_init__(self) -> None:
        if min(self.rounds, self.iterations, self.latent) < 1 or min(self.lr, self.tolerance) <= 0:
            raise SettingsError("rda: rounds, iterations, latent, lr and tolerance must be positive.")
        if min(self.weight, self.constraint) < 0:
            raise SettingsError("rda: weight and constraint must not be negative.")


class RDA(Method):
    name = "rda"
    Settings = RDASettings
    scores = get_args(Score)
    spatial_dims = (2, 3)
    search: ClassVar = {
        "weight": (0.1, 0.2, 0.5, 1.0, 2.0),
        "penalty": ("l1", "images", "pixels"),
        "latent": (8, 16, 32, 64),
    }
    sparse_weight = "weight"
    audit_settings: ClassVar = {"penalty": "images"}
    settings: RDASettings
    share: Tensor
    residuals: Tensor

    def __init__(self, settings: RDASettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        net = choose(settings.network, self.shape, settings.width)
        self.standardise = Standardise(self.shape)
        self.network = nn.Sequential(net.encoder(self.shape, settings.latent), net.decoder(self.shape, settings.latent))
        self.before = copy.deepcopy(self.network)  # as it was when the round began: what S and L are found with
        self.register_buffer("share", torch.zeros(self.shape))  # penalty="pixels": of a pixel's error that goes to S
        self.register_buffer("residuals", torch.full((settings.rounds, 2), torch.inf))  # c1 and c2 after each round

    def stages(self) -> Sequence[Stage]:
        objective = Objective(self.reconstruction, list(self.network.parameters()), lr=self.settings.lr)
        first = Stage(
            "round 1",
            [objective],
            epochs=10,
            batch_size=64,
            prepare=self.standardise.measure,
            derive=self.standardise,
        )
        later = [
            Stage(
                f"round {k + 1}",
                [objective],
                epochs=10,
                batch_size=64,
                prepare=self.begin_round,
                skip=self.converged,
                derive=self.clean,
            )
            for k in range(1, self.settings.rounds)
        ]
        return [first, *later, Stage("sparse part", prepare=self.begin_round)]

    @classmethod
    def separates(cls, settings: Mapping[str, Any]) -> bool:
        return settings.get("penalty") != "pixels"  # which shrinks each pixel over all images

    def convergence(self) -> Mapping[str, Any]:
        constraint = self.residuals[:, 0]
        constraint = constraint[constraint.isfinite()]
        return {"rounds": len(constraint), "constraint": float(constraint[-1])}

    def converged(self) -> bool:
        """Whether X = L + S holds with L = D(E(L)), after the last round that was trained."""
        return bool((self.residuals < self.settings.constraint).any())

    def reconstruction(self, low: Tensor) -> Mapping[str, Tensor]:
        """Mean squared error on L, in squared deviations."""
        return {"loss": (low - self.network(low).float()).square().mean()}

    def begin_round(self, batches: Batches) -> None:
        """The network becomes what S is found with; how well the constraint holds after the round that it was trained in."""
        if self.converged():  # no round since
            return
        earlier = copy.deepcopy(self.before)
        self.before.load_state_dict(self.network.state_dict())
        if self.settings.penalty == "pixels":
            squares = torch.zeros(self.shape, dtype=torch.float64)
            for x in batches:
                y = self.standardise(x)
                squares += (y - self.split(y)[2]).square().double().sum(0).cpu()
            norm = (squares / batches.count).sqrt().float().clamp(min=1e-12)
            self.share.copy_((1 - self.settings.weight / norm).clamp(min=0))
        done = int(self.residuals[:, 0].isfinite().sum())
        whole, left, moved = (torch.zeros((), dtype=torch.float64) for _ in range(3))
        for x in batches:
            y = self.standardise(x)
            _, sparse, said = self.split(y)
            whole += y.double().square().sum().cpu()
            left += (y - said - sparse).double().square().sum().cpu()
            if done:
                _, sparse_before, said_before = self.split(y, earlier)
                moved += (said + sparse - said_before - sparse_before).double().square().sum().cpu()
        whole = whole.clamp(min=1e-30)  # images that are all the same
        self.residuals[done, 0] = (left / whole).sqrt()
        if done:
            self.residuals[done, 1] = (moved / whole).sqrt()

    def clean(self, x: Tensor) -> Tensor:
        """L of images, as deviations."""
        return self.split(self.standardise(x))[0]

    def said(self, low: Tensor, network: nn.Module | None = None) -> Tensor:
        """D(E(L)) of a network; that which the round began with unless given."""
        return cast(Tensor, (network or self.before)(low)).float()

    def threshold(self, error: Tensor) -> Tensor:
        """The S of errors (B, C, *spatial): the proximal operator of lambda times the penalty."""
        weight = self.settings.weight
        match self.settings.penalty:
            case "l1":
                return error.sign() * (error.abs() - weight).clamp(min=0)
            case "images":
                norm = error.flatten(1).square().mean(1).sqrt().clamp(min=1e-12)
                return error * (1 - weight / norm).clamp(min=0).view(-1, *[1] * (error.ndim - 1))
            case "pixels":
                return error * self.share

    def size(self, sparse: Tensor) -> Tensor:
        """The penalty of S (B, C, *spatial), mean over pixels, (B,); that over columns has no share of one image."""
        match self.settings.penalty:
            case "l1":
                return sparse.abs().flatten(1).mean(1)
            case "images":
                return sparse.flatten(1).square().mean(1).sqrt()
            case "pixels":
                return torch.zeros(len(sparse), device=sparse.device)

    def split(self, y: Tensor, network: nn.Module | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """L, S and D(E(L)) of deviations (B, C, *spatial).

        An image ends by itself, when S stands still or 1/2 |L - D(E(L))|^2 + lambda |S| falls no more (far from normal
        images a network may answer a change by a larger one).
        """

        def objective(sparse: Tensor, said: Tensor) -> Tensor:
            error = (y - sparse - said).square().flatten(1).mean(1)
            return 0.5 * error + self.settings.weight * self.size(sparse)

        single = (-1, *[1] * (y.ndim - 1))
        sparse, said = torch.zeros_like(y), self.said(y, network)
        lowest = objective(sparse, said)
        going = torch.ones(len(y), dtype=torch.bool, device=y.device)
        for _ in range(self.settings.iterations):
            following = self.threshold(y - said)
            answer = self.said(y - following, network)
            value = objective(following, answer)
            moved = (following - sparse).flatten(1).square().mean(1).sqrt()
            better = going & (value < lowest)
            sparse = torch.where(better.view(single), following, sparse)
            said = torch.where(better.view(single), answer, said)
            lowest = torch.where(better, value, lowest)
            going = better & (moved > self.settings.tolerance)
            if not bool(going.any()):
                break
        return y - sparse, sparse, said

    def _score(self, x: Tensor) -> Scores:
        y = self.standardise(x)
        _, sparse, said = self.split(y)
        error = (y - said).square().mean(1)
        noise = sparse.abs().mean(1)
        asked = noise if self.settings.score == "noise" else error
        image = noise.flatten(1).mean(1) if self.settings.score == "noise" else error.flatten(1).mean(1).sqrt()
        restored = self.standardise.inverse(said)
        return Scores(image=image, map=asked, restored=restored, extra_maps={"sparse": sparse * self.standardise.scale})
