"""One-class convolutional network: frozen features of normal images against Gaussian noise in feature space.

Source: Oza, Patel 2018, One-Class Convolutional Neural Network (IEEE Signal Processing Letters). Each batch of features is
joined by as many draws from N(0, sigma^2 I), which play the anomalies, and a fully connected layer with the output on it
learns to tell the two apart by binary cross-entropy. The score is the logit of being noise, since the probability would
round to 1 for all strange images.

The features are normalised per image (instance norm), the noise is not: normalised, it would be the same for every sigma.
Different here: one output and a sigmoid instead of two and a softmax; features are means over the image of the backbone's
channels, normalised for each layer, and the backbone stays frozen as a whole (the paper: AlexNet or VGG16, whose own fully
connected layers learn too; ``hidden`` stands for them), so that the training needs one pass of it over the images. The authors'
code has a ReLU on normalised features and noise, ours has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normalcy.errors import SettingsError
from normalcy.method import Method, Objective, Scores, Stage
from normalcy.nets.backbones import Backbone


@dataclass(frozen=True)
class OCCNNSettings:
    backbone: str = "efficientnet_lite0"
    """Embedded "efficientnet_lite0", a timm model, or "timm model:weights file"; see nets/backbones.py."""
    layers: tuple[int, ...] = (3, 4)
    """Feature levels of the backbone."""
    sigma: float = 0.01
    """Deviation of the noise; features have deviation 1."""
    hidden: int = 512
    """Units of the fully connected layer (ReLU); 0: features go to the output directly, which is logistic regression."""
    lr: float = 1e-4
    """Of Adam."""

    def __post_init__(self) -> None:
        if self.sigma <= 0 or self.lr <= 0 or self.hidden < 0:
            raise SettingsError("oc_cnn: sigma and lr must be positive, hidden not negative.")


class OCCNN(Method):
    name = "oc_cnn"
    Settings = OCCNNSettings
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
        """(B, C, H, W) -> (B, D), with mean 0 and deviation 1 over the numbers of each layer."""
        pooled = [maps.flatten(2).mean(2) for maps in self.backbone(x)]
        return torch.cat([F.layer_norm(layer, layer.shape[1:]) for layer in pooled], 1)

    def logit(self, features: Tensor) -> Tensor:
        """log p / (1 - p) of being noise: (B, D) -> (B,)"""
        return cast(Tensor, self.classifier(features)).float().squeeze(1)

    def cross_entropy(self, features: Tensor) -> Mapping[str, Tensor]:
        """Of features (B, D) and as many pseudo-negatives."""
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
