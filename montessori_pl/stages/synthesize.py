"""Synthesize: the teacher writes instructions and responses; what passes the filters becomes examples."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from montessori_pl.bounds import Count, PositiveFloat, PositiveInt, Share, Text
from montessori_pl.data.records import Example, Rejection, read_records, stable_seed
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.estimates.estimate import StageEstimate
from montessori_pl.estimates.preview import StagePreview
from montessori_pl.generation.base import GenerationBackend, Sampling
from montessori_pl.models.loading import ModelSource
from montessori_pl.run_directory.journal import Journal
from montessori_pl.stages.base import EXAMPLES, LATEST, REJECTIONS, Input, Kind, Stage, StageContext, StageError
from montessori_pl.stages.generating.collapse_guard import FALLBACK_TEACHER, CollapseGuard, CollapseMonitor
from montessori_pl.stages.generating.estimate import (
    NUM_PROMPTS,
    Amount,
    check_room,
    estimate_synthesis,
    fitting_prompts,
)
from montessori_pl.stages.generating.first_look import FirstLook
from montessori_pl.stages.generating.generators import (
    Generator,
    Generators,
    check_way_of_asking,
    so_far,
    teacher,
    usage_metrics,
)
from montessori_pl.stages.generating.self_consistency import SelfConsistency
from montessori_pl.stages.generating.synthesis_loop import PromptTask, SynthesisConfig, SynthesisLoop
from montessori_pl.synthesis.base import SelfInstruct, Synthesizer, single_turn
from montessori_pl.synthesis.contamination import Decontamination
from montessori_pl.synthesis.diversity import diversity_metrics
from montessori_pl.synthesis.filters import InstructionFilter, ResponseFilter
from montessori_pl.synthesis.repetition import TeacherRepetition


class Synthesize(Stage):
    """Sample instructions from a teacher, keep the good ones, and let the teacher answer them.

    Work goes in batches of prompts. A batch is committed as a whole, and everything in it depends on the stage's seed
    and on the batches before it, so that a resumed run writes the same bytes as an uninterrupted one.

    Args:
        num_examples: accept exactly so many examples, from as many prompts as it takes.
        num_prompts: or: ask exactly so many prompts, and keep all that pass.
        samples_per_prompt: completions of each prompt.
        teacher: who writes: the stage whose teacher it is, `latest`, `base`, or a teacher of the pool.
        seed_tasks: the stage whose examples are shown as shots; null shows those of `data.seed_tasks`.
        deduplicate_against: stages whose examples nothing may repeat, beside seed tasks; of a later stage,
            those of the iteration before.
        synthesizer: how instructions are asked for.
        instruction_sampling: how instructions are drawn; the defaults are the paper's.
        response_sampling: how responses are drawn; the defaults are the paper's.
        instruction_filter: which instructions are kept.
        response_filter: which responses are kept.
        self_consistency: keeps an instruction only if several answers to it agree; null asks for one answer.
        answered: whether the teacher answers what it has written; without, responses are empty, and a stage
            `GenerateResponses` writes them.
        max_similarity: an instruction is a near duplicate if its ROUGE-L F1 with a seed or an accepted instruction is
            larger; the paper's value. Null keeps near duplicates, and drops exact ones only.
        decontaminate: drops what repeats an example of the reference or test set: the same instruction, or long runs
            of words in instruction or response; give its settings in place of true to say how long, false keeps all.
        prompts_per_batch: prompts between two commits: what a kill can cost.
        max_candidates_per_example: with `num_examples`, give up after so many completions for each example wanted.
        patience: give up after so many completions in a row of which none was accepted.
        min_acceptance: give up after the first batches, of 64 completions or more, if a smaller part of them was
            accepted; 0 goes on whatever it is.
        guard: compares what is written with what the teacher wrote before alignment; null does not look.
        first_iteration_only: whether later iterations go without this stage.
    """

    produces = Kind.EXAMPLES
    artifacts = (EXAMPLES, REJECTIONS)
    uses = ("teacher", "generation", "data")
    fingerprint_excludes = ("max_candidates_per_example", "patience", "min_acceptance")
    adjustable = ("num_examples", "num_prompts")

    def __init__(
        self,
        num_examples: PositiveInt | None = None,
        num_prompts: PositiveInt | None = None,
        samples_per_prompt: Count = 4,
        teacher: Text = LATEST,
        seed_tasks: Text | None = None,
        deduplicate_against: list[Text] | None = None,
        synthesizer: Synthesizer | None = None,
        instruction_sampling: Sampling = Sampling(temperature=1.0, top_p=0.9, presence_penalty=1.0),
        response_sampling: Sampling = Sampling(temperature=0.6, top_p=0.9, presence_penalty=1.0),
        instruction_filter: InstructionFilter = InstructionFilter(),
        response_filter: ResponseFilter = ResponseFilter(),
        self_consistency: SelfConsistency | None = None,
        answered: bool = True,
        max_similarity: Share | None = 0.7,
        decontaminate: bool | Decontamination = True,
        prompts_per_batch: Count = 32,
        max_candidates_per_example: PositiveFloat = 20,
        patience: PositiveInt = 1024,
        min_acceptance: Share = 0.1,
        guard: CollapseGuard | None = None,
        first_iteration_only: bool = False,
    ) -> None:
        super().__init__(first_iteration_only)
        if (num_examples is None) == (num_prompts is None):
            raise ValueError(
                "Synthesize needs either num_examples or num_prompts, "
                f"found num_examples {num_examples} and num_prompts {num_prompts}"
            )
        if self_consistency is not None:
            self_consistency.others(response_sampling)
            if not answered:
                raise ValueError("self_consistency compares answers, and answered is false: leave one of them out")
        self.min_acceptance = min_acceptance
        self.num_examples, self.num_prompts, self.samples_per_prompt = num_examples, num_prompts, samples_per_prompt
        self.teacher, self.seed_tasks, self.deduplicate_against = teacher, seed_tasks, deduplicate_against or []
        self.rules = SynthesisConfig(
            synthesizer=synthesizer or SelfInstruct(),
            instruction_sampling=instruction_sampling,
            response_sampling=response_sampling,
            instruction_filter=instruction_filter,
            response_filter=response_filter,
            max_similarity=max_similarity,
            decontaminate=decontaminate,
            answered=answered,
            self_consistency=self_consistency,
        )
        self.prompts_per_batch = prompts_per_batch
        self.max_candidates_per_example, self.patience = max_candidates_per_example, patience
        self.guard = guard

    def reads(self) -> list[Input]:
        """The teacher, the seeds where a stage has them, what not to repeat, and what the guard compares with."""
        seed_tasks = [Input("seed_tasks", self.seed_tasks, Kind.EXAMPLES)] if self.seed_tasks is not None else []
        known = [
            Input(f"deduplicate_against.{name}", name, Kind.EXAMPLES, optional=True)
            for name in self.deduplicate_against
        ]
        guarded = self.guard.reads() if self.guard is not None else []
        return [Input("teacher", self.teacher, Kind.TEACHER), *seed_tasks, *known, *guarded]

    def teacher_names(self) -> list[str]:
        """The teacher, and the one that the guard may let write in its place."""
        return [self.teacher, *([self.guard.fallback_teacher] if self.guard is not None else [])]

    def check_teacher(self, engine: GenerationBackend, source: ModelSource) -> None:
        """Look at whether it can be asked as the synthesizer wants."""
        check_way_of_asking(self.rules.synthesizer, engine, source)

    def check_inputs(self, context: EstimateContext) -> None:
        """Whether prompts have room in the teacher; with shots, where these are seed tasks."""
        check_room(context, self.rules, self.teacher)
        if self.seed_tasks is None:
            seed_tasks = self._shots(context.key, context.data.read("seed_tasks"))
            shots = [(stable_seed(context.seed, "prompt", index), seed_tasks) for index in range(NUM_PROMPTS)]
            fitting_prompts(context, self.rules, self.teacher, shots)

    def estimate(self, context: EstimateContext) -> StageEstimate:
        """The batches that are left; the next prompts are rendered as the run will, with seeds for shots to come."""
        seed_tasks = single_turn(
            context.expected_input("seed_tasks").samples
            if self.seed_tasks is not None
            else context.data.read("seed_tasks")
        )
        amount = self._amount(context)
        first = _asked(context.commits)
        last = min(first + NUM_PROMPTS, self.num_prompts) if self.num_prompts is not None else first + NUM_PROMPTS
        shots = [(stable_seed(context.seed, "prompt", index), seed_tasks) for index in range(first, last)]
        prompts = first + amount.completions // self.samples_per_prompt
        return estimate_synthesis(context, self.rules, self.teacher, shots, amount, prompts)

    def _amount(self, context: EstimateContext) -> Amount:
        """How much is left to be written: whole batches, unless the number of prompts is given."""
        missing = self._missing(context.commits)
        if self.num_examples is None:
            upper_bound = missing * self.samples_per_prompt
            return Amount(
                completions=upper_bound,
                max_completions=upper_bound,
                accepted=round(upper_bound * context.accepted_rate),
                max_accepted=upper_bound,
            )
        size = self.prompts_per_batch * self.samples_per_prompt
        limit = math.ceil(self.max_candidates_per_example * self.num_examples / size) - len(context.commits)
        limit = max(0, limit) if missing else 0  # less may be asked for than in an earlier session
        batches = min(math.ceil(missing / context.accepted_rate / size), limit)
        return Amount(completions=batches * size, max_completions=limit * size, accepted=missing, max_accepted=missing)

    def preview(self, context: StageContext, num_prompts: int) -> StagePreview:
        """The first samples of the first prompts; a run that begins writes them first."""
        with Generators(context) as generators:
            loop, shots = self._loop(context, generators, [])
            generator = teacher(context, "teacher", self.teacher)
            tasks = self._tasks(range(num_prompts), context, generator, shots, 1)
            samples = loop.preview(tasks)
            prompts = self.num_prompts
            return StagePreview(
                samples=samples,
                num_examples=self.num_examples,
                num_completions=prompts * self.samples_per_prompt if prompts is not None else None,
                usage=generators.take_usage(),
            )

    def run(self, context: StageContext) -> dict[str, Any]:
        """Write batches until there is enough."""
        journal = Journal(context.directory, [EXAMPLES, REJECTIONS])
        examples = read_records(context.directory / EXAMPLES, Example)
        total = self.num_examples or self.num_prompts
        context.progress.start(total, self._done(journal.commits), **so_far(journal.commits))
        monitor = self._monitor(context, journal)
        if self._missing(journal.commits):
            with Generators(context) as generators:
                self._write_batches(context, journal, generators, examples, monitor)
        rejections = read_records(context.directory / REJECTIONS, Rejection)
        return {
            "accepted": len(examples),
            "rejected": dict(Counter(rejection.reason for rejection in rejections).most_common()),
            **usage_metrics(journal.commits),
            **diversity_metrics(examples),
            "warnings": [
                *(monitor.sentences() if monitor is not None else []),
                *TeacherRepetition.of(examples).warnings(),
            ],
        }

    def _monitor(self, context: StageContext, journal: Journal) -> CollapseMonitor | None:
        if self.guard is None:
            return None
        return CollapseMonitor(self.guard, context, journal, self.rules.synthesizer, self.rules.threshold)

    def _write_batches(
        self,
        context: StageContext,
        journal: Journal,
        generators: Generators,
        examples: list[Example],
        monitor: CollapseMonitor | None,
    ) -> None:
        loop, shots = self._loop(context, generators, examples)
        generator = teacher(context, "teacher", self.teacher)
        while self._missing(journal.commits):
            self._check_limits(context, journal)
            collapsed = monitor is not None and monitor.alarmed
            asked = self._batch(_asked(journal.commits))
            tasks = self._tasks(asked, context, generator, shots, self.samples_per_prompt, collapsed)
            accepted, rejected = loop.write(len(journal.commits), tasks)
            examples += accepted
            counts = {
                "prompts": len(tasks),
                "candidates": len(accepted) + len(rejected),
                "accepted": len(accepted),
            }
            last = not self._missing([*journal.commits, counts])
            journal.commit(
                {EXAMPLES: accepted, REJECTIONS: rejected},
                **counts,
                **generators.take_usage(),
                **(monitor.notes(accepted, rejected, last) if monitor is not None else {}),
            )
            context.progress.advance(self._done(journal.commits) - context.progress.done, **so_far(journal.commits))
            look = FirstLook.of(journal.commits, context.directory)
            if look is not None and look.batches == len(journal.commits):
                context.say(look.sentence())

    def _loop(
        self, context: StageContext, generators: Generators, examples: list[Example]
    ) -> tuple[SynthesisLoop, list[Example]]:
        """What writes the batches, given what was accepted before, and the seed tasks that can be shown."""
        seed_tasks = context.data.read("seed_tasks")
        if self.seed_tasks is not None and context.inputs["seed_tasks"] is not None:
            seed_tasks = context.examples("seed_tasks")
        shots = self._shots(context.key, seed_tasks)
        known = [
            example for name in self.deduplicate_against for example in context.examples(f"deduplicate_against.{name}")
        ]
        has_room = self._has_room(examples)
        return SynthesisLoop(context, self.rules, generators, [*seed_tasks, *known], examples, has_room), shots

    def _shots(self, key: str, seed_tasks: Sequence[Example]) -> list[Example]:
        """The seed tasks that can be shown as shots.

        Raises:
            StageError: none can.
        """
        shots = single_turn(seed_tasks)
        if seed_tasks and not shots:
            raise StageError(
                f"{key} has no shots: all {len(seed_tasks)} seed tasks are conversations of several turns; "
                "give some of a single turn"
            )
        return shots

    def _has_room(self, examples: Sequence[Example]) -> Callable[[str, Counter[str]], bool]:
        """With `num_examples`, whether one more is wanted beside those that the batch has."""
        wanted = self.num_examples
        return lambda prompt_id, passed: wanted is None or len(examples) + passed.total() < wanted

    def _batch(self, first: int) -> range:
        """The numbers of the prompts of the batch that begins with this one."""
        last = first + self.prompts_per_batch
        return range(first, min(last, self.num_prompts) if self.num_prompts is not None else last)

    def _tasks(
        self,
        prompts: range,
        context: StageContext,
        generator: Generator,
        seed_tasks: Sequence[Example],
        num_samples: int,
        collapsed: bool = False,
    ) -> list[PromptTask]:
        """The prompts of these numbers."""
        return [
            PromptTask(
                prompt_id=f"{context.name}-{context.iteration}-{index:05d}",
                seed=stable_seed(context.seed, "prompt", index),
                generator=self._generator(index, context, generator, collapsed),
                seed_tasks=seed_tasks,
                num_samples=num_samples,
            )
            for index in prompts
        ]

    def _generator(self, index: int, context: StageContext, generator: Generator, collapsed: bool) -> Generator:
        """Who writes and answers the prompt of this number."""
        if collapsed and self.guard is not None and self.guard.replaces(index):
            return teacher(context, FALLBACK_TEACHER, self.guard.fallback_teacher)
        return generator

    def _done(self, commits: Sequence[Mapping[str, int]]) -> int:
        return _asked(commits) if self.num_prompts is not None else sum(commit["accepted"] for commit in commits)

    def _missing(self, commits: Sequence[Mapping[str, int]]) -> int:
        # There may be more than enough: less may be asked for than in an earlier session.
        return max(0, (self.num_prompts or self.num_examples or 0) - self._done(commits))

    def _check_limits(self, context: StageContext, journal: Journal) -> None:
        look = FirstLook.of(journal.commits, context.directory)
        if look is not None and look.acceptance < self.min_acceptance:
            raise StageError(
                f"{context.key} stopped early: {look.sentence()}. That is less than min_acceptance "
                f"{self.min_acceptance:g}: {look.advice()}. What was accepted is kept: set min_acceptance to 0 to go "
                "on as it is"
            )
        candidates = sum(commit["candidates"] for commit in journal.commits)
        barren = 0
        for commit in reversed(journal.commits):
            if commit["accepted"]:
                break
            barren += commit["candidates"]
        limit = self.max_candidates_per_example * self.num_examples if self.num_examples else float("inf")
        if candidates < limit and barren < self.patience:
            return
        rejections = read_records(context.directory / REJECTIONS, Rejection)
        counts = ", ".join(f"{reason}: {n}" for reason, n in Counter(r.reason for r in rejections).most_common())
        samples = "; ".join(f"({r.reason}) {r.text[:160]!r}" for r in rejections[-3:])
        accepted = sum(commit["accepted"] for commit in journal.commits)
        why = (
            f"none of the last {barren} completions was accepted (patience {self.patience})"
            if barren >= self.patience
            else f"the limit of {limit:g} completions is reached (max_candidates_per_example)"
        )
        raise StageError(
            f"{context.key} gave up with {accepted} of {self.num_examples or self.num_prompts} wanted, after "
            f"{candidates} completions: {why}. Rejected: {counts}. The last ones were: {samples}. What was accepted is "
            f"kept: raise the limit to go on, ask for {accepted} to go on without the rest, or mend the prompt, the "
            "sampling or the filters under another --run"
        )


def _asked(commits: Sequence[Mapping[str, int]]) -> int:
    """Prompts of all batches so far; the last batch of an earlier session may have had fewer than the others."""
    return sum(commit["prompts"] for commit in commits)
