"""Evaluate: what the students are worth, by one evaluator after another."""

import dataclasses
import json
from typing import Any

from montessori_pl.evaluation.base import Evaluator
from montessori_pl.models import load_chat
from montessori_pl.planning import Plan
from montessori_pl.records import Record, read_records
from montessori_pl.stages.base import Input, Kind, Stage, StageContext
from montessori_pl.stages.plan import PlanContext
from montessori_pl.workspace import Journal


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
    artifacts = ("evaluations.jsonl",)
    uses = ("student", "generation", "data")

    def __init__(self, students: list[str], evaluators: list[Evaluator], first_iteration_only: bool = False) -> None:
        super().__init__(first_iteration_only)
        self.students, self.evaluators = students, evaluators

    def reads(self) -> list[Input]:
        """The students."""
        return [Input(f"students.{name}", name, Kind.STUDENT) for name in self.students]

    def plan(self, context: PlanContext) -> Plan:
        """What the evaluators say that they will take for each student that has not been evaluated."""
        chat = load_chat(context.student().source)
        for evaluator in self.evaluators:
            evaluator.requests = context.requests
        work = [
            evaluator.plan(context.data, chat, context.backend) for _ in self.students for evaluator in self.evaluators
        ]
        return Plan(work=[one for works in work[len(context.commits) :] for one in works])

    def run(self, context: StageContext) -> dict[str, Any]:
        """Evaluate what has not been evaluated."""
        journal = Journal(context.directory, ["evaluations.jsonl"])
        path = context.directory / "evaluations.jsonl"
        done = len(journal.commits)
        context.progress.start(len(self.students) * len(self.evaluators), done)
        work = [(name, evaluator) for name in self.students for evaluator in self.evaluators]
        for name, evaluator in work[done:]:
            source = context.source(context.student(), f"students.{name}")
            evaluator.requests = context.requests
            metrics = evaluator.evaluate(source, context.data, context.backend)
            evaluation = Evaluation(id=name, evaluator=type(evaluator).__name__, metrics=metrics)
            journal.commit({"evaluations.jsonl": [evaluation]})
            context.progress.advance()
        students: dict[str, dict[str, float]] = {name: {} for name in self.students}
        for evaluation in read_records(path, Evaluation):
            students[evaluation.id] |= evaluation.metrics
        return {"students": json.loads(json.dumps(students))}
