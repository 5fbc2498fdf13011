"""Settings that every method accepts: input, training, decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from normalcy import config
from normalcy.errors import SettingsError
from normalcy.preprocessing.grammar import colon_form
from normalcy.preprocessing.tiling import Window
from normalcy.preprocessing.views import Slices
from normalcy.training.settings import TrainSettings

__all__ = ["DecisionSettings", "InputSettings"]


@dataclass(frozen=True)
class InputSettings:
    """How images are preprocessed and cut for a method."""

    size: int | None = None
    """Side, in pixels, of the square (or cube) that the method sees. none: the images' own size if nearly all (see max_skipped)
    share one of at most 256 (64 for volumes), else 256 (64); where resize, crop or tile is given, no further resizing."""
    preprocess: tuple[str, ...] = ()
    """Preprocessing steps in order, for example centre_crop:0.75,clahe:0.01 (docs/how-to/preprocessing.md)."""
    augment: tuple[str, ...] = ()
    """Random transforms of the training images, geometric and photometric, for example flip,rotate:10,brightness:0.1
    (docs/how-to/preprocessing.md)."""
    tile: int | None = None
    """Cut images into overlapping tiles of this side, in pixels, instead of resizing them; see view_score."""
    tile_overlap: float = 0.25
    """Overlap of neighbouring tiles in scoring, as a fraction of their side; training tiles do not overlap."""
    tile_window: Window = "hann"
    """Weights that blend the maps of overlapping tiles: a Hann window, or a Gaussian with a standard deviation of an eighth of
    the side."""
    slices: Slices = "none"
    """Cut volumes into slices along an axis of the patient: z (axial), y (coronal), x (sagittal), or xyz: all three, with their
    maps averaged. size is then the side of a slice."""
    slice_range: tuple[float, float] = (0.0, 1.0)
    """Part of the axis that slices are taken from: 0.2,0.9 leaves out the lowest fifth and the highest tenth."""
    slice_body: float = 0.0
    """Leave out slices with less than this fraction of body (voxels above Otsu's threshold of the volume)."""
    view_score: float | Literal["mean", "max"] = "max"
    """Score of an image from those of its tiles or slices: max, mean or a quantile in [0, 1]."""
    max_skipped: float = 0.1
    """Largest fraction of the training images that may be skipped: those that cannot be read, or whose channels, kind of values,
    axes or size are not those of most. If there are more, nothing is trained."""

    def __post_init__(self) -> None:
        config.require("input", self, at_least={"size": 8, "tile": 8})
        config.require_that(0 <= self.tile_overlap < 1, "input", "tile_overlap", "in [0, 1)", self.tile_overlap)
        if self.slices != "none" and self.tile is not None:
            raise SettingsError(f"slices={self.slices} and tile={self.tile} exclude each other: give one of them.")
        low, high = self.slice_range
        rising = 0 <= low < high <= 1
        config.require_that(rising, "input", "slice_range", "two increasing numbers in [0, 1]", self.slice_range)
        config.require_that(0 <= self.slice_body < 1, "input", "slice_body", "in [0, 1)", self.slice_body)
        config.require_that(0 <= self.max_skipped <= 1, "input", "max_skipped", "in [0, 1]", self.max_skipped)
        known = isinstance(self.view_score, str) or 0 <= self.view_score <= 1
        config.require_that(known, "input", "view_score", "max, mean or a quantile in [0, 1]", self.view_score)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> InputSettings:
        """From a model folder's JSON; steps of earlier versions (``window:40,80``) are converted."""
        steps = {
            name: [colon_form(str(step)) for step in data[name]] for name in ("preprocess", "augment") if name in data
        }
        return config.build(cls, {**data, **steps}, "input")


@dataclass(frozen=True)
class DecisionSettings:
    """How scores become decisions."""

    calibration: float = 0.1
    """Fraction of the normal training images held out for p-values and thresholds (at least 20 images); 0: no calibration."""
    false_alarms: float = 0.05
    """Guaranteed (maximum) false-positive rate: the probability that a normal image is flagged, and the expected fraction of a
    normal image's pixels that is."""

    def __post_init__(self) -> None:
        config.require_that(0 <= self.calibration < 1, "decision", "calibration", "in [0, 1)", self.calibration)
        config.require("decision", self, fraction=("false_alarms",))


COMMON: Mapping[str, type] = {"input": InputSettings, "training": TrainSettings, "decision": DecisionSettings}
"""Settings that every method accepts, by the name of their part."""


def settings_for_method(method: str, settings: Mapping[str, Any], methods: Sequence[str]) -> dict[str, Any]:
    """The settings that concern ``method``: ``latent=64`` goes to every method that has it, ``vae.latent=64`` to one.

    Raises SettingsError for a setting that no method has.
    """
    from normalcy.methods import get  # imports torch, which the settings alone do not need

    valid = {
        name: {own for cls in (get(name).Settings, *COMMON.values()) for own in config.fields_of(cls)}
        for name in methods
    }
    chosen = {}
    for name, value in settings.items():
        owner, dot, own = name.rpartition(".")
        if dot and owner not in methods:
            raise SettingsError(f"{name}: {owner!r} is not among the methods compared ({', '.join(methods)}).")
        if not any(own in valid[each] for each in ([owner] if dot else methods)):
            raise config.unknown_setting(own, set().union(*valid.values()), owner or "compare")
        if own in valid[method] and owner in ("", method):
            chosen[own] = value
    return chosen
