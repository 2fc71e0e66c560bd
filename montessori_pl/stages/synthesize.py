"""Synthesize: the teacher writes instructions and responses; what passes the filters becomes examples."""

import dataclasses
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from montessori_pl.data import normalized
from montessori_pl.generation.base import Completion, Request, Sampling
from montessori_pl.models import ModelSource
from montessori_pl.records import Example, Message, Rejection, read_records, stable_seed
from montessori_pl.stages.authors import Authors, signature
from montessori_pl.stages.base import LATEST, Input, Kind, Stage, StageContext, StageError
from montessori_pl.stages.collapse_guard import EXAMPLES, FALLBACK_TEACHER, REJECTIONS, CollapseGuard, CollapseWatch
from montessori_pl.synthesis.base import SelfInstruct, Synthesizer
from montessori_pl.synthesis.diversity import diversity
from montessori_pl.synthesis.filters import InstructionFilter, Rejected, ResponseFilter
from montessori_pl.synthesis.near_duplicates import NearDuplicateIndex
from montessori_pl.workspace import Journal


class Synthesize(Stage):
    """Sample instructions from a teacher, keep the good ones, and let the teacher answer them.

    Work goes in rounds of prompts. A round is committed as a whole, and everything in it depends on the stage's seed
    and on the rounds before it, so that a resumed run writes the same bytes as an uninterrupted one.

    Args:
        num_examples: accept exactly so many examples, from as many prompts as it takes.
        num_prompts: or: ask exactly so many prompts, and keep all that pass.
        samples_per_prompt: completions of each prompt.
        teacher: the stage whose teacher writes; `latest`, or `base`.
        synthesizer: how instructions are asked for.
        instruction_sampling: how instructions are drawn; the defaults are the paper's.
        response_sampling: how responses are drawn; the defaults are the paper's.
        instruction_filter: which instructions are kept.
        response_filter: which responses are kept.
        max_similarity: an instruction is a near duplicate if its ROUGE-L F1 with a seed or an accepted instruction is
            larger; the paper's value. Null keeps near duplicates, and drops exact ones only.
        decontaminate: whether instructions that stand in the reference or test set are dropped.
        prompts_per_round: prompts between two commits: what a kill can cost.
        max_candidates_per_example: with `num_examples`, give up after so many completions for each example wanted.
        patience: give up after so many completions in a row of which none was accepted.
        guard: compares what is written with what the teacher wrote before alignment; null does not look.
        first_iteration_only: whether later iterations go without this stage.
    """

    produces = Kind.EXAMPLES
    artifacts = (EXAMPLES, REJECTIONS)
    uses = ("teacher", "generation", "data")
    unpinned = ("max_candidates_per_example", "patience")

    def __init__(
        self,
        num_examples: int | None = None,
        num_prompts: int | None = None,
        samples_per_prompt: int = 4,
        teacher: str = LATEST,
        synthesizer: Synthesizer | None = None,
        instruction_sampling: Sampling = Sampling(temperature=1.0, top_p=0.9, presence_penalty=1.0),
        response_sampling: Sampling = Sampling(temperature=0.6, top_p=0.9, presence_penalty=1.0),
        instruction_filter: InstructionFilter = InstructionFilter(),
        response_filter: ResponseFilter = ResponseFilter(),
        max_similarity: float | None = 0.7,
        decontaminate: bool = True,
        prompts_per_round: int = 32,
        max_candidates_per_example: float = 20,
        patience: int = 1024,
        guard: CollapseGuard | None = None,
        first_iteration_only: bool = False,
    ) -> None:
        super().__init__(first_iteration_only)
        if (num_examples is None) == (num_prompts is None):
            raise ValueError(
                "Synthesize needs either num_examples or num_prompts, "
                f"found num_examples {num_examples} and num_prompts {num_prompts}"
            )
        if min(num_examples or 1, num_prompts or 1, samples_per_prompt, prompts_per_round) < 1:
            raise ValueError("num_examples, num_prompts, samples_per_prompt and prompts_per_round must be at least 1")
        self.num_examples, self.num_prompts, self.samples_per_prompt = num_examples, num_prompts, samples_per_prompt
        self.teacher = teacher
        self.synthesizer = synthesizer or SelfInstruct()
        self.instruction_sampling, self.response_sampling = instruction_sampling, response_sampling
        self.instruction_filter, self.response_filter = instruction_filter, response_filter
        self.max_similarity, self.decontaminate = max_similarity, decontaminate
        self.prompts_per_round = prompts_per_round
        self.max_candidates_per_example, self.patience = max_candidates_per_example, patience
        self.guard = guard

    def reads(self) -> list[Input]:
        """The teacher, and what its guard compares it with."""
        guarded = self.guard.reads() if self.guard is not None else []
        return [Input("teacher", self.teacher, Kind.TEACHER), *guarded]

    def run(self, context: StageContext) -> dict[str, Any]:
        """Write rounds until there is enough."""
        journal = Journal(context.directory, [EXAMPLES, REJECTIONS])
        examples = read_records(context.directory / EXAMPLES, Example)
        context.progress.start(self.num_examples or self.num_prompts, self._done(len(examples), len(journal.commits)))
        watch = self._watch(context, journal)
        if self._missing(len(examples), len(journal.commits)):
            with closing(context.backend()) as backend:
                self._write_rounds(context, journal, _RoundWriter(self, context, Authors(backend), examples), watch)
        rejections = read_records(context.directory / REJECTIONS, Rejection)
        return {
            "accepted": len(examples),
            "rejected": dict(Counter(rejection.reason for rejection in rejections).most_common()),
            "diversity": diversity([example.instruction for example in examples]),
            **({"collapse": watch.sentences()} if watch is not None else {}),
        }

    def _watch(self, context: StageContext, journal: Journal) -> CollapseWatch | None:
        if self.guard is None:
            return None
        return CollapseWatch(self.guard, context, journal, self.synthesizer, self.threshold)

    @property
    def threshold(self) -> float:
        """ROUGE-L F1 above which an instruction is a near duplicate; at 1 only the same text is one."""
        return self.max_similarity if self.max_similarity is not None else 1.0

    def _write_rounds(
        self, context: StageContext, journal: Journal, writer: "_RoundWriter", watch: CollapseWatch | None
    ) -> None:
        examples = writer.examples
        while self._missing(len(examples), len(journal.commits)):
            self._check_limits(context, journal)
            writer.collapsed = watch is not None and watch.alarmed
            accepted, rejected = writer.write(len(journal.commits))
            examples += accepted
            last = not self._missing(len(examples), len(journal.commits) + 1)
            journal.commit(
                {EXAMPLES: accepted, REJECTIONS: rejected},
                candidates=len(accepted) + len(rejected),
                accepted=len(accepted),
                **(watch.notes(accepted, rejected, last) if watch is not None else {}),
            )
            context.progress.advance(self._done(len(examples), len(journal.commits)) - context.progress.done)

    def _done(self, num_examples: int, num_rounds: int) -> int:
        if self.num_prompts is not None:
            return min(num_rounds * self.prompts_per_round, self.num_prompts)
        return num_examples

    def _missing(self, num_examples: int, num_rounds: int) -> int:
        return (self.num_prompts or self.num_examples or 0) - self._done(num_examples, num_rounds)

    def _check_limits(self, context: StageContext, journal: Journal) -> None:
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
            "kept; raise the limit to go on, or mend the prompt, the sampling or the filters under another --run"
        )


