"""DAGMM: energy of an image's latent code and reconstruction error under a jointly learned Gaussian mixture.

z consists of the latent code, the relative Euclidean distance |x - x'| / |x| and the cosine similarity of the image x and its
reconstruction x'. An estimation network predicts the membership of each z in ``components`` Gaussians; their weights, means and
covariances are then those of the batch (equation 5). The loss is the reconstruction error |x - x'|^2, plus 0.1 times the mean
energy E(z) = -log sum_k phi_k N(z; mu_k, Sigma_k), plus 0.005 times the sum of v_j / Sigma_k,jj, with v_j the variance of
coordinate j of z over the batch, which keeps the mixture from collapsing (Zong et al. 2018). The score is E(z) in nats under the
mixture of all training images.

| | paper | ports (the authors published no code) | normalcy |
| --- | --- | --- | --- |
| networks | fully connected, for tables | the same | convolutional, for images |
| latent dimension | 1 or 2 | the same | ``latent``, 4 |
| reconstruction error | sum over features | sum or mean | sum over pixels, in units of the training images' variance |
| covariances | inverted as they are | 1e-12 is added | Cholesky factors in 64 bits, relative ``floor`` added |
| penalty | sum of 1 / Sigma_k,jj | the same | in units of the variance of each coordinate |
| distance and cosine | of x and x' | the same | the same, although the networks see x minus the mean image |

Distance and cosine vary hundreds of times less than the code. Hence penalty and floor are relative to each coordinate: a common
floor would hide the two, and the paper's penalty rewards their variance, that is, poor reconstructions, so much that it can
outweigh the reconstruction error. ``floor`` keeps the density finite for small batches and for equal images.

The energy has no position in the image; ``map`` is the squared error. For a map of energies score patches:
``--method patchwise --set inner=dagmm --set inner_map=false``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from normalcy import config
from normalcy.method import Batches, Method, Objective, Scores, Stage
from normalcy.nets.convnets import Network, choose
from normalcy.nets.scaling import Standardise

TINY = 1e-8
"""Added to the variances of z of a batch: coordinates of equal images have none."""


@dataclass(frozen=True)
class DAGMMSettings:
    latent: int = 4
    """Latent dimension; z has two more (the paper: 1 or 2 for tables)."""
    components: int = 4
    """K, number of Gaussians."""
    hidden: int = 16
    """Units in the hidden layer of the estimation network."""
    dropout: float = 0.5
    """Dropout rate of the estimation network."""
    energy: float = 0.1
    """lambda_1, weight of the mean energy."""
    penalty: float = 0.005
    """lambda_2, weight of the sum of inverse variances, which are in units of each coordinate's variance."""
    floor: float = 1e-3
    """Added to the variances of the components, in units of the variance of the same coordinate of z over the batch."""
    network: Network = "auto"
    """"auto": "lenet" for sides of at most 32 pixels, else "dcgan". "lenet": 5x5 convolutions and max-pooling (Ruff et al. 2018);
    "dcgan": 4x4 convolutions of stride 2 (Radford et al. 2016)."""
    width: int | None = None
    """Channels of the first level; none: 8 for a LeNet on one channel, else 32."""
    lr: float = 1e-3
    """Learning rate (Adam; the paper: 1e-4 and 20,000 epochs)."""

    def __post_init__(self) -> None:
        positive = ("latent", "components", "hidden", "floor", "width", "lr")
        config.require("dagmm", self, positive=positive, non_negative=("energy", "penalty"))
        config.require_that(0 <= self.dropout < 1, "dagmm", "dropout", "at least 0 and below 1", self.dropout)


