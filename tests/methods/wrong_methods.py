"""A small method that keeps the contract, and others that each break one part of it. Source: mistakes seen in the field."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from normalcy.method import Batches, Method, Objective, Scores, Stage


@dataclass(frozen=True)
class HonestSettings:
    score: str = "mean"
    """"mean" or "max" of the map."""
    width: int = 4
    """Channels, of nothing."""


class Honest(Method):
    """Distance to the mean image, after a pointless little network: keeps the contract."""

    name = "honest"
    Settings = HonestSettings
    scores = ("mean", "max")
    spatial_dims = (2, 3)
    settings: HonestSettings
    mean: Tensor

    def __init__(self, settings: HonestSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.learned("mean")
        self.scale = nn.Parameter(torch.rand(()) + 0.5)
        self.norm = nn.BatchNorm1d(1)

    def stages(self) -> Sequence[Stage]:
        return [
            Stage("mean", prepare=self.learn),
            Stage("scale", [Objective(self.loss, [self.scale])], steps=4, batch_size=8),
        ]

    def learn(self, batches: Batches) -> None:
        self.mean = torch.cat(list(batches)).mean(0)

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.scale - 1).square()}

    def distance(self, x: Tensor) -> Tensor:
        """(B, *spatial)"""
        return self.scale.abs() * (x - self.mean).abs().amax(1)

    def image_score(self, maps: Tensor) -> Tensor:
        flat = maps.flatten(1)
        return flat.amax(1) if self.settings.score == "max" else flat.mean(1)

    def _score(self, x: Tensor) -> Scores:
        maps = self.distance(x)
        return Scores(self.image_score(maps), maps, self.mean.expand_as(x).clone())


class BatchMinMax(Honest):
    """Scales the scores of a batch to [0, 1]."""

    def image_score(self, maps: Tensor) -> Tensor:
        score = super().image_score(maps)
        return (score - score.min()) / (score.max() - score.min() + 1e-8)


class RunningMinMax(Honest):
    """Scales by the range seen so far, which lives in attributes; passes when batches come first."""

    low, high = float("inf"), -float("inf")

    def image_score(self, maps: Tensor) -> Tensor:
        score = super().image_score(maps)
        self.low, self.high = min(self.low, float(score.min())), max(self.high, float(score.max()))
        return (score - self.low) / (self.high - self.low + 1e-8)


class RunningBuffer(Honest):
    """Keeps the largest score ever seen in a buffer, though it does not use it."""

    def __init__(self, settings: HonestSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.register_buffer("largest", torch.tensor(0.0))

    def image_score(self, maps: Tensor) -> Tensor:
        score = super().image_score(maps)
        self.largest = torch.maximum(self.largest, score.max())
        return score


class BatchNormInTraining(Honest):
    """Scores in training mode: the batch normalises itself."""

    def image_score(self, maps: Tensor) -> Tensor:
        return nn.functional.batch_norm(maps[:, None], None, None, training=True).square().flatten(1).mean(1)


class RunningBatchNorm(Honest):
    """Leaves a layer in training mode, whose running statistics then follow the test images."""

    def image_score(self, maps: Tensor) -> Tensor:
        score = super().image_score(maps)
        self.norm.train()
        self.norm(torch.stack([score, score]).view(-1, 1))
        return score


class GlobalNoise(Honest):
    """Draws noise from the global random numbers."""

    def _score(self, x: Tensor) -> Scores:
        return super()._score(x + 1e-6 * torch.randn_like(x))


class NoisyScore(Honest):
    """Noise that is not even fixed, from a generator of its own."""

    noise = np.random.default_rng(0)

    def image_score(self, maps: Tensor) -> Tensor:
        return super().image_score(maps) * float(self.noise.uniform(0.9, 1.1))


class ChangesImages(Honest):
    """Works in place on the caller's images."""

    def _score(self, x: Tensor) -> Scores:
        return super()._score(x.mul_(0.5))


