"""MT-Bench: questions of two turns, each answer rated by a judge, driven from the files of FastChat."""

import dataclasses
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from montessori_pl.batches.sources import DataSources
from montessori_pl.bounds import Count, PositiveInt, Text
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.files import read_rows
from montessori_pl.data.reasoning import without_reasoning
from montessori_pl.data.records import Message, Record, Turn, conversation, stable_seed
from montessori_pl.data.template_text import chat_template_file
from montessori_pl.estimates.estimate import Work
from montessori_pl.estimates.requests import RequestEstimator
from montessori_pl.evaluation.asking import BatchedWork, Judge, ask, kept_records, loaded
from montessori_pl.evaluation.base import Evaluator
from montessori_pl.evaluation.judge_prompts import fill_in
from montessori_pl.generation.base import GenerationBackend, Sampling
from montessori_pl.models.loading import ModelSource
from montessori_pl.run_directory.fingerprint import Files
from montessori_pl.stats.bootstrap import bootstrap_rows, percentile_interval
from montessori_pl.stats.means import MIN_VALUES

QUESTIONS, PROMPTS, REFERENCES = "question.jsonl", "judge_prompts.jsonl", "reference_answer*.jsonl"
"""Files of `data/mt_bench` of FastChat; the last may also lie in a directory `reference_answer`."""
TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
"""At which answers are drawn, by category; 0 in the others."""
WITH_REFERENCE = ("math", "reasoning", "coding")
"""Categories whose answers are judged beside a reference."""
TURNS, ANSWERS, RATINGS = (1, 2), "conversations.jsonl", "ratings.jsonl"
_RATING = re.compile(r"\[\[([0-9]+(?:\.[0-9]+)?)\]\]")


