"""Means over a few values, and how far they can be trusted.

SciPy is imported where an interval is asked for: a table without intervals does not wait for it.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
MIN_VALUES = 3
"""Values from which on there is an interval: with two, it would reach six times as far as they lie apart."""


@dataclass(frozen=True)
class MeanInterval:
    """A mean, or a difference of means, with its 95% interval; without one where there are too few values."""

    mean: float
    """Of the values as they are."""
    low: float | None = None
    """Lower end of the interval."""
    high: float | None = None
    """Its upper end."""

    @property
    def ends(self) -> tuple[float, float] | None:
        """Both ends, if there is an interval."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def half_width(self) -> float | None:
        """Half of its length, if there is an interval; by Student's t it reaches so far to each side of the mean."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def mean_interval(values: Sequence[float]) -> MeanInterval:
    """The mean with its interval by Student's t; of differences within pairs, the paired one."""
    mean, count = statistics.fmean(values), len(values)
    if count < MIN_VALUES:
        return MeanInterval(mean)
    half = _t_quantile(count - 1) * statistics.stdev(values) / math.sqrt(count)
    return MeanInterval(mean, mean - half, mean + half)


def welch_interval(ours: Sequence[float], theirs: Sequence[float]) -> MeanInterval:
    """Our mean minus theirs, with Welch's interval, which lets both spread differently.

    By hand, for `scipy.stats.ttest_ind` warns where one side does not vary, and takes a second to import.
    """
    mean = statistics.fmean(ours) - statistics.fmean(theirs)
    if min(len(ours), len(theirs)) < MIN_VALUES:
        return MeanInterval(mean)
    errors = [statistics.variance(values) / len(values) for values in (ours, theirs)]
    if not any(errors):
        return MeanInterval(mean, mean, mean)
    spread = sum(error**2 / (len(values) - 1) for error, values in zip(errors, (ours, theirs), strict=True))
    half = _t_quantile(sum(errors) ** 2 / spread) * math.sqrt(sum(errors))
    return MeanInterval(mean, mean - half, mean + half)


def _t_quantile(degrees: float) -> float:
    """The t with 95% of Student's distribution between -t and t."""
    # What `scipy.stats.t.ppf` calls; to import all of `scipy.stats` takes three times as long.
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))
