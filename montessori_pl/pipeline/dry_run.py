"""The dry run: an estimate for each step of a recipe, in order.

Steps that have finished are shown with their own numbers, and their output is read: the dry run of a half-done run
estimates the rest. Nothing is written, and no weights are loaded.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from montessori_pl.data.records import Example, PreferencePair, Record, Score, read_records
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.estimates.estimate import ExpectedRecords, NoEstimate, StageEstimate, StepEstimate, Work, real
from montessori_pl.estimates.requests import RequestEstimator
from montessori_pl.pipeline.recipe import Step
from montessori_pl.pipeline.runner import Runner
from montessori_pl.report.summary import METRICS
from montessori_pl.stages.base import EXAMPLES, PAIRS, SCORES, Kind

RECORDS: Mapping[Kind, tuple[str, type[Record]]] = {
    Kind.EXAMPLES: (EXAMPLES, Example),
    Kind.SCORES: (SCORES, Score),
    Kind.PAIRS: (PAIRS, PreferencePair),
}
"""The file in the directory of a finished step, by what the step produces."""


def estimate_steps(
    runner: Runner, steps: Sequence[Step], settings: Mapping[str, Mapping[str, Any]], processes: int
) -> list[StepEstimate]:
    """An estimate for each step.

    Args:
        runner: who would run them.
        steps: from `recipe.resolve_recipe`.
        settings: for each stage's name, the settings that its result depends on.
        processes: that train.

    Raises:
        RunDirectoryError: the run directory does not fit the settings, or is damaged.
    """
    runner.check(steps, settings)
    estimator = _Estimator(runner, steps, settings, processes)
    return [estimator.step_estimate(step) for step in steps]


class _Estimator:
    """Estimates one step after another; knows the output of those before."""

    def __init__(
        self, runner: Runner, steps: Sequence[Step], settings: Mapping[str, Mapping[str, Any]], processes: int
    ) -> None:
        self.runner, self.run_directory, self.settings = runner, runner.run_directory, settings
        self.steps = {step.key: step for step in steps}
        self.processes = processes
        self.expected: dict[str, ExpectedRecords[Any] | None] = {}
        """By key; a step without an estimate is not in it."""
        self.models: dict[str, RequestEstimator] = {}
        """Tokenizers, which take seconds to read."""

    def step_estimate(self, step: Step) -> StepEstimate:
        """The step with its estimate."""
        if self._skipped(step):
            return StepEstimate(key=step.key, estimate=self._finished(step.key), state="finished before", finished=True)
        try:
            estimate = step.stage.estimate(self._context(step))
        except NoEstimate as unknown:
            return StepEstimate(key=step.key, estimate=None, state="no estimate", reason=str(unknown))
        if estimate is None:
            return StepEstimate(key=step.key, estimate=None, state="no estimate")
        self.expected[step.key] = estimate.expected_output
        return StepEstimate(
            key=step.key, estimate=estimate, state="going on" if self.run_directory.begun(step.key) else ""
        )

    def _skipped(self, step: Step) -> bool:
        """Whether the run has nothing to do there. A finished step may be asked for more today."""
        return self.run_directory.up_to_date(step.key, self.settings[step.name])

    def _finished(self, key: str) -> StageEstimate:
        """What a finished step took, as far as it was counted."""
        metrics = json.loads((self.run_directory.directory(key) / METRICS).read_text(encoding="utf-8"))
        prompts, completions = metrics.get("prompt_tokens", 0), metrics.get("generated_tokens", 0)
        return StageEstimate(
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

    def _expected_output(self, key: str) -> ExpectedRecords[Any] | None:
        """The output of the step of this key, expected or real."""
        if key not in self.expected and self._skipped(self.steps[key]):
            kind = self.steps[key].stage.produces
            name, record = RECORDS[kind]
            self.expected[key] = real(read_records(self.run_directory.verify(key) / name, record))
        return self.expected.get(key)

    def _context(self, step: Step) -> EstimateContext:
        earlier = [
            one.key
            for one in self.steps.values()
            if one.name == step.name and one.iteration < step.iteration and self.run_directory.finished(one.key)
        ]
        return dataclasses.replace(
            self.runner.estimate_context(step),
            expected_output=self._expected_output,
            processes=self.processes,
            models=self.models,
            begun=self.run_directory.directory(step.key) if self.run_directory.begun(step.key) else None,
            before=self.run_directory.directory(earlier[-1]) if earlier else None,
        )
