"""The dry run: each step of a recipe with what it will take, in order, without taking any.

Steps that have finished are told by their own numbers, and what they left behind is read, so that a half-done run
plans its rest. Nothing is written, and no weights are loaded.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from montessori_pl.data.records import Example, PreferencePair, Record, Score, read_records
from montessori_pl.estimates.context import PlanContext
from montessori_pl.estimates.estimate import Expected, NoEstimate, Plan, PlannedStep, Work, real
from montessori_pl.pipeline.recipe import Step
from montessori_pl.pipeline.runner import METRICS, Runner
from montessori_pl.stages.base import EXAMPLES, PAIRS, SCORES, Kind

RECORDS: Mapping[Kind, tuple[str, type[Record]]] = {
    Kind.EXAMPLES: (EXAMPLES, Example),
    Kind.SCORES: (SCORES, Score),
    Kind.PAIRS: (PAIRS, PreferencePair),
}
"""What lies in the directory of a finished step, by what it produces."""


def plan_steps(runner: Runner, steps: Sequence[Step], settings: Mapping[str, Mapping[str, Any]]) -> list[PlannedStep]:
    """A plan for each step.

    Args:
        runner: who would run them.
        steps: from `recipe.lay_out`.
        settings: for each stage's name, the settings that its result depends on.

    Raises:
        WorkspaceError: the run directory does not fit the settings, or is damaged.
    """
    runner.check(steps, settings)
    planner = _Planner(runner, steps, settings)
    return [planner.planned(step) for step in steps]


class _Planner:
    """Plans one step after another; knows what those before leave behind."""

    def __init__(self, runner: Runner, steps: Sequence[Step], settings: Mapping[str, Mapping[str, Any]]) -> None:
        self.runner, self.workspace, self.settings = runner, runner.workspace, settings
        self.steps = {step.key: step for step in steps}
        self.processes = runner.trainer(callbacks=[]).world_size
        self.expected: dict[str, Expected[Any] | None] = {}
        """By key; a step without an estimate is not in it."""

    def planned(self, step: Step) -> PlannedStep:
        """The step with its plan."""
        if self._skipped(step):
            return PlannedStep(key=step.key, plan=self._finished(step.key), state="finished before", finished=True)
        try:
            plan = step.stage.plan(self._context(step))
        except NoEstimate as unknown:
            return PlannedStep(key=step.key, plan=None, state="no estimate", reason=str(unknown))
        if plan is None:
            return PlannedStep(key=step.key, plan=None, state="no estimate")
        self.expected[step.key] = plan.leaves
        return PlannedStep(key=step.key, plan=plan, state="going on" if self.workspace.begun(step.key) else "")

    def _skipped(self, step: Step) -> bool:
        """Whether the run has nothing to do there; a step that has finished may be asked for more today."""
        return self.workspace.up_to_date(step.key, self.settings[step.name])

    def _finished(self, key: str) -> Plan:
        """What a step has taken, as far as it was counted."""
        metrics = json.loads((self.workspace.directory(key) / METRICS).read_text(encoding="utf-8"))
        prompts, completions = metrics.get("prompt_tokens", 0), metrics.get("generated_tokens", 0)
        return Plan(
            work=[
                Work(
                    what="counted",
                    prompt_tokens=prompts,
                    completion_tokens=completions,
                    max_completion_tokens=completions,
                    steps=metrics.get("steps", 0),
                    cost=metrics.get("cost"),
                    max_cost=metrics.get("cost"),
                )
            ]
        )

    def _leaves(self, key: str) -> Expected[Any] | None:
        """What the step of this key leaves behind, or has left behind."""
        if key not in self.expected and self._skipped(self.steps[key]):
            kind = self.steps[key].stage.produces
            name, record = RECORDS[kind]
            self.expected[key] = real(read_records(self.workspace.verify(key) / name, record))
        return self.expected.get(key)

    def _context(self, step: Step) -> PlanContext:
        earlier = [
            one.key
            for one in self.steps.values()
            if one.name == step.name and one.iteration < step.iteration and self.workspace.finished(one.key)
        ]
        return PlanContext(
            key=step.key,
            name=step.name,
            iteration=step.iteration,
            seed=self.runner.seed_of(step),
            inputs={setting: key for setting, key in step.inputs.items() if key is not None},
            leaves=self._leaves,
            data=self.runner.data,
            student=self.runner.student,
            teacher=self.runner.teacher,
            backend=self.runner.backend,
            pool=self.runner.pool,
            requests=self.runner.requests,
            processes=self.processes,
            begun=self.workspace.directory(step.key) if self.workspace.begun(step.key) else None,
            before=self.workspace.directory(earlier[-1]) if earlier else None,
        )
