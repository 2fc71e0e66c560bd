"""Correlations, which are nan where one side does not vary, and what a rank correlation proves beyond its sample."""

import math
from collections.abc import Sequence


def pearson(a: Sequence[float], b: Sequence[float]) -> float:
    """Linear correlation."""
    if not _vary(a, b):
        return math.nan
    from scipy import stats  # a second, which is not for those who import us for something else

    return float(stats.pearsonr(a, b).statistic)


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation; equal values share the mean of their ranks."""
    if not _vary(a, b):
        return math.nan
    from scipy import stats

    return float(stats.spearmanr(a, b).statistic)


def spearman_bound(correlation: float, count: int, standard_errors: float = 2.0) -> float:
    """A lower bound of a rank correlation beyond this sample, by Fisher's transformation.

    A sample in which all ranks agree counts as one with half an exchange of neighbours: without this correction for
    continuity four examples in the right order, one chance in 24, would prove perfect agreement.

    Args:
        correlation: that of the sample.
        count: examples in it.
        standard_errors: how far below the sample's; 2 holds in 97 of 100 samples.
    """
    if count < 4 or math.isnan(correlation):
        return -1.0
    most = 1 - 6 / (count * (count**2 - 1))
    # 1.03 instead of 1: Fisher's variance for rank correlations (Fieller, Hartley and Pearson, 1957).
    z = math.atanh(max(-most, min(correlation, most))) - standard_errors * 1.03 / math.sqrt(count - 3)
    return math.tanh(z)


def _vary(a: Sequence[float], b: Sequence[float]) -> bool:
    return min(len(set(a)), len(set(b))) > 1