class DAGMM(Method):
    name = "dagmm"
    Settings = DAGMMSettings
    family = "density"
    reference = (
        "B. Zong, Q. Song, M. R. Min, W. Cheng, C. Lumezanu, D. Cho, H. Chen. Deep autoencoding Gaussian mixture model for "
        "unsupervised anomaly detection. ICLR, 2018."
    )
    spatial_dims = (2, 3)
    search: ClassVar = {"latent": (1, 2, 4, 8, 16), "components": (1, 2, 4, 8)}
    settings: DAGMMSettings
    weights: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, settings: DAGMMSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        s, size = settings, settings.latent + 2
        net = choose(s.network, self.shape, s.width)
        self.standardise = Standardise(self.shape)
        self.encoder = net.encoder(self.shape, s.latent)
        self.decoder = net.decoder(self.shape, s.latent)
        self.estimator = nn.Sequential(
            nn.Linear(size, s.hidden), nn.Tanh(), nn.Dropout(s.dropout), nn.Linear(s.hidden, s.components)
        )
        # The mixture of all training images: phi (k,), mu (k, d) and the lower Cholesky factors of Sigma (k, d, d).
        self.register_buffer("weights", torch.full((s.components,), 1 / s.components))
        self.register_buffer("means", torch.zeros(s.components, size))
        self.register_buffer("factors", torch.eye(size).repeat(s.components, 1, 1))

    def stages(self) -> Sequence[Stage]:
        objective = Objective(self.loss, self.parameters(), lr=self.settings.lr, clip_norm=5.0)
        return [
            Stage("joint", [objective], epochs=50, batch_size=128, prepare=self.standardise.measure),
            Stage("mixture", prepare=self.measure),
        ]

    def describe(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of images (B, C, *spatial): z (B, latent + 2), the standardised images and their reconstruction."""
        y = self.standardise(x)
        code = self.encoder(y).float()
        restored = cast("Tensor", self.decoder(code)).float()
        a, b = x.flatten(1), self.standardise.inverse(restored).flatten(1)
        relative = (a - b).norm(dim=1) / a.norm(dim=1).clamp(min=1e-6)
        cosine = nn.functional.cosine_similarity(a, b, dim=1, eps=1e-6)
        return torch.cat([code, relative[:, None], cosine[:, None]], 1), y, restored

    def memberships(self, z: Tensor) -> Tensor:
        """gamma, softmax of the estimation network: (B, d) -> (B, k)."""
        logits: Tensor = self.estimator(z)
        return logits.float().softmax(1)

    def loss(self, x: Tensor) -> Mapping[str, Tensor]:
        s = self.settings
        z, y, restored = self.describe(x)
        error = (y - restored).square().flatten(1).sum(1).mean()
        with torch.autocast(x.device.type, enabled=False):
            weights, means, covariances = moments(z.double(), self.memberships(z).double(), s.floor)
            energy = mixture_energy(z.double(), weights, means, torch.linalg.cholesky(covariances)).mean()
            penalty = (variances(z.double()) / covariances.diagonal(dim1=1, dim2=2)).sum()
        loss = error + (s.energy * energy + s.penalty * penalty).float()
        return {"loss": loss, "error": error, "energy": energy, "penalty": penalty}

    def measure(self, batches: Batches) -> None:
        """The mixture of all training images."""
        z = torch.cat([self.describe(x)[0] for x in batches])
        weights, means, covariances = moments(z.double(), self.memberships(z).double(), self.settings.floor)
        self.weights.copy_(weights)
        self.means.copy_(means)
        self.factors.copy_(torch.linalg.cholesky(covariances))

    def _score(self, x: Tensor) -> Scores:
        z, y, restored = self.describe(x)
        energy = mixture_energy(z.double(), self.weights.double(), self.means.double(), self.factors.double())
        return Scores(
            image=energy.float(),
            map=(y - restored).square().mean(1),
            restored=self.standardise.inverse(restored),
            latent=z,
        )


def moments(z: Tensor, gamma: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (k,), means (k, d) and covariances (k, d, d) of points z (B, d) with memberships gamma (B, k) (equation 5).

    ``floor`` times the variance of all points along a coordinate is added to the variances along it.
    """
    total = gamma.sum(0).clamp(min=1e-9)
    means = gamma.T @ z / total[:, None]
    centred = z[:, None] - means  # (B, k, d)
    covariances = torch.einsum("bk,bki,bkj->kij", gamma, centred, centred) / total[:, None, None]
    return total / len(z), means, covariances + torch.diag(floor * variances(z))


def variances(z: Tensor) -> Tensor:
    """Variance of each coordinate of points (B, d) -> (d,), without gradients and above 0 for equal points."""
    return z.detach().var(0, correction=0) + TINY


def mixture_energy(z: Tensor, weights: Tensor, means: Tensor, factors: Tensor) -> Tensor:
    """-log sum_k phi_k N(z; mu_k, L_k L_k^T) in nats, of points (B, d) -> (B,) (equation 6)."""
    centred = (z[:, None] - means).movedim(0, 2)  # (k, d, B)
    # ONNX has no triangular solver.
    solve = _forward_substitution if torch.compiler.is_compiling() else torch.linalg.solve_triangular
    whitened = solve(factors, centred, upper=False)
    log_density = -0.5 * (whitened.square().sum(1) + z.shape[1] * math.log(2 * math.pi))
    log_density = log_density - factors.diagonal(dim1=1, dim2=2).log().sum(1)[:, None]
    return -torch.logsumexp(log_density + weights.clamp(min=1e-300).log()[:, None], 0)


def _forward_substitution(factors: Tensor, right: Tensor, upper: bool = False) -> Tensor:
    """L^-1 right of lower triangular L (k, d, d) and right (k, d, B), in elementary operations."""
    rows: list[Tensor] = []
    for i in range(factors.shape[1]):
        row = right[:, i]
        for j, known in enumerate(rows):
            row = row - factors[:, i, j, None] * known
        rows.append(row / factors[:, i, i, None])
    return torch.stack(rows, 1)
