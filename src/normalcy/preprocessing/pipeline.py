"""What is done to an image before a method sees it: named steps, saved with the model, and undone for maps.

A pipeline is a list of words, the same on the command line, in TOML and in Python:

>>> image = np.arange(30 * 50, dtype=np.uint8).reshape(1, 30, 50)
>>> preprocess = Preprocess(("centre_crop:0.8", "clahe:0.01"), size=32).fit(lambda i: image, 1)
>>> x, geometry = preprocess.apply(image)
>>> tuple(x.shape), geometry.shape
((1, 32, 32), (30, 50))
>>> geometry.invert_map(x[0]).shape
(30, 50)

The steps (numbers after a colon):

``resize:SIDE``           to a square or cube, linear and antialiased. The inverse restores the aspect ratio.
``resize_plane:SIDE``     the same of the last two axes alone: the slices of a volume become squares.
``centre_crop:FRACTION``  the middle FRACTION of each side (0.75 for chest X-rays in the paper of `dpa`).
``pad:N[,MODE]``          each side up to the next multiple of N, half before and half after.
``pad_to:N[,MODE]``       each side up to N; longer sides stay. MODE: reflect (default), edge, zero.
``histogram_equalisation``  values become their rank among all values of the image, in [0, 1]; not invertible.
``clahe[:LIMIT]``         contrast-limited adaptive histogram equalisation per channel (LIMIT 0.01); not invertible.
``gcn``                   global contrast normalisation with the L1 norm as in Deep SVDD, then to [0, 1] with the
                          least and the greatest value that it gives on the training images.
``window:CENTRE,WIDTH``   in the units of the file (Hounsfield units, grey levels) to [0, 1], clipped. By name, in HU:
                          ``window:brain`` 40,80; ``blood`` 75,215; ``bone`` 400,1800; ``lung`` -600,1500;
                          ``soft_tissue`` 50,400.
``zscore[:nonzero]``      mean 0 and standard deviation 1 over the image (over its pixels that are not 0 in the file).
``percentile[:LOW,HIGH]`` these percentiles of the image (1, 99) to [0, 1], clipped.
                          ``zscore:body`` and ``percentile:1,99,body`` look at the body alone: what is above Otsu's
                          threshold of the image. ``percentile:1,99,nonzero`` at what is not 0 in the file.
``grey``, ``rgb``         luminance of three channels (ITU-R 601); one channel repeated three times.

Before all of them values are scaled: uint8 from 0..255 to 0..1; any other type from the least and greatest training
value (or from the window, where there is one). Values outside the training range stay outside [0, 1].

Statistics per image (gcn, zscore, percentile) are taken over all pixels and channels together.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from normalcy.arrays import Array, Float32, Mask
from normalcy.data.foreground import body_mask
from normalcy.errors import DataError, ModelFileError, SettingsError
from normalcy.preprocessing.geometry import Affine, Channels, Geometry, Move, Shape, _do, _move
from normalcy.preprocessing.steps import _LOSES_UNITS, GEOMETRIC, STEPS, Step, read_step, split_words

LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601, as Pillow's "L"
FLAT = 1e-6  # spread (of values scaled to about 0..1) below which an image counts as constant


# --- words -> steps -------------------------------------------------------------------------------------------------


# --- what was done to one image, and its inverse --------------------------------------------------------------------


# --- the pipeline ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What the training images gave.

    ``values``: "8-bit" (uint8), "integer", "float" or "bool"; ``channels``: after ``grey`` or ``rgb``.
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
    """Named steps, what they learned from the training images, and their inverse.

    ``steps``: words as in the module's list. ``size``: side of the square or cube that a method sees: a
    ``resize:size`` is inserted after the last geometric step, or at the start where there is none; with ``plane`` it is
    the side of a volume's slices.
    Raises SettingsError for a word that is unknown or has impossible numbers.
    """

    steps: tuple[str, ...] = ()
    size: int | None = None
    fitted: Fitted | None = None
    plane: bool = False
    plan: tuple[Step, ...] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        words = tuple(self.steps)
        plan = [read_step(word, STEPS, "preprocess") for word in words]
        names = [step.name for step in plan]
        for once in ("gcn", "window"):
            if names.count(once) > 1:
                raise SettingsError(f"preprocess expects {once} once, got it {names.count(once)} times; keep one.")
        if "window" in names:
            blurred = [name for name in names[: names.index("window")] if name in _LOSES_UNITS]
            if blurred:
                raise SettingsError(
                    f"preprocess expects window, which is in the units of the file, before {blurred[0]}, "
                    f"got {', '.join(words)}; put window first."
                )
        if self.size is not None:
            place = max((i + 1 for i, name in enumerate(names) if name in GEOMETRIC), default=0)
            plan.insert(place, read_step(f"resize{'_plane' * self.plane}:{self.size}", STEPS, "size"))
        object.__setattr__(self, "steps", words)
        object.__setattr__(self, "plan", tuple(plan))

    @classmethod
    def parse(cls, words: str | Iterable[str], size: int | None = None) -> "Preprocess":
        """From one string (see ``split_words``) or a list of words.

        >>> Preprocess.parse("gcn,pad:32:zero", size=64).plan
        (Step(name='gcn', ...), Step(name='pad', numbers=(32.0,), mode='zero'), Step(name='resize', ...))
        """
        return cls(split_words(words) if isinstance(words, str) else tuple(words), size)

    # -- learning from the training images

    def fit(self, read: Callable[[int], Array], n: int) -> "Preprocess":
        """Learn constants from training images ``read(0) .. read(n - 1)``, each (C, *spatial); returns a fitted copy.

        Reads one image only, unless the range of values is needed (any type but uint8, without a window: one pass)
        or ``gcn`` (one more pass). Memory: one image. Raises DataError for images that do not go together.
        """
        if n < 1:
            raise DataError(f"preprocess expects at least one training image, got {n}; add images.")
        first = np.asarray(read(0))
        values = _kind(first)
        if first.ndim not in (3, 4):
            raise DataError(
                f"preprocess expects images (C, H, W) or (C, D, H, W), got {first.shape}; add the axis of channels."
            )
        low, high = 0.0, 255.0
        window = next((step.numbers for step in self.plan if step.name == "window"), None)
        if window is not None:
            low, high = window[0] - window[1] / 2, window[0] + window[1] / 2
        fitted = Fitted(values, self._channels_after(first.shape[0]), first.ndim - 1, low, high)
        fresh = dataclasses.replace(self, fitted=fitted)
        if window is None and values != "8-bit":
            low, high = _range(_finite(fresh._checked(image, i), i) for i, image in _each(read, n, first))
            fitted = dataclasses.replace(fitted, low=low, high=high)
            fresh = dataclasses.replace(self, fitted=fitted)
        position = next((i for i, step in enumerate(self.plan) if step.name == "gcn"), None)
        if position is not None:
            # With the range (0, 1) the step leaves the contrast-normalised values as they are.
            raw = dataclasses.replace(self, fitted=dataclasses.replace(fitted, gcn=(0.0, 1.0)))
            until = self.plan[: position + 1]
            seen = (raw._forward(raw._checked(image, i), until)[0] for i, image in _each(read, n, first))
            fresh = dataclasses.replace(self, fitted=dataclasses.replace(fitted, gcn=_range(seen)))
        return fresh

    @property
    def constants(self) -> Fitted:
        """What ``fit`` learned; raises SettingsError before."""
        if self.fitted is None:
            raise SettingsError("preprocess expects to be fitted before it is applied, got no fit; call fit first.")
        return self.fitted

    # -- one image

    def apply(self, image: Array) -> tuple[Float32, Geometry]:
        """Image (C, *spatial) of the training images' kind -> float32 (C, *size) and what was done to it.

        Never changes or aliases ``image``. Raises DataError for another kind of values, number of channels or
        dimensions than the training images had, and for values that are not finite.
        """
        x, trace = self._forward(_finite(self._checked(image)), self.plan)
        return np.ascontiguousarray(x), Geometry(tuple(image.shape[1:]), trace)

    def size_of(self, shape: Iterable[int]) -> Shape:
        """Spatial shape that an input of spatial ``shape`` gets, without computing anything.

        >>> Preprocess(("centre_crop:0.75", "pad:32")).size_of((100, 301))
        (96, 256)
        """
        size = tuple(shape)
        for step in self.plan:
            if step.name in GEOMETRIC:
                size = _move(step, size).after
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
            if isinstance(entry, Affine):
                values = values * entry.scale + entry.offset
            elif isinstance(entry, Channels):
                same = values.mean(axis=0, keepdims=True)
                values = np.repeat(same, entry.before, axis=0)
        if original.dtype.kind in "iu":
            limits = np.iinfo(original.dtype)
            values = np.clip(np.rint(values), limits.min, limits.max)
        elif original.dtype.kind == "b":
            values = np.where(values >= 0.5, 1, 0)
        result: Array = np.array(original)
        box = (slice(None), *geometry.examined)
        result[box] = values[box].astype(original.dtype)
        return result

    def _forward(self, image: Array, plan: tuple[Step, ...]) -> tuple[Float32, tuple[Move | Affine | Channels, ...]]:
        fitted = self.constants
        scale = Affine(fitted.low, (fitted.high - fitted.low) or 1.0)
        # Exact for integers up to 16 bit and float32 in float32; wider types are scaled in float64.
        work = np.result_type(image.dtype, np.float32)
        values = np.subtract(image, work.type(scale.offset), dtype=work)
        values /= work.type(scale.scale)
        x: Float32 = values.astype(np.float32, copy=False)
        trace: list[Move | Affine | Channels] = [scale]
        for step in plan:
            if step.name in GEOMETRIC:
                move = _move(step, x.shape[1:])
                if move.after != move.before:
                    x = _do(x, move)
                    trace.append(move)
            elif step.name in ("grey", "rgb"):
                after = self._channels_after(len(x), (step,))
                if after != len(x):
                    trace.append(Channels(len(x), after))
                    x = np.tensordot(LUMINANCE, x, 1)[None] if after == 1 else np.repeat(x, after, axis=0)
            elif step.name == "histogram_equalisation":
                x = _equalise(x)
            elif step.name == "clahe":
                x = _clahe(x, step.numbers[0])
            elif step.name == "window":
                np.clip(x, 0, 1, out=x)  # the scale above has put the window at [0, 1]
            else:
                foreground = None
                if step.mode:
                    inside = body_mask(image) if step.mode == "body" else (image != 0).any(axis=0)
                    foreground = Geometry(image.shape[1:], tuple(trace)).forward_mask(inside)
                affine = self._normalisation(step, x, foreground)
                x -= np.float32(affine.offset)
                x /= np.float32(affine.scale)
                if step.name == "percentile":
                    np.clip(x, 0, 1, out=x)
                trace.append(affine)
        return x, tuple(trace)

    def _normalisation(self, step: Step, x: Float32, foreground: Mask | None) -> Affine:
        """The offset to subtract and the scale to divide by; a constant image is divided by 1, never by 0."""
        inside = x if foreground is None or not foreground.any() else x[:, foreground]
        if step.name == "percentile":
            low, high = np.percentile(inside, step.numbers)
            return Affine(float(low), float(high - low) if high - low > FLAT else 1.0)
        mean = float(inside.mean(dtype=np.float64))
        if step.name == "zscore":
            deviation = float(inside.std(dtype=np.float64))
            return Affine(mean, deviation if deviation > FLAT else 1.0)
        # gcn: (x - mean) / mean |x - mean|, then from [low, high] to [0, 1]
        deviation = max(float(np.abs(inside - np.float32(mean)).mean(dtype=np.float64)), FLAT)
        low, high = self.constants.gcn or (0.0, 1.0)
        return Affine(mean + deviation * low, deviation * ((high - low) or 1.0))

    # -- checks

    def _channels_after(self, channels: int, plan: tuple[Step, ...] | None = None) -> int:
        for step in self.plan if plan is None else plan:
            if step.name in ("grey", "rgb"):
                if channels not in (1, 3):
                    raise DataError(
                        f"preprocess expects images with 1 or 3 channels for {step.name}, got {channels}; "
                        "leave the step out or choose channels first."
                    )
                channels = 1 if step.name == "grey" else 3
        return channels

    def _checked(self, image: Array, index: int | None = None) -> Array:
        fitted, values = self.constants, _kind(image)
        fits = image.ndim - 1 == fitted.spatial_dims and values == fitted.values
        if not fits or self._channels_after(image.shape[0]) != fitted.channels or 0 in image.shape:
            who = "preprocess" if index is None else f"preprocess (training image {index})"
            raise DataError(
                f"{who} expects {_describe(fitted.values, fitted.channels, fitted.spatial_dims)} like the (first) "
                f"training image, got {image.dtype} {tuple(image.shape)}; convert the image (steps grey and rgb "
                "convert channels) or train on images of this kind."
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
    def from_json(cls, data: Mapping[str, Any]) -> "Preprocess":
        """Inverse of ``to_json``; raises ModelFileError for anything else."""
        try:
            fitted = data["fitted"]
            if fitted is not None:
                gcn = fitted["gcn"] and (float(fitted["gcn"][0]), float(fitted["gcn"][1]))
                whole = int(fitted["channels"]), int(fitted["spatial_dims"])
                fitted = Fitted(str(fitted["values"]), *whole, float(fitted["low"]), float(fitted["high"]), gcn)
            return cls(tuple(str(word) for word in data["steps"]), data["size"], fitted, bool(data.get("plane", False)))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ModelFileError(
                f"preprocess expects what to_json wrote, got {error!r}; the model file is damaged."
            ) from error


def _equalise(x: Float32) -> Float32:
    """Histogram equalisation: (P(<= v) - P(<= min)) / (1 - P(<= min)), so that, as in OpenCV, the least value becomes 0.

    Values are told apart in 65,536 levels between the least and the greatest: all of 16 bits, but not the rounding
    noise that a resize leaves in flat regions. The distribution is that of all channels together, so grey stays
    grey. A constant image becomes 0.
    """
    low, high = float(x.min()), float(x.max())
    if high - low <= FLAT:
        return np.zeros_like(x)
    level = np.rint((x - np.float32(low)) * np.float32(65535 / (high - low))).astype(np.int64)
    rank = np.bincount(level.ravel()).cumsum()
    equal: Float32 = ((rank - rank[0]) / (rank[-1] - rank[0])).astype(np.float32)[level]
    return equal


def _clahe(x: Float32, limit: float) -> Float32:
    """scikit-image's CLAHE per channel, with tiles of 1/8 of each side and at least 8 pixels.

    (In smaller tiles every value is as frequent as any other.) A constant channel becomes 0.
    """
    from skimage.exposure import equalize_adapthist  # slow to import, and no other step needs it

    result = np.zeros_like(x)
    for channel, out in zip(x, result):
        low, high = float(channel.min()), float(channel.max())
        if high - low > FLAT:
            # A leading axis keeps scikit-image from taking a volume of 3 or 4 columns for a colour image.
            lone = channel[None] if channel.ndim == 3 else channel
            tiles = [min(max(side // 8, 8), side) for side in lone.shape]
            out[...] = equalize_adapthist((lone - low) / (high - low), tiles, limit).reshape(channel.shape)
    return result


def _kind(image: Array) -> str:
    if image.dtype == np.uint8:
        return "8-bit"
    kinds = {"u": "integer", "i": "integer", "f": "float", "b": "bool"}
    if image.dtype.kind not in kinds:
        raise DataError(f"preprocess expects images of numbers, got {image.dtype}; convert them to integers or floats.")
    return kinds[image.dtype.kind]


def _describe(values: str, channels: int, spatial_dims: int) -> str:
    return f"{values} images ({channels}, {'H, W' if spatial_dims == 2 else 'D, H, W'})"


def _finite(image: Array, index: int | None = None) -> Array:
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        who = "preprocess" if index is None else f"preprocess (training image {index})"
        raise DataError(f"{who} expects finite values, got NaN or infinity; repair or leave out the image.")
    return image


def _each(read: Callable[[int], Array], n: int, first: Array) -> Iterator[tuple[int, Array]]:
    yield 0, first
    for i in range(1, n):
        yield i, np.asarray(read(i))


def _range(images: Iterable[Array]) -> tuple[float, float]:
    low, high = math.inf, -math.inf
    for image in images:
        low, high = min(low, float(image.min())), max(high, float(image.max()))
    return low, high
