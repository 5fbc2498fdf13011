"""GANomaly: the score is the distance between the latent codes of an image and of its reconstruction.

An autoencoder G_E, G_D and a second encoder E are trained on normal images. The loss is 1 times the adversarial loss (distance of
discriminator features), plus 50 times the mean |x - G(x)| ("context"), plus 1 times the mean squared G_E(x) - E(G(x))
("encoder") (Akcay et al. 2018).

===========  ===========================================================================================================
``latent``   mean |G_E(x) - E(G(x))| over the latent dimension (equation 5)
``context``  |x - G(x)|, its mean up to 32 pixels a side (``reduce``)
===========  ===========================================================================================================

| | paper | authors' code | normalcy |
| --- | --- | --- | --- |
| score | absolute difference of codes | squared difference | absolute difference |
| adversarial loss | squared L2 distance of batch means of features | of each image's features | of each image's features |
| scaling of scores | | minimum and maximum of the test set | none, a score depends on its image alone |
| choice of epoch | | by the AUROC on test images | none |
| batch norm in testing | | has been in training mode | evaluation mode |
| G_E, G_D, E | DCGAN, the code as 1x1 pixels | the same | linear layers before and after the code |
| first weights | | normal, 0.02; norms around 1; no biases | He et al. 2015; a tenth of it in the decoder's last layer |
| value range | | | [-1, 1] by the minimum and maximum of the training images |
| discriminator | | restarted where its loss is below 1e-5 | not restarted |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor

from normalcy import config
from normalcy.method import Method, Objective, Scores, Stage
from normalcy.nets.filters import Reduce, check_reduce, gaussian_smooth, reduce_map
from normalcy.nets.gan import Encoder, Generator, discriminator_loss
from normalcy.nets.scaling import Range

Score = Literal["latent", "context"]


@dataclass(frozen=True)
class GANomalySettings:
    score: Score = "latent"
    """"latent": mean absolute difference of the codes of image and reconstruction; "context": mean absolute error of pixels."""
    latent: int = 100
    """Latent dimension."""
    width: int = 64
    """Channels of the level next to the image, in all networks."""
    adversarial: float = 1.0
    """Weight of the adversarial loss (paper: 1)."""
    context: float = 50.0
    """Weight of the contextual loss, the mean |x - G(x)| (paper: 50)."""
    encoder: float = 1.0
    """Weight of the encoder loss, the mean squared G_E(x) - E(G(x)) (paper: 1)."""
    lr: float = 2e-4
    """Learning rate of generator and discriminator (Adam, betas 0.5 and 0.999)."""
    smoothing: float = 0.0
    """Standard deviation of the Gaussian that smooths the map, in pixels."""
    reduce: Reduce = "auto"
    """Image score of "context": "mean", "max" or "top" (mean of the largest 1 %) of the error, or this quantile of it, in [0, 1];
    "auto": "mean" up to 32 pixels a side, else "top"."""

    def __post_init__(self) -> None:
        positive, non_negative = ("latent", "width", "lr"), ("adversarial", "context", "encoder", "smoothing")
        config.require("ganomaly", self, positive=positive, non_negative=non_negative)
        check_reduce("ganomaly", self.reduce)


class GANomaly(Method):
    name = "ganomaly"
    Settings = GANomalySettings
    family = "adversarial"
    reference = (
        "S. Akcay, A. Atapour-Abarghouei, T. P. Breckon. GANomaly: semi-supervised anomaly detection via adversarial "
        "training. ACCV, 2018. arXiv:1805.06725."
    )
    scores = get_args(Score)
    search: ClassVar = {"latent": (16, 32, 64, 100, 256), "score": get_args(Score)}
    map_scores = ("context",)
    settings: GANomalySettings

    def __init__(self, settings: GANomalySettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        s = settings
        self.range = Range()
        self.encoder = Encoder(self.shape, s.latent, s.width)
        self.decoder = Generator(self.shape, s.latent, s.width)
        self.second_encoder = Encoder(self.shape, s.latent, s.width)
        self.discriminator = Encoder(self.shape, 1, s.width)
        self.register_load_state_dict_pre_hook(_rename_second_encoder)  # type: ignore[no-untyped-call]

    def stages(self) -> Sequence[Stage]:
        betas, lr = (0.5, 0.999), self.settings.lr
        generator = [*chain(*(net.parameters() for net in (self.encoder, self.decoder, self.second_encoder)))]
        game = [
            Objective(self.generator_loss, generator, lr=lr, betas=betas),
            Objective(self.discriminator_loss, self.discriminator.parameters(), lr=lr, betas=betas),
        ]
        return [Stage("game", game, epochs=15, batch_size=64, prepare=self.range.measure)]

    def codes(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """G_E(x), G(x) and E(G(x)) of images (B, C, H, W) in [-1, 1]."""
        code = self.encoder(y)
        restored = self.decoder(code)
        return code, restored, self.second_encoder(restored)

    def generator_loss(self, x: Tensor) -> Mapping[str, Tensor]:
        s, y = self.settings, self.range(x)
        code, restored, second_code = self.codes(y)
        adversarial = (self.discriminator.features(y) - self.discriminator.features(restored)).square().mean()
        context = (y - restored).abs().mean()
        encoder = (code - second_code).square().mean()
        loss = s.adversarial * adversarial + s.context * context + s.encoder * encoder
        return {"loss": loss, "adversarial": adversarial, "context": context, "encoder": encoder}

    def discriminator_loss(self, x: Tensor) -> Mapping[str, Tensor]:
        y = self.range(x)
        return {"loss": discriminator_loss(self.discriminator, y, self.decoder(self.encoder(y)).detach())}

    def _score(self, x: Tensor) -> Scores:
        y = self.range(x)
        code, restored, second_code = self.codes(y)
        error = (y - restored).abs().mean(1)
        latent = self.settings.score == "latent"
        image = (code - second_code).abs().mean(1) if latent else reduce_map(error, self.settings.reduce)
        map = gaussian_smooth(error, self.settings.smoothing)
        return Scores(image=image, map=map, restored=self.range.inverse(restored), latent=code)


def _rename_second_encoder(method: GANomaly, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Saved models from before its renaming hold the second encoder under the name ``again``."""
    former = f"{prefix}again."
    for key in [key for key in state if key.startswith(former)]:
        state[f"{prefix}second_encoder.{key.removeprefix(former)}"] = state.pop(key)
