"""Gaussian variational autoencoder with the anomaly scores proposed in the literature (error, KL, ELBO, gradients).

Prior N(0, I), posterior N(mean(x), diag(exp(logvar(x)))), observations N(decoder(z), sigma^2 I) with one ``sigma`` for all
pixels, learned by default ("sigma-VAE", Rybkin et al. 2021), so that the data determine the balance of error and KL, and
everything is in nats per image.

Scores (x^ decodes the posterior mean; expectations over q(z|x) are means over ``samples`` draws, the same for all images;
gradients are taken at the posterior mean, as in the authors' code):

=============================  =========================================================================================
``reconstruction``             (x - x^)^2
``kl``                         KL(q(z|x) || p(z)) in nats; no map
``reconstruction_probability`` -E log p(x|z) in nats (An, Cho 2015); the map has the nats of each pixel
``elbo``                       -ELBO = -E log p(x|z) + KL in nats; the map as above, since the KL has no position in the image
``gradient_kl``                |dKL/dx|, mean over channels (Zimmerer et al. 2018, 2019)
``gradient_reconstruction``    |dE log p(x|z)/dx|, through the encoder too
``gradient_elbo``              |dELBO/dx|, the derivative of the estimate of log p(x)
``combined``                   |dKL/dx| times (x - x^)^2, both smoothed
=============================  =========================================================================================

The authors' code of ``combined`` (MIC-DKFZ/vae-anomaly-experiments) scales |dKL/dx| to [0, 1] over a batch, smooths it, and
multiplies it by the negative log-likelihood of the pixel for sigma = 1, (x - x^)^2 / 2 + log(2 pi) / 2, not smoothed. Its
Gaussian, of 3 pixels, is cut at a window of 7x7 pixels.

Of the maps, ``combined`` finds synthetic anomalies in normal images of three sets best (``recipes/vae_scores.py``). The default
is ``reconstruction``, which needs no gradients and can be exported.

Scores in nats are sums over the image; all others reduce their smoothed map (``reduce``). ``beta`` affects training alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn

from normalcy.config import require
from normalcy.method import Method, Objective, Scores, Stage
from normalcy.nets.convnets import CLIP, Network, Norm, choose
from normalcy.nets.densities import kl_to_standard
from normalcy.nets.filters import Reduce, check_reduce, gaussian_smooth, reduce_map
from normalcy.nets.noise import fixed_noise
from normalcy.nets.scaling import Standardise
from normalcy.nets.schedules import late_drop

Score = Literal[
    "reconstruction",
    "kl",
    "elbo",
    "reconstruction_probability",
    "gradient_elbo",
    "gradient_kl",
    "gradient_reconstruction",
    "combined",
]


@dataclass(frozen=True)
class VAESettings:
    latent: int = 32
    """Latent dimension."""
    score: Score = "reconstruction"
    """Squared error ("reconstruction"), "kl", "reconstruction_probability", "elbo", gradients of these with respect to the image
    ("gradient_kl", "gradient_reconstruction", "gradient_elbo"), or "combined": KL gradient times squared error."""
    beta: float = 1.0
    """Weight of the KL in training."""
    sigma: float | None = None
    """Standard deviation of an observed pixel, in the value range of the images; none: learned."""
    samples: int = 4
    """Draws from the posterior in an expectation when scoring (L of An, Cho)."""
    network: Network = "auto"
    """Encoder and decoder: "lenet" (5x5 convolutions, pooling), "dcgan" (strided 4x4 convolutions) or "auto", which is "lenet" up
    to 32 pixels, else "dcgan"."""
    width: int | None = None
    """Channels of the first level; none: 8 for a LeNet on one channel, else 32."""
    norm: Norm = "none"
    """Normalisation layers of encoder and decoder: "batch", "group" or "none"."""
    lr: float = 2e-3
    """Learning rate (Adam); a tenth of it in the last third of the training."""
    weight_decay: float = 0.0
    """Weight decay (Adam)."""
    smoothing: float | None = None
    """Standard deviation of the Gaussian that smooths the map, in pixels; 0: no smoothing; none: 1, or 3 for gradients (as in the
    authors' code)."""
    reduce: Reduce = "auto"
    """Image score of the scores not in nats: "mean", "max" or "top" (mean of the largest 1 %) of the map, or this quantile of it,
    in [0, 1]; "auto": "mean" up to 32 pixels a side, else "top"."""

    def __post_init__(self) -> None:
        non_negative = ("beta", "weight_decay", "smoothing")
        require("vae", self, positive=("latent", "samples", "lr", "sigma"), non_negative=non_negative)
        check_reduce("vae", self.reduce)


class VAE(Method):
    name = "vae"
    Settings = VAESettings
    family = "reconstruction"
    reference = (
        "D. P. Kingma, M. Welling. Auto-encoding variational Bayes. ICLR, 2014. arXiv:1312.6114\n"
        "Learned sigma: O. Rybkin, K. Daniilidis, S. Levine. Simple and effective VAE training with calibrated "
        "decoders. ICML, 2021. arXiv:2006.13202\n"
        "Reconstruction probability: J. An, S. Cho. Variational autoencoder based anomaly detection using "
        "reconstruction probability. Technical report, SNU Data Mining Center, 2015\n"
        "Gradients: D. Zimmerer, J. Petersen, S. A. A. Kohl, K. H. Maier-Hein. A case for the score: identifying "
        "image anomalies using variational autoencoder gradients. arXiv:1912.00003, 2018\n"
        "Gradients: D. Zimmerer, F. Isensee, J. Petersen, S. Kohl, K. Maier-Hein. Unsupervised anomaly "
        "localization using variational auto-encoders. MICCAI, 2019. arXiv:1907.12258"
    )
    scores = get_args(Score)
    spatial_dims = (2, 3)
    search: ClassVar = {"latent": (8, 16, 32, 64, 128), "score": get_args(Score), "beta": (0.1, 1.0, 4.0)}
    not_exportable: ClassVar = dict.fromkeys(
        ("gradient_elbo", "gradient_kl", "gradient_reconstruction", "combined"),
        "it is a gradient with respect to the image; take score=elbo or score=reconstruction.",
    )
    map_scores = ("reconstruction", "gradient_elbo", "gradient_kl", "gradient_reconstruction", "combined")
    settings: VAESettings

    def __init__(self, settings: VAESettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        net = choose(settings.network, self.shape, settings.width, settings.norm)
        self.standardise = Standardise(self.shape)
        self.encoder = net.encoder(self.shape, 2 * settings.latent)
        self.decoder = net.decoder(self.shape, settings.latent)
        with (
            torch.no_grad()
        ):  # the posterior starts near the prior; extreme variances at the start can spoil the training
            cast("nn.Linear", self.encoder[-1]).weight.mul_(0.1)
        if settings.sigma is None:
            # In units of the images' scale. Adam moves a parameter by about lr a step: with a tenth of the logarithm sigma
            # keeps up with the falling error.
            self.tenth_log_sigma = nn.Parameter(torch.tensor(math.log(0.5) / 10))

    @property
    def log_sigma(self) -> Tensor:
        """Logarithm of the standard deviation of an observed pixel, in the value range of the images."""
        if self.settings.sigma is not None:
            return torch.tensor(math.log(self.settings.sigma), device=self.device)
        return self.standardise.scale.log() + 10 * self.tenth_log_sigma

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), each (B, latent)."""
        mean, logvar = self.encoder(self.standardise(x)).float().chunk(2, dim=1)
        return mean, logvar.clamp(-30, 30)  # exp() must stay finite for any image

    def decode(self, z: Tensor) -> Tensor:
        """Mean of p(x|z): (B, latent) -> (B, C, *spatial)."""
        return self.standardise.inverse(self.decoder(z).float())

    def kl(self, mean: Tensor, logvar: Tensor) -> Tensor:
        """KL(q(z|x) || p(z)) in nats, (B,)."""
        return kl_to_standard(mean, logvar)

    def log_likelihood(self, x: Tensor, mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
        """log p(x|z) of each pixel in nats, (B, *spatial), at z = mean + std * noise; noise (B or 1, latent)."""
        z = mean + (0.5 * logvar).exp() * noise
        error = (x - self.decode(z)) * (-self.log_sigma).exp()
        return (-0.5 * error.square() - self.log_sigma - 0.5 * math.log(2 * math.pi)).sum(1)

    def negative_elbo(self, x: Tensor) -> Mapping[str, Tensor]:
        """Nats per image, mean over the batch; one draw from the posterior."""
        mean, logvar = self.encode(x)
        nll = -self.log_likelihood(x, mean, logvar, torch.randn_like(mean)).flatten(1).sum(1).mean()
        kl = self.kl(mean, logvar).mean()
        return {"loss": nll + self.settings.beta * kl, "nll": nll, "kl": kl, "sigma": self.log_sigma.exp()}

    def stages(self) -> Sequence[Stage]:
        s = self.settings
        objective = Objective(
            self.negative_elbo,
            self.parameters(),
            lr=s.lr,
            weight_decay=s.weight_decay,
            schedule=late_drop,
            clip_norm=CLIP * math.prod(self.shape),  # the loss grows with the number of pixels
        )
        return [Stage("elbo", [objective], epochs=30, batch_size=64, prepare=self.standardise.measure)]

    def _score(self, x: Tensor) -> Scores:
        mean, logvar = self.encode(x)
        restored = self.decode(mean)
        name = self.settings.score
        smoothing = 1.0 if self.settings.smoothing is None else self.settings.smoothing
        match name:
            case "kl":
                return Scores(image=self.kl(mean, logvar), restored=restored, latent=mean)
            case "elbo" | "reconstruction_probability":
                nll = -torch.stack([self.log_likelihood(x, mean, logvar, e) for e in self._noise()]).mean(0)
                nats = nll.flatten(1).sum(1)
                image = nats + self.kl(mean, logvar) if name == "elbo" else nats
                return Scores(image=image, map=gaussian_smooth(nll, smoothing), restored=restored, latent=mean)
        factors = []
        if name in ("reconstruction", "combined"):
            factors.append(gaussian_smooth((x - restored).square().mean(1), smoothing))
        if name in ("gradient_kl", "gradient_elbo", "gradient_reconstruction", "combined"):
            likelihood = name in ("gradient_elbo", "gradient_reconstruction")
            gradient = self.gradient(x, kl=name != "gradient_reconstruction", likelihood=likelihood)
            factors.append(gaussian_smooth(gradient, 3.0 if self.settings.smoothing is None else smoothing))
        map = factors[0] * factors[1] if name == "combined" else factors[0]
        return Scores(image=reduce_map(map, self.settings.reduce), map=map, restored=restored, latent=mean)

    def gradient(self, x: Tensor, *, kl: bool, likelihood: bool) -> Tensor:
        """|d(-ELBO)/dx| at the posterior mean, or of its KL or its likelihood alone, mean over channels, (B, *spatial), nats
        per unit of x."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            mean, logvar = self.encode(x)
            total = torch.zeros_like(x)
            if kl:
                total += torch.autograd.grad(self.kl(mean, logvar).sum(), x, retain_graph=True)[0]
            if likelihood:
                value = self.log_likelihood(x, mean, logvar, torch.zeros_like(mean[:1])).sum()
                total -= torch.autograd.grad(value, x)[0]
        return total.abs().mean(1)

    def _noise(self) -> list[Tensor]:
        """``samples`` draws (1, latent), the same for every image and every call."""
        return list(fixed_noise(self.settings.samples, 1, self.settings.latent).to(self.device))