@dataclasses.dataclass(frozen=True)
class Question:
    """A question, with what it is judged by."""

    id: str
    category: str
    turns: tuple[str, str]
    """What the user says first, and then."""
    references: tuple[str, str] | None
    """Right answers to both, where the category has them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers(Record):
    """What the student answers to a question; `id` is the question's."""

    turns: tuple[str | None, str | None]
    """Its answers in both turns; none where there is no room for one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "turns", tuple(self.turns))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ratings(Record):
    """What the judge says of both answers to a question; `id` is the question's."""

    category: str
    """The question's."""
    ratings: tuple[float | None, float | None]
    """From 1 to 10; none where the judgement cannot be read, or there is no answer."""
    texts: tuple[str, str]
    """The judgements; empty where there is no answer, and the judge was not asked."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratings", tuple(self.ratings))
        object.__setattr__(self, "texts", tuple(self.texts))


class MTBench(Evaluator):
    """The mean rating of answers in conversations of two turns, from 1 to 10 (arXiv 2306.05685).

    Questions, judge prompts and reference answers come from files in FastChat's form. Answers are drawn at its
    temperatures. A judgement without `[[rating]]` is left out and counted; it is not zero. The same holds for an answer
    that has no room in the student's context.

    Args:
        data_dir: where `question.jsonl`, `judge_prompts.jsonl` and `reference_answer*.jsonl` lie.
        judge: the model that judges.
        engine: the engine that runs the judge; null takes the recipe's.
        sampling: how judgements are drawn.
        max_tokens: longest answer in tokens.
        questions_per_batch: questions that are answered or judged between two commits: what a kill can cost.
    """

    artifacts: ClassVar[tuple[str, ...]] = (ANSWERS, RATINGS)
    files: ClassVar[Files] = {"data_dir": Path, "judge.chat_template": chat_template_file}
    fingerprint_excludes: ClassVar[tuple[str, ...]] = ("questions_per_batch",)

    def __init__(
        self,
        data_dir: Text,
        judge: ModelSource,
        engine: GenerationBackend | None = None,
        sampling: Sampling = Sampling(temperature=0.0, max_tokens=2048),
        max_tokens: Count = 1024,
        questions_per_batch: PositiveInt = 80,
    ) -> None:
        self.data_dir, self.judge = Path(data_dir), Judge(judge, engine, sampling)
        self.max_tokens, self.questions_per_batch = max_tokens, questions_per_batch

    def check_environment(self) -> None:
        """The judge's engine and model."""
        self.judge.check_environment()

    def check_inputs(self, data: DataSources, chat_template: ChatTemplate) -> None:
        """The files, and whether any first question leaves room for an answer."""
        asked = [_asked(question, []) for question in read_questions(self.data_dir)]
        read_prompts(self.data_dir)
        RequestEstimator.of_template(chat_template).check_room(asked, "max_tokens", self.max_tokens)

    def estimate(
        self, data: DataSources, chat_template: ChatTemplate, backend: Callable[[], GenerationBackend]
    ) -> list[Work]:
        """Answers and judgements that are not there yet, as long as they may be; in prompts, references are answers."""
        questions = read_questions(self.data_dir)
        asked, judged = [], []
        for question in questions:
            said = Answers(id=question.id, turns=question.references or ("", ""))
            asked += [_asked(question, said.turns[: turn - 1]) for turn in TURNS]
            judged += [self._judge_messages(question, said, turn) for turn in TURNS]
        left = [
            len(TURNS) * (len(questions) - len(kept_records(self.directory, name, kind)))
            for name, kind in ((ANSWERS, Answers), (RATINGS, Ratings))
        ]
        student, judge = RequestEstimator.of_template(chat_template), self.judge.estimator(backend, self.requests)
        return [
            student.work("answers", left[0], left[0], asked, None, self.max_tokens),
            judge.work("judgements", left[1], left[1], judged, None, self.judge.sampling.max_tokens),
        ]

    def evaluate(
        self, student: ModelSource, data: DataSources, backend: Callable[[], GenerationBackend]
    ) -> dict[str, float]:
        """`mt_bench` with its interval over questions, by turn and by category.

        Raises:
            ValueError: no question leaves room for an answer, or no judgement can be read.
        """
        questions = read_questions(self.data_dir)
        work = BatchedWork(self.directory, [ANSWERS, RATINGS], self.questions_per_batch)
        answers = work.records(ANSWERS, Answers, questions, lambda: loaded(backend, student), self._answer)
        if all(text is None for one in answers for text in one.turns):
            raise ValueError(
                f"no question of {self.data_dir} leaves room for an answer of max_tokens {self.max_tokens} in the "
                "student's context; lower max_tokens, or take a student with a longer context"
            )
        ratings = work.records(
            RATINGS,
            Ratings,
            list(zip(questions, answers, strict=True)),
            lambda: self.judge.loaded(backend, self.requests),
            self._rate,
        )
        if all(rating is None for one in ratings for rating in one.ratings):
            said = next((text for one in ratings for text in one.texts if text), "")
            raise ValueError(
                f"the judge {self.judge.source.backbone} gave no answer a rating [[1]] to [[10]] that can be read "
                f"within sampling.max_tokens, found, for example, {said[-200:]!r}"
            )
        return _metrics(answers, ratings)

    @cached_property
    def _prompts(self) -> dict[str, Mapping[str, Any]]:
        return read_prompts(self.data_dir)

    def _answer(self, questions: Sequence[Question], engine: GenerationBackend) -> list[Answers]:
        """Both turns of some questions: the first of all, then the second."""
        said: list[list[str | None]] = [[] for _ in questions]
        for turn in TURNS:
            for temperature in sorted({TEMPERATURES.get(one.category, 0.0) for one in questions}):
                places = [
                    n
                    for n, one in enumerate(questions)
                    if TEMPERATURES.get(one.category, 0.0) == temperature and None not in said[n]
                ]
                completions = ask(
                    engine,
                    [_asked(questions[place], said[place]) for place in places],
                    Sampling(temperature=temperature, top_p=1.0, max_tokens=self.max_tokens),
                    [stable_seed("mt_bench", questions[place].id, turn) for place in places],
                )
                for place, completion in zip(places, completions, strict=True):
                    said[place].append(completion.text if completion is not None else None)
        # Where the first answer has no room, there is no second one.
        both = [(texts[0], texts[1] if len(texts) > 1 else None) for texts in said]
        return [Answers(id=one.id, turns=texts) for one, texts in zip(questions, both, strict=True)]

    def _rate(self, items: Sequence[tuple[Question, Answers]], engine: GenerationBackend) -> list[Ratings]:
        answered = [
            (question, answers, turn)
            for question, answers in items
            for turn in TURNS
            if answers.turns[turn - 1] is not None
        ]
        asked = [self._judge_messages(*one) for one in answered]
        seeds = [stable_seed("judge", question.id, turn) for question, _, turn in answered]
        completions = ask(engine, asked, self.judge.sampling, seeds)
        texts = iter([one.text if one is not None else "" for one in completions])
        ratings = []
        for question, answers in items:
            first, second = ("" if answer is None else next(texts) for answer in answers.turns)
            both = parse_rating(first), parse_rating(second)
            ratings.append(Ratings(id=question.id, category=question.category, ratings=both, texts=(first, second)))
        return ratings

    def _judge_messages(self, question: Question, answers: Answers, turn: int) -> list[Message]:
        prompt = self._prompts[_prompt_name(turn, question.references is not None)]
        texts = {"question": question.turns[0], "answer": answers.turns[0] or ""}
        for number, asked, said, right in zip(
            TURNS, question.turns, answers.turns, question.references or ("", ""), strict=True
        ):
            texts |= {f"question_{number}": asked, f"answer_{number}": said or "", f"ref_answer_{number}": right}
        return conversation(prompt["system_prompt"], (), fill_in(prompt["prompt_template"], texts))


