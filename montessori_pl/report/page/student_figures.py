"""Figures of students: their numbers below each other, for one run and for several."""

from collections.abc import Mapping

from montessori_pl.report.comparison import MEASURES, STUDENT, RunComparison
from montessori_pl.report.page.figures import Figure, Guide, Plot, Point, Row, Rows, Series
from montessori_pl.report.page.run_data import RunData, numbers_of
from montessori_pl.report.page.score_figures import NORMAL_95
from montessori_pl.report.page.verdict import HIGHER_IS_BETTER
from montessori_pl.report.student_numbers import STANDARD_ERROR, interval_of, is_about_another

DURING = {
    "influence_positive_rate": ("Examples that help, along training", "share with positive influence"),
    "reference_loss": ("Reference loss along training", "reference loss, nats per token"),
}
"""What is shown along training: title and axis."""
UNITS = {"reference_loss": "reference loss, nats per token", "test_loss": "test loss, nats per token"}


def student_figures(run: RunData) -> list[Figure]:
    """One for each measure that some evaluation has."""
    names = dict.fromkeys(name for stage in run.evaluated() for numbers in stage.students.values() for name in numbers)
    found: list[Figure] = []
    shown = [name for name in names if not is_about_another(name)]
    for name in sorted(shown, key=lambda name: [*HIGHER_IS_BETTER, name].index(name)):
        rows: dict[tuple[str, float], Row] = {}
        for stage in run.evaluated():
            for student, numbers in stage.students.items():
                if name in numbers:
                    # A student that a later iteration evaluates again, such as the base, has the same numbers.
                    rows.setdefault(
                        (stage.reads.get(f"students.{student}", student), numbers[name]),
                        _row(stage.key, student, numbers, name),
                    )
        found.append(
            Rows(
                name=f"students-{name.replace('_', '-')}",
                title=f"Students: {name.replace('_', ' ')}",
                x=UNITS.get(name, name.replace("_", " ")),
                rows=[*rows.values()],
                style="dots",
                note="With 95% intervals over test items, where the evaluator says how far a number can be trusted.",
            )
        )
    return found


def during_training(run: RunData) -> list[Figure]:
    """What the batches of a training were worth to its student, while it learned."""
    stages = {
        key: [one for one in map(numbers_of, stage.during_training) if "step" in one]
        for key, stage in run.stages.items()
    }
    found: list[Figure] = []
    for measure, (title, y) in DURING.items():
        points = {
            key: [Point(float(row["step"]), float(row[measure])) for row in rows if measure in row]
            for key, rows in stages.items()
        }
        series = [Series(key, some) for key, some in points.items() if len(some) > 1]
        if series:
            found.append(
                Plot(
                    name=f"during-training-{measure.replace('_', '-')}",
                    title=title,
                    x="optimizer steps",
                    y=y,
                    series=series,
                    style="lines",
                    guides=[Guide("y", 0.5, "one half")] if measure == "influence_positive_rate" else [],
                    note="Measured before a batch is learned, on its examples. Near one half or below, the data have "
                    "taught what they can.",
                )
            )
    return found


def group_figures(comparison: RunComparison) -> list[Figure]:
    """The groups of a comparison, one figure for each measure of students."""
    found: list[Figure] = []
    for measure in (one for one in MEASURES if one.section == STUDENT):
        means = {group.name: comparison.means[group.name].get(measure.name) for group in comparison.groups}
        rows = [Row(name, mean.mean, low=mean.low, high=mean.high) for name, mean in means.items() if mean is not None]
        if rows:
            found.append(
                Rows(
                    name=f"runs-{measure.name.replace('_', '-')}",
                    title=f"Runs: {measure.title}",
                    x=UNITS.get(measure.name, measure.title),
                    rows=rows,
                    style="dots",
                    note="Means over seeds, with 95% intervals by Student's t from three seeds on.",
                )
            )
    return found


def _row(key: str, student: str, numbers: Mapping[str, float], name: str) -> Row:
    value, error = numbers[name], numbers.get(f"{name}{STANDARD_ERROR}")
    low, high = (value - NORMAL_95 * error, value + NORMAL_95 * error) if error is not None else (None, None)
    low, high = interval_of(numbers, name) or (low, high)
    return Row(f"{student}, {key.partition('/')[0].replace('_', ' ')}", value, low=low, high=high)
