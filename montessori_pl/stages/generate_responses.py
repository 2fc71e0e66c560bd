"""GenerateResponses: given instructions are answered, by one teacher, several, a routed one, or the student."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from montessori_pl.bounds import Count, PositiveInt, Text, Texts
from montessori_pl.data.records import Example, Rejection, read_records, stable_seed
from montessori_pl.estimates.context import EstimateContext
from montessori_pl.estimates.estimate import ExpectedRecords, StageEstimate
from montessori_pl.estimates.preview import PreviewedSample, StagePreview
from montessori_pl.estimates.requests import SHORT
from montessori_pl.generation.base import Completion, Request, Sampling
from montessori_pl.routing import ConstantRouter, Prompt, RouteLimits, load_router
from montessori_pl.run_directory.journal import Journal
from montessori_pl.stages.base import EXAMPLES, REJECTIONS, ROUTING, Input, Kind, Stage, StageContext, StageError
from montessori_pl.stages.generating.generators import Generator, Generators, so_far, student, teacher, usage_metrics
from montessori_pl.synthesis.diversity import diversity, diversity_metrics
from montessori_pl.synthesis.filters import Rejected, ResponseFilter
from montessori_pl.synthesis.repetition import TeacherRepetition

ASSUMED_ANSWERS = "Answers are assumed to be as long as the responses that are there, or as the seeds'."


class GenerateResponses(Stage):
    """Let models answer instructions that are there already.

    The answers to one instruction form a group, as the completions of one prompt do: scored, they are paired with each
    other, and a model can be aligned on how it answers.

    Args:
        instructions: the stage whose instructions are answered; the responses beside them are not looked at.
        teachers: who answers: the stage whose teacher it is, `latest`, `base`, or a teacher of the pool; of several,
            each answers every instruction.
        routing: the stage that chose among these teachers; each instruction then goes to one of them.
        limits: with `routing`, largest shares of teachers, and a budget; null takes the router's first choice.
        student: the stage whose student answers instead; `latest`, or `base`.
        samples: answers of each to each instruction.
        sampling: how they are drawn; the defaults are the paper's.
        response_filter: which answers are kept.
        instructions_per_batch: instructions between two commits: what a kill can cost.
        first_iteration_only: whether later iterations go without this stage.
    """

    produces = Kind.EXAMPLES
    artifacts = (EXAMPLES, REJECTIONS)

    def __init__(
        self,
        instructions: Text,
        teachers: Text | Texts | None = None,
        routing: Text | None = None,
        limits: RouteLimits | None = None,
        student: Text | None = None,
        samples: Count = 1,
        sampling: Sampling = Sampling(temperature=0.6, top_p=0.9, presence_penalty=1.0),
        response_filter: ResponseFilter = ResponseFilter(),
        instructions_per_batch: PositiveInt = 64,
        first_iteration_only: bool = False,
    ) -> None:
        super().__init__(first_iteration_only)
        if (teachers is None) == (student is None):
            raise ValueError(
                f"GenerateResponses needs either teachers or a student, found teachers {teachers} and student {student}"
            )
        if (routing is not None and teachers is None) or (limits is not None and routing is None):
            raise ValueError("routing needs the teachers it chooses from (setting teachers), and limits need a routing")
        self.uses = ("generation", "student" if student is not None else "teacher")
        self.instructions, self.student = instructions, student
        self.teachers = [teachers] if isinstance(teachers, str) else teachers or []
        self.routing, self.limits = routing, limits
        self.samples, self.sampling, self.response_filter = samples, sampling, response_filter
        self.instructions_per_batch = instructions_per_batch

    def reads(self) -> list[Input]:
        """The instructions, and who answers."""
        asked = [Input(f"teachers.{name}", name, Kind.TEACHER) for name in self.teachers]
        if self.student is not None:
            asked.append(Input("student", self.student, Kind.STUDENT))
        if self.routing is not None:
            asked.append(Input("routing", self.routing, Kind.ROUTING))
        return [Input("instructions", self.instructions, Kind.EXAMPLES), *asked]

    def teacher_names(self) -> list[str]:
        """The teachers."""
        return self.teachers

    def check_inputs(self, context: EstimateContext) -> None:
        """Whether a short instruction has room in each model that is asked."""
        asked = [context.asked(name) for name in self.teachers] or [context.answering()]
        for one in asked:
            one.check_room([SHORT], "sampling.max_tokens", self.sampling.max_tokens)

    def estimate(self, context: EstimateContext) -> StageEstimate:
        """The answers that are left; a router is expected to send as many instructions to each teacher."""
        given, some = context.expected_input("instructions"), context.expected_input("instructions").some()
        if self.student is not None:
            asked = {"answers of the student": context.answering()}
        else:
            asked = {f"answers of {name}": context.asked(name) for name in self.teachers}
        left = max(0, given.instructions - len(context.commits) * self.instructions_per_batch) * self.samples
        share = len(asked) if self.routing is not None else 1
        samples = context.known or [_answered(example) for example in some]
        # Before they are answered, only the instructions can be measured.
        texts = [one.response for one in samples if one.response] or [
            one.response for one in context.data.read("seed_tasks")
        ]
        conversations = [example.messages()[:-1] for example in some]
        work = [
            one.work(what, round(left / share), given.at_most(left), conversations, texts, self.sampling.max_tokens)
            for what, one in asked.items()
        ]
        count = given.instructions * self.samples * len(asked) // share
        return StageEstimate(
            work=work,
            expected_output=ExpectedRecords(
                count=count,
                upper_bound=given.at_most(count),
                prompts=given.instructions,
                instructions=given.instructions,
                samples=samples,
            ),
            prompts=[next(iter(asked.values())).shown(messages) for messages in conversations],
            notes=[] if context.known else [ASSUMED_ANSWERS],
        )

    def preview(self, context: StageContext, num_prompts: int) -> StagePreview:
        """Answers to the first instructions; to those of seed tasks, where they are not known yet."""
        known = context.inputs["instructions"] is not None
        asked = _asked(context.examples("instructions") if known else context.data.read("seed_tasks"))[:num_prompts]
        writers = self._generators(context)
        routed = self.routing is not None and context.inputs["routing"] is not None
        routes = self._routes(context, writers, asked) if routed else [list(writers)] * len(asked)
        questions = self._questions(asked, routes, writers, 1)
        with Generators(context) as generators:
            answers = self._answers(context, generators, questions)
            problems = {one.id: one for one in self._checked(questions, answers, 0)[1]}
            samples = [
                PreviewedSample(
                    prompt=one.generator.shown(one.asked.messages()[:-1]),
                    completion=answers[one.id].text if one.id in answers else "",
                    reason=problems[one.id].reason if one.id in problems else "",
                    detail=problems[one.id].detail if one.id in problems else "",
                    instruction=one.asked.instruction,
                )
                for one in questions
            ]
            return StagePreview(samples=samples, usage=generators.take_usage())

    def input_content(self, setting: str, directory: Path) -> str | None:
        """Routers that send all instructions to the same teacher are worth the same."""
        if setting != "routing" or self.limits is not None:
            return None
        router = load_router(directory / ROUTING)
        return f"always {router.best}" if isinstance(router, ConstantRouter) else None

    def run(self, context: StageContext) -> dict[str, Any]:
        """Answer batch by batch what has not been answered."""
        journal = Journal(context.directory, [EXAMPLES, REJECTIONS])
        asked = _asked(context.examples("instructions"))
        done = min(len(journal.commits) * self.instructions_per_batch, len(asked))
        context.progress.start(len(asked), done, **so_far(journal.commits))
        if done < len(asked):
            with Generators(context) as generators:
                self._answer_rest(context, journal, generators, asked, done)
        return self._metrics(context, journal)

    def _answer_rest(
        self, context: StageContext, journal: Journal, generators: Generators, asked: Sequence[Example], done: int
    ) -> None:
        """Commit the answers to the instructions from this one on, batch by batch."""
        writers = self._generators(context)
        routes = self._routes(context, writers, asked)
        for start in range(done, len(asked), self.instructions_per_batch):
            round_ = slice(start, start + self.instructions_per_batch)
            questions = self._questions(asked[round_], routes[round_], writers, self.samples)
            answers = self._answers(context, generators, questions)
            accepted, rejected = self._checked(questions, answers, len(journal.commits))
            counts = {"candidates": len(accepted) + len(rejected), "accepted": len(accepted)}
            journal.commit({EXAMPLES: accepted, REJECTIONS: rejected}, **counts, **generators.take_usage())
            context.progress.advance(len(asked[round_]), **so_far(journal.commits))

    def _metrics(self, context: StageContext, journal: Journal) -> dict[str, Any]:
        """Whose answers were accepted and why others were not, what they took, and how varied they are."""
        examples = read_records(context.directory / EXAMPLES, Example)
        rejections = read_records(context.directory / REJECTIONS, Rejection)
        repetition = TeacherRepetition.of(examples)
        return {
            "accepted": len(examples),
            "rejected": dict(Counter(rejection.reason for rejection in rejections).most_common()),
            "teachers": dict(Counter(example.teacher for example in examples)),
            **usage_metrics(journal.commits),
            **diversity_metrics(examples),
            "diversity": diversity(list(dict.fromkeys(example.instruction for example in examples))),
            "repetition": repetition.metrics(),
            "warnings": repetition.warnings(),
        }

    def _generators(self, context: StageContext) -> dict[str, Generator]:
        """Who answers, by the name that stands in the ids of the answers."""
        if self.student is not None:
            return {"student": student(context, "student")}
        return {name: teacher(context, f"teachers.{name}", name) for name in self.teachers}

    def _routes(
        self, context: StageContext, writers: Mapping[str, Generator], asked: Sequence[Example]
    ) -> list[list[str]]:
        """Who answers each instruction, by the names of `_generators`."""
        if self.routing is None:
            return [list(writers)] * len(asked)
        router = load_router(context.input_dir("routing") / ROUTING)
        names = {generator.name: name for name, generator in writers.items()}
        if strangers := [name for name in router.teachers if name not in names]:
            raise StageError(
                f"{context.key}: stage {self.routing!r} chooses among {', '.join(router.teachers)}, and `teachers` "
                f"lacks {', '.join(strangers)}; name all of them"
            )
        try:
            chosen = router.route_prompts([Prompt.of(one) for one in asked], self.limits)
        except ValueError as error:
            raise StageError(f"{context.key}: {error}") from error
        return [[names[name]] for name in chosen]

    def _questions(
        self,
        asked: Sequence[Example],
        routes: Sequence[Sequence[str]],
        writers: Mapping[str, Generator],
        samples: int,
    ) -> list["_Question"]:
        """Each instruction for each of those who answer it, so many times."""
        return [
            _Question(f"{one.id}-{name}-{sample}", one, writers[name])
            for one, names in zip(asked, routes, strict=True)
            for name in names
            for sample in range(samples)
        ]

    def _answers(
        self, context: StageContext, generators: Generators, questions: Sequence["_Question"]
    ) -> dict[str, Completion]:
        """The answers by the question's id; there is none to a question that leaves no room for one."""
        fitting = {
            q.id
            for generator in dict.fromkeys(q.generator for q in questions)  # one after another: each has to be loaded
            for q in questions
            if q.generator == generator and generators.fits(generator, q.asked.messages()[:-1], self.sampling)
        }
        requested = [question for question in questions if question.id in fitting]
        requests = [
            Request(messages=q.asked.messages()[:-1], seed=stable_seed(context.seed, "response", q.id))
            for q in requested
        ]
        answers = generators.generate([question.generator for question in requested], requests, self.sampling)
        return {question.id: answer for question, answer in zip(requested, answers, strict=True)}

    def _checked(
        self, questions: Sequence["_Question"], answers: Mapping[str, Completion], number: int
    ) -> tuple[list[Example], list[Rejection]]:
        """The answers that the filter keeps, and the others with the reason, both in the order of the questions."""
        accepted, rejected = [], []
        for question in questions:
            answer = answers.get(question.id)
            try:
                if answer is None:
                    raise Rejected("too long for the context", "no room for a response")
                text = self.response_filter.kept(answer.text, answer.finished)
            except Rejected as error:
                rejected.append(question.rejection(error, answer.text if answer else "", number))
            else:
                accepted.append(question.example(text, answer, number))
        return accepted, rejected


