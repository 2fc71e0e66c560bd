"""One arm minus another over the cells in which both finished, and the students that collapsed.

Cells of one world share its teacher, base student, reference and test set, so they are not independent. Of the three
intervals two ignore that: Student's t and the bootstrap over cells speak about other seeds in these worlds. The
bootstrap over worlds draws worlds with replacement, and then seeds within each, and speaks about other worlds; with few
worlds it is too narrow, for it cannot draw what it has never seen.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from montessori_pl.stats.bootstrap import bootstrap_groups, bootstrap_rows, bootstrap_values, percentile_interval
from montessori_pl.stats.means import MIN_VALUES, MeanInterval, mean_interval
from study.measures import ALL_MEASURES, Cell

SPREADS = 2
"""So many of the baseline's standard deviations may a reference loss be worse before it counts as collapsed."""
NUM_RESAMPLES = 10_000
MIN_WORLDS = 2
"""Worlds from which on there is an interval over worlds."""

Ends = tuple[float, float]


@dataclass(frozen=True)
class PairedDifference:
    """The mean of the differences of cells, with the ends of its 95% intervals; none for too few cells or worlds."""

    mean: float
    """Over all cells."""
    t: Ends | None
    """Student's t over cells."""
    cells: Ends | None
    """The bootstrap over cells; too narrow for few cells."""
    worlds: Ends | None
    """The bootstrap over worlds, and seeds within them."""
    by_world: dict[int, tuple[float, ...]]
    """One difference for each cell."""

    @classmethod
    def of(cls, differences: Mapping[int, Sequence[float]], seed: int = 0) -> "PairedDifference":
        """Average, and find the intervals.

        Args:
            differences: one for each cell, by world.
            seed: of the bootstraps.
        """
        groups = {world: tuple(values) for world, values in differences.items()}
        values = [value for group in groups.values() for value in group]
        by_t, rng = mean_interval(values), np.random.default_rng(seed)
        cells = worlds = None
        if len(values) >= MIN_VALUES:
            drawn = bootstrap_values(values, rng, NUM_RESAMPLES)
            cells = percentile_interval(by_t.mean, drawn, interpolated=False).ends
            if len(groups) >= MIN_WORLDS:
                drawn = bootstrap_groups(list(groups.values()), rng, NUM_RESAMPLES)
                worlds = percentile_interval(by_t.mean, drawn, interpolated=False).ends
        return cls(by_t.mean, by_t.ends, cells, worlds, groups)

    @property
    def values(self) -> list[float]:
        """The differences of all cells."""
        return [value for values in self.by_world.values() for value in values]


@dataclass(frozen=True)
class Comparison:
    """An arm minus its rival in one measure."""

    ours: str
    rival: str
    measure: str
    difference: PairedDifference

    @property
    def wins(self) -> int:
        """Cells in which the arm is better; for a measure without better and worse, higher."""
        sign = ALL_MEASURES[self.measure].better or 1
        return sum(value * sign > 0 for value in self.difference.values)


def finished(cells: Iterable[Cell], arm: str) -> dict[tuple[int, int], Cell]:
    """The cells in which this arm finished, by world and seed."""
    return {(cell.world, cell.seed): cell for cell in cells if cell.arm == arm and not cell.failed}


def compare(cells: Sequence[Cell], pairs: Iterable[tuple[str, str]]) -> list[Comparison]:
    """The compared measures of these arms and rivals, where both have them in all cells in which both finished."""
    found = []
    for ours, rival in pairs:
        mine, theirs = finished(cells, ours), finished(cells, rival)
        both = sorted(mine.keys() & theirs.keys())
        for name, one in ALL_MEASURES.items():
            sides = [(key, mine[key].measures, theirs[key].measures) for key in both]
            if not one.compared or not sides or not all(name in a and name in b for _, a, b in sides):
                continue
            differences: dict[int, list[float]] = {}
            for (world, _), a, b in sides:
                differences.setdefault(world, []).append(a[name] - b[name])
            found.append(Comparison(ours, rival, name, PairedDifference.of(differences)))
    return found


def share_of_headroom(cells: Sequence[Cell], arm: str, baseline: str, oracle: str) -> tuple[MeanInterval, int]:
    """What an arm gains in accuracy over the baseline, as a share of what the oracle gains.

    Returns:
        the ratio of the mean gains over the cells in which all three finished, with the interval of a bootstrap that
        draws cells (none for fewer than three), and how many cells these are.
    """
    sides = [finished(cells, name) for name in (arm, baseline, oracle)]
    keys = sorted(set.intersection(*(set(side) for side in sides)))
    if not keys:
        return MeanInterval(float("nan")), 0
    ours, theirs, best = (np.array([side[key].measures["accuracy"] for key in keys]) for side in sides)
    gains = np.stack([ours - theirs, best - theirs], axis=1)
    mean = gains.mean(axis=0)
    share = float(mean[0] / mean[1])
    if len(keys) < MIN_VALUES:
        return MeanInterval(share), len(keys)
    drawn = bootstrap_rows(gains, np.random.default_rng(0), NUM_RESAMPLES)
    return percentile_interval(share, drawn[:, 0] / drawn[:, 1], interpolated=False), len(keys)


def collapse_limits(cells: Sequence[Cell], baseline: str) -> dict[int, float]:
    """By how much a reference loss may be worse than the baseline's, in nats per token, by world.

    So many standard deviations of the reference losses of all the baseline's students in that world, over seeds and
    students; none for a world with fewer than two. An arm's mean over students spreads less than single students do.
    """
    losses: dict[int, list[float]] = {}
    for cell in finished(cells, baseline).values():
        losses.setdefault(cell.world, []).extend(student["reference loss"] for student in cell.students)
    return {world: SPREADS * statistics.stdev(values) for world, values in losses.items() if len(values) > 1}


def collapsed(cells: Sequence[Cell], baseline: str) -> list[Cell]:
    """The cells whose reference loss is worse than the baseline's in the same cell by more than the world's limit."""
    limits, references = collapse_limits(cells, baseline), finished(cells, baseline)
    return [
        cell
        for cell in cells
        if not cell.failed
        and cell.world in limits
        and (cell.world, cell.seed) in references
        and cell.measures["reference loss"]
        > references[cell.world, cell.seed].measures["reference loss"] + limits[cell.world]
    ]
