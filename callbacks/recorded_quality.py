"""How good a response is according to its source."""

from collections.abc import Sequence

from torch import Tensor

from montessori_pl.data.records import Example
from montessori_pl.models.student import StudentModule
from montessori_pl.signals.scalar import Columns, ScalarSignal
from montessori_pl.signals.scoring_data import ScoringData


class RecordedQualitySignal(ScalarSignal):
    """The quality that stands in the example itself: a reward that was published with it, a judge's grade, correctness.

    With it teachers can be ranked and routed to from recorded responses alone, without a reward model.
    """

    quantity = "quality"
    unit = "as recorded"
    needs_student = False

    def prepare(self, student: StudentModule, data: ScoringData) -> None:
        """Look at all examples first, so that a run does not end amid them.

        Raises:
            ValueError: an example has no quality.
        """
        lacking = [example for example, _ in data.items if example.quality is None]
        if lacking:
            raise ValueError(
                f"example {lacking[0].id} ({lacking[0].instruction[:40]!r}) has no recorded quality, and so it is with "
                f"{len(lacking)} of {len(data.items)} examples; write a finite number into a column `quality` of their "
                "source, or score them with another signal, for example RewardModelSignal"
            )

    def measure(
        self, student: StudentModule, examples: Sequence[Example], batch: dict[str, Tensor], losses: Tensor
    ) -> Columns:
        """What each example says."""
        return {self.quantity: [example.quality for example in examples if example.quality is not None]}
