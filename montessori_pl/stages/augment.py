"""Augment: the teacher writes more like given examples, until each has its share or the attempts are used up."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from montessori_pl.batches.samplers import chunks
from montessori_pl.bounds import Count, PositiveInt, Share, Text
from montessori_pl.data.records import Example, Rejection, read_records, stable_seed
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.estimates.estimate import StageEstimate
from montessori_pl.estimates.preview import StagePreview
from montessori_pl.generation.base import GenerationBackend, Sampling
from montessori_pl.models.loading import ModelSource
from montessori_pl.run_directory.journal import Journal
from montessori_pl.stages.base import EXAMPLES, LATEST, REJECTIONS, Input, Kind, Stage, StageContext
from montessori_pl.stages.generating.estimate import NUM_PROMPTS, Amount, check_room, estimate_synthesis
from montessori_pl.stages.generating.generators import (
    Generator,
    Generators,
    check_way_of_asking,
    so_far,
    teacher,
    usage_metrics,
)
from montessori_pl.stages.generating.synthesis_loop import PromptTask, SynthesisConfig, SynthesisLoop
from montessori_pl.synthesis.base import SelfInstruct, Synthesizer, single_turn
from montessori_pl.synthesis.contamination import Decontamination
from montessori_pl.synthesis.diversity import diversity_metrics
from montessori_pl.synthesis.filters import InstructionFilter, ResponseFilter


class Augment(Stage):
    """Let the teacher write examples like given ones, such as those that the student gets wrong.

    Each attempt shows the teacher, one at a time, the examples that still lack some, and asks for as many completions
    as are missing, times the number of the attempt. What is written is never shown to it. After the last attempt the
    stage ends with what there is, and says what is missing and why. Conversations of several turns are not shown and
    counted.

    Args:
        examples: the stage whose examples are augmented; there may be none.
        per_example: write so many for each of them; the paper writes one.
        num_examples: or: write so many in all, as many for each example.
        max_attempts: attempts for one example.
        deduplicate_against: stages whose examples nothing may repeat, beside seed tasks and `examples`; of a stage that
            stands later in the recipe, those of the iteration before.
        teacher: who writes: the stage whose teacher it is, `latest`, `base`, or a teacher of the pool.
        synthesizer: how instructions are asked for, given one seed: the example.
        instruction_sampling: how instructions are drawn.
        response_sampling: how responses are drawn; the teacher answers its own instructions.
        instruction_filter: which instructions are kept.
        response_filter: which responses are kept.
        max_similarity: an instruction is a near duplicate if its ROUGE-L F1 with another is larger; the value of the
            paper's code. Null keeps near duplicates, and drops exact ones only.
        decontaminate: drops what repeats an example of the reference or test set: the same instruction, or long runs
            of words in instruction or response; give its settings in place of true to say how long, false keeps all.
        prompts_per_batch: examples whose attempts are committed together: what a kill can cost.
        first_iteration_only: whether later iterations go without this stage.
    """

    produces = Kind.EXAMPLES
    artifacts = (EXAMPLES, REJECTIONS)
    uses = ("teacher", "generation", "data")

    def __init__(
        self,
        examples: Text,
        per_example: Count | None = None,
        num_examples: PositiveInt | None = None,
        max_attempts: PositiveInt = 5,
        deduplicate_against: list[Text] | None = None,
        teacher: Text = LATEST,
        synthesizer: Synthesizer | None = None,
        instruction_sampling: Sampling = Sampling(temperature=1.0, top_p=1.0),
        response_sampling: Sampling = Sampling(temperature=0.6, top_p=0.9, presence_penalty=1.0),
        instruction_filter: InstructionFilter = InstructionFilter(),
        response_filter: ResponseFilter = ResponseFilter(),
        max_similarity: Share | None = 0.95,
        decontaminate: bool | Decontamination = True,
        prompts_per_batch: Count = 32,
        first_iteration_only: bool = False,
    ) -> None:
        super().__init__(first_iteration_only)
        if (per_example is None) == (num_examples is None):
            raise ValueError(
                "Augment needs either per_example or num_examples, "
                f"found per_example {per_example} and num_examples {num_examples}"
            )
        self.examples, self.per_example, self.num_examples = examples, per_example, num_examples
        self.max_attempts, self.deduplicate_against, self.teacher = max_attempts, deduplicate_against or [], teacher
        self.rules = SynthesisConfig(
            synthesizer=synthesizer or SelfInstruct("more_like_this", num_seed_shots=1, num_written_shots=0),
            instruction_sampling=instruction_sampling,
            response_sampling=response_sampling,
            instruction_filter=instruction_filter,
            response_filter=response_filter,
            max_similarity=max_similarity,
            decontaminate=decontaminate,
        )
        self.prompts_per_batch = prompts_per_batch

    def reads(self) -> list[Input]:
        """The examples, the teacher, and what must not be repeated."""
        known = [
            Input(f"deduplicate_against.{name}", name, Kind.EXAMPLES, optional=True)
            for name in self.deduplicate_against
        ]
        return [Input("examples", self.examples, Kind.EXAMPLES), Input("teacher", self.teacher, Kind.TEACHER), *known]

    def teacher_names(self) -> list[str]:
        """The teacher."""
        return [self.teacher]

    def check_teacher(self, engine: GenerationBackend, source: ModelSource) -> None:
        """Look at whether it can be asked as the synthesizer wants."""
        check_way_of_asking(self.rules.synthesizer, engine, source)

    def check_inputs(self, context: EstimateContext) -> None:
        """Whether a short prompt has room in the teacher."""
        check_room(context, self.rules, self.teacher)

    def estimate(self, context: EstimateContext) -> StageEstimate:
        """The attempts that are left, as if the first examples were the ones that still lack some."""
        given = context.expected_input("examples")
        missing, upper_bound = (
            max(0, (self.per_example * count if self.per_example is not None else self.num_examples or 0) - written)
            for count, written in ((given.count, len(context.written)), (given.upper_bound, len(context.written)))
        )
        amount = Amount(
            completions=round(missing / context.accepted_rate),
            max_completions=upper_bound * self.max_attempts * (self.max_attempts + 1) // 2,
            accepted=missing,
            max_accepted=upper_bound,
        )
        shots = [
            (stable_seed(context.seed, "prompt", one.id, 0), [one]) for one in single_turn(given.some())[:NUM_PROMPTS]
        ]
        return estimate_synthesis(context, self.rules, self.teacher, shots, amount, prompts=given.count)

    def run(self, context: StageContext) -> dict[str, Any]:
        """Make the attempts that have not been made."""
        journal = Journal(context.directory, [EXAMPLES, REJECTIONS])
        given = single_turn(context.examples("examples"))
        wanted = self._wanted(context, given)
        written = read_records(context.directory / EXAMPLES, Example)
        context.progress.start(sum(wanted.values()), len(written), **so_far(journal.commits))
        if any(_missing(wanted, written).values()):
            with Generators(context) as generators:
                self._make_rest(context, journal, generators, given, wanted)
        return self._metrics(context, journal, wanted)

    def _make_rest(
        self,
        context: StageContext,
        journal: Journal,
        generators: Generators,
        given: Sequence[Example],
        wanted: Mapping[str, int],
    ) -> None:
        """Commit attempt after attempt, each in parts, until nothing is missing or all have been made."""
        written = read_records(context.directory / EXAMPLES, Example)
        missing = _missing(wanted, written)
        loop = self._loop(
            context,
            generators,
            given,
            written,
            lambda prompt_id, passed: passed[prompt_id] < missing[_asked_for(prompt_id)],
        )
        generator = teacher(context, "teacher", self.teacher)
        parts = chunks(given, self.prompts_per_batch)
        for number in range(len(journal.commits), self.max_attempts * len(parts)):
            attempt, part = divmod(number, len(parts))
            accepted, rejected = loop.write(number, self._batch(context, generator, parts[part], missing, attempt))
            written += accepted
            counts = {"candidates": len(accepted) + len(rejected), "accepted": len(accepted)}
            journal.commit({EXAMPLES: accepted, REJECTIONS: rejected}, **counts, **generators.take_usage())
            context.progress.advance(len(accepted), **so_far(journal.commits))
            missing = _missing(wanted, written)
            if not any(missing.values()):
                break

    def _loop(
        self,
        context: StageContext,
        generators: Generators,
        given: Sequence[Example],
        written: list[Example],
        has_room: Callable[[str, Counter[str]], bool],
    ) -> SynthesisLoop:
        """What writes the batches, given what was written before."""
        known = [
            example for name in self.deduplicate_against for example in context.examples(f"deduplicate_against.{name}")
        ]
        seed_tasks = [*context.data.read("seed_tasks"), *given, *known]
        return SynthesisLoop(context, self.rules, generators, seed_tasks, written, has_room)

    def preview(self, context: StageContext, num_prompts: int) -> StagePreview:
        """First attempts at the first examples; at seed tasks, where these are not known yet."""
        known = context.inputs["examples"] is not None
        given = single_turn(context.examples("examples") if known else context.data.read("seed_tasks"))[:num_prompts]
        with Generators(context) as generators:
            loop = self._loop(context, generators, given, [], lambda prompt_id, passed: True)
            generator = teacher(context, "teacher", self.teacher)
            tasks = self._batch(context, generator, given, dict.fromkeys((_group(context, one) for one in given), 1), 0)
            return StagePreview(
                samples=loop.preview(tasks), num_examples=self.num_examples, usage=generators.take_usage()
            )

    def _metrics(self, context: StageContext, journal: Journal, wanted: Mapping[str, int]) -> dict[str, Any]:
        """What was accepted and rejected, what is missing, what it took, and how varied it is."""
        written = read_records(context.directory / EXAMPLES, Example)
        rejections = read_records(context.directory / REJECTIONS, Rejection)
        return {
            "accepted": len(written),
            "rejected": _reasons(rejections),
            "left_out_with_several_turns": len(context.examples("examples")) - len(wanted),
            **self._shortfall(_missing(wanted, written), rejections),
            **usage_metrics(journal.commits),
            **diversity_metrics(written),
        }

    def _batch(
        self,
        context: StageContext,
        generator: Generator,
        given: Sequence[Example],
        missing: Mapping[str, int],
        attempt: int,
    ) -> list[PromptTask]:
        """A prompt for each of these examples that lacks some."""
        return [
            PromptTask(
                prompt_id=f"{group}-{attempt}",
                seed=stable_seed(context.seed, "prompt", example.id, attempt),
                generator=generator,
                seed_tasks=[example],
                num_samples=missing[group] * (attempt + 1),
            )
            for example in given
            if missing[group := _group(context, example)]
        ]

    def _wanted(self, context: StageContext, given: Sequence[Example]) -> dict[str, int]:
        """How many are to be written for each example, by the group that they form."""
        if self.per_example is not None:
            return {_group(context, example): self.per_example for example in given}
        share, rest = divmod(self.num_examples or 0, max(1, len(given)))
        return {_group(context, example): share + (place < rest) for place, example in enumerate(given)}

    def _shortfall(self, missing: Mapping[str, int], rejections: Sequence[Rejection]) -> dict[str, Any]:
        """How many examples got fewer than they should, how many those are, and why."""
        lacking = {group: number for group, number in missing.items() if number}
        why = _reasons(one for one in rejections if _asked_for(one.prompt_id) in lacking)
        shortfall: dict[str, Any] = {"lacking": len(lacking), "missing": sum(lacking.values()), "why": why}
        if not missing:
            shortfall["warnings"] = ["there was no example to augment"]
        elif lacking:
            counts = ", ".join(f"{reason} {count}" for reason, count in why.items())
            shortfall["warnings"] = [
                f"{len(lacking)} of {len(missing)} examples got fewer than they should, {sum(lacking.values())} are "
                f"missing after {self.max_attempts} attempts; rejected of theirs: {counts}"
            ]
        return shortfall


def _group(context: StageContext, example: Example) -> str:
    """How the ids of all that is written for an example begin; the iteration tells them from those before it."""
    return f"{context.name}-{context.iteration}-{example.id}"


def _asked_for(prompt_id: str) -> str:
    """The group that a prompt, the group's name with the number of the attempt, asks for."""
    return prompt_id.rpartition("-")[0]


def _missing(wanted: Mapping[str, int], written: Sequence[Example]) -> dict[str, int]:
    counts = Counter(_asked_for(example.prompt_id) for example in written)
    return {group: number - counts[group] for group, number in wanted.items()}


def _reasons(rejections: Iterable[Rejection]) -> dict[str, int]:
    return dict(Counter(rejection.reason for rejection in rejections).most_common())
