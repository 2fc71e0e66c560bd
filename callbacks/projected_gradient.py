"""The student's gradient on each example, projected to a few dimensions: what looks at many examples together needs.

Shapes: B examples, D dimensions.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from montessori_pl.bounds import PositiveInt
from montessori_pl.data.records import Example, Rejection, Score
from montessori_pl.influence import (
    GradientProjection,
    ResponseLosses,
    activation_budget,
    computing_in_float32,
    gradient_tokens,
    per_example_gradients,
    plan_memory,
    row_blocks,
    trainable_parameters,
)
from montessori_pl.models.student import StudentModule
from montessori_pl.signals.base import SignalCallback
from montessori_pl.signals.scoring_data import ScoringData
from montessori_pl.stats.gradients import gradient_vendi

MOST_TOKENS = 8192
"""Of one pass, padding included; fewer where a large model would keep too much of them."""


class ProjectedGradientSignal(SignalCallback):
    """The gradient of an example's mean loss per response token, over the parameters that the student trains.

    Scores keep it in `gradient`, for `SelectTeacher` with `rule: grace`; their value is minus its length. The report
    says how various the gradients are (`g_vendi`, `stats.gradients.gradient_vendi`). With `student: base` of the stage,
    and an adapter, gradients are those of a fresh adapter, of which one factor is zero and only the other has any.

    Args:
        dim: dimensions that gradients are projected to, at random and in the same way for all examples.
        memory_budget: bytes that gradients may take, and so how many examples have theirs at once; null takes half of
            what is free on the device when scoring begins.
    """

    fingerprint_excludes = ("memory_budget",)
    needs_gradients = True

    def __init__(self, dim: PositiveInt = 512, memory_budget: PositiveInt | None = None) -> None:
        self.dim, self.memory_budget = dim, memory_budget

    def prepare(self, student: StudentModule, data: ScoringData) -> None:
        """Draw the projection."""
        loss, self._params = ResponseLosses(student.network), trainable_parameters(student.network)
        most = gradient_tokens(student.network, student.device, MOST_TOKENS)
        self._gradients = per_example_gradients(loss, self._params, most)
        budget = self.memory_budget or self.free_memory(student.device)
        self._at_once = max(1, plan_memory(self._params, budget, 0, activation_budget(student.device)).examples_at_once)
        self._project = GradientProjection(self._params, self.dim)

    def report(self) -> dict[str, Any]:
        """What is measured."""
        return {"quantity": "gradient length", "unit": "nats per response token", "dim": self.dim}

    def summary(self, scores: Sequence[Score], unscored: Sequence[Rejection] = ()) -> dict[str, Any]:
        """How various the gradients are together."""
        return {"g_vendi": gradient_vendi(np.array([score.gradient for score in scores]))} if scores else {}

    def score_batch(
        self, student: StudentModule, examples: Sequence[Example], batch: dict[str, Tensor], losses: Tensor
    ) -> list[Score]:
        """The projected gradient of each example."""
        rows: list[list[float]] = []
        with computing_in_float32(student.network):
            for block in row_blocks(batch, self._at_once):
                rows += self._project(self._gradients(self._params, block)).tolist()
        return [
            Score(
                id=example.id,
                value=-float(np.linalg.norm(row)),
                method=f"gradient, projected to {self.dim} dimensions",
                details={"loss": loss},
                gradient=tuple(float(f"{number:.7g}") for number in row),
            )
            for example, row, loss in zip(examples, rows, losses.tolist(), strict=True)
        ]
