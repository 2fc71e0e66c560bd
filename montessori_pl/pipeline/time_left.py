"""How long the rest of a recipe takes: as planned, times what the stages behind have taken of their plan."""

import dataclasses
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from montessori_pl.estimates.seconds import duration
from montessori_pl.pipeline.recipe import Step
from montessori_pl.report.summary import METRICS
from montessori_pl.run_directory.progress import Progress
from montessori_pl.run_directory.run_directory import RunDirectory

PLANNED_SECONDS = "planned_seconds"
"""The fact of a run that holds what was planned, by key of the stage."""
ENOUGH = 0.05
"""Share of a stage from which on its own pace says how long the rest of it takes: what it does first may be special."""


@dataclasses.dataclass(frozen=True)
class StageTime:
    """One stage of one iteration, as far as time goes."""

    name: str
    """In the recipe."""
    kind: str
    """Its class: stages of one class are wrong by a like factor."""
    planned: float | None
    """Seconds that were planned for all of it; none where nothing could be said."""
    spent: float = 0.0
    """Seconds that it has taken so far."""
    share: float = 0.0
    """What of it is done, from 0 to 1."""


@dataclasses.dataclass(frozen=True)
class TimeLeft:
    """What is known of the rest."""

    seconds: float
    """Of all stages of which anything is known."""
    unknown: int
    """Stages of which nothing is."""
    learned: bool
    """Whether any stage behind has told how good the plan is."""


def time_left(stages: Sequence[StageTime]) -> TimeLeft:
    """The time that the rest of these stages takes.

    A stage that is under way goes on at its own pace. Of one ahead, the plan is corrected by how many times as long as
    planned stages took: those of its name (in earlier iterations), else those of its class, else a class in the middle.
    One without a plan takes as long as those of its name did.
    """
    of_name, of_kind = _ratios((one.name, one) for one in stages), _ratios((one.kind, one) for one in stages)
    middle = statistics.median(of_kind.values()) if of_kind else 1.0
    finished: dict[str, list[float]] = defaultdict(list)
    for stage in stages:
        if stage.share == 1:
            finished[stage.name].append(stage.spent)
    seconds, unknown = 0.0, 0
    for stage in stages:
        if stage.share >= ENOUGH:
            seconds += stage.spent * (1 - stage.share) / stage.share
        elif stage.planned is not None:
            ratio = of_name.get(stage.name, of_kind.get(stage.kind, middle))
            seconds += max(0.0, ratio * stage.planned - stage.spent)
        elif before := finished.get(stage.name):
            seconds += max(0.0, statistics.fmean(before) - stage.spent)
        else:
            unknown += 1
    return TimeLeft(seconds, unknown, learned=bool(of_kind))


def _ratios(stages: Iterable[tuple[str, StageTime]]) -> dict[str, float]:
    """How many times as long as planned the stages of each group have taken, of the groups in which that is known."""
    spent: dict[str, float] = defaultdict(float)
    planned: dict[str, float] = defaultdict(float)
    for group, stage in stages:
        if stage.share >= ENOUGH and stage.planned:
            spent[group] += stage.spent
            planned[group] += stage.share * stage.planned
    return {group: spent[group] / planned[group] for group in spent}


class RecipeClock:
    """Says how far a run is, and how long the rest takes.

    Args:
        run_directory: knows which stages have finished, and how long each has taken.
        steps: of the recipe, all of them.
        planned: seconds by key, of the steps that had not begun when this was planned.
    """

    def __init__(self, run_directory: RunDirectory, steps: Sequence[Step], planned: Mapping[str, float]) -> None:
        self.run_directory, self.steps = run_directory, steps
        self.planned: dict[str, float] = {**run_directory.facts.get(PLANNED_SECONDS, {}), **planned}
        """A stage that has begun keeps what was planned for all of it."""
        self._costs: dict[str, float] = {}
        run_directory.remember(**{PLANNED_SECONDS: self.planned})

    def during(self, key: str, progress: Progress) -> str:
        """What to say while a stage runs: `recipe: 12 min so far, about 18 min left, $1.20`."""
        spent, cost = progress.since_tick, progress.cost
        times = []
        for step in self.steps:
            here = step.key == key
            times.append(self._time(step, spent if here else 0.0, progress.share if here else 0.0))
            cost += 0.0 if here else self._cost(step.key)
        so_far = f"{duration(sum(one.spent for one in times))} so far"
        return f"recipe: {', '.join(filter(None, (so_far, _sentence(times), f'${cost:,.2f}' if cost else '')))}"

    def after(self) -> str:
        """What to say when a stage has finished; empty when nothing is left."""
        if all(self.run_directory.finished(step.key) for step in self.steps):
            return ""
        return _sentence([self._time(step, 0.0, 0.0) for step in self.steps])

    def _time(self, step: Step, seconds: float, share: float) -> StageTime:
        entry = self.run_directory.entries.get(step.key)
        return StageTime(
            step.name,
            type(step.stage).__name__,
            self.planned.get(step.key),
            spent=(entry.seconds if entry is not None else 0.0) + seconds,
            share=1.0 if self.run_directory.finished(step.key) else share,
        )

    def _cost(self, key: str) -> float:
        if key not in self._costs and self.run_directory.finished(key):
            metrics = json.loads((self.run_directory.directory(key) / METRICS).read_text(encoding="utf-8"))
            self._costs[key] = float(metrics.get("cost", 0.0))
        return self._costs.get(key, 0.0)


def _sentence(times: Sequence[StageTime]) -> str:
    left = time_left(times)
    unknown = f"{left.unknown} stage{'s' if left.unknown > 1 else ''} of unknown length" if left.unknown else ""
    if not left.seconds:
        return f"{unknown} left" if unknown else ""
    by_plan = "" if left.learned else " by the plan"
    return f"about {duration(left.seconds)}{unknown and ' and '}{unknown} left{by_plan}"
