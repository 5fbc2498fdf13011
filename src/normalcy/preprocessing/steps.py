"""The preprocessing steps, how each is written, and their parser."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from normalcy.errors import SettingsError


class Step(NamedTuple):
    """One parsed word: ``"pad:32,edge"`` is ``Step("pad", (32.0,), "edge")``."""

    name: str
    numbers: tuple[float, ...] = ()
    mode: str = ""


class Form(NamedTuple):
    """How a word is written. ``numbers``: bounds (lowest, highest, whole) of each; ``defaults``: when none is given."""

    usage: str
    numbers: tuple[tuple[float, float, bool], ...] = ()
    defaults: tuple[float, ...] | None = None
    modes: tuple[str, ...] = ()
    named: Mapping[str, tuple[float, ...]] = {}


WINDOWS = {
    "brain": (40.0, 80.0),
    "blood": (75.0, 215.0),
    "bone": (400.0, 1800.0),
    "lung": (-600.0, 1500.0),
    "soft_tissue": (50.0, 400.0),
}
"""Centre and width in Hounsfield units that are usual in CT; blood is the subdural window."""


_WHERE = ("", "nonzero", "body")


_SIDE = (1, 65536, True)


_PADDING = ("reflect", "edge", "zero")


STEPS: Mapping[str, Form] = {
    "resize": Form("resize:SIDE", (_SIDE,)),
    "centre_crop": Form("centre_crop:FRACTION", ((1e-6, 1, False),)),
    "pad": Form("pad:MULTIPLE", (_SIDE,), modes=_PADDING),
    "pad_to": Form("pad_to:SIDE", (_SIDE,), modes=_PADDING),
    "resize_plane": Form("resize_plane:SIDE", (_SIDE,)),
    "histogram_equalisation": Form("histogram_equalisation"),
    "clahe": Form("clahe:LIMIT", ((1e-6, 1, False),), defaults=(0.01,)),
    "gcn": Form("gcn"),
    "window": Form("window:CENTRE,WIDTH", ((-math.inf, math.inf, False), (1e-12, math.inf, False)), named=WINDOWS),
    "zscore": Form("zscore", modes=_WHERE),
    "percentile": Form("percentile:LOW,HIGH", ((0, 100, False), (0, 100, False)), defaults=(1.0, 99.0), modes=_WHERE),
    "grey": Form("grey"),
    "rgb": Form("rgb"),
}


GEOMETRIC = ("resize", "resize_plane", "centre_crop", "pad", "pad_to")


_LOSES_UNITS = ("histogram_equalisation", "clahe", "gcn", "zscore", "percentile")


def read_step(word: str, forms: Mapping[str, Form], who: str) -> Step:
    """Parse one word. Raises SettingsError for an unknown name (listing the known), or numbers that cannot be.

    >>> read_step("centre_crop:0.75", STEPS, "preprocess")
    Step(name='centre_crop', numbers=(0.75,), mode='')
    """
    name, *arguments = (part.strip() for part in re.split(r"[:,]", word))
    if name not in forms:
        known = ", ".join(form.usage for form in forms.values())
        raise SettingsError(f"{who} expects known steps, got {word!r}; known are: {known}.")
    form = forms[name]
    mode = form.modes[0] if form.modes else ""
    if arguments and form.modes and arguments[-1] in form.modes:
        mode = arguments.pop()
    if len(arguments) == 1 and arguments[0] in form.named:
        arguments = [repr(number) for number in form.named[arguments[0]]]
    try:
        numbers = tuple(float(argument) for argument in arguments)
    except ValueError:
        numbers = (math.nan,)
    if not numbers and form.defaults is not None:
        numbers = form.defaults
    fits = len(numbers) == len(form.numbers) and all(
        math.isfinite(number) and low <= number <= high and (not whole or number == int(number))
        for number, (low, high, whole) in zip(numbers, form.numbers)
    )
    if not fits or (name == "percentile" and numbers[0] >= numbers[1]):
        bounds = ", ".join(f"{'a whole' if w else 'a'} number from {lo:g} to {hi:g}" for lo, hi, w in form.numbers)
        modes = " or ".join(mode for mode in form.modes if mode)
        modes += f" or one of {', '.join(form.named)}" if form.named else ""
        wanted = (f" with {bounds}" if bounds else " without numbers") + (f", optionally {modes}" if modes else "")
        raise SettingsError(f"{who} expects {form.usage}{wanted}, got {word!r}; correct the step.")
    return Step(name, numbers, mode)


def split_words(text: str) -> tuple[str, ...]:
    """Steps written in one string, separated by commas or spaces; inside it a mode is written ``pad:32:edge``.

    >>> split_words("window:40,80,resize:64 clahe")
    ('window:40,80', 'resize:64', 'clahe')
    """
    return tuple(re.split(r"[,;\s]+(?=[A-Za-z_])", text.strip())) if text.strip() else ()
