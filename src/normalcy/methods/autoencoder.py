"""Convolutional autoencoder; the anomaly score is the reconstruction error.

DCAE (the baseline of Ruff et al. 2018: LeNet type, squared error), AE-L2 and AE-SSIM (Bergmann et al. 2019: DCGAN type) are
settings of one method: ``network`` and ``loss``. The map is the error that training minimises.

| | papers | normalcy |
| --- | --- | --- |
| input and output of the networks | the image | its difference from the mean training image |
| normalisation layers | batch norm (DCAE) | none, unless ``norm`` is given |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from normalcy import config
from normalcy.method import Method, Objective, Scores, Stage
from normalcy.nets.convnets import CLIP, Network, Norm, choose
from normalcy.nets.filters import Reduce, check_reduce, gaussian_smooth, reduce_map
from normalcy.nets.scaling import Standardise
from normalcy.nets.schedules import late_drop
from normalcy.nets.ssim import ssim_map


@dataclass(frozen=True)
class AutoencoderSettings:
    latent: int = 32
    """Latent dimension (Ruff et al.: 32 for MNIST, 128 for CIFAR-10; Bergmann et al.: 100 and 500)."""
    loss: Literal["l1", "l2", "ssim"] = "l2"
    """Error of a pixel: "l1" absolute or "l2" squared difference, mean over channels; "ssim": 1 - SSIM (values in [0, 1])."""
    network: Network = "auto"
    """"auto": "lenet" for sides of at most 32 pixels, else "dcgan". "lenet": 5x5 convolutions and max-pooling (Ruff et al. 2018);
    "dcgan": 4x4 convolutions of stride 2 (Radford et al. 2016)."""
    width: int | None = None
    """Channels of the first level; none: 8 for a LeNet on one channel, else 32."""
    norm: Norm = "none"
    """Normalisation after each convolution: "batch", "group" or "none"."""
    lr: float = 2e-3
    """Learning rate (Adam); a tenth of it in the last third of the training."""
    weight_decay: float = 1e-6
    """Weight decay (Adam; Ruff et al.: 1e-6)."""
    smoothing: float = 0.0
    """Standard deviation of the Gaussian that smooths the map, in pixels."""
    reduce: Reduce = "auto"
    """Image score: "mean", "max" or "top" (mean of the largest 1 %) of the map, or this quantile of it, in [0, 1]; "auto": "mean"
    up to 32 pixels a side, else "top"."""

    def __post_init__(self) -> None:
        positive, non_negative = ("latent", "width", "lr"), ("weight_decay", "smoothing")
        config.require("autoencoder", self, positive=positive, non_negative=non_negative)
        check_reduce("autoencoder", self.reduce)


class Autoencoder(Method):
    name = "autoencoder"
    Settings = AutoencoderSettings
    family = "reconstruction"
    reference = (
        "P. Bergmann, S. Löwe, M. Fauser, D. Sattlegger, C. Steger. Improving unsupervised defect segmentation by applying "
        "structural similarity to autoencoders. VISAPP, 2019. arXiv:1807.02011.\n"
        "LeNet type: the baseline DCAE of L. Ruff, R. Vandermeulen, N. Görnitz, L. Deecke, S. A. Siddiqui, A. Binder, "
        "E. Müller, M. Kloft. Deep one-class classification. ICML, 2018."
    )
    spatial_dims = (2, 3)
    search: ClassVar = {
        "latent": (8, 16, 32, 64, 128, 256),
        "loss": ("l1", "l2", "ssim"),
        "reduce": ("mean", 0.9, 0.99, "max"),
    }
    map_scores = ("",)
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
