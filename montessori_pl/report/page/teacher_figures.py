"""Figures of alignment: what the monitor saw of the teacher, and what students made of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from montessori_pl.report.page.figures import Figure, Guide, Plot, Point, Series
from montessori_pl.report.page.run_data import Row, RunData, StageData, mapping, numbers_of
from montessori_pl.report.page.score_figures import NORMAL_95
from montessori_pl.synthesis.collapse import HIGHER_IS_WORSE, LOWER_IS_WORSE, CollapseLimits

PAIRS = {
    "margin": "margin of held-out pairs",
    "reward_accuracy": "share of held-out pairs in the right order",
    "loss": "loss on held-out pairs",
}
"""Numbers of an evaluation that have no limit for collapse."""
QUALITY = {"accuracy": "accuracy", "win_rate": "win rate", "test_loss": "test loss, nats per token"}
"""Numbers of students that are shown against the progress of alignment."""
AXES = {
    "divergence": "divergence, nats per token",
    "token_entropy": "entropy, nats",
    "first_word_entropy": "entropy, nats",
    "margin": "margin, nats",
    "loss": "loss, nats",
}
"""What the axis says, where it is no share."""


def teacher_figures(run: RunData) -> list[Figure]:
    """The monitor's evaluations of each alignment, then students against the progress of alignment."""
    monitored = [figure for stage in run.stages.values() if stage.evaluations for figure in _monitor(stage)]
    return [*monitored, *students_by_progress({run.name: [run]})]


def students_by_progress(groups: Mapping[str, Sequence[RunData]]) -> list[Figure]:
    """Students against the optimizer steps by which the teacher of their data had been aligned.

    Args:
        groups: runs by the name of what they are shown as.
    """
    found: list[Figure] = []
    points = {name: [student for run in runs for student in _students(run)] for name, runs in groups.items()}
    for measure, title in QUALITY.items():
        series = [
            Series(name, [_point(one, measure) for one in sorted(students, key=lambda one: one.steps)])
            for name, all_students in points.items()
            if (students := [one for one in all_students if measure in one.numbers])
        ]
        if any(len({point.x for point in one.points}) > 1 for one in series):
            found.append(
                Plot(
                    name=f"alignment-and-{measure.replace('_', '-')}",
                    title=f"Students by their teacher's alignment: {title.partition(',')[0]}",
                    x="alignment steps before the data were written",
                    y=title,
                    series=series,
                    style="points",
                    note="Each point is a student; the teachers of earlier iterations count. With 95% intervals over "
                    "test items.",
                )
            )
    return found


def _monitor(stage: StageData) -> list[Figure]:
    monitor = mapping(stage.settings.get("monitor"))
    evaluations = [one for one in map(numbers_of, stage.evaluations) if "step" in one]
    first, chosen = evaluations[0] if evaluations else {}, mapping(stage.metrics.get("monitor")).get("selected_step")
    found: list[Figure] = []
    for name, title in {**HIGHER_IS_WORSE, **LOWER_IS_WORSE, **PAIRS}.items():
        points = [Point(float(one["step"]), float(one[name])) for one in evaluations if name in one]
        if len(points) < 2:
            continue
        limit = _limit(monitor, name, first)
        guides = [Guide("y", limit, "limit")] if limit is not None else []
        if chosen is not None:
            guides.append(Guide("x", float(chosen), "kept"))
        found.append(
            Plot(
                name=f"{stage.key.replace('/', '-')}-{name.replace('_', '-')}",
                title=f"{stage.key}: {title.partition(',')[0]}",
                x="optimizer steps",
                y=AXES.get(name, "share"),
                series=[Series("", points)],
                style="lines",
                guides=guides,
            )
        )
    return found


def _limit(monitor: Row, name: str, first: Row) -> float | None:
    """Where the monitor steps back: a part of what was measured before the first step, or by how much it may rise."""
    if name == "margin":
        return monitor.get("max_margin")
    limit = mapping(monitor.get("limits")).get(name, getattr(CollapseLimits(), name, None))
    if limit is None or name not in first:
        return None
    return float(first[name] * limit if name in LOWER_IS_WORSE else first[name] + limit)


@dataclass(frozen=True)
class _Student:
    name: str
    steps: int
    """By which the teachers of its data were aligned; 0 without alignment."""
    numbers: Mapping[str, float]


def _students(run: RunData) -> Sequence[_Student]:
    """The evaluated students that were trained on what a teacher wrote; one that is evaluated again counts once."""
    found: dict[tuple[str, str], _Student] = {}
    for evaluation in run.evaluated():
        for name, numbers in evaluation.students.items():
            examples = run.training_data(evaluation, name)
            if examples is None:
                continue
            steps = sum(_steps(stage) for stage in run.alignment(examples))
            student = evaluation.reads[f"students.{name}"]
            found.setdefault((student, examples.key), _Student(student, steps, numbers))
    return [*found.values()]


def _steps(alignment: StageData) -> int:
    """Optimizer steps behind the teacher that was kept."""
    monitored = mapping(alignment.metrics.get("monitor")).get("selected_step")
    return int(monitored if monitored is not None else alignment.number("steps") or 0)


def _point(student: _Student, measure: str) -> Point:
    value, error = student.numbers[measure], student.numbers.get(f"{measure}_standard_error")
    half = NORMAL_95 * error if error is not None else None
    low, high = (value - half, value + half) if half is not None else (None, None)
    return Point(float(student.steps), value, low, high, label=student.name)
