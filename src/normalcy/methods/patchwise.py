"""Patch-wise scoring: a method for whole images learns small patches instead, and their scores, laid side by side, are a map.

Source: the patch-wise evaluation of the deep anomaly detection tutorial (Kim 2020). Any other method can be inside; its stages
run as they are, on patches of each batch. Patches know nothing of their place in the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from random import Random
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from normalcy.config import build, parse_settings
from normalcy.errors import SettingsError
from normalcy.method import Batches, Loss, Method, Scores, Stage
from normalcy.methods import get
from normalcy.nets.features import random_state
from normalcy.nets.filters import map_quantile

PATCHES_AT_ONCE = 256
"""Given to the inner method together when scoring."""


@dataclass(frozen=True)
class PatchwiseSettings:
    inner: str = "gmm"
    """The method that sees the patches."""
    inner_settings: tuple[str, ...] = ()
    """Its settings, as "features=backbone"."""
    patch: int = 32
    """Side of the patches in pixels; at most half of the image's."""
    stride: int | None = None
    """Pixels from one patch to the next when scoring, none: a quarter of the patch. The last patch ends at the border."""
    patches_per_image: int = 16
    """Patches at random places that training takes from an image each time it sees it."""
    reduce: Literal["max", "mean", "quantile"] = "max"
    """The image score, from the scores of its patches."""
    quantile: float = 0.95
    """With reduce=quantile: which."""
    blend: Literal["average", "hann"] = "hann"
    """Weights of a patch where patches overlap: all equal, or falling towards its border."""
    inner_map: bool = True
    """Blend the maps of the inner method where it gives them; else its image scores, one for each patch."""

    def __post_init__(self) -> None:
        stride = self.patch if self.stride is None else self.stride
        if min(self.patch, stride, self.patches_per_image) < 1 or stride > self.patch:
            raise SettingsError(
                "patchwise: patch, stride and patches_per_image must be positive, stride at most patch."
            )
        if not 0 <= self.quantile <= 1:
            raise SettingsError(f"patchwise: quantile must lie in [0, 1], got {self.quantile}.")
        if self.inner == "patchwise":
            raise SettingsError("patchwise: inner must be another method.")

    @property
    def score(self) -> str:
        """Which of its scores the inner method gives; empty where it has one only."""
        return str(getattr(self.of_inner(), "score", ""))

    def of_inner(self) -> Any:
        """The settings of the inner method."""
        return build(get(self.inner).Settings, self.inner_words(), f"patchwise, {self.inner}")

    def inner_words(self) -> dict[str, str]:
        """Setting -> value; "layers=1,2" may have been parted at its commas, as all lists are on the command line."""
        pairs: list[str] = []
        for part in self.inner_settings:
            if "=" in part or not pairs:
                pairs.append(part)
            else:
                pairs[-1] += f",{part}"
        return parse_settings(pairs)


