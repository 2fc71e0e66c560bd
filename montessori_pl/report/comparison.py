"""Groups beside each other, measure by measure, and their differences to one of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from montessori_pl.report.groups import Group
from montessori_pl.report.runs import TOKENS, CompareError
from montessori_pl.run_directory.run_directory import listed
from montessori_pl.stats.means import MeanInterval, mean_interval, welch_interval


@dataclass(frozen=True)
class Measure:
    """A number that is averaged over seeds."""

    name: str
    """In CSV, and in `Run.measures`."""
    title: str
    """In tables for people."""
    section: str
    """The table in which it stands on a console, which is too narrow for one."""
    digits: str
    """Format of what is shown."""


SECTIONS = STUDENT, DATA, SCORE, COST = ("student", "its training data", "score", "cost")
MEASURES = (
    Measure("accuracy", "accuracy", STUDENT, ".3f"),
    Measure("reference_loss", "reference loss", STUDENT, ".3f"),
    Measure("test_loss", "test loss", STUDENT, ".3f"),
    Measure("win_rate", "win rate", STUDENT, ".3f"),
    Measure("data_accepted", "examples", DATA, ".0f"),
    Measure("data_token_entropy", "entropy of words", DATA, ".2f"),
    Measure("data_first_word_entropy", "of first words", DATA, ".2f"),
    Measure("data_distinct_rate", "distinct share", DATA, ".2f"),
    Measure("data_response_distinct_rate", "of responses", DATA, ".2f"),
    Measure("data_mean_max_rouge_l", "mean max ROUGE-L", DATA, ".2f"),
    Measure("influence", "mean score", SCORE, ".3g"),
    Measure("positive_rate", "positive share", SCORE, ".2f"),
    Measure("seconds", "seconds", COST, ".0f"),
    Measure(TOKENS, "generated tokens", COST, ".0f"),
)


@dataclass(frozen=True)
class Difference:
    """A group minus the baseline."""

    pairs: int
    """Seeds that both have, over which the differences are; at 0 they are between means, unpaired."""
    measures: dict[str, MeanInterval]


@dataclass(frozen=True)
class RunComparison:
    """All that is shown."""

    groups: tuple[Group, ...]
    means: dict[str, dict[str, MeanInterval]]
    """By group and measure."""
    baseline: str
    """Empty if there is none."""
    differences: dict[str, Difference]
    """By group, without the baseline and what has not finished."""


def compare(groups: Sequence[Group], baseline: str = "") -> RunComparison:
    """Average over seeds, and take differences.

    Args:
        groups: the rows.
        baseline: the group with which the others are compared; empty: there is none.

    Raises:
        CompareError: no run has finished, or the baseline does not exist or has not.
    """
    if not any(group.finished for group in groups):
        states = [f"{run.root}: {run.last_stage or 'none'}" for group in groups for run in group.runs]
        raise CompareError(
            "no run has finished the evaluation of its last iteration, so there is nothing to compare; the stages that "
            f"finished last are: {listed(states)}"
        )
    by_name = {group.name: group for group in groups}
    if baseline and baseline not in by_name:
        raise CompareError(f"--baseline names {baseline!r}, which is no group; there are: {listed([*by_name])}")
    if baseline and not by_name[baseline].finished:
        raise CompareError(f"the baseline {baseline!r} has not finished its evaluation; finish it, or choose another")
    return RunComparison(
        groups=tuple(groups),
        means={
            group.name: {
                one.name: mean_interval([*values.values()]) for one in MEASURES if (values := group.values(one.name))
            }
            for group in groups
        },
        baseline=baseline,
        differences={
            group.name: _difference(group, by_name[baseline])
            for group in groups
            if baseline and group.name != baseline and group.finished
        },
    )


def scored_by(group: Group) -> list[str]:
    """The stages whose scores are shown: of influence, or of whatever signal they have."""
    return list(dict.fromkeys(run.scored_by for run in group.finished if run.scored_by))


def _difference(ours: Group, baseline: Group) -> Difference:
    """Measure by measure; what two stages of different names have scored is not the same measure."""
    theirs = {run.seed for run in baseline.finished}
    common = [run.seed for run in ours.finished if run.seed in theirs]
    found = {}
    for one in MEASURES:
        mine, rival = ours.values(one.name), baseline.values(one.name)
        if not mine or not rival or (one.section == SCORE and scored_by(ours) != scored_by(baseline)):
            continue
        if common:
            found[one.name] = mean_interval([mine[seed] - rival[seed] for seed in common])
        else:
            found[one.name] = welch_interval([*mine.values()], [*rival.values()])
    return Difference(len(common), found)
