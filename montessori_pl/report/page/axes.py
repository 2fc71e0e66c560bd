"""Axes: round numbers for their ticks, and how numbers are written."""

import math
from collections.abc import Sequence

MOST_TICKS = 6


def ticks(low: float, high: float, most: int = MOST_TICKS) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between two numbers, not more than asked for."""
    if not high > low:
        return [low]
    step = 10.0 ** max(-300, math.floor(math.log10((high - low) / most)))
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


def labels(places: Sequence[float]) -> list[str]:
    """How ticks are written: all of an axis alike, with as many digits as tell them apart."""
    step = places[1] - places[0] if len(places) > 1 else abs(places[0]) or 1.0
    largest = max(map(abs, places))
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if largest and not 1e-3 <= largest < 1e7:
        power = math.floor(math.log10(largest) + 1e-9)
        digits = max(0, power - math.floor(math.log10(step) + 1e-9))
        return [_minus(f"{place / 10.0**power:.{digits}f}e{power}") if place else "0" for place in places]
    return [_minus(f"{place:,.{digits}f}") if abs(place) > step * 1e-6 else "0" for place in places]


def shown(value: float) -> str:
    """A number alone, in few characters."""
    return _minus(f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}")


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _count(low: float, high: float, step: float) -> int:
    return math.floor(high / step + 1e-9) - math.ceil(low / step - 1e-9) + 1
