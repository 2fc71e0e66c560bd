"""How far a mean can be trusted by the bootstrap: means of values that are drawn again, with replacement."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from montessori_pl.stats.means import CONFIDENCE, MeanInterval

Array = NDArray[np.float64]
NUM_RESAMPLES = 1000


def bootstrap_rows(rows: Array, rng: np.random.Generator, num_resamples: int = NUM_RESAMPLES) -> Array:
    """Means over rows that are drawn with replacement, as many as there are.

    Args:
        rows: shape (N, C): C numbers that are drawn together.
        rng: draws.
        num_resamples: how often.

    Returns:
        Shape (num_resamples, C).
    """
    num_rows = len(rows)
    draws = (rng.integers(num_rows, size=num_rows) for _ in range(num_resamples))
    return np.stack([np.bincount(draw, minlength=num_rows) @ rows / num_rows for draw in draws])


def bootstrap_values(values: Sequence[float], rng: np.random.Generator, num_resamples: int = NUM_RESAMPLES) -> Array:
    """Means over values that are drawn with replacement, as many as there are; shape (num_resamples,)."""
    means: Array = _draw(values, (num_resamples,), rng).mean(axis=-1)
    return means


def bootstrap_groups(
    groups: Sequence[Sequence[float]], rng: np.random.Generator, num_resamples: int = NUM_RESAMPLES
) -> Array:
    """Means over as many groups as there are, drawn with replacement, and over as many values in each as it has.

    Returns:
        Shape (num_resamples,); a group weighs as much as it has values.
    """
    shape = (num_resamples, len(groups))
    chosen = rng.integers(len(groups), size=shape)
    sums, counts = np.zeros(shape), np.zeros(shape)
    for group, values in enumerate(groups):
        drawn = _draw(values, shape, rng).sum(axis=-1)
        sums += np.where(chosen == group, drawn, 0.0)
        counts += np.where(chosen == group, len(values), 0)
    means: Array = sums.sum(axis=1) / counts.sum(axis=1)
    return means


def percentile_interval(
    mean: float, resampled: Array, interpolated: bool = True, confidence: float = CONFIDENCE
) -> MeanInterval:
    """The interval between percentiles of a mean's resamples.

    Args:
        mean: the mean itself.
        resampled: that of each resample, shape (number of resamples,).
        interpolated: an end that falls between two resamples lies between them, or else is the inner one of both: the
            means of a few values are few and far apart, and an end between them is the mean of no draw.
        confidence: the share of resamples between the ends.
    """
    tail = (1 - confidence) / 2
    low = np.quantile(resampled, tail, method="linear" if interpolated else "higher")
    high = np.quantile(resampled, 1 - tail, method="linear" if interpolated else "lower")
    return MeanInterval(float(mean), float(low), float(high))


def _draw(values: Sequence[float], shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Samples with replacement, each as large as the values: (*shape, values)."""
    array = np.asarray(values, dtype=np.float64)
    return array[rng.integers(len(array), size=(*shape, len(array)))]
