"""Answer: instructions that are there already are answered, by one teacher, by several, or by the student."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from montessori_pl.generation.base import Request, Sampling
from montessori_pl.planning import Expected, Plan
from montessori_pl.records import Example, Rejection, read_records, stable_seed
from montessori_pl.stages.authors import Author, Authors, student, teacher, usage_metrics
from montessori_pl.stages.base import Input, Kind, Stage, StageContext
from montessori_pl.stages.plan import PlanContext
from montessori_pl.stages.writing import EXAMPLES, REJECTIONS
from montessori_pl.synthesis.diversity import diversity
from montessori_pl.synthesis.filters import Rejected, ResponseFilter
from montessori_pl.workspace import Journal


class Answer(Stage):
    """Let models answer instructions that are there already.

    The answers to one instruction form a group, as the completions of one prompt do: scored, they are paired with each
    other, and a model can be aligned on how it answers.

    Args:
        instructions: the stage whose instructions are answered; the responses beside them are not looked at.
        teachers: who answers: the stage whose teacher it is, `latest`, `base`, or a teacher of the pool; of several,
            each answers every instruction.
        student: the stage whose student answers instead; `latest`, or `base`.
        samples: answers of each to each instruction.
        sampling: how they are drawn; the defaults are the paper's.
        response_filter: which answers are kept.
        instructions_per_round: instructions between two commits: what a kill can cost.
        first_iteration_only: whether later iterations go without this stage.
    """

    produces = Kind.EXAMPLES
    artifacts = (EXAMPLES, REJECTIONS)

    def __init__(
        self,
        instructions: str,
        teachers: str | list[str] | None = None,
        student: str | None = None,
        samples: int = 1,
        sampling: Sampling = Sampling(temperature=0.6, top_p=0.9, presence_penalty=1.0),
        response_filter: ResponseFilter = ResponseFilter(),
        instructions_per_round: int = 64,
        first_iteration_only: bool = False,
    ) -> None:
        super().__init__(first_iteration_only)
        if (teachers is None) == (student is None):
            raise ValueError(
                f"Answer needs either teachers or a student, found teachers {teachers} and student {student}"
            )
        if min(samples, instructions_per_round) < 1:
            raise ValueError("samples and instructions_per_round must be at least 1")
        self.uses = ("generation", "student" if student is not None else "teacher")
        self.instructions, self.student = instructions, student
        self.teachers = [teachers] if isinstance(teachers, str) else teachers or []
        if len(set(self.teachers)) < len(self.teachers):
            raise ValueError(f"teachers names one twice: {', '.join(self.teachers)}")
        self.samples, self.sampling, self.response_filter = samples, sampling, response_filter
        self.instructions_per_round = instructions_per_round

    def reads(self) -> list[Input]:
        """The instructions, and who answers."""
        asked = [Input(f"teachers.{name}", name, Kind.TEACHER) for name in self.teachers]
        if self.student is not None:
            asked.append(Input("student", self.student, Kind.STUDENT))
        return [Input("instructions", self.instructions, Kind.EXAMPLES), *asked]

    def asks(self) -> list[str]:
        """The teachers."""
        return self.teachers

    def plan(self, context: PlanContext) -> Plan:
        """The answers that are left; they are expected to be as long as the responses that are there."""
        given = context.given("instructions")
        left = max(0, given.instructions - len(context.commits) * self.instructions_per_round) * self.samples
        some = given.some()
        like = context.known or [_answered(example) for example in some]
        if self.student is not None:
            asked = {"answers of the student": context.answering()}
        else:
            asked = {f"answers of {name}": context.asked(name) for name in self.teachers}
        work = [
            one.work(
                what,
                left,
                given.at_most(left),
                [example.messages()[:-1] for example in some],
                [example.response for example in like],
                self.sampling.max_tokens,
            )
            for what, one in asked.items()
        ]
        count = given.instructions * self.samples * len(asked)
        leaves = Expected(
            count=count,
            most=given.at_most(count),
            prompts=given.instructions,
            instructions=given.instructions,
            like=like,
        )
        shown = [one.shown(example.messages()[:-1]) for one in asked.values() for example in some]
        return Plan(work=work, leaves=leaves, prompts=shown)

    def run(self, context: StageContext) -> dict[str, Any]:
        """Answer round by round what has not been answered."""
        directory = context.inputs["instructions"]
        assert directory is not None
        journal = Journal(context.directory, [EXAMPLES, REJECTIONS])
        asked = _asked(read_records(directory / EXAMPLES, Example))
        done = len(journal.commits) * self.instructions_per_round
        context.progress.start(len(asked), min(done, len(asked)))
        if done < len(asked):
            with Authors(context) as authors:
                self._answer(context, journal, authors, asked)
        examples = read_records(context.directory / EXAMPLES, Example)
        rejections = read_records(context.directory / REJECTIONS, Rejection)
        return {
            "accepted": len(examples),
            "rejected": dict(Counter(rejection.reason for rejection in rejections).most_common()),
            "teachers": dict(Counter(example.teacher for example in examples)),
            **usage_metrics(journal.commits),
            "diversity": diversity(list(dict.fromkeys(example.instruction for example in examples))),
        }

    def _answer(self, context: StageContext, journal: Journal, authors: Authors, asked: Sequence[Example]) -> None:
        writers = self._authors(context)
        for start in range(len(journal.commits) * self.instructions_per_round, len(asked), self.instructions_per_round):
            some = asked[start : start + self.instructions_per_round]
            number = len(journal.commits)
            accepted, rejected = self._round(context, authors, list(_questions(some, writers, self.samples)), number)
            journal.commit({EXAMPLES: accepted, REJECTIONS: rejected}, **authors.take_usage())
            context.progress.advance(len(some))

    def _authors(self, context: StageContext) -> dict[str, Author]:
        """Who answers, by the name that begins the ids of the answers."""
        if self.student is not None:
            return {"student": student(context, "student")}
        return {name: teacher(context, f"teachers.{name}", name) for name in self.teachers}

    def _round(
        self, context: StageContext, authors: Authors, questions: Sequence["_Question"], number: int
    ) -> tuple[list[Example], list[Rejection]]:
        fitting = {
            q.id
            for author in dict.fromkeys(q.author for q in questions)  # one after another: each has to be loaded
            for q in questions
            if q.author == author and authors.fits(author, q.asked.messages()[:-1], self.sampling)
        }
        requested = [question for question in questions if question.id in fitting]
        requests = [
            Request(messages=q.asked.messages()[:-1], seed=stable_seed(context.seed, "response", q.id))
            for q in requested
        ]
        answers = authors.generate([question.author for question in requested], requests, self.sampling)
        by_id = {question.id: answer for question, answer in zip(requested, answers, strict=True)}
        accepted, rejected = [], []
        for question in questions:
            answer = by_id.get(question.id)
            try:
                if answer is None:
                    raise Rejected("too long for the context", "no room for a response")
                self.response_filter.check(answer.text, answer.finished)
            except Rejected as error:
                rejected.append(question.rejection(error, answer.text if answer else "", number))
            else:
                accepted.append(question.example(answer.text, answer.finished, number))
        return accepted, rejected


def _answered(example: Example) -> Example:
    """As if the response that is there were the answer."""
    return dataclasses.replace(example, prompt_id=example.id, prompt=example.instruction, completion=example.response)


def _asked(examples: Sequence[Example]) -> list[Example]:
    """Each instruction once: a pool of responses holds it as often as it has been answered."""
    first: dict[tuple[str, str], Example] = {}
    for example in examples:
        first.setdefault((example.system, example.instruction), example)
    return list(first.values())


@dataclasses.dataclass(frozen=True)
class _Question:
    """An instruction on its way to an answer."""

    id: str
    asked: Example
    author: Author

    def example(self, text: str, finished: bool, number: int) -> Example:
        return Example(
            id=self.id,
            instruction=self.asked.instruction,
            response=text,
            system=self.asked.system,
            prompt_id=self.asked.id,
            prompt=self.asked.instruction,
            completion=text,
            completion_finished=finished,
            teacher=self.author.name,
            seed_ids=(self.asked.id,),
            round=number,
        )

    def rejection(self, error: Rejected, text: str, number: int) -> Rejection:
        return Rejection(
            id=self.id, reason=error.reason, detail=error.detail, text=text, prompt_id=self.asked.id, round=number
        )


def _questions(asked: Sequence[Example], authors: dict[str, Author], samples: int) -> Iterator[_Question]:
    for one in asked:
        for name, author in authors.items():
            for sample in range(samples):
                yield _Question(f"{one.id}-{name}-{sample}", one, author)
