"""What came out: students beside a baseline, each difference with its interval and in words.

| compared | interval of the difference |
|---|---|
| groups of runs, three seeds or more | over seeds, as `compare` takes it |
| accuracies on the same test items | over items, paired |
| other numbers with standard errors | over items, unpaired: wider than a paired one where students agree on items |
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from montessori_pl.report.comparison import RunComparison
from montessori_pl.report.page.run_data import RunData, StageData
from montessori_pl.report.page.score_figures import NORMAL_95
from montessori_pl.stats.means import MIN_VALUES, MeanInterval, mean_interval

HIGHER_IS_BETTER = {"accuracy": True, "win_rate": True, "test_loss": False, "reference_loss": False}
"""The measures of students of which it is known, the most important one first."""
PER_ITEM = "accuracy"
"""The measure that is the mean of the items' answers."""
PAIRED_SEEDS = "{count} seeds, paired"
UNPAIRED_SEEDS = "seeds, unpaired"
PAIRED_ITEMS = "{count} test items, paired"
UNPAIRED_ITEMS = "items, unpaired"
Evaluated = Sequence[tuple[StageData, str]]
"""Students, each with the evaluation that names it."""


@dataclass(frozen=True)
class Verdict:
    """One measure of one student, or of the runs of one group, beside the baseline's."""

    who: str
    baseline: str
    measure: str
    ours: float
    theirs: float
    difference: MeanInterval
    """Ours minus theirs."""
    basis: str
    """What the interval is over; empty where there is none."""

    @property
    def word(self) -> str:
        """`better` or `worse` where the interval leaves out zero, else `not told apart` or, without one, `unknown`."""
        ends = self.difference.ends
        if ends is None or self.measure not in HIGHER_IS_BETTER:
            return "unknown"
        if ends[0] <= 0 <= ends[1]:
            return "not told apart"
        return "better" if (self.difference.mean > 0) == HIGHER_IS_BETTER[self.measure] else "worse"


def run_verdicts(run: RunData, student: str | None = None) -> list[Verdict]:
    """A student of the last evaluation beside the base, or where this was not evaluated beside the first student.

    Then the same beside what the iteration before has made of it.

    Args:
        run: what was read.
        student: its name; none: the last.
    """
    evaluated = run.evaluated()
    if not evaluated:
        return []
    evaluation = evaluated[-1]
    names = [*evaluation.students]
    ours = student if student in names else names[-1]
    base = "base" if "base" in names else names[0]
    rivals = {base: (evaluation, base)} if base != ours else {}
    made = f"students.{ours}"
    others = [one for one in evaluated if ours in one.students and one.reads.get(made) != evaluation.reads.get(made)]
    for earlier in others[-1:]:
        rivals[f"{ours} (iteration {earlier.iteration})"] = (earlier, ours)
    iterations = {stage.iteration for stage in run.stages.values()}
    who = ours if iterations == {1} else f"{ours} (iteration {evaluation.iteration})"
    return [
        _verdict(who, name, measure, [(evaluation, ours)], [rival])
        for name, rival in rivals.items()
        for measure in _measures([evaluation.students[ours], rival[0].students[rival[1]]])
    ]


def group_verdicts(comparison: RunComparison, runs: Mapping[str, RunData], student: str | None = None) -> list[Verdict]:
    """The groups of a comparison beside its baseline.

    Args:
        comparison: of the runs.
        runs: what was read of each, by its directory.
        student: the one that was compared; none: the last of each run's last evaluation.
    """
    evaluated = {
        group.name: [
            (evaluation, student or [*evaluation.students][-1])
            for run in group.finished
            if (evaluation := runs[str(run.root)].evaluated()[-1])
        ]
        for group in comparison.groups
    }
    rival = comparison.baseline
    found = []
    for name, difference in comparison.differences.items():
        for measure in (one for one in HIGHER_IS_BETTER if one in difference.measures):
            seeds = difference.measures[measure]
            if seeds.ends is None:
                found.append(_verdict(name, rival, measure, evaluated[name], evaluated[rival]))
                continue
            ours, theirs = (comparison.means[group][measure].mean for group in (name, rival))
            basis = PAIRED_SEEDS.format(count=difference.pairs) if difference.pairs else UNPAIRED_SEEDS
            found.append(Verdict(name, rival, measure, ours, theirs, seeds, basis))
    return found


def _verdict(who: str, baseline: str, measure: str, ours: Evaluated, theirs: Evaluated) -> Verdict:
    """The difference of means of a measure, with an interval over test items where there can be one."""
    means = _mean(ours, measure), _mean(theirs, measure)
    errors = _error(ours, measure), _error(theirs, measure)
    items = _by_item(ours), _by_item(theirs)
    difference, basis = MeanInterval(means[0] - means[1]), ""
    if measure == PER_ITEM and items[0].keys() == items[1].keys() and len(items[0]) >= MIN_VALUES:
        difference = mean_interval([items[0][id_] - items[1][id_] for id_ in items[0]])
        basis = PAIRED_ITEMS.format(count=len(items[0]))
    elif errors[0] is not None and errors[1] is not None:
        half = NORMAL_95 * math.hypot(errors[0], errors[1])
        difference = MeanInterval(difference.mean, difference.mean - half, difference.mean + half)
        basis = UNPAIRED_ITEMS
    return Verdict(who, baseline, measure, *means, difference, basis)


def _mean(students: Evaluated, measure: str) -> float:
    return sum(stage.students[name][measure] for stage, name in students) / len(students)


def _error(students: Evaluated, measure: str) -> float | None:
    """The standard error of the mean over students; at its largest, for all of them answer the same items."""
    errors = [stage.students[name].get(f"{measure}_standard_error") for stage, name in students]
    known = [error for error in errors if error is not None]
    return sum(known) / len(known) if len(known) == len(errors) else None


def _by_item(students: Evaluated) -> dict[str, float]:
    """For each test item the share of students that answer it right; nothing where some have other items."""
    rights: dict[str, list[bool]] = {}
    for stage, name in students:
        for row in stage.answers.get(name, ()):
            rights.setdefault(str(row["id"]), []).append(bool(row["right"]))
    if any(len(some) != len(students) for some in rights.values()):
        return {}
    return {id_: sum(some) / len(some) for id_, some in rights.items()}


def _measures(students: Sequence[Mapping[str, float]]) -> list[str]:
    """The measures that all have and of which it is known what is better."""
    return [name for name in HIGHER_IS_BETTER if all(name in numbers for numbers in students)]
