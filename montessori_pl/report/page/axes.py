"""Axes: round numbers for their ticks, and how numbers are written."""

import math
from collections.abc import Sequence

FEWEST_TICKS, MOST_TICKS = 3, 6


def ticks(low: float, high: float, most: int = MOST_TICKS) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between two numbers, not more than asked for."""
    if not high > low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    while _count(low, high, step) > most:
        # 1 -> 2 -> 5 -> 10
        step *= 2.5 if f"{step:e}".startswith("2") else 2
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def limits(values: Sequence[float], from_zero: bool = False) -> tuple[float, float]:
    """Where an axis begins and ends that shows these values with a little room."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    room = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return (low if from_zero and low == 0 else low - room), (high if from_zero and high == 0 else high + room)


def shown(value: float, step: float | None = None) -> str:
    """A number in few characters, as precise as the distance to the next one asks for.

    Args:
        value: the number.
        step: distance of the ticks; none shows four significant digits.
    """
    if step is None:
        text = f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    elif value == 0 or abs(value) < step * 1e-6:
        return "0"
    elif max(abs(value), step) >= 1e-3 and abs(value) < 1e7:
        text = f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
    else:
        digits = max(0, math.floor(math.log10(abs(value))) - math.floor(math.log10(step) + 1e-9))
        mantissa, _, exponent = f"{value:.{digits}e}".partition("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", "\N{MINUS SIGN}")


def _count(low: float, high: float, step: float) -> int:
    return math.floor(high / step + 1e-9) - math.ceil(low / step - 1e-9) + 1
