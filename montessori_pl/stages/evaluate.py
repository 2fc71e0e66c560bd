"""Evaluate: what the students are worth, by one evaluator after another."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from montessori_pl.bounds import NotEmpty, Texts
from montessori_pl.data.records import Record, read_records
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.estimates.estimate import StageEstimate
from montessori_pl.evaluation.base import Evaluator
from montessori_pl.run_directory.durable import sync_tree
from montessori_pl.run_directory.journal import Journal
from montessori_pl.stages.base import BASE, Input, Kind, Stage, StageContext, StageError

EVALUATIONS = "evaluations.jsonl"
"""File of what each evaluator says about each student, in the order in which they were asked."""

SIGNIFICANT = 2.0
"""So many standard errors are more than chance."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(Record):
    """What one evaluator says about one student; `id` is the student's."""

    evaluator: str
    """Class of the evaluator."""
    metrics: dict[str, float]
    """Its numbers."""


class Evaluate(Stage):
    """Evaluate students; each result is kept as soon as it is there.

    Args:
        students: stages whose students are evaluated, or `base`.
        evaluators: what is measured.
        first_iteration_only: whether later iterations go without this stage.
    """

    produces = Kind.REPORT
    artifacts: tuple[str, ...] = (EVALUATIONS,)

    def __init__(
        self,
        students: Texts,
        evaluators: Annotated[list[Evaluator], NotEmpty()],
        first_iteration_only: bool = False,
    ) -> None:
        super().__init__(first_iteration_only)
        self.students, self.evaluators = students, evaluators
        kept = dict.fromkeys(f"*/*/{name}" for evaluator in evaluators for name in evaluator.artifacts)
        self.artifacts = (*self.artifacts, *kept)
        asked = any(evaluator.generates for evaluator in evaluators)
        self.uses = ("student", "generation", "data") if asked else ("student", "data")

    def reads(self) -> list[Input]:
        """The students, and those that evaluators compare them with."""
        others = dict.fromkeys(name for evaluator in self.evaluators for name in evaluator.other_students())
        return [
            *(Input(f"students.{name}", name, Kind.STUDENT) for name in self.students),
            *(Input(f"evaluators.{name}", name, Kind.STUDENT) for name in others),
        ]

    def check_environment(self) -> None:
        """What the evaluators need."""
        for evaluator in self.evaluators:
            evaluator.check_environment()

    def check_inputs(self, context: EstimateContext) -> None:
        """The test set, where an evaluator needs one, and what of the data has room in a student."""
        chat_template = context.student_template()
        for evaluator in self.evaluators:
            if evaluator.needs_test and context.data.test is None:
                raise ValueError(
                    f"{type(evaluator).__name__} needs a test set, and data.test is not set: name one, or leave the "
                    "evaluator out"
                )
            evaluator.check_inputs(context.data, chat_template)

    def estimate(self, context: EstimateContext) -> StageEstimate:
        """What the evaluators say that they will take for each student that has not been evaluated."""
        chat_template = context.student_template()
        work = []
        for _, evaluator, place in self._work()[len(context.commits) :]:
            evaluator.requests = context.requests
            evaluator.directory = context.begun / place if context.begun is not None else None
            work += evaluator.estimate(context.data, chat_template, context.backend)
        return StageEstimate(work=work)

    def run(self, context: StageContext) -> dict[str, Any]:
        """Evaluate what has not been evaluated."""
        journal, work = Journal(context.directory, [EVALUATIONS]), self._work()
        done = len(journal.commits)
        context.progress.start(len(work), done)
        for name, evaluator, place in work[done:]:
            journal.commit({EVALUATIONS: [self._evaluation(context, name, evaluator, place)]})
            context.progress.advance()
        students = self._by_student(read_records(context.directory / EVALUATIONS, Evaluation))
        warnings = _worse_than_base(students)
        return {"students": students, **({"warnings": warnings} if warnings else {})}

    def _evaluation(self, context: StageContext, name: str, evaluator: Evaluator, place: Path) -> Evaluation:
        """What this evaluator says about the student of this name."""
        student = context.student()
        source = context.source(student, f"students.{name}")
        evaluator.other_sources = {
            other: context.source(student, f"evaluators.{other}") for other in evaluator.other_students()
        }
        evaluator.requests, evaluator.directory = context.requests, context.directory / place
        metrics = evaluator.evaluate(source, context.data, context.backend)
        sync_tree(context.directory)  # what the evaluator keeps there; it is not asked again about this student
        if lost := [metric for metric, value in metrics.items() if not math.isfinite(value)]:
            raise StageError(
                f"{context.key}: {type(evaluator).__name__} finds no finite {', '.join(lost)} for the student "
                f"{name!r}; its training may have diverged: look at its loss, and train it with a lower training.lr"
            )
        return Evaluation(id=name, evaluator=type(evaluator).__name__, metrics=metrics)

    def _by_student(self, evaluations: Sequence[Evaluation]) -> dict[str, dict[str, float]]:
        """The numbers of all evaluators, for each student in the order of the setting.

        All numbers of an evaluator get its name in front (`WinRate_2_win_rate`) where an earlier one has taken any of
        their names, for whatever student: some have numbers that others lack, as intervals.
        """
        work = list(zip(evaluations, (place.name for _, _, place in self._work()), strict=True))
        names: dict[str, set[str]] = {}
        for evaluation, place in work:
            names.setdefault(place, set()).update(evaluation.metrics)
        prefixes, taken = dict[str, str](), set[str]()
        for place, own in names.items():
            prefixes[place] = "" if taken.isdisjoint(own) else f"{place}_"
            taken |= {f"{prefixes[place]}{metric}" for metric in own}
        students: dict[str, dict[str, float]] = {name: {} for name in self.students}
        for evaluation, place in work:
            students[evaluation.id] |= {
                f"{prefixes[place]}{metric}": value for metric, value in evaluation.metrics.items()
            }
        return students

    def _work(self) -> list[tuple[str, Evaluator, Path]]:
        """Each student with each evaluator, and where in the stage's directory the latter keeps what it has done."""
        kinds = [type(evaluator).__name__ for evaluator in self.evaluators]
        earlier = [kinds[:place].count(kind) for place, kind in enumerate(kinds)]
        places = [f"{kind}_{number + 1}" if number else kind for kind, number in zip(kinds, earlier, strict=True)]
        return [
            (name, evaluator, Path(name, place))
            for name in self.students
            for evaluator, place in zip(self.evaluators, places, strict=True)
        ]


def _worse_than_base(students: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A sentence for each student whose loss on a held-out set is above the base's by more than both are uncertain."""
    base, found = students.get(BASE, {}), []
    for (name, metrics), role in itertools.product(students.items(), ("reference", "test")):
        loss, error = f"{role}_loss", f"{role}_loss_standard_error"
        if loss not in base or loss not in metrics:
            continue
        margin = SIGNIFICANT * math.hypot(base.get(error, 0.0), metrics.get(error, 0.0))
        if metrics[loss] > base[loss] + margin:
            found.append(
                f"the student {name!r} is worse than it was before training: its loss on the {role} set is "
                f"{metrics[loss]:.4g}, and that of the base {base[loss]:.4g}"
            )
    return found
