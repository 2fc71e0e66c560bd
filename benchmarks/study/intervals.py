"""The mean of paired differences over cells, and how far it can be trusted.

Cells of one world share its teacher, base student, reference and test set, so they are not independent. Of the three
intervals two ignore that: Student's t and the bootstrap over cells speak about other seeds in these worlds. The
bootstrap over worlds draws worlds with replacement, and then seeds within each, and speaks about other worlds; with few
worlds it is too narrow, for it cannot draw what it has never seen.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from montessori_pl.report.statistics import t_quantile

NUM_RESAMPLES = 10_000
MIN_CELLS = 3
"""Cells from which on there are intervals."""
MIN_WORLDS = 2
"""Worlds from which on there is one over worlds."""


@dataclass(frozen=True)
class Interval:
    """The mean with its 95% intervals; none where there are too few cells or worlds."""

    mean: float
    """Over all cells."""
    t: tuple[float, float] | None
    """Student's t over cells."""
    cells: tuple[float, float] | None
    """Percentiles of the mean over cells drawn with replacement; too narrow for few cells."""
    worlds: tuple[float, float] | None
    """Percentiles of the mean over worlds, and seeds within them, drawn with replacement."""
    differences: dict[int, tuple[float, ...]]
    """One for each cell, by world."""

    @property
    def values(self) -> list[float]:
        """The differences of all cells."""
        return [value for values in self.differences.values() for value in values]


def interval(differences: Mapping[int, Sequence[float]], seed: int = 0) -> Interval:
    """The mean difference and its intervals.

    Args:
        differences: one for each cell, by world.
        seed: of the bootstraps.
    """
    groups = {world: tuple(values) for world, values in differences.items()}
    values = [value for group in groups.values() for value in group]
    mean, num_cells = statistics.fmean(values), len(values)
    if num_cells < MIN_CELLS:
        return Interval(mean, None, None, None, groups)
    half = t_quantile(num_cells - 1) * statistics.stdev(values) / math.sqrt(num_cells)
    rng = np.random.default_rng(seed)
    cells = _percentiles(_draw(np.array(values), (NUM_RESAMPLES,), rng).mean(axis=-1))
    worlds = _percentiles(_means_over_worlds(list(groups.values()), rng)) if len(groups) >= MIN_WORLDS else None
    return Interval(mean, (mean - half, mean + half), cells, worlds, groups)


def _means_over_worlds(groups: Sequence[Sequence[float]], rng: np.random.Generator) -> NDArray[np.float64]:
    """Means over as many worlds as there are, drawn with replacement, and over as many seeds in each as it has."""
    shape = (NUM_RESAMPLES, len(groups))
    chosen = rng.integers(len(groups), size=shape)
    sums, counts = np.zeros(shape), np.zeros(shape)
    for world, values in enumerate(groups):
        drawn = _draw(np.array(values), shape, rng).sum(axis=-1)
        sums += np.where(chosen == world, drawn, 0.0)
        counts += np.where(chosen == world, len(values), 0)
    means: NDArray[np.float64] = sums.sum(axis=1) / counts.sum(axis=1)
    return means


def _draw(values: NDArray[np.float64], shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    """Samples with replacement, each as large as the values: (*shape, values)."""
    return values[rng.integers(len(values), size=(*shape, len(values)))]


def _percentiles(means: NDArray[np.float64]) -> tuple[float, float]:
    """The 2.5th and the 97.5th of the means, both of which occur among them."""
    ordered = np.sort(means)
    return float(ordered[round(0.025 * len(ordered))]), float(ordered[round(0.975 * len(ordered)) - 1])
