"""Patch-wise scoring: any other method learns patches instead of whole images; the patches' scores form the map.

Source: the patch-wise evaluation in the deep anomaly detection tutorial (Kim 2020). The stages of the inner method run unchanged,
on patches of each batch. A patch carries no information on its position in the image. The image score is the maximum, mean or a
quantile of the patches' scores.
"""

from __future__ import annotations

import copy
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

from normalcy.config import build, parse_settings, require, require_that
from normalcy.method import Batches, Loss, Method, Scores, Stage
from normalcy.methods import get
from normalcy.nets.filters import map_quantile
from normalcy.nets.seeds import random_state

PATCHES_AT_ONCE = 256
"""Patches in one batch of the inner method when scoring."""


@dataclass(frozen=True)
class PatchwiseSettings:
    inner: str = "gmm"
    """Name of the inner method, which learns and scores the patches."""
    inner_settings: tuple[str, ...] = ()
    """Settings of the inner method, such as "features=backbone"."""
    patch: int = 32
    """Side of a patch, in pixels; at most half the image's."""
    stride: int | None = None
    """Distance between patches in scoring, in pixels, at most ``patch``; none: a quarter of the patch. The last patch ends at the
    border."""
    patches_per_image: int = 16
    """Random patches of each image in a training step."""
    reduce: Literal["max", "mean", "quantile"] = "max"
    """Image score: "max", "mean" or ``quantile`` of the scores of its patches."""
    quantile: float = 0.95
    """Quantile of the patches' scores with reduce="quantile", in [0, 1]."""
    blend: Literal["average", "hann"] = "hann"
    """Weights of a patch where patches overlap: "average", all equal; "hann", falling towards its border."""
    inner_map: bool = True
    """Blend the maps of the inner method where it has them; false: its image scores, one for each patch."""

    def __post_init__(self) -> None:
        require("patchwise", self, positive=("patch", "stride", "patches_per_image"), unit=("quantile",))
        fits = self.stride is None or self.stride <= self.patch
        require_that(fits, "patchwise", "stride", f"at most patch={self.patch}", self.stride)
        require_that(self.inner != "patchwise", "patchwise", "inner", "another method", self.inner)

    @property
    def score(self) -> str:
        """The score of the inner method; empty where it has only one."""
        return str(getattr(self.of_inner(), "score", ""))

    def of_inner(self) -> Any:
        """The settings of the inner method."""
        return build(get(self.inner).Settings, self.inner_words(), f"patchwise, {self.inner}")

    def inner_words(self) -> dict[str, str]:
        """Setting -> value. The command line splits lists at commas, "layers=1,2" too: its parts are joined again."""
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
    family = "density"  # that of its default inner method; it belongs to the family of any other
    reference = "J. Kim. Recent advances in deep anomaly detection. Tutorial, 2020"
    spatial_dims = (2, 3)
    settings: PatchwiseSettings

    def __init__(self, settings: PatchwiseSettings, shape: Sequence[int]) -> None:
        super().__init__(settings, shape)
        self.patch = tuple(min(settings.patch, math.ceil(side / 2)) for side in self.shape[1:])
        self.strides = tuple(min(side, settings.stride or max(1, side // 4)) for side in self.patch)
        self.places = tuple(side - patch + 1 for side, patch in zip(self.shape[1:], self.patch))
        self.patch_count = min(settings.patches_per_image, math.prod(self.places))  # of an image in training
        self.inner = get(settings.inner)(settings.of_inner(), (self.shape[0], *self.patch))
        vars(self)["scores"] = self.inner.scores  # an instance's own, since they depend on the inner method

    def load_pretrained(self) -> None:
        self.inner.load_pretrained()

    def notes(self) -> Sequence[str]:
        return self.inner.notes()

    def with_score(self, score: str) -> Patchwise:
        inner = self.inner.with_score(score)
        words = {**self.settings.inner_words(), "score": score}
        settings = replace(self.settings, inner_settings=tuple(f"{word}={value}" for word, value in words.items()))
        twin = copy.copy(self)  # shallow: the parts of self, but for the inner method
        twin.settings, twin._modules = settings, {**self._modules, "inner": inner}
        return twin

    # -- learning

    def stages(self) -> Sequence[Stage]:
        return [self._on_patches(stage) for stage in self.inner.stages()]

    def _on_patches(self, stage: Stage) -> Stage:
        """The same stage on patches, with fewer images in a batch, so that a batch has about as many patches as it had images.

        Where the stage derives inputs, those of one image's patches stay together, (B, patches, ...), until the loss.
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
        """(B, C, *spatial) -> (B, patch_count, C, *patch), at distinct random positions."""
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
        scores = []  # (B, patches in the batch) each
        # Traced for export: all at once, as the number of groups would fix the size of a batch.
        at_once = len(corners) if torch.compiler.is_compiling() else max(1, PATCHES_AT_ONCE // len(x))
        for first in range(0, len(corners), at_once):
            places = [self._at(corner) for corner in corners[first : first + at_once]]
            inner = self.inner._score(torch.stack([x[place] for place in places], 1).flatten(0, 1))
            scores.append(inner.image.view(len(x), -1))
            pixels = inner.map if self.settings.inner_map else None
            if pixels is None:
                pixels = inner.image.view(-1, *[1] * len(self.patch)).expand(-1, *self.patch)
            for place in places:
                weight[place] += window
            for name, values in (("map", pixels), ("restored", inner.restored), ("uncertainty", inner.uncertainty)):
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
        """Weights (*patch) of the pixels of a patch, all positive."""
        window = torch.ones(self.patch)
        if self.settings.blend == "hann":
            for axis, side in enumerate(self.patch):
                bell = torch.sin(math.pi * (torch.arange(side) + 0.5) / side) ** 2
                window = window * bell.view(-1, *[1] * (len(self.patch) - 1 - axis))
        return window


def starts(side: int, patch: int, stride: int) -> list[int]:
    """First pixels of the patches along an axis; the last patch ends at the border.

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

    def map(self, function: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        return map(function, self)  # by every process: patches are drawn from one batch to the next

    def once(self, work: Callable[[], Tensor]) -> Tensor:
        return self.batches.once(work)
