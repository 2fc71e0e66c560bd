"""What an evaluator is: it takes a student and says how good it is, in named numbers."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from montessori_pl.chat import ChatFormat
from montessori_pl.data import DataSources
from montessori_pl.generation.base import GenerationBackend
from montessori_pl.models import ModelSource
from montessori_pl.planning import Work


class Evaluator(ABC):
    """Measures a student. Implement `evaluate`."""

    def plan(self, data: DataSources, chat: ChatFormat) -> list[Work]:
        """What the evaluation of one student will take, for a dry run; by default nothing is said.

        Args:
            data: seeds, reference and test set.
            chat: how the student writes conversations.
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
