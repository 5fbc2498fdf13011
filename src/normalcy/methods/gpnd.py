"""GPND: the score is the negative log-likelihood of an image under the linearised manifold of an adversarial autoencoder.

Generative probabilistic novelty detection (Pidhorskyi, Almohsen, Doretto 2018). An encoder g and a decoder f are trained to
reconstruct; a discriminator D_z separates latent codes from samples of N(0, I), another one, D_x, images from decoded samples.
Let z = g(x), J the Jacobian of f at z, m the number of values of an image, n the latent dimension, and w the component of
x - f(z) orthogonal to the tangent space at f(z). Then

    log p(x) = log p_Z(z) - log|det S| + log p_R(|w|) + log Gamma((m-n)/2) - log(2 pi^((m-n)/2)) - (m-n-1) log|w|

S holds the singular values of J, p_Z is a product of generalised normal densities fitted to the latent codes, p_R is the density
of |w|, and the last three terms distribute it over the sphere of radius |w|. The score is -log p(x) in nats, of standardised
images; the map is (x - f(g(x)))^2.

| | paper | authors' code | normalcy |
| --- | --- | --- | --- |
| log of det S | of the decoder's Jacobian | off (of the encoder's, same sign) | of the decoder's; ``jacobian=false``: omitted |
| residual | orthogonal part w | x - f(z) | orthogonal part; ``jacobian=false``: x - f(z) |
| power of the norm of w | m - n | 0.2 (400 - n) - 1, m is 1,024 | m - n - 1, which makes it a density; times ``power`` |
| p_R | histogram | histogram of 30 bins | Gaussian kernel density, nowhere 0 |
| reconstruction loss | | | squared error in units of the images' variance |
| networks | | 4x4 convolutions, 64 to 512 channels, batch norm | ``network``: a LeNet up to 32 pixels, ``width``, ``norm`` none |
| adversarial loss of g and f | log(1 - D) | -log D | -log D, in one update per step |
| learning rate of D_z, D_x | | | a tenth of that of g and f |

Scores stay finite: |w|, S and the fitted scales have lower bounds, fitted shapes lie in [0.3, 10], and -log p is at most the
largest float32.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import torch
from scipy.stats import gennorm
from torch import Tensor, nn

from normalcy import config
from normalcy.errors import DataError
from normalcy.method import Batches, Method, Objective, Scores, Stage
from normalcy.nets.convnets import Network, Norm, choose
from normalcy.nets.densities import log_kernel_sum
from normalcy.nets.gan import discriminator_loss, generator_loss
from normalcy.nets.scaling import Standardise
from normalcy.nets.schedules import late_drop

FLOOR = 1e-4
"""Lower bound of residual (root mean square), singular values, scales of codes and bandwidth, for standardised images."""
SHAPES = (0.3, 10.0)
"""Range of the shape of a generalised normal density: 1 is a Laplace, 2 a normal, infinity a uniform distribution."""
LARGEST_JACOBIAN = 2**24
"""Values of Jacobians held at once, 64 MB of float32; computing them needs about ten times as much in the decoder."""
ONE_AT_A_TIME = threading.Lock()
"""Around forward-mode differentiation, of whose levels PyTorch keeps one count for all threads."""


@dataclass(frozen=True)
class GPNDSettings:
    latent: int = 16
    """n, latent dimension."""
    weight: float = 10.0
    """lambda, weight of the reconstruction loss against the adversarial losses."""
    fit_images: int = 2000
    """Maximum number of training images, evenly spaced, for fitting the densities; a Jacobian costs ``latent`` decodings."""
    jacobian: bool = True
    """Include log|det S| and the tangent space (the paper); false: neither, and the residual is x - f(z)."""
    power: float = 1.0
    """Factor of the last term, the power of the residual's norm; in the authors' code 0.2 with m = 400, which is 0.08 with the m
    of their images, 1,024."""
    network: Network = "auto"
    """"auto": "lenet" for sides of at most 32 pixels, else "dcgan". "lenet": 5x5 convolutions and max-pooling (Ruff et al. 2018);
    "dcgan": 4x4 convolutions of stride 2 (Radford et al. 2016)."""
    width: int | None = None
    """Channels of the first level; none: 8 for a LeNet on one channel, else 32."""
    norm: Norm = "none"
    """Normalisation after each convolution of encoder and decoder: "batch", "group" or "none"."""
    lr: float = 2e-3
    """Learning rate of encoder and decoder (Adam); a tenth of it in the last third of the training."""
    critic_lr: float = 2e-4
    """Learning rate of both discriminators (Adam), with the same schedule."""

    def __post_init__(self) -> None:
        config.require("gpnd", self, positive=("latent", "weight", "fit_images", "power", "width", "lr", "critic_lr"))


class GPND(Method):
    """Encoder and decoder work on standardised images, and so do all formulas up to ``_score``."""

    name = "gpnd"
    Settings = GPNDSettings
    family = "adversarial"
    reference = (
        "S. Pidhorskyi, R. Almohsen, G. Doretto. Generative probabilistic novelty detection with adversarial autoencoders. "
        "NeurIPS, 2018. arXiv:1807.02588."
    )
    spatial_dims = (2, 3)
    not_exportable: ClassVar = {
        "": "it linearises the decoder at each image; take vae with score=elbo, or autoencoder."
    }
    settings: GPNDSettings
    location: Tensor
    scale: Tensor
    exponent: Tensor
    norms: Tensor

    def __init__(self, settings: GPNDSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        m, n = math.prod(self.shape), settings.latent
        if m - n < 2:
            raise DataError(
                f"gpnd expects images of at least latent + 2 = {n + 2} values, got {self.shape}: reduce latent."
            )
        net = choose(settings.network, self.shape, settings.width, settings.norm)
        self.standardise = Standardise(self.shape)
        self.encoder = net.encoder(self.shape, n)
        self.decoder = net.decoder(self.shape, n)
        self.image_critic = choose(settings.network, self.shape, settings.width).encoder(self.shape, 1)  # D_x
        self.code_critic = nn.Sequential(  # D_z
            nn.Linear(n, 128), nn.LeakyReLU(0.2), nn.Linear(128, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1)
        )
        for name in ("location", "scale", "exponent"):  # of the density of each latent dimension
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
        """D_x: images against decoded samples; D_z: samples against latent codes."""
        x = self.standardise(x)
        z = self.encode(x).detach()
        noise = torch.randn_like(z)
        images = discriminator_loss(self.image_critic, x, self.decode(noise).detach())
        codes = discriminator_loss(self.code_critic, noise, z)
        return {"loss": images + codes, "images": images, "codes": codes}

    def generate(self, x: Tensor) -> Mapping[str, Tensor]:
        """Of encoder and decoder: reconstruction and both adversarial losses."""
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

        Directions with singular values below FLOOR, in which f is constant, are zero in the basis.
        """
        directions = torch.eye(z.shape[1], device=z.device)

        def move(direction: Tensor) -> Tensor:
            moved: Tensor = torch.func.jvp(self.decode, (z,), (direction.expand_as(z),))[1]
            return moved

        chunk = max(1, LARGEST_JACOBIAN // (len(z) * math.prod(self.shape)))
        with ONE_AT_A_TIME:
            columns = torch.func.vmap(move, chunk_size=chunk)(directions)  # (n, B, C, *spatial)
        q, r = torch.linalg.qr(columns.flatten(2).permute(1, 2, 0))
        u, singular, _ = torch.linalg.svd(r)
        return (q @ u) * (singular > FLOOR).unsqueeze(1), singular.clamp(min=FLOOR)

    def parts(self, x: Tensor, z: Tensor, restored: Tensor) -> tuple[Tensor, Tensor]:
        """log|det S| and |w|, each (B,), in double precision on the CPU."""
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
        sphere = self.settings.power * direction(norm, math.prod(self.shape) - z.shape[1])
        return codes - log_det + kernel_density(norm, self.norms) + sphere

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
    """log of  b / (2 a Gamma(1/b)) exp(-(|x - mu| / a)^b)  for x (..., n) and mu, a, b (n,); double precision."""
    x, mu, a, b = (t.cpu().double() for t in (x, location, scale, exponent))
    return torch.log(b / (2 * a)) - torch.lgamma(1 / b) - ((x - mu).abs() / a) ** b


def fit_generalised_normal(values: Tensor) -> tuple[float, float, float]:
    """Maximum-likelihood location, scale and shape for values (N,), within FLOOR and SHAPES."""
    x = values.cpu().double().numpy()
    mean, std = float(x.mean()), float(x.std())
    if std < FLOOR:
        return mean, FLOOR, 2.0
    exponent, location, scale = gennorm.fit(x, 2.0, loc=mean, scale=math.sqrt(2) * std)
    if not SHAPES[0] <= exponent <= SHAPES[1]:
        exponent = min(max(exponent, SHAPES[0]), SHAPES[1])
        _, location, scale = gennorm.fit(x, f0=exponent, loc=mean, scale=math.sqrt(2) * std)
    return float(location), max(float(scale), FLOOR), float(exponent)


def kernel_density(norm: Tensor, norms: Tensor) -> Tensor:
    """log of the Gaussian kernel density of ``norms`` (k,) at norm (B,); bandwidth by Scott's rule, 1.06 std k^(-1/5).

    Finite everywhere: far away it falls quadratically.
    """
    points = norms.cpu().double()
    bandwidth = 1.06 * float(points.std(correction=0)) * len(points) ** -0.2
    bandwidth = max(bandwidth, FLOOR * float(points.mean()))
    normaliser = math.log(len(points) * bandwidth * math.sqrt(2 * math.pi))
    return log_kernel_sum(norm.unsqueeze(1), points.unsqueeze(1), 0.5 / bandwidth**2) - normaliser


def direction(norm: Tensor, dims: int) -> Tensor:
    """log of 1 / area of the sphere of radius |w| (B,) in ``dims`` dimensions: turns a density of |w| into one of w."""
    return math.lgamma(dims / 2) - math.log(2) - dims / 2 * math.log(math.pi) - (dims - 1) * norm.log()
