"""What writing will take: real prompts, and texts like those that were written before or, failing that, the seeds."""

import dataclasses
from collections.abc import Sequence

from montessori_pl.data.records import Example
from montessori_pl.estimates.context import PlanContext
from montessori_pl.estimates.estimate import MANY, Expected, Plan, evenly
from montessori_pl.stages.generating.synthesis_loop import Rules, fitting_prompt, turn
from montessori_pl.synthesis.parsing import CLOSING, OPENING

NUM_PROMPTS = 64
"""So many prompts are rendered."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Amount:
    """How much is left to be written."""

    completions: int
    """Completions that are asked for."""
    max_completions: int
    """The same at most."""
    accepted: int
    """Examples that come of them."""
    max_accepted: int
    """The same at most."""


def plan_writing(
    context: PlanContext,
    rules: Rules,
    teacher: str,
    shots: Sequence[tuple[int, Sequence[Example]]],
    amount: Amount,
    prompts: int,
) -> Plan:
    """The requests for instructions and for responses, and what comes of them.

    Args:
        context: the stage's.
        rules: how is written.
        teacher: who writes.
        shots: for each of the next prompts its seed, and the examples from which its shots are drawn.
        amount: how much is left to be written.
        prompts: prompts of the whole stage.
    """
    author, limit = context.asked(teacher), rules.instruction_sampling.max_tokens

    def fits(prompt: str) -> bool:
        return author.fits(turn(prompt), limit)

    drawn = [fitting_prompt(rules.synthesizer, seed, seeds, context.written, fits)[0] for seed, seeds in shots]
    asked = [prompt for prompt in drawn if prompt]
    like = evenly(context.known, min(MANY, len(context.known))) or _stand_ins(shots, asked)
    instructions = author.work(
        "instructions",
        amount.completions,
        amount.max_completions,
        [turn(prompt) for prompt in asked],
        [example.completion for example in like],
        limit,
    )
    responses = author.work(
        "responses",
        amount.accepted,
        amount.max_completions,  # what the response filter rejects has been answered
        [turn(example.instruction) for example in like],
        [example.response for example in like],
        rules.response_sampling.max_tokens,
    )
    return Plan(
        work=[instructions, responses] if rules.answered else [instructions],
        leaves=Expected(
            count=len(context.written) + amount.accepted,
            most=len(context.written) + amount.max_accepted,
            prompts=prompts,
            instructions=len(context.written) + amount.accepted,
            like=like,
        ),
        prompts=[author.shown(turn(prompt)) for prompt in asked],
        notes=context.notes(),
    )


def _stand_ins(shots: Sequence[tuple[int, Sequence[Example]]], prompts: Sequence[str]) -> list[Example]:
    """The seeds, as if they had been written in answer to these prompts."""
    seeds = list({example.id: example for _, examples in shots for example in examples}.values())
    seeds = evenly(seeds, min(MANY, len(seeds)))
    return [
        dataclasses.replace(
            seed,
            prompt_id=seed.id,
            prompt=prompt,
            completion=f"{OPENING}{seed.instruction}{CLOSING}",
        )
        for seed, prompt in zip(seeds, evenly(prompts, len(seeds)), strict=True)
    ]
