"""ConcatExamples: the examples of several stages as one training set, which may grow from iteration to iteration."""

from typing import Any

from montessori_pl.bounds import Texts
from montessori_pl.data.records import Example
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.estimates.estimate import MAX_SAMPLES, ExpectedRecords, StageEstimate, evenly
from montessori_pl.run_directory.atomic import write_records
from montessori_pl.stages.base import EXAMPLES, ITSELF, Input, Kind, Stage, StageContext, StageError
from montessori_pl.synthesis.diversity import diversity_metrics

BEFORE = "growing"
"""The setting under which the stage reads what it held before."""


class ConcatExamples(Stage):
    """Put the examples of several stages together; what has the same id is one example.

    The order is that of the stages, earlier iterations first; training shuffles.

    Args:
        examples: the stages.
        growing: whether what this stage held in the iteration before is kept, and the rest added to it.
        first_iteration_only: whether later iterations go without this stage.
    """

    produces = Kind.EXAMPLES
    artifacts = (EXAMPLES,)

    def __init__(
        self,
        examples: Texts,
        growing: bool = False,
        first_iteration_only: bool = False,
    ) -> None:
        super().__init__(first_iteration_only)
        self.examples, self.growing = examples, growing

    def reads(self) -> list[Input]:
        """The stages, and this one in an earlier iteration."""
        before = [Input(BEFORE, ITSELF, Kind.EXAMPLES, optional=True)] if self.growing else []
        return [*before, *(Input(f"examples.{name}", name, Kind.EXAMPLES) for name in self.examples)]

    def estimate(self, context: EstimateContext) -> StageEstimate:
        """No work, but examples like those of all stages, each in its share."""
        settings = [one.setting for one in self.reads() if one.setting in context.inputs]
        if BEFORE in settings:  # it holds already what an earlier iteration has left
            new = f"iteration_{context.iteration}/"
            settings = [one for one in settings if one == BEFORE or context.inputs[one].startswith(new)]
        parts = [context.expected_input(setting) for setting in settings]
        count = sum(part.count for part in parts)
        expected_output = ExpectedRecords(
            count=count,
            upper_bound=sum(part.upper_bound for part in parts),
            prompts=sum(part.prompts for part in parts),
            instructions=sum(part.instructions for part in parts),
            samples=[
                one for part in parts for one in evenly(part.samples, round(MAX_SAMPLES * part.count / max(1, count)))
            ],
        )
        return StageEstimate(expected_output=expected_output)

    def run(self, context: StageContext) -> dict[str, Any]:
        """Put them together."""
        combined: dict[str, Example] = {}
        found_in: dict[str, str] = {}
        added = {}
        for one in self.reads():
            source = one.name or f"{context.name} before"
            number = len(combined)
            for example in context.examples(one.setting):
                if combined.setdefault(example.id, example) != example:
                    raise StageError(
                        f"{context.key}: {found_in[example.id]} and {source} have different examples with the id "
                        f"{example.id!r}; combine one of them only, or give the examples other ids"
                    )
                found_in.setdefault(example.id, source)
            added[source] = len(combined) - number
        write_records(context.directory / EXAMPLES, combined.values())
        return {
            "accepted": len(combined),
            "rejected": {},
            "added": added,
            **diversity_metrics([*combined.values()]),
        }
