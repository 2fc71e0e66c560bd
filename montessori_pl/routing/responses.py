"""A pool of responses: several teachers answered the same instructions, and numbers are known of each response.

Prompts and teachers are sorted, so that nothing depends on the order in which responses were recorded. A table over a
pool has shape (N, K): N prompts, K teachers; NaN where a teacher has not answered, or where the number is not known.
"""

import statistics
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from montessori_pl.data.records import Example, Message, Turn, conversation

Array = NDArray[np.float64]


class Prompt(NamedTuple):
    """What all teachers are asked: the same texts, regardless of their source."""

    instruction: str
    """The last user turn."""
    system: str = ""
    """The system message; empty when there is none."""
    history: tuple[Turn, ...] = ()
    """The turns before the user turn; often none."""

    @classmethod
    def of(cls, example: Example) -> "Prompt":
        """What this example answers."""
        return cls(example.instruction, example.system, example.history)

    def messages(self) -> list[Message]:
        """The conversation up to where the assistant answers."""
        return conversation(self.system, self.history, self.instruction)


@dataclass(frozen=True)
class ResponsePool:
    """Responses by prompt and teacher."""

    prompts: list[Prompt]
    """All prompts, sorted."""
    teachers: list[str]
    """All teachers, sorted by name."""
    answers: Mapping[tuple[Prompt, str], list[Example]]
    """What a teacher answered to a prompt: one response or several."""

    @classmethod
    def of(cls, examples: Iterable[Example]) -> "ResponsePool":
        """Group responses by what was asked and by who answered.

        Raises:
            ValueError: of some response it is not known who wrote it.
        """
        answers: dict[tuple[Prompt, str], list[Example]] = {}
        for example in examples:
            if not example.teacher:
                raise ValueError(
                    f"no teacher is recorded for the response of example {example.id} ({example.instruction[:40]!r}); "
                    "write its teacher's name into a column `teacher`, `model` or `generator` of its source"
                )
            answers.setdefault((Prompt.of(example), example.teacher), []).append(example)
        return cls(sorted({prompt for prompt, _ in answers}), sorted({teacher for _, teacher in answers}), answers)

    def table(self, numbers: Mapping[str, float]) -> Array:
        """A number of each response as a table; of several responses of a teacher to a prompt the mean.

        Args:
            numbers: by id of the example.
        """
        table = np.full((len(self.prompts), len(self.teachers)), np.nan)
        for row, prompt in enumerate(self.prompts):
            for column, teacher in enumerate(self.teachers):
                answers = self.answers.get((prompt, teacher), ())
                if found := [numbers[answer.id] for answer in answers if answer.id in numbers]:
                    table[row, column] = statistics.fmean(found)
        return table

    def without(self, teachers: Collection[str]) -> "ResponsePool":
        """The pool as if these teachers had answered nothing."""
        left = {key: answers for key, answers in self.answers.items() if key[1] not in teachers}
        return ResponsePool(
            sorted({prompt for prompt, _ in left}), [name for name in self.teachers if name not in teachers], left
        )

    def counts(self) -> dict[str, int]:
        """The number of responses of each teacher."""
        counts = dict.fromkeys(self.teachers, 0)
        for (_, teacher), answers in self.answers.items():
            counts[teacher] += len(answers)
        return counts
