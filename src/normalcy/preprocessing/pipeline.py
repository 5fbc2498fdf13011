"""Preprocessing: a list of steps, saved with the model, applied alike in training and scoring, and undone for maps.

Steps are written the same on the command line, in TOML and in Python (all of them: :mod:`normalcy.preprocessing.steps`):

>>> image = np.arange(30 * 50, dtype=np.uint8).reshape(1, 30, 50)
>>> preprocess = Preprocess(("centre_crop:0.8", "clahe:0.01"), size=32).fit(lambda i: image, 1)
>>> x, geometry = preprocess.apply(image)
>>> tuple(x.shape), geometry.shape
((1, 32, 32), (30, 50))
>>> geometry.invert_map(x[0]).shape
(30, 50)

Before all steps values are scaled: uint8 from 0..255 to 0..1; any other type from the minimum and maximum of the training
images (or from the window, where there is one). Integers of all other types go together, and with floats that hold whole
numbers (:func:`normalcy.data.kinds.same_values`). Values outside the training range stay outside [0, 1].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from normalcy.arrays import Array, Float32, Mask
from normalcy.data.kinds import is_whole, range_of, same_values, values_of
from normalcy.errors import DataError, ModelFileError, SettingsError
from normalcy.preprocessing.geometry import Affine, Entry, Geometry, Move, Shape
from normalcy.preprocessing.grammar import colon_form, read_step
from normalcy.preprocessing.steps import STEPS, Gcn, Geometric, Passage, Resize, ResizePlane, Step, Window


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Constants of the training images.

    ``values``: "8-bit" (uint8), "integer", "float" or "bool"; ``channels``: after ``grey``, ``rgb`` or ``drop_alpha``.
    ``low``, ``high``: values of the file that become 0 and 1. ``gcn``: range of the contrast-normalised values.
    """

    values: str
    channels: int
    spatial_dims: int
    low: float
    high: float
    gcn: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Steps, the constants that they learned from the training images, and their inverse.

    ``steps``: as written. ``size``: side of the square or cube that a method sees: a ``resize:size`` is inserted after
    the last geometric step, or at the start where there is none; with ``plane`` it is the side of a volume's slices.
    Raises SettingsError for a step that is unknown or has impossible arguments.
    """

    steps: tuple[str, ...] = ()
    size: int | None = None
    fitted: Fitted | None = None
    plane: bool = False
    plan: tuple[Step, ...] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        plan = [read_step(text, STEPS, "preprocess") for text in self.steps]
        names = [step.name for step in plan]
        for once in (Gcn.name, Window.name):
            if names.count(once) > 1:
                raise SettingsError(f"preprocess expects {once} once, got it {names.count(once)} times; keep one.")
        if Window.name in names:
            before = [step.name for step in plan[: names.index(Window.name)] if step.loses_units]
            if before:
                raise SettingsError(
                    f"preprocess expects window, which is in the units of the file, before {before[0]}, "
                    f"got {', '.join(self.steps)}; put window first."
                )
        if self.size is not None:
            place = max((i + 1 for i, step in enumerate(plan) if isinstance(step, Geometric)), default=0)
            kind = ResizePlane if self.plane else Resize
            plan.insert(place, read_step(f"{kind.name}:{self.size}", STEPS, "size"))
        object.__setattr__(self, "steps", tuple(self.steps))
        object.__setattr__(self, "plan", tuple(plan))

    # -- learning from the training images

    def fit(
        self,
        read: Callable[[int], Array],
        n: int,
        known: Fitted | None = None,
        imaged: Callable[[int, Array], Mask | None] | None = None,
    ) -> Preprocess:
        """Learn constants from training images ``read(0) .. read(n - 1)``, each (C, *spatial); returns a fitted copy.

        Reads one image only, unless the range of values is needed (any type but uint8, without a window: one pass)
        or ``gcn`` (one more pass). ``known``: constants of images that were read before, all but ``gcn``. ``imaged`` gives
        where an image is no padding. Memory: one image. Raises DataError for images that do not go together.
        """
        if n < 1:
            raise DataError(f"preprocess expects at least one training image, got {n}; add images.")
        first: list[Array] = []  # read once

        def image(i: int) -> Array:
            if i == 0:
                first.extend([np.asarray(read(0))] if not first else [])
                return first[0]
            return np.asarray(read(i))

        def inside(i: int) -> Mask | None:
            return None if imaged is None else imaged(i, image(i))

        fitted = known or self._constants(image, n, inside)
        fresh = dataclasses.replace(self, fitted=fitted)
        position = next((i for i, step in enumerate(self.plan) if isinstance(step, Gcn)), None)
        if position is not None:
            # With the range (0, 1) the step leaves the contrast-normalised values as they are.
            raw = dataclasses.replace(self, fitted=dataclasses.replace(fitted, gcn=(0.0, 1.0)))
            until = self.plan[: position + 1]
            seen = (raw._seen(raw._checked(image(i), i), until, inside(i)) for i in range(n))
            fresh = dataclasses.replace(self, fitted=dataclasses.replace(fitted, gcn=_range(seen)))
        return fresh

    def _seen(self, image: Array, plan: tuple[Step, ...], imaged: Mask | None) -> tuple[Array, Mask | None]:
        """An image after some of the steps, and where it is no padding."""
        x, trace = self._forward(image, plan, imaged)
        here = None if imaged is None else Geometry(tuple(image.shape[1:]), trace).forward_mask(imaged)
        return x, here if here is not None and here.any() else None

    def _constants(self, read: Callable[[int], Array], n: int, inside: Callable[[int], Mask | None]) -> Fitted:
        first = read(0)
        values = values_of(first)
        if first.ndim not in (3, 4):
            raise DataError(
                f"preprocess expects images (C, H, W) or (C, D, H, W), got {first.shape}; add the axis of channels."
            )
        low, high = self.window_limits or (0.0, 255.0)
        fitted = Fitted(values, self.channels_after(first.shape[0]), first.ndim - 1, low, high)
        if self.window_limits is None and values != "8-bit":
            fresh = dataclasses.replace(self, fitted=fitted)
            low, high = _range((_finite(fresh._checked(read(i), i), i), inside(i)) for i in range(n))
        return dataclasses.replace(fitted, low=low, high=high)

    @property
    def window_limits(self) -> tuple[float, float] | None:
        """Values of the file that the window turns into 0 and 1; None without one."""
        return next((step.limits for step in self.plan if isinstance(step, Window)), None)

    @property
    def constants(self) -> Fitted:
        """The constants that ``fit`` learned; raises SettingsError before."""
        if self.fitted is None:
            raise SettingsError("preprocess expects to be fitted before it is applied, got no fit; call fit first.")
        return self.fitted

    # -- one image

    def apply(self, image: Array, imaged: Mask | None = None) -> tuple[Float32, Geometry]:
        """Image (C, *spatial) of the training images' kind -> float32 (C, *size) and its geometry.

        ``imaged`` (*spatial) is False in padding: it has no part in statistics, and is clipped to the range of the training
        images.

        Never changes or aliases ``image``. Raises DataError for another kind of values, number of channels or
        dimensions than the training images had, and for values that are not finite.
        """
        image = self._checked(image)
        self._refuse_large(image)
        x, trace = self._forward(_finite(image), self.plan, imaged)
        return np.ascontiguousarray(x), Geometry(tuple(image.shape[1:]), trace)

    def size_of(self, shape: Iterable[int]) -> Shape:
        """Spatial shape that an input of spatial ``shape`` gets, without computing anything.

        >>> Preprocess(("centre_crop:0.75", "pad:32")).size_of((100, 301))
        (96, 256)
        """
        size = tuple(shape)
        for step in self.plan:
            size = step.size(size)
        return size

    def invert_image(self, restored: npt.ArrayLike, original: Array, geometry: Geometry) -> Array:
        """A restored (C, *size) as an image like ``original``: its size, channels, type and range of values.

        Scale, gcn, zscore, percentile and window are undone with the original's own constants (values clipped by
        percentile or window cannot come back); equalised histograms stay equalised; after ``grey`` all channels are
        equal. What was cropped away is filled with the original's pixels.
        """
        x = np.asarray(restored, dtype=np.float32)
        expected = (self.constants.channels, *geometry.size)
        if x.shape != expected or tuple(original.shape[1:]) != geometry.shape:
            raise DataError(
                f"preprocess expects a restored image {expected} of an original {geometry.shape}, got {x.shape} and "
                f"{tuple(original.shape[1:])}; give the geometry that apply returned for this very image."
            )
        x = geometry.invert(x)
        values = x.astype(np.float64) if original.dtype.itemsize > 2 else x
        for entry in reversed(geometry.trace):
            if not isinstance(entry, Move):  # these are undone above, in float32
                values = entry.invert(values)
        if original.dtype.kind in "iu":
            limits = np.iinfo(original.dtype)
            values = np.clip(np.rint(values), limits.min, limits.max)
        elif original.dtype.kind == "b":
            values = np.where(values >= 0.5, 1, 0)
        result: Array = np.array(original)
        box = (slice(len(values)), *geometry.examined)  # fewer channels where drop_alpha left one out
        result[box] = values[box].astype(original.dtype)
        return result

    def _forward(
        self, image: Array, plan: tuple[Step, ...], imaged: Mask | None = None
    ) -> tuple[Float32, tuple[Entry, ...]]:
        fitted = self.constants
        scale = Affine(fitted.low, (fitted.high - fitted.low) or 1.0)
        # Exact for integers up to 16 bit and float32 in float32; wider types are scaled in float64.
        work = np.result_type(image.dtype, np.float32)
        values = np.subtract(image, work.type(scale.offset), dtype=work)
        values /= work.type(scale.scale)
        x: Float32 = values.astype(np.float32, copy=False)
        if imaged is not None:  # -3024 is no darker than air
            x[:, ~imaged] = x[:, ~imaged].clip(0, 1)
        passage = Passage(image, [scale], fitted.gcn, imaged)
        for step in plan:
            x, entry = step.apply(x, passage)
            if entry is not None:
                passage.trace.append(entry)
        return x, tuple(passage.trace)

    # -- checks

    def channels_after(self, channels: int) -> int:
        """Number of channels that an image of ``channels`` gets; raises DataError where it cannot be converted."""
        for step in self.plan:
            channels = step.channels(channels)
        return channels

    def _refuse_large(self, image: Array) -> None:
        """Before memory is taken: a setting of a few digits can ask for any number of values."""
        size, most = tuple(image.shape[1:]), max(_FEW, _MAGNIFIED * math.prod(image.shape[1:]))
        for step in self.plan:
            size = step.size(size)
            if math.prod(size) > most:
                raise DataError(
                    f"preprocess makes {math.prod(size):,} pixels of an image {tuple(image.shape)} by {step}, at most "
                    f"{most:,} are made; choose a smaller size."
                )

    def _checked(self, image: Array, index: int | None = None) -> Array:
        fitted, values = self.constants, values_of(image)
        alike = values == fitted.values or same_values(fitted.values, fitted.low, fitted.high, values, is_whole(image))
        fits = image.ndim - 1 == fitted.spatial_dims and alike
        if not fits or self.channels_after(image.shape[0]) != fitted.channels or 0 in image.shape:
            who = "preprocess" if index is None else f"preprocess (training image {index})"
            raise DataError(
                f"{who} expects {_describe(fitted.values, fitted.channels, fitted.spatial_dims)} like the "
                f"training images, got {image.dtype} {tuple(image.shape)}; convert the image (steps grey, rgb and "
                "drop_alpha convert channels) or train on images of this kind."
            )
        return image

    # -- JSON

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; ``from_json`` gives an equal object back."""
        fitted = dataclasses.asdict(self.fitted) if self.fitted else None
        if fitted and fitted["gcn"]:
            fitted["gcn"] = list(fitted["gcn"])
        return {"steps": list(self.steps), "size": self.size, "fitted": fitted, "plane": self.plane}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Preprocess:
        """Inverse of ``to_json``, for steps of earlier versions (``window:40,80``) too. Raises ModelFileError for anything
        else."""
        try:
            fitted = data["fitted"]
            if fitted is not None:
                gcn = fitted["gcn"] and (float(fitted["gcn"][0]), float(fitted["gcn"][1]))
                if fitted["values"] not in ("8-bit", "integer", "float", "bool"):
                    raise ValueError("values are of an unknown type")
                whole = int(fitted["channels"]), int(fitted["spatial_dims"])
                fitted = Fitted(str(fitted["values"]), *whole, float(fitted["low"]), float(fitted["high"]), gcn)
            steps = tuple(colon_form(str(step)) for step in data["steps"])
            return cls(steps, data["size"], fitted, bool(data.get("plane", False)))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ModelFileError(
                f"preprocess expects what to_json wrote, got {repr(error)[:300]}; the model file is damaged."
            ) from error


# -- private --------------------------------------------------------------------------------------------------------

_FEW, _MAGNIFIED = 2**26, 64
"""Pixels that any image may become, and how many times its own."""


def _describe(values: str, channels: int, spatial_dims: int) -> str:
    return f"{values} images ({channels}, {'H, W' if spatial_dims == 2 else 'D, H, W'})"


def _finite(image: Array, index: int | None = None) -> Array:
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        who = "preprocess" if index is None else f"preprocess (training image {index})"
        raise DataError(f"{who} expects finite values, got NaN or infinity; repair or leave out the image.")
    return image


def _range(images: Iterable[tuple[Array, Mask | None]]) -> tuple[float, float]:
    """Of all images, each with where it is no padding."""
    low, high = math.inf, -math.inf
    for image, inside in images:
        least, greatest = range_of(image, inside)
        low, high = min(low, least), max(high, greatest)
    return low, high
