"""Convolutional autoencoder: what a narrow code of normal images cannot say is strange.

DCAE (the baseline of Ruff et al. 2018; LeNet type, squared error), AE-L2 and AE-SSIM (Bergmann et al. 2019; DCGAN type) are
settings of one method: ``network`` and ``loss``. The map is the error that training minimised.

Not in the papers: the networks see and give images as deviations from the mean training image, and have no norm layers
unless asked for (they learn faster and better so). On MNIST ``network="dcgan"`` does better than the LeNet of its size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from normalcy.errors import SettingsError
from normalcy.method import Method, Objective, Scores, Stage
from normalcy.nets.convnets import CLIP, Network, Norm, choose
from normalcy.nets.filters import Reduce, check_reduce, gaussian_smooth, reduce_map
from normalcy.nets.scaling import Standardise
from normalcy.nets.schedules import late_drop
from normalcy.nets.ssim import ssim_map


@dataclass(frozen=True)
class AutoencoderSettings:
    latent: int = 32
    """Numbers in the code of an image (Ruff et al.: 32 for MNIST, 128 for CIFAR-10; Bergmann et al.: 100 and 500)."""
    loss: Literal["l1", "l2", "ssim"] = "l2"
    """Error of a pixel: absolute or squared difference, mean over channels, or 1 - SSIM (for values in [0, 1])."""
    network: Network = "auto"
    """"auto": "lenet" up to 32 pixels, else "dcgan"."""
    width: int | None = None
    """Channels of the first level; none: 8 for a LeNet on one channel, else 32."""
    norm: Norm = "none"
    lr: float = 2e-3
    """Of Adam; a tenth of it in the last third of the training."""
    weight_decay: float = 1e-6
    smoothing: float = 0.0
    """Deviation of a Gaussian over the map, in pixels."""
    reduce: Reduce = "mean"
    """The image score: "mean" or "max" of the map, or this quantile of it, in [0, 1]."""

    def __post_init__(self) -> None:
        if self.latent < 1 or self.lr <= 0 or self.weight_decay < 0 or self.smoothing < 0:
            raise SettingsError(
                "autoencoder: latent and lr must be positive, weight_decay and smoothing not negative, "
                f"got {self.latent}, {self.lr}, {self.weight_decay} and {self.smoothing}."
            )
        check_reduce("autoencoder", self.reduce)


class Autoencoder(Method):
    name = "autoencoder"
    Settings = AutoencoderSettings
    spatial_dims = (2, 3)
    search: ClassVar = {
        "latent": (8, 16, 32, 64, 128, 256),
        "loss": ("l1", "l2", "ssim"),
        "reduce": ("mean", 0.9, 0.99, "max"),
    }
    settings: AutoencoderSettings

    def __init__(self, settings: AutoencoderSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        net = choose(settings.network, self.shape, settings.width, settings.norm)
        self.standardise = Standardise(self.shape)
        self.encoder = net.encoder(self.shape, settings.latent)
        self.decoder = net.decoder(self.shape, settings.latent)

    def encode(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> (B, latent)"""
        code: Tensor = self.encoder(self.standardise(x))
        return code.float()

    def decode(self, code: Tensor) -> Tensor:
        """(B, latent) -> (B, C, *spatial)"""
        return self.standardise.inverse(self.decoder(code).float())

    def error(self, x: Tensor, restored: Tensor) -> Tensor:
        """The error of each pixel, (B, *spatial)."""
        match self.settings.loss:
            case "l1":
                return (x - restored).abs().mean(1)
            case "l2":
                return (x - restored).square().mean(1)
            case "ssim":
                return 1 - ssim_map(x, restored)

    def reconstruction(self, x: Tensor) -> Mapping[str, Tensor]:
        return {"loss": self.error(x, self.decode(self.encode(x))).mean()}

    def stages(self) -> Sequence[Stage]:
        s = self.settings
        objective = Objective(
            self.reconstruction,
            self.parameters(),
            lr=s.lr,
            weight_decay=s.weight_decay,
            schedule=late_drop,
            clip_norm=CLIP,
        )
        return [Stage("reconstruction", [objective], epochs=30, batch_size=64, prepare=self.standardise.measure)]

    def _score(self, x: Tensor) -> Scores:
        code = self.encode(x)
        restored = self.decode(code)
        error = gaussian_smooth(self.error(x, restored), self.settings.smoothing)
        return Scores(image=reduce_map(error, self.settings.reduce), map=error, restored=restored, latent=code)
