"""RouteResponses: of a pool of recorded responses, those of the teachers that the router chooses."""

import dataclasses
import shutil
from collections import Counter
from typing import Any

import numpy as np
import torch

from montessori_pl.bounds import Text
from montessori_pl.data.records import Example
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.estimates.estimate import StageEstimate
from montessori_pl.routing import Prompt, ResponsePool, RouteLimits, load_router
from montessori_pl.routing.limits import choose
from montessori_pl.run_directory.atomic import write_records
from montessori_pl.stages.base import EXAMPLES, ROUTING, Input, Kind, Stage, StageContext, StageError
from montessori_pl.stages.selection.responses import in_chunks, read_pool
from montessori_pl.synthesis.diversity import diversity_metrics

COEFFICIENTS = "coefficients"
"""Directory of what the router says of the prompts, until the stage has finished."""


class RouteResponses(Stage):
    """Keep one response for each instruction. Where the router's teacher has not answered, the next best one has it.

    Args:
        examples: the stage whose responses are picked from: several teachers' to the same instructions.
        routing: the stage that chose among the teachers.
        limits: largest shares of teachers, and a budget; null takes the router's first choice.
        first_iteration_only: whether later iterations go without this stage.
    """

    produces = Kind.EXAMPLES
    artifacts = (EXAMPLES,)

    def __init__(
        self, examples: Text, routing: Text, limits: RouteLimits | None = None, first_iteration_only: bool = False
    ) -> None:
        super().__init__(first_iteration_only)
        self.examples, self.routing, self.limits = examples, routing, limits

    def reads(self) -> list[Input]:
        """The responses and the router."""
        return [Input("examples", self.examples, Kind.EXAMPLES), Input("routing", self.routing, Kind.ROUTING)]

    def estimate(self, context: EstimateContext) -> StageEstimate:
        """One example for each instruction; what the router reads is little beside it."""
        given = context.expected_input("examples")
        count = given.instructions
        return StageEstimate(
            expected_output=dataclasses.replace(given, count=count, upper_bound=given.at_most(count), prompts=0)
        )

    def run(self, context: StageContext) -> dict[str, Any]:
        """Route all instructions; of several responses of a teacher to one the first is kept."""
        pool, router = read_pool(context), load_router(context.input_dir("routing") / ROUTING)
        answered = np.array([[(prompt, name) in pool.answers for name in router.teachers] for prompt in pool.prompts])
        prompts = [prompt for prompt, row in zip(pool.prompts, answered, strict=True) if row.any()]
        if not prompts:
            raise StageError(
                f"{context.key}: stage {self.routing!r} chooses among {', '.join(router.teachers)}, but the responses "
                f"are by {', '.join(pool.teachers)}"
            )
        allowed = answered[answered.any(axis=1)]
        coefficients = in_chunks(
            context,
            context.directory / COEFFICIENTS,
            prompts,
            lambda chunk: torch.from_numpy(router.coefficients(chunk)),
        ).numpy()
        try:
            chosen = choose(coefficients, router.teachers, self.limits, allowed)
        except ValueError as error:
            raise StageError(f"{context.key}: {error}") from error
        names = [router.teachers[place] for place in chosen]
        picked = _in_order(pool, [pool.answers[one][0] for one in zip(prompts, names, strict=True)])
        write_records(context.directory / EXAMPLES, picked)
        shutil.rmtree(context.directory / COEFFICIENTS)
        left_out = len(pool.prompts) - len(prompts)
        return {
            "accepted": len(picked),
            "rejected": {"no answer by a teacher of the router": left_out} if left_out else {},
            "shares": {name: count / len(picked) for name, count in Counter(names).most_common()},
            "not_answered_by_the_best": int((~allowed[range(len(prompts)), coefficients.argmax(axis=1)]).sum()),
            **diversity_metrics(picked),
        }


def _in_order(pool: ResponsePool, picked: list[Example]) -> list[Example]:
    """The examples in the order in which their prompts were recorded first."""
    places = {prompt: place for place, (prompt, _) in reversed([*enumerate(pool.answers)])}
    return sorted(picked, key=lambda one: places[Prompt.of(one)])
