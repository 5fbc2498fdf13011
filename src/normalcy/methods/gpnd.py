"""Generative probabilistic novelty detection: how likely an image is near the linearised manifold of an adversarial autoencoder.

Source: Pidhorskyi, Almohsen, Doretto 2018. An encoder g and a decoder f learn to reconstruct while one discriminator tells
codes from draws of N(0, I) (D_z) and another tells images from decoded draws (D_x). Let z = g(x), J the Jacobian of f at z, m the
numbers in an image, n those in a code, and w the part of x - f(z) that is orthogonal to the tangent space at f(z). Then

    log p(x) = log p_Z(z) - log|det S| + log p_R(|w|) + log Gamma((m-n)/2) - log(2 pi^((m-n)/2)) - (m-n-1) log|w|

S holds the singular values of J, p_Z is a product of generalised normal densities fitted to the codes, p_R is the density of |w|,
and the last three terms spread it over the sphere of radius |w|. The score is -log p(x) in nats, for images in units of
their deviation; the map is (x - f(g(x)))^2.

The authors' code leaves out log|det S| and takes the whole of x - f(z) for w: ``jacobian=false``.
Different here: |w| to the m-n-1, which makes it a density, where the paper has m-n; p_R is a Gaussian kernel density instead of
a histogram, so it is nowhere 0; the reconstruction loss is the squared error in units of the images' variance; encoder and
decoder minimise -log D instead of log(1 - D), in one update per step, and the discriminators have a tenth of their rate.
Kept finite: |w|, S and the fitted scales have floors, shapes lie in [0.3, 10], -log p ends at the largest float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from scipy.stats import gennorm
from torch import Tensor, nn

from normalcy.errors import DataError, SettingsError
from normalcy.method import Batches, Method, Objective, Scores, Stage
from normalcy.nets.convnets import Network, Norm, choose
from normalcy.nets.densities import log_kernel_sum
from normalcy.nets.gan import discriminator_loss, generator_loss
from normalcy.nets.scaling import Standardise
from normalcy.nets.schedules import late_drop

FLOOR = 1e-4
"""Least residual (root mean square), singular value, scale of a code and bandwidth, in units of the images' deviation."""
SHAPES = (0.3, 10.0)
"""Range of the shape of a generalised normal density: 1 is Laplace's, 2 is Gauss's, infinity is uniform."""
LARGEST_JACOBIAN = 2**24
"""Numbers of Jacobians held at once, 64 MB of float32; the decoder on its way needs some ten times as much."""


@dataclass(frozen=True)
class GPNDSettings:
    latent: int = 16
    """Numbers in the code of an image (n)."""
    weight: float = 10.0
    """Of the reconstruction against the adversarial losses (lambda)."""
    fit_images: int = 2000
    """So many training images at most, evenly spaced, for the densities: a Jacobian costs ``latent`` decodings."""
    jacobian: bool = True
    """The determinant and the tangent space count (the paper); false: neither (the authors' code)."""
    network: Network = "auto"
    """"auto": "lenet" up to 32 pixels, else "dcgan"."""
    width: int | None = None
    """Channels of the first level; none: 8 for a LeNet on one channel, else 32."""
    norm: Norm = "none"
    """Of encoder and decoder."""
    lr: float = 2e-3
    """Of Adam on encoder and decoder; a tenth of it in the last third of the training."""
    critic_lr: float = 2e-4
    """The same for the discriminators."""

    def __post_init__(self) -> None:
        if min(self.latent, self.fit_images) < 1 or min(self.weight, self.lr, self.critic_lr) <= 0:
            raise SettingsError("gpnd: latent, weight, fit_images, lr and critic_lr must be positive.")


