"""One arm minus another over the cells in which both finished, and the students that collapsed."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from study.intervals import Interval, interval
from study.measures import ALL_MEASURES, Cell

SPREADS = 2
"""So many of the baseline's standard deviations may a reference loss be worse before it counts as collapsed."""


@dataclass(frozen=True)
class Comparison:
    """An arm minus its rival in one measure."""

    ours: str
    rival: str
    measure: str
    interval: Interval
    """Of the paired differences."""

    @property
    def wins(self) -> int:
        """Cells in which the arm is better; for a measure without better and worse, higher."""
        sign = ALL_MEASURES[self.measure].better or 1
        return sum(difference * sign > 0 for difference in self.interval.values)


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
            found.append(Comparison(ours, rival, name, interval(differences)))
    return found


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
