"""Random transforms of training batches, as the papers use them; each image of a batch is drawn on its own.

``rotate90``         0, 90, 180 or 270 degrees with equal probability (textures and objects without an upright side)
``flip``             horizontally and vertically, each with probability 1/2
``flip_horizontal``  with probability 1/2
``rotate:DEGREES``   uniform in +-DEGREES about the centre, bilinear, the border reflected (10 for upright objects)
``crop:SIDE``        a random square (cube) of this side. Test images are not cropped here: score whole images, or put
                     the matching ``centre_crop`` into the preprocessing of a detector of its own
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

import dataclasses
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from normalcy.errors import DataError
from normalcy.preprocessing.steps import Form, Step, read_step

TRANSFORMS: Mapping[str, Form] = {
    "rotate90": Form("rotate90"),
    "flip": Form("flip"),
    "flip_horizontal": Form("flip_horizontal"),
    "rotate": Form("rotate:DEGREES", ((0, 180, False),)),
    "crop": Form("crop:SIDE", ((1, 65536, True),)),
    "shift": Form("shift:PIXELS", ((1, 65536, True),)),
}


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random transforms in the order of ``words``; raises SettingsError for an unknown word."""

    words: tuple[str, ...] = ()
    plan: tuple[Step, ...] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(self.words))
        object.__setattr__(self, "plan", tuple(read_step(word, TRANSFORMS, "augment") for word in self.words))

    def size_of(self, shape: Iterable[int]) -> tuple[int, ...]:
        """Spatial shape of an image of spatial ``shape`` after the transforms: only ``crop`` changes it."""
        size = tuple(shape)
        for step in self.plan:
            if step.name == "crop":
                size = (int(step.numbers[0]),) * len(size)
        return size

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(B, C, *spatial), float -> (B, C, *size_of(spatial)); the same generator state gives the same result.

        ``images`` stays as it was. Numbers are drawn on the generator's device.
        """
        for step in self.plan:
            number = step.numbers[0] if step.numbers else 0.0
            match step.name:
                case "rotate90":
                    images = _rotate90(images, generator)
                case "flip":
                    images = _flip(_flip(images, generator, -1), generator, -2)
                case "flip_horizontal":
                    images = _flip(images, generator, -1)
                case "rotate":
                    images = _rotate(images, generator, number)
                case "crop":
                    images = _crop(images, generator, (int(number),) * (images.ndim - 2))
                case "shift":
                    images = _shift(images, generator, int(number))
        return images


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
