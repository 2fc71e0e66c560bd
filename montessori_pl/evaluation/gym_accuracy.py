"""Accuracy on the gym's tasks, by its verifiers, for each family of tasks."""

import dataclasses
from collections.abc import Sequence

from montessori_pl.batches.sources import DataSources
from montessori_pl.bounds import Count, PositiveInt
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example
from montessori_pl.evaluation.exact_match import ExactMatch, ItemAnswer
from montessori_pl.generation.base import Completion
from montessori_pl.worlds.gym.tasks import family_of, is_right, solve


class GymAccuracy(ExactMatch):
    """Greedy answers to tasks of the gym, each judged by the verifier of its family.

    An answer is right where it is the answer, or where its first sentence ends in it. The answers of the test set are
    not looked at. All answers are kept, as by `ExactMatch`.

    Args:
        max_tokens: longest answer in tokens; an answer that is cut there is judged as far as it goes.
        items_per_batch: items that are answered between two commits: what a kill can cost.
    """

    def __init__(self, max_tokens: Count = 24, items_per_batch: PositiveInt = 48) -> None:
        super().__init__(max_tokens, items_per_batch=items_per_batch)

    def check_inputs(self, data: DataSources, chat_template: ChatTemplate) -> None:
        """Whether the test set holds tasks of the gym alone, with room for an answer."""
        strange = [example.instruction for example in data.read("test") if family_of(example.instruction) is None]
        if strange:
            raise ValueError(
                f"GymAccuracy verifies tasks of the gym, and {len(strange)} items of data.test are none, for example "
                f"{strange[0][:80]!r}; set data.test to gym/test, or measure with ExactMatch"
            )
        super().check_inputs(data, chat_template)

    def _metrics(self, test: Sequence[Example], answers: Sequence[ItemAnswer]) -> dict[str, float]:
        """What `ExactMatch` measures, and `accuracy_FAMILY` for each family of the test set."""
        families: dict[str, list[bool]] = {}
        for item, answer in zip(test, answers, strict=True):
            families.setdefault(str(family_of(item.instruction)), []).append(answer.right)
        by_family = {f"accuracy_{name}": sum(right) / len(right) for name, right in families.items()}
        return super()._metrics(test, answers) | by_family

    def _judged(self, item: Example, completion: Completion | None) -> ItemAnswer:
        judged = super()._judged(item, completion)
        right = judged.answer is not None and is_right(judged.answer, str(solve(item.instruction)))
        return dataclasses.replace(judged, right=right)
