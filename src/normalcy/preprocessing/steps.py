"""The preprocessing steps: what each does to an image, to its size, and how it is undone.

A step takes the image (C, *spatial), float32, and returns it changed, with an entry that says what was done to this very
image (``Move``, ``Affine`` or ``Channels``, each with its inverse), or None where nothing can or need be undone.

``resize:SIDE``             to a square or cube, linear and antialiased; the inverse restores the aspect ratio
``resize_plane:SIDE``       the same for the last two axes only: the slices of a volume become squares
``centre_crop:FRACTION``    the central FRACTION of each side (0.75 for chest X-rays in the paper of `dpa`)
``pad:N[:MODE]``            each side up to the next multiple of N, half before and half after
``pad_to:N[:MODE]``         each side up to N; longer sides stay. MODE: reflect (default), edge, zero
``histogram_equalisation``  each value becomes its rank among all values of the image, in [0, 1]; not invertible
``clahe[:LIMIT]``           contrast-limited adaptive histogram equalisation per channel (LIMIT 0.01); not invertible
``gcn``                     global contrast normalisation with the L1 norm as in Deep SVDD, then to [0, 1] by the minimum
                            and maximum that it gives on the training images
``window:CENTRE:WIDTH``     in the units of the file (Hounsfield units, grey levels) to [0, 1], clipped; or by name, see
                            WINDOWS: ``window:brain``
``zscore[:PIXELS]``         mean 0 and standard deviation 1 over PIXELS of the image
``percentile[:LOW:HIGH][:PIXELS]``  these percentiles (1 and 99) over PIXELS of the image to [0, 1], clipped
``grey``, ``rgb``           luminance of three channels (ITU-R 601); one channel repeated three times
``drop_alpha``              RGBA to RGB, grey with alpha to grey; images of one or three channels stay as they are

PIXELS: all by default; ``nonzero``: those that are not 0 in the file; ``body``: those above Otsu's threshold of the image.
Neither counts padding, where the file says which values that has.
Statistics of an image (gcn, zscore, percentile) are taken over its pixels and channels together.

>>> from normalcy.preprocessing.grammar import read_step
>>> read_step("pad:32:edge", STEPS, "preprocess")
Pad(numbers=(32.0,), mode='edge')
>>> read_step("window:40", STEPS, "preprocess")
Traceback (most recent call last):
...
normalcy.errors.SettingsError: preprocess expects window:CENTRE:WIDTH or window:NAME with CENTRE a number, WIDTH a positive
number, NAME one of brain, blood, bone, lung, soft_tissue, got 'window:40'; correct the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from normalcy.arrays import Array, Float32, Indices, Mask
from normalcy.data.foreground import body_mask
from normalcy.errors import DataError
from normalcy.preprocessing import grammar
from normalcy.preprocessing.geometry import Affine, Channels, Entry, Geometry, Move, Shape
from normalcy.preprocessing.grammar import Form, Mode, Number, by_name

LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601, as Pillow's "L"
FLAT = 1e-6  # range or deviation (of values scaled to about 0..1) below which an image counts as constant
WINDOWS = {
    "brain": (40.0, 80.0),
    "blood": (75.0, 215.0),
    "bone": (400.0, 1800.0),
    "lung": (-600.0, 1500.0),
    "soft_tissue": (50.0, 400.0),
}
"""Centre and width in Hounsfield units that are usual in CT; blood is the subdural window."""

_SIDE = Number("SIDE", "a whole number from 1 to 65536", 1, 65536, whole=True)
_FRACTION = Number("FRACTION", "a number above 0 and at most 1", 1e-12, 1)
_PADDING = Mode("MODE", ("reflect", "edge", "zero"))
_PIXELS = Mode("PIXELS", ("", "nonzero", "body"))


@dataclass
class Passage:
    """An image on its way through the steps: as it is in the file, and what was done so far."""

    original: Array
    """(C, *spatial)"""
    trace: list[Entry]
    gcn: tuple[float, float] | None
    """Minimum and maximum of the contrast-normalised training images."""
    imaged: Mask | None = None
    """(*spatial) of the original: False in padding; None where there is none."""

    def inside(self, x: Float32, pixels: str) -> Float32:
        """Values (C, N) of the chosen pixels of ``x`` but padding; all of x where none are chosen or none are there."""
        chosen = self.imaged
        if pixels:
            chosen = body_mask(self.original, self.imaged) if pixels == "body" else (self.original != 0).any(axis=0)
            chosen = chosen if self.imaged is None else chosen & self.imaged
        if chosen is None:
            return x
        here = Geometry(self.original.shape[1:], tuple(self.trace)).forward_mask(chosen)
        return x[:, here] if here.any() else x


@dataclass(frozen=True)
class Step(grammar.Step):
    """A step of preprocessing."""

    loses_units: ClassVar[bool] = False
    """Whether values are no longer an affine function of those in the file that is the same for all images."""

    def size(self, shape: Shape) -> Shape:
        """Spatial shape after the step."""
        return shape

    def channels(self, before: int) -> int:
        """Number of channels after the step."""
        return before

    def apply(self, x: Float32, passage: Passage) -> tuple[Float32, Entry | None]:
        """(C, *spatial) -> the same after the step, and what was done. May write into ``x``."""
        raise NotImplementedError


# -- geometry


@dataclass(frozen=True)
class Geometric(Step):
    """Moves pixels, and not their values."""

    def move(self, shape: Shape) -> Move:
        """What the step does to an image of this spatial shape."""
        raise NotImplementedError

    def size(self, shape: Shape) -> Shape:
        return self.move(shape).after

    def apply(self, x: Float32, passage: Passage) -> tuple[Float32, Entry | None]:
        move = self.move(x.shape[1:])
        return (x, None) if move.after == move.before else (move.apply(x), move)


class Resize(Geometric):
    name = "resize"
    form = Form((_SIDE,))

    def move(self, shape: Shape) -> Move:
        return Move("resize", shape, (int(self.numbers[0]),) * len(shape))


class ResizePlane(Geometric):
    name = "resize_plane"
    form = Form((_SIDE,))

    def move(self, shape: Shape) -> Move:
        side = int(self.numbers[0])
        return Move("resize", shape, (*shape[:-2], side, side))


class CentreCrop(Geometric):
    name = "centre_crop"
    form = Form((_FRACTION,))

    def move(self, shape: Shape) -> Move:
        after = tuple(max(1, round(side * self.numbers[0])) for side in shape)
        return Move("crop", shape, after, _centred(shape, after))


class Pad(Geometric):
    name = "pad"
    form = Form((_SIDE._replace(name="N"),), mode=_PADDING)

    def move(self, shape: Shape) -> Move:
        n = int(self.numbers[0])
        after = tuple(-(-side // n) * n for side in shape)
        return Move("pad", shape, after, _centred(after, shape), self.mode)


class PadTo(Geometric):
    name = "pad_to"
    form = Form((_SIDE._replace(name="N"),), mode=_PADDING)

    def move(self, shape: Shape) -> Move:
        after = tuple(max(side, int(self.numbers[0])) for side in shape)
        return Move("pad", shape, after, _centred(after, shape), self.mode)


def _centred(longer: Shape, shorter: Shape) -> Shape:
    """Where the shorter grid starts in the middle of the longer one."""
    return tuple((a - b) // 2 for a, b in zip(longer, shorter))


# -- values: histograms and windows


class HistogramEqualisation(Step):
    """(P(<= v) - P(<= min)) / (1 - P(<= min)): as in OpenCV, the least value becomes 0.

    Values are distinguished in 65,536 levels between the least and the greatest: all of 16 bits, but not the rounding
    noise that a resize leaves in flat regions. The distribution is that of all channels together, so grey stays
    grey. A constant image becomes 0.
    """

    name = "histogram_equalisation"
    loses_units = True

    def apply(self, x: Float32, passage: Passage) -> tuple[Float32, Entry | None]:
        inside = passage.inside(x, "")
        low, high = float(inside.min()), float(inside.max())
        if high - low <= FLAT:
            return np.zeros_like(x), None

        def level(values: Float32) -> Indices:
            scaled = (values - np.float32(low)) * np.float32(65535 / (high - low))
            levels: Indices = np.rint(scaled).clip(0, 65535).astype(np.intp)
            return levels

        rank = np.bincount(level(inside).ravel(), minlength=65536).cumsum()
        equal: Float32 = ((rank - rank[0]) / (rank[-1] - rank[0])).astype(np.float32)[level(x)]
        return equal, None


class Clahe(Step):
    """scikit-image's CLAHE per channel, with tiles of 1/8 of each side and at least 8 pixels.

    (In smaller tiles all values are about equally frequent.) A constant channel becomes 0.
    """

    name = "clahe"
    form = Form((_FRACTION._replace(name="LIMIT"),), defaults=(0.01,))
    loses_units = True

    def apply(self, x: Float32, passage: Passage) -> tuple[Float32, Entry | None]:
        from skimage.exposure import equalize_adapthist  # slow to import, and no other step needs it

        result = np.zeros_like(x)
        for channel, inside, out in zip(x, passage.inside(x, ""), result):
            low, high = float(inside.min()), float(inside.max())
            if high - low > FLAT:
                channel = channel.clip(low, high)  # padding, where there is some
                # A leading axis keeps scikit-image from taking a volume of 3 or 4 columns for a colour image.
                lone = channel[None] if channel.ndim == 3 else channel
                tiles = [min(max(side // 8, 8), side) for side in lone.shape]
                equal = equalize_adapthist((lone - low) / (high - low), tiles, self.numbers[0])
                out[...] = equal.reshape(channel.shape)
        return result, None


class Window(Step):
    """Clips: the scale before all steps has mapped the window to [0, 1] (see ``Preprocess.fit``)."""

    name = "window"
    form = Form(
        (Number("CENTRE", "a number", -1e30, 1e30), Number("WIDTH", "a positive number", 1e-12, 1e30)), presets=WINDOWS
    )

    @property
    def limits(self) -> tuple[float, float]:
        centre, width = self.numbers
        return centre - width / 2, centre + width / 2

    def apply(self, x: Float32, passage: Passage) -> tuple[Float32, Entry | None]:
        return np.clip(x, 0, 1, out=x), None


# -- values: statistics of each image


class Normalisation(Step):
    """Subtracts an offset and divides by a scale, both from the image. A constant image is divided by 1, never by 0."""

    loses_units = True

    def affine(self, inside: Float32, passage: Passage) -> Affine:
        """From the values (C, ...) of the pixels that count."""
        raise NotImplementedError

    def apply(self, x: Float32, passage: Passage) -> tuple[Float32, Entry | None]:
        affine = self.affine(passage.inside(x, self.mode), passage)
        x -= np.float32(affine.offset)
        x /= np.float32(affine.scale)
        return x, affine


class Gcn(Normalisation):
    """(x - mean) / mean |x - mean|, then from the range on the training images to [0, 1]."""

    name = "gcn"

    def affine(self, inside: Float32, passage: Passage) -> Affine:
        mean = float(inside.mean(dtype=np.float64))
        deviation = max(float(np.abs(inside - np.float32(mean)).mean(dtype=np.float64)), FLAT)
        low, high = passage.gcn or (0.0, 1.0)  # (0, 1) while the range is being learned: leaves the values as they are
        return Affine(mean + deviation * low, deviation * ((high - low) or 1.0))


class ZScore(Normalisation):
    name = "zscore"
    form = Form(mode=_PIXELS)

    def affine(self, inside: Float32, passage: Passage) -> Affine:
        deviation = float(inside.std(dtype=np.float64))
        return Affine(float(inside.mean(dtype=np.float64)), deviation if deviation > FLAT else 1.0)


class Percentile(Normalisation):
    name = "percentile"
    form = Form(
        (Number("LOW", "a number from 0 to 100", 0, 100), Number("HIGH", "a number from 0 to 100", 0, 100)),
        defaults=(1.0, 99.0),
        mode=_PIXELS,
        increasing=True,
    )

    def affine(self, inside: Float32, passage: Passage) -> Affine:
        low, high = np.percentile(inside, self.numbers)
        return Affine(float(low), float(high - low) if high - low > FLAT else 1.0)

    def apply(self, x: Float32, passage: Passage) -> tuple[Float32, Entry | None]:
        x, affine = super().apply(x, passage)
        return np.clip(x, 0, 1, out=x), affine


# -- channels


class Colour(Step):
    """Converts the number of channels; images that have the wanted one stay as they are."""

    wanted: ClassVar[int]

    def channels(self, before: int) -> int:
        if before not in (1, 3):
            raise DataError(
                f"preprocess expects images with 1 or 3 channels for {self.name}, got {before}; "
                "leave the step out, or put drop_alpha before it if the last channel is an alpha channel."
            )
        return self.wanted

    def apply(self, x: Float32, passage: Passage) -> tuple[Float32, Entry | None]:
        before, after = len(x), self.channels(len(x))
        if after == before:
            return x, None
        x = np.tensordot(LUMINANCE, x, 1)[None] if after == 1 else np.repeat(x, after, axis=0)
        return x, Channels(before, after)


class Grey(Colour):
    name = "grey"
    wanted = 1


class Rgb(Colour):
    name = "rgb"
    wanted = 3


class DropAlpha(Step):
    name = "drop_alpha"

    def channels(self, before: int) -> int:
        if before > 4:
            raise DataError(
                f"preprocess expects images with 1 to 4 channels for drop_alpha, got {before}; leave it out."
            )
        return before - 1 if before in (2, 4) else before

    def apply(self, x: Float32, passage: Passage) -> tuple[Float32, Entry | None]:
        return x[: self.channels(len(x))], None  # restored images take this channel from the original


STEPS = by_name(
    Resize, CentreCrop, Pad, PadTo, ResizePlane, HistogramEqualisation, Clahe, Gcn, Window, ZScore, Percentile, Grey, Rgb,
    DropAlpha,
)  # fmt: skip
"""Name -> step."""
