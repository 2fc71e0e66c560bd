"""How much numbers differ, where some of them may differ by rounding alone."""

import statistics
from collections.abc import Sequence

ROUNDING = 1e-12
"""Numbers that differ by less than this part of the largest are alike: the mean of three times 0.1 is not 0.1."""


def spread(values: Sequence[float]) -> float:
    """The standard deviation of these numbers as a whole population, and 0 where they differ by rounding alone."""
    found = statistics.pstdev(values)
    return found if found > ROUNDING * max(map(abs, values)) else 0.0
