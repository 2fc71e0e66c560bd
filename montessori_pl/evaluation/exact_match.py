"""Exact match: the share of test items that the student answers as the test set does."""

import math
from collections.abc import Callable
from typing import Literal

from montessori_pl.chat import ChatFormat
from montessori_pl.data import DataSources, normalized
from montessori_pl.evaluation.answers import same_answer
from montessori_pl.evaluation.base import Evaluator
from montessori_pl.generation.base import GenerationBackend, Request, Sampling
from montessori_pl.generation.foresight import Respondent
from montessori_pl.models import ModelSource
from montessori_pl.planning import Work


class ExactMatch(Evaluator):
    """Greedy answers to the test set, compared with its responses.

    An item whose prompt leaves no room for an answer in the student's context counts as answered wrong.

    Args:
        max_tokens: longest answer in tokens.
        answers: what is compared: the whole `text`, without regard to case and blanks, or the `final` answer, which
            stands behind `####`, in a `\\boxed{}`, or last of all, and is compared as a number where it is one.
    """

    def __init__(self, max_tokens: int = 64, answers: Literal["text", "final"] = "text") -> None:
        self.sampling = Sampling(temperature=0.0, max_tokens=max_tokens)
        self.answers = answers

    def plan(self, data: DataSources, chat: ChatFormat, backend: Callable[[], GenerationBackend]) -> list[Work]:
        """An answer to each item of the test set, as long as the test set's own."""
        test = data.read("test")
        asked, expected = [example.messages()[:-1] for example in test], [example.response for example in test]
        limit = self.sampling.max_tokens
        return [Respondent(chat=chat).work("answers", len(test), len(test), asked, expected, limit)]

    def evaluate(
        self, student: ModelSource, data: DataSources, backend: Callable[[], GenerationBackend]
    ) -> dict[str, float]:
        """`accuracy`, with its standard error."""
        test = data.read("test")
        engine = backend()
        engine.load(student)
        answered = [example for example in test if engine.fits(example.messages()[:-1], self.sampling)]
        requests = [Request(messages=example.messages()[:-1], seed=0) for example in answered]
        answers = engine.generate(requests, self.sampling)
        engine.close()
        same = same_answer if self.answers == "final" else _same_text
        hits = sum(same(answer.text, example.response) for answer, example in zip(answers, answered, strict=True))
        accuracy = hits / len(test)
        return {"accuracy": accuracy, "accuracy_standard_error": math.sqrt(accuracy * (1 - accuracy) / len(test))}


def _same_text(given: str, expected: str) -> bool:
    return normalized(given) == normalized(expected)
