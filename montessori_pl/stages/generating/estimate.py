"""What writing will take: real prompts, and texts like those that were written before or, failing that, the seeds."""

import dataclasses
from collections.abc import Sequence

from montessori_pl.data.records import Example, Message
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.estimates.estimate import MAX_SAMPLES, ExpectedRecords, StageEstimate, evenly
from montessori_pl.estimates.requests import SHORT
from montessori_pl.stages.generating.synthesis_loop import SynthesisConfig, fitting_prompt, turn
from montessori_pl.synthesis.base import Synthesizer
from montessori_pl.synthesis.filters import Rejected
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


def estimate_synthesis(
    context: EstimateContext,
    rules: SynthesisConfig,
    teacher: str,
    shots: Sequence[tuple[int, Sequence[Example]]],
    amount: Amount,
    prompts: int,
) -> StageEstimate:
    """The requests for instructions and for responses, and what comes of them.

    Args:
        context: the stage's.
        rules: how is written.
        teacher: who writes.
        shots: for each of the next prompts its seed, and the examples from which its shots are drawn.
        amount: how much is left to be written.
        prompts: prompts of the whole stage.

    Raises:
        ValueError: no prompt fits the teacher's context.
    """
    generator, limit = context.asked(teacher), rules.instruction_sampling.max_tokens
    asked = fitting_prompts(context, rules, teacher, shots)
    conversations = [rules.synthesizer.messages(prompt) for prompt in asked]
    samples = evenly(context.known, min(MAX_SAMPLES, len(context.known)))
    samples = samples or _stand_ins(rules.synthesizer, shots, asked)
    instructions = generator.work(
        "instructions",
        amount.completions,
        amount.max_completions,
        conversations,
        [example.completion for example in samples],
        limit,
    )
    consistency = rules.self_consistency
    answers = consistency.samples if consistency is not None else 1
    responses = generator.work(
        "responses",
        # Those that are not accepted have been answered, too, where answers decide.
        answers * (amount.accepted if consistency is None else amount.completions),
        answers * amount.max_completions,
        [turn(example.instruction) for example in samples],
        [example.response for example in samples],
        rules.response_sampling.max_tokens,
    )
    return StageEstimate(
        work=[instructions, responses] if rules.answered else [instructions],
        expected_output=ExpectedRecords(
            count=len(context.written) + amount.accepted,
            upper_bound=len(context.written) + amount.max_accepted,
            prompts=prompts,
            instructions=len(context.written) + amount.accepted,
            samples=samples,
        ),
        prompts=[generator.shown(messages) for messages in conversations],
        notes=context.notes(),
    )


def fitting_prompts(
    context: EstimateContext, rules: SynthesisConfig, teacher: str, shots: Sequence[tuple[int, Sequence[Example]]]
) -> list[str]:
    """The prompts that fit the teacher's context, beside an instruction; arguments are those of `estimate_synthesis`.

    Raises:
        ValueError: none does.
    """
    generator, limit = context.asked(teacher), rules.instruction_sampling.max_tokens

    def fits(messages: list[Message]) -> bool:
        return generator.fits(messages, limit)

    drawn = [
        fitting_prompt(rules.synthesizer, seed, seed_tasks, context.written, fits)[0] for seed, seed_tasks in shots
    ]
    asked = [prompt for prompt in drawn if prompt is not None]
    if drawn and not asked:
        raise ValueError(
            f"recipe.{context.name}: no prompt fits the context of the teacher {teacher!r}: a prompt with one shot and "
            f"instruction_sampling.max_tokens {limit} are too long together; lower max_tokens, or shorten the request"
        )
    return asked


def check_room(context: EstimateContext, rules: SynthesisConfig, teacher: str) -> None:
    """Refuse lengths beside which not even a short prompt has room in the teacher.

    Raises:
        ValueError: one of them is too large.
    """
    generator = context.asked(teacher)
    generator.check_room([SHORT], "instruction_sampling.max_tokens", rules.instruction_sampling.max_tokens)
    if rules.answered:
        generator.check_room([SHORT], "response_sampling.max_tokens", rules.response_sampling.max_tokens)
    if rules.self_consistency is not None and (sampling := rules.self_consistency.sampling) is not None:
        generator.check_room([SHORT], "self_consistency.sampling.max_tokens", sampling.max_tokens)


def _stand_ins(
    synthesizer: Synthesizer, shots: Sequence[tuple[int, Sequence[Example]]], prompts: Sequence[str]
) -> list[Example]:
    """The seeds, as if they had been written in answer to these prompts."""
    seed_tasks = list({example.id: example for _, examples in shots for example in examples}.values())
    seed_tasks = evenly(seed_tasks, min(MAX_SAMPLES, len(seed_tasks)))
    return [
        dataclasses.replace(
            seed,
            prompt_id=seed.id,
            prompt=prompt,
            completion=_completion(synthesizer, seed.instruction),
        )
        for seed, prompt in zip(seed_tasks, evenly(prompts, len(seed_tasks)), strict=True)
    ]


def _completion(synthesizer: Synthesizer, instruction: str) -> str:
    """What a teacher would write to say it: the instruction alone where the synthesizer finds it so, or in tags."""
    alone = f"{instruction}{synthesizer.stop}"
    try:
        synthesizer.instruction(alone)
    except Rejected:
        return f"{OPENING}{instruction}{CLOSING}"
    return alone
