"""What an evaluator is: it takes a student and says how good it is, in named numbers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from montessori_pl.batches.sources import DataSources
from montessori_pl.bounds import Checked
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.estimates.estimate import Work
from montessori_pl.generation.base import GenerationBackend
from montessori_pl.models.loading import ModelSource

ANSWERS = "answers.jsonl"
"""File of an evaluator's directory in which it may leave what a student answers, an item a line, for users to read."""


class Evaluator(Checked, ABC):
    """Measures a student. Implement `evaluate`."""

    generates: ClassVar[bool] = True
    """Whether students are asked, with an engine of the recipe's kind."""
    needs_test: ClassVar[bool] = False
    """Whether nothing can be measured without a test set."""
    artifacts: ClassVar[tuple[str, ...]] = (ANSWERS,)
    """Patterns of files in `directory` that others may read; their hashes are kept."""
    requests: Path | None = None
    """Directory in which an engine of the evaluator may keep answers that were paid for; the stage sets it."""
    directory: Path | None = None
    """Where the evaluator may keep what it has done of one student, to go on from there after a kill; the stage sets
    it, and it need not exist. None where no stage asks."""
    other_sources: Mapping[str, ModelSource]
    """The students that `other_students` names; the stage sets it."""

    def other_students(self) -> list[str]:
        """Names of students of the recipe, as stages or `base`, that are needed beside the measured one; none."""
        return []

    def check_environment(self) -> None:
        """Look, before a run begins, at an engine of the evaluator's own; by default there is none.

        Raises:
            ValueError: something is missing.
        """
        return

    def check_inputs(self, data: DataSources, chat_template: ChatTemplate) -> None:
        """Look, before a run begins, at whether anything of the data has room in a student; by default nothing.

        Args:
            data: seeds, reference and test set.
            chat_template: how the student writes conversations.

        Raises:
            ValueError: nothing could be measured.
        """
        return

    def estimate(
        self, data: DataSources, chat_template: ChatTemplate, backend: Callable[[], GenerationBackend]
    ) -> list[Work]:
        """What the evaluation of one student will take, for a dry run; by default nothing is said.

        Args:
            data: seeds, reference and test set.
            chat_template: how the student writes conversations.
            backend: makes a generation engine, of which only price and budget are looked at.
        """
        return []

    @abstractmethod
    def evaluate(
        self, student: ModelSource, data: DataSources, backend: Callable[[], GenerationBackend]
    ) -> dict[str, float]:
        """The student's numbers, by name; names must differ from those of other evaluators.

        Args:
            student: the student, to be loaded.
            data: seeds, reference and test set.
            backend: makes a generation engine, for evaluators that read answers.
        """
