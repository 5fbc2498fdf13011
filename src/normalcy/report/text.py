"""Numbers as they are printed, on pages, on the command line and in Markdown alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from normalcy.results.metrics import Interval

MISSING = "–"


def number(value: object, digits: int = 4) -> str:
    """To this many significant digits; a dash where there is none.

    >>> number(0.123456), number(1234.56), number(1e-9), number(None), number(float("inf"))
    ('0.1235', '1235', '1e-09', '–', '∞')
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:.{digits}g}"
    if "e" in text and 1 <= abs(value) < 1e7:
        text = f"{value:.0f}"
    return text.replace("-", "−", 1) if text.startswith("-") else text


def metric(value: float | None, decimals: int = 3) -> str:
    """A number in [0, 1] (or in percent, with one decimal).

    >>> metric(0.93125), metric(None), metric(85.04, 1)
    ('0.931', '–', '85.0')
    """
    return MISSING if value is None or not math.isfinite(value) else f"{value:.{decimals}f}"


def ends(low: float | None, high: float | None, decimals: int = 3) -> str:
    """
    >>> ends(0.9, 0.9512), ends(None, None)
    ('[0.900, 0.951]', '–')
    """
    parts = metric(low, decimals), metric(high, decimals)
    return MISSING if MISSING in parts else f"[{parts[0]}, {parts[1]}]"


def with_interval(found: Interval | None) -> str:
    """
    >>> with_interval(Interval(0.93, 0.9, 0.95)), with_interval(Interval(0.93)), with_interval(None)
    ('0.930 [0.900, 0.950]', '0.930', '–')
    """
    return MISSING if found is None else value_with_ends(found.value, found.low, found.high)


def value_with_ends(value: float | None, low: float | None, high: float | None, decimals: int = 3) -> str:
    """A value and, where it has one, its interval."""
    shown = [metric(value, decimals), ends(low, high, decimals)]
    return " ".join(shown if shown[1] != MISSING else shown[:1])


def signed(value: float | None, decimals: int = 3) -> str:
    """
    >>> signed(0.0304), signed(-0.03), signed(None)
    ('+0.030', '−0.030', '–')
    """
    return MISSING if value is None else f"{value:+.{decimals}f}".replace("-", "−")


def percent(value: float | None) -> str:
    """
    >>> percent(0.05), percent(0.074074), percent(1.0), percent(None)
    ('5 %', '7.4 %', '100 %', '–')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{100 * value:.1f}".removesuffix(".0") + " %"


def count(value: int, one: str, many: str | None = None) -> str:
    """
    >>> count(1, "image"), count(1200, "image")
    ('1 image', '1,200 images')
    """
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def duration(seconds: float | None) -> str:
    """
    >>> duration(12.34), duration(200), duration(9000), duration(None)
    ('12.3 s', '3.3 min', '2.5 h', '–')
    """
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def listed(names: Sequence[str]) -> str:
    """
    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def plain(value: object) -> str:
    """A JSON value as text.

    >>> plain({"size": None, "steps": [1, 2], "grow": False, "lr": 0.001})
    'steps 1, 2, grow no, lr 0.001'
    """
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return number(value, 6) if isinstance(value, float) else str(value)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """
    >>> markdown_table(["a", "b"], [["1", "x|y"]])
    ['| a | b |', '| --- | --- |', '| 1 | x\\\\|y |']
    """
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
