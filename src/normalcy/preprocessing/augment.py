"""Augmentation: random transforms of training batches, drawn for each image on its own.

``rotate90``         0, 90, 180 or 270 degrees with equal probability (textures and objects without an upright side)
``flip``             horizontally and vertically, each with probability 1/2
``flip_horizontal``  with probability 1/2
``rotate:DEGREES``   uniform in +-DEGREES about the centre, bilinear, the border reflected (10 for upright objects)
``crop:SIDE``        a random square (cube) of this side; a detector then scores each image by tiles of this side
``shift:PIXELS``     whole pixels, uniform in +-PIXELS along each axis, the border reflected

The list for textures in the paper of ``lsr`` (section 4.3.1) is ``("rotate90", "flip", "crop:256")``, for upright
objects ``("rotate:10",)``. Volumes (B, C, D, H, W): rotations turn all slices alike in the plane of the last two axes
and ``flip`` mirrors these two; ``crop`` and ``shift`` act on all three.

>>> augment = Augment(("rotate90", "shift:2"))
>>> batch = torch.rand(8, 1, 32, 32)
>>> same = [augment(batch, torch.Generator().manual_seed(0)) for _ in range(2)]
>>> torch.equal(*same), same[0].shape
(True, torch.Size([8, 1, 32, 32]))
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from normalcy.errors import DataError
from normalcy.preprocessing import grammar
from normalcy.preprocessing.grammar import Form, Number, by_name, read_step

Shape = tuple[int, ...]


class Transform(grammar.Step):
    """A random transform."""

    def size(self, shape: Shape) -> Shape:
        """Spatial shape after the transform."""
        return shape

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(B, C, *spatial) -> (B, C, *size(spatial)); ``images`` stay as they are."""
        raise NotImplementedError


class Rotate90(Transform):
    name = "rotate90"

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return _rotate90(images, generator)


class Flip(Transform):
    name = "flip"

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return _flip(_flip(images, generator, -1), generator, -2)


class FlipHorizontal(Transform):
    name = "flip_horizontal"

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return _flip(images, generator, -1)


class Rotate(Transform):
    name = "rotate"
    form = Form((Number("DEGREES", "a number from 0 to 180", 0, 180),))

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return _rotate(images, generator, self.numbers[0])


class Crop(Transform):
    name = "crop"
    form = Form((Number("SIDE", "a whole number from 1 to 65536", 1, 65536, whole=True),))

    def size(self, shape: Shape) -> Shape:
        return (int(self.numbers[0]),) * len(shape)

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return _crop(images, generator, self.size(images.shape[2:]))


class Shift(Transform):
    name = "shift"
    form = Form((Number("PIXELS", "a whole number from 1 to 65536", 1, 65536, whole=True),))

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return _shift(images, generator, int(self.numbers[0]))


TRANSFORMS = by_name(Rotate90, Flip, FlipHorizontal, Rotate, Crop, Shift)
"""Name -> transform."""


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random transforms, in order; raises SettingsError for one that is unknown or has impossible arguments."""

    steps: tuple[str, ...] = ()
    plan: tuple[Transform, ...] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        object.__setattr__(self, "plan", tuple(read_step(text, TRANSFORMS, "augment") for text in self.steps))

    def size_of(self, shape: Iterable[int]) -> Shape:
        """Spatial shape of an image of spatial ``shape`` after the transforms: only ``crop`` changes it."""
        size = tuple(shape)
        for step in self.plan:
            size = step.size(size)
        return size

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(B, C, *spatial), float -> (B, C, *size_of(spatial)); the same generator state gives the same result.

        ``images`` stays as it was. Numbers are drawn on the generator's device.
        """
        for step in self.plan:
            images = step.apply(images, generator)
        return images


# -- private ---------------------------------------------------------------------------------------------------------


def _uniform(n: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """n numbers in [0, 1) on the device of the images."""
    return torch.rand(n, generator=generator, device=generator.device).to(like.device)


def _rotate90(images: Tensor, generator: torch.Generator) -> Tensor:
    if images.shape[-1] != images.shape[-2]:
        raise DataError(
            f"augment expects square images for rotate90, got {tuple(images.shape[-2:])}; resize or crop them."
        )
    turns = (4 * _uniform(len(images), generator, images)).long()
    result = images.clone()
    for turn in (1, 2, 3):
        chosen = turns == turn
        result[chosen] = images[chosen].rot90(turn, (-2, -1))
    return result


def _flip(images: Tensor, generator: torch.Generator, axis: int) -> Tensor:
    chosen = _uniform(len(images), generator, images) < 0.5
    return torch.where(chosen.view(-1, *[1] * (images.ndim - 1)), images.flip(axis), images)


def _rotate(images: Tensor, generator: torch.Generator, degrees: float) -> Tensor:
    angles = (2 * _uniform(len(images), generator, images) - 1) * math.radians(degrees)
    height, width = images.shape[-2:]
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    # The grid's units are half sides, so a rotation of an image that is not square is a shear in them.
    rows = [cos, -sin * height / width, zero, sin * width / height, cos, zero]
    planes = images.flatten(1, -3)  # (B, C or C * D, H, W)
    grid = F.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3).to(images.dtype), list(planes.shape), False)
    turned = F.grid_sample(planes, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return turned.view_as(images)


def _crop(images: Tensor, generator: torch.Generator, sides: tuple[int, ...]) -> Tensor:
    free = torch.tensor([have - want + 1 for have, want in zip(images.shape[2:], sides)])
    if (free < 1).any():
        raise DataError(
            f"augment expects images of at least {sides[0]} pixels a side for crop, "
            f"got {tuple(images.shape[2:])}; choose a smaller crop or larger images."
        )
    drawn = torch.rand(len(images), len(sides), generator=generator, device=generator.device).cpu()
    starts = (drawn * free).long().tolist()
    boxes = ((slice(None), *(slice(first, first + side) for first, side in zip(start, sides))) for start in starts)
    return torch.stack([image[box] for image, box in zip(images, boxes)])


def _shift(images: Tensor, generator: torch.Generator, pixels: int) -> Tensor:
    if min(images.shape[2:]) <= pixels:
        raise DataError(
            f"augment expects images of more than {pixels} pixels a side for shift:{pixels}, "
            f"got {tuple(images.shape[2:])}; choose a smaller shift or larger images."
        )
    spatial = images.ndim - 2
    return _crop(F.pad(images, [pixels] * (2 * spatial), mode="reflect"), generator, tuple(images.shape[2:]))