def read_questions(data_dir: Path) -> list[Question]:
    """The questions, with reference answers where their category has some.

    Raises:
        ValueError: a file cannot be read, or a question lacks something.
    """
    files = [*sorted(data_dir.glob(REFERENCES)), *sorted((data_dir / "reference_answer").glob("*.jsonl"))]
    references = {
        str(row["question_id"]): row["choices"][0]["turns"]
        for path in files
        for row in _rows(path, "question_id", "choices")
    }
    found = []
    for row in _rows(data_dir / QUESTIONS, "question_id", "category", "turns"):
        name, needed = str(row["question_id"]), row["category"] in WITH_REFERENCE
        if len(row["turns"]) != len(TURNS):
            raise ValueError(f"question {name} of {data_dir} has {len(row['turns'])} turns and not 2")
        right = references.get(name, ())
        if needed and len(right) < len(TURNS):
            raise ValueError(
                f"question {name} of {data_dir} is of the category {row['category']}, which is judged beside a "
                f"reference, and no {REFERENCES} has an answer of two turns to it"
            )
        first, second = row["turns"]
        found.append(Question(name, row["category"], (first, second), (right[0], right[1]) if needed else None))
    return found


def read_prompts(data_dir: Path) -> dict[str, Mapping[str, Any]]:
    """The judge prompts by name.

    Raises:
        ValueError: the file cannot be read, or lacks a prompt.
    """
    prompts = {row["name"]: row for row in _rows(data_dir / PROMPTS, "name", "system_prompt", "prompt_template")}
    wanted = [_prompt_name(turn, reference) for turn in TURNS for reference in (False, True)]
    if missing := [name for name in wanted if name not in prompts]:
        raise ValueError(f"{data_dir / PROMPTS} has no judge prompt {', '.join(missing)}; take the file of FastChat")
    return prompts


def parse_rating(text: str) -> float | None:
    """The last `[[rating]]` of a judgement, behind its reasoning; none where there is none from 1 to 10."""
    found = _RATING.findall(without_reasoning(text) or "")
    rating = float(found[-1]) if found else math.nan
    return rating if 1 <= rating <= 10 else None


def _prompt_name(turn: int, reference: bool) -> str:
    """FastChat's name of the prompt that rates an answer."""
    return f"single-{'math-' if reference else ''}v1{'-multi-turn' if turn > 1 else ''}"


def _asked(question: Question, said: Sequence[str | None]) -> list[Message]:
    """The conversation up to where the student answers, with what it has said so far."""
    earlier = [
        turn
        for asked, answer in zip(question.turns, said, strict=False)
        for turn in (Turn("user", asked), Turn("assistant", answer or ""))
    ]
    return conversation("", earlier, question.turns[len(said)])


def _metrics(answers: Sequence[Answers], ratings: Sequence[Ratings]) -> dict[str, float]:
    """Means over all ratings that there are; the interval is over questions, whose turns are drawn together."""
    questions = [[rating for rating in one.ratings if rating is not None] for one in ratings]
    questions = [one for one in questions if one]
    rated = [rating for one in questions for rating in one]
    metrics = {"mt_bench": statistics.fmean(rated)}
    if len(questions) >= MIN_VALUES:
        rows = np.array([[sum(one), len(one)] for one in questions], dtype=np.float64)
        sums, counts = bootstrap_rows(rows, np.random.default_rng(stable_seed("mt_bench"))).T
        interval = percentile_interval(metrics["mt_bench"], sums / counts)
        if interval.ends is not None:
            metrics |= dict(zip(("mt_bench_low", "mt_bench_high"), interval.ends, strict=True))
    for turn in TURNS:
        if of_turn := [rating for one in ratings if (rating := one.ratings[turn - 1]) is not None]:
            metrics[f"mt_bench_turn_{turn}"] = statistics.fmean(of_turn)
    for category in dict.fromkeys(one.category for one in ratings):
        own = [rating for one in ratings if one.category == category for rating in one.ratings if rating is not None]
        if own:
            metrics[f"mt_bench_{category}"] = statistics.fmean(own)
    unanswered = sum(one.turns.count(None) for one in answers)
    unrated = sum(one.ratings.count(None) for one in ratings)
    return {**metrics, "mt_bench_unparsed": float(unrated - unanswered), "mt_bench_unanswered": float(unanswered)}


def _rows(path: Path, *needed: str) -> list[Mapping[str, Any]]:
    """The rows of a file, which have these fields.

    Raises:
        ValueError: the file cannot be read, or a row lacks a field.
    """
    try:
        _, rows, numbers = read_rows(str(path))
    except OSError as error:
        raise ValueError(str(error)) from error
    for number in numbers:
        row = rows[number]
        if not isinstance(row, Mapping) or any(name not in row for name in needed):
            raise ValueError(f"{path}, row {number + 1}: expected the fields {', '.join(needed)}")
    return [rows[number] for number in numbers]