def _answered(example: Example) -> Example:
    """As if the response that is there were the answer."""
    return dataclasses.replace(example, prompt_id=example.id, prompt=example.instruction, completion=example.response)


def _asked(examples: Sequence[Example]) -> list[Example]:
    """Each instruction once: a pool of responses holds it as often as it has been answered."""
    first: dict[Prompt, Example] = {}
    for example in examples:
        first.setdefault(Prompt.of(example), example)
    return list(first.values())


@dataclasses.dataclass(frozen=True)
class _Question:
    """An instruction on its way to an answer."""

    id: str
    asked: Example
    generator: Generator

    def example(self, text: str, answer: Completion, number: int) -> Example:
        return Example(
            id=self.id,
            instruction=self.asked.instruction,
            response=text,
            system=self.asked.system,
            history=self.asked.history,
            prompt_id=self.asked.id,
            prompt=self.asked.instruction,
            completion=answer.text,
            completion_finished=answer.finished,
            completion_tokens=answer.tokens,
            response_tokens=answer.tokens_of(text),
            teacher=self.generator.name,
            seed_task_ids=(self.asked.id,),
            batch=number,
        )

    def rejection(self, error: Rejected, text: str, number: int) -> Rejection:
        return Rejection(
            id=self.id, reason=error.reason, detail=error.detail, text=text, prompt_id=self.asked.id, batch=number
        )
