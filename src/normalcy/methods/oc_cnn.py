"""One-class CNN: a classifier separates frozen features of normal images from Gaussian noise; the score is its logit.

Oza and Patel 2018. To each batch of features as many draws from N(0, sigma^2 I) are added as pseudo-negatives, and a fully
connected layer with one output learns to separate the two by binary cross-entropy. The score is the logit of the noise class;
its probability would round to 1 for all clearly anomalous images. The features are normalised per image (instance norm), the
noise is not: normalised, it would be the same for every sigma.

| | paper | authors' code | normalcy |
|---|---|---|---|
| output | two units, softmax | | one unit, sigmoid |
| backbone | AlexNet or VGG16, whose fully connected layers are trained | | any, frozen: one pass over the training images |
| features | fully connected layer of the backbone | | channel means over the image, normalised per layer; then ``hidden`` |
| ReLU on normalised features and noise | | yes | no |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.config import require
from normalcy.method import Method, Objective, Scores, Stage
from normalcy.nets.backbones import Backbone


@dataclass(frozen=True)
class OCCNNSettings:
    backbone: str = "efficientnet_lite0"
    """Pretrained network: the embedded "efficientnet_lite0", a timm model, or "timm model:weights file" (nets/backbones.py)."""
    layers: tuple[int, ...] = (3, 4)
    """Feature layers of the backbone."""
    sigma: float = 0.01
    """Standard deviation of the noise; features have standard deviation 1."""
    hidden: int = 512
    """Units of the fully connected layer (ReLU); 0: none, which is logistic regression."""
    lr: float = 1e-4
    """Learning rate (Adam)."""

    def __post_init__(self) -> None:
        require("oc_cnn", self, positive=("sigma", "lr"), non_negative=("hidden",))


class OCCNN(Method):
    name = "oc_cnn"
    Settings = OCCNNSettings
    family = "one-class"
    reference = (
        "P. Oza, V. M. Patel. One-class convolutional neural network. IEEE Signal Processing Letters 26(2), 2019. "
        "arXiv:1901.08688"
    )
    settings: OCCNNSettings

    def __init__(self, settings: OCCNNSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.backbone = Backbone(settings.backbone, settings.layers, self.shape[0])
        self.classifier = nn.Sequential()
        width = sum(self.backbone.widths)
        if settings.hidden:
            self.classifier.extend([nn.Linear(width, settings.hidden), nn.ReLU()])
            width = settings.hidden
        self.classifier.append(nn.Linear(width, 1))

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D), with mean 0 and standard deviation 1 over the channels of each layer."""
        pooled = [maps.flatten(2).mean(2) for maps in self.backbone(x)]
        return torch.cat([F.layer_norm(layer, layer.shape[1:]) for layer in pooled], 1)

    def logit(self, features: Tensor) -> Tensor:
        """Logit of the noise class: (B, D) -> (B,)"""
        return cast("Tensor", self.classifier(features)).float().squeeze(1)

    def cross_entropy(self, features: Tensor) -> Mapping[str, Tensor]:
        """Binary cross-entropy of features (B, D) and as many pseudo-negatives, in nats."""
        noise = self.settings.sigma * torch.randn_like(features)
        logit = self.logit(torch.cat([features, noise]))
        is_noise = torch.arange(len(logit), device=logit.device) >= len(features)
        loss = F.binary_cross_entropy_with_logits(logit, is_noise.float())
        return {"loss": loss, "accuracy": ((logit > 0) == is_noise).float().mean()}

    def stages(self) -> Sequence[Stage]:
        objective = Objective(self.cross_entropy, self.classifier.parameters(), lr=self.settings.lr)
        return [Stage("classifier", [objective], epochs=30, batch_size=64, derive=self.features)]

    def _score(self, x: Tensor) -> Scores:
        features = self.features(x)
        return Scores(image=self.logit(features), latent=features)
