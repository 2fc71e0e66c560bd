"""Exact match: the share of test items that the student answers as the test set does."""

import math
from collections.abc import Callable

from montessori_pl.data import DataSources, normalized
from montessori_pl.evaluation.base import Evaluator
from montessori_pl.generation.base import GenerationBackend, Request, Sampling
from montessori_pl.models import ModelSource


class ExactMatch(Evaluator):
    """Greedy answers to the test set, compared without regard to case and blanks.

    An item whose prompt leaves no room for an answer in the student's context counts as answered wrong.

    Args:
        max_tokens: longest answer in tokens.
    """

    def __init__(self, max_tokens: int = 64) -> None:
        self.sampling = Sampling(temperature=0.0, max_tokens=max_tokens)

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
        hits = sum(
            normalized(answer.text) == normalized(example.response)
            for answer, example in zip(answers, answered, strict=True)
        )
        accuracy = hits / len(test)
        return {"accuracy": accuracy, "accuracy_standard_error": math.sqrt(accuracy * (1 - accuracy) / len(test))}
