"""Exact match: the share of test items that the student answers as the test set does."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

from montessori_pl.batches.sources import DataSources
from montessori_pl.bounds import Count, PositiveInt
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example, Record
from montessori_pl.estimates.estimate import Work
from montessori_pl.estimates.requests import RequestEstimator
from montessori_pl.evaluation.answers import same_answer, same_text
from montessori_pl.evaluation.asking import BatchedWork, ask, kept_records, loaded
from montessori_pl.evaluation.base import ANSWERS, Evaluator
from montessori_pl.generation.base import Completion, GenerationBackend, Sampling
from montessori_pl.models.loading import ModelSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemAnswer(Record):
    """What the student says to one item of the test set; `id` is the item's."""

    answer: str | None
    """The answer; none where the prompt leaves no room for one."""
    right: bool
    """Whether it is the expected one."""
    cut: bool
    """Whether it reached the token limit before it ended."""


class ExactMatch(Evaluator):
    """Greedy answers to the test set, compared with its responses.

    An item whose prompt leaves no room for an answer in the student's context counts as answered wrong. Reasoning in
    `<think>...</think>` is not compared, and an answer that does not get beyond it is wrong. All answers are kept in
    `answers.jsonl`, whole and in the order of the test set, so that students can be compared item by item.

    Args:
        max_tokens: longest answer in tokens; an answer that is cut there is compared as far as it goes.
        answers: what is compared: the whole `text`, without regard to case and blanks, or the `final` answer, which
            stands behind `####`, in a `\\boxed{}`, or last of all, and is compared as a number where it is one.
        items_per_batch: items that are answered between two commits: what a kill can cost.
    """

    needs_test: ClassVar[bool] = True
    fingerprint_excludes: ClassVar[tuple[str, ...]] = ("items_per_batch",)

    def __init__(
        self,
        max_tokens: Count = 64,
        answers: Literal["text", "final"] = "text",
        items_per_batch: PositiveInt = 256,
    ) -> None:
        self.sampling = Sampling(temperature=0.0, max_tokens=max_tokens)
        self.answers, self.items_per_batch = answers, items_per_batch

    def check_inputs(self, data: DataSources, chat_template: ChatTemplate) -> None:
        """Whether any item of the test set leaves room for an answer."""
        asked = [example.messages()[:-1] for example in data.read("test")]
        RequestEstimator.of_template(chat_template).check_room(asked, "max_tokens", self.sampling.max_tokens)

    def estimate(
        self, data: DataSources, chat_template: ChatTemplate, backend: Callable[[], GenerationBackend]
    ) -> list[Work]:
        """An answer to each item of the test set that has none yet, as long as the test set's own."""
        test = data.read("test")
        left = len(test) - len(kept_records(self.directory, ANSWERS, ItemAnswer))
        asked, expected = [example.messages()[:-1] for example in test], [example.response for example in test]
        return [
            RequestEstimator.of_template(chat_template).work(
                "answers", left, left, asked, expected, self.sampling.max_tokens
            )
        ]

    def evaluate(
        self, student: ModelSource, data: DataSources, backend: Callable[[], GenerationBackend]
    ) -> dict[str, float]:
        """`accuracy` with its standard error, and `answers_cut`, the share of items whose answer was cut."""
        test = data.read("test")
        return self._metrics(test, self._answers(test, student, backend))

    def _metrics(self, test: Sequence[Example], answers: Sequence[ItemAnswer]) -> dict[str, float]:
        accuracy = sum(one.right for one in answers) / len(test)
        return {
            "accuracy": accuracy,
            "accuracy_standard_error": math.sqrt(accuracy * (1 - accuracy) / len(test)),
            "answers_cut": sum(one.cut for one in answers) / len(test),
        }

    def _answers(
        self, test: Sequence[Example], student: ModelSource, backend: Callable[[], GenerationBackend]
    ) -> list[ItemAnswer]:
        """An answer to each item: those that are kept, and then the others."""
        work = BatchedWork(self.directory, [ANSWERS], self.items_per_batch)
        return work.records(ANSWERS, ItemAnswer, test, lambda: loaded(backend, student), self._ask)

    def _ask(self, items: Sequence[Example], engine: GenerationBackend) -> list[ItemAnswer]:
        asked = [item.messages()[:-1] for item in items]
        completions = ask(engine, asked, self.sampling, [0] * len(items))
        return [self._judged(item, one) for item, one in zip(items, completions, strict=True)]

    def _judged(self, item: Example, completion: Completion | None) -> ItemAnswer:
        if completion is None:
            return ItemAnswer(id=item.id, answer=None, right=False, cut=False)
        same = same_answer if self.answers == "final" else same_text
        right = same(completion.text, item.response)
        return ItemAnswer(id=item.id, answer=completion.text, right=right, cut=not completion.finished)