class NotesInAttributes(Honest):
    """Notes what it learned from a plain attribute."""

    count = 0

    def learn(self, batches: Batches) -> None:
        super().learn(batches)
        self.count = batches.count

    def notes(self) -> Sequence[str]:
        return [f"images: {self.count}"]


class NotesOfSeveralLines(Honest):
    def notes(self) -> Sequence[str]:
        return ["one\ntwo"]


class StateInAttributes(Honest):
    """Learns into a plain attribute, which no state dict holds."""

    offset = 0.0

    def learn(self, batches: Batches) -> None:
        super().learn(batches)
        self.offset = float(self.mean.mean())

    def image_score(self, maps: Tensor) -> Tensor:
        return super().image_score(maps) + self.offset


class RandomPart(Honest):
    """A random projection made in ``__init__`` and not saved."""

    def __init__(self, settings: HonestSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.weight = torch.rand(1)

    def image_score(self, maps: Tensor) -> Tensor:
        return super().image_score(maps) * self.weight


class SmallerIsStranger(Honest):
    """A likelihood: normal images are high."""

    def image_score(self, maps: Tensor) -> Tensor:
        return (-maps.flatten(1).mean(1)).exp()


class MapUpsideDown(Honest):
    """The map is high where all is well."""

    def _score(self, x: Tensor) -> Scores:
        scores = super()._score(x)
        return Scores(scores.image, 1 - self.distance(x))


class MapOfWrongShape(Honest):
    """The map keeps a channel axis."""

    def _score(self, x: Tensor) -> Scores:
        scores = super()._score(x)
        return Scores(scores.image, self.distance(x)[:, None])


class DoubleScores(Honest):
    """Scores in double precision."""

    def image_score(self, maps: Tensor) -> Tensor:
        return super().image_score(maps).double()


class NotFinite(Honest):
    """The logarithm of a distance that can be zero."""

    def image_score(self, maps: Tensor) -> Tensor:
        return super().image_score((maps - maps).log())


class CarriesGradient(Honest):
    """Turns gradients on and hands the graph out."""

    def image_score(self, maps: Tensor) -> Tensor:
        with torch.enable_grad():
            return super().image_score(maps * self.scale)


class NeedsOneLayout(Honest):
    """Takes images that lie in memory in one way for granted."""

    def distance(self, x: Tensor) -> Tensor:
        return super().distance(x.view(-1).view(x.shape))


class UnseededFit(Honest):
    """Random numbers of its own in the fit."""

    def learn(self, batches: Batches) -> None:
        super().learn(batches)
        self.mean = self.mean + 0.1 * float(np.random.default_rng().uniform(-1, 1))


class BreaksOnFlatImages(Honest):
    """Divides by a deviation that can be zero."""

    def learn(self, batches: Batches) -> None:
        x = torch.cat(list(batches))
        self.mean = x.mean(0) + 0 / x.std(0)


class SquareOnly(Honest):
    """Takes height and width for equal."""

    def _score(self, x: Tensor) -> Scores:
        scores = super()._score(x)
        return Scores(scores.image, self.distance(x).transpose(1, 2))


class CrashesOnFewImages(Honest):
    """Takes many images for granted."""

    def learn(self, batches: Batches) -> None:
        self.mean = torch.cat(list(batches))[:10].view(10, *self.shape).mean(0)


class CannotTravel(Honest):
    """Holds a function that cannot be sent to another process."""

    def __init__(self, settings: HonestSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.function = lambda x: x


class ScoresUnfitted(Honest):
    """Scores before it has learnt anything, and any shape."""

    def score(self, x: Tensor) -> Scores:
        return Scores(x.flatten(1).mean(1))


class SharedParameters(Honest):
    """Two objectives that move one parameter."""

    def stages(self) -> Sequence[Stage]:
        return [Stage("game", [Objective(self.loss, [self.scale]), Objective(self.loss, [self.scale])], steps=2)]


class NoLength(Honest):
    """A stage that trains nobody knows how long."""

    def stages(self) -> Sequence[Stage]:
        return [Stage("mean", [Objective(self.loss, [self.scale])], prepare=self.learn)]


class KeepsTheScore(Honest):
    """Reads its score once, when it is built."""

    def __init__(self, settings: HonestSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.kind = settings.score

    def image_score(self, maps: Tensor) -> Tensor:
        return maps.flatten(1).amax(1) if self.kind == "max" else maps.flatten(1).mean(1)


@dataclass(frozen=True)
class ReservedSettings(HonestSettings):
    seed: int = 0


class ReservedWord(Honest):
    """A setting that the training has already."""

    Settings = ReservedSettings


@dataclass(frozen=True)
class UnexplainedSettings(HonestSettings):
    rank: int = 1


class SettingWithoutMeaning(Honest):
    """A setting that says nothing about itself."""

    Settings = UnexplainedSettings


@dataclass(frozen=True)
class VagueSettings(HonestSettings):
    lr: float = 1e-3
    """Of Adam."""


class VagueMeaning(Honest):
    """A setting whose meaning does not say what it is."""

    Settings = VagueSettings
    family = "density"
    reference = "Nobody. A method for tests. 2026."


class WithoutReference(Honest):
    """A method of normalcy that names no paper."""

    family = "density"


class WithoutFamily(Honest):
    """A method of normalcy in no family."""

    reference = "Nobody. A method for tests. 2026."


@dataclass
class LooseSettings:
    score: str = "mean"


class SettingsNotFrozen(Honest):
    """Settings that can change after the fact."""

    Settings = LooseSettings


@dataclass(frozen=True)
class ObligedSettings:
    width: int
    score: str = "mean"


class SettingWithoutDefault(Honest):
    """Settings that cannot be left out."""

    Settings = ObligedSettings


@dataclass(frozen=True)
class OtherScore(HonestSettings):
    score: str = "median"


class UnknownDefaultScore(Honest):
    """A default score that is not offered."""

    Settings = OtherScore


class KeepsItsWork(Honest):
    """Leaves an intermediate result in an attribute, where another thread's replaces it."""

    def distance(self, x: Tensor) -> Tensor:
        self.work = x - self.mean
        time.sleep(0.002)
        return self.scale.abs() * self.work.abs().amax(1)


class SwitchesTheMode(Honest):
    """Evaluation mode while it scores, training mode again afterwards, while other threads still score."""

    def score(self, x: Tensor) -> Scores:
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode(False), torch.no_grad():
                return self._score(x.clone().float())
        finally:
            self.train(was_training)

    def distance(self, x: Tensor) -> Tensor:
        time.sleep(0.002 * len(x) * float(x.mean()))
        maps = super().distance(x)
        return maps + self.norm(maps.reshape(-1, 1)).reshape(maps.shape)


class HooksItself(Honest):
    """Reads features by a hook that all threads share."""

    def _score(self, x: Tensor) -> Scores:
        seen: list[Tensor] = []
        handle = self.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
        self.norm(x.flatten(1).mean(1, keepdim=True))
        time.sleep(0.002)
        handle.remove()
        maps = self.distance(x)
        return Scores(self.image_score(maps) * len(seen), maps)


class NeedsGradients(Honest):
    """Its score is a gradient, and inference mode is not left for it."""

    def score(self, x: Tensor) -> Scores:
        with torch.enable_grad():
            x = x.float().requires_grad_()
            (gradient,) = torch.autograd.grad((self.scale * (x - self.mean)).square().sum(), x)
        return Scores(gradient.flatten(1).abs().mean(1))


class SetsThreads(Honest):
    """Changes torch's number of threads for the whole process."""

    def learn(self, batches: Batches) -> None:
        super().learn(batches)
        torch.set_num_threads(torch.get_num_threads() + 1)


class ReseedsNumPy(Honest):
    """Seeds the caller's generator to get the same noise each time."""

    def image_score(self, maps: Tensor) -> Tensor:
        np.random.seed(0)  # noqa: NPY002
        return super().image_score(maps) + 1e-9 * float(np.random.random())  # noqa: NPY002
