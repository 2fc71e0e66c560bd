"""A distribution in numbers: mean, spread, quantiles, the positive share and a histogram."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from montessori_pl.stats.spread import ROUNDING

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def describe(values: Sequence[float], bins: int = 40) -> dict[str, Any]:
    """Numbers that describe the values; just the count when there are none.

    Args:
        values: the values.
        bins: bins of the histogram, equally wide between the smallest and the largest value; one where all are alike.
    """
    if not values:
        return {"count": 0}
    array = np.asarray(values, dtype=np.float64)
    counts, edges = histogram(values, bins)
    spread = float(array.std(ddof=1)) if len(array) > 1 else 0.0
    return {
        "count": len(values),
        "mean": float(array.mean()),
        "standard_error": spread / math.sqrt(len(array)),
        "positive_rate": float((array > 0).mean()),
        "quantiles": {
            f"{q:g}": float(value) for q, value in zip(QUANTILES, np.quantile(array, QUANTILES), strict=True)
        },
        "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
    }


def histogram(
    values: Sequence[float], bins: int
) -> "tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.float64]]]":
    """How many values lie in each bin, and the edges of the bins; one bin where values differ by rounding alone.

    NumPy has no room for several bins there, and raises an error.
    """
    array = np.asarray(values, dtype=np.float64)
    if np.ptp(array) <= ROUNDING * np.abs(array).max():
        return np.histogram(np.full_like(array, array[0]), bins=1)
    return np.histogram(array, bins=bins)


def cumulative(values: Sequence[float], steps: int = 20) -> list[float]:
    """The quantiles 0, 1/steps, ..., 1 of the values: what their cumulative distribution is drawn from.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values, of which there are no quantiles")
    return [float(one) for one in np.quantile(np.asarray(values, dtype=np.float64), np.linspace(0, 1, steps + 1))]