class Patchwise(Method):
    name = "patchwise"
    Settings = PatchwiseSettings
    spatial_dims = (2, 3)
    settings: PatchwiseSettings

    def __init__(self, settings: PatchwiseSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.patch = tuple(min(settings.patch, math.ceil(side / 2)) for side in self.shape[1:])
        self.strides = tuple(min(side, settings.stride or max(1, side // 4)) for side in self.patch)
        self.places = tuple(side - patch + 1 for side, patch in zip(self.shape[1:], self.patch))
        self.patch_count = min(settings.patches_per_image, math.prod(self.places))  # that training takes of an image
        self.inner = get(settings.inner)(settings.of_inner(), (self.shape[0], *self.patch))
        vars(self)["scores"] = self.inner.scores  # of the class there are none: they depend on the inner method

    def load_pretrained(self) -> None:
        self.inner.load_pretrained()

    def with_score(self, score: str) -> Patchwise:
        inner = self.inner.with_score(score)
        words = {**self.settings.inner_words(), "score": score}
        settings = replace(self.settings, inner_settings=tuple(f"{word}={value}" for word, value in words.items()))
        twin = object.__new__(type(self))
        twin.__dict__ = {**self.__dict__, "settings": settings, "_modules": {**self._modules, "inner": inner}}
        return twin

    # -- learning

    def stages(self) -> Sequence[Stage]:
        return [self._on_patches(stage) for stage in self.inner.stages()]

    def _on_patches(self, stage: Stage) -> Stage:
        """The same stage on patches. Its batch counts images, so that it has about as many patches as it had images.

        Where the stage derives inputs, those of one image's patches stay together, (B, patches, ...), up to the loss.
        """
        derive = stage.derive

        def patches(x: Tensor) -> Tensor:
            return self.random_patches(x, Random(random_state())).flatten(0, 1)

        def on(rows: Callable[[Tensor], Tensor], loss: Loss) -> Loss:
            return lambda x: loss(rows(x))

        def derived(x: Tensor) -> Tensor:
            assert derive is not None
            rows = derive(patches(x))
            return rows.view(len(x), -1, *rows.shape[1:])

        def over_patches(visit: Callable[[Batches], None]) -> Callable[[Batches], None]:
            return lambda batches: visit(_PatchBatches(batches, self))

        rows = patches if derive is None else partial(torch.flatten, start_dim=0, end_dim=1)
        stop = stage.early_stop
        return replace(
            stage,
            objectives=[replace(objective, loss=on(rows, objective.loss)) for objective in stage.objectives],
            batch_size=max(1, stage.batch_size // self.patch_count),
            prepare=over_patches(stage.prepare) if stage.prepare else None,
            finalise=over_patches(stage.finalise) if stage.finalise else None,
            derive=derived if derive else None,
            early_stop=replace(stop, loss=on(rows, stop.loss)) if stop else None,
        )

    def random_patches(self, x: Tensor, rng: Random) -> Tensor:
        """(B, C, *spatial) -> (B, patch_count, C, *patch), at different places."""
        images = []
        for image in x:
            numbers = rng.sample(range(math.prod(self.places)), self.patch_count)
            corners = [np.unravel_index(number, self.places) for number in numbers]
            images.append(torch.stack([image[self._at(corner)] for corner in corners]))
        return torch.stack(images)

    def _at(self, corner: Iterable[Any]) -> tuple[Any, ...]:
        return (..., *(slice(int(start), int(start) + side) for start, side in zip(corner, self.patch)))

    # -- scoring

    def _score(self, x: Tensor) -> Scores:
        steps = [starts(*axis) for axis in zip(self.shape[1:], self.patch, self.strides)]
        corners = list(product(*steps))
        window = self._window().to(x.device)
        weight = torch.zeros(self.shape[1:], device=x.device)
        sums: dict[str, Tensor] = {}
        scores = []  # of patches, (B, patches at once)
        # Traced for export: all at once, as the number of groups would fix the size of a batch.
        at_once = len(corners) if torch.compiler.is_compiling() else max(1, PATCHES_AT_ONCE // len(x))
        for first in range(0, len(corners), at_once):
            places = [self._at(corner) for corner in corners[first : first + at_once]]
            given = self.inner._score(torch.stack([x[place] for place in places], 1).flatten(0, 1))
            scores.append(given.image.view(len(x), -1))
            pixels = given.map if self.settings.inner_map else None
            if pixels is None:
                pixels = given.image.view(-1, *[1] * len(self.patch)).expand(-1, *self.patch)
            for place in places:
                weight[place] += window
            for name, values in (("map", pixels), ("restored", given.restored), ("uncertainty", given.uncertainty)):
                if values is None:
                    continue
                values = values.reshape(len(x), len(places), *values.shape[1:])  # (B, patches, [C,] *patch)
                lead = values.shape[2 : values.ndim - len(self.patch)]
                canvas = sums.setdefault(name, torch.zeros(len(x), *lead, *self.shape[1:], device=x.device))
                for k, place in enumerate(places):
                    canvas[place] += window * values[:, k]
        blended = {name: total / weight for name, total in sums.items()}
        return Scores(
            self._reduce(torch.cat(scores, 1)), blended["map"], blended.get("restored"), blended.get("uncertainty")
        )

    def _reduce(self, scores: Tensor) -> Tensor:
        """(B, patches) -> (B,)"""
        if self.settings.reduce == "mean":
            return scores.mean(1)
        return map_quantile(scores, 1.0 if self.settings.reduce == "max" else self.settings.quantile)

    def _window(self) -> Tensor:
        """Weights of the pixels of a patch, all positive."""
        window = torch.ones(self.patch)
        if self.settings.blend == "hann":
            for axis, side in enumerate(self.patch):
                bell = torch.sin(math.pi * (torch.arange(side) + 0.5) / side) ** 2
                window = window * bell.view(-1, *[1] * (len(self.patch) - 1 - axis))
        return window


def starts(side: int, patch: int, stride: int) -> list[int]:
    """Where patches begin along an axis, the last one flush with the border.

    >>> starts(10, 4, 4)
    [0, 4, 6]
    """
    return [*range(0, side - patch, stride), side - patch]


class _PatchBatches:
    """The training images as batches of patches, the same in each pass."""

    def __init__(self, batches: Batches, method: Patchwise) -> None:
        self.batches, self.method, self.seed = batches, method, random_state()
        self.count = batches.count * method.patch_count

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        rng = Random(self.seed)
        for x in self.batches:
            yield self.method.random_patches(x, rng).flatten(0, 1)
