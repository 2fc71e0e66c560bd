"""Runs of the same settings under different seeds, together, under a name."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from montessori_pl.report.runs import CompareError, Run

_SEED = re.compile(r"[-_. ]*(seed)?[-_.= ]*\d*$", re.IGNORECASE)
"""What the end of a directory's name says of a seed: `-seed_3`, `_3`."""


@dataclass(frozen=True)
class Group:
    """Runs that are averaged over."""

    name: str
    runs: tuple[Run, ...]

    @property
    def finished(self) -> list[Run]:
        """Those that have finished the evaluation of the group's last iteration."""
        last = max(run.iteration for run in self.runs)
        return [run for run in self.runs if run.students and run.iteration == last]

    @property
    def unfinished(self) -> list[Run]:
        """The others."""
        finished = self.finished
        return [run for run in self.runs if run not in finished]

    def values(self, measure: str) -> dict[int, float]:
        """A measure of the finished runs by seed; none unless all of them have it."""
        values = {run.seed: run.measures[measure] for run in self.finished if measure in run.measures}
        return values if len(values) == len(self.finished) else {}


def form_groups(runs: Sequence[tuple[str, Run]]) -> list[Group]:
    """Put runs together, in the order in which they are given.

    Args:
        runs: each with the name that the user gave it. Runs of the same name are a group; of those without a name
            (empty), those of the same settings are.

    Raises:
        CompareError: two runs of a group have the same seed.
    """
    members: dict[tuple[str, str], list[Run]] = {}
    for name, run in runs:
        members.setdefault((name, "" if name else run.settings), []).append(run)
    nameless = [[run.root for run in group] for (name, _), group in members.items() if not name]
    found = iter(_names(nameless, {name for name, _ in members}))
    groups = [Group(name or next(found), tuple(group)) for (name, _), group in members.items()]
    for group in groups:
        _check_seeds(group)
    return groups


def _check_seeds(group: Group) -> None:
    roots: dict[int, Path] = {}
    for run in group.runs:
        if run.seed in roots:
            raise CompareError(
                f"{roots[run.seed]} and {run.root}, both of the group {group.name!r}, have the same seed {run.seed}; "
                f"leave one out, or give it a name of its own: NAME={run.root}"
            )
        roots[run.seed] = run.root


def _names(groups: Sequence[Sequence[Path]], taken: set[str]) -> list[str]:
    """A name for each group: what its directories have in common, with as many parents as tell it from the others."""
    parts = [_common_parts(roots) for roots in groups]
    names = []
    for roots, own in zip(groups, parts, strict=True):
        candidates = [["/".join(reversed(one[:depth])) for one in (own, *parts)] for depth in range(1, len(own) + 1)]
        names.append(
            next(
                (name for name, *all_names in candidates if name not in taken and all_names.count(name) == 1),
                str(roots[0]),
            )
        )
    return names


def _common_parts(roots: Sequence[Path]) -> list[str]:
    """From the last part of the paths to the first, what they have in common, where that is more than a seed."""
    levels = zip(*(reversed(root.resolve().parts[1:]) for root in roots), strict=False)
    return [common for level in levels if (common := _common(level))]


def _common(names: Sequence[str]) -> str:
    if len(set(names)) == 1:
        return "" if _SEED.fullmatch(names[0]) else names[0]
    if start := _SEED.sub("", _shared_start(names), count=1):
        return start
    end = _shared_start([name[::-1] for name in names])[::-1].lstrip("-_. ")
    return "" if _SEED.fullmatch(end) else end


def _shared_start(names: Sequence[str]) -> str:
    shared = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in shared)
