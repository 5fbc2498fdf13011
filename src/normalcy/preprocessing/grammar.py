"""How steps of preprocessing and augmentation are written: a name and its arguments, separated by colons.

``window:40:80``, ``pad:32:edge``, ``percentile:1:99:body``: the same on the command line, in TOML and in Python. Commas
(and lists) separate steps, never arguments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeVar

from normalcy.errors import SettingsError


class Number(NamedTuple):
    """A numeric argument: its name in usage texts, what it must be, and its bounds (both included)."""

    name: str
    meaning: str
    low: float
    high: float
    whole: bool = False

    def holds(self, number: float) -> bool:
        return self.low <= number <= self.high and (not self.whole or number == int(number))


class Mode(NamedTuple):
    """A last argument with a few choices. The first is the default; "" means that it may be left out."""

    name: str
    choices: tuple[str, ...]


class Form(NamedTuple):
    """How a step is written, for parsing and for messages.

    ``defaults``: the numbers where none are given. ``presets``: names that stand for the numbers. ``increasing``: the
    first number must be less than the second.
    """

    numbers: tuple[Number, ...] = ()
    defaults: tuple[float, ...] | None = None
    mode: Mode | None = None
    presets: Mapping[str, tuple[float, ...]] = {}
    increasing: bool = False

    def usage(self, name: str) -> str:
        """What can be typed, optional parts in brackets: ``percentile[:LOW:HIGH][:PIXELS]``."""
        numbers = "".join(f":{number.name}" for number in self.numbers)
        numbers = f"[{numbers}]" if self.defaults is not None else numbers
        mode = f"[:{self.mode.name}]" if self.mode else ""
        return f"{name}{numbers}{mode}" + (f" or {name}:NAME" if self.presets else "")

    def meaning(self) -> str:
        """What each argument in :meth:`usage` must be."""
        parts = [f"{number.name} {number.meaning}" for number in self.numbers]
        if self.increasing:
            parts.append(f"{self.numbers[0].name} below {self.numbers[1].name}")
        if self.mode:
            first, *others = self.mode.choices
            choices = [f"{first} (default)", *others] if first else others
            parts.append(f"{self.mode.name} {' or '.join(choices)}")
        if self.presets:
            parts.append(f"NAME one of {', '.join(self.presets)}")
        return f"with {', '.join(parts)}" if parts else "without arguments"


@dataclass(frozen=True)
class Step:
    """A step with its arguments: ``pad:32:edge`` is ``Pad(numbers=(32.0,), mode="edge")``; as text it is what is typed."""

    numbers: tuple[float, ...] = ()
    mode: str = ""
    name: ClassVar[str]
    form: ClassVar[Form] = Form()

    def __str__(self) -> str:
        return ":".join([self.name, *(repr(n).removesuffix(".0") for n in self.numbers), *filter(None, [self.mode])])


StepT = TypeVar("StepT", bound=Step)


def by_name(*steps: type[StepT]) -> Mapping[str, type[StepT]]:
    return {step.name: step for step in steps}


def read_step(text: str, steps: Mapping[str, type[StepT]], who: str) -> StepT:
    """Parse one step. Raises SettingsError for an unknown name (listing the available ones) and for wrong arguments."""
    name, *arguments = (part.strip() for part in text.split(":"))
    if name not in steps:
        usages = ", ".join(step.form.usage(known) for known, step in steps.items())
        raise SettingsError(f"{who} expects one of its steps, got {text[:100]!r}. Available: {usages}.")
    form = steps[name].form
    mode = form.mode.choices[0] if form.mode else ""
    if form.mode and arguments and arguments[-1] in form.mode.choices:
        mode = arguments.pop()
    if len(arguments) == 1 and arguments[0] in form.presets:
        numbers = form.presets[arguments[0]]
    elif not arguments and form.defaults is not None:
        numbers = form.defaults
    else:
        numbers = tuple(map(_number, arguments))
    fits = len(numbers) == len(form.numbers) and all(n.holds(value) for n, value in zip(form.numbers, numbers))
    if not fits or (form.increasing and numbers[0] >= numbers[1]):
        remedy = "write colons between arguments" if "," in text else "correct the step"
        raise SettingsError(f"{who} expects {form.usage(name)} {form.meaning()}, got {text[:100]!r}; {remedy}.")
    return steps[name](numbers, mode)


def colon_form(text: str) -> str:
    """A step of an earlier version, whose arguments were separated by commas: ``window:40,80`` -> ``window:40:80``."""
    return text.replace(",", ":")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan  # is in no bounds