@dataclasses.dataclass
class _Candidate:
    """A completion on its way to an example."""

    id: str
    author: ModelSource
    prompt_id: str
    prompt: str = ""
    seed_ids: tuple[str, ...] = ()
    completion: Completion = Completion(text="", finished=False, num_tokens=0)
    instruction: str = ""


class _RoundWriter:
    """Writes one round after another; holds what the rounds share."""

    def __init__(
        self,
        stage: Synthesize,
        context: StageContext,
        authors: Authors,
        examples: list[Example],
    ) -> None:
        self.stage, self.context, self.authors, self.examples = stage, context, authors, examples
        self.teacher = context.source(context.teacher(), "teacher")
        falls_back = FALLBACK_TEACHER in context.inputs
        self.fallback = context.source(context.teacher(), FALLBACK_TEACHER) if falls_back else self.teacher
        self.collapsed = False
        """Whether the guard has raised its alarm."""
        self.seeds = context.data.read("seeds")
        self.index = NearDuplicateIndex(stage.threshold)
        for example in [*self.seeds, *examples]:
            self.index.add(example.id, example.instruction)
        self.held_out: set[str] = set()
        if stage.decontaminate:
            roles = ["reference", "test"] if context.data.test else ["reference"]
            self.held_out = {normalized(e.instruction) for role in roles for e in context.data.read(role)}

    def write(self, number: int) -> tuple[list[Example], list[Rejection]]:
        """The examples and rejections of this round."""
        rejections: list[Rejection] = []
        candidates = list(self._instructions(number, rejections))
        accepted = []
        for candidate, response in zip(candidates, self._responses(candidates), strict=True):
            try:
                if response is None:
                    raise Rejected("too long for the context", "no room for a response")
                self.stage.response_filter.check(response.text, response.finished)
            except Rejected as error:
                rejections.append(self._rejection(candidate, number, error, candidate.instruction))
                continue
            accepted.append(self._example(candidate, number, response.text))
        return accepted, rejections

    def _instructions(self, number: int, rejections: list[Rejection]) -> Iterator[_Candidate]:
        """Candidates with an instruction that passes; the others become rejections."""
        room = self.stage.num_examples - len(self.examples) if self.stage.num_examples is not None else None
        passed = 0
        for candidate in self._candidates(number, rejections):
            try:
                candidate.instruction = self._checked_instruction(candidate)
                if room is not None and passed >= room:
                    raise Rejected("surplus", "enough were accepted before it")
            except Rejected as error:
                rejections.append(self._rejection(candidate, number, error, candidate.completion.text))
                continue
            passed += 1
            self.index.add(candidate.id, candidate.instruction)
            yield candidate

    def _checked_instruction(self, candidate: _Candidate) -> str:
        instruction = self.stage.synthesizer.instruction(candidate.completion.text)
        self.stage.instruction_filter.check(instruction)
        if normalized(instruction) in self.held_out:
            raise Rejected("held out", "the instruction stands in the reference or test set")
        match = self.index.find(instruction)
        if match is not None:
            raise Rejected("near duplicate", f"ROUGE-L {match.similarity:.3f} with {match.id}: {match.text}")
        return instruction

    def _candidates(self, number: int, rejections: list[Rejection]) -> list[_Candidate]:
        """All completions of this round's prompts."""
        first = number * self.stage.prompts_per_round
        last = first + self.stage.prompts_per_round
        if self.stage.num_prompts is not None:
            last = min(last, self.stage.num_prompts)
        candidates: list[_Candidate] = []
        for index in range(first, last):
            prompt_id = f"{self.context.name}-{self.context.iteration}-{index:05d}"
            author = self._author(index)
            prompt, seed_ids = self._prompt(index, author)
            if prompt:
                ids = [f"{prompt_id}-{sample}" for sample in range(self.stage.samples_per_prompt)]
                candidates += [_Candidate(id_, author, prompt_id, prompt, seed_ids) for id_ in ids]
            else:
                error = Rejected("prompt too long", "not even one shot fits the teacher's context")
                rejections.append(self._rejection(_Candidate(prompt_id, author, prompt_id), number, error, ""))
        requests = [self._request(candidate.prompt, candidate.id, "instruction") for candidate in candidates]
        authors = [candidate.author for candidate in candidates]
        completions = self.authors.generate(authors, requests, self.stage.instruction_sampling)
        for candidate, completion in zip(candidates, completions, strict=True):
            candidate.completion = completion
        return candidates

    def _author(self, index: int) -> ModelSource:
        """Who writes and answers the prompt of this number."""
        guard = self.stage.guard
        return self.fallback if self.collapsed and guard is not None and guard.replaces(index) else self.teacher

    def _prompt(self, index: int, author: ModelSource) -> tuple[str, tuple[str, ...]]:
        """The prompt of this number, with fewer shots where all of them do not fit; empty if none does."""
        num_shots: int | None = None
        while num_shots is None or num_shots > 0:
            rng = random.Random(stable_seed(self.context.seed, "prompt", index))
            prompt, seed_ids = self.stage.synthesizer.prompt(rng, self.seeds, self.examples, num_shots)
            if self.authors.fits(author, _turn(prompt), self.stage.instruction_sampling):
                return prompt, seed_ids
            num_shots = len(seed_ids) - 1
        return "", ()

    def _responses(self, candidates: Sequence[_Candidate]) -> list[Completion | None]:
        """The teacher's answer to each instruction; none where there is no room for it."""
        fitting = [
            candidate
            for candidate in candidates
            if self.authors.fits(candidate.author, _turn(candidate.instruction), self.stage.response_sampling)
        ]
        requests = [self._request(candidate.instruction, candidate.id, "response") for candidate in fitting]
        authors = [candidate.author for candidate in fitting]
        answers = self.authors.generate(authors, requests, self.stage.response_sampling)
        by_id = {candidate.id: answer for candidate, answer in zip(fitting, answers, strict=True)}
        return [by_id.get(candidate.id) for candidate in candidates]

    def _request(self, text: str, id_: str, what: str) -> Request:
        return Request(messages=_turn(text), seed=stable_seed(self.context.seed, what, id_))

    def _rejection(self, candidate: _Candidate, number: int, error: Rejected, text: str) -> Rejection:
        return Rejection(
            id=candidate.id,
            reason=error.reason,
            detail=error.detail,
            text=text,
            prompt_id=candidate.prompt_id,
            round=number,
        )

    def _example(self, candidate: _Candidate, number: int, response: str) -> Example:
        return Example(
            id=candidate.id,
            instruction=candidate.instruction,
            response=response,
            prompt_id=candidate.prompt_id,
            prompt=candidate.prompt,
            completion=candidate.completion.text,
            completion_finished=candidate.completion.finished,
            teacher=signature(candidate.author),
            seed_ids=candidate.seed_ids,
            round=number,
        )


def _turn(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]
