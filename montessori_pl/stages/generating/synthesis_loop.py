"""Writing in batches: prompts go to their generators, what they write is looked at, and what passes is answered.

A batch depends on the stage's seed and on what was accepted before it, so that it can be written again after a kill.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from montessori_pl.data.reasoning import without_reasoning
from montessori_pl.data.records import Example, Message, Rejection, SampledTokens, stable_seed
from montessori_pl.estimates.preview import PreviewedSample
from montessori_pl.generation.base import Completion, Request, Sampling
from montessori_pl.stages.base import StageContext
from montessori_pl.stages.generating.generators import Generator, Generators
from montessori_pl.stages.generating.self_consistency import SelfConsistency
from montessori_pl.synthesis.base import Synthesizer
from montessori_pl.synthesis.contamination import Decontamination, HeldOut
from montessori_pl.synthesis.filters import InstructionFilter, Rejected, ResponseFilter
from montessori_pl.synthesis.near_duplicates import NearDuplicateIndex


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """How is written, and what is kept: settings of the stage, which says what each of them means."""

    synthesizer: Synthesizer
    instruction_sampling: Sampling
    response_sampling: Sampling
    instruction_filter: InstructionFilter
    response_filter: ResponseFilter
    max_similarity: float | None
    decontaminate: bool | Decontamination
    answered: bool = True
    self_consistency: SelfConsistency | None = None

    @property
    def threshold(self) -> float:
        """ROUGE-L F1 above which an instruction is a near duplicate; at 1 only the same text is one."""
        return self.max_similarity if self.max_similarity is not None else 1.0


@dataclass(frozen=True, kw_only=True)
class PromptTask:
    """One prompt of a batch."""

    prompt_id: str
    """Of the prompt."""
    seed: int
    """Of what is drawn for the prompt."""
    generator: Generator
    """Who is asked."""
    seed_tasks: Sequence[Example]
    """What may be shown as shots, beside what was written before."""
    num_samples: int
    """How many completions are asked for."""


@dataclass
class _Candidate:
    """A completion on its way to an example."""

    id: str
    generator: Generator
    prompt_id: str
    prompt: str = ""
    seed_task_ids: tuple[str, ...] = ()
    completion: Completion = Completion(text="", finished=False, num_tokens=0)
    instruction: str = ""
    response: str = ""


class SynthesisLoop:
    """Writes one batch after another; holds what the batches share.

    Args:
        context: the stage's.
        rules: what is kept.
        generators: who writes.
        seed_tasks: examples that nothing may repeat.
        examples: what was accepted before; the caller adds what a batch brings.
        has_room: whether one more example of this prompt is wanted, given how many of each prompt the batch has.
    """

    def __init__(
        self,
        context: StageContext,
        rules: SynthesisConfig,
        generators: Generators,
        seed_tasks: Sequence[Example],
        examples: list[Example],
        has_room: Callable[[str, Counter[str]], bool],
    ) -> None:
        self.context, self.rules, self.generators = context, rules, generators
        self.seed_tasks, self.examples, self.has_room = seed_tasks, examples, has_room
        self.index = self._index(examples)
        self.held_out = _held_out(context, rules.decontaminate)
        self._asked: list[_Candidate] = []  # of the batch that was written last

    def write(self, number: int, tasks: Sequence[PromptTask]) -> tuple[list[Example], list[Rejection]]:
        """The examples and rejections of the batch of this number."""
        rejections: list[Rejection] = []
        accepted: list[Example] = []
        candidates = list(self._instructions(number, tasks, rejections))
        if not self.rules.answered:
            return self._kept([self._example(candidate, number) for candidate in candidates]), rejections
        consistency = self.rules.self_consistency
        for candidate, answers in zip(candidates, self._answers(candidates), strict=True):
            try:
                if not answers:
                    raise Rejected("too long for the context", "no room for a response")
                candidate.response = answers[0].text
                response = consistency.vote(answers) if consistency is not None else answers[0]
                candidate.response = response.text
                text = self.rules.response_filter.kept(response.text, response.finished)
                self.held_out.check_response(text)
            except Rejected as error:
                rejections.append(_rejection(candidate, number, error, candidate.instruction))
                continue
            accepted.append(self._example(candidate, number, text, response.tokens_of(text)))
        return self._kept(accepted), rejections

    def _kept(self, accepted: list[Example]) -> list[Example]:
        """These examples, which nothing may repeat from now on.

        Instructions that were not answered may come again: after a kill nobody would know of them.
        """
        for example in accepted:
            self.index.add(example.id, example.instruction)
        return accepted

    def preview(self, tasks: Sequence[PromptTask]) -> list[PreviewedSample]:
        """What becomes of the completions of these prompts, in their order; they count as written."""
        _, rejections = self.write(0, tasks)
        problems = {rejection.id: rejection for rejection in rejections}
        samples = []
        for candidate in self._asked:
            problem = problems.get(candidate.id)
            samples.append(
                PreviewedSample(
                    prompt=candidate.generator.shown(self.rules.synthesizer.messages(candidate.prompt)),
                    completion=candidate.completion.text,
                    reason=problem.reason if problem is not None else "",
                    detail=problem.detail if problem is not None else "",
                    instruction=candidate.instruction,
                    response=candidate.response,
                )
            )
        return samples

    def _index(self, examples: Sequence[Example]) -> NearDuplicateIndex:
        """What no new instruction may repeat: the seeds, and these examples."""
        index = NearDuplicateIndex(self.rules.threshold)
        for example in [*self.seed_tasks, *examples]:
            index.add(example.id, example.instruction)
        return index

    def _instructions(
        self, number: int, tasks: Sequence[PromptTask], rejections: list[Rejection]
    ) -> Iterator[_Candidate]:
        """Candidates with an instruction that passes; the others become rejections."""
        passed: Counter[str] = Counter()
        in_batch = NearDuplicateIndex(self.rules.threshold)
        for candidate in self._candidates(number, tasks, rejections):
            try:
                candidate.instruction = self._checked_instruction(candidate, in_batch)
                if not self.has_room(candidate.prompt_id, passed):
                    raise Rejected("surplus", "enough were accepted before it")
            except Rejected as error:
                rejections.append(_rejection(candidate, number, error, candidate.completion.text))
                continue
            passed[candidate.prompt_id] += 1
            in_batch.add(candidate.id, candidate.instruction)
            yield candidate

    def _checked_instruction(self, candidate: _Candidate, in_batch: NearDuplicateIndex) -> str:
        answer = without_reasoning(candidate.completion.text)
        if answer is None:
            raise Rejected("unfinished reasoning", f"it does not end in {len(candidate.completion.text)} characters")
        instruction = self.rules.synthesizer.read(answer, candidate.completion.finished)
        self.rules.instruction_filter.check(instruction)
        self.held_out.check_instruction(instruction)
        match = self.index.find(instruction) or in_batch.find(instruction)
        if match is not None:
            raise Rejected("near duplicate", f"ROUGE-L {match.similarity:.3f} with {match.id}: {match.text}")
        return instruction

    def _candidates(self, number: int, tasks: Sequence[PromptTask], rejections: list[Rejection]) -> list[_Candidate]:
        """All completions of this batch's prompts."""
        candidates: list[_Candidate] = []
        for one in tasks:
            prompt, seed_task_ids = self._prompt(one)
            if prompt is not None:
                ids = [f"{one.prompt_id}-{sample}" for sample in range(one.num_samples)]
                candidates += [_Candidate(id_, one.generator, one.prompt_id, prompt, seed_task_ids) for id_ in ids]
            else:
                error = Rejected("prompt too long", "not even one shot fits the teacher's context")
                rejections.append(
                    _rejection(_Candidate(one.prompt_id, one.generator, one.prompt_id), number, error, "")
                )
        synthesizer = self.rules.synthesizer
        requests = [
            Request(
                messages=synthesizer.messages(candidate.prompt),
                seed=self._seed("instruction", candidate.id),
                stop=synthesizer.stop,
            )
            for candidate in candidates
        ]
        generators = [candidate.generator for candidate in candidates]
        completions = self.generators.generate(generators, requests, self.rules.instruction_sampling)
        for candidate, completion in zip(candidates, completions, strict=True):
            candidate.completion = completion
        self._asked = candidates
        return candidates

    def _prompt(self, task: PromptTask) -> tuple[str | None, tuple[str, ...]]:
        def fits(messages: list[Message]) -> bool:
            return self.generators.fits(task.generator, messages, self.rules.instruction_sampling)

        return fitting_prompt(self.rules.synthesizer, task.seed, task.seed_tasks, self.examples, fits)

    def _answers(self, candidates: Sequence[_Candidate]) -> list[list[Completion]]:
        """The generator's answers to each instruction: one, or as many as have a vote; none where there is no room."""
        consistency, sampling = self.rules.self_consistency, self.rules.response_sampling
        others = consistency.others(sampling) if consistency is not None else sampling
        fitting = [
            candidate
            for candidate in candidates
            if all(
                self.generators.fits(candidate.generator, turn(candidate.instruction), drawn)
                for drawn in (sampling, others)
            )
        ]
        found: dict[str, list[Completion]] = {candidate.id: [] for candidate in candidates}
        self._answer([(candidate, "response") for candidate in fitting], sampling, found)
        if consistency is not None:
            votes = [f"vote {number}" for number in range(1, consistency.samples)]
            self._answer([(candidate, vote) for candidate in fitting for vote in votes], others, found)
        return [found[candidate.id] for candidate in candidates]

    def _answer(
        self, asked: Sequence[tuple[_Candidate, str]], sampling: Sampling, found: dict[str, list[Completion]]
    ) -> None:
        """Add the answer to each of these instructions, each drawn with the seed of what it is for."""
        requests = [
            Request(messages=turn(candidate.instruction), seed=self._seed(what, candidate.id))
            for candidate, what in asked
        ]
        answers = self.generators.generate([candidate.generator for candidate, _ in asked], requests, sampling)
        for (candidate, _), answer in zip(asked, answers, strict=True):
            found[candidate.id].append(answer)

    def _example(
        self, candidate: _Candidate, number: int, response: str = "", tokens: SampledTokens | None = None
    ) -> Example:
        return Example(
            id=candidate.id,
            instruction=candidate.instruction,
            response=response,
            prompt_id=candidate.prompt_id,
            prompt=candidate.prompt,
            prompt_format=self.rules.synthesizer.prompt_format,
            prefill=self.rules.synthesizer.prefill,
            completion=candidate.completion.text,
            completion_finished=candidate.completion.finished,
            completion_tokens=candidate.completion.tokens,
            response_tokens=tokens,
            teacher=candidate.generator.name,
            seed_task_ids=candidate.seed_task_ids,
            batch=number,
        )

    def _seed(self, what: str, id_: str) -> int:
        return stable_seed(self.context.seed, what, id_)


