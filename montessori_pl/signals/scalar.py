"""What the simple signals share: one number of each example, of which more or less is preferred."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from montessori_pl.data.records import Example, Rejection, Score
from montessori_pl.models.student import StudentModule
from montessori_pl.signals.base import SignalCallback
from montessori_pl.stats.distribution import describe

Direction = Literal["low", "high"]
"""Which end of a quantity is taken to be better for the student."""

Columns = Mapping[str, Sequence[float]]
"""By name, one number for each example of a batch."""


class ScalarSignal(SignalCallback):
    """A score is a quantity of the example, or its negative where low is preferred.

    Implement `measure`, and name in `quantity` which of the numbers that it returns is scored; all of them are kept in
    the score's details. The quantity must depend on the example alone and not on what stands beside it in a batch.
    """

    quantity: ClassVar[str]
    """Name of the number that is scored."""
    unit: ClassVar[str]
    """Its unit, or what it is the ratio of."""
    direction: Direction = "high"
    """Which end of it is preferred."""

    @abstractmethod
    def measure(
        self, student: StudentModule, examples: Sequence[Example], batch: dict[str, Tensor], losses: Tensor
    ) -> Columns:
        """The quantity, and what else the details hold; arguments are those of `score_batch`."""

    def preference(self, quantity: float) -> float:
        """The score of this quantity: higher is better."""
        return quantity if self.direction == "high" else -quantity

    def report(self) -> dict[str, Any]:
        """What is measured, and which end of it is preferred."""
        return {"quantity": self.quantity, "unit": self.unit, "direction": self.direction}

    def summary(self, scores: Sequence[Score], unscored: Sequence[Rejection] = ()) -> dict[str, Any]:
        """Quantiles of the quantity, and how many examples share their score with another: no pair tells them apart."""
        counts = Counter(score.value for score in scores)
        return {
            "quantiles": describe([score.details[self.quantity] for score in scores]).get("quantiles", {}),
            "tied": sum(count for count in counts.values() if count > 1),
        }

    def score_batch(
        self, student: StudentModule, examples: Sequence[Example], batch: dict[str, Tensor], losses: Tensor
    ) -> list[Score]:
        """The preference for each example."""
        columns = self.measure(student, examples, batch, losses)
        rows = [dict(zip(columns, numbers, strict=True)) for numbers in zip(*columns.values(), strict=True)]
        return [
            Score(
                id=example.id,
                value=self.preference(row[self.quantity]),
                method=f"{self.quantity}, {self.direction} is better",
                details=row,
            )
            for example, row in zip(examples, rows, strict=True)
        ]