class GPND(Method):
    """Encoder and decoder work on standardised images, and so do all formulas up to ``_score``."""

    name = "gpnd"
    Settings = GPNDSettings
    spatial_dims = (2, 3)
    settings: GPNDSettings
    location: Tensor
    scale: Tensor
    exponent: Tensor
    norms: Tensor

    def __init__(self, settings: GPNDSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        m, n = math.prod(self.shape), settings.latent
        if m - n < 2:
            raise DataError(f"gpnd: images {self.shape} have too few numbers for a code of {n}: make latent smaller.")
        net = choose(settings.network, self.shape, settings.width, settings.norm)
        self.standardise = Standardise(self.shape)
        self.encoder = net.encoder(self.shape, n)
        self.decoder = net.decoder(self.shape, n)
        self.image_critic = choose(settings.network, self.shape, settings.width).encoder(self.shape, 1)  # D_x
        self.code_critic = nn.Sequential(  # D_z
            nn.Linear(n, 128), nn.LeakyReLU(0.2), nn.Linear(128, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1)
        )
        for name in ("location", "scale", "exponent"):  # of the density of each number of a code
            self.register_buffer(name, torch.ones(n))
        self.learned("norms")  # |w| of training images, (k,)

    def encode(self, x: Tensor) -> Tensor:
        """g: (B, C, *spatial) -> (B, n)"""
        code: Tensor = self.encoder(x)
        return code.float()

    def decode(self, z: Tensor) -> Tensor:
        """f: (B, n) -> (B, C, *spatial)"""
        image: Tensor = self.decoder(z)
        return image.float()

    # -- training

    def discriminate(self, x: Tensor) -> Mapping[str, Tensor]:
        """D_x: images against decoded noise; D_z: noise against codes."""
        x = self.standardise(x)
        z = self.encode(x).detach()
        noise = torch.randn_like(z)
        images = discriminator_loss(self.image_critic, x, self.decode(noise).detach())
        codes = discriminator_loss(self.code_critic, noise, z)
        return {"loss": images + codes, "images": images, "codes": codes}

    def generate(self, x: Tensor) -> Mapping[str, Tensor]:
        """Reconstruct, and deceive both discriminators."""
        x = self.standardise(x)
        z = self.encode(x)
        error = (x - self.decode(z)).square().mean()
        images = generator_loss(self.image_critic, self.decode(torch.randn_like(z)))
        codes = generator_loss(self.code_critic, z)
        return {"loss": images + codes + self.settings.weight * error, "images": images, "codes": codes, "error": error}

    def stages(self) -> Sequence[Stage]:
        s = self.settings
        critics = list(chain(self.image_critic.parameters(), self.code_critic.parameters()))
        networks = list(chain(self.encoder.parameters(), self.decoder.parameters()))
        game = [
            Objective(self.discriminate, critics, lr=s.critic_lr, betas=(0.5, 0.999), schedule=late_drop),
            Objective(self.generate, networks, lr=s.lr, betas=(0.5, 0.999), schedule=late_drop),
        ]
        return [
            Stage("adversarial", game, epochs=80, batch_size=128, prepare=self.standardise.measure),
            Stage("density", prepare=self._fit_densities),
        ]

    # -- density

    def tangent(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """An orthonormal basis of the tangent space at f(z), (B, m, n), and the singular values of J, (B, n).

        Directions in which f does not move (singular values below FLOOR) are zero in the basis.
        """
        directions = torch.eye(z.shape[1], device=z.device)

        def move(direction: Tensor) -> Tensor:
            moved: Tensor = torch.func.jvp(self.decode, (z,), (direction.expand_as(z),))[1]
            return moved

        chunk = max(1, LARGEST_JACOBIAN // (len(z) * math.prod(self.shape)))
        columns = torch.func.vmap(move, chunk_size=chunk)(directions)  # (n, B, C, *spatial)
        q, r = torch.linalg.qr(columns.flatten(2).permute(1, 2, 0))
        u, singular, _ = torch.linalg.svd(r)
        return (q @ u) * (singular > FLOOR).unsqueeze(1), singular.clamp(min=FLOOR)

    def parts(self, x: Tensor, z: Tensor, restored: Tensor) -> tuple[Tensor, Tensor]:
        """log|det S| and |w|, each (B,), in double precision on the processor."""
        least = FLOOR * math.sqrt(math.prod(self.shape))
        if not self.settings.jacobian:
            whole = (x - restored).flatten(1).cpu().double().norm(dim=1)
            return torch.zeros_like(whole), whole.clamp(min=least)
        log_det, norms = [], []
        at_once = max(1, LARGEST_JACOBIAN // (math.prod(self.shape) * z.shape[1]))
        for code, residual in zip(torch.split(z, at_once), torch.split((x - restored).flatten(1), at_once)):
            basis, singular = self.tangent(code)
            along = (basis * residual.unsqueeze(2)).sum(1, keepdim=True)
            norms.append((residual - (basis * along).sum(2)).cpu().double().norm(dim=1))
            log_det.append(singular.cpu().double().log().sum(1))
        return torch.cat(log_det), torch.cat(norms).clamp(min=least)

    def log_density(self, x: Tensor, z: Tensor, restored: Tensor) -> Tensor:
        """log p of standardised images (B, C, *spatial) with z = g(x) and f(z), in nats, (B,)."""
        log_det, norm = self.parts(x, z, restored)
        codes = generalised_normal(z, self.location, self.scale, self.exponent).sum(1)
        return codes - log_det + kernel_density(norm, self.norms) + direction(norm, math.prod(self.shape) - z.shape[1])

    def _fit_densities(self, batches: Batches) -> None:
        every = math.ceil(batches.count / self.settings.fit_images)
        codes, norms, seen = [], [], 0
        for batch in batches:
            x = self.standardise(batch[-seen % every :: every])
            seen += len(batch)
            if not len(x):
                continue
            z = self.encode(x)
            codes.append(z)
            norms.append(self.parts(x, z, self.decode(z))[1])
        fits = [fit_generalised_normal(values) for values in torch.cat(codes).T]
        self.location, self.scale, self.exponent = torch.tensor(fits).T.contiguous()
        self.norms = torch.cat(norms).float()

    def _score(self, x: Tensor) -> Scores:
        y = self.standardise(x)
        z = self.encode(y)
        image = self.decode(z)
        score = -self.log_density(y, z, image)
        restored = self.standardise.inverse(image)
        return Scores(
            image=score.clamp(max=torch.finfo(torch.float32).max).float().to(x.device),
            map=(x - restored).square().mean(1),
            restored=restored,
            latent=z,
        )


def generalised_normal(x: Tensor, location: Tensor, scale: Tensor, exponent: Tensor) -> Tensor:
    """log of  b / (2 a Gamma(1/b)) exp(-(|x - mu| / a)^b)  for numbers x (..., n) and mu, a, b (n,); double precision."""
    x, mu, a, b = (t.cpu().double() for t in (x, location, scale, exponent))
    return torch.log(b / (2 * a)) - torch.lgamma(1 / b) - ((x - mu).abs() / a) ** b


def fit_generalised_normal(values: Tensor) -> tuple[float, float, float]:
    """Location, scale and shape of greatest likelihood for numbers (N,), within FLOOR and SHAPES."""
    x = values.cpu().double().numpy()
    mean, deviation = float(x.mean()), float(x.std())
    if deviation < FLOOR:
        return mean, FLOOR, 2.0
    exponent, location, scale = gennorm.fit(x, 2.0, loc=mean, scale=math.sqrt(2) * deviation)
    if not SHAPES[0] <= exponent <= SHAPES[1]:
        exponent = min(max(exponent, SHAPES[0]), SHAPES[1])
        _, location, scale = gennorm.fit(x, f0=exponent, loc=mean, scale=math.sqrt(2) * deviation)
    return float(location), max(float(scale), FLOOR), float(exponent)


def kernel_density(norm: Tensor, norms: Tensor) -> Tensor:
    """log of the Gaussian kernel density of ``norms`` (k,) at norm (B,); bandwidth by Scott's rule, 1.06 std k^(-1/5).

    Never -inf: far away it falls as a parabola.
    """
    points = norms.cpu().double()
    bandwidth = 1.06 * float(points.std(correction=0)) * len(points) ** -0.2
    bandwidth = max(bandwidth, FLOOR * float(points.mean()))
    normaliser = math.log(len(points) * bandwidth * math.sqrt(2 * math.pi))
    return log_kernel_sum(norm.unsqueeze(1), points.unsqueeze(1), 0.5 / bandwidth**2) - normaliser


def direction(norm: Tensor, dims: int) -> Tensor:
    """log of 1 / area of the sphere of radius |w| (B,) in ``dims`` dimensions: turns a density of |w| into one of w."""
    return math.lgamma(dims / 2) - math.log(2) - dims / 2 * math.log(math.pi) - (dims - 1) * norm.log()
