"""Augmentation: random transforms of training batches, drawn for each image on its own.

``rotate90``         0, 90, 180 or 270 degrees with equal probability (textures and objects without an upright side)
``flip``             horizontally and vertically, each with probability 1/2
``flip_horizontal``  with probability 1/2
``rotate:DEGREES``   uniform in +-DEGREES about the centre, bilinear, the border reflected (10 for upright objects)
``crop:SIDE``        a random square (cube) of this side; a detector then scores each image by tiles of this side
``shift:PIXELS``     whole pixels, uniform in +-PIXELS along each axis, the border reflected
``brightness:F``     plus a number, uniform in +-F
``contrast:F``       differences from the image's mean, times a factor that is uniform in [1 - F, 1 + F]
``gamma:F``          values v in [0, 1] become v ** g, log g uniform in +-log(1 + F); other values stay
``noise:F``          Gaussian noise, independent for each value, of a standard deviation that is uniform in [0, F]
``blur:PIXELS``      Gaussian blur along all axes, of a standard deviation that is uniform in [0, PIXELS], the border repeated

The photometric ones, from ``brightness`` on, work on any number of channels and any bit depth: images are scaled by then, so
F is a fraction of the range of the values (0..255 of uint8, else that of the training images). ``brightness``, ``contrast``,
``gamma`` and ``blur`` are the same for all channels of an image. What leaves [0, 1] by ``brightness``, ``contrast`` or ``noise``
is clipped, to the image's own range where that is larger.

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


_FRACTION = Form((Number("F", "a number from 0 to 1", 0, 1),))


class Brightness(Transform):
    name = "brightness"
    form = _FRACTION

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        added = self.numbers[0] * (2 * _uniform(len(images), generator, images) - 1)
        return _clipped(images + _column(added, images), images)


class Contrast(Transform):
    name = "contrast"
    form = _FRACTION

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        factor = 1 + self.numbers[0] * (2 * _uniform(len(images), generator, images) - 1)
        mean = images.mean(tuple(range(1, images.ndim)), keepdim=True)
        return _clipped(mean + _column(factor, images) * (images - mean), images)


class Gamma(Transform):
    name = "gamma"
    form = Form((Number("F", "a number from 0 to 9", 0, 9),))

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        log_gamma = math.log1p(self.numbers[0]) * (2 * _uniform(len(images), generator, images) - 1)
        power = images.clamp(0, 1) ** _column(log_gamma.exp(), images)
        return torch.where((images > 0) & (images < 1), power, images)


class Noise(Transform):
    name = "noise"
    form = _FRACTION

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        std = self.numbers[0] * _uniform(len(images), generator, images)
        noise = torch.randn(images.shape, generator=generator, device=generator.device).to(images)
        return _clipped(images + _column(std, images) * noise, images)


class Blur(Transform):
    name = "blur"
    form = Form((Number("PIXELS", "a number from 0.1 to 100", 0.1, 100),))

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        std = self.numbers[0] * _uniform(len(images), generator, images)
        return _blur(images, std, math.ceil(3 * self.numbers[0]))


TRANSFORMS = by_name(Rotate90, Flip, FlipHorizontal, Rotate, Crop, Shift, Brightness, Contrast, Gamma, Noise, Blur)
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


def _column(values: Tensor, images: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, ...), one value for each image."""
    return values.to(images.dtype).view(-1, *[1] * (images.ndim - 1))


def _clipped(changed: Tensor, images: Tensor) -> Tensor:
    """To [0, 1], or to the range of each original image where that is larger."""
    flat = images.flatten(1)
    low, high = flat.amin(1).clamp(max=0), flat.amax(1).clamp(min=1)
    return changed.clamp(_column(low, images), _column(high, images))


def _blur(images: Tensor, std: Tensor, radius: int) -> Tensor:
    """Each image (C, *spatial) by its own Gaussian of standard deviation ``std`` (B,), cut off at ``radius`` pixels."""
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.exp(-0.5 * (offsets / std.clamp(min=1e-3)[:, None]) ** 2)  # (B, 2 radius + 1)
    weights = weights / weights.sum(1, keepdim=True)
    for axis in range(2, images.ndim):
        positions = torch.arange(images.shape[axis], device=images.device)
        blurred = torch.zeros_like(images)
        for weight, offset in zip(weights.T, offsets):
            neighbours = images.index_select(axis, (positions + offset).clamp(0, len(positions) - 1))
            blurred += _column(weight, images) * neighbours
        images = blurred
    return images


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
