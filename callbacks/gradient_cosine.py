"""Gradient similarity as a signal: does an example pull the student where the reference set pulls it?

Shapes: B examples, P trained parameters.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from montessori_pl.bounds import PositiveInt
from montessori_pl.data.records import Example
from montessori_pl.influence import (
    AdamW,
    Batch,
    Params,
    ReferenceSet,
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
from montessori_pl.signals.scalar import Columns, ScalarSignal
from montessori_pl.signals.scoring_data import ScoringData


class GradientCosineSignal(ScalarSignal):
    """The cosine of an example's direction and the reference set's mean gradient, after LESS (arXiv 2402.04333).

        cos(Gamma(z), g_R)     g_R = mean over r in R of grad loss(r),  Gamma(z) = grad loss(z)     or, preconditioned,
        Gamma(z) = m' / (sqrt(v') + eps)

    over the parameters that the student trains, with mean losses per response token. m' and v' are Adam's moments after
    one more step on z, corrected for their bias, from those at the end of the student's training: the step of AdamW
    without its weight decay. Unlike influence, which is first order in the same two vectors, the cosine does not know
    how long a step is. It differs from LESS in that gradients are not projected at random to fewer dimensions but taken
    whole, and that one checkpoint is looked at, not several weighted by their learning rates. The code published with
    LESS adds eps under the root, leaves out the correction, and averages one cosine for each reference.

    Args:
        preconditioned: whether the example's direction is that of AdamW's step, as in LESS, or of its gradient.
        reference_batch_tokens: tokens of one pass over references or examples, padding included.
        memory_budget: bytes that gradients may take, and so how many examples have theirs at once; null takes half of
            what is free on the device when scoring begins.
    """

    quantity = "gradient_cosine"
    unit = "from -1 to 1"
    fingerprint_excludes = ("reference_batch_tokens", "memory_budget")
    needs_gradients = True

    def __init__(
        self,
        preconditioned: bool = True,
        reference_batch_tokens: PositiveInt = 8192,
        memory_budget: PositiveInt | None = None,
    ) -> None:
        self.preconditioned, self.reference_batch_tokens = preconditioned, reference_batch_tokens
        self.memory_budget = memory_budget

    def prepare(self, student: StudentModule, data: ScoringData) -> None:
        """Compute the reference gradient.

        Raises:
            ValueError: the moments are asked for, and the student has none.
        """
        self._update = self._adam(student) if self.preconditioned else None
        loss, self._params = ResponseLosses(student.network), trainable_parameters(student.network)
        tokens = gradient_tokens(student.network, student.device, self.reference_batch_tokens)
        self._gradients = per_example_gradients(loss, self._params, tokens)
        budget = self.memory_budget or self.free_memory(student.device)
        # One after another where not even one fits: there is no cheaper way to a gradient.
        self._at_once = max(1, plan_memory(self._params, budget, 0, activation_budget(student.device)).examples_at_once)
        batch = {name: rows.to(student.device) for name, rows in data.reference_batch().items()}
        references = ReferenceSet(loss, [batch], batch_tokens=self.reference_batch_tokens, gradient_tokens=tokens)
        with computing_in_float32(student.network):
            self._reference = _directions(references.gradient(self._params), batch_dims=0)  # (P,)

    def report(self) -> dict[str, Any]:
        """What is measured, and whether by the optimizer's step."""
        return {**super().report(), "preconditioned": self.preconditioned}

    def measure(
        self, student: StudentModule, examples: Sequence[Example], batch: dict[str, Tensor], losses: Tensor
    ) -> Columns:
        """The cosine of each example, 0 for one that has no gradient."""
        cosines = [cosine for block in row_blocks(batch, self._at_once) for cosine in self._cosines(student, block)]
        return {self.quantity: cosines, "loss": losses.tolist()}

    def _cosines(self, student: StudentModule, batch: Batch) -> list[float]:
        """Those of as many examples as memory has room for."""
        with computing_in_float32(student.network):
            moves = self._gradients(self._params, batch)
        if self._update is not None:
            # From the origin with a learning rate of 1, a step is minus its direction, and nothing can decay.
            origin = {name: torch.zeros_like(param) for name, param in self._params.items()}
            moves = {name: -move for name, move in self._update(origin, moves).items()}
        cosines: list[float] = (_directions(moves, batch_dims=1) @ self._reference).tolist()
        return cosines

    def _adam(self, student: StudentModule) -> AdamW:
        if student.optimizer_state is None:
            raise ValueError(
                "GradientCosineSignal with preconditioned: true needs the moments of the student's training, and "
                f"{student.why_no_state}; score with a trained student, or set preconditioned: false"
            )
        return AdamW.from_optimizer_state(
            student.optimizer_state, student.optimizer_names, lr=1.0, device=student.device
        )


def _directions(params: Params, batch_dims: int) -> Tensor:
    """All parameters in one row behind their leading dimensions, scaled to length 1; zero stays zero."""
    rows = torch.cat([tensor.flatten(batch_dims) for tensor in params.values()], dim=-1)
    return rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
