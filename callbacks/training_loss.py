"""The student's own loss as a signal."""

from collections.abc import Sequence

from torch import Tensor

from montessori_pl.data.records import Example
from montessori_pl.models.student import StudentModule
from montessori_pl.signals.scalar import Columns, Direction, ScalarSignal


class TrainingLossSignal(ScalarSignal):
    """The student's mean loss over the response, end token included.

        loss(x, y) = -(1/|y|) sum_t log p(y_t | x, y_<t)          nats per response token

    It costs nothing, because every signal is handed the losses. With `low` the score is the mean log-probability of the
    response: the learnability reward of PerSyn (arXiv 2510.10925, equation 1; there under the student before any
    tuning, which is `student: base` of the stage), and the rule by which GRAPE (arXiv 2502.04194) picks a response.
    With `high` it prefers what the student finds hard. It says how easy an example is, not what is learned from it, and
    low loss favours long and formulaic text.

    Args:
        direction: whether examples of low or of high loss are preferred.
    """

    quantity = "loss"
    unit = "nats per response token"

    def __init__(self, direction: Direction) -> None:
        self.direction = direction

    def measure(
        self, student: StudentModule, examples: Sequence[Example], batch: dict[str, Tensor], losses: Tensor
    ) -> Columns:
        """The losses as they are."""
        return {self.quantity: losses.tolist()}
