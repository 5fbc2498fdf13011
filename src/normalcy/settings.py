"""Settings that every method shares: input, training, decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from normalcy import config
from normalcy.errors import SettingsError
from normalcy.preprocessing.tiling import Window
from normalcy.preprocessing.views import Slices


@dataclass(frozen=True)
class InputSettings:
    """How images become what a method sees."""

    size: int | None = None
    """Side of the square (cube) that a method sees. None: 256 (64 of volumes) where images differ in size or are larger,
    unless a resize, tile or crop is asked for; else their own size."""
    preprocess: tuple[str, ...] = ()
    """Named steps, see normalcy.preprocessing.pipeline."""
    augment: tuple[str, ...] = ()
    """Random transforms in training, see normalcy.preprocessing.augment."""
    tile: int | None = None
    """Cut images into overlapping tiles of this side instead of resizing them; the strangest tile is the image's score."""
    tile_overlap: float = 0.25
    """Fraction of a side that neighbouring tiles share in scoring."""
    tile_window: Window = "hann"
    """Weights with which the maps of overlapping tiles are blended: "hann" or "gaussian"."""
    slices: Slices = "none"
    """See volumes as slices along an axis of the patient: "z" (axial), "y" (coronal), "x" (sagittal) or "xyz", all three, whose
    maps are averaged. size is then the side of a slice."""
    slice_range: tuple[float, float] = (0.0, 1.0)
    """Part of the axis that slices are taken from: 0.2,0.9 leaves out the lowest fifth and the highest tenth."""
    slice_body: float = 0.0
    """Leave out slices of which less than this share is body (above Otsu's threshold of the volume)."""
    view_score: float | Literal["mean", "max"] = "max"
    """The score of an image that is cut in tiles or slices, from theirs: "max", "mean" or a quantile in [0, 1]."""

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 8:
            raise SettingsError(f"size must be at least 8 pixels, got {self.size}.")
        if self.tile is not None and self.tile < 8:
            raise SettingsError(f"tile must be at least 8 pixels, got {self.tile}.")
        if not 0 <= self.tile_overlap < 1:
            raise SettingsError(f"tile_overlap must be in [0, 1), got {self.tile_overlap}.")
        if self.slices != "none" and self.tile is not None:
            raise SettingsError(f"slices={self.slices} and tile={self.tile} exclude each other: give one of them.")
        if not 0 <= self.slice_range[0] < self.slice_range[1] <= 1 or not 0 <= self.slice_body < 1:
            raise SettingsError(
                "slice_range must be two rising numbers in [0, 1] and slice_body in [0, 1), "
                f"got {self.slice_range} and {self.slice_body}."
            )
        if not isinstance(self.view_score, str) and not 0 <= self.view_score <= 1:
            raise SettingsError(f'view_score must be "max", "mean" or a quantile in [0, 1], got {self.view_score}.')


@dataclass(frozen=True)
class DecisionSettings:
    """How scores become decisions."""

    calibration: float = 0.1
    """Fraction of the normal training images held out for p-values and thresholds (at least 20 images); 0: none."""
    false_alarms: float = 0.05
    """Promised probability that a normal image is flagged, and share of a normal image's pixels."""

    def __post_init__(self) -> None:
        if not 0 <= self.calibration < 1:
            raise SettingsError(f"calibration must be in [0, 1), got {self.calibration}.")
        if not 0 < self.false_alarms < 1:
            raise SettingsError(f"false_alarms must be between 0 and 1, got {self.false_alarms}.")


def settings_for_method(method: str, words: Mapping[str, Any], methods: Sequence[str]) -> dict[str, Any]:
    """The words that concern ``method``: ``latent=64`` goes to every method that knows it, ``vae.latent=64`` to one.

    Raises SettingsError for a word that no method knows.
    """
    from normalcy.methods import get  # imports torch, which the settings alone do not need
    from normalcy.training.settings import TrainSettings

    shared = (InputSettings, TrainSettings, DecisionSettings)
    known = {
        name: {word for cls in (get(name).Settings, *shared) for word in config.fields_of(cls)} for name in methods
    }
    chosen = {}
    for word, value in words.items():
        owner, dot, own = word.rpartition(".")
        if dot and owner not in methods:
            raise SettingsError(f"{word}: {owner!r} is not among the methods compared ({', '.join(methods)}).")
        if not any(own in known[name] for name in ([owner] if dot else methods)):
            raise config.unknown_setting(own, set().union(*known.values()), owner or "compare")
        if own in known[method] and owner in ("", method):
            chosen[own] = value
    return chosen
