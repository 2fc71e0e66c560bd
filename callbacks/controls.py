"""Signals that look at no model: what a signal has to beat."""

import random
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from montessori_pl.data.records import Example, stable_seed
from montessori_pl.models.loading import load_chat_template
from montessori_pl.models.student import StudentModule
from montessori_pl.signals.scalar import Columns, Direction, ScalarSignal
from montessori_pl.signals.scoring_data import ScoringData


class RandomSignal(ScalarSignal):
    """A number drawn uniformly from [0, 1): the control that knows nothing.

    It depends on the seed and on the example's id alone, so that neither batches nor a restart change it.

    Args:
        seed: of the draws; another seed is another control.
    """

    quantity = "draw"
    unit = "uniform in [0, 1)"
    needs_student = False
    needs_response = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def report(self) -> dict[str, Any]:
        """What is measured, and the seed."""
        return {**super().report(), "seed": self.seed}

    def measure(
        self, student: StudentModule, examples: Sequence[Example], batch: dict[str, Tensor], losses: Tensor
    ) -> Columns:
        """One draw for each id."""
        draws = [random.Random(stable_seed("random signal", self.seed, example.id)).random() for example in examples]
        return {self.quantity: draws}


class ResponseLengthSignal(ScalarSignal):
    """The number of tokens of the whole response in the student's tokenizer, end token included.

    A baseline of CAR (arXiv 2411.07133), and the bias that many other signals share. A response that is cut for the
    student counts as long as it is.

    Args:
        direction: whether short (`low`) or long responses (`high`) are preferred.
    """

    quantity = "response_tokens"
    unit = "tokens"
    needs_student = False

    def __init__(self, direction: Direction) -> None:
        self.direction = direction

    def prepare(self, student: StudentModule, data: ScoringData) -> None:
        """Find the student's tokenizer."""
        self._chat = load_chat_template(student.source)

    def measure(
        self, student: StudentModule, examples: Sequence[Example], batch: dict[str, Tensor], losses: Tensor
    ) -> Columns:
        """The tokens of each response."""
        ids = (self._chat.response_ids(one.response, sampled=one.response_tokens) for one in examples)
        return {self.quantity: [len(response) for response in ids]}
