"""How numbers are written, the same in every table."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from eval.statistics import Interval

NONE = "–"


def fixed(value: float | None, digits: int) -> str:
    """Return a number with so many decimals; a dash where there is none."""
    return NONE if value is None or not math.isfinite(value) else f"{value:z.{digits}f}".replace("-", "−")


def signed(value: float, digits: int) -> str:
    """Return a number with its sign, but for a zero as written."""
    if not math.isfinite(value):
        return NONE
    return fixed(value, digits) if round(value, digits) == 0 else f"{value:+.{digits}f}".replace("-", "−")


def short(value: float | None, digits: int = 3) -> str:
    """Return a number with so many significant digits."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.{digits}g}".replace("-", "−")


def trimmed(value: float | None) -> str:
    """Return a count a leaf: up to four decimals, which are exact for 16 leaves."""
    return fixed(value, 4).rstrip("0").rstrip(".") if value is not None and math.isfinite(value) else NONE


def uncertain(gain: Interval, digits: int) -> str:
    """Return an improvement with its interval: ± where symmetric, brackets where not, neither if unknown."""
    if not gain.known:
        return signed(gain.mean, digits)
    if math.isclose(gain.mean - gain.low, gain.high - gain.mean, rel_tol=1e-9, abs_tol=1e-12):
        return f"{signed(gain.mean, digits)} ± {fixed(gain.high - gain.mean, digits)}"
    return f"{signed(gain.mean, digits)} [{fixed(gain.low, digits)}, {fixed(gain.high, digits)}]"


def scale(values: Iterable[float]) -> tuple[str, float]:
    """Return the SI prefix that shows the largest value, and its factor; the smallest of them is mega."""
    largest = max(values)
    return next(((prefix, x) for prefix, x in (("P", 1e15), ("T", 1e12), ("G", 1e9)) if largest >= x), ("M", 1e6))


def decimals(low: float | None, high: float | None) -> int:
    """Return the decimals that show a metric of that range, of which an end may be missing."""
    return 2 if low is not None and high is not None and 20 < high - low < math.inf else 3


def reach(low: float | None, high: float | None) -> str:
    """Return a range, of which an end may be missing."""
    return "unbounded" if low is None and high is None else f"{short(low)} to {short(high)}"


def plain_value(value: Any) -> str:
    """Return a setting as it is typed on the command line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(plain_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {plain_value(item)}" for key, item in value.items()) + "}"
    return str(value)
