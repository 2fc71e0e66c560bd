"""Means over a few seeds, and how far they can be trusted: Student's t, by hand, without another library."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

MIN_VALUES = 3
"""Values from which on there is an interval: with two, it would reach six times as far as they lie apart."""


@dataclass(frozen=True)
class Estimate:
    """A mean, or a difference of means, with its 95% interval."""

    mean: float
    half_width: float | None = None
    """The interval is the mean plus and minus this; none where there are too few values."""


def mean_of(values: Sequence[float]) -> Estimate:
    """The mean with its interval; of differences within pairs, the paired one."""
    mean, count = statistics.fmean(values), len(values)
    if count < MIN_VALUES:
        return Estimate(mean)
    return Estimate(mean, t_quantile(count - 1) * statistics.stdev(values) / math.sqrt(count))


def unpaired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Our mean minus theirs, with Welch's interval, which lets both spread differently.

    Its degrees of freedom are no whole number; they are rounded down, which makes the interval a little wider.
    """
    mean = statistics.fmean(ours) - statistics.fmean(theirs)
    if min(len(ours), len(theirs)) < MIN_VALUES:
        return Estimate(mean)
    errors = [statistics.variance(values) / len(values) for values in (ours, theirs)]
    if not any(errors):
        return Estimate(mean, 0.0)
    spread = sum(error**2 / (len(values) - 1) for error, values in zip(errors, (ours, theirs), strict=True))
    return Estimate(mean, t_quantile(int(sum(errors) ** 2 / spread)) * math.sqrt(sum(errors)))


def t_quantile(degrees: int, confidence: float = 0.95) -> float:
    """The t with `confidence` of Student's distribution between -t and t, by bisection."""
    low, high = 0.0, 1000.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, degrees) < confidence else (low, middle)
    return high


def _t_within(t: float, degrees: int) -> float:
    """Probability of Student's distribution between -t and t; Abramowitz and Stegun 26.7.3 and 26.7.4."""
    theta = math.atan(t / math.sqrt(degrees))
    term = math.cos(theta) if degrees % 2 else 1.0
    terms = 0.0
    for power in range(1 if degrees % 2 else 0, degrees - 1, 2):
        terms += term
        term *= math.cos(theta) ** 2 * (power + 1) / (power + 2)
    sine = math.sin(theta) * terms
    return (theta + sine) * 2 / math.pi if degrees % 2 else sine