def fitting_prompt(
    synthesizer: Synthesizer,
    seed: int,
    seed_tasks: Sequence[Example],
    written: Sequence[Example],
    fits: Callable[[list[Message]], bool],
) -> tuple[str | None, tuple[str, ...]]:
    """The prompt of this seed with the ids of its shots, fewer where all of them do not fit; none if none does."""
    num_shots: int | None = None
    while num_shots is None or num_shots > 0:
        prompt, seed_task_ids = synthesizer.prompt(random.Random(seed), seed_tasks, written, num_shots)
        if fits(synthesizer.messages(prompt)):
            return prompt, seed_task_ids
        num_shots = len(seed_task_ids) - 1
    return None, ()


def _held_out(context: StageContext, decontaminate: bool | Decontamination) -> HeldOut:
    """What no example may repeat; nothing if decontamination is off."""
    if decontaminate is False:
        return HeldOut({}, Decontamination())
    roles = ["reference", "test"] if context.data.test else ["reference"]
    settings = Decontamination() if decontaminate is True else decontaminate
    return HeldOut({role: context.data.read(role) for role in roles}, settings)


def _rejection(candidate: _Candidate, number: int, error: Rejected, text: str) -> Rejection:
    return Rejection(
        id=candidate.id,
        reason=error.reason,
        detail=error.detail,
        text=text,
        prompt_id=candidate.prompt_id,
        batch=number,
    )


def turn(text: str) -> list[Message]:
    """A conversation that begins with this text."""
    return [{"role": "user", "content": text}]
