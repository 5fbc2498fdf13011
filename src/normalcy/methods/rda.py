"""Robust deep autoencoder: X = L + S, with L reconstructable and S sparse; scored by the error of L or the size of S.

Zhou and Paffenroth 2017. The autoencoder learns L = X - S, then S becomes the remainder X - D(E(L)) after a threshold ``weight``
(lambda), in turn. So it can learn from a set that includes anomalies (outliers, corruption), which S then shows. The ``penalty``
sets the kind of sparsity:

==========  ============================================================================================================
``l1``      single pixels: soft threshold, sign(e) max(0, |e| - lambda)
``images``  whole images (l2,1 over the rows of X): e max(0, 1 - lambda / |e_i|), which finds anomalous images
``pixels``  pixels that are corrupted in many images (l2,1 over the columns of X)
==========  ============================================================================================================

Scores: ``noise``, the paper's, is mean |S|, 0 for every image that needs no S; ``error`` is the root mean square of X - D(E(L)).
Both means are over all pixels up to 32 pixels a side, above that over the largest 1 % of the map (``reduce``).

Rounds end before ``rounds`` when the constraint holds: c1 = |X - D(E(L)) - S| / |X| or c2, the change of D(E(L)) + S since the
round before, divided by |X|, is below ``constraint`` (both are kept in the buffer ``residuals``, a row for each round). c1 cannot
fall below what the threshold leaves of an image, so rounds usually end by c2 or by their number.

| | paper | authors' code | normalcy |
|---|---|---|---|
| S of a training image | kept from round to round | same | recomputed in each round: a function of the image, new ones too |
| unit of lambda | value of a pixel | same | scale of the training images: root mean square difference from their mean |
| norms | sums | same | root mean squares, so that one lambda suits all sizes and numbers of images |
| constraint holds to | 1e-7 | 1e-7, never reached: a fixed number of rounds | 1 %, about the limit of mini-batch training |
| network in a new round | goes on | starts anew (20 rounds of 50 epochs) | goes on; ``restart=true``: starts anew |
| an anomaly is | an image whose row of S is not 0 | same | an image with a high score; ``normalcy audit`` ranks training images |
| choice of lambda | by labels | same | setting; ``normalcy audit``: by the expected fraction of anomalies |
| networks | fully connected | same | those of ``autoencoder`` |

In each round S starts at 0 and is updated by S <- threshold(x - D(E(x - S))) while the objective falls and S moves by more than
``tolerance``. ``normalcy audit`` chooses the lambda with which S is not 0 for the expected fraction of the images.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn

from normalcy.config import require
from normalcy.method import Batches, Method, Objective, Scores, Stage
from normalcy.nets.convnets import Network, choose
from normalcy.nets.filters import Reduce, check_reduce, reduce_map
from normalcy.nets.scaling import Standardise

Score = Literal["error", "noise"]


@dataclass(frozen=True)
class RDASettings:
    score: Score = "error"
    """"error": root mean square of X - D(E(L)); "noise": mean |S|, as in the paper."""
    penalty: Literal["l1", "images", "pixels"] = "l1"
    """Sparsity of S: "l1", single pixels; "images", whole images; "pixels", pixels corrupted in many images."""
    weight: float = 0.5
    """lambda, the threshold, in units of the root mean square difference of the training images from their mean."""
    rounds: int = 5
    """Alternations between training and S; in the first S is 0."""
    restart: bool = False
    """Each round trains the network from new first weights (authors' code) instead of those of the round before."""
    iterations: int = 20
    """Maximum number of iterations for S and L of an image."""
    tolerance: float = 1e-3
    """Root mean square change of S, in the unit of ``weight``, below which the iterations end."""
    constraint: float = 0.01
    """Rounds end when c1 or c2 is below this; 0: never."""
    latent: int = 32
    """Latent dimension."""
    network: Network = "auto"
    """Encoder and decoder: "lenet" (5x5 convolutions, pooling), "dcgan" (strided 4x4 convolutions) or "auto", which is "lenet" up
    to 32 pixels, else "dcgan"."""
    width: int | None = None
    """Channels of the first level; none: 8 for a LeNet on one channel, else 32."""
    lr: float = 2e-3
    """Learning rate (Adam)."""
    reduce: Reduce = "auto"
    """Image score from the map, |S| or the squared error (then the root): "mean", "max" or "top" (largest 1 %), or this quantile,
    in [0, 1]; "auto": "mean" up to 32 pixels a side, else "top"."""

    def __post_init__(self) -> None:
        positive = ("rounds", "iterations", "latent", "lr", "tolerance")
        require("rda", self, positive=positive, non_negative=("weight", "constraint"))
        check_reduce("rda", self.reduce)


class RDA(Method):
    name = "rda"
    Settings = RDASettings
    family = "decomposition"
    reference = (
        "C. Zhou, R. C. Paffenroth. Anomaly detection with robust deep autoencoders. KDD, 2017. "
        "doi:10.1145/3097983.3098052"
    )
    scores = get_args(Score)
    map_scores = ("noise",)
    spatial_dims = (2, 3)
    search: ClassVar = {
        "weight": (0.1, 0.2, 0.5, 1.0, 2.0),
        "penalty": ("l1", "images", "pixels"),
        "latent": (8, 16, 32, 64),
    }
    not_exportable: ClassVar = dict.fromkeys(
        ("error", "noise"), "it separates each image into two parts by iteration; take autoencoder."
    )
    sparse_weight = "weight"
    audit_settings: ClassVar = {"penalty": "images"}
    settings: RDASettings
    share: Tensor
    residuals: Tensor

    def __init__(self, settings: RDASettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.standardise = Standardise(self.shape)
        self.network = self._untrained()
        self.before = copy.deepcopy(self.network)  # the network at the start of the round, which gives S and L
        self.register_buffer("share", torch.zeros(self.shape))  # "pixels": fraction of the error that goes to S
        self.register_buffer("residuals", torch.full((settings.rounds, 2), torch.inf))  # c1 and c2 after each round

    def _untrained(self) -> nn.Sequential:
        net = choose(self.settings.network, self.shape, self.settings.width)
        latent = self.settings.latent
        return nn.Sequential(net.encoder(self.shape, latent), net.decoder(self.shape, latent))

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
        """Whether the constraint held after a trained round."""
        return bool((self.residuals < self.settings.constraint).any())

    def reconstruction(self, low: Tensor) -> Mapping[str, Tensor]:
        """Mean squared error of standardised L."""
        return {"loss": (low - self.network(low).float()).square().mean()}

    def begin_round(self, batches: Batches) -> None:
        """Compute S with the network as trained so far, and record c1 and c2 of the round that ends here."""
        if self.converged():  # no round was trained since
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
            _, sparse, restored = self.split(y)
            whole += y.double().square().sum().cpu()
            left += (y - restored - sparse).double().square().sum().cpu()
            if done:
                _, sparse_before, restored_before = self.split(y, earlier)
                moved += (restored + sparse - restored_before - sparse_before).double().square().sum().cpu()
        whole = whole.clamp(min=1e-30)  # if all images are equal
        self.residuals[done, 0] = (left / whole).sqrt()
        if done:
            self.residuals[done, 1] = (moved / whole).sqrt()
        if self.settings.restart and not self.converged():
            self.network.load_state_dict(self._untrained().state_dict())

    def clean(self, x: Tensor) -> Tensor:
        """L of images (B, C, *spatial), standardised."""
        return self.split(self.standardise(x))[0]

    def reconstruct(self, low: Tensor, network: nn.Module | None = None) -> Tensor:
        """D(E(L)) of standardised L (B, C, *spatial), by ``network`` or by the one that the round started with."""
        return cast("Tensor", (network or self.before)(low)).float()

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
        """The penalty of S (B, C, *spatial), mean over pixels, (B,); 0 for "pixels", whose penalty is not a sum over images."""
        match self.settings.penalty:
            case "l1":
                return sparse.abs().flatten(1).mean(1)
            case "images":
                return sparse.flatten(1).square().mean(1).sqrt()
            case "pixels":
                return torch.zeros(len(sparse), device=sparse.device)

    def split(self, y: Tensor, network: nn.Module | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """L, S and D(E(L)) of standardised images (B, C, *spatial).

        Each image stops by itself, when S no longer moves or 1/2 |L - D(E(L))|^2 + lambda |S| no longer falls (far from normal
        images a network may amplify a change).
        """

        def objective(y: Tensor, sparse: Tensor, restored: Tensor) -> Tensor:
            error = (y - sparse - restored).square().flatten(1).mean(1)
            return 0.5 * error + self.settings.weight * self.size(sparse)

        sparse, restored = torch.zeros_like(y), self.reconstruct(y, network)
        lowest = objective(y, sparse, restored)
        going = torch.arange(len(y), device=y.device)  # images that have not stopped; the others cost nothing
        for _ in range(self.settings.iterations):
            image = y[going]
            following = self.threshold(image - restored[going])
            output = self.reconstruct(image - following, network)
            value = objective(image, following, output)
            moved = (following - sparse[going]).flatten(1).square().mean(1).sqrt()
            better = value < lowest[going]
            improved = going[better]
            sparse = sparse.index_copy(0, improved, following[better])
            restored = restored.index_copy(0, improved, output[better])
            lowest = lowest.index_copy(0, improved, value[better])
            going = going[better & (moved > self.settings.tolerance)]
            if len(going) == 0:
                break
        return y - sparse, sparse, restored

    def _score(self, x: Tensor) -> Scores:
        y = self.standardise(x)
        _, sparse, restored = self.split(y)
        error = (y - restored).square().mean(1)
        noise = sparse.abs().mean(1)
        map = noise if self.settings.score == "noise" else error
        image = reduce_map(map, self.settings.reduce)
        return Scores(
            image=image if self.settings.score == "noise" else image.sqrt(),
            map=map,
            restored=self.standardise.inverse(restored),
            extra_maps={"sparse": sparse * self.standardise.scale},
        )
